//! The command line of the job declarator. A package of its own because its demo runs a pool in the same
//! process, and the library may not depend on the pool.

pub mod cli;
#[cfg(feature = "demo")]
pub mod demo;
