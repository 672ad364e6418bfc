//! The program `pool`. Everything is in the library; here stands only what its commands start.

use std::process::ExitCode;

use pool::cli::{self, Starter};
use pool::{demo, run};

fn main() -> ExitCode {
    cli::main(Starter {
        run: |config| Box::pin(run::run(config)),
        demo: |options| Box::pin(demo::run(options)),
    })
}
