//! Any coinbases, path and headers: every kernel of this CPU gives the roots and hashes that
//! the coinbase as a whole gives by `sha2`, and touches nothing else.

use proto::limits::MERKLE_PATH_MAX;
use proto::sha256::{CoinbaseFields, CoinbaseHasher, Kernel, header_hashes, header_hashes_with};
use proto::template::{merkle_root, sha256d};

use super::Bytes;

/// Two and a half of the widest vector.
const SHARES_MAX: u8 = 40;

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    let count = usize::from(data.byte() % (SHARES_MAX + 1));
    let path: Vec<[u8; 32]> =
        (0..usize::from(data.byte()) % (MERKLE_PATH_MAX + 1)).map(|_| data.array()).collect();
    let (prefix_len, suffix_len) = (data.byte(), data.byte());
    let prefix = bytes(&mut data, usize::from(prefix_len) + usize::from(suffix_len & 0x3f));
    let suffix = bytes(&mut data, usize::from(suffix_len) + usize::from(prefix_len & 0x3f));
    let coinbases: Vec<CoinbaseFields> = (0..count)
        .map(|_| {
            let sequence = (data.byte() & 1 == 0 && suffix.len() >= 4).then(|| data.u32());
            CoinbaseFields { extranonce: data.array(), sequence }
        })
        .collect();
    let headers: Vec<[u8; 80]> = (0..count).map(|_| data.array()).collect();
    let hasher = CoinbaseHasher::new(&prefix, &suffix, &path);
    check(&hasher, (&prefix, &suffix), &path, &coinbases, &headers);
}

fn bytes(data: &mut Bytes<'_>, len: usize) -> Vec<u8> {
    let mut bytes = data.take(len).to_vec();
    bytes.resize(len, 0x5a);
    bytes
}

fn check(
    hasher: &CoinbaseHasher,
    (prefix, suffix): (&[u8], &[u8]),
    path: &[[u8; 32]],
    coinbases: &[CoinbaseFields],
    headers: &[[u8; 80]],
) {
    let root = |fields: &CoinbaseFields| {
        let mut suffix = suffix.to_vec();
        if let Some(sequence) = fields.sequence {
            suffix[..4].copy_from_slice(&sequence.to_le_bytes());
        }
        merkle_root(sha256d(&[prefix, &fields.extranonce, &suffix].concat()), path)
    };
    let roots: Vec<[u8; 32]> = coinbases.iter().map(root).collect();
    let hashes: Vec<[u8; 32]> = headers.iter().map(|header| sha256d(header)).collect();
    let mut full = headers.to_vec();
    full.iter_mut().zip(&roots).for_each(|(header, root)| header[36..68].copy_from_slice(root));
    let full_hashes: Vec<[u8; 32]> = full.iter().map(|header| sha256d(header)).collect();

    let count = headers.len();
    let kernels = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available());
    // `None`: left to the CPU and the count.
    for kernel in kernels.map(Some).chain([None]) {
        let mut out = vec![[0; 32]; count];
        match kernel {
            Some(kernel) => hasher.roots_with(kernel, coinbases, &mut out),
            None => hasher.roots(coinbases, &mut out),
        }
        assert_eq!(out, roots, "roots by {kernel:?}");

        let mut out = vec![[0; 32]; count];
        match kernel {
            Some(kernel) => header_hashes_with(kernel, headers, &mut out),
            None => header_hashes(headers, &mut out),
        }
        assert_eq!(out, hashes, "header hashes by {kernel:?}");

        let mut out = vec![[0; 32]; count];
        let mut filled = headers.to_vec();
        match kernel {
            Some(kernel) => hasher.shares_with(kernel, coinbases, &mut filled, &mut out),
            None => hasher.shares(coinbases, &mut filled, &mut out),
        }
        assert_eq!(filled, full, "headers by {kernel:?}");
        assert_eq!(out, full_hashes, "share hashes by {kernel:?}");
    }
}
