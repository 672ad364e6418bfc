//! Work for miners, immutable once built and shared by `Arc`: the coinbase around the extranonce, the
//! merkle path, and what is computed once so that a share costs little. Called by whoever makes work
//! (`pool/templates.rs`) and by `mining::server`, which gives it an id on each connection.
//!
//! A job knows nothing of connections, targets or tips: those freeze around it in a channel.

use sha2::{Digest, Sha256};
use std::sync::Arc;

use crate::extranonce::Extranonce;
use crate::template::{
    CoinbaseError, CoinbaseParts, Output, PrevHash, Template, merkle_root, sha256d,
    write_compact_size,
};

/// Names a job on one connection; counts up, never reused there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u32);

/// Work that any channel of the pool can do: the extranonce makes it the channel's own.
#[derive(Debug)]
pub struct Job {
    template: Arc<Template>,
    coinbase: CoinbaseParts,
    /// SHA-256 having taken the coinbase prefix: each share starts from a copy.
    prefix_state: Sha256,
}

/// What everybody mines now: published to every connection at once, immutable.
#[derive(Debug, Clone)]
pub struct ActiveTemplate {
    /// The tip, and when hashing on it starts.
    pub tip: PrevHash,
    /// The block to be found on the tip.
    pub job: Arc<Job>,
    /// The block to be found on that one: sent ahead without a tip, so that a new tip costs one small
    /// message. Its height is `job`'s plus one.
    pub next: Option<Arc<Job>>,
}

/// The fields of a block header (80 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFields {
    /// Full header version.
    pub version: u32,
    /// Hash of the block before, header byte order.
    pub prev_hash: [u8; 32],
    /// Header byte order.
    pub merkle_root: [u8; 32],
    /// Unix seconds.
    pub ntime: u32,
    /// Compact target.
    pub nbits: u32,
    /// Nonce.
    pub nonce: u32,
}

impl HeaderFields {
    /// The 80 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 80] {
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&self.version.to_le_bytes());
        header[4..36].copy_from_slice(&self.prev_hash);
        header[36..68].copy_from_slice(&self.merkle_root);
        header[68..72].copy_from_slice(&self.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&self.nonce.to_le_bytes());
        header
    }

    /// SHA256d of the 80 bytes, header byte order.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256d(&self.to_bytes())
    }
}

impl Job {
    /// Work on `template` paying `outputs`, which must sum to the template's value.
    pub fn new(
        template: Arc<Template>,
        outputs: &[Output],
        tag: &[u8],
    ) -> Result<Self, CoinbaseError> {
        let coinbase = template.coinbase(outputs, tag)?;
        Ok(Self::from_parts(template, coinbase))
    }

    /// Work on a coinbase that exists already: a declared one, or a real block's in a test.
    #[must_use]
    pub fn from_parts(template: Arc<Template>, coinbase: CoinbaseParts) -> Self {
        let prefix_state = Sha256::new().chain_update(&coinbase.prefix);
        Self { template, coinbase, prefix_state }
    }

    /// The same work in a header space of its own: `number` becomes the coinbase's nSequence, which
    /// means nothing in a coinbase (0xffffffff, which BIP54 forbids, is not reached).
    ///
    /// No two jobs of a channel may share a header. A client that could name either of two for the same
    /// hash, or wait for the second, would pick the difficulty that pays most for what it already
    /// found. A coinbase that is not ours to change (a declared one) stays as it is.
    #[must_use]
    pub fn numbered(self: &Arc<Self>, number: JobId) -> Arc<Self> {
        match self.coinbase.with_sequence(number.0 & 0x7fff_ffff) {
            Some(coinbase) => Arc::new(Self::from_parts(Arc::clone(&self.template), coinbase)),
            None => Arc::clone(self),
        }
    }

    /// What the job was made of.
    #[must_use]
    pub fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// Coinbase prefix and suffix, txid form.
    #[must_use]
    pub fn coinbase(&self) -> &CoinbaseParts {
        &self.coinbase
    }

    /// nSequence of the coinbase input: what tells the jobs of one template apart (`numbered`).
    #[must_use]
    pub fn coinbase_sequence(&self) -> u32 {
        self.coinbase.suffix.first_chunk().map_or(0, |le| u32::from_le_bytes(*le))
    }

    /// Header version before rolling.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.template.version
    }

    /// Siblings of the coinbase, deepest first.
    #[must_use]
    pub fn merkle_path(&self) -> &[[u8; 32]] {
        &self.template.merkle_path
    }

    /// The coinbase's txid with this full extranonce (header byte order).
    #[must_use]
    pub fn coinbase_txid(&self, extranonce: &Extranonce) -> [u8; 32] {
        let mut state = self.prefix_state.clone();
        state.update(extranonce.as_slice());
        state.update(&self.coinbase.suffix);
        Sha256::digest(state.finalize()).into()
    }

    /// The header's merkle root with this full extranonce (header byte order).
    #[must_use]
    pub fn merkle_root(&self, extranonce: &Extranonce) -> [u8; 32] {
        merkle_root(self.coinbase_txid(extranonce), self.merkle_path())
    }

    /// The whole block as nodes take it: header, transaction count, coinbase with witness, the rest.
    #[must_use]
    pub fn block(&self, header: &HeaderFields, extranonce: &Extranonce) -> Vec<u8> {
        let coinbase =
            self.coinbase.with_witness(extranonce.as_slice(), self.template.commits_to_witnesses);
        let transactions = &self.template.transactions;
        let body: usize = transactions.iter().map(Vec::len).sum();
        let mut block = Vec::with_capacity(80 + 9 + coinbase.len() + body);
        block.extend_from_slice(&header.to_bytes());
        write_compact_size(transactions.len() as u64 + 1, &mut block);
        block.extend_from_slice(&coinbase);
        for transaction in transactions.iter() {
            block.extend_from_slice(transaction);
        }
        block
    }
}
