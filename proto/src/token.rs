//! Mining job tokens: who may declare a job, and which declared job may be mined (spec 06 §6.4.3, §6.4.6).
//! One task of the pool owns the book of them; `declare` and `mining` only carry tokens about.
//!
//! A token is 128 bits that the caller draws, so it cannot be guessed; it is bound to an account, and once
//! approved to a job; and it is used up by success alone, so that a miner who was a moment ahead of our
//! node may ask again. Must never draw a token itself, nor hand a job to another account.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// `TOKENS_MAX` jobs are declared, or the bytes drawn are out already.
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
    /// Clients by how many tokens without a job they hold.
    by_allocated: BTreeSet<(usize, ClientId)>,
    /// Clients by how much their approved jobs hold.
    by_bytes: BTreeSet<(usize, ClientId)>,
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
            by_allocated: BTreeSet::new(),
            by_bytes: BTreeSet::new(),
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

    /// Gives more than the pace does, up to the burst.
    pub(crate) fn grant(&mut self, more: u64) {
        self.left = self.left.saturating_add(more).min(self.burst);
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
        if self.tokens.len() >= TOKENS_MAX {
            self.take_from_who_holds_most();
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
        let whose = match own {
            Some(own) => own,
            None if self.approved_bytes > APPROVED_BYTES_MAX => {
                self.clients.get(&self.by_bytes.last()?.1)?
            }
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

    /// The oldest token without a job of the client that has most of them goes.
    fn take_from_who_holds_most(&mut self) {
        let most = self.by_allocated.last().and_then(|(_, client)| self.clients.get(client));
        let oldest = most.and_then(|client| client.allocated.first_key_value());
        if let Some((_, oldest)) = oldest {
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    /// Changes what a client holds, and its places among the others.
    fn change(&mut self, id: ClientId, change: impl FnOnce(&mut Client)) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        self.by_allocated.remove(&(client.allocated.len(), id));
        self.by_bytes.remove(&(client.approved_bytes, id));
        change(client);
        if !client.allocated.is_empty() {
            self.by_allocated.insert((client.allocated.len(), id));
        }
        if client.approved_bytes > 0 {
            self.by_bytes.insert((client.approved_bytes, id));
        }
    }

    /// As the newest of all; its client has a row.
    fn insert(&mut self, token: MiningJobToken, entry: Entry<J>) {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.approved_bytes += entry.bytes;
        self.change(entry.client, |client| {
            client.approved_bytes += entry.bytes;
            let tokens = match entry.promise {
                Promise::Undeclared => &mut client.allocated,
                Promise::Declared(_) => &mut client.approved,
            };
            tokens.insert(serial, token);
        });
        self.ends.insert((entry.ends_ms, serial), token);
        self.tokens.insert(token, Entry { serial, ..entry });
    }

    fn remove(&mut self, token: &MiningJobToken) -> Option<Entry<J>> {
        let entry = self.tokens.remove(token)?;
        self.ends.remove(&(entry.ends_ms, entry.serial));
        self.approved_bytes -= entry.bytes;
        self.change(entry.client, |client| {
            client.approved_bytes -= entry.bytes;
            client.allocated.remove(&entry.serial);
            client.approved.remove(&entry.serial);
        });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALICE: ClientId = ClientId(1);
    const MALLORY: ClientId = ClientId(2);

    /// Tokens of the number's own making, and a time in which nobody is too fast.
    struct Book {
        tokens: Tokens<u32>,
        now_ms: u64,
        drawn: u64,
    }

    impl Book {
        fn new() -> Self {
            Self { tokens: Tokens::new(), now_ms: 0, drawn: 0 }
        }

        fn draw(&mut self) -> [u8; 16] {
            self.drawn += 1;
            u128::from(self.drawn).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_0c5c).to_le_bytes()
        }

        fn try_allocate(
            &mut self,
            client: ClientId,
            account: &str,
        ) -> Result<MiningJobToken, TokenRefusal> {
            let random = self.draw();
            self.tokens.allocate(self.now_ms, client, account.into(), random)
        }

        fn allocate(&mut self, client: ClientId, account: &str) -> MiningJobToken {
            self.now_ms += TOKEN_EVERY_MS;
            self.try_allocate(client, account).unwrap()
        }

        fn approve(&mut self, token: &MiningJobToken, job: u32, bytes: usize) -> MiningJobToken {
            let random = self.draw();
            self.tokens.approve(self.now_ms, token, random, job, bytes).unwrap()
        }

        fn approved(
            &mut self,
            client: ClientId,
            account: &str,
            job: u32,
            bytes: usize,
        ) -> MiningJobToken {
            let token = self.allocate(client, account);
            self.approve(&token, job, bytes)
        }

        fn promised(
            &mut self,
            token: &MiningJobToken,
            account: &str,
        ) -> Result<Promise<u32>, TokenRefusal> {
            self.tokens.promised(self.now_ms, token, account)
        }

        /// The rows say of each other what is so.
        fn check(&self) {
            let tokens = &self.tokens;
            assert_eq!(tokens.ends.len(), tokens.tokens.len());
            let rows = tokens.clients.values();
            let held = rows.map(|client| client.allocated.len() + client.approved.len());
            assert_eq!(held.sum::<usize>(), tokens.tokens.len());
            let bytes: usize = tokens.tokens.values().map(|entry| entry.bytes).sum();
            assert_eq!(tokens.approved_bytes, bytes);
            let held = |held: fn(&Client) -> usize| {
                let rows = tokens.clients.iter().map(|(id, client)| (held(client), *id));
                rows.filter(|(held, _)| *held > 0).collect::<BTreeSet<_>>()
            };
            assert_eq!(tokens.by_allocated, held(|client| client.allocated.len()));
            assert_eq!(tokens.by_bytes, held(|client| client.approved_bytes));
            for (id, client) in &tokens.clients {
                let own = || {
                    let own = client.allocated.values().chain(client.approved.values());
                    own.map(|token| &tokens.tokens[token])
                };
                assert!(own().all(|entry| entry.client == *id));
                assert_eq!(client.approved_bytes, own().map(|entry| entry.bytes).sum::<usize>());
                assert!(client.allocated.len() <= TOKENS_PER_CLIENT_MAX);
                assert!(!client.approved_too_much());
            }
        }
    }

    #[test]
    fn a_token_is_the_random_bytes_that_were_drawn_and_no_count() {
        let mut tokens = Tokens::<u32>::new();
        let token = tokens.allocate(0, ALICE, "alice".into(), [0x5a; 16]).unwrap();
        assert_eq!(token, MiningJobToken([0x5a; 16]));
        assert_eq!(MiningJobToken::from_wire(&token.0), Some(token));
        for odd in [0, 8, 15, 17, 255] {
            assert_eq!(MiningJobToken::from_wire(&vec![0x5a; odd]), None);
        }
        // Bytes that are out already are not given to a second owner.
        let again = tokens.allocate(0, MALLORY, "mallory".into(), [0x5a; 16]);
        assert_eq!(again, Err(TokenRefusal::Full));
        assert_eq!(&*tokens.account_of(0, &token).unwrap(), "alice");
    }

    #[test]
    fn a_log_shows_too_little_of_a_token_to_use_it() {
        assert_eq!(format!("{:?}", MiningJobToken([0xab; 16])), "MiningJobToken(abab..)");
    }

    #[test]
    fn a_token_promises_its_job_to_its_account_alone_js9() {
        let mut book = Book::new();
        let token = book.allocate(ALICE, "alice");
        assert_eq!(book.promised(&token, "alice"), Ok(Promise::Undeclared));
        assert_eq!(book.promised(&token, "mallory"), Err(TokenRefusal::OfAnother));
        let approved = book.approve(&token, 7, 10);
        assert_eq!(book.promised(&approved, "alice"), Ok(Promise::Declared(7)));
        for other in ["mallory", "alic", "alice2", ""] {
            assert_eq!(book.promised(&approved, other), Err(TokenRefusal::OfAnother));
        }
        // A thief's try costs the owner nothing.
        assert_eq!(book.promised(&approved, "alice"), Ok(Promise::Declared(7)));
    }

    /// What a signature would be for: nobody but the book can say what may be mined.
    #[test]
    fn a_token_that_the_book_did_not_draw_promises_nothing_js9() {
        let mut book = Book::new();
        let allocated = book.allocate(ALICE, "alice");
        let approved = book.approved(ALICE, "alice", 7, 10);
        for token in [allocated, approved] {
            for bit in 0..128 {
                let mut forged = token;
                forged.0[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(book.promised(&forged, "alice"), Err(TokenRefusal::Unknown));
            }
        }
        // Another pool's, which has drawn and approved as much.
        let mut other = Book { drawn: 1_000, ..Book::new() };
        let foreign = other.approved(ALICE, "alice", 7, 10);
        assert_eq!(book.promised(&foreign, "alice"), Err(TokenRefusal::Unknown));
        // No job can be approved for it either.
        let random = book.draw();
        let made = book.tokens.approve(book.now_ms, &foreign, random, 8, 10);
        assert_eq!(made, Err(TokenRefusal::Unknown));
        assert_eq!(book.promised(&MiningJobToken(random), "alice"), Err(TokenRefusal::Unknown));
        assert_eq!(book.promised(&approved, "alice"), Ok(Promise::Declared(7)));
        book.check();
    }

    #[test]
    fn only_success_uses_a_token_up() {
        let mut book = Book::new();
        let token = book.allocate(ALICE, "alice");
        for _ in 0..3 {
            assert!(book.tokens.account_of(book.now_ms, &token).is_ok());
            assert!(book.promised(&token, "alice").is_ok());
        }
        let approved = book.approve(&token, 7, 10);
        // The declared one is gone, for a second declaration and for a coinbase-only job.
        let random = book.draw();
        let twice = book.tokens.approve(book.now_ms, &token, random, 8, 10);
        assert_eq!(twice, Err(TokenRefusal::Unknown));
        assert_eq!(book.promised(&token, "alice"), Err(TokenRefusal::Unknown));
        // The new one is not for another declaration.
        let now_ms = book.now_ms;
        assert_eq!(book.tokens.account_of(now_ms, &approved), Err(TokenRefusal::Declared));
        let twice = book.tokens.approve(now_ms, &approved, random, 8, 10);
        assert_eq!(twice, Err(TokenRefusal::Declared));
        for _ in 0..3 {
            assert_eq!(book.promised(&approved, "alice"), Ok(Promise::Declared(7)));
        }
        book.tokens.use_up(&approved);
        assert_eq!(book.promised(&approved, "alice"), Err(TokenRefusal::Unknown));
        assert!(book.tokens.is_empty());
        book.check();
    }

    #[test]
    fn a_token_lives_as_long_as_it_is_said_and_no_longer() {
        let mut book = Book::new();
        let token = book.allocate(ALICE, "alice");
        let start_ms = book.now_ms;
        book.now_ms = start_ms + TOKEN_ALLOCATED_LIVES_MS - 1;
        assert_eq!(book.promised(&token, "alice"), Ok(Promise::Undeclared));
        let approved = book.approve(&token, 7, 10);
        book.now_ms += TOKEN_APPROVED_LIVES_MS - 1;
        assert_eq!(book.promised(&approved, "alice"), Ok(Promise::Declared(7)));
        book.now_ms += 1;
        assert_eq!(book.promised(&approved, "alice"), Err(TokenRefusal::Unknown));
        let token = book.allocate(ALICE, "alice");
        book.now_ms += TOKEN_ALLOCATED_LIVES_MS;
        assert_eq!(book.promised(&token, "alice"), Err(TokenRefusal::Unknown));
        assert!(book.tokens.is_empty());
        book.check();
    }

    #[test]
    fn a_client_may_ask_for_so_many_at_once_and_one_in_so_long_after_js3() {
        let mut book = Book::new();
        for _ in 0..TOKENS_BURST {
            book.try_allocate(ALICE, "alice").unwrap();
        }
        assert_eq!(book.try_allocate(ALICE, "alice"), Err(TokenRefusal::TooOften));
        // By what it calls itself a client cannot get around it; another client is not held up.
        assert_eq!(book.try_allocate(ALICE, "bob"), Err(TokenRefusal::TooOften));
        book.try_allocate(MALLORY, "alice").unwrap();
        book.now_ms += TOKEN_EVERY_MS - 1;
        assert_eq!(book.try_allocate(ALICE, "alice"), Err(TokenRefusal::TooOften));
        book.now_ms += 1;
        book.try_allocate(ALICE, "alice").unwrap();
        assert_eq!(book.try_allocate(ALICE, "alice"), Err(TokenRefusal::TooOften));
        book.check();
    }

    #[test]
    fn beyond_what_a_client_may_hold_its_oldest_gives_way_and_nobody_elses() {
        let mut book = Book::new();
        let other = book.allocate(MALLORY, "alice");
        let tokens: Vec<_> =
            (0..=TOKENS_PER_CLIENT_MAX).map(|_| book.allocate(ALICE, "alice")).collect();
        assert_eq!(book.promised(&tokens[0], "alice"), Err(TokenRefusal::Unknown));
        for token in tokens[1..].iter().chain([&other]) {
            assert_eq!(book.promised(token, "alice"), Ok(Promise::Undeclared));
        }
        book.check();
    }

    #[test]
    fn beyond_what_the_pool_may_give_out_whoever_holds_most_loses_his_oldest() {
        let mut book = Book::new();
        let honest = book.allocate(ALICE, "alice");
        let mut hoarded = Vec::new();
        for number in 1..TOKENS_MAX as u64 {
            let client = ClientId(1_000 + number / TOKENS_BURST);
            hoarded.push(book.try_allocate(client, "a").unwrap());
        }
        assert_eq!(book.tokens.len(), TOKENS_MAX);
        let newest = book.try_allocate(MALLORY, "mallory").unwrap();
        assert_eq!(book.tokens.len(), TOKENS_MAX);
        for (token, account) in [(&honest, "alice"), (&newest, "mallory")] {
            assert_eq!(book.promised(token, account), Ok(Promise::Undeclared));
        }
        let gone: Vec<_> =
            (0..hoarded.len()).filter(|at| book.promised(&hoarded[*at], "a").is_err()).collect();
        assert_eq!(gone.len(), 1);
        // A job takes the place of its token.
        book.approve(&honest, 1, 1);
        assert_eq!(book.tokens.len(), TOKENS_MAX);
        book.check();
    }

    #[test]
    fn approved_jobs_are_bounded_by_count_for_each_client() {
        let mut book = Book::new();
        let other = book.approved(MALLORY, "mallory", 0, 10);
        let jobs: Vec<_> = (0..=APPROVED_PER_CLIENT_MAX as u32)
            .map(|job| book.approved(ALICE, "alice", job, 10))
            .collect();
        assert_eq!(book.promised(&jobs[0], "alice"), Err(TokenRefusal::Unknown));
        assert_eq!(book.promised(&jobs[1], "alice"), Ok(Promise::Declared(1)));
        assert!(book.promised(&other, "mallory").is_ok());
        book.check();
    }

    #[test]
    fn approved_jobs_are_bounded_by_bytes_for_each_client_and_the_newest_stays() {
        let mut book = Book::new();
        let half = APPROVED_BYTES_PER_CLIENT_MAX / 2;
        let [first, second] = [1, 2].map(|job| book.approved(ALICE, "alice", job, half));
        assert!(book.promised(&first, "alice").is_ok());
        let third = book.approved(ALICE, "alice", 3, 1);
        assert_eq!(book.promised(&first, "alice"), Err(TokenRefusal::Unknown));
        assert!(book.promised(&second, "alice").is_ok() && book.promised(&third, "alice").is_ok());
        let huge = book.approved(ALICE, "alice", 4, 2 * APPROVED_BYTES_PER_CLIENT_MAX);
        assert_eq!(book.promised(&huge, "alice"), Ok(Promise::Declared(4)));
        assert_eq!(book.tokens.len(), 1);
        book.check();
    }

    #[test]
    fn when_all_hold_too_much_whoever_holds_most_loses_his_oldest() {
        let mut book = Book::new();
        let honest = book.approved(ALICE, "alice", 0, 1_000_000);
        let full = APPROVED_BYTES_MAX / APPROVED_BYTES_PER_CLIENT_MAX;
        let mut greedy = Vec::new();
        for client in 0..=full as u64 {
            let half = APPROVED_BYTES_PER_CLIENT_MAX / 2;
            for job in [1, 2] {
                greedy.push(book.approved(ClientId(10 + client), "mallory", job, half));
            }
        }
        assert!(book.tokens.approved_bytes <= APPROVED_BYTES_MAX);
        assert_eq!(book.promised(&honest, "alice"), Ok(Promise::Declared(0)));
        let gone = greedy.iter().filter(|token| !book.tokens.tokens.contains_key(token)).count();
        assert!((1..=4).contains(&gone), "{gone}");
        book.check();
    }

    #[test]
    fn jobs_of_a_tip_that_is_gone_end_and_tokens_without_a_job_stay() {
        let mut book = Book::new();
        let (old, new) =
            (book.approved(ALICE, "alice", 1, 10), book.approved(ALICE, "alice", 2, 10));
        let waiting = book.allocate(ALICE, "alice");
        book.tokens.end_jobs(|job| *job == 1);
        assert_eq!(book.promised(&old, "alice"), Err(TokenRefusal::Unknown));
        assert!(book.promised(&new, "alice").is_ok() && book.promised(&waiting, "alice").is_ok());
        book.check();
    }

    #[test]
    fn clients_that_came_once_leave_no_row_behind() {
        let mut book = Book::new();
        for number in 0..10_000 {
            book.now_ms += TOKEN_EVERY_MS;
            let token = book.try_allocate(ClientId(number), "a").unwrap();
            book.tokens.use_up(&token);
        }
        assert!(book.tokens.clients.len() < 100, "{}", book.tokens.clients.len());
    }

    /// What a token is good for, worked out from what was done with it.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Known {
        account: u8,
        job: Option<u32>,
        ends_ms: u64,
    }

    const ACCOUNTS: [&str; 3] = ["alice", "bob", "carol"];

    proptest! {
        #[test]
        fn the_book_is_what_was_done_with_it(
            steps in proptest::collection::vec((0u8..8, 0usize..1_000, 0u8..3, 0u64..4_000_000), 1..120),
        ) {
            let mut book = Book::new();
            let mut known: HashMap<MiningJobToken, Known> = HashMap::new();
            let mut shown: Vec<MiningJobToken> = Vec::new();
            for (step, pick, account, wait) in steps {
                let token = shown.get(pick % shown.len().max(1)).copied();
                let alive = token.and_then(|token| known.get(&token).copied()).filter(|known| known.ends_ms > book.now_ms);
                match (step, token) {
                    // Fewer than any bound: clients are many.
                    (0..=2, _) | (_, None) => {
                        let client = ClientId(pick as u64);
                        if let Ok(token) = book.try_allocate(client, ACCOUNTS[usize::from(account)]) {
                            let ends_ms = book.now_ms + TOKEN_ALLOCATED_LIVES_MS;
                            known.insert(token, Known { account, job: None, ends_ms });
                            shown.push(token);
                        }
                    }
                    (3, Some(token)) => {
                        let random = book.draw();
                        let job = pick as u32;
                        let approved = book.tokens.approve(book.now_ms, &token, random, job, 1);
                        prop_assert_eq!(approved.is_ok(), alive.is_some_and(|known| known.job.is_none()));
                        if let (Ok(new), Some(old)) = (approved, alive) {
                            known.remove(&token);
                            let ends_ms = book.now_ms + TOKEN_APPROVED_LIVES_MS;
                            known.insert(new, Known { account: old.account, job: Some(job), ends_ms });
                            shown.push(new);
                        }
                    }
                    (4, Some(token)) => {
                        book.tokens.use_up(&token);
                        known.remove(&token);
                    }
                    (5, _) => book.now_ms += wait,
                    (_, Some(token)) => {
                        let expected = match alive {
                            None => Err(TokenRefusal::Unknown),
                            Some(known) if known.account != account => Err(TokenRefusal::OfAnother),
                            Some(known) => Ok(known.job.map_or(Promise::Undeclared, Promise::Declared)),
                        };
                        let account = ACCOUNTS[usize::from(account)];
                        prop_assert_eq!(book.promised(&token, account), expected);
                    }
                }
                book.check();
            }
        }
    }
}
