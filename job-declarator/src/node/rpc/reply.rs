//! What Bitcoin Core answers, as far as we read it, and a `getblocktemplate` answer turned into a
//! template. Called by `rpc.rs`; trusts nothing: numbers have ranges, hex has lengths, and hashes are
//! computed from the transactions themselves, since a wrong one would waste every hash of the pool.
//!
//! Names of rules stay open strings and unknown fields are ignored: a new soft fork must not make
//! templates unreadable.

use std::collections::HashSet;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network, Transaction};
use proto::target::Target;
use proto::template::{PrevHash, Template, TemplateId, merkle_path};
use serde::Deserialize;

use crate::limits::{BLOCK_LEN_MAX, BLOCK_TRANSACTIONS_MAX, HEIGHT_MAX, MONEY_MAX_SATS};
use crate::node::{ChainInfo, NodeTemplate, TemplateMark, abridged, assemble, subsidy_sats};

/// A witness commitment is 38 bytes and a signet's carries a signature besides; nobody needs more.
const COMMITMENT_LEN_MAX: usize = 1_000;
/// Core's is a hash and a number, 84 characters at most.
const LONG_POLL_ID_LEN_MAX: usize = 200;
/// Rules that change a block's structure and that this code obeys (`!` in a template's rules, BIP9).
const STRUCTURAL_RULES: [&str; 2] = ["segwit", "signet"];
/// A signet of this challenge (OP_TRUE) takes blocks without a signature.
const OPEN_SIGNET_CHALLENGE: &str = "51";

/// `getblockchaininfo`.
#[derive(Deserialize)]
pub(super) struct ChainReply {
    chain: String,
    blocks: u32,
    bestblockhash: String,
    initialblockdownload: bool,
    /// Only told to the owner: no answer depends on it.
    #[serde(default)]
    pruned: bool,
}

/// `getblockheader`, verbose.
#[derive(Deserialize)]
pub(super) struct HeaderReply {
    confirmations: i64,
    height: u32,
}

/// `getblocktemplate`.
#[derive(Deserialize)]
pub(super) struct TemplateReply {
    version: i32,
    previousblockhash: String,
    transactions: Vec<TransactionReply>,
    coinbasevalue: u64,
    longpollid: Option<String>,
    mintime: u32,
    curtime: u32,
    bits: String,
    height: u32,
    default_witness_commitment: Option<String>,
    #[serde(default)]
    rules: Vec<String>,
    signet_challenge: Option<String>,
}

#[derive(Deserialize)]
struct TransactionReply {
    data: String,
    txid: Option<String>,
}

/// Why a template cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It makes no sense.
    Nonsense(String),
    /// It asks for what we cannot do.
    Unsupported(String),
}

impl From<String> for Unusable {
    fn from(why: String) -> Self {
        Self::Nonsense(why)
    }
}

impl ChainReply {
    pub(super) fn into_chain_info(self) -> Result<ChainInfo, String> {
        let network = Network::from_core_arg(&self.chain)
            .map_err(|_| format!("unknown chain {:?}", abridged(&self.chain)))?;
        Ok(ChainInfo {
            network,
            height: self.blocks,
            tip: block_hash(&self.bestblockhash)?,
            initial_block_download: self.initialblockdownload,
            pruned: self.pruned,
        })
    }
}

impl HeaderReply {
    /// `None` off the best chain, where Core counts -1 confirmations.
    pub(super) fn height_in_chain(&self) -> Option<u32> {
        (self.confirmations > 0).then_some(self.height)
    }
}

impl TemplateReply {
    /// `id` and the one after it name the template and the next.
    pub(super) fn into_template(self, network: Network, id: u64) -> Result<NodeTemplate, Unusable> {
        self.check_rules()?;
        let prev_hash = PrevHash {
            hash: block_hash(&self.previousblockhash)?,
            nbits: self.nbits()?,
            min_ntime: self.mintime.max(self.curtime),
        };
        let mark = self.mark()?;
        let height = self.height;
        if !(1..HEIGHT_MAX).contains(&height) {
            return Err(format!("height {height}").into());
        }
        if self.coinbasevalue > MONEY_MAX_SATS {
            return Err(format!("coinbasevalue {}", self.coinbasevalue).into());
        }
        let version = self.version as u32;
        let transactions = Transactions::parse(&self.transactions)?;
        let required_outputs = self.required_outputs(&transactions)?;

        let mut template =
            assemble::coinbase_only(TemplateId(id), height, version, self.coinbasevalue);
        template.merkle_path = merkle_path(&transactions.txids);
        template.transactions = Some(Arc::new(transactions.raw));
        if let Some(outputs) = required_outputs {
            template.required_outputs = outputs;
            template.required_outputs_count = 1;
            template.commits_to_witnesses = true;
        }
        let next = next_template(network, TemplateId(id + 1), height + 1, version);
        Ok(NodeTemplate {
            prev_hash,
            earliest_ntime: self.mintime,
            template: Arc::new(template),
            next: Some(Arc::new(next)),
            mark,
        })
    }

    /// BIP9: a block must not be built on a template with a structural rule that one does not know.
    fn check_rules(&self) -> Result<(), Unusable> {
        let structural = self.rules.iter().filter_map(|rule| rule.strip_prefix('!'));
        if let Some(unknown) = structural.into_iter().find(|rule| !STRUCTURAL_RULES.contains(rule))
        {
            let rule = abridged(unknown);
            return Err(Unusable::Unsupported(format!("its template needs the rule {rule:?}")));
        }
        match self.signet_challenge.as_deref() {
            None | Some(OPEN_SIGNET_CHALLENGE) => Ok(()),
            Some(_) => {
                Err(Unusable::Unsupported("blocks of its signet need a signature".to_owned()))
            }
        }
    }

    fn nbits(&self) -> Result<u32, String> {
        let bits = <[u8; 4]>::try_from(bytes(&self.bits, 4, "bits")?)
            .map(u32::from_be_bytes)
            .map_err(|_| "bits of less than four bytes".to_owned())?;
        if Target::from_compact(bits).is_zero() {
            return Err(format!("bits {bits:08x} are a target that no hash meets"));
        }
        Ok(bits)
    }

    fn mark(&self) -> Result<TemplateMark, String> {
        let id = self.longpollid.as_deref().unwrap_or_default();
        if id.len() > LONG_POLL_ID_LEN_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("longpollid {:?}", abridged(id)));
        }
        Ok(Watched { tip: self.previousblockhash.clone(), long_poll_id: id.to_owned() }.to_mark())
    }

    /// The witness commitment as an output, if there is one; it must be what the transactions give.
    fn required_outputs(&self, transactions: &Transactions) -> Result<Option<Vec<u8>>, String> {
        let Some(commitment) = &self.default_witness_commitment else {
            return if transactions.have_witness {
                Err("transactions with witness and no default_witness_commitment".to_owned())
            } else {
                Ok(None)
            };
        };
        let script = bytes(commitment, COMMITMENT_LEN_MAX, "default_witness_commitment")?;
        if !script.starts_with(&assemble::commitment_script(&transactions.wtxids)) {
            return Err("default_witness_commitment is not that of the transactions".to_owned());
        }
        Ok(Some(assemble::valueless_output(&script)))
    }
}

/// The transactions of a template, checked and taken apart.
struct Transactions {
    raw: Vec<Arc<[u8]>>,
    txids: Vec<[u8; 32]>,
    wtxids: Vec<[u8; 32]>,
    have_witness: bool,
}

impl Transactions {
    fn parse(replies: &[TransactionReply]) -> Result<Self, String> {
        // One place is the coinbase's.
        if replies.len() >= BLOCK_TRANSACTIONS_MAX {
            return Err(format!("{} transactions", replies.len()));
        }
        let mut parsed = Self {
            raw: Vec::with_capacity(replies.len()),
            txids: Vec::with_capacity(replies.len()),
            wtxids: Vec::with_capacity(replies.len()),
            have_witness: false,
        };
        let mut seen = HashSet::with_capacity(replies.len());
        let mut left = BLOCK_LEN_MAX;
        for (index, reply) in replies.iter().enumerate() {
            let raw = bytes(&reply.data, left, "transaction")?;
            left -= raw.len();
            let transaction: Transaction = bitcoin::consensus::deserialize(&raw)
                .map_err(|error| format!("transaction {index}: {error}"))?;
            let txid = transaction.compute_txid();
            let is_named = reply.txid.as_ref().is_none_or(|named| *named == txid.to_string());
            if !is_named || transaction.is_coinbase() || !seen.insert(txid) {
                return Err(format!("transaction {index}: misnamed, repeated or a coinbase"));
            }
            parsed.txids.push(txid.to_byte_array());
            parsed.wtxids.push(transaction.compute_wtxid().to_byte_array());
            parsed.have_witness |= transaction.input.iter().any(|input| !input.witness.is_empty());
            parsed.raw.push(raw.into());
        }
        Ok(parsed)
    }
}

/// What a template mark of ours says: the tip, to be compared with the node's, and Core's own mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Hash of the tip as Core writes it.
    pub(super) tip: String,
    /// Core's `longpollid`; empty if it gave none.
    pub(super) long_poll_id: String,
}

impl Watched {
    pub(super) fn to_mark(&self) -> TemplateMark {
        TemplateMark(format!("{}/{}", self.tip, self.long_poll_id))
    }

    /// `None` for what is no mark of ours.
    pub(super) fn from_mark(mark: &TemplateMark) -> Option<Self> {
        let (tip, id) = mark.0.split_once('/')?;
        Some(Self { tip: tip.to_owned(), long_poll_id: id.to_owned() })
    }
}

fn next_template(network: Network, id: TemplateId, height: u32, version: u32) -> Template {
    assemble::coinbase_only(id, height, version, subsidy_sats(height, network))
}

/// A block hash of a reply in header byte order.
pub(super) fn block_hash(text: &str) -> Result<[u8; 32], String> {
    text.parse::<BlockHash>()
        .map(BlockHash::to_byte_array)
        .map_err(|_| format!("block hash {:?}", abridged(text)))
}

/// Hex of at most `len_max` bytes.
fn bytes(text: &str, len_max: usize, what: &str) -> Result<Vec<u8>, String> {
    if text.len() / 2 > len_max {
        return Err(format!("{what} above {len_max} bytes"));
    }
    hex::decode(text).map_err(|error| format!("{what}: {error}"))
}
