//! A pool that gives work and refuses every share of it, good ones too.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use job_declarator::declarator::{OutputLimit, PoolOptions};
use job_declarator::node::Node;
use pool::keys::{make_authority, make_identity};
use proto::connection::{SetupMachine, SetupPolicy, SetupStep};
use proto::extranonce::ExtranonceAllocator;
use proto::job::{ActiveTemplate, Job};
use proto::message::{Message, Received, SubmitSharesError};
use proto::mining::Now;
use proto::mining::server::{Input, Outbox, Policy, Server};
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, EphemeralSecret, Identity};
use proto::target::Difficulty;
use proto::template::Output;
use proto::wire::Str0255;
use tokio::net::{TcpListener, TcpStream};

/// See above.
pub(crate) struct Refuser {
    address: SocketAddr,
    authority: AuthorityPublicKey,
}

impl Refuser {
    pub(crate) async fn start(node: Arc<dyn Node>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = make_authority(&folder.path().join("authority.txt")).unwrap();
        let now = job_declarator::clock::unix_s();
        let identity = Arc::new(make_identity(&secret, None, now, 1).unwrap());
        let authority = identity.authority;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&identity), Arc::clone(&node)));
            }
        });
        Self { address, authority }
    }

    /// How a house knows it: it declares nothing.
    pub(crate) fn options(&self, name: &str) -> (PoolOptions, AuthorityPublicKey) {
        let limit = OutputLimit {
            own: Vec::new(),
            known: Vec::new(),
            others_max_percent: 100,
            network: bitcoin::Network::Regtest,
        };
        let options = PoolOptions {
            name: name.to_owned(),
            address: self.address.to_string(),
            declare_address: None,
            user: "alice.home".to_owned(),
            limit,
        };
        (options, self.authority)
    }
}

async fn serve(stream: TcpStream, identity: Arc<Identity>, node: Arc<dyn Node>) -> Option<()> {
    let began = Instant::now();
    let template = node.next_template(None).await.ok()?;
    let sats = template.template.coinbase_value_sats;
    let output = Output { sats, script: vec![0x51] };
    let job = Job::new(template.template, &[output], b"/no/").ok()?;
    let active = Arc::new(ActiveTemplate { tip: template.prev_hash, job, next: None });
    // Easy enough for the first second of a device.
    let easy = Difficulty::from_log2(-22);
    let policy = Arc::new(Policy { floor: easy, ceiling: easy, ..Policy::default() });
    let mut ephemeral = [[0; 32]; 2];
    getrandom::fill(ephemeral.as_flattened_mut()).unwrap();
    let ephemeral = EphemeralSecret::new(ephemeral[0], ephemeral[1]).unwrap();
    let mut link = Link::accept(stream, &identity, ephemeral).await.ok()?;
    let (mut machine, mut out) = (SetupMachine::new(SetupPolicy::MINING), Outbox::default());
    let mut server = None;
    loop {
        let unix_s = job_declarator::clock::unix_s();
        let now = Now { mono_ms: began.elapsed().as_millis() as u64, unix_s };
        while let Some(frame) = link.connection().inbound.next_frame().ok()? {
            match machine.receive(frame.message().ok()?, &mut out.frames).ok()? {
                SetupStep::Agreed(setup) => {
                    let (policy, space) = (Arc::clone(&policy), ExtranonceAllocator::new(3, 3));
                    let active = Arc::clone(&active);
                    server = Some(Server::new(policy, setup.flags, space, active, now));
                }
                SetupStep::Pass(Received::Known(Message::SubmitSharesExtended(share), _)) => {
                    let error_code = Str0255::text("difficulty-too-low");
                    let (channel_id, sequence_number) = (share.channel_id, share.sequence_number);
                    let refused = SubmitSharesError { channel_id, sequence_number, error_code };
                    Message::from(refused).encode(&mut out.frames);
                }
                SetupStep::Pass(Received::Known(message, tlvs)) => {
                    let server = server.as_mut()?;
                    server.handle(now, Input::Message(message, tlvs), &mut out).ok()?;
                }
                _ => {}
            }
        }
        if let Some(server) = &mut server {
            server.handle(now, Input::BurstEnd, &mut out).ok()?;
        }
        link.connection().outbound.send_frames(&std::mem::take(&mut out.frames));
        link.flush().await.ok()?;
        if link.fill().await.ok()? == 0 {
            return None;
        }
    }
}
