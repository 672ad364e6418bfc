//! A pool's API as `credit.rs` meets it over a socket: ours, one that answers nonsense, nothing, too much or
//! never.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use job_declarator::credit::{self, Api, Asked, Fault, Own, Shown, Unknown, Verdict};
use job_declarator::limits::{CREDIT_ANSWER_LEN_MAX, CREDIT_ASK_EVERY};
use ruint::aliases::U256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{advance, pause, resume};
use tokio_util::sync::CancellationToken;

/// Answers each question with what `answer` says, then closes.
async fn pool(answer: impl Fn() -> Vec<u8> + Send + 'static) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_question(&mut stream).await;
            let _ = stream.write_all(&answer()).await;
        }
    });
    url.parse().unwrap()
}

async fn read_question(stream: &mut TcpStream) {
    let mut question = Vec::new();
    while !question.ends_with(b"\r\n\r\n") {
        question.push(stream.read_u8().await.unwrap());
    }
    let question = String::from_utf8(question).unwrap();
    assert!(question.starts_with("GET /api/v1/workers HTTP/1.0\r\nHost: 127.0.0.1:"), "{question}");
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").into_bytes()
}

fn all_credited(work: u64) -> Shown {
    Shown { work: U256::from(work), credit: Some(U256::from(work)) }
}

fn workers(work: u64) -> String {
    format!(
        r#"{{"workers_total":1,"workers":[{{"account":"home","worker":"a","shares":5,"work":"{work}",
            "credit":"{work}","last_share_at_ms":1,"best_difficulty":1.5}}]}}"#
    )
}

#[tokio::test]
async fn a_pool_says_what_it_shows_for_the_account() {
    let api = pool(|| ok(&workers(77))).await;
    assert_eq!(api.shown_for("home").await, Ok(all_credited(77)));
    assert_eq!(api.shown_for("else").await, Ok(all_credited(0)));
}

#[tokio::test]
async fn nonsense_nothing_and_errors_are_told_apart() {
    let cases: [(&[u8], Fault); 5] = [
        (b"", Fault::Nonsense),
        (b"SSH-2.0-x\r\n\r\n", Fault::Nonsense),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", Fault::Nonsense),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            Fault::Nonsense,
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", Fault::Status(302)),
    ];
    for (answer, fault) in cases {
        let api = pool(move || answer.to_vec()).await;
        assert_eq!(api.shown_for("home").await, Err(fault));
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let api: Api = format!("http://{closed}").parse().unwrap();
    assert_eq!(api.shown_for("home").await, Err(Fault::Unreachable));
}

#[tokio::test]
async fn an_answer_of_the_longest_is_read_and_one_byte_more_is_not() {
    let padded = |len: usize| {
        let mut answer = ok(&workers(5));
        answer.resize(len, b' ');
        answer
    };
    let api = pool(move || padded(CREDIT_ANSWER_LEN_MAX)).await;
    assert_eq!(api.shown_for("home").await, Ok(all_credited(5)));
    let api = pool(move || padded(CREDIT_ANSWER_LEN_MAX + 1)).await;
    assert_eq!(api.shown_for("home").await, Err(Fault::TooLong));
    let api = pool(move || padded(64 * CREDIT_ANSWER_LEN_MAX)).await;
    assert_eq!(api.shown_for("home").await, Err(Fault::TooLong));
}

#[tokio::test]
async fn a_pool_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api: Api = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    pause();
    assert_eq!(api.shown_for("home").await, Err(Fault::TooLate));
}

#[tokio::test]
async fn two_readings_make_a_comparison_and_it_is_published() {
    let shown = Arc::new(AtomicU64::new(1_000_000));
    let counted = Arc::new(AtomicU64::new(50));
    let (showing, counting) = (shown.clone(), counted.clone());
    let api = pool(move || ok(&workers(showing.load(Ordering::Relaxed)))).await;
    let asked = Asked::new(3, "Home".into(), api, "home.a").unwrap();
    let own = move |pool| {
        assert_eq!(pool, 3);
        let shares = counting.load(Ordering::Relaxed);
        Own { shares, work: U256::from(shares * 1_000) }
    };
    let (out, mut read) = watch::channel(Vec::new());
    let stop = CancellationToken::new();
    let task = tokio::spawn(credit::watch(vec![asked], own, out, stop.clone()));
    while read.borrow_and_update().first().is_none_or(|said| said.heard_at == 0) {
        read.changed().await.unwrap();
    }
    assert_eq!(read.borrow()[0].verdict, Verdict::Unknown(Unknown::JustBegun));
    counted.store(150, Ordering::Relaxed);
    shown.store(1_050_000, Ordering::Relaxed);
    pause();
    advance(CREDIT_ASK_EVERY).await;
    // A clock that stands would run ahead to the deadline while the socket is waited for.
    resume();
    read.changed().await.unwrap();
    let said = read.borrow()[0].clone();
    assert_eq!((said.own_shares, said.pool_work), (100, U256::from(50_000)));
    assert_eq!(said.verdict, Verdict::PoolShowsLess { percent: 50.0 });
    stop.cancel();
    task.await.unwrap();
}
