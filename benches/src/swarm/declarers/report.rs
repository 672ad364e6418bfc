//! What declarers and the pool beside them have shown, and the goals that it is held against. Part of the
//! swarm's report; must never call a goal met that was not measured.

use std::thread;

use serde_json::{Value, json};

use super::super::book::Book;
use super::super::report::{Report, latencies, latency_text, misses_max};
use super::{Look, Outcome};

/// Declaration to answer, 99 of 100.
const ANSWER_P99_MS: f64 = 150.0;
/// Acknowledgements of others may take so much longer.
const ACK_RATIO: f64 = 1.2;
/// Resident memory of one more declarer with the same transactions.
const DECLARER_KIB: f64 = 256.0;
/// When no more of the cores is idle, times are those of the machine and not of the pool alone.
const FULL: f64 = 0.05;

impl Outcome {
    /// Puts all of it into `report`.
    pub(in super::super) fn report(&self, book: &Book, report: &mut Report) {
        self.counts(report);
        self.processes(report);
        let late_ms = book.lateness[1].percentile_ms(99.0).unwrap_or_default();
        report.put("own_lateness_p99_ms", late_ms);
        report.line("own lateness", format!("p99 {late_ms:.2} ms: timers of this program"));
        let answer = self.tally.answers.percentile_ms(99.0);
        report.goal("declaration answered, p99 ms", ANSWER_P99_MS, answer, late_ms);
        self.acknowledgements(book, report, late_ms);
        self.memory(report);
        for (code, count) in &self.tally.refused {
            // Shares are not searched for, and few of them miss the easiest target.
            let expected = code == "difficulty-too-low" && *count as f64 <= misses_max(0);
            if !expected {
                report.wrong(format!("{count} times a declarer was told no: {code}"));
            }
        }
        for (why, count) in &self.tally.failed {
            report.wrong(format!("{count} declarers ended: {why}"));
        }
    }

    fn counts(&self, report: &mut Report) {
        let (tally, options) = (&self.tally, &self.declaring.options);
        report.put("declarers", options.declarers);
        report.put("declarers_refresh_s", options.refresh.as_secs_f64());
        report.put("declarers_lists", format!("{:?}", options.lists).to_lowercase());
        report.put("declarers_standing", tally.standing);
        report.put("declarations", tally.answers.count());
        report.put("declarations_asked", tally.asked.count());
        report.put("declared_transactions_supplied", tally.supplied);
        report.put("custom_jobs_answered", tally.set.count());
        report.put("custom_shares_acknowledged", tally.credited);
        report.put("declarers_refused", json!(tally.refused));
        report.put("declarers_failed", json!(tally.failed));
        let text = format!(
            "{} of {} had a job of {} transactions, {:?} lists, new every {:?}",
            tally.standing,
            options.declarers,
            self.declaring.tx_count,
            options.lists,
            options.refresh
        );
        report.line("declarers", text);
        let text = format!(
            "{} answered, {} jobs set, {} shares of them acknowledged; {} asked for {} transactions",
            tally.answers.count(),
            tally.set.count(),
            tally.credited,
            tally.asked.count(),
            tally.supplied
        );
        report.line("declarations", text);
        for (name, words, of) in [
            ("declare_ms", "... answer", &tally.answers),
            ("declare_asked_ms", "... if asked", &tally.asked),
            ("set_custom_ms", "... set job", &tally.set),
        ] {
            report.put(name, latencies(of));
            if of.count() > 0 {
                report.line(words, latency_text(of));
            }
        }
    }

    /// Who had the cores in the declarers' half, in cores.
    fn processes(&self, report: &mut Report) {
        let [_, before, end, _] = &self.looks;
        let seconds = (end.at - before.at).as_secs_f64();
        let all = thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let idle = (end.idle_s - before.idle_s) / seconds;
        let own = (end.own.cpu_s - before.own.cpu_s) / seconds;
        let pool = pool_s(before, end).map(|pool_s| pool_s / seconds);
        let cores = json!({"all": all, "pool": pool, "swarm": own, "idle": idle});
        report.put("cores_with_declarers", cores);
        let pool = pool.unwrap_or_default();
        let mut text =
            format!("the pool {pool:.2}, this program {own:.2}, idle {idle:.2} of {all}");
        if idle <= FULL * all {
            text.push_str(": FULL, so times are the machine's, too");
        }
        report.line("cores", text);
        self.breakdown(report);
        self.cpu_each(report);
    }

    /// What the pool used beyond what the miners cost it in the quarters without declarers.
    fn cpu_each(&self, report: &mut Report) {
        let [first, before, end, last] = &self.looks;
        let cores =
            |from: &Look, to: &Look| Some(pool_s(from, to)? / (to.at - from.at).as_secs_f64());
        let (Some(earlier), Some(during), Some(later)) =
            (cores(first, before), cores(before, end), cores(end, last))
        else {
            return;
        };
        let declarations = self.tally.answers.count().max(1) as f64;
        let each_ms = |cores: f64| cores * (end.at - before.at).as_secs_f64() * 1e3 / declarations;
        let cpu_ms = each_ms(during - f64::midpoint(earlier, later));
        let noise_ms = each_ms((earlier - later).abs() / 2.0);
        let value = json!({"each": cpu_ms, "noise": noise_ms});
        report.put("pool_cpu_ms_per_declaration", value);
        let text = format!(
            "{cpu_ms:.2} ms of the pool's CPU, handshakes included, give or take {noise_ms:.2} ms"
        );
        report.line("... each", text);
    }

    /// What the pool's own clocks say a declaration waits for.
    fn breakdown(&self, report: &mut Report) {
        let [_, before, end, _] = &self.looks;
        let (from, to) = (before.metrics, end.metrics);
        let answers = (to.answers - from.answers).max(1.0);
        let answer_ms = (to.answer_s - from.answer_s) * 1_000.0 / answers;
        let check_ms = (to.check_s - from.check_s) * 1_000.0 / answers;
        let rest_ms = answer_ms - check_ms;
        let means = json!({"answer": answer_ms, "check": check_ms, "turns_and_node": rest_ms});
        report.put("pool_declaration_mean_ms", means);
        let text = format!(
            "mean {answer_ms:.2} ms: own check {check_ms:.2} ms, turns and the node's verdict {rest_ms:.2} ms"
        );
        report.line("... in the pool", text);
    }

    /// Before and after the declarers are two measures of the same. Met is what keeps within the quieter,
    /// missed what exceeds the other by more than our own timers were late.
    fn acknowledgements(&self, book: &Book, report: &mut Report, late_ms: f64) {
        let [before, during, after] =
            book.latencies.each_ref().map(|part| part.percentile_ms(99.0));
        let (Some(before), Some(after)) = (before, after) else { return };
        let most = ACK_RATIO * before.min(after);
        let doubt = ACK_RATIO * (before - after).abs() + late_ms;
        report.goal("share acknowledged, p99 ms", most, during, doubt);
    }

    fn memory(&self, report: &mut Report) {
        let rows: Vec<Value> = self
            .memory
            .iter()
            .map(|(declarers, usage)| json!({"declarers": declarers, "rss_kib": usage.rss_kib}))
            .collect();
        report.put("declarers_memory", rows);
        for (declarers, usage) in &self.memory {
            report.line("memory", format!("{} KiB resident with {declarers}", usage.rss_kib));
        }
        let [_, before, end, _] = &self.looks;
        if let Some(all) = self.memory.last()
            && let Some((before, end)) = before.pool.zip(end.pool)
        {
            let each = (end.rss_kib as f64 - before.rss_kib as f64) / all.0.max(1) as f64;
            report.put("declarer_kib_at_end", each);
            let text =
                format!("{each:.1} KiB each at the end, over none, with all that they share");
            report.line("memory", text);
        }
        if let [(few, at_few), (many, at_many)] = &self.memory[..]
            && few < many
        {
            let more = at_many.rss_kib as f64 - at_few.rss_kib as f64;
            let each = more / (many - few) as f64;
            report.goal("memory of one more declarer, KiB", DECLARER_KIB, Some(each), 0.0);
        }
    }
}

fn pool_s(from: &Look, to: &Look) -> Option<f64> {
    from.pool.zip(to.pool).map(|(from, to)| to.cpu_s - from.cpu_s)
}
