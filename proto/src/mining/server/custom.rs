//! Custom jobs: a client that selects its own work asks for each of its jobs to be promised, and is told
//! yes or no (spec 05 §5.3.18). Part of `mining::server`. What a token promises, and whether tip and
//! coinbase are what they must be, the pool judges (`Effect::CustomJob`); here is what can be said without
//! knowing, and what becomes of the answer.
//!
//! A custom job cannot be numbered by us as our own are. So that no header belongs to jobs of different
//! pay, the same work keeps what it was first given for as long as its tip is the tip.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{CustomAccepted, Effect, GROUP, Outbox, Server};
use crate::job::{ActiveTemplate, Job, JobId};
use crate::limits::{
    COINBASE_OUTPUTS_MAX, CUSTOM_JOB_EVERY_MS, CUSTOM_JOBS_BURST, CUSTOM_REQUESTS_MAX,
    CUSTOM_SPACES_MAX, CUSTOM_SPACES_PER_CHANNEL, EXTRANONCE_LEN, JOBS_PER_TIP, MERKLE_PATH_MAX,
    SCRIPT_SIG_MAX, VERSION_ROLLING_MASK,
};
use crate::message::{SetCustomMiningJob, SetCustomMiningJobError, SetCustomMiningJobSuccess};
use crate::mining::given::Given;
use crate::mining::{
    ChannelId, CustomJob, CustomJobRequest, CustomRefusal, CustomRefused, Kind, Now, Worth,
};
use crate::target::Difficulty;
use crate::template::PrevHash;
use crate::token::{MiningJobToken, Pace};
use crate::wire::Str0255;

/// What a connection has that selects its own work, and no other.
#[derive(Debug)]
pub(super) struct CustomWork {
    /// Requests that the pool judges.
    waiting: Vec<Waiting>,
    pace: Pace,
    /// What was given under the present tip.
    spaces: HashMap<Space, Frozen>,
    /// Difficulties in `spaces`.
    frozen: usize,
    /// Of the block that is mined on the present tip.
    height: u32,
}

#[derive(Debug)]
struct Waiting {
    channel: ChannelId,
    request_id: u32,
    token: MiningJobToken,
    /// The token's, so the job is for its channels alone.
    account: Arc<str>,
}

/// All that a header is made of but what is rolled: two jobs with the same are the same work.
type Space = [u8; 32];

/// What work was first given under a tip, and keeps.
#[derive(Debug)]
struct Frozen {
    factor_ppm: u32,
    difficulties: Vec<(ChannelId, Difficulty)>,
}

impl CustomWork {
    pub(super) fn new(active: &ActiveTemplate, now: Now) -> Self {
        Self {
            waiting: Vec::new(),
            pace: Pace::new(CUSTOM_JOBS_BURST, CUSTOM_JOB_EVERY_MS, now.mono_ms),
            spaces: HashMap::new(),
            frozen: 0,
            height: active.job.template().height,
        }
    }

    fn waits_for(&self, of: (ChannelId, u32)) -> bool {
        self.waiting.iter().any(|waiting| (waiting.channel, waiting.request_id) == of)
    }

    /// How many difficulties would be new.
    fn missing(&self, space: &Space, channels: &[ChannelId]) -> usize {
        let Some(known) = self.spaces.get(space) else { return channels.len() };
        channels.iter().filter(|channel| known.of(**channel).is_none()).count()
    }
}

impl Frozen {
    fn of(&self, channel: ChannelId) -> Option<Difficulty> {
        self.difficulties.iter().find(|(known, _)| *known == channel).map(|(_, found)| *found)
    }
}

fn space_of(job: &Job) -> Space {
    let coinbase = job.coinbase();
    let mut hash = Sha256::new();
    // Lengths first: no two works may come to the same bytes.
    for part in [&coinbase.prefix, &coinbase.suffix] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update((job.version() & !VERSION_ROLLING_MASK).to_le_bytes());
    hash.update(job.merkle_path().as_flattened());
    hash.finalize().into()
}

/// The request, or why it need not be judged.
type Heard = Result<Box<CustomJobRequest>, (CustomRefusal, &'static str)>;

impl Server {
    /// The client makes its jobs itself: it is told of no job and no tip, as SRI's pool does it, and of
    /// targets alone.
    pub(super) fn selects_work(&self) -> bool {
        self.custom.is_some()
    }

    pub(super) fn on_custom_job(
        &mut self,
        now: Now,
        custom: &SetCustomMiningJob<'_>,
        out: &mut Outbox,
    ) {
        let (channel, request_id) = (ChannelId(custom.channel_id), custom.request_id);
        match self.hear_custom_job(now, custom) {
            Ok(request) => {
                let (token, account) = (request.token, Arc::clone(&request.account));
                if let Some(work) = &mut self.custom {
                    work.waiting.push(Waiting { channel, request_id, token, account });
                }
                out.effects.push(Effect::CustomJob(request));
            }
            Err((refusal, reason)) => {
                refuse(channel, request_id, refusal, reason.to_owned(), out);
            }
        }
    }

    /// What can be said without knowing tokens and tips.
    fn hear_custom_job(&mut self, now: Now, custom: &SetCustomMiningJob<'_>) -> Heard {
        let channel = ChannelId(custom.channel_id);
        let members = self.extended_of(channel);
        let accounts = members.iter().filter_map(|member| self.channels.get(member));
        let mut accounts = accounts.map(|member| Arc::clone(&member.owner.account));
        let account = accounts.next();
        let is_one_account = accounts.all(|other| Some(&other) == account.as_ref());

        let Some(work) = &mut self.custom else {
            return Err((CustomRefusal::NotSupported, "REQUIRES_WORK_SELECTION was not set up"));
        };
        let account = account.ok_or((CustomRefusal::InvalidChannelId, "no extended channel"))?;
        if !is_one_account {
            return Err((CustomRefusal::InvalidChannelId, "a group of several accounts"));
        }
        if work.waits_for((channel, custom.request_id)) {
            // Two verdicts for one number: each could be taken for the other's, with its token.
            return Err((CustomRefusal::TooManyJobs, "a request of this number waits"));
        }
        if work.waiting.len() >= CUSTOM_REQUESTS_MAX || !work.pace.take(now.mono_ms) {
            return Err((CustomRefusal::TooManyJobs, "asked for too fast"));
        }
        let token = MiningJobToken::from_wire(custom.mining_job_token.as_slice())
            .ok_or((CustomRefusal::InvalidToken, "a token that is not 16 bytes"))?;
        let coinbase_prefix = custom.coinbase_prefix.as_slice();
        if coinbase_prefix.len() + EXTRANONCE_LEN > SCRIPT_SIG_MAX {
            return Err((CustomRefusal::InvalidCoinbasePrefix, "no room for the extranonce"));
        }
        let outputs = custom.coinbase_tx_outputs.as_slice();
        if outputs.is_empty() || outputs.len() > COINBASE_OUTPUTS_MAX {
            return Err((CustomRefusal::InvalidCoinbaseOutputs, "no outputs, or too long ones"));
        }
        let merkle_path = custom.merkle_path.as_slice();
        if merkle_path.len() > MERKLE_PATH_MAX {
            return Err((CustomRefusal::InvalidMerklePath, "a path longer than any block's"));
        }
        Ok(Box::new(CustomJobRequest {
            channel,
            request_id: custom.request_id,
            token,
            account,
            version: custom.version,
            prev_hash: custom.prev_hash,
            min_ntime: custom.min_ntime,
            nbits: custom.nbits,
            coinbase_tx_version: custom.coinbase_tx_version,
            coinbase_prefix: coinbase_prefix.to_vec(),
            coinbase_sequence: custom.coinbase_tx_input_sequence,
            outputs: outputs.to_vec(),
            locktime: custom.coinbase_tx_locktime,
            merkle_path: merkle_path.to_vec(),
        }))
    }

    /// The open extended channels that an id names: one, or of the group all, its standard channels left
    /// out (rule P61).
    fn extended_of(&self, id: ChannelId) -> Vec<ChannelId> {
        let extended = self.channels.iter().filter(|(_, channel)| channel.kind == Kind::Extended);
        extended.map(|(known, _)| *known).filter(|known| id == GROUP || id == *known).collect()
    }

    /// The pool's answer to one request. Where every channel that it was for is closed by now, nothing more
    /// is said (rule P13). A channel of another account may have come to the group meanwhile.
    pub(super) fn on_custom_verdict(
        &mut self,
        now: Now,
        (channel, request_id): (ChannelId, u32),
        verdict: Result<Box<CustomJob>, (CustomRefusal, String)>,
        out: &mut Outbox,
    ) {
        let Some(work) = &mut self.custom else { return };
        let is_it =
            |waiting: &Waiting| (waiting.channel, waiting.request_id) == (channel, request_id);
        let Some(at) = work.waiting.iter().position(is_it) else { return };
        let Waiting { token, account, .. } = work.waiting.remove(at);
        let mut members = self.extended_of(channel);
        let is_his = |member: &ChannelId| {
            self.channels.get(member).is_some_and(|member| member.owner.account == account)
        };
        members.retain(is_his);
        if members.is_empty() {
            return;
        }
        let given = verdict.and_then(|custom| {
            self.follow_tip(&custom)?;
            self.give_custom_job(now, &members, *custom)
        });
        match given {
            Ok((job_id, worth)) => {
                out.say(SetCustomMiningJobSuccess {
                    channel_id: channel.0,
                    request_id,
                    job_id: job_id.0,
                });
                let accepted = CustomAccepted { channel, request_id, token, job_id, worth };
                out.effects.push(Effect::CustomAccepted(Box::new(accepted)));
            }
            Err((refusal, reason)) => refuse(channel, request_id, refusal, reason, out),
        }
    }

    /// A job on the tip after ours makes every job before it stale: the pool knows of that tip, and its
    /// template for it is on the way here. A job on any other tip was overtaken while it was judged.
    fn follow_tip(&mut self, custom: &CustomJob) -> Result<(), (CustomRefusal, String)> {
        if self.given.tip().prev.is_same_tip(&custom.tip) {
            return Ok(());
        }
        let height = custom.job.template().height;
        if self.custom.as_ref().is_none_or(|work| height <= work.height) {
            return Err((CustomRefusal::StaleChainTip, "the tip moved meanwhile".to_owned()));
        }
        self.retire_custom_jobs(custom.tip, height);
        Ok(())
    }

    /// Work on a tip that is gone is stale on every channel.
    fn retire_custom_jobs(&mut self, tip: PrevHash, height: u32) {
        self.given.move_to(tip);
        for channel in self.channels.values_mut() {
            channel.retire_jobs(&self.given);
        }
        if let Some(work) = &mut self.custom {
            work.pace.grant(JOBS_PER_TIP);
            work.spaces.clear();
            work.frozen = 0;
            work.height = height;
        }
    }

    /// The pool's own template, of which such a client is told nothing but that its jobs are stale.
    pub(super) fn on_template_unsaid(&mut self, old_tip: PrevHash) {
        let new = &self.active;
        let is_news = !old_tip.is_same_tip(&new.tip);
        // Perhaps a custom job was ahead of it.
        if is_news && !self.given.tip().prev.is_same_tip(&new.tip) {
            self.retire_custom_jobs(new.tip, new.job.template().height);
        }
    }

    fn give_custom_job(
        &mut self,
        now: Now,
        members: &[ChannelId],
        custom: CustomJob,
    ) -> Result<(JobId, Worth), (CustomRefusal, String)> {
        let CustomJob { job, tip, worth } = custom;
        let space = space_of(&job);
        let id = self.new_job_id();
        let Some(work) = &mut self.custom else {
            return Err((CustomRefusal::NotSupported, String::new()));
        };
        let missing = work.missing(&space, members);
        let most = CUSTOM_SPACES_MAX.max(CUSTOM_SPACES_PER_CHANNEL * self.channels.len());
        if work.frozen + missing > most {
            let reason = "too many jobs under one tip".to_owned();
            return Err((CustomRefusal::TooManyJobs, reason));
        }
        work.frozen += missing;
        let frozen = work
            .spaces
            .entry(space)
            .or_insert_with(|| Frozen { factor_ppm: worth.factor_ppm, difficulties: Vec::new() });
        let worth = Worth { factor_ppm: frozen.factor_ppm, ..worth };
        for member in members {
            let Some(channel) = self.channels.get_mut(member) else { continue };
            let difficulty = frozen.of(*member).unwrap_or_else(|| {
                let difficulty = channel.vardiff.difficulty();
                frozen.difficulties.push((*member, difficulty));
                difficulty
            });
            let (job, min_ntime, since) = (job.clone(), tip.min_ntime, now.unix_s);
            let given = Given { id, job, min_ntime, since };
            channel.give(given, difficulty, worth, &self.given);
        }
        Ok((id, worth))
    }
}

/// The one answer to a request that is told no (rule P62).
fn refuse(
    channel: ChannelId,
    request_id: u32,
    refusal: CustomRefusal,
    reason: String,
    out: &mut Outbox,
) {
    out.say(SetCustomMiningJobError {
        channel_id: channel.0,
        request_id,
        error_code: Str0255::text(refusal.code_on_wire()),
    });
    let refused = CustomRefused { channel, request_id, refusal, reason };
    out.effects.push(Effect::CustomRefused(Box::new(refused)));
}
