//! The pool's side of one declarer's connection after SetupConnection (spec chapter 6): tokens, declarations
//! and solutions. Driven by the connection's task (`pool/declarer.rs`): what happened goes into `handle`,
//! what to say and what to do comes out in an `Outbox`.
//!
//! A declaration is checked, then perhaps waits for transactions that its declarer is asked for, then is
//! checked again; each is answered once. Must never judge a declaration (`job-declarator/declared.rs`
//! does), nor hold more of a declarer's bytes than the bounds in `limits.rs` say.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::connection::Violation;
use crate::declare::{Declaration, DeclareRefusal, Solution};
use crate::limits::{
    COINBASE_OUTPUTS_MAX, DECLARATION_EVERY_MS, DECLARATIONS_BURST, DECLARATIONS_OPEN_MAX,
    DECLARE_CLIENT_PAYLOAD_MAX, DECLARE_PROVIDE_PAYLOAD_MAX, DECLARED_PREFIX_MAX,
    DECLARED_TRANSACTIONS_MAX, DECLARER_TOKEN_EVERY_MS, DECLARER_TOKENS_BURST, DETAILS_MAX,
    GIVEN_UP_MAX, JOBS_PER_TIP, PROVIDE_WAIT_MS, SOLUTION_EVERY_MS, SOLUTIONS_BURST,
    SUFFIX_BESIDES_OUTPUTS_MAX, TOKEN_REQUESTS_WAITING_MAX,
};
use crate::message::{
    AllocateMiningJobToken, AllocateMiningJobTokenSuccess, DeclareMiningJob, DeclareMiningJobError,
    DeclareMiningJobSuccess, Message, ProvideMissingTransactions,
    ProvideMissingTransactionsSuccess, PushSolution, setup_flags,
};
use crate::mining::Owner;
use crate::token::{MiningJobToken, Pace};
use crate::wire::{B064K, B0255, Seq064KU16, Str0255};

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The declarer said something.
    Message(Message<'a>),
    /// The book of tokens answers `Effect::Allocate`, for each once; `None`: not now. Then the server asks
    /// again later.
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
    /// The chain has a new tip, on which everybody declares anew.
    NewTip,
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

impl Outbox {
    fn say<'a>(&mut self, message: impl Into<Message<'a>>) {
        message.into().encode(&mut self.frames);
    }
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
    /// For the connection's history: a request for a token is dropped, for which the protocol has no
    /// message.
    NoToken {
        /// Of the request.
        request_id: u32,
    },
    /// For the connection's history: a declaration was told no.
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
    /// Requests for a token whose time has not come, oldest first.
    wanted: VecDeque<Wanted>,
    /// Requests that the book of tokens has.
    allocating: Vec<Wanted>,
    /// Declarations without an answer, oldest first.
    open: Vec<Open>,
    /// Declarations that were refused while their transactions may have been on the way, newest last.
    given_up: VecDeque<u32>,
    tokens: Pace,
    /// Not before, mono ms: the book of tokens said no.
    tokens_from_ms: u64,
    declarations: Pace,
    solutions: Pace,
}

#[derive(Debug)]
struct Wanted {
    request_id: u32,
    account: Arc<str>,
}

#[derive(Debug)]
struct Open {
    request_id: u32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Checking {
        /// It holds transactions that were supplied.
        is_supplied: bool,
    },
    /// Lacks transactions that its declarer is not asked for yet.
    Lacking { positions: Vec<u16>, declaration: Box<Declaration> },
    /// He is asked for them.
    Asked { positions: Vec<u16>, declaration: Box<Declaration>, until_ms: u64 },
}

impl Open {
    /// It is the declarer's turn, or will be.
    fn waits_for_declarer(&self) -> bool {
        match self.stage {
            Stage::Checking { .. } => false,
            Stage::Lacking { .. } | Stage::Asked { .. } => true,
        }
    }
}

impl Server {
    /// `flags` are those of the declarer's SetupConnection; `outputs` (a CompactSize count, then outputs
    /// of value 0, the first with the pool's script) is what Allocate.Success hands out to be filled
    /// (rule JS1).
    ///
    /// # Panics
    /// `outputs` are more than `COINBASE_OUTPUTS_MAX` bytes: a mistake of the caller, at the start.
    #[must_use]
    pub fn new(flags: u32, outputs: Arc<[u8]>, now_ms: u64) -> Self {
        assert!(outputs.len() <= COINBASE_OUTPUTS_MAX, "outputs of {} bytes", outputs.len());
        Self {
            flags,
            outputs,
            wanted: VecDeque::new(),
            allocating: Vec::new(),
            open: Vec::new(),
            given_up: VecDeque::new(),
            tokens: Pace::new(DECLARER_TOKENS_BURST, DECLARER_TOKEN_EVERY_MS, now_ms),
            tokens_from_ms: now_ms,
            declarations: Pace::new(DECLARATIONS_BURST, DECLARATION_EVERY_MS, now_ms),
            solutions: Pace::new(SOLUTIONS_BURST, SOLUTION_EVERY_MS, now_ms),
        }
    }

    /// Takes what happened; an `Err` ends the connection.
    pub fn handle(
        &mut self,
        now_ms: u64,
        input: Input<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        match input {
            Input::Message(message) => self.on_message(now_ms, message, out)?,
            Input::Allocated { request_id, token } => {
                self.on_allocated(now_ms, request_id, token, out);
            }
            Input::Checked { request_id, outcome } => self.on_checked(request_id, outcome, out),
            Input::NewTip => {
                self.tokens.grant(JOBS_PER_TIP);
                self.declarations.grant(JOBS_PER_TIP);
            }
            Input::Time => self.expire(now_ms, out),
        }
        self.ask_for_tokens(now_ms, out);
        self.ask_for_transactions(now_ms, out);
        Ok(())
    }

    /// When `Input::Time` is due, mono ms, if it is.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let asked = self.open.iter().find_map(|open| match open.stage {
            Stage::Asked { until_ms, .. } => Some(until_ms),
            Stage::Checking { .. } | Stage::Lacking { .. } => None,
        });
        let token = self.wanted.front().map(|_| self.tokens.next_ms().max(self.tokens_from_ms));
        asked.into_iter().chain(token).min()
    }

    /// Whether another frame may be handled now. When as many declarations as may be are under check, the
    /// socket is left alone until one of them is answered.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.open.len() < DECLARATIONS_OPEN_MAX || self.open.iter().any(Open::waits_for_declarer)
    }

    /// For `Inbound::set_limit`, after every `handle`: the longest payload that the declarer has reason to
    /// send now.
    #[must_use]
    pub fn payload_max(&self) -> usize {
        match self.is_asking() {
            true => DECLARE_PROVIDE_PAYLOAD_MAX,
            false => DECLARE_CLIENT_PAYLOAD_MAX,
        }
    }

    // Four messages are a declarer's to say; any other, also one that is added some day, is not.
    #[expect(clippy::wildcard_enum_match_arm)]
    fn on_message(
        &mut self,
        now_ms: u64,
        message: Message<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        match message {
            Message::AllocateMiningJobToken(wanted) => self.on_allocate(&wanted, out),
            Message::DeclareMiningJob(declare) => self.on_declare(now_ms, &declare, out),
            Message::ProvideMissingTransactionsSuccess(provided) => {
                self.on_provided(&provided, out)
            }
            Message::PushSolution(solution) => {
                self.on_solution(now_ms, &solution, out);
                Ok(())
            }
            other => Err(Violation::Unexpected(other.name())),
        }
    }

    /// There is no message that refuses a token, so a name that nobody can be paid by ends the connection,
    /// and one asked for too fast waits.
    fn on_allocate(
        &mut self,
        wanted: &AllocateMiningJobToken<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let owner = Owner::of_identity(wanted.user_identifier.as_slice())
            .ok_or(Violation::Unexpected("a user_identifier that is no name"))?;
        let request_id = wanted.request_id;
        if self.wanted.len() + self.allocating.len() >= TOKEN_REQUESTS_WAITING_MAX {
            out.effects.push(Effect::NoToken { request_id });
        } else {
            self.wanted.push_back(Wanted { request_id, account: owner.account });
        }
        Ok(())
    }

    fn ask_for_tokens(&mut self, now_ms: u64, out: &mut Outbox) {
        if now_ms < self.tokens_from_ms {
            return;
        }
        while !self.wanted.is_empty() && self.tokens.take(now_ms) {
            let Some(wanted) = self.wanted.pop_front() else { return };
            let Wanted { request_id, ref account } = wanted;
            out.effects.push(Effect::Allocate { request_id, account: Arc::clone(account) });
            self.allocating.push(wanted);
        }
    }

    fn on_allocated(
        &mut self,
        now_ms: u64,
        request_id: u32,
        token: Option<MiningJobToken>,
        out: &mut Outbox,
    ) {
        let at = self.allocating.iter().position(|wanted| wanted.request_id == request_id);
        let Some(at) = at else { return };
        let wanted = self.allocating.remove(at);
        let Some(token) = token else {
            // Behind the others: it has had its turn.
            self.wanted.push_back(wanted);
            self.tokens_from_ms = now_ms.saturating_add(DECLARER_TOKEN_EVERY_MS);
            return;
        };
        out.say(AllocateMiningJobTokenSuccess {
            request_id,
            mining_job_token: B0255::new(&token.0).expect("16 bytes"),
            coinbase_tx_outputs: B064K::new(&self.outputs)
                .expect("`new` refuses more than COINBASE_OUTPUTS_MAX"),
        });
    }

    fn on_declare(
        &mut self,
        now_ms: u64,
        declare: &DeclareMiningJob<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let request_id = declare.request_id;
        if self.open.iter().any(|open| open.request_id == request_id) {
            return Err(Violation::Unexpected("a second DeclareMiningJob of one request_id"));
        }
        if let Err((refusal, details)) = self.may_declare(now_ms, declare) {
            refuse(request_id, refusal, details, out);
            return Ok(());
        }
        let Some(token) = MiningJobToken::from_wire(declare.mining_job_token.as_slice()) else {
            refuse(request_id, DeclareRefusal::InvalidToken, "not 16 bytes".to_owned(), out);
            return Ok(());
        };
        if self.open.len() >= DECLARATIONS_OPEN_MAX {
            // The declarer has gone on; `takes_more` sees that there is one that waits for him.
            self.give_up(0, DeclareRefusal::TooMany, "too many declarations after it", out);
        }
        self.open.push(Open { request_id, stage: Stage::Checking { is_supplied: false } });
        out.effects.push(Effect::Check(Box::new(Declaration {
            request_id,
            token,
            version: declare.version,
            coinbase_prefix: declare.coinbase_tx_prefix.as_slice().to_vec(),
            coinbase_suffix: declare.coinbase_tx_suffix.as_slice().to_vec(),
            wtxids: declare.wtxid_list.as_slice().to_vec(),
            supplied: Vec::new(),
            was_asked: false,
        })));
        Ok(())
    }

    /// What can be said without looking into the declaration.
    fn may_declare(
        &mut self,
        now_ms: u64,
        declare: &DeclareMiningJob<'_>,
    ) -> Result<(), (DeclareRefusal, String)> {
        if self.flags & setup_flags::DECLARE_TX_DATA == 0 {
            let details = "the setup did not say DECLARE_TX_DATA".to_owned();
            return Err((DeclareRefusal::NoTransactionData, details));
        }
        let all_checking = !self.open.iter().any(Open::waits_for_declarer);
        if !self.declarations.take(now_ms)
            || (self.open.len() >= DECLARATIONS_OPEN_MAX && all_checking)
        {
            return Err((DeclareRefusal::TooMany, "asked for too fast".to_owned()));
        }
        let transactions = declare.wtxid_list.as_slice().len();
        if transactions > DECLARED_TRANSACTIONS_MAX {
            let details = format!("{transactions} transactions are no block");
            return Err((DeclareRefusal::InvalidJob, details));
        }
        let prefix = declare.coinbase_tx_prefix.as_slice().len();
        let suffix = declare.coinbase_tx_suffix.as_slice().len();
        if prefix > DECLARED_PREFIX_MAX
            || suffix > COINBASE_OUTPUTS_MAX + SUFFIX_BESIDES_OUTPUTS_MAX
        {
            let details = format!("a coinbase of {prefix} and {suffix} bytes");
            return Err((DeclareRefusal::InvalidCoinbaseTx, details));
        }
        Ok(())
    }

    fn on_checked(&mut self, request_id: u32, outcome: CheckOutcome, out: &mut Outbox) {
        let at = self.open.iter().position(|open| open.request_id == request_id);
        // An answer to no question is a mistake of the task; nobody is told twice for it.
        let Some(at) = at.filter(|at| !self.open[*at].waits_for_declarer()) else { return };
        match outcome {
            CheckOutcome::Approved(token) => {
                self.open.remove(at);
                out.say(DeclareMiningJobSuccess {
                    request_id,
                    new_mining_job_token: B0255::new(&token.0).expect("16 bytes"),
                });
                out.effects.push(Effect::Declared { request_id });
            }
            CheckOutcome::Refused { refusal, details } => {
                self.open.remove(at);
                refuse(request_id, refusal, details, out);
            }
            CheckOutcome::Missing { positions, declaration } => {
                // He is asked once (rule JS5): what does not come then is missing.
                let is_question = !positions.is_empty()
                    && positions.len() <= declaration.wtxids.len()
                    && declaration.request_id == request_id;
                if is_question && !declaration.was_asked {
                    self.open[at].stage = Stage::Lacking { positions, declaration };
                    return;
                }
                self.open.remove(at);
                let details = format!("{} transactions are unknown", positions.len());
                refuse(request_id, DeclareRefusal::MissingTransactions, details, out);
            }
        }
    }

    fn is_asking(&self) -> bool {
        self.open.iter().any(|open| matches!(open.stage, Stage::Asked { .. }))
    }

    /// Asks for one declaration's transactions at a time, and for the next one's when what came was checked:
    /// a block's worth of bytes for a connection, not one for each declaration.
    fn ask_for_transactions(&mut self, now_ms: u64, out: &mut Outbox) {
        let is_busy = |open: &Open| match open.stage {
            Stage::Asked { .. } => true,
            Stage::Checking { is_supplied } => is_supplied,
            Stage::Lacking { .. } => false,
        };
        if self.open.iter().any(is_busy) {
            return;
        }
        let lacks = |open: &&mut Open| matches!(open.stage, Stage::Lacking { .. });
        let Some(Open { request_id, stage }) = self.open.iter_mut().find(lacks) else { return };
        let lacking = std::mem::replace(stage, Stage::Checking { is_supplied: false });
        let Stage::Lacking { positions, declaration } = lacking else { return };
        let encoded: Vec<[u8; 2]> = positions.iter().map(|at| at.to_le_bytes()).collect();
        out.say(ProvideMissingTransactions {
            request_id: *request_id,
            unknown_tx_position_list: Seq064KU16::new(&encoded)
                .expect("`on_checked` takes no more positions than there are wtxids"),
        });
        let until_ms = now_ms.saturating_add(PROVIDE_WAIT_MS);
        *stage = Stage::Asked { positions, declaration, until_ms };
    }

    fn on_provided(
        &mut self,
        provided: &ProvideMissingTransactionsSuccess<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let request_id = provided.request_id;
        let asked = self.open.iter().position(|open| {
            open.request_id == request_id && matches!(open.stage, Stage::Asked { .. })
        });
        let Some(at) = asked else {
            // It crossed our refusal on the way.
            let given_up = self.given_up.iter().position(|id| *id == request_id);
            let at =
                given_up.ok_or(Violation::Unexpected("transactions that were not asked for"))?;
            self.given_up.remove(at);
            return Ok(());
        };
        let checking = Stage::Checking { is_supplied: true };
        let stage = std::mem::replace(&mut self.open[at].stage, checking);
        let Stage::Asked { positions, mut declaration, .. } = stage else { return Ok(()) };
        let list = provided.transaction_list;
        if list.len() != positions.len() {
            self.open.remove(at);
            let details = format!("{} transactions for {} asked", list.len(), positions.len());
            refuse(request_id, DeclareRefusal::MissingTransactions, details, out);
            return Ok(());
        }
        declaration.supplied = positions.into_iter().zip(list.iter().map(Arc::from)).collect();
        declaration.was_asked = true;
        out.effects.push(Effect::Check(declaration));
        Ok(())
    }

    fn on_solution(&mut self, now_ms: u64, solution: &PushSolution, out: &mut Outbox) {
        // Of a coinbase-only job nobody here has the transactions.
        let is_known = self.flags & setup_flags::DECLARE_TX_DATA != 0;
        if !is_known || !self.solutions.take(now_ms) {
            return;
        }
        let PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version } = *solution;
        let solution = Solution { extranonce, prev_hash, nonce, ntime, nbits, version };
        out.effects.push(Effect::Solution(Box::new(solution)));
    }

    fn expire(&mut self, now_ms: u64, out: &mut Outbox) {
        let late = self.open.iter().position(|open| match open.stage {
            Stage::Asked { until_ms, .. } => until_ms <= now_ms,
            Stage::Checking { .. } | Stage::Lacking { .. } => false,
        });
        if let Some(at) = late {
            let details = "the transactions that were asked for did not come";
            self.give_up(at, DeclareRefusal::MissingTransactions, details, out);
        }
    }

    /// Refuses the first declaration from `from` on that waits for its declarer.
    fn give_up(&mut self, from: usize, refusal: DeclareRefusal, details: &str, out: &mut Outbox) {
        let waits = self.open[from..].iter().position(Open::waits_for_declarer);
        let Some(at) = waits.map(|at| from + at) else { return };
        let Open { request_id, stage } = self.open.remove(at);
        if matches!(stage, Stage::Asked { .. }) {
            if self.given_up.len() >= GIVEN_UP_MAX {
                self.given_up.pop_front();
            }
            self.given_up.push_back(request_id);
        }
        refuse(request_id, refusal, details.to_owned(), out);
    }
}

/// The one answer to a declaration that is told no.
fn refuse(request_id: u32, refusal: DeclareRefusal, mut details: String, out: &mut Outbox) {
    details.truncate(details.floor_char_boundary(DETAILS_MAX));
    out.say(DeclareMiningJobError {
        request_id,
        error_code: Str0255::text(refusal.code_on_wire()),
        error_details: B064K::new(details.as_bytes()).expect("DETAILS_MAX is far below 65,535"),
    });
    out.effects.push(Effect::Refused { request_id, refusal, details });
}
