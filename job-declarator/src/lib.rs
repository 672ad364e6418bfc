//! Templates and declared jobs: making them (the miner's daemon) and checking them (the pool). For now
//! the node side and the check of declared jobs, which the pool uses; the declarator itself is a later
//! piece of work.

pub mod declared;
pub mod limits;
pub mod node;
