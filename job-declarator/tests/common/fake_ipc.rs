//! The server's side of Bitcoin Core's mining interface on a UNIX socket, which says of a block what the test
//! wants. A thread of its own; it ends, and its connections with it, when it is dropped.

#![allow(unreachable_pub)] // a test's module

#[path = "ipc_server.rs"]
mod ipc_server;

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bitcoin_capnp_types::capnp::Error;
use bitcoin_capnp_types::capnp_rpc::new_client;
use bitcoin_capnp_types::mining_capnp::mining;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{LocalSet, spawn_local};

use ipc_server::{connection, needs_thread};

/// What Core says of a block.
#[derive(Debug, Clone, Copy)]
pub enum Says {
    Valid,
    /// Not valid: reason, debug message.
    No(&'static str, &'static str),
    /// A reason that is no text.
    NoText,
    /// An exception.
    Throws,
    /// Valid, once the test lets it be said.
    WhenReleased,
}

/// Which Core it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Version {
    V31,
    /// Has no method of the number that `makeMining` has in 31.
    V30,
}

/// A question as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub block: Vec<u8>,
    pub check_merkle_root: bool,
    pub check_pow: bool,
}

type Behaviour = dyn Fn(&[u8]) -> Says + Send + Sync;

struct State {
    version: Version,
    behaviour: Box<Behaviour>,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
    releases: Semaphore,
}

pub struct FakeCore {
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeCore {
    pub fn start(
        socket: &Path,
        version: Version,
        behaviour: impl Fn(&[u8]) -> Says + Send + Sync + 'static,
    ) -> Self {
        // As Core does with what an earlier run left.
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(State {
            version,
            behaviour: Box::new(behaviour),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            at_once_max: AtomicUsize::new(0),
            releases: Semaphore::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = serve(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { state, stop: Some(stop), thread: Some(thread) }
    }

    /// Every block that was asked about.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The most calls that ever waited for an answer together.
    pub fn at_once_max(&self) -> usize {
        self.state.at_once_max.load(Ordering::SeqCst)
    }

    /// Lets so many blocks be answered.
    pub fn release(&self, count: usize) {
        self.state.releases.add_permits(count);
    }
}

impl Drop for FakeCore {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(listener: std::os::unix::net::UnixListener, state: Arc<State>) {
    let listener = UnixListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::SeqCst);
        let state = Arc::clone(&state);
        spawn_local(connection(stream, move || match state.version {
            Version::V31 => Ok(new_client(Mining(Arc::clone(&state)))),
            Version::V30 => Err(Error::unimplemented("methodId = 3".to_owned())),
        }));
    }
}

struct Mining(Arc<State>);

impl mining::Server for Mining {
    async fn check_block(
        self: Rc<Self>,
        params: mining::CheckBlockParams,
        mut results: mining::CheckBlockResults,
    ) -> Result<(), Error> {
        let state = &self.0;
        let params = params.get()?;
        needs_thread(params.get_context()?)?;
        let options = params.get_options()?;
        let asked = Asked {
            block: params.get_block()?.to_vec(),
            check_merkle_root: options.get_check_merkle_root(),
            check_pow: options.get_check_pow(),
        };
        let says = (state.behaviour)(&asked.block);
        let at_once = state.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        state.at_once_max.fetch_max(at_once, Ordering::SeqCst);
        state.asked.lock().unwrap().push(asked);
        let mut results = results.get();
        match says {
            Says::Valid => results.set_result(true),
            Says::No(reason, debug) => {
                results.set_reason(reason);
                results.set_debug(debug);
            }
            Says::NoText => {
                results.reborrow().init_reason(2);
                results.set_reason(bitcoin_capnp_types::capnp::text::Reader(&[0xff, 0xfe]));
            }
            Says::Throws => {
                state.at_once.fetch_sub(1, Ordering::SeqCst);
                return Err(Error::failed("std::exception: end of data".to_owned()));
            }
            Says::WhenReleased => {
                state.releases.acquire().await.unwrap().forget();
                results.set_result(true);
            }
        }
        state.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}
