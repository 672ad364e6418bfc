//! A house's jobs as its declarator makes them: a coinbase for a channel at some pool, and what that pool
//! computes of a share. Used by `Chain`.

use std::sync::Arc;

use proto::job::Job;
use proto::limits::{COINBASE_SCRIPT_SIG_AT, HOUSE_EXTRANONCE_LEN, HOUSE_NUMBER_LEN};
use proto::template::{CoinbaseParts, Output, Template, merkle_root, sha256d};

use super::chain::TAG;

/// The house's channel at a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtPool {
    pub prefix: Vec<u8>,
    pub rollable: usize,
}

/// What the pool knows of a job: the coinbase around its whole extranonce.
#[derive(Debug, Clone)]
pub struct Promised {
    pub coinbase: CoinbaseParts,
    pub path: Vec<[u8; 32]>,
    pub channel: AtPool,
}

impl AtPool {
    pub fn new(prefix_len: usize, rollable: usize) -> Self {
        Self { prefix: (1..=prefix_len as u8).map(|at| 0xa0 | at).collect(), rollable }
    }

    /// The house's job, and the same as the pool has it.
    pub fn job(&self, template: Arc<Template>, outputs: &[Output]) -> (Job, Promised) {
        // Ours pushes an extranonce of our length.
        let CoinbaseParts { mut prefix, suffix } = template.coinbase(outputs, TAG).unwrap();
        let extranonce_len = self.prefix.len() + self.rollable;
        prefix.pop();
        prefix.push(extranonce_len as u8);
        let script_sig = prefix.len() - COINBASE_SCRIPT_SIG_AT + extranonce_len;
        prefix[COINBASE_SCRIPT_SIG_AT - 1] = script_sig as u8;
        let coinbase = CoinbaseParts { prefix, suffix };
        let path = template.merkle_path.clone();
        let job = Job::for_house(template, self.parts(&coinbase)).unwrap();
        (job, Promised { coinbase, path, channel: self.clone() })
    }

    /// Up to where a device's bytes stand, with a hole of ones for the job's number.
    fn parts(&self, coinbase: &CoinbaseParts) -> CoinbaseParts {
        let unused = vec![0; self.rollable - HOUSE_EXTRANONCE_LEN];
        let prefix =
            [&coinbase.prefix[..], &self.prefix, &unused, &[0xff; HOUSE_NUMBER_LEN]].concat();
        CoinbaseParts { prefix, suffix: coinbase.suffix.clone() }
    }
}

impl Promised {
    /// The coinbase with what the house says that it rolled on its channel.
    pub fn transaction(&self, rolled: &[u8; HOUSE_EXTRANONCE_LEN]) -> Vec<u8> {
        let Self { coinbase, channel, .. } = self;
        let unused = vec![0; channel.rollable - rolled.len()];
        [&coinbase.prefix[..], &channel.prefix, &unused, rolled, &coinbase.suffix].concat()
    }

    /// The merkle root over it.
    pub fn root(&self, rolled: &[u8; HOUSE_EXTRANONCE_LEN]) -> [u8; 32] {
        merkle_root(sha256d(&self.transaction(rolled)), &self.path)
    }
}
