//! The declarator's end of a job declaration connection, against our server and against servers that break
//! their word. Time is a number.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::sync::Arc;

use proto::connection::Violation;
use proto::declare::client::{Client, ClientOptions, Event, NotDeclared, OwnJob};
use proto::declare::server::{CheckOutcome, Effect, Input, Outbox, Server};
use proto::declare::{DeclareRefusal, Solution};
use proto::limits::{
    CLIENT_ANSWER_MAX_MS, CLIENT_DECLARATIONS_MAX, CLIENT_TOKENS_MAX, DETAILS_MAX, FRAME_HEADER_LEN,
};
use proto::message::{
    AllocateMiningJobTokenSuccess, DeclareMiningJobError, DeclareMiningJobSuccess, FrameHeader,
    Message, ProvideMissingTransactions, Received, SetupConnectionError, SetupConnectionSuccess,
    setup_flags,
};
use proto::token::MiningJobToken;
use proto::wire::{B032, B064K, B0255, Seq064KU16, Str0255};

const OUTPUTS: [u8; 10] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn options() -> ClientOptions {
    ClientOptions {
        tells_transactions: true,
        user_identifier: "alice.home".to_owned(),
        tokens: 2,
        endpoint_host: "pool".to_owned(),
        endpoint_port: 34_264,
        vendor: "smallholder".to_owned(),
        firmware: "1".to_owned(),
    }
}

fn job(transactions: u8) -> OwnJob {
    OwnJob {
        version: 0x2000_0000,
        coinbase_prefix: vec![2; 60],
        coinbase_suffix: vec![3; 50],
        wtxids: (0..transactions).map(|at| [at; 32]).collect(),
        transactions: Arc::new((0..transactions).map(|at| vec![at; 70].into()).collect()),
    }
}

/// Each message of some frames, to `take`.
fn each(mut frames: &[u8], mut take: impl FnMut(Message<'_>)) {
    while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*head);
        let (payload, after) = rest.split_at(header.length);
        frames = after;
        match Message::decode(header.extension(), header.msg_type, payload).unwrap() {
            Received::Known(message, _) => take(message),
            other => panic!("{other:?}"),
        }
    }
}

/// A client and a server of ours that have been set up.
struct Pair {
    client: Client,
    server: Server,
    now_ms: u64,
    events: Vec<Event>,
    drawn: u8,
    /// What the check says of a declaration that comes for the first time.
    missing: Vec<u16>,
    refuses: bool,
    solutions: usize,
}

impl Pair {
    fn new(options: ClientOptions) -> Self {
        let mut client = Client::new(options);
        let mut said = Vec::new();
        client.start(&mut said);
        each(&said, |message| assert!(matches!(message, Message::SetupConnection(_))));
        let server = Server::new(setup_flags::DECLARE_TX_DATA, Arc::from(OUTPUTS), 0);
        let mut pair = Self {
            client,
            server,
            now_ms: 0,
            events: Vec::new(),
            drawn: 0,
            missing: Vec::new(),
            refuses: false,
            solutions: 0,
        };
        pair.hear(SetupConnectionSuccess { used_version: 2, flags: 0 }.into());
        assert_eq!(pair.events.remove(0), Event::SetUp);
        pair
    }

    /// The client hears a message, and the server all that follows from it.
    fn hear(&mut self, message: Message<'_>) {
        let mut said = Vec::new();
        self.events.extend(self.client.handle(self.now_ms, message, &mut said).unwrap());
        self.carry(&said);
    }

    /// What the client said goes to the server, and what that says back, until neither has a word.
    fn carry(&mut self, said: &[u8]) {
        let mut inputs = said.to_vec();
        while !inputs.is_empty() {
            let mut out = Outbox::default();
            each(&inputs, |message| {
                self.server.handle(self.now_ms, Input::Message(message), &mut out).unwrap();
            });
            while !out.effects.is_empty() {
                for effect in std::mem::take(&mut out.effects) {
                    self.carry_out(effect, &mut out);
                }
            }
            let mut answers = Vec::new();
            each(&out.frames, |message| {
                self.events.extend(self.client.handle(self.now_ms, message, &mut answers).unwrap());
            });
            inputs = answers;
        }
    }

    fn carry_out(&mut self, effect: Effect, out: &mut Outbox) {
        let input = match effect {
            Effect::Allocate { request_id, account } => {
                assert_eq!(&*account, "alice");
                self.drawn += 1;
                Input::Allocated { request_id, token: Some(MiningJobToken([self.drawn; 16])) }
            }
            Effect::Check(declaration) => {
                let request_id = declaration.request_id;
                for (position, bytes) in &declaration.supplied {
                    assert_eq!(
                        **bytes,
                        vec![*position as u8; 70][..],
                        "the one that was asked for"
                    );
                }
                let outcome = if !self.missing.is_empty() && !declaration.was_asked {
                    CheckOutcome::Missing { positions: self.missing.clone(), declaration }
                } else if self.refuses {
                    let details = "no\u{1b}good".to_owned();
                    CheckOutcome::Refused { refusal: DeclareRefusal::InvalidJob, details }
                } else {
                    CheckOutcome::Approved(MiningJobToken([99; 16]))
                };
                Input::Checked { request_id, outcome }
            }
            Effect::Solution(_) => {
                self.solutions += 1;
                return;
            }
            Effect::NoToken { .. } => panic!("too many tokens were asked for"),
            Effect::Refused { .. } | Effect::Declared { .. } => return,
        };
        self.server.handle(self.now_ms, input, out).unwrap();
    }

    fn declare(&mut self, job: &OwnJob) -> Result<u32, NotDeclared> {
        let mut said = Vec::new();
        let declared = self.client.declare(self.now_ms, job, &mut said);
        self.carry(&said);
        declared
    }

    fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

#[test]
fn tokens_are_in_stock_before_a_template_needs_one_and_each_that_is_used_is_replaced() {
    let mut pair = Pair::new(options());
    assert_eq!(pair.events(), [Event::TokenCame, Event::TokenCame]);
    assert_eq!(pair.client.tokens(), 2);
    assert_eq!(**pair.client.next_outputs().unwrap(), OUTPUTS);
    let request_id = pair.declare(&job(3)).unwrap();
    let token = Arc::from([99; 16]);
    assert!(pair.events().contains(&Event::Declared { request_id, token }));
    assert_eq!(pair.client.tokens(), 2);
    let mut said = Vec::new();
    let taken = pair.client.take_token(pair.now_ms, &mut said).unwrap();
    assert_eq!((&*taken.bytes, &*taken.outputs), (&[2; 16][..], &OUTPUTS[..]), "the oldest");
    pair.carry(&said);
    assert_eq!(pair.client.tokens(), 2);
    assert!(!format!("{taken:?}").contains('2'), "a log shows no token");
}

#[test]
fn what_the_pool_lacks_is_sent_and_nothing_else() {
    let mut pair = Pair::new(options());
    pair.missing = vec![1, 4];
    pair.events();
    let request_id = pair.declare(&job(5)).unwrap();
    let token = Arc::from([99; 16]);
    let told = pair.events();
    assert!(told.contains(&Event::Declared { request_id, token }), "{told:?}");
}

#[test]
fn a_refusal_is_an_event_in_words_that_a_terminal_may_see() {
    let mut pair = Pair::new(options());
    pair.refuses = true;
    let request_id = pair.declare(&job(1)).unwrap();
    let (code, details) = ("invalid-job".to_owned(), "nogood".to_owned());
    assert!(pair.events().contains(&Event::Refused { request_id, code, details }));
    pair.refuses = false;
    pair.declare(&job(1)).unwrap();
}

#[test]
fn a_refusals_details_are_kept_at_no_greater_length_than_ours_are_said_at() {
    let details_of = |bytes: &[u8]| {
        let mut client = alone(1);
        let request_id = client.declare(0, &job(0), &mut Vec::new()).unwrap();
        let (error_code, error_details) = (Str0255::text("no"), B064K::new(bytes).unwrap());
        let error = DeclareMiningJobError { request_id, error_code, error_details };
        match hear(&mut client, error.into()) {
            Ok(Some(Event::Refused { details, .. })) => details,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(details_of(&[b'a'; DETAILS_MAX]).len(), DETAILS_MAX);
    assert_eq!(details_of(&[b'a'; DETAILS_MAX + 1]).len(), DETAILS_MAX);
    let none = details_of(&[0xff; 65_535]).len();
    assert!(none <= DETAILS_MAX, "{none} bytes for those that are no text");
}

#[test]
fn a_solution_is_said_where_transactions_are_told_and_not_elsewhere() {
    let solution = Solution {
        extranonce: B032::new(&[1; 20]).unwrap(),
        prev_hash: [4; 32],
        nonce: 1,
        ntime: 2,
        nbits: 3,
        version: 4,
    };
    let mut pair = Pair::new(options());
    let mut said = Vec::new();
    pair.client.push_solution(&solution, &mut said);
    pair.carry(&said);
    assert_eq!(pair.solutions, 1);
    let mut pair = Pair::new(ClientOptions { tells_transactions: false, ..options() });
    said.clear();
    pair.client.push_solution(&solution, &mut said);
    assert!(said.is_empty());
    assert_eq!(pair.declare(&job(1)), Err(NotDeclared::NotSetUp));
    assert!(pair.client.tokens() > 0, "jobs that are not declared need tokens, too");
}

#[test]
fn a_job_that_cannot_be_said_is_not_and_keeps_the_token() {
    let mut pair = Pair::new(options());
    let uneven = OwnJob { wtxids: vec![[1; 32]], ..job(0) };
    assert_eq!(pair.declare(&uneven), Err(NotDeclared::NoMessage));
    let long = OwnJob { coinbase_suffix: vec![0; 65_536], ..job(0) };
    assert_eq!(pair.declare(&long), Err(NotDeclared::NoMessage));
    assert_eq!(pair.client.tokens(), 2);
    assert_eq!(
        Client::new(options()).declare(0, &job(0), &mut Vec::new()),
        Err(NotDeclared::NotSetUp)
    );
}

/// A client without a server of ours: set up, with as many tokens as it asked for.
fn alone(tokens: usize) -> Client {
    let mut client = Client::new(ClientOptions { tokens, ..options() });
    client.start(&mut Vec::new());
    let mut asked = Vec::new();
    let success = SetupConnectionSuccess { used_version: 2, flags: 0 };
    client.handle(0, success.into(), &mut asked).unwrap();
    let mut ids = Vec::new();
    each(&asked, |message| match message {
        Message::AllocateMiningJobToken(ask) => ids.push(ask.request_id),
        other => panic!("{}", other.name()),
    });
    for request_id in ids {
        assert_eq!(hear(&mut client, token(request_id, &[1])).unwrap(), Some(Event::TokenCame));
    }
    client
}

fn token(request_id: u32, token: &[u8]) -> Message<'_> {
    AllocateMiningJobTokenSuccess {
        request_id,
        mining_job_token: B0255::new(token).unwrap(),
        coinbase_tx_outputs: B064K::new(&OUTPUTS).unwrap(),
    }
    .into()
}

fn hear(client: &mut Client, message: Message<'_>) -> Result<Option<Event>, Violation> {
    client.handle(0, message, &mut Vec::new())
}

fn approved(request_id: u32) -> Message<'static> {
    let new_mining_job_token = B0255::new(&[5]).unwrap();
    DeclareMiningJobSuccess { request_id, new_mining_job_token }.into()
}

fn refused(request_id: u32) -> Message<'static> {
    DeclareMiningJobError {
        request_id,
        error_code: Str0255::text("no"),
        error_details: B064K::default(),
    }
    .into()
}

#[test]
fn a_silent_pool_is_an_event_and_its_late_answer_is_none() {
    let mut client = alone(3);
    let first = client.declare(0, &job(1), &mut Vec::new()).unwrap();
    let second = client.declare(5, &job(1), &mut Vec::new()).unwrap();
    assert_eq!(client.deadline_ms(), Some(CLIENT_ANSWER_MAX_MS));
    assert_eq!(client.pass(CLIENT_ANSWER_MAX_MS - 1), None);
    assert_eq!(client.pass(CLIENT_ANSWER_MAX_MS), Some(Event::Unanswered { request_id: first }));
    assert_eq!(client.pass(CLIENT_ANSWER_MAX_MS), Some(Event::NoToken), "in place of the used one");
    assert_eq!(client.pass(CLIENT_ANSWER_MAX_MS), None);
    assert_eq!(hear(&mut client, approved(first)), Ok(None));
    assert!(hear(&mut client, approved(first)).is_err(), "a second answer");
    let told = hear(&mut client, approved(second)).unwrap();
    assert!(matches!(told, Some(Event::Declared { request_id, .. }) if request_id == second));
}

#[test]
fn no_more_declarations_wait_than_may_and_each_of_them_is_answered_by_its_number() {
    let mut client = alone(CLIENT_TOKENS_MAX);
    let mut ids: Vec<u32> = (0..CLIENT_DECLARATIONS_MAX)
        .map(|_| client.declare(0, &job(0), &mut Vec::new()).unwrap())
        .collect();
    assert_eq!(client.declare(0, &job(0), &mut Vec::new()), Err(NotDeclared::TooMany));
    ids.reverse();
    for request_id in ids {
        let told = hear(&mut client, refused(request_id)).unwrap();
        assert!(
            matches!(told, Some(Event::Refused { request_id: told, .. }) if told == request_id)
        );
    }
    client.declare(0, &job(0), &mut Vec::new()).unwrap();
    // Without an answer to a request there is nothing to declare with in the end.
    let mut client = alone(1);
    let request_id = client.declare(0, &job(0), &mut Vec::new()).unwrap();
    assert!(hear(&mut client, refused(request_id)).unwrap().is_some());
    assert_eq!(client.declare(0, &job(0), &mut Vec::new()), Err(NotDeclared::NoToken));
}

#[test]
fn a_server_that_breaks_its_word_is_left() {
    let asked = |request_id, positions: &[[u8; 2]]| -> Result<Option<Event>, Violation> {
        let mut client = alone(2);
        let known = client.declare(0, &job(2), &mut Vec::new()).unwrap();
        let request_id = if request_id == 0 { known } else { request_id };
        let message = ProvideMissingTransactions {
            request_id,
            unknown_tx_position_list: Seq064KU16::new(positions).unwrap(),
        };
        hear(&mut client, message.into())?;
        hear(&mut client, message.into())
    };
    let once = asked(0, &[[1, 0], [0, 0]]);
    assert_eq!(once, Err(Violation::Unexpected("a second question about a declaration")));
    let twice = asked(0, &[[1, 0], [0, 0], [1, 0]]);
    assert_eq!(twice, Err(Violation::Unexpected("a position that is asked for twice")));
    assert!(asked(0, &[[2, 0]]).is_err(), "a position that is none");
    assert!(asked(77, &[[0, 0]]).is_err(), "of no declaration");
    assert!(asked(0, &[[0, 0]]).is_err(), "asked about twice");
    let mut client = alone(1);
    assert!(hear(&mut client, token(999, &[1])).is_err(), "a token that was not asked for");
    assert!(hear(&mut client, approved(999)).is_err());
    assert!(hear(&mut client, refused(999)).is_err());
    let second = SetupConnectionSuccess { used_version: 2, flags: 0 };
    assert!(hear(&mut client, second.into()).is_err(), "set up a second time");
    let mut fresh = Client::new(options());
    assert!(hear(&mut fresh, approved(1)).is_err(), "before anything was said");
    fresh.start(&mut Vec::new());
    let other = SetupConnectionSuccess { used_version: 3, flags: 0 };
    assert!(hear(&mut fresh, other.into()).is_err(), "a version that was not offered");
    let no = SetupConnectionError { flags: 1, error_code: Str0255::text("unsupported") };
    let mut fresh = Client::new(options());
    fresh.start(&mut Vec::new());
    let code = "unsupported".to_owned();
    assert_eq!(hear(&mut fresh, no.into()), Ok(Some(Event::SetupRefused { flags: 1, code })));
    assert_eq!(fresh.declare(0, &job(0), &mut Vec::new()), Err(NotDeclared::NotSetUp));
}

#[test]
fn a_question_that_no_message_could_answer_ends_the_connection_before_anything_is_put_together() {
    let mut client = alone(1);
    let big = OwnJob {
        wtxids: vec![[1; 32]],
        transactions: Arc::new(vec![vec![0; 1_000_000].into()]),
        ..job(0)
    };
    let request_id = client.declare(0, &big, &mut Vec::new()).unwrap();
    let positions = vec![[0, 0]; 40_000];
    let message = ProvideMissingTransactions {
        request_id,
        unknown_tx_position_list: Seq064KU16::new(&positions).unwrap(),
    };
    assert!(hear(&mut client, message.into()).is_err());
}
