//! What an episode owes over time: since when pools and node are well, how old work is, and what may be lost.
//! Kept by `world.rs`, which asks after each step. It goes by what the world did alone, never by what the
//! declarator says of it: a pause that was not earned excuses nothing.

use std::collections::BTreeMap;

use job_declarator::declarator::{ShareLoss, View};
use job_declarator::upstream::{Kind, Source};

use super::world::BACK_WITHIN_MS;

/// A tip that is known to a pool in good health is worked on within this, whatever the node says of its own: for
/// 20 s a silent node may still answer, or one that is behind has no new template; the pool's own job takes as
/// long as a session does, behind a preferred pool that takes its time.
const TIP_OLD_MAX_MS: u64 = 30_000;
/// And of each pool the tries that it takes to be sure of its word: 8 s, and the last one's way.
const TIP_ASKED_MAX_MS: u64 = 10_000;
/// The same while the own node is well and knows the tip, or a pool in good health that is in use.
const TIP_SEEN_MAX_MS: u64 = 9_200;
/// A tip is the newest, as far as anybody may know, for so long after the next one.
const TIP_NEW_MS: u64 = 2_000;
/// From the last trouble, change of tip or of pool to when nothing may be lost: the last pause of a job that was
/// called stale is 4 s, and a promise takes three ways there and back, and a verdict.
const SETTLED_MS: u64 = 8_000;

#[derive(Default)]
pub struct Calm {
    /// Since when each pool has no fault.
    pools: Vec<Option<u64>>,
    /// When each pool is back at the latest, whatever it was left for.
    back_ms: Vec<u64>,
    node: Option<u64>,
    /// When the chain came to each tip.
    moved_ms: Vec<u64>,
    using: Option<(Source, u64)>,
    /// When the work was last on a tip that was news.
    new_ms: u64,
    /// When the work was last for a pool that may have kept a new tip to itself.
    excused_ms: u64,
    lost: Vec<BTreeMap<ShareLoss, u64>>,
    looked_ms: u64,
}

impl Calm {
    pub fn new(pools: usize) -> Self {
        Self {
            pools: vec![Some(0); pools],
            back_ms: vec![0; pools],
            node: Some(0),
            // Nobody worked on tip 0.
            moved_ms: vec![0; 2],
            lost: vec![BTreeMap::new(); pools],
            ..Self::default()
        }
    }

    pub fn pool_ails(&mut self, pool: usize) {
        self.pools[pool] = None;
    }

    pub fn pool_is_well(&mut self, pool: usize, now_ms: u64) {
        self.pools[pool] = Some(now_ms);
        self.back_ms[pool] = now_ms + BACK_WITHIN_MS;
    }

    pub fn node_ails(&mut self) {
        self.node = None;
    }

    pub fn node_is_well(&mut self, now_ms: u64) {
        self.node.get_or_insert(now_ms);
    }

    pub fn chain_moved(&mut self, now_ms: u64) {
        self.moved_ms.push(now_ms);
    }

    /// Since when pool in use and node have nothing that a share could be lost by.
    fn calm_since_ms(&self) -> Option<u64> {
        let (using, since_ms) = self.using?;
        let Source::Pool { pool, .. } = using else { return None };
        let moved_ms = *self.moved_ms.last()?;
        Some(self.pools[pool]?.max(self.node?).max(since_ms).max(moved_ms))
    }

    fn was_calm(&self, at_ms: u64) -> bool {
        self.calm_since_ms().is_some_and(|since_ms| since_ms + SETTLED_MS <= at_ms)
    }

    /// Whose work it is. A pool in good health is left for a better one alone.
    pub fn see_source(&mut self, using: Source, now_ms: u64) {
        let before = self.using.map(|(source, _)| source);
        if before == Some(using) {
            return;
        }
        if let (Some(Source::Pool { pool, kind }), true) = (before, self.was_calm(now_ms)) {
            let is_better = matches!(using, Source::Pool { pool: to, kind: of }
                if to < pool || (to == pool && (kind, of) == (Kind::Theirs, Kind::Own)));
            assert!(is_better, "a good pool is left: {before:?} for {using:?}");
        }
        self.using = Some((using, now_ms));
    }

    /// Work is on this tip; `keeps_to_itself`: the pool in use may not have told of a newer one.
    pub fn see_tip(&mut self, tip: u64, keeps_to_itself: bool, now_ms: u64) {
        if keeps_to_itself {
            self.excused_ms = now_ms;
        }
        let old_ms = self.moved_ms.get(tip as usize + 1).copied();
        if old_ms.is_none_or(|old_ms| now_ms < old_ms + TIP_NEW_MS) {
            self.new_ms = now_ms;
            return;
        }
        let using = self.using.and_then(|(using, since_ms)| match using {
            Source::Pool { pool, kind: Kind::Theirs } => Some(self.pools[pool]?.max(since_ms)),
            Source::Pool { .. } | Source::Solo => self.node,
        });
        let pools = self.pools.iter().zip(&self.back_ms);
        let pools = pools.filter_map(|(well_ms, back_ms)| Some((*well_ms)?.max(*back_ms)));
        let known_ms = pools.chain(self.node).min();
        let asked_ms = TIP_ASKED_MAX_MS * self.pools.len() as u64;
        for (known_ms, max_ms) in [(using, TIP_SEEN_MAX_MS), (known_ms, TIP_OLD_MAX_MS + asked_ms)]
        {
            let Some(known_ms) = known_ms else { continue };
            let since_ms = known_ms.max(self.new_ms).max(self.excused_ms);
            let age_ms = now_ms.saturating_sub(since_ms);
            assert!(age_ms <= max_ms, "work on tip {tip} {age_ms} ms after a newer one was there");
        }
    }

    /// Nothing is lost, and nothing waits, while the pool in use and the node are well.
    pub fn see_tally(&mut self, view: &View, now_ms: u64) {
        let was_calm = self.was_calm(self.looked_ms);
        for (at, pool) in view.pools.iter().enumerate() {
            let lost = &pool.tally.lost;
            let is_used = matches!(view.using, Source::Pool { pool, .. } if pool == at);
            if was_calm && is_used {
                assert_eq!(*lost, self.lost[at], "shares are lost at pool {at}, and all is well");
            }
            if self.lost[at] != *lost {
                self.lost[at].clone_from(lost);
            }
        }
        if let Some(work) = view.work.as_ref().filter(|_| self.was_calm(now_ms)) {
            let is_young = now_ms < work.since_ms + SETTLED_MS;
            assert!(work.is_promised || is_young, "nobody promised it: {work:?}");
        }
        self.looked_ms = now_ms;
    }
}
