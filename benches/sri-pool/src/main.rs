//! SRI's pool as a process of its own for `compare --pool`: the library `pool_sv2`, unchanged, with a
//! configuration file in its own format. No log subscriber is installed, so that nothing is formatted or
//! written for a share: the fastest way that it runs.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("sri_pool CONFIG.toml");
        return ExitCode::from(2);
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("sri_pool: {path}: {error}");
            return ExitCode::from(2);
        }
    };
    let config = match toml::from_str(&text) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("sri_pool: {path}: {error}");
            return ExitCode::from(2);
        }
    };
    match pool_sv2::PoolSv2::new(config).start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sri_pool: {error}");
            ExitCode::FAILURE
        }
    }
}
