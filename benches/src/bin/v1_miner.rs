//! A small Stratum V1 miner that grinds real shares on one CPU thread: what `scripts/interop` puts behind
//! SRI's translator, which mines for nobody without a V1 device. Blocking sockets, no device's quirks.
//!
//! It prints one JSON object, `{submitted, accepted, rejected}`, and exits non-zero if fewer shares
//! were accepted than asked for. It must never count a share as accepted that no answer named.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use proto::template::{merkle_root, sha256d};
use serde_json::{Value, json};

const USAGE: &str = "v1_miner --address HOST:PORT --user NAME [--seconds N] [--min-accepted N] \
    [--linger N] [--version-rolling]";
/// A coinbase of 64 KiB in hex, twice, with a deep merkle path, is below this.
const LINE_MAX: u64 = 512 * 1024;
/// Lines that wait while a slice of nonces is tried.
const LINES_MAX: usize = 64;
/// Nonces between two looks at the socket: a few milliseconds.
const SLICE: u32 = 4_096;
/// Shares sent and not answered; a server this far behind is not worth hashing for.
const UNANSWERED_MAX: usize = 1_000;
/// The version bits that old ASIC firmware rolls.
const VERSION_MASK: u32 = 0x1fff_e000;

struct Options {
    address: String,
    user: String,
    /// Longest run.
    seconds: u64,
    /// Accepted shares at which the run counts as good and ends ...
    min_accepted: u64,
    /// ... after mining on for this long, so that whoever watches the server can look.
    linger: u64,
    version_rolling: bool,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| mine(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("v1_miner: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let mut options = Options {
        address: String::new(),
        user: String::new(),
        seconds: 60,
        min_accepted: 1,
        linger: 0,
        version_rolling: false,
    };
    while let Some(name) = args.next() {
        if name == "--version-rolling" {
            options.version_rolling = true;
            continue;
        }
        let value = args.next().with_context(|| format!("{name} wants a value\n{USAGE}"))?;
        match name.as_str() {
            "--address" => options.address = value,
            "--user" => options.user = value,
            "--seconds" => options.seconds = value.parse().context("--seconds")?,
            "--min-accepted" => options.min_accepted = value.parse().context("--min-accepted")?,
            "--linger" => options.linger = value.parse().context("--linger")?,
            _ => bail!("unknown option {name}\n{USAGE}"),
        }
    }
    if options.address.is_empty() || options.user.is_empty() {
        bail!("{USAGE}");
    }
    Ok(options)
}

/// Runs to the end; whether enough was accepted.
fn mine(options: &Options) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(&options.address)
        .with_context(|| format!("connecting to {}", options.address))?;
    stream.set_nodelay(true)?;
    let lines = read_lines(stream.try_clone()?);
    let mut miner = Miner::new(&options.user);
    let mut out = miner.hello(options.version_rolling);
    let mut enough_since = None;
    let ended = loop {
        stream.write_all(out.as_bytes())?;
        out.clear();
        match miner.hear(&lines) {
            Ok(true) => {}
            Ok(false) => break Err(anyhow!("the server closed the connection")),
            Err(error) => break Err(error),
        }
        if miner.accepted >= options.min_accepted {
            enough_since.get_or_insert_with(Instant::now);
        }
        let lingered =
            enough_since.is_some_and(|since| since.elapsed().as_secs() >= options.linger);
        if lingered || start.elapsed().as_secs() >= options.seconds {
            break Ok(());
        }
        miner.grind(&mut out);
    };
    // The reader's thread ends with the socket.
    let _ = stream.shutdown(Shutdown::Both);
    let (submitted, accepted, rejected) = (miner.submitted, miner.accepted, miner.rejected);
    println!("{}", json!({"submitted": submitted, "accepted": accepted, "rejected": rejected}));
    ended.map(|()| accepted >= options.min_accepted)
}

/// A thread that reads lines for ever; the channel ends with the connection.
fn read_lines(stream: TcpStream) -> Receiver<Vec<u8>> {
    let (send, lines) = sync_channel(LINES_MAX);
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if !line.ends_with(b"\n") => return,
                Ok(_) if send.send(line).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    lines
}

/// What mining.notify says, as it is needed.
struct Job {
    id: String,
    prev_hash: [u8; 32],
    coinbase_head: Vec<u8>,
    coinbase_tail: Vec<u8>,
    path: Vec<[u8; 32]>,
    version: u32,
    nbits: u32,
    ntime: u32,
    extranonce2_size: usize,
    /// Largest hash that is a share, as a number.
    target: f64,
}

struct Miner {
    user: String,
    next_id: u64,
    /// Ids of mining.submit without an answer.
    unanswered: HashSet<u64>,
    subscribe_id: u64,
    configure_id: Option<u64>,
    version_mask: u32,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    target: f64,
    job: Option<Job>,
    /// Counts up over all jobs, so that no header comes twice.
    extranonce2: u64,
    header: [u8; 80],
    rolled_version: u32,
    nonce: u32,
    submitted: u64,
    accepted: u64,
    rejected: u64,
}

impl Miner {
    fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            next_id: 1,
            unanswered: HashSet::new(),
            subscribe_id: 0,
            configure_id: None,
            version_mask: 0,
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            target: target_of(1.0),
            job: None,
            extranonce2: 0,
            header: [0; 80],
            rolled_version: 0,
            nonce: 0,
            submitted: 0,
            accepted: 0,
            rejected: 0,
        }
    }

    fn call(&mut self, method: &str, params: &Value, out: &mut String) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        out.push_str(&json!({"id": id, "method": method, "params": params}).to_string());
        out.push('\n');
        id
    }

    fn hello(&mut self, version_rolling: bool) -> String {
        let mut out = String::new();
        if version_rolling {
            let mask = format!("{VERSION_MASK:08x}");
            let wish = json!({"version-rolling.mask": mask, "version-rolling.min-bit-count": 2});
            let params = json!([["version-rolling"], wish]);
            self.configure_id = Some(self.call("mining.configure", &params, &mut out));
        }
        self.subscribe_id = self.call("mining.subscribe", &json!(["v1_miner/0.1"]), &mut out);
        let user = self.user.clone();
        self.call("mining.authorize", &json!([user, "x"]), &mut out);
        out
    }

    /// Takes all lines that are there, waiting for one if there is nothing to hash. `false` when the
    /// connection has ended.
    fn hear(&mut self, lines: &Receiver<Vec<u8>>) -> anyhow::Result<bool> {
        if self.job.is_none() {
            // Short, so that the deadline of the run is seen.
            if let Ok(line) = lines.recv_timeout(Duration::from_millis(100)) {
                self.hear_line(&line)?;
            }
        }
        loop {
            match lines.try_recv() {
                Ok(line) => self.hear_line(&line)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
        }
    }

    fn hear_line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let message: Value = serde_json::from_slice(line)
            .with_context(|| format!("no JSON: {}", line.escape_ascii()))?;
        let params = &message["params"];
        match message["method"].as_str() {
            Some("mining.notify") => {
                self.job = Some(self.job_of(params).context("mining.notify")?);
                self.next_header();
            }
            Some("mining.set_difficulty") => {
                let difficulty = params[0].as_f64().context("a difficulty that is no number")?;
                // For jobs that come from now on.
                self.target = target_of(difficulty);
                eprintln!("v1_miner: difficulty {difficulty}");
            }
            Some("mining.set_extranonce") => {
                self.extranonce1 = hex(&params[0])?;
                self.extranonce2_size = size(&params[1])?;
            }
            Some("mining.set_version_mask") => self.version_mask = hex_u32(&params[0])?,
            Some(other) => eprintln!("v1_miner: {other} is not spoken here"),
            None => self.hear_answer(&message)?,
        }
        Ok(())
    }

    fn hear_answer(&mut self, message: &Value) -> anyhow::Result<()> {
        let Some(id) = message["id"].as_u64() else { return Ok(()) };
        let result = &message["result"];
        if id == self.subscribe_id {
            self.extranonce1 = hex(&result[1]).context("mining.subscribe")?;
            self.extranonce2_size = size(&result[2]).context("mining.subscribe")?;
        } else if Some(id) == self.configure_id {
            if result["version-rolling"] == Value::Bool(true) {
                self.version_mask = hex_u32(&result["version-rolling.mask"])?;
            }
        } else if self.unanswered.remove(&id) {
            if *result == Value::Bool(true) {
                self.accepted += 1;
            } else {
                self.rejected += 1;
                eprintln!("v1_miner: rejected: {}", message["error"]);
            }
        } else if *result == Value::Bool(false) {
            bail!("not authorised: {}", message["error"]);
        }
        Ok(())
    }

    fn job_of(&self, params: &Value) -> anyhow::Result<Job> {
        let mut prev_hash: [u8; 32] =
            hex(&params[1])?.try_into().map_err(|_| anyhow!("a prev hash of another length"))?;
        // Stratum V1 writes each of the eight words backwards.
        prev_hash.chunks_exact_mut(4).for_each(<[u8]>::reverse);
        let path = params[4].as_array().context("no merkle branches")?;
        let path = path.iter().map(|hash| {
            hex(hash)?.try_into().map_err(|_| anyhow!("a merkle branch of another length"))
        });
        let mut coinbase_head = hex(&params[2])?;
        coinbase_head.extend_from_slice(&self.extranonce1);
        Ok(Job {
            id: params[0].as_str().context("a job id that is no text")?.to_owned(),
            prev_hash,
            coinbase_head,
            coinbase_tail: hex(&params[3])?,
            path: path.collect::<anyhow::Result<_>>()?,
            version: hex_u32(&params[5])?,
            nbits: hex_u32(&params[6])?,
            ntime: hex_u32(&params[7])?,
            extranonce2_size: self.extranonce2_size,
            target: self.target,
        })
    }

    fn extranonce2_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (byte, value) in bytes.iter_mut().rev().zip(self.extranonce2.to_le_bytes()) {
            *byte = value;
        }
        bytes
    }

    /// The job's header with an extranonce that was not used yet.
    fn next_header(&mut self) {
        self.extranonce2 += 1;
        self.nonce = 0;
        let Some(job) = &self.job else { return };
        let rolled = self.extranonce2_bytes(job.extranonce2_size);
        let coinbase = [&job.coinbase_head[..], &rolled, &job.coinbase_tail].concat();
        // Some bit of the mask, changing from header to header.
        self.rolled_version = (self.extranonce2 as u32).wrapping_mul(0x2000) & self.version_mask;
        let version = (job.version & !self.version_mask) | self.rolled_version;
        let header = proto::job::HeaderFields {
            version,
            prev_hash: job.prev_hash,
            merkle_root: merkle_root(sha256d(&coinbase), &job.path),
            ntime: job.ntime,
            nbits: job.nbits,
            nonce: 0,
        };
        self.header = header.to_bytes();
    }

    /// Tries a slice of nonces and writes what it finds into `out`.
    fn grind(&mut self, out: &mut String) {
        let Some(job) = &self.job else { return };
        if self.unanswered.len() >= UNANSWERED_MAX {
            thread::sleep(Duration::from_millis(10));
            return;
        }
        let target = job.target;
        for _ in 0..SLICE {
            self.header[76..].copy_from_slice(&self.nonce.to_le_bytes());
            let nonce = self.nonce;
            let spent = self.nonce == u32::MAX;
            self.nonce = self.nonce.wrapping_add(1);
            if as_number(&sha256d(&self.header)) <= target {
                self.submit(nonce, out);
            }
            if spent {
                self.next_header();
                return;
            }
        }
    }

    fn submit(&mut self, nonce: u32, out: &mut String) {
        let Some(job) = &self.job else { return };
        let mut params = vec![
            json!(self.user),
            json!(job.id),
            json!(to_hex(&self.extranonce2_bytes(job.extranonce2_size))),
            json!(format!("{:08x}", job.ntime)),
            json!(format!("{nonce:08x}")),
        ];
        if self.version_mask != 0 {
            params.push(json!(format!("{:08x}", self.rolled_version)));
        }
        let id = self.call("mining.submit", &Value::Array(params), out);
        self.unanswered.insert(id);
        self.submitted += 1;
    }
}

/// Largest hash of a share of this difficulty, one part in a million below the exact bound: floats here and
/// integers there must not disagree.
fn target_of(difficulty: f64) -> f64 {
    let one = f64::from(0xffff_u32) * 2f64.powi(208);
    one / difficulty.max(f64::MIN_POSITIVE) * 0.999_999
}

/// A hash as a number, to 53 bits.
fn as_number(hash: &[u8; 32]) -> f64 {
    hash.iter().rev().fold(0.0, |number, byte| number * 256.0 + f64::from(*byte))
}

fn size(value: &Value) -> anyhow::Result<usize> {
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    size.filter(|size| *size <= 32).context("an extranonce2 size that cannot be")
}

fn hex_u32(value: &Value) -> anyhow::Result<u32> {
    let text = value.as_str().context("no text where hex should be")?;
    u32::from_str_radix(text, 16).with_context(|| format!("no hex number: {text:?}"))
}

fn hex(value: &Value) -> anyhow::Result<Vec<u8>> {
    let text = value.as_str().context("no text where hex should be")?;
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).context("no hex")?;
    Ok(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block 1 of the main network, as a V1 server would have put it: its coinbase cut in three.
    #[test]
    fn the_first_block_after_genesis_is_a_share_of_difficulty_one() {
        let coinbase = "01000000010000000000000000000000000000000000000000000000000000000000000000\
            ffffffff0704ffff001d0104ffffffff0100f2052a0100000043410496b538e853519c726a2c91e61ec1160\
            0ae1390813a627c66fb8be7947be63c52da7589379515d4e0a604f8141781e62294721166bf621e73a82cbf\
            2342c858eeac00000000";
        // The height's push of later blocks stands where this one has ffff001d: the extranonces are
        // ffff00 and 1d.
        let (head, rest) = coinbase.split_at(86);
        let tail = &rest[8..];
        assert!(head.ends_with("0704") && rest.starts_with("ffff001d"));
        let mut miner = Miner::new("test");
        miner.subscribe_id = 1;
        let subscribed = json!({"id": 1, "result": [[], "ffff00", 1], "error": null});
        miner.hear_line(subscribed.to_string().as_bytes()).unwrap();
        let genesis = "6fe28c0ab6f1b372c1a6a246ae63f74f931e8365e15a089c68d6190000000000";
        let swapped: Vec<u8> =
            hex(&json!(genesis)).unwrap().chunks(4).flat_map(|w| w.iter().rev().copied()).collect();
        let notify = json!({"id": null, "method": "mining.notify", "params": [
            "job", to_hex(&swapped), head, tail, [], "00000001", "1d00ffff", "4966bc61", true,
        ]});
        miner.hear_line(notify.to_string().as_bytes()).unwrap();
        // The next one not used yet is 1d.
        miner.extranonce2 = 0x1c;
        miner.next_header();
        miner.nonce = 2_573_394_689;
        let mut out = String::new();
        miner.grind(&mut out);
        let share: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(share["params"], json!(["test", "job", "1d", "4966bc61", "9962e301"]));
    }
}
