//! What the programs of this package share: the load generator behind `swarm` (any pool) and `load` (a pool
//! that it starts itself), what `compare` measures beside SRI's crates, a node and a relay for tests. Measures
//! others and is part of no product.

pub mod compare;
pub mod dev_node;
pub mod relay;
pub mod swarm;
