//! pool

pub mod credit;
pub mod limits;
pub mod store;
