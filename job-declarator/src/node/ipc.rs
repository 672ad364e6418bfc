//! Bitcoin Core's mining interface (Cap'n Proto over a UNIX socket), for one question: `checkBlock`, whether
//! a declared job's block would be valid. `WithIpc` stands before the RPC node, which answers everything
//! else, and this too whenever the socket does not. Called by the pool through `Node`.
//!
//! Must never put two calls at once to a thread of Core's, which has crashed nodes (bitcoin/bitcoin 33923),
//! and for the same reason never takes a call back: one that is not answered in time is waited for while
//! the RPC answers. Cap'n Proto's objects stay on a thread of their own, which is reached by a short queue.

use std::future::Future;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bitcoin_capnp_types::capnp::message::ReaderOptions;
use bitcoin_capnp_types::capnp::{self, ErrorKind, NotInSchema};
use bitcoin_capnp_types::capnp_rpc::RpcSystem;
use bitcoin_capnp_types::capnp_rpc::rpc_twoparty_capnp::Side;
use bitcoin_capnp_types::capnp_rpc::twoparty::VatNetwork;
use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::mining;
use bitcoin_capnp_types::proxy_capnp::thread;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout_at};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
    abridged,
};
use crate::limits::{
    BLOCK_LEN_MAX, IPC_ANSWER_WORDS_MAX, IPC_CALL_DEADLINE, IPC_QUESTIONS_MAX, IPC_RETRY_PAUSE,
};

/// How long to wait for what. The defaults are in `limits.rs`; tests have less time.
#[derive(Debug, Clone, Copy)]
pub struct IpcTimes {
    /// From a question to its answer, a connection that has to be made included.
    pub call: Duration,
    /// From a failure to the next attempt.
    pub retry: Duration,
}

impl Default for IpcTimes {
    fn default() -> Self {
        Self { call: IPC_CALL_DEADLINE, retry: IPC_RETRY_PAUSE }
    }
}

/// Why nothing was learnt of a block over IPC.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// There is no socket, or nobody behind it any more.
    #[error("{0}")]
    Away(String),
    /// Not in time.
    #[error("no answer in time")]
    Silent,
    /// Its methods are not numbered as those of Bitcoin Core 31.
    #[error("it has not the mining interface of Bitcoin Core 31: {0}")]
    OtherVersion(String),
    /// An exception of Core's, or nothing that we can read.
    #[error("no verdict: {0}")]
    Wrong(String),
    /// It was not asked.
    #[error("not asked: {0}")]
    NotAsked(&'static str),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<capnp::Error> for NoAnswer {
    fn from(error: capnp::Error) -> Self {
        let words = abridged(&error.to_string());
        if error.kind == ErrorKind::Unimplemented {
            Self::OtherVersion(words)
        } else if error.kind == ErrorKind::Disconnected {
            Self::Away(words)
        } else {
            Self::Wrong(words)
        }
    }
}

impl From<NotInSchema> for NoAnswer {
    fn from(error: NotInSchema) -> Self {
        capnp::Error::from(error).into()
    }
}

/// A node whose verdict on a block comes over IPC where that answers, and everything else from `node`, of
/// which it is the socket.
#[derive(Debug)]
pub struct WithIpc<N> {
    node: N,
    ipc: IpcCheck,
}

impl<N: Node> WithIpc<N> {
    /// Puts `ipc` before `node`.
    pub fn new(node: N, ipc: IpcCheck) -> Self {
        Self { node, ipc }
    }

    async fn check(&self, block: &[u8]) -> Result<Checked, NodeError> {
        match self.ipc.check(block).await {
            // Which the RPC knows at once, too; a socket of another node is always on another tip.
            Ok(Checked::NotOnTip(_)) => self.node.check_block(block).await,
            Ok(checked) => Ok(checked),
            Err(why) => {
                debug!(%why, "asking the RPC");
                self.node.check_block(block).await
            }
        }
    }
}

impl<N: Node> Node for WithIpc<N> {
    fn name(&self) -> String {
        self.node.name()
    }

    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        self.node.chain_info()
    }

    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        self.node.next_template(after)
    }

    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        self.node.submit_block(block)
    }

    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(self.check(block))
    }

    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        self.node.height_of(hash)
    }
}

/// Puts blocks to Core's `checkBlock`, one after the other. Its thread ends with it.
#[derive(Debug)]
pub struct IpcCheck {
    questions: mpsc::Sender<Question>,
    deadline: Duration,
}

#[derive(Debug)]
struct Question {
    block: Vec<u8>,
    until: Instant,
    answer: oneshot::Sender<Result<Checked, NoAnswer>>,
}

impl IpcCheck {
    /// Starts the thread, which connects and says at once whether that went well.
    ///
    /// # Errors
    /// The system has no thread or no event queue left.
    pub fn start(socket: PathBuf, times: IpcTimes) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (questions, asked) = mpsc::channel(IPC_QUESTIONS_MAX);
        std::thread::Builder::new()
            .name("node-ipc".to_owned())
            .spawn(move || run(&runtime, Asker::new(socket, times), asked))?;
        Ok(Self { questions, deadline: times.call })
    }

    /// What Core says of a block, proof of work aside.
    ///
    /// # Errors
    /// `NoAnswer`.
    pub async fn check(&self, block: &[u8]) -> Result<Checked, NoAnswer> {
        if block.len() > BLOCK_LEN_MAX {
            return Err(NoAnswer::NotAsked("longer than any block"));
        }
        let Ok(place) = self.questions.try_reserve() else {
            return Err(NoAnswer::NotAsked("too many at once"));
        };
        let until = Instant::now() + self.deadline;
        let (answer, answered) = oneshot::channel();
        place.send(Question { block: block.to_vec(), until, answer });
        answered.await.unwrap_or(Err(NoAnswer::NotAsked("the thread for it has ended")))
    }
}

fn run(runtime: &Runtime, mut asker: Asker, mut questions: mpsc::Receiver<Question>) {
    LocalSet::new().block_on(runtime, async move {
        match asker.connection(Instant::now() + asker.times.call).await {
            Ok(_) => asker.say_used(),
            Err(why) => asker.say_not_used(why),
        }
        while let Some(question) = questions.recv().await {
            asker.answer(question, &mut questions).await;
        }
    });
}

/// What the thread keeps: its connection, and what the operator was told of it last.
struct Asker {
    socket: PathBuf,
    times: IpcTimes,
    link: Link,
    said: Said,
}

enum Link {
    Open(Connection),
    /// No attempt before then.
    Away(Instant, NoAnswer),
    New,
}

#[derive(PartialEq)]
enum Said {
    Nothing,
    Used,
    NotUsed(Discriminant<NoAnswer>),
}

/// A call that Core has not answered yet.
type Call = Pin<Box<dyn Future<Output = Result<Checked, NoAnswer>>>>;

impl Asker {
    fn new(socket: PathBuf, times: IpcTimes) -> Self {
        Self { socket, times, link: Link::New, said: Said::Nothing }
    }

    async fn answer(&mut self, question: Question, questions: &mut mpsc::Receiver<Question>) {
        let Question { block, until, answer } = question;
        if answer.is_closed() {
            return;
        }
        // Whoever is told may not wait any more.
        let tell = |told| drop(answer.send(told));
        if until <= Instant::now() {
            return tell(Err(NoAnswer::Silent));
        }
        let mut call = match self.connection(until).await {
            Ok(connection) => connection.check_block(&block),
            Err(why) => {
                self.say_not_used(why.clone());
                return tell(Err(why));
            }
        };
        drop(block);
        match timeout_at(until, &mut call).await {
            Ok(Ok(checked)) => {
                self.say_used();
                tell(Ok(checked));
            }
            Ok(Err(why)) => {
                self.link = Link::Away(Instant::now() + self.times.retry, why.clone());
                self.say_not_used(why.clone());
                tell(Err(why));
            }
            Err(_) => {
                self.say_not_used(NoAnswer::Silent);
                tell(Err(NoAnswer::Silent));
                if let Link::Open(connection) = &mut self.link {
                    wait_out(call, &mut connection.mover, questions).await;
                }
            }
        }
    }

    /// The connection, made anew if it is gone and its pause is over.
    async fn connection(&mut self, until: Instant) -> Result<&Connection, NoAnswer> {
        let is_usable = match &self.link {
            Link::Open(connection) => connection.is_open(),
            Link::Away(pause, why) if Instant::now() < *pause => return Err(why.clone()),
            Link::Away(..) | Link::New => false,
        };
        if !is_usable {
            let opened = timeout_at(until, Connection::open(&self.socket)).await;
            self.link = match opened.unwrap_or_else(|_| Err(NoAnswer::Silent)) {
                Ok(connection) => Link::Open(connection),
                Err(why) => Link::Away(Instant::now() + self.times.retry, why),
            };
        }
        match &self.link {
            Link::Open(connection) => Ok(connection),
            Link::Away(_, why) => Err(why.clone()),
            Link::New => Err(NoAnswer::Silent),
        }
    }

    fn say_used(&mut self) {
        if self.said != Said::Used {
            info!(socket = %self.socket.display(), "declared jobs are checked over IPC");
            self.said = Said::Used;
        }
    }

    /// Once for each kind of reason: a node that was away may come back as one of another version.
    fn say_not_used(&mut self, why: NoAnswer) {
        let kind = discriminant(&why);
        if self.said != Said::NotUsed(kind) {
            warn!(socket = %self.socket.display(), %why, "declared jobs are checked over RPC");
            self.said = Said::NotUsed(kind);
        }
    }
}

/// Until Core has answered or is gone; whoever asks meanwhile hears at once that there is no answer.
async fn wait_out(mut call: Call, mover: &mut Mover, questions: &mut mpsc::Receiver<Question>) {
    loop {
        tokio::select! {
            _ = &mut call => return,
            _ = &mut *mover => return,
            question = questions.recv() => match question {
                Some(question) => drop(question.answer.send(Err(NoAnswer::Silent))),
                None => return,
            },
        }
    }
}

/// What Core gave us on one connection. Its end is the end of all of it.
struct Connection {
    mining: mining::Client,
    /// The one that Core does our work on.
    thread: thread::Client,
    /// Moves messages for as long as the socket is there.
    mover: Mover,
}

type Mover = AbortOnDropHandle<()>;

impl Connection {
    async fn open(socket: &Path) -> Result<Self, NoAnswer> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(Some(IPC_ANSWER_WORDS_MAX));
        let network =
            VatNetwork::new(reader.compat(), writer.compat_write(), Side::Client, options);
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(Side::Server);
        let at = socket.to_owned();
        let mover = AbortOnDropHandle::new(spawn_local(async move {
            let ended = system.await;
            debug!(socket = %at.display(), ?ended, "the node closed its socket");
        }));

        let constructed = init.construct_request().send().promise.await?;
        let mut request = constructed.get()?.get_thread_map()?.make_thread_request();
        request.get().set_name("pool");
        let thread = request.send().promise.await?.get()?.get_result()?;
        let mut request = init.make_mining_request();
        request.get().init_context().set_thread(thread.clone());
        let mining = request.send().promise.await?.get()?.get_result()?;
        Ok(Self { mining, thread, mover })
    }

    fn is_open(&self) -> bool {
        !self.mover.is_finished()
    }

    fn check_block(&self, block: &[u8]) -> Call {
        let mut request = self.mining.check_block_request();
        let mut params = request.get();
        params.reborrow().init_context().set_thread(self.thread.clone());
        params.set_block(block);
        // A miner still has to find the proof of work.
        let mut options = params.init_options();
        options.set_check_merkle_root(true);
        options.set_check_pow(false);
        let answer = request.send().promise;
        Box::pin(async move {
            let answer = answer.await?;
            let answer = answer.get()?;
            if answer.get_result() {
                return Ok(Checked::Valid);
            }
            let reason = abridged(answer.get_reason()?.to_str().map_err(capnp::Error::from)?);
            let words = abridged(answer.get_debug()?.to_str().map_err(capnp::Error::from)?);
            debug!(reason, words, "checkBlock says no");
            // As Core says it in `getblocktemplate` where validation gave no reason.
            let reason = if reason.is_empty() { "rejected".to_owned() } else { reason };
            Ok(Checked::from_reason(Some(reason)))
        })
    }
}
