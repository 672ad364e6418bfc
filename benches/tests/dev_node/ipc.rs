//! The door of the mining interface, through a client that takes templates as SRI's pool does.

use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;

use bitcoin::hashes::Hash;
use bitcoin_capnp_types::capnp::message::ReaderOptions;
use bitcoin_capnp_types::capnp::{self, ErrorKind};
use bitcoin_capnp_types::capnp_rpc::RpcSystem;
use bitcoin_capnp_types::capnp_rpc::rpc_twoparty_capnp::Side;
use bitcoin_capnp_types::capnp_rpc::twoparty::VatNetwork;
use bitcoin_capnp_types::init_capnp::init;
use bitcoin_capnp_types::mining_capnp::{block_template, mining};
use bitcoin_capnp_types::proxy_capnp::thread;
use tokio::net::UnixStream;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::*;

/// Above every fee: nothing but a new tip is worth waking for.
const MAX_MONEY: i64 = 2_100_000_000_000_000;

/// What a client of Core's holds on a connection.
#[derive(Clone)]
struct Client {
    mining: mining::Client,
    thread: thread::Client,
}

impl Client {
    async fn connect(folder: &Path) -> Self {
        let stream = UnixStream::connect(folder.join(SOCKET)).await.unwrap();
        let (reader, writer) = stream.into_split();
        let options = ReaderOptions::new();
        let network =
            VatNetwork::new(reader.compat(), writer.compat_write(), Side::Client, options);
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(Side::Server);
        spawn_local(system);
        let constructed = init.construct_request().send().promise.await.unwrap();
        let threads = constructed.get().unwrap().get_thread_map().unwrap();
        let made = threads.make_thread_request().send().promise.await.unwrap();
        let thread = made.get().unwrap().get_result().unwrap();
        let mut request = init.make_mining_request();
        request.get().init_context().set_thread(thread.clone());
        let made = request.send().promise.await.unwrap();
        Self { mining: made.get().unwrap().get_result().unwrap(), thread }
    }

    async fn template(&self) -> block_template::Client {
        let mut request = self.mining.create_new_block_request();
        request.get().init_context().set_thread(self.thread.clone());
        let made = request.send().promise.await.unwrap();
        made.get().unwrap().get_result().unwrap()
    }

    /// The next template, or none in time.
    async fn next(
        &self,
        template: &block_template::Client,
        fee_threshold: i64,
        timeout_ms: f64,
    ) -> Option<block_template::Client> {
        let mut request = template.wait_next_request();
        let mut params = request.get();
        params.reborrow().init_context().set_thread(self.thread.clone());
        let mut options = params.init_options();
        options.set_fee_threshold(fee_threshold);
        options.set_timeout(timeout_ms);
        let answer = request.send().promise.await.unwrap();
        match answer.get().unwrap().get_result() {
            Ok(next) => Some(next),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::MessageContainsNullCapabilityPointer);
                None
            }
        }
    }

    async fn block(&self, template: &block_template::Client) -> bitcoin::Block {
        let mut request = template.get_block_request();
        request.get().init_context().set_thread(self.thread.clone());
        let answer = request.send().promise.await.unwrap();
        bitcoin::consensus::deserialize(answer.get().unwrap().get_result().unwrap()).unwrap()
    }

    /// What Core answers, and its reason.
    async fn check(
        &self,
        block: &[u8],
        merkle_root: bool,
        pow: bool,
    ) -> capnp::Result<(bool, String)> {
        let mut request = self.mining.check_block_request();
        let mut params = request.get();
        params.reborrow().init_context().set_thread(self.thread.clone());
        params.set_block(block);
        let mut options = params.init_options();
        options.set_check_merkle_root(merkle_root);
        options.set_check_pow(pow);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        Ok((answer.get_result(), answer.get_reason()?.to_string()?))
    }

    async fn submit(
        &self,
        template: &block_template::Client,
        header: &HeaderFields,
        coinbase: &[u8],
    ) -> capnp::Result<bool> {
        let mut request = template.submit_solution_request();
        let mut params = request.get();
        params.reborrow().init_context().set_thread(self.thread.clone());
        params.set_version(header.version);
        params.set_timestamp(header.ntime);
        params.set_nonce(header.nonce);
        params.set_coinbase(coinbase);
        Ok(request.send().promise.await?.get()?.get_result())
    }
}

/// Cap'n Proto's clients stay on one thread.
async fn on_one_thread(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_over_the_socket_is_the_one_that_the_rpc_shows() {
    let folder = tempfile::tempdir().unwrap();
    let (node, _events) = node(folder.path(), false).await;
    on_one_thread(async {
        let shown = let_in(&node).next_template(None).await.unwrap();
        let client = Client::connect(folder.path()).await;
        let template = client.template().await;

        let block = client.block(&template).await;
        assert_eq!(block.header.prev_blockhash.to_byte_array(), shown.prev_hash.hash);
        assert_eq!(block.header.bits.to_consensus(), shown.prev_hash.nbits);
        assert_eq!(block.bip34_block_height().unwrap(), u64::from(shown.template.height));
        let transactions = block.txdata[1..].iter().map(bitcoin::consensus::serialize);
        assert!(
            transactions.eq(shown.template.known_transactions().iter().map(|raw| raw.to_vec()))
        );

        let mut request = template.get_coinbase_tx_request();
        request.get().init_context().set_thread(client.thread.clone());
        let answer = request.send().promise.await.unwrap();
        let coinbase = answer.get().unwrap().get_result().unwrap();
        let value = shown.template.coinbase_value_sats as i64;
        assert_eq!(coinbase.get_block_reward_remaining(), value);
        assert_eq!(coinbase.get_script_sig_prefix().unwrap(), shown.template.script_sig_prefix);
        assert_eq!(coinbase.get_witness().unwrap(), [0; 32]);
        let outputs = coinbase.get_required_outputs().unwrap();
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs.get(0).unwrap(), shown.template.required_outputs);

        let mut request = template.get_coinbase_merkle_path_request();
        request.get().init_context().set_thread(client.thread.clone());
        let answer = request.send().promise.await.unwrap();
        let path = answer.get().unwrap().get_result().unwrap();
        let path = path.iter().map(|branch| branch.unwrap().to_vec());
        assert!(path.eq(shown.template.merkle_path.iter().map(|branch| branch.to_vec())));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solution_over_the_socket_is_the_next_tip_and_wakes_who_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut events) = node(folder.path(), false).await;
    on_one_thread(async {
        let client = Client::connect(folder.path()).await;
        let template = client.template().await;
        assert!(client.next(&template, MAX_MONEY, 1.0).await.is_none(), "nothing has changed");

        let woken = Rc::new(RefCell::new(None));
        let waiting = {
            let (client, template, woken) = (client.clone(), template.clone(), Rc::clone(&woken));
            spawn_local(async move {
                let next = client.next(&template, MAX_MONEY, 600_000.0).await.unwrap();
                *woken.borrow_mut() = Some(client.block(&next).await.header.prev_blockhash);
            })
        };
        let shown = let_in(&node).next_template(None).await.unwrap();
        let (header, job) = solved(&shown);
        let coinbase = job.coinbase().with_witness(&EXTRANONCE, true);
        let mut wrong = header;
        while Target::from_compact(wrong.nbits).is_met_by(&wrong.hash()) {
            wrong.nonce += 1;
        }
        assert!(!client.submit(&template, &wrong, &coinbase).await.unwrap());
        let told = events.recv().await.unwrap();
        assert!(matches!(told, Event::Block { verdict: Submitted::Rejected(_), .. }), "{told:?}");

        assert!(woken.borrow().is_none());
        assert!(client.submit(&template, &header, &coinbase).await.unwrap());
        waiting.await.unwrap();
        assert_eq!(woken.borrow().unwrap().to_byte_array(), header.hash());
        let told = events.recv().await.unwrap();
        let Event::Block { door: Door::Ipc, hash, verdict: Submitted::Accepted } = told else {
            panic!("{told:?}")
        };
        assert_eq!(hash, header.hash());
        let cut = client.submit(&template, &header, &coinbase[1..]).await;
        assert!(cut.is_err(), "no coinbase");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (_node, _events) = node(folder.path(), false).await;
    on_one_thread(async {
        let client = Client::connect(folder.path()).await;
        let template = client.template().await;
        let waiting = {
            let (client, template) = (client.clone(), template.clone());
            spawn_local(async move { client.next(&template, 0, 600_000.0).await.is_none() })
        };
        // It may not have begun to wait yet.
        while !waiting.is_finished() {
            template.interrupt_wait_request().send().promise.await.unwrap();
            tokio::task::yield_now().await;
        }
        assert!(waiting.await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_judged_with_and_without_its_root() {
    let folder = tempfile::tempdir().unwrap();
    let (_node, _events) = node(folder.path(), false).await;
    on_one_thread(async {
        let client = Client::connect(folder.path()).await;
        let block = client.block(&client.template().await).await;
        let bytes = |block: &bitcoin::Block| bitcoin::consensus::serialize(block);
        assert_eq!(client.check(&bytes(&block), true, false).await.unwrap(), (true, String::new()));

        let mut rootless = block.clone();
        rootless.header.merkle_root = bitcoin::TxMerkleNode::all_zeros();
        assert!(client.check(&bytes(&rootless), false, false).await.unwrap().0);
        let (valid, reason) = client.check(&bytes(&rootless), true, false).await.unwrap();
        assert!(!valid && !reason.is_empty());

        let mut greedy = block.clone();
        greedy.txdata[0].output[0].value += bitcoin::Amount::from_sat(1);
        let (valid, reason) = client.check(&bytes(&greedy), false, false).await.unwrap();
        assert!(!valid && reason.starts_with("bad-cb-amount"), "{reason}");

        let pow = client.check(&bytes(&block), true, true).await.unwrap_err();
        assert_eq!(pow.kind, ErrorKind::Unimplemented);
        let none = client.check(&bytes(&block)[..99], true, false).await.unwrap_err();
        assert_eq!(none.kind, ErrorKind::Failed);
    })
    .await;
}
