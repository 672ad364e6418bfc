//! A status with something in every place, texts of strangers among them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bitcoin::{Network, ScriptBuf};
use job_declarator::credit::{Comparison, Verdict};
use job_declarator::declarator::{
    PoolState, PoolTally, PoolView, ShareLoss, Switch, Tally, View, WorkView,
};
use job_declarator::rate::{HashRate, HashRates};
use job_declarator::status::{
    BlockRow, BlockState, DeviceRow, Listen, NodeFacts, Protocol, Status,
};
use job_declarator::upstream::{Kind, Source};
use ruint::aliases::U256;

pub(crate) const NOW: u32 = 1_700_010_000;
pub(crate) const NOW_MS: u64 = 10_000_000;
pub(crate) const OWN: Source = Source::Pool { pool: 0, kind: Kind::Own };
pub(crate) const THEIRS: Source = Source::Pool { pool: 0, kind: Kind::Theirs };
/// What a device that means harm is called.
pub(crate) const HARM: &str = "<script>alert('x')</script>&\"";

/// A witness program of version 0.
pub(crate) fn script(byte: u8) -> Vec<u8> {
    ScriptBuf::from_bytes([&[0, 20], [byte; 20].as_slice()].concat()).to_bytes()
}

fn rate(estimate: f64) -> HashRate {
    HashRate { estimate, low: estimate * 0.75, high: estimate * 1.25 }
}

pub(crate) fn device(id: u64, name: &str) -> DeviceRow {
    DeviceRow {
        id,
        peer: SocketAddr::from(([192, 168, 1, 40], 50_000 + id as u16)),
        protocol: Protocol::Sv2Extended,
        name: name.to_owned(),
        vendor: "bitaxe".to_owned(),
        hardware: "BM1370".to_owned(),
        firmware: "v2.15.0".to_owned(),
        connected_at: NOW - 7_500,
        hash_rate: HashRates {
            minute: rate(1e12),
            five_minutes: rate(1.25e12),
            hour: rate(1.5e12),
        },
        difficulty_log2: 11,
        accepted: 1_234,
        refused: vec![("stale-share", 3), ("difficulty-too-low", 1)],
        last_share_at: Some(NOW - 7),
        best_difficulty: 2_500_000.0,
    }
}

fn pool(name: &str, state: PoolState) -> PoolView {
    let tally = PoolTally {
        below: 12,
        waiting: 2,
        sent: 1_200,
        acknowledged: 1_190,
        acknowledged_work: U256::from(1_190_000_000_000_000_u64),
        refused: BTreeMap::from([("stale-share".to_owned(), 4)]),
        lost: BTreeMap::from([(ShareLoss::Unanswered, 6)]),
        promised: 210,
    };
    let known = vec![script(3)];
    PoolView {
        name: name.to_owned(),
        state,
        declares: true,
        known,
        last_failure: None,
        is_beyond_limit: false,
        tally,
    }
}

fn switch(at: u32, from: Source, to: Source, reason: &str, idle_ms: u64) -> Switch {
    let idle_hashes = idle_ms as f64 * 2.5e9;
    Switch { at, from, to, reason: reason.to_owned(), idle_ms, idle_hashes }
}

fn view() -> View {
    let mut spare = pool("Spare", PoolState::Waiting { until_ms: NOW_MS + 11_001 });
    spare.last_failure = Some((NOW - 19, "connection refused".to_owned()));
    spare.tally = PoolTally::default();
    View {
        using: OWN,
        work: Some(WorkView {
            source: OWN,
            height: Some(900_001),
            value_sats: 320_000_000,
            outputs: vec![(240_000_000, script(1)), (80_000_000, script(2)), (0, vec![0x6a, 0])],
            transactions: Some(3_021),
            tip: core::array::from_fn(|at| at as u8),
            fits_every_device: true,
            is_promised: true,
            since_ms: NOW_MS - 12_500,
        }),
        node_away: None,
        pools: vec![pool("Home pool", PoolState::InUse(Kind::Own)), spare],
        tally: Tally {
            shares: 2_468,
            work: U256::from(2_468_000_000_000_000_u64),
            solo_shares: 17,
            solo_work: U256::from(17_000_000_000_000_u64),
            forgotten: 1,
            blocks: 1,
        },
        switches: [
            switch(NOW - 9_000, Source::Solo, OWN, "the pool is ready", 0),
            switch(NOW - 4_000, OWN, Source::Solo, "the connection was closed", 1_250),
            switch(NOW - 3_960, Source::Solo, OWN, "the pool is ready", 0),
        ]
        .into(),
        fleet: 2.5e12,
    }
}

pub(crate) fn sample() -> Status {
    let mut sv1 = device(2, HARM);
    (sv1.protocol, sv1.vendor) = (Protocol::Sv1, "cpuminer".to_owned());
    (sv1.hardware, sv1.firmware) = (String::new(), String::new());
    (sv1.last_share_at, sv1.refused) = (None, Vec::new());
    (sv1.difficulty_log2, sv1.accepted, sv1.best_difficulty) = (-9, 0, 0.0);
    sv1.hash_rate = HashRates::default();
    Status {
        started_at: NOW - 9_000,
        now: NOW,
        now_ms: NOW_MS,
        view: view(),
        network: Network::Bitcoin,
        node: NodeFacts {
            name: "127.0.0.1:8332".to_owned(),
            height: Some(900_000),
            pruned: false,
            answered_at: Some(NOW - 1),
        },
        devices: vec![device(1, "living-room"), sv1],
        listen: Listen {
            host: None,
            sv2: SocketAddr::from(([0, 0, 0, 0], 34_255)),
            sv1: Some(SocketAddr::from(([0, 0, 0, 0], 3_333))),
            authority_key: "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72".to_owned(),
        },
        payout_script: script(2),
        last_block: Some(BlockRow {
            hash: core::array::from_fn(|at| if at > 27 { 0 } else { 0xab }),
            height: Some(899_990),
            at: NOW - 5_000,
            finder: "living-room".to_owned(),
            outputs: vec![(240_000_000, script(3)), (80_000_000, script(2))],
            state: BlockState::Accepted,
        }),
        credit: vec![Comparison {
            pool: "Home pool".to_owned(),
            since: NOW - 8_940,
            heard_at: NOW - 30,
            own_shares: 1_180,
            own_work: U256::from(1_180_000_000_000_000_u64),
            pool_work: U256::from(1_181_000_000_000_000_u64),
            pool_credit: Some(U256::from(1_178_000_000_000_000_u64)),
            verdict: Verdict::Same,
        }],
        warnings: vec!["The clock of this computer is 40 s ahead of the pool's.".to_owned()],
    }
}
