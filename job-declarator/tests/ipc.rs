//! Claims about checks over IPC, against the server's side of the same schema and a mock of the RPC behind
//! it. Bitcoin Core itself is asked in `real_core.rs`.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

#[path = "common/fake_ipc.rs"]
mod fake_ipc;
#[path = "common/mock_core.rs"]
#[allow(dead_code)] // rpc.rs uses all of it
mod mock_core;

use std::fmt::Debug;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use fake_ipc::{Asked, FakeCore, Says, Version};
use job_declarator::limits::{BLOCK_LEN_MAX, IPC_QUESTIONS_MAX};
use job_declarator::node::ipc::{IpcCheck, IpcTimes, NoAnswer, WithIpc};
use job_declarator::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use job_declarator::node::{Checked, Node};
use mock_core::{Answer, MockCore};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// No test waits so long.
const LONG: Duration = Duration::from_secs(60);
const BLOCK: [u8; 3] = [1, 2, 3];

fn patient() -> IpcTimes {
    IpcTimes { call: LONG, retry: Duration::ZERO }
}

/// What the RPC says of every block, and nothing over IPC does.
fn by_rpc() -> Checked {
    Checked::Invalid("the RPC was asked".to_owned())
}

/// A node with an RPC that answers, and a place for its socket.
struct Setup {
    folder: TempDir,
    rpc: MockCore,
}

impl Setup {
    fn new() -> Self {
        let rpc = MockCore::start(|_| Answer::Result(json!("the RPC was asked")));
        Self { folder: tempfile::tempdir().unwrap(), rpc }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    fn core(&self, says: Says) -> FakeCore {
        FakeCore::start(&self.socket(), Version::V31, move |_| says)
    }

    fn node(&self, times: IpcTimes) -> WithIpc<RpcNode> {
        let auth = RpcAuth::UserPass { user: "pool".to_owned(), password: "secret".to_owned() };
        let options = RpcOptions { url: self.rpc.url(), auth, times: RpcTimes::default() };
        let ipc = IpcCheck::start(self.socket(), times).unwrap();
        WithIpc::new(RpcNode::new(options).unwrap(), ipc)
    }

    fn rpc_count(&self) -> usize {
        self.rpc.asked().len()
    }
}

#[tokio::test]
async fn a_valid_block_is_valid_and_its_proof_of_work_alone_is_not_asked_for() {
    let setup = Setup::new();
    let core = setup.core(Says::Valid);
    let node = setup.node(patient());
    let longest = vec![0xab; BLOCK_LEN_MAX];
    for block in [BLOCK.as_slice(), &longest] {
        assert_eq!(node.check_block(block).await.unwrap(), Checked::Valid);
        let asked = Asked { block: block.to_vec(), check_merkle_root: true, check_pow: false };
        assert_eq!(core.asked().last(), Some(&asked));
    }
    assert_eq!((core.connections(), setup.rpc_count()), (1, 0));
}

#[tokio::test]
async fn a_block_longer_than_any_is_not_put_to_the_socket() {
    let setup = Setup::new();
    let core = setup.core(Says::Valid);
    let ipc = IpcCheck::start(setup.socket(), patient()).unwrap();
    let checked = ipc.check(&vec![0; BLOCK_LEN_MAX + 1]).await;
    assert!(matches!(checked, Err(NoAnswer::NotAsked(_))), "{checked:?}");
    assert_eq!(core.asked(), []);
}

#[tokio::test]
async fn an_invalid_block_and_one_off_the_tip_are_told_as_the_rpc_tells_them() {
    for (reason, checked) in [
        ("bad-cb-amount", Checked::Invalid("bad-cb-amount".to_owned())),
        ("bad\u{1b}[31m-\n", Checked::Invalid("bad[31m-".to_owned())),
        ("", Checked::Invalid("rejected".to_owned())),
        (
            "inconclusive-not-best-prevblk",
            Checked::NotOnTip("inconclusive-not-best-prevblk".to_owned()),
        ),
        ("duplicate", Checked::NotOnTip("duplicate".to_owned())),
    ] {
        let setup = Setup::new();
        let _core = setup.core(Says::No(reason, "words of the debug message"));
        let ipc = IpcCheck::start(setup.socket(), patient()).unwrap();
        assert_eq!(ipc.check(&BLOCK).await, Ok(checked.clone()));
        // A socket may be another node's, whose tip says nothing of ours: the RPC is asked then.
        let (said, rpc_count) = match &checked {
            Checked::NotOnTip(_) => (by_rpc(), 1),
            Checked::Valid | Checked::Invalid(_) => (checked.clone(), 0),
        };
        assert_eq!(setup.node(patient()).check_block(&BLOCK).await.unwrap(), said);
        assert_eq!(setup.rpc_count(), rpc_count);
    }
}

#[tokio::test]
async fn what_is_no_verdict_is_asked_of_the_rpc() {
    for says in [Says::Throws, Says::NoText] {
        let setup = Setup::new();
        let core = setup.core(says);
        let node = setup.node(patient());
        for _ in 0..2 {
            assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc(), "{says:?}");
        }
        assert_eq!((core.asked().len(), setup.rpc_count()), (2, 2), "{says:?}");
    }
}

#[tokio::test]
async fn a_silent_core_costs_one_deadline_and_is_asked_nothing_until_it_has_answered() {
    let setup = Setup::new();
    let core = setup.core(Says::WhenReleased);
    let call = Duration::from_secs(1);
    let node = setup.node(IpcTimes { call, retry: Duration::ZERO });
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc());
    }
    assert!(began.elapsed() < 5 * call, "each waited for its deadline");
    assert_eq!((core.asked().len(), core.connections(), setup.rpc_count()), (1, 1, 6));
    core.release(1_000);
    until_by_ipc(&node).await;
    assert_eq!((core.at_once_max(), core.connections()), (1, 1), "the call was not taken back");
}

#[tokio::test]
async fn a_core_that_was_gone_is_used_again_once_it_is_back() {
    let setup = Setup::new();
    let node = setup.node(patient());
    assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc(), "not there yet");
    for _ in 0..3 {
        let core = setup.core(Says::Valid);
        assert_eq!(node.check_block(&BLOCK).await.unwrap(), Checked::Valid);
        assert_eq!(core.connections(), 1);
        drop(core);
        assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc(), "gone");
    }
}

#[tokio::test]
async fn a_core_that_was_started_anew_between_two_checks_is_asked_the_second() {
    let setup = Setup::new();
    let said = said_of(&setup.socket());
    let core = setup.core(Says::Valid);
    let node = setup.node(IpcTimes { call: LONG, retry: LONG });
    assert_eq!(node.check_block(&BLOCK).await.unwrap(), Checked::Valid);
    drop(core);
    let core = setup.core(Says::Valid);
    until(|| said.lock().unwrap().iter().any(|line| line.contains("closed its socket"))).await;
    assert_eq!(node.check_block(&BLOCK).await.unwrap(), Checked::Valid);
    assert_eq!((core.connections(), setup.rpc_count()), (1, 0));
}

#[tokio::test]
async fn a_core_that_ends_in_the_middle_of_a_check_leaves_it_to_the_rpc_at_once() {
    let setup = Setup::new();
    let core = setup.core(Says::WhenReleased);
    let node = Arc::new(setup.node(patient()));
    let asking = Arc::clone(&node);
    let check = tokio::spawn(async move { asking.check_block(&BLOCK).await });
    until(|| core.asked().len() == 1).await;
    drop(core);
    assert_eq!(check.await.unwrap().unwrap(), by_rpc());
}

#[tokio::test]
async fn after_a_failure_no_attempt_is_made_before_the_pause_is_over() {
    let setup = Setup::new();
    let node = setup.node(IpcTimes { call: LONG, retry: LONG });
    assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc());
    let core = setup.core(Says::Valid);
    assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc());
    assert_eq!(core.connections(), 0);
}

#[tokio::test]
async fn core_works_on_one_block_at_a_time_and_a_block_too_many_goes_to_the_rpc() {
    let setup = Setup::new();
    let core = setup.core(Says::WhenReleased);
    let node = Arc::new(setup.node(patient()));
    let mut checks = JoinSet::new();
    let ask = |checks: &mut JoinSet<_>| {
        let node = Arc::clone(&node);
        checks.spawn(async move { node.check_block(&BLOCK).await.unwrap() });
    };
    ask(&mut checks);
    until(|| core.asked().len() == 1).await;
    for _ in 0..=IPC_QUESTIONS_MAX {
        ask(&mut checks);
    }
    assert_eq!(checks.join_next().await.unwrap().unwrap(), by_rpc(), "the one too many");
    core.release(IPC_QUESTIONS_MAX + 1);
    assert_eq!(checks.join_all().await, vec![Checked::Valid; IPC_QUESTIONS_MAX + 1]);
    assert_eq!((core.at_once_max(), setup.rpc_count()), (1, 1));
}

#[tokio::test]
async fn a_check_that_nobody_waits_for_is_not_made() {
    let setup = Setup::new();
    let core = setup.core(Says::WhenReleased);
    let node = Arc::new(setup.node(patient()));
    let mut checks = JoinSet::new();
    for block in [[1], [2], [3]] {
        let node = Arc::clone(&node);
        let abort = checks.spawn(async move { node.check_block(&block).await.unwrap() });
        match block {
            [1] => until(|| core.asked().len() == 1).await,
            _ => tokio::task::yield_now().await,
        }
        if block == [2] {
            abort.abort();
        }
    }
    assert!(checks.join_next().await.unwrap().unwrap_err().is_cancelled());
    core.release(3);
    assert_eq!(checks.join_all().await, [Checked::Valid, Checked::Valid]);
    let asked: Vec<_> = core.asked().into_iter().map(|asked| asked.block).collect();
    assert_eq!(asked, [[1], [3]]);
}

#[tokio::test]
async fn another_version_of_core_is_left_alone_and_named_once() {
    let setup = Setup::new();
    let said = said_of(&setup.socket());
    let core = FakeCore::start(&setup.socket(), Version::V30, |_| Says::Valid);
    let node = setup.node(patient());
    for _ in 0..3 {
        assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc());
    }
    assert_eq!(core.asked(), []);
    let said = for_operators(&said);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("mining interface of Bitcoin Core 31"), "{said:?}");
}

#[tokio::test]
async fn each_change_is_said_once() {
    let setup = Setup::new();
    let said = said_of(&setup.socket());
    let node = setup.node(patient());
    for _ in 0..3 {
        node.check_block(&BLOCK).await.unwrap();
    }
    let core = setup.core(Says::Valid);
    for _ in 0..3 {
        node.check_block(&BLOCK).await.unwrap();
    }
    drop(core);
    for _ in 0..3 {
        node.check_block(&BLOCK).await.unwrap();
    }
    let said = for_operators(&said);
    let ways: Vec<_> = said.iter().map(|line| line.contains("over IPC")).collect();
    assert_eq!(ways, [false, true, false], "{said:?}");
}

#[tokio::test]
async fn nonsense_on_the_socket_is_no_answer_and_never_a_panic() {
    let of_words = |words: u32| [&[0; 4][..], &words.to_le_bytes()].concat();
    let nonsense: [Vec<u8>; 6] = [
        vec![],
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0xff; 4_096],
        vec![0; 4_096],
        // Lengths beyond what an answer may have, and what there is.
        [of_words(u32::MAX), vec![0; 64]].concat(),
        [of_words(8), vec![0x55; 64]].concat(),
    ];
    for bytes in nonsense {
        let setup = Setup::new();
        let listener = UnixListener::bind(setup.socket()).unwrap();
        let sent = bytes.clone();
        let core = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The other end may be gone already.
            let _ = stream.write_all(&sent);
        });
        let node = setup.node(patient());
        assert_eq!(node.check_block(&BLOCK).await.unwrap(), by_rpc(), "{bytes:?}");
        core.join().unwrap();
    }
}

#[tokio::test]
async fn all_other_questions_are_the_rpcs() {
    let setup = Setup::new();
    let core = setup.core(Says::Valid);
    let node = setup.node(patient());
    assert!(node.name().contains(&setup.rpc.url()));
    let _ = node.submit_block(&BLOCK).await;
    let _ = node.chain_info().await;
    let _ = node.next_template(None).await;
    let _ = node.height_of(&[7; 32]).await;
    let methods: Vec<_> = setup.rpc.asked().into_iter().map(|asked| asked.method).collect();
    let expected = ["submitblock", "getblockchaininfo", "getblockchaininfo", "getblockheader"];
    assert_eq!(methods, expected, "a template asks for the network first");
    assert_eq!(core.asked(), []);
}

/// Asks until the answer comes over IPC.
async fn until_by_ipc(node: &WithIpc<RpcNode>) {
    let began = Instant::now();
    while node.check_block(&BLOCK).await.unwrap() != Checked::Valid {
        assert!(began.elapsed() < LONG, "never used again");
        tokio::task::yield_now().await;
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "it never came to be");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What is told to the operator of a socket.
type Said = Arc<Mutex<Vec<String>>>;

/// Without what is said at debug level.
fn for_operators(said: &Said) -> Vec<String> {
    let said = said.lock().unwrap();
    said.iter().filter(|line| !line.starts_with("DEBUG")).cloned().collect()
}

/// Collects it from now on: the log of the whole process, since it is said on another thread.
fn said_of(socket: &Path) -> Said {
    static LISTENERS: OnceLock<Listeners> = OnceLock::new();
    let listeners = LISTENERS.get_or_init(|| {
        let listeners = Listeners::default();
        tracing::subscriber::set_global_default(listeners.clone()).unwrap();
        listeners
    });
    let said = Said::default();
    listeners.0.lock().unwrap().push((socket.display().to_string(), Arc::clone(&said)));
    said
}

#[derive(Clone, Default)]
struct Listeners(Arc<Mutex<Vec<(String, Said)>>>);

impl Subscriber for Listeners {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::DEBUG
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        for (socket, said) in &*self.0.lock().unwrap() {
            if line.0.contains(socket) {
                said.lock().unwrap().push(line.0.clone());
            }
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}
