//! What a stranger may do to a running pool, and what it costs everybody else: nothing. Each abuse ends
//! its own connection or is told no, and an honest miner beside it is acknowledged all the while.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

mod session;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pool::config::{Config, NodeKind};
use pool::limits::{WORTHLESS_BURST, WORTHLESS_EVERY_US};
use pool::run::{self, Running};
use proto::message::{
    CloseChannel, FrameHeader, Message, NewMiningJob, OpenExtendedMiningChannel,
    OpenStandardMiningChannel, Protocol, Received, SetCustomMiningJob, SetupConnection,
    SubmitSharesExtended, UpdateChannel,
};
use proto::mining::client::ChannelKind;
use proto::net::Link;
use proto::wire::{B032, B064K, B0255, Seq0255U256, Str0255};
use session::{PATIENCE, Session, link, link_on, stream_from};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const EXTENDED: ChannelKind = ChannelKind::Extended { min_extranonce_size: 4 };

/// Runs `abuse` against a pool where an honest miner is at work; afterwards he still is, and a newcomer
/// gets in.
fn beside_an_honest_miner<F: Future<Output = ()>>(abuse: impl FnOnce(SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let pool = start(folder.path()).await;
        let mut honest = Session::open(pool.listen, EXTENDED, "honest.miner").await.unwrap();
        honest.mine_acknowledged(3).await;
        timeout(PATIENCE, abuse(pool.listen)).await.expect("the pool neither answers nor closes");
        honest.mine_acknowledged(3).await;
        assert!(honest.book.refused.is_empty(), "honest shares refused: {:?}", honest.book.refused);
        let mut newcomer = Session::open(pool.listen, EXTENDED, "new.comer").await.unwrap();
        newcomer.mine_acknowledged(1).await;
        drop((honest, newcomer));
        timeout(PATIENCE, pool.stop()).await.expect("the pool does not stop").unwrap();
    });
}

async fn start(folder: &std::path::Path) -> Running {
    run::start(&config(folder), &CancellationToken::new()).await.unwrap()
}

fn config(folder: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.pool.data_dir = folder.to_owned();
    config.pool.drain_s = 1;
    config.node.kind = NodeKind::Embedded;
    config.listen.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.declare.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.listen.max_connections_per_address = 40;
    config.listen.handshake_deadline_s = 2;
    config.http.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.difficulty.floor_log2 = -24;
    config.embedded.block_hashes = 1_000_000_000;
    config
}

/// Until the pool closes; what it said until then, by name.
async fn heard_until_closed(mut link: Link) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        loop {
            let frame = link.connection().inbound.next_frame().unwrap();
            let Some(frame) = frame else { break };
            match frame.message().unwrap() {
                Received::Known(message, _) => heard.push(described(&message)),
                Received::UnknownCore(_) | Received::UnknownExtension(_) => {}
            }
        }
        match link.fill().await {
            Ok(0) | Err(_) => return heard,
            Ok(_) => {}
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]
fn described(message: &Message<'_>) -> String {
    match message {
        Message::SetupConnectionError(error) => error.error_code.printable(),
        Message::OpenMiningChannelError(error) => error.error_code.printable(),
        Message::UpdateChannelError(error) => error.error_code.printable(),
        Message::SubmitSharesError(error) => error.error_code.printable(),
        Message::SetCustomMiningJobError(error) => error.error_code.printable(),
        other => other.name().to_owned(),
    }
}

fn setup(flags: u32) -> SetupConnection<'static> {
    SetupConnection {
        protocol: Protocol::Mining as u8,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: Str0255::text("localhost"),
        endpoint_port: 1,
        vendor: Str0255::text("abuse"),
        hardware_version: Str0255::default(),
        firmware: Str0255::default(),
        device_id: Str0255::default(),
    }
}

fn open_extended(user: &'static [u8], rate: f32) -> OpenExtendedMiningChannel<'static> {
    OpenExtendedMiningChannel {
        request_id: 1,
        user_identity: Str0255::new(user).unwrap(),
        nominal_hash_rate: rate,
        max_target: [0xff; 32],
        min_extranonce_size: 4,
    }
}

/// Says the messages and then everything is up to the pool.
async fn say<'a>(at: SocketAddr, messages: &[Message<'a>]) -> Link {
    let mut link = link(at).await.unwrap();
    for message in messages {
        link.connection().outbound.send(message);
    }
    link.flush().await.unwrap();
    link
}

async fn said(at: SocketAddr, messages: &[Message<'_>]) -> Vec<String> {
    heard_until_closed(say(at, messages).await).await
}

#[test]
fn garbage_instead_of_a_handshake_ends_in_a_close() {
    beside_an_honest_miner(|at| async move {
        for garbage in
            [&[0u8; 200][..], b"GET / HTTP/1.1\r\nHost: pool.example.of.some.length\r\n\r\n....."]
        {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            // Any 64 bytes are an ElligatorSwift key, so an answer comes; then nothing decrypts.
            stream.write_all(&[0xaa; 256]).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.len() <= 234);
        }
    });
}

#[test]
fn half_a_handshake_is_given_up_and_holds_nobody() {
    beside_an_honest_miner(|at| async move {
        let mut slow = Vec::new();
        for _ in 0..30 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(&[7; 63]).await.unwrap();
            slow.push(stream);
        }
        for mut stream in slow {
            let mut nothing = Vec::new();
            let _ = stream.read_to_end(&mut nothing).await;
            assert!(nothing.is_empty());
        }
    });
}

#[test]
fn a_bare_connect_and_close_is_harmless() {
    beside_an_honest_miner(|at| async move {
        for _ in 0..100 {
            drop(TcpStream::connect(at).await.unwrap());
        }
    });
}

#[test]
fn garbage_after_the_handshake_closes() {
    beside_an_honest_miner(|at| async move {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let (initiator, act_one) = proto::noise::Initiator::new(session::ephemeral());
        stream.write_all(&act_one).await.unwrap();
        let mut act_two = [0; 234];
        stream.read_exact(&mut act_two).await.unwrap();
        initiator.finish(&act_two, None, session::unix_s()).unwrap();
        stream.write_all(&[0x55; 4_096]).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "nothing is said to who cannot be understood");
    });
}

#[test]
fn a_claim_of_sixteen_megabytes_closes_before_its_payload_comes() {
    beside_an_honest_miner(|at| async move {
        for before_setup in [true, false] {
            let mut link = link(at).await.unwrap();
            if !before_setup {
                link.connection().outbound.send(&setup(0).into());
            }
            // As large as a frame can be: the pool must close on the header, long before it ends.
            let header = FrameHeader { extension_type: 0, msg_type: 0x13, length: 0x00ff_ffff };
            let mut frame = header.encode().to_vec();
            frame.resize(6 + 0x00ff_ffff, 0);
            link.connection().outbound.send_frames(&frame);
            assert!(link.flush().await.is_err(), "16 MiB were swallowed");
        }
    });
}

#[test]
fn truncated_and_overlong_messages_close() {
    beside_an_honest_miner(|at| async move {
        let mut open = Vec::new();
        Message::from(open_extended(b"a.b", 1e12)).encode(&mut open);
        for length in [0, 1, 10, open.len() - 7] {
            let mut link = say(at, &[setup(0).into()]).await;
            let header = FrameHeader { extension_type: 0, msg_type: 0x13, length };
            let frame = [&header.encode()[..], &open[6..6 + length]].concat();
            link.connection().outbound.send_frames(&frame);
            link.flush().await.unwrap();
            assert_eq!(heard_until_closed(link).await, ["SetupConnectionSuccess"]);
        }
    });
}

#[test]
fn a_message_out_of_its_place_closes() {
    let job = NewMiningJob {
        channel_id: 2,
        job_id: 1,
        min_ntime: None,
        version: 0x2000_0000,
        merkle_root: [0; 32],
    };
    beside_an_honest_miner(|at| async move {
        let open = open_extended(b"a.b", 1e12).into();
        assert!(said(at, &[open]).await.is_empty(), "opened before SetupConnection");
        let twice = said(at, &[setup(0).into(), setup(0).into()]).await;
        assert_eq!(twice, ["SetupConnectionSuccess"]);
        assert_eq!(said(at, &[setup(0).into(), job.into()]).await, ["SetupConnectionSuccess"]);
    });
}

#[test]
fn unknown_numbers_close_and_unknown_extensions_are_overlooked() {
    beside_an_honest_miner(|at| async move {
        for number in [0x05, 0x1e, 0x7f, 0xff] {
            let mut link = say(at, &[setup(0).into()]).await;
            let frame = FrameHeader { extension_type: 0, msg_type: number, length: 0 }.encode();
            link.connection().outbound.send_frames(&frame);
            link.flush().await.unwrap();
            assert_eq!(heard_until_closed(link).await, ["SetupConnectionSuccess"]);
        }
        let mut session = Session::open(at, EXTENDED, "ext.friend").await.unwrap();
        let header = FrameHeader { extension_type: 0x3abc, msg_type: 1, length: 3 };
        session.send(&[&header.encode()[..], b"abc"].concat()).await.unwrap();
        session.mine_acknowledged(1).await;
    });
}

#[test]
fn rates_that_are_no_numbers_close() {
    beside_an_honest_miner(|at| async move {
        for rate in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0] {
            let heard = said(at, &[setup(0).into(), open_extended(b"a.b", rate).into()]).await;
            assert_eq!(heard, ["SetupConnectionSuccess"], "{rate}");
        }
        let mut session = Session::open(at, EXTENDED, "rate.changes").await.unwrap();
        let update = UpdateChannel {
            channel_id: 2,
            nominal_hash_rate: f32::NAN,
            maximum_target: [0xff; 32],
        };
        let mut frames = Vec::new();
        Message::from(update).encode(&mut frames);
        session.send(&frames).await.unwrap();
        while session.hear().await.is_ok() {}
    });
}

#[test]
fn what_may_be_told_no_is_told_no_and_the_link_stays() {
    beside_an_honest_miner(|at| async move {
        let open_standard = OpenStandardMiningChannel {
            request_id: 7,
            user_identity: Str0255::text("x"),
            nominal_hash_rate: 1e12,
            max_target: [0; 32],
        };
        let share = SubmitSharesExtended {
            channel_id: 77,
            sequence_number: 1,
            job_id: 1,
            nonce: 0,
            ntime: 0,
            version: 0,
            extranonce: B032::default(),
        };
        let custom = SetCustomMiningJob {
            channel_id: 77,
            request_id: 1,
            mining_job_token: B0255::default(),
            version: 0,
            prev_hash: [0; 32],
            min_ntime: 0,
            nbits: 0,
            coinbase_tx_version: 2,
            coinbase_prefix: B0255::default(),
            coinbase_tx_input_sequence: 0,
            coinbase_tx_outputs: B064K::default(),
            coinbase_tx_locktime: 0,
            merkle_path: Seq0255U256::default(),
        };
        let update =
            UpdateChannel { channel_id: 77, nominal_hash_rate: 1.0, maximum_target: [0xff; 32] };
        // The last message closes, so that the answers can be read to their end.
        let heard = said(
            at,
            &[
                setup(0).into(),
                open_extended(b"\xff\xfe not text", 1e12).into(),
                open_standard.into(),
                share.into(),
                custom.into(),
                update.into(),
                setup(0).into(),
            ],
        )
        .await;
        let expected = [
            "SetupConnectionSuccess",
            "invalid-user-identity",
            "max-target-out-of-range",
            "invalid-channel-id",
            "jd-not-supported",
            "invalid-channel-id",
        ];
        assert_eq!(heard, expected);
    });
}

#[test]
fn flags_that_are_not_served_are_listed_and_the_link_closes_s6_s8() {
    beside_an_honest_miner(|at| async move {
        let mut link = say(at, &[setup(0xffff_ffff).into()]).await;
        link.fill().await.unwrap();
        let frame = link.connection().inbound.next_frame().unwrap().unwrap();
        let Received::Known(Message::SetupConnectionError(error), _) = frame.message().unwrap()
        else {
            panic!("no SetupConnection.Error");
        };
        // All three that mining has are served.
        assert_eq!(error.flags, 0xffff_fff8);
        assert_eq!(error.error_code.printable(), "unsupported-feature-flags");
        assert!(heard_until_closed(link).await.is_empty());
    });
}

#[test]
fn one_address_takes_its_share_of_places_and_no_more() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let pool = start(folder.path()).await;
        let mut taken = Vec::new();
        for _ in 0..60 {
            taken.push(TcpStream::connect(pool.listen).await.unwrap());
        }
        // Those beyond the limit are closed at once, the others when their handshake is overdue.
        for stream in &mut taken {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        let turned_away = r#"pool_handshake_failures_total{reason="address-full"} 20"#;
        let rendered = pool.metrics.render();
        assert!(rendered.contains(turned_away), "{rendered}");
        let mut newcomer = Session::open(pool.listen, EXTENDED, "new.comer").await.unwrap();
        newcomer.mine_acknowledged(1).await;
        drop(newcomer);
        pool.stop().await.unwrap();
    });
}

/// A set-up connection from a household of its own, that opens what it is told to.
struct Opener {
    link: Link,
    open: Vec<u32>,
}

impl Opener {
    async fn from(household: [u8; 4], at: SocketAddr) -> Self {
        let stream = stream_from(household, at).await;
        let mut opener = Self { link: link_on(stream).await.unwrap(), open: Vec::new() };
        opener.say(&setup(0).into()).await;
        assert_eq!(opener.next_of(&["SetupConnectionSuccess"]).await, "SetupConnectionSuccess");
        opener
    }

    async fn say(&mut self, message: &Message<'_>) {
        self.link.connection().outbound.send(message);
        self.link.flush().await.unwrap();
    }

    /// The next thing said that is one of these; jobs in between are passed over.
    async fn next_of(&mut self, names: &[&str]) -> String {
        loop {
            while let Some(frame) = self.link.connection().inbound.next_frame().unwrap() {
                let Received::Known(message, _) = frame.message().unwrap() else { continue };
                if let Message::OpenExtendedMiningChannelSuccess(success) = &message {
                    self.open.push(success.channel_id);
                }
                let said = described(&message);
                if names.contains(&said.as_str()) {
                    return said;
                }
            }
            let filled = timeout(PATIENCE, self.link.fill()).await.expect("no answer in time");
            assert!(filled.unwrap() > 0, "the pool closed");
        }
    }

    /// Whether another channel is opened; told no otherwise.
    async fn opens(&mut self) -> bool {
        self.say(&open_extended(b"a.b", 1e12).into()).await;
        let answers = ["OpenExtendedMiningChannelSuccess", "channel-capacity-exhausted"];
        self.next_of(&answers).await == answers[0]
    }

    async fn close_one(&mut self) {
        let channel_id = self.open.pop().unwrap();
        let close = CloseChannel { channel_id, reason_code: Str0255::default() };
        self.say(&close.into()).await;
    }
}

const HOME: [u8; 4] = [127, 0, 0, 2];
const FARM: [u8; 4] = [127, 0, 0, 3];

/// A pool with so many places for channels, and what to do with it.
fn with_places<F: Future<Output = ()>>(
    channels: u32,
    of_household: u32,
    acts: impl FnOnce(Arc<Running>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.listen.max_channels = channels;
        config.listen.max_channels_per_address = of_household;
        let pool = run::start(&config, &CancellationToken::new()).await.unwrap();
        let pool = Arc::new(pool);
        timeout(PATIENCE, acts(Arc::clone(&pool))).await.expect("the pool does not answer");
        Arc::into_inner(pool).expect("nobody else has it").stop().await.unwrap();
    });
}

#[test]
fn a_household_has_its_places_over_all_its_connections_and_one_more_is_told_no() {
    with_places(100, 3, |pool| async move {
        let mut one = Opener::from(HOME, pool.listen).await;
        let mut other = Opener::from(HOME, pool.listen).await;
        assert!(one.opens().await && one.opens().await && other.opens().await);
        assert!(!one.opens().await && !other.opens().await);
        let mut farm = Opener::from(FARM, pool.listen).await;
        assert!(farm.opens().await, "another's household is full");
        let rendered = pool.metrics.render();
        for series in [
            "pool_channels 4",
            "pool_channels_address_full_total 2",
            "pool_channels_full_total 0",
            r#"pool_channels_refused_total{code="channel-capacity-exhausted"} 2"#,
        ] {
            assert!(rendered.lines().any(|line| line == series), "{series} in {rendered}");
        }
        one.close_one().await;
        assert!(one.opens().await, "a closed channel gives back its place");
        assert!(!one.opens().await);
        one.close_one().await;
        // Another connection may be heard before this one's close is.
        while !other.opens().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn the_pool_has_its_places_and_one_more_is_told_no_until_a_connection_ends() {
    with_places(3, 2, |pool| async move {
        let mut home = Opener::from(HOME, pool.listen).await;
        let mut farm = Opener::from(FARM, pool.listen).await;
        assert!(home.opens().await && home.opens().await && farm.opens().await);
        assert!(!farm.opens().await);
        assert!(pool.metrics.render().contains("pool_channels_full_total 1\n"));
        drop(home);
        // Its task has to see the end first.
        while !farm.opens().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

/// Shares of a job that there is not; returns when each is answered.
async fn flood(session: &mut Session, shares: u32) {
    let work = session.client.work().unwrap();
    let mut frames = Vec::new();
    for sequence_number in 0..shares {
        Message::from(SubmitSharesExtended {
            channel_id: work.channel.0,
            sequence_number,
            job_id: 0xdead,
            nonce: 0,
            ntime: work.min_ntime,
            version: work.version,
            extranonce: B032::new(&[0; 16]).unwrap(),
        })
        .encode(&mut frames);
    }
    session.send(&frames).await.unwrap();
    // Read without the client's machine, which knows nothing of these shares.
    let mut refused = 0;
    while refused < shares {
        session.link.fill().await.unwrap();
        while let Some(frame) = session.link.connection().inbound.next_frame().unwrap() {
            if let Received::Known(Message::SubmitSharesError(error), _) = frame.message().unwrap()
            {
                assert_eq!(error.error_code.printable(), "invalid-job-id");
                refused += 1;
            }
        }
    }
}

#[test]
fn a_flood_of_worthless_shares_is_answered_one_by_one() {
    beside_an_honest_miner(|at| async move {
        let mut session = Session::open(at, EXTENDED, "flood").await.unwrap();
        flood(&mut session, 2_000).await;
        session.mine_acknowledged(1).await;
    });
}

#[test]
fn a_flood_beyond_the_burst_that_is_free_is_answered_no_faster_than_its_pace() {
    beside_an_honest_miner(|at| async move {
        let mut session = Session::open(at, EXTENDED, "flood").await.unwrap();
        let began = std::time::Instant::now();
        flood(&mut session, WORTHLESS_BURST).await;
        // What one read brings is answered at once: some two hundred of these.
        let beyond = 1_000;
        flood(&mut session, beyond).await;
        let pace = Duration::from_micros(u64::from(beyond - 500) * WORTHLESS_EVERY_US);
        assert!(began.elapsed() >= pace, "{:?} is less than {pace:?}", began.elapsed());
        session.mine_acknowledged(1).await;
    });
}
