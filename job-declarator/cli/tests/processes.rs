//! The house as processes of its own: a node, two pools and the declarator, killed, stopped in their tracks and
//! started again by signals, as an operating system does it, and a way to the node that can be cut. What happens
//! is read from the status page's JSON, and what a switch costs also from a device that writes down when it was
//! given whose work. A Stratum V2 and a V1 device mine through all of it.
//! Needs `pool` and `dev_node` beside this package's program; where cargo has not built them it says so, and
//! fails under continuous integration.

#![cfg(feature = "demo")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

#[path = "../../../pool/tests/home/proxy.rs"]
mod proxy;
#[path = "../../../pool/tests/home/v1.rs"]
mod v1;
#[path = "../../../pool/tests/home/witness.rs"]
mod witness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use job_declarator::limits::{NODE_SILENCE_MAX_MS, SESSION_SETUP_MAX_MS};
use pool::cpu_miner::{self, CpuMinerOptions, MinerReport};
use proxy::{Proxy, Way};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use v1::V1Device;
use witness::Witness;

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);
/// Where solo blocks of the house pay: nobody's, of BIP173's examples.
const ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

/// What pays to it.
fn script_of(address: &str) -> Vec<u8> {
    use bitcoin::address::NetworkUnchecked;
    let address: bitcoin::Address<NetworkUnchecked> = address.parse().unwrap();
    address.assume_checked().script_pubkey().into_bytes()
}

/// Another one for each pool, by which a device's work tells whose it is.
fn nobodys_address(at: u8) -> String {
    let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V0, &[at; 20]).unwrap();
    bitcoin::Address::from_witness_program(program, bitcoin::Network::Regtest).to_string()
}

/// A program that is built beside ours.
fn program(name: &str) -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_BIN_EXE_job-declarator"));
    let path = ours.with_file_name(name);
    path.exists().then_some(path)
}

/// The pool's program and the node's. A run that is to show something must not pass for want of them.
fn programs() -> Option<(PathBuf, PathBuf)> {
    if let (Some(pool), Some(dev_node)) = (program("pool"), program("dev_node")) {
        return Some((pool, dev_node));
    }
    let missing = "pool and dev_node are not built (cargo build --workspace)";
    assert!(std::env::var_os("CI").is_none(), "NOT RUN although CI is set: {missing}");
    eprintln!("NOT RUN: {missing}");
    None
}

/// Killed when the test ends, however it does.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, folder: &Path, program: &Path, arguments: &[&str]) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("== {}", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A port that was free a moment ago: a pool that is started again must be found where it was.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

struct Pool {
    name: &'static str,
    folder: PathBuf,
    program: PathBuf,
    mining: u16,
    declare: u16,
    http: u16,
    key: String,
    /// Where its blocks pay.
    script: Vec<u8>,
    process: Process,
}

impl Pool {
    fn start(name: &'static str, folder: &Path, program: PathBuf, node: &Value) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let (mining, declare, http) = (free_port(), free_port(), free_port());
        let (url, cookie) = (node["rpc"].as_str().unwrap(), node["cookie_file"].as_str().unwrap());
        let address = nobodys_address(name.as_bytes()[0]);
        let script = script_of(&address);
        // A house says that it hashes like one at first; these devices would wait for the pool to find out.
        let config = format!(
            "[pool]\npayout_address = \"{address}\"\ndrain_s = 1\n\
             [node]\nnetwork = \"regtest\"\nurl = \"{url}\"\ncookie_file = \"{cookie}\"\n\
             [listen]\naddress = \"127.0.0.1:{mining}\"\n\
             [declare]\naddress = \"127.0.0.1:{declare}\"\n\
             [http]\naddress = \"127.0.0.1:{http}\"\n\
             [difficulty]\nfloor_log2 = -24\nceiling_log2 = -20\nshares_per_minute = 120\n"
        );
        std::fs::write(folder.join("pool.toml"), config).unwrap();
        let process = Process::start(name, &folder, &program, &["run", "-c", "pool.toml"]);
        let key = String::new();
        let mut pool = Self { name, folder, program, mining, declare, http, key, script, process };
        pool.await_ready();
        let page = get(pool.http, "/api/v1/pool");
        pool.key = page["authority_public_key"].as_str().unwrap().to_owned();
        pool
    }

    fn again(&mut self) {
        let arguments = ["run", "-c", "pool.toml"];
        self.process = Process::start(self.name, &self.folder, &self.program, &arguments);
        self.await_ready();
    }

    fn await_ready(&self) {
        until(&format!("pool {}", self.name), || {
            TcpStream::connect(("127.0.0.1", self.mining)).is_ok()
                && TcpStream::connect(("127.0.0.1", self.http)).is_ok()
        });
    }

    fn settings(&self) -> String {
        let Self { name, mining, declare, key, .. } = self;
        format!(
            "[[pool]]\nname = \"{name}\"\naddress = \"127.0.0.1:{mining}\"\n\
             declare_address = \"127.0.0.1:{declare}\"\nauthority_key = \"{key}\"\n"
        )
    }
}

/// A page of JSON on this machine.
fn get(port: u16, path: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A node that can be started again where it was. Its chain is another then, as high and with another tip.
struct Node {
    folder: PathBuf,
    program: PathBuf,
    rpc: u16,
    /// What it said first.
    doors: Value,
    process: Process,
}

impl Node {
    fn start(folder: &Path, program: PathBuf) -> Self {
        let folder = folder.join("node");
        std::fs::create_dir(&folder).unwrap();
        let rpc = free_port();
        let (process, doors) = Self::run(&folder, &program, rpc);
        Self { folder, program, rpc, doors, process }
    }

    /// Until its doors are open.
    fn run(folder: &Path, program: &Path, rpc: u16) -> (Process, Value) {
        let (rpc, at) = (rpc.to_string(), folder.to_str().unwrap());
        let out_of_reach = ["--block-hashes", "1000000000000", "--refresh-s", "2"];
        let where_it_is = ["--rpc-port", &rpc, "--folder", at];
        let arguments = [&out_of_reach[..], &where_it_is].concat();
        let mut process = Process::start("node", folder, program, &arguments);
        let mut line = String::new();
        let stdout = process.child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        (process, serde_json::from_str(&line).unwrap())
    }

    fn again(&mut self) {
        (self.process, self.doors) = Self::run(&self.folder, &self.program, self.rpc);
    }
}

struct House {
    declarator: Process,
    http: u16,
    device: Option<(CancellationToken, Arc<MinerReport>)>,
    v1: Option<V1Device>,
    witness: Option<Witness>,
    runtime: Runtime,
}

impl House {
    fn start(runtime: Runtime, folder: &Path, node: &Value, pools: &[&Pool]) -> Self {
        let (sv2, http) = (free_port(), free_port());
        let (url, cookie) = (node["rpc"].as_str().unwrap(), node["cookie_file"].as_str().unwrap());
        let mut config = format!(
            "[declarator]\npayout_address = \"{ADDRESS}\"\nown_job_refresh_s = 1\n\
             [devices]\nsv2_address = \"127.0.0.1:{sv2}\"\nsv1_address = \"127.0.0.1:0\"\n\
             shares_per_minute = 240\n\
             [node]\nnetwork = \"regtest\"\nurl = \"{url}\"\ncookie_file = \"{cookie}\"\n\
             [http]\naddress = \"127.0.0.1:{http}\"\n"
        );
        pools.iter().for_each(|pool| config.push_str(&pool.settings()));
        std::fs::write(folder.join("declarator.toml"), config).unwrap();
        let ours = Path::new(env!("CARGO_BIN_EXE_job-declarator"));
        let arguments = ["run", "-c", "declarator.toml"];
        let declarator = Process::start("declarator", folder, ours, &arguments);
        until("the status page", || TcpStream::connect(("127.0.0.1", http)).is_ok());
        let mut house = Self { declarator, http, device: None, v1: None, witness: None, runtime };
        until("the door for devices", || TcpStream::connect(("127.0.0.1", sv2)).is_ok());
        let key = house.status()["listen"]["authority_public_key"].as_str().unwrap().to_owned();
        let key = key.parse().unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], sv2));
        house.witness = Some(house.runtime.block_on(Witness::start(at, key)));
        let mut options = CpuMinerOptions::new("127.0.0.1", sv2, key);
        options.user_identity = "bitaxe".to_owned();
        options.duty_percent = 20;
        let (stop, report) = (CancellationToken::new(), Arc::new(MinerReport::default()));
        let mining = cpu_miner::run(options, Arc::clone(&report), stop.clone());
        house.runtime.spawn(mining);
        house.device = Some((stop, report));
        let sv1 = house.status()["listen"]["sv1"].as_str().unwrap().parse().unwrap();
        house.v1 = Some(house.runtime.block_on(V1Device::start(sv1, "s9")));
        house
    }

    fn status(&self) -> Value {
        get(self.http, "/api/v1/status")
    }

    fn acknowledged(&self, pool: usize) -> u64 {
        self.status()["pools"][pool]["shares"]["acknowledged"].as_u64().unwrap()
    }

    /// Each device goes on, on the connection that it has.
    fn until_accepted(&self) {
        let (_, report) = self.device.as_ref().unwrap();
        let goal = report.status().acknowledged + 1;
        self.runtime.block_on(self.v1.as_ref().unwrap().until_accepted(1));
        until("a device's share is accepted", || report.status().acknowledged >= goal);
    }

    /// Whose work the devices have by then.
    fn until_working(&self, template: &str, pool: Option<usize>) {
        let name = pool.map_or(Value::Null, |pool| ["A", "B"][pool].into());
        until(&format!("{template} {name}"), || {
            let status = self.status();
            status["work"]["template"] == template && status["work"]["pool"] == name
        });
    }

    /// The same, and shares of both devices are accepted then, and at a pool credited.
    fn until_mining(&self, template: &str, pool: Option<usize>) {
        self.until_working(template, pool);
        if let Some(pool) = pool {
            let before = self.acknowledged(pool);
            until("shares are credited", || self.acknowledged(pool) >= before + 3);
        }
        self.until_accepted();
    }

    /// The switches since there were so many.
    fn idle_since(&self, switches: usize) -> Vec<u64> {
        let status = self.status();
        let all = status["switches"].as_array().unwrap();
        all[switches..].iter().map(|switch| switch["idle_ms"].as_u64().unwrap()).collect()
    }

    /// How long after `since` a device had work that pays as `is_so` says.
    fn took_since(&self, since: Instant, is_so: impl Fn(&[u8]) -> bool) -> Duration {
        let witness = self.witness.as_ref().unwrap();
        self.runtime.block_on(witness.took_since(since, is_so))
    }

    fn switches(&self) -> usize {
        self.status()["switches"].as_array().unwrap().len()
    }

    /// Jobs that the first pool has promised.
    fn promised(&self) -> u64 {
        self.status()["pools"][0]["shares"]["jobs_promised"].as_u64().unwrap()
    }

    /// Why the page says that the node cannot be built upon.
    fn node_away(&self) -> String {
        self.status()["node"]["away"].as_str().unwrap().to_owned()
    }

    /// Each device was connected once and for all.
    fn stop(mut self) {
        let (stop, report) = self.device.take().unwrap();
        let seen = report.status();
        stop.cancel();
        assert_eq!(seen.sessions, 1, "{seen:?}");
        self.runtime.block_on(self.v1.take().unwrap().stop());
        self.declarator.signal(Signal::TERM);
        assert!(self.declarator.child.wait().unwrap().success());
        let address = SocketAddr::from(([127, 0, 0, 1], self.http));
        assert!(TcpStream::connect(address).is_err(), "the page is gone with the program");
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

#[test]
fn processes_that_are_killed_or_stand_still_do_not_stop_the_devices() {
    let Some((pool, dev_node)) = programs() else { return };
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let mut node = Node::start(folder, dev_node);
    let mut a = Pool::start("A", folder, pool.clone(), &node.doors);
    let b = Pool::start("B", folder, pool, &node.doors);
    let house = House::start(runtime(), folder, &node.doors, &[&a, &b]);
    house.until_mining("own", Some(0));

    // Its sockets are reset.
    let (before, since) = (house.switches(), Instant::now());
    a.process.kill();
    let took = house.took_since(since, |payee| payee != a.script);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    house.until_mining("own", Some(1));
    assert!(house.idle_since(before).iter().all(|idle_ms| *idle_ms <= 1_000));
    a.again();
    let since = Instant::now();
    let took = house.took_since(since, |payee| payee == a.script);
    assert!(took <= Duration::from_secs(90), "{took:?}");
    house.until_mining("own", Some(0));

    // It stands still and says nothing, with its sockets open.
    let (before, since) = (house.switches(), Instant::now());
    a.process.signal(Signal::STOP);
    let took = house.took_since(since, |payee| payee != a.script);
    assert!(took <= Duration::from_secs(15), "{took:?}");
    house.until_mining("own", Some(1));
    let idle = house.idle_since(before);
    assert!(idle.iter().all(|idle_ms| *idle_ms <= 15_000), "{idle:?}");
    a.process.signal(Signal::CONT);
    house.until_mining("own", Some(0));

    // The node does.
    node.process.signal(Signal::STOP);
    // Pools ask the same node, and go on with the work that they have.
    house.until_mining("theirs", Some(0));
    node.process.signal(Signal::CONT);
    house.until_mining("own", Some(0));

    // It is gone, nobody listens at its port, and it comes back with another cookie and another tip.
    node.process.kill();
    house.until_mining("theirs", Some(0));
    let why = house.node_away();
    assert!(why.contains("refused") && why.contains("is it running"), "{why}");
    node.again();
    house.until_mining("own", Some(0));

    // No pool is left: solo, on a template that was there.
    let before = house.switches();
    let Pool { process: mut process_b, .. } = b;
    process_b.kill();
    let since = Instant::now();
    a.process.kill();
    let took = house.took_since(since, |payee| payee == script_of(ADDRESS));
    assert!(took <= Duration::from_millis(250), "{took:?}");
    house.until_mining("solo", None);
    let idle = house.idle_since(before);
    assert!(idle.iter().all(|idle_ms| *idle_ms <= 250), "{idle:?}");
    a.again();
    house.until_mining("own", Some(0));

    house.stop();
}

#[test]
fn a_node_behind_a_slow_silent_or_broken_way_does_not_stop_the_devices() {
    let Some((pool, dev_node)) = programs() else { return };
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let node = Node::start(folder, dev_node);
    // The pool is nearer to the node than the house.
    let a = Pool::start("A", folder, pool, &node.doors);
    let runtime = runtime();
    let way = runtime.block_on(Proxy::to(SocketAddr::from(([127, 0, 0, 1], node.rpc))));
    let mut doors = node.doors.clone();
    doors["rpc"] = format!("http://{}", way.address).into();
    let house = House::start(runtime, folder, &doors, &[&a]);
    house.until_mining("own", Some(0));

    // Each answer takes seconds: own templates are mined, new ones too.
    let before = house.switches();
    way.set(Way::Slow(700));
    for _ in 0..3 {
        let promised = house.promised();
        until("another template is promised", || house.promised() > promised);
        house.until_mining("own", Some(0));
    }
    assert_eq!((house.switches(), &house.status()["node"]["away"]), (before, &Value::Null));
    way.set(Way::Open);
    house.until_mining("own", Some(0));

    // What is asked is never answered.
    let since = Instant::now();
    way.set(Way::BlackHole);
    house.until_working("theirs", Some(0));
    let took = since.elapsed();
    assert!(took <= Duration::from_millis(NODE_SILENCE_MAX_MS + SESSION_SETUP_MAX_MS), "{took:?}");
    house.until_mining("theirs", Some(0));
    let why = house.node_away();
    assert!(why.contains("it has not answered for"), "{why}");
    way.set(Way::Open);
    house.until_mining("own", Some(0));

    // Its sockets are closed as soon as they are open.
    way.set(Way::Cut);
    house.until_mining("theirs", Some(0));
    let why = house.node_away();
    assert!(why.contains("is it running"), "{why}");
    way.set(Way::Open);
    house.until_mining("own", Some(0));
    assert_eq!(house.status()["node"]["away"], Value::Null);
    house.stop();
}
