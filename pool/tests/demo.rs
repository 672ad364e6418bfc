//! The demo as a program, held to what the README says of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::process::{Command, Output};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pool"))
        .args(["demo", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one JSON object on stdout.
fn result(arguments: &[&str]) -> Value {
    let output = demo(arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(!stderr.contains("rejects"), "{stderr}");
    assert!(!stderr.contains("came second"), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn a_demo_of_some_seconds_mines_block_upon_block_and_says_so_in_one_object() {
    // Long enough for a slow and busy machine: the demo makes its blocks fit its speed.
    for transactions in ["0", "40"] {
        let result = result(&["--for", "15s", "--json", "--tx-count", transactions]);
        let count =
            |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name}: {result}"));
        assert!(count("shares_acknowledged") > 0, "{result}");
        assert!(count("credited_work") > 0, "{result}");
        assert!(count("blocks_accepted") >= 2, "one block builds on another: {result}");
        assert!(count("blocks_found") >= count("blocks_accepted"), "{result}");
        count("shares_rejected");
        assert!(result["seconds_to_first_share"].as_f64().unwrap() > 0.0, "{result}");
    }
}

#[test]
fn a_person_sees_the_four_fields_a_share_and_a_block_with_its_coinbase() {
    let output = demo(&["--for", "10s"]);
    let screen = text(&output.stdout);
    assert!(output.status.success(), "{screen}\n{}", text(&output.stderr));
    for word in
        ["host ", "port ", "user ", "authority key ", "shares acknowledged", "hash rate", "BLOCK "]
    {
        assert!(screen.contains(word), "no {word:?} in:\n{screen}");
    }
    for word in [
        "mines as demo.cpu",
        "found and accepted, by demo.cpu",
        "coinbase ",
        "scriptSig ",
        "/Smallholder/",
        "sats to",
        "  bcrt1",
    ] {
        assert!(screen.contains(word), "no {word:?} in:\n{screen}");
    }
    assert_eq!(screen.matches("coinbase ").count(), 1, "later blocks are summed up:\n{screen}");
    let widest = screen.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "a line wraps on a terminal of 80 columns:\n{screen}");
}

#[test]
fn a_demo_that_nobody_mines_on_fails_when_its_time_is_up() {
    let output = demo(&["--for", "1s", "--json", "--no-miner"]);
    assert!(!output.status.success());
    let result: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(result["shares_acknowledged"], 0);
    assert_eq!(result["seconds_to_first_share"], Value::Null);
}

#[test]
fn a_taken_port_is_told_with_the_option_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pool"))
        .args(["demo", "--for", "1s", "--listen", &taken.local_addr().unwrap().to_string()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("--listen") && stderr.contains("in use"), "{stderr}");
}
