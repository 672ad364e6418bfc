//! What command lines of this house have in common: how a program ends, logs, shows its keys and is asked
//! whether it is ready. Called by `cli.rs` of the pool and of `job-declarator/cli`, which say what a
//! person types.
//!
//! What is said goes to stderr by threads of its own: whoever reads it may be gone, full or asleep, and none of
//! that may reach what mines. Exit codes: 0 done, 1 failed, 2 wrong usage (clap's own), 78 bad configuration
//! (EX_CONFIG), so that a supervisor can tell what a restart will not mend. Must never print a secret or a
//! backtrace.

use std::io::{IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use proto::noise::Identity;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::keys::{self, KeyFiles};
use crate::limits::{LOG_LINES_MAX, RUNTIME_ENDS_WITHIN, SAID_WITHIN, TURNS_PER_LOOK};
use crate::settings::{ConfigError, LogFormat};

/// A token that SIGTERM or Ctrl-C cancels.
#[must_use]
pub fn cancelled_by_signal() -> CancellationToken {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        info!("stopping: what is open is brought to its end");
        stop.cancel();
    });
    shutdown
}

/// SIGTERM (what `docker stop` and systemd send) or Ctrl-C.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            warn!(%error, "SIGTERM cannot be caught; Ctrl-C can");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

/// Says that `usual`, a configuration file that lies here, is not read because nobody named it.
pub fn note_unread(program: &str, named: Option<&Path>, usual: &str) {
    if named.is_none() && Path::new(usual).exists() {
        say(format!("{program}: {usual} lies here and is not read; name it: -c {usual}"));
    }
}

/// What a command does until it ends.
pub type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// The thread that writes the log, and what it had no room for.
static LOG: Mutex<Option<(WorkerGuard, ErrorCounter)>> = Mutex::new(None);

const FAILED: u8 = 1;
const BAD_CONFIG: u8 = 78;

/// From here on a panic is one line on stderr.
pub fn own_up_to_bugs(program: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.to_string().replace('\n', " ");
        say(format!("{program}: a bug, please report it: {what}"));
    }));
}

/// One line on stderr. Waited for a little, so that it stands before what follows; never longer.
fn say(line: String) {
    let (written, is_written) = std::sync::mpsc::sync_channel(1);
    let write = move || {
        // There is nobody else to tell.
        let _ = writeln!(std::io::stderr(), "{line}");
        let _ = written.send(());
    };
    if std::thread::Builder::new().name("say".to_owned()).spawn(write).is_ok() {
        let _ = is_written.recv_timeout(SAID_WITHIN);
    }
}

/// The exit code of what a command came to; a failure is one line on stderr.
#[must_use]
pub fn ended(program: &str, outcome: anyhow::Result<()>) -> ExitCode {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner).take();
    let dropped = log.as_ref().map_or(0, |(_, dropped)| dropped.dropped_lines());
    // Writes what waits.
    drop(log);
    if dropped > 0 {
        say(format!("{program}: {dropped} lines were not said, as nobody read fast enough"));
    }
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    say(format!("{program}: {error:#}"));
    // Also what turned out wrong only once the node was asked.
    let bad_config = error.downcast_ref::<ConfigError>().is_some_and(|error| !error.may_pass());
    ExitCode::from(if bad_config { BAD_CONFIG } else { FAILED })
}

/// Runs it on all cores.
///
/// # Errors
/// Its own, or no threads.
pub fn block_on(running: Running) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().event_interval(TURNS_PER_LOOK).build()?;
    let ended = runtime.block_on(running);
    // A disk that hangs has a thread that never comes back.
    runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
    ended
}

/// Logs to stderr from here on.
///
/// # Errors
/// Not a filter, or logging has started before.
pub fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let stderr = std::io::stderr;
    let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES_MAX);
    let (writer, guard) = queue.thread_name("log").finish(stderr());
    let dropped = writer.error_counter();
    let logging = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(writer)
        // Those would go to stderr themselves, and end the program where that fails.
        .log_internal_errors(false)
        .with_ansi(stderr().is_terminal());
    let started = match format {
        LogFormat::Text => logging.try_init(),
        LogFormat::Json => logging.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("logging does not start: {error}"))?;
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some((guard, dropped));
    Ok(())
}

/// What clients need to know of the identity, and whether it holds now. `none_yet` is said where there is
/// none.
///
/// # Errors
/// No identity, or one that cannot be used.
pub fn show_keys(out: &mut dyn Write, files: &KeyFiles, none_yet: &str) -> anyhow::Result<()> {
    let path = &files.identity;
    if !path.exists() {
        bail!("no keys yet: {} is not there. {none_yet}", path.display());
    }
    let identity = keys::read_identity(path)?;
    write_identity(out, path, &identity)?;
    files.check_certificate(&identity, keys::unix_now())?;
    Ok(())
}

/// Three lines: the authority's public key, the certificate's time, the file.
///
/// # Errors
/// `out`'s.
pub fn write_identity(
    out: &mut dyn Write,
    path: &Path,
    identity: &Identity,
) -> std::io::Result<()> {
    let certificate = &identity.certificate;
    let (from, until) =
        (keys::utc_date(certificate.valid_from), keys::utc_date(certificate.not_valid_after));
    writeln!(out, "authority public key: {}", identity.authority)?;
    writeln!(out, "certificate: from {from} until {until} (UTC)")?;
    writeln!(out, "identity: {}", path.display())
}

/// The page that a health check asks for, from this machine, whatever the port is bound to.
#[must_use]
pub fn ready_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        let loopback = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    format!("http://{address}/health/ready")
}

/// Longer than the page itself may take.
const HEALTHCHECK_MAX: Duration = Duration::from_secs(3);
/// The page is a line; what comes beyond is not ours.
const HEALTHCHECK_ANSWER_MAX: u64 = 4_096;

/// One GET, so plain that it needs no HTTP client: containers have no curl.
///
/// # Errors
/// Nobody answers, or not with 200.
pub fn healthcheck(url: &str) -> anyhow::Result<()> {
    let rest = url.strip_prefix("http://").context("the url must start with http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let unreachable = || format!("{host} does not answer");
    let address = host.to_socket_addrs().with_context(unreachable)?.next();
    let address = address.with_context(unreachable)?;
    let mut stream =
        TcpStream::connect_timeout(&address, HEALTHCHECK_MAX).with_context(unreachable)?;
    stream.set_read_timeout(Some(HEALTHCHECK_MAX))?;
    stream.set_write_timeout(Some(HEALTHCHECK_MAX))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(unreachable)?;
    let mut answer = Vec::new();
    stream.take(HEALTHCHECK_ANSWER_MAX).read_to_end(&mut answer).with_context(unreachable)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).unwrap_or("nothing");
    if status != "200" {
        let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim();
        bail!("not ready: {url} says {status} {body}");
    }
    Ok(())
}

/// A year: enough for a soak, and no overflow further on.
const TIME_MAX_S: u64 = 366 * 86_400;

/// "20s", "5m", "2h", "1d", or seconds without a unit.
///
/// # Errors
/// What would be right, in words.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let unit_s = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("a number and s, m, h or d, e.g. 20s".into()),
    };
    let count: u64 = count.parse().map_err(|_| "a number and s, m, h or d, e.g. 20s")?;
    match count.checked_mul(unit_s) {
        Some(seconds @ 1..=TIME_MAX_S) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err("from 1s to 366d".into()),
    }
}
