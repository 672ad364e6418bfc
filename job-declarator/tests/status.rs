//! Claims about the page at home: what it says in each state, that nothing a stranger says becomes markup, the
//! JSON's names, and the port over real sockets.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/status.rs"]
mod sample;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::hashes::{Hash, sha256};
use job_declarator::clock::unix_s;
use job_declarator::credit::{Fault, Unknown, Verdict};
use job_declarator::declarator::{BadOutputs, PoolState};
use job_declarator::limits::{
    DEVICE_ROWS_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX, STATUS_AGE_MAX_S,
};
use job_declarator::status::{
    self, Asked, BlockState, CONTENT_SECURITY_POLICY, Status, devices, json, page, widget,
};
use job_declarator::upstream::{Kind, Source};
use sample::{HARM, NOW, OWN, THEIRS, device, sample, script};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn asked(host: &str) -> Asked {
    Asked { host: Some(host.to_owned()), age_s: 1 }
}

/// The page's text with its markup taken out and spaces made one.
fn text_of(status: &Status) -> String {
    let html = page(status, &asked("192.168.1.7"));
    let main = html.split_once("<main>").unwrap().1.split_once("</main>").unwrap().0;
    let mut text = String::new();
    let mut is_markup = false;
    for c in main.chars() {
        match c {
            '<' => is_markup = true,
            '>' => {
                is_markup = false;
                text.push(' ');
            }
            c if !is_markup => text.push(c),
            _ => {}
        }
    }
    let text = text.replace("&#39;", "'");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn says(status: &Status, sentences: &[&str]) {
    let text = text_of(status);
    for sentence in sentences {
        assert!(text.contains(sentence), "not said: {sentence}\nof: {text}");
    }
}

fn working_for(source: Source, is_promised: bool) -> Status {
    let mut status = sample();
    status.view.using = source;
    let work = status.view.work.as_mut().unwrap();
    (work.source, work.is_promised) = (source, is_promised);
    status
}

#[test]
fn the_page_says_whose_template_is_mined_and_whether_it_is_promised() {
    let own = "Your devices mine your own template, for \u{201c}Home pool\u{201d}.";
    says(&working_for(OWN, true), &[own, "The pool has promised to count work on it."]);
    says(&working_for(OWN, false), &[own, "has not promised it yet. Shares wait here"]);
    let theirs = "Your devices mine a template of \u{201c}Home pool\u{201d}, not your own.";
    says(&working_for(THEIRS, true), &[theirs, "This pool chooses the transactions"]);
    let solo = "Your devices mine your own template, for you alone.";
    says(&working_for(Source::Solo, true), &[solo, "No pool can be used at the moment."]);
    let mut alone = working_for(Source::Solo, true);
    alone.view.work.as_mut().unwrap().outputs = vec![(320_000_000, script(2)), (0, vec![0x6a])];
    says(&alone, &["It pays 3.20000000 BTC, all of it to you:", "you 100.0 % 3.20000000 BTC"]);
    alone.view.pools.clear();
    says(&alone, &[solo, "No pool is configured.", "None is configured: your devices mine solo."]);
}

#[test]
fn a_node_that_is_away_is_said_with_what_is_mined_meanwhile() {
    let away = |mut status: Status| {
        status.view.node_away = Some("connection refused".to_owned());
        status
    };
    let said = "Your node cannot be built upon: connection refused.";
    says(&away(working_for(THEIRS, true)), &[said, "go on with the pool's own template meanwhile"]);
    says(&away(working_for(Source::Solo, true)), &[said, "go on with its last template"]);
    let mut nothing = away(sample());
    nothing.view.work = None;
    says(
        &nothing,
        &[
            said,
            "There is no work for your devices yet.",
            "first answer of your node, or of a pool",
        ],
    );
    nothing.view.pools.clear();
    says(&nothing, &["Work comes with the first answer of your node.", "Nothing is being mined."]);
    nothing.view.node_away = None;
    says(&nothing, &["Your node answers; the first template is on its way."]);
}

#[test]
fn a_pruned_node_is_named_without_a_complaint() {
    let mut status = sample();
    let header = |status: &Status| {
        let html = page(status, &asked("192.168.1.7"));
        html.split_once("<header>").unwrap().1.split_once("</header>").unwrap().0.to_owned()
    };
    assert!(!header(&status).contains("pruned"));
    status.node.pruned = true;
    assert!(header(&status).contains("at block 900,000, pruned, which will do · runs"));
    assert!(!header(&status).contains("class="), "calm: {}", header(&status));
    let said: Value = serde_json::from_str(&json(&status)).unwrap();
    assert_eq!(said["node"]["pruned"], true);
}

#[test]
fn the_page_answers_all_that_a_person_at_home_asks() {
    says(
        &sample(),
        &[
            // How much.
            "1.25 TH/s between 0.94 and 1.56 TH/s, from shares of the last minutes",
            // To whom.
            "It pays 3.20000000 BTC: 0.80000000 BTC to you, 2.40000000 BTC to the pool \u{201c}Home \
             pool\u{201d}. Whether and how the pool passes its part on is between you and it.",
            "bc1qqyqszqgpqyqszqgpqyqszqgpqyqszqgpyfl4f3 not known to you 75.0 % 2.40000000 BTC",
            "you 25.0 % 0.80000000 BTC",
            "Block 900,001, 3,021 transactions, on top of 1f1e1d",
            // Each device.
            "living-room bitaxe BM1370 v2.15.0 · SV2 extended · 192.168.1.40 1.25 TH/s",
            "7 s ago connected 2 h 5 min ago 2,048 1,234 best 2.50 M",
            "3 too late, the next block was already being mined",
            "1 below the difficulty that was asked for",
            // Pools.
            "Home pool in use, with your templates 1,190 of 1,200 2 waiting",
            "6 the pool was lost before it answered",
            "Spare next try in 12 s failed 19 s ago: connection refused",
            // Switches, the newest first.
            "1 h 6 min ago your template, for you alone from your template, for \u{201c}Home pool\u{201d} \
             the connection was closed up to 1.2 s, 3.12 TH of work",
            "Block 899,990, found 1 h 23 min ago by living-room: accepted by your node It pays 3.20000000 \
             BTC: 0.80000000 BTC to you, 2.40000000 BTC to the pool, at addresses that you know.",
            "2,468 good shares, 2.47 PH of work, of which 17 were solo.",
            "1.18 PH 1.18 PH 1.18 PH they agree",
            "Host 192.168.1.7 Port 34255 User any name",
            "Stratum V1 stratum+tcp://192.168.1.7:3333",
            "The clock of this computer is 40 s ahead of the pool's.",
        ],
    );
}

#[test]
fn places_with_nothing_in_them_say_so() {
    let mut status = sample();
    status.devices.clear();
    status.view.switches.clear();
    status.credit.clear();
    status.last_block = None;
    says(
        &status,
        &[
            "No device is connected. Take the settings at the end of this page over",
            "Nothing since the program started.",
            "None since the program started, and none of before is in its data folder.",
            "No pool's page is asked what it shows for you",
        ],
    );
    let mut quiet = device(1, "");
    quiet.last_share_at = Some(NOW - 600);
    status.devices = vec![quiet];
    says(&status, &["(no name)", "none for 10 min"]);
    status.devices[0].last_share_at = Some(NOW - 599);
    says(&status, &["9 min ago connected"]);
}

#[test]
fn the_page_says_to_whom_the_money_goes_in_each_case() {
    let paying = |outputs: &[(u64, u8)]| {
        let mut status = working_for(OWN, true);
        let work = status.view.work.as_mut().unwrap();
        work.outputs = outputs.iter().map(|(sats, to)| (*sats, script(*to))).collect();
        work.value_sats = outputs.iter().map(|(sats, _)| sats).sum();
        status
    };
    let (ours, known, other) = (2, 3, 1);
    says(
        &paying(&[(5_000_000_000, known)]),
        &[
            "It pays 50.00000000 BTC: nothing to you, all of it to the pool \u{201c}Home pool\u{201d}. Whether",
            "the pool's, known to you 100.0 %",
        ],
    );
    says(&paying(&[(7, other)]), &["not known to you 100.0 %"]);
    let all = paying(&[(5_000_000_000, ours)]);
    says(&all, &["It pays 50.00000000 BTC: all of it to you.", "you 100.0 %"]);
    assert!(!text_of(&all).contains("Whether and how"));
    let mut block = sample();
    block.last_block.as_mut().unwrap().outputs = vec![(7, script(other))];
    says(
        &block,
        &["It pays 0.00000007 BTC: nothing to you, all of it to the pool or whom it names."],
    );
    let row = block.last_block.as_mut().unwrap();
    (row.outputs, row.finder) = (Vec::new(), String::new());
    says(&block, &["found 1 h 23 min ago: accepted by your node 00000000ab"]);
}

#[test]
fn why_it_is_not_the_own_template_or_no_pool_is_said_as_it_is() {
    let mut theirs = working_for(THEIRS, true);
    theirs.view.pools[0].declares = false;
    says(&theirs, &["No declare_address is set for this pool, so it chooses the transactions."]);
    let mut limited = working_for(Source::Solo, true);
    let limit = BadOutputs::BeyondLimit { hundredths: 9_750, to: "bc1q".to_owned(), limit: 0 };
    for pool in &mut limited.view.pools {
        pool.last_failure = Some((NOW, limit.to_string()));
        pool.is_beyond_limit = true;
    }
    let said = "No pool is out of order: what they ask to be paid is beyond the limit that you set";
    says(&limited, &[said, "it wants 97.5 % of the reward beyond what you allow"]);
    limited.view.pools[1].last_failure = Some((NOW, "connection refused".to_owned()));
    limited.view.pools[1].is_beyond_limit = false;
    says(&limited, &["No pool can be used at the moment."]);
}

#[test]
fn a_hash_rate_is_told_from_the_first_share_on() {
    let mut status = sample();
    status.devices.iter_mut().for_each(|device| device.last_share_at = None);
    says(&status, &["No share yet: too early to say.", "too early to say none for "]);
    assert!(!text_of(&status).contains("TH/s between"));
}

#[test]
fn a_failure_of_before_is_told_as_one_and_a_short_pause_in_its_size() {
    let mut status = sample();
    status.view.pools[0].last_failure = Some((NOW - 60, "the connection was closed".to_owned()));
    status.view.switches[1].idle_ms = 3;
    let said =
        "in use, with your templates before that it failed 1 min ago: the connection was closed";
    says(&status, &[said, "up to 3 ms, "]);
}

#[test]
fn each_state_of_a_pool_a_block_and_a_comparison_has_its_words() {
    let mut status = sample();
    let states = [
        (PoolState::InUse(Kind::Theirs), "in use, with its templates"),
        (PoolState::Ready, "ready, not in use"),
        (PoolState::Trying, "being connected"),
        (PoolState::Unused, "not needed: a better one is in use"),
    ];
    for (state, words) in states {
        status.view.pools[1].state = state;
        says(&status, &[words]);
    }
    let blocks = [
        (BlockState::Sending, "being sent to your node and the pool"),
        (BlockState::Refused("bad-txns".into()), "refused by your node: bad-txns"),
        (BlockState::LeftToPool, "sent to the pool, which alone has its transactions"),
        (BlockState::Answered, "your node answered before this program was started"),
    ];
    for (state, words) in blocks {
        status.last_block.as_mut().unwrap().state = state;
        says(&status, &[words]);
    }
    let verdicts = [
        (Verdict::PoolShowsLess { percent: 4.26 }, "shows 4.3 % less than it acknowledged"),
        (Verdict::PoolCreditsLess { percent: 99.0 }, "credits 99.0 % less than the work it shows"),
        (Verdict::Unknown(Unknown::NoAnswer(Fault::NotListed)), "lists only some of its workers"),
        (Verdict::Unknown(Unknown::TooFewShares), "too few shares to tell"),
        (Verdict::Unknown(Unknown::NoAnswer(Fault::TooLate)), "page does not answer in time"),
    ];
    for (verdict, words) in verdicts {
        status.credit[0].verdict = verdict;
        says(&status, &[words]);
    }
}

#[test]
fn no_text_of_a_stranger_becomes_markup() {
    let mut status = sample();
    let harm = || HARM.to_owned();
    let device = &mut status.devices[0];
    (device.name, device.vendor, device.hardware) = (harm(), harm(), harm());
    device.firmware = harm();
    status.node.name = harm();
    status.view.node_away = Some(harm());
    status.view.pools[0].name = harm();
    status.view.pools[0].last_failure = Some((NOW, harm()));
    status.view.pools[0].tally.refused.insert(harm(), 1);
    status.view.switches[0].reason = harm();
    status.credit[0].pool = harm();
    status.warnings = vec![harm()];
    status.listen.authority_key = harm();
    let block = status.last_block.as_mut().unwrap();
    (block.finder, block.state) = (harm(), BlockState::Refused(harm()));
    let html = page(&status, &asked(HARM));
    assert!(
        html.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;").count() >= 15
    );
    assert!(!html.contains("alert('x')"));
    assert_eq!(html.matches("<script").count(), 1, "the page's own");
}

#[test]
fn the_browser_runs_what_stands_in_the_page_and_nothing_else() {
    let html = page(&sample(), &asked("localhost"));
    for (open, close, directive) in
        [("<style>", "</style>", "style-src"), ("<script>", "</script>", "script-src")]
    {
        let inside = html.split_once(open).unwrap().1.split_once(close).unwrap().0;
        let hash = base64(sha256::Hash::hash(inside.as_bytes()).as_byte_array());
        let wanted = format!("{directive} 'sha256-{hash}'");
        assert!(CONTENT_SECURITY_POLICY.contains(&wanted), "page.rs should say: {wanted}");
    }
    // A page on its own: nothing fetched from elsewhere, no handlers or styles in attributes.
    for word in ["http://", "https://", " src=", " style=", " onclick", "javascript:"] {
        assert!(!html.contains(word), "{word}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for digit in 0..4 {
            let is_there = digit <= three.len();
            let digit = DIGITS[(bits >> (18 - 6 * digit) & 63) as usize];
            text.push(if is_there { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn a_house_beyond_the_rows_is_summed_whole_and_listed_in_part() {
    let mut status = sample();
    status.devices = (0..=DEVICE_ROWS_MAX as u64).map(|id| device(id, "one")).collect();
    says(&status, &["321 TH/s", "The first 256 of 257 are listed."]);
    let json: Value = serde_json::from_str(&devices(&status)).unwrap();
    assert_eq!(json["devices_total"], DEVICE_ROWS_MAX + 1);
    assert_eq!(json["devices"].as_array().unwrap().len(), DEVICE_ROWS_MAX);
    status.devices.truncate(DEVICE_ROWS_MAX);
    assert!(!text_of(&status).contains("are listed"));
}

#[test]
fn devices_are_told_an_address_that_they_can_reach() {
    let status = sample();
    let told = |status: &Status, host| {
        let html = page(status, &Asked { host, age_s: 0 });
        html.split_once("<dt>Host<dd><code class=take>")
            .unwrap()
            .1
            .split_once('<')
            .unwrap()
            .0
            .to_owned()
    };
    let nobody = "the address of this computer in your network";
    for host in [None, Some("localhost".to_owned()), Some("127.0.0.1".into()), Some("[::1]".into())]
    {
        assert_eq!(told(&status, host), nobody);
    }
    assert_eq!(told(&status, Some("umbrel.local".into())), "umbrel.local");
    assert_eq!(told(&status, Some("[fd00::7]".into())), "fd00::7");
    assert!(page(&status, &asked("[fd00::7]")).contains("stratum+tcp://[fd00::7]:3333"));
    let mut bound = status.clone();
    bound.listen.sv2 = "192.168.1.9:34255".parse().unwrap();
    assert_eq!(told(&bound, Some("umbrel.local".into())), "192.168.1.9");
    bound.listen.host = Some("farm.lan".into());
    assert_eq!(told(&bound, Some("umbrel.local".into())), "farm.lan");
    bound.listen.sv2 = "127.0.0.1:34255".parse().unwrap();
    says(&bound, &["Only programs on this computer can connect"]);
}

#[test]
fn a_status_that_is_old_is_not_shown_as_new() {
    let html = |age_s| page(&sample(), &Asked { host: None, age_s });
    assert!(!html(STATUS_AGE_MAX_S).contains("come to a stand"));
    assert!(html(STATUS_AGE_MAX_S + 1).contains("come to a stand: what follows is 1 min old"));
}

#[test]
fn a_pool_that_credits_less_says_so_in_json_and_one_that_does_not_tell_is_null() {
    let mut status = sample();
    status.credit[0].verdict = Verdict::PoolCreditsLess { percent: 99.0 };
    let credit = |status: &Status| {
        let said: Value = serde_json::from_str(&json(status)).unwrap();
        said["credit"][0].clone()
    };
    assert_eq!(credit(&status)["verdict"], "pool-credits-less");
    assert_eq!(credit(&status)["less_percent"], 99.0);
    status.credit[0].pool_credit = None;
    status.credit[0].verdict = Verdict::Same;
    assert_eq!(
        (&credit(&status)["pool_credit"], &credit(&status)["verdict"]),
        (&Value::Null, &"same".into())
    );
    says(&status, &["1.18 PH 1.18 PH they agree"]);
}

/// Names are a promise: a change here is a change for those who read them.
#[test]
fn the_json_keeps_its_names_and_units() {
    let golden: Value = serde_json::from_str(include_str!("status/golden.json")).unwrap();
    let said: Value = serde_json::from_str(&json(&sample())).unwrap();
    assert_eq!(said, golden, "{}", serde_json::to_string_pretty(&said).unwrap());
}

#[test]
fn the_widget_has_four_stats_of_texts() {
    let said: Value = serde_json::from_str(&widget(&sample())).unwrap();
    let item = |title, text, subtext| serde_json::json!({"title": title, "text": text, "subtext": subtext});
    let wanted = serde_json::json!({"type": "four-stats", "refresh": "5s", "items": [
        item("Hash rate", "1.25", "TH/s"), item("Mining for", "Home pool", "own template"),
        item("Devices", "2", "connected"), item("Best share", "2.50 M", "difficulty")]});
    assert_eq!(said, wanted);
    let stat = |status: &Status| {
        let said: Value = serde_json::from_str(&widget(status)).unwrap();
        (said["items"][1]["text"].clone(), said["items"][1]["subtext"].clone())
    };
    assert_eq!(stat(&working_for(OWN, false)), ("Home pool".into(), "not promised yet".into()));
    assert_eq!(stat(&working_for(THEIRS, true)), ("Home pool".into(), "pool's template".into()));
    assert_eq!(stat(&working_for(Source::Solo, true)), ("solo".into(), "own template".into()));
    let mut none = sample();
    none.view.work = None;
    assert_eq!(stat(&none), ("none".into(), "no work yet".into()));
}

#[test]
fn numbers_that_are_none_and_pools_that_are_not_there_are_shown_all_the_same() {
    let mut status = working_for(Source::Pool { pool: 99, kind: Kind::Own }, true);
    status.devices[0].hash_rate.five_minutes.estimate = f64::NAN;
    status.devices[0].best_difficulty = f64::INFINITY;
    status.devices[0].difficulty_log2 = i16::MAX;
    status.view.switches[1].idle_hashes = f64::NEG_INFINITY;
    let work = status.view.work.as_mut().unwrap();
    (work.value_sats, work.since_ms) = (0, u64::MAX);
    work.outputs = vec![(u64::MAX, vec![0xff; 10_000])];
    says(&status, &["for a pool.", "184467440737.09551615 BTC"]);
    assert!(page(&status, &asked("x")).len() < 40_000, "a script is cut");
    assert!(serde_json::from_str::<Value>(&json(&status)).is_ok());
    assert!(serde_json::from_str::<Value>(&widget(&status)).is_ok());
}

/// For a look with a browser: the folder is printed.
#[test]
fn sample_pages_are_left_for_a_look() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut empty = working_for(Source::Solo, true);
    empty.view.work.as_mut().unwrap().outputs = vec![(320_000_000, script(2))];
    empty.devices.clear();
    empty.view.switches.clear();
    empty.view.node_away = Some("connection refused".to_owned());
    (empty.last_block, empty.credit) = (None, Vec::new());
    for (name, status) in [("status.html", sample()), ("status_empty.html", empty)] {
        std::fs::write(folder.join(name), page(&status, &asked("192.168.1.7"))).unwrap();
    }
    println!("{}", folder.display());
}

// ---- over sockets ----

struct Server {
    address: SocketAddr,
    status: Option<watch::Sender<Arc<Status>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let mut status = sample();
        status.now = unix_s();
        let status = watch::Sender::new(Arc::new(status));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let hosts = vec!["farm.example".to_owned()];
        let task = tokio::spawn(status::serve(listener, status.subscribe(), hosts, stop.clone()));
        Self { address, status: Some(status), stop, task }
    }

    async fn get(&self, path: &str, host: &str) -> (u16, String, String) {
        let (address, path, host) = (self.address, path.to_owned(), host.to_owned());
        tokio::task::spawn_blocking(move || get(address, &path, &host)).await.unwrap()
    }
}

fn get(address: SocketAddr, path: &str, host: &str) -> (u16, String, String) {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_served_with_its_kind_and_policy() {
    let server = Server::start().await;
    let pages = [
        ("/", "text/html; charset=utf-8"),
        ("/api/v1/status", "application/json"),
        ("/api/v1/devices", "application/json"),
        ("/widgets/status", "application/json"),
        ("/health/ready", "application/json"),
        ("/health/live", "text/plain; charset=utf-8"),
    ];
    for (path, kind) in pages {
        let (status, head, body) = server.get(path, "localhost").await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        for header in ["content-security-policy: default-src 'none'", "no-store", "nosniff"] {
            assert!(head.contains(header), "{path}: {head}");
        }
    }
    let (status, head, _) = server.get("/user/bc1qxyz.worker/more", "localhost").await;
    assert_eq!((status, head.contains("location: /\r\n")), (307, true), "{head}");
    assert_eq!(server.get("/etc/passwd", "localhost").await.0, 404);
    server.stop.cancel();
    server.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_ours_is_told_nothing() {
    let server = Server::start().await;
    for host in ["evil.example", "umbrel.evil.example", "127.0.0.1.nip.io", ""] {
        for path in ["/", "/api/v1/status", "/health/ready", "/nothing"] {
            let (status, _, body) = server.get(path, host).await;
            assert_eq!(status, 421, "{host}{path}: {body}");
            assert!(!body.contains("living-room") && body.len() < 200, "{body}");
        }
    }
    for host in ["192.168.1.7:3338", "umbrel.local", "umbrel", "farm.example:443"] {
        assert_eq!(server.get("/", host).await.0, 200, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_devices_have_work_from_a_program_that_lives() {
    let mut server = Server::start().await;
    assert_eq!(server.get("/health/ready", "localhost").await.0, 200);
    let publish = |server: &Server, age_s: u32, has_work: bool| {
        let mut status = sample();
        status.now = unix_s() - age_s;
        if !has_work {
            status.view.work = None;
        }
        server.status.as_ref().unwrap().send_replace(Arc::new(status));
    };
    publish(&server, 0, false);
    let (status, _, body) = server.get("/health/ready", "localhost").await;
    assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"work":"none yet"}"#));
    publish(&server, STATUS_AGE_MAX_S + 1, true);
    assert_eq!(server.get("/health/ready", "localhost").await.0, 503);
    publish(&server, 0, true);
    assert_eq!(server.get("/health/ready", "localhost").await.0, 200);
    server.status = None;
    assert_eq!(server.get("/health/ready", "localhost").await.0, 503);
    assert_eq!(server.get("/health/live", "localhost").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_and_long_heads_keep_nobody_out() {
    let server = Server::start().await;
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let idle: Vec<_> = (0..=HTTP_CONNECTIONS_MAX).map(|_| connect(address)).collect();
        let (status, ..) = get(address, "/health/live", "localhost");
        assert_eq!(status, 200, "one more than the bound is let in");
        let mut first = &idle[0];
        let begun = Instant::now();
        // Closed at once for the next ones, not at the end of its time.
        let _ = first.read(&mut [0]);
        assert!(begun.elapsed() < Duration::from_secs(5));
        let mut stream = connect(address);
        let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(HTTP_HEAD_MAX));
        let _ = stream.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_request_is_closed_in_time() {
    let server = Server::start().await;
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let mut slow = connect(address);
        write!(slow, "GET / HTTP/1.1\r\nHost: local").unwrap();
        let begun = Instant::now();
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    })
    .await
    .unwrap();
}
