//! Declarations with something wrong in them, or something else that is right: the same seed, the same
//! change. Used by the property tests and by the consensus oracle.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use job_declarator::declared::BuiltJob;
use proto::declare::Declaration;
use proto::limits::EXTRANONCE_LEN;
use proto::template::{merkle_path, merkle_root, sha256d, write_compact_size};

use crate::declare::declaration;

/// SplitMix64: the same seed, the same run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The declaration of `built` with one to three changes.
pub fn mutated(built: &BuiltJob, random: &mut Random) -> Declaration {
    let mut built = built.clone();
    if random.below(2) == 0 {
        change_fields(&mut built, random);
    }
    let mut declared = declaration(&built);
    if random.below(3) > 0 {
        for _ in 0..=random.below(2) {
            change_bytes(&mut declared, random);
        }
    }
    declared
}

/// A change that leaves the coinbase a transaction, and half of the time commits to what it is made of.
fn change_fields(built: &mut BuiltJob, random: &mut Random) {
    let coinbase = &mut built.coinbase;
    let wtxids = built.wtxids.as_mut().unwrap();
    let count = wtxids.len();
    match random.below(12) {
        0 if count > 1 => wtxids.swap(random.below(count), random.below(count)),
        1 if count > 0 => drop(wtxids.remove(random.below(count))),
        2 if count > 0 => {
            let again = wtxids[random.below(count)];
            wtxids.insert(random.below(count), again);
        }
        3 if count > 0 => wtxids.truncate(random.below(count)),
        4 => coinbase.version = random.next() as u32,
        5 => coinbase.sequence = random.next() as u32 | (random.next() as u32 & 1).wrapping_neg(),
        6 => coinbase.lock_time = random.below(300) as u32,
        7 => {
            let length = random.below(80);
            coinbase.script_sig_prefix.resize(length, random.next() as u8);
        }
        8 => move_value(&mut coinbase.outputs, 1),
        9 => move_value(&mut coinbase.outputs, -(random.below(3) as i64)),
        10 => built.version = built.version & 0x2000_0007 | random.next() as u32 & 0x3fff_ffff,
        _ => add_output(&mut coinbase.outputs, random),
    }
    if random.below(2) == 0 {
        recommit(built);
    }
}

/// The first output's value changed.
pub fn move_value(outputs: &mut [u8], by: i64) {
    let mut value = [0; 8];
    value.copy_from_slice(&outputs[1..9]);
    let value = i64::from_le_bytes(value).wrapping_add(by);
    outputs[1..9].copy_from_slice(&value.to_le_bytes());
}

/// Another output, first or last, of nothing or not.
fn add_output(outputs: &mut Vec<u8>, random: &mut Random) {
    let script = vec![random.next() as u8; random.below(50)];
    let mut output = u64::to_le_bytes(random.below(2) as u64).to_vec();
    write_compact_size(script.len() as u64, &mut output);
    output.extend_from_slice(&script);
    outputs[0] += 1;
    let at = if random.below(2) == 0 { 1 } else { outputs.len() };
    outputs.splice(at..at, output);
}

/// The witness commitment made to fit the list of transactions.
pub fn recommit(built: &mut BuiltJob) {
    let root = merkle_root([0; 32], &merkle_path(built.wtxids.as_deref().unwrap()));
    let commitment = sha256d(&[root, [0; 32]].concat());
    let outputs = &mut built.coinbase.outputs;
    let header = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
    if let Some(at) = outputs.windows(6).rposition(|window| window == header) {
        outputs[at + 6..at + 38].copy_from_slice(&commitment);
    }
}

/// Bytes changed wherever they stand.
fn change_bytes(declared: &mut Declaration, random: &mut Random) {
    let in_prefix = random.below(3) == 0;
    let part =
        if in_prefix { &mut declared.coinbase_prefix } else { &mut declared.coinbase_suffix };
    match random.below(10) {
        0..=3 if !part.is_empty() => {
            let at = random.below(part.len());
            part[at] ^= 1 << random.below(8);
        }
        4 if !part.is_empty() => {
            let at = random.below(part.len());
            part[at] = random.next() as u8;
        }
        5 if !part.is_empty() => drop(part.remove(random.below(part.len()))),
        6 => part.insert(random.below(part.len() + 1), random.next() as u8),
        7 => part.truncate(random.below(part.len() + 1)),
        8 if !declared.wtxids.is_empty() => {
            let at = random.below(declared.wtxids.len());
            declared.wtxids[at][random.below(32)] ^= 1 << random.below(8);
        }
        _ => declared.version ^= 1 << random.below(32),
    }
}

/// The coinbase as it stands in a declaration, around an extranonce.
pub fn coinbase_bytes(declared: &Declaration, extranonce: &[u8; EXTRANONCE_LEN]) -> Vec<u8> {
    [&declared.coinbase_prefix[..], extranonce, &declared.coinbase_suffix].concat()
}
