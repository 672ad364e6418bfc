//! A node for tests: the embedded chain behind JSON-RPC and Template Distribution, on 127.0.0.1, and with
//! feature `ipc` behind Bitcoin Core's mining interface. All of it is `benches::dev_node`; here are the
//! arguments. Its first line on stdout says where everything is, each further line what happened, all as
//! JSON. A line on stdin makes a new tip; its end does not end the node.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::dev_node::{DevNode, DevNodeOptions, temporary_folder};
use clap::Parser;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Commands that wait.
const COMMANDS_MAX: usize = 64;

/// A development chain for pools and declarators under test.
#[derive(Debug, Parser)]
#[command(name = "dev_node", version, about)]
struct Arguments {
    /// Transactions in a template besides the coinbase; 2,048 to 4,095 make a merkle path of 12.
    #[arg(long, default_value_t = 32)]
    tx_count: usize,
    /// Expected hashes of a block: 1000000000000 is out of reach of any test.
    #[arg(long, default_value_t = 1 << 21)]
    block_hashes: u64,
    /// Seconds without a block after which a template changes.
    #[arg(long, default_value_t = 30)]
    refresh_s: u64,
    /// Throw away what clients of Template Distribution find: cuts the way of a block over the miner's node.
    #[arg(long)]
    drop_submit_solution: bool,
    /// Port of JSON-RPC [default: any]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    rpc_port: u16,
    /// Port of Template Distribution [default: any]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    template_port: u16,
    /// Folder of the cookie file [default: one that goes away with this program]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// UNIX socket of Bitcoin Core's mining interface [default: none]
    #[arg(long)]
    ipc_socket: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev_node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let own_folder = match &arguments.folder {
        Some(_) => None,
        None => Some(temporary_folder(None)?),
    };
    let folder = own_folder.as_ref().map(|folder| folder.path().to_owned());
    let options = DevNodeOptions {
        tx_count: arguments.tx_count,
        block_hashes: arguments.block_hashes,
        refresh: Duration::from_secs(arguments.refresh_s),
        drop_submit_solution: arguments.drop_submit_solution,
        rpc_port: arguments.rpc_port,
        template_port: arguments.template_port,
        folder: arguments.folder.or(folder).unwrap_or_default(),
        ipc_socket: arguments.ipc_socket,
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().context("a runtime")?;
    runtime.block_on(serve(&options))
}

async fn serve(options: &DevNodeOptions) -> Result<()> {
    let (node, mut events) = DevNode::start(options).await?;
    say(&node.to_json())?;
    let mut commands = commands()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            Some(event) = events.recv() => say(&event.to_json())?,
            Some(()) = commands.recv() => {
                if let Err(error) = node.tip().await {
                    say(&json!({ "event": "no-tip", "why": format!("{error:#}") }))?;
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to stdout")
}

/// One for each line on stdin.
fn commands() -> Result<mpsc::Receiver<()>> {
    let (send, commands) = mpsc::channel(COMMANDS_MAX);
    // A thread of its own: tokio cannot take back a read of stdin when the program is to end.
    let read = move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        for _ in lines {
            if send.blocking_send(()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".into()).spawn(read).context("a thread")?;
    Ok(commands)
}
