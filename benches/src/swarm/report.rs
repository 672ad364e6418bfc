//! What a run has shown, as a table for people and as one JSON object: made once, when all is over. Must
//! never show a figure that was not measured: what is missing is left out, or null.

use std::fmt::{self, Display};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Looks;
use super::book::Book;
use super::declarers;
use super::finder::Submitted;
use super::histogram::{Histogram, percentile};
use super::hostile::Attack;
use super::kept::{Cores, Kept, Verdict};
use super::options::Options;
use super::process::Usage;
use super::session::TipSeen;

/// Memory of an idle connection with one channel, KiB.
const IDLE_KIB_MAX: f64 = 4.0;

/// Shares that may be refused as too easy where nothing is hashed: one in 65,536 misses the easiest
/// target, and six standard deviations more.
pub(super) fn misses_max(submitted: u64) -> f64 {
    let expected = submitted as f64 / 65_536.0;
    expected + 6.0 * expected.sqrt() + 3.0
}

/// What was seen besides the connections.
pub(super) struct Around {
    pub(super) pool: Looks,
    pub(super) own_open: Usage,
    pub(super) own_end: Usage,
    pub(super) opening_s: f64,
    pub(super) found: Option<(Vec<Submitted>, Option<String>)>,
    pub(super) attack: Option<Attack>,
    pub(super) cores: Option<Cores>,
    pub(super) declared: Option<declarers::Outcome>,
}

/// A figure that must not be above another.
#[derive(Debug)]
struct Goal {
    what: &'static str,
    most: f64,
    measured: Option<f64>,
    /// What of it may be our own doing: missed by no more, it says nothing.
    doubt: f64,
}

impl Goal {
    /// `None`: nothing was measured.
    fn verdict(&self) -> Option<Verdict> {
        let missed_by = self.measured? - self.most;
        Some(match missed_by {
            _ if missed_by <= 0.0 => Verdict::Kept,
            _ if missed_by <= self.doubt => Verdict::NotJudged,
            _ => Verdict::Missed,
        })
    }

    fn word(&self) -> &'static str {
        match self.verdict() {
            Some(Verdict::Kept) => "met",
            Some(Verdict::Missed) => "MISSED",
            Some(Verdict::NotJudged) => "not judged: this program was late by what it is missed by",
            None => "NOT MEASURED",
        }
    }
}

/// A finished run.
#[derive(Debug)]
pub struct Report {
    /// All of it, by name.
    figures: Map<String, Value>,
    lines: Vec<(String, String)>,
    /// What was to be reached, and whether it was.
    goals: Vec<Goal>,
    /// What should not have been.
    wrongs: Vec<String>,
}

impl Report {
    pub(super) fn new(options: &Options, book: Book, around: &Around) -> Self {
        let mut report =
            Self { figures: Map::new(), lines: Vec::new(), goals: Vec::new(), wrongs: Vec::new() };
        report.connections(options, &book, around);
        if !options.idle {
            report.shares(options, &book, around);
        }
        report.tips(&book, around);
        report.processes(options, &book, around);
        if let Some(attack) = &around.attack {
            report.attack(&book, attack);
            report.kept(&book, around.cores);
        }
        if let Some(declared) = &around.declared {
            declared.report(&book, &mut report);
        }
        report.judge(&book, around);
        report
    }

    /// Nothing honest was dropped, lost or refused without a reason.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.wrongs.is_empty()
    }

    /// Judges what an idle connection holds: by how much more memory the pool has than in the same run with
    /// one connection, `alone`. What tips leave in any pool (templates, blocks, proofs) is in both.
    pub fn judge_memory(&mut self, alone: &Self) {
        let connections = self.count("opened").saturating_sub(alone.count("opened")).max(1);
        for (name, words) in [("open", "each, when open"), ("end", "each, at the end")] {
            let key = format!("pool_kib_{name}");
            let anon = |report: &Self| report.figures.get(&key)?.get("anon")?.as_f64();
            let Some((with, without)) = anon(self).zip(anon(alone)) else { continue };
            let each = (with - without) / connections as f64;
            self.put(&format!("pool_kib_per_idle_connection_{name}"), each);
            let verdict = if each <= IDLE_KIB_MAX { "met" } else { "MISSED" };
            let text =
                format!("{each:.2} KiB beyond a pool of one connection, goal {IDLE_KIB_MAX}");
            self.line(words, format!("{text}: {verdict}"));
            if each > IDLE_KIB_MAX {
                self.wrongs.push(format!("an idle connection holds {each:.2} KiB {words}"));
            }
        }
    }

    /// Every goal that the run had was measured, and none was missed by the pool's doing.
    #[must_use]
    pub fn meets_goals(&self) -> bool {
        let is_missed = |goal: &Goal| matches!(goal.verdict(), None | Some(Verdict::Missed));
        !self.goals.iter().any(is_missed)
    }

    /// A figure by its name in the JSON; 0 if there is none.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.figures.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Everything as one object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut figures = self.figures.clone();
        if !self.goals.is_empty() {
            let goal = |goal: &Goal| {
                json!({
                    "what": goal.what,
                    "most": goal.most,
                    "measured": goal.measured,
                    "doubt": goal.doubt,
                    "verdict": goal.word(),
                })
            };
            figures.insert("goals".into(), self.goals.iter().map(goal).collect());
        }
        figures.insert("wrong".into(), json!(self.wrongs));
        Value::Object(figures)
    }

    pub(super) fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    pub(super) fn line(&mut self, what: &str, text: impl Into<String>) {
        self.lines.push((what.to_owned(), text.into()));
    }

    /// `measured` must be at most `most`; by `doubt` it may be too high by our own doing.
    pub(super) fn goal(
        &mut self,
        what: &'static str,
        most: f64,
        measured: Option<f64>,
        doubt: f64,
    ) {
        self.goals.push(Goal { what, most, measured, doubt });
    }

    /// What should not have been.
    pub(super) fn wrong(&mut self, what: String) {
        self.wrongs.push(what);
    }

    fn connections(&mut self, options: &Options, book: &Book, around: &Around) {
        let channels = options.channels_per_connection;
        self.put("connections", options.connections);
        self.put("channels_per_connection", channels);
        self.put("kind", format!("{:?}", options.kind).to_lowercase());
        self.put("opened", book.opened);
        self.put("opening_s", around.opening_s);
        self.put("failed", json!(book.failed));
        self.put("dropped", json!(book.dropped));
        let text = format!(
            "{} of {} open in {:.2} s, {channels} {:?} channel(s) each",
            book.opened, options.connections, around.opening_s, options.kind
        );
        self.line("connections", text);
        for (what, counts) in [("failed", &book.failed), ("dropped", &book.dropped)] {
            for (why, count) in counts {
                self.line(what, format!("{count} x {why}"));
            }
        }
        let each = |bytes: u64| bytes as f64 / book.opened.max(1) as f64;
        self.put("bytes_out_per_connection", each(book.bytes_out));
        self.put("bytes_in_per_connection", each(book.bytes_in));
        self.put("writes", book.writes);
        self.put("reads", book.reads);
        let text = format!(
            "{:.0} sent, {:.0} received per connection; {} writes, {} reads",
            each(book.bytes_out),
            each(book.bytes_in),
            book.writes,
            book.reads
        );
        self.line("bytes", text);
    }

    fn shares(&mut self, options: &Options, book: &Book, around: &Around) {
        let mut seconds = options.length.as_secs_f64();
        let ended = book.acknowledged_last.zip(book.span);
        if let (Some(_), Some((last, span))) = (options.shares_per_connection, ended) {
            seconds = last.min(span.until).duration_since(span.from).as_secs_f64();
        }
        let per_second = book.acknowledged_in_time as f64 / seconds;
        self.put("length_s", seconds);
        self.put("submitted", book.submitted);
        self.put("acknowledged", book.acknowledged);
        self.put("acknowledged_per_s", per_second);
        self.put("refused", book.refused_count());
        self.put("refused_by_code", json!(book.refused));
        self.put("unanswered", book.unanswered);
        self.put("miscounted", book.miscounted);
        self.put("held_back", book.held_back);
        let text = format!(
            "{} submitted, {} acknowledged, {} refused, {} unanswered",
            book.submitted,
            book.acknowledged,
            book.refused_count(),
            book.unanswered
        );
        self.line("shares", text);
        for (code, count) in &book.refused {
            self.line("refused", format!("{count} x {code}"));
        }
        if book.held_back > 0 {
            let text = format!("{} times: the rate was more than was acknowledged", book.held_back);
            self.line("window full", text);
        }
        self.line("acknowledged", format!("{per_second:.0} per second"));
        let mut all = Histogram::default();
        book.latencies.iter().for_each(|part| all.add(part));
        self.put("ack_ms", latencies(&all));
        self.line("ack latency", latency_text(&all));
        if around.attack.is_some() || around.declared.is_some() {
            for (name, part) in ["before", "during", "after"].iter().zip(&book.latencies) {
                self.put(&format!("ack_ms_{name}"), latencies(part));
                self.line(&format!("... {name}"), latency_text(part));
            }
        }
    }

    fn tips(&mut self, book: &Book, around: &Around) {
        let Some(span) = book.span else { return };
        let submitted = around.found.as_ref().map_or(&[][..], |(found, _)| found);
        if let Some((_, Some(why))) = &around.found {
            self.wrongs.push(format!("the finder of blocks stopped: {why}"));
        }
        let mut tips: Vec<_> = book.tips.iter().collect();
        tips.retain(|(_, seen)| seen.iter().all(|tip| tip.at >= span.from));
        tips.sort_by_key(|(_, seen)| seen.iter().map(|tip| tip.at).min());
        let tips: Vec<Fanout> = tips
            .into_iter()
            .filter_map(|(hash, seen)| {
                Fanout::of(seen, submitted.iter().find(|found| found.hash == *hash))
            })
            .collect();
        let whole = |tip: &&Fanout| tip.connections as u64 == book.opened;
        let rows: Vec<Value> = tips.iter().map(Fanout::to_json).collect();
        self.put("tips", rows);
        let columns: [(&str, Column); 6] = [
            ("tip p50", |tip| Some(tip.p50)),
            ("tip p99", |tip| Some(tip.p99)),
            ("tip last", |tip| Some(tip.last)),
            ("job p50", |tip| tip.job_p50),
            ("job last", |tip| tip.job_last),
            ("block to first", |tip| tip.first_after),
        ];
        if !tips.is_empty() {
            let reached = tips.iter().filter(whole).count();
            self.line("tips", format!("{} seen, {reached} by every connection", tips.len()));
        }
        for (name, column) in columns {
            let mut values: Vec<f64> = tips.iter().filter(whole).filter_map(column).collect();
            values.sort_by(f64::total_cmp);
            let (Some(median), Some(worst)) = (percentile(&values, 50.0), values.last()) else {
                continue;
            };
            self.put(
                &format!("{}_ms", name.replace(' ', "_")),
                json!({"median": median, "worst": worst}),
            );
            self.line(name, format!("{median:.2} ms, worst {worst:.2} ms"));
        }
    }

    fn processes(&mut self, options: &Options, book: &Book, around: &Around) {
        let own_s = around.own_end.cpu_s - around.own_open.cpu_s;
        self.put("own_cpu_s", own_s);
        let acknowledged = book.acknowledged.max(1) as f64;
        let per_share = |cpu_s: f64| cpu_s * 1e6 / acknowledged;
        let mut text = format!("{own_s:.2} CPU seconds");
        if !options.idle {
            self.put("own_cpu_us_per_share", per_share(own_s));
            text.push_str(&format!(", {:.2} us per acknowledged share", per_share(own_s)));
        }
        self.line("swarm", text);

        let Looks { before, open, end, closed } = around.pool;
        let (Some(before), Some(open), Some(end)) = (before, open, end) else { return };
        let measured = options.measured;
        let pool_s = end.cpu_s - open.cpu_s;
        let of_a_core = 100.0 * pool_s / (end.at - open.at).as_secs_f64();
        self.put(&format!("{measured}_cpu_s"), pool_s);
        self.put(&format!("{measured}_cpu_percent"), of_a_core);
        self.put(&format!("{measured}_cpu_s_opening"), open.cpu_s - before.cpu_s);
        let mut text = format!("{pool_s:.2} CPU seconds, {of_a_core:.2} % of a core");
        if !options.idle {
            self.put(&format!("{measured}_cpu_us_per_share"), per_share(pool_s));
            text.push_str(&format!(", {:.2} us per acknowledged share", per_share(pool_s)));
        }
        self.line(measured, text);
        let opening_us = (open.cpu_s - before.cpu_s) * 1e6 / book.opened.max(1) as f64;
        self.put(&format!("{measured}_cpu_us_per_connection_opened"), opening_us);
        self.line("... opening", format!("{opening_us:.0} us of CPU per connection"));
        let looks = [("before", Some(before)), ("open", Some(open)), ("end", Some(end))];
        for (when, usage) in looks.into_iter().chain([("closed", closed)]) {
            let Some(usage) = usage else { continue };
            self.memory(&format!("{measured}_kib_{when}"), &format!("memory {when}"), usage);
        }
        let each = |usage: Usage| {
            (usage.anon_kib as f64 - before.anon_kib as f64) / book.opened.max(1) as f64
        };
        self.put(&format!("{measured}_kib_per_connection_open"), each(open));
        self.put(&format!("{measured}_kib_per_connection_end"), each(end));
        let text = format!("{:.2} KiB when open, {:.2} KiB at the end", each(open), each(end));
        self.line("... each", text);
    }

    fn memory(&mut self, name: &str, words: &str, usage: Usage) {
        self.put(name, json!({"rss": usage.rss_kib, "anon": usage.anon_kib}));
        let Usage { rss_kib, anon_kib, .. } = usage;
        self.line(words, format!("{rss_kib} KiB resident, {anon_kib} KiB of them its own"));
    }

    fn attack(&mut self, book: &Book, attack: &Attack) {
        self.put("attack", json!(attack.counts));
        for (what, count) in &attack.counts {
            self.line("attack", format!("{count} x {what}"));
        }
        if book.opened < self.count("connections") {
            self.wrongs.push("an honest connection could not be opened".to_owned());
        }
    }

    /// Whether honest miners kept their latency.
    fn kept(&mut self, book: &Book, cores: Option<Cores>) {
        if let Some(Cores { all, pool, ours, idle }) = cores {
            self.put(
                "cores_during",
                json!({"all": all, "pool": pool, "swarm": ours, "idle": idle}),
            );
            let pool = pool.map_or("the pool ?".to_owned(), |pool| format!("the pool {pool:.2}"));
            let text = format!("{pool}, this program {ours:.2}, idle {idle:.2} of {all}");
            self.line("cores during", text);
        }
        let p99 = |of: &Histogram| of.percentile_ms(99.0);
        let [before, during, _] = &book.latencies;
        let (Some(before), Some(during)) = (p99(before), p99(during)) else {
            self.wrongs.push("too few shares to judge an attack by".to_owned());
            return;
        };
        let late = p99(&book.lateness[1]).unwrap_or_default();
        let kept = Kept { before, during, late };
        let (allowed, verdict) = (kept.allowed(), kept.verdict());
        self.line("own lateness", format!("p99 {late:.2} ms during: timers of this program"));
        let figures =
            format!("{before:.2} ms before, {during:.2} ms during, {allowed:.2} ms allowed");
        let word = match verdict {
            Verdict::Kept => "kept",
            Verdict::Missed => "MISSED",
            Verdict::NotJudged => "not judged: this program was late by as much as it is missed by",
        };
        self.line("honest p99", format!("{figures}: {word}"));
        let name = match verdict {
            Verdict::Kept => "kept",
            Verdict::Missed => "missed",
            Verdict::NotJudged => "not judged",
        };
        self.put(
            "honest_p99",
            json!({"before_ms": before, "during_ms": during, "allowed_ms": allowed,
                   "own_lateness_ms": late, "verdict": name}),
        );
        if verdict == Verdict::Missed {
            self.wrongs.push(format!("honest miners did not keep their latency: {figures}"));
        }
    }

    fn judge(&mut self, book: &Book, around: &Around) {
        let dropped: u64 = book.dropped.values().sum();
        if dropped > 0 {
            self.wrongs.push(format!("{dropped} connections were dropped"));
        }
        if book.unanswered > 0 {
            self.wrongs.push(format!("{} shares were never answered", book.unanswered));
        }
        if book.miscounted > 0 {
            self.wrongs.push(format!("{} acknowledgements miscount", book.miscounted));
        }
        for (code, count) in &book.refused {
            let right = match code.as_str() {
                "stale-share" => !book.tips.is_empty(),
                "difficulty-too-low" => *count as f64 <= misses_max(book.submitted),
                _ => false,
            };
            if !right {
                self.wrongs.push(format!("{count} valid shares were refused: {code}"));
            }
        }
        if around.pool.before.is_some() && around.pool.end.is_none() {
            self.wrongs.push("the pool's process is gone".to_owned());
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, text) in &self.lines {
            writeln!(f, "{what:<16} {text}")?;
        }
        for goal in &self.goals {
            let measured = goal.measured.map_or("-".to_owned(), |number| format!("{number:.1}"));
            let (what, most, word) = (goal.what, goal.most, goal.word());
            writeln!(f, "{:<16} {what}: {measured}, at most {most:.1}: {word}", "goal")?;
        }
        for wrong in &self.wrongs {
            writeln!(f, "{:<16} {wrong}", "WRONG")?;
        }
        Ok(())
    }
}

pub(super) fn latencies(of: &Histogram) -> Value {
    let ms = |percent| of.percentile_ms(percent);
    json!({"count": of.count(), "p50": ms(50.0), "p90": ms(90.0), "p99": ms(99.0), "max": ms(100.0)})
}

pub(super) fn latency_text(of: &Histogram) -> String {
    let ms = |percent| of.percentile_ms(percent).unwrap_or_default();
    format!(
        "p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(50.0),
        ms(90.0),
        ms(99.0),
        ms(100.0)
    )
}

/// A figure of a tip.
type Column = fn(&Fanout) -> Option<f64>;

/// One tip on its way to everybody, in milliseconds after the first connection had it.
struct Fanout {
    connections: usize,
    p50: f64,
    p99: f64,
    last: f64,
    job_p50: Option<f64>,
    job_last: Option<f64>,
    /// From the block's being handed in to the first connection.
    first_after: Option<f64>,
}

impl Fanout {
    fn of(seen: &[TipSeen], submitted: Option<&Submitted>) -> Option<Self> {
        let first = seen.iter().map(|tip| tip.at).min()?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let mut tips: Vec<f64> = seen.iter().map(|tip| ms(tip.at - first)).collect();
        let jobs = seen.iter().filter_map(|tip| tip.job_at);
        let mut jobs: Vec<f64> = jobs.map(|at| ms(at.saturating_duration_since(first))).collect();
        tips.sort_by(f64::total_cmp);
        jobs.sort_by(f64::total_cmp);
        Some(Self {
            connections: seen.len(),
            p50: percentile(&tips, 50.0)?,
            p99: percentile(&tips, 99.0)?,
            last: *tips.last()?,
            job_p50: percentile(&jobs, 50.0),
            job_last: jobs.last().copied(),
            first_after: submitted.map(|found| ms(first.saturating_duration_since(found.at))),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "connections": self.connections,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "last_ms": self.last,
            "job_p50_ms": self.job_p50,
            "job_last_ms": self.job_last,
            "block_to_first_ms": self.first_after,
        })
    }
}
