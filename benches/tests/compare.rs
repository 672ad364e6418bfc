//! `compare` stays alive: every path runs, and both sides' verdicts, hashes and bytes are the same. No time
//! is judged here.

use std::process::Command;

fn compare(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_compare")).args(arguments).output();
    let output = output.expect("the program was built for this test");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn every_path_runs_and_both_sides_agree() {
    let (code, said) = compare(&["--quick"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("are equal"), "{said}");
}

#[test]
fn fewer_rounds_than_tell_anything_are_refused() {
    for arguments in [&["--rounds", "8"][..], &["--rounds", "9", "--quick"], &["--fast"]] {
        let (code, said) = compare(arguments);
        assert_eq!(code, Some(2), "{said}");
    }
}
