//! Numbers and states in words, for `page.rs` and `json.rs`. Pure; plain text, never markup.

use bitcoin::{Address, Network, Script};

use crate::declarator::{PoolState, View};
use crate::limits::{SHOWN_REASON_MAX, SHOWN_TEXT_MAX};
use crate::rate::HashRate;
use crate::status::Status;
use crate::upstream::{Kind, Source};

/// Up to yotta; beyond, the number is just long.
const PREFIXES: [&str; 9] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];

/// The step of `PREFIXES` in which a value has one to three digits before the point.
fn step(value: f64) -> usize {
    // 999.5 would be shown as 1000.
    let mut step = 0;
    let mut rest = value;
    while rest >= 999.5 && step + 1 < PREFIXES.len() {
        rest /= 1_000.0;
        step += 1;
    }
    step
}

/// Three digits that count.
fn three_digits(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value if value >= 0.1 || value == 0.0 => format!("{value:.2}"),
        // An easy device's difficulty.
        value if value >= 0.000_1 => format!("{value:.5}"),
        value => format!("{value:.1e}"),
    }
}

/// "1.20 T" and the like; what is no number is zero.
pub(super) fn amount(value: f64) -> (String, &'static str) {
    let value = if value.is_finite() { value.max(0.0) } else { 0.0 };
    let step = step(value);
    (three_digits(value / 1_000f64.powi(step as i32)), PREFIXES[step])
}

/// "1.20 TH/s".
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    let (number, prefix) = amount(value);
    format!("{number} {prefix}{unit}")
}

/// "between 1.10 and 1.31 TH/s"; `None` where the band says nothing.
pub(super) fn band(rate: HashRate) -> Option<String> {
    if !(rate.low.is_finite() && rate.high.is_finite()) || rate.high <= 0.0 {
        return None;
    }
    let step = step(rate.high);
    let number = |value: f64| three_digits(value.max(0.0) / 1_000f64.powi(step as i32));
    let (low, high, prefix) = (number(rate.low), number(rate.high), PREFIXES[step]);
    Some(format!("between {low} and {high} {prefix}H/s"))
}

/// A difficulty: "4,096", "1.23 M", "0.00195".
pub(super) fn difficulty(value: f64) -> String {
    if (1.0..1e6).contains(&value) {
        return grouped(value.round() as u64);
    }
    let (number, prefix) = amount(value);
    if prefix.is_empty() { number } else { format!("{number} {prefix}") }
}

/// "1,234,567".
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a block pays to the owner and what not: `others` names those.
pub(super) fn shares_of(yours: u64, rest: u64, others: &str) -> String {
    match (yours, rest) {
        (0, 0) => "nothing to anybody".to_owned(),
        (0, _) => format!("nothing to you, all of it to {others}"),
        (_, 0) => "all of it to you".to_owned(),
        (_, _) => format!("{} to you, {} to {others}", btc(yours), btc(rest)),
    }
}

/// "3.12500000 BTC".
pub(super) fn btc(sats: u64) -> String {
    format!("{}.{:08} BTC", sats / 100_000_000, sats % 100_000_000)
}

/// Of a whole, one place, rounded down; a whole of nothing has no parts.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    let tenths = (u128::from(part) * 1_000).checked_div(u128::from(whole)).unwrap_or(0);
    tenths as f64 / 10.0
}

/// "12 s", "3 min", "2 h 5 min", "4 d 1 h".
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let (of_hour, of_day) = (minutes % 60, hours % 24);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) if of_hour == 0 => format!("{hours} h"),
        (0, _, _) => format!("{hours} h {of_hour} min"),
        _ if of_day == 0 => format!("{days} d"),
        _ => format!("{days} d {of_day} h"),
    }
}

/// How long before `now`.
pub(super) fn ago(now: u32, then: u32) -> String {
    format!("{} ago", span(u64::from(now.saturating_sub(then))))
}

/// Where a script pays, as people write it; `None` where it has no address.
pub(super) fn address(script: &[u8], network: Network) -> Option<String> {
    Address::from_script(Script::from_bytes(script), network)
        .ok()
        .map(|address| address.to_string())
}

/// A name that somebody else chose, in one line: cut, and without what would turn or hide the rest.
pub(super) fn shown(text: &str) -> String {
    one_line(text, SHOWN_TEXT_MAX)
}

/// The same for why something is as it is.
pub(super) fn reason(text: &str) -> String {
    one_line(text, SHOWN_REASON_MAX)
}

fn one_line(text: &str, characters_max: usize) -> String {
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let mut characters =
        text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c });
    let mut cut: String = characters.by_ref().take(characters_max).collect();
    if characters.next().is_some() {
        cut.push('…');
    }
    cut
}

/// A pool's name.
pub(super) fn pool_name(view: &View, pool: usize) -> &str {
    view.pools.get(pool).map_or("a pool", |pool| &pool.name)
}

/// The same set off from the sentence that it stands in: a pool may be called "mine".
pub(super) fn quoted(view: &View, pool: usize) -> String {
    match view.pools.get(pool) {
        Some(pool) => format!("\u{201c}{}\u{201d}", shown(&pool.name)),
        None => "a pool".to_owned(),
    }
}

/// "your template, for “Home pool”".
pub(super) fn source(view: &View, source: Source) -> String {
    match source {
        Source::Solo => "your template, for you alone".to_owned(),
        Source::Pool { pool, kind: Kind::Own } => {
            format!("your template, for {}", quoted(view, pool))
        }
        Source::Pool { pool, kind: Kind::Theirs } => {
            format!("a template of {}", quoted(view, pool))
        }
    }
}

/// The answer that the page begins with: what is mined and for whom.
pub(super) fn headline(status: &Status) -> String {
    let view = &status.view;
    let Some(work) = &view.work else {
        return "There is no work for your devices yet.".to_owned();
    };
    match work.source {
        Source::Solo => "Your devices mine your own template, for you alone.".to_owned(),
        Source::Pool { pool, kind: Kind::Own } => {
            format!("Your devices mine your own template, for {}.", quoted(view, pool))
        }
        Source::Pool { pool, kind: Kind::Theirs } => {
            let name = quoted(view, pool);
            format!("Your devices mine a template of {name}, not your own.")
        }
    }
}

/// What that means: promised or not, and why not otherwise.
pub(super) fn meaning(status: &Status) -> &'static str {
    let view = &status.view;
    let Some(work) = &view.work else {
        return match (&view.node_away, view.pools.is_empty()) {
            (Some(_), true) => "Work comes with the first answer of your node.",
            (Some(_), false) => "Work comes with the first answer of your node, or of a pool.",
            (None, _) => "Your node answers; the first template is on its way.",
        };
    };
    match work.source {
        Source::Pool { kind: Kind::Own, .. } if work.is_promised => {
            "The pool has promised to count work on it."
        }
        Source::Pool { kind: Kind::Own, .. } => {
            "The pool has been asked and has not promised it yet. Shares wait here and are sent as soon as \
             it has."
        }
        Source::Pool { kind: Kind::Theirs, .. } if view.node_away.is_some() => {
            "Your node cannot be built upon at the moment. The pool counts the work as always; your own \
             templates follow when the node is back."
        }
        Source::Pool { pool, kind: Kind::Theirs }
            if view.pools.get(pool).is_some_and(|pool| !pool.declares) =>
        {
            "No declare_address is set for this pool, so it chooses the transactions."
        }
        Source::Pool { kind: Kind::Theirs, .. } => {
            "This pool chooses the transactions: it takes no templates of others at the moment, or yours is \
             about to be declared."
        }
        Source::Solo if view.pools.is_empty() => {
            "No pool is configured. A block pays you all of its reward; until then you earn nothing."
        }
        Source::Solo if is_owners_limit(view) => {
            "No pool is out of order: what they ask to be paid is beyond the limit that you set \
             (reward_to_others_max_percent), so they are not mined for. A block found meanwhile pays you all \
             of its reward."
        }
        Source::Solo => {
            "No pool can be used at the moment. A block found meanwhile pays you all of its reward. Pools \
             are tried again all the time."
        }
    }
}

/// Every pool was left for the owner's limit alone.
fn is_owners_limit(view: &View) -> bool {
    !view.pools.is_empty() && view.pools.iter().all(|pool| pool.is_beyond_limit)
}

/// How the node stands, if it cannot be built upon.
pub(super) fn node_away(status: &Status) -> Option<String> {
    let why = reason(status.view.node_away.as_ref()?);
    let meanwhile = match status.view.work.as_ref().map(|work| work.source) {
        Some(Source::Pool { kind: Kind::Theirs, .. }) => {
            "Your devices go on with the pool's own template meanwhile, and nothing is lost to you but the \
             choice of transactions."
        }
        Some(Source::Pool { kind: Kind::Own, .. } | Source::Solo) => {
            "Your devices go on with its last template until something better is there."
        }
        None => "Your devices have nothing to do until it is back or a pool can be reached.",
    };
    Some(format!("Your node cannot be built upon: {why}. {meanwhile}"))
}

/// How it stands with a pool: a word for programs, a sentence for people.
pub(super) fn pool_state(state: &PoolState, now_ms: u64) -> (&'static str, String) {
    match state {
        PoolState::InUse(Kind::Own) => ("in-use-own", "in use, with your templates".to_owned()),
        PoolState::InUse(Kind::Theirs) => {
            ("in-use-theirs", "in use, with its templates".to_owned())
        }
        PoolState::Ready => ("ready", "ready, not in use".to_owned()),
        PoolState::Trying => ("trying", "being connected".to_owned()),
        PoolState::Waiting { .. } => {
            let seconds = retry_in_s(state, now_ms).unwrap_or_default();
            ("waiting", format!("next try in {}", span(seconds)))
        }
        PoolState::Unused => ("unused", "not needed: a better one is in use".to_owned()),
    }
}

/// When a pool that waits is tried again, rounded up.
pub(super) fn retry_in_s(state: &PoolState, now_ms: u64) -> Option<u64> {
    match state {
        PoolState::Waiting { until_ms } => Some(until_ms.saturating_sub(now_ms).div_ceil(1_000)),
        PoolState::InUse(_) | PoolState::Ready | PoolState::Trying | PoolState::Unused => None,
    }
}

/// What a refusal's code means to whoever owns the device.
pub(super) fn refusal(code: &str) -> &str {
    match code {
        "stale-share" => "too late, the next block was already being mined",
        "duplicate-share" => "sent twice",
        "difficulty-too-low" => "below the difficulty that was asked for",
        "invalid-job-id" => "for a job that is not known (any more)",
        "invalid-channel-id" => "for a channel that is not open",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_the_next_prefix_in_time() {
        let cases = [
            (0.0, "0.00 H/s"),
            (0.5, "0.50 H/s"),
            (999.4, "999 H/s"),
            (999.5, "1.00 kH/s"),
            (1.234e12, "1.23 TH/s"),
            (12.34e12, "12.3 TH/s"),
            (123.4e12, "123 TH/s"),
            (9.996e12, "10.0 TH/s"),
            (1e27, "1000 YH/s"),
            (f64::NAN, "0.00 H/s"),
            (f64::INFINITY, "0.00 H/s"),
            (-1.0, "0.00 H/s"),
        ];
        for (value, text) in cases {
            assert_eq!(with_unit(value, "H/s"), text);
        }
        let rate = HashRate { estimate: 1e12, low: 0.95e12, high: 1.1e12 };
        assert_eq!(band(rate).unwrap(), "between 0.95 and 1.10 TH/s");
        assert_eq!(band(HashRate::default()), None);
        assert_eq!(band(HashRate { estimate: 0.0, low: 0.0, high: f64::INFINITY }), None);
    }

    #[test]
    fn difficulties_spans_money_and_parts_read_as_people_write_them() {
        assert_eq!(difficulty(4_096.0), "4,096");
        assert_eq!(difficulty(2f64.powi(-9)), "0.00195");
        assert_eq!(difficulty(2f64.powi(-32)), "2.3e-10");
        assert_eq!(difficulty(1.5e6), "1.50 M");
        assert_eq!(difficulty(0.0), "0.00");
        let spans = [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_599, "59 min"), (3_600, "1 h")];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
        assert_eq!((span(3_660), span(90_000)), ("1 h 1 min".to_owned(), "1 d 1 h".to_owned()));
        assert_eq!(ago(100, 200), "0 s ago", "a clock that was set back");
        assert_eq!(btc(312_500_001), "3.12500001 BTC");
        assert_eq!(btc(u64::MAX), "184467440737.09551615 BTC");
        assert_eq!((percent(1, 3), percent(0, 0), percent(u64::MAX, 1) > 1e20), (33.3, 0.0, true));
    }

    #[test]
    fn a_foreign_text_is_one_line_of_bounded_length() {
        assert_eq!(shown("a\r\nb\u{202e}c\u{0}"), "a\u{fffd}\u{fffd}b\u{fffd}c\u{fffd}");
        let whole = "ä".repeat(SHOWN_TEXT_MAX);
        assert_eq!(shown(&whole), whole);
        assert_eq!(shown(&format!("{whole}ä")), format!("{whole}…"));
        let whole = "ä".repeat(SHOWN_REASON_MAX);
        assert_eq!(reason(&whole), whole);
        assert_eq!(reason(&format!("{whole}ä")), format!("{whole}…"));
    }
}
