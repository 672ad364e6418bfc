//! What a process used, from /proc: CPU seconds and memory of the pool and of ourselves. Asked a few times
//! in a run, never while a share is under way.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// USER_HZ, in which /proc counts CPU time: 100 on every architecture that Rust serves today.
pub(super) const TICKS_PER_S: f64 = 100.0;

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    /// When.
    pub(super) at: Instant,
    /// User and system time of all its threads, seconds, in steps of 10 ms.
    pub(super) cpu_s: f64,
    /// Resident memory, KiB.
    pub(super) rss_kib: u64,
    /// Resident memory that is no file's: heap and stacks, KiB.
    pub(super) anon_kib: u64,
}

/// Looks at process `pid`.
///
/// # Errors
/// There is none, or /proc is not that of Linux.
pub(super) fn usage(pid: u32) -> Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    let cpu_s = cpu_seconds(&read("stat")?).context("no CPU time in /proc/PID/stat")?;
    let status = read("status")?;
    let kib = |key| kib_of(&status, key).with_context(|| format!("no {key} in /proc/PID/status"));
    Ok(Usage { at: Instant::now(), cpu_s, rss_kib: kib("VmRSS:")?, anon_kib: kib("RssAnon:")? })
}

/// Fields 14 and 15. The program's name before them may hold blanks and brackets, but ends at the last
/// bracket.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

fn kib_of(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_cpu_time() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 4 0 99";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_by_its_name() {
        let status = "Name:\tpool\nVmRSS:\t   1234 kB\nRssAnon:\t  99 kB\n";
        assert_eq!(kib_of(status, "RssAnon:"), Some(99));
        assert_eq!(kib_of(status, "RssFile:"), None);
    }

    #[test]
    fn this_process_is_there_and_a_process_that_cannot_be_is_not() {
        assert!(usage(std::process::id()).is_ok_and(|usage| usage.rss_kib > 0));
        assert!(usage(u32::MAX).is_err());
    }
}
