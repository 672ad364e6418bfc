//! The status page of a running house, as a browser and a home's dashboard ask for it: what it says is what is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so")]

mod home;

use std::net::SocketAddr;
use std::time::Duration;

use home::{Home, NO_BLOCKS, PoolRig, chain, own};
use job_declarator::credit::{self, Api, Comparer, Fault, Own, Shown, Verdict, shown_for};
use job_declarator::run::PageSettings;
use ruint::aliases::U256;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Status line and body.
async fn get(at: SocketAddr, host: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(home::PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

async fn json(at: SocketAddr, path: &str) -> Value {
    let (status, body) = get(at, "127.0.0.1", path).await;
    assert!(status.contains(" 200 "), "{status}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_whose_template_is_mined_by_whom_and_what_was_refused() {
    let chain = chain(NO_BLOCKS);
    let pool = PoolRig::start(&chain).await;
    let api = format!("http://{}", pool.pool.http).parse().unwrap();
    let asked = credit::Asked::new(0, "A".to_owned(), api, "alice").unwrap();
    let page = PageSettings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        hosts: vec!["miner.example".to_owned()],
        device_host: None,
        apis: vec![asked],
    };
    let home = Home::start_with(vec![pool.options("A")], chain, |settings| {
        settings.page = Some(page);
    })
    .await;
    let at = home.running.http.unwrap();
    let device = home.device("alice.<b>garage").await;
    home.until_using(own(0)).await;
    home.until_mined_for(0, 3).await;

    let mut status = Value::Null;
    let until_shown = async {
        // A newer template may be on its way to its promise just then.
        while status["devices"][0]["name"].is_null()
            || status["credit"][0].is_null()
            || status["work"]["is_promised"] != true
        {
            sleep(Duration::from_millis(50)).await;
            status = json(at, "/api/v1/status").await;
        }
    };
    timeout(home::PATIENCE, until_shown).await.expect("the page shows no device");
    assert_eq!(status["work"]["template"], "own");
    assert_eq!(
        (&status["work"]["pool"], &status["work"]["is_promised"]),
        (&"A".into(), &true.into())
    );
    assert_eq!(status["devices"][0]["name"], "<b>garage");
    assert!(status["pools"][0]["shares"]["acknowledged"].as_u64().unwrap() >= 3);
    assert_eq!(status["credit"][0]["pool"], "A");
    assert_eq!(json(at, "/widgets/status").await["type"], "four-stats");
    assert_eq!(json(at, "/health/ready").await["ready"], true);
    let (_, html) = get(at, "127.0.0.1", "/").await;
    assert!(html.contains("your own template") && html.contains("&lt;b&gt;garage"), "{html}");
    assert!(!html.contains("<b>garage"));

    let (named, _) = get(at, "miner.example:1", "/").await;
    assert!(named.contains(" 200 "), "{named}");
    let (foreign, _) = get(at, "evil.example", "/").await;
    assert!(foreign.contains(" 421 "), "{foreign}");

    // Somebody types at the port of the devices.
    let mut wrong = TcpStream::connect(home.running.sv2).await.unwrap();
    wrong
        .write_all(b"{\"id\": 1, \"method\": \"mining.subscribe\", \"params\": []}\n")
        .await
        .unwrap();
    home.until("the refusal", |shown| !shown.refused.is_empty()).await;
    let mut seen = Value::Null;
    let until_warned = async {
        while !seen["warnings"].to_string().contains("Stratum V1 on the port for V2") {
            seen = json(at, "/api/v1/status").await;
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(home::PATIENCE, until_warned).await.expect("the page does not say why");
    device.stop().await;
    home.running.stop().await;
    pool.pool.stop().await.unwrap();
}

/// What another pool would answer in place of ours: `change` is made to each row, whose numbers grew since
/// `before`.
fn tampered(page: &str, before: Shown, change: impl Fn(&mut Value, Shown)) -> Shown {
    let mut page: Value = serde_json::from_str(page).unwrap();
    let rows = page["workers"].as_array_mut().unwrap();
    assert_eq!(rows.len(), 1, "one device: {rows:?}");
    change(&mut rows[0], before);
    shown_for("alice", page.to_string().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_pool_shows_and_credits_what_it_acknowledged_and_less_of_either_is_said() {
    let chain = chain(NO_BLOCKS);
    let pool = PoolRig::start(&chain).await;
    let at = pool.pool.http;
    let api: Api = format!("http://{at}").parse().unwrap();
    let home = Home::start(vec![pool.options("A")], chain).await;
    let device = home.device("alice.garage").await;
    home.until_using(own(0)).await;
    home.until_mined_for(0, 3).await;

    let counted = || Own::from(&home.view().pools[0].tally);
    let (before, first) = (counted(), api.shown_for("alice").await.unwrap());
    let begin = counted();
    home.until_mined_for(0, 20).await;
    let (now, last) = (counted(), api.shown_for("alice").await.unwrap());
    let (_, page) = get(at, "127.0.0.1", "/api/v1/workers").await;
    let verdict = |shown: Shown| {
        let mut comparer = Comparer::new("A".to_owned(), 0);
        comparer.heard(60, before, Ok(first), begin);
        comparer.heard(120, now, Ok(shown), now);
        comparer.said().verdict.clone()
    };
    assert!(last.credit.unwrap() > first.credit.unwrap(), "{last:?}");
    assert_eq!(verdict(last), Verdict::Same);

    let shows_nothing_new = tampered(&page, first, |row, before| {
        row["work"] = before.work.to_string().into();
    });
    let Verdict::PoolShowsLess { percent } = verdict(shows_nothing_new) else {
        panic!("{:?}", verdict(shows_nothing_new));
    };
    assert!(percent > 99.9, "{percent}");
    let credits_a_hundredth = tampered(&page, first, |row, before| {
        let work: U256 = row["work"].as_str().unwrap().parse().unwrap();
        let new = (work - before.work) / U256::from(100);
        row["credit"] = (before.credit.unwrap() + new).to_string().into();
    });
    let Verdict::PoolCreditsLess { percent } = verdict(credits_a_hundredth) else {
        panic!("{:?}", verdict(credits_a_hundredth));
    };
    assert!((98.0..100.0).contains(&percent), "{percent}");
    let cut = page.replace("\"workers_total\":1", "\"workers_total\":2");
    assert_eq!(shown_for("alice", cut.as_bytes()), Err(Fault::NotListed));

    device.stop().await;
    home.running.stop().await;
    pool.pool.stop().await.unwrap();
}
