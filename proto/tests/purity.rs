//! The machines take time, randomness and keys as arguments and touch no socket, file or terminal: no
//! file of `proto/src` but `net.rs` so much as names one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod source;

use source::{code_lines, places, rust_files};

/// What a pure file may not name.
const BANNED: [&str; 16] = [
    "tokio",
    "std::net",
    "std::fs",
    "std::env",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "rand::",
    "thread_rng",
    "getrandom",
    "OsRng",
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "tracing::",
];

fn impurities(text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (number, line) in code_lines(text) {
        for word in BANNED {
            found.extend(places(line, word).map(|_| (number, word)));
        }
    }
    found
}

#[test]
fn only_net_names_a_socket_a_clock_or_a_source_of_randomness() {
    let files = rust_files("proto/src");
    assert!(files.iter().any(|(path, _)| path == "proto/src/noise.rs"), "the files are found");
    for (path, text) in &files {
        let found = impurities(text);
        if path == "proto/src/net.rs" {
            assert!(!found.is_empty(), "the one file that should");
        } else {
            assert_eq!(found, [], "{path}");
        }
    }
}

#[test]
fn a_banned_word_is_found_in_code_and_not_in_a_comment_or_a_longer_name() {
    assert_eq!(impurities("fn f() {\n    let t = Instant::now();"), [(2, "Instant::now")]);
    assert_eq!(impurities("use rand::Rng;"), [(1, "rand::")]);
    assert_eq!(impurities("/// over tokio\n//! std::fs\n    // println!"), []);
    assert_eq!(impurities("fn certify(aux_rand: &[u8; 32]) { grand::total() }"), []);
}
