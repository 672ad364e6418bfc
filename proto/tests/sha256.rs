//! The SHA-256 kernels against blocks of the network, against the `sha2` crate on drawn inputs and
//! against the `bitcoin` crate's merkle trees. Each test takes every kernel that the CPU has. SHA-NI on a
//! machine without it: QEMU from 8.2 on, `qemu-x86_64 -cpu max target/debug/deps/sha256-<hash>`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use bitcoin::Txid;
use bitcoin::hashes::Hash;
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use sha2::{Digest, Sha256};

use proto::limits::{EXTRANONCE_LEN, MERKLE_PATH_MAX};
use proto::sha256::{
    CoinbaseFields, CoinbaseHasher, Kernel, header_hashes, header_hashes_with, pair_hashes,
    pair_hashes_with,
};
use proto::template::{merkle_path, merkle_root};

/// Two and a half times the widest vector.
const COUNT_MAX: usize = 40;

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn sha256d(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

/// 80 bytes that no two headers share.
fn header(number: u32) -> [u8; 80] {
    let mut header = [number as u8; 80];
    header[76..].copy_from_slice(&number.to_le_bytes());
    header
}

fn extranonce(number: u32) -> [u8; EXTRANONCE_LEN] {
    let mut extranonce = [number as u8; EXTRANONCE_LEN];
    extranonce[20..].copy_from_slice(&number.to_be_bytes());
    extranonce
}

/// In a coinbase that has no number.
fn plain(extranonce: [u8; EXTRANONCE_LEN]) -> CoinbaseFields {
    CoinbaseFields { extranonce, sequence: None }
}

#[test]
fn the_genesis_block_has_its_hash_in_every_lane() {
    let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Bitcoin);
    let bytes: [u8; 80] = bitcoin::consensus::serialize(&genesis.header).try_into().unwrap();
    for kernel in available() {
        for at in 0..COUNT_MAX {
            let mut headers: Vec<_> = (0..COUNT_MAX as u32).map(header).collect();
            headers[at] = bytes;
            let mut hashes = [[0; 32]; COUNT_MAX];
            header_hashes_with(kernel, &headers, &mut hashes);
            assert_eq!(hashes[at], genesis.block_hash().to_byte_array(), "{kernel:?} lane {at}");
        }
    }
}

#[test]
fn a_block_of_the_coinbase_alone_has_its_txid_for_a_root() {
    let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Bitcoin);
    let coinbase = bitcoin::consensus::serialize(&genesis.txdata[0]);
    for kernel in available() {
        for at in 0..coinbase.len() - EXTRANONCE_LEN {
            let (prefix, rest) = coinbase.split_at(at);
            let (extranonce, suffix) = rest.split_first_chunk().unwrap();
            let mut roots = [[0; 32]; 3];
            let hasher = CoinbaseHasher::new(prefix, suffix, &[]);
            hasher.roots_with(kernel, &[plain(*extranonce); 3], &mut roots);
            let root = genesis.header.merkle_root.to_byte_array();
            assert_eq!(roots, [root; 3], "{kernel:?} extranonce at {at}");
        }
    }
}

#[test]
fn pairs_of_tree_nodes_hash_as_sha2_hashes_them_in_every_lane() {
    let pair = |number: u32| {
        let mut pair = [number as u8; 64];
        pair[..4].copy_from_slice(&number.to_le_bytes());
        pair[60..].copy_from_slice(&number.to_be_bytes());
        pair
    };
    for count in 0..=COUNT_MAX {
        let pairs: Vec<_> = (1_000..1_000 + count as u32).map(pair).collect();
        let expected: Vec<_> = pairs.iter().map(|pair| sha256d(pair)).collect();
        for kernel in available() {
            let mut hashes = vec![[0; 32]; count];
            pair_hashes_with(kernel, &pairs, &mut hashes);
            assert_eq!(hashes, expected, "{kernel:?}, {count} of them");
        }
        let mut hashes = vec![[0; 32]; count];
        pair_hashes(&pairs, &mut hashes);
        assert_eq!(hashes, expected, "{count} of them");
    }
}

#[test]
fn every_length_of_prefix_and_suffix_is_padded_as_sha2_pads_it() {
    for kernel in available() {
        for prefix_len in 0..=130 {
            for suffix_len in (0..=70).chain([127, 128, 129, 2_000]) {
                let (prefix, suffix) = (vec![1; prefix_len], vec![2; suffix_len]);
                let hasher = CoinbaseHasher::new(&prefix, &suffix, &[]);
                let mut root = [[0; 32]];
                hasher.roots_with(kernel, &[plain(extranonce(3))], &mut root);
                let expected = sha256d(&[&prefix[..], &extranonce(3), &suffix].concat());
                assert_eq!(root, [expected], "{kernel:?} {prefix_len} {suffix_len}");
            }
        }
    }
}

#[test]
fn every_count_is_hashed_whole_and_in_order_whatever_the_lanes() {
    let path = [[7; 32], [8; 32]];
    let hasher = CoinbaseHasher::new(&[1; 71], &[2; 153], &path);
    let root = |number| {
        merkle_root(sha256d(&[&[1; 71][..], &extranonce(number), &[2; 153]].concat()), &path)
    };
    for count in 0..=COUNT_MAX as u32 {
        let coinbases: Vec<_> = (0..count).map(|number| plain(extranonce(number))).collect();
        let expected: Vec<_> = (0..count).map(root).collect();
        let headers: Vec<_> = (0..count).map(header).collect();
        let hashes: Vec<_> = headers.iter().map(|header| sha256d(header)).collect();
        for kernel in available() {
            let mut roots = vec![[0; 32]; count as usize];
            hasher.roots_with(kernel, &coinbases, &mut roots);
            assert_eq!(roots, expected, "{kernel:?} {count}");
            header_hashes_with(kernel, &headers, &mut roots);
            assert_eq!(roots, hashes, "{kernel:?} {count}");
        }
        let mut roots = vec![[0; 32]; count as usize];
        hasher.roots(&coinbases, &mut roots);
        assert_eq!(roots, expected, "{count}");
        header_hashes(&headers, &mut roots);
        assert_eq!(roots, hashes, "{count}");
    }
}

#[test]
fn a_share_leaves_its_root_in_its_header_and_the_rest_as_it_was() {
    let hasher = CoinbaseHasher::new(&[1; 71], &[2; 153], &[[7; 32]; 12]);
    let coinbases: Vec<_> = (0..COUNT_MAX as u32).map(|number| plain(extranonce(number))).collect();
    let mut expected: Vec<_> = (0..COUNT_MAX as u32).map(header).collect();
    let mut roots = vec![[0; 32]; COUNT_MAX];
    hasher.roots_with(Kernel::Portable, &coinbases, &mut roots);
    for (header, root) in expected.iter_mut().zip(&roots) {
        header[36..68].copy_from_slice(root);
    }
    for kernel in available() {
        let mut headers: Vec<_> = (0..COUNT_MAX as u32).map(header).collect();
        let mut hashes = vec![[0; 32]; COUNT_MAX];
        hasher.shares_with(kernel, &coinbases, &mut headers, &mut hashes);
        assert_eq!(headers, expected, "{kernel:?}");
        for (header, hash) in headers.iter().zip(hashes) {
            assert_eq!(hash, sha256d(header), "{kernel:?}");
        }
    }
}

#[test]
fn a_sequence_stands_behind_the_extranonce_and_may_differ_in_every_lane() {
    let coinbases: Vec<_> = (0..COUNT_MAX as u32)
        .map(|number| CoinbaseFields {
            extranonce: extranonce(7),
            sequence: (number % 3 != 0).then_some(number << 20 | number),
        })
        .collect();
    for (prefix_len, suffix_len) in
        (0..=130).flat_map(|prefix_len| [4, 5, 60, 153].map(|len| (prefix_len, len)))
    {
        let (prefix, suffix) = (vec![1; prefix_len], vec![2; suffix_len]);
        let hasher = CoinbaseHasher::new(&prefix, &suffix, &[]);
        let txid = |fields: &CoinbaseFields| {
            let mut suffix = suffix.clone();
            if let Some(sequence) = fields.sequence {
                suffix[..4].copy_from_slice(&sequence.to_le_bytes());
            }
            sha256d(&[&prefix[..], &fields.extranonce, &suffix].concat())
        };
        let expected: Vec<_> = coinbases.iter().map(txid).collect();
        for kernel in available() {
            let mut roots = vec![[0; 32]; COUNT_MAX];
            hasher.roots_with(kernel, &coinbases, &mut roots);
            assert_eq!(roots, expected, "{kernel:?} {prefix_len} {suffix_len}");
        }
    }
}

#[test]
#[should_panic(expected = "four bytes")]
fn a_sequence_is_not_written_over_the_padding_of_a_shorter_suffix() {
    let fields = CoinbaseFields { extranonce: extranonce(1), sequence: Some(1) };
    CoinbaseHasher::new(&[1; 71], &[2; 3], &[]).roots(&[fields], &mut [[0; 32]]);
}

#[test]
fn the_kernel_for_any_count_is_there_and_takes_some_of_it() {
    for count in 1..=COUNT_MAX {
        let (kernel, taken) = Kernel::for_next_of(count);
        assert!(kernel.is_available() && (1..=count).contains(&taken), "{count}");
    }
    if Kernel::ShaNi.is_available() {
        assert_eq!(Kernel::for_next_of(1), (Kernel::ShaNi, 1), "no lane for nothing");
        assert_eq!(Kernel::for_next_of(3), (Kernel::ShaNiPair, 2), "no lane for nothing");
    }
}

proptest! {
    #[test]
    fn every_kernel_computes_what_sha2_does(
        prefix in vec(any::<u8>(), 0..=300),
        suffix in vec(any::<u8>(), 0..=300),
        path in vec(any::<[u8; 32]>(), 0..=MERKLE_PATH_MAX),
        extranonces in vec(any::<[u8; EXTRANONCE_LEN]>(), 0..=COUNT_MAX),
    ) {
        let hasher = CoinbaseHasher::new(&prefix, &suffix, &path);
        let root = |extranonce: &[u8; EXTRANONCE_LEN]| {
            let txid = sha256d(&[&prefix[..], extranonce, &suffix].concat());
            path.iter().fold(txid, |node, sibling| sha256d(&[node, *sibling].concat()))
        };
        let expected: Vec<[u8; 32]> = extranonces.iter().map(root).collect();
        let coinbases: Vec<_> = extranonces.iter().copied().map(plain).collect();
        for kernel in available() {
            let mut roots = vec![[0; 32]; coinbases.len()];
            hasher.roots_with(kernel, &coinbases, &mut roots);
            assert_eq!(roots, expected, "{kernel:?}");
        }
    }

    #[test]
    fn every_kernel_reaches_the_root_of_the_bitcoin_crate(
        others in vec(any::<[u8; 32]>(), 0..200),
        extranonces in vec(any::<[u8; EXTRANONCE_LEN]>(), 1..=COUNT_MAX),
    ) {
        let hasher = CoinbaseHasher::new(&[1; 71], &[2; 153], &merkle_path(&others));
        let root = |extranonce: &[u8; EXTRANONCE_LEN]| {
            let txid = sha256d(&[&[1; 71][..], extranonce, &[2; 153]].concat());
            let all = std::iter::once(&txid).chain(&others).map(|id| Txid::from_byte_array(*id));
            bitcoin::merkle_tree::calculate_root(all).unwrap().to_byte_array()
        };
        let expected: Vec<[u8; 32]> = extranonces.iter().map(root).collect();
        let coinbases: Vec<_> = extranonces.iter().copied().map(plain).collect();
        for kernel in available() {
            let mut roots = vec![[0; 32]; coinbases.len()];
            hasher.roots_with(kernel, &coinbases, &mut roots);
            assert_eq!(roots, expected, "{kernel:?}");
        }
    }

    #[test]
    fn every_kernel_hashes_headers_as_sha2_does(
        headers in vec(any::<[[u8; 16]; 5]>(), 0..=COUNT_MAX),
    ) {
        let headers: Vec<[u8; 80]> =
            headers.iter().map(|header| header.as_flattened().try_into().unwrap()).collect();
        let expected: Vec<[u8; 32]> = headers.iter().map(|header| sha256d(header)).collect();
        for kernel in available() {
            let mut hashes = vec![[0; 32]; headers.len()];
            header_hashes_with(kernel, &headers, &mut hashes);
            assert_eq!(hashes, expected, "{kernel:?}");
        }
    }
}
