//! What a device says of itself and wishes for: its name, a difficulty, extensions (BIP310). Part of `sv1`.
//!
//! A wish is no order: it becomes a hash rate that the server starts from, and shares say the rest. Only
//! BIP310's minimum-difficulty is an order, as `max_target` is in SV2.

use proto::limits::{DIFFICULTY_LOG2_MAX, USER_IDENTITY_MAX, VERSION_ROLLING_MASK};
use proto::mining::Now;
use proto::target::{Difficulty, Target};
use serde_json::{Map, Value, json};

use super::lines::{Refused, answer};
use super::{Channel, Out, Session};
use crate::limits::{SV1_VERSION_MASK, SV1_WISH_EVERY_MS};

/// What the difficulty should be by the device's own word.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Wished for: within what a `Difficulty` can be.
    pub(super) difficulty: Option<f64>,
    /// Nothing easier.
    pub(super) minimum: Option<Difficulty>,
    /// The server is to be told anew, and from then on listens.
    pub(super) due_ms: Option<u64>,
    /// From then on the server listens to a rate.
    next_ms: u64,
    /// `difficulty` was wished for since the server last listened.
    owes_rate: bool,
    /// `minimum` came too late for the opening.
    owes_minimum: bool,
}

impl Wishes {
    /// The server was told of the rate with the opening.
    pub(super) fn opened(&mut self, now: Now) {
        self.next_ms = now.mono_ms.saturating_add(SV1_WISH_EVERY_MS);
        // What was wished while the opening was under way is still to be told.
        self.due_ms = self.owes_rate.then_some(self.next_ms);
        // A limit counts at once.
        if std::mem::take(&mut self.owes_minimum) {
            self.due_ms = Some(now.mono_ms);
        }
    }

    /// The server is told now.
    pub(super) fn told(&mut self, now: Now) {
        if now.mono_ms >= self.next_ms {
            self.next_ms = now.mono_ms.saturating_add(SV1_WISH_EVERY_MS);
            self.owes_rate = false;
        }
        // A rate that is not heard yet is told again.
        self.due_ms = self.owes_rate.then_some(self.next_ms);
    }
}

impl Session {
    pub(super) fn on_authorize(&mut self, now: Now, id: &str, params: &[Value], out: &mut Out) {
        let text = |at: usize| params.get(at).and_then(Value::as_str);
        let is_first = self.worker.is_none();
        if is_first {
            self.worker = Some(printable(text(0).unwrap_or("")));
        }
        // Before its answer is needed nothing is refused: a bad wish in a password is somebody's password.
        if let Some(difficulty) = text(1).and_then(difficulty_in_password) {
            self.wish(now, difficulty);
        }
        answer(id, &json!(true), out);
        if is_first && matches!(self.channel, Channel::Open(_)) {
            self.jobs.start(out);
        }
    }

    pub(super) fn on_wish(&mut self, now: Now, id: &str, wish: Option<f64>, out: &mut Out) {
        match wish {
            Some(difficulty) => {
                self.wish(now, difficulty);
                answer(id, &json!(true), out);
            }
            None => Refused::other("No difficulty").write(id, out),
        }
    }

    fn wish(&mut self, now: Now, difficulty: f64) {
        if self.wishes.difficulty == Some(difficulty) {
            return;
        }
        self.wishes.difficulty = Some(difficulty);
        // Said with the opening, if that is still to come.
        if matches!(self.channel, Channel::Asked | Channel::Open(_)) {
            self.wishes.owes_rate = true;
            self.wishes.due_ms = Some(self.wishes.next_ms.max(now.mono_ms));
        }
    }

    pub(super) fn on_configure(&mut self, now: Now, id: &str, params: &[Value], out: &mut Out) {
        let names = params.first().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let wanted = |key: &str| params.get(1).and_then(|wanted| wanted.get(key));
        let mut result = Map::new();
        for name in names.iter().filter_map(Value::as_str) {
            let granted = match name {
                "version-rolling" => {
                    let bits = wanted("version-rolling.min-bit-count").and_then(Value::as_u64);
                    let mask = wanted("version-rolling.mask").map_or(Some(u32::MAX), hex_u32);
                    self.version_mask = rollable(mask.unwrap_or(0), bits.unwrap_or(0));
                    let mask = format!("{:08x}", self.version_mask);
                    result.insert("version-rolling.mask".to_owned(), mask.into());
                    self.version_mask != 0
                }
                "minimum-difficulty" => {
                    let minimum = wanted("minimum-difficulty.value").and_then(number);
                    self.at_least(now, minimum, out)
                }
                "subscribe-extranonce" => {
                    self.follows_extranonce = true;
                    true
                }
                _ => false,
            };
            result.insert(name.to_owned(), granted.into());
        }
        answer(id, &Value::Object(result), out);
    }

    /// The device takes nothing easier.
    fn at_least(&mut self, now: Now, minimum: Option<f64>, out: &mut Out) -> bool {
        let Some(minimum) = minimum else { return false };
        self.wishes.minimum = Some(not_easier_than(minimum));
        match self.channel {
            Channel::Open(opened) => self.update(now, opened, out),
            Channel::Asked => self.wishes.owes_minimum = true,
            Channel::None | Channel::Due { .. } => {}
        }
        true
    }
}

/// The bits that both sides let a device roll; none if they are fewer than it needs.
fn rollable(wanted: u32, bits: u64) -> u32 {
    let mask = wanted & SV1_VERSION_MASK & VERSION_ROLLING_MASK;
    if u64::from(mask.count_ones()) < bits { 0 } else { mask }
}

/// The easiest power of two that is not easier than this.
fn not_easier_than(difficulty: f64) -> Difficulty {
    let log2 = (Difficulty::MIN.log2()..DIFFICULTY_LOG2_MAX)
        .find(|log2| 2f64.powi(i32::from(*log2)) >= difficulty);
    Difficulty::from_log2(log2.unwrap_or(DIFFICULTY_LOG2_MAX))
}

/// `d=0.001` among other words, as pools have it.
fn difficulty_in_password(password: &str) -> Option<f64> {
    let words = password.split([',', ';', ' ']);
    words
        .filter_map(|word| word.trim().strip_prefix("d="))
        .find_map(|text| usable(text.parse().ok()?))
}

/// A difficulty that is written as a number, or as a text of one.
pub(super) fn number(value: &Value) -> Option<f64> {
    usable(value.as_f64().or_else(|| value.as_str()?.parse().ok())?)
}

/// The difficulty of a target in hex, as a number is written.
pub(super) fn target(value: &Value) -> Option<f64> {
    let text = value.as_str()?;
    let mut target = [0; 32];
    hex::decode_to_slice(format!("{text:0>64}"), &mut target).ok()?;
    target.reverse();
    let target = Target::from_le_bytes(target);
    if target.is_zero() { None } else { usable(target.difficulty_for_display()) }
}

/// Within what a server gives anybody; what is no difficulty at all is none.
fn usable(difficulty: f64) -> Option<f64> {
    let (least, most) = (Difficulty::MIN.log2(), DIFFICULTY_LOG2_MAX);
    let bounds = (2f64.powi(i32::from(least)), 2f64.powi(i32::from(most)));
    let is_one = difficulty.is_finite() && difficulty > 0.0;
    is_one.then(|| difficulty.clamp(bounds.0, bounds.1))
}

/// Up to eight digits; devices that write numbers do not all write the zeros before them.
pub(super) fn hex_u32(value: &Value) -> Option<u32> {
    let text = value.as_str()?;
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && text.len() <= 8 { u32::from_str_radix(text, 16).ok() } else { None }
}

/// Fit for a page, a log, and an identity on a channel.
pub(super) fn printable(text: &str) -> String {
    let ascii = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(USER_IDENTITY_MAX).map(ascii).collect()
}
