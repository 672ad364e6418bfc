//! The mining server against the rules of Stratum V2 (spec chapter 5, numbered P1 to P65 in our notes;
//! each test's name ends in the rules it shows) and against what real devices put up with. Every frame
//! of every test also goes through `common::Client`, which fails at the first one that a device could
//! not live with.
//!
//! Not here: P10 (a connection that opens no channel is closed) and P52 (a found block reaches the
//! network) need a clock and a node of the pool; P3's other half, P11 at setup and P29's flag are
//! settled in SetupConnection. Whether a custom job pays the pool (P63) is judged in `job-declarator`.

// A test that meets the unexpected panics, also in its helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

#[path = "../common/mod.rs"]
mod common;

mod accounting;
mod channels;
mod custom;
mod devices;
mod jobs;
mod shares;
