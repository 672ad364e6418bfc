//! Configuration as a home miner meets it: what loads, what is refused and in which words.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};

use bitcoin::Network;
use job_declarator::config::{Config, DeclareMode, Pool};
use job_declarator::declarator::WHOLE_REWARD;
use job_declarator::limits::{KNOWN_ADDRESSES_MAX, POOLS_MAX, USER_MAX};
use job_declarator::settings::{
    ConfigError, LogFormat, NetworkName, NodeKind, NodeLogin, Secret, cookie_places, find_cookie,
};
use proto::noise::AuthoritySecretKey;

const NO_ENV: [(&str, &str); 0] = [];
const MAIN_ADDRESS: &str = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
const REGTEST_ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

struct TomlFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> TomlFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("declarator.toml");
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

fn authority_key(seed: u8) -> String {
    AuthoritySecretKey::from_secret([seed; 32]).unwrap().public().to_string()
}

/// A pool that can be mined with, and what is written below it.
fn pool(host: &str, more: &str) -> String {
    let key = authority_key(7);
    format!("[[pool]]\naddress = \"{host}:34254\"\nauthority_key = \"{key}\"\n{more}\n")
}

/// The same with a limit, without which known addresses mean nothing.
fn limited_pool(host: &str, more: &str) -> String {
    pool(host, &format!("reward_to_others_max_percent = 0\n{more}"))
}

#[test]
fn the_example_loads_and_is_the_defaults() {
    assert_eq!(load(&Config::example()).unwrap(), Config::default());
    assert_eq!(load("").unwrap(), Config::default());
}

#[test]
fn the_example_in_the_repository_is_the_one_printed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("declarator.example.toml");
    let kept = std::fs::read_to_string(path).unwrap();
    let renew = "renew it: cargo run -p job-declarator-cli -- config example";
    assert_eq!(kept, Config::example(), "{renew}");
}

/// The example with its pool brought to life.
fn example_with_a_pool() -> String {
    let key = authority_key(7);
    let example = Config::example().replace("\n#[[pool]]", "\n[[pool]]");
    let (before, pool) = example.split_once("\n[[pool]]").unwrap();
    let (pool, after) = pool.split_once("\n\n").unwrap();
    let live = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    let pool: String = pool.lines().map(live).collect();
    let pool = pool.replace("\naddress = \"\"", "\naddress = \"pool.example:34254\"");
    let pool = pool.replace("authority_key = \"\"", &format!("authority_key = \"{key}\""));
    format!("{before}\n[[pool]]{pool}\n\n{after}")
}

#[test]
fn the_examples_pool_needs_its_marks_off_and_two_values() {
    let config = load(&example_with_a_pool()).unwrap();
    let want = Pool {
        address: "pool.example:34254".into(),
        authority_key: authority_key(7),
        ..Pool::default()
    };
    assert_eq!(config, Config { pool: vec![want], ..Config::default() });
}

#[test]
fn every_field_stands_in_the_example_under_a_comment() {
    let example = example_with_a_pool();
    let lines: Vec<&str> = example.lines().collect();
    let config = load(&example).unwrap();
    let mut sections = toml::Table::try_from(&config).unwrap();
    let first_pool = sections["pool"][0].clone();
    sections.insert("pool".into(), first_pool);
    for (section, fields) in &sections {
        let is_start =
            |line: &&str| line.trim_matches(['[', ']']) == section && line.len() > section.len();
        let start = lines.iter().position(is_start).unwrap();
        for key in fields.as_table().unwrap().keys() {
            let own = |line: &&str| line.starts_with(&format!("{key} = "));
            let at = start + lines[start..].iter().position(own).expect(key);
            assert!(lines[at - 1].starts_with("# "), "{section}.{key} has no words");
        }
    }
}

#[test]
fn every_number_has_a_bound_and_refuses_one_beyond() {
    let example = example_with_a_pool();
    let (mut section, mut bounds) = ("", None);
    for line in example.lines() {
        if line.starts_with('[') {
            section = line;
        } else if let Some(range) = line.strip_prefix("# From ") {
            let (low, high) = range.trim_end_matches('.').split_once(" to ").unwrap();
            bounds = Some((low.parse::<i64>().unwrap(), high.parse::<i64>().unwrap()));
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
            && value.parse::<i64>().is_ok()
        {
            let (low, high) = bounds.take().expect("a number without a bound");
            let name = match section.strip_prefix("[[") {
                Some(_) => format!("{key} of [[pool]] number 1"),
                None => format!("{}.{key}", section.trim_matches(['[', ']'])),
            };
            for beyond in [low - 1, high + 1] {
                let said = refusal(&format!("{section}\n{key} = {beyond}\n"));
                assert_eq!(said, format!("{name} is {beyond}; it must be from {low} to {high}"));
            }
        }
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let cases = [
        ("[devices]\nsv2_adress = 1\n", "devices.sv2_adress", "devices.sv2_address"),
        (
            "[declarator]\npayout_adress = 1\n",
            "declarator.payout_adress",
            "declarator.payout_address",
        ),
        ("[[pool]]\nautority_key = \"\"\n", "pool.autority_key", "pool.authority_key"),
        ("payout_address = \"x\"\n", "payout_address", "declarator.payout_address"),
    ];
    for (text, wrong, nearest) in cases {
        let said = refusal(text);
        assert!(said.starts_with(&format!("unknown key {wrong} in ")), "{said}");
        assert!(said.ends_with(&format!("; did you mean {nearest}?")), "{said}");
    }
    // Of a pool whose own line is still a comment.
    for key in ["address", "authority_key"] {
        let said = refusal(&format!("[node]\nkind = \"embedded\"\n#[[pool]]\n{key} = \"x\"\n"));
        assert!(said.starts_with(&format!("unknown key node.{key} in ")), "{said}");
        let hint = format!("; {key} belongs into [[pool]]: is its line still commented out?");
        assert!(said.ends_with(&hint), "{said}");
    }
    // Also in the second of a list.
    let second = format!("{}[[pool]]\nname = \"b\"\nadress = \"x\"\n", pool("a.example", ""));
    assert!(refusal(&second).contains("unknown key pool.adress"));
    assert!(!refusal("[node]\nqqqqqqqq = 1\n").contains("did you mean"));
}

#[test]
fn wrong_types_are_refused_with_their_line_the_key_the_value_and_what_is_allowed() {
    let cases = [
        ("[devices]\n\nsv2_address = 5\n", ["line 3: devices.sv2_address: 5: ", "0.0.0.0:34255"]),
        (
            "[declarator]\nmode = \"full\"\n",
            ["line 2: declarator.mode: \"full\": ", "coinbase-only"],
        ),
        ("[node]\nnetwork = \"mainnet\"\n", ["node.network: \"mainnet\": ", "testnet4"]),
        ("[[pool]]\naddress = 3333\n", ["line 2: address of [[pool]] number 1: 3333: ", "string"]),
        (
            "[[pool]]\n[[pool]]\nknown_addresses = \"x\"\n",
            ["line 3: known_addresses of [[pool]] number 2", "[]"],
        ),
        ("[pool]\naddress = \"a:1\"\n", ["[pool]: write [[pool]] in two brackets", "each"]),
        ("[[devices]]\n", ["[[devices]]: write [devices] in single brackets", "once"]),
        (
            "devices = [\"0.0.0.0:1\"]\n",
            ["[[devices]]: write [devices] in single brackets", "once"],
        ),
        ("pool = [3]\n", ["line 1", "expected struct Pool"]),
        ("[node\n", ["line 1", ""]),
    ];
    for (text, parts) in cases {
        let said = refusal(text);
        assert!(parts.iter().all(|part| said.contains(part)), "{text:?} gave {said}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let long = "x".repeat(41);
    let user = "u".repeat(USER_MAX + 1);
    let cases = [
        (format!("[declarator]\ntag = \"{long}\""), "declarator.tag: "),
        ("[declarator]\ndata_dir = \"\"".into(), "declarator.data_dir: "),
        ("[declarator]\npayout_address = \"bc1qno\"".into(), "declarator.payout_address: bc1qno "),
        (format!("[declarator]\nuser = \"{user}\""), "declarator.user: "),
        ("[declarator]\nuser = \"two words\"".into(), "declarator.user: \"two words\" "),
        ("[devices]\nmax_connections = 5".into(), "devices.max_connections_per_address: 250 "),
        ("[devices]\nsv1_address = \"0.0.0.0:34255\"".into(), "devices.sv1_address: port 34255 "),
        ("[http]\naddress = \"127.0.0.1:3333\"".into(), "http.address: port 3333 "),
        ("[node]\nurl = \"https://127.0.0.1\"".into(), "node.url: \"https://127.0.0.1\" "),
        ("[node]\nurl = \"http://me:x@127.0.0.1\"".into(), "node.url: must not hold a name"),
        ("[log]\nfilter = \"info,=\"".into(), "log.filter: \"info,=\""),
    ];
    for (text, start) in cases {
        let said = refusal(&text);
        assert!(said.starts_with(start), "{text:?} gave {said}");
    }
    assert!(load(&format!("[declarator]\ntag = \"{}\"", &long[1..])).is_ok());
    assert!(load(&format!("[declarator]\nuser = \"{}\"", &user[1..])).is_ok());
    let any = "[devices]\nsv1_address = \"0.0.0.0:0\"\nsv2_address = \"0.0.0.0:0\"";
    assert!(load(any).is_ok(), "port 0 is any free one");
}

#[test]
fn a_pool_is_refused_in_words_that_say_what_would_be_right() {
    let secret = AuthoritySecretKey::from_secret([7; 32]).unwrap().to_text().to_string();
    let key = authority_key(7);
    let with = |address: &str, more: &str| {
        format!("address = \"{address}\"\nauthority_key = \"{key}\"\n{more}")
    };
    let at = |address: &str| with(address, "");
    let cases = [
        (format!("authority_key = \"{key}\""), "address of [[pool]] number 1: is missing"),
        (at("pool.example"), "has no port, e.g. \"pool.example:34254\""),
        (at("pool.example:"), "has no port from 1 to 65535"),
        (at("pool.example:0"), "has no port from 1 to 65535"),
        (at("pool.example:65536"), "has no port from 1 to 65535"),
        (at(":34254"), "is not a host and a port"),
        (at("my pool:34254"), "is not a host and a port"),
        (at("::1"), "has no port, e.g. \"[::1]:34254\""),
        (at("[::g]:34254"), "is not a host and a port"),
        (
            at("stratum2+tcp://pool.example:34254/9abc"),
            "without stratum2+tcp://, as \"pool.example:34254\"",
        ),
        (
            "address = \"pool.example:34254\"".into(),
            "authority_key of [[pool]] number 1: is missing",
        ),
        (
            format!("address = \"pool.example:34254\"\nauthority_key = \"{}\"", &key[1..]),
            "starts with a 9",
        ),
        (
            format!("address = \"pool.example:34254\"\nauthority_key = \"{secret}\""),
            "starts with a 9",
        ),
        (
            with("pool.example:1", "declare_address = \"pool.example\""),
            "e.g. \"pool.example:34264\"",
        ),
        (with("pool.example:1", "declare_address = \"Pool.example:1\""), "is its mining port"),
        (with("pool.example:1", "user = \"a b\""), "user of [[pool]] number 1: \"a b\""),
        (with("pool.example:1", "name = \"a\\nb\""), "name of [[pool]] number 1: "),
        (with("pool.example:1", "api_url = \"ftp://x\""), "api_url of [[pool]] number 1: "),
        (
            with("pool.example:1", "known_addresses = [\"1no\"]"),
            "known_addresses of [[pool]] number 1: 1no is not",
        ),
    ];
    for (text, part) in cases {
        let said = refusal(&format!("[[pool]]\n{text}\n"));
        assert!(said.contains(part), "{text:?} gave {said}");
        assert!(!said.contains(&secret), "{said}");
    }
    for address in ["pool.example:1", "10.0.0.7:65535", "[::1]:34254", "my_host:34254"] {
        assert!(load(&format!("[[pool]]\n{}", at(address))).is_ok(), "{address} must be taken");
    }
}

#[test]
fn two_pools_of_one_address_are_refused_and_two_of_one_key_are_not() {
    let (a, b) = (pool("a.example", "name = \"A\""), pool("b.example", ""));
    let config = load(&format!("{a}{b}")).unwrap();
    assert_eq!(config.pool.len(), 2);
    assert_eq!(config.pool[0].shown_name(), "A");
    assert_eq!(config.pool[1].shown_name(), "b.example:34254");
    assert_eq!(config.pool[0].authority(0).unwrap().to_string(), authority_key(7));
    assert_eq!(config.pool[0].declares_at(), None);
    let said = refusal(&format!("{a}{b}{}", pool("A.Example", "")));
    assert_eq!(said, "address of [[pool]] number 3: A.Example:34254 is number 1's already");
}

#[test]
fn lists_are_bounded() {
    let pools = |count: usize| -> String {
        (0..count).map(|at| pool(&format!("pool{at}.example"), "")).collect()
    };
    assert_eq!(load(&pools(POOLS_MAX)).unwrap().pool.len(), POOLS_MAX);
    let said = refusal(&pools(POOLS_MAX + 1));
    assert_eq!(said, format!("[[pool]]: {} are too many; at most {POOLS_MAX}", POOLS_MAX + 1));
    let known = |count: usize| {
        let addresses = vec![format!("\"{MAIN_ADDRESS}\""); count].join(", ");
        limited_pool("pool.example", &format!("known_addresses = [{addresses}]"))
    };
    assert!(load(&known(KNOWN_ADDRESSES_MAX)).is_ok());
    assert!(refusal(&known(KNOWN_ADDRESSES_MAX + 1)).contains("at most 64"));
}

#[test]
fn addresses_must_be_of_the_nodes_network() {
    let regtest = format!("[declarator]\npayout_address = \"{REGTEST_ADDRESS}\"\n");
    let said = refusal(&regtest);
    assert!(said.contains("declarator.payout_address bcrt1") && said.contains("on main"), "{said}");
    let config = load(&format!("{regtest}[node]\nnetwork = \"regtest\"\n")).unwrap();
    assert!(config.payout_script().unwrap().is_p2wpkh());
    let theirs = limited_pool("a.example", &format!("known_addresses = [\"{REGTEST_ADDRESS}\"]"));
    let said = refusal(&theirs);
    assert!(said.contains("known_addresses of [[pool]] number 1 bcrt1"), "{said}");
    let config = load(&format!("{theirs}[node]\nnetwork = \"regtest\"\n")).unwrap();
    assert_eq!(config.pool[0].known(0, Network::Regtest).unwrap().len(), 1);
}

#[test]
fn behind_a_known_address_may_stand_its_share() {
    let with = |text: &str| limited_pool("a.example", &format!("known_addresses = [\"{text}\"]"));
    let cases = [
        ("", WHOLE_REWARD),
        (" 100%", WHOLE_REWARD),
        (" 2%", 200),
        ("  2.5 %", 250),
        ("\\t0.01%", 1),
        (" 0%", 0),
    ];
    for (share, parts) in cases {
        let config = load(&with(&format!("{MAIN_ADDRESS}{share}"))).unwrap();
        let known = config.pool[0].known(0, Network::Bitcoin).unwrap();
        assert_eq!(known[0].share_max, parts, "{share:?}");
        assert!(!known[0].script.is_empty());
    }
    for share in ["2", "%", "-1%", "+1%", "2.%", ".5%", "0.001%", "100.01%", "1e1%", "42949673%"] {
        let said = refusal(&with(&format!("{MAIN_ADDRESS} {share}")));
        assert!(said.contains("is no share of the reward, e.g."), "{share}: {said}");
    }
}

#[test]
fn known_addresses_without_a_limit_are_refused_for_they_would_do_nothing() {
    for share in ["", " 2.5%"] {
        let known = format!("known_addresses = [\"{MAIN_ADDRESS}{share}\"]\n");
        let said = refusal(&pool("a.example", &known));
        let start = "known_addresses of [[pool]] number 1: has no effect while \
                     reward_to_others_max_percent is 100; set it to 0";
        assert!(said.starts_with(start), "{said}");
        for limit in [0, 99] {
            let limited = format!("{known}reward_to_others_max_percent = {limit}\n");
            assert!(load(&pool("a.example", &limited)).is_ok(), "{limit}");
        }
    }
}

#[test]
fn what_is_allowed_and_hardly_meant_is_noted() {
    let notes = |text: &str| load(text).unwrap().notes();
    let whole = "declare_address = \"a.example:2\"\n";
    assert_eq!(notes(""), ["no [[pool]] is set, so this mines solo"]);
    assert_eq!(notes(&pool("a.example", whole)), [""; 0]);
    let said = notes(&pool("a.example", ""));
    let wanted = "declare_address of [[pool]] number 1 is not set: your devices will mine its templates, \
                  not yours";
    assert_eq!(said, [wanted]);
    let said = notes(&limited_pool("a.example", whole));
    assert!(said[0].contains("is 0 without known_addresses"), "{said:?}");
    let known = format!("{whole}known_addresses = [\"{MAIN_ADDRESS}\"]");
    assert_eq!(notes(&limited_pool("a.example", &known)), [""; 0]);
}

#[test]
fn only_the_development_chain_needs_no_payout_address() {
    let missing = Config::default().payout_script().unwrap_err();
    assert!(matches!(missing, ConfigError::NoPayoutAddress { .. }));
    assert!(missing.to_string().starts_with("declarator.payout_address is missing"), "{missing}");
    let config = with_env(&[("DECLARATOR__NODE__KIND", "embedded")]).unwrap();
    assert_eq!(config.network(), Network::Regtest);
    assert!(config.payout_script().unwrap().is_p2wsh());
}

#[test]
fn pools_credit_the_payout_address_unless_told_another() {
    let own = format!("[declarator]\npayout_address = \"{MAIN_ADDRESS}\"\n");
    let (a, b) = (pool("a.example", "user = \"house.attic\""), pool("b.example", ""));
    let config = load(&format!("{own}{a}{b}")).unwrap();
    assert_eq!(config.user_at(&config.pool[0]), "house.attic");
    assert_eq!(config.user_at(&config.pool[1]), MAIN_ADDRESS);
    let config = load(&format!("{own}user = \"me\"\n{a}{b}")).unwrap();
    assert_eq!(config.user_at(&config.pool[0]), "house.attic");
    assert_eq!(config.user_at(&config.pool[1]), "me");
}

#[test]
fn the_environment_overrides_the_file_and_sets_pools_in_any_order() {
    let file = file(&format!("{}[declarator]\nmode = \"coinbase-only\"\n", pool("a.example", "")));
    let key = authority_key(8);
    let env = [
        ("DECLARATOR__POOL__2__ADDRESS", "c.example:1"),
        ("DECLARATOR__POOL__2__AUTHORITY_KEY", &key),
        ("DECLARATOR__POOL__1__KNOWN_ADDRESSES", &format!("{MAIN_ADDRESS}, {MAIN_ADDRESS}")),
        ("DECLARATOR__POOL__1__REWARD_TO_OTHERS_MAX_PERCENT", "5"),
        ("DECLARATOR__POOL__1__AUTHORITY_KEY", &key),
        ("DECLARATOR__POOL__1__ADDRESS", "b.example:1"),
        ("DECLARATOR__POOL__0__REWARD_TO_OTHERS_MAX_PERCENT", "2"),
        ("DECLARATOR__LOG__FORMAT", "json"),
        ("DECLARATOR_TEST_URL", "not a setting"),
        ("DECLARATORS", "all"),
        ("PATH", "/bin"),
    ];
    let config = Config::load(Some(&file.path), env).unwrap();
    let addresses: Vec<&str> = config.pool.iter().map(|pool| pool.address.as_str()).collect();
    assert_eq!(addresses, ["a.example:34254", "b.example:1", "c.example:1"]);
    assert_eq!(config.pool[0].reward_to_others_max_percent, 2);
    assert_eq!(config.pool[0].authority_key, authority_key(7));
    assert_eq!(config.pool[1].known_addresses, [MAIN_ADDRESS, MAIN_ADDRESS]);
    assert_eq!(config.declarator.mode, DeclareMode::CoinbaseOnly);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn variables_that_are_not_understood_are_refused_by_name() {
    let cases = [
        ("DECLARATOR__DEVICES__SV2_ADRESS", "1", "did you mean DECLARATOR__DEVICES__SV2_ADDRESS?"),
        ("DECLARATOR__POOL__ADDRESS", "a:1", "did you mean DECLARATOR__POOL__0__ADDRESS?"),
        ("DECLARATOR__POOL__X__ADDRESS", "a:1", "unknown environment variable"),
        ("DECLARATOR__POOL__1__ADDRESS", "a:1", "there is no number 0 before it"),
        ("DECLARATOR__POOL__8__ADDRESS", "a:1", "at most 8 are taken, counted from 0"),
        ("DECLARATOR__POOL__0__REWARD_TO_OTHERS_MAX_PERCENT", "101", "must be from 0 to 100"),
        ("DECLARATOR__POOL__0__NAME", "a", "address of [[pool]] number 1: is missing"),
        ("DECLARATOR__DECLARATOR__MODE", "full", "DECLARATOR__DECLARATOR__MODE: \"full\": "),
        ("DECLARATOR__DEVICES__SHARES_PER_MINUTE", "few", "\"few\" is not a whole number"),
    ];
    for (name, value, part) in cases {
        let said = with_env(&[(name, value)]).unwrap_err().to_string();
        assert!(said.contains(part), "{name} gave {said}");
    }
}

#[test]
fn secrets_are_never_shown_and_what_is_shown_loads_again() {
    let config = with_env(&[("DECLARATOR__NODE__PASSWORD", "hunter2")]).unwrap();
    for shown in [config.shown(), format!("{config:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert!(!refusal("[node]\npassword = 20022002\n").contains("2002"));
    let two = format!("{}{}", pool("a.example", ""), pool("b.example", "name = \"B\""));
    for text in ["", &two] {
        let config = load(text).unwrap();
        assert_eq!(load(&config.shown()).unwrap(), config);
    }
}

#[test]
fn the_nodes_url_follows_its_network_unless_set() {
    let ports = [("main", 8332), ("test", 18332), ("testnet4", 48332), ("signet", 38332)];
    for (network, port) in ports.into_iter().chain([("regtest", 18443)]) {
        let config = load(&format!("[node]\nnetwork = \"{network}\"\n")).unwrap();
        assert_eq!(config.node_url(), format!("http://127.0.0.1:{port}"));
    }
    let config = load("[node]\nurl = \"http://node.lan:8332\"\n").unwrap();
    assert_eq!(config.node_url(), "http://node.lan:8332");
}

/// A home with cookies in these places.
fn home(cookies: &[&str]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for cookie in cookies {
        let path = home.path().join(cookie);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "__cookie__:0").unwrap();
    }
    home
}

#[test]
fn a_cookie_is_found_where_core_usually_has_it_the_likeliest_first() {
    let snap = "snap/bitcoin-core/common/.bitcoin/.cookie";
    let both = home(&[".bitcoin/.cookie", snap, ".bitcoin/signet/.cookie"]);
    let found = |network| find_cookie(network, Some(both.path()));
    assert_eq!(found(NetworkName::Main), Some(both.path().join(".bitcoin/.cookie")));
    assert_eq!(found(NetworkName::Signet), Some(both.path().join(".bitcoin/signet/.cookie")));
    let snapped = home(&[snap]);
    let config = Config::default();
    let login = config.node_login(Some(snapped.path())).unwrap();
    assert_eq!(login, NodeLogin::Cookie(snapped.path().join(snap)));
}

#[test]
fn a_cookie_of_another_network_is_not_taken() {
    let home = home(&[".bitcoin/.cookie", ".bitcoin/testnet3/.cookie"]);
    let found = find_cookie(NetworkName::Test, Some(home.path()));
    assert_eq!(found, Some(home.path().join(".bitcoin/testnet3/.cookie")));
    for network in [NetworkName::Testnet4, NetworkName::Signet, NetworkName::Regtest] {
        assert_eq!(find_cookie(network, Some(home.path())), None, "{network:?}");
    }
}

#[test]
fn where_no_cookie_is_the_places_are_named_and_a_restart_may_mend_it() {
    let empty = home(&[]);
    let mut config = Config::default();
    config.node.network = NetworkName::Regtest;
    let refused = config.node_login(Some(empty.path())).unwrap_err();
    assert!(refused.may_pass());
    let said = refused.to_string();
    let places = cookie_places(NetworkName::Regtest, Some(empty.path()));
    assert!(places.contains(&empty.path().join(".bitcoin/regtest/.cookie")));
    assert!(places.contains(&"/var/lib/bitcoind/regtest/.cookie".into()));
    for place in places {
        assert!(said.contains(place.to_str().unwrap()), "{said}");
    }
    assert!(said.contains("node.cookie_file") && said.contains("regtest"), "{said}");
    assert!(config.node_login(None).unwrap_err().may_pass(), "also without a home");
    let config = load("[node]\nuser = \"me\"\n").unwrap();
    assert!(!config.node_login(Some(empty.path())).unwrap_err().may_pass());
}

#[test]
fn what_is_set_is_taken_instead_of_a_cookie_that_could_be_found() {
    let home = home(&[".bitcoin/.cookie"]);
    let login =
        |text: &str| load(&format!("[node]\n{text}")).unwrap().node_login(Some(home.path()));
    assert_eq!(login("cookie_file = \"/c\"").unwrap(), NodeLogin::Cookie("/c".into()));
    let want = NodeLogin::Password { user: "me".into(), password: Secret::new("x") };
    assert_eq!(login("user = \"me\"\npassword = \"x\"").unwrap(), want);
    for bad in ["user = \"me\"", "password = \"x\"", "cookie_file = \"/c\"\nuser = \"me\""] {
        let said = login(bad).unwrap_err().to_string();
        assert!(said.starts_with("node: set either cookie_file, or user"), "{bad:?} gave {said}");
    }
}

#[test]
fn a_node_on_another_network_is_refused_and_both_are_named() {
    let config = Config::default();
    assert_eq!(config.node.kind, NodeKind::BitcoinCore);
    assert!(config.check_network("node", Network::Bitcoin).is_ok());
    let refused = config.check_network("node", Network::Signet).unwrap_err().to_string();
    assert!(refused.contains("signet") && refused.contains("main"), "{refused}");
}

#[test]
fn keys_stand_in_the_data_folder_and_are_made_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.declarator.data_dir = folder.path().join("data");
    let files = config.key_files();
    let made = files.load_or_make(1_800_000_000).unwrap();
    assert_eq!(files.identity, folder.path().join("data/identity.txt"));
    let text = std::fs::read_to_string(folder.path().join("data/authority.txt")).unwrap();
    assert!(text.contains("pass for your declarator") && text.contains("Devices never need it"));
    assert!(text.contains(&made.authority.to_string()), "{text}");
}
