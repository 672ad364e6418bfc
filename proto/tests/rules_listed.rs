//! `proto/RULES.md` against the tests that there are: a rule's row may not name a test that is gone, and a
//! test may not name a rule that is not listed.

#![allow(clippy::unwrap_used, reason = "builders outside a #[test] fail it just as well")]

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Names of all functions in the Rust files below `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for (at, _) in text.match_indices("fn ") {
                let name = text[at + 3..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                names.extend(name.take(1).map(str::to_owned));
            }
        }
    }
}

#[test]
fn every_test_that_a_rule_names_exists() {
    let mut names = BTreeSet::new();
    for folder in [
        "src",
        "tests",
        "../pool/tests",
        "../job-declarator/src",
        "../job-declarator/tests",
        "../job-declarator/consensus",
    ] {
        functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut names);
    }
    let rules = read("RULES.md");
    let rules = rules.split("## Error codes").next().unwrap();
    let mut rows = 0;
    let mut listed = BTreeSet::new();
    for row in rules.lines().filter(|line| line.starts_with("| ") && line.contains(" | ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells[0] == "rule" {
            continue;
        }
        rows += 1;
        listed.insert(cells[0].to_lowercase());
        let tests = cells.last().unwrap();
        assert!(!tests.is_empty(), "{} names neither a test nor a reason", cells[0]);
        for name in tests.split('`').skip(1).step_by(2).filter(|name| name.contains('_')) {
            assert!(names.contains(name), "{}: no test {name}", cells[0]);
        }
    }
    assert!(rows >= 80, "only {rows} rules found");
    for name in &names {
        for rule in name.rsplit('_').take_while(|word| is_rule(word)) {
            assert!(listed.contains(rule), "{name} names {rule}, which RULES.md does not");
        }
    }
}

/// The letters of one of the tables that this file is about, and a number.
fn is_rule(word: &str) -> bool {
    let digits = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
    let (table, number) = word.split_at(digits);
    matches!(table, "g" | "s" | "p" | "e" | "c" | "n" | "js" | "jc")
        && !number.is_empty()
        && number.bytes().all(|digit| digit.is_ascii_digit())
}

#[test]
fn every_code_of_a_refusal_is_explained_g12() {
    let rules = read("RULES.md");
    let shares = proto::share::Refusal::ALL.map(proto::share::Refusal::code);
    let jobs = proto::mining::CustomRefusal::ALL.map(proto::mining::CustomRefusal::code);
    let declarations =
        proto::declare::DeclareRefusal::ALL.map(proto::declare::DeclareRefusal::code);
    for (message, codes) in [
        ("SubmitShares.Error", &shares[..]),
        ("SetCustomMiningJob.Error", &jobs),
        ("DeclareMiningJob.Error", &declarations),
    ] {
        let (_, section) = rules.split_once(&format!("\n| {message} |")).unwrap();
        // Rows of one message have an empty first cell.
        let end =
            section.match_indices("\n| ").find(|(at, _)| !section[*at..].starts_with("\n| |"));
        let section = &section[..end.map_or(section.len(), |(at, _)| at)];
        for code in codes {
            assert!(section.contains(&format!("`{code}`")), "{message} {code}");
        }
    }
}
