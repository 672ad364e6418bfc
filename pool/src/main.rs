//! The program `pool`. Everything is in the library; here stands only what its commands start.

use std::process::ExitCode;

use pool::cli::{self, Starter};
use pool::{demo, run};

/// The system's keeps what thousands of connections once needed; this one gives it back when they go.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main(Starter {
        run: |config| Box::pin(run::run(config)),
        demo: |options| Box::pin(demo::run(options)),
    })
}
