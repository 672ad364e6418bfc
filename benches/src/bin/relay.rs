//! A relay before a pool of ours that leaves out messages, so that a test can cut one route of a found block.
//! All of it is `benches::relay`; here are the arguments. Its first line on stdout names its port, each
//! further line a message left out, as JSON.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use benches::relay::{Left, RelayOptions, serve};
use clap::Parser;
use proto::noise::Identity;
use serde_json::{Value, json};

/// Passes frames between a client and a pool, but for some.
#[derive(Debug, Parser)]
#[command(name = "relay", version, about)]
struct Arguments {
    /// The pool's port.
    #[arg(long, value_name = "HOST:PORT")]
    to: SocketAddr,
    /// The pool's identity file: who stands before it must show its keys.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Messages of the client that do not pass.
    #[arg(long = "leave-out", value_enum, value_name = "MESSAGE")]
    out: Vec<Left>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let text = std::fs::read_to_string(&arguments.identity).context("the identity file")?;
    let identity = Identity::from_text(&text).context("the identity file")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("a runtime")?.block_on(async {
        let options = RelayOptions { to: arguments.to, identity, out: arguments.out.clone() };
        let (address, mut told) = serve(options).await?;
        say(&json!({ "port": address.port() }))?;
        while let Some(left) = told.recv().await {
            say(&json!({ "event": "left-out", "message": left.name() }))?;
        }
        Ok(())
    })
}

fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to stdout")
}
