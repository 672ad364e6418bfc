//! Whether a pool looks at shares at all: one connection sends good ones and bad ones of several kinds, and
//! says which were acknowledged and which refused. Asked by `compare --pool` of every pool in every
//! round, so that no figure comes from a pool that takes everything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use proto::message::{Message, Received, SubmitSharesExtended};
use proto::target::Target;
use tokio::time::timeout;

use super::book::Book;
use super::connection::dial;
use super::options::Kind;
use super::runtime;
use super::session::{Opening, Session};
use super::work::Rolled;

/// As many as SRI's pool acknowledges at a time as it ships: fewer would never be answered.
const GOOD: u32 = 10;
/// From dialling to the last answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Header times this far ahead are out of every window.
const NTIME_TOO_FAR_S: u32 = 86_400;

/// What a pool said to each kind of share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts {
    /// Good shares that were acknowledged.
    pub acknowledged: u32,
    /// Refused shares by kind: those of `Bad`, or `good`.
    pub refused: BTreeMap<&'static str, String>,
}

impl Verdicts {
    /// Every good share was acknowledged and every bad one refused.
    #[must_use]
    pub fn are_right(&self) -> bool {
        self.acknowledged == GOOD && self.refused.keys().copied().eq(BAD_SORTED)
    }
}

const DUPLICATE: &str = "duplicate";
const UNKNOWN_JOB: &str = "unknown job";
const TIME_TOO_FAR: &str = "time too far ahead";
const BAD: [&str; 3] = [DUPLICATE, UNKNOWN_JOB, TIME_TOO_FAR];
const BAD_SORTED: [&str; 3] = [DUPLICATE, TIME_TOO_FAR, UNKNOWN_JOB];

/// Sends good and bad shares on a connection of its own. The pool's difficulty must be one that every hash
/// meets.
///
/// # Errors
/// No connection, or not every share was answered in time.
pub fn probe(address: SocketAddr, hash_rate: f32) -> Result<Verdicts> {
    let asked = async {
        timeout(DEADLINE, ask(address, hash_rate)).await.context("not every share was answered")?
    };
    runtime()?.block_on(asked).map_err(|why| anyhow!("the probe: {why:#}"))
}

async fn ask(address: SocketAddr, hash_rate: f32) -> Result<Verdicts> {
    let mut link = dial(address, None, None).await.map_err(anyhow::Error::msg)?;
    let opening = Opening { kind: Kind::Extended, channels: 1, hash_rate, max_target: Target::MAX };
    let (mut session, book) = (Session::new(opening), Rc::new(RefCell::new(Book::default())));
    let mut frames = Vec::new();
    session.start(&mut frames);
    let mut verdicts = Verdicts { acknowledged: 0, refused: BTreeMap::new() };
    let mut is_sent = false;
    loop {
        if session.is_ready() && !is_sent {
            is_sent = true;
            shares(&mut session, &mut frames);
        }
        link.connection().outbound.send_frames(&frames);
        frames.clear();
        link.flush().await?;
        if verdicts.acknowledged as usize + verdicts.refused.len() >= GOOD as usize + BAD.len() {
            return Ok(verdicts);
        }
        if link.fill().await? == 0 {
            return Err(anyhow!("closed by the pool, after {verdicts:?}"));
        }
        while let Some(frame) = link.connection().inbound.next_frame()? {
            let said = frame.message()?;
            verdicts.hear(&said);
            let now = std::time::Instant::now();
            let heard = session.hear(said, now, &mut frames, &mut book.borrow_mut());
            heard.map_err(anyhow::Error::msg)?;
        }
    }
}

impl Verdicts {
    fn hear(&mut self, said: &Received<'_>) {
        if let Received::Known(Message::SubmitSharesSuccess(success), _) = said {
            self.acknowledged += success.new_submits_accepted_count;
        }
        if let Received::Known(Message::SubmitSharesError(error), _) = said {
            // Sequence numbers count from one: the good ones first.
            let bad = error.sequence_number.checked_sub(GOOD + 1);
            let kind = bad.and_then(|bad| BAD.get(bad as usize)).copied().unwrap_or("good");
            self.refused.insert(kind, error.error_code.printable());
        }
    }
}

/// The good ones, then one of each bad kind, in the order of `BAD`.
fn shares(session: &mut Session, frames: &mut Vec<u8>) {
    let Some((channel_id, work)) = session.first_work() else { return };
    let mut rolled: Vec<Rolled> = (1..=GOOD).map(|nonce| work.fixed(nonce)).collect();
    let good = work.fixed(1);
    rolled.push(good);
    rolled.push(Rolled { job_id: good.job_id.wrapping_add(1_000), ..work.fixed(GOOD + 1) });
    rolled.push(Rolled { ntime: good.ntime.saturating_add(NTIME_TOO_FAR_S), ..good });
    for (index, share) in rolled.into_iter().enumerate() {
        let Rolled { job_id, version, ntime, nonce, extranonce } = share;
        Message::from(SubmitSharesExtended {
            channel_id,
            sequence_number: index as u32 + 1,
            job_id,
            nonce,
            ntime,
            version,
            extranonce,
        })
        .encode(frames);
    }
}
