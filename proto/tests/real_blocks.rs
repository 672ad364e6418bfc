//! Two blocks that others mined, mined again: from each the job that its miner must have had, his nonce
//! as a share, and a block comes out. One bit flipped anywhere, and none does.
//!
//! `data/` holds the testnet block as it is and the mainnet one reduced to what a miner sees: header,
//! coinbase, txids (`a_raw_block_is_reduced` makes that of any raw block).

// A test that meets the unexpected panics, also in its helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

mod common;

use std::sync::Arc;

use bitcoin::consensus::{deserialize, deserialize_partial, serialize};
use bitcoin::hashes::Hash;

use common::{Link, Share, hashed, judge, kept};
use proto::extranonce::{ExtranonceAllocator, ExtranoncePrefix};
use proto::job::{ActiveTemplate, Job, JobId};
use proto::limits::{EXTRANONCE_LEN, EXTRANONCE_PREFIX_LEN, VERSION_ROLLING_MASK};
use proto::mining::server::Policy;
use proto::mining::{Kind, Now};
use proto::share::{Claim, FrozenJob, Refusal, Submitted};
use proto::target::{Difficulty, Target};
use proto::template::{CoinbaseParts, PrevHash, Template, TemplateId, merkle_path};
use proto::wire::B032;

const TESTNET_RAW: &[u8] = include_bytes!("data/testnet_block_924634.raw");
const MAINNET_REDUCED: &[u8] = include_bytes!("data/mainnet_block_702861.reduced");

/// A block as its miner saw it.
#[derive(Clone)]
struct Mined {
    name: &'static str,
    header: bitcoin::block::Header,
    /// As it stands in the block, with witness.
    coinbase: Vec<u8>,
    /// Of every transaction but the coinbase.
    txids: Vec<[u8; 32]>,
    /// Every transaction but the coinbase; empty where they are not kept.
    transactions: Vec<Arc<[u8]>>,
    /// Where in the coinbase without witness our 24 bytes of extranonce are taken to be. Chosen so
    /// that the first eight are a prefix that an allocator gives out early: a small number last.
    extranonce_at: usize,
}

fn testnet() -> Mined {
    let block: bitcoin::Block = deserialize(TESTNET_RAW).unwrap();
    let mut mined = from_reduced(&reduce(TESTNET_RAW));
    mined.transactions = block.txdata[1..].iter().map(|one| serialize(one).into()).collect();
    mined.extranonce_at = script_sig_at(&mined, &[0x85, 0x01, 0x08, 0x00, 0, 0, 0, 0]);
    Mined { name: "testnet", ..mined }
}

fn mainnet() -> Mined {
    let mut mined = from_reduced(MAINNET_REDUCED);
    mined.extranonce_at = script_sig_at(&mined, &[0x30, 0xf5, 0x62, 0x04, 0, 0, 0, 30]);
    Mined { name: "mainnet", ..mined }
}

/// Header, coinbase with witness, txids of the rest.
fn reduce(raw: &[u8]) -> Vec<u8> {
    let block: bitcoin::Block = deserialize(raw).unwrap();
    let mut reduced = serialize(&block.header);
    reduced.extend(serialize(&block.txdata[0]));
    for transaction in &block.txdata[1..] {
        reduced.extend(transaction.compute_txid().to_byte_array());
    }
    reduced
}

fn from_reduced(bytes: &[u8]) -> Mined {
    let (header, rest) = bytes.split_at(80);
    let (coinbase, len) = deserialize_partial::<bitcoin::Transaction>(rest).unwrap();
    let (txids, []) = rest[len..].as_chunks::<32>() else { panic!("half a txid") };
    Mined {
        name: "",
        header: deserialize(header).unwrap(),
        coinbase: serialize(&coinbase),
        txids: txids.to_vec(),
        transactions: Vec::new(),
        extranonce_at: 0,
    }
}

impl Mined {
    fn without_witness(&self) -> Vec<u8> {
        let mut coinbase: bitcoin::Transaction = deserialize(&self.coinbase).unwrap();
        coinbase.input[0].witness.clear();
        serialize(&coinbase)
    }

    fn extranonce(&self) -> [u8; EXTRANONCE_LEN] {
        let bytes = self.without_witness();
        bytes[self.extranonce_at..][..EXTRANONCE_LEN].try_into().unwrap()
    }

    fn prefix(&self) -> [u8; EXTRANONCE_PREFIX_LEN] {
        self.extranonce()[..EXTRANONCE_PREFIX_LEN].try_into().unwrap()
    }

    fn rolled(&self) -> Vec<u8> {
        self.extranonce()[EXTRANONCE_PREFIX_LEN..].to_vec()
    }

    fn version(&self) -> u32 {
        self.header.version.to_consensus() as u32
    }

    fn tip(&self) -> PrevHash {
        PrevHash {
            hash: self.header.prev_blockhash.to_byte_array(),
            nbits: self.header.bits.to_consensus(),
            min_ntime: self.header.time - 100,
        }
    }

    fn parts(&self) -> CoinbaseParts {
        let bytes = self.without_witness();
        CoinbaseParts {
            prefix: bytes[..self.extranonce_at].to_vec(),
            suffix: bytes[self.extranonce_at + EXTRANONCE_LEN..].to_vec(),
        }
    }

    fn job_of(&self, coinbase: CoinbaseParts, merkle_path: Vec<[u8; 32]>) -> Job {
        let template = Template {
            id: TemplateId(1),
            height: 1,
            // The bits that the miner rolled were clear in what he was given.
            version: self.version() & !VERSION_ROLLING_MASK,
            coinbase_tx_version: 1,
            script_sig_prefix: Vec::new(),
            coinbase_sequence: 0,
            coinbase_value_sats: 0,
            required_outputs: Vec::new(),
            required_outputs_count: 0,
            coinbase_locktime: 0,
            merkle_path,
            transactions: Some(Arc::new(self.transactions.clone())),
            commits_to_witnesses: true,
        };
        Job::from_parts(Arc::new(template), coinbase)
    }

    fn job(&self) -> Job {
        self.job_of(self.parts(), merkle_path(&self.txids))
    }

    /// The job as the miner's channel had it, at the network's own target.
    fn frozen(&self) -> FrozenJob<'static> {
        let tip = kept(self.tip());
        let network_target = kept(Target::from_compact(tip.nbits));
        FrozenJob {
            job: kept(self.job()),
            tip,
            network_target,
            difficulty: Difficulty::easiest_within(*network_target).unwrap(),
            target: *network_target,
            min_ntime: tip.min_ntime,
            since: tip.min_ntime,
            prefix: ExtranoncePrefix::from_bytes(self.prefix()),
            merkle_root: None,
            version_rolling: true,
        }
    }

    fn claim(&self) -> Claim {
        Claim {
            job: JobId(1),
            nonce: self.header.nonce,
            ntime: self.header.time,
            version: self.version(),
            rolled: Some(B032::new(&self.rolled()).unwrap()),
        }
    }

    /// Fails if this job and claim make a block or a share.
    fn refused(&self, job: &FrozenJob<'_>, claim: &Claim, what: &str) {
        let verdict = judge(job, claim, self.header.time + 10);
        assert!(!verdict.is_block, "{}: a block with {what} flipped", self.name);
        assert!(verdict.outcome.is_err(), "{}: a share with {what} flipped", self.name);
    }
}

/// Where in the coinbase without witness these bytes stand, once.
fn script_sig_at(mined: &Mined, bytes: &[u8]) -> usize {
    let coinbase = mined.without_witness();
    let places: Vec<usize> =
        (0..coinbase.len()).filter(|at| coinbase[*at..].starts_with(bytes)).collect();
    let script_sig = 42..42 + usize::from(coinbase[41]);
    assert_eq!(places.len(), 1);
    assert!(script_sig.contains(&places[0]) && places[0] + EXTRANONCE_LEN <= script_sig.end);
    places[0]
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// A link whose channel has the prefix that this block was mined with.
fn link_of(mined: &Mined) -> (Link, u32) {
    let [a, b, c, d, number @ ..] = mined.prefix();
    let node = u16::from_be_bytes([a, b]);
    let epoch = u16::from_be_bytes([c, d]);
    let floor = Difficulty::easiest_within(Target::from_compact(mined.tip().nbits)).unwrap();
    let policy = Policy { floor: Difficulty::from_log2(floor.log2() - 1), ..Policy::default() };
    let active = Arc::new(ActiveTemplate { tip: mined.tip(), job: mined.job(), next: None });
    let mut link = Link::on(ExtranonceAllocator::new(node, epoch), policy, 0, active);
    link.now = Now { mono_ms: 1_000, unix_s: mined.header.time + 10 };
    let mut channel = 0;
    for _ in 0..=u32::from_be_bytes(number) {
        channel = link.open_at_floor(Kind::Extended);
    }
    assert_eq!(link.client.device(channel).prefix, mined.prefix());
    (link, channel)
}

fn share_of(mined: &Mined, link: &Link, channel: u32) -> Share {
    Share {
        channel,
        sequence: 1,
        job: link.client.work(channel).job,
        nonce: mined.header.nonce,
        ntime: mined.header.time,
        version: mined.version(),
        rolled: Some(mined.rolled()),
    }
}

#[test]
fn a_block_that_was_mined_is_found_again() {
    for mined in [testnet(), mainnet()] {
        let (mut link, channel) = link_of(&mined);
        let share = share_of(&mined, &link, channel);
        assert!(link.submit(&share).is_empty());
        let found = link.blocks().pop().expect("a block");
        assert_eq!(found.hash, mined.header.block_hash().to_byte_array());
        assert_eq!(found.header.to_bytes()[..], serialize(&mined.header)[..]);
        assert_eq!(found.extranonce.as_slice(), mined.extranonce());
        let block = found.job.block(&found.header, &found.extranonce).unwrap();
        if mined.transactions.is_empty() {
            // 80 bytes of header and a count, then the coinbase as it stands in the real block.
            assert_eq!(block[81..], mined.coinbase);
        } else {
            assert_eq!(block, TESTNET_RAW);
        }
        let proof = link.batches()[0].groups[0].proofs[0];
        assert!(proof.is_block && proof.difficulty > Difficulty::from_log2(15));
        assert!(link.submit(&share)[0].code() == Some("duplicate-share"));
    }
}

#[test]
fn another_nonce_a_second_later_or_another_version_is_told_no() {
    for mined in [testnet(), mainnet()] {
        let (mut link, channel) = link_of(&mined);
        let share = share_of(&mined, &link, channel);
        let cases = [
            (Share { nonce: share.nonce ^ 1, ..share.clone() }, "difficulty-too-low"),
            (Share { ntime: share.ntime + 1, ..share.clone() }, "difficulty-too-low"),
            (Share { version: share.version ^ 0x2000, ..share.clone() }, "difficulty-too-low"),
            (Share { version: share.version ^ 2, ..share }, "invalid-non-rollable-version-bit"),
        ];
        for (share, code) in cases {
            assert_eq!(link.submit(&share)[0].code(), Some(code));
        }
        assert!(link.blocks().is_empty() && link.batches().is_empty());
    }
}

#[test]
fn no_bit_of_the_header_can_be_flipped() {
    for mined in [testnet(), mainnet()] {
        let (job, claim) = (mined.frozen(), mined.claim());
        let verdict = judge(&job, &claim, mined.header.time + 10);
        assert!(verdict.is_block && verdict.outcome.is_ok());
        let header = *hashed(&job, &claim).header();
        assert_eq!(header.merkle_root, mined.header.merkle_root.to_byte_array());
        for bit in 0..640 {
            let bytes = flipped(&header.to_bytes(), bit);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            // As a standard channel would be asked, which takes the merkle root as it is given.
            let tip =
                PrevHash { hash: bytes[4..36].try_into().unwrap(), nbits: word(72), ..*job.tip };
            let job = FrozenJob {
                tip: &tip,
                merkle_root: Some(bytes[36..68].try_into().unwrap()),
                ..job.clone()
            };
            let claim =
                Claim { version: word(0), ntime: word(68), nonce: word(76), rolled: None, ..claim };
            mined.refused(&job, &claim, &format!("header bit {bit}"));
        }
    }
}

#[test]
fn no_bit_of_coinbase_or_extranonce_can_be_flipped() {
    for mined in [testnet(), mainnet()] {
        let (job, claim) = (mined.frozen(), mined.claim());
        let (parts, path) = (mined.parts(), merkle_path(&mined.txids));
        for bit in 0..8 * parts.prefix.len() {
            let coinbase = CoinbaseParts { prefix: flipped(&parts.prefix, bit), ..parts.clone() };
            let other = mined.job_of(coinbase, path.clone());
            let job = FrozenJob { job: &other, ..job.clone() };
            mined.refused(&job, &claim, &format!("coinbase prefix bit {bit}"));
        }
        for bit in 0..8 * parts.suffix.len() {
            let coinbase = CoinbaseParts { suffix: flipped(&parts.suffix, bit), ..parts.clone() };
            let other = mined.job_of(coinbase, path.clone());
            let job = FrozenJob { job: &other, ..job.clone() };
            mined.refused(&job, &claim, &format!("coinbase suffix bit {bit}"));
        }
        for bit in 0..8 * EXTRANONCE_LEN {
            let extranonce = flipped(&mined.extranonce(), bit);
            let (prefix, rolled) = extranonce.split_at(EXTRANONCE_PREFIX_LEN);
            let prefix = ExtranoncePrefix::from_bytes(prefix.try_into().unwrap());
            let job = FrozenJob { prefix, ..job.clone() };
            let claim = Claim { rolled: Some(B032::new(rolled).unwrap()), ..claim };
            mined.refused(&job, &claim, &format!("extranonce bit {bit}"));
        }
    }
}

#[test]
fn no_bit_of_the_merkle_path_can_be_flipped_nor_a_branch_left_out() {
    for mined in [testnet(), mainnet()] {
        let (job, claim) = (mined.frozen(), mined.claim());
        let path = merkle_path(&mined.txids);
        for at in 0..path.len() {
            for bit in 0..256 {
                let mut path = path.clone();
                path[at] = flipped(&path[at], bit).try_into().unwrap();
                let other = mined.job_of(mined.parts(), path);
                let job = FrozenJob { job: &other, ..job.clone() };
                mined.refused(&job, &claim, &format!("bit {bit} of branch {at}"));
            }
            let mut shorter = path.clone();
            shorter.remove(at);
            let other = mined.job_of(mined.parts(), shorter);
            let job = FrozenJob { job: &other, ..job.clone() };
            mined.refused(&job, &claim, &format!("branch {at}"));
        }
    }
}

#[test]
fn the_same_nonce_on_another_tip_or_with_a_wrong_size_is_nothing() {
    for mined in [testnet(), mainnet()] {
        let (job, claim) = (mined.frozen(), mined.claim());
        let short = Claim { rolled: Some(B032::new(&mined.rolled()[1..]).unwrap()), ..claim };
        let refused = Submitted::new(&job, &short).unwrap_err();
        assert_eq!(refused, Refusal::BadExtranonceSize);
        let earlier = FrozenJob { min_ntime: mined.header.time + 1, ..job };
        let verdict = judge(&earlier, &claim, mined.header.time);
        // Our rules dislike it, the network would not: it goes out.
        assert!(verdict.is_block);
        assert_eq!(verdict.outcome, Err(Refusal::InvalidNtime));
    }
}

#[test]
#[ignore = "makes test data: RAW_BLOCK=<raw block> REDUCED=<file to write>"]
fn a_raw_block_is_reduced() {
    let raw = std::fs::read(std::env::var("RAW_BLOCK").unwrap()).unwrap();
    std::fs::write(std::env::var("REDUCED").unwrap(), reduce(&raw)).unwrap();
}
