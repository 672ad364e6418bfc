//! What both programs are told of the node: its network, and how to log in. Their `[node]` sections say
//! it in words of their own; `config.rs` of each asks here.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret, at_home, first_line};

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

    /// The port of Bitcoin Core's RPC, unless it was told another.
    #[must_use]
    pub const fn rpc_port(self) -> u16 {
        match self {
            Self::Main => 8_332,
            Self::Test => 18_332,
            Self::Testnet4 => 48_332,
            Self::Signet => 38_332,
            Self::Regtest => 18_443,
        }
    }

    /// Where Bitcoin Core keeps this network's files, seen from its data folder.
    const fn folder(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Test => "testnet3",
            Self::Testnet4 => "testnet4",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
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

/// What a `[node]` section says of logging in.
#[derive(Debug, Clone, Copy)]
pub struct NodeAccess<'a> {
    /// Empty: none set.
    pub cookie_file: &'a Path,
    /// Empty: none set.
    pub user: &'a str,
    /// Empty: none set.
    pub password_file: &'a Path,
    /// Empty: none set.
    pub password: &'a Secret,
}

impl NodeAccess<'_> {
    /// Nothing is set.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        let has_file = [self.cookie_file, self.password_file].map(|file| !is_empty(file));
        has_file == [false; 2] && self.user.is_empty() && self.password.is_empty()
    }

    /// How to log in, the password read from its file.
    ///
    /// # Errors
    /// Not exactly one way is set, or the file cannot be read.
    pub fn login(&self) -> Result<NodeLogin, ConfigError> {
        let by_cookie = !is_empty(self.cookie_file);
        let by_file = !is_empty(self.password_file);
        let ways = [by_cookie, by_file, !self.password.is_empty()];
        if ways.iter().filter(|set| **set).count() != 1 || by_cookie != self.user.is_empty() {
            let why = "set either cookie_file, or user with password_file or password";
            return Err(ConfigError::value("node", why));
        }
        if by_cookie {
            return Ok(NodeLogin::Cookie(at_home(self.cookie_file)));
        }
        let password =
            if by_file { first_line(self.password_file)? } else { self.password.clone() };
        Ok(NodeLogin::Password { user: self.user.to_owned(), password })
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// A `node.url` that can be used: Bitcoin Core's RPC without name and password.
///
/// # Errors
/// `Value`.
pub fn check_node_url(url: &str) -> Result<(), ConfigError> {
    if url.contains('@') {
        let why = "must not hold a name or password: use node.user and node.password_file";
        return Err(ConfigError::value("node.url", why));
    }
    if !url.starts_with("http://") {
        let why = "does not start with http:// (Bitcoin Core has no TLS)";
        return Err(ConfigError::value("node.url", format!("{url:?} {why}")));
    }
    Ok(())
}

/// Data folders of Bitcoin Core seen from a home: its own, Ubuntu's snap's, and on macOS.
const FOLDERS_AT_HOME: [&str; 3] =
    [".bitcoin", "snap/bitcoin-core/common/.bitcoin", "Library/Application Support/Bitcoin"];

/// Data folders that are the same for everybody: a system service's, Umbrel's, and what StartOS mounts of
/// the node into a package that depends on it.
const FOLDERS_OF_SYSTEMS: [&str; 5] = [
    "/var/lib/bitcoind",
    "/var/lib/bitcoin",
    "/home/umbrel/umbrel/app-data/bitcoin/data/bitcoin",
    "/mnt/bitcoind",
    "/embassy-data/package-data/volumes/bitcoind/data/main",
];

/// Where Bitcoin Core's cookie may be, the likeliest first. A folder is the whole of a network's, so a
/// cookie found there is that network's.
#[must_use]
pub fn cookie_places(network: NetworkName, home: Option<&Path>) -> Vec<PathBuf> {
    let own = FOLDERS_AT_HOME.iter().filter_map(|folder| home.map(|home| home.join(folder)));
    let all = own.chain(FOLDERS_OF_SYSTEMS.iter().map(PathBuf::from));
    all.map(|folder| folder.join(network.folder()).join(".cookie")).collect()
}

/// The first of these places where there is one.
#[must_use]
pub fn find_cookie(network: NetworkName, home: Option<&Path>) -> Option<PathBuf> {
    cookie_places(network, home).into_iter().find(|place| place.is_file())
}
