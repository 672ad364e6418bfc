//! The swarm against a pool that it starts itself: the embedded chain, SQLite on disk, the difficulty pinned.
//! What BENCHMARKS.md names. Exit code 0 clean, 1 something was wrong, 2 usage.

use std::process::ExitCode;

use anyhow::Result;
use benches::swarm::local::{LocalPool, Running};
use benches::swarm::{self, Options, Report};
use clap::Parser;

/// Starts the pool beside this program and measures it.
#[derive(Debug, Parser)]
#[command(name = "load", version, about)]
struct Arguments {
    #[command(flatten)]
    local: LocalPool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { local, mut options }: Arguments) -> Result<bool> {
    options.check()?;
    let alone = if options.idle { Some(alone(&local, &options)?) } else { None };
    let pool = Running::start(&local, &options)?;
    options.pid = Some(pool.pid());
    let mut report = swarm::run(pool.address, &options)?;
    if let Some(alone) = &alone {
        report.judge_memory(alone);
    }
    if options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    if !report.is_clean() {
        eprintln!("the pool said last:\n{}", pool.last_words());
    }
    Ok(report.is_clean())
}

/// The same run with one connection: what a pool of that age holds however many there are.
fn alone(local: &LocalPool, options: &Options) -> Result<Report> {
    let mut options = Options { connections: 1, ..options.clone() };
    let pool = Running::start(local, &options)?;
    options.pid = Some(pool.pid());
    swarm::run(pool.address, &options)
}
