//! Who may import whom: inside this crate, between the members of the workspace, the two crates
//! that are kept to one place each, and `unsafe`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod source;

use source::{code_lines, places, root, rust_files};

/// Each module may use only what stands to its left.
const ORDER: &str = "limits wire | message | noise connection | target extranonce sha256 template job | \
                     share vardiff token | mining declare | net";

/// Each member may use only what stands to its left.
const MEMBERS: [&str; 6] = [
    "proto",
    "job-declarator",
    "job-declarator/consensus",
    "pool",
    "job-declarator/cli",
    "benches",
];

fn rank(module: &str) -> Option<usize> {
    ORDER.split_whitespace().filter(|word| *word != "|").position(|name| name == module)
}

/// The modules that a file names behind `crate::`, its tests (which stand last) left out.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in code_lines(text).take_while(|(_, line)| *line != "#[cfg(test)]") {
        for place in places(line, "crate::") {
            let path = &line[place + "crate::".len()..];
            let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            found.push((number, path[..end.unwrap_or(path.len())].to_owned()));
        }
    }
    found
}

/// What `module` imports against the order.
fn breaches(module: &str, text: &str) -> Vec<(usize, String)> {
    let Some(own) = rank(module) else { return vec![(0, format!("{module} is not in the order"))] };
    let mut found = imports(text);
    // A path in braces has no name here and so no rank: it is a breach of its own, write it out.
    found.retain(|(_, name)| name != module && rank(name).is_none_or(|other| other > own));
    found
}

#[test]
fn each_module_of_proto_uses_only_what_stands_to_its_left() {
    let files = rust_files("proto/src");
    assert!(files.len() > 10, "the files are found");
    for (path, text) in &files {
        let module = path.strip_prefix("proto/src/").unwrap().split(['/', '.']).next().unwrap();
        if module != "lib" {
            assert_eq!(breaches(module, text), [], "{path}");
        }
    }
}

#[test]
fn a_breach_is_found_in_code_and_not_in_comments_or_tests() {
    let up = [(1, "connection".to_owned())];
    assert_eq!(breaches("noise", "use crate::connection::Violation;"), up);
    assert_eq!(breaches("connection", "use crate::noise::Sealer;"), []);
    assert_eq!(breaches("wire", "fn f() -> crate::limits::X {}\n// crate::net"), []);
    assert_eq!(breaches("wire", "#[cfg(test)]\nmod tests { use crate::net::Link; }"), []);
    assert_eq!(breaches("net", "use crate::{wire, message};").len(), 1);
    assert_eq!(breaches("helpers", "").len(), 1);
}

/// The members that a manifest depends on.
fn member_dependencies(manifest: &str) -> Vec<&str> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            in_dependencies = table.contains("dependencies");
        } else if in_dependencies {
            let name = line.split([' ', '=', '.']).next().unwrap_or(line);
            found.extend(MEMBERS.iter().find(|member| **member == name));
        }
    }
    found
}

#[test]
fn each_member_depends_only_on_what_stands_to_its_left() {
    for (own, member) in MEMBERS.iter().enumerate() {
        let manifest = root().join(member).join("Cargo.toml");
        for dependency in member_dependencies(&std::fs::read_to_string(manifest).unwrap()) {
            let other = MEMBERS.iter().position(|name| *name == dependency).unwrap();
            assert!(other < own, "{member} depends on {dependency}");
        }
    }
    let manifest = "[package]\nname = \"pool\"\n[dev-dependencies]\nproto = { path = \"\" }\n";
    assert_eq!(member_dependencies(manifest), ["proto"]);
    assert_eq!(member_dependencies("[dependencies]\npool.workspace = true"), ["pool"]);
}

/// Lines of all members that name `word`, outside of the places that may.
fn named_outside(word: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in MEMBERS.iter().flat_map(|member| rust_files(member)) {
        // This file names both, to look for them.
        if path == "proto/tests/layers.rs" || allowed.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let lines = code_lines(&text).filter(|(_, line)| places(line, word).next().is_some());
        found.extend(lines.map(|(number, _)| format!("{path}:{number}")));
    }
    found
}

#[test]
fn sql_stands_in_the_store_alone() {
    let nobody: [&str; 0] = [];
    assert_eq!(named_outside("sqlx", &["pool/src/store.rs", "pool/tests/"]), nobody);
}

#[test]
fn bitcoin_core_is_spoken_to_in_the_node_folder_alone() {
    let nobody: [&str; 0] = [];
    assert_eq!(
        named_outside("bitcoincore_rpc", &["job-declarator/src/node/", "job-declarator/tests/"]),
        nobody
    );
}

#[test]
fn unsafe_stands_in_the_vector_kernels_and_in_the_count_of_allocations_alone() {
    let nobody: [&str; 0] = [];
    let allowed = ["proto/src/sha256/x86.rs", "benches/src/compare/allocations.rs"];
    assert_eq!(named_outside("unsafe", &allowed), nobody);
}

#[test]
fn links_run_over_tcp_alone_g14() {
    let nobody: [&str; 0] = [];
    // The demo asks the system for a route with one; nothing is sent on it.
    assert_eq!(named_outside("UdpSocket", &["pool/src/demo.rs"]), nobody);
    assert_eq!(named_outside("UnixDatagram", &[]), nobody);
    let files = rust_files("proto/src");
    let (_, net) = files.iter().find(|(path, _)| path == "proto/src/net.rs").unwrap();
    assert!(net.contains("pub struct Link {\n    stream: TcpStream,\n"), "what a link is made of");
}
