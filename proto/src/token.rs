//! Mining job tokens: who may declare a job, and which declared job may be mined (spec 06 §6.4.3, §6.4.6).
//! One task of the pool owns the book of them; `declare` and `mining` only carry tokens about.
//!
//! A token is 128 bits that the caller draws, so it cannot be guessed; it is bound to an account, and once
//! approved to a job; and it is used up by success alone, so that a miner who was a moment ahead of our
//! node may ask again. Must never draw a token itself, nor hand a job to another account.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use crate::limits::{
    APPROVED_BYTES_MAX, APPROVED_BYTES_PER_CLIENT_MAX, APPROVED_PER_CLIENT_MAX,
    TOKEN_ALLOCATED_LIVES_MS, TOKEN_APPROVED_LIVES_MS, TOKEN_EVERY_MS, TOKENS_BURST, TOKENS_MAX,
    TOKENS_PER_CLIENT_MAX,
};

/// A token, B0_255 on the wire. Opaque to its owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MiningJobToken(pub [u8; 16]);

impl MiningJobToken {
    /// From the wire; `None` of what is no token of ours, by its length.
    #[must_use]
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl std::fmt::Debug for MiningJobToken {
    /// Whoever reads a log must not be able to use one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MiningJobToken({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// Who is counted as one client: what the pool makes of an address, not what the client calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Why a token is refused, or of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum TokenRefusal {
    /// Never given out, used up, or too old.
    #[error("no such token, or used up, or too old")]
    Unknown,
    /// Given to another account.
    #[error("the token of another account")]
    OfAnother,
    /// A job was declared with it already: the new token is the one to use.
    #[error("a job was declared with the token already")]
    Declared,
    /// The client asks for more than `TOKENS_BURST` at once and one in `TOKEN_EVERY_MS` after.
    #[error("tokens were asked for too fast")]
    TooOften,
    /// `TOKENS_MAX` are out.
    #[error("the pool has given out all the tokens that it may")]
    Full,
}

/// What a token promises to the channel that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise<J> {
    /// Allocated, and no job declared with it: a coinbase-only job may be asked for.
    Undeclared,
    /// The job that was checked and approved.
    Declared(J),
}

/// Every token of the pool. `J` is what an approved declaration is to the pool; a clone must be cheap.
#[derive(Debug)]
pub struct Tokens<J> {
    tokens: HashMap<MiningJobToken, Entry<J>>,
    clients: HashMap<ClientId, Client>,
    /// By when they are too old, mono ms, and by serial.
    ends: BTreeMap<(u64, u64), MiningJobToken>,
    /// Of all approved jobs.
    approved_bytes: usize,
    /// Counts the tokens.
    next_serial: u64,
}

#[derive(Debug)]
struct Entry<J> {
    client: ClientId,
    account: Arc<str>,
    promise: Promise<J>,
    /// What the declared job holds.
    bytes: usize,
    serial: u64,
    ends_ms: u64,
}

#[derive(Debug)]
struct Client {
    /// Its tokens without a declared job, by serial.
    allocated: BTreeMap<u64, MiningJobToken>,
    /// Its tokens with one.
    approved: BTreeMap<u64, MiningJobToken>,
    approved_bytes: usize,
    pace: Pace,
}

impl Client {
    fn new(now_ms: u64) -> Self {
        Self {
            allocated: BTreeMap::new(),
            approved: BTreeMap::new(),
            approved_bytes: 0,
            pace: Pace::new(TOKENS_BURST, TOKEN_EVERY_MS, now_ms),
        }
    }

    /// It holds nothing and may ask for as much as a client that was never seen.
    fn is_nobody(&self, now_ms: u64) -> bool {
        self.allocated.is_empty() && self.approved.is_empty() && self.pace.is_full(now_ms)
    }

    fn approved_too_much(&self) -> bool {
        self.approved.len() > APPROVED_PER_CLIENT_MAX
            || (self.approved.len() > 1 && self.approved_bytes > APPROVED_BYTES_PER_CLIENT_MAX)
    }
}

impl<J> Default for Tokens<J> {
    fn default() -> Self {
        Self::new()
    }
}

impl<J> Tokens<J> {
    /// Without a token.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tokens: HashMap::new(),
            clients: HashMap::new(),
            ends: BTreeMap::new(),
            approved_bytes: 0,
            next_serial: 0,
        }
    }
}

/// So many at once, and then one in so many milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    burst: u64,
    every_ms: u64,
    left: u64,
    counted_ms: u64,
}

impl Pace {
    pub(crate) fn new(burst: u64, every_ms: u64, now_ms: u64) -> Self {
        Self { burst, every_ms, left: burst, counted_ms: now_ms }
    }

    /// Takes one, if one is left.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        self.refill(now_ms);
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    /// When there is one again, mono ms; not after `now_ms` if there is one.
    pub(crate) fn next_ms(&self) -> u64 {
        if self.left > 0 { self.counted_ms } else { self.counted_ms.saturating_add(self.every_ms) }
    }

    /// Nothing was taken for so long that all is there again.
    pub(crate) fn is_full(&self, now_ms: u64) -> bool {
        let mut then = self.clone();
        then.refill(now_ms);
        then.left == then.burst
    }

    fn refill(&mut self, now_ms: u64) {
        let refilled = now_ms.saturating_sub(self.counted_ms) / self.every_ms;
        self.counted_ms += refilled * self.every_ms;
        self.left = self.left.saturating_add(refilled).min(self.burst);
        if self.left == self.burst {
            self.counted_ms = self.counted_ms.max(now_ms);
        }
    }
}

impl<J: Clone> Tokens<J> {
    /// A token of `account` that is made of `random`, which must be drawn for it and never be shown
    /// before. At `TOKENS_PER_CLIENT_MAX` the client's oldest gives way: it has most likely lost it.
    pub fn allocate(
        &mut self,
        now_ms: u64,
        client: ClientId,
        account: Arc<str>,
        random: [u8; 16],
    ) -> Result<MiningJobToken, TokenRefusal> {
        self.forget_old(now_ms);
        let known = self.clients.entry(client).or_insert_with(|| Client::new(now_ms));
        if !known.pace.take(now_ms) {
            return Err(TokenRefusal::TooOften);
        }
        if known.allocated.len() >= TOKENS_PER_CLIENT_MAX
            && let Some((_, oldest)) = known.allocated.first_key_value()
        {
            let oldest = *oldest;
            self.remove(&oldest);
        }
        let token = MiningJobToken(random);
        // 128 random bits meet by a fault alone; what is out keeps its owner.
        if self.tokens.len() >= TOKENS_MAX || self.tokens.contains_key(&token) {
            return Err(TokenRefusal::Full);
        }
        let ends_ms = now_ms.saturating_add(TOKEN_ALLOCATED_LIVES_MS);
        let promise = Promise::Undeclared;
        self.insert(token, Entry { client, account, promise, bytes: 0, serial: 0, ends_ms });
        Ok(token)
    }

    /// Whose token it is, of one that a job may be declared with.
    pub fn account_of(
        &mut self,
        now_ms: u64,
        token: &MiningJobToken,
    ) -> Result<Arc<str>, TokenRefusal> {
        self.forget_old(now_ms);
        let entry = self.tokens.get(token).ok_or(TokenRefusal::Unknown)?;
        match entry.promise {
            Promise::Undeclared => Ok(Arc::clone(&entry.account)),
            Promise::Declared(_) => Err(TokenRefusal::Declared),
        }
    }

    /// The check of a declaration passed: its token is used up, and the one made of `random` promises
    /// `job`, which holds so many `bytes` that nobody else does, to the same account. What the client's,
    /// or all clients', approved jobs are too much by gives way, the oldest first.
    pub fn approve(
        &mut self,
        now_ms: u64,
        token: &MiningJobToken,
        random: [u8; 16],
        job: J,
        bytes: usize,
    ) -> Result<MiningJobToken, TokenRefusal> {
        let account = self.account_of(now_ms, token)?;
        let new = MiningJobToken(random);
        if self.tokens.contains_key(&new) {
            return Err(TokenRefusal::Full);
        }
        let Entry { client, .. } = self.remove(token).ok_or(TokenRefusal::Unknown)?;
        self.clients.entry(client).or_insert_with(|| Client::new(now_ms));
        let ends_ms = now_ms.saturating_add(TOKEN_APPROVED_LIVES_MS);
        let promise = Promise::Declared(job);
        self.insert(new, Entry { client, account, promise, bytes, serial: 0, ends_ms });
        while let Some(oldest) = self.oldest_too_much(client).filter(|oldest| *oldest != new) {
            self.remove(&oldest);
        }
        Ok(new)
    }

    /// The approved job that has to go, now that `client` has one more.
    fn oldest_too_much(&self, client: ClientId) -> Option<MiningJobToken> {
        let own = self.clients.get(&client).filter(|client| client.approved_too_much());
        let most = || self.clients.values().max_by_key(|client| client.approved_bytes);
        let whose = match own {
            Some(own) => own,
            None if self.approved_bytes > APPROVED_BYTES_MAX => most()?,
            None => return None,
        };
        whose.approved.first_key_value().map(|(_, token)| *token)
    }

    /// What the token promises to a channel of `account`. It stays as it is: only success uses it up.
    pub fn promised(
        &mut self,
        now_ms: u64,
        token: &MiningJobToken,
        account: &str,
    ) -> Result<Promise<J>, TokenRefusal> {
        self.forget_old(now_ms);
        let entry = self.tokens.get(token).ok_or(TokenRefusal::Unknown)?;
        if *entry.account != *account {
            return Err(TokenRefusal::OfAnother);
        }
        Ok(entry.promise.clone())
    }

    /// A custom job was accepted with it (`server::Effect::CustomAccepted`).
    pub fn use_up(&mut self, token: &MiningJobToken) {
        self.remove(token);
    }

    /// Approved jobs that `is_over` of are of no more use (their tip is long gone): their tokens go, and
    /// with them the jobs.
    pub fn end_jobs(&mut self, is_over: impl Fn(&J) -> bool) {
        let over = self.tokens.iter().filter_map(|(token, entry)| match &entry.promise {
            Promise::Declared(job) if is_over(job) => Some(*token),
            Promise::Declared(_) | Promise::Undeclared => None,
        });
        for token in over.collect::<Vec<_>>() {
            self.remove(&token);
        }
    }

    /// How many are out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// None is out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// As the newest of all; its client has a row.
    fn insert(&mut self, token: MiningJobToken, entry: Entry<J>) {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.approved_bytes += entry.bytes;
        if let Some(client) = self.clients.get_mut(&entry.client) {
            client.approved_bytes += entry.bytes;
            let tokens = match entry.promise {
                Promise::Undeclared => &mut client.allocated,
                Promise::Declared(_) => &mut client.approved,
            };
            tokens.insert(serial, token);
        }
        self.ends.insert((entry.ends_ms, serial), token);
        self.tokens.insert(token, Entry { serial, ..entry });
    }

    fn remove(&mut self, token: &MiningJobToken) -> Option<Entry<J>> {
        let entry = self.tokens.remove(token)?;
        self.ends.remove(&(entry.ends_ms, entry.serial));
        self.approved_bytes -= entry.bytes;
        if let Some(client) = self.clients.get_mut(&entry.client) {
            client.approved_bytes -= entry.bytes;
            client.allocated.remove(&entry.serial);
            client.approved.remove(&entry.serial);
        }
        Some(entry)
    }

    fn forget_old(&mut self, now_ms: u64) {
        while let Some(first) = self.ends.first_entry().filter(|first| first.key().0 <= now_ms) {
            let token = *first.get();
            self.remove(&token);
        }
        // Looked at when the rows outgrow the tokens, so that it costs little on the whole.
        if self.clients.len() > 2 * self.tokens.len() + 64 {
            self.clients.retain(|_, client| !client.is_nobody(now_ms));
        }
    }
}
