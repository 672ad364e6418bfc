//! What the declarator knows of the own node, and whether it can be built upon. Part of `declarator.rs`.

use std::collections::BTreeSet;

use proto::target::Target;

use crate::limits::{NODE_AWAY_AFTER_MS, NODE_SILENCE_MAX_MS, NODE_TARGET_KNOWN_MS};
use crate::node::NodeTemplate;

#[derive(Debug, Default)]
pub(super) struct NodeSeen {
    pub(super) template: Option<NodeTemplate>,
    pub(super) heard_ms: u64,
    /// Since when it has failed, and how.
    pub(super) away: Option<(u64, String)>,
    /// No job can be made of its template, for this reason.
    pub(super) unusable: Option<String>,
    /// When it was last found to be away, or to be back.
    pub(super) changed_ms: u64,
    /// Pools to which our tip is an old one.
    pub(super) stale_to: BTreeSet<usize>,
    /// Pools whose own jobs are on our tip: no tip of ours is an old one to them, whatever they say.
    pub(super) on_our_tip: BTreeSet<usize>,
    /// All pools in reach say so.
    pub(super) is_behind: bool,
    pub(super) was_up: bool,
}

impl NodeSeen {
    /// Why it cannot be built upon.
    pub(super) fn away(&self, now_ms: u64) -> Option<String> {
        let Some(_) = &self.template else {
            let why = self.away.as_ref().map(|(_, why)| why.clone());
            return Some(why.unwrap_or_else(|| "it has not answered yet".to_owned()));
        };
        if let Some((since_ms, why)) = &self.away
            && now_ms.saturating_sub(*since_ms) >= NODE_AWAY_AFTER_MS
        {
            return Some(why.clone());
        }
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        if silent_ms >= NODE_SILENCE_MAX_MS {
            return Some(format!("it has not answered for {} s", silent_ms / 1_000));
        }
        if self.unusable.is_some() {
            return self.unusable.clone();
        }
        let behind = "all pools in reach say that its tip is an old one";
        self.is_behind.then(|| behind.to_owned())
    }

    /// What pools said of the tip is settled, or it was of another tip.
    pub(super) fn is_not_behind(&mut self) {
        self.stale_to.clear();
        self.is_behind = false;
    }

    /// Of its next block, if it was heard of in the last day.
    pub(super) fn target(&self, now_ms: u64) -> Option<Target> {
        let is_known = now_ms.saturating_sub(self.heard_ms) < NODE_TARGET_KNOWN_MS;
        let template = self.template.as_ref().filter(|_| is_known)?;
        Some(Target::from_compact(template.prev_hash.nbits))
    }

    pub(super) fn deadline_ms(&self) -> u64 {
        let silent = self.heard_ms.saturating_add(NODE_SILENCE_MAX_MS);
        let away = self.away.as_ref().map(|(since, _)| since.saturating_add(NODE_AWAY_AFTER_MS));
        away.map_or(silent, |away| away.min(silent))
    }
}
