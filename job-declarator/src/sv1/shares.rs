//! Shares of a device: mining.submit to SubmitSharesExtended, and the server's word back to the request
//! that asked for it. Part of `sv1`.
//!
//! Whether a share is good is the server's business; here it is only read.

use std::collections::VecDeque;

use proto::limits::REFUSED_IN_A_ROW_MAX;
use proto::message::{SubmitSharesError, SubmitSharesExtended, SubmitSharesSuccess};
use proto::wire::B032;
use serde_json::{Value, json};

use super::hello::hex_u32;
use super::jobs::Jobs;
use super::lines::{Refused, answer};
use super::{End, Opened, Out};
use crate::limits::{SV1_UNANSWERED_MAX, SV1_UNANSWERED_SPARE};

/// A share that the server has.
#[derive(Debug)]
struct Unanswered {
    sequence_number: u32,
    /// Of its request.
    id: Box<str>,
}

#[derive(Debug, Default)]
pub(super) struct Shares {
    next_sequence_number: u32,
    /// In the order in which they came.
    unanswered: VecDeque<Unanswered>,
    refused: u64,
    refused_in_a_row: u32,
}

impl Shares {
    /// Numbers a share and remembers who asked.
    pub(super) fn submit(
        &mut self,
        id: &str,
        share: SubmitSharesExtended,
    ) -> Result<SubmitSharesExtended, Refused<'static>> {
        if self.unanswered.len() >= SV1_UNANSWERED_MAX {
            return Err(Refused::other("Too many shares without an answer"));
        }
        let sequence_number = self.next_sequence_number;
        self.next_sequence_number = sequence_number.wrapping_add(1);
        self.unanswered.push_back(Unanswered { sequence_number, id: id.into() });
        self.refused_in_a_row = 0;
        Ok(SubmitSharesExtended { sequence_number, ..share })
    }

    /// One was refused before the server saw it. The server counts those that it refuses itself.
    pub(super) fn count_refused(&mut self) -> Result<(), End> {
        self.refused += 1;
        self.refused_in_a_row += 1;
        if self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX {
            return Err(End::OnlyBadShares(self.refused_in_a_row));
        }
        Ok(())
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    pub(super) fn take_a_read_more(&self) -> bool {
        self.unanswered.len() + SV1_UNANSWERED_SPARE <= SV1_UNANSWERED_MAX
    }

    /// So many shares up to this one are good. Those of them that are not were told so before, so they are the
    /// newest that still wait; older ones are of a batch that is committed later.
    pub(super) fn on_success(&mut self, success: &SubmitSharesSuccess, out: &mut Out) {
        let last = success.last_sequence_number;
        let end = self.unanswered.partition_point(|share| {
            // Numbers start over after 2^32.
            last.wrapping_sub(share.sequence_number) < 1 << 31
        });
        let count = success.new_submits_accepted_count as usize;
        for share in self.unanswered.drain(end.saturating_sub(count)..end) {
            answer(&share.id, &json!(true), out);
        }
    }

    pub(super) fn on_error(&mut self, error: &SubmitSharesError<'_>, out: &mut Out) {
        let at = |share: &Unanswered| share.sequence_number == error.sequence_number;
        let Some(share) =
            self.unanswered.iter().position(at).and_then(|at| self.unanswered.remove(at))
        else {
            return;
        };
        let code = error.error_code.printable();
        let refused = match &*code {
            "invalid-job-id" => Refused::JOB_NOT_FOUND,
            "stale-share" => Refused::STALE,
            "duplicate-share" => Refused::DUPLICATE,
            "difficulty-too-low" => Refused::LOW_DIFFICULTY,
            "invalid-channel-id" => Refused::NOT_SUBSCRIBED,
            other => Refused::other(other),
        };
        refused.write(&share.id, out);
    }
}

/// What mining.submit says: worker, job, extranonce2, ntime, nonce and perhaps version bits. Still without
/// a sequence number. The worker's name is not read: a session is one device.
pub(super) fn claim(
    params: &[Value],
    opened: &Opened,
    version_mask: u32,
    jobs: &Jobs,
) -> Result<SubmitSharesExtended, Refused<'static>> {
    let [_, job, extranonce2, ntime, nonce, rest @ ..] = params else {
        return Err(Refused::other("Too few params"));
    };
    let job_id = hex_u32(job).ok_or(Refused::JOB_NOT_FOUND)?;
    let version = jobs.version(job_id).ok_or(Refused::JOB_NOT_FOUND)?;
    let extranonce = extranonce2.as_str().and_then(|text| hex::decode(text).ok());
    let extranonce = extranonce.ok_or(Refused::other("extranonce2 is not hex"))?;
    if extranonce.len() != opened.size {
        return Err(Refused::other("extranonce2 has another length"));
    }
    let extranonce =
        B032::new(&extranonce).map_err(|_| Refused::other("extranonce2 has another length"))?;
    let version = match rest.first() {
        None | Some(Value::Null) => version,
        Some(bits) => {
            let bits = hex_u32(bits).ok_or(Refused::other("version bits are not 8 hex digits"))?;
            if bits & !version_mask != 0 {
                return Err(Refused::other("version bits outside of the mask"));
            }
            // BIP310: the bits of the mask are the device's, also those that it leaves at zero.
            version & !version_mask | bits
        }
    };
    Ok(SubmitSharesExtended {
        channel_id: opened.id,
        sequence_number: 0,
        job_id,
        nonce: hex_u32(nonce).ok_or(Refused::other("nonce is not 8 hex digits"))?,
        ntime: hex_u32(ntime).ok_or(Refused::other("ntime is not 8 hex digits"))?,
        version,
        extranonce,
    })
}
