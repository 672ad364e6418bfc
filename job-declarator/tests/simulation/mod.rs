//! The house and its pools under virtual time, for `simulation.rs`.

pub mod calm;
pub mod chain;
pub mod house;
pub mod later;
pub mod pool;
pub mod world;
