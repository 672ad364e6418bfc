//! Load on a Stratum V2 pool: many miners in one process, and what they measured. All of it is
//! `benches::swarm`; here are the arguments and the exit code (0 clean, 1 something was wrong, 2 usage).

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

use anyhow::{Context, Result};
use benches::swarm::{self, Options, check_target};
use clap::Parser;

/// Many miners against one pool, on this machine.
#[derive(Debug, Parser)]
#[command(name = "swarm", version, about)]
struct Arguments {
    /// The pool, HOST:PORT; its first address counts.
    address: String,
    /// The pool is not on this machine, and it is mine.
    #[arg(long)]
    i_run_this_pool: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let found = arguments.address.to_socket_addrs();
    let found = found.with_context(|| format!("looking up {}", arguments.address))?.next();
    let address: SocketAddr = found.context("the name has no address")?;
    check_target(address, arguments.i_run_this_pool)?;
    let report = swarm::run(address, &arguments.options)?;
    if arguments.options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(report.is_clean())
}
