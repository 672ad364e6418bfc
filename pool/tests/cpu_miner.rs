//! The demo's miner against a scripted server on the loopback: real handshake, real hashes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pool::cpu_miner::{CpuMinerOptions, MinerReport, run};
use proto::job::HeaderFields;
use proto::message::{
    Message, NewExtendedMiningJob, NewMiningJob, OpenExtendedMiningChannelSuccess,
    OpenStandardMiningChannelSuccess, Received, Reconnect, SetNewPrevHash, SetupConnectionSuccess,
    SubmitSharesSuccess,
};
use proto::mining::client::ChannelKind;
use proto::net::{Link, LinkError};
use proto::noise::{AuthoritySecretKey, EphemeralSecret, Identity, StaticKey};
use proto::target::Target;
use proto::template::{merkle_root, sha256d};
use proto::wire::{B032, B064K, Seq0255U256, Str0255};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CHANNEL: u32 = 2;
const EXTENDED: ChannelKind = ChannelKind::Extended { min_extranonce_size: 8 };

fn test(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let deadline = Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(deadline, body).await.expect("it hangs") });
}

/// One hash in 4,096: many a second, also in a debug build.
fn target() -> [u8; 32] {
    let mut target = [0xff; 32];
    (target[31], target[30]) = (0, 0x0f);
    target
}

fn authority(seed: u8) -> AuthoritySecretKey {
    AuthoritySecretKey::from_secret([seed; 32]).unwrap()
}

fn identity(authority: &AuthoritySecretKey) -> Identity {
    let static_key = StaticKey::from_secret([8; 32], [9; 32]).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
    let x_only = static_key.x_only();
    let certificate = authority.certify(&x_only, now - 60, now + 3_600, &[1; 32]);
    Identity { static_key, certificate, authority: authority.public() }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn accept(listener: &TcpListener, authority: &AuthoritySecretKey) -> Server {
    let (stream, _) = listener.accept().await.unwrap();
    let ephemeral = EphemeralSecret::new([3; 32], [4; 32]).unwrap();
    Server { link: Link::accept(stream, &identity(authority), ephemeral).await.unwrap() }
}

/// What a miner said, as far as the script cares.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Said {
    Setup,
    OpenStandard,
    OpenExtended,
    Share { sequence: u32, job: u32, header: HeaderFields, extranonce: B032 },
}

fn said(message: Message<'_>) -> Said {
    let header = |version, ntime, nonce| {
        let (prev_hash, merkle_root, nbits) = ([0; 32], [0; 32], 0);
        HeaderFields { version, prev_hash, merkle_root, ntime, nbits, nonce }
    };
    if let Message::SetupConnection(_) = message {
        return Said::Setup;
    }
    if let Message::OpenStandardMiningChannel(_) = message {
        return Said::OpenStandard;
    }
    if let Message::OpenExtendedMiningChannel(open) = message {
        assert!(open.nominal_hash_rate > 1_000.0, "{}", open.nominal_hash_rate);
        return Said::OpenExtended;
    }
    if let Message::SubmitSharesStandard(share) = message {
        let header = header(share.version, share.ntime, share.nonce);
        let (sequence, job) = (share.sequence_number, share.job_id);
        return Said::Share { sequence, job, header, extranonce: B032::default() };
    }
    if let Message::SubmitSharesExtended(share) = message {
        let header = header(share.version, share.ntime, share.nonce);
        let (sequence, job) = (share.sequence_number, share.job_id);
        return Said::Share { sequence, job, header, extranonce: share.extranonce };
    }
    panic!("{} is nothing a miner says", message.name())
}

/// The pool's end of one link, played by hand.
struct Server {
    link: Link,
}

impl Server {
    async fn say<'a>(&mut self, message: impl Into<Message<'a>>) {
        self.link.connection().outbound.send(&message.into());
        self.link.flush().await.unwrap();
    }

    /// The next message; `None` when the miner has closed.
    async fn hear(&mut self) -> Option<Said> {
        loop {
            if let Some(frame) = self.link.connection().inbound.next_frame().unwrap() {
                let Received::Known(message, _) = frame.message().unwrap() else { panic!() };
                return Some(said(message));
            }
            match self.link.fill().await {
                Ok(0) | Err(LinkError::Io(_)) => return None,
                other => other.unwrap(),
            };
        }
    }

    async fn open(&mut self, kind: ChannelKind) {
        assert_eq!(self.hear().await, Some(Said::Setup));
        self.say(SetupConnectionSuccess { used_version: 2, flags: 0 }).await;
        let (request_id, channel_id, group_channel_id) = (1, CHANNEL, 1);
        let (target, extranonce_prefix) = (target(), B032::new(&[9; 8]).unwrap());
        let asked = self.hear().await;
        if kind == ChannelKind::Standard {
            assert_eq!(asked, Some(Said::OpenStandard));
            self.say(OpenStandardMiningChannelSuccess {
                request_id,
                channel_id,
                target,
                extranonce_prefix,
                group_channel_id,
            })
            .await;
        } else {
            assert_eq!(asked, Some(Said::OpenExtended));
            self.say(OpenExtendedMiningChannelSuccess {
                request_id,
                channel_id,
                target,
                extranonce_size: 16,
                extranonce_prefix,
                group_channel_id,
            })
            .await;
        }
    }

    /// A job and the tip that activates it.
    async fn work(&mut self, kind: ChannelKind, job_id: u32, tip: u8) {
        let (channel_id, min_ntime, version) = (CHANNEL, None, 0x2000_0000);
        if kind == ChannelKind::Standard {
            let merkle_root = [tip; 32];
            self.say(NewMiningJob { channel_id, job_id, min_ntime, version, merkle_root }).await;
        } else {
            self.say(NewExtendedMiningJob {
                channel_id,
                job_id,
                min_ntime,
                version,
                version_rolling_allowed: true,
                merkle_path: Seq0255U256::new(&[[4; 32]]).unwrap(),
                coinbase_tx_prefix: B064K::new(b"prefix").unwrap(),
                coinbase_tx_suffix: B064K::new(b"suffix").unwrap(),
            })
            .await;
        }
        let (prev_hash, nbits) = ([tip; 32], 0x1d00_ffff);
        self.say(SetNewPrevHash { channel_id, job_id, prev_hash, min_ntime: 1_000, nbits }).await;
    }

    /// The job of the next share, which is proven and acknowledged.
    async fn share(&mut self, kind: ChannelKind, tip: u8) -> u32 {
        let share = self.hear().await.expect("the miner is there");
        let Said::Share { sequence, job, mut header, extranonce } = share else {
            panic!("{share:?}")
        };
        header.prev_hash = [tip; 32];
        header.nbits = 0x1d00_ffff;
        header.merkle_root = if kind == ChannelKind::Standard {
            [tip; 32]
        } else {
            assert_eq!(extranonce.len(), 16);
            let coinbase = [&b"prefix"[..], &[9; 8], extranonce.as_slice(), b"suffix"].concat();
            merkle_root(sha256d(&coinbase), &[[4; 32]])
        };
        assert!(Target::from_le_bytes(target()).is_met_by(&header.hash()), "{header:?}");
        self.say(SubmitSharesSuccess {
            channel_id: CHANNEL,
            last_sequence_number: sequence,
            new_submits_accepted_count: 1,
            new_shares_sum: 0,
        })
        .await;
        job
    }
}

/// A running miner, and its end.
struct Miner {
    report: Arc<MinerReport>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Miner {
    fn start(port: u16, kind: ChannelKind) -> Self {
        let options = CpuMinerOptions::new("127.0.0.1", port, authority(7).public());
        let options = CpuMinerOptions { kind, threads: 2, duty_percent: 50, ..options };
        let (report, stop) = (Arc::<MinerReport>::default(), CancellationToken::new());
        let task = tokio::spawn(run(options, Arc::clone(&report), stop.clone()));
        Self { report, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(!self.report.status().connected);
        assert_eq!(Arc::strong_count(&self.report), 1, "a thread is left");
    }

    /// Until the miner has read what was said to it.
    async fn until(&self, condition: impl Fn(&MinerReport) -> bool) {
        while !condition(&self.report) {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn shares_are_found_proven_and_counted_on_both_kinds_of_channel() {
    test(async {
        for kind in [ChannelKind::Standard, EXTENDED] {
            let (listener, port) = listen().await;
            let miner = Miner::start(port, kind);
            let mut server = accept(&listener, &authority(7)).await;
            server.open(kind).await;
            server.work(kind, 1, 1).await;
            for _ in 0..20 {
                assert_eq!(server.share(kind, 1).await, 1);
            }
            miner.until(|report| report.status().acknowledged == 20).await;
            let status = miner.report.status();
            assert!(status.connected && status.sessions == 1 && status.refused == 0);
            assert!(status.submitted >= 20 && status.hashes > 20 * 100, "{status:?}");
            assert!(status.first_acknowledged.is_some());
            miner.stop().await;
        }
    });
}

#[test]
fn no_header_is_hashed_twice_by_two_threads() {
    test(async {
        for kind in [ChannelKind::Standard, EXTENDED] {
            let (listener, port) = listen().await;
            let miner = Miner::start(port, kind);
            let mut server = accept(&listener, &authority(7)).await;
            server.open(kind).await;
            server.work(kind, 1, 1).await;
            let mut seen = BTreeSet::new();
            for expected in 1..=100 {
                let share = server.hear().await.unwrap();
                let Said::Share { sequence, header, extranonce, .. } = share else { panic!() };
                assert_eq!(sequence, expected);
                assert!(seen.insert((extranonce.as_slice().to_vec(), header.nonce)));
            }
            miner.stop().await;
        }
    });
}

#[test]
fn a_new_tip_is_worked_on_at_once_c5() {
    test(async {
        let (listener, port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        let mut server = accept(&listener, &authority(7)).await;
        server.open(EXTENDED).await;
        for tip in 1..=5 {
            server.work(EXTENDED, u32::from(tip), tip).await;
            // What was sent before it knew of the tip may still be on its way.
            loop {
                let share = server.hear().await.unwrap();
                let Said::Share { job, .. } = share else { panic!("{share:?}") };
                if job == u32::from(tip) {
                    break;
                }
                assert_eq!(job, u32::from(tip) - 1, "of a tip before the last");
            }
        }
        miner.stop().await;
    });
}

#[test]
fn a_lost_pool_is_found_again_and_hears_nothing_of_the_time_before() {
    test(async {
        let (listener, port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        for session in 1..=3 {
            let mut server = accept(&listener, &authority(7)).await;
            server.open(EXTENDED).await;
            // The same channel id and tip each time: only the job differs.
            server.work(EXTENDED, session, 1).await;
            for _ in 0..3 {
                assert_eq!(server.share(EXTENDED, 1).await, session);
            }
        }
        assert_eq!(miner.report.status().sessions, 3);
        miner.stop().await;
    });
}

#[test]
fn a_server_of_another_authority_hears_nothing_c10() {
    test(async {
        let (listener, port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        let mut impostor = accept(&listener, &authority(6)).await;
        assert_eq!(impostor.hear().await, None);
        miner.stop().await;
    });
}

#[test]
fn a_reconnect_leads_only_to_servers_of_the_same_authority_c10() {
    test(async {
        let (home, port) = listen().await;
        let (elsewhere, new_port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        let new_host = Str0255::text("");

        let mut server = accept(&home, &authority(7)).await;
        server.open(EXTENDED).await;
        server.say(Reconnect { new_host, new_port }).await;
        let mut impostor = accept(&elsewhere, &authority(6)).await;
        assert_eq!(impostor.hear().await, None);

        // Home again, and from there to a rightful second address.
        let mut server = accept(&home, &authority(7)).await;
        server.open(EXTENDED).await;
        server.say(Reconnect { new_host, new_port }).await;
        let mut second = accept(&elsewhere, &authority(7)).await;
        second.open(EXTENDED).await;
        miner.stop().await;
    });
}

#[test]
fn a_server_without_noise_is_told_nothing_c11() {
    test(async {
        let (listener, port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 64]).await.unwrap();
        // As many bytes as act 2 has, and a SetupConnection.Success in clear in them.
        let mut clear = vec![0, 0, 1, 6, 0, 0, 2, 0, 0, 0, 0, 0];
        clear.resize(234, 0);
        stream.write_all(&clear).await.unwrap();
        let mut rest = Vec::new();
        // The miner closes; whether politely does not matter.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{rest:?}");
        miner.stop().await;
    });
}

#[test]
fn it_stops_at_once_whatever_it_is_doing() {
    test(async {
        // Dialling a port that nobody listens on.
        let (listener, port) = listen().await;
        drop(listener);
        Miner::start(port, EXTENDED).stop().await;
        // Waiting for a server that accepts and says nothing.
        let (listener, port) = listen().await;
        let miner = Miner::start(port, EXTENDED);
        let silent = listener.accept().await.unwrap();
        miner.stop().await;
        drop(silent);
    });
}
