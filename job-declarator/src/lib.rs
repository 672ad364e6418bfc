//! Templates and declared jobs: making them (the miner's daemon) and checking them (the pool). For now
//! the node side, which the pool uses; the declarator itself is a later piece of work.

pub mod limits;
pub mod node;
