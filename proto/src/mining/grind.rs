//! Hashing on a CPU, for the demo's miner, test clients and tests: a slice of the nonces of one header at a
//! time, so that the caller can look up for new work in between. Never meant to earn anything.

use sha2::{Digest, Sha256};

use crate::mining::client::{Found, Work};
use crate::target::Target;
use crate::wire::B032;

/// One header of some work, and how far its nonces are tried.
#[derive(Debug, Clone)]
pub struct Grinder {
    /// SHA-256 having taken the first 64 bytes, which no nonce changes.
    midstate: Sha256,
    /// End of the merkle root, time and bits: what follows before the nonce.
    tail: [u8; 12],
    found: Found,
    target: Target,
    next: u64,
    end: u64,
}

impl Grinder {
    /// The header of `work` with these rolled bytes, time and version, and the nonces from `nonces.0` up to and
    /// without `nonces.1` (2^32 for all of them). What it finds meets the work's target or the network's.
    #[must_use]
    pub fn new(
        work: &Work,
        extranonce: B032,
        ntime: u32,
        version: u32,
        nonces: (u64, u64),
    ) -> Self {
        let mut header = work.header(extranonce.as_slice());
        header.ntime = ntime;
        header.version = version;
        let bytes = header.to_bytes();
        let mut tail = [0; 12];
        tail.copy_from_slice(&bytes[64..76]);
        Self {
            midstate: Sha256::new().chain_update(&bytes[..64]),
            tail,
            found: Found { nonce: 0, ntime, version, extranonce },
            target: work.target.max(work.network_target()),
            next: nonces.0,
            end: nonces.1.min(1 << 32),
        }
    }

    /// Tries up to `count` nonces; stops at the first hit, and goes on behind it when called again.
    pub fn run(&mut self, count: u64) -> Option<Found> {
        let stop = self.next.saturating_add(count).min(self.end);
        while self.next < stop {
            let nonce = self.next as u32;
            self.next += 1;
            let first = self.midstate.clone().chain_update(self.tail);
            let first = first.chain_update(nonce.to_le_bytes()).finalize();
            if self.target.is_met_by(&Sha256::digest(first).into()) {
                return Some(Found { nonce, ..self.found });
            }
        }
        None
    }

    /// Nonces tried and to be tried no more.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Every nonce is tried: the header needs another extranonce, time or version.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.next >= self.end
    }
}
