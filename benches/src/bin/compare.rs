//! Our paths beside SRI's: `cargo run --release -p benches --bin compare`. Prints a table, or one JSON object
//! with `--json`; exits with 1 when a goal is missed, with 2 when the sides disagree or nothing could be
//! measured.
//!
//! By itself it runs our code and SRI's crates in this process; `--quick` runs every path with few shares
//! and judges no time: that verdicts are equal is all it says. With `--pool` it runs the two whole pools,
//! each in a process of its own (`scripts/sri-pool` builds theirs).

use std::process::ExitCode;

use anyhow::{Result, ensure};
use benches::compare::allocations::Counting;
use benches::compare::cpu::Cpu;
use benches::compare::pool::{self, PoolOptions};
use benches::compare::report::{Row, Verdict, tables, to_json};
use benches::compare::{Effort, compare};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Our paths beside SRI's.
#[derive(Debug, Parser)]
#[command(name = "compare", version, about)]
struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Few shares, no times: only whether the sides agree.
    #[arg(long, conflicts_with_all = ["rounds", "pool"])]
    quick: bool,
    /// Rounds: 9 to 99, by itself 11; with --pool 1 to 99, by itself 5.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Whole pools, ours and SRI's.
    #[arg(long)]
    pool: bool,
    #[command(flatten)]
    pools: PoolOptions,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cpu = Cpu::detect();
    let (rows, rounds) = if arguments.pool {
        let rounds = arguments.rounds.unwrap_or(pool::ROUNDS);
        (pool::compare(rounds, &arguments.pools)?, rounds)
    } else {
        let mut effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
        ensure!(
            arguments.rounds.is_none_or(|rounds| (9..=99).contains(&rounds)),
            "--rounds must be from 9 to 99"
        );
        effort.rounds = arguments.rounds.unwrap_or(effort.rounds);
        (compare(effort, cpu)?, effort.rounds)
    };
    if arguments.quick {
        println!("{} paths: verdicts, hashes and bytes are equal; nothing was timed", rows.len());
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.json {
        println!("{}", to_json(&rows, cpu, rounds));
    } else {
        println!("{}", introduction(arguments.pool, cpu, rounds));
        print!("{}", tables(&rows, cpu));
    }
    Ok(judged(&rows, cpu))
}

/// What the figures of the table are.
fn introduction(pools: bool, cpu: Cpu, rounds: usize) -> String {
    let what = if pools {
        "Two pool processes, the same swarm, in turn. Ours keeps every share in SQLite before it \
         acknowledges it;\nSRI's stores nothing."
    } else {
        "CPU time of one thread, minimum / median of an operation."
    };
    format!(
        "CPU: {cpu}. {rounds} rounds in turn. {what}\nRatios and verdicts are of the medians.\n"
    )
}

fn judged(rows: &[Row], cpu: Cpu) -> ExitCode {
    let missed = rows.iter().filter(|row| row.verdict(cpu) == Verdict::Missed);
    let missed: Vec<&str> = missed.map(|row| row.path.as_str()).collect();
    if missed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("missed: {}", missed.join("; "));
    ExitCode::FAILURE
}
