//! The pool: miners, shares, blocks, money. `main.rs` is the program; this library is what it is made
//! of, so that tests can start the same parts. `run` is the page to read first.

pub mod board;
pub mod config;
pub mod credit;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod store;
