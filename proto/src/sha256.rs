//! SHA-256 for many shares at once: from extranonces to merkle roots, from headers to their hashes.
//! Called by `job` and `share` with what one read brought. No allocation but when a job is made.
//!
//! `sha2` is the reference and hashes on every CPU; where the CPU has vectors that are faster for
//! several inputs they are chosen at run time. What a kernel computes never depends on which it is.

#[cfg(target_arch = "x86_64")]
mod lanes;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::limits::EXTRANONCE_LEN;

/// What differs between the coinbases of one template's shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoinbaseFields {
    /// In full: the channel's prefix and what was rolled.
    pub extranonce: [u8; EXTRANONCE_LEN],
    /// nSequence, if it stands right behind the extranonce and is the job's number; else the suffix is
    /// taken as it is.
    pub sequence: Option<u32>,
}

/// Bytes of nSequence.
const SEQUENCE_LEN: usize = 4;
/// Bytes that one compression takes.
const BLOCK_LEN: usize = 64;

/// A way to compute SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The `sha2` crate, one input after the other.
    Portable,
    /// One input after the other on the CPU's SHA instructions. `sha2` uses them, too, but for one block
    /// at a time: what is the same for every share it works out again.
    ShaNi,
    /// Two inputs side by side on the CPU's SHA instructions, whose latency one input cannot fill.
    ShaNiPair,
    /// Eight inputs, one in each lane of a 256-bit vector.
    Avx2,
    /// Sixteen inputs, one in each lane of a 512-bit vector.
    Avx512,
}

impl Kernel {
    /// Every kernel, of this CPU or not.
    pub const ALL: [Self; 5] =
        [Self::Portable, Self::ShaNi, Self::ShaNiPair, Self::Avx2, Self::Avx512];

    /// Inputs that it hashes in the time of one.
    #[must_use]
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable | Self::ShaNi => 1,
            Self::ShaNiPair => 2,
            Self::Avx2 => 8,
            Self::Avx512 => 16,
        }
    }

    /// Whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::ShaNi => x86::ShaNi::<1>::detect().is_some(),
            Self::ShaNiPair => x86::ShaNi::<2>::detect().is_some(),
            Self::Avx2 => x86::Avx2::detect().is_some(),
            Self::Avx512 => x86::Avx512::detect().is_some(),
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Self::Portable)
    }

    /// The fastest way on this CPU to hash the first of `count` inputs, and how many of them go with
    /// it. A vector costs the same however few of its lanes are used, so few inputs take a narrow one.
    #[must_use]
    pub fn for_next_of(count: usize) -> (Self, usize) {
        let has_sha = Self::ShaNi.is_available();
        if has_sha && count == 1 {
            return (Self::ShaNi, 1);
        }
        let (avx512_from, avx2_from) =
            if has_sha { (AVX512_FROM_WITH_SHA, usize::MAX) } else { (AVX512_FROM, AVX2_FROM) };
        if count >= avx512_from && Self::Avx512.is_available() {
            (Self::Avx512, count.min(Self::Avx512.lanes()))
        } else if count >= avx2_from && Self::Avx2.is_available() {
            (Self::Avx2, count.min(Self::Avx2.lanes()))
        } else if has_sha {
            (Self::ShaNiPair, count & !1)
        } else {
            (Self::Portable, count)
        }
    }
}

/// Sixteen lanes take 197 ns a compression on Zen 5, a SHA-NI pair 50: four pairs are about one vector.
const AVX512_FROM_WITH_SHA: usize = 7;
/// Without SHA instructions one compression by `sha2` takes 376 ns on a Cascade Lake, sixteen in a vector
/// 331 and eight in one of AVX2 403.
const AVX512_FROM: usize = 1;
const AVX2_FROM: usize = 2;

/// Returns `$run` with the lanes of a vector kernel, if it is one and this CPU has it.
macro_rules! return_with_lanes {
    ($kernel:expr, |$lanes:ident| $run:expr) => {
        #[cfg(target_arch = "x86_64")]
        match $kernel {
            Kernel::Portable => {}
            Kernel::ShaNi => {
                if let Some($lanes) = x86::ShaNi::<1>::detect() {
                    return $run;
                }
            }
            Kernel::ShaNiPair => {
                if let Some($lanes) = x86::ShaNi::<2>::detect() {
                    return $run;
                }
            }
            Kernel::Avx2 => {
                if let Some($lanes) = x86::Avx2::detect() {
                    return $run;
                }
            }
            Kernel::Avx512 => {
                if let Some($lanes) = x86::Avx512::detect() {
                    return $run;
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = $kernel;
    };
}

/// The coinbase of one template around its extranonce and the path from it to the merkle root, with all
/// done that is the same for every share.
#[derive(Debug)]
pub struct CoinbaseHasher {
    /// After the whole blocks of the prefix.
    midstate: [u32; 8],
    /// The rest of the prefix, room for the extranonce and nSequence, and what follows up to the end of
    /// a block.
    head: [[u8; BLOCK_LEN]; 2],
    /// Blocks of `head` in use.
    head_blocks: usize,
    /// Where in `head` the extranonce stands.
    extranonce_at: usize,
    /// The suffix is long enough to start with an nSequence.
    has_sequence: bool,
    /// The coinbase behind its head, padding included.
    tail: Box<[Fixed]>,
    /// Siblings of the coinbase, deepest first.
    path: Box<[Sibling]>,
}

/// A block that is the same for every share.
#[derive(Debug)]
struct Fixed {
    bytes: [u8; BLOCK_LEN],
    schedule: Schedule,
}

/// A node of the merkle path.
#[derive(Debug)]
struct Sibling {
    bytes: [u8; 32],
    right: RightHalf,
}

impl CoinbaseHasher {
    /// For the coinbase `prefix`, extranonce, `suffix` (txid form) and the siblings of its txid, deepest
    /// first, header byte order.
    #[must_use]
    pub fn new(prefix: &[u8], suffix: &[u8], path: &[[u8; 32]]) -> Self {
        let (whole, rest) = prefix.as_chunks::<BLOCK_LEN>();
        let mut midstate = INITIAL;
        for block in whole {
            portable::compress(&mut midstate, block);
        }
        let mut bytes = [rest, &[0; EXTRANONCE_LEN], suffix].concat();
        let bits = (whole.len() * BLOCK_LEN + bytes.len()) as u64 * 8;
        bytes.push(0x80);
        bytes.resize((bytes.len() + 8).next_multiple_of(BLOCK_LEN) - 8, 0);
        bytes.extend_from_slice(&bits.to_be_bytes());
        let (blocks, _) = bytes.as_chunks::<BLOCK_LEN>();

        let extranonce_at = rest.len();
        let head_end = extranonce_at + EXTRANONCE_LEN + SEQUENCE_LEN;
        let head_blocks = head_end.div_ceil(BLOCK_LEN).min(blocks.len());
        let (in_head, in_tail) = blocks.split_at(head_blocks);
        let mut head = [[0; BLOCK_LEN]; 2];
        head[..head_blocks].copy_from_slice(in_head);
        Self {
            midstate,
            head,
            head_blocks,
            extranonce_at,
            has_sequence: suffix.len() >= SEQUENCE_LEN,
            tail: in_tail.iter().map(|bytes| Fixed::new(*bytes)).collect(),
            path: path.iter().map(|bytes| Sibling::new(*bytes)).collect(),
        }
    }

    /// `head` of one share. A sequence needs a suffix that it fits into.
    fn head_with(&self, fields: &CoinbaseFields) -> [[u8; BLOCK_LEN]; 2] {
        let mut head = self.head;
        let bytes = head.as_flattened_mut();
        let end = self.extranonce_at + EXTRANONCE_LEN;
        bytes[self.extranonce_at..end].copy_from_slice(&fields.extranonce);
        if let Some(sequence) = fields.sequence {
            assert!(self.has_sequence, "a suffix that starts with nSequence has its four bytes");
            bytes[end..end + SEQUENCE_LEN].copy_from_slice(&sequence.to_le_bytes());
        }
        head
    }

    /// The merkle root over each coinbase (header byte order), by what is fastest for so many. Both
    /// slices are of one length.
    pub fn roots(&self, coinbases: &[CoinbaseFields], roots: &mut [[u8; 32]]) {
        assert_eq!(coinbases.len(), roots.len(), "a root for each coinbase");
        let mut done = 0;
        while done < coinbases.len() {
            let (kernel, count) = Kernel::for_next_of(coinbases.len() - done);
            let now = done..done + count;
            self.roots_with(kernel, &coinbases[now.clone()], &mut roots[now]);
            done += count;
        }
    }

    /// `roots` by a kernel of the caller's choice (by `Portable` if the CPU has it not).
    pub fn roots_with(&self, kernel: Kernel, coinbases: &[CoinbaseFields], roots: &mut [[u8; 32]]) {
        assert_eq!(coinbases.len(), roots.len(), "a root for each coinbase");
        return_with_lanes!(kernel, |lanes| lanes::roots(lanes, self, coinbases, roots));
        portable::roots(self, coinbases, roots);
    }

    /// Puts the merkle root over each coinbase into its header and hashes the header. All slices are of
    /// one length.
    pub fn shares(
        &self,
        coinbases: &[CoinbaseFields],
        headers: &mut [[u8; 80]],
        hashes: &mut [[u8; 32]],
    ) {
        self.shares_by(Kernel::for_next_of, coinbases, headers, hashes);
    }

    /// `shares` by a kernel of the caller's choice (by `Portable` if the CPU has it not).
    pub fn shares_with(
        &self,
        kernel: Kernel,
        coinbases: &[CoinbaseFields],
        headers: &mut [[u8; 80]],
        hashes: &mut [[u8; 32]],
    ) {
        self.shares_by(|left| (kernel, left), coinbases, headers, hashes);
    }

    /// `shares` by what `next` says of so many that are left: a kernel, and how many of them go with it.
    pub(crate) fn shares_by(
        &self,
        next: impl Fn(usize) -> (Kernel, usize),
        coinbases: &[CoinbaseFields],
        headers: &mut [[u8; 80]],
        hashes: &mut [[u8; 32]],
    ) {
        assert_eq!(coinbases.len(), headers.len(), "a header for each coinbase");
        assert_eq!(coinbases.len(), hashes.len(), "a hash for each coinbase");
        let mut done = 0;
        while done < coinbases.len() {
            let (kernel, count) = next(coinbases.len() - done);
            let now = done..done + count;
            let (headers, hashes) = (&mut headers[now.clone()], &mut hashes[now.clone()]);
            // The roots lie where the hashes come.
            self.roots_with(kernel, &coinbases[now], hashes);
            for (header, root) in headers.iter_mut().zip(&*hashes) {
                header[36..68].copy_from_slice(root);
            }
            header_hashes_with(kernel, headers, hashes);
            done += count;
        }
    }
}

/// SHA256d of each header (header byte order), by what is fastest for so many. Both slices are of one
/// length.
pub fn header_hashes(headers: &[[u8; 80]], hashes: &mut [[u8; 32]]) {
    header_hashes_by(Kernel::for_next_of, headers, hashes);
}

/// `header_hashes` by what `next` says of so many that are left: a kernel, and how many of them go with it.
pub(crate) fn header_hashes_by(
    next: impl Fn(usize) -> (Kernel, usize),
    headers: &[[u8; 80]],
    hashes: &mut [[u8; 32]],
) {
    assert_eq!(headers.len(), hashes.len(), "a hash for each header");
    let mut done = 0;
    while done < headers.len() {
        let (kernel, count) = next(headers.len() - done);
        let now = done..done + count;
        header_hashes_with(kernel, &headers[now.clone()], &mut hashes[now]);
        done += count;
    }
}

/// `header_hashes` by a kernel of the caller's choice (by `Portable` if the CPU has it not).
pub fn header_hashes_with(kernel: Kernel, headers: &[[u8; 80]], hashes: &mut [[u8; 32]]) {
    assert_eq!(headers.len(), hashes.len(), "a hash for each header");
    return_with_lanes!(kernel, |lanes| lanes::header_hashes(lanes, headers, hashes));
    portable::header_hashes(headers, hashes);
}

/// SHA256d of each pair of merkle tree nodes (header byte order), by what is fastest for so many. Both
/// slices are of one length.
pub fn pair_hashes(pairs: &[[u8; 64]], hashes: &mut [[u8; 32]]) {
    assert_eq!(pairs.len(), hashes.len(), "a hash for each pair");
    let mut done = 0;
    while done < pairs.len() {
        let (kernel, count) = Kernel::for_next_of(pairs.len() - done);
        let now = done..done + count;
        pair_hashes_with(kernel, &pairs[now.clone()], &mut hashes[now]);
        done += count;
    }
}

/// `pair_hashes` by a kernel of the caller's choice (by `Portable` if the CPU has it not).
pub fn pair_hashes_with(kernel: Kernel, pairs: &[[u8; 64]], hashes: &mut [[u8; 32]]) {
    assert_eq!(pairs.len(), hashes.len(), "a hash for each pair");
    return_with_lanes!(kernel, |lanes| lanes::pair_hashes(lanes, pairs, hashes));
    portable::pair_hashes(pairs, hashes);
}

impl Fixed {
    fn new(bytes: [u8; BLOCK_LEN]) -> Self {
        Self { bytes, schedule: Schedule::new(words_of(&bytes)) }
    }
}

impl Sibling {
    fn new(bytes: [u8; 32]) -> Self {
        Self { bytes, right: RightHalf::new(words_of(&bytes)) }
    }
}

/// The 64 words of a block's message schedule, each with its round constant added.
#[derive(Debug)]
#[repr(align(64))]
struct Schedule([[u32; 16]; 4]);

impl Schedule {
    const fn new(block: [u32; 16]) -> Self {
        let mut words = block;
        let mut sums = [[0; 16]; 4];
        let mut round = 0;
        while round < 64 {
            let at = round % 16;
            if round >= 16 {
                words[at] = words[at]
                    .wrapping_add(small_sigma_0(words[(at + 1) % 16]))
                    .wrapping_add(words[(at + 9) % 16])
                    .wrapping_add(small_sigma_1(words[(at + 14) % 16]));
            }
            sums[round / 16][at] = words[at].wrapping_add(K[round / 16][at]);
            round += 1;
        }
        Self(sums)
    }
}

/// Words 8 to 15 of a block whose other half differs from lane to lane, with what follows from them
/// alone. All but the header's first block are of this kind or wholly known.
#[derive(Debug)]
struct RightHalf {
    words: [u32; 8],
    /// `words` with the constants of rounds 8 to 15 added.
    rounds: [u32; 8],
    /// What they bring into words 16 to 31 of the schedule.
    next: [u32; 16],
}

impl RightHalf {
    const fn new(words: [u32; 8]) -> Self {
        let mut rounds = [0; 8];
        let mut next = [0; 16];
        let mut at = 0;
        while at < 16 {
            // Word 16 + at = word at + s0(word at + 1) + word at + 9 + s1(word at + 14), of which those
            // from 8 to 15 are known.
            let mut sum = 0u32;
            if at >= 8 {
                rounds[at - 8] = words[at - 8].wrapping_add(K[0][at]);
                sum = sum.wrapping_add(words[at - 8]);
            }
            if at >= 7 && at < 15 {
                sum = sum.wrapping_add(small_sigma_0(words[at - 7]));
            }
            if at < 7 {
                sum = sum.wrapping_add(words[at + 1]);
            }
            if at < 2 {
                sum = sum.wrapping_add(small_sigma_1(words[at + 6]));
            }
            next[at] = sum;
            at += 1;
        }
        Self { words, rounds, next }
    }
}

const fn small_sigma_0(word: u32) -> u32 {
    word.rotate_right(7) ^ word.rotate_right(18) ^ (word >> 3)
}

const fn small_sigma_1(word: u32) -> u32 {
    word.rotate_right(17) ^ word.rotate_right(19) ^ (word >> 10)
}

/// What follows 32 bytes: the end bit and the length.
static AFTER_DIGEST: RightHalf = RightHalf::new(words_of(&AFTER_DIGEST_BYTES));
/// The second half of a header's second block.
static AFTER_HEADER: RightHalf = RightHalf::new([0, 0, 0, 0, 0, 0, 0, 640]);
/// The whole block that follows 64 bytes.
static AFTER_NODE: Schedule = Schedule::new(words_of(&AFTER_NODE_BYTES));

const AFTER_DIGEST_BYTES: [u8; 32] = end(256);
const AFTER_NODE_BYTES: [u8; BLOCK_LEN] = end(512);

/// The end bit at the front and the length in bits at the back.
const fn end<const N: usize>(bits: u16) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[0] = 0x80;
    [bytes[N - 2], bytes[N - 1]] = bits.to_be_bytes();
    bytes
}

/// Big-endian words.
const fn words_of<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (chunks, _) = bytes.as_chunks::<4>();
    let mut words = [0; N];
    let mut at = 0;
    while at < N {
        words[at] = u32::from_be_bytes(chunks[at]);
        at += 1;
    }
    words
}

/// The chaining value that every hash starts from (FIPS 180-4 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The round constants (FIPS 180-4 4.2.2), by sixteen rounds.
static K: [[u32; 16]; 4] = [
    [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
    ],
    [
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
    ],
    [
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
    ],
    [
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ],
];
