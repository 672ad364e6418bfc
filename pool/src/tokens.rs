//! The book of mining job tokens: a task that owns proto's `Tokens`. Declarers have tokens drawn and jobs
//! approved (`declarer`, `checks`), mining connections ask what a token promises (`custom`). Started by
//! `run`.
//!
//! Must never promise a job to another account than its token's, nor use a token up before its job is
//! mined.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use job_declarator::clock::Clock;
use proto::token::{ClientId, MiningJobToken, Promise, TokenRefusal, Tokens};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::checks::Approved;
use crate::limits::{APPROVED_TIPS_KEPT, CUSTOM_JOB_EVERY_MS, CUSTOM_JOBS_BURST, TOKEN_ASKS_MAX};
use crate::metrics::Metrics;
use crate::templates::Published;

/// How often old tokens are looked for when nobody asks.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Where tokens are asked for. A clone leads to the same book.
#[derive(Clone)]
pub struct TokensHandle {
    queue: mpsc::Sender<Ask>,
}

/// Why there is no token, or nothing behind one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoToken {
    /// The book says no.
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
    /// The household has custom jobs set faster than any declarator has reason to.
    #[error("custom jobs are set too fast")]
    TooFast,
    /// The system has no randomness, or the pool is going down.
    #[error("no token can be made now")]
    Fault,
}

type Answer<T> = oneshot::Sender<Result<T, NoToken>>;

enum Ask {
    Allocate { client: ClientId, account: Arc<str>, answer: Answer<MiningJobToken> },
    AccountOf { token: MiningJobToken, answer: Answer<Arc<str>> },
    Approve(Approve),
    Promised(Promised),
    UseUp(MiningJobToken),
}

struct Approve {
    token: MiningJobToken,
    job: Arc<Approved>,
    answer: Answer<MiningJobToken>,
}

struct Promised {
    household: IpAddr,
    token: MiningJobToken,
    account: Arc<str>,
    answer: Answer<Promise<Arc<Approved>>>,
}

impl TokensHandle {
    /// A fresh token of `account`. A household is one client of the book, however often it reconnects.
    pub async fn allocate(
        &self,
        household: IpAddr,
        account: Arc<str>,
    ) -> Result<MiningJobToken, NoToken> {
        let client = client_of(household);
        self.ask(|answer| Ask::Allocate { client, account, answer }).await
    }

    /// Whose token it is, of one that a job may be declared with.
    pub async fn account_of(&self, token: MiningJobToken) -> Result<Arc<str>, NoToken> {
        self.ask(|answer| Ask::AccountOf { token, answer }).await
    }

    /// The token for mining `job`, which was declared with `token`.
    pub async fn approve(
        &self,
        token: MiningJobToken,
        job: Arc<Approved>,
    ) -> Result<MiningJobToken, NoToken> {
        self.ask(|answer| Ask::Approve(Approve { token, job, answer })).await
    }

    /// What the token promises to a channel of `account`, at the pace that custom jobs may be set from one
    /// household.
    pub async fn promised(
        &self,
        household: IpAddr,
        token: MiningJobToken,
        account: Arc<str>,
    ) -> Result<Promise<Arc<Approved>>, NoToken> {
        self.ask(|answer| Ask::Promised(Promised { household, token, account, answer })).await
    }

    /// Its job is mined now.
    pub async fn use_up(&self, token: MiningJobToken) {
        // A book that has ended has no token left.
        let _ = self.queue.send(Ask::UseUp(token)).await;
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, NoToken> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(ask(answer)).await.map_err(|_| NoToken::Fault)?;
        answered.await.map_err(|_| NoToken::Fault)?
    }
}

/// The book sees numbers, not addresses. Two households of one number would share a budget, nothing else.
fn client_of(household: IpAddr) -> ClientId {
    let mut hasher = DefaultHasher::new();
    household.hash(&mut hasher);
    ClientId(hasher.finish())
}

/// Starts the book; it ends with `stop`.
pub fn spawn(
    templates: watch::Receiver<Published>,
    clock: Clock,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> TokensHandle {
    let (queue, asks) = mpsc::channel(TOKEN_ASKS_MAX);
    let tip = templates.borrow().active.tip.hash;
    let book = Book {
        tokens: Tokens::new(),
        paces: HashMap::new(),
        tips: VecDeque::from([tip]),
        clock,
        metrics,
    };
    tokio::spawn(book.run(asks, templates, stop));
    TokensHandle { queue }
}

struct Book {
    tokens: Tokens<Arc<Approved>>,
    paces: HashMap<IpAddr, Pace>,
    /// The present tip, the last, and some before; jobs of others are over.
    tips: VecDeque<[u8; 32]>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Custom jobs of a household: `CUSTOM_JOBS_BURST`, then one in `CUSTOM_JOB_EVERY_MS`.
struct Pace {
    /// When all of the burst will be there again, mono ms.
    full_ms: u64,
}

impl Pace {
    fn take(&mut self, now_ms: u64) -> bool {
        let full_ms = self.full_ms.max(now_ms) + CUSTOM_JOB_EVERY_MS;
        let may = full_ms - now_ms <= CUSTOM_JOBS_BURST * CUSTOM_JOB_EVERY_MS;
        if may {
            self.full_ms = full_ms;
        }
        may
    }
}

impl Book {
    async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        mut templates: watch::Receiver<Published>,
        stop: CancellationToken,
    ) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ask = asks.recv() => match ask {
                    None => return,
                    Some(ask) => self.answer(ask),
                },
                changed = templates.changed() => match changed {
                    Err(_) => return,
                    Ok(()) => self.follow(templates.borrow_and_update().active.tip.hash),
                },
                _ = sweep.tick() => self.sweep(),
            }
            self.metrics.tokens_are(self.tokens.len());
        }
    }

    /// Whoever asked may have given up; what was given out to nobody grows too old like any other.
    fn answer(&mut self, ask: Ask) {
        let now_ms = self.clock.now().mono_ms;
        match ask {
            Ask::Allocate { client, account, answer } => {
                let token = random().and_then(|random| {
                    Ok(self.tokens.allocate(now_ms, client, account, random)?)
                });
                let _ = answer.send(token);
            }
            Ask::AccountOf { token, answer } => {
                let _ = answer.send(self.tokens.account_of(now_ms, &token).map_err(NoToken::from));
            }
            Ask::Approve(Approve { token, job, answer }) => {
                let bytes = job.bytes();
                let new = random().and_then(|random| {
                    Ok(self.tokens.approve(now_ms, &token, random, job, bytes)?)
                });
                let _ = answer.send(new);
            }
            Ask::Promised(asked) => {
                let promise = self.promised(now_ms, &asked);
                let _ = asked.answer.send(promise);
            }
            Ask::UseUp(token) => self.tokens.use_up(&token),
        }
    }

    fn promised(
        &mut self,
        now_ms: u64,
        asked: &Promised,
    ) -> Result<Promise<Arc<Approved>>, NoToken> {
        let pace = self.paces.entry(asked.household).or_insert(Pace { full_ms: now_ms });
        if !pace.take(now_ms) {
            return Err(NoToken::TooFast);
        }
        Ok(self.tokens.promised(now_ms, &asked.token, &asked.account)?)
    }

    /// Jobs of the tips before stay a while: their miner may be a moment behind, and is to hear that they
    /// are stale and not that he has no token.
    fn follow(&mut self, tip: [u8; 32]) {
        if self.tips.contains(&tip) {
            return;
        }
        self.tips.push_back(tip);
        if self.tips.len() > APPROVED_TIPS_KEPT {
            self.tips.pop_front();
        }
        let tips = &self.tips;
        self.tokens.end_jobs(|job| !tips.contains(&job.record.prev_hash));
    }

    fn sweep(&mut self) {
        let now_ms = self.clock.now().mono_ms;
        self.paces.retain(|_, pace| pace.full_ms > now_ms);
    }
}

fn random() -> Result<[u8; 16], NoToken> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| {
        error!(%error, "the system has no randomness for a token");
        NoToken::Fault
    })?;
    Ok(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_jobs_come_in_a_burst_and_then_at_their_pace() {
        let mut pace = Pace { full_ms: 0 };
        let now_ms = 1_000_000;
        assert!((0..CUSTOM_JOBS_BURST).all(|_| pace.take(now_ms)));
        assert!(!pace.take(now_ms), "one beyond the burst");
        assert!(!pace.take(now_ms + CUSTOM_JOB_EVERY_MS - 1));
        assert!(pace.take(now_ms + CUSTOM_JOB_EVERY_MS));
        assert!(!pace.take(now_ms + CUSTOM_JOB_EVERY_MS));
        let rested = now_ms + 2 * CUSTOM_JOBS_BURST * CUSTOM_JOB_EVERY_MS;
        assert!((0..CUSTOM_JOBS_BURST).all(|_| pace.take(rested)) && !pace.take(rested));
    }
}
