//! A real Bitcoin Core on a regtest of its own, of the program that `BITCOIND_EXE` names.

#![allow(dead_code)] // each test file uses its part

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bitcoincore_rpc::{Auth, Client, RpcApi};
use job_declarator::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use serde_json::{Value, json};

/// Where blocks of nobody's wallet go.
pub(crate) const NOBODY: &str = "bcrt1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqdku202";

pub(crate) struct Core {
    pub(crate) exe: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) child: Child,
}

impl Core {
    /// `None`, and a loud word, without `BITCOIND_EXE`.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let Ok(exe) = std::env::var("BITCOIND_EXE") else {
            say_loudly(&format!("{test}: BITCOIND_EXE names no bitcoind"));
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let child = spawn(&exe, &dir, port);
        let core = Self { exe, dir, port, child };
        core.wait_until_it_answers();
        Some(core)
    }

    pub(crate) fn cookie(&self) -> PathBuf {
        self.dir.path().join("regtest/.cookie")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Our node, with the deadlines of production but for the probe.
    pub(crate) fn node(&self) -> RpcNode {
        let times = RpcTimes { probe: Duration::from_secs(2), ..RpcTimes::default() };
        let auth = RpcAuth::CookieFile(self.cookie());
        RpcNode::new(RpcOptions { url: self.url(), auth, times }).unwrap()
    }

    /// Of its mining interface; there is none but of a bitcoin-node.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("regtest/node.sock")
    }

    /// What it has written down.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("regtest/debug.log")).unwrap()
    }

    /// The test's own voice, apart from ours.
    pub(crate) fn call(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Value, bitcoincore_rpc::Error> {
        let auth = Auth::CookieFile(self.cookie());
        Client::new(&self.url(), auth)?.call(method, params)
    }

    pub(crate) fn generate(&self, count: u32, address: &str) {
        self.call("generatetoaddress", &[json!(count), json!(address)]).unwrap();
    }

    /// Transactions into the mempool; `false` if this Core was built without a wallet.
    pub(crate) fn pay(&self, count: u32) -> bool {
        if self.call("createwallet", &[json!("test")]).is_err()
            && self.call("getwalletinfo", &[]).is_err()
        {
            return false;
        }
        let address = self.call("getnewaddress", &[]).unwrap();
        // One ripe coin for each payment: chains of unconfirmed change are limited.
        self.generate(100 + count, address.as_str().unwrap());
        for _ in 0..count {
            self.call("sendtoaddress", &[address.clone(), json!(0.01)]).unwrap();
        }
        true
    }

    pub(crate) fn wait_until_it_answers(&self) {
        let start = Instant::now();
        while self.call("getblockchaininfo", &[]).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "bitcoind does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn stop(&mut self) {
        self.call("stop", &[]).unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.exe, &self.dir, self.port);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn spawn(exe: &str, dir: &tempfile::TempDir, port: u16) -> Child {
    Command::new(exe)
        .arg("-regtest")
        .arg(format!("-datadir={}", dir.path().display()))
        .arg(format!("-rpcport={port}"))
        .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1", "-listen=0", "-connect=0"])
        .args(["-dnsseed=0", "-fallbackfee=0.0001", "-server=1"])
        .args(has_socket(exe).then_some(["-ipcbind=unix", "-debug=ipc"]).into_iter().flatten())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Of Core's programs one has the mining interface.
pub(crate) fn has_socket(exe: &str) -> bool {
    exe.ends_with("bitcoin-node")
}

/// Past the test harness, which swallows what a passing test prints.
pub(crate) fn say_loudly(skipped: &str) {
    std::io::stderr().write_all(format!("\nSKIPPED {skipped}\n").as_bytes()).unwrap();
}
