//! The program `job-declarator`. Everything is in the libraries.

use std::process::ExitCode;

fn main() -> ExitCode {
    job_declarator_cli::cli::main()
}
