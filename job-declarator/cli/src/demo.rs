//! `job-declarator demo`: a development chain, a pool, a declarator between them and a CPU miner, all in
//! this process, so that a person sees a declared job mined before he sets anything up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

/// What the command line says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// `None`: until a signal.
    pub time: Option<Duration>,
    /// One JSON object on stdout at the end, nothing else there.
    pub json: bool,
    /// Where Stratum V2 devices connect.
    pub sv2: SocketAddr,
    /// Where Stratum V1 devices connect.
    pub sv1: SocketAddr,
    /// The status page; port 0 takes a free one, so that a demo starts beside whatever else runs here.
    pub http: SocketAddr,
    /// `None`: a temporary folder that goes with the demo.
    pub data_dir: Option<PathBuf>,
    /// Start the CPU miner.
    pub miner: bool,
}

/// Runs it until its time is over or a signal comes.
///
/// # Errors
/// It did not show what it should.
pub async fn run(options: DemoOptions) -> anyhow::Result<()> {
    bail!("not there yet: nothing would serve devices on {}", options.sv2)
}
