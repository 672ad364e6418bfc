//! The owner's own count of his work beside what a pool shows for him. `watch` asks a pool's API once a
//! minute; the page shows what the comparison says.
//!
//! Must never accuse a pool of what may be on its way, nor grow or fail by anything that a pool answers.

use std::borrow::Cow;

use proto::mining::Owner;
use ruint::aliases::U256;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch::Sender;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock::unix_s;
use crate::declarator::PoolTally;
use crate::limits::{
    CREDIT_ANSWER_DEADLINE, CREDIT_ANSWER_LEN_MAX, CREDIT_ASK_EVERY, CREDIT_DIGITS_MAX,
    CREDIT_IN_FLIGHT_SHARES, CREDIT_LESS_PERCENT_MAX, CREDIT_WENT_DOWN_MAX, POOLS_MAX,
};

/// The owner's count at one moment: what one pool has acknowledged since we started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Own {
    /// Shares.
    pub shares: u64,
    /// Expected hashes of them.
    pub work: U256,
}

impl From<&PoolTally> for Own {
    fn from(tally: &PoolTally) -> Self {
        Self { shares: tally.acknowledged, work: tally.acknowledged_work }
    }
}

/// What a pool shows for an account, of all its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Expected hashes.
    pub work: U256,
    /// What of that was credited; `None` if the pool does not say.
    pub credit: Option<U256>,
}

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The pool shows as much or more (the account may mine elsewhere, too), or so little less that it
    /// means nothing; and credits that, if it says.
    Same,
    /// It shows less than it has acknowledged.
    PoolShowsLess {
        /// Of the owner's count.
        percent: f64,
    },
    /// It shows the work and credits less. An honest pool does so, too, where the owner's templates had
    /// fewer fees than its own: that is his to know.
    PoolCreditsLess {
        /// Of the work that it shows.
        percent: f64,
    },
    /// There is nothing to say.
    Unknown(Unknown),
}

/// Why there is nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unknown {
    /// The pool has been asked once at most, or started to count anew.
    #[error("counting has just begun")]
    JustBegun,
    /// The pool shows less than it did, so often by now; counting begins anew.
    #[error("the pool's number went down ({0} times since the start)")]
    WentDown(u32),
    /// Any difference could be on its way.
    #[error("too few shares to tell")]
    TooFewShares,
    /// The pool's API has not been asked with success.
    #[error("{0}")]
    NoAnswer(Fault),
}

/// Why a pool's API says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// No connection, or it broke.
    #[error("the pool's page cannot be reached")]
    Unreachable,
    /// `CREDIT_ANSWER_DEADLINE`.
    #[error("the pool's page does not answer in time")]
    TooLate,
    /// `CREDIT_ANSWER_LEN_MAX`.
    #[error("the pool's page is too long to be read")]
    TooLong,
    /// Another status than 200.
    #[error("the pool's page answers with status {0}")]
    Status(u16),
    /// No HTTP, no JSON, or not the fields that ours has.
    #[error("the pool's page cannot be understood")]
    Nonsense,
    /// The list is cut: the account or some of its workers may not be on it, and a part of them would
    /// accuse a pool of what it left out of its page.
    #[error("the pool's page lists only some of its workers")]
    NotListed,
}

/// Both counts since the same moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The pool, as the owner calls it.
    pub pool: String,
    /// When counting began, unix seconds.
    pub since: u32,
    /// When the pool was heard last, unix seconds; 0: never.
    pub heard_at: u32,
    /// Shares that the pool acknowledged since then.
    pub own_shares: u64,
    /// Expected hashes of them.
    pub own_work: U256,
    /// What the pool shows more than then.
    pub pool_work: U256,
    /// What of that it credited, if it says.
    pub pool_credit: Option<U256>,
    /// What that means.
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy)]
struct Baseline {
    own: Own,
    pool: Shown,
}

/// One pool's comparisons, reading after reading. Pure.
#[derive(Debug)]
pub struct Comparer {
    baseline: Option<Baseline>,
    /// The readings before this one.
    last: (Own, Shown),
    /// How often the pool's number went down.
    went_down: u32,
    said: Comparison,
}

impl Comparer {
    /// Before the pool was asked.
    #[must_use]
    pub fn new(pool: String, now: u32) -> Self {
        let said = Comparison {
            pool,
            since: now,
            heard_at: 0,
            own_shares: 0,
            own_work: U256::ZERO,
            pool_work: U256::ZERO,
            pool_credit: None,
            verdict: Verdict::Unknown(Unknown::JustBegun),
        };
        Self { baseline: None, last: Default::default(), went_down: 0, said }
    }

    /// What was said last.
    #[must_use]
    pub fn said(&self) -> &Comparison {
        &self.said
    }

    /// The pool was asked: what it shows, and the owner's counts before it was asked and after it answered.
    pub fn heard(&mut self, now: u32, before: Own, shown: Result<Shown, Fault>, after: Own) {
        let shown = match shown {
            Ok(shown) => shown,
            // The last counts stay on the page.
            Err(fault) => {
                self.said.verdict = Verdict::Unknown(Unknown::NoAnswer(fault));
                return;
            }
        };
        let (last, last_shown) = std::mem::replace(&mut self.last, (before, shown));
        self.said.heard_at = now;
        let went_down = self.baseline.is_some() && is_less(shown, last_shown);
        self.went_down = self.went_down.saturating_add(u32::from(went_down));
        // A number that goes down again and again would never be compared with anything.
        let begins_anew = went_down && self.went_down <= CREDIT_WENT_DOWN_MAX;
        let goes_on = !begins_anew && before.work >= last.work;
        let baseline = self.baseline.filter(|_| goes_on);
        let Some(Baseline { own, pool }) = baseline else {
            // The later count: what was acknowledged meanwhile may be in the pool's number already.
            self.baseline = Some(Baseline { own: after, pool: shown });
            self.last.0 = after;
            self.said.since = now;
            (self.said.own_shares, self.said.own_work, self.said.pool_work) = Default::default();
            self.said.pool_credit = None;
            self.said.verdict = Verdict::Unknown(match went_down {
                true => Unknown::WentDown(self.went_down),
                false => Unknown::JustBegun,
            });
            return;
        };
        let since = |from: Own| Own {
            shares: before.shares.saturating_sub(from.shares),
            work: before.work.saturating_sub(from.work),
        };
        let (counted, lately) = (since(own), since(last));
        self.said.own_shares = counted.shares;
        self.said.own_work = counted.work;
        self.said.pool_work = shown.work.saturating_sub(pool.work);
        let credits = shown.credit.zip(pool.credit);
        self.said.pool_credit = credits.map(|(now, then)| now.saturating_sub(then));
        // Shares on their way are of today's size, which may be more than that of the first.
        let each = share_work(counted).max(share_work(lately));
        let shown = Shown { work: self.said.pool_work, credit: self.said.pool_credit };
        self.said.verdict = compare(counted, shown, each);
    }
}

/// Whether either number went down.
fn is_less(shown: Shown, than: Shown) -> bool {
    let credits = shown.credit.zip(than.credit);
    shown.work < than.work || credits.is_some_and(|(shown, than)| shown < than)
}

/// The work of a share on average, rounded up.
fn share_work(own: Own) -> U256 {
    own.work.checked_div(U256::from(own.shares)).map_or(U256::ZERO, |each| each + U256::from(1))
}

/// The owner's count against the pool's since the same moment; `each` is what a share on its way may be.
#[must_use]
pub fn compare(own: Own, pool: Shown, each: U256) -> Verdict {
    if own.shares <= CREDIT_IN_FLIGHT_SHARES {
        return Verdict::Unknown(Unknown::TooFewShares);
    }
    let missing = own.work.saturating_sub(pool.work);
    let in_flight = each.saturating_mul(U256::from(CREDIT_IN_FLIGHT_SHARES));
    if missing > tolerated(own.work).saturating_add(in_flight) {
        return Verdict::PoolShowsLess { percent: percent(missing, own.work) };
    }
    // Both numbers are of one answer and of all that the account mines: nothing of it is on its way.
    let uncredited = pool.credit.map_or(U256::ZERO, |credit| pool.work.saturating_sub(credit));
    if uncredited > tolerated(pool.work) {
        return Verdict::PoolCreditsLess { percent: percent(uncredited, pool.work) };
    }
    Verdict::Same
}

/// Divided first: no work is so small that the rounding counts, nor so large that this overflows.
fn tolerated(work: U256) -> U256 {
    work / U256::from(100) * U256::from(CREDIT_LESS_PERCENT_MAX)
}

fn percent(part: U256, of: U256) -> f64 {
    for_display(part) / for_display(of) * 100.0
}

/// About so much; display only.
#[must_use]
pub fn for_display(work: U256) -> f64 {
    work.as_limbs().iter().rev().fold(0.0, |sum, limb| sum * 2f64.powi(64) + *limb as f64)
}

// ---- asking ----

/// Where a pool shows its workers: plain `http://`, as it is on the pool's own page port. What is read is
/// public and decides nothing, so https is left to a proxy at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// `host:port`, for dialling.
    address: String,
    /// As the URL has it.
    host: String,
    path: String,
}

/// Why a URL is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadUrl {
    /// Of another kind.
    #[error("a pool's API is asked over plain http://, nothing else")]
    NotHttp,
    /// No host, a name with password, a query, or characters that belong in no URL.
    #[error("expected http://host:port, maybe with a folder behind it")]
    Odd,
}

impl std::str::FromStr for Api {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        let rest = url.strip_prefix("http://").ok_or(BadUrl::NotHttp)?;
        let (host, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let belongs = |c: char| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#' | '\\');
        if host.is_empty() || !rest.chars().all(belongs) {
            return Err(BadUrl::Odd);
        }
        let name_end = host.rfind(']').unwrap_or(0);
        let address = match host[name_end..].split_once(':') {
            Some((_, port)) => {
                port.parse::<u16>().map_err(|_| BadUrl::Odd)?;
                host.to_owned()
            }
            None => format!("{host}:80"),
        };
        if address.starts_with(':') {
            return Err(BadUrl::Odd);
        }
        let folder = folder.trim_end_matches('/');
        let slash = if folder.is_empty() { "" } else { "/" };
        let path = format!("{slash}{folder}/api/v1/workers");
        Ok(Self { address, host: host.to_owned(), path })
    }
}

impl Api {
    /// What the pool shows for an account.
    ///
    /// # Errors
    /// Why it shows nothing.
    pub async fn shown_for(&self, account: &str) -> Result<Shown, Fault> {
        let answer = timeout(CREDIT_ANSWER_DEADLINE, self.ask()).await;
        let answer = answer.map_err(|_| Fault::TooLate)??;
        shown_for(account, body(&answer)?)
    }

    /// HTTP/1.0, so that the answer ends with the connection and is in one piece.
    async fn ask(&self) -> Result<Vec<u8>, Fault> {
        let failed = |_| Fault::Unreachable;
        let mut stream = TcpStream::connect(&self.address).await.map_err(failed)?;
        let Self { host, path, .. } = self;
        let question = format!(
            "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(question.as_bytes()).await.map_err(failed)?;
        let mut answer = Vec::new();
        let mut bounded = stream.take(CREDIT_ANSWER_LEN_MAX as u64 + 1);
        bounded.read_to_end(&mut answer).await.map_err(failed)?;
        if answer.len() > CREDIT_ANSWER_LEN_MAX { Err(Fault::TooLong) } else { Ok(answer) }
    }
}

/// The body of an answer that is "200".
fn body(answer: &[u8]) -> Result<&[u8], Fault> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or(Fault::Nonsense)?;
    let head =
        answer.get(..end).and_then(|head| str::from_utf8(head).ok()).ok_or(Fault::Nonsense)?;
    let status = head.strip_prefix("HTTP/1.").and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|status| status.get(..3)?.parse().ok()).ok_or(Fault::Nonsense)?;
    if status != 200 {
        return Err(Fault::Status(status));
    }
    Ok(&answer[end + 4..])
}

/// GET /api/v1/workers, what is read of it.
#[derive(Deserialize)]
struct WorkersPage<'a> {
    workers_total: u64,
    #[serde(borrow)]
    workers: Vec<WorkerRow<'a>>,
}

#[derive(Deserialize)]
struct WorkerRow<'a> {
    #[serde(borrow)]
    account: Cow<'a, str>,
    /// Expected hashes, decimal.
    #[serde(borrow)]
    work: Cow<'a, str>,
    /// What of that was credited, decimal. Ours says it; a pool that takes no declared jobs need not.
    #[serde(borrow)]
    credit: Option<Cow<'a, str>>,
}

/// The sum of an account's rows in a pool's JSON.
///
/// # Errors
/// It is not that JSON, or it does not list all workers.
pub fn shown_for(account: &str, json: &[u8]) -> Result<Shown, Fault> {
    let page: WorkersPage<'_> = serde_json::from_slice(json).map_err(|_| Fault::Nonsense)?;
    if page.workers_total > page.workers.len() as u64 {
        return Err(Fault::NotListed);
    }
    let mut sum = Shown { work: U256::ZERO, credit: Some(U256::ZERO) };
    for row in page.workers.iter().filter(|row| row.account == account) {
        sum.work = sum.work.checked_add(number(&row.work)?).ok_or(Fault::Nonsense)?;
        let credit = row.credit.as_deref().map(number).transpose()?;
        sum.credit = match sum.credit.zip(credit) {
            Some((sum, credit)) => Some(sum.checked_add(credit).ok_or(Fault::Nonsense)?),
            None => None,
        };
    }
    Ok(sum)
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Result<U256, Fault> {
    let is_number = text.len() <= CREDIT_DIGITS_MAX
        && !text.is_empty()
        && text.bytes().all(|digit| digit.is_ascii_digit());
    let number = is_number.then(|| U256::from_str_radix(text, 10).ok()).flatten();
    number.ok_or(Fault::Nonsense)
}

/// A pool whose API is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its place in the owner's list.
    pub pool: usize,
    /// As the owner calls it.
    pub name: String,
    /// Where.
    pub api: Api,
    /// The account there, as the pool cuts it from `user`.
    pub account: String,
}

impl Asked {
    /// `user` as the pool is told it, `account.worker`; `None` if no pool would take it.
    #[must_use]
    pub fn new(pool: usize, name: String, api: Api, user: &str) -> Option<Self> {
        let account = Owner::of_identity(user.as_bytes())?.account.as_ref().to_owned();
        Some(Self { pool, name, api, account })
    }
}

/// Asks each of these pools once a minute, one after the other, and publishes what that comes to. `own` is
/// the owner's count at a pool of his list. Ends with `stop`.
pub async fn watch(
    asked: Vec<Asked>,
    own: impl Fn(usize) -> Own + Send,
    out: Sender<Vec<Comparison>>,
    stop: CancellationToken,
) {
    let now = unix_s();
    let begin = |asked: Asked| (Comparer::new(asked.name.clone(), now), asked);
    let mut pools: Vec<_> = asked.into_iter().take(POOLS_MAX).map(begin).collect();
    let publish = |pools: &[(Comparer, Asked)]| {
        out.send_replace(pools.iter().map(|(comparer, _)| comparer.said().clone()).collect());
    };
    publish(&pools);
    let mut ticks = interval(CREDIT_ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let asking = async {
        loop {
            ticks.tick().await;
            for at in 0..pools.len() {
                let (comparer, asked) = &mut pools[at];
                let before = own(asked.pool);
                let shown = asked.api.shown_for(&asked.account).await;
                hear(comparer, before, shown, own(asked.pool));
                publish(&pools);
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        never = asking => never,
    }
}

/// Hands a reading on; a pool that begins to show or to credit less is said in the log once.
fn hear(comparer: &mut Comparer, before: Own, shown: Result<Shown, Fault>, after: Own) {
    let was = std::mem::discriminant(&comparer.said().verdict);
    let went_down = comparer.went_down;
    comparer.heard(unix_s(), before, shown, after);
    let Comparison { pool, verdict, .. } = comparer.said();
    if comparer.went_down > went_down {
        warn!(%pool, times = comparer.went_down, "the pool shows less work than a minute ago");
    }
    if std::mem::discriminant(verdict) == was {
        return;
    }
    match verdict {
        Verdict::PoolShowsLess { percent } => {
            warn!(%pool, percent = %format_args!("{percent:.1}"), "the pool shows less work than it acknowledged");
        }
        Verdict::PoolCreditsLess { percent } => {
            warn!(%pool, percent = %format_args!("{percent:.1}"), "the pool credits less than the work that it shows");
        }
        Verdict::Same | Verdict::Unknown(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: u64 = 1_000;

    fn own(shares: u64) -> Own {
        Own { shares, work: U256::from(shares * EACH) }
    }

    /// Of a pool that does not say what it credits.
    fn work(work: U256) -> Shown {
        Shown { work, credit: None }
    }

    fn shown(hashes: u64) -> Result<Shown, Fault> {
        Ok(work(U256::from(hashes)))
    }

    fn credited(work: u64, credit: u64) -> Shown {
        Shown { work: U256::from(work), credit: Some(U256::from(credit)) }
    }

    fn judged(shares: u64, pool_work: u64) -> Verdict {
        compare(own(shares), work(U256::from(pool_work)), U256::from(EACH))
    }

    #[test]
    fn two_percent_and_eight_shares_less_are_tolerated_and_one_hash_beyond_is_said() {
        // 1,000 shares: 20 for the two percent and 8 on their way.
        assert_eq!(judged(1_000, 972_000), Verdict::Same);
        let Verdict::PoolShowsLess { percent } = judged(1_000, 971_999) else {
            panic!("one beyond is said");
        };
        assert!((percent - 2.8).abs() < 0.001, "{percent}");
        assert_eq!(judged(1_000, 0), Verdict::PoolShowsLess { percent: 100.0 });
    }

    #[test]
    fn a_pool_that_shows_all_work_and_credits_less_is_said() {
        let judged = |work, credit| compare(own(1_000), credited(work, credit), U256::from(EACH));
        assert_eq!(judged(1_000_000, 1_050_000), Verdict::Same);
        assert_eq!(judged(1_000_000, 980_000), Verdict::Same);
        let Verdict::PoolCreditsLess { percent } = judged(1_000_000, 979_999) else {
            panic!("one beyond is said");
        };
        assert!((percent - 2.0).abs() < 0.001, "{percent}");
        assert_eq!(judged(1_000_000, 10_000), Verdict::PoolCreditsLess { percent: 99.0 });
        // The account mines elsewhere, too: what is shown is credited in part, for whomever.
        assert_eq!(judged(4_000_000, 1_000_000), Verdict::PoolCreditsLess { percent: 75.0 });
        // Work that is not shown is the graver lack.
        assert_eq!(judged(500_000, 5_000), Verdict::PoolShowsLess { percent: 50.0 });
    }

    #[test]
    fn a_pool_that_credits_little_is_said_of_what_was_credited_since() {
        let mut comparer = Comparer::new("Home".into(), 0);
        // What was credited before we looked is not ours to judge.
        comparer.heard(60, own(0), Ok(credited(900_000, 0)), own(0));
        comparer.heard(120, own(100), Ok(credited(1_000_000, 99_000)), own(100));
        assert_eq!(comparer.said().pool_credit, Some(U256::from(99_000)));
        assert_eq!(comparer.said().verdict, Verdict::Same);
        comparer.heard(180, own(200), Ok(credited(1_100_000, 100_000)), own(200));
        assert_eq!(comparer.said().verdict, Verdict::PoolCreditsLess { percent: 50.0 });
        comparer.heard(240, own(300), Ok(credited(1_200_000, 99_999)), own(300));
        assert_eq!(comparer.said().verdict, Verdict::Unknown(Unknown::WentDown(1)));
        // It stops saying so, and begins again: work alone is compared.
        comparer.heard(300, own(400), shown(1_300_000), own(400));
        assert_eq!((comparer.said().pool_credit, &comparer.said().verdict), (None, &Verdict::Same));
    }

    #[test]
    fn a_pool_that_shows_more_is_not_complained_of() {
        assert_eq!(judged(1_000, 1_000_000), Verdict::Same);
        assert_eq!(judged(1_000, u64::MAX), Verdict::Same);
    }

    #[test]
    fn what_may_all_be_on_its_way_is_not_judged() {
        assert_eq!(judged(0, 0), Verdict::Unknown(Unknown::TooFewShares));
        assert_eq!(judged(8, 8_000), Verdict::Unknown(Unknown::TooFewShares));
        assert_eq!(judged(9, 8_000), Verdict::Same);
        assert!(matches!(judged(9, 0), Verdict::PoolShowsLess { .. }));
    }

    #[test]
    fn counting_begins_with_the_first_reading_whatever_was_before() {
        let mut comparer = Comparer::new("Home".into(), 100);
        assert_eq!(comparer.said().heard_at, 0);
        comparer.heard(160, own(50), shown(7_000_000), own(52));
        assert_eq!(comparer.said().verdict, Verdict::Unknown(Unknown::JustBegun));
        comparer.heard(220, own(152), shown(7_100_000), own(152));
        let said = comparer.said();
        assert_eq!((said.since, said.heard_at, said.own_shares), (160, 220, 100));
        assert_eq!((said.own_work, said.pool_work), (U256::from(100_000), U256::from(100_000)));
        assert_eq!(said.verdict, Verdict::Same);
    }

    #[test]
    fn counters_that_go_back_begin_anew_and_the_same_number_does_not() {
        let mut comparer = Comparer::new("Home".into(), 0);
        comparer.heard(60, own(0), shown(500_000), own(0));
        comparer.heard(120, own(100), shown(500_000), own(100));
        assert!(matches!(comparer.said().verdict, Verdict::PoolShowsLess { .. }));
        comparer.heard(180, own(200), shown(499_999), own(200));
        let said = comparer.said();
        assert_eq!(said.verdict, Verdict::Unknown(Unknown::WentDown(1)));
        assert_eq!((said.since, said.own_shares, said.own_work), (180, 0, U256::ZERO));
        comparer.heard(240, own(300), shown(599_999), own(300));
        assert_eq!(comparer.said().verdict, Verdict::Same);
        // The owner's own count began anew.
        comparer.heard(300, own(0), shown(699_999), own(0));
        assert_eq!(comparer.said().since, 300);
    }

    #[test]
    fn a_number_that_goes_down_again_and_again_is_compared_all_the_same() {
        let mut comparer = Comparer::new("Home".into(), 0);
        let verdicts: Vec<Verdict> = (0..5)
            .map(|minute| {
                comparer.heard(60, own(20 * minute), shown(500_000 - minute), own(20 * minute));
                comparer.said().verdict.clone()
            })
            .collect();
        let down = |times| Verdict::Unknown(Unknown::WentDown(times));
        assert_eq!(verdicts[..3], [Verdict::Unknown(Unknown::JustBegun), down(1), down(2)]);
        for verdict in &verdicts[3..] {
            assert_eq!(*verdict, Verdict::PoolShowsLess { percent: 100.0 });
        }
    }

    #[test]
    fn an_answer_that_fails_keeps_the_last_counts_and_the_baseline() {
        let mut comparer = Comparer::new("Home".into(), 0);
        comparer.heard(60, own(0), shown(0), own(0));
        comparer.heard(120, own(100), shown(100_000), own(100));
        comparer.heard(180, own(110), Err(Fault::TooLate), own(110));
        let said = comparer.said();
        assert_eq!(said.verdict, Verdict::Unknown(Unknown::NoAnswer(Fault::TooLate)));
        assert_eq!((said.since, said.heard_at, said.own_shares), (60, 120, 100));
        comparer.heard(240, own(120), shown(120_000), own(120));
        assert_eq!((comparer.said().since, &comparer.said().verdict), (60, &Verdict::Same));
    }

    #[test]
    fn shares_on_their_way_are_as_large_as_the_latest() {
        let mut comparer = Comparer::new("Home".into(), 0);
        comparer.heard(60, own(0), shown(0), own(0));
        comparer.heard(120, own(100), shown(100_000), own(100));
        // Ten shares of a hundred times the size, and seven of them not shown yet.
        let larger = Own { shares: 110, work: U256::from(1_100_000) };
        comparer.heard(180, larger, shown(400_000), larger);
        assert_eq!(comparer.said().verdict, Verdict::Same);
    }

    #[test]
    fn no_number_overflows() {
        let all = Own { shares: u64::MAX, work: U256::MAX };
        assert_eq!(share_work(Own { shares: 0, work: U256::MAX }), U256::ZERO);
        assert!(matches!(
            compare(all, work(U256::ZERO), U256::from(1)),
            Verdict::PoolShowsLess { .. }
        ));
        assert_eq!(compare(all, work(U256::ZERO), U256::MAX), Verdict::Same);
        let mut comparer = Comparer::new("Home".into(), 0);
        comparer.heard(0, own(0), shown(0), own(0));
        let one = Own { shares: 1, work: U256::MAX };
        comparer.heard(0, one, Ok(work(U256::MAX)), one);
        assert_eq!(comparer.said().own_work, U256::MAX);
    }

    #[test]
    fn the_rows_of_the_account_are_summed_and_no_others() {
        let json = br#"{"workers_total": 3, "more": [1], "workers": [
            {"account":"home","worker":"a","work":"5","credit":"4","shares":1},
            {"account":"homes","worker":"a","work":"7"},
            {"account":"home","worker":"\u0062","work":"115792089237316195423570985008687907853269984665640564039457584007913129639930"}]}"#;
        // A row says nothing of credit, so that nothing can be said of their sum.
        assert_eq!(shown_for("home", json), Ok(work(U256::MAX)));
        assert_eq!(shown_for("homes", json), Ok(work(U256::from(7))));
        assert_eq!(shown_for("else", json), Ok(credited(0, 0)));
        let both = br#"{"workers_total": 2, "workers": [
            {"account":"home","work":"5","credit":"4"}, {"account":"home","work":"50","credit":"40"}]}"#;
        assert_eq!(shown_for("home", both), Ok(credited(55, 44)));
    }

    #[test]
    fn a_list_that_is_cut_says_nothing_of_any_account() {
        // Another worker of the account may be among those that are not listed.
        let cut = br#"{"workers_total": 2, "workers": [{"account":"home","work":"5"}]}"#;
        assert_eq!(shown_for("home", cut), Err(Fault::NotListed));
        assert_eq!(shown_for("else", cut), Err(Fault::NotListed));
    }

    #[test]
    fn nonsense_is_a_fault_and_not_a_number() {
        let in_place_of = |field: &str, number: &str| {
            let json =
                r#"{"workers_total":1,"workers":[{"account":"home","work":"5","credit":"5"}]}"#;
            json.replace(&format!("\"{field}\":\"5\""), &format!("\"{field}\":{number}"))
        };
        let one_more =
            "115792089237316195423570985008687907853269984665640564039457584007913129639936";
        let long = "0".repeat(CREDIT_DIGITS_MAX + 1);
        for field in ["work", "credit"] {
            for wrong in ["\"\"", "\"-1\"", "\"1_0\"", "\"0x5\"", "5", "[]", "\"1e9\""] {
                let json = in_place_of(field, wrong);
                assert_eq!(shown_for("home", json.as_bytes()), Err(Fault::Nonsense), "{json}");
            }
            for wrong in [one_more, &long] {
                let json = in_place_of(field, &format!("\"{wrong}\""));
                assert_eq!(shown_for("home", json.as_bytes()), Err(Fault::Nonsense), "{json}");
            }
        }
        assert_eq!(shown_for("home", in_place_of("work", "null").as_bytes()), Err(Fault::Nonsense));
        let deep = "[".repeat(100_000);
        for json in ["", "{}", "[]", "null", "{\"workers_total\":1,\"workers\":{}}", &deep] {
            assert_eq!(shown_for("home", json.as_bytes()), Err(Fault::Nonsense));
        }
        assert_eq!(shown_for("home", &[0xff; 64]), Err(Fault::Nonsense));
    }

    #[test]
    fn an_api_is_plain_http_and_nothing_that_could_break_a_request() {
        let api: Api = "http://pool.example:9000/".parse().unwrap();
        assert_eq!((&*api.address, &*api.path), ("pool.example:9000", "/api/v1/workers"));
        let api: Api = "http://[::1]/our/pool/".parse().unwrap();
        assert_eq!((&*api.address, &*api.path), ("[::1]:80", "/our/pool/api/v1/workers"));
        assert_eq!("https://pool.example".parse::<Api>(), Err(BadUrl::NotHttp));
        for odd in [
            "",
            ":80",
            "a:b",
            "a:65536",
            "me:pw@a",
            "a b",
            "a\r\nX: y",
            "a/?x",
            "a/#x",
            "[::1",
            "é",
        ] {
            assert_eq!(format!("http://{odd}").parse::<Api>(), Err(BadUrl::Odd), "{odd:?}");
        }
    }

    #[test]
    fn an_answer_is_http_with_status_200() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}"), Ok(&b"{}"[..]));
        assert_eq!(body(b"HTTP/1.0 200\r\n\r\n"), Ok(&b""[..]));
        assert_eq!(body(b"HTTP/1.1 503 Busy\r\n\r\n{}"), Err(Fault::Status(503)));
        for nonsense in
            [&b""[..], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", b"HTTP/1.1 \r\n\r\n", b"\xff\r\n\r\n"]
        {
            assert_eq!(body(nonsense), Err(Fault::Nonsense));
        }
    }
}
