//! What happened, counted: handles that are looked up once, with one method for each thing that can
//! happen. Called from everywhere in the pool; `api.rs` renders them for Prometheus.
//!
//! Must never carry a label whose values a miner chooses: a thousand names would be a thousand series.
//! Per-miner figures are the board's.

use metrics::{Counter, Gauge, Histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use proto::mining::CustomRefusal;
use proto::target::Difficulty;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::places::NoPlace;
use crate::store::Route;

/// Refusal codes of SubmitShares.Error that are told apart; any other counts as "other".
pub const REJECT_CODES: [&str; 11] = [
    "invalid-channel-id",
    "invalid-job-id",
    "stale-share",
    "bad-extranonce-size",
    "invalid-ntime",
    "version-rolling-not-allowed",
    "invalid-non-rollable-version-bit",
    "difficulty-too-low",
    "duplicate-share",
    "invalid-user-identity",
    OTHER,
];

/// Codes of OpenMiningChannel.Error that are told apart; any other counts as "other".
pub const OPEN_REFUSALS: [&str; 8] = [
    "channel-capacity-exhausted",
    "invalid-user-identity",
    "invalid-nominal-hashrate",
    "max-target-out-of-range",
    "min-extranonce-size-too-large",
    "standard-channels-not-supported-for-custom-work",
    "extended-channels-not-supported-for-standard-jobs",
    OTHER,
];

/// States of a found block, as the store names them.
pub const BLOCK_STATES: [&str; 6] = ["found", "accepted", "stale", "rejected", "confirmed", OTHER];

/// Verdicts on declarations: approved, or the code of DeclareMiningJob.Error.
pub const DECLARATION_VERDICTS: [&str; 12] = [
    "approved",
    "missing-declare-tx-data-flag",
    "invalid-mining-job-token",
    "missing-txs",
    "invalid-coinbase-tx",
    "invalid-coinbase-tx-input",
    "invalid-coinbase-tx-outputs",
    "stale-chain-tip",
    "invalid-job",
    "too-many-declarations",
    "internal-error",
    OTHER,
];

const OTHER: &str = "other";

/// A batch waits 25 ms for company, so the middle of the range is where acknowledgements are.
const ACK_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0];
/// From one connection (well under a millisecond) to a hundred thousand.
const JOB_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// An fsync on a good disk is about a millisecond, on an SD card fifty.
const COMMIT_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A check of known transactions is a millisecond or two, Core's verdict on a full block a hundred.
const CHECK_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// A miner's node may be ahead of ours (0) or seconds behind.
/// Of the pool's own template: what a job without fees earns is at the lower end.
const WORTH: &[f64] = &[0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0, 1.01, 1.05];
const LAG_SECONDS: &[f64] = &[0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Why a connection ended before its SetupConnection was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// It connected and left without a byte: how a Bitaxe probes for its first pool. Harmless.
    Probe,
    /// It left half-way.
    Closed,
    /// It took longer than listen.handshake_deadline_s.
    Deadline,
    /// What it sent was no Noise handshake or no frame.
    Noise,
    /// SetupConnection was refused or broke the protocol.
    Setup,
    /// listen.max_connections was reached, or declare.max_connections at its port.
    Full,
    /// listen.max_connections_per_address was reached, or declare's.
    AddressFull,
}

impl HandshakeFailure {
    const ALL: [Self; 7] = [
        Self::Probe,
        Self::Closed,
        Self::Deadline,
        Self::Noise,
        Self::Setup,
        Self::Full,
        Self::AddressFull,
    ];

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Closed => "closed",
            Self::Deadline => "deadline",
            Self::Noise => "noise",
            Self::Setup => "setup",
            Self::Full => "full",
            Self::AddressFull => "address-full",
        }
    }
}

/// Every handle. Made once, shared by `Arc`; each method is a few nanoseconds, a histogram's about 100.
pub struct Metrics {
    recorded: PrometheusHandle,
    connections: Gauge,
    connections_total: Counter,
    channels: Gauge,
    channels_total: Counter,
    channels_refused: Vec<Counter>,
    pool_full: Counter,
    household_full: Counter,
    handshake_failures: Vec<Counter>,
    accepted: Counter,
    rejected: Vec<Counter>,
    credited_hashes: Gauge,
    blocks: Vec<Counter>,
    share_to_ack: Histogram,
    tip_to_job: Histogram,
    credit_commit: Histogram,
    credit_shares: Counter,
    seen_proofs: Gauge,
    credit_waiting: Gauge,
    store_failures: Counter,
    store_failing: Gauge,
    template_age: Gauge,
    node_up: Gauge,
    height: Gauge,
    certificate_left: Gauge,
    outbox_drops: Counter,
    board_drops: Counter,
    declarers: Gauge,
    declarations: Vec<Counter>,
    declaration_answer: Histogram,
    declaration_check: Histogram,
    custom_jobs: Vec<Counter>,
    tokens: Gauge,
    tip_lag: Histogram,
    worth: Histogram,
    library_transactions: Gauge,
    approved_bytes: Gauge,
    blocks_by_route: Vec<Counter>,
    rejected_total: AtomicU64,
    first_acknowledged: OnceLock<Instant>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A set of its own: two pools in one test process do not count together.
    #[must_use]
    pub fn new() -> Self {
        let buckets = [
            ("pool_share_to_ack_seconds", ACK_SECONDS),
            ("pool_tip_to_job_seconds", JOB_SECONDS),
            ("pool_credit_commit_seconds", COMMIT_SECONDS),
            ("pool_declaration_answer_seconds", CHECK_SECONDS),
            ("pool_declaration_check_seconds", CHECK_SECONDS),
            ("pool_declare_tip_lag_seconds", LAG_SECONDS),
            ("pool_declared_job_worth", WORTH),
        ];
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in buckets {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
                .expect("the bucket lists above are not empty");
        }
        let recorder = builder.build_recorder();
        let recorded = recorder.handle();
        with_local_recorder(&recorder, || Self::register(recorded))
    }

    #[expect(clippy::too_many_lines, reason = "a list: each series with its words")]
    fn register(recorded: PrometheusHandle) -> Self {
        Self {
            recorded,
            rejected_total: AtomicU64::new(0),
            first_acknowledged: OnceLock::new(),
            connections: gauge("pool_connections", "Connections open now"),
            connections_total: counter("pool_connections_total", "Connections accepted"),
            channels: gauge("pool_channels", "Channels open now"),
            channels_total: counter("pool_channels_total", "Channels opened"),
            channels_refused: labelled(
                "pool_channels_refused_total",
                "Opens answered with OpenMiningChannel.Error",
                "code",
                &OPEN_REFUSALS,
            ),
            pool_full: counter(
                "pool_channels_full_total",
                "Opens that found listen.max_channels reached",
            ),
            household_full: counter(
                "pool_channels_address_full_total",
                "Opens that found listen.max_channels_per_address reached",
            ),
            handshake_failures: labelled(
                "pool_handshake_failures_total",
                "Connections that ended before they were set up",
                "reason",
                HandshakeFailure::ALL.map(HandshakeFailure::as_str).as_slice(),
            ),
            accepted: counter("pool_shares_accepted_total", "Shares committed and acknowledged"),
            rejected: labelled(
                "pool_shares_rejected_total",
                "Shares answered with SubmitShares.Error",
                "code",
                &REJECT_CODES,
            ),
            credited_hashes: gauge(
                "pool_credited_hashes",
                "Expected hashes behind the shares accepted since the start",
            ),
            blocks: labelled(
                "pool_blocks_total",
                "Blocks found that came into a state",
                "state",
                &BLOCK_STATES,
            ),
            share_to_ack: histogram(
                "pool_share_to_ack_seconds",
                "From the last byte of a share to its SubmitShares.Success on its way to the socket",
            ),
            tip_to_job: histogram(
                "pool_tip_to_job_seconds",
                "From the node's word of a new tip to a connection's new work handed to the socket",
            ),
            credit_commit: histogram("pool_credit_commit_seconds", "One transaction of credit"),
            credit_shares: counter("pool_credit_shares_total", "Shares in those transactions"),
            seen_proofs: gauge("pool_credit_seen_proofs", "Proofs held in memory against repeats"),
            credit_waiting: gauge(
                "pool_credit_waiting_batches",
                "Batches that the ledger left in its queue when it last took some",
            ),
            store_failures: counter(
                "pool_credit_store_failures_total",
                "Attempts that the store did not take; each is tried again",
            ),
            store_failing: gauge(
                "pool_credit_store_failing_seconds",
                "How long the store has refused credit; 0 while it takes it",
            ),
            template_age: gauge("pool_template_age_seconds", "Since the node's last good answer"),
            node_up: gauge("pool_node_up", "1 while the node answers"),
            height: gauge("pool_template_height", "Height of the block being mined"),
            certificate_left: gauge("pool_certificate_seconds_left", "Until the certificate ends"),
            outbox_drops: counter(
                "pool_outbox_drops_total",
                "Connections closed because they did not read what was sent",
            ),
            board_drops: counter(
                "pool_board_drops_total",
                "Snapshots of connections not shown because the board was busy",
            ),
            declarers: gauge("pool_declarers", "Job declaration connections open now"),
            declarations: labelled(
                "pool_declarations_total",
                "Declarations of jobs, by what was answered",
                "verdict",
                &DECLARATION_VERDICTS,
            ),
            declaration_answer: histogram(
                "pool_declaration_answer_seconds",
                "From a declaration, or the transactions that it lacked, to its verdict",
            ),
            declaration_check: histogram(
                "pool_declaration_check_seconds",
                "Our own part of a check, without waiting for a turn and the node",
            ),
            custom_jobs: labelled(
                "pool_custom_jobs_total",
                "Jobs set by miners, by what was answered",
                "verdict",
                &custom_job_verdicts(),
            ),
            tokens: gauge("pool_declare_tokens", "Mining job tokens that may be used"),
            tip_lag: histogram(
                "pool_declare_tip_lag_seconds",
                "From our tip to a declarer's first approved job on it; 0 if he was first",
            ),
            worth: histogram(
                "pool_declared_job_worth",
                "Credit for work on an approved job beside the pool's own: fees against reference",
            ),
            library_transactions: gauge(
                "pool_declare_library_transactions",
                "Transactions that need not be sent to be declared",
            ),
            approved_bytes: gauge(
                "pool_declare_approved_bytes",
                "Held by approved jobs beside what they share with our templates",
            ),
            blocks_by_route: labelled(
                "pool_blocks_by_route_total",
                "Blocks that a node took, by the way they came first",
                "route",
                &Route::ALL.map(Route::as_str),
            ),
        }
    }

    /// All of it in Prometheus' text form, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.recorded.render()
    }

    /// Folds the histograms' samples. Without it they would grow until someone scrapes, so `api.rs`
    /// calls it every few seconds.
    pub fn upkeep(&self) {
        self.recorded.run_upkeep();
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.connections.increment(1);
        self.connections_total.increment(1);
    }

    /// A connection that was counted as opened is gone.
    pub fn connection_closed(&self) {
        self.connections.decrement(1);
    }

    /// A connection ended, or was turned away, before it was set up.
    pub fn handshake_failed(&self, reason: HandshakeFailure) {
        count(&self.handshake_failures, HandshakeFailure::ALL.iter(), |known| *known == reason);
    }

    /// A channel was opened.
    pub fn channel_opened(&self) {
        self.channels_total.increment(1);
    }

    /// Channels that are open now, told by `places`.
    pub fn channels_are(&self, open: usize) {
        self.channels.set(open as f64);
    }

    /// An open was answered with this error code.
    pub fn channel_refused(&self, code: &str) {
        count(&self.channels_refused, OPEN_REFUSALS.iter(), |known| *known == code);
    }

    /// An open found the pool or its household full.
    pub fn channel_places_full(&self, limit: NoPlace) {
        match limit {
            NoPlace::Pool => self.pool_full.increment(1),
            NoPlace::Household => self.household_full.increment(1),
        }
    }

    /// Shares of one difficulty were committed.
    pub fn shares_accepted(&self, count: u64, difficulty: Difficulty) {
        self.accepted.increment(count);
        self.credited_hashes.increment(count as f64 * difficulty.hashes());
    }

    /// A share was refused with this error code.
    pub fn share_rejected(&self, code: &str) {
        self.rejected_total.fetch_add(1, Ordering::Relaxed);
        count(&self.rejected, REJECT_CODES.iter(), |known| *known == code);
    }

    /// A found block came into a state, named as the store names it.
    pub fn block_became(&self, state: &str) {
        count(&self.blocks, BLOCK_STATES.iter(), |known| *known == state);
    }

    /// A SubmitShares.Success was handed to the socket this long after its share was read.
    pub fn share_acknowledged(&self, seconds: f64) {
        self.first_acknowledged.get_or_init(Instant::now);
        self.share_to_ack.record(seconds);
    }

    /// Shares refused since the start, whatever the reason.
    #[must_use]
    pub fn rejected_so_far(&self) -> u64 {
        self.rejected_total.load(Ordering::Relaxed)
    }

    /// When the first share was acknowledged.
    #[must_use]
    pub fn first_acknowledged(&self) -> Option<Instant> {
        self.first_acknowledged.get().copied()
    }

    /// A connection's first work on a new tip was handed to the socket this long after the node's word.
    pub fn job_sent(&self, seconds: f64) {
        self.tip_to_job.record(seconds);
    }

    /// A transaction of credit took this long and held so many shares.
    pub fn credit_committed(&self, seconds: f64, shares: usize) {
        self.credit_commit.record(seconds);
        self.credit_shares.increment(shares as u64);
    }

    /// Proofs that the ledger holds in memory.
    pub fn credit_remembers(&self, proofs: usize) {
        self.seen_proofs.set(proofs as f64);
    }

    /// Batches that wait for the ledger.
    pub fn credit_waits(&self, batches: usize) {
        self.credit_waiting.set(batches as f64);
    }

    /// The store did not take what the ledger gave it; it is tried again.
    pub fn store_failed(&self) {
        self.store_failures.increment(1);
    }

    /// How long the store has refused credit, 0 for not at all. Asked for at each scrape.
    pub fn store_is_failing_for(&self, seconds: f64) {
        self.store_failing.set(seconds);
    }

    /// Asked for at each scrape.
    pub fn template_is_aged(&self, seconds: f64) {
        self.template_age.set(seconds);
    }

    /// The node answered, or did not.
    pub fn node_is_up(&self, up: bool) {
        self.node_up.set(f64::from(u8::from(up)));
    }

    /// The block being mined now.
    pub fn height_is(&self, height: u32) {
        self.height.set(f64::from(height));
    }

    /// Seconds until the certificate in use ends; negative when it has.
    pub fn certificate_has_left(&self, seconds: i64) {
        self.certificate_left.set(seconds as f64);
    }

    /// A connection was closed because its outbox was full.
    pub fn outbox_dropped(&self) {
        self.outbox_drops.increment(1);
    }

    /// A declarer was let in.
    pub fn declarer_opened(&self) {
        self.declarers.increment(1);
    }

    /// A declarer that was counted is gone.
    pub fn declarer_closed(&self) {
        self.declarers.decrement(1);
    }

    /// A declaration was approved, or refused with this code, by its check or before it.
    pub fn declaration_answered(&self, verdict: &str) {
        count(&self.declarations, DECLARATION_VERDICTS.iter(), |known| *known == verdict);
    }

    /// A check came to its verdict so long after the declaration.
    pub fn declaration_judged(&self, seconds: f64) {
        self.declaration_answer.record(seconds);
    }

    /// Our own part of a check took so long.
    pub fn declaration_checked(&self, seconds: f64) {
        self.declaration_check.record(seconds);
    }

    /// A custom job was "accepted", or refused with this code.
    pub fn custom_job_answered(&self, verdict: &str) {
        count(&self.custom_jobs, custom_job_verdicts().iter(), |known| *known == verdict);
    }

    /// Tokens that may be used.
    pub fn tokens_are(&self, tokens: usize) {
        self.tokens.set(tokens as f64);
    }

    /// A job was approved; `factor_ppm` is what its work is credited with.
    pub fn job_is_worth(&self, factor_ppm: u32) {
        self.worth.record(f64::from(factor_ppm) / 1_000_000.0);
    }

    /// A declarer's first job on a tip came so long after the tip.
    pub fn declarer_lags(&self, seconds: f64) {
        self.tip_lag.record(seconds);
    }

    /// Transactions that the library names.
    pub fn library_holds(&self, transactions: usize) {
        self.library_transactions.set(transactions as f64);
    }

    /// Bytes that approved jobs hold.
    pub fn approved_hold(&self, bytes: usize) {
        self.approved_bytes.set(bytes as f64);
    }

    /// A node took a block that came this way first.
    pub fn block_came_by(&self, route: Route) {
        count(&self.blocks_by_route, Route::ALL.iter(), |known| *known == route);
    }

    /// A snapshot did not reach the board.
    pub fn board_dropped(&self) {
        self.board_drops.increment(1);
    }
}

/// What SetCustomMiningJob is answered with.
fn custom_job_verdicts() -> Vec<&'static str> {
    let codes = CustomRefusal::ALL.iter().map(|refusal| refusal.code());
    std::iter::once("accepted").chain(codes).chain([OTHER]).collect()
}

/// Counts on the counter whose name matches; on the last, "other", if none does.
fn count<T>(counters: &[Counter], mut names: impl Iterator<Item = T>, is: impl Fn(T) -> bool) {
    let found = names.position(is).and_then(|at| counters.get(at));
    if let Some(counter) = found.or(counters.last()) {
        counter.increment(1);
    }
}

fn counter(name: &'static str, help: &'static str) -> Counter {
    metrics::describe_counter!(name, help);
    let counter = metrics::counter!(name);
    // A series that is there from the start shows a first event as a rise, not as a gap.
    counter.absolute(0);
    counter
}

fn labelled(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: &[&'static str],
) -> Vec<Counter> {
    metrics::describe_counter!(name, help);
    values.iter().map(|value| metrics::counter!(name, label => *value)).collect()
}

fn gauge(name: &'static str, help: &'static str) -> Gauge {
    metrics::describe_gauge!(name, help);
    metrics::gauge!(name)
}

fn histogram(name: &'static str, help: &'static str) -> Histogram {
    metrics::describe_histogram!(name, help);
    metrics::histogram!(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(text: &'a str, series: &str) -> &'a str {
        let prefix = format!("{series} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("absent")
    }

    #[test]
    fn every_series_is_there_before_anything_happens() {
        let text = Metrics::new().render();
        for name in [
            "pool_connections",
            "pool_connections_total",
            "pool_channels",
            "pool_channels_total",
            "pool_channels_full_total",
            "pool_channels_address_full_total",
            "pool_channels_refused_total{code=\"channel-capacity-exhausted\"}",
            "pool_handshake_failures_total{reason=\"probe\"}",
            "pool_shares_accepted_total",
            "pool_shares_rejected_total{code=\"stale-share\"}",
            "pool_shares_rejected_total{code=\"other\"}",
            "pool_credited_hashes",
            "pool_blocks_total{state=\"accepted\"}",
            "pool_template_age_seconds",
            "pool_node_up",
            "pool_template_height",
            "pool_certificate_seconds_left",
            "pool_outbox_drops_total",
            "pool_board_drops_total",
            "pool_declarers",
            "pool_declare_tokens",
            "pool_declarations_total{verdict=\"approved\"}",
            "pool_declarations_total{verdict=\"stale-chain-tip\"}",
            "pool_custom_jobs_total{verdict=\"accepted\"}",
            "pool_custom_jobs_total{verdict=\"invalid-mining-job-token\"}",
            "pool_blocks_by_route_total{route=\"solution\"}",
        ] {
            assert_eq!(line(&text, name), "0", "{name} in\n{text}");
        }
        assert!(text.contains("# HELP pool_shares_accepted_total Shares committed"), "{text}");
    }

    #[test]
    fn what_happens_is_counted_under_its_own_name() {
        let metrics = Metrics::new();
        metrics.connection_opened();
        metrics.connection_opened();
        metrics.connection_closed();
        metrics.shares_accepted(3, Difficulty::from_log2(0));
        metrics.share_rejected("duplicate-share");
        metrics.share_rejected("a-code-nobody-knows");
        metrics.handshake_failed(HandshakeFailure::Noise);
        metrics.block_became("accepted");
        metrics.node_is_up(true);
        metrics.certificate_has_left(-5);
        let text = metrics.render();
        assert_eq!(line(&text, "pool_connections"), "1");
        assert_eq!(line(&text, "pool_connections_total"), "2");
        assert_eq!(line(&text, "pool_shares_accepted_total"), "3");
        assert_eq!(line(&text, "pool_credited_hashes"), "12884901888");
        assert_eq!(line(&text, "pool_shares_rejected_total{code=\"duplicate-share\"}"), "1");
        assert_eq!(line(&text, "pool_shares_rejected_total{code=\"other\"}"), "1");
        assert_eq!(line(&text, "pool_handshake_failures_total{reason=\"noise\"}"), "1");
        assert_eq!(line(&text, "pool_blocks_total{state=\"accepted\"}"), "1");
        assert_eq!(line(&text, "pool_node_up"), "1");
        assert_eq!(line(&text, "pool_certificate_seconds_left"), "-5");
    }

    #[test]
    fn times_fall_into_buckets_also_after_upkeep() {
        let metrics = Metrics::new();
        metrics.share_acknowledged(0.11);
        metrics.upkeep();
        metrics.share_acknowledged(7.0);
        metrics.job_sent(0.002);
        metrics.credit_committed(0.02, 3);
        let text = metrics.render();
        assert_eq!(line(&text, "pool_share_to_ack_seconds_bucket{le=\"0.1\"}"), "0");
        assert_eq!(line(&text, "pool_share_to_ack_seconds_bucket{le=\"0.125\"}"), "1");
        assert_eq!(line(&text, "pool_share_to_ack_seconds_bucket{le=\"+Inf\"}"), "2");
        assert_eq!(line(&text, "pool_tip_to_job_seconds_count"), "1");
        assert_eq!(line(&text, "pool_credit_commit_seconds_count"), "1");
    }
}
