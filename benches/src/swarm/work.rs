//! Shares of one job: counted off where every hash is one, searched for where not. Used by `session.rs`
//! (the channel's target) and by `finder.rs` (the network's).
//!
//! Must never give the same header twice for one `Work`.

use std::rc::Rc;

use proto::job::HeaderFields;
use proto::target::{Difficulty, Target};
use proto::template::{merkle_root, sha256d};
use proto::wire::B032;
use sha2::{Digest, Sha256};

/// What a pool sent as a job.
#[derive(Debug)]
pub(super) struct Job {
    /// The pool's.
    pub(super) id: u32,
    /// As it stands.
    pub(super) version: u32,
    /// Where the merkle root comes from.
    pub(super) body: Body,
}

/// Where a merkle root comes from.
#[derive(Debug)]
pub(super) enum Body {
    /// The pool's own: a standard job.
    Root([u8; 32]),
    /// Ours to make around an extranonce.
    Coinbase {
        /// Before the extranonce prefix.
        head: Box<[u8]>,
        /// Behind the extranonce.
        tail: Box<[u8]>,
        /// Siblings, deepest first.
        path: Box<[[u8; 32]]>,
    },
}

/// What a block builds on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tip {
    /// Header byte order.
    pub(super) prev_hash: [u8; 32],
    /// Compact network target.
    pub(super) nbits: u32,
}

/// A share, before it has a sequence number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rolled {
    /// Of the job.
    pub(super) job_id: u32,
    /// Header version.
    pub(super) version: u32,
    /// Header time.
    pub(super) ntime: u32,
    /// Nonce.
    pub(super) nonce: u32,
    /// Empty on a standard channel.
    pub(super) extranonce: B032,
}

/// A job that runs on a channel.
#[derive(Debug)]
pub(super) struct Work {
    job: Rc<Job>,
    tip: Tip,
    ntime: u32,
    target: Target,
    prefix: B032,
    extranonce_size: usize,
    /// Practically every hash is a share: nothing is hashed here.
    easy: bool,
    /// Shares counted off, or extranonces searched.
    count: u64,
    search: Option<Search>,
}

/// One header and how far its nonces are tried.
#[derive(Debug, Clone)]
struct Search {
    midstate: Sha256,
    tail: [u8; 12],
    extranonce: B032,
    next: u64,
}

impl Work {
    /// Work on `job` on `tip` for a channel with this prefix, extranonce size and target.
    #[must_use]
    pub(super) fn new(
        job: Rc<Job>,
        tip: Tip,
        ntime: u32,
        target: Target,
        prefix: B032,
        extranonce_size: usize,
    ) -> Self {
        let easy = is_easy(target);
        Self { job, tip, ntime, target, prefix, extranonce_size, easy, count: 0, search: None }
    }

    /// Takes a harder target; an easier one is for the next job.
    pub(super) fn at_most(&mut self, target: Target) {
        self.target = self.target.min(target);
        self.easy = is_easy(self.target);
    }

    /// A share at the channel's target. `hashes` are the hashes that may still be tried for it.
    pub(super) fn next_share(&mut self, hashes: &mut u32) -> Option<Rolled> {
        if self.easy && self.extranonce_size > 0 {
            self.count += 1;
            let nonce = self.count as u32;
            return Some(self.rolled(self.extranonce(self.count), nonce));
        }
        if self.easy && self.count < 1 << 32 {
            let nonce = self.count as u32;
            self.count += 1;
            return Some(self.rolled(B032::default(), nonce));
        }
        self.search(self.target, hashes)
    }

    /// A share that is a block, and its hash.
    pub(super) fn next_block(&mut self, hashes: &mut u32) -> Option<(Rolled, [u8; 32])> {
        let target = Target::from_compact(self.tip.nbits);
        let rolled = self.search(target, hashes)?;
        let hash = self.header(&rolled).hash();
        Some((rolled, hash))
    }

    /// The header with extranonce 0 and this nonce, whatever its hash: what an attacker would send.
    pub(super) fn fixed(&self, nonce: u32) -> Rolled {
        self.rolled(self.extranonce(0), nonce)
    }

    fn search(&mut self, target: Target, hashes: &mut u32) -> Option<Rolled> {
        loop {
            let Some(mut search) = self.search.take().filter(|search| search.next < 1 << 32) else {
                // A standard channel has one header and no more; the next job is at most 30 s away.
                if *hashes == 0 || (self.extranonce_size == 0 && self.count > 0) {
                    return None;
                }
                self.count += 1;
                let first = self.rolled(self.extranonce(self.count), 0);
                self.search = Some(Search::new(&self.header(&first), first.extranonce));
                continue;
            };
            let found = search.run(target, hashes);
            let extranonce = search.extranonce;
            let spent = search.next >= 1 << 32;
            self.search = Some(search);
            match found {
                Some(nonce) => return Some(self.rolled(extranonce, nonce)),
                None if spent => {}
                None => return None,
            }
        }
    }

    fn rolled(&self, extranonce: B032, nonce: u32) -> Rolled {
        let Job { id: job_id, version, .. } = *self.job;
        Rolled { job_id, version, ntime: self.ntime, nonce, extranonce }
    }

    /// `count` in as many bytes as are granted, big-endian.
    fn extranonce(&self, count: u64) -> B032 {
        let mut bytes = [0; 32];
        let size = self.extranonce_size.min(32);
        for (byte, value) in bytes[..size].iter_mut().rev().zip(count.to_le_bytes()) {
            *byte = value;
        }
        B032::new(&bytes[..size]).expect("at most 32 bytes are taken")
    }

    fn header(&self, rolled: &Rolled) -> HeaderFields {
        let merkle_root = match &self.job.body {
            Body::Root(root) => *root,
            Body::Coinbase { head, tail, path } => {
                let parts = [head, self.prefix.as_slice(), rolled.extranonce.as_slice(), tail];
                merkle_root(sha256d(&parts.concat()), path)
            }
        };
        HeaderFields {
            version: rolled.version,
            prev_hash: self.tip.prev_hash,
            merkle_root,
            ntime: rolled.ntime,
            nbits: self.tip.nbits,
            nonce: rolled.nonce,
        }
    }
}

/// At the easiest difficulty that a pool of ours can be told, one hash in 65,536 misses: left to the
/// pool to refuse, and known to the report.
fn is_easy(target: Target) -> bool {
    target >= Difficulty::MIN.target()
}

impl Search {
    fn new(header: &HeaderFields, extranonce: B032) -> Self {
        let bytes = header.to_bytes();
        let (first, rest) = bytes.split_at(64);
        let mut tail = [0; 12];
        tail.copy_from_slice(&rest[..12]);
        Self { midstate: Sha256::new().chain_update(first), tail, extranonce, next: 0 }
    }

    fn run(&mut self, target: Target, hashes: &mut u32) -> Option<u32> {
        while *hashes > 0 && self.next < 1 << 32 {
            *hashes -= 1;
            let nonce = self.next as u32;
            self.next += 1;
            let inner = self.midstate.clone().chain_update(self.tail);
            let inner = inner.chain_update(nonce.to_le_bytes()).finalize();
            if target.is_met_by(&Sha256::digest(inner).into()) {
                return Some(nonce);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn work(log2: i16, extranonce_size: usize) -> Work {
        let body = match extranonce_size {
            0 => Body::Root([7; 32]),
            _ => Body::Coinbase {
                head: [1; 40].into(),
                tail: [2; 40].into(),
                path: [[3; 32]].into(),
            },
        };
        let job = Rc::new(Job { id: 5, version: 0x2000_0000, body });
        let tip = Tip { prev_hash: [9; 32], nbits: 0x207f_ffff };
        let prefix = B032::new(&[4; 8]).unwrap();
        Work::new(job, tip, 1_000, Difficulty::from_log2(log2).target(), prefix, extranonce_size)
    }

    #[test]
    fn searched_shares_meet_the_target_and_no_header_comes_twice() {
        for size in [0, 8] {
            let mut work = work(-26, size);
            let mut headers = HashSet::new();
            for _ in 0..50 {
                let rolled = work.next_share(&mut 1_000_000).unwrap();
                let header = work.header(&rolled);
                assert!(work.target.is_met_by(&header.hash()));
                assert!(headers.insert(header.to_bytes()));
            }
        }
    }

    #[test]
    fn where_every_hash_counts_nothing_is_hashed_and_no_header_comes_twice() {
        for size in [0, 8] {
            let mut work = work(-32, size);
            let mut headers = HashSet::new();
            let mut hashes = 0;
            for _ in 0..1_000 {
                let rolled = work.next_share(&mut hashes).unwrap();
                assert_eq!(rolled.extranonce.len(), size);
                assert!(headers.insert(work.header(&rolled).to_bytes()));
            }
        }
    }

    #[test]
    fn a_search_stops_when_its_hashes_are_spent_and_goes_on_behind_them() {
        let mut work = work(190, 8);
        let mut hashes = 10;
        assert!(work.next_share(&mut hashes).is_none());
        assert_eq!(hashes, 0);
        assert!(work.next_share(&mut 5).is_none());
        assert_eq!(work.search.unwrap().next, 15);
    }

    #[test]
    fn a_harder_target_counts_at_once_and_an_easier_one_does_not() {
        let mut work = work(-32, 8);
        let hard = Difficulty::from_log2(-20).target();
        work.at_most(hard);
        assert!(!work.easy);
        work.at_most(Difficulty::MIN.target());
        assert_eq!(work.target, hard);
    }
}
