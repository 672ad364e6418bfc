//! Work for miners, immutable once built and shared by `Arc`: the coinbase around the extranonce, the
//! merkle path, and what is computed once so that a share costs little. Called by whoever makes work
//! (a pool's templates, a house's declarator) and by `mining::server`, which gives it an id on each
//! connection.
//!
//! A job knows nothing of connections, targets or tips: those freeze around it in a channel.

use std::sync::Arc;

use crate::extranonce::{Extranonce, ExtranoncePrefix, Layout};
use crate::limits::{
    COINBASE_SCRIPT_SIG_AT, FRAME_HEADER_LEN, HOUSE_LEAD_LEN, HOUSE_NUMBER_LEN, HOUSE_PREFIX_LEN,
    HOUSE_ROLLABLE_LEN, JOB_PAYLOAD_UNKNOWN_DEVICE_MAX, MERKLE_PATH_MAX, SCRIPT_SIG_MAX,
};
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
    /// What stands where `Work::number_at` says.
    number: u32,
}

/// What all jobs of one template and payout share.
#[derive(Debug)]
struct Work {
    template: Arc<Template>,
    /// Around the full extranonce.
    coinbase: CoinbaseParts,
    number_at: NumberAt,
    /// All that can be hashed before an extranonce is known; its number is 0.
    hasher: CoinbaseHasher,
    /// What extended channels are sent.
    encoded: Encoded,
}

/// Where a coinbase is ours to change, so that the jobs of one work differ.
#[derive(Debug, Clone, Copy)]
enum NumberAt {
    /// Nowhere.
    Nothing,
    /// nSequence, which the suffix starts with.
    Sequence,
    /// The end of a house's lead, behind these bytes of it.
    Lead([u8; HOUSE_LEAD_LEN - HOUSE_NUMBER_LEN]),
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
        let (encoded, sequence) = (Encoded::new(&template, &coinbase), template.coinbase_sequence);
        Ok(Self::of(template, coinbase, encoded, NumberAt::Sequence, sequence))
    }

    /// Work on a coinbase that exists already and stays as it is: a declared one, or a real block's in
    /// a test. At most `MERKLE_PATH_MAX` branches, parts of at most 65,535 bytes.
    #[must_use]
    pub fn from_parts(template: Arc<Template>, coinbase: CoinbaseParts) -> Self {
        let encoded = Encoded::new(&template, &coinbase);
        Self::of(template, coinbase, encoded, NumberAt::Nothing, 0)
    }

    /// Work for the devices in a house (`ExtranonceAllocator::for_house`) on a coinbase that a pool takes.
    /// Between prefix and suffix belong a device's number and what it rolls, 12 bytes; the prefix has all
    /// that comes before, also the pool's own extranonce_prefix and what of the extranonce is left unused.
    /// Its last 4 bytes are the job's number, whatever they are here: to the pool it is rolled like the
    /// device's 12, and of a declared coinbase nothing else is ours to change.
    ///
    /// Credit tells jobs apart by their template's id. Jobs of two pools on one template need two ids.
    ///
    /// # Errors
    /// The number would not stand in scriptSig, the whole is longer than consensus, a job message or
    /// devices take.
    pub fn for_house(
        template: Arc<Template>,
        coinbase: CoinbaseParts,
    ) -> Result<Self, CoinbaseError> {
        let CoinbaseParts { mut prefix, suffix } = coinbase;
        let before_number = prefix.len().saturating_sub(HOUSE_NUMBER_LEN);
        if before_number < COINBASE_SCRIPT_SIG_AT {
            return Err(CoinbaseError::NoLead(prefix.len()));
        }
        let script_sig =
            prefix.len() - COINBASE_SCRIPT_SIG_AT + HOUSE_PREFIX_LEN + HOUSE_ROLLABLE_LEN;
        if script_sig > SCRIPT_SIG_MAX {
            return Err(CoinbaseError::ScriptSig(script_sig));
        }
        if suffix.len() > 65_535 {
            return Err(CoinbaseError::TooLong(suffix.len()));
        }
        if template.merkle_path.len() > MERKLE_PATH_MAX {
            return Err(CoinbaseError::MerklePath(template.merkle_path.len()));
        }
        // Devices are sent the lead with the prefix; all else here has it in the full extranonce.
        let sent = CoinbaseParts { prefix: prefix.clone(), suffix: suffix.clone() };
        let encoded = Encoded::new(&template, &sent);
        let mut lead = [0; HOUSE_LEAD_LEN - HOUSE_NUMBER_LEN];
        let lead_at = prefix.len() - HOUSE_LEAD_LEN;
        lead.copy_from_slice(&prefix[lead_at..before_number]);
        prefix.truncate(lead_at);
        let coinbase = CoinbaseParts { prefix, suffix };
        Ok(Self::of(template, coinbase, encoded, NumberAt::Lead(lead), 0))
    }

    fn of(
        template: Arc<Template>,
        coinbase: CoinbaseParts,
        encoded: Encoded,
        number_at: NumberAt,
        number: u32,
    ) -> Self {
        let path = &template.merkle_path;
        let hasher = CoinbaseHasher::new(&coinbase.prefix, &coinbase.suffix, path);
        let work = Work { template, coinbase, number_at, hasher, encoded };
        Self { work: Arc::new(work), number }
    }

    /// The same work in a header space of its own: `number` becomes the coinbase's nSequence, which
    /// means nothing in a coinbase (0xffffffff, which BIP54 forbids, is not reached), or in a house the
    /// end of the job's lead.
    ///
    /// No two jobs of a channel may share a header. A client that could name either of two for the same
    /// hash, or wait for the second, would pick the difficulty that pays most for what it already
    /// found. A coinbase that is not ours to change (a declared one at the pool) stays as it is.
    #[must_use]
    pub fn numbered(&self, number: JobId) -> Self {
        let number = match self.work.number_at {
            NumberAt::Nothing => self.number,
            NumberAt::Sequence => number.0 & 0x7fff_ffff,
            NumberAt::Lead(_) => number.0,
        };
        Self { work: Arc::clone(&self.work), number }
    }

    /// Whose channels it is for.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self.work.number_at {
            NumberAt::Nothing | NumberAt::Sequence => Layout::Pool,
            NumberAt::Lead(_) => Layout::House,
        }
    }

    /// The full extranonce of an extended channel that rolled `rolled`. `None` if that has not the length
    /// that was granted, or if the channel is of the other layout, which would be our mistake.
    #[must_use]
    #[inline]
    pub fn extranonce(&self, prefix: &ExtranoncePrefix, rolled: &[u8]) -> Option<Extranonce> {
        self.led(prefix, prefix.followed_by(rolled)?)
    }

    /// The full extranonce of a standard channel. `None` if it is of the other layout.
    #[must_use]
    #[inline]
    pub fn standard_extranonce(&self, prefix: &ExtranoncePrefix) -> Option<Extranonce> {
        self.led(prefix, prefix.standard())
    }

    /// A channel's extranonce with what of it is the job's.
    #[inline]
    fn led(&self, prefix: &ExtranoncePrefix, mut full: Extranonce) -> Option<Extranonce> {
        match (prefix, &self.work.number_at) {
            (ExtranoncePrefix::Pool(_), NumberAt::Nothing | NumberAt::Sequence) => Some(full),
            (ExtranoncePrefix::House(_), NumberAt::Lead(lead)) => {
                full[..lead.len()].copy_from_slice(lead);
                full[lead.len()..HOUSE_LEAD_LEN].copy_from_slice(&self.number.to_be_bytes());
                Some(full)
            }
            (ExtranoncePrefix::Pool(_), NumberAt::Lead(_))
            | (ExtranoncePrefix::House(_), NumberAt::Nothing | NumberAt::Sequence) => None,
        }
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

    /// Coinbase prefix and suffix, txid form, around the full extranonce. In a house the prefix ends
    /// before the job's lead, which is the extranonce's first half.
    #[must_use]
    pub fn coinbase(&self) -> CoinbaseParts {
        let mut parts = self.work.coinbase.clone();
        if let NumberAt::Sequence = self.work.number_at {
            parts.suffix[..4].copy_from_slice(&self.number.to_le_bytes());
        }
        parts
    }

    /// nSequence of the coinbase input: what tells the pool's jobs of one template apart (`numbered`). A
    /// house's jobs have one in common, and their number in each proof's extranonce.
    #[must_use]
    pub fn coinbase_sequence(&self) -> u32 {
        match self.work.number_at {
            NumberAt::Sequence => self.number,
            NumberAt::Nothing | NumberAt::Lead(_) => self.work.template.coinbase_sequence,
        }
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
        let sequence = match self.work.number_at {
            NumberAt::Sequence => Some(self.number),
            NumberAt::Nothing | NumberAt::Lead(_) => None,
        };
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
        let Work { encoded, coinbase, number_at, .. } = &*self.work;
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
        // The suffix is the message's last field; before it come its length and the prefix.
        let suffix_at = frames.len() - coinbase.suffix.len();
        let (number_at, number) = match number_at {
            NumberAt::Nothing => return,
            NumberAt::Sequence => (suffix_at, self.number.to_le_bytes()),
            NumberAt::Lead(_) => (suffix_at - 2 - HOUSE_NUMBER_LEN, self.number.to_be_bytes()),
        };
        frames[number_at..][..number.len()].copy_from_slice(&number);
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
                .expect("whoever makes a job refuses paths above MERKLE_PATH_MAX"),
            coinbase_tx_prefix: B064K::new(&coinbase.prefix)
                .expect("whoever makes a job bounds the prefix by SCRIPT_SIG_MAX"),
            coinbase_tx_suffix: B064K::new(&coinbase.suffix)
                .expect("whoever makes a job refuses a suffix above 65,535 bytes"),
        });
        message.encode(&mut frame);
        let (extension_type, msg_type) = message.kind();
        let header = FrameHeader { extension_type, msg_type, length: 0 };
        // Channel id, job id and the byte of an absent min_ntime come before `version`.
        Self { header, tail: frame.split_off(FRAME_HEADER_LEN + 9) }
    }
}
