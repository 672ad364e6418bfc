//! The pool's side of one declarer's connection after SetupConnection (spec chapter 6): tokens, declarations
//! and solutions. Driven by the connection's task (`pool/declarer.rs`): what happened goes into `handle`,
//! what to say and what to do comes out in an `Outbox`.
//!
//! Must never judge a declaration (`job-declarator/declared.rs` does), nor hold more of a declarer's bytes
//! than the bounds in `limits.rs` say.

use std::sync::Arc;

use crate::connection::Violation;
use crate::declare::{Declaration, DeclareRefusal, Solution};
use crate::message::Message;
use crate::token::MiningJobToken;

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The declarer said something.
    Message(Message<'a>),
    /// The book of tokens answers `Effect::Allocate`; `None`: not now. Ask again when the server does.
    Allocated {
        /// Of the request.
        request_id: u32,
        /// The token.
        token: Option<MiningJobToken>,
    },
    /// The check answers `Effect::Check`, for each once.
    Checked {
        /// Of the declaration.
        request_id: u32,
        /// What came of it.
        outcome: CheckOutcome,
    },
    /// Time went by (`Server::deadline_ms`).
    Time,
}

/// What came of a check.
#[derive(Debug)]
pub enum CheckOutcome {
    /// These transactions nobody here has. Only of a declaration that `was_asked` is not set of.
    Missing {
        /// Positions in its wtxids, ascending, each once; not empty.
        positions: Vec<u16>,
        /// Comes back with what was supplied.
        declaration: Box<Declaration>,
    },
    /// The job is good, and this token is for mining it.
    Approved(MiningJobToken),
    /// It is not.
    Refused {
        /// The code.
        refusal: DeclareRefusal,
        /// What is wrong, for people; the declarer reads it too.
        details: String,
    },
}

/// What to say and what to do about it, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Plaintext frames, back to back.
    pub frames: Vec<u8>,
    /// What the task is to do.
    pub effects: Vec<Effect>,
}

/// What a machine cannot do itself.
#[derive(Debug)]
pub enum Effect {
    /// Draw a token for this account: to be answered with `Input::Allocated`.
    Allocate {
        /// Of the request.
        request_id: u32,
        /// Who asks: `user_identifier` up to the first dot.
        account: Arc<str>,
    },
    /// Check this declaration: to be answered with `Input::Checked`.
    Check(Box<Declaration>),
    /// A block is found on a job of this connection. At once: it is in a race.
    Solution(Box<Solution>),
    /// For the connection's history: something was told no.
    Refused {
        /// Of the request.
        request_id: u32,
        /// What the declarer is told.
        refusal: DeclareRefusal,
        /// And why.
        details: String,
    },
    /// For the connection's history: a job was declared.
    Declared {
        /// Of the request.
        request_id: u32,
    },
}

/// The pool's side of one declarer's connection, after SetupConnection.
#[derive(Debug)]
pub struct Server {
    /// Flags of the declarer's SetupConnection.
    flags: u32,
    /// CompactSize count and outputs, each of value 0.
    outputs: Arc<[u8]>,
}

impl Server {
    /// `flags` are those of the declarer's SetupConnection; `outputs` (a CompactSize count, then outputs
    /// of value 0, the first with the pool's script) is what Allocate.Success hands out to be filled
    /// (rule JS1).
    #[must_use]
    pub fn new(flags: u32, outputs: Arc<[u8]>, _now_ms: u64) -> Self {
        Self { flags, outputs }
    }

    /// The operator changed what is to be paid; tokens from here on carry it (rule JS2).
    pub fn set_outputs(&mut self, outputs: Arc<[u8]>) {
        self.outputs = outputs;
    }

    /// Takes what happened; an `Err` ends the connection.
    pub fn handle(
        &mut self,
        _now_ms: u64,
        input: Input<'_>,
        _out: &mut Outbox,
    ) -> Result<(), Violation> {
        match input {
            Input::Message(message) => Err(Violation::Unexpected(message.name())),
            Input::Allocated { .. } | Input::Checked { .. } | Input::Time => Ok(()),
        }
    }

    /// When `Input::Time` is due, mono ms, if it is.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        None
    }

    /// Whether another frame may be handled now. At the bound the socket is left alone until a check
    /// answers.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        true
    }

    /// For `Inbound::set_limit`, after every `handle`: the longest payload that the declarer has reason to
    /// send now.
    #[must_use]
    pub fn payload_max(&self) -> usize {
        crate::limits::DECLARE_CLIENT_PAYLOAD_MAX
    }
}
