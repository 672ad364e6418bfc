//! What the program knows, put together for the page: the declarator's view, devices, the node, the last block,
//! and the own count beside the pools'. One task, started by `run.rs`; it decides nothing.

use std::sync::Arc;

use bitcoin::Network;
use proto::mining::Kind as ChannelKind;
use proto::share::Refusal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocks::{self, BlockSeen};
use crate::credit::{Comparison, Verdict};
use crate::device::{ChannelSnapshot, DeviceSnapshot, Dialect, End};
use crate::feed::NodeFacts;
use crate::run::Shown;
use crate::status::{self, BlockRow, BlockState, DeviceRow, Listen, Protocol, Status};

/// Where it all comes from.
pub(crate) struct Sources {
    pub(crate) shown: watch::Receiver<Arc<Shown>>,
    pub(crate) node: watch::Receiver<NodeFacts>,
    pub(crate) block: watch::Receiver<Option<BlockSeen>>,
    pub(crate) credit: watch::Receiver<Vec<Comparison>>,
    pub(crate) network: Network,
    pub(crate) listen: Listen,
    pub(crate) payout_script: Vec<u8>,
    /// Unix seconds.
    pub(crate) started_at: u32,
}

/// Publishes whenever the declarator's task shows something newer, until `stop`.
pub(crate) fn spawn(mut sources: Sources, stop: CancellationToken) -> watch::Receiver<Arc<Status>> {
    let (publish, status) = watch::channel(Arc::new(sources.status()));
    tokio::spawn(async move {
        while let Some(Ok(())) = stop.run_until_cancelled(sources.shown.changed()).await {
            publish.send_replace(Arc::new(sources.status()));
        }
    });
    status
}

impl Sources {
    fn status(&mut self) -> Status {
        let shown = Arc::clone(&self.shown.borrow_and_update());
        let credit = self.credit.borrow().clone();
        Status {
            started_at: self.started_at,
            now: shown.now,
            now_ms: shown.now_ms,
            view: shown.view.clone(),
            network: self.network,
            node: node_of(&self.node.borrow()),
            devices: shown.devices.iter().flat_map(|device| rows(device)).collect(),
            listen: self.listen.clone(),
            payout_script: self.payout_script.clone(),
            last_block: self.block.borrow().as_ref().map(block_row),
            warnings: warnings(&shown, &credit),
            credit,
        }
    }
}

fn node_of(facts: &NodeFacts) -> status::NodeFacts {
    status::NodeFacts {
        name: facts.name.clone(),
        height: facts.chain.as_ref().map(|chain| chain.height),
        pruned: facts.chain.as_ref().is_some_and(|chain| chain.pruned),
        answered_at: facts.answered_at,
    }
}

/// A row for each channel: a device has one, a proxy one for each device behind it.
fn rows(device: &DeviceSnapshot) -> impl Iterator<Item = DeviceRow> + '_ {
    device.channels.iter().map(move |channel| DeviceRow {
        id: device.id,
        peer: device.peer,
        protocol: match (device.dialect, channel.kind) {
            (Dialect::V1, _) => Protocol::Sv1,
            (Dialect::V2, ChannelKind::Standard) => Protocol::Sv2Standard,
            (Dialect::V2, ChannelKind::Extended) => Protocol::Sv2Extended,
        },
        name: channel.name.to_string(),
        vendor: device.vendor.clone(),
        hardware: device.hardware.clone(),
        firmware: device.firmware.clone(),
        connected_at: device.connected_at,
        hash_rate: channel.hash_rate,
        difficulty_log2: channel.difficulty_log2,
        accepted: channel.accepted,
        refused: refusals(device, channel),
        last_share_at: channel.last_share_at,
        best_difficulty: channel.best_difficulty,
    })
}

fn refusals(device: &DeviceSnapshot, channel: &ChannelSnapshot) -> Vec<(&'static str, u64)> {
    let counted = Refusal::ALL.iter().zip(channel.refused);
    let counted = counted.map(|(refusal, count)| (refusal.code(), u64::from(count)));
    let early = ("no share of a known job", device.refused_early);
    counted.chain([early]).filter(|(_, count)| *count > 0).collect()
}

fn block_row(seen: &BlockSeen) -> BlockRow {
    let BlockSeen { hash, height, at, finder, outputs, state } = seen.clone();
    let state = match state {
        blocks::BlockState::OnItsWay => BlockState::Sending,
        blocks::BlockState::Accepted => BlockState::Accepted,
        blocks::BlockState::Stale => BlockState::Refused("another block was first".to_owned()),
        blocks::BlockState::Rejected(why) => BlockState::Refused(why),
        blocks::BlockState::WithThePool => BlockState::LeftToPool,
        blocks::BlockState::Answered => BlockState::Answered,
    };
    BlockRow { hash, height, at, finder, outputs, state }
}

/// What the owner should look at.
fn warnings(shown: &Shown, credit: &[Comparison]) -> Vec<String> {
    let less = credit.iter().filter_map(|comparison| match comparison.verdict {
        Verdict::PoolShowsLess { percent } => Some(format!(
            "{} shows {percent:.1} percent less work of yours than it has acknowledged",
            comparison.pool
        )),
        Verdict::PoolCreditsLess { percent } => Some(format!(
            "{} credits {percent:.1} percent less than the work of yours that it shows",
            comparison.pool
        )),
        Verdict::Same | Verdict::Unknown(_) => None,
    });
    let refused = shown.refused.iter().rev().map(|row| {
        let times = if row.count == 1 { String::new() } else { format!(" ({} times)", row.count) };
        format!("{} was refused{times}: {}", row.peer.ip(), row.why)
    });
    // A device that was switched off or restarted is nothing to look at.
    let goodbyes = [End::Eof.to_string(), End::Stopping.to_string()];
    let gone = shown.gone.iter().rev().filter(|(_, why, _)| !goodbyes.contains(why));
    let gone = gone.map(|(peer, why, _)| format!("a device at {peer} left: {why}"));
    let is_large = shown.view.work.as_ref().is_some_and(|work| !work.fits_every_device);
    let large =
        "this pool's jobs are larger than a NerdQAxe+ or an older Bitaxe takes: they will leave";
    less.chain(is_large.then(|| large.to_owned())).chain(refused).chain(gone).collect()
}
