//! A declarator's end of one job declaration connection (spec chapter 6): setup, a stock of tokens,
//! declarations and solutions. Driven by whoever owns the socket and the clock: the declarator's task, and
//! tests of the server.
//!
//! Each declaration has one answer, or the peer is silent beyond its time, which is an event like a refusal:
//! what to do then is the driver's. It must never trust the server with order or size, and what it keeps is
//! bounded. Rules JC1 to JC12 of the protocol notes are the declarator's half of the bargain; those of this
//! connection are JC5, JC10 and JC11.

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use crate::connection::Violation;
use crate::declare::Solution;
use crate::limits::{
    CLIENT_ANSWER_MAX_MS, CLIENT_DECLARATIONS_MAX, CLIENT_TOKENS_MAX, COINBASE_OUTPUTS_MAX,
    DETAILS_MAX, FRAME_PAYLOAD_MAX,
};
use crate::message::{
    AllocateMiningJobToken, AllocateMiningJobTokenSuccess, DeclareMiningJob, DeclareMiningJobError,
    DeclareMiningJobSuccess, Message, Protocol, ProvideMissingTransactions,
    ProvideMissingTransactionsSuccess, PushSolution, SetupConnection, SetupConnectionError,
    SetupConnectionSuccess, setup_flags,
};
use crate::wire::{B064K, B0255, Seq064KU256, Str0255, TransactionList};

/// The one version of the protocol there is.
const PROTOCOL_VERSION: u16 = 2;

/// Who connects, and for what. Texts longer than 255 bytes are cut there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Whole templates are declared; without it there are tokens alone, for jobs whose transactions stay
    /// with their miner (rule JC11).
    pub tells_transactions: bool,
    /// Who is to be credited: `account.worker` by convention.
    pub user_identifier: String,
    /// Tokens to have in hand, 1 to `CLIENT_TOKENS_MAX`: a template must not wait for one.
    pub tokens: usize,
    /// Host that is dialled.
    pub endpoint_host: String,
    /// Port that is dialled.
    pub endpoint_port: u16,
    /// Maker of the program.
    pub vendor: String,
    /// Its version.
    pub firmware: String,
}

/// A token that a job may be declared with, or, without its transactions, mined.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// 1 to 255 bytes, opaque.
    pub bytes: Arc<[u8]>,
    /// CompactSize count and outputs of value 0 that are the pool's to be filled (rule JC1).
    pub outputs: Arc<[u8]>,
}

impl std::fmt::Debug for Token {
    /// Whoever reads a log must not be able to use one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({} bytes)", self.bytes.len())
    }
}

/// A job to declare.
#[derive(Debug, Clone)]
pub struct OwnJob {
    /// Header version.
    pub version: u32,
    /// Coinbase up to the extranonce, as DeclareMiningJob has it (rule JC5).
    pub coinbase_prefix: Vec<u8>,
    /// What stands behind it.
    pub coinbase_suffix: Vec<u8>,
    /// Of every transaction but the coinbase, in block order.
    pub wtxids: Vec<[u8; 32]>,
    /// In full, in the same order; kept until the answer.
    pub transactions: Arc<Vec<Arc<[u8]>>>,
}

/// What a message from the server, or its silence, means to the driver. Codes are for logs and pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection is set up; tokens follow.
    SetUp,
    /// The server does not want this connection; it closes it.
    SetupRefused {
        /// Bits of ours that it does not support; 0 means another reason.
        flags: u32,
        /// Printable.
        code: String,
    },
    /// A token is in stock.
    TokenCame,
    /// The declared job may be mined with this token.
    Declared {
        /// As `declare` gave it.
        request_id: u32,
        /// For SetCustomMiningJob.
        token: Arc<[u8]>,
    },
    /// It may not.
    Refused {
        /// As `declare` gave it.
        request_id: u32,
        /// Printable.
        code: String,
        /// Printable.
        details: String,
    },
    /// The server has said nothing for too long to this declaration.
    Unanswered {
        /// As `declare` gave it.
        request_id: u32,
    },
    /// The server has said nothing for too long to a request for a token. It stays asked for.
    NoToken,
}

/// A job that was not declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotDeclared {
    /// The connection is not set up, or refused, or was set up without transactions.
    #[error("no connection that jobs are declared on")]
    NotSetUp,
    /// There is none in stock.
    #[error("no token is there")]
    NoToken,
    /// `CLIENT_DECLARATIONS_MAX` have no answer.
    #[error("too many declarations have no answer")]
    TooMany,
    /// Longer than a message takes, or a list that does not fit its transactions.
    #[error("a job that no message holds")]
    NoMessage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing said yet.
    Fresh,
    AwaitSetup,
    Open,
    /// Refused.
    Closed,
}

#[derive(Debug)]
struct Waiting {
    request_id: u32,
    transactions: Arc<Vec<Arc<[u8]>>>,
    was_asked: bool,
    until_ms: u64,
}

/// One connection of a declarator.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    state: State,
    /// The oldest first.
    tokens: VecDeque<Token>,
    /// Requests for a token without an answer, the oldest first, and until when each may take.
    asked: VecDeque<(u32, u64)>,
    /// Declarations without an answer, the oldest first.
    waiting: VecDeque<Waiting>,
    /// Declarations that were given up; their answers mean nothing any more.
    given_up: VecDeque<u32>,
    next_request: u32,
}

type Handled = Result<Option<Event>, Violation>;

impl Client {
    /// A connection that has not said anything yet.
    #[must_use]
    pub fn new(mut options: ClientOptions) -> Self {
        options.tokens = options.tokens.clamp(1, CLIENT_TOKENS_MAX);
        Self {
            options,
            state: State::Fresh,
            tokens: VecDeque::new(),
            asked: VecDeque::new(),
            waiting: VecDeque::new(),
            given_up: VecDeque::new(),
            next_request: 1,
        }
    }

    /// Says the first message. Everything else follows from `handle`.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        let options = &self.options;
        let flags = if options.tells_transactions { setup_flags::DECLARE_TX_DATA } else { 0 };
        let setup = SetupConnection {
            protocol: Protocol::JobDeclaration as u8,
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            flags,
            endpoint_host: Str0255::text(&options.endpoint_host),
            endpoint_port: options.endpoint_port,
            vendor: Str0255::text(&options.vendor),
            hardware_version: Str0255::default(),
            firmware: Str0255::text(&options.firmware),
            device_id: Str0255::default(),
        };
        Message::from(setup).encode(out);
        self.state = State::AwaitSetup;
    }

    /// Tokens in hand.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The outputs that the next token's coinbase has to have.
    #[must_use]
    pub fn next_outputs(&self) -> Option<&Arc<[u8]>> {
        self.tokens.front().map(|token| &token.outputs)
    }

    /// Takes a token out of the stock, for a job that is not declared; another is asked for.
    pub fn take_token(&mut self, now_ms: u64, out: &mut Vec<u8>) -> Option<Token> {
        let token = self.tokens.pop_front()?;
        self.ask_for_tokens(now_ms, out);
        Some(token)
    }

    /// Declares a job with the next token; its number. The answer comes as an event.
    pub fn declare(
        &mut self,
        now_ms: u64,
        job: &OwnJob,
        out: &mut Vec<u8>,
    ) -> Result<u32, NotDeclared> {
        if self.state != State::Open || !self.options.tells_transactions {
            return Err(NotDeclared::NotSetUp);
        }
        if self.waiting.len() >= CLIENT_DECLARATIONS_MAX {
            return Err(NotDeclared::TooMany);
        }
        if job.wtxids.len() != job.transactions.len() {
            return Err(NotDeclared::NoMessage);
        }
        let token = self.tokens.front().ok_or(NotDeclared::NoToken)?;
        let request_id = self.next_request;
        let no_message = |_| NotDeclared::NoMessage;
        let declare = DeclareMiningJob {
            request_id,
            mining_job_token: B0255::new(&token.bytes).map_err(no_message)?,
            version: job.version,
            coinbase_tx_prefix: B064K::new(&job.coinbase_prefix).map_err(no_message)?,
            coinbase_tx_suffix: B064K::new(&job.coinbase_suffix).map_err(no_message)?,
            wtxid_list: Seq064KU256::new(&job.wtxids).map_err(no_message)?,
            excess_data: B064K::default(),
        };
        Message::from(declare).encode(out);
        self.next_request = self.next_request.wrapping_add(1);
        self.tokens.pop_front();
        self.waiting.push_back(Waiting {
            request_id,
            transactions: Arc::clone(&job.transactions),
            was_asked: false,
            until_ms: now_ms.saturating_add(CLIENT_ANSWER_MAX_MS),
        });
        self.ask_for_tokens(now_ms, out);
        Ok(request_id)
    }

    /// Says a found block, if there is anybody to say it to (rule JC9).
    pub fn push_solution(&mut self, solution: &Solution, out: &mut Vec<u8>) {
        if self.state == State::Open && self.options.tells_transactions {
            let Solution { extranonce, prev_hash, nonce, ntime, nbits, version } = *solution;
            let push = PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version };
            Message::from(push).encode(out);
        }
    }

    /// A message came at `now_ms`; answers are appended to `out`. After a `Violation` the connection is to
    /// be closed.
    // Six messages are a server's to say; any other, also one that is added some day, is not.
    #[expect(clippy::wildcard_enum_match_arm)]
    pub fn handle(&mut self, now_ms: u64, message: Message<'_>, out: &mut Vec<u8>) -> Handled {
        match message {
            Message::SetupConnectionSuccess(success) => self.set_up(now_ms, success, out),
            Message::SetupConnectionError(error) => self.setup_refused(error),
            Message::AllocateMiningJobTokenSuccess(token) => self.allocated(&token),
            Message::ProvideMissingTransactions(asked) => self.asked_for(&asked, out),
            Message::DeclareMiningJobSuccess(success) => self.declared(&success),
            Message::DeclareMiningJobError(error) => self.refused(&error),
            other => Err(Violation::Unexpected(other.name())),
        }
    }

    /// When `pass` is due, mono ms, if it is.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let declaration = self.waiting.front().map(|waiting| waiting.until_ms);
        let token = self.asked.front().map(|(_, until_ms)| *until_ms);
        declaration.into_iter().chain(token).min()
    }

    /// Time went by; an event for each that is late, until there is none.
    pub fn pass(&mut self, now_ms: u64) -> Option<Event> {
        if self.waiting.front().is_some_and(|waiting| waiting.until_ms <= now_ms) {
            let late = self.waiting.pop_front()?;
            if self.given_up.len() >= CLIENT_DECLARATIONS_MAX {
                self.given_up.pop_front();
            }
            self.given_up.push_back(late.request_id);
            return Some(Event::Unanswered { request_id: late.request_id });
        }
        let (_, until_ms) = self.asked.front_mut().filter(|(_, until_ms)| *until_ms <= now_ms)?;
        *until_ms = now_ms.saturating_add(CLIENT_ANSWER_MAX_MS);
        // The others were asked for at the same time or later, and are none the nearer.
        self.asked.rotate_left(1);
        Some(Event::NoToken)
    }

    fn set_up(
        &mut self,
        now_ms: u64,
        success: SetupConnectionSuccess,
        out: &mut Vec<u8>,
    ) -> Handled {
        in_order(self.state == State::AwaitSetup, "SetupConnection.Success")?;
        in_order(success.used_version == PROTOCOL_VERSION, "a version that was not offered")?;
        self.state = State::Open;
        self.ask_for_tokens(now_ms, out);
        Ok(Some(Event::SetUp))
    }

    fn setup_refused(&mut self, error: SetupConnectionError<'_>) -> Handled {
        in_order(self.state == State::AwaitSetup, "SetupConnection.Error")?;
        self.state = State::Closed;
        Ok(Some(Event::SetupRefused { flags: error.flags, code: error.error_code.printable() }))
    }

    fn ask_for_tokens(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        while self.state == State::Open
            && self.tokens.len() + self.asked.len() < self.options.tokens
        {
            let request_id = self.next_request;
            self.next_request = self.next_request.wrapping_add(1);
            let user_identifier = Str0255::text(&self.options.user_identifier);
            Message::from(AllocateMiningJobToken { user_identifier, request_id }).encode(out);
            self.asked.push_back((request_id, now_ms.saturating_add(CLIENT_ANSWER_MAX_MS)));
        }
    }

    fn allocated(&mut self, success: &AllocateMiningJobTokenSuccess<'_>) -> Handled {
        let at = self.asked.iter().position(|(id, _)| *id == success.request_id);
        let at = at.ok_or(Violation::Unexpected("a token that was not asked for"))?;
        let (bytes, outputs) =
            (success.mining_job_token.as_slice(), success.coinbase_tx_outputs.as_slice());
        in_order(!bytes.is_empty(), "a token of no length")?;
        in_order(outputs.len() <= COINBASE_OUTPUTS_MAX, "outputs that no coinbase holds")?;
        self.asked.remove(at);
        self.tokens.push_back(Token { bytes: bytes.into(), outputs: outputs.into() });
        Ok(Some(Event::TokenCame))
    }

    /// Rule JS5: each declaration is asked about once.
    fn asked_for(&mut self, asked: &ProvideMissingTransactions<'_>, out: &mut Vec<u8>) -> Handled {
        let request_id = asked.request_id;
        let waiting = self.waiting.iter_mut().find(|waiting| waiting.request_id == request_id);
        let Some(waiting) = waiting else {
            let was_ours = self.given_up.contains(&request_id);
            return in_order(was_ours, "a question about no declaration").map(|()| None);
        };
        in_order(!waiting.was_asked, "a second question about a declaration")?;
        let positions = asked.unknown_tx_position_list.as_slice();
        let mut wanted = Vec::with_capacity(positions.len().min(waiting.transactions.len()));
        let mut length = 0;
        let mut was_named = vec![false; waiting.transactions.len()];
        for position in positions {
            let position = usize::from(u16::from_le_bytes(*position));
            let transaction = waiting.transactions.get(position);
            let transaction = transaction.ok_or(Violation::Unexpected("a position of no list"))?;
            // A server that asks for one again and again would have us send more than there is.
            let is_again = std::mem::replace(&mut was_named[position], true);
            in_order(!is_again, "a position that is asked for twice")?;
            length += transaction.len() + 3;
            in_order(length + 64 <= FRAME_PAYLOAD_MAX, "a question that no message answers")?;
            wanted.push(&**transaction);
        }
        waiting.was_asked = true;
        let mut encoded = Vec::with_capacity(length);
        let transaction_list = TransactionList::new(&wanted, &mut encoded)
            .map_err(|_| Violation::Unexpected("a question that no message answers"))?;
        Message::from(ProvideMissingTransactionsSuccess { request_id, transaction_list })
            .encode(out);
        Ok(None)
    }

    fn declared(&mut self, success: &DeclareMiningJobSuccess<'_>) -> Handled {
        let request_id = success.request_id;
        let token = success.new_mining_job_token.as_slice();
        in_order(!token.is_empty(), "a token of no length")?;
        let answered = self.answered(request_id)?;
        Ok(answered.then(|| Event::Declared { request_id, token: token.into() }))
    }

    fn refused(&mut self, error: &DeclareMiningJobError<'_>) -> Handled {
        let request_id = error.request_id;
        let answered = self.answered(request_id)?;
        Ok(answered.then(|| Event::Refused {
            request_id,
            code: error.error_code.printable(),
            details: printable_details(error.error_details.as_slice()),
        }))
    }

    /// Whether somebody still waits for it.
    fn answered(&mut self, request_id: u32) -> Result<bool, Violation> {
        let at = self.waiting.iter().position(|waiting| waiting.request_id == request_id);
        if let Some(at) = at {
            self.waiting.remove(at);
            return Ok(true);
        }
        let at = self.given_up.iter().position(|id| *id == request_id);
        let at = at.ok_or(Violation::Unexpected("an answer to no declaration"))?;
        self.given_up.remove(at);
        Ok(false)
    }
}

/// What is read of a text of up to 64 KiB: its first `DETAILS_MAX` bytes, and no longer for those that are none.
fn printable_details(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(DETAILS_MAX)]);
    let mut details: String = text.chars().filter(|c| !c.is_control()).collect();
    details.truncate(details.floor_char_boundary(DETAILS_MAX));
    details
}

fn in_order(is_so: bool, what: &'static str) -> Result<(), Violation> {
    if is_so { Ok(()) } else { Err(Violation::Unexpected(what)) }
}
