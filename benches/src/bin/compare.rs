//! Our paths beside SRI's crates: `cargo run --release -p benches --bin compare`. Prints a table, or one
//! JSON object with `--json`; exits with 1 when a goal is missed, with 2 when the sides disagree.
//!
//! `--quick` runs every path with few shares and judges no time: that verdicts are equal is all it says.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use benches::compare::allocations::Counting;
use benches::compare::cpu::Cpu;
use benches::compare::report::{Verdict, tables, to_json};
use benches::compare::{Effort, compare};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const USAGE: &str = "compare [--json] [--quick | --rounds N (9 to 99)]";

#[derive(Debug, Default)]
struct Options {
    json: bool,
    quick: bool,
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let options = options(std::env::args().skip(1))?;
    let cpu = Cpu::detect();
    let mut effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    effort.rounds = options.rounds.unwrap_or(effort.rounds);
    let rows = compare(effort, cpu)?;
    if options.quick {
        println!("{} paths: verdicts, hashes and bytes are equal; nothing was timed", rows.len());
        return Ok(ExitCode::SUCCESS);
    }
    if options.json {
        println!("{}", to_json(&rows, cpu, effort.rounds));
    } else {
        println!("CPU: {cpu}. CPU time of one thread, {} rounds in turn,", effort.rounds);
        println!("minimum / median of an operation; ratios and verdicts are of the medians.\n");
        print!("{}", tables(&rows, cpu));
    }
    let missed = rows.iter().filter(|row| row.verdict(cpu) == Verdict::Missed);
    let missed: Vec<&str> = missed.map(|row| row.path.as_str()).collect();
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("missed: {}", missed.join("; "));
    Ok(ExitCode::FAILURE)
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = true,
            "--quick" => options.quick = true,
            "--rounds" => {
                let rounds = arguments.next().context(USAGE)?.parse().context(USAGE)?;
                if !(9..=99).contains(&rounds) {
                    bail!(USAGE);
                }
                options.rounds = Some(rounds);
            }
            _ => bail!(USAGE),
        }
    }
    if options.quick && options.rounds.is_some() {
        bail!(USAGE);
    }
    Ok(options)
}
