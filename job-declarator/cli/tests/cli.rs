//! The command line as typed: the built program, its words and its exit codes.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use job_declarator::config::Config;

const ADDRESS: (&str, &str) =
    ("DECLARATOR__DECLARATOR__PAYOUT_ADDRESS", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq");

/// Runs the program in `folder` with nothing of our own environment.
fn declarator_in(folder: &Path, words: &[&str]) -> Output {
    declarator_with(folder, words, &[])
}

fn declarator_with(folder: &Path, words: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-declarator"));
    command.args(words).current_dir(folder).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    stdout(output)
}

#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    if code != 2 {
        assert_eq!(said.lines().count(), 1, "one line, no backtrace: {said}");
        assert!(said.starts_with("job-declarator: "), "{said}");
    }
    said
}

#[test]
fn version_help_and_wrong_usage() {
    let here = tempfile::tempdir().unwrap();
    let version = succeeds(&declarator_in(here.path(), &["--version"]));
    assert_eq!(version, format!("job-declarator {}\n", env!("CARGO_PKG_VERSION")));
    let help = succeeds(&declarator_in(here.path(), &["--help"]));
    for word in ["run", "keys", "config", "healthcheck"] {
        assert!(help.contains(&format!("\n  {word} ")), "{help}");
    }
    assert_eq!(help.contains("\n  demo "), cfg!(feature = "demo"), "{help}");
    for wrong in [vec![], vec!["mine"], vec!["run", "--no-such"], vec!["demo", "--for", "soon"]] {
        fails(&declarator_in(here.path(), &wrong), 2);
    }
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_takes_its_options() {
    use std::time::Duration;

    use job_declarator_cli::cli::demo_options_of;
    use job_declarator_cli::demo::DemoOptions;

    let devices = Config::default().devices;
    let plain = DemoOptions {
        time: None,
        json: false,
        sv2: devices.sv2_address,
        sv1: devices.sv1_address,
        http: "127.0.0.1:0".parse().unwrap(),
        data_dir: None,
        miner: true,
    };
    assert_eq!(demo_options_of(["job-declarator", "demo"]).unwrap(), plain);
    let words = "job-declarator demo --for 20s --json --sv2 127.0.0.1:0 --sv1 127.0.0.1:1 \
                 --http 127.0.0.1:9 --data-dir d --no-miner";
    let full = DemoOptions {
        time: Some(Duration::from_secs(20)),
        json: true,
        sv2: "127.0.0.1:0".parse().unwrap(),
        sv1: "127.0.0.1:1".parse().unwrap(),
        http: "127.0.0.1:9".parse().unwrap(),
        data_dir: Some("d".into()),
        miner: false,
    };
    assert_eq!(demo_options_of(words.split_whitespace()).unwrap(), full);
    assert!(demo_options_of(["job-declarator", "demo", "--for", "0s"]).is_err());
    assert!(demo_options_of(["job-declarator", "config", "example"]).is_err());
}

#[test]
fn the_printed_example_passes_the_check_once_it_has_an_address() {
    let here = tempfile::tempdir().unwrap();
    let printed = succeeds(&declarator_in(here.path(), &["config", "example"]));
    assert_eq!(printed, Config::example());
    std::fs::write(here.path().join("d.toml"), printed).unwrap();
    let check = ["config", "check", "-c", "d.toml"];
    let said = fails(&declarator_in(here.path(), &check), 78);
    assert!(said.contains("declarator.payout_address is missing"), "{said}");
    let said = succeeds(&declarator_with(here.path(), &check, &[ADDRESS]));
    assert!(said.contains("note: no [[pool]] is set, so this mines solo\nok: "), "{said}");
    assert!(said.ends_with("; node and pools were not asked\n"), "{said}");
}

#[test]
fn a_bad_configuration_ends_with_78_and_the_nearest_key() {
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("bad.toml"), "[devices]\nsv2_adress = \"x\"\n").unwrap();
    for command in
        [vec!["run"], vec!["config", "check"], vec!["config", "show"], vec!["keys", "show"]]
    {
        let words = [command, vec!["-c", "bad.toml"]].concat();
        let said = fails(&declarator_in(here.path(), &words), 78);
        assert!(said.contains("did you mean devices.sv2_address?"), "{said}");
    }
    let env = [("DECLARATOR__HTTP__PORT", "1")];
    let said = fails(&declarator_with(here.path(), &["run"], &env), 78);
    assert!(said.contains("DECLARATOR__HTTP__PORT"), "{said}");
}

#[test]
fn a_check_asks_for_what_a_start_would_and_notes_a_node_that_is_not_up() {
    let here = tempfile::tempdir().unwrap();
    let home = here.path().to_str().unwrap();
    let check = |env: &[(&str, &str)]| declarator_with(here.path(), &["config", "check"], env);
    let said = succeeds(&check(&[ADDRESS, ("HOME", home)]));
    assert!(said.contains("note: Bitcoin Core's cookie is not found"), "{said}");
    assert!(said.contains(&format!("{home}/.bitcoin/.cookie")), "{said}");
    std::fs::create_dir(here.path().join(".bitcoin")).unwrap();
    std::fs::write(here.path().join(".bitcoin/.cookie"), "__cookie__:0").unwrap();
    let said = succeeds(&check(&[ADDRESS, ("HOME", home)]));
    assert!(!said.contains("cookie"), "{said}");
    for (cookie, why) in [(".none", "/.none is not there: is Core running"), (".bitcoin", "folder")]
    {
        let cookie = format!("{home}/{cookie}");
        let said = succeeds(&check(&[ADDRESS, ("DECLARATOR__NODE__COOKIE_FILE", &cookie)]));
        assert!(said.contains("note: the cookie ") && said.contains(why), "{said}");
    }
    let said = fails(&check(&[ADDRESS, ("DECLARATOR__NODE__USER", "me")]), 78);
    assert!(said.contains("password_file"), "{said}");
    let said = fails(&check(&[ADDRESS, ("DECLARATOR__NODE__NETWORK", "signet")]), 78);
    assert!(said.contains("bitcoin") && said.contains("signet"), "{said}");
    succeeds(&check(&[("DECLARATOR__NODE__KIND", "embedded")]));
}

#[test]
fn what_is_in_force_is_shown_without_secrets() {
    let here = tempfile::tempdir().unwrap();
    let env = [("DECLARATOR__NODE__PASSWORD", "hunter2"), ("DECLARATOR__DECLARATOR__TAG", "/me/")];
    let shown = succeeds(&declarator_with(here.path(), &["config", "show"], &env));
    assert!(shown.contains("tag = \"/me/\"") && shown.contains("password = \"***\""), "{shown}");
    assert!(!shown.contains("hunter2"));
}

#[test]
fn keys_are_shown_once_there_are_any() {
    let here = tempfile::tempdir().unwrap();
    let said = fails(&declarator_in(here.path(), &["keys", "show"]), 1);
    assert!(said.contains("declarator-data/identity.txt is not there"), "{said}");
    assert!(said.contains("`job-declarator run` makes it at its first start"), "{said}");
    let mut config = Config::default();
    config.declarator.data_dir = here.path().join("declarator-data");
    let files = config.key_files();
    let made = files.load_or_make(job_declarator::keys::unix_now()).unwrap();
    let shown = succeeds(&declarator_in(here.path(), &["keys", "show"]));
    assert!(shown.starts_with(&format!("authority public key: {}\n", made.authority)), "{shown}");
}

/// Answers one request with `answer` and returns what was asked.
fn one_answer(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 512];
        let len = stream.read(&mut asked).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&asked[..len]).into_owned()
    });
    (address, served)
}

#[test]
fn a_healthcheck_says_by_its_exit_code_whether_a_declarator_is_ready() {
    let here = tempfile::tempdir().unwrap();
    let ask = |address: &str| {
        let env = [("DECLARATOR__HTTP__ADDRESS", address)];
        declarator_with(here.path(), &["healthcheck"], &env)
    };
    let (address, served) = one_answer("HTTP/1.1 200 OK\r\n\r\n{}");
    succeeds(&ask(&address));
    assert!(served.join().unwrap().starts_with("GET /health/ready HTTP/1.1\r\n"));
    let (address, served) = one_answer("HTTP/1.1 503 no\r\n\r\n{}");
    assert!(fails(&ask(&address), 1).contains("503"));
    served.join().unwrap();
    // Nobody listens there any more.
    assert!(fails(&ask(&address), 1).contains("does not answer"));
}
