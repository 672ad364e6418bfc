//! The files that hold the keys by which clients know a program of this house: made on a first start,
//! checked, renewed, and read again while clients are connected. Called by the command line
//! (`command/keys.rs`) and by `run.rs` here and in the pool, which hand the watched identity to whoever
//! shakes hands.
//!
//! Must never overwrite an authority key, load a key that others on this machine could have read, or
//! print a secret.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::noise::{
    AuthorityPublicKey, AuthoritySecretKey, CertificateError, EphemeralSecret, Identity, KeyError,
    StaticKey,
};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::limits::KEY_FILE_MAX;

const DAY_S: u32 = 86_400;
/// A certificate starts a day before it is made: devices learn the time from their first job, and a
/// wrong clock must not lock them out.
const BACKDATED_S: u32 = DAY_S;
/// From here on every day says so, if we cannot renew the certificate ourselves.
const WARN_DAYS: i64 = 7;
/// A changed file is noticed after this long also without SIGHUP.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// Why there are no keys to work with. Ours or the operator's to mend; never carries a secret.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The system said no.
    #[error("cannot {doing} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// Group or others may read or write a secret.
    #[error("{} has mode {mode:04o}: others can get at the key; chmod 600 it, or make a new one", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Another user owns it and could change it.
    #[error("{} belongs to user {owner}, but we run as user {us}", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// User id.
        owner: u32,
        /// User id.
        us: u32,
    },
    /// No key, or a mangled one.
    #[error("{} holds no usable key: {cause}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: KeyError,
    },
    /// The certificate does not hold now.
    #[error("the certificate in {}: {cause}; {remedy}", path.display())]
    Certificate {
        /// What to do, in the words of the program.
        remedy: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: CertificateError,
    },
    /// Two files that speak of different authorities.
    #[error("{} was certified by {found}, but the authority here is {expected}", path.display())]
    OtherAuthority {
        /// The identity file.
        path: PathBuf,
        /// Who signed.
        found: String,
        /// Who should have.
        expected: String,
    },
    /// An authority key is never overwritten: every client has its public half.
    #[error("{} is there already and is not overwritten", path.display())]
    AlreadyThere {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Randomness(String),
}

/// Where the keys are and how certificates are made.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// Static key and certificate: what is needed to run.
    pub identity: PathBuf,
    /// The authority's secret: needed only to make certificates; may be absent.
    pub authority: PathBuf,
    /// Validity of a certificate made here.
    pub certificate_days: u32,
    /// What the texts call whom.
    pub words: Words,
}

/// How a program speaks of its keys.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// What it is, "pool".
    pub program: &'static str,
    /// Who connects to it, "Miners".
    pub clients: &'static str,
    /// What to do about a certificate that ends.
    pub remedy: &'static str,
}

impl KeyFiles {
    /// The identity to start with. Without any keys it makes them; with the authority's key it makes
    /// or renews the certificate; with an identity alone that is enough.
    ///
    /// # Errors
    /// `KeysError`: nothing is started on keys that are not sound.
    pub fn load_or_make(&self, now_unix: u32) -> Result<Identity, KeysError> {
        let identity = self.identity.exists().then(|| read_identity(&self.identity)).transpose()?;
        let authority = match (self.authority.exists(), &identity) {
            (true, _) => Some(read_authority(&self.authority)?),
            (false, Some(_)) => None,
            (false, None) => {
                let key = make_authority(&self.authority, self.words)?;
                info!(file = %self.authority.display(), authority = %key.public(), "made an authority key: keep a copy");
                Some(key)
            }
        };
        self.settle(identity, authority.as_ref(), now_unix)
    }

    /// What is to be used now, given what is on disk. Writes the identity file if it makes one.
    fn settle(
        &self,
        identity: Option<Identity>,
        authority: Option<&AuthoritySecretKey>,
        now_unix: u32,
    ) -> Result<Identity, KeysError> {
        if let (Some(found), Some(key)) = (&identity, authority)
            && found.authority != key.public()
        {
            return Err(other_authority(&self.identity, found.authority, key.public()));
        }
        match (identity, authority) {
            (Some(identity), Some(key)) if self.is_due(&identity, now_unix) => {
                self.certify_anew(key, Some(identity.static_key), now_unix)
            }
            (None, Some(key)) => self.certify_anew(key, None, now_unix),
            (Some(identity), _) => {
                self.check_certificate(&identity, now_unix)?;
                Ok(identity)
            }
            // The file went away and we cannot make another.
            (None, None) => Err(KeysError::Io {
                doing: "read",
                path: self.identity.clone(),
                cause: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn certify_anew(
        &self,
        authority: &AuthoritySecretKey,
        static_key: Option<StaticKey>,
        now_unix: u32,
    ) -> Result<Identity, KeysError> {
        let identity = make_identity(authority, static_key, now_unix, self.certificate_days)?;
        replace_identity(&self.identity, &identity)?;
        info!(file = %self.identity.display(), days = self.certificate_days, "made a certificate");
        Ok(identity)
    }

    /// Whether the certificate holds now.
    ///
    /// # Errors
    /// `Certificate`, with what is wrong.
    pub fn check_certificate(&self, identity: &Identity, now_unix: u32) -> Result<(), KeysError> {
        let Identity { static_key, certificate, authority } = identity;
        certificate.verify(&static_key.x_only(), authority, now_unix).map_err(|cause| {
            let path = self.identity.clone();
            KeysError::Certificate { remedy: self.words.remedy, path, cause }
        })
    }

    /// Less than a third of its time is left, or its time is not now.
    fn is_due(&self, identity: &Identity, now_unix: u32) -> bool {
        let certificate = &identity.certificate;
        let whole = certificate.not_valid_after.saturating_sub(certificate.valid_from);
        let left = certificate.not_valid_after.saturating_sub(now_unix);
        left < whole / 3 || now_unix < certificate.valid_from
    }
}

/// Makes an authority key in a new file, mode 0600.
///
/// # Errors
/// `AlreadyThere`, or the file cannot be written.
pub fn make_authority(path: &Path, words: Words) -> Result<AuthoritySecretKey, KeysError> {
    let key = AuthoritySecretKey::from_secret(*random()?)
        .map_err(|cause| KeysError::Malformed { path: path.to_owned(), cause })?;
    let (public, secret) = (key.public(), key.to_text());
    let Words { program, clients, .. } = words;
    let text = Zeroizing::new(format!(
        "# SECRET, keep offline: whoever has the key in this file can pass for your {program}.\n\
         # {clients} never need it. What they need is the public key, which starts with a 9:\n\
         #     {public}\n\
         # SECRET, keep offline, the authority's secret key:\n\
         {}\n",
        *secret
    ));
    write_private(path, &text, Existing::Refused)?;
    Ok(key)
}

/// Reads an authority's secret key: comments, then the key on a line of its own.
///
/// # Errors
/// Unreadable, exposed, or no key.
pub fn read_authority(path: &Path) -> Result<AuthoritySecretKey, KeysError> {
    let text = read_private(path)?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    line.unwrap_or_default()
        .parse()
        .map_err(|cause| KeysError::Malformed { path: path.to_owned(), cause })
}

/// Signs a static key, or a new one, from a day ago until `days` from now.
///
/// # Errors
/// No randomness.
pub fn make_identity(
    authority: &AuthoritySecretKey,
    static_key: Option<StaticKey>,
    now_unix: u32,
    days: u32,
) -> Result<Identity, KeysError> {
    let static_key = match static_key {
        Some(key) => key,
        None => StaticKey::from_secret(*random()?, *random()?)
            .map_err(|error| KeysError::Randomness(error.to_string()))?,
    };
    let valid_from = now_unix.saturating_sub(BACKDATED_S);
    let not_valid_after = now_unix.saturating_add(days.saturating_mul(DAY_S));
    let certificate =
        authority.certify(&static_key.x_only(), valid_from, not_valid_after, &*random()?);
    Ok(Identity { static_key, certificate, authority: authority.public() })
}

/// Reads static key and certificate; whether they hold now is `KeyFiles::check_certificate`'s.
///
/// # Errors
/// Unreadable, exposed or mangled.
pub fn read_identity(path: &Path) -> Result<Identity, KeysError> {
    Identity::from_text(&read_private(path)?)
        .map_err(|cause| KeysError::Malformed { path: path.to_owned(), cause })
}

/// Puts an identity in the place of what is there, if anything, at once and for good.
///
/// # Errors
/// The file cannot be written; what was there still is.
pub fn replace_identity(path: &Path, identity: &Identity) -> Result<(), KeysError> {
    write_private(path, &identity.to_text(), Existing::Replaced)
}

/// The clock, as certificates count.
#[must_use]
pub fn unix_now() -> u32 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Certificates end in 2106 by their own format.
    u32::try_from(passed.as_secs()).unwrap_or(u32::MAX)
}

/// A day for people, "2026-12-31", of Unix seconds in UTC.
#[must_use]
pub fn utc_date(unix: u32) -> String {
    // Days since 0000-03-01, so that a leap day ends a year (H. Hinnant, days_from_civil).
    let days = unix / DAY_S + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u32::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Looks at the files again and again: an identity that changed, or that we renewed, goes out on the
/// channel, and new handshakes use it. Sessions that are open keep theirs.
pub struct IdentityWatch {
    files: KeyFiles,
    current: watch::Sender<Arc<Identity>>,
    /// Told at each look of the seconds that the certificate has left.
    left: Box<dyn Fn(i64) + Send>,
    /// Days left at the last warning, so that each day says it once.
    warned_at: Option<i64>,
}

impl IdentityWatch {
    /// Watches from `identity` on. At each look `left` is told the seconds that the certificate has
    /// left, negative once it has ended.
    #[must_use]
    pub fn new(files: KeyFiles, identity: Identity, left: impl Fn(i64) + Send + 'static) -> Self {
        let current = watch::Sender::new(Arc::new(identity));
        Self { files, current, left: Box::new(left), warned_at: None }
    }

    /// Where the identity to use now is read.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Identity>> {
        self.current.subscribe()
    }

    /// The task: looks on SIGHUP and every minute until `stop`. The signal is caught from this call on,
    /// not only once the task runs.
    ///
    /// # Errors
    /// The signal cannot be caught.
    pub fn run(
        mut self,
        stop: CancellationToken,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = hangup.recv() => {}
                    _ = poll.tick() => {}
                }
                self.look(unix_now());
            }
        })
    }

    /// Looks once. What cannot be used is told and left; the identity in use stays.
    pub fn look(&mut self, now_unix: u32) {
        match self.fresh(now_unix) {
            Ok(fresh) => {
                let changed = fresh.to_text() != self.current.borrow().to_text();
                if changed {
                    info!(file = %self.files.identity.display(), "identity reloaded");
                    self.current.send_replace(Arc::new(fresh));
                }
            }
            Err(error) => error!(%error, "keys not reloaded"),
        }
        let end = self.current.borrow().certificate.not_valid_after;
        let left_s = i64::from(end) - i64::from(now_unix);
        (self.left)(left_s);
        self.warn_once_a_day(left_s.div_euclid(i64::from(DAY_S)));
    }

    fn fresh(&self, now_unix: u32) -> Result<Identity, KeysError> {
        let identity = read_identity(&self.files.identity)?;
        let in_use = self.current.borrow().authority;
        if identity.authority != in_use {
            // Every client pins the old one: such a change is made by a restart, on purpose.
            return Err(other_authority(&self.files.identity, identity.authority, in_use));
        }
        let due = self.files.is_due(&identity, now_unix) && self.files.authority.exists();
        let authority = due.then(|| read_authority(&self.files.authority)).transpose()?;
        self.files.settle(Some(identity), authority.as_ref(), now_unix)
    }

    fn warn_once_a_day(&mut self, days_left: i64) {
        if days_left >= WARN_DAYS {
            self.warned_at = None;
        } else if self.warned_at != Some(days_left) {
            self.warned_at = Some(days_left);
            let file = self.files.identity.display();
            warn!(%file, days_left, "the certificate ends soon: {}", self.files.words.remedy);
        }
    }
}

/// Fresh secrets for one handshake, wiped but for what the handshake keeps.
///
/// # Errors
/// `Randomness`.
pub fn ephemeral() -> Result<EphemeralSecret, KeysError> {
    EphemeralSecret::new(*random()?, *random()?)
        .map_err(|error| KeysError::Randomness(error.to_string()))
}

fn random() -> Result<Zeroizing<[u8; 32]>, KeysError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| KeysError::Randomness(error.to_string()))?;
    Ok(bytes)
}

fn other_authority(
    path: &Path,
    found: AuthorityPublicKey,
    expected: AuthorityPublicKey,
) -> KeysError {
    let (found, expected) = (found.to_string(), expected.to_string());
    KeysError::OtherAuthority { path: path.to_owned(), found, expected }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KeysError + 'a {
    move |cause| KeysError::Io { doing, path: path.to_owned(), cause }
}

/// Reads a file that nobody else can have read or written.
fn read_private(path: &Path) -> Result<Zeroizing<String>, KeysError> {
    let file = File::open(path).map_err(failed("open", path))?;
    // Of the open file, so that it cannot be another one by the time it is read.
    let facts = file.metadata().map_err(failed("look at", path))?;
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeysError::Exposed { path: path.to_owned(), mode });
    }
    let us = rustix::process::geteuid().as_raw();
    if facts.uid() != us {
        return Err(KeysError::NotOurs { path: path.to_owned(), owner: facts.uid(), us });
    }
    // Room for all of it, so that no part stays behind in a buffer that was outgrown.
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_MAX as usize + 64));
    file.take(KEY_FILE_MAX).read_to_string(&mut text).map_err(failed("read", path))?;
    Ok(text)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Replaced,
    Refused,
}

/// Writes a file of mode 0600 so that it is there whole or not at all, also after a power cut.
fn write_private(path: &Path, text: &str, existing: Existing) -> Result<(), KeysError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut make = DirBuilder::new();
    make.recursive(true).mode(0o700).create(folder).map_err(failed("make", folder))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = folder.join(name);
    let written = write_draft(&draft, text).map_err(failed("write", &draft)).and_then(|()| {
        match existing {
            Existing::Replaced => std::fs::rename(&draft, path).map_err(failed("write", path)),
            // A link, unlike a rename, fails where there is a file already.
            Existing::Refused => std::fs::hard_link(&draft, path).map_err(|cause| {
                if cause.kind() == io::ErrorKind::AlreadyExists {
                    KeysError::AlreadyThere { path: path.to_owned() }
                } else {
                    failed("write", path)(cause)
                }
            }),
        }
    });
    // Gone already after a rename.
    let _ = std::fs::remove_file(&draft);
    written?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

fn write_draft(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
