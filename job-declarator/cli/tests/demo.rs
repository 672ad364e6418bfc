//! The demo as a program, held to what the README says of it.

#![cfg(feature = "demo")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::process::{Command, Output};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_job-declarator"))
        .args(["demo", "--sv2", "127.0.0.1:0", "--sv1", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_demo_of_some_seconds_has_templates_promised_and_shares_of_them_acknowledged() {
    let output = demo(&["--for", "20s", "--json"]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let result: Value = serde_json::from_str(&stdout).unwrap();
    let count = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name}: {result}"));
    assert!(count("jobs_promised") > 0, "{result}");
    assert!(count("shares_acknowledged") > 0, "{result}");
    assert!(count("shares_found") >= count("shares_acknowledged"), "{result}");
    assert!(count("blocks_accepted") > 0, "{result}");
    assert!(result["seconds_to_first_share"].as_f64().unwrap() > 0.0, "{result}");
}

#[test]
fn a_person_sees_how_to_connect_and_whose_template_is_mined() {
    let output = demo(&["--for", "12s"]);
    let screen = text(&output.stdout);
    assert!(output.status.success(), "{screen}\n{}", text(&output.stderr));
    for word in [
        "host ",
        "port ",
        "user ",
        "authority key ",
        "Stratum V1",
        "now mining your template for the pool",
        "promised to credit it",
        "acknowledged",
        "BLOCK ",
    ] {
        assert!(screen.contains(word), "no {word:?} in:\n{screen}");
    }
    let widest = screen.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "a line wraps on a terminal of 80 columns:\n{screen}");
}

#[test]
fn a_demo_that_nobody_mines_on_fails_when_its_time_is_up() {
    let output = demo(&["--for", "2s", "--json", "--no-miner"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no device mined"), "{}", text(&output.stderr));
}
