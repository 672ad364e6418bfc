//! The job declaration server as a state machine: bytes become operations (tokens asked for and denied,
//! declarations good and odd, checks that end in any order, transactions that come, come wrong, come late
//! or not at all, solutions, new tips, time), and after each the promises are asserted: one answer for each
//! declaration, no more under way or at once than the bounds say, nothing asked for twice, nothing changed
//! on its way to the check.

#![allow(clippy::vec_box, reason = "declarations are kept as the server hands them out")]

use std::collections::BTreeMap;

use proto::connection::Violation;
use proto::declare::server::{CheckOutcome, Effect, Input};
use proto::declare::{Declaration, DeclareRefusal};
use proto::limits::{
    DECLARATION_EVERY_MS, DECLARATIONS_BURST, DECLARATIONS_OPEN_MAX, DECLARE_CLIENT_PAYLOAD_MAX,
    DECLARE_PROVIDE_PAYLOAD_MAX, DECLARER_TOKEN_EVERY_MS, DECLARER_TOKENS_BURST, DETAILS_MAX,
    JOBS_PER_TIP, PROVIDE_WAIT_MS, SOLUTION_EVERY_MS, SOLUTIONS_BURST, TOKEN_REQUESTS_WAITING_MAX,
};
use proto::message::{Message, PushSolution, Received, setup_flags};
use proto::token::MiningJobToken;
use proto::wire::B032;

use super::Bytes;
use super::declarer::{Job, Link, OUTPUTS, Said};

/// Operations of one run; more bytes are not looked at.
const STEPS_MAX: usize = 500;

/// A declaration that has no answer yet.
struct Waiting {
    job: Job,
    /// What the check found missing.
    lacks: Vec<u16>,
    was_asked: bool,
}

/// How much of something a declarer may have by now: a pace worked out in milliseconds, so that nothing is
/// rounded.
struct Purse {
    left_ms: u64,
    full_ms: u64,
    every_ms: u64,
    counted_ms: u64,
}

impl Purse {
    fn new(burst: u64, every_ms: u64, now_ms: u64) -> Self {
        let full_ms = burst * every_ms;
        Self { left_ms: full_ms, full_ms, every_ms, counted_ms: now_ms }
    }

    /// What is beyond the burst is lost, whether time gives it or a tip.
    fn earn(&mut self, now_ms: u64, more: u64) {
        let earned_ms = now_ms - self.counted_ms + more * self.every_ms;
        self.left_ms = (self.left_ms + earned_ms).min(self.full_ms);
        self.counted_ms = now_ms;
    }

    fn spend(&mut self, now_ms: u64) {
        self.earn(now_ms, 0);
        let left_ms = self.left_ms.checked_sub(self.every_ms);
        self.left_ms = left_ms.expect("more than the pace and the tips allow");
    }
}

struct World {
    link: Link,
    shows_transactions: bool,
    /// Little time goes by, so that the paces are met.
    is_hurried: bool,
    waiting: BTreeMap<u32, Waiting>,
    checks: Vec<Box<Declaration>>,
    /// Whose transactions are asked for.
    asked: Option<u32>,
    /// Asked for, and then refused before they came.
    crossing: Vec<u32>,
    allocating: Vec<u32>,
    wanted: usize,
    next_request: u32,
    allocations: Purse,
    declarations: Purse,
    solutions: Purse,
}

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    let mut world = World::new(data.byte());
    for _ in 0..STEPS_MAX {
        if data.is_empty() {
            break;
        }
        if world.step(&mut data).is_err() {
            return;
        }
    }
    world.settle();
}

impl World {
    fn new(switches: u8) -> Self {
        let shows_transactions = !switches.is_multiple_of(8);
        let flags = if shows_transactions { setup_flags::DECLARE_TX_DATA } else { 0 };
        let link = Link::with(flags);
        let purse = |burst, every_ms| Purse::new(burst, every_ms, link.now_ms);
        Self {
            shows_transactions,
            is_hurried: switches & 8 != 0,
            waiting: BTreeMap::new(),
            checks: Vec::new(),
            asked: None,
            crossing: Vec::new(),
            allocating: Vec::new(),
            wanted: 0,
            next_request: 0,
            allocations: purse(DECLARER_TOKENS_BURST, DECLARER_TOKEN_EVERY_MS),
            declarations: purse(DECLARATIONS_BURST, DECLARATION_EVERY_MS),
            solutions: purse(SOLUTIONS_BURST, SOLUTION_EVERY_MS),
            link,
        }
    }

    /// One operation, up to four times in a row.
    fn step(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let op = data.byte();
        for _ in 0..=op / 64 {
            let said = match op % 17 {
                0 => self.allocate(),
                1 => self.allocated(data),
                2..=5 if self.link.server.takes_more() => self.declare(data)?,
                2..=9 => self.checked(data),
                10..=11 => self.provide(data)?,
                12 => self.solution(data),
                13 => self.raw_message(data)?,
                14 => self.new_tip(),
                _ if self.is_hurried => self.pass(u64::from(data.byte())),
                _ => self.pass(u64::from(data.byte()) << (data.byte() % 10)),
            };
            self.hear(said);
            self.check();
        }
        Ok(())
    }

    fn allocate(&mut self) -> Vec<Said> {
        self.next_request += 1;
        let said = self.link.allocate(self.next_request);
        self.wanted += 1;
        said
    }

    fn allocated(&mut self, data: &mut Bytes<'_>) -> Vec<Said> {
        if self.allocating.is_empty() {
            return Vec::new();
        }
        let at = usize::from(data.byte()) % self.allocating.len();
        let request_id = self.allocating.remove(at);
        let token = (!data.byte().is_multiple_of(4)).then(|| MiningJobToken(data.array()));
        let said = self.link.allocated(request_id, token);
        match token {
            Some(token) => {
                let outputs = OUTPUTS.to_vec();
                assert_eq!(said.first(), Some(&Said::Token { request_id, token, outputs }));
            }
            None => self.wanted += 1,
        }
        said
    }

    fn declare(&mut self, data: &mut Bytes<'_>) -> Result<Vec<Said>, Violation> {
        self.next_request += 1;
        let mut job = Job::new(self.next_request, usize::from(data.byte()));
        match data.byte() {
            0 => job.token = data.take(20).to_vec(),
            1 => job.prefix = vec![1; usize::from(data.byte()) * 2],
            2 => job.suffix = vec![1; usize::from(data.byte()) * 200],
            3 => job.wtxids = vec![[1; 32]; usize::from(data.byte()) * 200],
            // The number of another.
            4 => job.request_id = data.u32() % (self.next_request + 1),
            _ => {}
        }
        let id = job.request_id;
        if self.waiting.contains_key(&id) {
            let twice = self.link.try_declare(&job);
            return Err(twice.expect_err("rule JS8: two requests of one number"));
        }
        let waiting = Waiting { job: job.clone(), lacks: Vec::new(), was_asked: false };
        self.waiting.insert(id, waiting);
        let said = self.link.try_declare(&job)?;
        if !self.shows_transactions {
            assert!(matches!(&said[..], [Said::Refused { code, .. }] if code.contains("tx-data")));
        }
        Ok(said)
    }

    /// One of the checks ends.
    fn checked(&mut self, data: &mut Bytes<'_>) -> Vec<Said> {
        if self.checks.is_empty() {
            return Vec::new();
        }
        let at = usize::from(data.byte()) % self.checks.len();
        let declaration = self.checks.remove(at);
        let id = declaration.request_id;
        let count = declaration.wtxids.len();
        match data.byte() % 4 {
            0 => self.link.checked(id, CheckOutcome::Approved(MiningJobToken(data.array()))),
            1 => {
                let refusal = DeclareRefusal::ALL[usize::from(data.byte() % 10)];
                let details = "\u{20ac}".repeat(usize::from(data.byte()) * 4);
                self.link.checked(id, CheckOutcome::Refused { refusal, details })
            }
            _ if count == 0 => self.link.missing(declaration, &[]),
            _ => {
                let every = 1 + usize::from(data.byte() % 9);
                let lacks: Vec<u16> = (0..count as u16).step_by(every).collect();
                let waiting = self.waiting.get_mut(&id).expect("it has no answer yet");
                waiting.lacks.clone_from(&lacks);
                self.link.missing(declaration, &lacks)
            }
        }
    }

    fn provide(&mut self, data: &mut Bytes<'_>) -> Result<Vec<Said>, Violation> {
        if let (Some(late), true) = (self.crossing.first().copied(), data.byte() & 1 == 0) {
            self.crossing.remove(0);
            return Ok(self.link.provide(late, &[vec![1]]));
        }
        let Some(id) = self.asked else {
            if data.byte() < 250 {
                return Ok(Vec::new());
            }
            let unasked = self.link.try_provide(self.next_request + 1, &[vec![1]]);
            return Err(unasked.expect_err("rule JS5: nobody asked"));
        };
        let right = self.waiting[&id].lacks.len();
        let count = match data.byte() % 8 {
            0 => usize::from(data.byte()),
            _ => right,
        };
        let transactions: Vec<Vec<u8>> = (0..count).map(|at| vec![at as u8; at % 50]).collect();
        self.asked = None;
        let said = self.link.provide(id, &transactions);
        assert_eq!(matches!(said.first(), Some(Said::Refused { .. })), count != right);
        Ok(said)
    }

    fn solution(&mut self, data: &mut Bytes<'_>) -> Vec<Said> {
        let extranonce = B032::new(data.take(32)).expect("at most 32");
        let solution = PushSolution {
            extranonce,
            prev_hash: data.array(),
            nonce: data.u32(),
            ntime: data.u32(),
            nbits: data.u32(),
            version: data.u32(),
        };
        for _ in 0..=data.byte() % 32 {
            let said = self.link.say(solution);
            assert!(said.is_empty(), "a solution has no answer");
        }
        Vec::new()
    }

    /// From one thing that is due to the next, so that what is done counts when it is done.
    fn pass(&mut self, ms: u64) -> Vec<Said> {
        let end_ms = self.link.now_ms + ms;
        while let Some(due_ms) = self.link.server.deadline_ms().filter(|due_ms| *due_ms < end_ms) {
            let said = self.link.pass(due_ms.saturating_sub(self.link.now_ms));
            self.hear(said);
        }
        self.link.pass(end_ms - self.link.now_ms)
    }

    /// It pays for tokens and declarations, not for solutions.
    fn new_tip(&mut self) -> Vec<Said> {
        for purse in [&mut self.allocations, &mut self.declarations] {
            purse.earn(self.link.now_ms, JOBS_PER_TIP);
        }
        self.link.handle(Input::NewTip).expect("a tip is no fault of a declarer's")
    }

    /// Any message that the bytes happen to spell, but for those whose answers are counted.
    fn raw_message(&mut self, data: &mut Bytes<'_>) -> Result<Vec<Said>, Violation> {
        let number = data.byte();
        let payload = data.take(100);
        match Message::decode(0, number, payload) {
            Ok(Received::Known(
                Message::AllocateMiningJobToken(_)
                | Message::DeclareMiningJob(_)
                | Message::ProvideMissingTransactionsSuccess(_)
                | Message::PushSolution(_),
                _,
            )) => Ok(Vec::new()),
            Ok(Received::Known(message, _)) => {
                let said = self.link.handle(Input::Message(message));
                Err(said.expect_err("a message that is not a declarer's"))
            }
            Ok(Received::UnknownCore(_) | Received::UnknownExtension(_)) | Err(_) => Ok(Vec::new()),
        }
    }

    fn hear(&mut self, said: Vec<Said>) {
        self.take_effects();
        for one in said {
            match one {
                Said::Token { .. } => {}
                Said::Asked { request_id, positions } => {
                    assert_eq!(self.asked.replace(request_id), None, "two are asked for at once");
                    let waiting = self.waiting.get_mut(&request_id).expect("it has no answer");
                    assert_eq!(waiting.lacks, positions);
                    assert!(!std::mem::replace(&mut waiting.was_asked, true), "asked twice");
                }
                Said::Declared { request_id, .. } => {
                    assert!(self.waiting.remove(&request_id).is_some(), "answered twice");
                }
                Said::Refused { request_id, details, .. } => {
                    assert!(self.waiting.remove(&request_id).is_some(), "answered twice");
                    assert!(details.len() <= DETAILS_MAX);
                    if self.asked == Some(request_id) {
                        self.asked = None;
                        self.crossing.push(request_id);
                    }
                }
            }
        }
    }

    fn take_effects(&mut self) {
        let now_ms = self.link.now_ms;
        for effect in std::mem::take(&mut self.link.effects) {
            match effect {
                Effect::Allocate { request_id, account } => {
                    assert_eq!(&*account, "alice");
                    self.allocations.spend(now_ms);
                    self.wanted -= 1;
                    self.allocating.push(request_id);
                }
                Effect::NoToken { .. } => self.wanted -= 1,
                Effect::Check(declaration) => {
                    self.check_declaration(&declaration);
                    if !declaration.was_asked {
                        self.declarations.spend(now_ms);
                    }
                    self.checks.push(declaration);
                }
                Effect::Solution(_) => {
                    assert!(self.shows_transactions);
                    self.solutions.spend(now_ms);
                }
                Effect::Refused { .. } | Effect::Declared { .. } => {}
            }
        }
    }

    /// It is what was declared, with what was asked for in its places.
    fn check_declaration(&self, declaration: &Declaration) {
        let Waiting { job, lacks, .. } = &self.waiting[&declaration.request_id];
        assert_eq!(declaration.token.0, job.token[..]);
        assert_eq!(declaration.coinbase_prefix, job.prefix);
        assert_eq!(declaration.coinbase_suffix, job.suffix);
        assert_eq!(declaration.wtxids, job.wtxids);
        let supplied: Vec<u16> = declaration.supplied.iter().map(|(at, _)| *at).collect();
        assert_eq!(supplied, if declaration.was_asked { lacks.clone() } else { Vec::new() });
        for (at, (_, bytes)) in declaration.supplied.iter().enumerate() {
            assert_eq!(bytes[..], vec![at as u8; at % 50]);
        }
    }

    fn check(&self) {
        let Self { link, waiting, checks, .. } = self;
        assert!(waiting.len() <= DECLARATIONS_OPEN_MAX);
        assert_eq!(link.server.takes_more(), checks.len() < DECLARATIONS_OPEN_MAX);
        assert!(checks.iter().filter(|check| check.was_asked).count() <= 1);
        let limit = match self.asked {
            Some(_) => DECLARE_PROVIDE_PAYLOAD_MAX,
            None => DECLARE_CLIENT_PAYLOAD_MAX,
        };
        assert_eq!(link.server.payload_max(), limit);
        assert!(self.wanted + self.allocating.len() <= TOKEN_REQUESTS_WAITING_MAX);
    }

    /// When all checks end and nothing more is sent, every declaration has its answer in time.
    fn settle(&mut self) {
        for _ in 0..2 * DECLARATIONS_OPEN_MAX {
            for declaration in std::mem::take(&mut self.checks) {
                let said = self.link.checked(
                    declaration.request_id,
                    CheckOutcome::Approved(MiningJobToken([1; 16])),
                );
                self.hear(said);
            }
            let said = self.pass(PROVIDE_WAIT_MS);
            self.hear(said);
        }
        assert!(self.waiting.is_empty(), "declarations without an answer");
        self.check();
    }
}
