//! What is mined now: asks the node for templates, makes one job of each for the whole pool, and
//! publishes both to every connection at once. Started by `run`; the one owner of the node's templates.
//!
//! Of each tip it knows the most that templates had in fees, by which declared jobs are measured.
//!
//! Must never stop miners because a node is away: the last work stays published until there is newer.

use std::collections::VecDeque;
use std::sync::{Arc, Once};
use std::time::Duration;

use bitcoin::Network;
use job_declarator::node::{Node, NodeError, NodeTemplate, TemplateMark, subsidy_sats};
use proto::job::{ActiveTemplate, Job};
use proto::template::{CoinbaseError, Output, Template, TemplateId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::NodeView;
use crate::limits::{
    HEAD_START_MAX, NODE_RETRY_FIRST, NODE_RETRY_MAX, NODE_SIGN_OF_LIFE_EVERY, REFERENCE_FEES_SPAN,
    REFERENCE_TEMPLATES_MAX, TOLD_EACH,
};
use crate::metrics::Metrics;

/// Work as every connection sees it.
#[derive(Debug, Clone)]
pub struct Published {
    /// What to mine.
    pub active: Arc<ActiveTemplate>,
    /// When its tip was first published.
    pub tip_at: Instant,
    /// The earliest time that a block on the tip may have, unix seconds.
    pub earliest_ntime: u32,
    /// Fees of our templates of this tip, from which `reference_fees_sats` takes the most.
    fees: Arc<Fees>,
}

impl Published {
    /// The most that our templates of this tip had in fees in the last minute: what a declared job is
    /// measured by.
    #[must_use]
    pub fn reference_fees_sats(&self, now: Instant) -> u64 {
        self.fees.most(now)
    }
}

/// Fees of the templates of one tip, the newest last: which was the best, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Fees {
    /// Sats, and when the template came. One counts from then until `REFERENCE_FEES_SPAN` after the next.
    templates: VecDeque<(u64, Instant)>,
}

impl Fees {
    fn of(sats: u64, now: Instant) -> Self {
        Self { templates: VecDeque::from([(sats, now)]) }
    }

    /// The same with one more, and without those that do not count any longer.
    fn with(&self, sats: u64, now: Instant) -> Self {
        let mut templates = self.templates.clone();
        // The newest of those that were replaced by then was still shown within the span.
        while templates.get(1).is_some_and(|(_, next)| now - *next > REFERENCE_FEES_SPAN) {
            templates.pop_front();
        }
        if templates.len() >= REFERENCE_TEMPLATES_MAX
            && let Some((oldest, _)) = templates.pop_front()
            && let Some((next, _)) = templates.front_mut()
        {
            *next = oldest.max(*next);
        }
        templates.push_back((sats, now));
        Self { templates }
    }

    fn most(&self, now: Instant) -> u64 {
        let replaced = self.templates.iter().skip(1).map(|(_, at)| Some(*at)).chain([None]);
        let counts = |replaced: &Option<Instant>| {
            replaced.is_none_or(|at| now.saturating_duration_since(at) <= REFERENCE_FEES_SPAN)
        };
        let sats = self.templates.iter().zip(replaced).filter(|(_, replaced)| counts(replaced));
        sats.map(|((sats, _), _)| *sats).max().unwrap_or(0)
    }
}

/// What `Templates::spawn` gives: where to read, and the task.
pub struct Feed {
    /// The newest work; there always is one.
    pub templates: watch::Receiver<Published>,
    /// Ends with its shutdown token.
    pub task: JoinHandle<()>,
}

/// Work as connections are told of it. Both close when the pool stops.
pub struct Calls {
    /// For those with much hash rate, who are told a moment earlier.
    pub to_large: watch::Receiver<Published>,
    /// For everybody else.
    pub to_others: watch::Receiver<Published>,
}

impl Calls {
    /// For one of the large connections or one of the others.
    #[must_use]
    pub fn to(&self, is_large: bool) -> watch::Receiver<Published> {
        if is_large { self.to_large.clone() } else { self.to_others.clone() }
    }
}

/// Passes on what is published, until `stop`. The large ones are woken first, and have the time that their turns
/// take before the others are: workers take the last who was woken first, and turns from each other's
/// queues, so that the order of waking alone is none.
#[must_use]
pub fn call(mut templates: watch::Receiver<Published>, stop: CancellationToken) -> Calls {
    let first = templates.borrow_and_update().clone();
    let (large, to_large) = watch::channel(first.clone());
    let (others, to_others) = watch::channel(first);
    tokio::spawn(async move {
        while let Some(Ok(())) = stop.run_until_cancelled(templates.changed()).await {
            let newest = templates.borrow_and_update().clone();
            large.send_replace(newest.clone());
            // One receiver of each is that which others are made of.
            let first = large.receiver_count().saturating_sub(1);
            let rest = others.receiver_count().saturating_sub(1);
            if first > 0 && rest > 0 {
                sleep(head_start(first)).await;
            }
            others.send_replace(newest);
        }
    });
    Calls { to_large, to_others }
}

/// How long so many connections take to be told, at the most that anybody waits for them.
fn head_start(connections: usize) -> Duration {
    let turns = u32::try_from(connections).unwrap_or(u32::MAX);
    TOLD_EACH.saturating_mul(turns).min(HEAD_START_MAX)
}

/// The node's templates and what the pool puts into them.
pub struct Templates {
    node: Arc<dyn Node>,
    network: Network,
    payout_script: Vec<u8>,
    tag: Vec<u8>,
    metrics: Arc<Metrics>,
    mark: Option<TemplateMark>,
    view: watch::Sender<Option<NodeView>>,
    /// One warning about jobs that small devices do not take.
    said_large: Once,
}

impl Templates {
    /// Work from `node` whose whole value goes to `payout_script`, signed with `tag` in the coinbase. What
    /// the node says is shown in `view`.
    #[must_use]
    pub fn new(
        node: Arc<dyn Node>,
        network: Network,
        payout_script: Vec<u8>,
        tag: Vec<u8>,
        metrics: Arc<Metrics>,
        view: watch::Sender<Option<NodeView>>,
    ) -> Self {
        Self {
            node,
            network,
            payout_script,
            tag,
            metrics,
            mark: None,
            view,
            said_large: Once::new(),
        }
    }

    /// The first work, waiting for a node that is not ready. `None` if the pool is to stop before.
    pub async fn first(&mut self, shutdown: &CancellationToken) -> Option<Published> {
        let template = self.next(shutdown).await?;
        let active = self.work_on(&template, None)?;
        self.show(&active);
        info!(height = active.job.template().height, tip = %hex_of(&active.tip.hash), "first template");
        let (active, now) = (Arc::new(active), Instant::now());
        let fees = Arc::new(Fees::of(self.fees_sats(&template), now));
        Some(Published { active, tip_at: now, earliest_ntime: template.earliest_ntime, fees })
    }

    /// Publishes until `shutdown`.
    pub fn spawn(mut self, first: Published, shutdown: CancellationToken) -> Feed {
        let (publish, templates) = watch::channel(first);
        let task = tokio::spawn(async move {
            while let Some(template) = self.next(&shutdown).await {
                let before = publish.borrow().clone();
                if let Some(next) = self.follow(&before, &template) {
                    self.show(&next.active);
                    publish.send_replace(next);
                }
            }
        });
        Feed { templates, task }
    }

    /// Waits for the node to have something newer, through all its absences.
    async fn next(&mut self, shutdown: &CancellationToken) -> Option<NodeTemplate> {
        let mut pause = NODE_RETRY_FIRST;
        let mut away = false;
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return None,
                asked = self.ask() => asked,
            };
            match asked {
                Ok(template) => {
                    if away {
                        info!(node = self.node.name(), "node answers again");
                    }
                    self.metrics.node_is_up(true);
                    self.mark = Some(template.mark.clone());
                    return Some(template);
                }
                Err(error) => {
                    if !away {
                        away = true;
                        warn!(node = self.node.name(), %error, "no template; miners keep the last work");
                    }
                    self.metrics.node_is_up(false);
                    // A node that was away may be on another chain: ask for what it has now.
                    self.mark = None;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep(pause) => pause = (pause * 2).min(NODE_RETRY_MAX),
            }
        }
    }

    /// One question for a template. It may be answered after many minutes, so meanwhile the node is
    /// asked for a sign of life.
    async fn ask(&self) -> Result<NodeTemplate, NodeError> {
        let asked = self.node.next_template(self.mark.as_ref());
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => return answer,
                () = sleep(NODE_SIGN_OF_LIFE_EVERY) => {
                    let alive = self.node.chain_info().await.is_ok();
                    self.metrics.node_is_up(alive);
                    if alive {
                        self.view.send_if_modified(|view| {
                            view.as_mut().is_some_and(|view| {
                                view.answered_at = Instant::now();
                                true
                            })
                        });
                    }
                }
            }
        }
    }

    fn show(&self, active: &ActiveTemplate) {
        let template = active.job.template();
        self.metrics.height_is(template.height);
        self.view.send_replace(Some(NodeView {
            name: self.node.name(),
            network: self.network.to_string(),
            height: template.height,
            prev_hash: active.tip.hash,
            nbits: active.tip.nbits,
            coinbase_value_sats: template.coinbase_value_sats,
            transactions: template.known_transactions().len(),
            answered_at: Instant::now(),
        }));
    }

    /// What to publish after `before`; `None` if the template cannot be made work of.
    fn follow(&self, before: &Published, template: &NodeTemplate) -> Option<Published> {
        let now = Instant::now();
        let active = self.work_on(template, Some(&before.active))?;
        let new_tip = !active.tip.is_same_tip(&before.active.tip);
        if new_tip {
            info!(
                height = active.job.template().height,
                tip = %hex_of(&active.tip.hash),
                transactions = active.job.template().known_transactions().len(),
                sats = active.job.template().coinbase_value_sats,
                "new tip"
            );
        }
        let unchanged = !new_tip && active.job.is_work_of(&before.active.job);
        let sats = self.fees_sats(template);
        let fees = if new_tip { Fees::of(sats, now) } else { before.fees.with(sats, now) };
        Some(Published {
            active: if unchanged { Arc::clone(&before.active) } else { Arc::new(active) },
            tip_at: if new_tip { now } else { before.tip_at },
            earliest_ntime: template.earliest_ntime,
            fees: Arc::new(fees),
        })
    }

    /// What the template has beyond the subsidy.
    fn fees_sats(&self, template: &NodeTemplate) -> u64 {
        let Template { coinbase_value_sats, height, .. } = *template.template;
        coinbase_value_sats.saturating_sub(subsidy_sats(height, self.network))
    }

    fn work_on(
        &self,
        template: &NodeTemplate,
        before: Option<&ActiveTemplate>,
    ) -> Option<ActiveTemplate> {
        let made = || -> Result<ActiveTemplate, CoinbaseError> {
            let job = self.job(&template.template, before.map(|before| &before.job))?;
            let sent_ahead = before.and_then(|before| before.next.as_ref());
            let next = match &template.next {
                Some(next) => Some(self.job(next, sent_ahead)?),
                None => None,
            };
            Ok(ActiveTemplate { tip: template.prev_hash, job, next })
        };
        made()
            .inspect_err(
                |error| warn!(%error, "a template that no job can be made of; kept the last"),
            )
            .ok()
    }

    /// The job of a template; the one that stands already if it would be the same work, so that nobody
    /// is sent it twice.
    fn job(&self, template: &Arc<Template>, standing: Option<&Job>) -> Result<Job, CoinbaseError> {
        if let Some(standing) = standing.filter(|job| same_work(job.template(), template)) {
            return Ok(standing.clone());
        }
        let output =
            Output { sats: template.coinbase_value_sats, script: self.payout_script.clone() };
        let job = Job::new(Arc::clone(template), &[output], &self.tag)?;
        if !job.fits_every_device() {
            let bytes = job.payload_len();
            self.said_large.call_once(|| {
                warn!(
                    bytes,
                    "jobs are larger than a NerdQAxe+ or an older Bitaxe takes; they will leave"
                );
            });
        }
        Ok(job)
    }
}

/// Equal in everything but the name.
fn same_work(one: &Template, other: &Template) -> bool {
    let named = |template: &Template| Template { id: TemplateId(0), ..template.clone() };
    // The merkle path is compared first: it differs for practically every two templates, and then the
    // transactions are not copied nor walked.
    one.height == other.height && one.merkle_path == other.merkle_path && named(one) == named(other)
}

/// A hash as people read it: reversed hex.
#[must_use]
pub fn hex_of(hash: &[u8; 32]) -> String {
    let mut reversed = *hash;
    reversed.reverse();
    hex::encode(reversed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::template::{CoinbaseParts, PrevHash};
    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    /// Work on a tip that is told by this number.
    fn on_tip(tip: u8) -> Published {
        let template = Template {
            id: TemplateId(tip.into()),
            height: 1,
            version: 0x2000_0000,
            coinbase_tx_version: 2,
            script_sig_prefix: vec![1, 1],
            coinbase_sequence: 0xffff_fffe,
            coinbase_value_sats: 0,
            required_outputs: Vec::new(),
            required_outputs_count: 0,
            coinbase_locktime: 0,
            merkle_path: Vec::new(),
            transactions: None,
            commits_to_witnesses: false,
        };
        let coinbase = CoinbaseParts { prefix: Vec::new(), suffix: Vec::new() };
        let active = ActiveTemplate {
            tip: PrevHash { hash: [tip; 32], nbits: 0x207f_ffff, min_ntime: 0 },
            job: Job::from_parts(Arc::new(template), coinbase),
            next: None,
        };
        let (tip_at, fees) = (Instant::now(), Arc::default());
        Published { active: Arc::new(active), tip_at, earliest_ntime: 0, fees }
    }

    /// Says which tip it was told of, and as whom.
    async fn listen(
        mut call: watch::Receiver<Published>,
        is_large: bool,
        told: mpsc::Sender<([u8; 32], bool)>,
    ) {
        while call.changed().await.is_ok() {
            let tip = call.borrow_and_update().active.tip.hash;
            told.try_send((tip, is_large)).expect("there is room for everybody");
        }
    }

    #[tokio::test]
    async fn with_a_new_tip_every_large_one_is_told_before_any_of_the_others() {
        const TOLD: usize = 300;
        let (publish, templates) = watch::channel(on_tip(0));
        let stop = CancellationToken::new();
        let calls = call(templates, stop.clone());
        let (told, mut in_order) = mpsc::channel(TOLD);
        for at in 0..TOLD {
            // Every third, so that who began to listen first is no answer.
            let is_large = at % 3 == 2;
            tokio::spawn(listen(calls.to(is_large), is_large, told.clone()));
        }
        // The call has its first turn, and before its second all others have theirs.
        yield_now().await;
        for tip in 1..=3 {
            publish.send_replace(on_tip(tip));
            for at in 0..TOLD {
                let is_large = at < TOLD / 3;
                assert_eq!(in_order.recv().await, Some(([tip; 32], is_large)), "turn {at}");
            }
        }
        stop.cancel();
    }

    #[test]
    fn a_declared_job_is_measured_by_our_best_template_of_the_last_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let fees = Fees::of(70, at(0)).with(90, at(10)).with(50, at(40));
        assert_eq!(fees.most(at(40)), 90);
        // The 90 were shown until 40.
        assert_eq!(fees.most(at(100)), 90);
        assert_eq!(fees.most(at(101)), 50);
        assert_eq!(fees.most(at(10_000)), 50, "a template that nothing replaced counts on");
        assert_eq!(fees.with(60, at(150)).most(at(150)), 60);
    }

    #[test]
    fn fees_of_many_templates_are_bounded_and_the_best_is_not_lost() {
        let start = Instant::now();
        let mut fees = Fees::of(90, start);
        for sats in 0..2 * REFERENCE_TEMPLATES_MAX as u64 {
            fees = fees.with(sats % 7, start);
            assert!(fees.templates.len() <= REFERENCE_TEMPLATES_MAX);
        }
        assert_eq!(fees.most(start), 90);
    }
}
