//! What the tests of declared jobs share: a miner's template, the declaration that he makes of it, and
//! the pool's view of both.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use job_declarator::declared::{
    BuiltJob, Context, DeclaredJob, Outcome, Refusal, Rule, Transaction, build, check,
};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Node, NodeTemplate, subsidy_sats};
use proto::declare::Declaration;
use proto::limits::EXTRANONCE_LEN;
use proto::mining::{ChannelId, CustomJobRequest};
use proto::template::Output;
use proto::token::MiningJobToken;

use crate::common::payout_script;

/// Unix seconds of all these tests.
pub const NOW: u32 = 1_790_000_000;
/// What stands in scriptSig of a miner's coinbase.
pub const TAG: &[u8] = b"/miner/";

/// A miner with a template of an embedded chain, and what the pool has of its own.
pub struct Desk {
    pub chain: EmbeddedChain,
    pub shown: NodeTemplate,
    pub rule: Rule,
    /// The transactions that the pool knows.
    pub known: HashMap<[u8; 32], Transaction>,
}

impl Desk {
    /// A template of `tx_count` transactions, all known to the pool.
    pub async fn new(tx_count: usize) -> Self {
        let options = EmbeddedOptions {
            tx_count,
            block_hashes: 2,
            clock: Arc::new(|| NOW),
            ..EmbeddedOptions::default()
        };
        Self::on(EmbeddedChain::new(options).unwrap()).await
    }

    /// A template of this chain, its transactions all known to the pool.
    pub async fn on(chain: EmbeddedChain) -> Self {
        let shown = chain.next_template(None).await.unwrap();
        let known = known(&shown);
        Self { chain, shown, rule: Rule::whole(payout_script()), known }
    }

    /// Whatever the chain's template is now.
    pub async fn refresh(&mut self) {
        self.shown = self.chain.next_template(None).await.unwrap();
        self.known = known(&self.shown);
    }

    pub fn context(&self) -> Context<'_> {
        let height = self.shown.template.height;
        Context {
            height,
            tip: self.shown.prev_hash,
            subsidy_sats: subsidy_sats(height, bitcoin::Network::Regtest),
            rule: &self.rule,
        }
    }

    /// Times that a block may have here.
    pub fn ntime(&self) -> RangeInclusive<u32> {
        self.shown.earliest_ntime..=NOW + 7_000
    }

    pub fn built(&self) -> BuiltJob {
        let sats = self.shown.template.coinbase_value_sats;
        let outputs = [Output { sats, script: payout_script() }];
        build(&self.shown.template, &outputs, TAG, EXTRANONCE_LEN).unwrap()
    }

    pub fn declaration(&self) -> Declaration {
        declaration(&self.built())
    }

    pub fn check(&self, declaration: &Declaration) -> Result<Outcome, Refusal> {
        let known = |wtxid: &[u8; 32]| self.known.get(wtxid).cloned();
        check(declaration, &self.context(), &known, &|_| None)
    }

    /// The job of a declaration that must be sound.
    pub fn sound(&self, declaration: &Declaration) -> DeclaredJob {
        match self.check(declaration) {
            Ok(Outcome::Sound { job, .. }) => *job,
            other => panic!("not sound: {other:?}"),
        }
    }

    /// Why a declaration that must be refused is.
    pub fn refusal(&self, declaration: &Declaration) -> Refusal {
        self.check(declaration).map(|outcome| panic!("not refused: {outcome:?}")).unwrap_err()
    }

    pub fn request(&self) -> CustomJobRequest {
        request(&self.built(), &self.shown)
    }
}

fn known(shown: &NodeTemplate) -> HashMap<[u8; 32], Transaction> {
    let transactions = shown.template.known_transactions().iter();
    let read = transactions.map(|bytes| Transaction::read(Arc::clone(bytes)).unwrap());
    read.map(|transaction| (*transaction.wtxid(), transaction)).collect()
}

pub fn declaration(built: &BuiltJob) -> Declaration {
    let parts = built.declared_parts();
    Declaration {
        request_id: 7,
        token: MiningJobToken([1; 16]),
        version: built.version,
        coinbase_prefix: parts.prefix,
        coinbase_suffix: parts.suffix,
        wtxids: built.wtxids.clone().unwrap(),
        supplied: Vec::new(),
        was_asked: false,
    }
}

pub fn request(built: &BuiltJob, shown: &NodeTemplate) -> CustomJobRequest {
    let coinbase = &built.coinbase;
    CustomJobRequest {
        channel: ChannelId(2),
        request_id: 9,
        token: MiningJobToken([2; 16]),
        account: "alice".into(),
        version: built.version,
        prev_hash: shown.prev_hash.hash,
        min_ntime: shown.prev_hash.min_ntime,
        nbits: shown.prev_hash.nbits,
        coinbase_tx_version: coinbase.version,
        coinbase_prefix: coinbase.script_sig_prefix.clone(),
        coinbase_sequence: coinbase.sequence,
        outputs: coinbase.outputs.clone(),
        locktime: coinbase.lock_time,
        merkle_path: built.merkle_path.clone(),
    }
}
