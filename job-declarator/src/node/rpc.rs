//! Bitcoin Core over JSON-RPC: `bitcoincore-rpc`'s client through its generic `call`, because its own
//! types of `getblocktemplate` know no `longpollid` and break at every new rule name. Called by the
//! pool through `Node`; must never trust an answer, show a credential or leave threads behind.
//!
//! The client blocks, so every question runs on a thread of its own and holds a permit until that
//! thread is done, also if nobody waits for it any more: a stalled node costs a fixed number of
//! threads. Each has a deadline in the HTTP layer and one outside.

mod http;
mod reply;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network};
use bitcoincore_rpc::{Client, RpcApi, jsonrpc};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use self::http::{Http, HttpError};
use self::reply::{ChainReply, HeaderReply, TemplateReply, Unusable, Watched};
use super::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
    abridged,
};
use crate::limits::{
    RPC_CALL_DEADLINE, RPC_CALLS_MAX, RPC_CHECKS_MAX, RPC_COOKIE_LEN_MAX, RPC_LONG_POLL_DEADLINE,
    RPC_POLL_INTERVAL, RPC_POLL_REFRESH, RPC_PROBE_INTERVAL, RPC_SUBMISSIONS_MAX,
    RPC_SUBMIT_DEADLINE,
};

/// The outer deadline leaves the inner one, which can say more, this long to speak.
const GRACE: Duration = Duration::from_millis(500);
/// A long-poll whose tip is gone gets this long to answer by itself: a full block's template takes
/// Core about a tenth of a second, ten times that on a small computer.
const LATE_ANSWER: Duration = Duration::from_secs(2);

/// Core's error codes that mean something here (its `rpc/protocol.h`).
mod code {
    pub(super) const INVALID_ADDRESS_OR_KEY: i32 = -5;
    pub(super) const CLIENT_NOT_CONNECTED: i32 = -9;
    pub(super) const CLIENT_IN_INITIAL_DOWNLOAD: i32 = -10;
    pub(super) const DESERIALIZATION_ERROR: i32 = -22;
    pub(super) const IN_WARMUP: i32 = -28;
}

/// How to be let in.
#[derive(Clone)]
pub enum RpcAuth {
    /// Core's cookie file, which is another after each start of the node.
    CookieFile(PathBuf),
    /// From `rpcauth` or `rpcuser`/`rpcpassword`.
    UserPass {
        /// Name.
        user: String,
        /// Password, never shown.
        password: String,
    },
}

impl std::fmt::Debug for RpcAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CookieFile(path) => f.debug_tuple("CookieFile").field(path).finish(),
            Self::UserPass { .. } => f.debug_struct("UserPass").finish_non_exhaustive(),
        }
    }
}

/// How long to wait for what. The defaults are in `limits.rs`; tests have less time.
#[derive(Debug, Clone, Copy)]
pub struct RpcTimes {
    /// An ordinary call. This and the next two are kept to the second, at least one.
    pub call: Duration,
    /// A block submission.
    pub submit: Duration,
    /// A long-poll without news.
    pub long_poll: Duration,
    /// Between looks at the tip while a long-poll waits.
    pub probe: Duration,
    /// Between looks at the tip without a long-poll.
    pub poll: Duration,
    /// Age of a template without a long-poll.
    pub refresh: Duration,
}

impl Default for RpcTimes {
    fn default() -> Self {
        Self {
            call: RPC_CALL_DEADLINE,
            submit: RPC_SUBMIT_DEADLINE,
            long_poll: RPC_LONG_POLL_DEADLINE,
            probe: RPC_PROBE_INTERVAL,
            poll: RPC_POLL_INTERVAL,
            refresh: RPC_POLL_REFRESH,
        }
    }
}

/// Where a node is and how to be let in.
#[derive(Debug, Clone)]
pub struct RpcOptions {
    /// `http://host:port`, without credentials.
    pub url: String,
    /// Credentials.
    pub auth: RpcAuth,
    /// Deadlines.
    pub times: RpcTimes,
}

/// An URL that no node can be asked at.
#[derive(Debug, Error)]
#[error("the node's url {0}")]
pub struct BadUrl(&'static str);

/// A Bitcoin Core.
#[derive(Debug)]
pub struct RpcNode {
    connection: Arc<Connection>,
    calls: Arc<Semaphore>,
    submissions: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    /// One place: a long-poll that was given up keeps it until its thread ends.
    long_polls: Arc<Semaphore>,
    /// The network of a node that has left its initial block download, which it does once in its life;
    /// forgotten when it stops answering, since it may come back as another.
    ready: Mutex<Option<Network>>,
    /// The network first seen; a node that comes back on another is not the one we were given.
    network: OnceLock<Network>,
    next_template_id: Arc<AtomicU64>,
}

impl RpcNode {
    /// Asks nothing yet.
    pub fn new(options: RpcOptions) -> Result<Self, BadUrl> {
        let host = options.url.strip_prefix("http://").ok_or(BadUrl("must begin with http://"))?;
        if host.contains('@') {
            return Err(BadUrl("must not contain credentials: they have their own settings"));
        }
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadUrl("must be http://host:port in plain characters"));
        }
        Ok(Self {
            connection: Arc::new(Connection { options, cookie: Mutex::new(None) }),
            calls: Arc::new(Semaphore::new(RPC_CALLS_MAX)),
            submissions: Arc::new(Semaphore::new(RPC_SUBMISSIONS_MAX)),
            checks: Arc::new(Semaphore::new(RPC_CHECKS_MAX)),
            long_polls: Arc::new(Semaphore::new(1)),
            ready: Mutex::new(None),
            network: OnceLock::new(),
            next_template_id: Arc::new(AtomicU64::new(1)),
        })
    }

    fn times(&self) -> &RpcTimes {
        &self.connection.options.times
    }

    /// An ordinary question; `read` makes the answer ours on the question's thread.
    async fn call<T: DeserializeOwned, U: Send + 'static>(
        &self,
        method: &'static str,
        params: Vec<Value>,
        read: impl FnOnce(T) -> Result<U, NodeError> + Send + 'static,
    ) -> Result<U, NodeError> {
        let deadline = self.times().call;
        let permit = free_place(&self.calls, method, deadline).await?;
        self.ask(permit, deadline, method, params, read).await
    }

    async fn ask<T: DeserializeOwned, U: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        deadline: Duration,
        method: &'static str,
        params: Vec<Value>,
        read: impl FnOnce(T) -> Result<U, NodeError> + Send + 'static,
    ) -> Result<U, NodeError> {
        let connection = Arc::clone(&self.connection);
        let (tell, told) = oneshot::channel();
        // Not tokio's blocking pool: a runtime that shuts down waits for that, which a long-poll would
        // turn into a quarter of an hour.
        let thread = std::thread::Builder::new().name("node-rpc".to_owned()).spawn(move || {
            let answer = connection.ask(method, &params, deadline).and_then(read);
            drop(permit);
            // Nobody may be waiting any more.
            let _ = tell.send(answer);
        });
        let unreachable = |why: &str| Err(NodeError::Unreachable(format!("{method}: {why}")));
        let answer = match (thread, timeout(deadline + GRACE, told).await) {
            (Err(error), _) => unreachable(&error.to_string()),
            (Ok(_), Ok(Ok(answer))) => answer,
            (Ok(_), Ok(Err(_))) => unreachable("its thread ended early"),
            (Ok(_), Err(_)) => unreachable("no answer in time"),
        };
        match &answer {
            Err(
                NodeError::Unreachable(_)
                | NodeError::Busy
                | NodeError::Cookie(_)
                | NodeError::NotReady(_)
                | NodeError::Unauthorized,
            ) => self.set_ready(None),
            Err(NodeError::Nonsense { .. } | NodeError::Refused { .. }) | Ok(_) => {}
        }
        answer
    }

    fn set_ready(&self, network: Option<Network>) {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = network;
    }

    /// The node's network, if it is done with its initial block download.
    async fn ready_network(&self) -> Result<Network, NodeError> {
        let known = *self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = known {
            return Ok(network);
        }
        let info = self.info().await?;
        if info.initial_block_download {
            let at = format!("initial block download, at height {}", info.height);
            return Err(NodeError::NotReady(at));
        }
        let first = *self.network.get_or_init(|| info.network);
        if first != info.network {
            let why = format!("it was on {first} and is on {} now", info.network);
            return Err(NodeError::NotReady(why));
        }
        self.set_ready(Some(info.network));
        Ok(info.network)
    }

    async fn info(&self) -> Result<ChainInfo, NodeError> {
        const METHOD: &str = "getblockchaininfo";
        self.call(METHOD, vec![], |reply: ChainReply| {
            reply.into_chain_info().map_err(|why| NodeError::Nonsense { call: METHOD, why })
        })
        .await
    }

    /// Hash of the best block as Core writes it.
    async fn tip(&self) -> Result<String, NodeError> {
        const METHOD: &str = "getbestblockhash";
        self.call(METHOD, vec![], |hash: String| {
            reply::block_hash(&hash)
                .map(|_| hash)
                .map_err(|why| NodeError::Nonsense { call: METHOD, why })
        })
        .await
    }

    /// A template at once, or with `long_poll` the place for one and Core's mark to wait beyond.
    async fn template(
        &self,
        long_poll: Option<(OwnedSemaphorePermit, String)>,
    ) -> Result<NodeTemplate, NodeError> {
        const METHOD: &str = "getblocktemplate";
        let network = self.ready_network().await?;
        let next_id = Arc::clone(&self.next_template_id);
        let read = move |reply: TemplateReply| {
            // Two ids, the template's and that of the one after it; taken now and not when the
            // question was put, so that they count up in the order of the answers.
            let id = next_id.fetch_add(2, Ordering::Relaxed);
            reply.into_template(network, id).map_err(|unusable| match unusable {
                Unusable::Nonsense(why) => NodeError::Nonsense { call: METHOD, why },
                Unusable::Unsupported(why) => NodeError::NotReady(why),
            })
        };
        let mut rules = vec!["segwit"];
        if network == Network::Signet {
            rules.push("signet");
        }
        match long_poll {
            None => self.call(METHOD, vec![json!({ "rules": rules })], read).await,
            Some((permit, id)) => {
                let params = vec![json!({ "rules": rules, "longpollid": id })];
                self.ask(permit, self.times().long_poll, METHOD, params, read).await
            }
        }
    }

    async fn next(&self, after: Option<&TemplateMark>) -> Result<NodeTemplate, NodeError> {
        let Some(watched) = after.and_then(Watched::from_mark) else {
            return self.template(None).await;
        };
        let place = Arc::clone(&self.long_polls).try_acquire_owned();
        match place {
            Ok(permit) if !watched.long_poll_id.is_empty() => {
                self.wait_by_long_poll(permit, watched).await
            }
            Ok(_) | Err(_) => self.wait_by_looking(&watched).await,
        }
    }

    async fn wait_by_long_poll(
        &self,
        permit: OwnedSemaphorePermit,
        watched: Watched,
    ) -> Result<NodeTemplate, NodeError> {
        let place = (permit, watched.long_poll_id.clone());
        let mut answer = pin!(self.template(Some(place)));
        let answered = loop {
            if let Ok(answered) = timeout(self.times().probe, &mut answer).await {
                break answered;
            }
            // Still nothing: is that because there is nothing, or because the other end is gone?
            if self.tip().await? != watched.tip {
                match timeout(LATE_ANSWER, &mut answer).await {
                    Ok(answered) => break answered,
                    Err(_) => return self.template(None).await,
                }
            }
        };
        match answered {
            // No news: cut off, out of time, or a node about to shut down, which answers every
            // long-poll at once with what it had. Asking again at once would be a busy loop.
            Err(why @ (NodeError::Unreachable(_) | NodeError::Busy)) => {
                debug!(%why, "long-poll ended without an answer");
                self.wait_by_looking(&watched).await
            }
            Ok(same) if same.mark == watched.to_mark() => self.wait_by_looking(&watched).await,
            answered => answered,
        }
    }

    async fn wait_by_looking(&self, watched: &Watched) -> Result<NodeTemplate, NodeError> {
        let refresh = Instant::now() + self.times().refresh;
        while self.tip().await? == watched.tip && Instant::now() < refresh {
            sleep(self.times().poll).await;
        }
        self.template(None).await
    }

    async fn submit(&self, block: &[u8]) -> Result<Submitted, NodeError> {
        const METHOD: &str = "submitblock";
        let deadline = self.times().submit;
        let permit = free_place(&self.submissions, METHOD, deadline).await?;
        let params = vec![Value::String(hex::encode(block))];
        let answer: Result<Option<String>, _> =
            self.ask(permit, deadline, METHOD, params, Ok).await;
        Ok(match rejection(answer)?.as_deref() {
            None => Submitted::Accepted,
            Some("duplicate") => Submitted::AlreadyKnown,
            Some("inconclusive" | "duplicate-inconclusive") => Submitted::Stale,
            Some(reason) => Submitted::Rejected(abridged(reason)),
        })
    }

    async fn check(&self, block: &[u8]) -> Result<Checked, NodeError> {
        const METHOD: &str = "getblocktemplate";
        let deadline = self.times().call;
        let permit = free_place(&self.checks, METHOD, deadline).await?;
        // Hex is twice the block, so it is made when its turn has come and not by all who wait.
        let proposal = json!({ "mode": "proposal", "data": hex::encode(block) });
        let answer: Result<Option<String>, _> =
            self.ask(permit, deadline, METHOD, vec![proposal], Ok).await;
        Ok(Checked::from_reason(rejection(answer)?.map(|reason| abridged(&reason))))
    }

    async fn height(&self, hash: [u8; 32]) -> Result<Option<u32>, NodeError> {
        let params = vec![BlockHash::from_byte_array(hash).to_string().into(), true.into()];
        let answer = self
            .call("getblockheader", params, |reply: HeaderReply| Ok(reply.height_in_chain()))
            .await;
        match answer {
            Err(NodeError::Refused { code: code::INVALID_ADDRESS_OR_KEY, .. }) => Ok(None),
            answer => answer,
        }
    }
}

/// A block that Core cannot even read is answered with an error and not with a reason.
fn rejection(answer: Result<Option<String>, NodeError>) -> Result<Option<String>, NodeError> {
    match answer {
        Err(NodeError::Refused { code: code::DESERIALIZATION_ERROR, message, .. }) => {
            Ok(Some(message))
        }
        answer => answer,
    }
}

async fn free_place(
    places: &Arc<Semaphore>,
    method: &str,
    deadline: Duration,
) -> Result<OwnedSemaphorePermit, NodeError> {
    let busy = || NodeError::Unreachable(format!("{method} waited for other calls in vain"));
    match timeout(deadline, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        // Nothing closes these semaphores.
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

impl Node for RpcNode {
    fn name(&self) -> String {
        format!("Bitcoin Core at {}", self.connection.options.url)
    }

    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        Box::pin(self.info())
    }

    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        Box::pin(self.next(after))
    }

    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        Box::pin(self.submit(block))
    }

    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(self.check(block))
    }

    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        Box::pin(self.height(*hash))
    }
}

/// The blocking side: credentials and one question at a time.
struct Connection {
    options: RpcOptions,
    /// The cookie as last read.
    cookie: Mutex<Option<String>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Connection {
    /// Asks; if the credentials are refused and the cookie file now says another, asks once more.
    fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &[Value],
        deadline: Duration,
    ) -> Result<T, NodeError> {
        let credentials = self.credentials()?;
        match self.ask_as(&credentials, method, params, deadline) {
            Err(NodeError::Unauthorized) => {
                let RpcAuth::CookieFile(path) = &self.options.auth else {
                    return Err(NodeError::Unauthorized);
                };
                let again = read_cookie(path)?;
                if again == credentials {
                    return Err(NodeError::Unauthorized);
                }
                debug!("the node has another cookie");
                self.remember_cookie(&again);
                self.ask_as(&again, method, params, deadline)
            }
            answer => answer,
        }
    }

    fn ask_as<T: DeserializeOwned>(
        &self,
        credentials: &str,
        method: &'static str,
        params: &[Value],
        deadline: Duration,
    ) -> Result<T, NodeError> {
        let authorization = format!("Basic {}", jsonrpc::base64::encode(credentials));
        let http = Http { url: self.options.url.clone(), authorization, deadline };
        let client = Client::from_jsonrpc(jsonrpc::Client::with_transport(http));
        client.call(method, params).map_err(|error| node_error(method, &error))
    }

    fn credentials(&self) -> Result<String, NodeError> {
        match &self.options.auth {
            RpcAuth::UserPass { user, password } => Ok(format!("{user}:{password}")),
            RpcAuth::CookieFile(path) => {
                let known = self.cookie.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(known) = known {
                    return Ok(known);
                }
                let cookie = read_cookie(path)?;
                self.remember_cookie(&cookie);
                Ok(cookie)
            }
        }
    }

    fn remember_cookie(&self, cookie: &str) {
        *self.cookie.lock().unwrap_or_else(PoisonError::into_inner) = Some(cookie.to_owned());
    }
}

/// Name and password as Core leaves them in its folder. A missing file is a node that is not running, or not
/// yet.
///
/// # Errors
/// `Cookie`, with what can be done about it.
pub fn read_cookie(path: &Path) -> Result<String, NodeError> {
    use std::io::Read;
    let mut cookie = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(RPC_COOKIE_LEN_MAX as u64 + 1).read_to_string(&mut cookie));
    let shown = path.display();
    let said = match read.map_err(|error| (error.kind(), error)) {
        Ok(_) if cookie.trim_end().len() <= RPC_COOKIE_LEN_MAX && cookie.contains(':') => {
            return Ok(cookie.trim_end().to_owned());
        }
        Ok(_) | Err((ErrorKind::InvalidData, _)) => format!("{shown} is no cookie of Core's"),
        Err((ErrorKind::NotFound, _)) => {
            format!("the cookie {shown} is not there: is Core running, and is this its folder?")
        }
        Err((ErrorKind::IsADirectory, _)) => {
            format!("the cookie {shown} is a folder: name the file .cookie in it")
        }
        Err((ErrorKind::PermissionDenied, _)) => format!(
            "cannot read the cookie {shown}: permission denied. Run this as Core's user, or set \
             rpccookieperms=group in bitcoin.conf and join its group, or use user and password_file"
        ),
        Err((_, error)) => format!("cannot read the cookie {shown}: {error}"),
    };
    Err(NodeError::Cookie(said))
}

fn node_error(call: &'static str, error: &bitcoincore_rpc::Error) -> NodeError {
    use bitcoincore_rpc::Error::JsonRpc;
    if let JsonRpc(jsonrpc::Error::Rpc(refusal)) = error {
        let message = abridged(&refusal.message);
        return match refusal.code {
            code::IN_WARMUP => NodeError::NotReady(format!("it is starting: {message}")),
            code::CLIENT_IN_INITIAL_DOWNLOAD | code::CLIENT_NOT_CONNECTED => {
                NodeError::NotReady(message)
            }
            code => NodeError::Refused { call, code, message },
        };
    }
    let why = abridged(&error.to_string());
    let JsonRpc(jsonrpc::Error::Transport(error)) = error else {
        return NodeError::Nonsense { call, why };
    };
    match error.downcast_ref::<HttpError>() {
        Some(HttpError::Status(401 | 403)) => NodeError::Unauthorized,
        Some(HttpError::Status(503)) => NodeError::Busy,
        Some(HttpError::Refused) => NodeError::Unreachable("connection refused".to_owned()),
        // Other statuses come from what stands in front of it.
        Some(error @ (HttpError::Status(_) | HttpError::Unreachable(_))) => {
            NodeError::Unreachable(format!("{call}: {}", abridged(&error.to_string())))
        }
        None => NodeError::Unreachable(format!("{call}: {why}")),
        Some(HttpError::Malformed(_)) => NodeError::Nonsense { call, why },
    }
}
