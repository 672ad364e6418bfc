//! A device that hashes nothing and writes down when it was given which work: what a switch costs as it is
//! seen from the far end of the wire, by nobody's figures but the clock's.

#![allow(clippy::unwrap_used, reason = "builders outside a #[test] fail it just as well")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use job_declarator::declarator::of_suffix;
use proto::limits::MINING_SERVER_PAYLOAD_MAX;
use proto::message::Received;
use proto::mining::client::{ChannelKind, Client, ClientOptions, Event, Work};
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, EphemeralSecret};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;

/// Work that came.
#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    /// Where the most of its reward goes.
    payee: Vec<u8>,
}

/// It watches until it is dropped.
pub(crate) struct Witness {
    seen: watch::Receiver<Vec<Seen>>,
    watching: JoinHandle<()>,
}

impl Witness {
    /// Connects and has its first work.
    pub(crate) async fn start(at: SocketAddr, authority: AuthorityPublicKey) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let ephemeral = EphemeralSecret::new([7; 32], [8; 32]).unwrap();
        let now = job_declarator::clock::unix_s();
        let mut link = Link::connect(stream, Some(&authority), ephemeral, now).await.unwrap();
        link.connection().inbound.set_limit(MINING_SERVER_PAYLOAD_MAX);
        let kind = ChannelKind::Extended { min_extranonce_size: 8 };
        let mut client = Client::new(ClientOptions::new(kind, "alice.witness"));
        let (tell, mut seen) = watch::channel(Vec::new());
        let watching = tokio::spawn(async move {
            let mut out = Vec::new();
            client.start(&mut out);
            loop {
                link.connection().outbound.send_frames(&out);
                out.clear();
                link.flush().await.unwrap();
                // Whoever waits for work that does not come says what is missing.
                if link.fill().await.unwrap() == 0 {
                    return;
                }
                let came = hear(&mut link, &mut client, &mut out);
                tell.send_modify(|all: &mut Vec<Seen>| all.extend(came));
            }
        });
        timeout(PATIENCE, seen.wait_for(|all| !all.is_empty())).await.unwrap().unwrap();
        Self { seen, watching }
    }

    /// How long after `since` the first work came that pays whom `is_so` says.
    pub(crate) async fn took_since(
        &self,
        since: Instant,
        is_so: impl Fn(&[u8]) -> bool,
    ) -> Duration {
        let first = |all: &Vec<Seen>| {
            all.iter().find(|seen| seen.at >= since && is_so(&seen.payee)).map(|seen| seen.at)
        };
        let mut seen = self.seen.clone();
        let come = timeout(PATIENCE, seen.wait_for(|all| first(all).is_some())).await;
        let all = come.expect("such work never came").expect("the witness was disconnected");
        first(&all).unwrap() - since
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// The work that came in what was read last.
fn hear(link: &mut Link, client: &mut Client, out: &mut Vec<u8>) -> Vec<Seen> {
    let (at, mut came) = (Instant::now(), Vec::new());
    while let Some(frame) = link.connection().inbound.next_frame().unwrap() {
        let Received::Known(message, tlvs) = frame.message().unwrap() else { continue };
        let event = client.handle(0, message, tlvs, out).unwrap();
        if let Some(Event::NewWork { .. }) = event {
            came.push(Seen { at, payee: payee(&client.work().unwrap()) });
        }
    }
    came
}

/// The extranonce is the last of scriptSig in all that this house and its pools make.
fn payee(work: &Work) -> Vec<u8> {
    let outputs = of_suffix(work.coinbase().unwrap().tail).unwrap();
    outputs.into_iter().max_by_key(|output| output.sats).unwrap().script
}
