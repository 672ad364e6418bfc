//! Lines of JSON-RPC: cut out of the socket's bytes, read, answered; and how many a device may say. Part of
//! `sv1`, whose caller sees nothing of it.

use proto::mining::Now;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{End, Out};
use crate::limits::{SV1_ID_LEN_MAX, SV1_LINE_MAX, SV1_REQUEST_EVERY_MS, SV1_REQUESTS_BURST};

/// The beginning of a line whose end has not come.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// At most `SV1_LINE_MAX` bytes.
    kept: Vec<u8>,
    /// `kept` was handed out as a whole line.
    is_spent: bool,
}

impl Cutter {
    /// The next whole line off the front of `bytes`, without its end; `None` when there is none, and what
    /// is left of `bytes` is kept.
    pub(super) fn next_line<'a, 'b: 'a>(
        &'a mut self,
        bytes: &mut &'b [u8],
    ) -> Result<Option<&'a [u8]>, End> {
        if std::mem::take(&mut self.is_spent) {
            self.kept.clear();
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (piece, rest) = match end {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (*bytes, &[][..]),
        };
        if self.kept.len() + piece.len() > SV1_LINE_MAX {
            return Err(End::LineTooLong);
        }
        *bytes = rest;
        if end.is_some() && self.kept.is_empty() {
            return Ok(Some(piece));
        }
        self.kept.extend_from_slice(piece);
        self.is_spent = end.is_some();
        Ok(self.is_spent.then_some(&self.kept[..]))
    }
}

/// What a device says, as far as it concerns anybody.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) method: Option<String>,
    #[serde(default)]
    params: Value,
}

impl Line<'_> {
    /// The id as it is written, to be written again.
    pub(super) fn id(&self) -> Result<&str, Refused<'static>> {
        let Some(id) = self.id else { return Ok("null") };
        let id = id.get();
        let is_text_or_number =
            id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
        if is_text_or_number && id.len() <= SV1_ID_LEN_MAX {
            return Ok(id);
        }
        Err(Refused::other("An id is a short text or a number"))
    }

    /// Of any other shape than a list there are none.
    pub(super) fn params(&self) -> &[Value] {
        self.params.as_array().map_or(&[], Vec::as_slice)
    }
}

/// No, with the numbers that V1 devices know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused<'a> {
    code: i32,
    text: &'a str,
}

impl Refused<'static> {
    pub(super) const METHOD_NOT_FOUND: Self = Self { code: -3, text: "Method not found" };
    pub(super) const JOB_NOT_FOUND: Self = Self { code: 21, text: "Job not found" };
    pub(super) const STALE: Self = Self { code: 21, text: "Stale share" };
    pub(super) const DUPLICATE: Self = Self { code: 22, text: "Duplicate share" };
    pub(super) const LOW_DIFFICULTY: Self = Self { code: 23, text: "Low difficulty share" };
    pub(super) const UNAUTHORIZED: Self = Self { code: 24, text: "Unauthorized worker" };
    pub(super) const NOT_SUBSCRIBED: Self = Self { code: 25, text: "Not subscribed" };
}

impl<'a> Refused<'a> {
    /// For the reasons without a number.
    pub(super) const fn other(text: &'a str) -> Self {
        Self { code: 20, text }
    }

    pub(super) fn write(self, id: &str, out: &mut Out) {
        let Self { code, text } = self;
        // A text as JSON writes it.
        let text = Value::from(text);
        let line = format!("{{\"id\":{id},\"result\":null,\"error\":[{code},{text},null]}}\n");
        out.lines.extend_from_slice(line.as_bytes());
    }
}

/// The answer to a request.
pub(super) fn answer(id: &str, result: &Value, out: &mut Out) {
    let line = format!("{{\"id\":{id},\"result\":{result},\"error\":null}}\n");
    out.lines.extend_from_slice(line.as_bytes());
}

/// A word that nobody asked for.
pub(super) fn say(method: &str, params: &Value, out: &mut Out) {
    let line = format!("{{\"id\":null,\"method\":\"{method}\",\"params\":{params}}}\n");
    out.lines.extend_from_slice(line.as_bytes());
}

/// A budget of requests that fills up again over time.
#[derive(Debug)]
pub(super) struct Pace {
    left: u64,
    counted_ms: u64,
}

impl Pace {
    pub(super) fn new(now: Now) -> Self {
        Self { left: SV1_REQUESTS_BURST, counted_ms: now.mono_ms }
    }

    pub(super) fn take(&mut self, now: Now) -> Result<(), End> {
        let refilled = now.mono_ms.saturating_sub(self.counted_ms) / SV1_REQUEST_EVERY_MS;
        self.counted_ms += refilled * SV1_REQUEST_EVERY_MS;
        let left = self.left.saturating_add(refilled).min(SV1_REQUESTS_BURST);
        self.left = left.checked_sub(1).ok_or(End::Flood)?;
        Ok(())
    }
}
