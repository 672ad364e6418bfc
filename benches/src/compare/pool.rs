//! `compare --pool`: our pool's process beside SRI's (`benches/sri-pool`), the same swarm against each in
//! turn, both on one `dev_node`: ours by JSON-RPC and with its ledger in SQLite, committed before a share is
//! acknowledged; theirs by Template Distribution and storing nothing, because it has no store. Called by
//! `bin/compare.rs`.
//!
//! No figure counts unless every good share was acknowledged, every bad one refused and no connection lost,
//! in the very run that it comes from.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitcoin::hashes::Hash;
use bitcoin::{Address, Network, WPubkeyHash, WitnessProgram, WitnessVersion};
use clap::{Args, Parser};
use proto::noise::AuthoritySecretKey;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::clock::Cost;
use super::cpu::Needs;
use super::report::{Goal, Row, Unit};
use crate::dev_node::{DevNode, DevNodeOptions, temporary_folder};
use crate::swarm::local::{LocalPool, NodeAt, Running, beside_us};
use crate::swarm::{self, Options, TipMaker};

/// Transactions in a template: a merkle path of 12.
const TX_COUNT: usize = 4_000;
/// Hashes of a block that no share is by chance.
const NO_BLOCKS: u64 = 1_000_000_000_000;
/// Hashes of a block where tips are made on command and no share is sent.
const BLOCK_HASHES: u64 = 1_000;
/// From one tip to the next: a multiple of what the slower side takes for all its connections.
const TIPS_EVERY: Duration = Duration::from_millis(500);
/// SRI's pool acknowledges by the ten as it ships, and never a part of ten.
const SRI_BATCH: u64 = 10;
/// SRI's pool forgets no share of a tip and closes a channel at shares_per_minute x 1,200 of them: 7,200 as
/// it ships. This lets a channel send a million. With it and the swarm's declared 1 H/s every hash is a
/// share there, as it is on our side at difficulty 2^-32.
const SRI_SHARES_PER_MINUTE: f64 = 1_000.0;
/// Every 60 s SRI's pool makes shares harder for who sends many; no run may last into that.
const SRI_RUN_MAX: Duration = Duration::from_secs(50);

/// What `--pool` may be told.
#[derive(Debug, Clone, Args)]
pub struct PoolOptions {
    /// Connections that send shares, with --pool.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Shares of each, a multiple of 10.
    #[arg(long, default_value_t = 20_000)]
    pub shares: u64,
    /// Connections that are idle but for tips.
    #[arg(long, default_value_t = 5_000)]
    pub idle_connections: usize,
    /// Tips of a round.
    #[arg(long, default_value_t = 10)]
    pub tips: u32,
    /// Our pool's program [default: "pool" beside this one]
    #[arg(long, value_name = "FILE")]
    pub our_pool: Option<PathBuf>,
    /// SRI's [default: "sri_pool" beside this one]
    #[arg(long, value_name = "FILE")]
    pub sri_pool: Option<PathBuf>,
    /// Where temporary folders are made: the disk that our commits go to [default: the system's]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// The two pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Theirs,
}

/// Figures of one side, one of each round.
#[derive(Debug, Default)]
struct Figures {
    cpu_us_per_share: Vec<f64>,
    shares_per_s: Vec<f64>,
    ack_p50_ms: Vec<f64>,
    ack_p99_ms: Vec<f64>,
    cpu_us_per_tip: Vec<f64>,
    fan_out_ms: Vec<f64>,
    tip_p50_ms: Vec<f64>,
    tip_p99_ms: Vec<f64>,
    tip_last_ms: Vec<f64>,
    job_last_ms: Vec<f64>,
    kib_per_connection: Vec<f64>,
    cpu_us_per_open: Vec<f64>,
}

/// Rounds if nothing else is said.
pub const ROUNDS: usize = 5;

/// Runs `rounds` rounds, each of both pools, and gives the rows.
///
/// # Errors
/// A pool that does not start, a verdict that is not right, a connection that was lost.
pub fn compare(rounds: usize, options: &PoolOptions) -> Result<Vec<Row>> {
    options.check()?;
    ensure!((1..=99).contains(&rounds), "--rounds must be from 1 to 99");
    let bench = Bench::new(options)?;
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for round in 0..rounds {
        // Who is second finds the machine warmer: they take turns.
        let order =
            if round % 2 == 0 { [Side::Ours, Side::Theirs] } else { [Side::Theirs, Side::Ours] };
        for side in order {
            let figures = match side {
                Side::Ours => &mut ours,
                Side::Theirs => &mut theirs,
            };
            let where_ = || format!("round {}, {side:?}", round + 1);
            bench.shares(side, figures).with_context(where_)?;
            bench.idle(side, figures).with_context(where_)?;
            eprintln!("{}: {}", where_(), figures.last());
        }
    }
    Ok(table(ours, theirs))
}

impl PoolOptions {
    fn check(&self) -> Result<()> {
        ensure!(
            self.shares > 0 && self.shares.is_multiple_of(SRI_BATCH),
            "--shares must be a multiple of {SRI_BATCH}: SRI's pool never acknowledges a part of that"
        );
        ensure!((1..=60).contains(&self.tips), "--tips must be from 1 to 60");
        Ok(())
    }
}

/// Both nodes and all that stays the same from run to run.
struct Bench<'a> {
    options: &'a PoolOptions,
    runtime: Arc<Runtime>,
    /// Blocks out of reach, for shares.
    hard: DevNode,
    /// Blocks on command, for tips.
    easy: Arc<DevNode>,
    local: LocalPool,
    sri_pool: PathBuf,
    payout_address: String,
    _folders: [tempfile::TempDir; 2],
}

impl<'a> Bench<'a> {
    fn new(options: &'a PoolOptions) -> Result<Self> {
        let sri_pool = match &options.sri_pool {
            Some(binary) => binary.clone(),
            None => beside_us("sri_pool", "scripts/sri-pool")?,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("a runtime")?;
        let folders = [temporary_folder(None)?, temporary_folder(None)?];
        let start = |block_hashes, folder: &Path| {
            let options = DevNodeOptions {
                tx_count: TX_COUNT,
                block_hashes,
                // No template changes within a run but by a tip.
                refresh: Duration::from_secs(3_600),
                drop_submit_solution: false,
                rpc_port: 0,
                template_port: 0,
                folder: folder.to_owned(),
                ipc_socket: None,
            };
            runtime.block_on(DevNode::start(&options)).map(|(node, _)| node)
        };
        let hard = start(NO_BLOCKS, folders[0].path())?;
        let easy = Arc::new(start(BLOCK_HASHES, folders[1].path())?);
        let program =
            WitnessProgram::new(WitnessVersion::V0, WPubkeyHash::from_byte_array([7; 20]).as_ref())
                .context("a script of nobody")?;
        let payout_address = Address::from_witness_program(program, Network::Regtest).to_string();
        let local = LocalPool {
            pool: options.our_pool.clone(),
            difficulty_log2: -32,
            tx_count: TX_COUNT as u32,
            store_url: None,
            folder: options.folder.clone(),
        };
        let runtime = Arc::new(runtime);
        Ok(Self {
            options,
            runtime,
            hard,
            easy,
            local,
            sri_pool,
            payout_address,
            _folders: folders,
        })
    }

    fn start(&self, side: Side, node: &DevNode, swarm: &Options) -> Result<Running> {
        match side {
            Side::Ours => {
                let at = NodeAt {
                    url: format!("http://{}", node.rpc),
                    cookie_file: node.cookie_file.clone(),
                    payout_address: self.payout_address.clone(),
                };
                Running::start_on(Some(&at), &self.local, swarm)
            }
            Side::Theirs => {
                let templates = node.template_distribution;
                let config = sri_config(templates, &self.payout_address)?;
                Running::launch(
                    &self.sri_pool,
                    &[],
                    self.options.folder.as_deref(),
                    |_, address| format!("listen_address = \"{address}\"\n{config}"),
                )
            }
        }
    }

    /// The same number of shares by the same connections, each acknowledged.
    fn shares(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let PoolOptions { connections, shares, .. } = self.options;
        let words = format!(
            "--connections {connections} --shares-per-connection {shares} --for {}s",
            SRI_RUN_MAX.as_secs()
        );
        let mut swarm = swarm_options(&words)?;
        let pool = self.start(side, &self.hard, &swarm)?;
        let verdicts = swarm::probe(pool.address, swarm.hash_rate)?;
        ensure!(verdicts.are_right(), "wrong verdicts: {verdicts:?}");
        swarm.pid = Some(pool.pid());
        let report = measure(&pool, &swarm, None)?;
        let refused = count(&report, "refused")?;
        let acknowledged = count(&report, "acknowledged")?;
        let all = *connections as f64 * *shares as f64;
        // What was refused was judged by the report: the pool was right to.
        ensure!(
            acknowledged + refused == all,
            "{acknowledged} acknowledged and {refused} refused of {all}"
        );
        figures.cpu_us_per_share.push(count(&report, "pool_cpu_us_per_share")?);
        figures.shares_per_s.push(count(&report, "acknowledged_per_s")?);
        figures.ack_p50_ms.push(count(&report["ack_ms"], "p50")?);
        figures.ack_p99_ms.push(count(&report["ack_ms"], "p99")?);
        Ok(())
    }

    /// Idle connections: what each takes, and what a tip for all of them takes.
    fn idle(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let PoolOptions { idle_connections, tips, .. } = self.options;
        let length = TIPS_EVERY * (tips + 1);
        let words = format!(
            "--connections {idle_connections} --idle --for {}ms --tips-every {}ms",
            length.as_millis(),
            TIPS_EVERY.as_millis()
        );
        let mut swarm = swarm_options(&words)?;
        let pool = self.start(side, &self.easy, &swarm)?;
        swarm.pid = Some(pool.pid());
        let (runtime, node) = (Arc::clone(&self.runtime), Arc::clone(&self.easy));
        let make: TipMaker = Box::new(move || {
            let tip = runtime.block_on(node.tip())?;
            Ok((tip.hash, tip.at))
        });
        let report = measure(&pool, &swarm, Some(make))?;
        let seen = report["tips"].as_array().context("no tips in the report")?;
        ensure!(seen.len() >= *tips as usize / 2, "{} tips were seen of {tips}", seen.len());
        let opened = count(&report, "opened")?;
        // Theirs sometimes leaves one of thousands untold. How long a tip took to everybody cannot be said
        // then; its CPU time counts.
        let whole = seen.iter().filter(|tip| count(tip, "connections").is_ok_and(|n| n == opened));
        let whole: Vec<&Value> = whole.collect();
        let lost = seen.len() - whole.len();
        ensure!(
            lost == 0 || (side == Side::Theirs && 2 * whole.len() >= seen.len()),
            "{lost} of {} tips did not reach everybody",
            seen.len()
        );
        if lost > 0 {
            eprintln!("{side:?}: {lost} of {} tips did not reach everybody", seen.len());
        }
        let median = |name: &str, from_block: bool| -> Result<f64> {
            let figures: Result<Vec<f64>> = whole
                .iter()
                .map(|tip| {
                    let before = if from_block { count(tip, "block_to_first_ms")? } else { 0.0 };
                    Ok(before + count(tip, name)?)
                })
                .collect();
            Ok(Cost::of(figures?).median)
        };
        figures.fan_out_ms.push(median("last_ms", false)?);
        figures.tip_p50_ms.push(median("p50_ms", true)?);
        figures.tip_p99_ms.push(median("p99_ms", true)?);
        figures.tip_last_ms.push(median("last_ms", true)?);
        // Theirs comes before the tip that it is for; ours behind it, with a job sent ahead meanwhile.
        let job = match side {
            Side::Ours => "job_last_ms",
            Side::Theirs => "last_ms",
        };
        figures.job_last_ms.push(median(job, true)?);
        let cpu_us = count(&report, "pool_cpu_s")? * 1e6;
        figures.cpu_us_per_tip.push(cpu_us / (seen.len() as f64 * opened));
        figures.kib_per_connection.push(count(&report, "pool_kib_per_connection_open")?);
        figures.cpu_us_per_open.push(count(&report, "pool_cpu_us_per_connection_opened")?);
        Ok(())
    }
}

impl Figures {
    /// The newest round, for who watches.
    fn last(&self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, of: &[f64]| {
            let figure = of.last().copied().unwrap_or(f64::NAN);
            let _ = write!(text, "{name} {figure:.2}  ");
        };
        add("us/share", &self.cpu_us_per_share);
        add("shares/s", &self.shares_per_s);
        add("us/tip", &self.cpu_us_per_tip);
        add("tip last ms", &self.tip_last_ms);
        add("KiB", &self.kib_per_connection);
        text
    }
}

/// One run of the swarm, in which nothing went wrong.
fn measure(pool: &Running, options: &Options, tips: Option<TipMaker>) -> Result<Value> {
    let said = || format!("the pool said last:\n{}", pool.last_words());
    let report = swarm::run_with_tips(pool.address, options, tips).with_context(said)?;
    if !report.is_clean() {
        bail!("{report}{}", said());
    }
    Ok(report.to_json())
}

fn count(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("no {name} in the report"))
}

fn swarm_options(words: &str) -> Result<Options> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let words = std::iter::once("swarm").chain(words.split_whitespace());
    Ok(Line::try_parse_from(words)?.options)
}

/// Everything of SRI's configuration but its port: what it ships with, templates from us, and shares as
/// easy as ours.
fn sri_config(templates: SocketAddr, payout_address: &str) -> Result<String> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("randomness")?;
    let authority = AuthoritySecretKey::from_secret(secret).map_err(|error| anyhow!("{error}"))?;
    let public = authority.public();
    let secret = authority.to_text();
    Ok(format!(
        "authority_public_key = \"{public}\"\n\
         authority_secret_key = \"{}\"\n\
         cert_validity_sec = 3600\n\
         coinbase_reward_script = \"addr({payout_address})\"\n\
         server_id = 1\n\
         pool_signature = \"Stratum V2 SRI Pool\"\n\
         shares_per_minute = {SRI_SHARES_PER_MINUTE:.1}\n\
         share_batch_size = {SRI_BATCH}\n\
         supported_extensions = []\n\
         required_extensions = []\n\
         [template_provider_type.Sv2Tp]\n\
         address = \"{templates}\"\n",
        secret.as_str()
    ))
}

fn table(ours: Figures, theirs: Figures) -> Vec<Row> {
    let row = |path: &str, unit, ours: Vec<f64>, theirs: Vec<f64>, goal| Row {
        unit,
        ..Row::time(path, Cost::of(ours), Cost::of(theirs), goal)
    };
    let ms = |path: &str, ours: Vec<f64>, theirs: Vec<f64>| {
        row(path, Unit::Milliseconds, ours, theirs, Goal::Shown)
    };
    let (us, kib, per_s) = (Unit::Microseconds, Unit::Kibibytes, Unit::PerSecond);
    let share = "CPU of the process per acknowledged extended share, depth 12";
    let share_alone = format!("{share}: ours alone");
    let tip = "CPU of the process per connection and tip";
    let idle = "memory of its own per idle connection, one channel";
    let open = "CPU of the process per connection opened";
    let (a, b) = (ours, theirs);
    let (a_share, b_share) = (a.cpu_us_per_share.clone(), b.cpu_us_per_share.clone());
    vec![
        row(share, us, a.cpu_us_per_share, b.cpu_us_per_share, Goal::Faster(4.0)),
        row(&share_alone, us, a_share, b_share, Goal::AtMost(4.0)).on_cpus_with(Needs::Sha),
        row("shares acknowledged", per_s, a.shares_per_s, b.shares_per_s, Goal::Shown),
        ms("ack p50", a.ack_p50_ms, b.ack_p50_ms),
        ms("ack p99", a.ack_p99_ms, b.ack_p99_ms),
        row(tip, us, a.cpu_us_per_tip, b.cpu_us_per_tip, Goal::Faster(3.0)),
        ms("tip: first to last connection", a.fan_out_ms, b.fan_out_ms),
        ms("tip: block to half of all", a.tip_p50_ms, b.tip_p50_ms),
        ms("tip: block to p99", a.tip_p99_ms, b.tip_p99_ms),
        ms("tip: block to last", a.tip_last_ms, b.tip_last_ms),
        ms("full job: block to last", a.job_last_ms, b.job_last_ms),
        row(idle, kib, a.kib_per_connection, b.kib_per_connection, Goal::AtMost(4.0)),
        row(open, us, a.cpu_us_per_open, b.cpu_us_per_open, Goal::Shown),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_theirs_would_never_acknowledge_are_refused() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            options: PoolOptions,
        }
        let options = |words: &[&str]| Line::try_parse_from(words).unwrap().options;
        assert!(options(&["x"]).check().is_ok());
        for wrong in [["x", "--shares", "15"], ["x", "--shares", "0"], ["x", "--tips", "0"]] {
            assert!(options(&wrong).check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn more_a_second_is_better_and_less_of_all_else() {
        let figures = |figure: f64| Figures {
            cpu_us_per_share: vec![figure],
            shares_per_s: vec![figure],
            ..Figures::default()
        };
        let rows = table(figures(2.0), figures(10.0));
        assert_eq!(rows[0].ratio(), 5.0);
        assert_eq!(rows[2].ratio(), 0.2);
    }
}
