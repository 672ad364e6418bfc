//! Templates and declared jobs: making them (the miner's program) and checking them (the pool), each with a node
//! of its own (`node`). Both programs also have from here what they need to be configured, to keep their keys
//! and to be run from a command line.

pub mod accept;
pub mod blocks;
pub mod clock;
pub mod command;
pub mod config;
pub mod credit;
pub mod declarator;
pub mod declared;
pub mod device;
pub mod door;
pub mod feed;
pub mod folder;
pub mod http;
pub mod keys;
pub mod limits;
mod link;
pub mod node;
pub mod rate;
mod report;
pub mod run;
pub mod settings;
pub mod status;
pub mod sv1;
pub mod upstream;
