//! `load --declarator` stays alive: a node, a pool and a declarator come up as for a measurement, and the pool
//! credits what the devices were told. By counts, never by time.
//! Needs `pool` and `job-declarator` beside this package's program; where cargo has not built them it says so.

use std::path::Path;
use std::process::Command;

#[test]
fn a_few_devices_of_a_declarator_are_measured_and_credited_above() {
    let load = Path::new(env!("CARGO_BIN_EXE_load"));
    if let Some(missing) =
        ["pool", "job-declarator"].iter().find(|name| !load.with_file_name(name).exists())
    {
        eprintln!("NOT RUN: {missing} is not built (cargo test --workspace builds it)");
        return;
    }
    let arguments = "--declarator --connections 4 --kind mixed --shares-per-second 20 --for 2s \
        --tx-count 50 --json";
    let output = Command::new(load).args(arguments.split_whitespace()).output();
    let output = output.expect("the program was built for this test");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&said).expect("one JSON object");
    assert_eq!(report["opened"], 4, "{report}");
    assert_eq!(report["acknowledged"], 40, "{report}");
    assert!(report["credited"].as_f64() >= Some(40.0), "{report}");
    assert!(report["jobs_promised"].as_f64() >= Some(1.0), "{report}");
}
