//! THE HOT PATH: is this share good, is it a block. Called by `mining::server` for every share and by
//! nothing else. No allocation, no lock, no log, no clone of a job.
//!
//! A share is judged by the job it names, frozen as it was sent: its target, its tip, its extranonce
//! prefix. What the channel's target is now does not matter here.

use crate::limits::EXTRANONCE_ROLLABLE_LEN;
use crate::target::Difficulty;

/// What is kept of a credited share for ever: 64 bytes from which, with its batch's job, anyone can
/// recompute the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Header hash, header byte order.
    pub hash: [u8; 32],
    /// As submitted.
    pub nonce: u32,
    /// As submitted.
    pub ntime: u32,
    /// As submitted: the full header version.
    pub version: u32,
    /// What the client rolled; zeros on a standard channel.
    pub rolled: [u8; EXTRANONCE_ROLLABLE_LEN],
    /// Difficulty of the job's target: what the share is worth.
    pub difficulty: Difficulty,
    /// The header also met the network's target.
    pub is_block: bool,
}

impl Proof {
    /// Bytes of a packed proof.
    pub const LEN: usize = 64;

    /// hash 32, nonce 4, ntime 4, version 4 (each little-endian), rolled 16, log2 of the difficulty as
    /// I16, flags U16 (bit 0: block).
    #[must_use]
    pub fn pack(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..32].copy_from_slice(&self.hash);
        bytes[32..36].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.ntime.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.version.to_le_bytes());
        bytes[44..60].copy_from_slice(&self.rolled);
        bytes[60..62].copy_from_slice(&self.difficulty.log2().to_le_bytes());
        bytes[62..64].copy_from_slice(&u16::from(self.is_block).to_le_bytes());
        bytes
    }

    /// The inverse of `pack`.
    #[must_use]
    pub fn unpack(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[0..32]);
        let mut rolled = [0; EXTRANONCE_ROLLABLE_LEN];
        rolled.copy_from_slice(&bytes[44..60]);
        Self {
            hash,
            nonce: word(32),
            ntime: word(36),
            version: word(40),
            rolled,
            difficulty: Difficulty::from_log2(i16::from_le_bytes([bytes[60], bytes[61]])),
            is_block: bytes[62] & 1 == 1,
        }
    }
}
