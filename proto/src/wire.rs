//! SV2 data types over byte slices (spec chapter 3.1): `Reader` takes them off a frame's payload,
//! `Writer` appends them to a reused buffer. Called by `message.rs` only.
//!
//! Nothing here allocates on the word of a length: variable fields borrow from the payload, and a
//! count is held against the bytes that are there before anything is made of it. Types that the wire
//! limits (`STR0_255` and its kin) can only be built within that limit, so encoding cannot fail.

use thiserror::Error;

use crate::limits::EXTRANONCE_ROLLABLE_LEN;

/// Bytes that are not the data type they should be. The peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// The payload ends inside a field.
    #[error("the payload ends inside a field")]
    Truncated,
    /// A `B0_32` of more than 32 bytes.
    #[error("a B0_32 field of {0} bytes")]
    TooLong(usize),
    /// An `OPTION` with a count other than 0 or 1.
    #[error("an OPTION with {0} elements")]
    OptionCount(u8),
    /// Bytes that are not a TLV where only TLVs may stand.
    #[error("trailing bytes that are no TLV")]
    Tlv,
}

/// A value longer than its wire type can carry; ours to avoid, so it never meets a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{len} bytes or elements in a field that holds {max}")]
pub struct TooLong {
    /// What was offered.
    pub len: usize,
    /// What the wire type holds.
    pub max: usize,
}

/// The payload that is still to be read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the first byte of `payload`.
    #[must_use]
    #[inline]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// What no field has taken yet.
    #[must_use]
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes where they stand: an array in a `Result` would be moved in odd pieces.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// One data type of chapter 3.1: how it is read and how it is written.
pub trait Field<'a>: Sized {
    /// What the shortest value takes: a message's fields are held against the payload at once.
    const LEN_MIN: usize;
    /// Takes the field off the front of `reader`.
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError>;
    /// Appends the field to `out`.
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl<'a> Field<'a> for $int {
            const LEN_MIN: usize = size_of::<$int>();
            #[inline]
            fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
                Ok(<$int>::from_le_bytes(*reader.array()?))
            }
            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
// F32 is read as it stands, NaN included: whether a NaN closes the connection or is answered is the
// machine's policy (rule G13), and the machine can only name the field if it sees it.
integers!(u8, u16, u32, u64, f32);

impl<'a> Field<'a> for bool {
    const LEN_MIN: usize = 1;
    /// Bit 0 counts, bits 1 to 7 are ignored (rule G6).
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(u8::read(reader)? & 1 == 1)
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

/// U256, PUBKEY: 32 raw bytes, little-endian where they are a number.
impl<'a> Field<'a> for [u8; 32] {
    const LEN_MIN: usize = 32;
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(*reader.array()?)
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<'a> Field<'a> for Option<u32> {
    const LEN_MIN: usize = 1;
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        match u8::read(reader)? {
            0 => Ok(None),
            1 => Ok(Some(u32::read(reader)?)),
            more => Err(WireError::OptionCount(more)),
        }
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.write(out);
            }
        }
    }
}

/// `B0_32`: 0 to 32 bytes, held inline so that a share stays `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct B032 {
    bytes: [u8; 32],
    // A word, behind words: a copy then reads the pieces that were written. Of a byte among bytes it reads
    // some that were written a moment ago in smaller pieces, and waits for them.
    len: u64,
}

impl B032 {
    /// A copy of `bytes` (0 to 32).
    pub fn new(bytes: &[u8]) -> Result<Self, TooLong> {
        let mut inline = [0; 32];
        let len = bytes.len();
        inline.get_mut(..len).ok_or(TooLong { len, max: 32 })?.copy_from_slice(bytes);
        Ok(Self { bytes: inline, len: len as u64 })
    }

    /// The bytes that are used.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// Number of bytes, 0 to 32.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for B032 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl<'a> Field<'a> for B032 {
    const LEN_MIN: usize = 1;
    // Kept in registers: through memory a share would wait for bytes written a moment ago.
    #[inline(always)]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let len = usize::from(u8::read(reader)?);
        if len > 32 {
            return Err(WireError::TooLong(len));
        }
        // A share's extranonce is of this length: two words that go through registers, where any other
        // length is a call to memcpy.
        if len == EXTRANONCE_ROLLABLE_LEN {
            let words = [u64::read(reader)?, u64::read(reader)?];
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&words[0].to_le_bytes());
            bytes[8..16].copy_from_slice(&words[1].to_le_bytes());
            return Ok(Self { bytes, len: EXTRANONCE_ROLLABLE_LEN as u64 });
        }
        let mut bytes = [0; 32];
        bytes[..len].copy_from_slice(reader.bytes(len)?);
        Ok(Self { bytes, len: len as u64 })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.len as u8);
        out.extend_from_slice(self.as_slice());
    }
}

macro_rules! byte_strings {
    ($($(#[$doc:meta])* $name:ident, $max:literal, $len_bytes:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name<'a>(&'a [u8]);

        impl<'a> $name<'a> {
            /// Borrows `bytes`; refuses more than the wire type carries.
            pub const fn new(bytes: &'a [u8]) -> Result<Self, TooLong> {
                if bytes.len() > $max {
                    return Err(TooLong { len: bytes.len(), max: $max });
                }
                Ok(Self(bytes))
            }

            /// The bytes.
            #[must_use]
            pub const fn as_slice(&self) -> &'a [u8] {
                self.0
            }
        }

        impl std::fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "b\"{}\"", self.0.escape_ascii())
            }
        }

        impl<'a> Field<'a> for $name<'a> {
            const LEN_MIN: usize = $len_bytes;
            #[inline]
            fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
                let mut len = [0; 4];
                len[..$len_bytes].copy_from_slice(reader.bytes($len_bytes)?);
                Ok(Self(reader.bytes(u32::from_le_bytes(len) as usize)?))
            }
            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&(self.0.len() as u32).to_le_bytes()[..$len_bytes]);
                out.extend_from_slice(self.0);
            }
        }
    )*};
}

byte_strings! {
    /// `STR0_255`: up to 255 bytes of text. Nothing promises UTF-8, so it stays bytes.
    Str0255, 255, 1;
    /// `B0_255`: up to 255 bytes.
    B0255, 255, 1;
    /// `B0_64K`: up to 65,535 bytes.
    B064K, 65_535, 2;
    /// `B0_16M`: up to 16,777,215 bytes.
    B016M, 16_777_215, 3;
}

impl<'a> Str0255<'a> {
    /// A text of ours that is known to fit; longer ones are cut at 255 bytes.
    #[must_use]
    pub const fn text(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        if bytes.len() > 255 {
            let (head, _) = bytes.split_at(255);
            return Self(head);
        }
        Self(bytes)
    }

    /// For people: the text with everything but printable ASCII escaped.
    #[must_use]
    pub fn printable(&self) -> String {
        self.0.escape_ascii().to_string()
    }
}

/// `SEQ0_255[U256]`: merkle paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seq0255U256<'a>(&'a [[u8; 32]]);

impl<'a> Seq0255U256<'a> {
    /// Borrows `items` (0 to 255 hashes).
    pub fn new(items: &'a [[u8; 32]]) -> Result<Self, TooLong> {
        if items.len() > 255 {
            return Err(TooLong { len: items.len(), max: 255 });
        }
        Ok(Self(items))
    }

    /// The hashes.
    #[must_use]
    pub fn as_slice(&self) -> &'a [[u8; 32]] {
        self.0
    }
}

impl<'a> Field<'a> for Seq0255U256<'a> {
    const LEN_MIN: usize = 1;
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(u8::read(reader)?);
        Ok(Self(reader.bytes(count * 32)?.as_chunks().0))
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.0.len() as u8);
        out.extend_from_slice(self.0.as_flattened());
    }
}

/// `SEQ0_64K` of elements of `N` bytes each, kept as they stand on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seq064K<'a, const N: usize>(&'a [[u8; N]]);

/// `SEQ0_64K[U16]`, each element little-endian.
pub type Seq064KU16<'a> = Seq064K<'a, 2>;
/// `SEQ0_64K[U32]`, each element little-endian.
pub type Seq064KU32<'a> = Seq064K<'a, 4>;
/// `SEQ0_64K[U256]`.
pub type Seq064KU256<'a> = Seq064K<'a, 32>;

impl<'a, const N: usize> Seq064K<'a, N> {
    /// Borrows `items` (0 to 65,535), each already in wire order.
    pub fn new(items: &'a [[u8; N]]) -> Result<Self, TooLong> {
        if items.len() > 65_535 {
            return Err(TooLong { len: items.len(), max: 65_535 });
        }
        Ok(Self(items))
    }

    /// The elements in wire order.
    #[must_use]
    pub fn as_slice(&self) -> &'a [[u8; N]] {
        self.0
    }
}

impl<'a> Seq064KU16<'a> {
    /// The elements as numbers.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.iter().map(|le| u16::from_le_bytes(*le))
    }
}

impl<'a> Seq064KU32<'a> {
    /// The elements as numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.iter().map(|le| u32::from_le_bytes(*le))
    }
}

impl<'a, const N: usize> Field<'a> for Seq064K<'a, N> {
    const LEN_MIN: usize = 2;
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(u16::read(reader)?);
        Ok(Self(reader.bytes(count * N)?.as_chunks().0))
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        (self.0.len() as u16).write(out);
        out.extend_from_slice(self.0.as_flattened());
    }
}

/// `SEQ0_64K[B0_16M]`: transactions. Read, it is a view on checked bytes; written, a list of slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionList<'a> {
    count: u16,
    /// The elements with their length prefixes, walked once and found whole.
    encoded: &'a [u8],
}

impl<'a> TransactionList<'a> {
    /// Encodes `transactions` into `buffer` and borrows it.
    pub fn new<T: AsRef<[u8]>>(
        transactions: &[T],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Self, TooLong> {
        let len = transactions.len();
        let count = u16::try_from(len).map_err(|_| TooLong { len, max: 65_535 })?;
        buffer.clear();
        for transaction in transactions {
            B016M::new(transaction.as_ref())?.write(buffer);
        }
        Ok(Self { count, encoded: buffer })
    }

    /// Number of transactions.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// No transaction at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each transaction's bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.encoded);
        (0..self.count).map_while(move |_| B016M::read(&mut reader).ok().map(|tx| tx.as_slice()))
    }
}

impl<'a> Field<'a> for TransactionList<'a> {
    const LEN_MIN: usize = 2;
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u16::read(reader)?;
        let start = reader.rest();
        for _ in 0..count {
            B016M::read(reader)?;
        }
        let encoded = &start[..start.len() - reader.rest().len()];
        Ok(Self { count, encoded })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        self.count.write(out);
        out.extend_from_slice(self.encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written<'a, F: Field<'a>>(field: F) -> Vec<u8> {
        let mut out = Vec::new();
        field.write(&mut out);
        out
    }

    #[test]
    fn the_shortest_value_of_each_type_takes_what_is_said_of_it() {
        fn check<'a, F: Field<'a>>(shortest: F) {
            let bytes = written(shortest);
            assert_eq!(bytes.len(), F::LEN_MIN);
        }
        check(0u8);
        check(0u16);
        check(0u32);
        check(0u64);
        check(0f32);
        check(false);
        check([0; 32]);
        check(None::<u32>);
        check(B032::default());
        check(Str0255::default());
        check(B0255::default());
        check(B064K::default());
        check(B016M::default());
        check(Seq0255U256::default());
        check(Seq064KU16::default());
        check(TransactionList::default());
    }

    #[test]
    fn bool_reads_bit_zero_and_ignores_the_rest_g6() {
        for (byte, value) in [(0x00, false), (0x01, true), (0xfe, false), (0xff, true)] {
            assert_eq!(bool::read(&mut Reader::new(&[byte])), Ok(value));
        }
        assert_eq!(written(true), [1]);
    }

    #[test]
    fn option_holds_at_most_one_g7() {
        assert_eq!(Option::<u32>::read(&mut Reader::new(&[0])), Ok(None));
        assert_eq!(Option::<u32>::read(&mut Reader::new(&[1, 1, 0, 0, 0])), Ok(Some(1)));
        let two = [2, 1, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(Option::<u32>::read(&mut Reader::new(&two)), Err(WireError::OptionCount(2)));
    }

    #[test]
    fn b0_32_ends_at_32_bytes() {
        let mut bytes = [0u8; 34];
        bytes[0] = 32;
        assert!(B032::read(&mut Reader::new(&bytes)).is_ok());
        bytes[0] = 33;
        assert_eq!(B032::read(&mut Reader::new(&bytes)), Err(WireError::TooLong(33)));
        assert_eq!(B032::new(&[0; 33]), Err(TooLong { len: 33, max: 32 }));
    }

    #[test]
    fn a_count_is_held_against_the_bytes_that_are_there() {
        assert_eq!(
            Seq064KU256::read(&mut Reader::new(&[0xff, 0xff, 1])),
            Err(WireError::Truncated)
        );
        assert_eq!(B016M::read(&mut Reader::new(&[0xff, 0xff, 0xff])), Err(WireError::Truncated));
        let list = [2, 0, 1, 0, 0, 0xaa, 2, 0, 0, 0xbb];
        assert_eq!(TransactionList::read(&mut Reader::new(&list)), Err(WireError::Truncated));
    }

    #[test]
    fn byte_strings_refuse_one_byte_more_than_they_hold() {
        assert!(Str0255::new(&[b'a'; 255]).is_ok());
        assert!(Str0255::new(&[b'a'; 256]).is_err());
        assert!(B064K::new(&vec![0; 65_535]).is_ok());
        assert!(B064K::new(&vec![0; 65_536]).is_err());
    }

    #[test]
    fn transactions_come_back_in_order() {
        let mut buffer = Vec::new();
        let list = TransactionList::new(&[&b"one"[..], b"", b"three"], &mut buffer).expect("three");
        let bytes = written(list);
        let read = TransactionList::read(&mut Reader::new(&bytes)).expect("whole");
        assert_eq!(read.iter().collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
    }
}
