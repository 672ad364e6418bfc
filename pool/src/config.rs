//! What an operator can set: one struct, whose doc comments are the manual (`pool config example`
//! prints them). Read once at start by `cli.rs`; everything else is handed the part it needs.
//!
//! Must never let a value through that it did not understand: unknown keys and variables, wrong types
//! and numbers out of bounds are refused by name. Must never print a secret.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bitcoin::ScriptBuf;
use job_declarator::section;
use job_declarator::settings::{self, Manual, NodeAccess};
pub use job_declarator::settings::{
    ConfigError, LogFormat, NetworkName, NodeKind, NodeLogin, Secret,
};
use serde::{Deserialize, Serialize};

use crate::keys::{self, KeyFiles};

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

const MANUAL: Manual = Manual {
    head: &[
        "Smallholder pool: every key with its default, as printed by `pool config example`.",
        "The environment overrides this file: POOL__LISTEN__ADDRESS sets address in [listen].",
    ],
    prefix: "POOL",
    sections: &[
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
    ],
};

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

const PAYOUT_KEY: &str = "pool.payout_address";

/// Whether this program can speak to the socket of a node's mining interface.
pub const HAS_IPC: bool = cfg!(feature = "ipc");

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
        let config: Self = MANUAL.load(path, env)?;
        config.check()?;
        Ok(config)
    }

    /// Every key with its doc comment and its default, as TOML that loads.
    #[must_use]
    pub fn example() -> String {
        MANUAL.example()
    }

    /// What is in force, as TOML, secrets masked.
    #[must_use]
    pub fn shown(&self) -> String {
        settings::shown(self)
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
            return Err(ConfigError::NoPayoutAddress { key: PAYOUT_KEY, network });
        }
        settings::address_script(PAYOUT_KEY, text, Some(network))
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
        settings::check_network(node, found, self.network())
    }

    /// How to log in to Bitcoin Core, the password read from its file.
    ///
    /// # Errors
    /// Not exactly one way is set, or the file cannot be read.
    pub fn node_login(&self) -> Result<NodeLogin, ConfigError> {
        let node = &self.node;
        let access = NodeAccess {
            cookie_file: &node.cookie_file,
            user: &node.user,
            password_file: &node.password_file,
            password: &node.password,
        };
        access.login()
    }

    /// The socket of the node's mining interface, if one is set.
    #[must_use]
    pub fn ipc_socket(&self) -> Option<PathBuf> {
        let socket = &self.node.ipc_socket;
        (!socket.as_os_str().is_empty()).then(|| settings::at_home(socket))
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
            return Err(ConfigError::value("store.password_file", why));
        };
        let password = percent_encoded(settings::first_line(&self.store.password_file)?.expose());
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

    /// Where the keys are and how certificates are made.
    #[must_use]
    pub fn key_files(&self) -> KeyFiles {
        KeyFiles {
            identity: self.identity_file(),
            authority: self.authority_file(),
            certificate_days: self.keys.certificate_days,
            words: keys::WORDS,
        }
    }

    fn file_or(&self, set: &Path, name: &str) -> PathBuf {
        if set.as_os_str().is_empty() { self.pool.data_dir.join(name) } else { set.to_owned() }
    }

    /// What types and bounds cannot say.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, why: String| Err(ConfigError::value(key, why));
        settings::check_tag("pool.tag", &self.pool.tag)?;
        settings::check_folder("pool.data_dir", &self.pool.data_dir)?;
        if !self.pool.payout_address.is_empty() {
            settings::address_script(PAYOUT_KEY, &self.pool.payout_address, None)?;
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
            settings::check_of_one(what, of_one, of_all)?;
        }
        settings::check_node_url(&self.node.url)?;
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
        settings::check_filter(&self.log.filter, "info,pool::miner=debug")
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
