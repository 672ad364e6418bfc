//! A V1 device, the session in front of it and a real mining server behind, in virtual time. The device
//! knows only lines: what it hashes it puts together from them alone.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::collections::VecDeque;
use std::sync::Arc;

use job_declarator::sv1::{End, Out, Session, Terms};
use proto::extranonce::ExtranonceAllocator;
use proto::job::{ActiveTemplate, HeaderFields, Job};
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message, Received, Tlvs};
use proto::mining::server::{Effect, Input, Outbox, Policy, Server};
use proto::mining::{Committed, CreditBatch, Now};
use proto::target::Difficulty;
use proto::template::{Output, PrevHash, Template, TemplateId, merkle_root, sha256d};
use serde_json::{Value, json};

pub const START: Now = Now { mono_ms: 1_000_000, unix_s: 1_800_000_000 };

/// Difficulty of the tests: a hash in some hundred is a share.
pub const EASY: Difficulty = Difficulty::from_log2(-24);

/// The chain at this height; of another salt, another template on the same tip.
pub fn active(height: u32, salt: u8) -> Arc<ActiveTemplate> {
    let tip = PrevHash {
        hash: sha256d(&height.to_le_bytes()),
        nbits: 0x1d00_ffff,
        min_ntime: START.unix_s - 20,
    };
    Arc::new(ActiveTemplate { tip, job: job(height + 1, salt), next: Some(job(height + 2, 0)) })
}

fn job(height: u32, salt: u8) -> Job {
    let [low, middle, high, _] = height.to_le_bytes();
    let template = Template {
        id: TemplateId(u64::from(height) << 8 | u64::from(salt)),
        height,
        // Bits of BIP310's mask stand in it, too: they are to be replaced.
        version: 0x2000_6000,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, low, middle, high],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000,
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: height - 1,
        merkle_path: vec![sha256d(&[salt]), sha256d(b"second")],
        transactions: Some(Arc::default()),
        commits_to_witnesses: false,
    };
    let output = Output { sats: 312_500_000, script: [&[0, 20][..], &[salt; 20]].concat() };
    Job::new(Arc::new(template), &[output], b"/test/").unwrap()
}

/// What mining.notify says.
#[derive(Debug, Clone)]
pub struct Notified {
    pub id: String,
    pub header: HeaderFields,
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    pub path: Vec<[u8; 32]>,
    pub clean: bool,
    pub difficulty: f64,
}

pub struct Rig {
    pub now: Now,
    pub session: Session,
    pub server: Server,
    /// Lines that the device did not look at yet.
    pub heard: VecDeque<Value>,
    /// The same as they were written.
    pub text: String,
    /// Names of the messages that went to the server.
    pub asked: Vec<&'static str>,
    /// Names that channels were opened under.
    pub identities: Vec<String>,
    /// Batches that the ledger has not committed, and whether it does so by itself.
    pub batches: VecDeque<CreditBatch>,
    pub commits: bool,
    pub extranonce1: Vec<u8>,
    pub extranonce2_len: usize,
    pub difficulty: f64,
    pub ended: Option<End>,
    next_id: u64,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(EASY, active(900_000, 1))
    }

    /// A server that gives nothing easier than `floor`.
    pub fn with(floor: Difficulty, template: Arc<ActiveTemplate>) -> Self {
        let policy = Policy { floor, ..Policy::default() };
        let terms = Terms { shares_per_minute: policy.shares_per_minute, nominal_hash_rate: 0.0 };
        Self {
            now: START,
            session: Session::new(terms, START),
            server: Server::new(
                Arc::new(policy),
                0,
                ExtranonceAllocator::new(7, 9),
                template,
                START,
            ),
            heard: VecDeque::new(),
            text: String::new(),
            asked: Vec::new(),
            identities: Vec::new(),
            batches: VecDeque::new(),
            commits: true,
            extranonce1: Vec::new(),
            extranonce2_len: 0,
            difficulty: 0.0,
            ended: None,
            next_id: 100,
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        let mut out = Out::default();
        let end = self.session.feed(self.now, bytes, &mut out).err();
        self.ended = self.ended.take().or(end);
        self.pass(out);
    }

    pub fn say(&mut self, line: &Value) {
        self.feed(format!("{line}\n").as_bytes());
    }

    /// Sends a request; its id.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next_id += 1;
        let id = json!(self.next_id);
        self.say(&json!({"id": id, "method": method, "params": params}));
        id
    }

    /// The same, and the answer.
    pub fn ask(&mut self, method: &str, params: &Value) -> Value {
        let id = self.call(method, params);
        self.answer_to(&id)
    }

    /// Takes the answer out of what was heard.
    pub fn answer_to(&mut self, id: &Value) -> Value {
        self.answer_if_there(id).unwrap_or_else(|| panic!("{id} has no answer"))
    }

    pub fn answer_if_there(&mut self, id: &Value) -> Option<Value> {
        let at =
            self.heard.iter().position(|line| line.get("method").is_none() && line["id"] == *id);
        at.and_then(|at| self.heard.remove(at))
    }

    pub fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_s += u32::try_from(ms / 1_000).unwrap();
        let mut out = Out::default();
        self.session.time(self.now, &mut out);
        self.pass(out);
        self.server(Input::Time);
    }

    pub fn template(&mut self, template: Arc<ActiveTemplate>) {
        self.server(Input::Template(template));
        self.server(Input::BurstEnd);
    }

    /// The ledger has the oldest batch.
    pub fn commit(&mut self) {
        let batch = self.batches.pop_front().expect("a batch to commit");
        self.server(Input::Committed(Committed { id: batch.id, duplicates: Vec::new() }));
    }

    pub fn server(&mut self, input: Input<'_>) {
        let mut outbox = Outbox::default();
        self.server.handle(self.now, input, &mut outbox).unwrap();
        self.hear(outbox);
    }

    /// Requests to the server, and what it says back, until both are silent.
    fn pass(&mut self, out: Out) {
        let text = String::from_utf8(out.lines).unwrap();
        for line in text.split_inclusive('\n') {
            assert!(line.ends_with('\n'), "whole lines");
            self.see(serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
        }
        self.text.push_str(&text);
        if out.requests.is_empty() {
            return;
        }
        let mut outbox = Outbox::default();
        for request in &out.requests {
            let message = request.message();
            self.asked.push(message.name());
            if let Message::OpenExtendedMiningChannel(open) = message {
                self.identities.push(open.user_identity.printable());
            }
            let input = Input::Message(message, Tlvs::NONE);
            self.server.handle(self.now, input, &mut outbox).unwrap();
        }
        self.server.handle(self.now, Input::BurstEnd, &mut outbox).unwrap();
        self.server.close_batch(&mut outbox);
        self.hear(outbox);
    }

    fn hear(&mut self, outbox: Outbox) {
        let mut frames = &outbox.frames[..];
        let mut out = Out::default();
        while let Some((header, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*header);
            let (payload, rest) = rest.split_at(header.length);
            frames = rest;
            let received = Message::decode(header.extension(), header.msg_type, payload).unwrap();
            let Received::Known(message, _) = received else { panic!("{received:?}") };
            let end = self.session.hear(self.now, &message, &mut out).err();
            self.ended = self.ended.take().or(end);
        }
        self.pass(out);
        let credits = outbox.effects.into_iter().filter_map(|effect| match effect {
            Effect::Credit(batch) => Some(batch),
            _ => None,
        });
        self.batches.extend(credits);
        while self.commits && !self.batches.is_empty() {
            self.commit();
        }
    }

    fn see(&mut self, mut line: Value) {
        let params = &line["params"];
        match line["method"].as_str() {
            Some("mining.set_difficulty") => self.difficulty = params[0].as_f64().unwrap(),
            // What the job is worth is what was said before it.
            Some("mining.notify") => line["difficulty"] = json!(self.difficulty),
            _ => {}
        }
        self.heard.push_back(line);
    }

    /// Takes out every line of this method.
    pub fn said(&mut self, method: &str) -> Vec<Value> {
        let (said, rest) =
            std::mem::take(&mut self.heard).into_iter().partition(|line| line["method"] == method);
        self.heard = rest;
        said.into()
    }

    /// The jobs that came since the last time.
    pub fn notified(&mut self) -> Vec<Notified> {
        self.said("mining.notify").iter().map(notified).collect()
    }

    pub fn subscribed(&mut self, answer: &Value) {
        assert_eq!(answer["error"], Value::Null);
        self.extranonce1 = bytes(&answer["result"][1]);
        self.extranonce2_len = usize::try_from(answer["result"][2].as_u64().unwrap()).unwrap();
    }

    /// configure, subscribe, authorize, as most firmware does it; the first job.
    pub fn hello(&mut self) -> Notified {
        let wish = json!({"version-rolling.mask": "ffffffff", "version-rolling.min-bit-count": 2});
        let answer = self.ask("mining.configure", &json!([["version-rolling"], wish]));
        assert_eq!(answer["result"]["version-rolling"], true);
        let id = self.call("mining.subscribe", &json!(["firmware/1.0"]));
        let answer = self.ask("mining.authorize", &json!(["alice.garage", "x"]));
        assert_eq!(answer["result"], true);
        self.wait(500);
        let answer = self.answer_to(&id);
        self.subscribed(&answer);
        self.notified().pop().expect("a first job")
    }

    /// Params of a mining.submit that meets the job's target, with these version bits.
    pub fn found(&mut self, job: &Notified, extranonce2: u8, bits: u32) -> Value {
        self.ground(job, extranonce2, bits, true).0
    }

    /// The first nonce whose hash meets the job's target, or misses it.
    pub fn ground(
        &mut self,
        job: &Notified,
        extranonce2: u8,
        bits: u32,
        good: bool,
    ) -> (Value, [u8; 32]) {
        let rolled = vec![extranonce2; self.extranonce2_len];
        let coinbase = [&job.head[..], &self.extranonce1, &rolled, &job.tail].concat();
        let mut header = job.header;
        header.merkle_root = merkle_root(sha256d(&coinbase), &job.path);
        header.version = header.version & !0x1fff_e000 | bits;
        let log2 = i16::try_from(job.difficulty.log2() as i64).unwrap();
        let target = Difficulty::from_log2(log2).target();
        while target.is_met_by(&header.hash()) != good {
            header.nonce += 1;
        }
        let params = json!([
            "alice.garage",
            job.id,
            hex::encode(rolled),
            format!("{:08x}", header.ntime),
            format!("{:08x}", header.nonce),
            format!("{bits:08x}"),
        ]);
        (params, header.hash())
    }
}

fn notified(line: &Value) -> Notified {
    let params = &line["params"];
    let word = |at: usize| {
        let text = params[at].as_str().unwrap();
        assert_eq!(text.len(), 8);
        u32::from_str_radix(text, 16).unwrap()
    };
    let mut prev_hash: [u8; 32] = bytes(&params[1]).try_into().unwrap();
    prev_hash.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    let path = params[4].as_array().unwrap().iter();
    Notified {
        id: params[0].as_str().unwrap().to_owned(),
        header: HeaderFields {
            version: word(5),
            prev_hash,
            merkle_root: [0; 32],
            ntime: word(7),
            nbits: word(6),
            nonce: 0,
        },
        head: bytes(&params[2]),
        tail: bytes(&params[3]),
        path: path.map(|hash| bytes(hash).try_into().unwrap()).collect(),
        clean: params[8].as_bool().unwrap(),
        difficulty: line["difficulty"].as_f64().unwrap(),
    }
}

pub fn bytes(text: &Value) -> Vec<u8> {
    hex::decode(text.as_str().unwrap()).unwrap()
}
