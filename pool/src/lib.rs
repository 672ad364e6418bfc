//! pool

pub mod limits;
pub mod store;
