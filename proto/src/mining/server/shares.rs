//! Shares: from a submit message to a place in the open batch, a block, or one refusal; and from a
//! committed batch to SubmitShares.Success. Part of `mining::server`.
//!
//! The shares of one burst are found their jobs, hashed together, then settled in the order they came.

use std::sync::Arc;

use super::{Effect, FoundBlock, Outbox, Server};
use crate::extranonce::ExtranoncePrefix;
use crate::job::{Job, JobId};
use crate::limits::{BLOCKS_SENT_MAX, EARLY_SHARE_WAIT_MS, EARLY_SHARES_MAX, SHARES_AT_ONCE_MAX};
use crate::message::{
    SubmitSharesError, SubmitSharesExtended, SubmitSharesStandard, SubmitSharesSuccess, Tlvs,
};
use crate::mining::batch::Receipt;
use crate::mining::channel::{Channel, Found};
use crate::mining::{ChannelId, Committed, CreditGroup, Kind, Now, Owner, Worth};
use crate::share::{self, Claim, FrozenJob, Proof, Refusal, Verdict};
use crate::target::Difficulty;
use crate::template::TemplateId;
use crate::wire::Str0255;

/// A share on a job whose tip we have not heard of yet (rule P53).
#[derive(Debug)]
pub(super) struct EarlyShare {
    submitted: Submitted,
    came_ms: u64,
}

impl EarlyShare {
    pub(super) fn channel(&self) -> ChannelId {
        self.submitted.channel
    }
}

/// What a submit message says.
#[derive(Debug, Clone)]
pub(super) struct Submitted {
    channel: ChannelId,
    kind: Kind,
    sequence_number: u32,
    claim: Claim,
    worker: Option<Arc<str>>,
    /// It carries a worker's name that is none (rule G17).
    name_is_bad: bool,
}

impl Submitted {
    /// Both name the same job of the same channel.
    fn is_on_the_job_of(&self, other: &Self) -> bool {
        (self.channel, self.kind, self.claim.job) == (other.channel, other.kind, other.claim.job)
    }
}

/// A share that no job was found for.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Refused(Refusal),
    /// On the job that waits for its tip.
    Early,
}

/// What becomes of a share.
enum Fate {
    Lost(Lost),
    /// Too late for credit, but a block may still win its race.
    Stale(Option<Box<FoundBlock>>),
    Judged(Judged),
}

/// What is left of a job once a share of it is judged.
struct Judged {
    template: TemplateId,
    coinbase_sequence: u32,
    prev_hash: [u8; 32],
    prefix: ExtranoncePrefix,
    worth: Worth,
    outcome: Result<Proof, Refusal>,
    block: Option<Box<FoundBlock>>,
}

impl Server {
    pub(super) fn on_extended_share(
        &mut self,
        now: Now,
        share: &SubmitSharesExtended,
        tlvs: Tlvs<'_>,
        out: &mut Outbox,
    ) {
        let channel = ChannelId(share.channel_id);
        // A bad name refuses the share, but only once it is known not to be a block.
        let (worker, name_is_bad) = match self.worker_of(tlvs) {
            Ok(worker) => (worker, false),
            Err(()) => (None, true),
        };
        let claim = Claim {
            job: JobId(share.job_id),
            nonce: share.nonce,
            ntime: share.ntime,
            version: share.version,
            rolled: Some(share.extranonce),
        };
        let sequence_number = share.sequence_number;
        let kind = Kind::Extended;
        let submitted = Submitted { channel, kind, sequence_number, claim, worker, name_is_bad };
        self.on_share(now, submitted, out);
    }

    pub(super) fn on_standard_share(
        &mut self,
        now: Now,
        share: &SubmitSharesStandard,
        out: &mut Outbox,
    ) {
        let claim = Claim {
            job: JobId(share.job_id),
            nonce: share.nonce,
            ntime: share.ntime,
            version: share.version,
            rolled: None,
        };
        let sequence_number = share.sequence_number;
        let channel = ChannelId(share.channel_id);
        let (kind, worker, name_is_bad) = (Kind::Standard, None, false);
        let submitted = Submitted { channel, kind, sequence_number, claim, worker, name_is_bad };
        self.on_share(now, submitted, out);
    }

    /// The worker's name that the share itself carries. Without extension 0x0002 stray TLVs mean
    /// nothing (rules E7, G16).
    fn worker_of(&self, tlvs: Tlvs<'_>) -> Result<Option<Arc<str>>, ()> {
        if !self.worker_hashrate {
            return Ok(None);
        }
        let Some(name) = tlvs.worker().map_err(|_| ())? else { return Ok(None) };
        let name = std::str::from_utf8(name).map_err(|_| ())?;
        if name.chars().any(char::is_control) {
            return Err(());
        }
        Ok(Some(name.into()))
    }

    fn on_share(&mut self, now: Now, submitted: Submitted, out: &mut Outbox) {
        self.submitted.push(submitted);
        if self.submitted.len() >= SHARES_AT_ONCE_MAX {
            self.judge_burst(now, out);
        }
    }

    /// Judges what was submitted since the last time, and answers or batches it.
    pub(super) fn judge_burst(&mut self, now: Now, out: &mut Outbox) {
        if self.submitted.is_empty() {
            return;
        }
        let burst = std::mem::take(&mut self.submitted);
        if let [lone] = &burst[..] {
            // What a burst needs a heap for, a lone share has on the stack.
            let place = self.find(lone);
            let mut share = headed(&place, lone);
            share::hash(share.as_mut().ok().as_mut_slice());
            let fate = fate(&place, &share, lone, now);
            self.meet(now, lone, fate, out);
        } else {
            for (submitted, fate) in burst.iter().zip(self.fates(&burst, now)) {
                self.meet(now, submitted, fate, out);
            }
        }
        self.check_difficulties_of(&burst, now, out);
    }

    /// What each share of a burst is; nothing is changed yet.
    fn fates(&self, burst: &[Submitted], now: Now) -> Vec<Fate> {
        // Shares of one job mostly stand together: it is looked for once.
        let runs = burst.chunk_by(Submitted::is_on_the_job_of);
        let runs: Vec<_> = runs.map(|run| (self.find(&run[0]), run)).collect();
        let each = || runs.iter().flat_map(|(place, run)| run.iter().map(move |one| (place, one)));
        let mut shares: Vec<_> = each().map(|(place, one)| headed(place, one)).collect();
        let mut found: Vec<_> = shares.iter_mut().filter_map(|share| share.as_mut().ok()).collect();
        share::hash(&mut found);
        each().zip(&shares).map(|((place, one), share)| fate(place, share, one, now)).collect()
    }

    /// Answers a share, or puts it where it waits.
    fn meet(&mut self, now: Now, submitted: &Submitted, fate: Fate, out: &mut Outbox) {
        let Submitted { channel, sequence_number, .. } = *submitted;
        match fate {
            Fate::Lost(Lost::Refused(refusal)) => {
                self.refuse(channel, sequence_number, refusal, out)
            }
            Fate::Lost(Lost::Early) if self.early.len() < EARLY_SHARES_MAX => {
                let (submitted, came_ms) = (submitted.clone(), now.mono_ms);
                self.early.push(EarlyShare { submitted, came_ms });
            }
            Fate::Lost(Lost::Early) => {
                self.refuse(channel, sequence_number, Refusal::InvalidJobId, out);
            }
            Fate::Stale(block) => {
                self.send_block(block, out);
                self.refuse(channel, sequence_number, Refusal::StaleShare, out);
            }
            Fate::Judged(judged) => self.settle(now, submitted, judged, out),
        }
    }

    fn find(&self, submitted: &Submitted) -> Result<Place<'_>, Lost> {
        let Submitted { channel: id, kind, claim, .. } = submitted;
        let Some(channel) = self.channels.get(id).filter(|channel| channel.kind == *kind) else {
            return Err(Lost::Refused(Refusal::InvalidChannelId));
        };
        match channel.find(claim.job, &self.given) {
            Found::Live(job, worth) => Ok(Place { job, channel, worth, is_live: true }),
            Found::Stale(job, worth) => Ok(Place { job, channel, worth, is_live: false }),
            Found::Nothing if self.is_future(claim.job) => Err(Lost::Early),
            Found::Nothing => Err(Lost::Refused(Refusal::InvalidJobId)),
        }
    }

    fn is_future(&self, job: JobId) -> bool {
        self.future.as_ref().is_some_and(|ahead| ahead.id == job)
    }

    /// Once for each channel of a burst: between shares of one moment there is nothing to learn.
    fn check_difficulties_of(&mut self, burst: &[Submitted], now: Now, out: &mut Outbox) {
        let mut checked = None;
        for Submitted { channel, .. } in burst {
            if checked != Some(*channel) {
                self.check_difficulty(now, *channel, out);
            }
            checked = Some(*channel);
        }
    }

    /// Acts on a verdict: the block first, then the credit or the refusal.
    fn settle(&mut self, now: Now, submitted: &Submitted, judged: Judged, out: &mut Outbox) {
        let Judged { template, coinbase_sequence, prev_hash, prefix, worth, ref outcome, block } =
            judged;
        let Submitted { channel: id, sequence_number, ref worker, .. } = *submitted;
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let is_new = outcome.as_ref().is_ok_and(|proof| channel.remember(proof));
        let proof = match outcome {
            Ok(proof) if is_new => proof,
            // A block that was shown before was also sent before.
            Ok(_) => return self.refuse(id, sequence_number, Refusal::DuplicateShare, out),
            Err(refusal) => {
                self.send_block(block, out);
                return self.refuse(id, sequence_number, *refusal, out);
            }
        };
        self.send_block(block, out);
        let Some(channel) = self.channels.get_mut(&id) else { return };

        self.refused_in_a_row = 0;
        channel.tally.last_share_ms = Some(now.mono_ms);
        channel.vardiff.share(now.mono_ms, proof.difficulty);
        let worker = worker.as_ref().unwrap_or(&channel.owner.worker);
        let account = &channel.owner.account;
        let receipt = Receipt {
            channel: id,
            sequence_number,
            hash: proof.hash,
            difficulty: proof.difficulty,
            received_ms: now.mono_ms,
        };
        let full = self.batches.add(
            || CreditGroup {
                channel: id,
                owner: Owner { account: Arc::clone(account), worker: Arc::clone(worker) },
                extranonce_prefix: prefix,
                template,
                coinbase_sequence,
                prev_hash,
                worth,
                proofs: Vec::new(),
            },
            |open| {
                open.channel == id
                    && open.template == template
                    && open.coinbase_sequence == coinbase_sequence
                    && open.prev_hash == prev_hash
                    && open.worth == worth
                    && open.owner.worker == *worker
            },
            *proof,
            receipt,
        );
        out.effects.extend(full.map(Effect::Credit));
    }

    /// A block goes out once: its share may come again, credited, refused or stale, and must not put
    /// the node and the disk to work each time.
    fn send_block(&mut self, block: Option<Box<FoundBlock>>, out: &mut Outbox) {
        let Some(block) = block.filter(|block| !self.blocks_sent.contains(&block.hash)) else {
            return;
        };
        if self.blocks_sent.len() >= BLOCKS_SENT_MAX {
            self.blocks_sent.pop_front();
        }
        self.blocks_sent.push_back(block.hash);
        out.effects.push(Effect::BlockFound(block));
    }

    /// One SubmitShares.Error, at once (rule P48).
    fn refuse(
        &mut self,
        channel: ChannelId,
        sequence_number: u32,
        refusal: Refusal,
        out: &mut Outbox,
    ) {
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        if let Some(known) = self.channels.get_mut(&channel) {
            let count = &mut known.tally.refused[refusal as usize];
            *count = count.saturating_add(1);
        }
        out.say(SubmitSharesError {
            channel_id: channel.0,
            sequence_number,
            error_code: Str0255::text(refusal.code()),
        });
        out.effects.push(Effect::Refused { channel, refusal });
    }

    /// The ledger has a batch: now, and only now, its shares are acknowledged, one Success for each
    /// channel (rule P49).
    pub(super) fn on_committed(&mut self, committed: &Committed, out: &mut Outbox) {
        let mut receipts = self.batches.committed(committed);
        let Some(oldest_ms) = receipts.first().map(|receipt| receipt.received_ms) else { return };
        let duplicates = take_duplicates(&mut receipts, &committed.duplicates);
        for Receipt { channel, sequence_number, .. } in duplicates {
            if self.channels.contains_key(&channel) {
                self.refuse(channel, sequence_number, Refusal::DuplicateShare, out);
            }
        }
        // In order of first shares.
        let mut answers: Vec<(ChannelId, u32, u32)> = Vec::new();
        let mut credited: Vec<Credited> = Vec::new();
        for receipt in receipts {
            let Receipt { channel: id, sequence_number, hash, difficulty, .. } = receipt;
            if !self.channels.contains_key(&id) {
                continue;
            }
            // The newest first: shares of one channel mostly stand together.
            match answers.iter_mut().rev().find(|(channel, ..)| *channel == id) {
                Some((_, last, count)) => (*last, *count) = (sequence_number, *count + 1),
                None => answers.push((id, sequence_number, 1)),
            }
            let same =
                |known: &&mut Credited| (known.channel, known.difficulty) == (id, difficulty);
            match credited.iter_mut().rev().find(same) {
                Some(known) => known.add(&hash),
                None => credited.push(Credited { channel: id, difficulty, shares: 1, best: hash }),
            }
        }
        for Credited { channel, difficulty, shares, best } in &credited {
            if let Some(channel) = self.channels.get_mut(channel) {
                channel.credit(*shares, best, *difficulty);
            }
        }
        for (id, last_sequence_number, new_submits_accepted_count) in answers {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            out.say(SubmitSharesSuccess {
                channel_id: id.0,
                last_sequence_number,
                new_submits_accepted_count,
                new_shares_sum: channel.take_sum(),
            });
        }
        out.effects.extend(credited.into_iter().map(|credited| {
            let Credited { channel, difficulty, shares, .. } = credited;
            Effect::Acknowledged { channel, difficulty, shares, oldest_ms }
        }));
    }

    /// The tip that early shares waited for is here: judge them as if they came now.
    pub(super) fn judge_early_shares(&mut self, now: Now, job: JobId, out: &mut Outbox) {
        let (ready, waiting) = std::mem::take(&mut self.early)
            .into_iter()
            .partition(|share: &EarlyShare| share.submitted.claim.job == job);
        self.early = waiting;
        self.submitted.extend(ready.into_iter().map(|share| share.submitted));
        self.judge_burst(now, out);
    }

    /// Early shares whose tip did not come in time, or whose job was replaced, are refused.
    pub(super) fn expire_early_shares(&mut self, now: Now, out: &mut Outbox) {
        let future = self.future.as_ref().map(|ahead| ahead.id);
        let (keep, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.early).into_iter().partition(|share| {
                now.mono_ms < share.came_ms.saturating_add(EARLY_SHARE_WAIT_MS)
                    && Some(share.submitted.claim.job) == future
            });
        self.early = keep;
        for EarlyShare { submitted, .. } in gone {
            let Submitted { channel, sequence_number, .. } = submitted;
            self.refuse(channel, sequence_number, Refusal::InvalidJobId, out);
        }
    }
}

/// Takes out the shares that the ledger did not credit, in the order they came. Where a batch holds a
/// proof more often than it is named, the ledger credited the first of them.
fn take_duplicates(receipts: &mut Vec<Receipt>, named: &[[u8; 32]]) -> Vec<Receipt> {
    let mut taken = Vec::with_capacity(named.len());
    for hash in named.iter().rev() {
        if let Some(at) = receipts.iter().rposition(|receipt| receipt.hash == *hash) {
            taken.push(receipts.remove(at));
        }
    }
    taken.reverse();
    taken
}

/// Shares of one channel and one difficulty in a committed batch.
struct Credited {
    channel: ChannelId,
    difficulty: Difficulty,
    shares: u32,
    /// The lowest hash of them.
    best: [u8; 32],
}

impl Credited {
    fn add(&mut self, hash: &[u8; 32]) {
        self.shares += 1;
        if hash.iter().rev().lt(self.best.iter().rev()) {
            self.best = *hash;
        }
    }
}

/// Where a share's job was found.
struct Place<'a> {
    job: FrozenJob<'a>,
    channel: &'a Channel,
    worth: Worth,
    /// Its tip is still the tip.
    is_live: bool,
}

/// A share of a job that was found, still to be hashed.
fn headed<'a>(
    place: &'a Result<Place<'_>, Lost>,
    submitted: &Submitted,
) -> Result<share::Submitted<'a>, Lost> {
    let Place { job, is_live, .. } = place.as_ref().map_err(|lost| *lost)?;
    let refused = |refusal| Lost::Refused(if *is_live { refusal } else { Refusal::StaleShare });
    share::Submitted::new(job, &submitted.claim).map_err(refused)
}

/// After the hashing.
fn fate(
    place: &Result<Place<'_>, Lost>,
    share: &Result<share::Submitted<'_>, Lost>,
    submitted: &Submitted,
    now: Now,
) -> Fate {
    let (Place { job, channel, worth, is_live }, share) = match (place, share) {
        (Ok(place), Ok(share)) => (place, share),
        (Err(lost), _) | (Ok(_), Err(lost)) => return Fate::Lost(*lost),
    };
    let Verdict { is_block, outcome } = share.verdict(now.unix_s);
    let found = || found_block(share, *worth, &channel.owner, submitted);
    let block = is_block.then(found).flatten();
    if !is_live {
        return Fate::Stale(block);
    }
    Fate::Judged(Judged {
        template: job.job.template().id,
        coinbase_sequence: job.job.coinbase_sequence(),
        prev_hash: job.tip.hash,
        prefix: job.prefix,
        worth: *worth,
        outcome: match submitted.name_is_bad {
            true => Err(Refusal::InvalidUserIdentity),
            false => outcome,
        },
        block,
    })
}

#[cold]
fn found_block(
    share: &share::Submitted<'_>,
    worth: Worth,
    owner: &Owner,
    submitted: &Submitted,
) -> Option<Box<FoundBlock>> {
    let (job, header) = (share.job(), *share.header());
    let extranonce = match submitted.claim.rolled {
        Some(rolled) => job.job.extranonce(&job.prefix, rolled.as_slice())?,
        None => job.job.standard_extranonce(&job.prefix)?,
    };
    let worker = submitted.worker.as_ref().unwrap_or(&owner.worker);
    Some(Box::new(FoundBlock {
        hash: header.hash(),
        header,
        extranonce,
        job: Job::clone(job.job),
        worth,
        owner: Owner { account: Arc::clone(&owner.account), worker: Arc::clone(worker) },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_proofs_in_a_batch_the_first_is_credited_and_the_named_are_not() {
        // A channel that shows more than it remembers can put a proof into a batch twice.
        let receipt = |sequence_number, hash: u8| Receipt {
            channel: ChannelId(2),
            sequence_number,
            hash: [hash; 32],
            difficulty: Difficulty::MIN,
            received_ms: 0,
        };
        let mut receipts: Vec<Receipt> =
            [(1, 7), (2, 8), (3, 7), (4, 9), (5, 7)].map(|(at, hash)| receipt(at, hash)).into();
        let taken = take_duplicates(&mut receipts, &[[7; 32], [9; 32], [7; 32], [3; 32]]);
        let numbers = |receipts: &[Receipt]| {
            receipts.iter().map(|receipt| receipt.sequence_number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&taken), [3, 4, 5]);
        assert_eq!(numbers(&receipts), [1, 2]);
    }
}
