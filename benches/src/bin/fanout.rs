//! What a new tip costs a pool for each of its connections, beside a raw loop of sealing and sending. All of it
//! is `benches::swarm::fanout`; here are the arguments and the exit code (0 met, 1 missed or failed, 2
//! usage).

use std::process::ExitCode;

use anyhow::Result;
use benches::swarm::fanout::{self, FanoutOptions};
use benches::swarm::local::LocalPool;
use clap::Parser;

/// Starts pools beside this program and measures a fan-out.
#[derive(Debug, Parser)]
#[command(name = "fanout", version, about)]
struct Arguments {
    /// The pool's binary [default: "pool" beside this one]
    #[arg(long, value_name = "FILE")]
    pool: Option<std::path::PathBuf>,
    #[command(flatten)]
    options: FanoutOptions,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fanout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { pool, options }: &Arguments) -> Result<bool> {
    let local = LocalPool::of(pool.clone(), options.transactions);
    let report = fanout::run(&local, options)?;
    if options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(report.is_met())
}
