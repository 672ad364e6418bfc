//! One input after the other by the `sha2` crate: the reference that every other kernel must agree with,
//! and the way on CPUs without a better one. Used by the parent module alone.

use super::{
    AFTER_DIGEST_BYTES, AFTER_NODE_BYTES, BLOCK_LEN, CoinbaseFields, CoinbaseHasher, INITIAL,
};

/// Takes `block` into `state`.
pub(super) fn compress(state: &mut [u32; 8], block: &[u8; BLOCK_LEN]) {
    sha2::compress256(state, std::slice::from_ref(block.into()));
}

pub(super) fn roots(hasher: &CoinbaseHasher, coinbases: &[CoinbaseFields], roots: &mut [[u8; 32]]) {
    for (fields, root) in coinbases.iter().zip(roots) {
        let head = hasher.head_with(fields);
        let mut state = hasher.midstate;
        for block in &head[..hasher.head_blocks] {
            compress(&mut state, block);
        }
        for block in &hasher.tail {
            compress(&mut state, &block.bytes);
        }
        let mut node = outer(&state);
        for sibling in &hasher.path {
            let mut state = INITIAL;
            compress(&mut state, &join(&node, &sibling.bytes));
            compress(&mut state, &AFTER_NODE_BYTES);
            node = outer(&state);
        }
        *root = node;
    }
}

pub(super) fn header_hashes(headers: &[[u8; 80]], hashes: &mut [[u8; 32]]) {
    for (header, hash) in headers.iter().zip(hashes) {
        let mut blocks = [0; 2 * BLOCK_LEN];
        blocks[..80].copy_from_slice(header);
        blocks[80] = 0x80;
        blocks[120..].copy_from_slice(&(80u64 * 8).to_be_bytes());
        let mut state = INITIAL;
        for block in blocks.as_chunks().0 {
            compress(&mut state, block);
        }
        *hash = outer(&state);
    }
}

pub(super) fn pair_hashes(pairs: &[[u8; BLOCK_LEN]], hashes: &mut [[u8; 32]]) {
    for (pair, hash) in pairs.iter().zip(hashes) {
        let mut state = INITIAL;
        compress(&mut state, pair);
        compress(&mut state, &AFTER_NODE_BYTES);
        *hash = outer(&state);
    }
}

/// The hash of an inner hash.
fn outer(inner: &[u32; 8]) -> [u8; 32] {
    let mut state = INITIAL;
    compress(&mut state, &join(&to_bytes(inner), &AFTER_DIGEST_BYTES));
    to_bytes(&state)
}

fn join(left: &[u8; 32], right: &[u8; 32]) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    block[..32].copy_from_slice(left);
    block[32..].copy_from_slice(right);
    block
}

pub(super) fn to_bytes(words: &[u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_be_bytes();
    }
    bytes
}
