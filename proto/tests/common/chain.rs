//! A chain that exists only as templates: tips, full templates, and the empty next one that is sent
//! ahead. Transactions are real enough for the `bitcoin` crate to read.

use std::collections::HashMap;
use std::sync::Arc;

use proto::job::{ActiveTemplate, Job};
use proto::template::{Output, PrevHash, Template, TemplateId, merkle_path, merkle_root, sha256d};

use super::START_S;
use super::house::{AtPool, Promised};

/// Difficulty 1: a test never meets it.
pub const HARD_NBITS: u32 = 0x1d00_ffff;
/// Every second hash is a block.
pub const REGTEST_NBITS: u32 = 0x207f_ffff;

/// The operator's scriptSig tag in every job.
pub const TAG: &[u8] = b"/smallholder/";

pub struct Chain {
    pub nbits: u32,
    /// Transactions besides the coinbase in the next full template.
    pub transactions: usize,
    /// Payout outputs of each coinbase.
    pub outputs: usize,
    height: u32,
    tip: u32,
    /// When hashing on the present tip starts.
    pub min_ntime: u32,
    next_template: u64,
    active: Arc<ActiveTemplate>,
    /// Where jobs are mined at from the next on; `None` in the pool itself.
    pub house: Option<AtPool>,
    /// What the pool has of a house's jobs.
    pub promised: HashMap<TemplateId, Promised>,
}

impl Chain {
    pub fn new(nbits: u32) -> Self {
        Self::of(nbits, None)
    }

    /// Templates that a house mines at a pool.
    pub fn in_house(nbits: u32, at: AtPool) -> Self {
        Self::of(nbits, Some(at))
    }

    fn of(nbits: u32, house: Option<AtPool>) -> Self {
        let mut chain = Self {
            nbits,
            transactions: 3,
            outputs: 1,
            height: 900_000,
            tip: 1,
            min_ntime: START_S - 20,
            next_template: 1,
            active: Arc::new(ActiveTemplate {
                tip: PrevHash { hash: [0; 32], nbits, min_ntime: 0 },
                job: Job::from_parts(
                    Arc::new(empty_template(1, 1)),
                    empty_template(1, 1).coinbase(&[output(0)], b"").unwrap(),
                ),
                next: None,
            }),
            house,
            promised: HashMap::new(),
        };
        chain.publish(true);
        chain
    }

    pub fn active(&self) -> Arc<ActiveTemplate> {
        Arc::clone(&self.active)
    }

    /// A fuller template on the same tip; what was sent ahead stays.
    pub fn fuller(&mut self) -> Arc<ActiveTemplate> {
        self.transactions += 1;
        self.publish(false);
        self.active()
    }

    /// Somebody found a block.
    pub fn advance(&mut self) -> Arc<ActiveTemplate> {
        self.advance_at(self.min_ntime + 30)
    }

    pub fn advance_at(&mut self, min_ntime: u32) -> Arc<ActiveTemplate> {
        self.height += 1;
        self.tip += 1;
        self.min_ntime = min_ntime;
        self.publish(true);
        self.active()
    }

    /// Another block of the same height became the tip.
    pub fn reorganise(&mut self) -> Arc<ActiveTemplate> {
        self.tip += 1;
        self.publish(true);
        self.active()
    }

    /// The same, without a job for the tip after.
    pub fn without_next(&self) -> Arc<ActiveTemplate> {
        Arc::new(ActiveTemplate { next: None, ..(*self.active).clone() })
    }

    fn publish(&mut self, new_tip: bool) {
        let next = match &self.active.next {
            Some(known) if !new_tip => Some(known.clone()),
            _ => Some(self.job(self.height + 2, 0)),
        };
        let tip = PrevHash {
            hash: sha256d(&self.tip.to_le_bytes()),
            nbits: self.nbits,
            min_ntime: self.min_ntime,
        };
        let job = self.job(self.height + 1, self.transactions);
        self.active = Arc::new(ActiveTemplate { tip, job, next });
    }

    fn job(&mut self, height: u32, transactions: usize) -> Job {
        let template = self.template(height, transactions);
        let share = template.coinbase_value_sats / self.outputs as u64;
        let rest = template.coinbase_value_sats - share * self.outputs as u64;
        let outputs: Vec<Output> = (0..self.outputs)
            .map(|at| Output { sats: share + if at == 0 { rest } else { 0 }, ..output(at as u8) })
            .collect();
        let template = Arc::new(template);
        let Some(house) = &self.house else { return Job::new(template, &outputs, TAG).unwrap() };
        let (job, promised) = house.job(Arc::clone(&template), &outputs);
        self.promised.insert(template.id, promised);
        job
    }

    fn template(&mut self, height: u32, transactions: usize) -> Template {
        self.next_template += 1;
        let mut template = empty_template(self.next_template, height);
        let bodies: Vec<Vec<u8>> =
            (0..transactions).map(|at| transaction(height, at as u32)).collect();
        let txids: Vec<[u8; 32]> = bodies.iter().map(|body| sha256d(body)).collect();
        template.merkle_path = merkle_path(&txids);
        template.transactions = Some(Arc::new(bodies.into_iter().map(Arc::from).collect()));
        // The transactions have no witness, so their wtxids are their txids; the coinbase counts as 0.
        let witness_root = merkle_root([0; 32], &template.merkle_path);
        let commitment = sha256d(&[witness_root, [0; 32]].concat());
        template.required_outputs =
            [&[0; 8][..], &[38, 0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed], &commitment].concat();
        template.required_outputs_count = 1;
        template.commits_to_witnesses = true;
        template
    }
}

fn empty_template(id: u64, height: u32) -> Template {
    let [low, middle, high, _] = height.to_le_bytes();
    Template {
        id: TemplateId(id),
        height,
        version: 0x2000_0000,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, low, middle, high],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000,
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: height - 1,
        merkle_path: Vec::new(),
        transactions: Some(Arc::default()),
        commits_to_witnesses: false,
    }
}

/// P2WPKH, 31 bytes serialised.
fn output(seed: u8) -> Output {
    Output { sats: 312_500_000, script: [&[0, 20][..], &[seed; 20]].concat() }
}

/// One input, one output, no witness.
fn transaction(height: u32, at: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 1];
    bytes.extend_from_slice(&sha256d(&height.to_le_bytes()));
    bytes.extend_from_slice(&at.to_le_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&[0xff; 4]);
    bytes.push(1);
    bytes.extend_from_slice(&1_000u64.to_le_bytes());
    bytes.extend_from_slice(&[1, 0x51]);
    bytes.extend_from_slice(&[0; 4]);
    bytes
}
