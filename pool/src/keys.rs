//! The pool's keys: what `job_declarator::keys` does with the pool's names for things. Called by `cli.rs`
//! (`pool keys ...`) and by `run.rs`, which hands the watched identity to `listener.rs`.

use std::path::Path;
use std::sync::Arc;

use job_declarator::keys::Words;
pub use job_declarator::keys::{
    IdentityWatch, KeyFiles, KeysError, make_identity, read_authority, read_identity,
    replace_identity, unix_now, utc_date,
};
use proto::noise::{AuthoritySecretKey, Identity};

use crate::metrics::Metrics;

/// How the texts about keys speak of this program.
pub const WORDS: Words = Words {
    program: "pool",
    clients: "Miners",
    remedy: "make a new one with `pool keys certificate`",
};

/// Makes an authority key in a new file, mode 0600.
///
/// # Errors
/// `AlreadyThere`, or the file cannot be written.
pub fn make_authority(path: &Path) -> Result<AuthoritySecretKey, KeysError> {
    job_declarator::keys::make_authority(path, WORDS)
}

/// Watches from `identity` on, and keeps the metrics told of what the certificate has left.
#[must_use]
pub fn watch(files: KeyFiles, identity: Identity, metrics: Arc<Metrics>) -> IdentityWatch {
    IdentityWatch::new(files, identity, move |seconds| metrics.certificate_has_left(seconds))
}
