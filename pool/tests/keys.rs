//! Key files as an operator meets them: made, refused, renewed, reloaded.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pool::keys::{self, KeyFiles, KeysError};
use pool::metrics::Metrics;
use proto::noise::{AuthoritySecretKey, Identity};

const NOW: u32 = 1_800_000_000;
const DAY: u32 = 86_400;

fn files(folder: &Path) -> KeyFiles {
    KeyFiles {
        identity: folder.join("sub/identity.txt"),
        authority: folder.join("sub/authority.txt"),
        certificate_days: 90,
        words: keys::WORDS,
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn authority() -> AuthoritySecretKey {
    AuthoritySecretKey::from_secret([7; 32]).unwrap()
}

fn identity(days: u32) -> Identity {
    keys::make_identity(&authority(), None, NOW, days).unwrap()
}

/// Only the identity, as where the authority's key is kept elsewhere.
fn identity_alone(folder: &Path, days: u32) -> KeyFiles {
    let files = files(folder);
    keys::replace_identity(&files.identity, &identity(days)).unwrap();
    files
}

#[test]
fn a_first_start_makes_keys_that_only_we_can_read_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let first = files.load_or_make(NOW).unwrap();
    assert_eq!(mode(&files.identity), 0o600);
    assert_eq!(mode(&files.authority), 0o600);
    assert_eq!(mode(files.identity.parent().unwrap()), 0o700);
    assert_eq!(first.certificate.valid_from, NOW - DAY);
    assert_eq!(first.certificate.not_valid_after, NOW + 90 * DAY);
    let second = files.load_or_make(NOW + 60).unwrap();
    assert_eq!(second.to_text(), first.to_text());
    let left: Vec<_> = std::fs::read_dir(files.identity.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 2, "no drafts are left behind: {left:?}");
}

#[test]
fn an_authority_key_alone_is_enough_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let key = keys::make_authority(&files.authority).unwrap();
    assert_eq!(files.load_or_make(NOW).unwrap().authority, key.public());
    let again = keys::make_authority(&files.authority).err().unwrap();
    assert!(matches!(again, KeysError::AlreadyThere { .. }), "{again}");
    assert_eq!(keys::read_authority(&files.authority).unwrap().public(), key.public());
}

#[test]
fn nobody_takes_the_secret_authority_key_for_the_public_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority.txt");
    let key = keys::make_authority(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| *line == *key.to_text()).unwrap();
    assert!(lines[at - 1].starts_with("# SECRET, keep offline"), "{text}");
    assert!(lines[0].starts_with("# SECRET, keep offline"), "{text}");
    assert!(text.contains(&format!("#     {}\n", key.public())), "{text}");
    let start = keys::make_identity(&key, None, NOW, 1).unwrap().to_text();
    assert!(start.starts_with("# SECRET"));
}

#[test]
fn an_identity_alone_is_enough_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let files = identity_alone(folder.path(), 30);
    assert_eq!(files.load_or_make(NOW + 29 * DAY).unwrap().authority, authority().public());
    assert!(!files.authority.exists(), "no second authority is made");
    let ended = files.load_or_make(NOW + 31 * DAY).err().unwrap();
    assert!(matches!(ended, KeysError::Certificate { .. }), "{ended}");
    assert!(ended.to_string().contains("pool keys certificate"), "{ended}");
    let early = files.load_or_make(NOW - 2 * DAY).err().unwrap();
    assert!(matches!(early, KeysError::Certificate { .. }), "{early}");
}

#[test]
fn a_certificate_is_renewed_when_a_third_is_left_and_the_key_stays() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let first = files.load_or_make(NOW).unwrap();
    let before = files.load_or_make(NOW + 59 * DAY).unwrap();
    assert_eq!(before.certificate, first.certificate);
    let later = NOW + 61 * DAY;
    let renewed = files.load_or_make(later).unwrap();
    assert_eq!(renewed.certificate.not_valid_after, later + 90 * DAY);
    assert_eq!(renewed.static_key.x_only(), first.static_key.x_only());
    assert_eq!(renewed.authority, first.authority);
    let ended = files.load_or_make(later + 200 * DAY).unwrap();
    assert!(ended.certificate.not_valid_after > later + 200 * DAY, "also after it has ended");
}

#[test]
fn key_files_that_others_can_get_at_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    files.load_or_make(NOW).unwrap();
    for path in [&files.identity, &files.authority] {
        for exposed in [0o640, 0o604, 0o620, 0o602, 0o610] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(exposed)).unwrap();
            let refused = files.load_or_make(NOW).err().unwrap();
            assert!(matches!(&refused, KeysError::Exposed { path: at, .. } if at == path));
            assert!(refused.to_string().contains(&format!("{exposed:04o}")), "{refused}");
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(files.load_or_make(NOW).is_ok(), "reading alone is fine");
    }
}

#[test]
fn key_files_of_another_user_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = identity_alone(folder.path(), 30);
    // Only root can give a file away.
    if std::os::unix::fs::chown(&files.identity, Some(12_345), None).is_err() {
        return;
    }
    let refused = files.load_or_make(NOW).err().unwrap();
    assert!(matches!(refused, KeysError::NotOurs { owner: 12_345, .. }), "{refused}");
}

#[test]
fn mangled_and_mismatched_files_are_refused_without_repeating_them() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    files.load_or_make(NOW).unwrap();
    let whole = std::fs::read_to_string(&files.identity).unwrap();
    let secret = whole.lines().find_map(|line| line.strip_prefix("static_secret = ")).unwrap();
    std::fs::write(&files.identity, &whole[..whole.len() - 9]).unwrap();
    let refused = files.load_or_make(NOW).err().unwrap();
    assert!(matches!(refused, KeysError::Malformed { .. }), "{refused}");
    assert!(!format!("{refused:?}").contains(&secret[..16]));
    std::fs::write(&files.identity, identity(30).to_text()).unwrap();
    let refused = files.load_or_make(NOW).err().unwrap();
    assert!(matches!(refused, KeysError::OtherAuthority { .. }), "{refused}");
    std::fs::write(&files.authority, "# nothing\n").unwrap();
    let refused = files.load_or_make(NOW).err().unwrap();
    assert!(matches!(refused, KeysError::Malformed { .. }), "{refused}");
}

#[test]
fn a_changed_identity_is_taken_up_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = identity_alone(folder.path(), 30);
    let start = files.load_or_make(NOW).unwrap();
    let mut watch = keys::watch(files.clone(), start, Arc::new(Metrics::new()));
    let mut current = watch.subscribe();
    watch.look(NOW);
    assert!(!current.has_changed().unwrap(), "nothing changed");

    let next = identity(60);
    keys::replace_identity(&files.identity, &next).unwrap();
    watch.look(NOW + 60);
    assert!(current.has_changed().unwrap());
    assert_eq!(current.borrow_and_update().to_text(), next.to_text());

    let stranger = AuthoritySecretKey::from_secret([8; 32]).unwrap();
    let foreign = keys::make_identity(&stranger, None, NOW, 60).unwrap();
    let ended = keys::make_identity(&authority(), None, NOW - 90 * DAY, 60).unwrap();
    for text in ["", "nonsense", &foreign.to_text(), &ended.to_text()] {
        std::fs::write(&files.identity, text).unwrap();
        watch.look(NOW + 120);
        assert!(!current.has_changed().unwrap(), "a bad file must not replace a good identity");
    }
    std::fs::remove_file(&files.identity).unwrap();
    watch.look(NOW + 180);
    assert_eq!(current.borrow().to_text(), next.to_text());
}

#[test]
fn a_watched_certificate_is_renewed_where_the_authority_key_is() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let start = files.load_or_make(NOW).unwrap();
    let metrics = Arc::new(Metrics::new());
    let mut watch = keys::watch(files, start, metrics.clone());
    let current = watch.subscribe();
    let later = NOW + 61 * DAY;
    watch.look(later);
    assert_eq!(current.borrow().certificate.not_valid_after, later + 90 * DAY);
    let seconds = format!("pool_certificate_seconds_left {}", 90 * DAY);
    assert!(metrics.render().contains(&seconds), "{}", metrics.render());
}

#[tokio::test]
async fn a_hangup_signal_reloads_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let files = identity_alone(folder.path(), 30);
    let now = keys::unix_now();
    let fresh = || keys::make_identity(&authority(), None, now, 30).unwrap();
    let (first, second) = (fresh(), fresh());
    keys::replace_identity(&files.identity, &first).unwrap();
    let watch = keys::watch(files.clone(), first, Arc::new(Metrics::new()));
    let mut current = watch.subscribe();
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(watch.run(stop.clone()).unwrap());
    // The first look comes at once; let it see the old file.
    tokio::task::yield_now().await;
    keys::replace_identity(&files.identity, &second).unwrap();
    let us = std::process::id().to_string();
    let sent = std::process::Command::new("kill").args(["-HUP", &us]).status().unwrap();
    assert!(sent.success());
    tokio::time::timeout(Duration::from_secs(20), current.changed()).await.unwrap().unwrap();
    assert_eq!(current.borrow().to_text(), second.to_text());
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn days_are_written_as_the_calendar_has_them() {
    let days = [
        (0, "1970-01-01"),
        (951_782_399, "2000-02-28"),
        (951_782_400, "2000-02-29"),
        (1_709_251_199, "2024-02-29"),
        (1_709_251_200, "2024-03-01"),
        (1_798_675_200, "2026-12-31"),
        (u32::MAX, "2106-02-07"),
    ];
    for (unix, day) in days {
        assert_eq!(keys::utc_date(unix), day);
    }
}
