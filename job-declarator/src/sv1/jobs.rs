//! Jobs of the channel as lines: mining.set_difficulty and mining.notify, in the order in which one binds
//! to the other. Part of `sv1`.
//!
//! V1 writes a job and its tip in one line and knows no job without a tip, so one that is sent ahead waits
//! here, already written, for SetNewPrevHash.

use std::collections::VecDeque;

use proto::message::{NewExtendedMiningJob, SetNewPrevHash};
use proto::target::{Difficulty, Target};

use super::Out;
use crate::limits::{SV1_JOBS_AHEAD_MAX, SV1_JOBS_MAX};

/// A job without what belongs to its tip.
#[derive(Debug)]
struct Body {
    id: u32,
    version: u32,
    /// coinb1, coinb2 and the merkle branches as they stand in the line.
    middle: String,
}

/// The tip as it stands in a line.
#[derive(Debug)]
struct Tip {
    prev_hash: String,
    nbits: u32,
}

/// A job that a share may name.
#[derive(Debug, Clone, Copy)]
struct Told {
    id: u32,
    version: u32,
}

/// What a device is, or will be, told to do.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    /// The device may be told: it is subscribed and authorised.
    started: bool,
    tip: Option<Tip>,
    /// Jobs for the next tip, oldest first.
    ahead: VecDeque<Body>,
    /// Oldest first.
    told: VecDeque<Told>,
    difficulty: Option<Difficulty>,
    /// The newest mining.notify, while the device may not be told.
    held: String,
}

impl Jobs {
    /// The device may work from now on.
    pub(super) fn start(&mut self, out: &mut Out) {
        self.started = true;
        self.say_difficulty(out);
        out.lines.extend_from_slice(std::mem::take(&mut self.held).as_bytes());
    }

    /// For jobs to come. A target that is no power of two becomes the next harder one, which every firmware
    /// computes alike.
    pub(super) fn set_target(&mut self, target: Target, out: &mut Out) {
        let difficulty = Difficulty::easiest_within(target).unwrap_or(Difficulty::MAX);
        if self.difficulty.replace(difficulty) != Some(difficulty) && self.started {
            self.say_difficulty(out);
        }
    }

    pub(super) fn on_job(&mut self, job: &NewExtendedMiningJob<'_>, out: &mut Out) {
        let body = Body { id: job.job_id, version: job.version, middle: middle(job) };
        match job.min_ntime {
            Some(min_ntime) => self.tell(&body, min_ntime, false, out),
            None => {
                if self.ahead.len() >= SV1_JOBS_AHEAD_MAX {
                    self.ahead.pop_front();
                }
                self.ahead.push_back(body);
            }
        }
    }

    pub(super) fn on_tip(&mut self, tip: &SetNewPrevHash, out: &mut Out) {
        let mut prev_hash = tip.prev_hash;
        // V1 writes each of the eight words backwards.
        prev_hash.as_chunks_mut::<4>().0.iter_mut().for_each(|word| word.reverse());
        self.tip = Some(Tip { prev_hash: hex::encode(prev_hash), nbits: tip.nbits });
        let ahead = std::mem::take(&mut self.ahead);
        if let Some(body) = ahead.iter().rev().find(|body| body.id == tip.job_id) {
            self.tell(body, tip.min_ntime, true, out);
        }
    }

    /// The version of a job that a device was told of.
    pub(super) fn version(&self, id: u32) -> Option<u32> {
        self.told.iter().rev().find(|told| told.id == id).map(|told| told.version)
    }

    fn tell(&mut self, body: &Body, ntime: u32, is_new_tip: bool, out: &mut Out) {
        // A job to start at once comes after a tip.
        let Some(Tip { prev_hash, nbits }) = &self.tip else { return };
        let Body { id, version, middle } = body;
        // The first job that a device sees replaces whatever it did before.
        let clean = is_new_tip || !self.started;
        let line = format!(
            "{{\"id\":null,\"method\":\"mining.notify\",\"params\":[\"{id:x}\",\"{prev_hash}\",{middle},\
             \"{version:08x}\",\"{nbits:08x}\",\"{ntime:08x}\",{clean}]}}\n"
        );
        if self.told.len() >= SV1_JOBS_MAX {
            self.told.pop_front();
        }
        self.told.push_back(Told { id: *id, version: *version });
        if self.started {
            out.lines.extend_from_slice(line.as_bytes());
        } else {
            self.held = line;
        }
    }

    fn say_difficulty(&self, out: &mut Out) {
        let Some(difficulty) = self.difficulty else { return };
        let params = in_decimals(difficulty);
        let line =
            format!("{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{params}]}}\n");
        out.lines.extend_from_slice(line.as_bytes());
    }
}

/// All digits of 2^k: k of them behind the point if it is negative. Shortest forms and exponents are read
/// differently from one firmware to the next.
fn in_decimals(difficulty: Difficulty) -> String {
    let log2 = difficulty.log2();
    let digits = usize::from(log2.min(0).unsigned_abs());
    format!("{:.digits$}", 2f64.powi(i32::from(log2)))
}

fn middle(job: &NewExtendedMiningJob<'_>) -> String {
    let head = hex::encode(job.coinbase_tx_prefix.as_slice());
    let tail = hex::encode(job.coinbase_tx_suffix.as_slice());
    let branches =
        job.merkle_path.as_slice().iter().map(|hash| format!("\"{}\"", hex::encode(hash)));
    format!("\"{head}\",\"{tail}\",[{}]", branches.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use proto::wire::{B064K, Seq0255U256};

    use super::*;

    fn job(id: u32, min_ntime: Option<u32>) -> NewExtendedMiningJob<'static> {
        NewExtendedMiningJob {
            channel_id: 2,
            job_id: id,
            min_ntime,
            version: id,
            version_rolling_allowed: true,
            merkle_path: Seq0255U256::default(),
            coinbase_tx_prefix: B064K::default(),
            coinbase_tx_suffix: B064K::default(),
        }
    }

    fn tip(job_id: u32) -> SetNewPrevHash {
        SetNewPrevHash { channel_id: 2, job_id, prev_hash: [0; 32], min_ntime: 1, nbits: 1 }
    }

    #[test]
    fn of_more_jobs_ahead_than_may_be_the_oldest_goes() {
        let ahead = SV1_JOBS_AHEAD_MAX as u32;
        for (named, is_there) in [(1, false), (2, true), (ahead + 1, true)] {
            let (mut jobs, mut out) = (Jobs::default(), Out::default());
            jobs.start(&mut out);
            (1..=ahead + 1).for_each(|id| jobs.on_job(&job(id, None), &mut out));
            assert!(out.lines.is_empty());
            jobs.on_tip(&tip(named), &mut out);
            assert_eq!(!out.lines.is_empty(), is_there, "{named}");
            assert!(jobs.ahead.is_empty());
        }
    }

    #[test]
    fn of_more_jobs_than_shares_may_name_the_oldest_is_forgotten() {
        let (mut jobs, mut out) = (Jobs::default(), Out::default());
        // Before any tip there is nothing to say.
        jobs.on_job(&job(1, Some(1)), &mut out);
        assert_eq!(jobs.version(1), None);
        jobs.on_tip(&tip(0), &mut out);
        let kept = SV1_JOBS_MAX as u32;
        (1..=kept + 1).for_each(|id| jobs.on_job(&job(id, Some(1)), &mut out));
        assert_eq!((jobs.version(1), jobs.version(2)), (None, Some(2)));
        assert_eq!(jobs.version(kept + 1), Some(kept + 1));
    }

    #[test]
    fn a_difficulty_is_written_with_all_its_digits_and_no_more() {
        let written = |log2| in_decimals(Difficulty::from_log2(log2));
        assert_eq!(written(0), "1");
        assert_eq!(written(10), "1024");
        assert_eq!(written(51), "2251799813685248");
        assert_eq!(written(70), "1180591620717411303424");
        assert_eq!(written(-1), "0.5");
        assert_eq!(written(-12), "0.000244140625");
        assert_eq!(written(-32), "0.00000000023283064365386962890625");
    }
}
