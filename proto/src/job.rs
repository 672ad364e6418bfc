//! Work for miners, immutable once built and shared by `Arc`: the coinbase around the extranonce, the
//! merkle path, and what is computed once so that a share costs little. Called by whoever makes work
//! (`pool/templates.rs`) and by `mining::server`, which gives it an id on each connection.
//!
//! A job knows nothing of connections, targets or tips: those freeze around it in a channel.

use std::sync::Arc;

use crate::extranonce::Extranonce;
use crate::limits::{FRAME_HEADER_LEN, JOB_PAYLOAD_UNKNOWN_DEVICE_MAX};
use crate::message::{FrameHeader, Message, NewExtendedMiningJob};
use crate::sha256::{CoinbaseFields, CoinbaseHasher, Kernel};
use crate::template::{
    CoinbaseError, CoinbaseParts, Output, PrevHash, Template, sha256d, write_compact_size,
};
use crate::wire::{B064K, Seq0255U256};

/// Names a job on one connection; counts up, never reused there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u32);

/// Work that any channel of the pool can do: the extranonce makes it the channel's own. A clone costs a
/// pointer and a number.
#[derive(Debug, Clone)]
pub struct Job {
    work: Arc<Work>,
    /// nSequence of the coinbase input.
    sequence: u32,
}

/// What all jobs of one template and payout share.
#[derive(Debug)]
struct Work {
    template: Arc<Template>,
    coinbase: CoinbaseParts,
    /// Where nSequence stands in the suffix; `None` where the coinbase is not ours to change.
    sequence_at: Option<usize>,
    /// All that can be hashed before an extranonce is known; its number is 0.
    hasher: CoinbaseHasher,
    /// What extended channels are sent.
    encoded: Encoded,
}

/// What everybody mines now: published to every connection at once, immutable.
#[derive(Debug, Clone)]
pub struct ActiveTemplate {
    /// The tip, and when hashing on it starts.
    pub tip: PrevHash,
    /// The block to be found on the tip.
    pub job: Job,
    /// The block to be found on that one: sent ahead without a tip, so that a new tip costs one small
    /// message. Its height is `job`'s plus one.
    pub next: Option<Job>,
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
    /// Work on `template` paying `outputs`, which must sum to the template's value. It can be
    /// numbered.
    pub fn new(
        template: Arc<Template>,
        outputs: &[Output],
        tag: &[u8],
    ) -> Result<Self, CoinbaseError> {
        let coinbase = template.coinbase(outputs, tag)?;
        Ok(Self::of(template, coinbase, Some(0)))
    }

    /// Work on a coinbase that exists already and stays as it is: a declared one, or a real block's in
    /// a test. At most `MERKLE_PATH_MAX` branches, parts of at most 65,535 bytes.
    #[must_use]
    pub fn from_parts(template: Arc<Template>, coinbase: CoinbaseParts) -> Self {
        Self::of(template, coinbase, None)
    }

    fn of(template: Arc<Template>, coinbase: CoinbaseParts, sequence_at: Option<usize>) -> Self {
        let path = &template.merkle_path;
        let hasher = CoinbaseHasher::new(&coinbase.prefix, &coinbase.suffix, path);
        let encoded = Encoded::new(&template, &coinbase);
        let sequence = template.coinbase_sequence;
        let work = Work { template, coinbase, sequence_at, hasher, encoded };
        Self { work: Arc::new(work), sequence }
    }

    /// The same work in a header space of its own: `number` becomes the coinbase's nSequence, which
    /// means nothing in a coinbase (0xffffffff, which BIP54 forbids, is not reached).
    ///
    /// No two jobs of a channel may share a header. A client that could name either of two for the same
    /// hash, or wait for the second, would pick the difficulty that pays most for what it already
    /// found. A coinbase that is not ours to change (a declared one) stays as it is.
    #[must_use]
    pub fn numbered(&self, number: JobId) -> Self {
        let sequence = match self.work.sequence_at {
            Some(_) => number.0 & 0x7fff_ffff,
            None => self.sequence,
        };
        Self { work: Arc::clone(&self.work), sequence }
    }

    /// Made of the same template and payout, whatever their numbers: the very same object, not equal
    /// content.
    #[must_use]
    pub fn is_work_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.work, &other.work)
    }

    /// What the job was made of.
    #[must_use]
    pub fn template(&self) -> &Arc<Template> {
        &self.work.template
    }

    /// Coinbase prefix and suffix, txid form.
    #[must_use]
    pub fn coinbase(&self) -> CoinbaseParts {
        let mut parts = self.work.coinbase.clone();
        if let Some(at) = self.work.sequence_at {
            parts.suffix[at..at + 4].copy_from_slice(&self.sequence.to_le_bytes());
        }
        parts
    }

    /// nSequence of the coinbase input: what tells the jobs of one template apart (`numbered`).
    #[must_use]
    pub fn coinbase_sequence(&self) -> u32 {
        self.sequence
    }

    /// Header version before rolling.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.work.template.version
    }

    /// Siblings of the coinbase, deepest first.
    #[must_use]
    pub fn merkle_path(&self) -> &[[u8; 32]] {
        &self.work.template.merkle_path
    }

    /// Payload of the NewExtendedMiningJob that says this job, with a min_ntime.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        // Channel, job and min_ntime come before what is encoded once.
        4 + 4 + 5 + self.work.encoded.tail.len()
    }

    /// Whether devices with the smallest buffers take the job. One that it does not fit leaves and
    /// comes back, for ever.
    #[must_use]
    pub fn fits_every_device(&self) -> bool {
        self.payload_len() <= JOB_PAYLOAD_UNKNOWN_DEVICE_MAX
    }

    /// What makes the coinbase one of this job's and its miner's.
    #[must_use]
    pub fn coinbase_fields(&self, extranonce: Extranonce) -> CoinbaseFields {
        let sequence = self.work.sequence_at.map(|_| self.sequence);
        CoinbaseFields { extranonce, sequence }
    }

    /// The header's merkle root with this full extranonce (header byte order).
    #[must_use]
    pub fn merkle_root(&self, extranonce: &Extranonce) -> [u8; 32] {
        let mut root = [[0; 32]];
        self.merkle_roots(&[self.coinbase_fields(*extranonce)], &mut root);
        root[0]
    }

    /// The merkle root over each coinbase, of any jobs of this work. Both slices are of one length.
    pub fn merkle_roots(&self, coinbases: &[CoinbaseFields], roots: &mut [[u8; 32]]) {
        self.work.hasher.roots(coinbases, roots);
    }

    /// Puts the merkle root over each coinbase, of any jobs of this work, into its header and hashes the
    /// header, by what `next` says of so many that are left: a kernel, and how many of them go with it. All
    /// slices are of one length.
    pub(crate) fn hash_shares(
        &self,
        next: impl Fn(usize) -> (Kernel, usize),
        coinbases: &[CoinbaseFields],
        headers: &mut [[u8; 80]],
        hashes: &mut [[u8; 32]],
    ) {
        self.work.hasher.shares_by(next, coinbases, headers, hashes);
    }

    /// The whole block as nodes take it: header, transaction count, coinbase with witness, the rest.
    /// `None` of a coinbase-only job, whose transactions its miner has alone.
    #[must_use]
    pub fn block(&self, header: &HeaderFields, extranonce: &Extranonce) -> Option<Vec<u8>> {
        let template = &self.work.template;
        let transactions = template.transactions.as_ref()?;
        let coinbase = self.coinbase().with_witness(extranonce, template.commits_to_witnesses);
        let body: usize = transactions.iter().map(|transaction| transaction.len()).sum();
        let mut block = Vec::with_capacity(80 + 9 + coinbase.len() + body);
        block.extend_from_slice(&header.to_bytes());
        write_compact_size(transactions.len() as u64 + 1, &mut block);
        block.extend_from_slice(&coinbase);
        for transaction in transactions.iter() {
            block.extend_from_slice(transaction);
        }
        Some(block)
    }

    /// Appends NewExtendedMiningJob to plaintext frames, for a channel or a group. It was encoded when
    /// the work was made; here it is given its ids, its start (none: a future job) and its number.
    pub fn say_extended(
        &self,
        channel: u32,
        id: JobId,
        min_ntime: Option<u32>,
        frames: &mut Vec<u8>,
    ) {
        let Work { encoded, coinbase, sequence_at, .. } = &*self.work;
        let ntime_len = min_ntime.map_or(0, |_| 4);
        let header = FrameHeader { length: 9 + ntime_len + encoded.tail.len(), ..encoded.header };
        frames.reserve(FRAME_HEADER_LEN + header.length);
        frames.extend_from_slice(&header.encode());
        frames.extend_from_slice(&channel.to_le_bytes());
        frames.extend_from_slice(&id.0.to_le_bytes());
        frames.push(u8::from(min_ntime.is_some()));
        if let Some(min_ntime) = min_ntime {
            frames.extend_from_slice(&min_ntime.to_le_bytes());
        }
        frames.extend_from_slice(&encoded.tail);
        // The suffix is the message's last field.
        if let Some(at) = sequence_at {
            let at = frames.len() - coinbase.suffix.len() + at;
            frames[at..at + 4].copy_from_slice(&self.sequence.to_le_bytes());
        }
    }
}

/// NewExtendedMiningJob without what differs from one channel to the next.
#[derive(Debug)]
struct Encoded {
    /// Its length is to be set.
    header: FrameHeader,
    /// From `version` to the end.
    tail: Vec<u8>,
}

impl Encoded {
    fn new(template: &Template, coinbase: &CoinbaseParts) -> Self {
        let mut frame = Vec::new();
        let message = Message::from(NewExtendedMiningJob {
            channel_id: 0,
            job_id: 0,
            min_ntime: None,
            version: template.version,
            version_rolling_allowed: true,
            merkle_path: Seq0255U256::new(&template.merkle_path)
                .expect("Template::coinbase refuses paths above MERKLE_PATH_MAX"),
            coinbase_tx_prefix: B064K::new(&coinbase.prefix)
                .expect("Template::coinbase bounds the prefix by SCRIPT_SIG_MAX"),
            coinbase_tx_suffix: B064K::new(&coinbase.suffix)
                .expect("Template::coinbase refuses a suffix above 65,535 bytes"),
        });
        message.encode(&mut frame);
        let (extension_type, msg_type) = message.kind();
        let header = FrameHeader { extension_type, msg_type, length: 0 };
        // Channel id, job id and the byte of an absent min_ntime come before `version`.
        Self { header, tail: frame.split_off(FRAME_HEADER_LEN + 9) }
    }
}
