//! The embedded chain's blocks in a file, appended and synced before they count. Called by
//! `embedded.rs`; must never lose a block that was reported accepted.
//!
//! 16 bytes of head (magic, start height, nbits), then records: length U32, first four bytes of the
//! block's SHA256d, the block; little-endian. What a crash left half written at the end is cut off;
//! damage before the end is an error that names the place, never a shorter chain.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use proto::template::sha256d;

use super::EmbeddedError;
use super::chain::Parameters;
use crate::limits::BLOCK_LEN_MAX;

const NAME: &str = "embedded-chain.blocks";
const MAGIC: [u8; 8] = *b"shchain1";
const HEAD_LEN: u64 = 16;
const RECORD_HEAD_LEN: u64 = 8;

/// An open file at its end, locked against other processes until it is dropped.
#[derive(Debug)]
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
    /// Everything before this is whole and synced.
    len: u64,
    /// An append failed half way, so bytes may stand behind `len`.
    torn: bool,
}

impl BlockFile {
    /// Opens or makes the file in `dir`. The parameters are the file's own if it exists. Nothing may
    /// be appended before `replay`.
    pub(super) fn open(
        dir: &Path,
        wanted: Parameters,
    ) -> Result<(Self, Parameters), EmbeddedError> {
        let path = dir.join(NAME);
        let failed = |source| EmbeddedError::File { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(failed)?;
        file.try_lock().map_err(|_| EmbeddedError::InUse(path.clone()))?;

        if file.metadata().map_err(failed)?.len() < HEAD_LEN {
            // New, or a crash came before the head was whole: nothing was accepted yet.
            write_head(&mut file, dir, wanted).map_err(failed)?;
        }
        let mut bytes = [0; HEAD_LEN as usize];
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        let Some(parameters) = parse_head(&bytes) else {
            return Err(EmbeddedError::Damaged { path, at: 0, why: "not a file of blocks" });
        };
        if parameters.nbits != wanted.nbits {
            let (found, wanted) = (parameters.nbits, wanted.nbits);
            return Err(EmbeddedError::OtherDifficulty { path, found, wanted });
        }
        Ok((Self { path, file, len: HEAD_LEN, torn: false }, parameters))
    }

    /// Hands every block to `replay`, oldest first, and cuts off a torn tail.
    pub(super) fn replay(
        &mut self,
        mut replay: impl FnMut(&[u8]) -> Result<(), EmbeddedError>,
    ) -> Result<(), EmbeddedError> {
        let end = self.file.metadata().map_err(|source| self.failed(source))?.len();
        self.file.seek(SeekFrom::Start(self.len)).map_err(|source| self.failed(source))?;
        let mut reader = BufReader::new(&self.file);
        let mut len = self.len;
        loop {
            match next_record(&mut reader, end - len).map_err(|source| self.failed(source))? {
                Record::Whole(block) => {
                    replay(&block)?;
                    len += record_len(&block);
                }
                Record::Torn => break,
                Record::Damaged(why) => {
                    return Err(EmbeddedError::Damaged { path: self.path.clone(), at: len, why });
                }
            }
        }
        self.len = len;
        self.torn = len < end;
        self.cut_torn_tail().map_err(|source| self.failed(source))
    }

    /// Appends blocks with one sync; when this returns they survive a crash. After an error none of
    /// them counts and they may be tried again.
    pub(super) fn append(&mut self, blocks: &[&[u8]]) -> Result<(), EmbeddedError> {
        self.cut_torn_tail().map_err(|source| self.failed(source))?;
        self.torn = true;
        self.write_synced(blocks).map_err(|source| self.failed(source))?;
        self.torn = false;
        self.len += blocks.iter().map(|block| record_len(block)).sum::<u64>();
        Ok(())
    }

    fn write_synced(&mut self, blocks: &[&[u8]]) -> std::io::Result<()> {
        let mut records = Vec::new();
        for block in blocks {
            records.extend_from_slice(&(block.len() as u32).to_le_bytes());
            records.extend_from_slice(&sha256d(block)[..4]);
            records.extend_from_slice(block);
        }
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.write_all(&records)?;
        self.file.sync_data()
    }

    fn cut_torn_tail(&mut self) -> std::io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
            self.torn = false;
        }
        Ok(())
    }

    fn failed(&self, source: std::io::Error) -> EmbeddedError {
        EmbeddedError::File { path: self.path.clone(), source }
    }
}

/// What stands at a place of the file.
enum Record {
    Whole(Vec<u8>),
    /// Nothing, or the beginning of a record that never was whole.
    Torn,
    Damaged(&'static str),
}

/// Reads the record at the reader's place, `left` bytes before the end of the file.
fn next_record(reader: &mut impl BufRead, left: u64) -> std::io::Result<Record> {
    if left < RECORD_HEAD_LEN {
        return Ok(Record::Torn);
    }
    let mut record_head = [0; RECORD_HEAD_LEN as usize];
    reader.read_exact(&mut record_head)?;
    let (len, checksum) = record_head.split_at(4);
    let len = len.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let left = left - RECORD_HEAD_LEN;
    if record_head == [0; RECORD_HEAD_LEN as usize] {
        // A crash may leave the file grown and the bytes still zero.
        let rest_is_zero = reader.bytes().all(|byte| byte.is_ok_and(|byte| byte == 0));
        return Ok(if rest_is_zero { Record::Torn } else { Record::Damaged("zeros") });
    }
    if len > BLOCK_LEN_MAX {
        return Ok(Record::Damaged("a block longer than blocks can be"));
    }
    if left < len as u64 {
        return Ok(Record::Torn);
    }
    let mut block = vec![0; len];
    reader.read_exact(&mut block)?;
    Ok(if sha256d(&block)[..4] == *checksum {
        Record::Whole(block)
    } else if left == len as u64 {
        Record::Torn
    } else {
        Record::Damaged("a block that is not what its checksum says")
    })
}

fn record_len(block: &[u8]) -> u64 {
    RECORD_HEAD_LEN + block.len() as u64
}

fn head(parameters: Parameters) -> [u8; HEAD_LEN as usize] {
    let mut head = [0; HEAD_LEN as usize];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&parameters.start_height.to_le_bytes());
    head[12..].copy_from_slice(&parameters.nbits.to_le_bytes());
    head
}

fn parse_head(bytes: &[u8]) -> Option<Parameters> {
    let numbers = bytes.strip_prefix(&MAGIC)?;
    let number = |at: usize| {
        let four = numbers.get(at..at + 4)?;
        Some(u32::from_le_bytes(four.try_into().ok()?))
    };
    Some(Parameters { start_height: number(0)?, nbits: number(4)? })
}

fn write_head(file: &mut File, dir: &Path, parameters: Parameters) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&head(parameters))?;
    file.sync_all()?;
    // The name itself must survive as well.
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: Parameters = Parameters { start_height: 101, nbits: 0x207f_ffff };

    fn open(dir: &Path) -> Result<(BlockFile, Vec<Vec<u8>>), EmbeddedError> {
        let mut found = Vec::new();
        let (mut file, _) = BlockFile::open(dir, PARAMETERS)?;
        file.replay(|block| {
            found.push(block.to_vec());
            Ok(())
        })?;
        Ok((file, found))
    }

    fn blocks(dir: &Path) -> Result<Vec<Vec<u8>>, EmbeddedError> {
        open(dir).map(|(_, blocks)| blocks)
    }

    fn file_of(blocks: &[&[u8]]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().0.append(blocks).unwrap();
        let path = dir.path().join(NAME);
        (dir, path)
    }

    #[test]
    fn a_file_cut_anywhere_gives_the_whole_blocks_before_the_cut_and_goes_on() {
        let (dir, path) = file_of(&[b"one", b"and two", b"three"]);
        let whole = std::fs::read(&path).unwrap();
        let ends = [16 + 11, 16 + 26, 16 + 39];
        assert_eq!(whole.len(), ends[2]);
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(blocks(dir.path()).unwrap().len(), kept, "cut at {cut}");
            open(dir.path()).unwrap().0.append(&[b"later"]).unwrap();
            assert_eq!(blocks(dir.path()).unwrap().last().unwrap(), b"later", "cut at {cut}");
        }
    }

    #[test]
    fn a_tail_of_zeros_is_cut() {
        let (dir, path) = file_of(&[b"one"]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0; 4_096]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(blocks(dir.path()).unwrap(), [b"one"]);
    }

    #[test]
    fn damage_before_the_last_block_is_an_error_and_shortens_nothing() {
        let (dir, path) = file_of(&[b"one", b"two"]);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, 16 + 3, 16 + 4, 16 + 8] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x80;
            std::fs::write(&path, &bytes).unwrap();
            let refused = blocks(dir.path());
            assert!(matches!(refused, Err(EmbeddedError::Damaged { .. })), "{at}: {refused:?}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn two_processes_cannot_have_one_file() {
        let (dir, _) = file_of(&[]);
        let _first = open(dir.path()).unwrap();
        assert!(matches!(blocks(dir.path()), Err(EmbeddedError::InUse(_))));
    }

    #[test]
    fn a_chain_of_another_difficulty_is_named_and_left_alone() {
        let (dir, _) = file_of(&[b"one"]);
        let harder = Parameters { nbits: 0x1f00_ffff, ..PARAMETERS };
        let refused = BlockFile::open(dir.path(), harder);
        assert!(matches!(refused, Err(EmbeddedError::OtherDifficulty { .. })));
        assert_eq!(blocks(dir.path()).unwrap(), [b"one"]);
    }
}
