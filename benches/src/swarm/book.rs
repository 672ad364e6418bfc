//! What the connections of one thread count, without a lock; merged when the run is over. Written by
//! `session.rs` and `connection.rs`, read by `report.rs`.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::histogram::Histogram;
use super::session::TipSeen;

/// Different words of refusal that are kept apart; a pool has some twenty codes.
const WORDS_MAX: usize = 64;
/// What counts as one more word when there are too many.
const OTHER: &str = "other";

/// A run's measured time, on the clock of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// First share.
    pub(super) from: Instant,
    /// No share is sent after it.
    pub(super) until: Instant,
}

impl Span {
    /// 0 in the first quarter, 1 in the middle half, 2 in the last quarter: before, during and after an
    /// attack.
    #[must_use]
    pub(super) fn part(&self, at: Instant) -> usize {
        let quarter = (self.until - self.from) / 4;
        match at {
            _ if at < self.from + quarter => 0,
            _ if at < self.until - quarter => 1,
            _ => 2,
        }
    }
}

/// Counts of one thread, or of all.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// Set when the measurement starts.
    pub(super) span: Option<Span>,
    /// Write to acknowledgement, by `Span::part` of the write.
    pub(super) latencies: [Histogram; 3],
    /// The last acknowledgement.
    pub(super) acknowledged_last: Option<Instant>,
    /// How late timers of our own threads were: what a latency holds that is not the pool's.
    pub(super) lateness: [Histogram; 3],
    /// Shares written.
    pub(super) submitted: u64,
    /// Shares that an acknowledgement covers.
    pub(super) acknowledged: u64,
    /// Of these, the ones whose acknowledgement came before the end of the span.
    pub(super) acknowledged_in_time: u64,
    /// Refused shares by code.
    pub(super) refused: BTreeMap<String, u64>,
    /// Acknowledgements that say another number than they cover.
    pub(super) miscounted: u64,
    /// Shares without any answer when the connection ended or the drain was over.
    pub(super) unanswered: u64,
    /// Shares that were due while the window was full.
    pub(super) held_back: u64,
    /// Connections that got all their channels and work.
    pub(super) opened: u64,
    /// Connections that did not, by reason.
    pub(super) failed: BTreeMap<String, u64>,
    /// Open connections that ended before the run, by reason.
    pub(super) dropped: BTreeMap<String, u64>,
    /// Bytes off the sockets, handshakes not counted.
    pub(super) bytes_in: u64,
    /// Bytes into the sockets.
    pub(super) bytes_out: u64,
    /// Reads that gave something.
    pub(super) reads: u64,
    /// Writes.
    pub(super) writes: u64,
    /// When each connection heard of each tip.
    pub(super) tips: HashMap<[u8; 32], Vec<TipSeen>>,
}

impl Book {
    /// `count` shares written at `sent_at` are acknowledged at `now`.
    pub(super) fn acknowledged(&mut self, now: Instant, sent_at: Instant, count: u64) {
        self.acknowledged += count;
        self.acknowledged_last = self.acknowledged_last.max(Some(now));
        let Some(span) = self.span else { return };
        if now <= span.until {
            self.acknowledged_in_time += count;
        }
        self.latencies[span.part(sent_at)].record(now.saturating_duration_since(sent_at), count);
    }

    /// A share was told no.
    pub(super) fn refused(&mut self, code: &str) {
        count_word(&mut self.refused, code, 1);
    }

    /// A connection could not be opened.
    pub(super) fn failed(&mut self, why: &str) {
        count_word(&mut self.failed, why, 1);
    }

    /// An open connection ended.
    pub(super) fn dropped(&mut self, why: &str) {
        count_word(&mut self.dropped, why, 1);
    }

    /// Refused shares in all.
    #[must_use]
    pub(super) fn refused_count(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Takes in a connection's tips.
    pub(super) fn tips_of(&mut self, tips: &[TipSeen]) {
        for tip in tips {
            self.tips.entry(tip.prev_hash).or_default().push(*tip);
        }
    }

    /// Takes in what another thread counted.
    pub(super) fn add(&mut self, other: Self) {
        for (mine, theirs) in
            [(&mut self.latencies, &other.latencies), (&mut self.lateness, &other.lateness)]
        {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.add(theirs));
        }
        self.span = self.span.or(other.span);
        self.acknowledged_last = self.acknowledged_last.max(other.acknowledged_last);
        self.submitted += other.submitted;
        self.acknowledged += other.acknowledged;
        self.acknowledged_in_time += other.acknowledged_in_time;
        self.miscounted += other.miscounted;
        self.unanswered += other.unanswered;
        self.held_back += other.held_back;
        self.opened += other.opened;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.reads += other.reads;
        self.writes += other.writes;
        let words = [
            (&mut self.refused, other.refused),
            (&mut self.failed, other.failed),
            (&mut self.dropped, other.dropped),
        ];
        for (mine, theirs) in words {
            theirs.iter().for_each(|(word, count)| count_word(mine, word, *count));
        }
        for (prev_hash, seen) in other.tips {
            self.tips.entry(prev_hash).or_default().extend(seen);
        }
    }
}

/// Words come from the pool: what is kept of them is bounded.
pub(super) fn count_word(counts: &mut BTreeMap<String, u64>, word: &str, count: u64) {
    let known = counts.contains_key(word) || counts.len() < WORDS_MAX;
    let word: String = if known { word.chars().take(100).collect() } else { OTHER.to_owned() };
    *counts.entry(word).or_default() += count;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_span_has_a_quarter_before_and_a_quarter_after_an_attack() {
        let from = Instant::now();
        let span = Span { from, until: from + Duration::from_secs(8) };
        let parts = [0, 1_999, 2_000, 5_999, 6_000, 9_000];
        let parts = parts.map(|ms| span.part(from + Duration::from_millis(ms)));
        assert_eq!(parts, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn words_of_a_pool_that_never_repeats_itself_do_not_pile_up() {
        let mut book = Book::default();
        (0..1_000).for_each(|number| book.refused(&format!("code-{number}")));
        assert_eq!(book.refused.len(), WORDS_MAX + 1);
        assert_eq!(book.refused_count(), 1_000);
    }

    #[test]
    fn what_is_acknowledged_after_the_span_is_counted_apart() {
        let from = Instant::now();
        let until = from + Duration::from_secs(1);
        let mut book = Book { span: Some(Span { from, until }), ..Book::default() };
        book.acknowledged(until, from, 2);
        book.acknowledged(until + Duration::from_millis(1), from, 3);
        assert_eq!((book.acknowledged, book.acknowledged_in_time), (5, 2));
    }
}
