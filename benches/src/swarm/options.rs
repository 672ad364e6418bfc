//! What a run is told: the arguments that `swarm` and `load` share, and what is refused before anything
//! is opened. Must never let a load run loose on a host that is not this one unless it is said in so
//! many words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use proto::noise::AuthorityPublicKey;

/// What one process may open at all: two to the sixteenth is above any limit on files.
const CONNECTIONS_MAX: usize = 65_536;
/// Channels in all; each costs about a kilobyte here.
const CHANNELS_MAX: usize = 1 << 20;
/// A window of more would only fill socket buffers.
const WINDOW_MAX: u32 = 16_384;
/// The longest run.
const DURATION_MAX: Duration = Duration::from_secs(3_600);
/// Load generators, at most.
const THREADS_MAX: usize = 64;
/// Connections that come from one source address if nothing else is said: below the pool's own
/// default limit of 1,000, and far below the 28,000 ephemeral ports.
const PER_SOURCE: usize = 500;
/// 127.1.0.0 to 127.255.255.255.
const SOURCES_MAX: u32 = 1 << 23;

/// How a run is made.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The pool's authority key; without one whoever answers is accepted.
    #[arg(long, value_name = "KEY")]
    pub authority: Option<AuthorityPublicKey>,
    /// Connections to open.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Channels on each.
    #[arg(long, default_value_t = 1, value_name = "M")]
    pub channels_per_connection: usize,
    /// Their kind.
    #[arg(long, value_enum, default_value_t = Kinds::Extended)]
    pub kind: Kinds,
    /// Shares a second from all connections together, or "max": as fast as they are acknowledged.
    #[arg(long, default_value = "max", value_name = "R")]
    pub shares_per_second: Rate,
    /// Shares of a connection that may be under way; at it the connection waits.
    #[arg(long, default_value_t = 512, value_name = "W")]
    pub window: u32,
    /// Length of the measurement, in seconds ("20s", "1.5s", "2m").
    #[arg(long = "for", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub length: Duration,
    /// Shares of each connection; with these answered the run is over, at the latest after --for.
    #[arg(long, value_name = "N")]
    pub shares_per_connection: Option<u64>,
    /// Open and hold; no shares.
    #[arg(long)]
    pub idle: bool,
    /// Find a block this often, on a connection of its own, so that there are new tips.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub tips_every: Option<Duration>,
    /// The pool's process, to tell its CPU time and memory.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Attack the pool besides, in the middle half of the run.
    #[arg(long)]
    pub hostile: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Addresses of 127.0.0.0/8 that connections come from [default: one for 500].
    #[arg(long, value_name = "K")]
    pub source_addresses: Option<u32>,
    /// Hash rate that is declared for each channel, H/s: little, so that a pool asks for little.
    #[arg(long, default_value_t = 1.0, value_name = "H/S")]
    pub hash_rate: f32,
    /// What the process of `pid` is, in the report's words.
    #[arg(skip = "pool")]
    pub measured: &'static str,
}

/// The kind of a connection's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The pool gives the merkle root.
    Standard,
    /// The miner rolls an extranonce.
    Extended,
}

/// The kinds of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kinds {
    /// The pool gives the merkle root.
    Standard,
    /// The miner rolls an extranonce.
    Extended,
    /// Every second connection is standard, the others are extended.
    Mixed,
}

impl Kinds {
    /// Of connection `index`.
    #[must_use]
    pub fn of(self, index: usize) -> Kind {
        match self {
            Self::Standard => Kind::Standard,
            Self::Mixed if index.is_multiple_of(2) => Kind::Standard,
            Self::Extended | Self::Mixed => Kind::Extended,
        }
    }
}

/// How fast shares are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// As the window allows.
    Max,
    /// By the clock, shares a second in all.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse() {
            Ok(rate) if (0.0..=1e9).contains(&rate) => Ok(Self::PerSecond(rate)),
            Ok(_) | Err(_) => Err("a number of shares from 0 to 1e9, or max".to_owned()),
        }
    }
}

impl Options {
    /// Refuses what is out of bounds.
    ///
    /// # Errors
    /// In the words of the command line.
    pub fn check(&self) -> Result<()> {
        let Self { connections, channels_per_connection: channels, .. } = *self;
        ensure!(
            (1..=CONNECTIONS_MAX).contains(&connections),
            "--connections must be from 1 to {CONNECTIONS_MAX}"
        );
        ensure!(
            channels >= 1 && channels.saturating_mul(connections) <= CHANNELS_MAX,
            "--channels-per-connection must be at least 1, and all channels at most {CHANNELS_MAX}"
        );
        ensure!((1..=WINDOW_MAX).contains(&self.window), "--window must be from 1 to {WINDOW_MAX}");
        ensure!(
            self.length >= Duration::from_millis(100) && self.length <= DURATION_MAX,
            "--for must be from 0.1s to {}s",
            DURATION_MAX.as_secs()
        );
        ensure!(
            (1..=THREADS_MAX).contains(&self.threads),
            "--threads must be from 1 to {THREADS_MAX}"
        );
        ensure!(
            self.source_addresses.is_none_or(|count| (1..=SOURCES_MAX).contains(&count)),
            "--source-addresses must be from 1 to {SOURCES_MAX}"
        );
        ensure!(
            self.tips_every.is_none_or(|every| every >= Duration::from_millis(100)),
            "--tips-every must be at least 0.1s"
        );
        ensure!(
            self.hash_rate.is_finite() && self.hash_rate >= 0.0,
            "--hash-rate must be a number that is not negative"
        );
        if self.hostile {
            let steady = matches!(self.shares_per_second, Rate::PerSecond(rate) if rate > 0.0);
            ensure!(
                steady && !self.idle,
                "--hostile needs --shares-per-second NUMBER: honest miners at a steady rate are what \
                 an attack is measured by"
            );
        }
        Ok(())
    }

    /// Where connection `index` comes from; `None` lets the system choose.
    #[must_use]
    pub fn source(&self, index: usize, to: SocketAddr) -> Option<IpAddr> {
        if !matches!(to.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
            return None;
        }
        let count = match self.source_addresses {
            Some(count) => count as usize,
            None => self.connections.div_ceil(PER_SOURCE),
        };
        Some(loopback(1, (index % count) as u32))
    }
}

/// Address number `number` of the loopback network, from 127.`block`.0.1 on.
#[must_use]
pub fn loopback(block: u8, number: u32) -> IpAddr {
    // 254 hosts in each last byte: no .0 and no .255, which read like networks.
    let (above, last) = (number / 254, number % 254 + 1);
    let base = (127 << 24) | (u32::from(block) << 16);
    IpAddr::V4(Ipv4Addr::from(base + (above << 8) + last))
}

/// Refuses an address that is not of this host, unless its owner says so.
///
/// # Errors
/// With what to say.
pub fn check_target(address: SocketAddr, i_run_this_pool: bool) -> Result<()> {
    if !address.ip().is_loopback() && !i_run_this_pool {
        bail!(
            "{address} is not this machine: load on somebody else's pool is an attack. If it is yours, \
             say --i-run-this-pool"
        );
    }
    Ok(())
}

/// "20s", "1.5s", "250ms", "2m" or plain seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text {
        _ if text.ends_with("ms") => (&text[..text.len() - 2], 0.001),
        _ if text.ends_with('s') => (&text[..text.len() - 1], 1.0),
        _ if text.ends_with('m') => (&text[..text.len() - 1], 60.0),
        _ => (text, 1.0),
    };
    let seconds = number.parse::<f64>().map(|number| number * unit);
    match seconds.map(Duration::try_from_secs_f64) {
        Ok(Ok(duration)) => Ok(duration),
        Ok(Err(_)) | Err(_) => Err("a time such as 20s, 250ms or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::HashSet;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &str) -> Result<Options> {
        let words = std::iter::once("swarm").chain(arguments.split_whitespace());
        let options = Line::try_parse_from(words)?.options;
        options.check()?;
        Ok(options)
    }

    #[test]
    fn only_this_machine_is_a_target_unless_its_owner_says_so() {
        for loopback in ["127.0.0.1:34254", "127.9.9.9:1", "[::1]:34254"] {
            assert!(check_target(loopback.parse().unwrap(), false).is_ok());
        }
        for other in ["192.168.1.2:34254", "0.0.0.0:34254", "128.0.0.1:1", "[2001:db8::1]:1"] {
            assert!(check_target(other.parse().unwrap(), false).is_err(), "{other}");
            assert!(check_target(other.parse().unwrap(), true).is_ok(), "{other}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert!(options("").is_ok());
        for wrong in [
            "--connections 0",
            "--connections 65537",
            "--channels-per-connection 0",
            "--connections 2048 --channels-per-connection 1024",
            "--window 0",
            "--window 16385",
            "--for 3601s",
            "--for 0.05s",
            "--for soon",
            "--threads 0",
            "--source-addresses 0",
            "--tips-every 50ms",
            "--hash-rate NaN",
            "--shares-per-second -1",
            "--shares-per-second fast",
            "--hostile",
            "--hostile --shares-per-second 0",
            "--kind solo",
        ] {
            let parts = wrong.replace(" -1", "=-1");
            assert!(options(&parts).is_err(), "{wrong}");
        }
        assert!(options("--hostile --shares-per-second 100").is_ok());
        assert!(options("--connections 1024 --channels-per-connection 1024").is_ok());
    }

    #[test]
    fn half_of_mixed_connections_are_standard() {
        let standard = |words: &str| {
            let kinds = options(words).unwrap().kind;
            (0..10).filter(|index| kinds.of(*index) == Kind::Standard).count()
        };
        assert_eq!(standard("--kind mixed"), 5);
        assert_eq!(standard("--kind standard"), 10);
        assert_eq!(standard(""), 0);
    }

    #[test]
    fn times_and_rates_are_read_as_people_write_them() {
        for (text, ms) in [("20s", 20_000), ("250ms", 250), ("1.5s", 1_500), ("2m", 120_000)] {
            assert_eq!(options(&format!("--for {text}")).unwrap().length.as_millis(), ms);
        }
        let rate = options("--shares-per-second 1e4").unwrap().shares_per_second;
        assert_eq!(rate, Rate::PerSecond(10_000.0));
        assert_eq!(options("").unwrap().shares_per_second, Rate::Max);
    }

    #[test]
    fn connections_come_from_as_many_loopback_addresses_as_they_need() {
        let to = "127.0.0.1:1".parse().unwrap();
        let options = options("--connections 5000").unwrap();
        let sources: HashSet<_> = (0..5_000).map(|index| options.source(index, to)).collect();
        assert_eq!(sources.len(), 10);
        assert!(sources.iter().all(|ip| ip.is_some_and(|ip| ip.is_loopback())));
        assert_eq!(options.source(0, "192.168.1.2:1".parse().unwrap()), None);
        let far: HashSet<_> = (0..100_000).map(|number| loopback(1, number)).collect();
        assert_eq!(far.len(), 100_000);
    }
}
