//! Custom jobs on the mining port: what SetCustomMiningJob asks for is held against its token, our tip and
//! the pool's rule. `Judge` is the pool's, one for all; `CustomJobs` is what one connection that selects
//! its own work has of them. Called by `miner`.
//!
//! Must never use a token up before its job is mined, nor promise a job on another tip than ours.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use job_declarator::clock::unix_s;
use job_declarator::declared::{Refusal, coinbase_only};
use proto::limits::{NTIME_AHEAD_MAX_S, PAST_JOBS_MAX};
use proto::mining::server::CustomAccepted;
use proto::mining::{
    ChannelId, CreditBatch, CustomJob, CustomJobRequest, CustomRefusal, CustomRefused, DeclaredId,
    Worth,
};
use proto::template::PrevHash;
use proto::token::{MiningJobToken, Promise, TokenRefusal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use crate::board::{BoardHandle, CustomJobsSnapshot, History, JobRow, RefusalRow, VerdictRow};
use crate::checks::{Approved, Bookkeeping, unix_ms};
use crate::limits::{AHEAD_WAIT_MAX, CUSTOM_JOBS_KEPT, CUSTOM_PENDING_MAX, CUSTOM_TIPS_KEPT};
use crate::metrics::Metrics;
use crate::store::{DeclareMode, DeclaredRecord};
use crate::templates::Published;
use crate::tokens::{NoToken, TokensHandle};

/// Judges custom jobs.
pub struct Judge {
    /// Whom they have to pay.
    pub book: Bookkeeping,
    /// Whose they are.
    pub tokens: TokensHandle,
    /// What is mined.
    pub templates: watch::Receiver<Published>,
    /// Jobs whose transactions their miner keeps to himself are taken, too.
    pub coinbase_only: bool,
    /// Where verdicts are shown.
    pub board: BoardHandle,
}

/// A job that may be mined, with what lasts of it.
#[derive(Debug, Clone)]
struct Mined {
    record: Arc<DeclaredRecord>,
    /// That it was set for; a group stands for all of its channels.
    channel: ChannelId,
    /// Keeps its room as long as a share may name it.
    approved: Option<Arc<Approved>>,
}

/// What the judge says of one request.
pub struct Verdict {
    /// The request's.
    pub channel: ChannelId,
    /// The request's.
    pub request_id: u32,
    /// For the server.
    pub verdict: Result<Box<CustomJob>, (CustomRefusal, String)>,
    mined: Option<Mined>,
}

impl Judge {
    async fn judge(
        &self,
        household: IpAddr,
        connection: u64,
        request: &CustomJobRequest,
    ) -> Verdict {
        let judged = self.promised(household, connection, request).await;
        let (channel, request_id) = (request.channel, request.request_id);
        match judged {
            Ok((job, mined)) => {
                let verdict = Ok(Box::new(job));
                Verdict { channel, request_id, verdict, mined: Some(mined) }
            }
            Err(refused) => Verdict { channel, request_id, verdict: Err(refused), mined: None },
        }
    }

    async fn promised(
        &self,
        household: IpAddr,
        connection: u64,
        request: &CustomJobRequest,
    ) -> Result<(CustomJob, Mined), (CustomRefusal, String)> {
        let account = Arc::clone(&request.account);
        let promise = self.tokens.promised(household, request.token, account).await;
        let promise = promise.map_err(no_token)?;
        let undeclared = matches!(promise, Promise::Undeclared);
        if undeclared && !self.coinbase_only {
            let why = "the token has no declared job; this pool asks for full templates";
            return Err((CustomRefusal::NotYetValidated, why.to_owned()));
        }
        // A declared job was on our tip when it was approved: on another it is late, not early.
        let published = match &promise {
            Promise::Declared(_) => self.templates.borrow().clone(),
            Promise::Undeclared => self.on_tip_of(request).await,
        };
        // From what consensus asks to what our clock allows.
        let ntime = published.earliest_ntime..=unix_s().saturating_add(NTIME_AHEAD_MAX_S);
        match promise {
            Promise::Declared(approved) => declared(approved, request, &published, &ntime),
            Promise::Undeclared => self.undeclared(connection, request, &published, &ntime),
        }
    }

    /// What is mined, once it is on the request's tip; waits a moment for a node that is behind the
    /// miner's.
    async fn on_tip_of(&self, request: &CustomJobRequest) -> Published {
        let mut templates = self.templates.clone();
        let until = Instant::now() + AHEAD_WAIT_MAX;
        let arrived =
            templates.wait_for(|published| published.active.tip.hash == request.prev_hash);
        if let Ok(Ok(published)) = timeout_at(until, arrived).await {
            return published.clone();
        }
        self.templates.borrow().clone()
    }

    /// A job that was never declared, whose transactions nobody here knows.
    fn undeclared(
        &self,
        connection: u64,
        request: &CustomJobRequest,
        published: &Published,
        ntime: &RangeInclusive<u32>,
    ) -> Result<(CustomJob, Mined), (CustomRefusal, String)> {
        let began = Instant::now();
        let mode = DeclareMode::CoinbaseOnly;
        let judged = coinbase_only(request, &self.book.context(published), ntime)
            .map_err(|refusal| refused(&refusal))
            .and_then(|job| {
                let record = self.book.record(&job, &request.account, mode, published);
                let record = record.map_err(|error| {
                    error!(%error, "the system has no randomness for a job's name");
                    (CustomRefusal::Internal, "no name for the job".to_owned())
                })?;
                Ok((job, record))
            });
        let row = VerdictRow {
            at_ms: unix_ms(),
            connection,
            account: request.account.to_string(),
            mode: mode.as_str(),
            verdict: judged.as_ref().map_or_else(|(refusal, _)| refusal.code(), |_| "approved"),
            reason: judged.as_ref().err().map(|(_, why)| why.clone()).unwrap_or_default(),
            check_ms: began.elapsed().as_millis() as u64,
            transactions: 0,
            supplied: 0,
            job: judged.as_ref().ok().map(|(_, record)| JobRow::of(record)),
        };
        self.board.verdict(row);
        let (job, record) = judged?;
        let worth = Worth { declared: Some(record.id), factor_ppm: record.factor_ppm };
        let tip = PrevHash { min_ntime: request.min_ntime, ..published.active.tip };
        let mined = Mined { record: Arc::new(record), channel: request.channel, approved: None };
        Ok((CustomJob { job: job.job().clone(), tip, worth }, mined))
    }
}

/// A job that was declared: the request must ask for that one.
fn declared(
    approved: Arc<Approved>,
    request: &CustomJobRequest,
    published: &Published,
    ntime: &RangeInclusive<u32>,
) -> Result<(CustomJob, Mined), (CustomRefusal, String)> {
    let tip = published.active.tip;
    let job = approved.job.custom_job(request, &tip, ntime).map_err(|refusal| refused(&refusal))?;
    let tip = PrevHash { min_ntime: request.min_ntime, ..tip };
    let worth = approved.worth();
    let record = Arc::clone(&approved.record);
    let mined = Mined { record, channel: request.channel, approved: Some(approved) };
    Ok((CustomJob { job, tip, worth }, mined))
}

fn refused(refusal: &Refusal) -> (CustomRefusal, String) {
    (refusal.custom(), refusal.to_string())
}

fn no_token(why: NoToken) -> (CustomRefusal, String) {
    let refusal = match why {
        NoToken::Refused(refusal) => match refusal {
            TokenRefusal::Unknown | TokenRefusal::OfAnother | TokenRefusal::Declared => {
                CustomRefusal::InvalidToken
            }
            TokenRefusal::TooOften | TokenRefusal::Full => CustomRefusal::TooManyJobs,
        },
        NoToken::TooFast => CustomRefusal::TooManyJobs,
        NoToken::Fault => CustomRefusal::Internal,
    };
    (refusal, why.to_string())
}

/// What lasts of jobs whose verdicts the server has and did not speak of yet, by request. Of one whose
/// channels are closed it never speaks.
struct Pending<T>(Vec<((ChannelId, u32), T)>);

impl<T> Pending<T> {
    /// What was there of the same request gives way: no number waits twice, so its verdict was passed over,
    /// and the credit of this job would go to that one.
    fn put(&mut self, of: (ChannelId, u32), job: T) {
        self.0.retain(|(known, _)| *known != of);
        if self.0.len() >= CUSTOM_PENDING_MAX {
            self.0.remove(0);
        }
        self.0.push((of, job));
    }

    fn take(&mut self, of: (ChannelId, u32)) -> Option<T> {
        let at = self.0.iter().position(|(known, _)| *known == of)?;
        Some(self.0.remove(at).1)
    }
}

/// The jobs that shares come of or may still be on their way to the ledger of.
#[derive(Default)]
struct MinedJobs {
    /// By tip, the newest last.
    tips: VecDeque<OnTip>,
    /// Of tips before those, what the open batch has shares of: a store that is away may be so for hours.
    owed: Vec<Arc<DeclaredRecord>>,
}

struct OnTip {
    prev_hash: [u8; 32],
    /// Their records; the jobs themselves only while a share may name them.
    jobs: VecDeque<Mined>,
}

impl MinedJobs {
    /// Jobs of tips that are long gone go, with what they hold. Of those that shares of the open batch are
    /// of (`Server::open_declared`) the records stay.
    fn follow(&mut self, prev_hash: [u8; 32], open: impl Iterator<Item = DeclaredId>) {
        self.newest(prev_hash);
        let surplus = self.tips.len().saturating_sub(CUSTOM_TIPS_KEPT);
        if surplus == 0 && self.owed.is_empty() {
            return;
        }
        let open: HashSet<_> = open.collect();
        let gone = self.tips.drain(..surplus).flat_map(|tip| tip.jobs).map(|job| job.record);
        let owed = std::mem::take(&mut self.owed).into_iter().chain(gone);
        self.owed = owed.filter(|job| open.contains(&job.id)).collect();
    }

    /// The jobs of this tip, which is the newest.
    fn newest(&mut self, prev_hash: [u8; 32]) -> Option<&mut OnTip> {
        if self.tips.back().is_none_or(|newest| newest.prev_hash != prev_hash) {
            self.tips.push_back(OnTip { prev_hash, jobs: VecDeque::new() });
        }
        self.tips.back_mut()
    }

    fn keep(&mut self, mined: Mined, mut open: impl Iterator<Item = DeclaredId>) {
        self.let_go(mined.channel);
        // It may be of a tip that this connection is to hear of; `follow` bounds how many there are.
        let Some(tip) = self.newest(mined.record.prev_hash) else { return };
        tip.jobs.push_back(mined);
        if tip.jobs.len() > CUSTOM_JOBS_KEPT {
            let oldest = tip.jobs.pop_front().map(|job| job.record);
            self.owed.extend(oldest.filter(|job| open.any(|id| id == job.id)));
        }
    }

    /// Another job comes for this channel, which then knows `PAST_JOBS_MAX` beside it. Of those before only
    /// the record is of use, to the ledger.
    fn let_go(&mut self, channel: ChannelId) {
        let newest_first = self.tips.iter_mut().rev().flat_map(|tip| tip.jobs.iter_mut().rev());
        let of_channel = newest_first.filter(|job| job.channel == channel);
        of_channel.skip(PAST_JOBS_MAX).for_each(|job| job.approved = None);
    }

    fn record(&self, id: DeclaredId) -> Option<Arc<DeclaredRecord>> {
        let jobs = self.tips.iter().rev().flat_map(|tip| tip.jobs.iter().rev());
        let mut records = jobs.map(|job| &job.record).chain(&self.owed);
        records.find(|record| record.id == id).map(Arc::clone)
    }
}

/// One connection's custom jobs: requests that are judged, jobs that shares may come of, and what was
/// refused.
pub struct CustomJobs {
    judge: Arc<Judge>,
    household: IpAddr,
    connection: u64,
    asked: JoinSet<Verdict>,
    pending: Pending<Mined>,
    mined: MinedJobs,
    accepted: u64,
    history: History,
}

impl CustomJobs {
    /// None yet.
    #[must_use]
    pub fn new(judge: Arc<Judge>, household: IpAddr, connection: u64) -> Self {
        Self {
            judge,
            household,
            connection,
            asked: JoinSet::new(),
            pending: Pending(Vec::new()),
            mined: MinedJobs::default(),
            accepted: 0,
            history: History::default(),
        }
    }

    /// Has a request judged; the server bounds how many there are at once.
    pub fn ask(&mut self, request: Box<CustomJobRequest>) {
        let (judge, household) = (Arc::clone(&self.judge), self.household);
        let connection = self.connection;
        let (channel, request_id) = (request.channel, request.request_id);
        self.asked.spawn(async move {
            let judged = async move { judge.judge(household, connection, &request).await };
            AbortOnDropHandle::new(tokio::spawn(judged)).await.unwrap_or_else(|panic| {
                error!(%panic, connection, "a custom job was not judged");
                let verdict = Err((CustomRefusal::Internal, "the judge failed".to_owned()));
                Verdict { channel, request_id, verdict, mined: None }
            })
        });
    }

    /// The next verdict; none, while none is due.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Verdict> {
        loop {
            match ready!(self.asked.poll_join_next(context)) {
                None => return Poll::Pending,
                Some(Ok(verdict)) => return Poll::Ready(verdict),
                // It has nothing in it that could.
                Some(Err(panic)) => {
                    error!(%panic, connection = self.connection, "a task that asks a judge failed");
                }
            }
        }
    }

    /// What the server is to be told; what lasts of the job stays here until it says what it did.
    pub fn take(&mut self, verdict: &mut Verdict) {
        if let Some(mined) = verdict.mined.take() {
            self.pending.put((verdict.channel, verdict.request_id), mined);
        }
    }

    /// Shares of a job may come from now on: its token is used up. `open` as in `follow`.
    pub fn accepted(
        &mut self,
        accepted: &CustomAccepted,
        open: impl Iterator<Item = DeclaredId>,
        metrics: &Metrics,
    ) -> MiningJobToken {
        self.accepted += 1;
        metrics.custom_job_answered("accepted");
        let mined = self.pending.take((accepted.channel, accepted.request_id));
        if let Some(mined) = mined {
            let DeclaredRecord { height, factor_ppm, mode, .. } = *mined.record;
            let (connection, job) = (self.connection, accepted.job_id.0);
            let mode = mode.as_str();
            debug!(connection, job, height, mode, factor_ppm, "custom job");
            self.mined.keep(mined, open);
        }
        accepted.token
    }

    /// Takes the token of an accepted job out of the book.
    pub async fn use_up(&self, token: MiningJobToken) {
        self.judge.tokens.use_up(token).await;
    }

    /// A job was told no.
    pub fn refused(&mut self, refused: CustomRefused) {
        drop(self.pending.take((refused.channel, refused.request_id)));
        let CustomRefused { refusal, reason, .. } = refused;
        let row = RefusalRow { at: unix_s().into(), code: refusal.code(), reason };
        self.history.refused(row);
    }

    /// Everybody mines on this tip now. `open` are the jobs that shares of the open batch are of
    /// (`Server::open_declared`).
    pub fn follow(&mut self, prev_hash: [u8; 32], open: impl Iterator<Item = DeclaredId>) {
        self.mined.follow(prev_hash, open);
    }

    /// What lasts of a job.
    #[must_use]
    pub fn record(&self, id: DeclaredId) -> Option<Arc<DeclaredRecord>> {
        self.mined.record(id)
    }

    /// The declared jobs that a batch has shares of.
    #[must_use]
    pub fn records_of(&self, batch: &CreditBatch) -> Vec<Arc<DeclaredRecord>> {
        let mut ids: Vec<_> =
            batch.groups.iter().filter_map(|group| group.worth.declared).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.record(id)).collect()
    }

    /// For the connection's row.
    #[must_use]
    pub fn shown(&self) -> CustomJobsSnapshot {
        let (refused, refusals) = self.history.shown();
        CustomJobsSnapshot { accepted: self.accepted, refused, refusals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_was_never_spoken_of_has_no_part_in_the_next_of_its_number() {
        let (group, other) = (ChannelId(1), ChannelId(2));
        let mut pending = Pending(Vec::new());
        // The channels closed before the verdict came: nothing is said of the first.
        pending.put((group, 7), "first");
        pending.put((other, 7), "of another channel");
        pending.put((group, 7), "second");
        assert_eq!(pending.take((group, 7)), Some("second"));
        assert_eq!(pending.take((group, 7)), None);
        assert_eq!(pending.take((other, 7)), Some("of another channel"));
    }

    #[test]
    fn as_many_jobs_wait_to_be_spoken_of_as_are_judged_and_the_oldest_gives_way() {
        let mut pending = Pending(Vec::new());
        for number in 0..=CUSTOM_PENDING_MAX as u32 {
            pending.put((ChannelId(1), number), number);
        }
        assert_eq!(pending.take((ChannelId(1), 0)), None);
        assert_eq!(pending.take((ChannelId(1), 1)), Some(1));
        let newest = CUSTOM_PENDING_MAX as u32;
        assert_eq!(pending.take((ChannelId(1), newest)), Some(newest));
    }

    fn mined(number: u8, tip: u8) -> Mined {
        let record = DeclaredRecord {
            id: DeclaredId([number; 16]),
            node: 1,
            declared_at_ms: 0,
            account: "alice".into(),
            mode: DeclareMode::CoinbaseOnly,
            height: 1,
            prev_hash: [tip; 32],
            nbits: 0,
            version: 0,
            coinbase_prefix: vec![],
            coinbase_suffix: vec![],
            merkle_path: vec![],
            transactions: None,
            value_sats: 0,
            pool_sats: 0,
            fees_sats: 0,
            reference_fees_sats: 0,
            factor_ppm: 1,
        };
        Mined { record: Arc::new(record), channel: ChannelId(2), approved: None }
    }

    #[test]
    fn a_job_is_remembered_until_its_last_share_has_gone_to_the_ledger_however_many_tips_later() {
        let id = |number: u8| DeclaredId([number; 16]);
        let mut jobs = MinedJobs::default();
        jobs.keep(mined(1, 1), std::iter::empty());
        jobs.keep(mined(2, 1), std::iter::empty());
        for tip in 2..20 {
            // The store is away: the open batch grows, and has shares of the first job.
            jobs.follow([tip; 32], [id(1), id(1)].into_iter());
            let is_recent = usize::from(tip) <= CUSTOM_TIPS_KEPT;
            assert_eq!(
                (jobs.record(id(1)).is_some(), jobs.record(id(2)).is_some()),
                (true, is_recent)
            );
            assert!(jobs.tips.len() <= CUSTOM_TIPS_KEPT);
        }
        jobs.follow([20; 32], std::iter::empty());
        assert!(jobs.record(id(1)).is_none() && jobs.owed.is_empty());
    }

    #[test]
    fn a_job_for_a_tip_that_the_connection_is_to_hear_of_counts_among_the_tips() {
        let mut jobs = MinedJobs::default();
        for tip in 1..20 {
            jobs.keep(mined(tip, tip), std::iter::empty());
            jobs.follow([tip; 32], std::iter::empty());
            assert!(jobs.tips.len() <= CUSTOM_TIPS_KEPT);
            assert!(jobs.record(DeclaredId([tip; 16])).is_some());
        }
    }
}
