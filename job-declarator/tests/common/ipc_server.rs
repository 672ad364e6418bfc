//! What every server of Bitcoin Core's mining interface begins with: a connection's first object, the threads
//! that a client asks for, and the rule that a call names one. Shared by path between the fake of these tests
//! and `benches`' development node, each with a `Mining` of its own.

use std::rc::Rc;

use bitcoin_capnp_types::capnp::Error;
use bitcoin_capnp_types::capnp::message::ReaderOptions;
use bitcoin_capnp_types::capnp_rpc::rpc_twoparty_capnp::Side;
use bitcoin_capnp_types::capnp_rpc::twoparty::VatNetwork;
use bitcoin_capnp_types::capnp_rpc::{RpcSystem, new_client};
use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::mining;
use bitcoin_capnp_types::proxy_capnp::{context, thread, thread_map};
use tokio::net::UnixStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// Serves a client with what `make` gives for `makeMining`.
pub(super) fn connection(
    stream: UnixStream,
    make: impl Fn() -> Result<mining::Client, Error> + 'static,
) -> RpcSystem<Side> {
    let (reader, writer) = stream.into_split();
    let options = ReaderOptions::new();
    let network = VatNetwork::new(reader.compat(), writer.compat_write(), Side::Server, options);
    let init: init::Client = new_client(Init(make));
    RpcSystem::new(Box::new(network), Some(init.client))
}

struct Init<F>(F);

impl<F: Fn() -> Result<mining::Client, Error> + 'static> init::Server for Init<F> {
    async fn construct(
        self: Rc<Self>,
        _: init::ConstructParams,
        mut results: init::ConstructResults,
    ) -> Result<(), Error> {
        results.get().set_thread_map(new_client(ThreadMap));
        Ok(())
    }

    async fn make_mining(
        self: Rc<Self>,
        params: init::MakeMiningParams,
        mut results: init::MakeMiningResults,
    ) -> Result<(), Error> {
        let mining = (self.0)()?;
        needs_thread(params.get()?.get_context()?)?;
        results.get().set_result(mining);
        Ok(())
    }
}

struct ThreadMap;

impl thread_map::Server for ThreadMap {
    async fn make_thread(
        self: Rc<Self>,
        _: thread_map::MakeThreadParams,
        mut results: thread_map::MakeThreadResults,
    ) -> Result<(), Error> {
        results.get().set_result(new_client(Thread));
        Ok(())
    }
}

struct Thread;

impl thread::Server for Thread {}

/// In Core's words; which thread it is makes no difference here.
pub(super) fn needs_thread(context: context::Reader<'_>) -> Result<(), Error> {
    let wrong = || Error::failed("std::exception: invalid thread handle".to_owned());
    context.has_thread().then_some(()).ok_or_else(wrong)
}
