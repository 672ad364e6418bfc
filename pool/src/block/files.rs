//! Found blocks on disk: `HEIGHT-HASH.block` with the raw bytes, as `submitblock` takes them in hex, and
//! beside it `HEIGHT-HASH.note` with what the bytes do not say. Of a block whose transactions its miner
//! keeps to himself there is the note alone. Called by `block`, on threads that may wait for a disk.
//!
//! Must never delete what it cannot read, nor leave a half file under a name that is read.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bitcoin::hashes::Hash;
use job_declarator::folder::{write_durably, write_synced};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::limits::SETTLED_BLOCKS_KEPT;
use crate::store::{BlockRecord, BlockState, DeclaredRecord, Route};
use crate::templates::hex_of;

/// A block on its way to the nodes, as it is kept.
#[derive(Debug, Clone)]
pub(super) struct OnDisk {
    pub(super) record: BlockRecord,
    /// `None` of a job whose transactions its miner keeps to himself: only he can send it.
    pub(super) bytes: Option<Vec<u8>>,
    /// The declared job that it was found on.
    pub(super) job: Option<DeclaredRecord>,
}

/// What is noted of a block.
#[derive(Serialize, Deserialize)]
struct Note {
    /// Nobody but its miner can send it.
    is_its_miners: bool,
    block: BlockRecord,
    job: Option<DeclaredRecord>,
}

const BLOCK: &str = "block";
const NOTE: &str = "note";

fn file_name(record: &BlockRecord, extension: &str) -> String {
    format!("{}-{}.{extension}", record.height, hex_of(&record.hash))
}

/// Writes a block with its note; the file that stands for it when this returns.
pub(super) fn write(dir: &Path, block: &OnDisk) -> io::Result<PathBuf> {
    let OnDisk { record, bytes, job } = block;
    let note = Note { is_its_miners: bytes.is_none(), block: record.clone(), job: job.clone() };
    let note = serde_json::to_vec_pretty(&note).map_err(io::Error::other)?;
    let note_name = file_name(record, NOTE);
    let Some(bytes) = bytes else {
        return write_durably(dir, &note_name, &note);
    };
    // Who found it is worth knowing after a crash and not worth an error. Its name is durable with the block's.
    if let Err(error) = write_synced(&dir.join(note_name), &note) {
        warn!(%error, "finder of the block not noted on disk");
    }
    write_durably(dir, &file_name(record, BLOCK), bytes)
}

/// The bytes of a block of ours, wherever its file stands. `None` once it was dropped, and of a block that
/// was its miner's alone.
#[must_use]
pub fn read_kept(data_dir: &Path, record: &BlockRecord) -> Option<Vec<u8>> {
    let (dir, name) = (data_dir.join("blocks"), file_name(record, BLOCK));
    fs::read(dir.join("settled").join(&name)).or_else(|_| fs::read(dir.join(&name))).ok()
}

/// Files of blocks that no node has answered for, the oldest first: ours, and those of which there is only
/// a note.
pub(super) fn unsettled(dir: &Path) -> io::Result<(VecDeque<PathBuf>, VecDeque<PathBuf>)> {
    let (mut blocks, mut notes) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(BLOCK) => blocks.push((entry.metadata()?.modified()?, path)),
            Some(NOTE) => notes.push((entry.metadata()?.modified()?, path)),
            _ => {}
        }
    }
    let ours: HashSet<_> = blocks.iter().map(|(_, path)| path.with_extension(NOTE)).collect();
    notes.retain(|(_, path)| !ours.contains(path));
    let by_age = |mut files: Vec<(_, PathBuf)>| {
        files.sort();
        files.into_iter().map(|(_, path)| path).collect()
    };
    Ok((by_age(blocks), by_age(notes)))
}

/// A block on disk, by its file. One that is none is set aside with a warning.
pub(super) fn read(file: &Path) -> io::Result<Option<OnDisk>> {
    if file.extension().is_some_and(|extension| extension == NOTE) {
        return match read_note(file)? {
            Some(Note { is_its_miners: true, block: record, job }) => {
                Ok(Some(OnDisk { record, bytes: None, job }))
            }
            // Its block was never whole on disk, so nobody was told of it.
            Some(_) => set_aside(file, "the note of a block that is not here"),
            None => set_aside(file, "not the note of a block"),
        };
    }
    let bytes = fs::read(file)?;
    let Ok(block) = bitcoin::consensus::deserialize::<bitcoin::Block>(&bytes) else {
        return set_aside(file, "not a block");
    };
    let note = read_note(&file.with_extension(NOTE)).unwrap_or_else(|error| {
        // The block goes its way without.
        warn!(%error, file = %file.display(), "the note of a block was not read");
        None
    });
    let hash = block.block_hash().to_byte_array();
    let noted = note.filter(|note| note.block.hash == hash).map(|note| (note.block, note.job));
    match noted.or_else(|| Some((record_of(&block)?, None))) {
        Some((record, job)) => Ok(Some(OnDisk { record, bytes: Some(bytes), job })),
        None => set_aside(file, "not a block"),
    }
}

/// `None`: there is no such file, or it is no note. A disk that fails is neither.
fn read_note(file: &Path) -> io::Result<Option<Note>> {
    match fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Under a name that nothing else has and no start reads.
fn set_aside(file: &Path, why: &str) -> io::Result<Option<OnDisk>> {
    warn!(file = %file.display(), why, "left alone under another name");
    let mut aside = file.as_os_str().to_owned();
    aside.push(".unreadable");
    fs::rename(file, aside)?;
    Ok(None)
}

/// All that the block itself says.
fn record_of(block: &bitcoin::Block) -> Option<BlockRecord> {
    let outputs = &block.txdata.first()?.output;
    Some(BlockRecord {
        hash: block.block_hash().to_byte_array(),
        height: u32::try_from(block.bip34_block_height().ok()?).ok()?,
        prev_hash: block.header.prev_blockhash.to_byte_array(),
        found_at_ms: u64::from(block.header.time) * 1_000,
        account: "unknown".into(),
        worker: String::new(),
        route: Route::Share,
        declared: None,
        value_sats: outputs.iter().map(|output| output.value.to_sat()).sum(),
        nbits: block.header.bits.to_consensus(),
        state: BlockState::Found,
        detail: String::new(),
    })
}

/// Out of the folder that a start offers from. Beyond `SETTLED_BLOCKS_KEPT` the oldest are dropped: the
/// chain and the store have them.
pub(super) fn move_to_settled(dir: &Path, file: &Path) -> io::Result<()> {
    let settled = dir.join("settled");
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    fs::rename(file, settled.join(name))?;
    let note = file.with_extension(NOTE);
    if let Some(name) = note.file_name().filter(|_| note.exists()) {
        fs::rename(&note, settled.join(name))?;
    }
    let mut kept: Vec<_> = fs::read_dir(&settled)?.collect::<Result<_, _>>()?;
    if kept.len() > SETTLED_BLOCKS_KEPT {
        kept.sort_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok());
        for entry in &kept[..kept.len() - SETTLED_BLOCKS_KEPT] {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeclareMode;
    use proto::mining::DeclaredId;

    fn block() -> OnDisk {
        let record = BlockRecord {
            hash: [3; 32],
            height: 840_000,
            prev_hash: [2; 32],
            found_at_ms: 1_700_000_000_000,
            account: "alice".into(),
            worker: "rig\n1".into(),
            value_sats: 312_500_000,
            nbits: 0x1703_4219,
            state: BlockState::Found,
            detail: String::new(),
            route: Route::Miner,
            declared: Some(DeclaredId([7; 16])),
        };
        let job = DeclaredRecord {
            id: DeclaredId([7; 16]),
            node: 3,
            declared_at_ms: 1_699_999_999_000,
            account: "alice".into(),
            mode: DeclareMode::CoinbaseOnly,
            height: 840_000,
            prev_hash: [2; 32],
            nbits: 0x1703_4219,
            version: 0x2000_0000,
            coinbase_prefix: vec![1, 2, 3],
            coinbase_suffix: vec![],
            merkle_path: vec![[4; 32], [5; 32]],
            transactions: None,
            value_sats: 312_500_000,
            pool_sats: 312_500_000,
            fees_sats: 0,
            reference_fees_sats: 9,
            factor_ppm: 999_999,
        };
        OnDisk { record, bytes: None, job: Some(job) }
    }

    #[test]
    fn what_is_noted_of_a_block_is_read_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = write(folder.path(), &block()).unwrap();
        assert_eq!(unsettled(folder.path()).unwrap(), ([].into(), [file.clone()].into()));
        let read = read(&file).unwrap().unwrap();
        assert_eq!((read.record, read.bytes, read.job), (block().record, None, block().job));
    }

    #[test]
    fn a_note_that_the_disk_does_not_give_keeps_no_block_back() {
        let folder = tempfile::tempdir().unwrap();
        let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Regtest);
        let file = folder.path().join("1-x.block");
        // Height 17, as BIP34 has it.
        let mut block = genesis;
        block.header.version = bitcoin::block::Version::from_consensus(4);
        block.txdata[0].input[0].script_sig = bitcoin::ScriptBuf::from_bytes(vec![1, 17]);
        fs::write(&file, bitcoin::consensus::serialize(&block)).unwrap();
        // What can be opened and not read.
        fs::create_dir(file.with_extension(NOTE)).unwrap();
        assert!(read_note(&file.with_extension(NOTE)).is_err());
        let read = read(&file).unwrap().unwrap();
        assert_eq!((read.record.height, &*read.record.account), (17, "unknown"));
    }

    #[test]
    fn a_note_without_the_block_that_it_is_of_or_that_is_none_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let whole = OnDisk { bytes: Some(vec![0; 100]), ..block() };
        let file = write(folder.path(), &whole).unwrap();
        let (blocks, notes) = unsettled(folder.path()).unwrap();
        assert_eq!((blocks, notes), ([file.clone()].into(), [].into()));
        // As if the disk had been full between the two.
        fs::remove_file(&file).unwrap();
        let torn = folder.path().join("7-torn.note");
        fs::write(&torn, b"{\"is_its").unwrap();
        let (_, notes) = unsettled(folder.path()).unwrap();
        assert_eq!(notes.len(), 2);
        for note in &notes {
            assert!(read(note).unwrap().is_none());
            assert!(note.with_extension("note.unreadable").exists());
        }
        // Both of one name stay.
        fs::write(&torn, b"{\"is_its").unwrap();
        let block = folder.path().join("7-torn.block");
        fs::write(&block, b"half a blo").unwrap();
        assert!(read(&block).unwrap().is_none());
        assert!(read(&torn).unwrap().is_none());
        assert_eq!(fs::read(folder.path().join("7-torn.block.unreadable")).unwrap(), b"half a blo");
        assert_eq!(unsettled(folder.path()).unwrap(), ([].into(), [].into()));
    }
}
