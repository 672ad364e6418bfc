//! Configuration as an operator meets it: what loads, what is refused and in which words.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};

use pool::config::{
    Config, ConfigError, HAS_IPC, LogFormat, NetworkName, NodeKind, NodeLogin, Secret,
};

const NO_ENV: [(&str, &str); 0] = [];
const MAIN_ADDRESS: &str = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
const REGTEST_ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

struct TomlFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> TomlFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.toml");
    std::fs::write(&path, text).unwrap();
    TomlFile { _folder: folder, path }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(Some(&file(text).path), NO_ENV)
}

fn refusal(text: &str) -> String {
    load(text).expect_err("this must be refused").to_string()
}

fn with_env(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(None, env.iter().copied())
}

#[test]
fn the_example_loads_and_is_the_defaults() {
    assert_eq!(load(&Config::example()).unwrap(), Config::default());
    assert_eq!(load("").unwrap(), Config::default());
}

#[test]
fn the_example_in_the_repository_is_the_one_printed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pool.example.toml");
    let kept = std::fs::read_to_string(path).unwrap();
    assert_eq!(kept, Config::example(), "renew it: cargo run -p pool -- config example");
}

#[test]
fn every_field_stands_in_the_example_under_a_comment() {
    let example = Config::example();
    let lines: Vec<&str> = example.lines().collect();
    let sections = toml::Table::try_from(Config::default()).unwrap();
    for (section, fields) in &sections {
        let start = lines.iter().position(|line| *line == format!("[{section}]")).unwrap();
        for key in fields.as_table().unwrap().keys() {
            let own = |line: &&str| line.starts_with(&format!("{key} = "));
            let at = start + lines[start..].iter().position(own).expect(key);
            assert!(lines[at - 1].starts_with("# "), "{section}.{key} has no words");
        }
    }
}

#[test]
fn every_number_has_a_bound_and_refuses_one_beyond() {
    let example = Config::example();
    let (mut section, mut bounds) = ("", None);
    for line in example.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some(range) = line.strip_prefix("# From ") {
            let (low, high) = range.trim_end_matches('.').split_once(" to ").unwrap();
            bounds = Some((low.parse::<i64>().unwrap(), high.parse::<i64>().unwrap()));
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
            && value.parse::<i64>().is_ok()
        {
            let (low, high) = bounds.take().expect("a number without a bound");
            for beyond in [low - 1, high + 1] {
                let said = refusal(&format!("[{section}]\n{key} = {beyond}\n"));
                let want = format!("{section}.{key} is {beyond}; it must be from {low} to {high}");
                assert_eq!(said, want);
            }
        }
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let said = refusal("[listen]\nadress = \"1.2.3.4:5\"\n");
    assert!(said.starts_with("unknown key listen.adress in "), "{said}");
    assert!(said.ends_with("did you mean listen.address?"), "{said}");
    assert!(refusal("[litsen]\naddress = 1\n").contains("unknown key litsen"));
    let flat = refusal("payout_address = \"x\"\n");
    assert!(flat.ends_with("did you mean pool.payout_address?"), "{flat}");
    let far = refusal("[pool]\nqqqqqqqq = 1\n");
    assert!(!far.contains("did you mean"), "{far}");
}

#[test]
fn wrong_types_and_broken_toml_are_refused_with_their_line() {
    let cases = [
        ("[listen]\n\naddress = 5\n", "line 3"),
        ("[listen]\nmax_connections = \"12\"\n", "line 2"),
        ("[listen]\nmax_connections = true\n", "line 2"),
        ("[listen]\naddress = \"localhost\"\n", "line 2"),
        ("[node]\nkind = \"bitcoind\"\n", "bitcoin-core"),
        ("[node]\nnetwork = \"mainnet\"\n", "main"),
        ("[node\n", "line 1"),
        ("listen = 7\n", "line 1"),
    ];
    for (text, part) in cases {
        let said = refusal(text);
        assert!(said.contains(part), "{text:?} gave {said}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let long = "x".repeat(41);
    let cases = [
        (format!("[pool]\ntag = \"{long}\""), "pool.tag: "),
        ("[pool]\ntag = \"caf\u{e9}\"".into(), "pool.tag: "),
        ("[pool]\ndata_dir = \"\"".into(), "pool.data_dir: "),
        ("[pool]\npayout_address = \"bc1qnonsense\"".into(), "pool.payout_address: bc1qnonsense"),
        ("[listen]\nmax_connections = 5".into(), "listen.max_connections_per_address: "),
        ("[node]\nurl = \"https://127.0.0.1\"".into(), "node.url: "),
        ("[listen]\nmax_channels = 5".into(), "listen.max_channels_per_address: "),
        ("[store]\nurl = \"mysql://x\"".into(), "store.url: "),
        ("[log]\nfilter = \"info,=\"".into(), "log.filter: "),
        (
            "[difficulty]\nfloor_log2 = 9\nceiling_log2 = 8".into(),
            "difficulty.ceiling_log2: is below",
        ),
    ];
    for (text, start) in cases {
        let said = refusal(&text);
        assert!(said.starts_with(start), "{text:?} gave {said}");
    }
    assert!(load(&format!("[pool]\ntag = \"{}\"", &long[1..])).is_ok());
}

#[test]
fn a_refusal_names_the_key_the_value_and_what_is_allowed() {
    let cases = [
        ("[listen]\n\naddress = 5\n", ["line 3: listen.address: 5: ", "0.0.0.0:34254"]),
        ("[http]\naddress = \"here\"\n", ["line 2: http.address: \"here\": ", "127.0.0.1:9090"]),
        ("[node]\nkind = \"bitcoind\"\n", ["node.kind: \"bitcoind\": ", "embedded"]),
        ("[node]\nnetwork = \"mainnet\"\n", ["node.network: \"mainnet\": ", "testnet4"]),
        ("[listen]\nmax_channels = true\n", ["listen.max_channels: true: ", "50000"]),
        ("[pool]\ntag = \"\u{e9}\"\n", ["pool.tag: \"\u{e9}\" ", "at most 40"]),
        ("[listen]\nmax_channels = 5\n", ["max_channels_per_address: 2048 ", "which is 5"]),
        ("[declare]\nmax_connections = 5\n", ["declare.max_connections_per_address: 250 ", "5"]),
        ("[node]\nurl = \"https://x\"\n", ["node.url: \"https://x\" ", "http://"]),
        ("[store]\nurl = \"mysql://a:b@x\"\n", ["store.url: mysql://***@x ", "sqlite://"]),
        ("[log]\nfilter = \"info,=\"\n", ["log.filter: \"info,=\"", "pool::miner=debug"]),
    ];
    for (text, parts) in cases {
        let said = refusal(text);
        assert!(parts.iter().all(|part| said.contains(part)), "{text:?} gave {said}");
    }
}

#[test]
fn a_missing_file_is_refused_with_its_name() {
    let said = Config::load(Some(Path::new("/nonexistent/pool.toml")), NO_ENV).unwrap_err();
    assert!(said.to_string().starts_with("cannot read /nonexistent/pool.toml: "), "{said}");
}

#[test]
fn the_environment_overrides_the_file_and_the_file_the_defaults() {
    let file =
        file("[difficulty]\nfloor_log2 = 4\nshares_per_minute = 6\n[node]\nkind = \"embedded\"\n");
    let env = [
        ("POOL__DIFFICULTY__FLOOR_LOG2", "-16"),
        ("POOL__LOG__FORMAT", "json"),
        ("POOL__LISTEN__ADDRESS", "127.0.0.1:1"),
        ("POOL__DECLARE__COINBASE_ONLY", "false"),
        ("POOL__NODE__PASSWORD", "007"),
        ("PATH", "/bin"),
        ("POOLSIDE", "drink"),
    ];
    let config = Config::load(Some(&file.path), env).unwrap();
    assert_eq!(config.difficulty.floor_log2, -16);
    assert_eq!(config.difficulty.shares_per_minute, 6);
    assert_eq!(config.node.kind, NodeKind::Embedded);
    assert_eq!(config.node.password.expose(), "007", "digits stay text where text is meant");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.listen.address.port(), 1);
    assert!(config.declare.enabled && !config.declare.coinbase_only);
}

#[test]
fn unknown_variables_are_refused_with_the_nearest() {
    let cases = [
        ("POOL__LISTEN__ADRESS", "; did you mean POOL__LISTEN__ADDRESS?"),
        ("POOL_LISTEN_ADDRESS", "; did you mean POOL__LISTEN__ADDRESS?"),
        ("POOL_LISTEN__ADDRESS", "; did you mean POOL__LISTEN__ADDRESS?"),
        ("pool__listen__address", ""),
    ];
    for (name, end) in cases {
        let said = with_env(&[(name, "127.0.0.1:1")]).unwrap_err().to_string();
        assert!(said.starts_with(&format!("unknown environment variable {name}")), "{said}");
        assert!(said.ends_with(end), "{said}");
    }
}

#[test]
fn bad_values_in_variables_are_refused_by_name() {
    let cases = [
        (
            "POOL__DIFFICULTY__FLOOR_LOG2",
            "easy",
            "POOL__DIFFICULTY__FLOOR_LOG2: \"easy\" is not a whole",
        ),
        ("POOL__POOL__NODE_ID", "65536", "pool.node_id is 65536; it must be from 0 to 65535"),
        ("POOL__LISTEN__ADDRESS", "everywhere", "POOL__LISTEN__ADDRESS: \"everywhere\": "),
        ("POOL__NODE__KIND", "bitcoind", "POOL__NODE__KIND: \"bitcoind\": "),
        (
            "POOL__DECLARE__ENABLED",
            "yes",
            "POOL__DECLARE__ENABLED: \"yes\" is neither true nor false",
        ),
    ];
    for (name, value, start) in cases {
        let said = with_env(&[(name, value)]).unwrap_err().to_string();
        assert!(said.starts_with(start), "{said}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let env = [
        ("POOL__NODE__PASSWORD", "hunter2"),
        ("POOL__STORE__URL", "postgres://me:hun@ter2@db.lan:5432/pool?password=hunter2"),
    ];
    let config = with_env(&env).unwrap();
    for shown in [config.shown(), format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains("ter2"), "{shown}");
        assert!(shown.contains("postgres://***@db.lan:5432/pool?***"), "{shown}");
    }
    assert_eq!(Secret::new("sqlite:///var/pool.sqlite").to_string(), "sqlite:///var/pool.sqlite");
    assert_eq!(Secret::new("abc").to_string(), "***");
}

#[test]
fn secrets_are_not_shown_by_a_refusal() {
    let cases = [
        "[node]\npassword = hunter2\n",
        "[node]\npassword = \"hunter2\n",
        "[node]\npassword = 20022002\n",
        "[node]\nurl = \"http://me:hunter2@127.0.0.1\"\n",
        "[store]\nurl = \"mysql://me:hunter2@db\"\n",
    ];
    for text in cases {
        let said = refusal(text);
        assert!(!said.contains("hunter2") && !said.contains("2002"), "{said}");
    }
}

#[test]
fn what_is_shown_loads_again() {
    let config = with_env(&[("POOL__LOG__FILTER", "debug")]).unwrap();
    assert_eq!(load(&config.shown()).unwrap(), config);
}

#[test]
fn a_payout_address_must_be_of_the_nodes_network() {
    let mut config = Config::default();
    let missing = config.payout_script(bitcoin::Network::Bitcoin).unwrap_err();
    assert!(matches!(missing, ConfigError::NoPayoutAddress { .. }));
    config.pool.payout_address = MAIN_ADDRESS.into();
    assert!(config.payout_script(bitcoin::Network::Bitcoin).unwrap().is_p2wpkh());
    let said = config.payout_script(bitcoin::Network::Signet).unwrap_err().to_string();
    assert!(said.contains("for network bitcoin,") && said.contains("on signet"), "{said}");
    config.pool.payout_address = REGTEST_ADDRESS.into();
    assert!(config.payout_script(bitcoin::Network::Regtest).is_ok());
    assert!(config.payout_script(bitcoin::Network::Bitcoin).is_err());
}

#[test]
fn only_the_development_chain_needs_no_payout_address() {
    let config = with_env(&[("POOL__NODE__KIND", "embedded")]).unwrap();
    assert_eq!(config.network(), bitcoin::Network::Regtest);
    assert!(config.payout_script(bitcoin::Network::Regtest).unwrap().is_p2wsh());
}

#[test]
fn a_node_has_exactly_one_way_to_log_in() {
    let password = file("correct horse\nsecond line\n");
    let path = password.path.display();
    let login = |text: &str| load(&format!("[node]\n{text}")).unwrap().node_login();
    assert_eq!(login("cookie_file = \"/c\"").unwrap(), NodeLogin::Cookie("/c".into()));
    let by_file = login(&format!("user = \"me\"\npassword_file = \"{path}\"")).unwrap();
    let want = NodeLogin::Password { user: "me".into(), password: Secret::new("correct horse") };
    assert_eq!(by_file, want);
    let bad = [
        "",
        "user = \"me\"",
        "password = \"x\"",
        "user = \"me\"\ncookie_file = \"/c\"",
        "user = \"me\"\npassword = \"x\"\npassword_file = \"/p\"",
        "user = \"me\"\npassword_file = \"/nonexistent\"",
    ];
    for text in bad {
        assert!(login(text).is_err(), "{text:?} must be refused");
    }
}

#[test]
fn a_socket_of_the_nodes_is_refused_by_a_pool_that_cannot_speak_to_it() {
    assert_eq!(Config::default().ipc_socket(), None);
    let loaded = load("[node]\nipc_socket = \"/bitcoin/node.sock\"\n");
    if HAS_IPC {
        assert_eq!(loaded.unwrap().ipc_socket(), Some("/bitcoin/node.sock".into()));
        return;
    }
    let refused = loaded.unwrap_err().to_string();
    for word in ["node.ipc_socket", "/bitcoin/node.sock", "without the feature ipc"] {
        assert!(refused.contains(word), "{refused}");
    }
}

#[test]
fn the_store_url_takes_its_password_from_a_file() {
    let secret = file("p@ss/w:rd\n");
    let path = secret.path.display();
    let url = |text: &str| load(text).unwrap().store_url();
    assert_eq!(url("").unwrap().expose(), "sqlite://pool-data/pool.sqlite");
    let with_user =
        format!("[store]\nurl = \"postgres://pool@db/pool\"\npassword_file = \"{path}\"");
    assert_eq!(url(&with_user).unwrap().expose(), "postgres://pool:p%40ss%2Fw%3Ard@db/pool");
    for bad in ["", "postgres://db/pool", "postgres://pool:x@db/pool", "sqlite://x@y"] {
        let text = format!("[store]\nurl = \"{bad}\"\npassword_file = \"{path}\"");
        assert!(url(&text).is_err(), "{bad:?} has no place for a password");
    }
}

#[test]
fn key_files_stand_in_the_data_folder_unless_named() {
    let config = load("[pool]\ndata_dir = \"/d\"\n[keys]\nauthority_file = \"/safe/a\"").unwrap();
    assert_eq!(config.identity_file(), PathBuf::from("/d/identity.txt"));
    assert_eq!(config.authority_file(), PathBuf::from("/safe/a"));
}

#[test]
fn a_node_on_another_network_is_refused_and_both_are_named() {
    let mut config = Config::default();
    config.node.network = NetworkName::Signet;
    assert!(config.check_network("node", bitcoin::Network::Signet).is_ok());
    for other in [bitcoin::Network::Bitcoin, bitcoin::Network::Regtest] {
        let refused = config.check_network("node", other).unwrap_err().to_string();
        assert!(refused.contains("signet") && refused.contains(other.to_core_arg()), "{refused}");
    }
}
