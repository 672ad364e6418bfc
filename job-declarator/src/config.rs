//! What a home miner can set: one struct, whose doc comments are the manual (`job-declarator config
//! example` prints them). Read once at start by the command line; everything else is handed the part it
//! needs.
//!
//! Must let nothing through that would fail only later, in the night a pool goes away: keys, addresses
//! and ports are looked at here, and each refusal says what would be right. Must never print a secret.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bitcoin::{Network, ScriptBuf};
use proto::noise::AuthorityPublicKey;
use serde::{Deserialize, Serialize};

use crate::declarator::{Known, WHOLE_REWARD};
use crate::keys::{KeyFiles, Words};
use crate::limits::{KNOWN_ADDRESSES_MAX, POOLS_MAX, USER_MAX};
use crate::section;
use crate::settings::{
    self, ConfigError, LogFormat, Manual, NetworkName, NodeAccess, NodeKind, NodeLogin, Secret,
    entry_key,
};

/// Everything that can be set. `Config::default()` is safe at home and mines alone; only a payout address
/// is missing.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who is paid, and how templates are declared.
    pub declarator: Declarator,
    /// Where the devices at home connect.
    pub devices: Devices,
    /// The Bitcoin node that makes the templates.
    pub node: Node,
    /// Pools in order of preference; none: solo.
    pub pool: Vec<Pool>,
    /// The status page.
    pub http: Http,
    /// What is said on stderr.
    pub log: Log,
}

const MANUAL: Manual = Manual {
    head: &[
        "Smallholder job declarator: every key with its default, as printed by",
        "`job-declarator config example`. Only declarator.payout_address must be set.",
        "The environment overrides this file: DECLARATOR__DEVICES__SV2_ADDRESS sets sv2_address in",
        "[devices], and DECLARATOR__POOL__0__ADDRESS address in the first [[pool]].",
    ],
    prefix: "DECLARATOR",
    sections: &[
        Declarator::MANUAL,
        Devices::MANUAL,
        Node::MANUAL,
        Pool::MANUAL.listed(POOLS_MAX),
        Http::MANUAL,
        Log::MANUAL,
    ],
};

section! {
    /// Who is paid, and how templates are declared.
    pub struct Declarator in "declarator" {
        /// Your Bitcoin address, on the network of the node: where blocks pay that you find alone, and
        /// whom pools credit. Needed with node.kind = "bitcoin-core".
        pub payout_address: String = String::new(),
        /// Whom pools credit, at most 90 characters: an account or "account.worker". A device's own name
        /// is put behind it. Empty: payout_address.
        pub user: String = String::new(),
        /// Text in the coinbase of every block found: printable ASCII, at most 40 characters.
        pub tag: String = "/Smallholder/".into(),
        /// Folder for keys and found blocks; made if absent. Relative to where the declarator is started.
        pub data_dir: PathBuf = "declarator-data".into(),
        /// "full-template": the pool sees every transaction and can send a found block itself.
        /// "coinbase-only": the pool sees none, and may credit work as if a block had no fees.
        pub mode: DeclareMode = DeclareMode::FullTemplate,
        /// Seconds at least between two declarations on one tip. Less earns hardly more fees and makes
        /// more work for the pool and the devices.
        pub own_job_refresh_s: u32 [1..=600] = 30,
    }
}

section! {
    /// Where the devices at home connect.
    pub struct Devices in "devices" {
        /// Address and port for devices that speak Stratum V2. 0.0.0.0 is every IPv4 interface, so that
        /// the devices at home reach it; open no port to the internet that you do not want open.
        pub sv2_address: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 34_255)),
        /// Address and port for devices that speak Stratum V1 alone. It has no encryption.
        pub sv1_address: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 3_333)),
        /// Name or address that devices dial, as the status page shows it. Empty: the one by which the page
        /// is asked for.
        pub host: String = String::new(),
        /// Connections in all; one more is refused. Each costs a file descriptor and about 100 kB.
        pub max_connections: u32 [1..=100_000] = 1_000,
        /// Connections from one IP address.
        pub max_connections_per_address: u32 [1..=100_000] = 250,
        /// Shares that a device should send in a minute. More make its hash rate known sooner.
        pub shares_per_minute: u32 [1..=600] = 12,
        /// Seconds from accept until the handshake and SetupConnection are done. Devices give up after
        /// 10 themselves.
        pub handshake_deadline_s: u32 [1..=60] = 10,
        /// Seconds until a connection must have opened its first channel.
        pub first_channel_s: u32 [1..=86_400] = 600,
    }
}

section! {
    /// The Bitcoin node that makes the templates and sends found blocks.
    pub struct Node in "node" {
        /// "bitcoin-core", or "embedded" for a development chain inside this process.
        pub kind: NodeKind = NodeKind::BitcoinCore,
        /// Network that the node must be on: "main", "test", "testnet4", "signet" or "regtest". On
        /// another, its templates are left alone and the pool's own jobs are mined.
        pub network: NetworkName = NetworkName::Main,
        /// Bitcoin Core's RPC, without name and password: those stand below. Empty: this machine, at the
        /// network's own port, e.g. "http://127.0.0.1:8332" on main.
        pub url: String = String::new(),
        /// Bitcoin Core's cookie file, e.g. "/home/me/.bitcoin/.cookie"; read again when Core restarts.
        /// Empty, and no user below: looked for where Core usually has it.
        pub cookie_file: PathBuf = PathBuf::new(),
        /// RPC user, instead of a cookie.
        pub user: String = String::new(),
        /// File whose first line is the RPC password.
        pub password_file: PathBuf = PathBuf::new(),
        /// The RPC password itself, for environments that can only hand over variables.
        pub password: Secret = Secret::default(),
    }
}

section! {
    /// A pool, as often as you like up to eight: the first is mined with, the next when it is away, and the
    /// first again once it is back. While none can be reached, or with none here, you mine solo.
    pub struct Pool in "pool" {
        /// What the status page and the log call it. Empty: its address.
        pub name: String = String::new(),
        /// Host and port of its Stratum V2 mining, e.g. "pool.example:34254".
        pub address: String = String::new(),
        /// Host and port where it takes declared jobs, e.g. "pool.example:34264". Empty: your devices mine
        /// the pool's own jobs.
        pub declare_address: String = String::new(),
        /// The pool's public key, which it publishes beside its address; it starts with a 9.
        pub authority_key: String = String::new(),
        /// Whom this pool credits, if not declarator.user.
        pub user: String = String::new(),
        /// Of a block's reward so many percent at most may go to others, who are neither you nor in
        /// known_addresses. A pool that asks for more is not mined with. With 100 nothing is limited.
        pub reward_to_others_max_percent: u32 [0..=100] = 100,
        /// The pool's own addresses, at most 64, if it publishes them: what it pays to any but these and
        /// yours goes to others. Behind one may stand how much of the reward it may have, e.g.
        /// "bc1q... 2.5%": what it gets beyond that goes to others, too. Set the limit above to 0, so that
        /// nobody gets more than is written here.
        pub known_addresses: Vec<String> = Vec::new(),
        /// Its JSON API, e.g. `http://pool.example:9090`, to compare what it credited with what was sent.
        /// Empty: not asked.
        pub api_url: String = String::new(),
    }
}

section! {
    /// The status page and its JSON: no password, so keep it on this machine or in a network you trust.
    pub struct Http in "http" {
        /// Address and port of the status page.
        pub address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9_091)),
        /// Names by which a browser may ask for it, beside addresses, localhost, umbrel and this
        /// machine's own: a proxy's, at most 16.
        pub hosts: Vec<String> = Vec::new(),
    }
}

section! {
    /// What the declarator says on stderr.
    pub struct Log in "log" {
        /// "text" for people, "json" for collectors.
        pub format: LogFormat = LogFormat::Text,
        /// What to show: error, warn, info, debug (each share), trace, or a list such as
        /// "info,job_declarator::device=debug".
        pub filter: String = "info".into(),
    }
}

/// How much of a job the pool is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclareMode {
    /// Every transaction.
    FullTemplate,
    /// The coinbase and its path.
    CoinbaseOnly,
}

const PAYOUT_KEY: &str = "declarator.payout_address";
/// The authority's key is on the same disk, so nothing is gained by shorter ones: they are renewed when a
/// third is left.
const CERTIFICATE_DAYS: u32 = 90;
const WORDS: Words = Words {
    program: "declarator",
    clients: "Devices",
    remedy: "put authority.txt back beside it, or remove it and tell the devices the new key",
};

impl Config {
    /// The defaults, overridden by the file if one is named, overridden by `DECLARATOR__SECTION__KEY` from
    /// `env` (usually `std::env::vars_os()`).
    ///
    /// # Errors
    /// Anything not understood or that could not be mined with; see `ConfigError`.
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

    /// The network that the node must be on.
    #[must_use]
    pub fn network(&self) -> Network {
        match self.node.kind {
            NodeKind::BitcoinCore => self.node.network.network(),
            NodeKind::Embedded => Network::Regtest,
        }
    }

    /// Where a block pays that the owner found alone. On the development chain an empty address burns the
    /// play money.
    ///
    /// # Errors
    /// `NoPayoutAddress`, or none of this network.
    pub fn payout_script(&self) -> Result<ScriptBuf, ConfigError> {
        let (text, network) = (&self.declarator.payout_address, self.network());
        if text.is_empty() {
            if self.node.kind == NodeKind::Embedded {
                return Ok(ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash()));
            }
            return Err(ConfigError::NoPayoutAddress { key: PAYOUT_KEY, network });
        }
        settings::address_script(PAYOUT_KEY, text, Some(network))
    }

    /// Whom `pool` credits; empty only on the development chain.
    #[must_use]
    pub fn user_at<'a>(&'a self, pool: &'a Pool) -> &'a str {
        let Declarator { user, payout_address, .. } = &self.declarator;
        let set = [&pool.user, user].into_iter().find(|user| !user.is_empty());
        set.unwrap_or(payout_address)
    }

    /// Bitcoin Core's RPC.
    #[must_use]
    pub fn node_url(&self) -> String {
        if self.node.url.is_empty() {
            return format!("http://127.0.0.1:{}", self.node.network.rpc_port());
        }
        self.node.url.clone()
    }

    /// How to log in to Bitcoin Core: as set, or by the cookie that it left in a usual place, seen from
    /// `home` (usually `$HOME`).
    ///
    /// # Errors
    /// More than one way is set, a file cannot be read, or no cookie is found. That last one may pass: Core
    /// makes the cookie when it starts, so a declarator that is running asks again.
    pub fn node_login(&self, home: Option<&Path>) -> Result<NodeLogin, ConfigError> {
        let node = &self.node;
        let access = NodeAccess {
            cookie_file: &node.cookie_file,
            user: &node.user,
            password_file: &node.password_file,
            password: &node.password,
        };
        if !access.is_unset() {
            return access.login();
        }
        let found = settings::find_cookie(node.network, home);
        found.map(NodeLogin::Cookie).ok_or_else(|| ConfigError::NoCookie {
            network: node.network.network(),
            tried: settings::cookie_places(node.network, home),
        })
    }

    /// Whether a node that is on `found` is one to mine with.
    ///
    /// # Errors
    /// `NodeNetwork`.
    pub fn check_network(&self, node: &str, found: Network) -> Result<(), ConfigError> {
        settings::check_network(node, found, self.network())
    }

    /// What is allowed and may not be what was meant, a sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.node.kind == NodeKind::Embedded && !self.pool.is_empty() {
            let why = "node.kind \"embedded\" is a chain of its own: no pool can build on it";
            notes.push(why.to_owned());
        }
        if self.pool.is_empty() {
            notes.push("no [[pool]] is set, so this mines solo".to_owned());
        }
        for (at, pool) in self.pool.iter().enumerate() {
            if pool.declares_at().is_none() {
                let key = entry_key("pool", at, "declare_address");
                notes.push(format!(
                    "{key} is not set: your devices will mine its templates, not yours"
                ));
            }
            if pool.reward_to_others_max_percent == 0 && pool.known_addresses.is_empty() {
                let key = entry_key("pool", at, "reward_to_others_max_percent");
                notes.push(format!(
                    "{key} is 0 without known_addresses: only a pool that pays all to you is mined with"
                ));
            }
        }
        notes
    }

    /// The keys by which devices know this declarator.
    #[must_use]
    pub fn key_files(&self) -> KeyFiles {
        let folder = &self.declarator.data_dir;
        KeyFiles {
            identity: folder.join("identity.txt"),
            authority: folder.join("authority.txt"),
            certificate_days: CERTIFICATE_DAYS,
            words: WORDS,
        }
    }

    /// What types and bounds cannot say.
    fn check(&self) -> Result<(), ConfigError> {
        let declarator = &self.declarator;
        settings::check_tag("declarator.tag", &declarator.tag)?;
        settings::check_folder("declarator.data_dir", &declarator.data_dir)?;
        if !declarator.payout_address.is_empty() {
            self.payout_script()?;
        }
        check_user("declarator.user", &declarator.user)?;
        let Devices { max_connections, max_connections_per_address, .. } = self.devices;
        let of_one = max_connections_per_address;
        settings::check_of_one("devices.max_connections", of_one, max_connections)?;
        self.check_ports()?;
        settings::check_node_url(&self.node_url())?;
        self.check_pools()?;
        settings::check_filter(&self.log.filter, "info,job_declarator::device=debug")
    }

    /// Three listeners on three ports; 0 is any free one.
    fn check_ports(&self) -> Result<(), ConfigError> {
        let ports = [
            ("devices.sv2_address", self.devices.sv2_address),
            ("devices.sv1_address", self.devices.sv1_address),
            ("http.address", self.http.address),
        ];
        for (at, (key, address)) in ports.into_iter().enumerate() {
            let port = address.port();
            let same = ports[..at].iter().find(|(_, other)| port != 0 && other.port() == port);
            if let Some((other, _)) = same {
                let why = format!("port {port} is taken by {other}; choose another");
                return Err(ConfigError::value(key, why));
            }
        }
        Ok(())
    }

    fn check_pools(&self) -> Result<(), ConfigError> {
        let mut seen = HashMap::new();
        for (at, pool) in self.pool.iter().enumerate() {
            pool.check(at)?;
            let known = pool.known(at, self.network())?;
            if !known.is_empty() && pool.reward_to_others_max_percent == 100 {
                let why = "has no effect while reward_to_others_max_percent is 100; set it to 0 so that \
                           nobody gets more than is written there";
                return Err(ConfigError::value(entry_key("pool", at, "known_addresses"), why));
            }
            let address = pool.address.to_ascii_lowercase();
            if let Some(first) = seen.insert(address, at) {
                let why = format!("{} is number {}'s already", pool.address, first + 1);
                return Err(ConfigError::value(entry_key("pool", at, "address"), why));
            }
        }
        Ok(())
    }
}

impl Pool {
    /// What people are told of it.
    #[must_use]
    pub fn shown_name(&self) -> &str {
        if self.name.is_empty() { &self.address } else { &self.name }
    }

    /// Where jobs are declared, if they are.
    #[must_use]
    pub fn declares_at(&self) -> Option<&str> {
        (!self.declare_address.is_empty()).then_some(self.declare_address.as_str())
    }

    /// The key that its certificate must be signed by.
    ///
    /// # Errors
    /// `Value`; never after a configuration was loaded. `at` counts the pools from 0, for the message.
    pub fn authority(&self, at: usize) -> Result<AuthorityPublicKey, ConfigError> {
        let key = || entry_key("pool", at, "authority_key");
        let text = self.authority_key.trim();
        if text.is_empty() {
            let why = "is missing: the pool publishes it beside its address; it starts with a 9";
            return Err(ConfigError::value(key(), why));
        }
        // Not repeated: whoever pastes the secret key by mistake has it in no log.
        text.parse().map_err(|error| {
            let why = format!("{error}; copy the whole public key, which starts with a 9");
            ConfigError::value(key(), why)
        })
    }

    /// What pays to the pool's own addresses, and how much of a reward each may have.
    ///
    /// # Errors
    /// One is no address of this network, or what stands behind it no share; `at` as above.
    pub fn known(&self, at: usize, network: Network) -> Result<Vec<Known>, ConfigError> {
        let key = entry_key("pool", at, "known_addresses");
        if self.known_addresses.len() > KNOWN_ADDRESSES_MAX {
            let why = format!("{} are too many; ", self.known_addresses.len());
            return Err(ConfigError::value(key, format!("{why}at most {KNOWN_ADDRESSES_MAX}")));
        }
        let known = |text: &String| {
            let (address, share) = match text.trim().split_once(char::is_whitespace) {
                Some((address, share)) => (address, Some(share.trim_start())),
                None => (text.trim(), None),
            };
            let script = settings::address_script(&key, address, Some(network))?.into_bytes();
            let share_max = match share {
                Some(text) => share_of(text).ok_or_else(|| {
                    let why =
                        format!("{text:?} is no share of the reward, e.g. \"{address} 2.5%\"");
                    ConfigError::value(&key, why)
                })?,
                None => WHOLE_REWARD,
            };
            Ok(Known { script, share_max })
        };
        self.known_addresses.iter().map(known).collect()
    }

    fn check(&self, at: usize) -> Result<(), ConfigError> {
        let key = |key: &str| entry_key("pool", at, key);
        if self.name.len() > USER_MAX || self.name.chars().any(char::is_control) {
            let why = format!("{:?} is not one line of at most {USER_MAX} characters", self.name);
            return Err(ConfigError::value(key("name"), why));
        }
        check_host(&key("address"), &self.address, 34_254)?;
        if let Some(address) = self.declares_at() {
            check_host(&key("declare_address"), address, 34_264)?;
            if address.eq_ignore_ascii_case(&self.address) {
                let why = format!("{address} is its mining port; it declares at another");
                return Err(ConfigError::value(key("declare_address"), why));
            }
        }
        self.authority(at)?;
        check_user(&key("user"), &self.user)?;
        if !self.api_url.is_empty() && !self.api_url.starts_with("http://") {
            let why = format!("{:?} does not start with http://", self.api_url);
            return Err(ConfigError::value(key("api_url"), why));
        }
        Ok(())
    }
}

/// Percent with up to two decimals, "2.5%", in parts of `WHOLE_REWARD`.
fn share_of(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%')?.trim_end();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 2 {
        return None;
    }
    let hundredths: u32 = format!("{decimals:0<2}").parse().ok()?;
    let share = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths)?;
    (share <= WHOLE_REWARD).then_some(share)
}

/// `HOST:PORT`, where the host may be a name and an IPv6 address stands in brackets.
fn check_host(key: &str, text: &str, usual_port: u16) -> Result<(), ConfigError> {
    let refuse = |why: String| Err(ConfigError::value(key, why));
    if text.is_empty() {
        return refuse(format!("is missing: host and port, e.g. \"pool.example:{usual_port}\""));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let plain = rest.split('/').next().unwrap_or_default();
        return refuse(format!("write it without {scheme}://, as {plain:?}"));
    }
    let is_ipv6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, port) = match text.rsplit_once(':') {
        Some(parts) if !is_ipv6 => parts,
        _ => {
            let host = if is_ipv6 { format!("[{text}]") } else { text.to_owned() };
            return refuse(format!("{text:?} has no port, e.g. \"{host}:{usual_port}\""));
        }
    };
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return refuse(format!("{text:?} has no port from 1 to 65535 behind the colon"));
    }
    let name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(name),
    };
    if !is_host {
        return refuse(format!(
            "{text:?} is not a host and a port, e.g. \"pool.example:{usual_port}\""
        ));
    }
    Ok(())
}

/// What a pool can be told: it stands in its logs, tables and pages.
fn check_user(key: &str, user: &str) -> Result<(), ConfigError> {
    if user.len() > USER_MAX || !user.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = format!("{user:?} is not ASCII of at most {USER_MAX} characters without blanks");
        return Err(ConfigError::value(key, why));
    }
    Ok(())
}
