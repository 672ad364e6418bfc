//! The check of a declaration from its message to its token: whose token it is, what is known of its
//! transactions, our own check on a thread of its own, the node's verdict, and what the job is worth.
//! Called by `declarer` on a task for each declaration; nobody waits for another's check but for a turn.
//!
//! Must never approve what the node has not found valid on the tip that is mined on, nor let one household
//! have all turns.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::Network;
use job_declarator::declared::{
    Context, DeclaredJob, FeeTrust, Outcome, Refusal, Rule, Transaction, check, factor_ppm,
};
use job_declarator::node::{Checked as NodeSays, Node, NodeError, subsidy_sats};
use proto::declare::server::CheckOutcome;
use proto::declare::{Declaration, DeclareRefusal};
use proto::job::Job;
use proto::mining::{DeclaredId, Worth};
use proto::template::PrevHash;
use proto::token::{MiningJobToken, TokenRefusal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, warn};

use crate::board::{BoardHandle, JobRow, VerdictRow};
use crate::library::{Known, LibraryHandle, Loose, Reader};
use crate::limits::{
    AHEAD_WAIT_MAX, APPROVED_LEN_MAX, APPROVED_LEN_PER_HOUSEHOLD_MAX, CHECKS_MIN,
    NODE_CHECK_DEADLINE, NODE_CHECK_LONG, NODE_CHECKS_MAX, PROVIDING_MAX,
    PROVIDING_PER_HOUSEHOLD_MAX, PROVIDING_WAIT_MAX, REST_FACTOR, REST_FACTOR_UNKNOWN,
    TAKEN_BODIES_MAX,
};
use crate::metrics::Metrics;
use crate::store::{DeclareMode, DeclaredRecord};
use crate::templates::Published;
use crate::tokens::{NoToken, TokensHandle};
use crate::turns::{Held, Name, Room, THING_OVERHEAD, Turn, Turns};

/// A declaration that was approved: what may be mined, and what of it lasts.
#[derive(Debug)]
pub struct Approved {
    /// As it was checked.
    pub job: DeclaredJob,
    /// Its row in the store, once a share is found on it.
    pub record: Arc<DeclaredRecord>,
    /// Room for what it holds, for as long as anybody holds it.
    room: Held,
}

impl Approved {
    /// Bytes that its household holds for it and did not hold before.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.room.charged()
    }

    /// What its work is worth.
    #[must_use]
    pub fn worth(&self) -> Worth {
        Worth { declared: Some(self.record.id), factor_ppm: self.record.factor_ppm }
    }
}

/// What every check may use.
pub struct Checks {
    node: Arc<dyn Node>,
    book: Bookkeeping,
    templates: watch::Receiver<Published>,
    tokens: TokensHandle,
    library: LibraryHandle,
    /// Turns at our own check, one core each.
    cores: Turns,
    /// Turns at the node.
    verdicts: Turns,
    /// When it gave the last.
    verdict_ended: Arc<Mutex<Option<Instant>>>,
    /// What the node took already.
    taken: Taken,
    /// Turns at being sent transactions.
    providing: Turns,
    /// What approved jobs hold, in bytes.
    room: Room,
    board: BoardHandle,
    metrics: Arc<Metrics>,
}

/// What declared jobs are measured by and written down with; the same for those of `custom`.
#[derive(Debug, Clone)]
pub struct Bookkeeping {
    /// For the subsidy.
    pub network: Network,
    /// Of this pool process.
    pub node_id: u16,
    /// Whom a coinbase has to pay.
    pub rule: Arc<Rule>,
}

impl Bookkeeping {
    /// What may be known of the block that is to be found now.
    #[must_use]
    pub fn context(&self, published: &Published) -> Context<'_> {
        let height = published.active.job.template().height;
        Context {
            height,
            tip: published.active.tip,
            subsidy_sats: subsidy_sats(height, self.network),
            rule: &self.rule,
        }
    }

    /// What lasts of a job, and what it is worth beside the pool's own.
    pub fn record(
        &self,
        job: &DeclaredJob,
        account: &str,
        mode: DeclareMode,
        published: &Published,
    ) -> Result<DeclaredRecord, getrandom::Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let reference_fees_sats = published.reference_fees_sats(Instant::now());
        let subsidy = subsidy_sats(job.height(), self.network);
        let trust = match mode {
            DeclareMode::FullTemplate => FeeTrust::Checked,
            // Nobody knows what they are, so they earn nothing.
            DeclareMode::CoinbaseOnly => FeeTrust::Ignored,
        };
        let mined: &Job = job.job();
        let coinbase = mined.coinbase();
        Ok(DeclaredRecord {
            id: DeclaredId(id),
            node: self.node_id,
            declared_at_ms: unix_ms(),
            account: account.to_owned(),
            mode,
            height: job.height(),
            prev_hash: *job.prev_hash(),
            nbits: published.active.tip.nbits,
            version: mined.version(),
            coinbase_prefix: coinbase.prefix,
            coinbase_suffix: coinbase.suffix,
            merkle_path: mined.merkle_path().to_vec(),
            transactions: job.body().map(|body| body.transactions().len() as u32),
            value_sats: job.value_sats(),
            pool_sats: job.pool_sats(),
            fees_sats: job.fees_sats(),
            reference_fees_sats,
            factor_ppm: factor_ppm(subsidy, job.pool_sats(), reference_fees_sats, trust),
        })
    }
}

/// Who declares.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    /// His connection.
    pub connection: u64,
    /// Whose turns he takes.
    pub household: IpAddr,
}

/// What a check comes to, for the declarer's task.
pub struct Checked {
    /// Of the declaration.
    pub request_id: u32,
    /// For the server.
    pub outcome: CheckOutcome,
    /// The job, if it was approved: PushSolution may be for it.
    pub approved: Option<Arc<Approved>>,
    /// A turn at being sent transactions, if some are missing: to be held until they are checked.
    pub providing: Option<Turn>,
}

impl Checked {
    /// Of a check that broke off.
    #[must_use]
    pub fn failed(request_id: u32) -> Self {
        let (refusal, details) = fault("the check failed");
        let outcome = CheckOutcome::Refused { refusal, details };
        Self { request_id, outcome, approved: None, providing: None }
    }
}

type Refused = (DeclareRefusal, String);

/// What a check learns on its way, for the history.
#[derive(Default)]
struct Findings {
    account: Option<Arc<str>>,
    transactions: usize,
    supplied: usize,
}

/// What our own check leaves.
enum Found {
    Missing(Vec<u16>),
    Sound { job: Box<DeclaredJob>, supplied: Vec<Transaction> },
}

impl Checks {
    /// Turns for as many checks as there are cores.
    #[must_use]
    pub fn new(
        node: Arc<dyn Node>,
        book: Bookkeeping,
        templates: watch::Receiver<Published>,
        tokens: TokensHandle,
        library: LibraryHandle,
        board: BoardHandle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).max(CHECKS_MIN);
        Self {
            node,
            book,
            templates,
            tokens,
            library,
            cores: Turns::new(cores, cores - 1),
            verdicts: Turns::new(NODE_CHECKS_MAX, NODE_CHECKS_MAX - 1),
            verdict_ended: Arc::default(),
            taken: Taken::default(),
            providing: Turns::new(PROVIDING_MAX, PROVIDING_PER_HOUSEHOLD_MAX),
            room: Room::new(APPROVED_LEN_MAX, APPROVED_LEN_PER_HOUSEHOLD_MAX),
            board,
            metrics,
        }
    }

    /// What approved jobs pay to, with values of 0: what a declarer is given to fill.
    #[must_use]
    pub fn outputs(&self) -> Arc<[u8]> {
        self.book.rule.zero_value_outputs().into()
    }

    /// Whoever declares is in the library as long as he is here.
    pub async fn enter(&self) -> Reader {
        self.library.enter().await
    }

    /// A fresh token; `None` if there is none now.
    pub async fn allocate(&self, who: Who, account: Arc<str>) -> Option<MiningJobToken> {
        let token = self.tokens.allocate(who.household, account).await;
        token.inspect_err(|why| debug!(connection = who.connection, %why, "no token")).ok()
    }

    /// Checks a declaration.
    pub async fn check(&self, who: Who, declaration: Box<Declaration>) -> Checked {
        let began = Instant::now();
        let request_id = declaration.request_id;
        let mut findings = Findings {
            account: None,
            transactions: declaration.wtxids.len(),
            supplied: declaration.supplied.len(),
        };
        let token = declaration.token;
        let outcome = match self.judge(who, declaration, &mut findings).await {
            Ok(Judged::Missing { positions, declaration, providing }) => {
                let outcome = CheckOutcome::Missing { positions, declaration };
                return Checked { request_id, outcome, approved: None, providing: Some(providing) };
            }
            Ok(Judged::Sound(approved)) => self.approve(token, approved).await,
            Err(refused) => Err(refused),
        };
        self.note(who, began, findings, &outcome);
        let (outcome, approved) = match outcome {
            Ok((token, approved)) => (CheckOutcome::Approved(token), Some(approved)),
            Err((refusal, details)) => (CheckOutcome::Refused { refusal, details }, None),
        };
        Checked { request_id, outcome, approved, providing: None }
    }

    async fn judge(
        &self,
        who: Who,
        declaration: Box<Declaration>,
        findings: &mut Findings,
    ) -> Result<Judged, Refused> {
        let account = self.tokens.account_of(declaration.token).await.map_err(no_token)?;
        findings.account = Some(Arc::clone(&account));
        // What a declaration is given to hold while it is checked, few have at once.
        let mut turn = self.cores.take(who.household).await;
        let looked_up = self.library.look_up(declaration).await;
        let (mut declaration, mut known) = looked_up.ok_or_else(going_down)?;
        let mut ahead_until = None;
        let (published, found) = loop {
            let published = self.templates.borrow().clone();
            let checked =
                self.check_apart(who, turn, declaration, known, published.clone()).await?;
            (declaration, known) = (checked.declaration, checked.known);
            match checked.found {
                Ok(found) => break (published, found),
                // The miner's node has heard of a block that ours has not: it will in a moment.
                Err(Refusal::OtherHeight { found, expected }) if found == expected + 1 => {
                    let until = *ahead_until.get_or_insert(Instant::now() + AHEAD_WAIT_MAX);
                    if !self.tip_moves(&published.active.tip, until).await {
                        return Err(refused(&Refusal::OtherHeight { found, expected }));
                    }
                    turn = self.cores.take(who.household).await;
                }
                Err(refusal) => return Err(refused(&refusal)),
            }
        };
        let (job, supplied) = match found {
            Found::Missing(positions) => {
                return self.ask_for(who, positions, declaration).await;
            }
            Found::Sound { job, supplied } => (job, supplied),
        };
        self.ask_node(who, job, supplied, known.loose, &account, &published).await
    }

    /// Transactions are up to a block of 4 MB, so that few are sent at once.
    async fn ask_for(
        &self,
        who: Who,
        positions: Vec<u16>,
        declaration: Box<Declaration>,
    ) -> Result<Judged, Refused> {
        if declaration.was_asked {
            let details = format!("{} transactions are unknown", positions.len());
            return Err((DeclareRefusal::MissingTransactions, details));
        }
        let turn = timeout(PROVIDING_WAIT_MAX, self.providing.take(who.household)).await;
        let providing = turn.map_err(|_| {
            let details = "too many declarations wait for transactions".to_owned();
            (DeclareRefusal::TooMany, details)
        })?;
        Ok(Judged::Missing { positions, declaration, providing })
    }

    /// Our own check, on a thread where it holds up nobody. It keeps its turn until it is through, also
    /// when its declarer is gone.
    async fn check_apart(
        &self,
        who: Who,
        turn: Turn,
        declaration: Box<Declaration>,
        known: Known,
        published: Published,
    ) -> Result<CheckedApart, Refused> {
        let book = self.book.clone();
        let metrics = Arc::clone(&self.metrics);
        let apart = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let began = Instant::now();
            let by_wtxid = |wtxid: &[u8; 32]| known.by_wtxid.get(wtxid).cloned();
            let same = |id: &[u8; 32]| known.same.clone().filter(|same| same.id() == id);
            let checked = check(&declaration, &book.context(&published), &by_wtxid, &same);
            metrics.declaration_checked(began.elapsed().as_secs_f64());
            let found = checked.map(|outcome| match outcome {
                Outcome::Missing(positions) => Found::Missing(positions),
                Outcome::Sound { job, supplied } => Found::Sound { job, supplied },
            });
            CheckedApart { declaration, known, found }
        });
        apart.await.map_err(|panic| {
            error!(%panic, connection = who.connection, "the check of a declaration failed");
            (DeclareRefusal::Internal, "the check failed".to_owned())
        })
    }

    /// Whether our node comes to another tip in time.
    async fn tip_moves(&self, from: &PrevHash, until: Instant) -> bool {
        let mut templates = self.templates.clone();
        let moved = templates.wait_for(|published| !published.active.tip.is_same_tip(from));
        matches!(tokio::time::timeout_at(until, moved).await, Ok(Ok(_)))
    }

    /// The node's verdict on the whole block, and what is to be written down of a job that it takes.
    async fn ask_node(
        &self,
        who: Who,
        job: Box<DeclaredJob>,
        supplied: Vec<Transaction>,
        loose: Arc<[Loose]>,
        account: &str,
        published: &Published,
    ) -> Result<Judged, Refused> {
        let room = self.room_for(who, &job, &supplied, &loose).ok_or_else(|| {
            let details = "the jobs that this address has approved hold too much".to_owned();
            (DeclareRefusal::TooMany, details)
        })?;
        let tip = published.active.tip;
        let mut job = match self.taken.covers(&tip, &job) {
            true => job,
            false => self.verdict(who, job, tip).await?,
        };
        if !self.templates.borrow().active.tip.is_same_tip(&tip) {
            return Err(stale("the tip moved"));
        }
        let record = self.book.record(&job, account, DeclareMode::FullTemplate, published);
        let record = record.map_err(|error| {
            error!(%error, "the system has no randomness for a job's name");
            fault("no name for the job")
        })?;
        if let Some(body) = job.body().cloned() {
            let loose = with_supplied(&loose, &supplied);
            let kept = self.library.keep(body, supplied, loose).await.ok_or_else(going_down)?;
            job.share(kept);
        }
        let approved = Approved { job: *job, record: Arc::new(record), room };
        self.metrics.approved_hold(self.room.taken());
        Ok(Judged::Sound(Box::new(approved)))
    }

    /// What an approved job holds: its coinbase, what was supplied for it and the names of what it may share
    /// are its own; its list of transactions, and those of the known that no template of ours has, are
    /// charged once.
    fn room_for(
        &self,
        who: Who,
        job: &DeclaredJob,
        supplied: &[Transaction],
        loose: &[Loose],
    ) -> Option<Held> {
        let coinbase = job.job().coinbase();
        let alone = 1_024
            + 2 * (coinbase.prefix.len() + coinbase.suffix.len())
            + (loose.len() + 1) * size_of::<Name>()
            + supplied.iter().map(|one| one.bytes().len() + THING_OVERHEAD).sum::<usize>();
        let list = job.body().map(|body| {
            // Where it lies, and that the library keeps which of it is loose.
            let each = size_of::<Arc<[u8]>>() + size_of::<Loose>();
            (*body.id(), body.transactions().len() * each)
        });
        let things: Vec<_> = loose.iter().copied().chain(list).collect();
        self.room.take(who.household, alone, &things)
    }

    /// The job back, if the node would take its block.
    async fn verdict(
        &self,
        who: Who,
        job: Box<DeclaredJob>,
        tip: PrevHash,
    ) -> Result<Box<DeclaredJob>, Refused> {
        let turn = self.verdicts.take_within(who.household, NODE_CHECK_DEADLINE).await;
        let turn = turn.ok_or_else(|| {
            let details = "too many declarations wait for the node".to_owned();
            (DeclareRefusal::TooMany, details)
        })?;
        // While others had their turns one may have been told of the same transactions.
        if self.taken.covers(&tip, &job) {
            return Ok(job);
        }
        let built = tokio::task::spawn_blocking(move || {
            let proposal = job.proposal(&tip);
            (job, proposal)
        });
        let (job, proposal) = built.await.map_err(|_| fault("the block was not built"))?;
        let proposal = proposal.ok_or_else(|| fault("the block was not built"))?;
        // On a task of its own, with the turn: the node goes on also when its declarer is gone.
        let (node, ended) = (Arc::clone(&self.node), Arc::clone(&self.verdict_ended));
        let asked = tokio::spawn(ask_in_turn(node, proposal, turn, ended));
        let verdict = timeout(NODE_CHECK_DEADLINE, asked).await;
        let moved = !self.templates.borrow().active.tip.is_same_tip(&tip);
        let verdict = match verdict {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(panic)) => {
                error!(%panic, connection = who.connection, "asking for a verdict failed");
                return Err(fault("the check failed"));
            }
            Err(late) => Err(late),
        };
        match verdict {
            Ok(Ok(NodeSays::Valid)) => {
                self.taken.note(&tip, &job);
                Ok(job)
            }
            Ok(Ok(NodeSays::NotOnTip(why))) => Err(stale(&why)),
            // What is no block on a tip that is gone may have been one.
            Ok(Ok(NodeSays::Invalid(why))) if moved || is_of_other_coins(&why) => Err(stale(&why)),
            Ok(Ok(NodeSays::Invalid(why))) => Err((DeclareRefusal::InvalidJob, why)),
            Ok(Err(error)) => {
                warn!(node = self.node.name(), %error, "no verdict on a declared job");
                Err(fault("the node does not answer"))
            }
            Err(_) => {
                warn!(node = self.node.name(), "no verdict on a declared job in time");
                Err(fault("the node does not answer"))
            }
        }
    }

    async fn approve(
        &self,
        token: MiningJobToken,
        approved: Box<Approved>,
    ) -> Result<(MiningJobToken, Arc<Approved>), Refused> {
        let approved = Arc::from(approved);
        let new = self.tokens.approve(token, Arc::clone(&approved)).await;
        Ok((new.map_err(no_token)?, approved))
    }

    /// Says the verdict, and shows it. It is counted where it is answered, with those that had no check.
    fn note(
        &self,
        who: Who,
        began: Instant,
        findings: Findings,
        outcome: &Result<(MiningJobToken, Arc<Approved>), Refused>,
    ) {
        let Findings { account, transactions, supplied } = findings;
        let account = account.as_deref().unwrap_or_default();
        let took = began.elapsed();
        let connection = who.connection;
        let (verdict, reason, job) = match outcome {
            Ok((_, approved)) => {
                let DeclaredRecord { height, fees_sats, factor_ppm, .. } = *approved.record;
                self.metrics.job_is_worth(factor_ppm);
                debug!(
                    connection,
                    account,
                    height,
                    transactions,
                    supplied,
                    fees_sats,
                    factor_ppm,
                    ?took,
                    "job declared"
                );
                ("approved", String::new(), Some(JobRow::of(&approved.record)))
            }
            Err((refusal, why)) => {
                let code = refusal.code();
                // A tip that moves is nobody's fault, and a flood of bad ones is no news.
                debug!(
                    connection,
                    account, code, why, transactions, supplied, "declaration refused"
                );
                (code, why.clone(), None)
            }
        };
        self.metrics.declaration_judged(took.as_secs_f64());
        self.board.verdict(VerdictRow {
            at_ms: unix_ms(),
            connection,
            account: account.to_owned(),
            mode: DeclareMode::FullTemplate.as_str(),
            verdict,
            reason,
            check_ms: millis(took),
            transactions,
            supplied,
            job,
        });
    }
}

/// Asks the node for its verdict, and has the household rest if it took the node long over it. What it took is
/// counted from the last verdict on, for until then it may have been another's block that it was at.
async fn ask_in_turn(
    node: Arc<dyn Node>,
    proposal: Vec<u8>,
    mut turn: Turn,
    last_ended: Arc<Mutex<Option<Instant>>>,
) -> Result<NodeSays, NodeError> {
    let began = Instant::now();
    let verdict = node.check_block(&proposal).await;
    drop(proposal);
    let now = Instant::now();
    let mut last_ended = last_ended.lock().unwrap_or_else(PoisonError::into_inner);
    let took = now - last_ended.map_or(began, |last| last.max(began));
    let beyond = took.saturating_sub(NODE_CHECK_LONG);
    let rest = match verdict {
        Ok(_) => {
            *last_ended = Some(now);
            beyond * REST_FACTOR
        }
        // It may be at the block still, or away, which is nobody's doing and mostly known at once.
        Err(_) => beyond * REST_FACTOR_UNKNOWN,
    };
    if !rest.is_zero() {
        turn.rest();
        tokio::spawn(async move {
            sleep(rest).await;
            drop(turn);
        });
    }
    verdict
}

/// What `judge` leaves to be done.
enum Judged {
    Missing { positions: Vec<u16>, declaration: Box<Declaration>, providing: Turn },
    Sound(Box<Approved>),
}

struct CheckedApart {
    declaration: Box<Declaration>,
    known: Known,
    found: Result<Found, Refusal>,
}

/// What the node found valid on the present tip. Whoever declares the same transactions with a coinbase that
/// takes no more is not asked for again: our own check has judged all of a coinbase that does not depend on
/// the coins that are spent.
#[derive(Default)]
struct Taken(Mutex<TakenOnTip>);

#[derive(Default)]
struct TakenOnTip {
    tip: Option<PrevHash>,
    by_body: HashMap<[u8; 32], Demand>,
}

/// What a block asks of the chain beyond its transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Demand {
    version: u32,
    value_sats: u64,
    weight: u64,
    sigop_cost: u64,
}

impl Demand {
    fn of(job: &DeclaredJob) -> Self {
        Self {
            version: job.job().version(),
            value_sats: job.value_sats(),
            weight: job.weight(),
            sigop_cost: job.sigop_cost(),
        }
    }

    /// A block of these transactions that asks for this is valid if one that asks for `other` is.
    fn is_within(&self, other: &Self) -> bool {
        self.version == other.version
            && self.value_sats <= other.value_sats
            && self.weight <= other.weight
            && self.sigop_cost <= other.sigop_cost
    }
}

impl Taken {
    fn covers(&self, tip: &PrevHash, job: &DeclaredJob) -> bool {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let on_tip = taken.tip.is_some_and(|known| known.is_same_tip(tip));
        let known = job.body().and_then(|body| taken.by_body.get(body.id()));
        on_tip && known.is_some_and(|known| Demand::of(job).is_within(known))
    }

    fn note(&self, tip: &PrevHash, job: &DeclaredJob) {
        let Some(body) = job.body() else { return };
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let on_tip = taken.tip.is_some_and(|known| known.is_same_tip(tip));
        if !on_tip || taken.by_body.len() >= TAKEN_BODIES_MAX {
            *taken = TakenOnTip { tip: Some(*tip), by_body: HashMap::new() };
        }
        taken.by_body.insert(*body.id(), Demand::of(job));
    }
}

fn fault(why: &str) -> Refused {
    (DeclareRefusal::Internal, why.to_owned())
}

/// What only declarations hold of a job's transactions, once it is kept.
fn with_supplied(loose: &Arc<[Loose]>, supplied: &[Transaction]) -> Arc<[Loose]> {
    if supplied.is_empty() {
        return Arc::clone(loose);
    }
    let supplied = supplied.iter().map(|new| (*new.wtxid(), new.bytes().len()));
    // What was supplied was not known when it was looked for, or is named by both and counts once.
    let known: HashSet<_> = loose.iter().map(|(wtxid, _)| wtxid).collect();
    let new = supplied.filter(|(wtxid, _)| !known.contains(wtxid));
    loose.iter().copied().chain(new).collect()
}

fn refused(refusal: &Refusal) -> Refused {
    (refusal.declare(), refusal.to_string())
}

/// On a fork of one block the miner's node has coins that ours has not. A job that spends one twice looks
/// the same; told of a stale tip, its miner loses no more than this job.
fn is_of_other_coins(why: &str) -> bool {
    why.starts_with("bad-txns-inputs-missingorspent")
}

fn stale(why: &str) -> Refused {
    (DeclareRefusal::StaleChainTip, why.to_owned())
}

fn going_down() -> Refused {
    (DeclareRefusal::Internal, "the pool is going down".to_owned())
}

fn no_token(why: NoToken) -> Refused {
    match why {
        NoToken::Refused(refusal) => match refusal {
            TokenRefusal::Unknown | TokenRefusal::OfAnother | TokenRefusal::Declared => {
                (DeclareRefusal::InvalidToken, why.to_string())
            }
            TokenRefusal::TooOften | TokenRefusal::Full => {
                (DeclareRefusal::TooMany, why.to_string())
            }
        },
        NoToken::TooFast => (DeclareRefusal::TooMany, why.to_string()),
        NoToken::Fault => (DeclareRefusal::Internal, why.to_string()),
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_stands_for_blocks_that_ask_for_no_more() {
        let taken =
            Demand { version: 0x2000_0000, value_sats: 5_000, weight: 1_000, sigop_cost: 4 };
        assert!(taken.is_within(&taken));
        let less = Demand { value_sats: 1, weight: 900, sigop_cost: 0, ..taken };
        assert!(less.is_within(&taken));
        for more in [
            Demand { version: 0x2000_0002, ..taken },
            Demand { value_sats: 5_001, ..taken },
            Demand { weight: 1_001, ..taken },
            Demand { sigop_cost: 5, ..taken },
        ] {
            assert!(!more.is_within(&taken), "{more:?}");
        }
    }
}
