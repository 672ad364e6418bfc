//! What may come to a house's doors, and what it costs the devices that are at work: nothing. Each abuse ends
//! its own connection or is told no, with a reason that the page shows.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

mod home;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use home::{Home, NO_BLOCKS, PATIENCE, chain};
use job_declarator::accept::Room;
use job_declarator::limits::{
    CHANNELS_OF_ONE_MAX, HOUSE_CHANNELS_MAX, SV1_BAD_LINES_MAX, SV1_LINE_MAX,
};
use job_declarator::node::Node;
use job_declarator::run::Settings;
use proto::limits::REFUSED_IN_A_ROW_MAX;
use proto::message::{
    Message, OpenExtendedMiningChannel, Protocol, Received, SetupConnection, SubmitSharesExtended,
    setup_flags,
};
use proto::mining::client::ChannelKind;
use proto::net::Link;
use proto::wire::{B032, Str0255};
use serde_json::json;
use session::{Session, link, link_on, stream_from};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

const EXTENDED: ChannelKind = ChannelKind::Extended { min_extranonce_size: 8 };
const OTHER_HOUSEHOLD: [u8; 4] = [127, 0, 0, 2];

/// A house that mines alone, with room for a few.
fn settings(settings: &mut Settings) {
    settings.room = Room { connections_max: 40, per_household_max: 35 };
    settings.handshake_deadline = Duration::from_secs(2);
    settings.first_channel = Duration::from_secs(4);
}

/// Runs `abuse` in a house where a device of each kind is at work; afterwards they still are, and a newcomer
/// gets in.
async fn beside_honest_devices(abuse: impl AsyncFnOnce(&Home)) {
    beside_honest_devices_in(settings, abuse).await;
}

async fn beside_honest_devices_in(
    settings: impl FnOnce(&mut Settings),
    abuse: impl AsyncFnOnce(&Home),
) {
    let home = Home::start_with(Vec::new(), chain(NO_BLOCKS) as Arc<dyn Node>, settings).await;
    let (new, old) = tokio::join!(home.device("house.bitaxe"), home.v1_device("house.s9"));
    tokio::join!(new.until_acknowledged(2), old.until_accepted(2));
    let work = async {
        loop {
            tokio::join!(new.until_acknowledged(1), old.until_accepted(1));
        }
    };
    tokio::select! {
        done = timeout(2 * PATIENCE, abuse(&home)) => done.expect("it neither answers nor closes"),
        () = work => {}
    }
    tokio::join!(new.until_acknowledged(2), old.until_accepted(2));
    let mut newcomer = Session::open(home.running.sv2, EXTENDED, "new.comer").await.unwrap();
    newcomer.mine_acknowledged(1).await;
    new.stop().await;
    old.stop().await;
    timeout(PATIENCE, home.running.stop()).await.expect("the declarator does not stop");
}

/// Until the page shows that so many were refused for this.
async fn refused(home: &Home, why: &str, count: u64) {
    let shown = home.until(why, |shown| {
        let rows = shown.refused.iter().filter(|row| row.why.contains(why));
        rows.map(|row| row.count).sum::<u64>() >= count
    });
    let shown = shown.await;
    let rows = shown.refused.iter().filter(|row| row.why.contains(why));
    assert_eq!(rows.map(|row| row.count).sum::<u64>(), count, "{:?}", shown.refused);
}

/// Until the page shows that a device is gone for this.
async fn gone(home: &Home, why: &str) {
    home.until(why, |shown| shown.gone.iter().any(|(_, said, _)| said.contains(why))).await;
}

fn setup() -> Message<'static> {
    SetupConnection {
        protocol: Protocol::Mining as u8,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: Str0255::text("localhost"),
        endpoint_port: 1,
        vendor: Str0255::text("abuse"),
        hardware_version: Str0255::default(),
        firmware: Str0255::default(),
        device_id: Str0255::default(),
    }
    .into()
}

fn open() -> Message<'static> {
    OpenExtendedMiningChannel {
        request_id: 1,
        user_identity: Str0255::text("a.proxy"),
        nominal_hash_rate: 1e12,
        max_target: [0xff; 32],
        min_extranonce_size: 8,
    }
    .into()
}

/// Says it over and over until it is hung up on, and reads all the while.
async fn say_until_closed(mut link: Link, message: Message<'_>) {
    for _ in 0..1_000 {
        for _ in 0..64 {
            link.connection().outbound.send(&message);
        }
        // What comes meanwhile is read, so that neither side waits for the other.
        let sent = timeout(Duration::from_millis(2), link.flush()).await;
        let heard = timeout(Duration::from_millis(2), link.fill()).await;
        if matches!(sent, Ok(Err(_))) || matches!(heard, Ok(Ok(0) | Err(_))) {
            return;
        }
        while let Ok(Some(_)) = link.connection().inbound.next_frame() {}
    }
    panic!("it was never hung up on");
}

// ---- those who do not get in ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_instead_of_a_handshake_is_refused_by_name() {
    beside_honest_devices(async |home| {
        let mut stream = TcpStream::connect(home.running.sv2).await.unwrap();
        // Any 64 bytes are an ElligatorSwift key, so an answer comes; then nothing decrypts.
        stream.write_all(&[0xaa; 320]).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        let mut stream = TcpStream::connect(home.running.sv2).await.unwrap();
        let request =
            b"GET / HTTP/1.1\r\nHost: the.house.of.some.length\r\nAccept: text/html\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream.write_all(&[b'x'; 256]).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        refused(home, "decryption failed", 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_handshake_is_given_up_and_a_look_is_harmless() {
    beside_honest_devices(async |home| {
        // Fewer than there are places, should none of them have ended before the last comes.
        for door in [home.running.sv2, home.running.sv1.unwrap()] {
            for _ in 0..30 {
                drop(TcpStream::connect(door).await.unwrap());
            }
        }
        // Places are free again a moment after.
        sleep(Duration::from_millis(500)).await;
        assert!(home.running.shown.borrow().refused.is_empty());
        let mut slow = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(home.running.sv2).await.unwrap();
            stream.write_all(&[7; 63]).await.unwrap();
            slow.push(stream);
            slow.push(TcpStream::connect(home.running.sv1.unwrap()).await.unwrap());
        }
        for mut stream in slow {
            let mut nothing = Vec::new();
            let _ = stream.read_to_end(&mut nothing).await;
            assert!(nothing.is_empty());
        }
        refused(home, "it did not say what it wants within 2 s", 20).await;
        refused(home, "it said nothing for 2 s", 20).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_at_the_others_door_is_told_where_to_go() {
    beside_honest_devices(async |home| {
        for line in [
            json!({"id": 1, "method": "mining.subscribe", "params": ["old/1.0"]}).to_string(),
            r#"{"method":"mining.configure","params":[["version-rolling"],{}]}"#.to_owned(),
            r#"{ "jsonrpc": "2.0", "id": "a" }"#.to_owned(),
        ] {
            let mut stream = TcpStream::connect(home.running.sv2).await.unwrap();
            stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        refused(home, "it speaks Stratum V1 on the port for V2: see devices.sv1_address", 3).await;
        assert!(link(home.running.sv1.unwrap()).await.is_err());
        refused(home, "it speaks Stratum V2 on the port for V1: see devices.sv2_address", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_than_there_is_room_for_is_refused_by_the_setting_to_change() {
    let few = |settings: &mut Settings| {
        self::settings(settings);
        settings.room = Room { connections_max: 6, per_household_max: 4 };
    };
    beside_honest_devices_in(few, async |home| {
        for door in [home.running.sv2, home.running.sv1.unwrap()] {
            // One is the honest device's.
            let mut taken = Vec::new();
            for _ in 0..8 {
                taken.push(TcpStream::connect(door).await.unwrap());
            }
            for _ in 0..5 {
                taken.push(stream_from(OTHER_HOUSEHOLD, door).await);
            }
            for mut stream in taken {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
        refused(home, "see devices.max_connections_per_address", 10).await;
        refused(home, "every place is taken: see devices.max_connections", 6).await;
    })
    .await;
}

// ---- Stratum V1 ----

/// Sends it and reads to the end.
async fn said_to_v1(at: SocketAddr, bytes: &[u8]) -> String {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let bytes = bytes.to_vec();
    let sent = tokio::spawn(async move {
        // It may be hung up on before the last byte.
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut heard = Vec::new();
    let _ = read.read_to_end(&mut heard).await;
    drop(sent.await);
    String::from_utf8(heard).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_are_none_are_told_so_and_then_hung_up_on() {
    beside_honest_devices(async |home| {
        let at = home.running.sv1.unwrap();
        let heard = said_to_v1(at, "{no json\n".repeat(50).as_bytes()).await;
        assert_eq!(heard.lines().count(), SV1_BAD_LINES_MAX as usize, "{heard}");
        gone(home, "lines in a row that are no JSON-RPC").await;
        let subscribe = |len: usize| {
            let line = r#"{"id":1,"method":"mining.subscribe","params":[""#.to_owned();
            let filler = "a".repeat(len - line.len() - 3);
            format!("{line}{filler}\"]}}\n")
        };
        // The longest line there may be is a line like any other ...
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(subscribe(SV1_LINE_MAX).as_bytes()).await.unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await.unwrap();
        // ... and one byte more is none.
        assert_eq!(said_to_v1(at, subscribe(SV1_LINE_MAX + 1).as_bytes()).await, "");
        gone(home, "a line of more than 1024 bytes").await;
        said_to_v1(at, &[b'{'; 100_000]).await;
        let pings = r#"{"id":1,"method":"mining.ping","params":[]}"#.to_owned() + "\n";
        said_to_v1(at, pings.repeat(500).as_bytes()).await;
        gone(home, "more requests than a device has reason for").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_devices_whose_shares_are_worth_nothing_are_hung_up_on() {
    beside_honest_devices(async |home| {
        let hello = "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n\
                     {\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"a.b\",\"x\"]}\n";
        let share = "{\"id\":3,\"method\":\"mining.submit\",\"params\":[\"a.b\",\"ff\",\"0\",\"0\",\"0\"]}\n";
        let many = REFUSED_IN_A_ROW_MAX as usize + 100;
        let all = hello.to_owned() + &share.repeat(many);
        let heard = said_to_v1(home.running.sv1.unwrap(), all.as_bytes()).await;
        let refusals = heard.lines().filter(|line| line.starts_with("{\"id\":3")).count();
        assert_eq!(refusals, REFUSED_IN_A_ROW_MAX as usize);
        gone(home, "10000 malformed shares in a row").await;
    })
    .await;
}

// ---- Stratum V2 ----

async fn set_up(at: SocketAddr, then: &[Message<'_>]) -> Link {
    let mut link = link(at).await.unwrap();
    link.connection().outbound.send(&setup());
    for message in then {
        link.connection().outbound.send(message);
    }
    link.flush().await.unwrap();
    link
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_whose_shares_are_worth_nothing_are_hung_up_on() {
    beside_honest_devices(async |home| {
        let link = set_up(home.running.sv2, &[open()]).await;
        let share = SubmitSharesExtended {
            channel_id: 2,
            sequence_number: 1,
            job_id: 77,
            nonce: 0,
            ntime: 0,
            version: 0,
            extranonce: B032::new(&[0; 8]).unwrap(),
        };
        say_until_closed(link, share.into()).await;
        gone(home, "shares were refused in a row").await;
    })
    .await;
}

/// Of what has come: channels that were opened, and those that were refused.
#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]
fn answers_to_opens(link: &mut Link) -> (usize, usize) {
    let (mut opened, mut refused) = (0, 0);
    while let Some(frame) = link.connection().inbound.next_frame().unwrap() {
        let Received::Known(message, _) = frame.message().unwrap() else { continue };
        match message {
            Message::OpenExtendedMiningChannelSuccess(_) => opened += 1,
            Message::OpenMiningChannelError(error) => {
                assert_eq!(error.error_code.printable(), "channel-capacity-exhausted");
                refused += 1;
            }
            _ => {}
        }
    }
    (opened, refused)
}

/// Asks for so many channels on one connection: which were opened, and how many were refused.
async fn open_many(home: &Home, asked: usize) -> (Link, usize, usize) {
    let mut link = set_up(home.running.sv2, &[]).await;
    let (mut opened, mut refusals, mut sent) = (0, 0, 0);
    while opened + refusals < asked {
        for _ in 0..100.min(asked - sent) {
            link.connection().outbound.send(&open());
            sent += 1;
        }
        link.flush().await.unwrap();
        assert_ne!(link.fill().await.unwrap(), 0, "hung up on");
        let (more, fewer) = answers_to_opens(&mut link);
        (opened, refusals) = (opened + more, refusals + fewer);
    }
    (link, opened, refusals)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_channels_on_one_connection_are_some_hundred_and_a_line_on_the_page() {
    beside_honest_devices(async |home| {
        let (_link, opened, refusals) = open_many(home, 10_000).await;
        assert_eq!(opened, CHANNELS_OF_ONE_MAX);
        refused(home, "a channel is refused: channel-capacity-exhausted", refusals as u64).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_every_channel_leaves_each_other_device_its_own() {
    beside_honest_devices(async |home| {
        let mut greedy = Vec::new();
        let mut opened_in_all = 0;
        loop {
            let (link, opened, _) = open_many(home, CHANNELS_OF_ONE_MAX).await;
            greedy.push(link);
            opened_in_all += opened;
            if opened < CHANNELS_OF_ONE_MAX {
                break;
            }
        }
        assert_eq!(opened_in_all, HOUSE_CHANNELS_MAX + greedy.len());
        let (v2, v1) = tokio::join!(home.device("alice.late"), home.v1_device("alice.later"));
        tokio::join!(v2.until_acknowledged(2), v1.until_accepted(2));
        v2.stop().await;
        v1.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_wants_what_is_not_served_is_told_so() {
    beside_honest_devices(async |home| {
        let mut link = link(home.running.sv2).await.unwrap();
        let Message::SetupConnection(mut wants) = setup() else { unreachable!() };
        wants.flags = setup_flags::REQUIRES_WORK_SELECTION;
        link.connection().outbound.send(&wants.into());
        link.flush().await.unwrap();
        refused(home, "unsupported-feature-flags", 1).await;
        // And one that says something else first.
        let mut link = session::link(home.running.sv2).await.unwrap();
        link.connection().outbound.send(&open());
        link.flush().await.unwrap();
        refused(home, "the first message was not SetupConnection", 1).await;
    })
    .await;
}

// ---- the slow ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_say_nothing_or_a_byte_at_a_time_are_hung_up_on() {
    beside_honest_devices(async |home| {
        let trickle = async |at: SocketAddr, byte: u8| {
            let mut stream = TcpStream::connect(at).await.unwrap();
            while stream.write_all(&[byte]).await.is_ok() {
                // An act 1 takes longer than there is time for the handshake.
                sleep(Duration::from_millis(40)).await;
            }
        };
        // Below the length of a line until its time is over.
        let old = trickle(home.running.sv1.unwrap(), b'{');
        let new = trickle(home.running.sv2, 0xaa);
        let mut idle = set_up(home.running.sv2, &[]).await;
        let idle = async { while idle.fill().await.is_ok_and(|count| count > 0) {} };
        tokio::join!(old, new, idle);
        refused(home, "it did not say what it wants within 2 s", 1).await;
        home.until("two without a channel", |shown| {
            let idle = shown.gone.iter().filter(|(_, why, _)| why == "it opened no channel");
            idle.count() == 2
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_reads_is_hung_up_on() {
    beside_honest_devices(async |home| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let stream = socket.connect(home.running.sv2).await.unwrap();
        let mut link = link_on(stream).await.unwrap();
        link.connection().outbound.send(&setup());
        // Each is answered, and no answer is read.
        loop {
            for _ in 0..500 {
                link.connection().outbound.send(&open());
            }
            if link.flush().await.is_err() {
                break;
            }
        }
        gone(home, "it does not read what it is sent").await;
    })
    .await;
}
