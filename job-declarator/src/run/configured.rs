//! What the configuration comes to: the settings of a start, and the node. Part of `run.rs`; opens nothing but what
//! names the node's login.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::mining::server::Policy;
use proto::noise::Identity;
use proto::target::Difficulty;
use tokio::sync::watch;

use super::{PageSettings, Settings};
use crate::accept::Room;
use crate::config::{Config, DeclareMode};
use crate::credit;
use crate::declarator::{Mode, Options, OutputLimit, PoolOptions};
use crate::limits::DEVICE_FLOOR_LOG2;
use crate::node::Node;
use crate::node::embedded::{EmbeddedChain, EmbeddedOptions};
use crate::node::late::LateNode;
use crate::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use crate::settings::{NodeKind, NodeLogin};

/// What the configuration comes to.
///
/// # Errors
/// An address or a key that is none.
pub fn settings_of(config: &Config, identity: watch::Receiver<Arc<Identity>>) -> Result<Settings> {
    let payout_script = config.payout_script()?.into_bytes();
    let (mut pools, mut authorities) = (Vec::new(), Vec::new());
    for (at, pool) in config.pool.iter().enumerate() {
        let known = pool.known(at, config.network())?;
        pools.push(PoolOptions {
            name: pool.shown_name().to_owned(),
            address: pool.address.clone(),
            declare_address: pool.declares_at().map(str::to_owned),
            user: config.user_at(pool).to_owned(),
            limit: OutputLimit {
                own: payout_script.clone(),
                known,
                // At most 100, as the configuration was checked.
                others_max_percent: pool.reward_to_others_max_percent as u8,
                network: config.network(),
            },
        });
        authorities.push(pool.authority(at)?);
    }
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).context("randomness")?;
    let devices = &config.devices;
    Ok(Settings {
        options: Options {
            pools,
            payout_script,
            tag: config.declarator.tag.clone().into_bytes(),
            mode: match config.declarator.mode {
                DeclareMode::FullTemplate => Mode::FullTemplate,
                DeclareMode::CoinbaseOnly => Mode::CoinbaseOnly,
            },
            refresh_ms: u64::from(config.declarator.own_job_refresh_s) * 1_000,
            seed: u64::from_le_bytes(seed),
        },
        authorities,
        network: config.network(),
        sv2: devices.sv2_address,
        sv1: Some(devices.sv1_address),
        room: Room {
            connections_max: devices.max_connections as usize,
            per_household_max: devices.max_connections_per_address as usize,
        },
        policy: Policy {
            shares_per_minute: f64::from(devices.shares_per_minute),
            floor: Difficulty::from_log2(DEVICE_FLOOR_LOG2),
            ..Policy::default()
        },
        handshake_deadline: Duration::from_secs(devices.handshake_deadline_s.into()),
        first_channel: Duration::from_secs(devices.first_channel_s.into()),
        data_dir: config.declarator.data_dir.clone(),
        identity,
        page: Some(PageSettings {
            address: config.http.address,
            hosts: names_of_this_machine().chain(config.http.hosts.iter().cloned()).collect(),
            device_host: Some(devices.host.clone()).filter(|host| !host.is_empty()),
            apis: apis_of(config)?,
        }),
    })
}

/// Names by which machines at home know each other, that nobody else there should answer to.
fn names_of_this_machine() -> impl Iterator<Item = String> {
    let uname = rustix::system::uname();
    let own = uname.nodename().to_string_lossy().to_ascii_lowercase();
    [format!("{own}.local"), own, "umbrel.local".to_owned()].into_iter()
}

/// The pools that say what they credited.
fn apis_of(config: &Config) -> Result<Vec<credit::Asked>> {
    let mut asked = Vec::new();
    for (at, pool) in config.pool.iter().enumerate().filter(|(_, pool)| !pool.api_url.is_empty()) {
        let api = pool.api_url.parse().with_context(|| format!("pool.{at}.api_url"))?;
        let name = pool.shown_name().to_owned();
        asked.extend(credit::Asked::new(at, name, api, config.user_at(pool)));
    }
    Ok(asked)
}

/// The node of the configuration. Bitcoin Core need not run yet.
///
/// # Errors
/// The development chain cannot be opened, or Bitcoin Core's settings contradict each other.
pub fn node_of(config: &Config) -> Result<Arc<dyn Node>> {
    match config.node.kind {
        NodeKind::Embedded => {
            let data_dir = Some(config.declarator.data_dir.join("chain"));
            let options = EmbeddedOptions { data_dir, ..EmbeddedOptions::default() };
            Ok(Arc::new(EmbeddedChain::new(options).context("the development chain")?))
        }
        NodeKind::BitcoinCore => match bitcoin_core(config) {
            Ok(node) => Ok(node),
            // Its cookie appears when it starts.
            Err(NoLogin::NotYet(_)) => {
                let (name, config) =
                    (format!("Bitcoin Core at {}", config.node_url()), config.clone());
                let make = move || bitcoin_core(&config).map_err(|no_login| no_login.to_string());
                Ok(Arc::new(LateNode::new(name, Box::new(make))))
            }
            Err(NoLogin::Never(error)) => Err(error),
        },
    }
}

/// Why Bitcoin Core cannot be asked.
#[derive(Debug, thiserror::Error)]
enum NoLogin {
    #[error("{0}")]
    NotYet(String),
    #[error("{0:#}")]
    Never(anyhow::Error),
}

fn bitcoin_core(config: &Config) -> Result<Arc<dyn Node>, NoLogin> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let auth = match config.node_login(home.as_deref()) {
        Ok(NodeLogin::Cookie(file)) => RpcAuth::CookieFile(file),
        Ok(NodeLogin::Password { user, password }) => {
            RpcAuth::UserPass { user, password: password.expose().to_owned() }
        }
        Err(error) if error.may_pass() => return Err(NoLogin::NotYet(error.to_string())),
        Err(error) => return Err(NoLogin::Never(error.into())),
    };
    let options = RpcOptions { url: config.node_url(), auth, times: RpcTimes::default() };
    let node = RpcNode::new(options).context("node.url").map_err(NoLogin::Never)?;
    Ok(Arc::new(node))
}
