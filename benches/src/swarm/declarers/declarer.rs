//! One declarer: a connection to declare jobs and one to mine them, driven one request at a time. Spawned by
//! `mod.rs`; what it saw is in the `Tally`.
//!
//! Must never time its own work: a job is ready before its declaration is timed.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a pool may say more than a declarer listens to: that is no answer to what was asked"
)]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proto::limits::FRAME_PAYLOAD_MAX;
use proto::message::{
    AllocateMiningJobToken, DeclareMiningJob, Message, OpenExtendedMiningChannel, Protocol,
    ProvideMissingTransactionsSuccess, Received, SetCustomMiningJob, SetupConnection,
    SubmitSharesExtended, setup_flags,
};
use proto::net::Link;
use proto::noise::AuthorityPublicKey;
use proto::wire::{
    B032, B064K, B0255, Seq064KU256, Seq0255U256, Str0255, TooLong, TransactionList,
};
use tokio::time::timeout;

use super::super::connection::dial;
use super::super::options::loopback;
use super::Tally;
use super::lists::{Lists, Mempool, OwnJob};

/// For any one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// The block of the loopback network that declarers come from: each is a household of its own.
const SOURCE_BLOCK: u8 = 240;

/// Where and as who.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) declare: SocketAddr,
    pub(super) mine: SocketAddr,
    pub(super) authority: Option<AuthorityPublicKey>,
    pub(super) lists: Lists,
}

/// A declarer that is let in on both ports.
pub(super) struct Declarer {
    number: usize,
    lists: Lists,
    declare: Wire,
    mine: Wire,
    channel: u32,
    extranonce_len: usize,
    request_id: u32,
    tally: Rc<RefCell<Tally>>,
}

impl Declarer {
    /// Opens both connections and a channel.
    ///
    /// # Errors
    /// Why not, in few words; so in all of this file.
    pub(super) async fn open(
        places: &Places,
        number: usize,
        tally: Rc<RefCell<Tally>>,
    ) -> Result<Self, String> {
        let Places { declare, mine, lists, .. } = *places;
        let open = |at, protocol, flags| Wire::open(places, number, at, protocol, flags);
        let declare = open(declare, Protocol::JobDeclaration, setup_flags::DECLARE_TX_DATA).await?;
        let mut mine = open(mine, Protocol::Mining, setup_flags::REQUIRES_WORK_SELECTION).await?;
        mine.send(OpenExtendedMiningChannel {
            request_id: 1,
            user_identity: user(number),
            nominal_hash_rate: 1.0,
            max_target: [0xff; 32],
            min_extranonce_size: 4,
        })
        .await?;
        let opened = mine.hear(|message| match message {
            Message::OpenExtendedMiningChannelSuccess(open) => {
                Some(Ok((open.channel_id, usize::from(open.extranonce_size))))
            }
            Message::OpenMiningChannelError(error) => Some(Err(error.error_code.printable())),
            _ => None,
        });
        let (channel, extranonce_len) =
            opened.await?.map_err(|code| format!("channel refused: {code}"))?;
        Ok(Self { number, lists, declare, mine, channel, extranonce_len, request_id: 1, tally })
    }

    /// From a fresh token to a credited share of the job that the mempool gives now.
    pub(super) async fn turn(&mut self, mempool: &Mempool) -> Result<(), String> {
        let (token, script) = self.allocate().await?;
        let job = mempool.job(self.number, self.lists, &script)?;
        let Some(token) = self.declare(&token, &job).await? else { return Ok(()) };
        let Some(job_id) = self.set_custom(&token, &job).await? else { return Ok(()) };
        self.submit(job_id, &job).await
    }

    fn request(&mut self) -> u32 {
        self.request_id += 1;
        self.request_id
    }

    /// A token, and the script that is to be paid.
    async fn allocate(&mut self) -> Result<(Vec<u8>, Vec<u8>), String> {
        let request_id = self.request();
        let user_identifier = user(self.number);
        self.declare.send(AllocateMiningJobToken { user_identifier, request_id }).await?;
        let allocated = self.declare.hear(|message| match message {
            Message::AllocateMiningJobTokenSuccess(success) => {
                // Count, value, length of the script: one output, as this pool asks for.
                let script = success.coinbase_tx_outputs.as_slice().get(10..)?.to_vec();
                Some((success.mining_job_token.as_slice().to_vec(), script))
            }
            _ => None,
        });
        allocated.await
    }

    /// The token to mine with; `None` if the job is refused.
    async fn declare(&mut self, token: &[u8], job: &OwnJob) -> Result<Option<Vec<u8>>, String> {
        let request_id = self.request();
        let parts = job.built.declared_parts();
        let began = Instant::now();
        self.declare
            .send(DeclareMiningJob {
                request_id,
                mining_job_token: B0255::new(token).map_err(too_long)?,
                version: job.built.version,
                coinbase_tx_prefix: B064K::new(&parts.prefix).map_err(too_long)?,
                coinbase_tx_suffix: B064K::new(&parts.suffix).map_err(too_long)?,
                wtxid_list: Seq064KU256::new(&job.wtxids).map_err(too_long)?,
                excess_data: B064K::default(),
            })
            .await?;
        let mut supplied = 0;
        loop {
            match self.declare.hear(|message| Said::of(message, request_id)).await? {
                Said::Asked(positions) => {
                    supplied += positions.len();
                    let list = job.at(&positions).ok_or("asked for what was not declared")?;
                    let mut encoded = Vec::new();
                    let list = TransactionList::new(&list, &mut encoded);
                    let transaction_list = list.map_err(too_long)?;
                    let provided =
                        ProvideMissingTransactionsSuccess { request_id, transaction_list };
                    self.declare.send(provided).await?;
                }
                Said::Verdict(verdict) => {
                    let mut tally = self.tally.borrow_mut();
                    tally.answered(began.elapsed(), supplied);
                    return Ok(verdict.map_err(|code| tally.refused(&code)).ok());
                }
            }
        }
    }

    /// The id of the job; `None` if it is refused.
    async fn set_custom(&mut self, token: &[u8], job: &OwnJob) -> Result<Option<u32>, String> {
        let request_id = self.request();
        let coinbase = &job.built.coinbase;
        let began = Instant::now();
        self.mine
            .send(SetCustomMiningJob {
                channel_id: self.channel,
                request_id,
                mining_job_token: B0255::new(token).map_err(too_long)?,
                version: job.built.version,
                prev_hash: job.tip.hash,
                min_ntime: job.tip.min_ntime,
                nbits: job.tip.nbits,
                coinbase_tx_version: coinbase.version,
                coinbase_prefix: B0255::new(&coinbase.script_sig_prefix).map_err(too_long)?,
                coinbase_tx_input_sequence: coinbase.sequence,
                coinbase_tx_outputs: B064K::new(&coinbase.outputs).map_err(too_long)?,
                coinbase_tx_locktime: coinbase.lock_time,
                merkle_path: Seq0255U256::new(&job.built.merkle_path).map_err(too_long)?,
            })
            .await?;
        let verdict = self.mine.hear(|message| match message {
            Message::SetCustomMiningJobSuccess(success) => Some(Ok(success.job_id)),
            Message::SetCustomMiningJobError(error) => Some(Err(error.error_code.printable())),
            _ => None,
        });
        let verdict = verdict.await?;
        let mut tally = self.tally.borrow_mut();
        tally.set.record(began.elapsed(), 1);
        Ok(verdict.map_err(|code| tally.refused(&code)).ok())
    }

    /// One share, unsearched: where the difficulty is pinned at the easiest practically every hash is one.
    async fn submit(&mut self, job_id: u32, job: &OwnJob) -> Result<(), String> {
        let sequence_number = self.request();
        let extranonce = vec![0; self.extranonce_len];
        self.mine
            .send(SubmitSharesExtended {
                channel_id: self.channel,
                sequence_number,
                job_id,
                nonce: sequence_number,
                ntime: job.tip.min_ntime,
                version: job.built.version,
                extranonce: B032::new(&extranonce).map_err(too_long)?,
            })
            .await?;
        let credited = self.mine.hear(|message| match message {
            Message::SubmitSharesSuccess(_) => Some(Ok(())),
            Message::SubmitSharesError(error) => Some(Err(error.error_code.printable())),
            _ => None,
        });
        let credited = credited.await?;
        let mut tally = self.tally.borrow_mut();
        match credited {
            Ok(()) => tally.credited += 1,
            Err(code) => tally.refused(&code),
        }
        Ok(())
    }
}

/// What the pool says to a declaration.
enum Said {
    Asked(Vec<[u8; 2]>),
    Verdict(Result<Vec<u8>, String>),
}

impl Said {
    fn of(message: &Message<'_>, request: u32) -> Option<Self> {
        match message {
            Message::ProvideMissingTransactions(asked) if asked.request_id == request => {
                Some(Self::Asked(asked.unknown_tx_position_list.as_slice().to_vec()))
            }
            Message::DeclareMiningJobSuccess(success) if success.request_id == request => {
                Some(Self::Verdict(Ok(success.new_mining_job_token.as_slice().to_vec())))
            }
            Message::DeclareMiningJobError(error) if error.request_id == request => {
                Some(Self::Verdict(Err(error.error_code.printable())))
            }
            _ => None,
        }
    }
}

fn user(number: usize) -> Str0255<'static> {
    // Accounts are few, as those of a swarm: what is measured is not the ledger.
    Str0255::text(["declarer.a", "declarer.b"][number % 2])
}

fn too_long(error: TooLong) -> String {
    error.to_string()
}

/// A link on which one thing is said and its answer awaited.
struct Wire(Link);

impl Wire {
    async fn open(
        places: &Places,
        number: usize,
        at: SocketAddr,
        protocol: Protocol,
        flags: u32,
    ) -> Result<Self, String> {
        let from =
            (at.is_ipv4() && at.ip().is_loopback()).then(|| loopback(SOURCE_BLOCK, number as u32));
        let mut wire = Self(dial(at, from, places.authority.as_ref()).await?);
        wire.0.connection().inbound.set_limit(FRAME_PAYLOAD_MAX);
        wire.send(SetupConnection {
            protocol: protocol as u8,
            min_version: 2,
            max_version: 2,
            flags,
            endpoint_host: Str0255::text("127.0.0.1"),
            endpoint_port: 0,
            vendor: Str0255::text("declarers"),
            hardware_version: Str0255::text("none"),
            firmware: Str0255::text(env!("CARGO_PKG_VERSION")),
            device_id: Str0255::default(),
        })
        .await?;
        let setup = wire.hear(|message| match message {
            Message::SetupConnectionSuccess(_) => Some(Ok(())),
            Message::SetupConnectionError(error) => Some(Err(error.error_code.printable())),
            _ => None,
        });
        setup.await?.map_err(|code| format!("setup refused: {code}"))?;
        Ok(wire)
    }

    async fn send<'a>(&mut self, message: impl Into<Message<'a>>) -> Result<(), String> {
        self.0.connection().outbound.send(&message.into());
        self.0.flush().await.map_err(|error| error.to_string())
    }

    /// The first message that means something to `take`.
    async fn hear<T>(&mut self, take: impl FnMut(&Message<'_>) -> Option<T>) -> Result<T, String> {
        let heard = timeout(ANSWER_DEADLINE, self.heard(take)).await;
        heard.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn heard<T>(
        &mut self,
        mut take: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        loop {
            let inbound = &mut self.0.connection().inbound;
            while let Some(frame) = inbound.next_frame().map_err(|error| words(&error))? {
                let received = frame.message().map_err(|error| words(&error))?;
                let Received::Known(message, _) = received else { continue };
                if let Some(taken) = take(&message) {
                    return Ok(taken);
                }
            }
            if self.0.fill().await.map_err(|error| words(&error))? == 0 {
                return Err("closed by the pool".to_owned());
            }
        }
    }
}
