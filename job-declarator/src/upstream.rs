//! Which pool the devices' work is for now: when to try which, when to fall back to the next or to the own
//! node alone, and when to return. Pure; asked by `declarator.rs` after everything that happens.
//!
//! It knows pools by their place in the owner's list and sessions by what they are good for, nothing of
//! what is said in them. Must never be without an answer: without a pool it is solo.

use crate::limits::{
    POOL_RETRY_FIRST_MS, POOL_RETRY_LAST_MS, POOL_RETRY_REFUSED_LAST_MS, POOL_RETRY_REFUSED_MS,
    POOL_RETURN_AFTER_MS, POOL_SOUND_AFTER_MS, POOL_STAGGER_MS, POOL_UNCREDITED_MAX_MS,
};

/// What a session with a pool is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The owner's own templates are declared and mined.
    Own,
    /// The pool's jobs are: the pool takes no others, or the own node is away.
    Theirs,
}

/// What a session that has ended was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credited {
    /// Shares were acknowledged as they should.
    Yes,
    /// They were found and not acknowledged.
    No,
    /// There was nothing to acknowledge.
    NothingFound,
}

/// Whose work the devices do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The own node's, for the owner's address alone.
    Solo,
    /// For a pool.
    Pool {
        /// Its place in the list.
        pool: usize,
        /// Whose templates.
        kind: Kind,
    },
}

/// What is to be done; in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Open a session.
    Dial(usize, Kind),
    /// Give up a session that is not in use.
    Drop(usize, Kind),
    /// The devices' work is another's from now on.
    Use(Source),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// To be dialled from then on, mono ms.
    Idle { from_ms: u64 },
    /// Dialled then.
    Trying { since_ms: u64 },
    /// Good for work since then.
    Ready { since_ms: u64 },
}

#[derive(Debug)]
struct Pool {
    /// It takes declared jobs.
    declares: bool,
    own: Slot,
    theirs: Slot,
    /// Failures since it was last sound.
    failures: u32,
    /// Those of them, for its sessions of either kind, that say that it will fail again.
    refusals: [u32; 2],
    /// For how long since then it was in use and credited nothing.
    uncredited_ms: u64,
}

impl Pool {
    fn slot(&self, kind: Kind) -> Slot {
        match kind {
            Kind::Own => self.own,
            Kind::Theirs => self.theirs,
        }
    }

    fn slot_mut(&mut self, kind: Kind) -> &mut Slot {
        match kind {
            Kind::Own => &mut self.own,
            Kind::Theirs => &mut self.theirs,
        }
    }
}

/// The owner's pools, the most preferred first.
#[derive(Debug)]
pub struct Upstream {
    pools: Vec<Pool>,
    /// Own templates can be made.
    node_is_up: bool,
    using: Source,
    using_since_ms: u64,
    /// For spreading retries of many houses over time.
    random: u64,
}

impl Upstream {
    /// For each pool whether it takes declared jobs. `seed` spreads this house's retries.
    #[must_use]
    pub fn new(declares: impl IntoIterator<Item = bool>, seed: u64) -> Self {
        let fresh = Slot::Idle { from_ms: 0 };
        let pool = |declares| Pool {
            declares,
            own: fresh,
            theirs: fresh,
            failures: 0,
            refusals: [0; 2],
            uncredited_ms: 0,
        };
        Self {
            pools: declares.into_iter().map(pool).collect(),
            node_is_up: false,
            using: Source::Solo,
            using_since_ms: 0,
            random: seed | 1,
        }
    }

    /// Whose work it is now.
    #[must_use]
    pub fn using(&self) -> Source {
        self.using
    }

    /// The own node can or cannot be built upon.
    pub fn node_is_up(&mut self, is_up: bool) {
        self.node_is_up = is_up;
    }

    /// What a session of this pool would be for.
    #[must_use]
    pub fn wanted(&self, pool: usize) -> Kind {
        let declares = self.pools.get(pool).is_some_and(|pool| pool.declares);
        if self.node_is_up && declares { Kind::Own } else { Kind::Theirs }
    }

    /// A session can be mined on.
    pub fn is_ready(&mut self, pool: usize, kind: Kind, now_ms: u64) {
        if let Some(pool) = self.pools.get_mut(pool)
            && matches!(pool.slot(kind), Slot::Trying { .. })
        {
            *pool.slot_mut(kind) = Slot::Ready { since_ms: now_ms };
        }
    }

    /// A session has ended by itself. A pool that `refuses`, or that has used the devices for a while and
    /// credited nothing, will do so again and has a longer pause, longer with each until it was sound.
    pub fn has_failed(
        &mut self,
        pool: usize,
        kind: Kind,
        refuses: bool,
        credited: Credited,
        now_ms: u64,
    ) {
        let spread = self.spread();
        let is_used = self.using == (Source::Pool { pool, kind });
        let used_ms = if is_used { now_ms.saturating_sub(self.using_since_ms) } else { 0 };
        let Some(pool) = self.pools.get_mut(pool) else { return };
        match credited {
            Credited::Yes if used_ms >= POOL_SOUND_AFTER_MS => {
                (pool.failures, pool.refusals, pool.uncredited_ms) = (0, [0; 2], 0);
            }
            Credited::No => pool.uncredited_ms = pool.uncredited_ms.saturating_add(used_ms),
            Credited::Yes | Credited::NothingFound => {}
        }
        let refuses = refuses || pool.uncredited_ms >= POOL_UNCREDITED_MAX_MS;
        let refusals = &mut pool.refusals[kind as usize];
        let pause = if refuses {
            *refusals = refusals.saturating_add(1);
            (POOL_RETRY_REFUSED_MS << (*refusals - 1).min(16)).min(POOL_RETRY_REFUSED_LAST_MS)
        } else {
            (POOL_RETRY_FIRST_MS << pool.failures.min(16)).min(POOL_RETRY_LAST_MS)
        };
        pool.failures = pool.failures.saturating_add(1);
        // Three quarters to five quarters of it.
        let pause = pause * (768 + spread % 512) / 1_024;
        *pool.slot_mut(kind) = Slot::Idle { from_ms: now_ms.saturating_add(pause) };
    }

    /// The pool asked to be dialled anew: at once. Where that is all that it ever says, as any that fails.
    pub fn is_asked_back(&mut self, pool: usize, kind: Kind, credited: Credited, now_ms: u64) {
        let failures = |one: &Self| one.pools.get(pool).map_or(0, |pool| pool.failures);
        self.has_failed(pool, kind, false, credited, now_ms);
        let is_first =
            failures(self) == 1 && self.pools.get(pool).is_some_and(|pool| pool.refusals == [0; 2]);
        if let Some(pool) = self.pools.get_mut(pool).filter(|_| is_first) {
            *pool.slot_mut(kind) = Slot::Idle { from_ms: now_ms };
        }
    }

    /// What it was left for was true: that is no reason for a pause.
    pub fn was_right(&mut self, pool: usize, kind: Kind) {
        let Some(pool) = self.pools.get_mut(pool) else { return };
        if let Slot::Idle { from_ms: 1.. } = pool.slot(kind) {
            *pool.slot_mut(kind) = Slot::Idle { from_ms: 0 };
            pool.failures = pool.failures.saturating_sub(1);
            pool.refusals[kind as usize] = pool.refusals[kind as usize].saturating_sub(1);
        }
    }

    /// Nothing is to be heard of it soon: it failed and has its pause, or takes its time.
    #[must_use]
    pub fn is_out_of_reach(&self, pool: usize, now_ms: u64) -> bool {
        match self.pools.get(pool).map(|one| one.slot(self.wanted(pool))) {
            Some(Slot::Idle { from_ms }) => from_ms > now_ms,
            Some(Slot::Trying { since_ms }) => now_ms >= since_ms.saturating_add(POOL_STAGGER_MS),
            Some(Slot::Ready { .. }) => false,
            None => true,
        }
    }

    /// When the next pool that is not being tried will be, mono ms.
    #[must_use]
    pub fn retry_at_ms(&self, pool: usize) -> Option<u64> {
        match self.pools.get(pool)?.slot(self.wanted(pool)) {
            Slot::Idle { from_ms } => Some(from_ms),
            Slot::Trying { .. } | Slot::Ready { .. } => None,
        }
    }

    /// What is to be done now. Each step is taken as done.
    pub fn steps(&mut self, now_ms: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        self.leave_what_is_gone(now_ms, &mut steps);
        self.choose(now_ms, &mut steps);
        self.drop_what_is_of_no_use(&mut steps);
        self.dial(now_ms, &mut steps);
        steps
    }

    /// When `steps` may have something new although nothing happened, mono ms; later than now.
    #[must_use]
    pub fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let better = self.pools.iter().enumerate().take(self.rank());
        let due = better.map(|(at, pool)| match pool.slot(self.wanted(at)) {
            Slot::Idle { from_ms } => from_ms,
            Slot::Trying { since_ms } => since_ms.saturating_add(POOL_STAGGER_MS),
            Slot::Ready { since_ms } => since_ms.saturating_add(POOL_RETURN_AFTER_MS),
        });
        due.filter(|due| *due > now_ms).min()
    }

    /// Pools before this place are preferred to what is in use.
    fn rank(&self) -> usize {
        match self.using {
            Source::Pool { pool, kind } if kind == self.wanted(pool) => pool,
            Source::Solo | Source::Pool { .. } => self.pools.len(),
        }
    }

    /// Solo the moment a session is lost; what is better follows in the same breath, if there is any.
    fn leave_what_is_gone(&mut self, now_ms: u64, steps: &mut Vec<Step>) {
        let Source::Pool { pool, kind } = self.using else { return };
        let slot = self.pools.get(pool).map(|pool| pool.slot(kind));
        if !matches!(slot, Some(Slot::Ready { .. })) {
            let ready = self.best_ready();
            self.turn_to(ready.unwrap_or(Source::Solo), now_ms, steps);
        }
    }

    /// The most preferred session of the wanted kind that could be used now.
    fn best_ready(&self) -> Option<Source> {
        let mut pools = self.pools.iter().enumerate();
        let is_ready = |(at, pool): (usize, &Pool)| {
            let kind = self.wanted(at);
            let is_ready = matches!(pool.slot(kind), Slot::Ready { .. });
            is_ready.then_some(Source::Pool { pool: at, kind })
        };
        pools.find_map(is_ready)
    }

    fn choose(&mut self, now_ms: u64, steps: &mut Vec<Step>) {
        let Some(best @ Source::Pool { pool, kind }) = self.best_ready() else { return };
        if best == self.using || pool > self.rank() {
            return;
        }
        let from_worse_pool = matches!(self.using, Source::Pool { pool, kind }
            if kind == self.wanted(pool));
        let since_ms = match self.pools[pool].slot(kind) {
            Slot::Ready { since_ms } => since_ms,
            Slot::Idle { .. } | Slot::Trying { .. } => return,
        };
        // One that comes and goes is not worth leaving another for.
        let has_proved_itself = now_ms >= since_ms.saturating_add(POOL_RETURN_AFTER_MS);
        if !from_worse_pool || has_proved_itself {
            self.turn_to(best, now_ms, steps);
        }
    }

    fn turn_to(&mut self, source: Source, now_ms: u64, steps: &mut Vec<Step>) {
        self.using = source;
        self.using_since_ms = now_ms;
        steps.push(Step::Use(source));
    }

    /// Sessions of another kind than wanted, and with pools behind the one in use. Its own, while nothing
    /// better is there, is of use.
    fn drop_what_is_of_no_use(&mut self, steps: &mut Vec<Step>) {
        let rank = self.rank();
        for at in 0..self.pools.len() {
            for kind in [Kind::Own, Kind::Theirs] {
                let in_use = self.using == Source::Pool { pool: at, kind };
                let of_use = kind == self.wanted(at) && at < rank;
                let slot = self.pools[at].slot_mut(kind);
                if !in_use && !of_use && !matches!(slot, Slot::Idle { .. }) {
                    *slot = Slot::Idle { from_ms: 0 };
                    steps.push(Step::Drop(at, kind));
                }
            }
        }
    }

    /// In order of preference; the next one when those before are out of the way or take their time.
    fn dial(&mut self, now_ms: u64, steps: &mut Vec<Step>) {
        for at in 0..self.rank() {
            let kind = self.wanted(at);
            let slot = self.pools[at].slot_mut(kind);
            match *slot {
                Slot::Idle { from_ms } if from_ms <= now_ms => {
                    *slot = Slot::Trying { since_ms: now_ms };
                    steps.push(Step::Dial(at, kind));
                    return;
                }
                Slot::Trying { since_ms } if now_ms < since_ms.saturating_add(POOL_STAGGER_MS) => {
                    return;
                }
                Slot::Idle { .. } | Slot::Trying { .. } => {}
                // Better than what is in use and about to be used: nothing behind it is wanted.
                Slot::Ready { .. } => return,
            }
        }
    }

    /// The next number of a small generator (xorshift64).
    fn spread(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
