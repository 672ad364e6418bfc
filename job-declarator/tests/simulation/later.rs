//! What a pool does in its own time.

use proto::mining::{Committed, CustomJobRequest};

#[derive(Debug)]
pub enum Later {
    /// Shares are on its disk.
    Commit(u64, Committed),
    /// A custom job is judged.
    Verdict(u64, Box<CustomJobRequest>),
}
