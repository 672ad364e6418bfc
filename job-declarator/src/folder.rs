//! The folder of a program's keys and found blocks: made, locked, and written to so that what is said to be
//! there is there after a power cut. Called by the start of both programs and by what keeps found blocks.
//!
//! Must never leave half a file under a name that is read.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Makes a data folder that none but its owner reads, and those above it.
///
/// # Errors
/// It cannot be made.
pub fn make(data_dir: &Path) -> Result<()> {
    let mut folder = DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder
        .create(data_dir)
        .with_context(|| format!("making the data folder {}", data_dir.display()))
}

/// Makes the data folder and locks it, for as long as the file is kept: two programs on one folder would be
/// two owners of the same keys. `key` is its setting.
///
/// # Errors
/// It cannot be made or locked, or another program has it.
pub fn take(data_dir: &Path, key: &str) -> Result<File> {
    make(data_dir)?;
    let path = data_dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("another program uses the data folder {} ({key})", data_dir.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

/// The file is whole and on disk under its name, or there is an error and no such file.
///
/// # Errors
/// The disk's.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let file = dir.join(name);
    let unfinished = dir.join(format!("{name}.part"));
    write_synced(&unfinished, bytes)?;
    fs::rename(&unfinished, &file)?;
    // The name itself is only durable once its folder is.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// The bytes are on disk; whether the file has its name after a power cut is another matter.
///
/// # Errors
/// The disk's.
pub fn write_synced(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut out = File::create(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_made_for_its_owner_and_taken_once() {
        let above = tempfile::tempdir().unwrap();
        let data_dir = above.path().join("a/b");
        let taken = take(&data_dir, "x.data_dir").unwrap();
        let mode = fs::metadata(&data_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let refused = take(&data_dir, "x.data_dir").unwrap_err().to_string();
        assert!(
            refused.contains("another program") && refused.contains("(x.data_dir)"),
            "{refused}"
        );
        drop(taken);
        take(&data_dir, "x.data_dir").unwrap();
    }

    #[test]
    fn a_name_stands_for_a_whole_file_or_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = write_durably(folder.path(), "7.block", b"whole").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"whole");
        // What is in the way of the unfinished one.
        fs::create_dir(folder.path().join("8.block.part")).unwrap();
        assert!(write_durably(folder.path(), "8.block", b"whole").is_err());
        assert!(!folder.path().join("8.block").exists());
    }
}
