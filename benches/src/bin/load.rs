//! The swarm against a pool that it starts itself: the embedded chain, SQLite on disk, the difficulty pinned.
//! What BENCHMARKS.md names. Exit code 0 clean, 1 something was wrong, 2 usage.

use std::process::ExitCode;

use anyhow::Result;
use benches::swarm::local::{LocalPool, Running};
use benches::swarm::{self, Options};
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
    let pool = Running::start(&local, &options)?;
    options.pid = Some(pool.pid());
    let report = swarm::run(pool.address, &options)?;
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
