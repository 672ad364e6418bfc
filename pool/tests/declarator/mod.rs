//! A test's own declarator over real links: it has tokens allocated, declares jobs of a template that it
//! changes as it likes, mines them, and says solutions. What it is told is given back as it was said.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "each test uses its part; builders outside a #[test] fail it just as well"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use job_declarator::declared::{BuiltJob, build};
use job_declarator::node::NodeTemplate;
use pool::run::Running;
use proto::job::HeaderFields;
use proto::limits::{EXTRANONCE_LEN, FRAME_PAYLOAD_MAX};
use proto::message::{
    AllocateMiningJobToken, DeclareMiningJob, Message, OpenExtendedMiningChannel, Protocol,
    ProvideMissingTransactionsSuccess, PushSolution, Received, SetCustomMiningJob, SetupConnection,
    SubmitSharesExtended, setup_flags,
};
use proto::net::{Link, LinkError};
use proto::target::Target;
use proto::template::{Output, Template, merkle_path, merkle_root, sha256d};
use proto::wire::{B032, B064K, B0255, Seq064KU256, Seq0255U256, Str0255, TransactionList};
use tokio::time::timeout;

use crate::session::{PATIENCE, link_on, stream_from};

/// Where declarators are at home if nothing else is said.
pub(crate) const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Another household.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

/// What stands in its coinbases.
pub(crate) const TAG: &[u8] = b"/miner/";

/// A link and the frames that came over it.
pub(crate) struct Wire(pub(crate) Link);

impl Wire {
    /// Connects and says SetupConnection.
    pub(crate) async fn open(at: SocketAddr, protocol: Protocol, flags: u32) -> Self {
        Self::open_from(HOME, at, protocol, flags).await
    }

    /// From this address.
    pub(crate) async fn open_from(
        from: Ipv4Addr,
        at: SocketAddr,
        protocol: Protocol,
        flags: u32,
    ) -> Self {
        let stream = stream_from(from.octets(), at).await;
        Self::on(link_on(stream).await.unwrap(), protocol, flags).await
    }

    /// The same on a link that is there.
    pub(crate) async fn on(link: Link, protocol: Protocol, flags: u32) -> Self {
        let mut wire = Self(link);
        wire.0.connection().inbound.set_limit(FRAME_PAYLOAD_MAX);
        wire.send(setup(protocol, flags)).await;
        wire.hear(|message| match message {
            Message::SetupConnectionSuccess(_) => Some(()),
            Message::SetupConnectionError(error) => panic!("{}", error.error_code.printable()),
            _ => None,
        })
        .await;
        wire
    }

    pub(crate) async fn send<'a>(&mut self, message: impl Into<Message<'a>>) {
        self.0.connection().outbound.send(&message.into());
        self.0.flush().await.unwrap();
    }

    /// The first message that means something to `take`.
    pub(crate) async fn hear<T>(&mut self, mut take: impl FnMut(&Message<'_>) -> Option<T>) -> T {
        let heard =
            timeout(PATIENCE, self.heard(&mut take)).await.expect("nothing was said in time");
        heard.expect("the link broke")
    }

    async fn heard<T>(
        &mut self,
        take: &mut impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<T, LinkError> {
        loop {
            while let Some(frame) = self.0.connection().inbound.next_frame()? {
                let Received::Known(message, _) = frame.message()? else { continue };
                if let Some(taken) = take(&message) {
                    return Ok(taken);
                }
            }
            if self.0.fill().await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Waits for the other end to close.
    pub(crate) async fn closed(mut self) {
        let never = &mut |_: &Message<'_>| None::<()>;
        let end = timeout(PATIENCE, self.heard(never)).await.expect("the link stays open");
        assert!(end.is_err());
    }
}

/// What opens a connection.
pub(crate) fn setup(protocol: Protocol, flags: u32) -> SetupConnection<'static> {
    SetupConnection {
        protocol: protocol as u8,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: Str0255::default(),
        endpoint_port: 0,
        vendor: Str0255::text("test"),
        hardware_version: Str0255::default(),
        firmware: Str0255::default(),
        device_id: Str0255::default(),
    }
}

/// A job of the miner's own: his template, and the coinbase that pays the pool.
#[derive(Clone)]
pub(crate) struct OwnJob {
    pub(crate) template: Template,
    pub(crate) shown: NodeTemplate,
    pub(crate) built: BuiltJob,
}

impl OwnJob {
    /// Of what the pool's node shows, with `extra` transactions behind its own, paying `script`.
    pub(crate) async fn new(pool: &Running, extra: &[Transaction], script: &[u8]) -> Self {
        let shown = pool.node.next_template(None).await.unwrap();
        Self::of(shown, extra, script)
    }

    pub(crate) fn of(shown: NodeTemplate, extra: &[Transaction], script: &[u8]) -> Self {
        let mut template = Template::clone(&shown.template);
        if !extra.is_empty() {
            let mut transactions = template.transactions.as_deref().unwrap().clone();
            transactions.extend(extra.iter().map(|one| bitcoin::consensus::serialize(one).into()));
            with_transactions(&mut template, transactions);
        }
        template.coinbase_value_sats += extra.iter().map(|_| FEE_SATS).sum::<u64>();
        let value = template.coinbase_value_sats;
        Self::paying(template, shown, vec![Output { sats: value, script: script.to_vec() }])
    }

    /// With these outputs, which must sum to the template's value.
    pub(crate) fn paying(template: Template, shown: NodeTemplate, outputs: Vec<Output>) -> Self {
        let built = build(&template, &outputs, TAG, EXTRANONCE_LEN).unwrap();
        Self { template, shown, built }
    }

    pub(crate) fn header(&self, extranonce: &[u8], ntime: u32) -> HeaderFields {
        let parts = self.built.coinbase.parts(EXTRANONCE_LEN);
        let coinbase = [&parts.prefix, extranonce, &parts.suffix].concat();
        HeaderFields {
            version: self.built.version,
            prev_hash: self.shown.prev_hash.hash,
            merkle_root: merkle_root(sha256d(&coinbase), &self.built.merkle_path),
            ntime,
            nbits: self.shown.prev_hash.nbits,
            nonce: 0,
        }
    }

    /// The whole block.
    pub(crate) fn block(&self, header: &HeaderFields, extranonce: &[u8]) -> Vec<u8> {
        let parts = self.built.coinbase.parts(EXTRANONCE_LEN);
        let mut block = header.to_bytes().to_vec();
        let transactions = self.template.known_transactions();
        proto::template::write_compact_size(transactions.len() as u64 + 1, &mut block);
        block.extend(parts.with_witness(extranonce, self.template.commits_to_witnesses));
        transactions.iter().for_each(|bytes| block.extend_from_slice(bytes));
        block
    }
}

/// What `extra` transactions pay in fees, each.
pub(crate) const FEE_SATS: u64 = 700;

/// These transactions in place of the template's, its path and commitment after them; its value stays.
pub(crate) fn with_transactions(template: &mut Template, transactions: Vec<Arc<[u8]>>) {
    let decoded: Vec<Transaction> =
        transactions.iter().map(|raw| bitcoin::consensus::deserialize(raw).unwrap()).collect();
    let txids: Vec<[u8; 32]> =
        decoded.iter().map(|one| one.compute_txid().to_byte_array()).collect();
    template.merkle_path = merkle_path(&txids);
    let leaves = std::iter::once(bitcoin::Wtxid::all_zeros())
        .chain(decoded.iter().map(Transaction::compute_wtxid))
        .map(bitcoin::Wtxid::to_raw_hash);
    let root = bitcoin::merkle_tree::calculate_root(leaves).unwrap();
    let root = bitcoin::WitnessMerkleNode::from_raw_hash(root);
    let commitment = bitcoin::Block::compute_witness_commitment(&root, &[0; 32]);
    let script = [&[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed][..], commitment.as_ref()].concat();
    template.required_outputs = [&[0; 8][..], &[script.len() as u8], &script].concat();
    template.required_outputs_count = 1;
    template.commits_to_witnesses = true;
    template.transactions = Some(Arc::new(transactions));
}

/// Transactions that no pool has seen: each spends the one before, the first the last of the template.
pub(crate) fn unseen(template: &Template, count: usize) -> Vec<Transaction> {
    if count == 0 {
        return Vec::new();
    }
    let last = template.known_transactions().last().unwrap();
    let mut previous: Transaction = bitcoin::consensus::deserialize(last).unwrap();
    let mut made = Vec::new();
    for _ in 0..count {
        previous = spend(&previous, FEE_SATS);
        made.push(previous.clone());
    }
    made
}

/// A transaction of the development chain's kind that spends the first output of another.
pub(crate) fn spend(previous: &Transaction, fee_sats: u64) -> Transaction {
    let left = previous.output[0].value.to_sat() - fee_sats;
    let op_true = Script::from_bytes(&[0x51]);
    Transaction {
        version: Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: previous.compute_txid(), vout: 0 },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[op_true.as_bytes()]),
        }],
        output: vec![TxOut {
            value: Amount::from_sat(left),
            script_pubkey: ScriptBuf::new_p2wsh(&op_true.wscript_hash()),
        }],
    }
}

/// A refusal as it was said: code and details.
pub(crate) type Refused = (String, String);

/// A token and the outputs that came with it.
pub(crate) struct Allocated {
    pub(crate) token: Vec<u8>,
    /// Script of the first of the outputs, each of value 0.
    pub(crate) script: Vec<u8>,
}

/// The two connections of a miner who chooses his own work.
pub(crate) struct Declarator {
    pub(crate) declare: Wire,
    pub(crate) mine: Wire,
    pub(crate) user: String,
    pub(crate) channel: u32,
    prefix: Vec<u8>,
    target: Target,
    request_id: u32,
    rolled: u128,
    /// Positions that it was asked for in the last declaration.
    pub(crate) asked: Vec<u16>,
}

impl Declarator {
    pub(crate) async fn open(pool: &Running, user: &str) -> Self {
        Self::open_from(HOME, pool, user).await
    }

    /// As `open`, from this address: of another household.
    pub(crate) async fn open_from(from: Ipv4Addr, pool: &Running, user: &str) -> Self {
        let declare = pool.declare.unwrap();
        let (protocol, flags) = (Protocol::JobDeclaration, setup_flags::DECLARE_TX_DATA);
        let declare = Wire::open_from(from, declare, protocol, flags).await;
        let flags = setup_flags::REQUIRES_WORK_SELECTION;
        let mine = Wire::open_from(from, pool.listen, Protocol::Mining, flags).await;
        Self::on(declare, mine, user).await
    }

    /// On a declaration link that is there.
    pub(crate) async fn with(declare: Wire, pool: &Running, user: &str) -> Self {
        let flags = setup_flags::REQUIRES_WORK_SELECTION;
        let mine = Wire::open(pool.listen, Protocol::Mining, flags).await;
        Self::on(declare, mine, user).await
    }

    async fn on(declare: Wire, mut mine: Wire, user: &str) -> Self {
        mine.send(OpenExtendedMiningChannel {
            request_id: 1,
            user_identity: Str0255::new(user.as_bytes()).unwrap(),
            nominal_hash_rate: 1.0,
            max_target: [0xff; 32],
            min_extranonce_size: 4,
        })
        .await;
        let (channel, prefix, target) = mine
            .hear(|message| match message {
                Message::OpenExtendedMiningChannelSuccess(open) => Some((
                    open.channel_id,
                    open.extranonce_prefix.as_slice().to_vec(),
                    Target::from_le_bytes(open.target),
                )),
                Message::OpenMiningChannelError(error) => {
                    panic!("{}", error.error_code.printable())
                }
                _ => None,
            })
            .await;
        Self {
            declare,
            mine,
            user: user.to_owned(),
            channel,
            prefix,
            target,
            request_id: 0,
            rolled: 0,
            asked: Vec::new(),
        }
    }

    /// A number that no request had.
    pub(crate) fn request(&mut self) -> u32 {
        self.request_id += 1;
        self.request_id
    }

    pub(crate) async fn allocate(&mut self) -> Allocated {
        let request_id = self.request();
        let user = self.user.clone();
        self.declare
            .send(AllocateMiningJobToken {
                user_identifier: Str0255::new(user.as_bytes()).unwrap(),
                request_id,
            })
            .await;
        self.declare
            .hear(|message| match message {
                Message::AllocateMiningJobTokenSuccess(success) => {
                    assert_eq!(success.request_id, request_id);
                    let outputs = success.coinbase_tx_outputs.as_slice();
                    assert_eq!((outputs[0], &outputs[1..9]), (1, &[0; 8][..]), "one, of no value");
                    let script = outputs[10..].to_vec();
                    assert_eq!(usize::from(outputs[9]), script.len());
                    Some(Allocated { token: success.mining_job_token.as_slice().to_vec(), script })
                }
                _ => None,
            })
            .await
    }

    /// Declares and provides what is asked for; the new token, or why not.
    pub(crate) async fn declare(&mut self, token: &[u8], job: &OwnJob) -> Result<Vec<u8>, Refused> {
        let request_id = self.say_declaration(token, job).await;
        let transactions = job.template.known_transactions().to_vec();
        let provide = |positions: &[u16]| {
            positions.iter().map(|at| transactions[usize::from(*at)].to_vec()).collect()
        };
        self.finish_declaration(request_id, provide).await
    }

    /// Declares and says no more; the request's number.
    pub(crate) async fn say_declaration(&mut self, token: &[u8], job: &OwnJob) -> u32 {
        let request_id = self.request();
        let parts = job.built.declared_parts();
        let wtxids = job.built.wtxids.clone().unwrap();
        self.say_raw_declaration(request_id, token, &parts.prefix, &parts.suffix, &wtxids).await;
        request_id
    }

    pub(crate) async fn say_raw_declaration(
        &mut self,
        request_id: u32,
        token: &[u8],
        prefix: &[u8],
        suffix: &[u8],
        wtxids: &[[u8; 32]],
    ) {
        self.declare
            .send(DeclareMiningJob {
                request_id,
                mining_job_token: B0255::new(token).unwrap(),
                version: 0x2000_0000,
                coinbase_tx_prefix: B064K::new(prefix).unwrap(),
                coinbase_tx_suffix: B064K::new(suffix).unwrap(),
                wtxid_list: Seq064KU256::new(wtxids).unwrap(),
                excess_data: B064K::default(),
            })
            .await;
    }

    /// Hears the verdict, and provides what `provide` gives for the positions that are asked for.
    pub(crate) async fn finish_declaration(
        &mut self,
        request_id: u32,
        provide: impl Fn(&[u16]) -> Vec<Vec<u8>>,
    ) -> Result<Vec<u8>, Refused> {
        enum Said {
            Asked(Vec<u16>),
            Verdict(Result<Vec<u8>, Refused>),
        }
        loop {
            let said = self.declare.hear(|message| match message {
                Message::ProvideMissingTransactions(asked) => {
                    assert_eq!(asked.request_id, request_id);
                    let positions = asked.unknown_tx_position_list.as_slice();
                    Some(Said::Asked(positions.iter().map(|at| u16::from_le_bytes(*at)).collect()))
                }
                Message::DeclareMiningJobSuccess(success) => {
                    assert_eq!(success.request_id, request_id);
                    Some(Said::Verdict(Ok(success.new_mining_job_token.as_slice().to_vec())))
                }
                Message::DeclareMiningJobError(error) => {
                    assert_eq!(error.request_id, request_id);
                    let details = String::from_utf8_lossy(error.error_details.as_slice());
                    let refused = (error.error_code.printable(), details.into_owned());
                    Some(Said::Verdict(Err(refused)))
                }
                _ => None,
            });
            match said.await {
                Said::Verdict(verdict) => return verdict,
                Said::Asked(positions) => {
                    let list = provide(&positions);
                    self.asked = positions;
                    self.provide(request_id, &list).await;
                }
            }
        }
    }

    pub(crate) async fn provide(&mut self, request_id: u32, transactions: &[Vec<u8>]) {
        let mut encoded = Vec::new();
        let transaction_list = TransactionList::new(transactions, &mut encoded).unwrap();
        self.declare.send(ProvideMissingTransactionsSuccess { request_id, transaction_list }).await;
    }

    /// Asks to mine a job; its id, or the code.
    pub(crate) async fn set_custom(&mut self, token: &[u8], job: &OwnJob) -> Result<u32, String> {
        let request_id = self.request();
        let (channel_id, coinbase) = (self.channel, &job.built.coinbase);
        self.mine
            .send(SetCustomMiningJob {
                channel_id,
                request_id,
                mining_job_token: B0255::new(token).unwrap(),
                version: job.built.version,
                prev_hash: job.shown.prev_hash.hash,
                min_ntime: job.shown.prev_hash.min_ntime,
                nbits: job.shown.prev_hash.nbits,
                coinbase_tx_version: coinbase.version,
                coinbase_prefix: B0255::new(&coinbase.script_sig_prefix).unwrap(),
                coinbase_tx_input_sequence: coinbase.sequence,
                coinbase_tx_outputs: B064K::new(&coinbase.outputs).unwrap(),
                coinbase_tx_locktime: coinbase.lock_time,
                merkle_path: Seq0255U256::new(&job.built.merkle_path).unwrap(),
            })
            .await;
        self.mine
            .hear(|message| match message {
                Message::SetCustomMiningJobSuccess(success) => {
                    assert_eq!((success.channel_id, success.request_id), (channel_id, request_id));
                    Some(Ok(success.job_id))
                }
                Message::SetCustomMiningJobError(error) => {
                    assert_eq!((error.channel_id, error.request_id), (channel_id, request_id));
                    Some(Err(error.error_code.printable()))
                }
                Message::NewExtendedMiningJob(_) | Message::SetNewPrevHash(_) => {
                    panic!("work for a client that selects its own")
                }
                _ => None,
            })
            .await
    }

    /// From a token to a job that is mined.
    pub(crate) async fn set_up(&mut self, pool: &Running, unseen_count: usize) -> (OwnJob, u32) {
        let allocated = self.allocate().await;
        let shown = pool.node.next_template(None).await.unwrap();
        let extra = unseen(&shown.template, unseen_count);
        let job = OwnJob::of(shown, &extra, &allocated.script);
        let token = self.declare(&allocated.token, &job).await.unwrap();
        let id = self.set_custom(&token, &job).await.unwrap();
        (job, id)
    }

    /// Grinds a header of the job that meets its channel's target, or the network's: header and full
    /// extranonce.
    pub(crate) fn grind(&mut self, job: &OwnJob, a_block: bool) -> (HeaderFields, Vec<u8>) {
        let network = Target::from_compact(job.shown.prev_hash.nbits);
        let target = if a_block { network } else { self.target };
        let ntime = job.shown.prev_hash.min_ntime;
        loop {
            self.rolled += 1;
            let extranonce = [&self.prefix[..], &self.rolled.to_be_bytes()].concat();
            assert_eq!(extranonce.len(), EXTRANONCE_LEN);
            let mut header = job.header(&extranonce, ntime);
            for nonce in 0..1 << 20 {
                header.nonce = nonce;
                if target.is_met_by(&header.hash()) {
                    return (header, extranonce);
                }
            }
        }
    }

    /// Sends a share and hears whether it is credited.
    pub(crate) async fn submit(
        &mut self,
        job_id: u32,
        header: &HeaderFields,
        extranonce: &[u8],
    ) -> Result<(), String> {
        let sequence_number = self.request();
        self.mine
            .send(SubmitSharesExtended {
                channel_id: self.channel,
                sequence_number,
                job_id,
                nonce: header.nonce,
                ntime: header.ntime,
                version: header.version,
                extranonce: B032::new(&extranonce[self.prefix.len()..]).unwrap(),
            })
            .await;
        self.mine
            .hear(|message| match message {
                Message::SubmitSharesSuccess(success) => {
                    (success.last_sequence_number == sequence_number).then_some(Ok(()))
                }
                Message::SubmitSharesError(error) => (error.sequence_number == sequence_number)
                    .then(|| Err(error.error_code.printable())),
                _ => None,
            })
            .await
    }

    /// Mines one share of a job and has it credited.
    pub(crate) async fn mine_one(&mut self, job: &OwnJob, job_id: u32) {
        let (header, extranonce) = self.grind(job, false);
        self.submit(job_id, &header, &extranonce).await.unwrap();
    }

    pub(crate) async fn push_solution(&mut self, header: &HeaderFields, extranonce: &[u8]) {
        self.declare
            .send(PushSolution {
                extranonce: B032::new(extranonce).unwrap(),
                prev_hash: header.prev_hash,
                nonce: header.nonce,
                ntime: header.ntime,
                nbits: header.nbits,
                version: header.version,
            })
            .await;
    }
}
