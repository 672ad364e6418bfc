//! Stratum V2 as state machines. No socket, no clock, no source of randomness, no database: time,
//! randomness and keys are arguments, so a test can replay anything. Feature `net` adds the one file
//! that drives a `Connection` over tokio.
//!
//! Layers, each may use only what stands to its left (checked by `tests/layers.rs`):
//! `limits wire | message | noise connection | target extranonce sha256 template job |
//! share vardiff token | mining declare | net`.

pub mod connection;
pub mod declare;
pub mod extranonce;
pub mod job;
pub mod limits;
pub mod message;
pub mod mining;
#[cfg(feature = "net")]
pub mod net;
pub mod noise;
pub mod sha256;
pub mod share;
pub mod target;
pub mod template;
pub mod token;
pub mod vardiff;
pub mod wire;
