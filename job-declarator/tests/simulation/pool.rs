//! A pool of the simulation: real mining servers, a job declaration server in a few lines, and the faults that
//! a pool can have. Used by `world.rs`, which carries its words; decides nothing about time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::connection::Violation;
use proto::extranonce::ExtranonceAllocator;
use proto::job::{ActiveTemplate, Job};
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{
    AllocateMiningJobTokenSuccess, CloseChannel, DeclareMiningJobError, DeclareMiningJobSuccess,
    FrameHeader, Message, OpenMiningChannelError, Received, Reconnect, RequestExtensionsSuccess,
    SetupConnectionError, SetupConnectionSuccess, SubmitSharesError, SubmitSharesSuccess, Tlvs,
    setup_flags,
};
use proto::mining::server::{Effect, Input, Outbox, Policy, Server};
use proto::mining::{Committed, CustomJob, CustomJobRequest, CustomRefusal, Now, Worth};
use proto::share::Refusal;
use proto::target::Difficulty;
use proto::template::{Output, PrevHash, Template, TemplateId};
use proto::wire::{B064K, B0255, Seq064K, Str0255};

use super::chain;

/// A share may take so long to come, and a pool knows jobs of three tips.
const FORGETS_MS: u64 = 8_000;

/// How a pool is, and what it does to those who come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Good,
    /// Nobody listens.
    Away,
    /// Takes everything and says nothing.
    BlackHole {
        mining: bool,
        declare: bool,
    },
    RefusesSetup,
    RefusesChannel,
    RefusesDeclarations(&'static str),
    RefusesJobs(CustomRefusal),
    RefusesShares,
    /// Says what no server may.
    Violates,
    /// Wants everybody to come anew, every time.
    AsksBack,
    /// Wants more than the owner gives.
    Greedy,
    /// Gives no tokens.
    Stingy,
    /// Ends the connection in the middle of a declaration.
    DropsDeclarers,
}

/// What comes of what a pool was told.
pub enum Answer {
    Say(u64, Vec<u8>),
    Drop(u64),
    Commit(u64, Committed),
    Verdict(u64, Box<CustomJobRequest>),
}

pub struct MiningEnd {
    flags: u32,
    server: Option<Server>,
    /// Successes that are held back until they are a batch: how many, the newest, their sum.
    held: (u32, u32, u64, u32),
}

pub struct Pool {
    pub health: Health,
    pub at: usize,
    pub declares: bool,
    /// One answer for so many shares.
    pub batch: u32,
    pub tip: u64,
    pub active: Arc<ActiveTemplate>,
    policy: Arc<Policy>,
    extranonces: ExtranonceAllocator,
    pub mining: BTreeMap<u64, MiningEnd>,
    /// With the script that a coinbase for them has to pay.
    tokens: HashMap<Vec<u8>, Vec<u8>>,
    /// Has another address for each token.
    pub rotates: bool,
    next: u64,
    /// Good shares that were said no to although the pool is good.
    pub wronged: Vec<Refusal>,
    /// When it was last anything but good.
    pub bad_at_ms: u64,
    pub tip_at_ms: u64,
    /// When it moved to the tip before.
    tip_before_ms: u64,
    /// Its disk writes in order: when the last one is done.
    pub stored_ms: u64,
}

pub fn script_of(pool: usize) -> Vec<u8> {
    vec![0x51, pool as u8]
}

/// Each frame of some bytes.
pub fn frames(mut bytes: &[u8]) -> Vec<(FrameHeader, &[u8])> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*head);
        let (payload, after) = rest.split_at(header.length);
        all.push((header, payload));
        bytes = after;
    }
    all
}

pub fn decode<'a>(header: FrameHeader, payload: &'a [u8]) -> (Message<'a>, Tlvs<'a>) {
    match Message::decode(header.extension(), header.msg_type, payload).unwrap() {
        Received::Known(message, tlvs) => (message, tlvs),
        other => panic!("{other:?}"),
    }
}

impl Pool {
    pub fn new(at: usize, declares: bool, batch: u32, tip: u64) -> Self {
        let policy = Policy {
            floor: Difficulty::MIN,
            ceiling: Difficulty::from_log2(-31),
            ..Policy::default()
        };
        Self {
            health: Health::Good,
            at,
            declares,
            batch,
            tip,
            active: own_job(at, tip, 0),
            policy: Arc::new(policy),
            extranonces: ExtranonceAllocator::new(at as u16, 1),
            mining: BTreeMap::new(),
            tokens: HashMap::new(),
            rotates: false,
            next: 1,
            wronged: Vec::new(),
            bad_at_ms: 0,
            tip_at_ms: 0,
            tip_before_ms: 0,
            stored_ms: 0,
        }
    }

    pub fn end(&mut self, session: u64) {
        self.mining.remove(&session);
    }

    /// The pool hears of another tip, or has another job on this one.
    pub fn move_to(&mut self, now: Now, tip: u64) -> Vec<Answer> {
        if self.tip != tip {
            self.tip_before_ms = self.tip_at_ms;
            self.tip_at_ms = now.mono_ms;
        }
        self.tip = tip;
        self.next += 1;
        self.active = own_job(self.at, tip, self.next);
        let mut answers = Vec::new();
        for id in self.mining.keys().copied().collect::<Vec<_>>() {
            let active = Arc::clone(&self.active);
            self.drive(now, id, Input::Template(active), &mut answers).unwrap();
        }
        answers
    }

    /// Its channels may be no harder than this.
    pub fn set_ceiling(&mut self, now: Now, ceiling: Difficulty) -> Vec<Answer> {
        let mut answers = Vec::new();
        for id in self.mining.keys().copied().collect::<Vec<_>>() {
            let mut out = Outbox::default();
            if let Some(server) = self.mining.get_mut(&id).and_then(|end| end.server.as_mut()) {
                server.set_ceiling(ceiling, now, &mut out);
            }
            self.take(id, out, &mut answers);
        }
        answers
    }

    pub fn committed(&mut self, now: Now, id: u64, committed: Committed) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.drive(now, id, Input::Committed(committed), &mut answers).unwrap();
        answers
    }

    pub fn deadline_ms(&self) -> u64 {
        let servers = self.mining.values().filter_map(|end| end.server.as_ref());
        servers.map(Server::deadline_ms).min().unwrap_or(u64::MAX)
    }

    pub fn pass(&mut self, now: Now) -> Vec<Answer> {
        let mut answers = Vec::new();
        for id in self.mining.keys().copied().collect::<Vec<_>>() {
            let server = self.mining.get(&id).and_then(|end| end.server.as_ref());
            if server.is_some_and(|server| server.deadline_ms() <= now.mono_ms) {
                self.drive(now, id, Input::Time, &mut answers).unwrap();
            }
        }
        answers
    }

    fn drive(
        &mut self,
        now: Now,
        id: u64,
        input: Input<'_>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Violation> {
        let mut out = Outbox::default();
        let Some(server) = self.mining.get_mut(&id).and_then(|end| end.server.as_mut()) else {
            return Ok(());
        };
        server.handle(now, input, &mut out)?;
        server.handle(now, Input::BurstEnd, &mut out)?;
        server.close_batch(&mut out);
        self.take(id, out, answers);
        Ok(())
    }

    /// What a server said and wants done.
    fn take(&mut self, id: u64, out: Outbox, answers: &mut Vec<Answer>) {
        for effect in out.effects {
            match effect {
                Effect::Credit(batch) => {
                    let committed = Committed { id: batch.id, duplicates: Vec::new() };
                    answers.push(Answer::Commit(id, committed));
                }
                Effect::CustomJob(request) => answers.push(Answer::Verdict(id, request)),
                Effect::Refused { refusal, .. } => {
                    // Where blocks come by the second, a job may be forgotten with its tip.
                    let is_quick = self.tip_at_ms < self.tip_before_ms + FORGETS_MS;
                    let is_late = refusal == Refusal::InvalidJobId && is_quick;
                    if refusal != Refusal::StaleShare && !is_late {
                        self.wronged.push(refusal);
                    }
                }
                _ => {}
            }
        }
        let Some(end) = self.mining.get_mut(&id) else { return };
        let mut said = Vec::new();
        for (header, payload) in frames(&out.frames) {
            let (message, _) = decode(header, payload);
            let Message::SubmitSharesSuccess(success) = message else {
                message.encode(&mut said);
                continue;
            };
            let (count, _, sum, _) = end.held;
            let count = count + success.new_submits_accepted_count;
            let (last, sum) = (success.last_sequence_number, sum + success.new_shares_sum);
            end.held = (count, last, sum, success.channel_id);
            if count >= self.batch {
                end.held = (0, 0, 0, 0);
                let (channel_id, new_shares_sum) = (success.channel_id, sum);
                let batch = SubmitSharesSuccess {
                    channel_id,
                    last_sequence_number: last,
                    new_submits_accepted_count: count,
                    new_shares_sum,
                };
                Message::from(batch).encode(&mut said);
            }
        }
        if !said.is_empty() {
            answers.push(Answer::Say(id, said));
        }
    }

    /// A frame came on a mining link.
    pub fn hear_mining(
        &mut self,
        now: Now,
        id: u64,
        message: Message<'_>,
        tlvs: Tlvs<'_>,
    ) -> Vec<Answer> {
        let mut answers = Vec::new();
        if matches!(self.health, Health::BlackHole { mining: true, .. }) {
            return answers;
        }
        let mut said = Vec::new();
        match (message, self.health) {
            (Message::SetupConnection(_), Health::RefusesSetup) => {
                let error_code = Str0255::text("unsupported-feature-flags");
                Message::from(SetupConnectionError { flags: 0, error_code }).encode(&mut said);
            }
            (Message::SetupConnection(setup), _) => {
                let end = MiningEnd { flags: setup.flags, server: None, held: (0, 0, 0, 0) };
                self.mining.insert(id, end);
                let success = SetupConnectionSuccess { used_version: 2, flags: 0 };
                Message::from(success).encode(&mut said);
            }
            (Message::RequestExtensions(request), _) => {
                let Some(end) = self.mining.get_mut(&id) else { return answers };
                let mut server = Server::new(
                    Arc::clone(&self.policy),
                    end.flags,
                    self.extranonces.clone(),
                    Arc::clone(&self.active),
                    now,
                );
                server.set_worker_hashrate(true);
                end.server = Some(server);
                let request_id = request.request_id;
                let supported_extensions = Seq064K::new(&[[2, 0]]).unwrap();
                Message::from(RequestExtensionsSuccess { request_id, supported_extensions })
                    .encode(&mut said);
            }
            (Message::OpenExtendedMiningChannel(open), Health::RefusesChannel) => {
                let error_code = Str0255::text("unknown-user");
                let request_id = open.request_id;
                Message::from(OpenMiningChannelError { request_id, error_code }).encode(&mut said);
            }
            (Message::OpenExtendedMiningChannel(_), Health::AsksBack) => {
                let new_host = Str0255::text("elsewhere");
                Message::from(Reconnect { new_host, new_port: 1 }).encode(&mut said);
            }
            (Message::SubmitSharesExtended(share), Health::RefusesShares) => {
                let error_code = Str0255::text("difficulty-too-low");
                let sequence_number = share.sequence_number;
                let channel_id = share.channel_id;
                Message::from(SubmitSharesError { channel_id, sequence_number, error_code })
                    .encode(&mut said);
            }
            (Message::SubmitSharesExtended(share), Health::Violates) => {
                let reason_code = Str0255::text("x");
                let channel_id = share.channel_id ^ 0x55;
                Message::from(CloseChannel { channel_id, reason_code }).encode(&mut said);
            }
            (message, _) => {
                self.drive(now, id, Input::Message(message, tlvs), &mut answers).unwrap()
            }
        }
        if !said.is_empty() {
            answers.push(Answer::Say(id, said));
        }
        answers
    }

    /// The pool's judgement of a custom job.
    pub fn judge(&mut self, now: Now, id: u64, request: &CustomJobRequest) -> Vec<Answer> {
        let mut answers = Vec::new();
        if matches!(self.health, Health::BlackHole { mining: true, .. }) {
            return answers;
        }
        let verdict = self.verdict(request).map_err(|refusal| (refusal, String::new()));
        let (channel, request_id) = (request.channel, request.request_id);
        let verdict = verdict.map(Box::new);
        let input = Input::CustomJob { channel, request_id, verdict };
        self.drive(now, id, input, &mut answers).unwrap();
        answers
    }

    fn verdict(&mut self, request: &CustomJobRequest) -> Result<CustomJob, CustomRefusal> {
        if let Health::RefusesJobs(refusal) = self.health {
            return Err(refusal);
        }
        let token = request.token.0.to_vec();
        if request.prev_hash != chain::tip_of(self.tip).hash {
            return Err(CustomRefusal::StaleChainTip);
        }
        let Some(script) = self.tokens.remove(&token) else {
            return Err(CustomRefusal::InvalidToken);
        };
        assert!(request.outputs[10..].starts_with(&script), "outputs of another token");
        let template = Template {
            id: TemplateId(0),
            version: request.version,
            merkle_path: request.merkle_path.clone(),
            transactions: None,
            ..chain::template(self.tip, 0)
        };
        let tip = PrevHash { min_ntime: request.min_ntime, ..chain::tip_of(self.tip) };
        let job = Job::from_parts(Arc::new(template), request.coinbase());
        Ok(CustomJob { job, tip, worth: Worth::POOL_JOB })
    }

    fn token(&mut self, script: Vec<u8>) -> [u8; 16] {
        self.next += 1;
        let mut token = [self.at as u8; 16];
        token[..8].copy_from_slice(&self.next.to_le_bytes());
        self.tokens.insert(token.to_vec(), script);
        token
    }

    /// A frame came on a job declaration link.
    pub fn hear_declare(&mut self, id: u64, message: Message<'_>) -> Vec<Answer> {
        if matches!(self.health, Health::BlackHole { declare: true, .. }) {
            return Vec::new();
        }
        let mut said = Vec::new();
        match message {
            Message::SetupConnection(setup) => {
                let flags = setup.flags & setup_flags::DECLARE_TX_DATA;
                Message::from(SetupConnectionSuccess { used_version: 2, flags }).encode(&mut said);
            }
            Message::AllocateMiningJobToken(_) if self.health == Health::Stingy => {}
            Message::AllocateMiningJobToken(asked) => {
                let mut script = script_of(self.at);
                if self.rotates && self.next.is_multiple_of(2) {
                    script[0] = 0x53;
                }
                if self.health == Health::Greedy {
                    script = script_of(99);
                }
                let token = self.token(script.clone());
                let mut outputs = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, script.len() as u8];
                outputs.extend_from_slice(&script);
                let success = AllocateMiningJobTokenSuccess {
                    request_id: asked.request_id,
                    mining_job_token: B0255::new(&token).unwrap(),
                    coinbase_tx_outputs: B064K::new(&outputs).unwrap(),
                };
                Message::from(success).encode(&mut said);
            }
            Message::DeclareMiningJob(_) if self.health == Health::DropsDeclarers => {
                return vec![Answer::Drop(id)];
            }
            Message::DeclareMiningJob(declared) => {
                let known = self.tokens.remove(declared.mining_job_token.as_slice());
                let script = known.expect("a token that was given and not used");
                let suffix = declared.coinbase_tx_suffix.as_slice();
                assert!(suffix[14..].starts_with(&script), "outputs of another token");
                let request_id = declared.request_id;
                if let Health::RefusesDeclarations(code) = self.health {
                    let error_code = Str0255::text(code);
                    let error_details = B064K::default();
                    Message::from(DeclareMiningJobError { request_id, error_code, error_details })
                        .encode(&mut said);
                } else {
                    let token = self.token(script);
                    let new_mining_job_token = B0255::new(&token).unwrap();
                    let success = DeclareMiningJobSuccess { request_id, new_mining_job_token };
                    Message::from(success).encode(&mut said);
                }
            }
            Message::PushSolution(_) => {}
            other => panic!("{other:?}"),
        }
        if said.is_empty() { Vec::new() } else { vec![Answer::Say(id, said)] }
    }
}

fn own_job(pool: usize, tip: u64, number: u64) -> Arc<ActiveTemplate> {
    let template = chain::template(tip, number);
    let output = Output { sats: template.coinbase_value_sats, script: script_of(pool) };
    let job = Job::new(Arc::new(template), &[output], b"pool").unwrap();
    Arc::new(ActiveTemplate { tip: chain::tip_of(tip), job, next: None })
}
