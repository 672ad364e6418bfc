//! The way of many inputs through a vector kernel, the same for all of them. Used by the parent module
//! alone. From the coinbase to the root an input never leaves its lane: the eight words of one hash are
//! words of the next message as they stand.

use std::array;

use super::{
    AFTER_DIGEST, AFTER_HEADER, AFTER_NODE, BLOCK_LEN, CoinbaseFields, CoinbaseHasher, INITIAL,
    RightHalf, Schedule,
};

/// `N` computations of SHA-256 side by side.
pub(super) trait Lanes<const N: usize>: Copy {
    /// Eight words of each lane: a chaining value, or half a block.
    type Words: Copy;

    /// The same words in every lane.
    fn splat(self, words: &[u32; 8]) -> Self::Words;

    /// Each lane's eight words that stand at `AT`, where every row has them.
    fn gather<const LEN: usize, const AT: usize>(self, rows: &[&[u8; LEN]; N]) -> Self::Words;

    /// Each lane's words as bytes.
    fn scatter(self, words: &Self::Words) -> [[u8; 32]; N];

    /// The chaining value `from` with a block of each lane taken in.
    fn compress(
        self,
        from: &Self::Words,
        left: &Self::Words,
        right: &Self::Words,
        into: &mut Self::Words,
    );

    /// `compress` with the same right half in every lane.
    fn compress_half(
        self,
        from: &Self::Words,
        left: &Self::Words,
        right: &RightHalf,
        into: &mut Self::Words,
    );

    /// `compress` with the same block in every lane.
    fn compress_fixed(self, from: &Self::Words, block: &Schedule, into: &mut Self::Words);

    /// One step up the merkle tree: SHA256d of each lane's `node` before a sibling. Uses up `node`.
    fn parent(
        self,
        initial: &Self::Words,
        node: &mut Self::Words,
        sibling: &RightHalf,
        into: &mut Self::Words,
    ) {
        self.compress_half(initial, node, sibling, into);
        self.compress_fixed(into, &AFTER_NODE, node);
        self.compress_half(initial, node, &AFTER_DIGEST, into);
    }

    /// SHA256d of each lane's header.
    fn header_hashes(self, headers: &[&[u8; 80]; N]) -> [[u8; 32]; N] {
        let initial = self.splat(&INITIAL);
        let (mut inner, mut hash) = (initial, initial);
        let ends = headers.map(after_first_block);
        let left = self.gather::<80, 0>(headers);
        let right = self.gather::<80, 32>(headers);
        let end = self.gather::<32, 0>(&ends.each_ref());
        self.compress(&initial, &left, &right, &mut hash);
        self.compress_half(&hash, &end, &AFTER_HEADER, &mut inner);
        self.compress_half(&initial, &inner, &AFTER_DIGEST, &mut hash);
        self.scatter(&hash)
    }
}

/// A header's last 16 bytes with what follows them: the end bit and zeros.
pub(super) fn after_first_block(header: &[u8; 80]) -> [u8; 32] {
    let mut end = [0; 32];
    end[..16].copy_from_slice(&header[64..]);
    end[16] = 0x80;
    end
}

pub(super) fn roots<const N: usize, L: Lanes<N>>(
    lanes: L,
    hasher: &CoinbaseHasher,
    coinbases: &[CoinbaseFields],
    roots: &mut [[u8; 32]],
) {
    for (coinbases, roots) in coinbases.chunks(N).zip(roots.chunks_mut(N)) {
        // A lane without an input of its own repeats the first.
        let heads: [_; N] =
            array::from_fn(|lane| hasher.head_with(coinbases.get(lane).unwrap_or(&coinbases[0])));
        for (root, lane) in roots.iter_mut().zip(roots_of(lanes, hasher, &heads)) {
            *root = lane;
        }
    }
}

fn roots_of<const N: usize, L: Lanes<N>>(
    lanes: L,
    hasher: &CoinbaseHasher,
    heads: &[[[u8; BLOCK_LEN]; 2]; N],
) -> [[u8; 32]; N] {
    let initial = lanes.splat(&INITIAL);
    let (mut node, mut next) = (lanes.splat(&hasher.midstate), initial);
    let (mut node, mut next) = (&mut node, &mut next);
    for block in 0..hasher.head_blocks {
        let rows = heads.each_ref().map(|head| &head[block]);
        let left = lanes.gather::<BLOCK_LEN, 0>(&rows);
        let right = lanes.gather::<BLOCK_LEN, 32>(&rows);
        lanes.compress(node, &left, &right, next);
        (node, next) = (next, node);
    }
    for block in &hasher.tail {
        lanes.compress_fixed(node, &block.schedule, next);
        (node, next) = (next, node);
    }
    lanes.compress_half(&initial, node, &AFTER_DIGEST, next);
    (node, next) = (next, node);
    for sibling in &hasher.path {
        lanes.parent(&initial, node, &sibling.right, next);
        (node, next) = (next, node);
    }
    lanes.scatter(node)
}

pub(super) fn header_hashes<const N: usize, L: Lanes<N>>(
    lanes: L,
    headers: &[[u8; 80]],
    hashes: &mut [[u8; 32]],
) {
    for (headers, hashes) in headers.chunks(N).zip(hashes.chunks_mut(N)) {
        let rows: [_; N] = array::from_fn(|lane| headers.get(lane).unwrap_or(&headers[0]));
        for (hash, lane) in hashes.iter_mut().zip(lanes.header_hashes(&rows)) {
            *hash = lane;
        }
    }
}

pub(super) fn pair_hashes<const N: usize, L: Lanes<N>>(
    lanes: L,
    pairs: &[[u8; BLOCK_LEN]],
    hashes: &mut [[u8; 32]],
) {
    let initial = lanes.splat(&INITIAL);
    let (mut inner, mut hash) = (initial, initial);
    for (pairs, hashes) in pairs.chunks(N).zip(hashes.chunks_mut(N)) {
        let rows: [_; N] = array::from_fn(|lane| pairs.get(lane).unwrap_or(&pairs[0]));
        let left = lanes.gather::<BLOCK_LEN, 0>(&rows);
        let right = lanes.gather::<BLOCK_LEN, 32>(&rows);
        lanes.compress(&initial, &left, &right, &mut hash);
        lanes.compress_fixed(&hash, &AFTER_NODE, &mut inner);
        lanes.compress_half(&initial, &inner, &AFTER_DIGEST, &mut hash);
        for (hash, lane) in hashes.iter_mut().zip(lanes.scatter(&hash)) {
            *hash = lane;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256::{portable, words_of, x86};

    /// FIPS 180-4's examples (NIST, "SHA-256 example computations"): messages and their hashes.
    const VECTORS: [(&[u8], &str); 2] = [
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
    ];

    fn blocks(message: &[u8]) -> Vec<[u8; BLOCK_LEN]> {
        let mut bytes = [message, &[0x80]].concat();
        bytes.resize((bytes.len() + 8).next_multiple_of(BLOCK_LEN) - 8, 0);
        bytes.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
        bytes.as_chunks().0.to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The example in one lane and other messages in the rest, by all three kinds of compression.
    fn check<const N: usize, L: Lanes<N>>(lanes: L) {
        for (message, expected) in VECTORS {
            for own in 0..N {
                let mut states = [lanes.splat(&INITIAL); 3];
                for block in blocks(message) {
                    let mut all: [[u8; BLOCK_LEN]; N] = array::from_fn(|lane| [lane as u8; 64]);
                    all[own] = block;
                    let left = lanes.gather::<BLOCK_LEN, 0>(&all.each_ref());
                    let right = lanes.gather::<BLOCK_LEN, 32>(&all.each_ref());
                    let half = RightHalf::new(words_of(&block[32..]));
                    let [full, halved, fixed] = states;
                    lanes.compress(&full, &left, &right, &mut states[0]);
                    lanes.compress_half(&halved, &left, &half, &mut states[1]);
                    let block = Schedule::new(words_of(&block));
                    lanes.compress_fixed(&fixed, &block, &mut states[2]);
                }
                for (kind, state) in states.iter().enumerate() {
                    assert_eq!(hex(&lanes.scatter(state)[own]), expected, "lane {own} kind {kind}");
                }
            }
        }
    }

    #[test]
    fn the_examples_of_the_standard_come_out_of_every_kernel() {
        for (message, expected) in VECTORS {
            let mut state = INITIAL;
            blocks(message).iter().for_each(|block| portable::compress(&mut state, block));
            assert_eq!(hex(&portable::to_bytes(&state)), expected);
        }
        if let Some(lanes) = x86::ShaNi::<1>::detect() {
            check(lanes);
        }
        if let Some(lanes) = x86::ShaNi::<2>::detect() {
            check(lanes);
        }
        if let Some(lanes) = x86::Avx2::detect() {
            check(lanes);
        }
        if let Some(lanes) = x86::Avx512::detect() {
            check(lanes);
        }
    }
}
