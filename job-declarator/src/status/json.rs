//! The status for programs. Field names are a promise (`tests/status.rs` holds them); hashes as people write
//! them, work as decimal texts since it is beyond what a JSON number holds, scripts as addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::credit::{Comparison, Verdict};
use crate::declarator::{PoolTally, PoolView, ShareLoss, Switch, View};
use crate::limits::DEVICE_ROWS_MAX;
use crate::rate::HashRates;
use crate::status::words::{self, shown};
use crate::status::{BlockRow, BlockState, DeviceRow, Status, Whose};
use crate::upstream::{Kind, Source};

#[derive(Serialize)]
struct StatusJson<'a> {
    started_at: u32,
    now: u32,
    network: String,
    /// What the page begins with.
    summary: String,
    work: Option<WorkJson>,
    hash_rate: HashRates,
    node: NodeJson<'a>,
    #[serde(flatten)]
    devices: DevicesJson<'a>,
    shares: SharesJson,
    pools: Vec<PoolJson<'a>>,
    switches: Vec<SwitchJson>,
    last_block: Option<BlockJson>,
    credit: Vec<CreditJson>,
    listen: ListenJson<'a>,
    warnings: &'a [String],
}

/// Whose work.
#[derive(Serialize)]
struct SourceJson {
    /// own, theirs, solo.
    template: &'static str,
    /// Absent where it is for nobody else.
    pool: Option<String>,
}

#[derive(Serialize)]
struct WorkJson {
    #[serde(flatten)]
    source: SourceJson,
    is_promised: bool,
    /// Of the block to be found; of a pool's job unknown.
    height: Option<u32>,
    prev_hash: String,
    transactions: Option<usize>,
    value_sats: u64,
    outputs: Vec<OutputJson>,
    /// Since it was given out.
    age_s: u64,
}

#[derive(Serialize)]
struct OutputJson {
    sats: u64,
    percent: f64,
    /// Absent where the script has none.
    address: Option<String>,
    script: String,
    /// It is where a solo block would pay.
    is_yours: bool,
    /// It is a pool's, as the owner has written down, or his own.
    is_known: bool,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    name: &'a str,
    height: Option<u32>,
    pruned: bool,
    answered_at: Option<u32>,
    /// Why it cannot be built upon, if it cannot.
    away: Option<String>,
}

#[derive(Serialize)]
struct DevicesJson<'a> {
    /// Listed or not.
    devices_total: usize,
    devices: Vec<DeviceJson<'a>>,
}

#[derive(Serialize)]
struct DeviceJson<'a> {
    id: u64,
    peer: SocketAddr,
    protocol: &'static str,
    name: String,
    vendor: String,
    hardware: String,
    firmware: String,
    connected_at: u32,
    hash_rate: HashRates,
    difficulty: f64,
    accepted: u64,
    refused: BTreeMap<&'a str, u64>,
    last_share_at: Option<u32>,
    best_difficulty: f64,
}

#[derive(Serialize)]
struct SharesJson {
    accepted: u64,
    work: String,
    solo: u64,
    solo_work: String,
    /// Of jobs that were forgotten.
    forgotten: u64,
    blocks: u64,
}

#[derive(Serialize)]
struct PoolJson<'a> {
    name: String,
    /// in-use-own, in-use-theirs, ready, trying, waiting, unused.
    state: &'static str,
    retry_in_s: Option<u64>,
    last_failure: Option<FailureJson>,
    shares: PoolSharesJson<'a>,
}

#[derive(Serialize)]
struct FailureJson {
    at: u32,
    why: String,
}

#[derive(Serialize)]
struct PoolSharesJson<'a> {
    /// The device's measure is finer than the pool's.
    below_target: u64,
    waiting: u64,
    sent: u64,
    acknowledged: u64,
    acknowledged_work: String,
    /// By the pool's code.
    refused: BTreeMap<&'a str, u64>,
    /// By reason.
    lost: BTreeMap<&'static str, u64>,
    jobs_promised: u64,
}

#[derive(Serialize)]
struct SwitchJson {
    at: u32,
    from: SourceJson,
    to: SourceJson,
    reason: String,
    idle_ms: u64,
    idle_hashes: f64,
}

#[derive(Serialize)]
struct BlockJson {
    hash: String,
    height: Option<u32>,
    at: u32,
    /// Empty where it was found before the start.
    finder: String,
    /// Empty where they are not known.
    outputs: Vec<OutputJson>,
    /// sending, accepted, refused, left-to-pool, unknown.
    state: &'static str,
    /// What the node said.
    detail: Option<String>,
}

#[derive(Serialize)]
struct CreditJson {
    pool: String,
    since: u32,
    heard_at: Option<u32>,
    own_shares: u64,
    own_work: String,
    pool_work: String,
    /// What of that was credited; null where the pool does not say.
    pool_credit: Option<String>,
    /// same, pool-shows-less, pool-credits-less, unknown.
    verdict: &'static str,
    /// Less than the own work, or than the pool's.
    less_percent: Option<f64>,
    reason: Option<String>,
}

#[derive(Serialize)]
struct ListenJson<'a> {
    host: Option<&'a str>,
    sv2: SocketAddr,
    sv1: Option<SocketAddr>,
    authority_public_key: &'a str,
}

/// GET /api/v1/status
#[must_use]
pub fn json(status: &Status) -> String {
    let Status { view, .. } = status;
    written(&StatusJson {
        started_at: status.started_at,
        now: status.now,
        network: status.network.to_string(),
        summary: format!("{} {}", words::headline(status), words::meaning(status)),
        work: work_json(status),
        hash_rate: fleet(status),
        node: NodeJson {
            name: &status.node.name,
            height: status.node.height,
            pruned: status.node.pruned,
            answered_at: status.node.answered_at,
            away: view.node_away.as_deref().map(words::reason),
        },
        devices: devices_json(status),
        shares: SharesJson {
            accepted: view.tally.shares,
            work: view.tally.work.to_string(),
            solo: view.tally.solo_shares,
            solo_work: view.tally.solo_work.to_string(),
            forgotten: view.tally.forgotten,
            blocks: view.tally.blocks,
        },
        pools: view.pools.iter().map(|pool| pool_json(pool, status.now_ms)).collect(),
        switches: view.switches.iter().map(|switch| switch_json(view, switch)).collect(),
        last_block: status.last_block.as_ref().map(|block| block_json(status, block)),
        credit: status.credit.iter().map(credit_json).collect(),
        listen: ListenJson {
            host: status.listen.host.as_deref(),
            sv2: status.listen.sv2,
            sv1: status.listen.sv1,
            authority_public_key: &status.listen.authority_key,
        },
        warnings: &status.warnings,
    })
}

/// GET /api/v1/devices
#[must_use]
pub fn devices(status: &Status) -> String {
    written(&devices_json(status))
}

/// GET /widgets/status: Umbrel's widget "four-stats", whose values are all texts.
#[must_use]
pub fn widget(status: &Status) -> String {
    let (rate, prefix) = words::amount(fleet(status).five_minutes.estimate);
    let (work, whose) = match status.view.work.as_ref().map(|work| (work.source, work.is_promised))
    {
        None => ("none".to_owned(), "no work yet"),
        Some((Source::Solo, _)) => ("solo".to_owned(), "own template"),
        Some((Source::Pool { pool, kind }, is_promised)) => {
            let whose = match (kind, is_promised) {
                (Kind::Own, true) => "own template",
                (Kind::Own, false) => "not promised yet",
                (Kind::Theirs, _) => "pool's template",
            };
            (shown(words::pool_name(&status.view, pool)), whose)
        }
    };
    let best = status.devices.iter().map(|device| device.best_difficulty).fold(0.0, f64::max);
    let item = |title: &str, text: &str, subtext: &str| serde_json::json!({ "title": title, "text": text, "subtext": subtext });
    written(&serde_json::json!({
        "type": "four-stats",
        "refresh": "5s",
        "items": [
            item("Hash rate", &rate, &format!("{prefix}H/s")),
            item("Mining for", &work, whose),
            item("Devices", &status.devices.len().to_string(), "connected"),
            item("Best share", &words::difficulty(best), "difficulty"),
        ],
    }))
}

/// Of all devices.
pub(super) fn fleet(status: &Status) -> HashRates {
    HashRates::sum(status.devices.iter().map(|device| device.hash_rate))
}

fn written(page: &impl Serialize) -> String {
    // Nothing here can fail: no maps with other keys than texts, no writer but memory.
    serde_json::to_string(page).unwrap_or_default()
}

fn source_json(view: &View, source: Source) -> SourceJson {
    let name = |pool| Some(shown(words::pool_name(view, pool)));
    match source {
        Source::Solo => SourceJson { template: "solo", pool: None },
        Source::Pool { pool, kind: Kind::Own } => SourceJson { template: "own", pool: name(pool) },
        Source::Pool { pool, kind: Kind::Theirs } => {
            SourceJson { template: "theirs", pool: name(pool) }
        }
    }
}

fn outputs_json(status: &Status, outputs: &[(u64, Vec<u8>)], value_sats: u64) -> Vec<OutputJson> {
    let output = |(sats, script): &(u64, Vec<u8>)| OutputJson {
        sats: *sats,
        percent: words::percent(*sats, value_sats),
        address: words::address(script, status.network),
        script: hex::encode(script),
        is_yours: *script == status.payout_script,
        is_known: status.whose(script) != Whose::Unknown,
    };
    outputs.iter().map(output).collect()
}

fn work_json(status: &Status) -> Option<WorkJson> {
    let work = status.view.work.as_ref()?;
    Some(WorkJson {
        source: source_json(&status.view, work.source),
        is_promised: work.is_promised,
        height: work.height,
        prev_hash: people_read(work.tip),
        transactions: work.transactions,
        value_sats: work.value_sats,
        outputs: outputs_json(status, &work.outputs, work.value_sats),
        age_s: status.now_ms.saturating_sub(work.since_ms) / 1_000,
    })
}

fn devices_json(status: &Status) -> DevicesJson<'_> {
    let listed = status.devices.iter().take(DEVICE_ROWS_MAX);
    DevicesJson { devices_total: status.devices.len(), devices: listed.map(device_json).collect() }
}

fn device_json(device: &DeviceRow) -> DeviceJson<'_> {
    DeviceJson {
        id: device.id,
        peer: device.peer,
        protocol: device.protocol.text(),
        name: shown(&device.name),
        vendor: shown(&device.vendor),
        hardware: shown(&device.hardware),
        firmware: shown(&device.firmware),
        connected_at: device.connected_at,
        hash_rate: device.hash_rate,
        difficulty: 2f64.powi(i32::from(device.difficulty_log2)),
        accepted: device.accepted,
        refused: device.refused.iter().copied().collect(),
        last_share_at: device.last_share_at,
        best_difficulty: device.best_difficulty,
    }
}

fn pool_json(pool: &PoolView, now_ms: u64) -> PoolJson<'_> {
    let failure = |(at, why): &(u32, String)| FailureJson { at: *at, why: words::reason(why) };
    PoolJson {
        name: shown(&pool.name),
        state: words::pool_state(&pool.state, now_ms).0,
        retry_in_s: words::retry_in_s(&pool.state, now_ms),
        last_failure: pool.last_failure.as_ref().map(failure),
        shares: pool_shares_json(&pool.tally),
    }
}

fn pool_shares_json(tally: &PoolTally) -> PoolSharesJson<'_> {
    let lost = |(loss, shares): (&ShareLoss, &u64)| (loss.text(), *shares);
    PoolSharesJson {
        below_target: tally.below,
        waiting: tally.waiting,
        sent: tally.sent,
        acknowledged: tally.acknowledged,
        acknowledged_work: tally.acknowledged_work.to_string(),
        refused: tally.refused.iter().map(|(code, shares)| (code.as_str(), *shares)).collect(),
        lost: tally.lost.iter().map(lost).collect(),
        jobs_promised: tally.promised,
    }
}

fn switch_json(view: &View, switch: &Switch) -> SwitchJson {
    SwitchJson {
        at: switch.at,
        from: source_json(view, switch.from),
        to: source_json(view, switch.to),
        reason: words::reason(&switch.reason),
        idle_ms: switch.idle_ms,
        idle_hashes: switch.idle_hashes,
    }
}

fn block_json(status: &Status, block: &BlockRow) -> BlockJson {
    let value_sats = block.outputs.iter().fold(0, |sum: u64, (sats, _)| sum.saturating_add(*sats));
    let (state, detail) = match &block.state {
        BlockState::Sending => ("sending", None),
        BlockState::Accepted => ("accepted", None),
        BlockState::Refused(why) => ("refused", Some(words::reason(why))),
        BlockState::LeftToPool => ("left-to-pool", None),
        BlockState::Answered => ("unknown", None),
    };
    BlockJson {
        hash: people_read(block.hash),
        height: block.height,
        at: block.at,
        finder: shown(&block.finder),
        outputs: outputs_json(status, &block.outputs, value_sats),
        state,
        detail,
    }
}

fn credit_json(of: &Comparison) -> CreditJson {
    let (verdict, less_percent, reason) = match &of.verdict {
        Verdict::Same => ("same", None, None),
        Verdict::PoolShowsLess { percent } => ("pool-shows-less", Some(*percent), None),
        Verdict::PoolCreditsLess { percent } => ("pool-credits-less", Some(*percent), None),
        Verdict::Unknown(why) => ("unknown", None, Some(why.to_string())),
    };
    CreditJson {
        pool: shown(&of.pool),
        since: of.since,
        heard_at: (of.heard_at > 0).then_some(of.heard_at),
        own_shares: of.own_shares,
        own_work: of.own_work.to_string(),
        pool_work: of.pool_work.to_string(),
        pool_credit: of.pool_credit.map(|credit| credit.to_string()),
        verdict,
        less_percent,
        reason,
    }
}

/// A hash as people write it.
pub(super) fn people_read(mut hash: [u8; 32]) -> String {
    hash.reverse();
    hex::encode(hash)
}
