//! What a person types. Called by `main.rs` alone. How it fails and with which exit code is
//! `job_declarator::command`'s.
//!
//! Must never print a secret.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use job_declarator::command;
use job_declarator::config::Config;
use job_declarator::node::rpc::read_cookie;
use job_declarator::run;
use job_declarator::settings::{ConfigError, NodeKind, NodeLogin};

/// Mines blocks of your own node with a Stratum V2 pool, or alone.
#[derive(Debug, Parser)]
#[command(name = "job-declarator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the declarator.
    Run(ConfigFile),
    /// Run a development chain, a pool, a declarator and a CPU miner in this process; nothing to set up.
    #[cfg(feature = "demo")]
    Demo(DemoArguments),
    /// Show the keys by which devices know this declarator.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask a running declarator whether it is ready: exit code 0 or 1.
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
        command::note_unread(PROGRAM, self.path.as_deref(), "declarator.toml");
        Config::load(self.path.as_deref(), std::env::vars_os())
    }
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Show the public key that Stratum V2 devices need, and how long the certificate holds.
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

const PROGRAM: &str = "job-declarator";

/// Does what the command line says; failures are one line on stderr.
#[must_use]
pub fn main() -> ExitCode {
    command::own_up_to_bugs(PROGRAM);
    let command = Cli::parse().command;
    // Not locked: what other threads print would wait for ever.
    command::ended(PROGRAM, execute(command, &mut std::io::stdout()))
}

fn execute(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::Run(file) => {
            let config = file.load()?;
            command::start_logging(config.log.format, &config.log.filter)?;
            command::block_on(Box::pin(run::run(config)))?;
        }
        #[cfg(feature = "demo")]
        Command::Demo(arguments) => arguments.execute()?,
        Command::Keys(KeysCommand::Show(file)) => {
            let none_yet = "`job-declarator run` makes it at its first start";
            command::show_keys(out, &file.load()?.key_files(), none_yet)?;
        }
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

fn execute_config(command: ConfigCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Example => write!(out, "{}", Config::example())?,
        ConfigCommand::Check(file) => check(&file.load()?, out)?,
        ConfigCommand::Show(file) => write!(out, "{}", file.load()?.shown())?,
    }
    Ok(())
}

/// What a start would ask for, as far as it can be known without the node.
fn check(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    config.payout_script()?;
    if config.node.kind == NodeKind::BitcoinCore {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        match config.node_login(home.as_deref()) {
            // Nothing to change: the node may not be running yet.
            Err(error) if error.may_pass() => writeln!(out, "note: {error}")?,
            Err(error) => return Err(error.into()),
            Ok(NodeLogin::Cookie(path)) => {
                if let Err(error) = read_cookie(&path) {
                    writeln!(out, "note: {error}")?;
                }
            }
            Ok(NodeLogin::Password { .. }) => {}
        }
    }
    for note in config.notes() {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out, "ok: the file is sound; node and pools were not asked")?;
    Ok(())
}

#[cfg(feature = "demo")]
pub use demo_arguments::{DemoArguments, demo_options_of};

#[cfg(feature = "demo")]
mod demo_arguments {
    use std::ffi::OsString;
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::time::Duration;

    use anyhow::bail;
    use clap::{Args, Parser};
    use job_declarator::command::{self, parse_time};
    use job_declarator::config::Config;
    use job_declarator::settings::LogFormat;

    use super::{Cli, Command};
    use crate::demo::{self, DemoOptions};

    /// Of `job-declarator demo`; the defaults are those of the configuration.
    #[derive(Debug, Args)]
    pub struct DemoArguments {
        /// Stop by itself after this long, e.g. 20s or 2m.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
        time: Option<Duration>,
        /// Print one JSON object at the end and nothing else on stdout.
        #[arg(long)]
        json: bool,
        /// Where Stratum V2 devices connect; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS")]
        sv2: Option<SocketAddr>,
        /// Where Stratum V1 devices connect; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS")]
        sv1: Option<SocketAddr>,
        /// Where the status page is [default: a free port of 127.0.0.1]
        #[arg(long, value_name = "ADDRESS")]
        http: Option<SocketAddr>,
        /// Keep keys, shares and the chain here; otherwise they go when the demo ends.
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// No built-in miner: point a device at it.
        #[arg(long)]
        no_miner: bool,
        /// Say on stderr what happens.
        #[arg(short, long)]
        verbose: bool,
    }

    impl DemoArguments {
        /// Runs it.
        pub(super) fn execute(self) -> anyhow::Result<()> {
            // A chain with a block a second has warnings that mean nothing on it.
            let quiet = "error";
            let filter = if self.verbose { "info" } else { quiet };
            command::start_logging(LogFormat::Text, filter)?;
            command::block_on(Box::pin(demo::run(self.into())))
        }
    }

    impl From<DemoArguments> for DemoOptions {
        fn from(arguments: DemoArguments) -> Self {
            let devices = Config::default().devices;
            Self {
                time: arguments.time,
                json: arguments.json,
                sv2: arguments.sv2.unwrap_or(devices.sv2_address),
                sv1: arguments.sv1.unwrap_or(devices.sv1_address),
                http: arguments.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))),
                data_dir: arguments.data_dir,
                miner: !arguments.no_miner,
            }
        }
    }

    /// For tests: what the demo would be told by these words.
    ///
    /// # Errors
    /// clap's, or another command.
    pub fn demo_options_of<T: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = T>,
    ) -> anyhow::Result<DemoOptions> {
        match Cli::try_parse_from(words)?.command {
            Command::Demo(arguments) => Ok(arguments.into()),
            Command::Run(_)
            | Command::Keys(_)
            | Command::Config(_)
            | Command::Healthcheck { .. } => bail!("not a demo"),
        }
    }
}
