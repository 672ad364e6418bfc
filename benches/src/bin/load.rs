//! The swarm against a pool that it starts itself: the embedded chain, SQLite on disk, the difficulty pinned; or
//! against a declarator with such a pool above it, both on one development node. What BENCHMARKS.md names. Exit code 0 clean, 1 something was wrong or a goal was missed, 2 usage.

use std::process::ExitCode;

use anyhow::Result;
use benches::swarm::declarers::DeclarerOptions;
use benches::swarm::house::{House, HouseOptions};
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
    #[command(flatten)]
    declarers: DeclarerOptions,
    #[command(flatten)]
    house: HouseOptions,
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

fn run(Arguments { local, mut options, declarers, house }: Arguments) -> Result<bool> {
    options.check()?;
    declarers.check(&options)?;
    house.check(&options, &declarers)?;
    if house.declarator {
        return run_house(&house, &local, options);
    }
    let alone = if options.idle { Some(alone(&local, &options)?) } else { None };
    let pool = Running::start_declaring(&local, &options, &declarers)?;
    options.pid = Some(pool.pid());
    let declaring = pool.declaring(&local, &options, declarers);
    let mut report = swarm::run_declaring(pool.address, &options, declaring)?;
    if let Some(alone) = &alone {
        report.judge_memory(alone);
    }
    show(&report, &options);
    if !report.is_clean() {
        eprintln!("the pool said last:\n{}", pool.last_words());
    }
    Ok(report.is_clean() && report.meets_goals())
}

/// The connections are devices of a declarator.
fn run_house(house: &HouseOptions, local: &LocalPool, mut options: Options) -> Result<bool> {
    let house = House::start(house, local, &options)?;
    options.pid = Some(house.pid());
    options.measured = "declarator";
    let mut report = swarm::run_with_tips(house.address(), &options, Some(house.tips()))?;
    house.judge(&options, &mut report)?;
    show(&report, &options);
    if !report.is_clean() {
        eprintln!("{}", house.last_words());
    }
    Ok(report.is_clean())
}

fn show(report: &Report, options: &Options) {
    if options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
}

/// The same run with one connection: what a pool of that age holds however many there are.
fn alone(local: &LocalPool, options: &Options) -> Result<Report> {
    let mut options = Options { connections: 1, ..options.clone() };
    let pool = Running::start(local, &options)?;
    options.pid = Some(pool.pid());
    swarm::run(pool.address, &options)
}
