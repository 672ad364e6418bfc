//! Templates and declared jobs: making them (the miner's program, `declarator`) and checking them (`declared`,
//! which the pool uses), each with a node of its own (`node`).

pub mod clock;
pub mod declared;
pub mod limits;
pub mod node;
pub mod rate;
pub mod sv1;
