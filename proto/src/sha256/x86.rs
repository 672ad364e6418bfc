//! SHA-256 in the vector instructions of x86-64. Used by the parent module alone, and the one file of
//! the project with `unsafe` in it: for memory behind a pointer and for functions that need a CPU
//! feature. The latter are reached through a token that exists only where the CPU has it.

#![expect(unsafe_code, reason = "vector loads and stores, and calls that need a CPU feature")]

use super::lanes::{Lanes, after_first_block};
use super::{AFTER_DIGEST, AFTER_HEADER, AFTER_NODE, INITIAL, K, RightHalf, Schedule};

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use sha_ni::ShaNi;

/// Eight words of each lane: a row is one word of all of them.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Rows<const N: usize>([[u32; N]; 8]);

/// The 16 bytes at `at`.
#[inline]
fn piece<const LEN: usize>(row: &[u8; LEN], at: usize) -> &[u8; 16] {
    row[at..].first_chunk().expect("only pieces that every row has are asked for, in `lanes`")
}

/// A token, the way to get it, and the functions behind `Lanes`, which its module has in full. What a
/// module has of its own beside them stands behind the features.
macro_rules! token {
    ($(#[$doc:meta])* $token:ident $([$n:ident])?, $lanes:tt, $words:ty, [$($feature:tt),+]
        $(, $own:item)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(in super::super) struct $token $(<const $n: usize>)?(());

        impl $(<const $n: usize>)? $token $(<$n>)? {
            /// The proof that this CPU has the features.
            pub(in super::super) fn detect() -> Option<Self> {
                ($(is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }
        }

        impl $(<const $n: usize>)? Lanes<$lanes> for $token $(<$n>)? {
            type Words = $words;

            fn splat(self, words: &[u32; 8]) -> $words {
                splat_words(words)
            }

            fn gather<const LEN: usize, const AT: usize>(
                self,
                rows: &[&[u8; LEN]; $lanes],
            ) -> $words {
                // SAFETY: a token exists only where `detect` found the features.
                unsafe { gather::<$($n, )?LEN, AT>(rows) }
            }

            fn scatter(self, words: &$words) -> [[u8; 32]; $lanes] {
                // SAFETY: as above.
                unsafe { scatter(words) }
            }

            fn compress(self, from: &$words, left: &$words, right: &$words, into: &mut $words) {
                // SAFETY: as above.
                unsafe { compress(from, left, right, into) }
            }

            fn compress_half(
                self,
                from: &$words,
                left: &$words,
                right: &RightHalf,
                into: &mut $words,
            ) {
                // SAFETY: as above.
                unsafe { compress_half(from, left, right, into) }
            }

            fn compress_fixed(self, from: &$words, block: &Schedule, into: &mut $words) {
                // SAFETY: as above.
                unsafe { compress_fixed(from, block, into) }
            }

            $($own)*
        }
    };
}

/// One round: `$sum` is a word of the schedule with its constant. The names move on, the words stay.
///
/// The next round waits for `$d`: what is known early is added first, so that only two additions follow
/// `big_sigma_1`. Left to itself the compiler puts a third into that chain. It costs nothing where the
/// ports are the limit (measured on Intel), and one step in five where the latency is.
macro_rules! round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $sum:expr) => {
        let ready = in_this_order(add(in_this_order(add($h, $sum)), choose($e, $f, $g)));
        let first = add(ready, big_sigma_1($e));
        $d = add($d, first);
        $h = add(first, add(big_sigma_0($a), majority($a, $b, $c)));
    };
}

macro_rules! eight_rounds {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident,
        $s0:expr, $s1:expr, $s2:expr, $s3:expr, $s4:expr, $s5:expr, $s6:expr, $s7:expr) => {
        round!($a $b $c $d $e $f $g $h, $s0);
        round!($h $a $b $c $d $e $f $g, $s1);
        round!($g $h $a $b $c $d $e $f, $s2);
        round!($f $g $h $a $b $c $d $e, $s3);
        round!($e $f $g $h $a $b $c $d, $s4);
        round!($d $e $f $g $h $a $b $c, $s5);
        round!($c $d $e $f $g $h $a $b, $s6);
        round!($b $c $d $e $f $g $h $a, $s7);
    };
}

/// The word that follows the sixteen of `$w`, put where it is looked for later.
macro_rules! scheduled {
    ($w:ident, $at:literal) => {{
        $w[$at] = add(
            add($w[$at], small_sigma_0($w[($at + 1) % 16])),
            add($w[($at + 9) % 16], small_sigma_1($w[($at + 14) % 16])),
        );
        $w[$at]
    }};
}

/// What a module with 32-bit lanes in a vector has in common with another, given `V` and the
/// operations on it.
macro_rules! vector_kernel {
    ($features:literal) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn big_sigma_0(v: V) -> V {
            xor3(rotate::<2, 30>(v), rotate::<13, 19>(v), rotate::<22, 10>(v))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn big_sigma_1(v: V) -> V {
            xor3(rotate::<6, 26>(v), rotate::<11, 21>(v), rotate::<25, 7>(v))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn small_sigma_0(v: V) -> V {
            xor3(rotate::<7, 25>(v), rotate::<18, 14>(v), shift::<3>(v))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn small_sigma_1(v: V) -> V {
            xor3(rotate::<17, 15>(v), rotate::<19, 13>(v), shift::<10>(v))
        }

        fn splat_words(words: &[u32; 8]) -> Rows<LANES> {
            Rows(words.map(|word| [word; LANES]))
        }

        /// Transposes the 4 x 4 words in each 128 bits of four vectors.
        #[inline]
        #[target_feature(enable = $features)]
        fn transposed(rows: [V; 4]) -> [V; 4] {
            let low_01 = unpack_low_32(rows[0], rows[1]);
            let high_01 = unpack_high_32(rows[0], rows[1]);
            let low_23 = unpack_low_32(rows[2], rows[3]);
            let high_23 = unpack_high_32(rows[2], rows[3]);
            [
                unpack_low_64(low_01, low_23),
                unpack_high_64(low_01, low_23),
                unpack_low_64(high_01, high_23),
                unpack_high_64(high_01, high_23),
            ]
        }

        #[target_feature(enable = $features)]
        fn gather<const LEN: usize, const AT: usize>(rows: &[&[u8; LEN]; LANES]) -> Rows<LANES> {
            let mut words = Rows([[0; LANES]; 8]);
            let (top, bottom) = words.0.split_at_mut(4);
            for (at, words) in [(AT, top), (AT + 16, bottom)] {
                // Lane 4 k + j comes into the k-th 128 bits of vector j.
                let vectors = [
                    swap_bytes(join(rows, at, 0)),
                    swap_bytes(join(rows, at, 1)),
                    swap_bytes(join(rows, at, 2)),
                    swap_bytes(join(rows, at, 3)),
                ];
                for (words, vector) in words.iter_mut().zip(transposed(vectors)) {
                    store(words, vector);
                }
            }
            words
        }

        #[target_feature(enable = $features)]
        fn scatter(words: &Rows<LANES>) -> [[u8; 32]; LANES] {
            let mut lanes = [[0; 32]; LANES];
            for (at, rows) in words.0.as_chunks::<4>().0.iter().enumerate() {
                let vectors =
                    transposed([load(&rows[0]), load(&rows[1]), load(&rows[2]), load(&rows[3])]);
                for (first, vector) in vectors.into_iter().enumerate() {
                    let pieces = to_pieces(swap_bytes(vector));
                    for (lane, piece) in lanes[first..].iter_mut().step_by(4).zip(pieces) {
                        lane[16 * at..16 * at + 16].copy_from_slice(&piece);
                    }
                }
            }
            lanes
        }

        #[target_feature(enable = $features)]
        fn compress(
            from: &Rows<LANES>,
            left: &Rows<LANES>,
            right: &Rows<LANES>,
            into: &mut Rows<LANES>,
        ) {
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = load_all(from);
            let [w0, w1, w2, w3, w4, w5, w6, w7] = load_all(left);
            let [w8, w9, w10, w11, w12, w13, w14, w15] = load_all(right);
            let mut w = [w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15];
            let k = &K[0];
            eight_rounds!(
                a b c d e f g h,
                add(w0, splat(k[0])), add(w1, splat(k[1])),
                add(w2, splat(k[2])), add(w3, splat(k[3])),
                add(w4, splat(k[4])), add(w5, splat(k[5])),
                add(w6, splat(k[6])), add(w7, splat(k[7]))
            );
            eight_rounds!(
                a b c d e f g h,
                add(w8, splat(k[8])), add(w9, splat(k[9])),
                add(w10, splat(k[10])), add(w11, splat(k[11])),
                add(w12, splat(k[12])), add(w13, splat(k[13])),
                add(w14, splat(k[14])), add(w15, splat(k[15]))
            );
            for k in &K[1..] {
                scheduled_rounds!(a b c d e f g h, w, k);
            }
            store_sums(into, from, [a, b, c, d, e, f, g, h]);
        }

        #[target_feature(enable = $features)]
        fn compress_half(
            from: &Rows<LANES>,
            left: &Rows<LANES>,
            right: &RightHalf,
            into: &mut Rows<LANES>,
        ) {
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = load_all(from);
            let [w0, w1, w2, w3, w4, w5, w6, w7] = load_all(left);
            let (k, sums, known) = (&K[0], &right.rounds, &right.next);
            eight_rounds!(
                a b c d e f g h,
                add(w0, splat(k[0])), add(w1, splat(k[1])),
                add(w2, splat(k[2])), add(w3, splat(k[3])),
                add(w4, splat(k[4])), add(w5, splat(k[5])),
                add(w6, splat(k[6])), add(w7, splat(k[7]))
            );
            eight_rounds!(
                a b c d e f g h,
                splat(sums[0]), splat(sums[1]), splat(sums[2]), splat(sums[3]),
                splat(sums[4]), splat(sums[5]), splat(sums[6]), splat(sums[7])
            );
            // Words 16 to 31 of the schedule; `known` is what the right half has in each.
            let x0 = add(add(w0, small_sigma_0(w1)), splat(known[0]));
            let x1 = add(add(w1, small_sigma_0(w2)), splat(known[1]));
            let x2 = add(add(w2, small_sigma_0(w3)), add(small_sigma_1(x0), splat(known[2])));
            let x3 = add(add(w3, small_sigma_0(w4)), add(small_sigma_1(x1), splat(known[3])));
            let x4 = add(add(w4, small_sigma_0(w5)), add(small_sigma_1(x2), splat(known[4])));
            let x5 = add(add(w5, small_sigma_0(w6)), add(small_sigma_1(x3), splat(known[5])));
            let x6 = add(add(w6, small_sigma_0(w7)), add(small_sigma_1(x4), splat(known[6])));
            let x7 = add(add(w7, splat(known[7])), add(small_sigma_1(x5), x0));
            let x8 = add(splat(known[8]), add(small_sigma_1(x6), x1));
            let x9 = add(splat(known[9]), add(small_sigma_1(x7), x2));
            let x10 = add(splat(known[10]), add(small_sigma_1(x8), x3));
            let x11 = add(splat(known[11]), add(small_sigma_1(x9), x4));
            let x12 = add(splat(known[12]), add(small_sigma_1(x10), x5));
            let x13 = add(splat(known[13]), add(small_sigma_1(x11), x6));
            let x14 = add(splat(known[14]), add(small_sigma_1(x12), x7));
            let x15 =
                add(add(splat(known[15]), small_sigma_0(x0)), add(small_sigma_1(x13), x8));
            let k = &K[1];
            eight_rounds!(
                a b c d e f g h,
                add(x0, splat(k[0])), add(x1, splat(k[1])),
                add(x2, splat(k[2])), add(x3, splat(k[3])),
                add(x4, splat(k[4])), add(x5, splat(k[5])),
                add(x6, splat(k[6])), add(x7, splat(k[7]))
            );
            eight_rounds!(
                a b c d e f g h,
                add(x8, splat(k[8])), add(x9, splat(k[9])),
                add(x10, splat(k[10])), add(x11, splat(k[11])),
                add(x12, splat(k[12])), add(x13, splat(k[13])),
                add(x14, splat(k[14])), add(x15, splat(k[15]))
            );
            let mut w = [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15];
            for k in &K[2..] {
                scheduled_rounds!(a b c d e f g h, w, k);
            }
            store_sums(into, from, [a, b, c, d, e, f, g, h]);
        }

        #[target_feature(enable = $features)]
        fn compress_fixed(from: &Rows<LANES>, block: &Schedule, into: &mut Rows<LANES>) {
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = load_all(from);
            for sums in block.0.as_flattened().as_chunks::<8>().0 {
                eight_rounds!(
                    a b c d e f g h,
                    splat(sums[0]), splat(sums[1]), splat(sums[2]), splat(sums[3]),
                    splat(sums[4]), splat(sums[5]), splat(sums[6]), splat(sums[7])
                );
            }
            store_sums(into, from, [a, b, c, d, e, f, g, h]);
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn load_all(words: &Rows<LANES>) -> [V; 8] {
            let [a, b, c, d, e, f, g, h] = &words.0;
            [load(a), load(b), load(c), load(d), load(e), load(f), load(g), load(h)]
        }

        /// The end of a compression.
        #[inline]
        #[target_feature(enable = $features)]
        fn store_sums(into: &mut Rows<LANES>, from: &Rows<LANES>, state: [V; 8]) {
            for ((into, from), vector) in into.0.iter_mut().zip(&from.0).zip(state) {
                store(into, add(load(from), vector));
            }
        }
    };
}

macro_rules! scheduled_rounds {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $k:ident) => {
        eight_rounds!(
            $a $b $c $d $e $f $g $h,
            add(scheduled!($w, 0), splat($k[0])), add(scheduled!($w, 1), splat($k[1])),
            add(scheduled!($w, 2), splat($k[2])), add(scheduled!($w, 3), splat($k[3])),
            add(scheduled!($w, 4), splat($k[4])), add(scheduled!($w, 5), splat($k[5])),
            add(scheduled!($w, 6), splat($k[6])), add(scheduled!($w, 7), splat($k[7]))
        );
        eight_rounds!(
            $a $b $c $d $e $f $g $h,
            add(scheduled!($w, 8), splat($k[8])), add(scheduled!($w, 9), splat($k[9])),
            add(scheduled!($w, 10), splat($k[10])), add(scheduled!($w, 11), splat($k[11])),
            add(scheduled!($w, 12), splat($k[12])), add(scheduled!($w, 13), splat($k[13])),
            add(scheduled!($w, 14), splat($k[14])), add(scheduled!($w, 15), splat($k[15]))
        );
    };
}

mod avx512 {
    use core::arch::asm;
    use core::arch::x86_64::{
        __m512i, _mm_loadu_si128, _mm_setr_epi8, _mm512_add_epi32, _mm512_broadcast_i32x4,
        _mm512_castsi128_si512, _mm512_inserti32x4, _mm512_loadu_si512, _mm512_ror_epi32,
        _mm512_set1_epi32, _mm512_shuffle_epi8, _mm512_srli_epi32, _mm512_storeu_si512,
        _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
        _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::{K, Lanes, RightHalf, Rows, Schedule, piece};

    const LANES: usize = 16;
    type V = __m512i;

    token!(
        /// Sixteen lanes of a 512-bit vector.
        Avx512, 16, Rows<16>, ["avx512f", "avx512bw"]
    );

    vector_kernel!("avx512f,avx512bw");

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn splat(word: u32) -> V {
        _mm512_set1_epi32(word.cast_signed())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(words: &[u32; LANES]) -> V {
        // SAFETY: reads the 64 bytes that `words` is; no alignment is asked.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(words: &mut [u32; LANES], v: V) {
        // SAFETY: writes the 64 bytes that `words` is; no alignment is asked.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), v) }
    }

    /// The 16 bytes at `at` of every fourth row from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn join<const LEN: usize>(rows: &[&[u8; LEN]; LANES], at: usize, first: usize) -> V {
        let [a, b, c, d] = [first, first + 4, first + 8, first + 12].map(|lane| {
            let piece = piece(rows[lane], at);
            // SAFETY: reads the 16 bytes of a piece; no alignment is asked.
            unsafe { _mm_loadu_si128(piece.as_ptr().cast()) }
        });
        let v = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v, c), d)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn to_pieces(v: V) -> [[u8; 16]; LANES / 4] {
        let mut pieces = [[0; 16]; LANES / 4];
        // SAFETY: writes the 64 bytes that `pieces` is; no alignment is asked.
        unsafe { _mm512_storeu_si512(pieces.as_mut_ptr().cast(), v) }
        pieces
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn swap_bytes(v: V) -> V {
        let order = _mm_setr_epi8(3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
        _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn add(a: V, b: V) -> V {
        _mm512_add_epi32(a, b)
    }

    /// To the right by `RIGHT`; `LEFT` is the rest to 32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn rotate<const RIGHT: i32, const LEFT: i32>(v: V) -> V {
        _mm512_ror_epi32::<RIGHT>(v)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn shift<const RIGHT: u32>(v: V) -> V {
        _mm512_srli_epi32::<RIGHT>(v)
    }

    /// Keeps the compiler from adding up in another order (see `round`).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn in_this_order(mut sum: V) -> V {
        // SAFETY: no instruction, no memory; the value stays in its register.
        unsafe {
            asm!("/* {0} */", inout(zmm_reg) sum, options(pure, nomem, nostack, preserves_flags))
        };
        sum
    }

    // The number of a three-input function is its column of the truth table.

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn xor3(a: V, b: V, c: V) -> V {
        _mm512_ternarylogic_epi32::<0x96>(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn choose(e: V, f: V, g: V) -> V {
        _mm512_ternarylogic_epi32::<0xca>(e, f, g)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn majority(a: V, b: V, c: V) -> V {
        _mm512_ternarylogic_epi32::<0xe8>(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unpack_low_32(a: V, b: V) -> V {
        _mm512_unpacklo_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unpack_high_32(a: V, b: V) -> V {
        _mm512_unpackhi_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unpack_low_64(a: V, b: V) -> V {
        _mm512_unpacklo_epi64(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unpack_high_64(a: V, b: V) -> V {
        _mm512_unpackhi_epi64(a, b)
    }
}

mod avx2 {
    use core::arch::asm;
    use core::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_castsi128_si256,
        _mm256_inserti128_si256, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi32,
        _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32,
        _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
        _mm256_unpacklo_epi64, _mm256_xor_si256,
    };

    use super::{K, Lanes, RightHalf, Rows, Schedule, piece};

    const LANES: usize = 8;
    type V = __m256i;

    token!(
        /// Eight lanes of a 256-bit vector.
        Avx2, 8, Rows<8>, ["avx2"]
    );

    vector_kernel!("avx2");

    #[inline]
    #[target_feature(enable = "avx2")]
    fn splat(word: u32) -> V {
        _mm256_set1_epi32(word.cast_signed())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(words: &[u32; LANES]) -> V {
        // SAFETY: reads the 32 bytes that `words` is; no alignment is asked.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(words: &mut [u32; LANES], v: V) {
        // SAFETY: writes the 32 bytes that `words` is; no alignment is asked.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), v) }
    }

    /// The 16 bytes at `at` of every fourth row from `first` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn join<const LEN: usize>(rows: &[&[u8; LEN]; LANES], at: usize, first: usize) -> V {
        let [a, b] = [first, first + 4].map(|lane| {
            let piece = piece(rows[lane], at);
            // SAFETY: reads the 16 bytes of a piece; no alignment is asked.
            unsafe { _mm_loadu_si128(piece.as_ptr().cast()) }
        });
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn to_pieces(v: V) -> [[u8; 16]; LANES / 4] {
        let mut pieces = [[0; 16]; LANES / 4];
        // SAFETY: writes the 32 bytes that `pieces` is; no alignment is asked.
        unsafe { _mm256_storeu_si256(pieces.as_mut_ptr().cast(), v) }
        pieces
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn swap_bytes(v: V) -> V {
        let order = _mm256_setr_epi8(
            3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10,
            9, 8, 15, 14, 13, 12,
        );
        _mm256_shuffle_epi8(v, order)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(a: V, b: V) -> V {
        _mm256_add_epi32(a, b)
    }

    /// To the right by `RIGHT`; `LEFT` is the rest to 32.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rotate<const RIGHT: i32, const LEFT: i32>(v: V) -> V {
        _mm256_or_si256(_mm256_srli_epi32::<RIGHT>(v), _mm256_slli_epi32::<LEFT>(v))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn shift<const RIGHT: i32>(v: V) -> V {
        _mm256_srli_epi32::<RIGHT>(v)
    }

    /// Keeps the compiler from adding up in another order (see `round`).
    #[inline]
    #[target_feature(enable = "avx2")]
    fn in_this_order(mut sum: V) -> V {
        // SAFETY: no instruction, no memory; the value stays in its register.
        unsafe {
            asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags))
        };
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor3(a: V, b: V, c: V) -> V {
        _mm256_xor_si256(_mm256_xor_si256(a, b), c)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn choose(e: V, f: V, g: V) -> V {
        _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn majority(a: V, b: V, c: V) -> V {
        _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpack_low_32(a: V, b: V) -> V {
        _mm256_unpacklo_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpack_high_32(a: V, b: V) -> V {
        _mm256_unpackhi_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpack_low_64(a: V, b: V) -> V {
        _mm256_unpacklo_epi64(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpack_high_64(a: V, b: V) -> V {
        _mm256_unpackhi_epi64(a, b)
    }
}

mod sha_ni {
    use core::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_setr_epi8,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::{
        AFTER_DIGEST, AFTER_HEADER, AFTER_NODE, INITIAL, K, Lanes, RightHalf, Schedule,
        after_first_block, piece,
    };

    /// Four words.
    type V = __m128i;

    /// Eight words of each lane: the first four of all lanes, then the others.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Lines<const N: usize>([[V; N]; 2]);

    token!(
        /// `N` computations whose instructions alternate. The instructions' latency is twice what they
        /// keep their unit busy for, so two are done in little more than the time of one.
        ShaNi[N], N, Lines<N>, ["sha", "sse4.1", "ssse3"],
        fn parent(
            self,
            initial: &Lines<N>,
            node: &mut Lines<N>,
            sibling: &RightHalf,
            into: &mut Lines<N>,
        ) {
            // SAFETY: as above.
            *into = unsafe { parent(initial, node, sibling) };
        },
        fn header_hashes(self, headers: &[&[u8; 80]; N]) -> [[u8; 32]; N] {
            // SAFETY: as above.
            unsafe { header_hashes(headers) }
        }
    );

    /// Working variables as the instructions take them.
    #[derive(Clone, Copy)]
    struct State<const N: usize> {
        abef: [V; N],
        cdgh: [V; N],
    }

    fn splat_words<const N: usize>(words: &[u32; 8]) -> Lines<N> {
        let (halves, _) = words.as_chunks::<4>();
        Lines([[load(&halves[0]); N], [load(&halves[1]); N]])
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn gather<const N: usize, const LEN: usize, const AT: usize>(
        rows: &[&[u8; LEN]; N],
    ) -> Lines<N> {
        Lines([AT, AT + 16].map(|at| {
            rows.map(|row| {
                let piece = piece(row, at);
                // SAFETY: reads the 16 bytes of a piece; no alignment is asked.
                swap_bytes(unsafe { _mm_loadu_si128(piece.as_ptr().cast()) })
            })
        }))
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn scatter<const N: usize>(words: &Lines<N>) -> [[u8; 32]; N] {
        let mut lanes = [[0; 32]; N];
        for (lane, bytes) in lanes.iter_mut().enumerate() {
            for (bytes, half) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(&words.0) {
                // SAFETY: writes the 16 bytes that `bytes` is; no alignment is asked.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), swap_bytes(half[lane])) }
            }
        }
        lanes
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn compress<const N: usize>(
        from: &Lines<N>,
        left: &Lines<N>,
        right: &Lines<N>,
        into: &mut Lines<N>,
    ) {
        *into = to_words(compressed(to_state(from), left, right));
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn compress_half<const N: usize>(
        from: &Lines<N>,
        left: &Lines<N>,
        right: &RightHalf,
        into: &mut Lines<N>,
    ) {
        *into = to_words(half_compressed(to_state(from), left, right));
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn compress_fixed<const N: usize>(from: &Lines<N>, block: &Schedule, into: &mut Lines<N>) {
        *into = to_words(fixed_compressed(to_state(from), block));
    }

    // What follows is three compressions in one: between them nothing goes through memory.

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn parent<const N: usize>(
        initial: &Lines<N>,
        node: &Lines<N>,
        sibling: &RightHalf,
    ) -> Lines<N> {
        let initial = to_state(initial);
        let both = half_compressed(initial, node, sibling);
        let inner = to_words(fixed_compressed(both, &AFTER_NODE));
        to_words(half_compressed(initial, &inner, &AFTER_DIGEST))
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn header_hashes<const N: usize>(headers: &[&[u8; 80]; N]) -> [[u8; 32]; N] {
        let initial = to_state(&splat_words(&INITIAL));
        let (left, right) = (gather::<N, 80, 0>(headers), gather::<N, 80, 32>(headers));
        let ends = headers.map(after_first_block);
        let end = gather::<N, 32, 0>(&ends.each_ref());
        let first = compressed(initial, &left, &right);
        let inner = to_words(half_compressed(first, &end, &AFTER_HEADER));
        scatter(&to_words(half_compressed(initial, &inner, &AFTER_DIGEST)))
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn compressed<const N: usize>(start: State<N>, left: &Lines<N>, right: &Lines<N>) -> State<N> {
        let (w, k) = ([left.0[0], left.0[1], right.0[0], right.0[1]], K[0].as_chunks::<4>().0);
        let mut state = start;
        four_rounds(&mut state, sums(w[0], &k[0]));
        four_rounds(&mut state, sums(w[1], &k[1]));
        four_rounds(&mut state, sums(w[2], &k[2]));
        four_rounds(&mut state, sums(w[3], &k[3]));
        scheduled_rounds(&mut state, w);
        added(start, state)
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn half_compressed<const N: usize>(
        start: State<N>,
        left: &Lines<N>,
        right: &RightHalf,
    ) -> State<N> {
        let (k, ready) = (K[0].as_chunks::<4>().0, right.rounds.as_chunks::<4>().0);
        let right = splat_words::<N>(&right.words);
        let mut state = start;
        four_rounds(&mut state, sums(left.0[0], &k[0]));
        four_rounds(&mut state, sums(left.0[1], &k[1]));
        four_rounds(&mut state, [load(&ready[0]); N]);
        four_rounds(&mut state, [load(&ready[1]); N]);
        scheduled_rounds(&mut state, [left.0[0], left.0[1], right.0[0], right.0[1]]);
        added(start, state)
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn fixed_compressed<const N: usize>(start: State<N>, block: &Schedule) -> State<N> {
        let mut state = start;
        for sums in block.0.as_flattened().as_chunks::<4>().0 {
            four_rounds(&mut state, [load(sums); N]);
        }
        added(start, state)
    }

    /// Rounds 16 to 63, after the sixteen words of `w`.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn scheduled_rounds<const N: usize>(state: &mut State<N>, mut w: [[V; N]; 4]) {
        for k in &K[1..] {
            let (k, _) = k.as_chunks::<4>();
            w[0] = next(w[0], w[1], w[2], w[3]);
            four_rounds(state, sums(w[0], &k[0]));
            w[1] = next(w[1], w[2], w[3], w[0]);
            four_rounds(state, sums(w[1], &k[1]));
            w[2] = next(w[2], w[3], w[0], w[1]);
            four_rounds(state, sums(w[2], &k[2]));
            w[3] = next(w[3], w[0], w[1], w[2]);
            four_rounds(state, sums(w[3], &k[3]));
        }
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn four_rounds<const N: usize>(state: &mut State<N>, sums: [V; N]) {
        // Lane by lane within each step: the chains hide each other's latency.
        for (lane, sums) in sums.into_iter().enumerate() {
            state.cdgh[lane] = _mm_sha256rnds2_epu32(state.cdgh[lane], state.abef[lane], sums);
        }
        for (lane, sums) in sums.into_iter().enumerate() {
            let upper = _mm_shuffle_epi32::<0x0e>(sums);
            state.abef[lane] = _mm_sha256rnds2_epu32(state.abef[lane], state.cdgh[lane], upper);
        }
    }

    /// The four words that follow sixteen.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn next<const N: usize>(w0: [V; N], w1: [V; N], w2: [V; N], w3: [V; N]) -> [V; N] {
        let mut words = w0;
        for lane in 0..N {
            let first = _mm_sha256msg1_epu32(w0[lane], w1[lane]);
            let second = _mm_add_epi32(first, _mm_alignr_epi8::<4>(w3[lane], w2[lane]));
            words[lane] = _mm_sha256msg2_epu32(second, w3[lane]);
        }
        words
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn sums<const N: usize>(mut words: [V; N], constants: &[u32; 4]) -> [V; N] {
        let constants = load(constants);
        words.iter_mut().for_each(|words| *words = _mm_add_epi32(*words, constants));
        words
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn to_state<const N: usize>(words: &Lines<N>) -> State<N> {
        let [mut abef, mut cdgh] = words.0;
        for lane in 0..N {
            let badc = _mm_shuffle_epi32::<0xb1>(words.0[0][lane]);
            let hgfe = _mm_shuffle_epi32::<0x1b>(words.0[1][lane]);
            abef[lane] = _mm_alignr_epi8::<8>(badc, hgfe);
            cdgh[lane] = _mm_blend_epi16::<0xf0>(hgfe, badc);
        }
        State { abef, cdgh }
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn to_words<const N: usize>(state: State<N>) -> Lines<N> {
        let [mut low, mut high] = [state.abef, state.cdgh];
        for lane in 0..N {
            let feba = _mm_shuffle_epi32::<0x1b>(low[lane]);
            let dchg = _mm_shuffle_epi32::<0xb1>(high[lane]);
            low[lane] = _mm_blend_epi16::<0xf0>(feba, dchg);
            high[lane] = _mm_alignr_epi8::<8>(dchg, feba);
        }
        Lines([low, high])
    }

    /// The end of a compression.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn added<const N: usize>(mut start: State<N>, end: State<N>) -> State<N> {
        for lane in 0..N {
            start.abef[lane] = _mm_add_epi32(start.abef[lane], end.abef[lane]);
            start.cdgh[lane] = _mm_add_epi32(start.cdgh[lane], end.cdgh[lane]);
        }
        start
    }

    #[inline]
    fn load(words: &[u32; 4]) -> V {
        // SAFETY: reads the 16 bytes that `words` is; no alignment is asked. Every x86-64 has SSE2.
        unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn swap_bytes(v: V) -> V {
        let order = _mm_setr_epi8(3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
        _mm_shuffle_epi8(v, order)
    }
}
