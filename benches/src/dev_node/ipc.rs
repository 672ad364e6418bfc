//! The door of Bitcoin Core's mining interface (Cap'n Proto over a UNIX socket, by the schema of Core 31), so
//! that SRI's pool and job declaration server, which take nothing else, run on the embedded chain. Started
//! by `mod.rs`.
//!
//! Must never answer a method as if it had done something that it has not: what the chain does not tell
//! (fees and signature operations of single transactions) stays unimplemented. Cap'n Proto's objects stay
//! on a thread of their own.

#[path = "../../../job-declarator/tests/common/ipc_server.rs"]
mod ipc_server;

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoin::hashes::Hash;
use bitcoin::{Block, TxOut};
use bitcoin_capnp_types::capnp::Error;
use bitcoin_capnp_types::capnp_rpc::new_client;
use bitcoin_capnp_types::mining_capnp::{block_template, mining};
use job_declarator::node::{Checked, Node, NodeError, NodeTemplate, Submitted};
use proto::message::SubmitSolution;
use proto::wire::B064K;
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until};

use self::ipc_server::{connection, needs_thread};
use super::provider::solved;
use super::{Door, Event, Inner, anybodys_job};

/// Connections at once: SRI's pool has one for templates and one for declared jobs.
const CLIENTS_MAX: usize = 16;
/// No wait is longer; Core's own default has no end.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Where the merkle root stands in a header.
const ROOT: std::ops::Range<usize> = 36..68;
/// The coinbase's witness where a block commits to witnesses (BIP141).
const WITNESS_RESERVED: [u8; 32] = [0; 32];

/// The door is open for as long as this is kept.
pub(super) struct Open {
    _until_dropped: oneshot::Sender<()>,
}

/// Binds, and serves on a thread of its own.
pub(super) fn serve(inner: Arc<Inner>, socket: &Path) -> Result<Open> {
    // As Core does with what an earlier run left.
    let _ = std::fs::remove_file(socket);
    let listener = StdListener::bind(socket);
    let listener = listener.with_context(|| format!("the socket {}", socket.display()))?;
    listener.set_nonblocking(true).context("the socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("a runtime for the socket")?;
    let (until_dropped, dropped) = oneshot::channel();
    let run = move || {
        LocalSet::new().block_on(&runtime, async {
            tokio::select! {
                _ = accept(listener, inner) => {}
                _ = dropped => {}
            }
        });
    };
    std::thread::Builder::new().name("ipc".into()).spawn(run).context("a thread")?;
    Ok(Open { _until_dropped: until_dropped })
}

async fn accept(listener: StdListener, inner: Arc<Inner>) -> Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (stream, _) = listener.accept().await?;
        let inner = Arc::clone(&inner);
        let connection = connection(stream, move || Ok(new_client(Mining(Arc::clone(&inner)))));
        spawn_local(async move {
            // A client that is gone has nobody left to tell.
            let _ = connection.await;
            drop(place);
        });
    }
}

fn fault(error: impl std::fmt::Display) -> Error {
    Error::failed(format!("std::exception: {error}"))
}

/// Milliseconds from now; no number, or a negative one, is at once.
fn deadline(timeout_ms: f64) -> Instant {
    let seconds = Duration::try_from_secs_f64(timeout_ms.max(0.0) / 1_000.0);
    Instant::now() + seconds.unwrap_or(WAIT_MAX).min(WAIT_MAX)
}

struct Mining(Arc<Inner>);

impl Mining {
    async fn newest(&self) -> Result<NodeTemplate, Error> {
        self.0.chain.next_template(None).await.map_err(fault)
    }
}

impl mining::Server for Mining {
    async fn is_test_chain(
        self: Rc<Self>,
        params: mining::IsTestChainParams,
        mut results: mining::IsTestChainResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        results.get().set_result(true);
        Ok(())
    }

    async fn is_initial_block_download(
        self: Rc<Self>,
        params: mining::IsInitialBlockDownloadParams,
        mut results: mining::IsInitialBlockDownloadResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let info = self.0.chain.chain_info().await.map_err(fault)?;
        results.get().set_result(info.initial_block_download);
        Ok(())
    }

    async fn get_tip(
        self: Rc<Self>,
        params: mining::GetTipParams,
        mut results: mining::GetTipResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let info = self.0.chain.chain_info().await.map_err(fault)?;
        let mut results = results.get();
        results.set_has_result(true);
        let mut tip = results.init_result();
        tip.set_hash(&info.tip);
        tip.set_height(info.height as i32);
        Ok(())
    }

    async fn wait_tip_changed(
        self: Rc<Self>,
        params: mining::WaitTipChangedParams,
        mut results: mining::WaitTipChangedResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        needs_thread(params.get_context()?)?;
        let (before, until) = (params.get_current_tip()?, deadline(params.get_timeout()));
        let mut shown = self.newest().await?;
        while shown.prev_hash.hash == *before {
            tokio::select! {
                next = self.0.chain.next_template(Some(&shown.mark)) => {
                    shown = next.map_err(fault)?;
                }
                () = sleep_until(until) => break,
            }
        }
        let mut tip = results.get().init_result();
        tip.set_hash(&shown.prev_hash.hash);
        tip.set_height(shown.template.height as i32 - 1);
        Ok(())
    }

    /// The room that is asked for is not looked at: the embedded chain's templates leave a fifth of a block
    /// free.
    async fn create_new_block(
        self: Rc<Self>,
        params: mining::CreateNewBlockParams,
        mut results: mining::CreateNewBlockResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let shown = self.newest().await?;
        results.get().set_result(new_client(BlockTemplate::new(&self.0, shown)));
        Ok(())
    }

    async fn check_block(
        self: Rc<Self>,
        params: mining::CheckBlockParams,
        mut results: mining::CheckBlockResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        needs_thread(params.get_context()?)?;
        let options = params.get_options()?;
        if options.get_check_pow() {
            return Err(Error::unimplemented("a check of the proof of work".to_owned()));
        }
        let mut block = params.get_block()?.to_vec();
        let parsed: Block = bitcoin::consensus::deserialize(&block).map_err(fault)?;
        if !options.get_check_merkle_root() {
            // The chain knows no such option; what is right passes.
            let root = parsed.compute_merkle_root().ok_or_else(|| fault("no transactions"))?;
            block[ROOT].copy_from_slice(root.as_byte_array());
        }
        let mut results = results.get();
        match self.0.chain.check_block(&block).await.map_err(fault)? {
            Checked::Valid => results.set_result(true),
            Checked::NotOnTip(reason) | Checked::Invalid(reason) => results.set_reason(reason),
        }
        Ok(())
    }

    async fn interrupt(
        self: Rc<Self>,
        _: mining::InterruptParams,
        _: mining::InterruptResults,
    ) -> Result<(), Error> {
        // What it interrupts, createNewBlock, never waits here.
        Ok(())
    }
}

/// A template that a client holds, for as long as it does.
struct BlockTemplate {
    inner: Arc<Inner>,
    shown: NodeTemplate,
    interrupted: Notify,
}

impl BlockTemplate {
    fn new(inner: &Arc<Inner>, shown: NodeTemplate) -> Self {
        Self { inner: Arc::clone(inner), shown, interrupted: Notify::new() }
    }

    /// With a coinbase that pays anybody, for the client to replace.
    fn block(&self) -> Result<Vec<u8>, Error> {
        let (job, header) = anybodys_job(&self.shown).map_err(fault)?;
        let extranonce = [0; proto::limits::EXTRANONCE_LEN];
        job.block(&header, &extranonce).ok_or_else(|| fault("a template without its transactions"))
    }

    /// Another tip, or as much more in fees as was asked for; `None` once the time is over.
    async fn next(
        &self,
        threshold: i64,
        until: Instant,
    ) -> Result<Option<NodeTemplate>, NodeError> {
        let enough = i128::from(self.shown.template.coinbase_value_sats) + i128::from(threshold);
        let mut mark = self.shown.mark.clone();
        loop {
            let next = tokio::select! {
                next = self.inner.chain.next_template(Some(&mark)) => next?,
                () = self.interrupted.notified() => return Ok(None),
                () = sleep_until(until) => return Ok(None),
            };
            let is_new_tip = !next.prev_hash.is_same_tip(&self.shown.prev_hash);
            if is_new_tip || i128::from(next.template.coinbase_value_sats) >= enough {
                return Ok(Some(next));
            }
            mark = next.mark;
        }
    }
}

impl block_template::Server for BlockTemplate {
    async fn destroy(
        self: Rc<Self>,
        _: block_template::DestroyParams,
        _: block_template::DestroyResults,
    ) -> Result<(), Error> {
        // It goes with the client's last handle to it.
        Ok(())
    }

    async fn get_block_header(
        self: Rc<Self>,
        params: block_template::GetBlockHeaderParams,
        mut results: block_template::GetBlockHeaderResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let (_, header) = anybodys_job(&self.shown).map_err(fault)?;
        results.get().set_result(&header.to_bytes());
        Ok(())
    }

    async fn get_block(
        self: Rc<Self>,
        params: block_template::GetBlockParams,
        mut results: block_template::GetBlockResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        results.get().set_result(&self.block()?);
        Ok(())
    }

    async fn get_coinbase_tx(
        self: Rc<Self>,
        params: block_template::GetCoinbaseTxParams,
        mut results: block_template::GetCoinbaseTxResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let template = &self.shown.template;
        let mut coinbase = results.get().init_result();
        coinbase.set_version(template.coinbase_tx_version);
        coinbase.set_sequence(template.coinbase_sequence);
        coinbase.set_script_sig_prefix(&template.script_sig_prefix);
        if template.commits_to_witnesses {
            coinbase.set_witness(&WITNESS_RESERVED);
        }
        coinbase.set_block_reward_remaining(template.coinbase_value_sats as i64);
        coinbase.set_lock_time(template.coinbase_locktime);
        let mut outputs = coinbase.init_required_outputs(template.required_outputs_count);
        let mut rest = template.required_outputs.as_slice();
        for at in 0..template.required_outputs_count {
            let output: TxOut =
                bitcoin::consensus::Decodable::consensus_decode(&mut rest).map_err(fault)?;
            outputs.set(at, &bitcoin::consensus::serialize(&output));
        }
        Ok(())
    }

    async fn get_coinbase_merkle_path(
        self: Rc<Self>,
        params: block_template::GetCoinbaseMerklePathParams,
        mut results: block_template::GetCoinbaseMerklePathResults,
    ) -> Result<(), Error> {
        needs_thread(params.get()?.get_context()?)?;
        let path = &self.shown.template.merkle_path;
        let mut list = results.get().init_result(path.len() as u32);
        for (at, branch) in (0..).zip(path) {
            list.set(at, branch);
        }
        Ok(())
    }

    async fn submit_solution(
        self: Rc<Self>,
        params: block_template::SubmitSolutionParams,
        mut results: block_template::SubmitSolutionResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        needs_thread(params.get_context()?)?;
        let solution = SubmitSolution {
            template_id: 0, // the one at hand
            version: params.get_version(),
            header_timestamp: params.get_timestamp(),
            header_nonce: params.get_nonce(),
            coinbase_tx: B064K::new(params.get_coinbase()?).map_err(fault)?,
        };
        let block = match solved(&self.shown, &solution) {
            Ok(block) => block,
            Err(why) => {
                self.inner.tell(Event::BadSolution { why: why.clone() });
                return Err(fault(why));
            }
        };
        let verdict = self.inner.submit(Door::Ipc, &block).await;
        let verdict = verdict.ok_or_else(|| fault("the chain stopped"))?;
        // Core's word on a block that is valid and late is the same.
        results.get().set_result(!matches!(verdict, Submitted::Rejected(_)));
        Ok(())
    }

    async fn wait_next(
        self: Rc<Self>,
        params: block_template::WaitNextParams,
        mut results: block_template::WaitNextResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        needs_thread(params.get_context()?)?;
        let options = params.get_options()?;
        let until = deadline(options.get_timeout());
        let next = self.next(options.get_fee_threshold(), until).await.map_err(fault)?;
        // Nothing at all says that the time is over.
        if let Some(next) = next {
            results.get().set_result(new_client(Self::new(&self.inner, next)));
        }
        Ok(())
    }

    async fn interrupt_wait(
        self: Rc<Self>,
        _: block_template::InterruptWaitParams,
        _: block_template::InterruptWaitResults,
    ) -> Result<(), Error> {
        self.interrupted.notify_waiters();
        Ok(())
    }
}
