//! A Stratum V1 device over a real socket: what it hashes it puts together from lines alone.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::job::HeaderFields;
use proto::target::Difficulty;
use proto::template::{merkle_root, sha256d};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::PATIENCE;

/// The version bits that it rolls.
const MASK: u32 = 0x1fff_e000;
/// The difficulty that it wishes for: 4,096 hashes.
const START: f64 = 1.0 / 1_048_576.0;
/// Headers that are tried between two looks at the socket.
const SLICE: u32 = 400;

/// What became of its shares.
#[derive(Debug, Default)]
pub(crate) struct V1Report {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// A device at work.
pub(crate) struct V1Device {
    pub(crate) report: Arc<V1Report>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

impl V1Device {
    pub(crate) async fn start(at: SocketAddr, name: &str) -> Self {
        let report = Arc::new(V1Report::default());
        let stop = CancellationToken::new();
        let miner = Miner::connect(at, name, Arc::clone(&report)).await;
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            stopped.run_until_cancelled(miner.run()).await.unwrap_or(Ok(()))
        });
        Self { report, stop, task }
    }

    /// Until so many more of its shares are accepted.
    pub(crate) async fn until_accepted(&self, shares: u64) {
        let goal = self.report.accepted.load(Ordering::SeqCst) + shares;
        let mined = async {
            while self.report.accepted.load(Ordering::SeqCst) < goal {
                assert!(!self.task.is_finished(), "the V1 device lost its connection");
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, mined).await.expect("a V1 device's shares are not accepted");
    }

    /// Its one connection held to the end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().expect("the V1 device lost its connection");
        assert!(self.report.accepted.load(Ordering::SeqCst) > 0, "{:?}", self.report);
    }
}

struct Job {
    id: String,
    header: HeaderFields,
    head: Vec<u8>,
    tail: Vec<u8>,
    path: Vec<[u8; 32]>,
    difficulty: f64,
}

struct Miner {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    out: OwnedWriteHalf,
    name: String,
    extranonce1: Vec<u8>,
    extranonce2_len: usize,
    difficulty: f64,
    job: Option<Job>,
    rolled: u64,
    asked: u64,
    report: Arc<V1Report>,
}

impl Miner {
    async fn connect(at: SocketAddr, name: &str, report: Arc<V1Report>) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, mut out) = stream.into_split();
        let wish = json!({"version-rolling.mask": format!("{MASK:08x}")});
        let hello = [
            json!({"id": 1, "method": "mining.configure", "params": [["version-rolling"], wish]}),
            json!({"id": 2, "method": "mining.subscribe", "params": ["test/1.0"]}),
            json!({"id": 3, "method": "mining.authorize", "params": [name, "x"]}),
            // Without, it is taken for a fast one until it has shown that it is not.
            json!({"id": 4, "method": "mining.suggest_difficulty", "params": [START]}),
        ];
        for line in hello {
            out.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
        Self {
            lines: BufReader::new(read).lines(),
            out,
            name: name.to_owned(),
            extranonce1: Vec::new(),
            extranonce2_len: 0,
            difficulty: 0.0,
            job: None,
            rolled: 0,
            asked: 4,
            report,
        }
    }

    async fn run(mut self) -> Result<(), String> {
        loop {
            tokio::select! {
                biased;
                line = self.lines.next_line() => {
                    let line = line.map_err(|error| error.to_string())?;
                    self.hear(&line.ok_or("the connection was closed")?);
                }
                // Some of a core's time and not all of it.
                () = sleep(Duration::from_millis(5)), if self.job.is_some() => {
                    if let Some(share) = self.grind() {
                        let sent = self.out.write_all(format!("{share}\n").as_bytes()).await;
                        sent.map_err(|error| error.to_string())?;
                    }
                }
            }
        }
    }

    fn hear(&mut self, line: &str) {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        match (line["method"].as_str(), line["id"].as_u64()) {
            (Some("mining.set_difficulty"), _) => {
                self.difficulty = line["params"][0].as_f64().unwrap();
            }
            (Some("mining.notify"), _) => self.job = Some(job(&line["params"], self.difficulty)),
            (Some(_), _) | (None, Some(1 | 3 | 4) | None) => {}
            (None, Some(2)) => {
                self.extranonce1 = bytes(&line["result"][1]);
                self.extranonce2_len = line["result"][2].as_u64().unwrap() as usize;
            }
            (None, Some(_)) => {
                let is_good = line["result"] == true;
                let count = if is_good { &self.report.accepted } else { &self.report.refused };
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Some headers, each of another extranonce; the mining.submit of one that is a share.
    fn grind(&mut self) -> Option<Value> {
        let job = self.job.as_ref()?;
        self.rolled += 1;
        let rolled = self.rolled.to_be_bytes();
        let rolled = &rolled[8 - self.extranonce2_len..];
        let coinbase = [&job.head[..], &self.extranonce1, rolled, &job.tail].concat();
        let mut header = job.header;
        header.merkle_root = merkle_root(sha256d(&coinbase), &job.path);
        let bits = (self.rolled as u32) << 13 & MASK;
        header.version = header.version & !MASK | bits;
        let target = Difficulty::from_log2(job.difficulty.log2().round() as i16).target();
        for nonce in 0..SLICE {
            header.nonce = nonce;
            if target.is_met_by(&header.hash()) {
                self.asked += 1;
                let words = [header.ntime, nonce, bits].map(|word| format!("{word:08x}"));
                let [ntime, nonce, bits] = words;
                let share = json!([self.name, job.id, hex::encode(rolled), ntime, nonce, bits]);
                let id = self.asked;
                return Some(json!({"id": id, "method": "mining.submit", "params": share}));
            }
        }
        None
    }
}

fn job(params: &Value, difficulty: f64) -> Job {
    let word = |at: usize| u32::from_str_radix(params[at].as_str().unwrap(), 16).unwrap();
    let mut prev_hash: [u8; 32] = bytes(&params[1]).try_into().unwrap();
    prev_hash.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    let path = params[4].as_array().unwrap().iter();
    Job {
        id: params[0].as_str().unwrap().to_owned(),
        header: HeaderFields {
            version: word(5),
            prev_hash,
            merkle_root: [0; 32],
            ntime: word(7),
            nbits: word(6),
            nonce: 0,
        },
        head: bytes(&params[2]),
        tail: bytes(&params[3]),
        path: path.map(|hash| bytes(hash).try_into().unwrap()).collect(),
        difficulty,
    }
}

fn bytes(text: &Value) -> Vec<u8> {
    hex::decode(text.as_str().unwrap()).unwrap()
}
