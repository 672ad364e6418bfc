//! The command line: what a person types. Called by `main.rs` alone, which also names what `run` and
//! `demo` start. How it fails and with which exit code is `job_declarator::command`'s.
//!
//! Must never print a secret.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
pub use job_declarator::command::Running;
use job_declarator::command::{self, parse_time};

use crate::config::{Config, ConfigError, LogFormat};
use crate::keys::{self, KeyFiles};

/// A Stratum V2 mining pool.
#[derive(Debug, Parser)]
#[command(name = "pool", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pool.
    Run(ConfigFile),
    /// Run a pool, a development chain and a CPU miner in this process; nothing to set up.
    Demo(DemoArguments),
    /// Make and show keys and certificates.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask a running pool whether it is ready: exit code 0 or 1.
    Healthcheck {
        #[command(flatten)]
        config: ConfigFile,
        /// Page to ask for [default: /health/ready on http.address]
        #[arg(long)]
        url: Option<String>,
    },
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration file; without one the defaults and the environment count.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, ConfigError> {
        command::note_unread(PROGRAM, self.path.as_deref(), "pool.toml");
        Config::load(self.path.as_deref(), std::env::vars_os())
    }
}

/// Of `pool demo`; the defaults are those of the configuration.
#[derive(Debug, Args)]
struct DemoArguments {
    /// Stop by itself after this long, e.g. 20s or 2m.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,
    /// Print one JSON object at the end and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Where miners connect; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where metrics, health and the JSON API are [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Keep keys, shares and the chain here; otherwise they go when the demo ends.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// No built-in miner: point a device at it.
    #[arg(long)]
    no_miner: bool,
    /// Transactions in each template.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=5_000))]
    tx_count: Option<u32>,
    /// Say on stderr what happens.
    #[arg(short, long)]
    verbose: bool,
}

/// What `demo.rs` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// `None`: until a signal.
    pub time: Option<Duration>,
    /// One JSON object on stdout at the end, nothing else there.
    pub json: bool,
    /// Where miners connect.
    pub listen: SocketAddr,
    /// Metrics, health and the JSON API; port 0 takes a free one, so that a demo starts beside
    /// whatever else runs here.
    pub http: SocketAddr,
    /// `None`: a temporary folder that goes with the demo.
    pub data_dir: Option<PathBuf>,
    /// Start the CPU miner.
    pub miner: bool,
    /// In each template, without the coinbase.
    pub tx_count: u32,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make an authority key. Keep a copy: miners pin its public half.
    Authority {
        #[command(flatten)]
        config: ConfigFile,
        /// New file for the secret key [default: the configured keys.authority_file]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make an identity file, certificate and static key, for the pool's host. The authority's key
    /// need not be there.
    Certificate {
        /// The authority's secret key.
        #[arg(long, value_name = "FILE")]
        authority: PathBuf,
        /// Identity file whose static key is certified again; a new key if it is not there.
        #[arg(long = "static", value_name = "FILE")]
        static_key: Option<PathBuf>,
        /// Days from now that the certificate holds. It starts a day ago.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3_650))]
        days: u32,
        /// Identity file to write, in the place of one that is there: keys.identity_file of the pool.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show the public key that miners need, and how long the certificate holds.
    Show(ConfigFile),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every key with its meaning and its default.
    Example,
    /// Load the configuration and say what is wrong with it.
    Check(ConfigFile),
    /// Print what is in force, secrets masked.
    Show(ConfigFile),
}

/// What `main.rs` puts behind the two commands that start a pool.
#[derive(Clone, Copy)]
pub struct Starter {
    /// `pool run`: until a signal.
    pub run: fn(Config) -> Running,
    /// `pool demo`; an error if it did not show what it should.
    pub demo: fn(DemoOptions) -> Running,
}

const PROGRAM: &str = "pool";

/// Does what the command line says; failures are one line on stderr.
#[must_use]
pub fn main(starter: Starter) -> ExitCode {
    command::own_up_to_bugs(PROGRAM);
    let command = Cli::parse().command;
    // Not locked: what a starter's other threads print would wait for ever.
    command::ended(PROGRAM, execute(command, starter, &mut std::io::stdout()))
}

fn execute(command: Command, starter: Starter, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::Run(file) => {
            let config = file.load()?;
            command::start_logging(config.log.format, &config.log.filter)?;
            command::block_on((starter.run)(config))?;
        }
        Command::Demo(arguments) => {
            // Two blocks in one moment are a warning on a real chain and nothing on this one.
            let quiet = "warn,pool::block=error";
            command::start_logging(
                LogFormat::Text,
                if arguments.verbose { "info" } else { quiet },
            )?;
            command::block_on((starter.demo)(arguments.into()))?;
        }
        Command::Keys(command) => execute_keys(command, out)?,
        Command::Config(command) => execute_config(command, out)?,
        Command::Healthcheck { config, url } => {
            let url = match url {
                Some(url) => url,
                None => command::ready_url(config.load()?.http.address),
            };
            command::healthcheck(&url)?;
        }
    }
    Ok(())
}

impl From<DemoArguments> for DemoOptions {
    fn from(arguments: DemoArguments) -> Self {
        let defaults = Config::default();
        Self {
            time: arguments.time,
            json: arguments.json,
            listen: arguments.listen.unwrap_or(defaults.listen.address),
            http: arguments.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))),
            data_dir: arguments.data_dir,
            miner: !arguments.no_miner,
            tx_count: arguments.tx_count.unwrap_or(defaults.embedded.tx_count),
        }
    }
}

fn execute_keys(command: KeysCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        KeysCommand::Authority { config, out: path } => {
            let path = match path {
                Some(path) => path,
                None => config.load()?.authority_file(),
            };
            let key = keys::make_authority(&path)?;
            writeln!(out, "authority public key: {}", key.public())?;
            writeln!(out, "secret key: in {} (SECRET, keep offline; keep a copy)", path.display())?;
        }
        KeysCommand::Certificate { authority, static_key, days, out: path } => {
            let authority = keys::read_authority(&authority)?;
            let static_key = static_key.filter(|path| path.exists());
            let known = static_key.map(|path| keys::read_identity(&path)).transpose()?;
            let known = known.map(|identity| identity.static_key);
            let identity = keys::make_identity(&authority, known, keys::unix_now(), days)?;
            keys::replace_identity(&path, &identity)?;
            command::write_identity(out, &path, &identity)?;
        }
        KeysCommand::Show(config) => {
            let files = config.load()?.key_files();
            command::show_keys(out, &files, &no_keys_yet(&files))?;
        }
    }
    Ok(())
}

/// Before the first start: how keys come to be.
fn no_keys_yet(files: &KeyFiles) -> String {
    let (identity, authority) = (files.identity.display(), files.authority.display());
    let days = files.certificate_days;
    let first = match files.authority.exists() {
        true => "",
        false => "`pool keys authority` and ",
    };
    format!(
        "`pool run` makes it at its first start; to have it before: {first}`pool keys certificate --authority {authority} --days {days} --out {identity}`"
    )
}

fn execute_config(command: ConfigCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Example => write!(out, "{}", Config::example())?,
        ConfigCommand::Check(file) => {
            let config = file.load()?;
            // What a start would ask for, as far as it can be known without the node.
            config.payout_script(config.network())?;
            config.store_url()?;
            if config.node.kind == crate::config::NodeKind::BitcoinCore {
                config.node_login()?;
            }
            writeln!(out, "ok")?;
        }
        ConfigCommand::Show(file) => write!(out, "{}", file.load()?.shown())?,
    }
    Ok(())
}

/// For tests: what `demo` would be told by these words.
///
/// # Errors
/// clap's, or another command.
pub fn demo_options_of<T: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = T>,
) -> anyhow::Result<DemoOptions> {
    match Cli::try_parse_from(words)?.command {
        Command::Demo(arguments) => Ok(arguments.into()),
        Command::Run(_) | Command::Keys(_) | Command::Config(_) | Command::Healthcheck { .. } => {
            Err(anyhow!("not a demo"))
        }
    }
}
