//! A home for a measurement: a development node in this process, a pool and a declarator on it as processes of
//! their own, and the swarm's connections as the declarator's devices. Used by `load --declarator`.
//!
//! Must never begin before the pool has promised the declarator's template: what runs until then is other work.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::hashes::Hash;
use bitcoin::{Address, Network, WPubkeyHash, WitnessProgram, WitnessVersion};
use clap::Args;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::TipMaker;
use super::declarers::DeclarerOptions;
use super::local::{self, LocalPool, NodeAt, Running, beside_us};
use super::options::{Options, Rate};
use super::report::Report;
use crate::dev_node::{DevNode, DevNodeOptions, temporary_folder};

/// Without a block the node has another template this often, as Bitcoin Core's long-poll has with every
/// transaction; the declarator declares it.
const REFRESH: Duration = Duration::from_secs(30);
/// From the declarator's first job to the pool's promise of its template.
const PROMISED_MAX: Duration = Duration::from_secs(30);
/// What the pool above may still take after the devices' last share.
const SETTLED_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Cores that a machine may have.
const CORES_MAX: usize = 4_096;

/// Whether it is a declarator that is measured, and how.
#[derive(Debug, Clone, Args)]
pub struct HouseOptions {
    /// Measure the declarator, with the connections as its devices and the pool above it.
    #[arg(long)]
    pub declarator: bool,
    /// Its binary [default: "job-declarator" beside this one]
    #[arg(long, value_name = "FILE", requires = "declarator")]
    pub declarator_program: Option<PathBuf>,
    /// The core that the declarator, and it alone, is to run on: start `load` with taskset on the others.
    #[arg(long, value_name = "CORE", requires = "declarator")]
    pub core: Option<usize>,
}

impl HouseOptions {
    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// In the words of the command line.
    pub fn check(&self, options: &Options, declarers: &DeclarerOptions) -> Result<()> {
        ensure!(
            !self.declarator || (!options.hostile && declarers.declarers == 0),
            "--declarator goes without --hostile and --declarers: those are for pools"
        );
        ensure!(self.core.is_none_or(|core| core < CORES_MAX), "--core must be below {CORES_MAX}");
        Ok(())
    }
}

/// All of it runs; stopped when dropped, from the devices' end on.
pub struct House {
    declarator: Running,
    pool: Running,
    http: SocketAddr,
    node: Arc<DevNode>,
    runtime: Arc<Runtime>,
    _folder: tempfile::TempDir,
}

impl House {
    /// Starts everything and waits until the pool has promised the declarator's template.
    ///
    /// # Errors
    /// With the last lines of who did not come that far.
    pub fn start(house: &HouseOptions, local: &LocalPool, options: &Options) -> Result<Self> {
        let folder = temporary_folder(local.folder.as_deref())?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.context("a runtime")?);
        let node = DevNodeOptions {
            tx_count: local.tx_count as usize,
            block_hashes: local::block_hashes(options),
            refresh: REFRESH,
            drop_submit_solution: false,
            rpc_port: 0,
            template_port: 0,
            folder: folder.path().to_owned(),
            ipc_socket: None,
        };
        let (node, _) = runtime.block_on(DevNode::start(&node))?;
        let at = NodeAt {
            url: format!("http://{}", node.rpc),
            cookie_file: node.cookie_file.clone(),
            payout_address: nobodys_address()?,
        };
        let pool = Running::start_above(&at, local, options)?;
        let [declare, http] = pool.declares().context("the pool takes no declared jobs")?;
        let key = authority_key(http)?;
        let config = |folder: &Path, address| {
            let pool = Above { mine: pool.address, declare, key: &key };
            config_text(&at, &pool, options, folder, address)
        };
        let declarator = launch(house, local.folder.as_deref(), config)?;
        let (node, _folder) = (Arc::new(node), folder);
        let house = Self { declarator, pool, http, node, runtime, _folder };
        house.wait_for_promise()?;
        Ok(house)
    }

    /// Where devices connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.declarator.address
    }

    /// The declarator's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.declarator.pid()
    }

    /// Blocks from outside of the house.
    #[must_use]
    pub fn tips(&self) -> TipMaker {
        let (runtime, node) = (Arc::clone(&self.runtime), Arc::clone(&self.node));
        Box::new(move || {
            let tip = runtime.block_on(node.tip())?;
            Ok((tip.hash, tip.at))
        })
    }

    /// What the declarator and the pool said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        let (declarator, pool) = (self.declarator.last_words(), self.pool.last_words());
        format!("the declarator said last:\n{declarator}\nthe pool said last:\n{pool}")
    }

    /// Adds what the pool above credited. All that devices were told is theirs must be, but for what a tip made
    /// stale on its way, and what was more than a pool that is behind is owed.
    ///
    /// # Errors
    /// The pool says nothing.
    pub fn judge(&self, options: &Options, report: &mut Report) -> Result<()> {
        let acknowledged = report.count("acknowledged");
        let end = Instant::now() + SETTLED_MAX;
        let mut credited = self.count("pool_shares_accepted_total")?;
        while credited < acknowledged as f64 && Instant::now() < end {
            thread::sleep(LOOK_EVERY);
            credited = self.count("pool_shares_accepted_total")?;
        }
        let jobs = self.count("pool_custom_jobs_total{verdict=\"accepted\"}")?;
        report.put("credited", credited);
        report.put("jobs_promised", jobs);
        report.line("pool above", format!("{credited} shares credited, {jobs} jobs promised"));
        let is_steady = matches!(options.shares_per_second, Rate::PerSecond(_));
        if is_steady && options.tips_every.is_none() && credited < acknowledged as f64 {
            let lost = acknowledged as f64 - credited;
            report.wrong(format!("{lost} acknowledged shares were not credited by the pool"));
        }
        Ok(())
    }

    fn wait_for_promise(&self) -> Result<()> {
        let end = Instant::now() + PROMISED_MAX;
        while self.count("pool_custom_jobs_total{verdict=\"accepted\"}")? < 1.0 {
            ensure!(Instant::now() < end, "no template is promised; {}", self.last_words());
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn count(&self, series: &str) -> Result<f64> {
        Ok(local::series(&local::page(self.http, "/metrics")?, series))
    }
}

/// The pool as the declarator has to know it.
struct Above<'a> {
    mine: SocketAddr,
    declare: SocketAddr,
    key: &'a str,
}

fn launch(
    house: &HouseOptions,
    under: Option<&Path>,
    config: impl FnOnce(&Path, SocketAddr) -> String,
) -> Result<Running> {
    let binary = match &house.declarator_program {
        Some(binary) => binary.clone(),
        None => beside_us("job-declarator", "cargo build --release -p job-declarator-cli")?,
    };
    let Some(core) = house.core else {
        return Running::launch(&binary, &["run", "-c"], under, config);
    };
    // taskset becomes the program, so the process id is the program's.
    let binary = binary.to_str().context("the declarator's path is no text")?;
    let core = core.to_string();
    let arguments = ["--cpu-list", &core, binary, "run", "-c"];
    Running::launch(Path::new("taskset"), &arguments, under, config)
}

fn config_text(
    node: &NodeAt,
    pool: &Above<'_>,
    options: &Options,
    folder: &Path,
    address: SocketAddr,
) -> String {
    let data_dir = folder.join("data");
    let connections = options.connections + 1;
    let NodeAt { url, cookie_file, payout_address } = node;
    let Above { mine, declare, key } = pool;
    format!(
        "[declarator]\npayout_address = {payout_address:?}\nuser = \"home\"\ndata_dir = {data_dir:?}\n\
         [devices]\nsv2_address = \"{address}\"\nsv1_address = \"127.0.0.1:0\"\n\
         max_connections = {connections}\nmax_connections_per_address = {connections}\n\
         [node]\nkind = \"bitcoin-core\"\nnetwork = \"regtest\"\nurl = {url:?}\n\
         cookie_file = {cookie_file:?}\n\
         [[pool]]\naddress = \"{mine}\"\ndeclare_address = \"{declare}\"\nauthority_key = \"{key}\"\n\
         [http]\naddress = \"127.0.0.1:0\"\n"
    )
}

fn authority_key(http: SocketAddr) -> Result<String> {
    let page = local::page(http, "/api/v1/pool")?;
    let (_, body) = page.split_once("\r\n\r\n").context("the pool's page has no body")?;
    let page: Value = serde_json::from_str(body).context("the pool's page")?;
    let key = page["authority_public_key"].as_str().context("the pool shows no key")?;
    Ok(key.to_owned())
}

fn nobodys_address() -> Result<String> {
    let nobody = WPubkeyHash::from_byte_array([7; 20]);
    let program = WitnessProgram::new(WitnessVersion::V0, nobody.as_ref());
    let program = program.context("a script of nobody")?;
    Ok(Address::from_witness_program(program, Network::Regtest).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        declarers: DeclarerOptions,
        #[command(flatten)]
        house: HouseOptions,
    }

    fn is_allowed(arguments: &str) -> bool {
        let words = std::iter::once("load").chain(arguments.split_whitespace());
        let Ok(line) = Line::try_parse_from(words) else { return false };
        line.house.check(&line.options, &line.declarers).is_ok()
    }

    #[test]
    fn a_declarator_is_measured_alone_and_only_it_has_a_core() {
        let steady = "--declarator --shares-per-second 10";
        assert!(is_allowed(steady));
        assert!(is_allowed(&format!("{steady} --core 1")));
        for wrong in [
            "--core 1".to_owned(),
            "--declarator-program x".to_owned(),
            format!("{steady} --hostile"),
            format!("{steady} --declarers 3"),
            format!("{steady} --core 4096"),
        ] {
            assert!(!is_allowed(&wrong), "{wrong}");
        }
    }
}
