//! The pool: miners, shares, blocks, money. `main.rs` is the program; this library is what it is made
//! of, so that tests can start the same parts. `run` is the page to read first.

pub mod api;
pub mod block;
pub mod board;
pub mod checks;
pub mod cli;
pub mod config;
pub mod cpu_miner;
pub mod credit;
pub mod custom;
pub mod declarer;
pub mod demo;
pub mod handshakes;
mod hexed;
pub mod keys;
pub mod library;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod miner;
pub mod pace;
pub mod places;
pub mod run;
pub mod store;
pub mod templates;
pub mod tokens;
pub mod turns;
