//! The keys of handshakes, computed on threads of their own to which the system gives a core when nobody
//! else wants it. Started by `run`, asked by `miner`.
//!
//! One handshake is worth a hundred shares. On the threads that serve connections a reconnect storm
//! stood between a share and its acknowledgement; here it takes what is left of the machine.
//!
//! Must never be asked for a client that has not sent all of act 1.

use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use job_declarator::keys;
use proto::limits::{ACT_ONE_LEN, ACT_TWO_LEN};
use proto::noise::{Identity, Responder, Transport};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::warn;

use crate::limits::{HANDSHAKE_NICE, HANDSHAKE_THREADS_MAX, HANDSHAKES_AT_ONCE};

/// Act 2, to be sent, and the session behind it.
pub struct Shaken {
    /// As it goes on the wire.
    pub act_two: [u8; ACT_TWO_LEN],
    /// Both keys.
    pub transport: Transport,
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoHandshake {
    /// Ours: no randomness.
    #[error("{0}")]
    Randomness(String),
    /// What came was no act 1.
    #[error(transparent)]
    Noise(#[from] proto::noise::NoiseError),
    /// The threads have ended: the pool is going down.
    #[error("no handshakes any more")]
    Ended,
}

/// Where handshakes are asked for. Its threads end with it.
pub struct Handshakes {
    places: Arc<Semaphore>,
    queue: SyncSender<Asked>,
}

struct Asked {
    act_one: [u8; ACT_ONE_LEN],
    identity: Arc<Identity>,
    answer: oneshot::Sender<Result<Box<Shaken>, NoHandshake>>,
    /// Held until the answer is there, also when nobody waits for it any more.
    _place: OwnedSemaphorePermit,
}

impl Handshakes {
    /// Starts a thread for each core, up to `HANDSHAKE_THREADS_MAX`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> io::Result<Self> {
        let (queue, asked) = sync_channel(HANDSHAKES_AT_ONCE);
        let asked = Arc::new(Mutex::new(asked));
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores.min(HANDSHAKE_THREADS_MAX) {
            let asked = Arc::clone(&asked);
            thread::Builder::new().name("handshakes".into()).spawn(move || work(&asked))?;
        }
        Ok(Self { places: Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE)), queue })
    }

    /// The answer to `act_one`. Waits for a place among `HANDSHAKES_AT_ONCE`, in the order of asking.
    ///
    /// # Errors
    /// The client's fault or ours, as it says.
    pub async fn shake(
        &self,
        act_one: [u8; ACT_ONE_LEN],
        identity: Arc<Identity>,
    ) -> Result<Box<Shaken>, NoHandshake> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| NoHandshake::Ended)?;
        let (answer, shaken) = oneshot::channel();
        // There are as many places in the queue as permits, so it is never full.
        let asked = Asked { act_one, identity, answer, _place: place };
        self.queue.try_send(asked).map_err(|_| NoHandshake::Ended)?;
        shaken.await.map_err(|_| NoHandshake::Ended)?
    }
}

/// Until nobody can ask any more.
fn work(asked: &Mutex<Receiver<Asked>>) {
    // Of this thread alone: that is what Linux means by it.
    if let Err(error) = rustix::process::nice(HANDSHAKE_NICE) {
        warn!(%error, "handshakes run beside shares and not behind them");
    }
    loop {
        // Held while it waits: another thread takes the next one then.
        let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Asked { act_one, identity, answer, _place: place }) = next else { return };
        if !answer.is_closed() {
            // Who gave up in the meantime hears nothing.
            let _ = answer.send(shake(&act_one, &identity));
        }
        drop(place);
    }
}

fn shake(act_one: &[u8; ACT_ONE_LEN], identity: &Identity) -> Result<Box<Shaken>, NoHandshake> {
    let ephemeral = keys::ephemeral();
    let ephemeral = ephemeral.map_err(|error| NoHandshake::Randomness(error.to_string()))?;
    let (act_two, transport) = Responder::new(identity, ephemeral).step(act_one)?;
    Ok(Box::new(Shaken { act_two, transport }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::noise::{AuthoritySecretKey, Initiator};

    const NOW: u32 = 1_790_000_000;

    fn identity() -> Arc<Identity> {
        let authority = AuthoritySecretKey::from_secret([1; 32]).unwrap();
        Arc::new(crate::keys::make_identity(&authority, None, NOW, 1).unwrap())
    }

    fn queue_without_threads() -> (Handshakes, Receiver<Asked>) {
        let (queue, asked) = sync_channel(HANDSHAKES_AT_ONCE);
        (Handshakes { places: Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE)), queue }, asked)
    }

    #[tokio::test]
    async fn many_clients_at_once_are_all_answered() {
        let handshakes = Arc::new(Handshakes::start().unwrap());
        let identity = identity();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..3 * HANDSHAKES_AT_ONCE {
            let (handshakes, identity) = (Arc::clone(&handshakes), Arc::clone(&identity));
            clients.spawn(async move {
                let (initiator, act_one) = Initiator::new(keys::ephemeral().unwrap());
                let shaken = handshakes.shake(act_one, Arc::clone(&identity)).await.unwrap();
                initiator.finish(&shaken.act_two, Some(&identity.authority), NOW).is_ok()
            });
        }
        assert_eq!(clients.join_all().await, [true; 3 * HANDSHAKES_AT_ONCE]);
    }

    #[tokio::test]
    async fn one_beyond_the_limit_waits_for_a_place_and_who_gave_up_holds_his() {
        let (handshakes, asked) = queue_without_threads();
        let handshakes = Arc::new(handshakes);
        let identity = identity();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..=HANDSHAKES_AT_ONCE {
            let (handshakes, identity) = (Arc::clone(&handshakes), Arc::clone(&identity));
            waiting.spawn(async move { handshakes.shake([7; ACT_ONE_LEN], identity).await });
        }
        while handshakes.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        waiting.shutdown().await;
        assert_eq!(handshakes.places.available_permits(), 0, "a deadline frees no work");
        assert_eq!(asked.try_iter().count(), HANDSHAKES_AT_ONCE);
        assert_eq!(handshakes.places.available_permits(), HANDSHAKES_AT_ONCE);
    }

    #[tokio::test]
    async fn without_its_threads_it_says_so() {
        let (handshakes, asked) = queue_without_threads();
        drop(asked);
        let ended = handshakes.shake([7; ACT_ONE_LEN], identity()).await;
        assert_eq!(ended.err(), Some(NoHandshake::Ended));
    }
}
