//! The newest block of an earlier run, for the page: what its file's name, time and coinbase say. Part of
//! `blocks.rs`; offers nothing and changes nothing.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use bitcoin::block::Header;
use bitcoin::consensus::encode::deserialize_partial;
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Transaction, VarInt};

use super::{BlockSeen, BlockState, files};

/// The newest file in the folder of found blocks, answered by the node or not.
pub(super) fn newest(dir: &Path) -> Option<BlockSeen> {
    // A folder that cannot be read has none.
    let newest_in = |dir: &Path| files(dir).ok()?.pop();
    let settled = newest_in(&dir.join("settled")).map(|file| (file, BlockState::Answered));
    let waiting = newest_in(dir).map(|file| (file, BlockState::OnItsWay));
    let both = settled.into_iter().chain(waiting);
    let ((found, file), state) = both.max_by_key(|((found, _), _)| *found)?;
    let name = file.file_stem()?.to_str()?;
    let (height, hash) = name.split_once('-')?;
    let hash: BlockHash = hash.parse().ok()?;
    let at = found.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(BlockSeen {
        hash: hash.to_byte_array(),
        height: height.parse().ok(),
        at: at.try_into().ok()?,
        finder: String::new(),
        outputs: fs::read(&file).ok().and_then(|block| paid_by(&block)).unwrap_or_default(),
        state,
    })
}

/// What a whole block's coinbase pays.
fn paid_by(block: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let (_, header_len) = deserialize_partial::<Header>(block).ok()?;
    let (_, count_len) = deserialize_partial::<VarInt>(block.get(header_len..)?).ok()?;
    Some(paid(block.get(header_len + count_len..)?))
}

/// What a coinbase pays that stands at the front; nothing where it cannot be read.
pub(super) fn paid(coinbase: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let Ok((coinbase, _)) = deserialize_partial::<Transaction>(coinbase) else { return Vec::new() };
    let outputs = coinbase.output.into_iter().filter(|output| output.value.to_sat() > 0);
    outputs.map(|output| (output.value.to_sat(), output.script_pubkey.into_bytes())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
mod tests {
    use super::*;

    fn block() -> bitcoin::Block {
        bitcoin::constants::genesis_block(bitcoin::Network::Regtest)
    }

    #[test]
    fn the_newest_block_of_an_earlier_run_is_known_with_what_it_paid() {
        let folder = tempfile::tempdir().unwrap();
        let settled = folder.path().join("settled");
        assert_eq!(newest(folder.path()), None, "no folder yet");
        fs::create_dir(&settled).unwrap();
        assert_eq!(newest(folder.path()), None);
        let hash = block().block_hash();
        let write = |dir: &Path, height: u32, age_s: u64| {
            let path = dir.join(format!("{height}-{hash}.block"));
            fs::write(&path, bitcoin::consensus::serialize(&block())).unwrap();
            let at = UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 - age_s);
            fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
        };
        write(&settled, 7, 100);
        write(&settled, 8, 50);
        fs::write(settled.join("9.part"), "").unwrap();
        let seen = newest(folder.path()).unwrap();
        assert_eq!(
            (seen.height, seen.at, seen.state),
            (Some(8), 1_699_999_950, BlockState::Answered)
        );
        assert_eq!(seen.hash, hash.to_byte_array());
        assert_eq!(seen.outputs[0].0, 5_000_000_000);
        write(folder.path(), 9, 10);
        let seen = newest(folder.path()).unwrap();
        assert_eq!((seen.height, seen.state), (Some(9), BlockState::OnItsWay), "not answered yet");
    }

    #[test]
    fn files_that_are_no_blocks_are_shown_as_what_their_name_says_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.block"), "x").unwrap();
        assert_eq!(newest(folder.path()), None);
        assert_eq!(paid_by(&[0; 90]), Some(Vec::new()));
        assert_eq!((paid_by(b"x"), paid(b"")), (None, Vec::new()));
    }
}
