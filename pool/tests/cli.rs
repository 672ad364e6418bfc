//! The command line as typed: the built program, its words and its exit codes.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use pool::cli::{DemoOptions, demo_options_of};
use pool::config::Config;

/// Runs the program in `folder` with nothing of our own environment.
fn pool_in(folder: &Path, words: &[&str]) -> Output {
    pool_with(folder, words, &[])
}

fn pool_with(folder: &Path, words: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pool"));
    command.args(words).current_dir(folder).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    if code != 2 {
        assert_eq!(said.lines().count(), 1, "one line, no backtrace: {said}");
        assert!(said.starts_with("pool: "), "{said}");
    }
    said
}

#[test]
fn version_help_and_wrong_usage() {
    let here = tempfile::tempdir().unwrap();
    let version = succeeds(&pool_in(here.path(), &["--version"]));
    assert_eq!(version, format!("pool {}\n", env!("CARGO_PKG_VERSION")));
    let help = succeeds(&pool_in(here.path(), &["--help"]));
    for word in ["run", "demo", "keys", "config", "healthcheck"] {
        assert!(help.contains(&format!("\n  {word} ")), "{help}");
    }
    for wrong in [vec![], vec!["mine"], vec!["run", "--no-such"], vec!["demo", "--for", "soon"]] {
        fails(&pool_in(here.path(), &wrong), 2);
    }
}

#[test]
fn the_demo_takes_its_options() {
    let plain = demo_options_of(["pool", "demo"]).unwrap();
    let defaults = Config::default();
    let want = DemoOptions {
        time: None,
        json: false,
        listen: defaults.listen.address,
        http: "127.0.0.1:0".parse().unwrap(),
        data_dir: None,
        miner: true,
        tx_count: defaults.embedded.tx_count,
    };
    assert_eq!(plain, want);
    let words = "pool demo --for 2m --json --listen 127.0.0.1:0 --http 127.0.0.1:9 --data-dir d \
                 --no-miner --tx-count 9";
    let full = demo_options_of(words.split_whitespace()).unwrap();
    let want = DemoOptions {
        time: Some(Duration::from_secs(120)),
        json: true,
        listen: "127.0.0.1:0".parse().unwrap(),
        http: "127.0.0.1:9".parse().unwrap(),
        data_dir: Some("d".into()),
        miner: false,
        tx_count: 9,
    };
    assert_eq!(full, want);
    for time in ["0s", "367d", "s", "", "-1s", "1.5s", "99999999999999999999s", "1w"] {
        let words = ["pool", "demo", &format!("--for={time}")].map(str::to_owned);
        assert!(demo_options_of(words).is_err(), "{time:?} must be refused");
    }
    assert!(demo_options_of(["pool", "demo", "--tx-count", "5001"]).is_err());
}

#[test]
fn the_printed_example_is_the_one_in_the_repository() {
    let here = tempfile::tempdir().unwrap();
    let printed = succeeds(&pool_in(here.path(), &["config", "example"]));
    assert_eq!(printed, Config::example());
}

#[test]
fn a_bad_configuration_ends_with_78_and_the_nearest_key() {
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("bad.toml"), "[listen]\nadress = \"x\"\n").unwrap();
    for command in [vec!["run"], vec!["config", "check"], vec!["config", "show"]] {
        let words = [command, vec!["-c", "bad.toml"]].concat();
        let said = fails(&pool_in(here.path(), &words), 78);
        assert!(said.contains("did you mean listen.address?"), "{said}");
    }
    let said = fails(&pool_with(here.path(), &["run"], &[("POOL__HTTP__PORT", "1")]), 78);
    assert!(said.contains("POOL__HTTP__PORT"), "{said}");
}

#[test]
fn a_check_asks_for_what_a_start_would() {
    let here = tempfile::tempdir().unwrap();
    let check = |env: &[(&str, &str)]| pool_with(here.path(), &["config", "check"], env);
    let said = fails(&check(&[]), 78);
    assert!(said.contains("pool.payout_address is missing"), "{said}");
    let address = ("POOL__POOL__PAYOUT_ADDRESS", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq");
    let said = fails(&check(&[address]), 78);
    assert!(said.contains("cookie_file"), "{said}");
    let cookie = ("POOL__NODE__COOKIE_FILE", "/c");
    assert_eq!(succeeds(&check(&[address, cookie])), "ok\n");
    let said = fails(&check(&[address, cookie, ("POOL__NODE__NETWORK", "signet")]), 78);
    assert!(said.contains("bitcoin") && said.contains("signet"), "{said}");
    assert_eq!(succeeds(&check(&[("POOL__NODE__KIND", "embedded")])), "ok\n");
}

#[test]
fn what_is_in_force_is_shown_without_secrets() {
    let here = tempfile::tempdir().unwrap();
    let env = [("POOL__NODE__PASSWORD", "hunter2"), ("POOL__POOL__TAG", "/mine/")];
    let shown = succeeds(&pool_with(here.path(), &["config", "show"], &env));
    assert!(shown.contains("tag = \"/mine/\"") && shown.contains("password = \"***\""), "{shown}");
    assert!(!shown.contains("hunter2"));
}

#[test]
fn keys_are_made_certified_elsewhere_and_shown() {
    let here = tempfile::tempdir().unwrap();
    let at = |words: &str| pool_in(here.path(), &words.split(' ').collect::<Vec<_>>());
    let made = succeeds(&at("keys authority --out safe/authority.txt"));
    let public = made.lines().next().unwrap().to_owned();
    assert!(public.starts_with("authority public key: 9"), "{made}");
    let said = fails(&at("keys authority --out safe/authority.txt"), 1);
    assert!(said.contains("is not overwritten"), "{said}");

    let certify = "keys certificate --authority safe/authority.txt --days 30 --out";
    let first = succeeds(&at(&format!("{certify} pool-data/identity.txt")));
    assert!(first.starts_with(&public), "{first}");
    assert!(first.contains("\ncertificate: from 20"), "{first}");
    assert_eq!(succeeds(&at("keys show")), first);

    let secret_of = |file: &str| {
        let text = std::fs::read_to_string(here.path().join(file)).unwrap();
        text.lines().find(|line| line.starts_with("static_secret")).unwrap().to_owned()
    };
    let again = format!("{certify} next.txt --static pool-data/identity.txt");
    succeeds(&at(&again));
    assert_eq!(secret_of("next.txt"), secret_of("pool-data/identity.txt"));
    succeeds(&at(&format!("{certify} other.txt --static absent.txt")));
    assert_ne!(secret_of("other.txt"), secret_of("next.txt"));
    fails(&at("keys certificate --authority absent.txt --days 30 --out x.txt"), 1);
    fails(&at(&format!("{certify} x.txt --days 3651")), 2);
}

#[test]
fn before_the_first_start_keys_show_says_how_keys_come_to_be_and_it_works() {
    let here = tempfile::tempdir().unwrap();
    let said = fails(&pool_in(here.path(), &["keys", "show"]), 1);
    assert!(said.contains("pool-data/identity.txt is not there"), "{said}");
    assert!(said.contains("`pool run` makes it at its first start"), "{said}");
    // What stands between backticks can be typed.
    for command in said.split('`').filter(|part| part.starts_with("pool keys ")) {
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        succeeds(&pool_in(here.path(), &words));
    }
    assert!(succeeds(&pool_in(here.path(), &["keys", "show"])).starts_with("authority public key"));
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
fn a_healthcheck_says_by_its_exit_code_whether_a_pool_is_ready() {
    let here = tempfile::tempdir().unwrap();
    let (address, served) = one_answer("HTTP/1.1 200 OK\r\n\r\n{\"ready\":true}");
    let env = [("POOL__HTTP__ADDRESS", address.as_str())];
    succeeds(&pool_with(here.path(), &["healthcheck"], &env));
    assert!(served.join().unwrap().starts_with("GET /health/ready HTTP/1.1\r\n"));

    let (address, served) = one_answer("HTTP/1.1 503 no\r\n\r\n{\"ready\":false}");
    let url = format!("http://{address}/health/ready");
    let said = fails(&pool_in(here.path(), &["healthcheck", "--url", &url]), 1);
    assert!(said.contains("503") && said.contains("\"ready\":false"), "{said}");
    served.join().unwrap();

    let (address, served) = one_answer("");
    let url = format!("http://{address}/");
    fails(&pool_in(here.path(), &["healthcheck", "--url", &url]), 1);
    served.join().unwrap();
}

#[test]
fn a_healthcheck_of_a_dead_server_fails() {
    let here = tempfile::tempdir().unwrap();
    // Bound and dropped: nobody listens there now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let env = [("POOL__HTTP__ADDRESS", address.to_string())];
    let env = [(env[0].0, env[0].1.as_str())];
    let said = fails(&pool_with(here.path(), &["healthcheck"], &env), 1);
    assert!(said.contains("does not answer"), "{said}");
    fails(&pool_in(here.path(), &["healthcheck", "--url", "ftp://x"]), 1);
}
