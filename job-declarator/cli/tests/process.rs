//! The built program as a supervisor sees it: started before what it needs, told to stop, started twice, and
//! with a port that another has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAYOUT_ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
/// Somebody's; nobody answers where this pool is said to be.
const POOL_KEY: &str = "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72";

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A house whose node and pool are not there.
struct House {
    folder: tempfile::TempDir,
    sv2: SocketAddr,
    sv1: SocketAddr,
    payout_address: &'static str,
}

impl House {
    fn new() -> Self {
        let (sv2, sv1) = (free_address(), free_address());
        Self { folder: tempfile::tempdir().unwrap(), sv2, sv1, payout_address: PAYOUT_ADDRESS }
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn config(&self) -> PathBuf {
        let Self { sv2, sv1, payout_address, .. } = self;
        let (data, cookie) = (self.data_dir(), self.folder.path().join(".cookie"));
        let (node, pool) = (free_address(), free_address());
        let text = format!(
            "[declarator]\npayout_address = \"{payout_address}\"\ndata_dir = {data:?}\n\
             [devices]\nsv2_address = \"{sv2}\"\nsv1_address = \"{sv1}\"\n\
             [node]\nnetwork = \"regtest\"\nurl = \"http://{node}\"\ncookie_file = {cookie:?}\n\
             [[pool]]\nname = \"the pool\"\naddress = \"{pool}\"\nauthority_key = \"{POOL_KEY}\"\n\
             [http]\naddress = \"127.0.0.1:0\"\n"
        );
        let path = self.folder.path().join(format!("{}.toml", sv2.port()));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs to its end.
    fn run(&self) -> Output {
        command(&self.config()).output().unwrap()
    }

    fn start(&self) -> Program {
        let mut command = command(&self.config());
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        // More lines than any of these says.
        let (send, lines) = sync_channel(1_024);
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Program { child, lines }
    }
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-declarator"));
    command.args(["run", "-c"]).arg(config).env_clear();
    command
}

/// One that runs; ended with the test.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    /// The next line that has this in it.
    fn until_it_says(&self, what: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(_) => {}
                Err(error) => panic!("it never says {what:?}: {error}"),
            }
        }
    }

    fn is_told_to_stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not stop");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Its one line.
#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let mut lines = said.lines().filter(|line| line.starts_with("job-declarator: "));
    let line = lines.next().unwrap_or_else(|| panic!("no reason in {said}"));
    assert_eq!(lines.next(), None, "{said}");
    line.to_owned()
}

#[test]
fn it_says_what_it_waits_for_keeps_its_doors_closed_and_stops_when_told() {
    let house = House::new();
    let mut program = house.start();
    let said = program.until_it_says("waiting for your node");
    assert!(said.contains("cookie"), "{said}");
    assert!(said.contains(house.folder.path().to_str().unwrap()), "where it is looked for: {said}");
    let said = program.until_it_says("a pool cannot be used");
    assert!(said.contains("the pool") && said.contains("no connection to 127.0.0.1"), "{said}");
    for door in [house.sv2, house.sv1] {
        assert!(TcpStream::connect(door).is_err(), "a door without work behind it");
    }
    // The cookie appears with the node; that it does not answer is another reason, said at once.
    std::fs::write(house.folder.path().join(".cookie"), "__cookie__:00").unwrap();
    let said = program.until_it_says("no answer from Bitcoin Core at http://127.0.0.1:");
    assert!(said.contains(" (connection refused): is it running, with server=1?"), "{said}");
    assert_eq!(program.is_told_to_stop().code(), Some(0));
    program.until_it_says("stopped");
}

/// A declarator that mines on a chain of its own, whose words go to `stderr`, and its page.
fn start_saying_to(house: &House, stderr: Stdio) -> (Child, SocketAddr) {
    let page = free_address();
    let mut command = command(&house.config());
    command
        .env("DECLARATOR__NODE__KIND", "embedded")
        .env("DECLARATOR__HTTP__ADDRESS", page.to_string());
    (command.stderr(stderr).stdout(Stdio::null()).spawn().unwrap(), page)
}

/// What the page answers within ten seconds, if anything.
fn is_ready(page: SocketAddr) -> bool {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(page)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {page}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    asked().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn until_ready(child: &mut Child, page: SocketAddr) {
    let until = Instant::now() + PATIENCE;
    while !is_ready(page) {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended");
        assert!(Instant::now() < until, "never ready");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Each of them is a line of the log.
fn knock_at(door: SocketAddr, times: usize) {
    for _ in 0..times {
        let mut stream = TcpStream::connect(door).unwrap();
        stream.write_all(b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
}

#[test]
fn words_that_nobody_can_read_end_nothing() {
    let house = House::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (mut child, page) = start_saying_to(&house, full.into());
    until_ready(&mut child, page);
    knock_at(house.sv2, 3);
    assert!(is_ready(page));
    assert!(Program { child, lines: sync_channel(0).1 }.is_told_to_stop().success());

    // Somebody read, and has gone.
    let (mut child, page) = start_saying_to(&house, Stdio::piped());
    until_ready(&mut child, page);
    drop(child.stderr.take());
    knock_at(house.sv2, 3);
    assert!(is_ready(page));
    assert!(Program { child, lines: sync_channel(0).1 }.is_told_to_stop().success());
}

#[test]
fn words_that_nobody_reads_hold_nothing_up() {
    let house = House::new();
    let (mut child, page) = start_saying_to(&house, Stdio::piped());
    until_ready(&mut child, page);
    // A pipe holds 64 KiB.
    knock_at(house.sv2, 1_000);
    assert!(is_ready(page), "it stands still");
    let unread = child.stderr.take();
    assert!(Program { child, lines: sync_channel(0).1 }.is_told_to_stop().success());
    drop(unread);
}

#[test]
fn a_second_one_on_the_same_folder_is_refused_by_name() {
    let house = House::new();
    let mut first = house.start();
    first.until_it_says("waiting for your node");
    let folder = house.folder;
    let second = House { folder, sv2: free_address(), sv1: free_address(), ..House::new() };
    let said = fails(&second.run(), 1);
    assert!(said.contains("another program uses the data folder"), "{said}");
    assert!(said.contains(second.data_dir().to_str().unwrap()), "{said}");
    assert_eq!(first.is_told_to_stop().code(), Some(0));
    // And then there is room.
    let mut second = second.start();
    second.until_it_says("waiting for your node");
    assert_eq!(second.is_told_to_stop().code(), Some(0));
}

#[test]
fn a_port_that_another_has_is_named_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap();
    for (key, house) in [
        ("devices.sv2_address", House { sv2: taken_at, ..House::new() }),
        ("devices.sv1_address", House { sv1: taken_at, ..House::new() }),
    ] {
        let said = fails(&house.run(), 1);
        assert!(said.contains(&format!("{key} {taken_at}")), "{said}");
        assert!(said.contains(&format!("stop it, or change {key}")), "{said}");
    }
}

#[test]
fn a_payout_address_of_another_network_is_wrong_configuration() {
    let elsewhere = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
    let said = fails(&House { payout_address: elsewhere, ..House::new() }.run(), 78);
    assert!(said.contains("declarator.payout_address"), "{said}");
    let said = fails(&House { payout_address: "bcrt1qnone", ..House::new() }.run(), 78);
    assert!(said.contains("declarator.payout_address"), "{said}");
    let said = fails(&House { payout_address: "", ..House::new() }.run(), 78);
    assert!(said.contains("declarator.payout_address is missing"), "{said}");
}
