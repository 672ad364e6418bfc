//! One declarer's connection as both ends see it: the server, its clock, what it said. Used by the tests of
//! the rules and by the fuzz harness, so it needs nothing but `proto`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of these")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]
#![allow(clippy::vec_box, reason = "declarations are kept as the server hands them out")]

use std::sync::Arc;

use proto::connection::Violation;
use proto::declare::Declaration;
use proto::declare::server::{CheckOutcome, Effect, Input, Outbox, Server};
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{
    AllocateMiningJobToken, DeclareMiningJob, FrameHeader, Message,
    ProvideMissingTransactionsSuccess, Received, setup_flags,
};
use proto::token::MiningJobToken;
use proto::wire::{B064K, B0255, Seq064KU256, Str0255, TransactionList};

/// One output of value 0 to a P2WPKH script, behind its count.
pub const OUTPUTS: [u8; 32] = {
    let mut outputs = [7; 32];
    (outputs[0], outputs[9], outputs[10], outputs[11]) = (1, 22, 0, 20);
    let mut at = 1;
    while at < 9 {
        outputs[at] = 0;
        at += 1;
    }
    outputs
};

/// One frame of a job declaration server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Token { request_id: u32, token: MiningJobToken, outputs: Vec<u8> },
    Asked { request_id: u32, positions: Vec<u16> },
    Declared { request_id: u32, token: MiningJobToken },
    Refused { request_id: u32, code: String, details: String },
}

/// A declaration as a test makes it.
#[derive(Debug, Clone)]
pub struct Job {
    pub request_id: u32,
    pub token: Vec<u8>,
    pub prefix: Vec<u8>,
    pub suffix: Vec<u8>,
    pub wtxids: Vec<[u8; 32]>,
}

impl Job {
    /// Of so many transactions.
    pub fn new(request_id: u32, transactions: usize) -> Self {
        let wtxids = (0..transactions).map(|at| {
            let mut wtxid = [9; 32];
            wtxid[..8].copy_from_slice(&(at as u64).to_le_bytes());
            wtxid
        });
        Self {
            request_id,
            token: vec![1; 16],
            prefix: vec![2; 60],
            suffix: vec![3; 100],
            wtxids: wtxids.collect(),
        }
    }
}

pub struct Link {
    pub server: Server,
    pub now_ms: u64,
    /// What the server asked to be done and nobody has taken yet.
    pub effects: Vec<Effect>,
}

impl Link {
    /// A declarer that shows its transactions.
    pub fn new() -> Self {
        Self::with(setup_flags::DECLARE_TX_DATA)
    }

    pub fn with(flags: u32) -> Self {
        let now_ms = 1_000;
        let server = Server::new(flags, Arc::from(OUTPUTS), now_ms);
        Self { server, now_ms, effects: Vec::new() }
    }

    pub fn handle(&mut self, input: Input<'_>) -> Result<Vec<Said>, Violation> {
        let mut out = Outbox::default();
        let answer = self.server.handle(self.now_ms, input, &mut out);
        self.effects.extend(out.effects);
        answer.map(|()| decode(&out.frames))
    }

    pub fn say<'a>(&mut self, message: impl Into<Message<'a>>) -> Vec<Said> {
        self.handle(Input::Message(message.into())).unwrap()
    }

    pub fn allocate(&mut self, request_id: u32) -> Vec<Said> {
        let user_identifier = Str0255::text("alice.declarator");
        self.say(AllocateMiningJobToken { user_identifier, request_id })
    }

    /// The requests that were passed to the book of tokens.
    pub fn allocations(&mut self) -> Vec<(u32, Arc<str>)> {
        let is = |effect: &mut Effect| matches!(effect, Effect::Allocate { .. });
        let taken = self.effects.extract_if(.., is);
        let allocation = |effect| match effect {
            Effect::Allocate { request_id, account } => (request_id, account),
            other => panic!("{other:?}"),
        };
        taken.map(allocation).collect()
    }

    pub fn allocated(&mut self, request_id: u32, token: Option<MiningJobToken>) -> Vec<Said> {
        self.handle(Input::Allocated { request_id, token }).unwrap()
    }

    pub fn try_declare(&mut self, job: &Job) -> Result<Vec<Said>, Violation> {
        let message = Message::from(DeclareMiningJob {
            request_id: job.request_id,
            mining_job_token: B0255::new(&job.token).unwrap(),
            version: 0x2000_0000,
            coinbase_tx_prefix: B064K::new(&job.prefix).unwrap(),
            coinbase_tx_suffix: B064K::new(&job.suffix).unwrap(),
            wtxid_list: Seq064KU256::new(&job.wtxids).unwrap(),
            excess_data: B064K::new(b"whatever").unwrap(),
        });
        self.handle(Input::Message(message))
    }

    pub fn declare(&mut self, job: &Job) -> Vec<Said> {
        self.try_declare(job).unwrap()
    }

    /// The declarations that were passed to the check.
    pub fn checks(&mut self) -> Vec<Box<Declaration>> {
        let is = |effect: &mut Effect| matches!(effect, Effect::Check(_));
        let taken = self.effects.extract_if(.., is);
        let declaration = |effect| match effect {
            Effect::Check(declaration) => declaration,
            other => panic!("{other:?}"),
        };
        taken.map(declaration).collect()
    }

    /// The one that was passed to the check.
    pub fn check(&mut self) -> Box<Declaration> {
        let mut checks = self.checks();
        assert_eq!(checks.len(), 1, "{checks:?}");
        checks.remove(0)
    }

    pub fn checked(&mut self, request_id: u32, outcome: CheckOutcome) -> Vec<Said> {
        self.handle(Input::Checked { request_id, outcome }).unwrap()
    }

    pub fn missing(&mut self, declaration: Box<Declaration>, positions: &[u16]) -> Vec<Said> {
        let positions = positions.to_vec();
        self.checked(declaration.request_id, CheckOutcome::Missing { positions, declaration })
    }

    pub fn try_provide(
        &mut self,
        request_id: u32,
        transactions: &[Vec<u8>],
    ) -> Result<Vec<Said>, Violation> {
        let mut buffer = Vec::new();
        let transaction_list = TransactionList::new(transactions, &mut buffer).unwrap();
        let message = ProvideMissingTransactionsSuccess { request_id, transaction_list };
        self.handle(Input::Message(message.into()))
    }

    pub fn provide(&mut self, request_id: u32, transactions: &[Vec<u8>]) -> Vec<Said> {
        self.try_provide(request_id, transactions).unwrap()
    }

    /// Lets time pass and the server act on it whenever it wanted to.
    pub fn pass(&mut self, ms: u64) -> Vec<Said> {
        let end = self.now_ms + ms;
        let mut said = Vec::new();
        while let Some(due) = self.server.deadline_ms().filter(|due| *due <= end) {
            self.now_ms = due.max(self.now_ms);
            said.extend(self.handle(Input::Time).unwrap());
            assert!(self.server.deadline_ms() > Some(due) || self.server.deadline_ms().is_none());
        }
        self.now_ms = end;
        said
    }
}

fn decode(mut frames: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*head);
        let (payload, after) = rest.split_at(header.length);
        frames = after;
        let received = Message::decode(header.extension(), header.msg_type, payload).unwrap();
        let Received::Known(message, tlvs) = received else { panic!("{received:?}") };
        assert_eq!(message.kind().0, header.extension_type, "rule G5");
        assert!(tlvs.as_slice().is_empty());
        said.push(describe(&message));
    }
    said
}

fn describe(message: &Message<'_>) -> Said {
    let token = |bytes: B0255<'_>| MiningJobToken::from_wire(bytes.as_slice()).unwrap();
    match message {
        Message::AllocateMiningJobTokenSuccess(m) => Said::Token {
            request_id: m.request_id,
            token: token(m.mining_job_token),
            outputs: m.coinbase_tx_outputs.as_slice().to_vec(),
        },
        Message::ProvideMissingTransactions(m) => Said::Asked {
            request_id: m.request_id,
            positions: m.unknown_tx_position_list.iter().collect(),
        },
        Message::DeclareMiningJobSuccess(m) => {
            Said::Declared { request_id: m.request_id, token: token(m.new_mining_job_token) }
        }
        Message::DeclareMiningJobError(m) => {
            let code = m.error_code.as_slice();
            assert!(code.iter().all(|byte| (0x20..=0x7e).contains(byte)), "rule G11");
            Said::Refused {
                request_id: m.request_id,
                code: String::from_utf8(code.to_vec()).unwrap(),
                details: String::from_utf8(m.error_details.as_slice().to_vec()).unwrap(),
            }
        }
        other => panic!("a job declaration server said {}", other.name()),
    }
}
