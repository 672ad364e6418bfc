//! The door of Template Distribution: a Noise listener on loopback and one task per client, which drives a
//! `Provider` and takes found blocks to the chain. Started by `mod.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use job_declarator::node::NodeTemplate;
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, AuthoritySecretKey, EphemeralSecret, Identity, StaticKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::provider::{Effect, Input, Outbox, Provider};
use super::{Door, Event, Inner};

/// Clients at once: a pool, and the declarators of a test.
const CLIENTS_MAX: usize = 64;
/// From accept to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A client that does not read for so long is dropped.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// The certificate's life: no test is longer.
const CERTIFICATE_DAYS: u32 = 30;

/// Where clients connect and what they pin.
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) authority: AuthorityPublicKey,
}

/// Binds and serves until the runtime ends.
pub(super) async fn serve(
    inner: Arc<Inner>,
    address: SocketAddr,
    templates: watch::Receiver<Arc<NodeTemplate>>,
) -> Result<Listening> {
    let identity = identity()?;
    let authority = identity.authority;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("the template port {address}"))?;
    let address = listener.local_addr().context("the template port")?;
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let (inner, identity) = (Arc::clone(&inner), identity.clone());
            let templates = templates.clone();
            tokio::spawn(async move {
                let ended = client(&inner, stream, &identity, templates).await;
                let why = ended.map_or_else(|error| format!("{error:#}"), |()| "closed".to_owned());
                inner.tell(Event::Left { peer, why });
                drop(place);
            });
        }
    });
    Ok(Listening { address, authority })
}

async fn client(
    inner: &Inner,
    stream: TcpStream,
    identity: &Identity,
    mut templates: watch::Receiver<Arc<NodeTemplate>>,
) -> Result<()> {
    let link = timeout(HANDSHAKE_MAX, Link::accept(stream, identity, ephemeral()?)).await;
    let mut link = link.context("no handshake in time")??;
    let mut provider = Provider::new();
    let mut out = Outbox::default();
    let first = Arc::clone(&templates.borrow_and_update());
    provider.handle(Input::Template(&first), &mut out)?;
    loop {
        tokio::select! {
            filled = link.fill() => {
                if filled? == 0 {
                    return Ok(());
                }
                let inbound = &mut link.connection().inbound;
                while let Some(frame) = inbound.next_frame()? {
                    // What we do not know is no business of ours.
                    if let proto::message::Received::Known(message, _) = frame.message()? {
                        provider.handle(Input::Message(&message), &mut out)?;
                    }
                    inbound.set_limit(provider.payload_max());
                }
            }
            changed = templates.changed() => {
                changed.context("the chain is gone")?;
                let newest = Arc::clone(&templates.borrow_and_update());
                provider.handle(Input::Template(&newest), &mut out)?;
            }
        }
        let Outbox { frames, effects } = std::mem::take(&mut out);
        link.connection().outbound.send_frames(&frames);
        let closes = effects.contains(&Effect::Close);
        for effect in effects {
            carry_out(inner, effect).await;
        }
        let flushed = timeout(WRITE_MAX, link.flush()).await;
        flushed.context("the client does not read")??;
        if closes {
            return Ok(timeout(HANDSHAKE_MAX, link.close_after_flush()).await??);
        }
    }
}

async fn carry_out(inner: &Inner, effect: Effect) {
    match effect {
        Effect::SubmitBlock(_) if inner.drop_submit_solution => {
            inner.tell(Event::Dropped);
        }
        Effect::SubmitBlock(block) => {
            inner.submit(Door::TemplateDistribution, &block).await;
        }
        Effect::BadSolution(why) => inner.tell(Event::BadSolution { why }),
        Effect::Close => {}
    }
}

fn identity() -> Result<Identity> {
    let mut random = [[0; 32]; 4];
    getrandom::fill(random.as_flattened_mut()).context("randomness")?;
    let [authority, secret, encoding, aux] = random;
    let authority = AuthoritySecretKey::from_secret(authority)?;
    let static_key = StaticKey::from_secret(secret, encoding)?;
    let now = super::unix_s();
    let until = now.saturating_add(CERTIFICATE_DAYS * 86_400);
    let certificate =
        authority.certify(&static_key.x_only(), now.saturating_sub(3_600), until, &aux);
    Ok(Identity { static_key, certificate, authority: authority.public() })
}

/// Fresh secrets for one handshake.
pub(crate) fn ephemeral() -> Result<EphemeralSecret> {
    let mut random = [[0; 32]; 2];
    getrandom::fill(random.as_flattened_mut()).context("randomness")?;
    Ok(EphemeralSecret::new(random[0], random[1])?)
}
