//! One page and one JSON for a person at home. The program publishes a `Status` every second or two;
//! `serve` shows the newest.
//!
//! Must never change anything, show old as new, take a device's or a pool's text for markup, or answer to a
//! name that could be somebody else's (DNS rebinding). It asks for no password and tells no secret.

mod json;
mod page;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bitcoin::Network;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use self::json::{devices, json, widget};
pub use self::page::{CONTENT_SECURITY_POLICY, page};

use crate::clock::unix_s;
use crate::credit::Comparison;
use crate::declarator::View;
use crate::http::{self, Problem, in_slot, in_time};
use crate::limits::{PAGES_MAX, STATUS_AGE_MAX_S};
use crate::rate::HashRates;

/// All that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Of the program, unix seconds.
    pub started_at: u32,
    /// When this was published, unix seconds.
    pub now: u32,
    /// The same moment on the clock that machines are told.
    pub now_ms: u64,
    /// What the declarator knows.
    pub view: View,
    /// Whose addresses.
    pub network: Network,
    /// The own node.
    pub node: NodeFacts,
    /// Connected ones.
    pub devices: Vec<DeviceRow>,
    /// Where devices connect.
    pub listen: Listen,
    /// Where a solo block pays: "you" on the page.
    pub payout_script: Vec<u8>,
    /// The last block that a device found.
    pub last_block: Option<BlockRow>,
    /// The own count beside the pools'.
    pub credit: Vec<Comparison>,
    /// What the owner should look at.
    pub warnings: Vec<String>,
}

/// Whose an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Where a solo block would pay.
    Yours,
    /// One of those that the owner wrote down of a pool's.
    Known,
    /// Nobody has said.
    Unknown,
}

impl Status {
    /// Whose a script is.
    fn whose(&self, script: &[u8]) -> Whose {
        let mut known = self.view.pools.iter().flat_map(|pool| &pool.known);
        match () {
            () if script == self.payout_script => Whose::Yours,
            () if known.any(|known| known == script) => Whose::Known,
            () => Whose::Unknown,
        }
    }

    /// What of these outputs is the owner's, and what is not.
    fn split(&self, outputs: &[(u64, Vec<u8>)]) -> (u64, u64) {
        let sum = |is_yours: bool| {
            let of = |(_, script): &&(u64, Vec<u8>)| (*script == self.payout_script) == is_yours;
            outputs
                .iter()
                .filter(of)
                .map(|(sats, _)| sats)
                .fold(0, |a: u64, b| a.saturating_add(*b))
        };
        (sum(true), sum(false))
    }
}

/// The own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Without credentials.
    pub name: String,
    /// Of its tip.
    pub height: Option<u32>,
    /// It says that it is.
    pub pruned: bool,
    /// When it last answered, unix seconds.
    pub answered_at: Option<u32>,
}

/// Where devices connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The name or address that devices are to dial, if the owner says one: a container does not know.
    pub host: Option<String>,
    /// Stratum V2, as bound.
    pub sv2: SocketAddr,
    /// Stratum V1, as bound.
    pub sv1: Option<SocketAddr>,
    /// What devices pin, in the text form that firmware takes.
    pub authority_key: String,
}

/// What a device speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Stratum V2 with an extended channel.
    Sv2Extended,
    /// Stratum V2 with a standard channel.
    Sv2Standard,
    /// Stratum V1.
    Sv1,
}

impl Protocol {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Sv2Extended => "SV2 extended",
            Self::Sv2Standard => "SV2 standard",
            Self::Sv1 => "SV1",
        }
    }
}

/// One device. Its texts are its own: shown cut and escaped.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRow {
    /// Counts up; never reused.
    pub id: u64,
    /// From where.
    pub peer: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// The worker's.
    pub name: String,
    /// As it says.
    pub vendor: String,
    /// As it says.
    pub hardware: String,
    /// As it says.
    pub firmware: String,
    /// Unix seconds.
    pub connected_at: u32,
    /// From its shares.
    pub hash_rate: HashRates,
    /// k of 2^k.
    pub difficulty_log2: i16,
    /// Good shares.
    pub accepted: u64,
    /// Others, by the code that it was told.
    pub refused: Vec<(&'static str, u64)>,
    /// Unix seconds.
    pub last_share_at: Option<u32>,
    /// Of its best share since it connected; 0: none.
    pub best_difficulty: f64,
}

/// A block that a device found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRow {
    /// Header byte order.
    pub hash: [u8; 32],
    /// Unknown on a pool's own job.
    pub height: Option<u32>,
    /// When it was found, unix seconds.
    pub at: u32,
    /// Name of the device; empty where it was found before the start.
    pub finder: String,
    /// What it pays to whom, sats and script; none where that is not known.
    pub outputs: Vec<(u64, Vec<u8>)>,
    /// What became of it.
    pub state: BlockState,
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockState {
    /// On its way to the node and the pool.
    Sending,
    /// The node took it, or had it already.
    Accepted,
    /// The node did not take it, in its words.
    Refused(String),
    /// Found on the pool's own job: the pool has its transactions, the own node has not.
    LeftToPool,
    /// Of an earlier run: the node has answered, and what is not kept.
    Answered,
}

/// How the page was asked for: what it shows beside the status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// The name or address by which this computer was reached.
    pub host: Option<String>,
    /// Of the status, seconds.
    pub age_s: u32,
}

/// What the pages are made from.
struct Sources {
    status: watch::Receiver<Arc<Status>>,
    /// Names that the owner gave this computer.
    hosts: Vec<String>,
}

type Shared = State<Arc<Sources>>;

/// Serves until `stop`. `hosts` are names beyond the usual ones by which the page may be asked for: that
/// which it is bound to, and those that the owner wrote down (a proxy's, say).
pub async fn serve(
    listener: TcpListener,
    status: watch::Receiver<Arc<Status>>,
    hosts: Vec<String>,
    stop: CancellationToken,
) {
    http::serve(listener, router(status, hosts), stop).await;
}

/// All pages, for `serve` and for tests without a socket.
pub fn router(status: watch::Receiver<Arc<Status>>, hosts: Vec<String>) -> Router {
    let slots = Arc::new(Semaphore::new(PAGES_MAX));
    let sources = Arc::new(Sources { status, hosts });
    Router::new()
        .route("/", get(start_page))
        .route("/api/v1/status", get(status_json))
        .route("/api/v1/devices", get(devices_json))
        .route("/widgets/status", get(widget_json))
        // Firmware links a pool's host to `/user/<address>` and `/#/app/<address>`; the latter is `/`.
        .route("/user/{*user}", get(|| async { Redirect::temporary("/") }))
        .route_layer(middleware::from_fn(move |page, next| in_slot(slots.clone(), page, next)))
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready_json))
        .fallback(|| async { Problem(StatusCode::NOT_FOUND, "no such page") })
        .layer(middleware::from_fn_with_state(sources.clone(), of_this_host))
        .layer(middleware::from_fn(in_time))
        .with_state(sources)
}

/// Any request: asked by a name that is ours, and read by nobody else's page.
async fn of_this_host(State(sources): Shared, page: Request, next: Next) -> Response {
    let mut response = match asked_host(&page) {
        Some(host) if is_ours(host, &sources.hosts) => next.run(page).await,
        Some(_) | None => Problem(
            StatusCode::MISDIRECTED_REQUEST,
            "ask by this computer's address, or add the name to http.hosts in the configuration",
        )
        .into_response(),
    };
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The host of a request, its port cut. `None`: there is none, or two.
fn asked_host(request: &Request) -> Option<&str> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return None;
    }
    // The absolute form of a request line, as proxies send it, goes before the header.
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => first?.to_str().ok()?,
    };
    let name_end = host.rfind(']').map_or(0, |end| end + 1);
    let port = host[name_end..].find(':').map(|colon| name_end + colon);
    Some(&host[..port.unwrap_or(host.len())])
}

/// Names that nobody outside of the house can point at us: addresses, and names that no public DNS has.
fn is_ours(host: &str, hosts: &[String]) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.unwrap_or(&host).parse::<IpAddr>().is_ok() || host == "localhost" {
        return true;
    }
    // `umbrel.example` could be anybody's, `umbrel` and `umbrel-2.local` are only known at home. Any other
    // machine there can call itself something in `.local`, so that of this one is among `hosts`.
    let name = host.strip_suffix(".local").unwrap_or(&host);
    let is_umbrel = name.strip_prefix("umbrel").is_some_and(|rest| match rest.strip_prefix('-') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => rest.is_empty(),
    });
    is_umbrel || hosts.iter().any(|name| name.eq_ignore_ascii_case(&host))
}

/// What was published last, and how old it is.
fn newest(sources: &Sources) -> (Arc<Status>, u32) {
    let status = Arc::clone(&sources.status.borrow());
    let age_s = unix_s().saturating_sub(status.now);
    (status, age_s)
}

async fn start_page(State(sources): Shared, request: Request) -> Response {
    let (status, age_s) = newest(&sources);
    let asked = Asked { host: asked_host(&request).map(str::to_owned), age_s };
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    ([(header::CONTENT_TYPE, html)], page(&status, &asked)).into_response()
}

async fn status_json(State(sources): Shared) -> Response {
    as_json(json(&newest(&sources).0))
}

async fn devices_json(State(sources): Shared) -> Response {
    as_json(devices(&newest(&sources).0))
}

async fn widget_json(State(sources): Shared) -> Response {
    as_json(widget(&newest(&sources).0))
}

/// Ready: devices have work, and whoever gives it is alive.
async fn ready_json(State(sources): Shared) -> Response {
    let (status, age_s) = newest(&sources);
    let is_alive = sources.status.has_changed().is_ok() && age_s <= STATUS_AGE_MAX_S;
    let work = match (&status.view.work, is_alive) {
        (_, false) => "the program has come to a stand",
        (None, true) => "none yet",
        (Some(_), true) => "ok",
    };
    let ready = work == "ok";
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(serde_json::json!({ "ready": ready, "work": work }))).into_response()
}

fn as_json(text: String) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_of(name: &'static str) -> Option<String> {
        let request = Request::builder().uri("/").header(header::HOST, name);
        asked_host(&request.body(axum::body::Body::empty()).unwrap()).map(str::to_owned)
    }

    #[test]
    fn names_of_the_house_are_answered_with_any_port() {
        let hosts = ["Farm.Example".to_owned()];
        let ours = [
            "192.168.1.7",
            "192.168.1.7:3338",
            "[::1]",
            "[fd00::7]:3338",
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "umbrel",
            "umbrel-2:3338",
            "umbrel.local",
            "umbrel-2.local.",
            "farm.example:1",
        ];
        for name in ours {
            let host = host_of(name).unwrap();
            assert!(is_ours(&host, &hosts), "{name}");
        }
    }

    #[test]
    fn names_that_anybody_can_own_are_not() {
        let others = [
            "",
            "evil.example",
            "umbrel.example",
            "umbrel.evil.local.example",
            "umbrella",
            "umbrel-",
            "umbrel-x.local",
            "umbrel2.local",
            "umbrel-2.evil.local",
            "127.0.0.1.nip.io",
            "localhost.example",
            ".local",
            "evil.local",
            "local",
            "notlocal",
            "x@127.0.0.1",
            "[::1].example",
            "[::1",
            "farm.example.evil",
        ];
        for name in others {
            let host = host_of(name).unwrap();
            assert!(!is_ours(&host, &["farm.example".to_owned()]), "{name}");
        }
    }

    #[test]
    fn a_request_with_two_hosts_or_none_has_no_host() {
        let none = Request::builder().uri("/").body(axum::body::Body::empty()).unwrap();
        assert_eq!(asked_host(&none), None);
        let two =
            Request::builder().uri("/").header("host", "localhost").header("host", "a.example");
        assert_eq!(asked_host(&two.body(axum::body::Body::empty()).unwrap()), None);
        let whole = Request::builder().uri("http://a.example:1/").header("host", "localhost");
        let whole = whole.body(axum::body::Body::empty()).unwrap();
        assert_eq!(asked_host(&whole), Some("a.example"));
    }
}
