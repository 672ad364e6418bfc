//! What an operator can set: one struct, whose doc comments are the manual (`pool config example`
//! prints them). Read once at start by `cli.rs`; everything else is handed the part it needs.
//!
//! Must never let a value through that it did not understand: unknown keys and variables, wrong types
//! and numbers out of bounds are refused by name. Must never print a secret.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, ScriptBuf};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use toml::{Table, Value};

use crate::limits::TAG_MAX;

/// Declares a section once: from it come the struct, its defaults, the bounds that are checked and the
/// text of the example, so that they cannot tell different stories.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $Section:ident in $name:literal {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $type:ty $([$low:literal ..= $high:literal])? = $default:expr,
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $Section {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $Section {
            const MANUAL: Section = Section {
                name: $name,
                about: &[$($about),+],
                fields: &[$(Field {
                    key: stringify!($field),
                    doc: &[$($doc),+],
                    bounds: &[$(($low, $high))?],
                    is_secret: matches!(stringify!($type).as_bytes(), b"Secret"),
                }),+],
            };
        }
    };
}

/// A section as the manual and the checks see it.
struct Section {
    name: &'static str,
    about: &'static [&'static str],
    fields: &'static [Field],
}

/// One key: its doc comment, line by line, and for a number its bounds (none or one pair, inclusive).
struct Field {
    key: &'static str,
    doc: &'static [&'static str],
    bounds: &'static [(i64, i64)],
    /// Its value is never shown.
    is_secret: bool,
}

/// Everything that can be set. `Config::default()` is safe at home; only a payout address is missing.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is written into blocks and where the reward goes.
    pub pool: Pool,
    /// Where miners connect.
    pub listen: Listen,
    /// Where miners who choose their own transactions declare their jobs.
    pub declare: Declare,
    /// The keys by which miners know this pool.
    pub keys: Keys,
    /// Where templates come from and found blocks go to.
    pub node: Node,
    /// Where credited work is kept.
    pub store: Store,
    /// How hard a share is.
    pub difficulty: Difficulty,
    /// Metrics, health and the JSON API.
    pub http: Http,
    /// What the pool says on stderr.
    pub log: Log,
    /// The development chain.
    pub embedded: Embedded,
}

const SECTIONS: &[Section] = &[
    Pool::MANUAL,
    Listen::MANUAL,
    Declare::MANUAL,
    Keys::MANUAL,
    Node::MANUAL,
    Store::MANUAL,
    Difficulty::MANUAL,
    Http::MANUAL,
    Log::MANUAL,
    Embedded::MANUAL,
];

section! {
    /// What is written into blocks and where the reward goes.
    pub struct Pool in "pool" {
        /// Text in the coinbase of every block found: printable ASCII, at most 40 characters.
        pub tag: String = "/Smallholder/".into(),
        /// Bitcoin address that receives the reward, on the network of the node. Needed with
        /// node.kind = "bitcoin-core"; on the development chain an empty one burns the play money.
        pub payout_address: String = String::new(),
        /// Number of this pool process among those that share a store. Two processes with one number
        /// would hand out the same search space.
        pub node_id: u16 [0..=65_535] = 0,
        /// Folder for keys, found blocks and the SQLite file; made if absent. Relative to where the
        /// pool is started.
        pub data_dir: PathBuf = "pool-data".into(),
        /// Seconds that miners and open batches are given after SIGTERM before the pool goes.
        pub drain_s: u32 [0..=300] = 20,
    }
}

section! {
    /// Where miners connect.
    pub struct Listen in "listen" {
        /// Address and port for Stratum V2 mining connections. 0.0.0.0 is every IPv4 interface, so
        /// that the devices at home reach it; open no port to the internet that you do not want open.
        pub address: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 34_254)),
        /// Connections in all; one more is refused. Each costs a file descriptor and about 100 kB.
        pub max_connections: u32 [1..=1_000_000] = 10_000,
        /// Connections from one IP address. Everyone at home or in a farm shares one.
        pub max_connections_per_address: u32 [1..=1_000_000] = 1_000,
        /// Channels in all: a miner has one, a proxy one for each device behind it. Another open is
        /// told channel-capacity-exhausted, and its connection goes on. Each costs some kilobytes.
        pub max_channels: u32 [1..=10_000_000] = 50_000,
        /// Channels from one IP address (in IPv6 one /64), over all its connections.
        pub max_channels_per_address: u32 [1..=10_000_000] = 2_048,
        /// Seconds from accept until the handshake and SetupConnection are done. Devices give up
        /// after 10 themselves.
        pub handshake_deadline_s: u32 [1..=60] = 10,
        /// Seconds until a connection must have opened its first channel. Translators open theirs
        /// when their first miner subscribes, which may take a while.
        pub first_channel_s: u32 [1..=86_400] = 600,
    }
}

section! {
    /// Where miners who choose their own transactions declare their jobs (Job Declaration). A declarator
    /// connects here and to listen.address.
    pub struct Declare in "declare" {
        /// Whether the pool takes declared jobs.
        pub enabled: bool = true,
        /// Address and port for Stratum V2 Job Declaration connections.
        pub address: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 34_264)),
        /// Whether a job may be mined whose transactions its miner keeps to himself. Nobody can check
        /// its fees, so its work is credited as if it had none; its blocks the miner's node alone can
        /// send.
        pub coinbase_only: bool = true,
        /// Connections in all; one more is refused. A declarator needs one, however many devices mine
        /// behind it.
        pub max_connections: u32 [1..=100_000] = 1_000,
        /// Connections from one IP address (in IPv6 one /64).
        pub max_connections_per_address: u32 [1..=100_000] = 250,
    }
}

section! {
    /// The keys by which miners know this pool.
    pub struct Keys in "keys" {
        /// What the pool shows to miners: its static key and a certificate over it. Empty:
        /// "identity.txt" in pool.data_dir.
        pub identity_file: PathBuf = PathBuf::new(),
        /// The authority's secret key, whose public half stands in every miner's settings. If the file
        /// is here the pool renews its certificate itself; it may as well be kept elsewhere, and
        /// certificates be made there with `pool keys certificate`. Empty: "authority.txt" in
        /// pool.data_dir.
        pub authority_file: PathBuf = PathBuf::new(),
        /// Days that a certificate made by this pool is valid; it is renewed when a third is left.
        pub certificate_days: u32 [1..=3_650] = 90,
    }
}

section! {
    /// Where templates come from and found blocks go to.
    pub struct Node in "node" {
        /// "bitcoin-core", or "embedded" for a development chain inside this process.
        pub kind: NodeKind = NodeKind::BitcoinCore,
        /// Network that the node must be on: "main", "test", "testnet4", "signet" or "regtest". The
        /// pool does not start on another.
        pub network: NetworkName = NetworkName::Main,
        /// Bitcoin Core's RPC, without name and password: those stand below.
        pub url: String = "http://127.0.0.1:8332".into(),
        /// Bitcoin Core's cookie file, e.g. "/home/me/.bitcoin/.cookie"; read again when Core restarts.
        pub cookie_file: PathBuf = PathBuf::new(),
        /// RPC user, instead of a cookie.
        pub user: String = String::new(),
        /// File whose first line is the RPC password.
        pub password_file: PathBuf = PathBuf::new(),
        /// The RPC password itself, for environments that can only hand over variables.
        pub password: Secret = Secret::default(),
        /// Socket of the same node's mining interface, over which declared jobs are checked, e.g.
        /// "/home/me/.bitcoin/node.sock": Bitcoin Core 31 started as `bitcoin node -ipcbind=unix`. Where it
        /// does not answer the RPC is asked. Needs a pool built with the feature ipc, as images are.
        pub ipc_socket: PathBuf = PathBuf::new(),
    }
}

section! {
    /// Where credited work is kept.
    pub struct Store in "store" {
        /// "sqlite://FILE" or "postgres://USER@HOST/DATABASE". Empty: SQLite in pool.data_dir.
        pub url: Secret = Secret::default(),
        /// File whose first line is the PostgreSQL password, to keep it out of the URL.
        pub password_file: PathBuf = PathBuf::new(),
    }
}

section! {
    /// How hard a share is. The pool aims at a steady rate of shares from every channel, whatever its
    /// hash rate, and always at powers of two, which every firmware computes exactly. A channel starts
    /// at what its declared hash rate asks for and is corrected by the shares that come.
    pub struct Difficulty in "difficulty" {
        /// Shares that a channel should send in a minute. More make its hash rate known sooner and
        /// cost more.
        pub shares_per_minute: u32 [1..=600] = 12,
        /// Easiest difficulty as a power of two, below which nothing a client asks can get: 8 is
        /// difficulty 256, which every ASIC reports. CPU miners need about -16.
        pub floor_log2: i16 [-32..=51] = 8,
        /// Hardest difficulty as a power of two; only a client that asks for more gets more. Equal to
        /// floor_log2 it pins every channel, for a measurement under load; else leave it alone.
        pub ceiling_log2: i16 [-32..=51] = 51,
    }
}

section! {
    /// Metrics, health and the JSON API: no password, so keep it on this machine.
    pub struct Http in "http" {
        /// Address and port of /metrics, /health and /api/v1.
        pub address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9_090)),
    }
}

section! {
    /// What the pool says on stderr.
    pub struct Log in "log" {
        /// "text" for people, "json" for collectors.
        pub format: LogFormat = LogFormat::Text,
        /// What to show: error, warn, info, debug (each share), trace, or a list such as
        /// "info,pool::miner=debug".
        pub filter: String = "info".into(),
    }
}

section! {
    /// The development chain, used with node.kind = "embedded": real headers and real proof of work
    /// at a target that one processor core meets in seconds.
    pub struct Embedded in "embedded" {
        /// Transactions in each template besides the coinbase.
        pub tx_count: u32 [0..=5_000] = 32,
        /// Expected hashes until a block is found.
        pub block_hashes: u64 [1..=1_000_000_000_000] = 2_097_152,
    }
}

/// Which node gives templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Bitcoin Core over JSON-RPC.
    BitcoinCore,
    /// The development chain inside the process.
    Embedded,
}

/// Networks by the names that Bitcoin Core gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkName {
    /// The one with money.
    Main,
    /// Testnet 3.
    Test,
    /// Testnet 4.
    Testnet4,
    /// The default signet or one's own.
    Signet,
    /// A private chain.
    Regtest,
}

impl NetworkName {
    /// As the `bitcoin` crate calls it.
    #[must_use]
    pub const fn network(self) -> bitcoin::Network {
        match self {
            Self::Main => bitcoin::Network::Bitcoin,
            Self::Test => bitcoin::Network::Testnet,
            Self::Testnet4 => bitcoin::Network::Testnet4,
            Self::Signet => bitcoin::Network::Signet,
            Self::Regtest => bitcoin::Network::Regtest,
        }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that is used but never shown: `Debug`, `Display` and serde all print a mask.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Takes what must not be shown.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that uses it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Nothing was set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Secret {
    /// Of a URL its scheme and what follows the credentials, without the query (`?password=` is legal
    /// there); of anything else nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let Some((scheme, rest)) = self.0.split_once("://") else { return f.write_str("***") };
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((_, place)) => ("***@", place),
            None => ("", rest),
        };
        match place.split_once('?') {
            Some((place, _)) => write!(f, "{scheme}://{credentials}{place}?***"),
            None => write!(f, "{scheme}://{credentials}{place}"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own words would show a password that was written without quotes.
        let text = String::deserialize(deserializer);
        text.map(Self).map_err(|_| serde::de::Error::custom("a secret must be a string in quotes"))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How to log in to Bitcoin Core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeLogin {
    /// Read this file, and again on a 401.
    Cookie(PathBuf),
    /// Name and password.
    Password {
        /// RPC user.
        user: String,
        /// RPC password.
        password: Secret,
    },
}

/// Why a configuration is refused. Never carries a secret.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file named by the configuration, or itself, cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Not TOML. The line's text is left out: it may hold a password.
    #[error("{}, line {line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        why: String,
    },
    /// A key that does not exist.
    #[error("unknown key {key} in {}{}", path.display(), did_you_mean(nearest))]
    UnknownKey {
        /// Dotted.
        key: String,
        /// The file.
        path: PathBuf,
        /// The key that is spelt most like it.
        nearest: Option<String>,
    },
    /// A variable that starts with `POOL_` and means nothing to us.
    #[error("unknown environment variable {name}{}", did_you_mean(nearest))]
    UnknownVariable {
        /// As found.
        name: String,
        /// The variable that is spelt most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong type or not one of those allowed.
    #[error("{key}: {why}")]
    Value {
        /// Dotted key, or the variable's name.
        key: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A number beyond its bounds.
    #[error("{key} is {value}; it must be from {low} to {high}")]
    OutOfBounds {
        /// Dotted.
        key: String,
        /// As given.
        value: i64,
        /// Smallest allowed.
        low: i64,
        /// Largest allowed.
        high: i64,
    },
    /// Mining for real needs to know whom to pay.
    #[error("pool.payout_address is missing: a Bitcoin address on network {}", network.to_core_arg())]
    NoPayoutAddress {
        /// The node's.
        network: bitcoin::Network,
    },
    /// The node is on another network than the configuration says.
    #[error("the node {node} is on {}, the configuration says {} (node.network)", found.to_core_arg(), expected.to_core_arg())]
    NodeNetwork {
        /// The node's name.
        node: String,
        /// Where it is.
        found: bitcoin::Network,
        /// Where it should be.
        expected: bitcoin::Network,
    },
    /// An address of another network than the node's.
    #[error("pool.payout_address {address} is for network {of}, but the node is on {}", network.to_core_arg())]
    WrongNetwork {
        /// As configured.
        address: String,
        /// Where it would be valid.
        of: String,
        /// The node's.
        network: bitcoin::Network,
    },
}

/// `~/` at the front is the user's home, as a shell would have it.
fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// Whether this program can speak to the socket of a node's mining interface.
pub const HAS_IPC: bool = cfg!(feature = "ipc");

const VARIABLE_PREFIX: &str = "POOL__";
/// Not settings: where our own tests find a database.
const TEST_VARIABLE_PREFIX: &str = "POOL_TEST_";

impl Config {
    /// The defaults, overridden by the file if one is named, overridden by `POOL__SECTION__KEY` from
    /// `env` (usually `std::env::vars_os()`).
    ///
    /// # Errors
    /// Anything not understood; see `ConfigError`.
    pub fn load<K, V>(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError>
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let mut table = defaults();
        if let Some(path) = path {
            overlay(&mut table, read_file(path)?);
        }
        for (name, value) in env {
            apply_variable(&mut table, &name.into(), &value.into())?;
        }
        check_bounds(&table)?;
        let config = from_table(table, "configuration")?;
        config.check()?;
        Ok(config)
    }

    /// Every key with its doc comment and its default, as TOML that loads.
    #[must_use]
    pub fn example() -> String {
        let defaults = defaults();
        let mut text = String::from(
            "# Smallholder pool: every key with its default, as printed by `pool config example`.\n\
             # The environment overrides this file: POOL__LISTEN__ADDRESS sets address in [listen].\n",
        );
        for section in SECTIONS {
            text.push('\n');
            push_comment(&mut text, section.about);
            text.push_str(&format!("[{}]\n", section.name));
            for field in section.fields {
                push_comment(&mut text, field.doc);
                for (low, high) in field.bounds {
                    text.push_str(&format!("# From {low} to {high}.\n"));
                }
                let value = &defaults[section.name][field.key];
                text.push_str(&format!("{} = {value}\n", field.key));
            }
        }
        text
    }

    /// What is in force, as TOML, secrets masked.
    #[must_use]
    pub fn shown(&self) -> String {
        toml::to_string(self).expect("every field is a table of plain values")
    }

    /// Where the reward goes, for a node on `network`.
    ///
    /// # Errors
    /// `NoPayoutAddress` or `WrongNetwork`.
    pub fn payout_script(&self, network: bitcoin::Network) -> Result<ScriptBuf, ConfigError> {
        let text = &self.pool.payout_address;
        if text.is_empty() {
            if self.node.kind == NodeKind::Embedded {
                return Ok(ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash()));
            }
            return Err(ConfigError::NoPayoutAddress { network });
        }
        let address = parse_address(text)?;
        if !address.is_valid_for_network(network) {
            return Err(ConfigError::WrongNetwork {
                address: text.clone(),
                of: networks_of(&address),
                network,
            });
        }
        Ok(address.assume_checked().script_pubkey())
    }

    /// The network that the node must be on.
    #[must_use]
    pub fn network(&self) -> bitcoin::Network {
        match self.node.kind {
            NodeKind::BitcoinCore => self.node.network.network(),
            NodeKind::Embedded => bitcoin::Network::Regtest,
        }
    }

    /// Whether a node that is on `found` is one to mine with.
    ///
    /// # Errors
    /// `NodeNetwork`.
    pub fn check_network(&self, node: &str, found: bitcoin::Network) -> Result<(), ConfigError> {
        let expected = self.network();
        if found == expected {
            return Ok(());
        }
        Err(ConfigError::NodeNetwork { node: node.to_owned(), found, expected })
    }

    /// How to log in to Bitcoin Core, the password read from its file.
    ///
    /// # Errors
    /// Not exactly one way is set, or the file cannot be read.
    pub fn node_login(&self) -> Result<NodeLogin, ConfigError> {
        let node = &self.node;
        let by_cookie = !node.cookie_file.as_os_str().is_empty();
        let by_file = !node.password_file.as_os_str().is_empty();
        let ways = [by_cookie, by_file, !node.password.is_empty()];
        if ways.iter().filter(|set| **set).count() != 1 || by_cookie != node.user.is_empty() {
            let why = "set either cookie_file, or user with password_file or password";
            return Err(ConfigError::Value { key: "node".into(), why: why.into() });
        }
        if by_cookie {
            return Ok(NodeLogin::Cookie(at_home(&node.cookie_file)));
        }
        let password =
            if by_file { first_line(&node.password_file)? } else { node.password.clone() };
        Ok(NodeLogin::Password { user: node.user.clone(), password })
    }

    /// The socket of the node's mining interface, if one is set.
    #[must_use]
    pub fn ipc_socket(&self) -> Option<PathBuf> {
        let socket = &self.node.ipc_socket;
        (!socket.as_os_str().is_empty()).then(|| at_home(socket))
    }

    /// The store's URL, complete: the SQLite file if none is set, the password put in.
    ///
    /// # Errors
    /// The password file cannot be read or has no place to go.
    pub fn store_url(&self) -> Result<Secret, ConfigError> {
        let url = self.store.url.expose();
        if self.store.password_file.as_os_str().is_empty() {
            if url.is_empty() {
                let file = self.pool.data_dir.join("pool.sqlite");
                return Ok(Secret::new(format!("sqlite://{}", file.display())));
            }
            return Ok(self.store.url.clone());
        }
        let place = url.split_once("://").and_then(|(scheme, rest)| {
            let (user, host) = rest.split_once('@')?;
            (scheme.starts_with("postgres") && !user.contains(':')).then_some((scheme, user, host))
        });
        let Some((scheme, user, host)) = place else {
            let why = "needs a store.url of the form postgres://USER@HOST/DATABASE";
            return Err(ConfigError::Value { key: "store.password_file".into(), why: why.into() });
        };
        let password = percent_encoded(first_line(&self.store.password_file)?.expose());
        Ok(Secret::new(format!("{scheme}://{user}:{password}@{host}")))
    }

    /// Where the pool's identity is kept.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        self.file_or(&self.keys.identity_file, "identity.txt")
    }

    /// Where the authority's secret key is, if it is on this host.
    #[must_use]
    pub fn authority_file(&self) -> PathBuf {
        self.file_or(&self.keys.authority_file, "authority.txt")
    }

    fn file_or(&self, set: &Path, name: &str) -> PathBuf {
        if set.as_os_str().is_empty() { self.pool.data_dir.join(name) } else { set.to_owned() }
    }

    /// What types and bounds cannot say.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, why: String| Err(ConfigError::Value { key: key.into(), why });
        let tag = &self.pool.tag;
        if tag.len() > TAG_MAX || !tag.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let why = format!("{tag:?} is not printable ASCII of at most {TAG_MAX} characters");
            return refuse("pool.tag", why);
        }
        if self.pool.data_dir.as_os_str().is_empty() {
            return refuse("pool.data_dir", "\"\" names no folder".into());
        }
        if !self.pool.payout_address.is_empty() {
            parse_address(&self.pool.payout_address)?;
        }
        let (listen, declare) = (&self.listen, &self.declare);
        for (what, of_one, of_all) in [
            ("listen.max_connections", listen.max_connections_per_address, listen.max_connections),
            ("listen.max_channels", listen.max_channels_per_address, listen.max_channels),
            (
                "declare.max_connections",
                declare.max_connections_per_address,
                declare.max_connections,
            ),
        ] {
            if of_one > of_all {
                let why = format!("{of_one} is above {what}, which is {of_all}");
                return refuse(&format!("{what}_per_address"), why);
            }
        }
        if self.node.url.contains('@') {
            let why = "must not hold a name or password: use node.user and node.password_file";
            return refuse("node.url", why.into());
        }
        if !self.node.url.starts_with("http://") {
            let why = "does not start with http:// (Bitcoin Core has no TLS)";
            return refuse("node.url", format!("{:?} {why}", self.node.url));
        }
        if !HAS_IPC && let Some(socket) = self.ipc_socket() {
            let why = "cannot be used: this pool was built without the feature ipc";
            return refuse("node.ipc_socket", format!("{} {why}", socket.display()));
        }
        let store = self.store.url.expose();
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        if !store.is_empty() && !schemes.iter().any(|scheme| store.starts_with(scheme)) {
            let why = "does not start with sqlite:// or postgres://";
            return refuse("store.url", format!("{} {why}", self.store.url));
        }
        if self.difficulty.ceiling_log2 < self.difficulty.floor_log2 {
            return refuse("difficulty.ceiling_log2", "is below difficulty.floor_log2".into());
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            let allowed = "it may be such as \"info\" or \"info,pool::miner=debug\"";
            return refuse("log.filter", format!("{:?}: {error}; {allowed}", self.log.filter));
        }
        Ok(())
    }
}

fn push_comment(text: &mut String, lines: &[&str]) {
    for line in lines {
        // A doc comment's line keeps the blank after its slashes.
        text.push_str(&format!("#{line}\n"));
    }
}

fn defaults() -> Table {
    Table::try_from(Config::default()).expect("every field is a table of plain values")
}

/// Reads and checks the file alone, so that what is wrong in it is told with its line.
fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let syntax = |error: &toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(&text, error.span().map_or(0, |span| span.start)),
        why: error.message().trim().replace('\n', ", "),
    };
    let table: Table = toml::from_str(&text).map_err(|error| syntax(&error))?;
    if let Some(key) = unknown_key(&table) {
        let nearest = nearest(&key, keys());
        return Err(ConfigError::UnknownKey { key, path: path.to_owned(), nearest });
    }
    // Bounds before types: "70000 must be from 0 to 65535" says more than "invalid value".
    check_bounds(&table)?;
    toml::from_str::<Config>(&text).map_err(|error| {
        match (syntax(&error), wrong_value(&table)) {
            (ConfigError::Syntax { path, line, .. }, Some((key, why))) => {
                ConfigError::Syntax { path, line, why: format!("{key}: {why}") }
            }
            (other, _) => other,
        }
    })?;
    Ok(table)
}

/// The first key whose value alone is not taken: the key, and the value with what is wrong with it and
/// what would not be. A secret is not repeated.
fn wrong_value(table: &Table) -> Option<(String, String)> {
    for section in SECTIONS {
        let Some(values) = table.get(section.name).and_then(Value::as_table) else { continue };
        for field in section.fields {
            let Some(value) = values.get(field.key) else { continue };
            let mut alone = defaults();
            let default = std::mem::replace(&mut alone[section.name][field.key], value.clone());
            let Err(error) = alone.try_into::<Config>() else { continue };
            let message = error.message().trim().replace('\n', ", ");
            let why = match field.is_secret {
                true => message,
                false => format!("{value}: {message}; it may be such as {default}"),
            };
            return Some((format!("{}.{}", section.name, field.key), why));
        }
    }
    None
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// All keys, dotted.
fn keys() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| {
        section.fields.iter().map(|field| format!("{}.{}", section.name, field.key))
    })
}

/// `POOL__SECTION__KEY` for a dotted key.
fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn unknown_key(table: &Table) -> Option<String> {
    for (name, value) in table {
        let Some(section) = SECTIONS.iter().find(|section| section.name == name) else {
            return Some(name.clone());
        };
        let Some(fields) = value.as_table() else { continue };
        if let Some(key) = fields.keys().find(|key| section.fields.iter().all(|f| f.key != *key)) {
            return Some(format!("{name}.{key}"));
        }
    }
    None
}

/// The name most like `wrong`; none if nothing is.
fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> Option<String> {
    // A key without its section, or a section alone, is compared with that part of each name.
    let likeness = |name: &str| {
        let part = name.rsplit('.').next().filter(|_| !wrong.contains('.')).unwrap_or(name);
        strsim::jaro_winkler(wrong, part).max(strsim::jaro_winkler(wrong, name))
    };
    names
        .map(|name| (likeness(&name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Sections of `above` over those of `below`, key by key.
fn overlay(below: &mut Table, above: Table) {
    for (name, section) in above {
        if let (Some(Value::Table(old)), Value::Table(new)) = (below.get_mut(&name), section) {
            old.extend(new);
        }
    }
}

/// Sets one variable; leaves others than `POOL_*` alone. The type is that of the default.
fn apply_variable(table: &mut Table, name: &OsString, value: &OsString) -> Result<(), ConfigError> {
    let name = name.to_string_lossy();
    if !name.to_uppercase().starts_with("POOL_") || name.starts_with(TEST_VARIABLE_PREFIX) {
        return Ok(());
    }
    let Some(key) = keys().find(|key| variable_of(key) == name) else {
        let nearest = nearest(&name, keys().map(|key| variable_of(&key)));
        return Err(ConfigError::UnknownVariable { name: name.into_owned(), nearest });
    };
    let refuse = |why: String| ConfigError::Value { key: name.to_string(), why };
    let value = value.to_str().ok_or_else(|| refuse("the value is not UTF-8".into()))?;
    let (section, field) = key.split_once('.').expect("keys() puts a dot into each");
    let slot = &mut table[section][field];
    *slot = if slot.is_integer() {
        let number = value.trim().parse();
        Value::Integer(number.map_err(|_| refuse(format!("{value:?} is not a whole number")))?)
    } else if slot.is_bool() {
        let is_so = value.trim().parse();
        Value::Boolean(is_so.map_err(|_| refuse(format!("{value:?} is neither true nor false")))?)
    } else {
        Value::String(value.to_owned())
    };
    // The whole was right but for this value, so an error is about it.
    check_bounds(table)?;
    from_table(table.clone(), &name)
        .map(drop)
        .map_err(|error| wrong_value(table).map_or(error, |(_, why)| refuse(why)))
}

fn check_bounds(table: &Table) -> Result<(), ConfigError> {
    for section in SECTIONS {
        let Some(Value::Table(values)) = table.get(section.name) else { continue };
        for field in section.fields {
            let Some(value) = values.get(field.key).and_then(Value::as_integer) else { continue };
            for &(low, high) in field.bounds {
                if !(low..=high).contains(&value) {
                    let key = format!("{}.{}", section.name, field.key);
                    return Err(ConfigError::OutOfBounds { key, value, low, high });
                }
            }
        }
    }
    Ok(())
}

fn from_table(table: Table, blame: &str) -> Result<Config, ConfigError> {
    table.try_into().map_err(|error: toml::de::Error| ConfigError::Value {
        key: blame.to_owned(),
        why: error.message().trim().replace('\n', ", "),
    })
}

fn parse_address(text: &str) -> Result<Address<NetworkUnchecked>, ConfigError> {
    text.parse().map_err(|error| ConfigError::Value {
        key: "pool.payout_address".into(),
        why: format!("{text} is not a Bitcoin address: {error}"),
    })
}

fn networks_of(address: &Address<NetworkUnchecked>) -> String {
    let all = [
        bitcoin::Network::Bitcoin,
        bitcoin::Network::Testnet,
        bitcoin::Network::Testnet4,
        bitcoin::Network::Signet,
        bitcoin::Network::Regtest,
    ];
    let valid = all.into_iter().filter(|network| address.is_valid_for_network(*network));
    valid.map(|network| network.to_string()).collect::<Vec<_>>().join(" or ")
}

fn first_line(path: &Path) -> Result<Secret, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret::new(line)),
        _ => Err(unreadable("its first line is empty".into())),
    }
}

/// RFC 3986: all but the unreserved characters.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
