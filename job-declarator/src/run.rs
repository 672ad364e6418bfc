//! The declarator as a whole: what is started in which order, who owns what, and how it stops. Called by
//! the command line with a configuration that was checked.

use anyhow::bail;

use crate::config::Config;

/// Runs until a signal.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let address = config.devices.sv2_address;
    bail!("not there yet: nothing would serve devices on {address}")
}
