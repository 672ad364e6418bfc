//! A declarator whose pools, node and devices are the test's own words: nothing is hashed, time is a number.

use std::sync::Arc;

use job_declarator::declarator::{
    Declarator, Effect, End, Input, Known, LinkId, Mode, Note, Options, OutputLimit, PoolOptions,
    PoolTally, Published, WHOLE_REWARD,
};
use job_declarator::node::{NodeTemplate, TemplateMark};
use proto::extranonce::ExtranonceAllocator;
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{
    AllocateMiningJobTokenSuccess, DeclareMiningJobSuccess, FrameHeader, Message,
    NewExtendedMiningJob, OpenExtendedMiningChannelSuccess, Received, RequestExtensionsSuccess,
    SetCustomMiningJobSuccess, SetNewPrevHash, SetupConnectionSuccess, SubmitSharesError,
    SubmitSharesSuccess, Tlvs,
};
use proto::mining::{ChannelId, CreditGroup, Now, Owner, Worth};
use proto::share::Proof;
use proto::target::Difficulty;
use proto::template::{PrevHash, Template, TemplateId};
use proto::wire::{B032, B064K, B0255, Seq064K, Seq0255U256, Str0255};

/// The channel of every pool, and what it puts before an extranonce.
pub const CHANNEL: u32 = 7;
pub const PREFIX: [u8; 4] = [9; 4];
/// Unix seconds, always.
pub const NOW_S: u32 = 1_800_000_000;
pub const DIFFICULTY: Difficulty = Difficulty::from_log2(4);

pub struct Rig {
    pub declarator: Declarator,
    pub now_ms: u64,
    pub published: Vec<Published>,
    pub notes: Vec<Note>,
    /// Links and the pools that they are of.
    pub dialled: Vec<(LinkId, usize)>,
    pub hung: Vec<LinkId>,
    sent: Vec<(LinkId, FrameHeader, Vec<u8>)>,
    /// Requests for tokens that have no answer.
    wanted: Vec<(LinkId, u32)>,
    nonce: u32,
    /// Bytes that a pool lets us roll.
    pub size: u16,
    /// Of the shares that are found.
    pub difficulty: Difficulty,
    pub ntime: u32,
    /// How often something was handed to a link.
    pub sends: usize,
}

pub fn options(pools: usize) -> Options {
    let pool = |at: usize| PoolOptions {
        name: format!("pool {at}"),
        address: "pool:3333".to_owned(),
        declare_address: Some("pool:3334".to_owned()),
        user: "alice.house".to_owned(),
        limit: OutputLimit {
            own: vec![0x52],
            known: [0x51, 0x53]
                .map(|script| Known { script: vec![script], share_max: WHOLE_REWARD })
                .to_vec(),
            others_max_percent: 2,
            network: bitcoin::Network::Regtest,
        },
    };
    Options {
        pools: (0..pools).map(pool).collect(),
        payout_script: vec![0x52],
        tag: b"home".to_vec(),
        mode: Mode::FullTemplate,
        refresh_ms: 10_000,
        seed: 1,
    }
}

/// A template; equal numbers are equal work.
pub fn template(tip: u8, number: u8) -> NodeTemplate {
    let template = Template {
        id: TemplateId(u64::from(number)),
        height: 900_000 + u32::from(tip),
        version: 0x2000_0000,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, tip, 0, 0],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000 + u64::from(number),
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: 0,
        merkle_path: vec![[number; 32]],
        transactions: Some(Arc::new(vec![vec![number; 64].into()])),
        commits_to_witnesses: false,
    };
    NodeTemplate {
        prev_hash: PrevHash { hash: [tip; 32], nbits: 0x1d00_ffff, min_ntime: 1 },
        template: Arc::new(template),
        next: None,
        earliest_ntime: 1,
        mark: TemplateMark(String::new()),
    }
}

impl Rig {
    pub fn new(options: Options) -> Self {
        let mut rig = Self {
            declarator: Declarator::new(options),
            now_ms: 0,
            published: Vec::new(),
            notes: Vec::new(),
            dialled: Vec::new(),
            hung: Vec::new(),
            sent: Vec::new(),
            wanted: Vec::new(),
            nonce: 0,
            size: 16,
            difficulty: Difficulty::MIN,
            ntime: 1,
            sends: 0,
        };
        rig.tell(Input::Template(template(1, 1)));
        rig
    }

    /// With its first pool in use and nothing declared yet answered.
    pub fn at_pool() -> (Self, u64) {
        let mut rig = Self::new(options(1));
        let session = rig.make_ready(0, &[0x51]);
        (rig, session)
    }

    /// With the newest job promised as `job`.
    pub fn promised() -> (Self, u64) {
        let (mut rig, session) = Self::at_pool();
        rig.promise(session, 1);
        (rig, session)
    }

    pub fn tell(&mut self, input: Input<'_>) {
        let now = Now { mono_ms: self.now_ms, unix_s: NOW_S };
        let mut out = Vec::new();
        self.declarator.handle(now, input, &mut out);
        for effect in out {
            match effect {
                Effect::Dial { link, pool, .. } => self.dialled.push((link, pool)),
                Effect::Send(link, frames) => {
                    self.sends += 1;
                    let mut frames = &frames[..];
                    while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
                        let header = FrameHeader::decode(*head);
                        let (payload, after) = rest.split_at(header.length);
                        self.keep(link, header, payload);
                        frames = after;
                    }
                }
                Effect::Hang(link) => self.hung.push(link),
                Effect::Publish(published) => self.published.push(published),
                Effect::Note(note) => self.notes.push(note),
            }
        }
    }

    fn keep(&mut self, link: LinkId, header: FrameHeader, payload: &[u8]) {
        match Message::decode(header.extension(), header.msg_type, payload).unwrap() {
            Received::Known(Message::AllocateMiningJobToken(one), _) => {
                self.wanted.push((link, one.request_id));
            }
            _ => self.sent.push((link, header, payload.to_vec())),
        }
    }

    /// Time goes by, with every deadline on the way; the node answers meanwhile.
    pub fn wait(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while let Some(next_ms) = self.declarator.deadline_ms(self.now_ms) {
            let next_ms = next_ms.min(self.now_ms + 1_000);
            if next_ms >= until_ms {
                break;
            }
            self.now_ms = next_ms;
            self.tell(Input::NodeAnswers);
        }
        self.now_ms = until_ms;
        self.tell(Input::NodeAnswers);
    }

    pub fn say<'a>(&mut self, link: LinkId, message: impl Into<Message<'a>>) {
        let mut frame = Vec::new();
        message.into().encode(&mut frame);
        let (head, payload) = frame.split_first_chunk::<FRAME_HEADER_LEN>().unwrap();
        let header = FrameHeader::decode(*head);
        self.tell(Input::Frame(link, header, payload));
    }

    /// What was sent since it was last asked, each message in `take`'s words.
    pub fn sent<T>(
        &mut self,
        take: impl Fn(LinkId, &Message<'_>, Tlvs<'_>) -> Option<T>,
    ) -> Vec<T> {
        let sent = std::mem::take(&mut self.sent);
        let read = |(link, header, payload): &(LinkId, FrameHeader, Vec<u8>)| match Message::decode(
            header.extension(),
            header.msg_type,
            payload,
        )
        .unwrap()
        {
            Received::Known(message, tlvs) => take(*link, &message, tlvs),
            other => panic!("{other:?}"),
        };
        sent.iter().filter_map(read).collect()
    }

    pub fn names(&mut self) -> Vec<&'static str> {
        self.sent(|_, message, _| Some(message.name()))
    }

    /// The newest session with a pool.
    pub fn session(&self, pool: usize) -> u64 {
        self.dialled.iter().rev().find(|(_, of)| *of == pool).unwrap().0.session
    }

    /// Everything that is said until the pool can be mined for: it wants all for `script`.
    pub fn make_ready(&mut self, pool: usize, script: &[u8]) -> u64 {
        let session = self.session(pool);
        let (mining, declare) = ends(session);
        for link in [mining, declare] {
            self.tell(Input::LinkUp(link));
            self.say(link, SetupConnectionSuccess { used_version: 2, flags: 0 });
        }
        let supported_extensions = Seq064K::new(&[[2, 0]]).unwrap();
        self.say(mining, RequestExtensionsSuccess { request_id: 1, supported_extensions });
        self.open(mining);
        self.give_tokens(session, script);
        session
    }

    /// The newest session with a pool opens its channel for the pool's own jobs.
    pub fn open_theirs(&mut self, pool: usize) -> u64 {
        let session = self.session(pool);
        let (mining, _) = ends(session);
        self.tell(Input::LinkUp(mining));
        self.say(mining, SetupConnectionSuccess { used_version: 2, flags: 0 });
        let supported_extensions = Seq064K::new(&[[2, 0]]).unwrap();
        self.say(mining, RequestExtensionsSuccess { request_id: 1, supported_extensions });
        self.open(mining);
        session
    }

    /// The pool's own job on a tip, which pays it all.
    pub fn give_job(&mut self, session: u64, tip: u8) {
        let paid = PoolJob { prev_hash: [tip; 32], ..PoolJob::new(u32::from(tip)) };
        self.give(session, &paid);
    }

    pub fn give(&mut self, session: u64, job: &PoolJob) {
        let (mining, _) = ends(session);
        let prefix = [&[2, 0, 0, 0, 1][..], &[0; 32], &[0xff; 4], &[4 + 4 + 16, 3, 1, 0, 0]];
        let suffix = [&[0xff; 4][..], &job.outputs, &[0; 4]].concat();
        self.say(
            mining,
            NewExtendedMiningJob {
                channel_id: CHANNEL,
                job_id: job.id,
                min_ntime: None,
                version: 0x2000_0000,
                version_rolling_allowed: true,
                merkle_path: Seq0255U256::default(),
                coinbase_tx_prefix: B064K::new(&prefix.concat()).unwrap(),
                coinbase_tx_suffix: B064K::new(&suffix).unwrap(),
            },
        );
        let PoolJob { id: job_id, prev_hash, min_ntime, nbits, .. } = *job;
        let channel_id = CHANNEL;
        self.say(mining, SetNewPrevHash { channel_id, job_id, prev_hash, min_ntime, nbits });
    }

    fn open(&mut self, mining: LinkId) {
        self.say(
            mining,
            OpenExtendedMiningChannelSuccess {
                request_id: 1,
                channel_id: CHANNEL,
                target: DIFFICULTY.target().to_le_bytes(),
                extranonce_size: self.size,
                extranonce_prefix: B032::new(&PREFIX).unwrap(),
                group_channel_id: 1,
            },
        );
    }

    /// Answers every request for a token.
    pub fn give_tokens(&mut self, session: u64, script: &[u8]) {
        let (_, declare) = ends(session);
        let asked: Vec<_> = self.wanted.extract_if(.., |(link, _)| *link == declare).collect();
        for (_, request_id) in asked {
            let mut outputs = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, script.len() as u8];
            outputs.extend_from_slice(script);
            let token = [request_id as u8; 16];
            self.say(
                declare,
                AllocateMiningJobTokenSuccess {
                    request_id,
                    mining_job_token: B0255::new(&token).unwrap(),
                    coinbase_tx_outputs: B064K::new(&outputs).unwrap(),
                },
            );
        }
    }

    /// The pool takes the declaration that was made last.
    pub fn approve(&mut self, session: u64) {
        let declared = self.sent(|_, message, _| match message {
            Message::DeclareMiningJob(declared) => Some(declared.request_id),
            _ => None,
        });
        assert_eq!(declared.len(), 1, "a declaration");
        let request_id = declared[0];
        let new_mining_job_token = B0255::new(&[0x77; 16]).unwrap();
        self.say(ends(session).1, DeclareMiningJobSuccess { request_id, new_mining_job_token });
    }

    /// The number of the custom job that was asked for last.
    pub fn asked(&mut self) -> u32 {
        let asked = self.sent(|_, message, _| match message {
            Message::SetCustomMiningJob(custom) => Some(custom.request_id),
            _ => None,
        });
        *asked.last().expect("a custom job")
    }

    /// The pool takes the declaration that was made last, and promises the job.
    pub fn promise(&mut self, session: u64, job_id: u32) {
        self.approve(session);
        let request_id = self.asked();
        let channel_id = CHANNEL;
        let success = SetCustomMiningJobSuccess { channel_id, request_id, job_id };
        self.say(ends(session).0, success);
    }

    /// A share of the newest work that any pool takes.
    pub fn find(&mut self) {
        self.find_as("shed", [0; 32], false);
    }

    /// A share of the newest work by `worker`.
    pub fn find_as(&mut self, worker: &str, hash: [u8; 32], is_block: bool) {
        let template = self.published.last().unwrap().active.job.template().id;
        self.nonce += 1;
        let proof = Proof {
            hash,
            nonce: self.nonce,
            ntime: self.ntime,
            version: 0x2000_0000,
            rolled: [5; 16],
            difficulty: self.difficulty,
            is_block,
        };
        let group = CreditGroup {
            channel: ChannelId(2),
            owner: Owner { account: "house".into(), worker: worker.into() },
            extranonce_prefix: ExtranonceAllocator::for_house().allocate().unwrap(),
            template,
            coinbase_sequence: 0,
            prev_hash: [1; 32],
            worth: Worth::POOL_JOB,
            proofs: vec![proof],
        };
        self.tell(Input::Shares(vec![group]));
    }

    pub fn acknowledge(&mut self, session: u64, last_sequence_number: u32, count: u32) {
        let success = SubmitSharesSuccess {
            channel_id: CHANNEL,
            last_sequence_number,
            new_submits_accepted_count: count,
            new_shares_sum: 1,
        };
        self.say(ends(session).0, success);
    }

    pub fn refuse(&mut self, session: u64, sequence_number: u32, code: &str) {
        let error_code = Str0255::text(code);
        let channel_id = CHANNEL;
        self.say(ends(session).0, SubmitSharesError { channel_id, sequence_number, error_code });
    }

    pub fn tally(&self, pool: usize) -> PoolTally {
        self.declarator.view(self.now_ms).pools[pool].tally.clone()
    }
}

/// A job of the pool's own.
pub struct PoolJob {
    pub id: u32,
    pub prev_hash: [u8; 32],
    pub min_ntime: u32,
    pub nbits: u32,
    /// CompactSize count and outputs.
    pub outputs: Vec<u8>,
}

impl PoolJob {
    /// A good one, on the tip of `template(1, ..)`.
    pub fn new(id: u32) -> Self {
        let outputs = outputs(&[(9, &[0x51])]);
        Self { id, prev_hash: [1; 32], min_ntime: 1, nbits: 0x1d00_ffff, outputs }
    }
}

/// Count and outputs as they stand in a coinbase.
pub fn outputs(paid: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![paid.len() as u8];
    for (sats, script) in paid {
        bytes.extend_from_slice(&sats.to_le_bytes());
        bytes.push(script.len() as u8);
        bytes.extend_from_slice(script);
    }
    bytes
}

/// A session's links.
pub fn ends(session: u64) -> (LinkId, LinkId) {
    (LinkId { session, end: End::Mining }, LinkId { session, end: End::Declare })
}
