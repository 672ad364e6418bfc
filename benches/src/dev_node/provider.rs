//! One client of Template Distribution (spec chapter 7), server's side, as a pure machine: what it is shown
//! of the chain and what the client says go in, frames and found blocks come out. Driven by
//! `distribution.rs`; what SRI's pool and declarator take their templates from in tests.
//!
//! Must never give one template id to two templates, nor believe a coinbase: the chain judges the block.

use std::collections::VecDeque;
use std::sync::Arc;

use job_declarator::node::NodeTemplate;
use proto::connection::{Setup, SetupPolicy, Violation, answer_setup};
use proto::job::HeaderFields;
use proto::limits::SETUP_PAYLOAD_MAX;
use proto::message::{
    Message, NewTemplate, Protocol, RequestTransactionDataError, RequestTransactionDataSuccess,
    SetupConnectionSuccess, SubmitSolution, TemplateSetNewPrevHash,
};
use proto::target::Target;
use proto::template::{merkle_root, write_compact_size};
use proto::wire::{B064K, B0255, Seq0255U256, Str0255, TransactionList};

/// Templates of one tip that a client may still name: one every 30 s for eight minutes, or a burst of new
/// constraints. At the bound the oldest is forgotten and called stale.
const TEMPLATES_MAX: usize = 16;

/// Flags of this subprotocol do not exist; what a client sets is overlooked.
const SETUP: SetupPolicy = SetupPolicy {
    protocol: Protocol::TemplateDistribution,
    supported_flags: 0,
    accept_unknown_flags: true,
    ..SetupPolicy::MINING
};

/// Codes of RequestTransactionData.Error.
const UNKNOWN: &str = "template-id-not-found";
const STALE: &str = "stale-template-id";

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The client said so.
    Message(&'a Message<'a>),
    /// The chain shows this now.
    Template(&'a Arc<NodeTemplate>),
}

/// What to do besides answering.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// A whole block, for the chain to judge.
    SubmitBlock(Vec<u8>),
    /// A solution that no block can be made of, and why.
    BadSolution(String),
    /// Nothing follows: the client was refused.
    Close,
}

/// What to say and what to do.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Frames in clear, back to back.
    pub frames: Vec<u8>,
    /// In order.
    pub effects: Vec<Effect>,
}

impl Outbox {
    fn say<'a>(&mut self, message: impl Into<Message<'a>>) {
        message.into().encode(&mut self.frames);
    }
}

/// How far the client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing may be sent before SetupConnection is answered.
    Setup,
    /// No template before CoinbaseOutputConstraints: it might leave no room.
    Constraints,
    /// Every template is said.
    Running,
}

/// A client's connection.
#[derive(Debug)]
pub struct Provider {
    phase: Phase,
    agreed: Option<Setup>,
    newest: Option<Arc<NodeTemplate>>,
    /// Templates of the present tip, oldest first, by the id they were said under.
    said: VecDeque<(u64, Arc<NodeTemplate>)>,
    next_id: u64,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            phase: Phase::Setup,
            agreed: None,
            newest: None,
            said: VecDeque::with_capacity(TEMPLATES_MAX),
            next_id: 1,
        }
    }
}

impl Provider {
    /// Nothing said yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest payload that the client has reason to send now, for `Inbound::set_limit`.
    #[must_use]
    pub fn payload_max(&self) -> usize {
        self.agreed.as_ref().map_or(SETUP_PAYLOAD_MAX, Setup::client_payload_max)
    }

    /// Takes what happened.
    ///
    /// # Errors
    /// The client broke the protocol: close.
    pub fn handle(&mut self, input: Input<'_>, out: &mut Outbox) -> Result<(), Violation> {
        match input {
            Input::Message(message) => self.hear(message, out),
            Input::Template(template) => {
                let same_tip = self
                    .newest
                    .as_ref()
                    .is_some_and(|before| before.prev_hash.is_same_tip(&template.prev_hash));
                self.newest = Some(Arc::clone(template));
                if self.phase == Phase::Running {
                    self.announce(!same_tip, out);
                }
                Ok(())
            }
        }
    }

    fn hear(&mut self, message: &Message<'_>, out: &mut Outbox) -> Result<(), Violation> {
        match (self.phase, message) {
            (Phase::Setup, Message::SetupConnection(setup)) => {
                match answer_setup(&SETUP, setup) {
                    Ok(agreed) => {
                        let Setup { version: used_version, success_flags: flags, .. } = agreed;
                        self.agreed = Some(agreed);
                        self.phase = Phase::Constraints;
                        out.say(SetupConnectionSuccess { used_version, flags });
                    }
                    Err(refusal) => {
                        out.say(refusal);
                        out.effects.push(Effect::Close);
                    }
                }
                Ok(())
            }
            (Phase::Setup, _) => Err(Violation::SetupMissing),
            (_, Message::SetupConnection(_)) => Err(Violation::SetupTwice),
            // Its numbers are not looked at: the embedded chain's templates leave a fifth of a block free.
            (_, Message::CoinbaseOutputConstraints(_)) => {
                self.phase = Phase::Running;
                // Said anew, and as a future one, also where an earlier one stands: the client may have
                // thrown all away with its old outputs.
                self.announce(true, out);
                Ok(())
            }
            (Phase::Running, Message::RequestTransactionData(request)) => {
                self.tell_transactions(request.template_id, out);
                Ok(())
            }
            (Phase::Running, Message::SubmitSolution(solution)) => {
                let block = match self.template(solution.template_id) {
                    Ok(template) => solved(template, solution),
                    Err(code) => Err(code.to_owned()),
                };
                out.effects.push(block.map_or_else(Effect::BadSolution, Effect::SubmitBlock));
                Ok(())
            }
            (Phase::Constraints | Phase::Running, other) => {
                Err(Violation::Unexpected(other.name()))
            }
        }
    }

    /// Says the newest template; a `future` one with the tip that it is for behind it.
    fn announce(&mut self, future: bool, out: &mut Outbox) {
        let Some(shown) = self.newest.clone() else { return };
        let (template, id) = (&shown.template, self.next_id);
        self.next_id += 1;
        out.say(NewTemplate {
            template_id: id,
            future_template: future,
            version: template.version,
            coinbase_tx_version: template.coinbase_tx_version,
            coinbase_prefix: B0255::new(&template.script_sig_prefix)
                .expect("a height push has at most 8 bytes"),
            coinbase_tx_input_sequence: template.coinbase_sequence,
            coinbase_tx_value_remaining: template.coinbase_value_sats,
            coinbase_tx_outputs_count: template.required_outputs_count,
            coinbase_tx_outputs: B064K::new(&template.required_outputs)
                .expect("a witness commitment is 47 bytes"),
            coinbase_tx_locktime: template.coinbase_locktime,
            merkle_path: Seq0255U256::new(&template.merkle_path)
                .expect("no block has more than 2^20 transactions"),
        });
        if future {
            let tip = shown.prev_hash;
            out.say(TemplateSetNewPrevHash {
                template_id: id,
                prev_hash: tip.hash,
                header_timestamp: tip.min_ntime,
                nbits: tip.nbits,
                target: Target::from_compact(tip.nbits).to_le_bytes(),
            });
        }
        let old_tip = self
            .said
            .back()
            .is_some_and(|(_, before)| !before.prev_hash.is_same_tip(&shown.prev_hash));
        if old_tip {
            self.said.clear();
        }
        if self.said.len() == TEMPLATES_MAX {
            self.said.pop_front();
        }
        self.said.push_back((id, shown));
    }

    /// The template that the client calls `id`.
    fn template(&self, id: u64) -> Result<&NodeTemplate, &'static str> {
        if let Some((_, template)) = self.said.iter().find(|(said, _)| *said == id) {
            return Ok(template);
        }
        // Ids count up from one, so each below the next was said once.
        Err(if (1..self.next_id).contains(&id) { STALE } else { UNKNOWN })
    }

    fn tell_transactions(&self, template_id: u64, out: &mut Outbox) {
        let refuse =
            |code| RequestTransactionDataError { template_id, error_code: Str0255::text(code) };
        let mut buffer = Vec::new();
        match self.template(template_id) {
            Err(code) => out.say(refuse(code)),
            Ok(template) => {
                let transactions = template.template.known_transactions();
                match TransactionList::new(transactions, &mut buffer) {
                    Ok(transaction_list) => out.say(RequestTransactionDataSuccess {
                        template_id,
                        excess_data: B064K::default(),
                        transaction_list,
                    }),
                    // A block holds no transaction that the wire could not.
                    Err(_) => out.say(refuse(UNKNOWN)),
                }
            }
        }
    }
}

/// The block that a solution completes: the coinbase is the client's, all else the template's.
pub(super) fn solved(
    shown: &NodeTemplate,
    solution: &SubmitSolution<'_>,
) -> Result<Vec<u8>, String> {
    use bitcoin::hashes::Hash;
    let coinbase = solution.coinbase_tx.as_slice();
    let parsed: bitcoin::Transaction =
        bitcoin::consensus::deserialize(coinbase).map_err(|error| format!("coinbase: {error}"))?;
    let txid = parsed.compute_txid().to_byte_array();
    let template = &shown.template;
    let header = HeaderFields {
        version: solution.version,
        prev_hash: shown.prev_hash.hash,
        merkle_root: merkle_root(txid, &template.merkle_path),
        ntime: solution.header_timestamp,
        nbits: shown.prev_hash.nbits,
        nonce: solution.header_nonce,
    };
    let mut block = header.to_bytes().to_vec();
    write_compact_size(template.known_transactions().len() as u64 + 1, &mut block);
    block.extend_from_slice(coinbase);
    for transaction in template.known_transactions() {
        block.extend_from_slice(transaction);
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
    use job_declarator::node::{Node, Submitted};
    use proto::job::Job;
    use proto::message::{
        CoinbaseOutputConstraints, FrameHeader, Received, RequestTransactionData, SetupConnection,
    };
    use proto::template::Output;

    fn chain() -> EmbeddedChain {
        let options =
            EmbeddedOptions { tx_count: 5, block_hashes: 2, ..EmbeddedOptions::default() };
        EmbeddedChain::new(options).unwrap()
    }

    async fn shown(chain: &EmbeddedChain) -> Arc<NodeTemplate> {
        Arc::new(chain.next_template(None).await.unwrap())
    }

    fn setup(protocol: Protocol) -> Message<'static> {
        Message::from(SetupConnection {
            protocol: protocol as u8,
            min_version: 2,
            max_version: 2,
            flags: 0,
            endpoint_host: Str0255::default(),
            endpoint_port: 0,
            vendor: Str0255::default(),
            hardware_version: Str0255::default(),
            firmware: Str0255::default(),
            device_id: Str0255::default(),
        })
    }

    fn constraints() -> Message<'static> {
        Message::from(CoinbaseOutputConstraints {
            coinbase_output_max_additional_size: 100,
            coinbase_output_max_additional_sigops: 4,
        })
    }

    fn said(frames: &[u8]) -> Vec<Message<'_>> {
        let mut rest = frames;
        let mut messages = Vec::new();
        while let Some((header, after)) = rest.split_first_chunk() {
            let header = FrameHeader::decode(*header);
            let (payload, after) = after.split_at(header.length);
            rest = after;
            let said = Message::decode(header.extension(), header.msg_type, payload).unwrap();
            let Received::Known(message, _) = said else { panic!("{said:?}") };
            messages.push(message);
        }
        messages
    }

    fn names(out: &Outbox) -> Vec<&'static str> {
        said(&out.frames).iter().map(Message::name).collect()
    }

    fn template_said(out: &Outbox) -> NewTemplate<'_> {
        let find = |message| {
            if let Message::NewTemplate(template) = message { Some(template) } else { None }
        };
        said(&out.frames).into_iter().find_map(find).unwrap()
    }

    /// A client that was sent its first template.
    fn running(template: &Arc<NodeTemplate>) -> (Provider, Outbox) {
        let (mut provider, mut out) = (Provider::new(), Outbox::default());
        provider.handle(Input::Template(template), &mut out).unwrap();
        assert!(out.frames.is_empty(), "nothing before it is asked for");
        let protocol = setup(Protocol::TemplateDistribution);
        provider.handle(Input::Message(&protocol), &mut out).unwrap();
        assert_eq!(names(&out), ["SetupConnectionSuccess"]);
        let mut out = Outbox::default();
        provider.handle(Input::Message(&constraints()), &mut out).unwrap();
        (provider, out)
    }

    fn ask(provider: &mut Provider, template_id: u64) -> Outbox {
        let mut out = Outbox::default();
        let request = Message::from(RequestTransactionData { template_id });
        provider.handle(Input::Message(&request), &mut out).unwrap();
        out
    }

    fn refusal(out: &Outbox) -> String {
        match said(&out.frames).as_slice() {
            [Message::RequestTransactionDataError(error)] => error.error_code.printable(),
            other => panic!("{other:?}"),
        }
    }

    async fn next_block(chain: &EmbeddedChain) {
        let shown = shown(chain).await;
        let (header, job) = mined(&shown);
        assert_eq!(
            chain.submit_block(&job.block(&header, &[0; 24]).unwrap()).await.unwrap(),
            Submitted::Accepted
        );
    }

    fn mined(shown: &NodeTemplate) -> (HeaderFields, Job) {
        let sats = shown.template.coinbase_value_sats;
        let outputs = [Output { sats, script: vec![0x51] }];
        let job = Job::new(Arc::clone(&shown.template), &outputs, b"x").unwrap();
        let mut header = HeaderFields {
            version: job.version(),
            prev_hash: shown.prev_hash.hash,
            merkle_root: job.merkle_root(&[0; 24]),
            ntime: shown.prev_hash.min_ntime,
            nbits: shown.prev_hash.nbits,
            nonce: 0,
        };
        while !Target::from_compact(header.nbits).is_met_by(&header.hash()) {
            header.nonce += 1;
        }
        (header, job)
    }

    #[tokio::test]
    async fn the_first_template_is_a_future_one_and_its_tip_follows() {
        let template = shown(&chain()).await;
        let (_, out) = running(&template);
        assert_eq!(names(&out), ["NewTemplate", "TemplateSetNewPrevHash"]);
        let new = template_said(&out);
        assert!(new.future_template);
        assert_eq!(new.coinbase_tx_outputs_count, 1);
        assert_eq!(new.merkle_path.as_slice(), template.template.merkle_path);
        let Message::TemplateSetNewPrevHash(tip) = said(&out.frames)[1] else { panic!() };
        assert_eq!((tip.template_id, tip.prev_hash), (new.template_id, template.prev_hash.hash));
    }

    #[tokio::test]
    async fn a_refresh_is_no_future_template_and_a_new_tip_is() {
        let chain = chain();
        let first = shown(&chain).await;
        let (mut provider, out) = running(&first);
        let id = template_said(&out).template_id;
        let mut out = Outbox::default();
        provider.handle(Input::Template(&first), &mut out).unwrap();
        assert_eq!(names(&out), ["NewTemplate"]);
        assert!(!template_said(&out).future_template);
        assert_eq!(template_said(&out).template_id, id + 1);

        next_block(&chain).await;
        let mut out = Outbox::default();
        provider.handle(Input::Template(&shown(&chain).await), &mut out).unwrap();
        assert_eq!(names(&out), ["NewTemplate", "TemplateSetNewPrevHash"]);
        assert!(template_said(&out).future_template);
    }

    #[tokio::test]
    async fn new_constraints_get_the_template_anew_under_another_id() {
        let template = shown(&chain()).await;
        let (mut provider, first) = running(&template);
        let mut out = Outbox::default();
        provider.handle(Input::Message(&constraints()), &mut out).unwrap();
        assert_eq!(names(&out), ["NewTemplate", "TemplateSetNewPrevHash"]);
        assert_eq!(template_said(&out).template_id, template_said(&first).template_id + 1);
    }

    #[tokio::test]
    async fn transactions_are_told_of_what_was_said_and_of_nothing_else() {
        let chain = chain();
        let template = shown(&chain).await;
        let (mut provider, _) = running(&template);
        let out = ask(&mut provider, 1);
        let messages = said(&out.frames);
        let [Message::RequestTransactionDataSuccess(data)] = messages.as_slice() else { panic!() };
        assert_eq!(data.transaction_list.len(), 5);
        assert!(
            data.transaction_list.iter().eq(template
                .template
                .known_transactions()
                .iter()
                .map(AsRef::as_ref))
        );
        assert_eq!(refusal(&ask(&mut provider, 2)), UNKNOWN);
        assert_eq!(refusal(&ask(&mut provider, 0)), UNKNOWN);

        next_block(&chain).await;
        provider.handle(Input::Template(&shown(&chain).await), &mut Outbox::default()).unwrap();
        assert_eq!(refusal(&ask(&mut provider, 1)), STALE);
    }

    #[tokio::test]
    async fn as_many_templates_as_the_bound_are_remembered() {
        let template = shown(&chain()).await;
        let (mut provider, _) = running(&template);
        for _ in 1..TEMPLATES_MAX {
            provider.handle(Input::Template(&template), &mut Outbox::default()).unwrap();
        }
        assert_eq!(names(&ask(&mut provider, 1)), ["RequestTransactionDataSuccess"]);
        provider.handle(Input::Template(&template), &mut Outbox::default()).unwrap();
        assert_eq!(refusal(&ask(&mut provider, 1)), STALE);
    }

    #[tokio::test]
    async fn a_solution_becomes_the_block_that_the_chain_takes() {
        let chain = chain();
        let template = shown(&chain).await;
        let (mut provider, _) = running(&template);
        let (header, job) = mined(&template);
        let coinbase = job.coinbase().with_witness(&[0; 24], true);
        let mut solution = SubmitSolution {
            template_id: 1,
            version: header.version,
            header_timestamp: header.ntime,
            header_nonce: header.nonce,
            coinbase_tx: B064K::new(&coinbase).unwrap(),
        };
        let mut out = Outbox::default();
        provider.handle(Input::Message(&solution.into()), &mut out).unwrap();
        let [Effect::SubmitBlock(block)] = out.effects.as_slice() else { panic!() };
        assert_eq!(*block, job.block(&header, &[0; 24]).unwrap());
        assert_eq!(chain.submit_block(block).await.unwrap(), Submitted::Accepted);

        solution.template_id = 2;
        let cut = &coinbase[..coinbase.len() - 1];
        let other =
            SubmitSolution { template_id: 1, coinbase_tx: B064K::new(cut).unwrap(), ..solution };
        for bad in [solution, other] {
            let mut out = Outbox::default();
            provider.handle(Input::Message(&bad.into()), &mut out).unwrap();
            assert!(matches!(out.effects.as_slice(), [Effect::BadSolution(_)]), "{out:?}");
        }
    }

    #[test]
    fn another_subprotocol_is_refused_and_told_so() {
        let (mut provider, mut out) = (Provider::new(), Outbox::default());
        provider.handle(Input::Message(&setup(Protocol::Mining)), &mut out).unwrap();
        assert_eq!(names(&out), ["SetupConnectionError"]);
        assert_eq!(out.effects, [Effect::Close]);
        assert_eq!(provider.payload_max(), SETUP_PAYLOAD_MAX);
    }

    #[test]
    fn the_setup_comes_first_and_once_and_constraints_before_requests() {
        let mut out = Outbox::default();
        let mut provider = Provider::new();
        let early = provider.handle(Input::Message(&constraints()), &mut out);
        assert_eq!(early, Err(Violation::SetupMissing));
        let protocol = setup(Protocol::TemplateDistribution);
        provider.handle(Input::Message(&protocol), &mut out).unwrap();
        let request = Message::from(RequestTransactionData { template_id: 1 });
        let early = provider.handle(Input::Message(&request), &mut out);
        assert_eq!(early, Err(Violation::Unexpected("RequestTransactionData")));
        let again = provider.handle(Input::Message(&protocol), &mut out);
        assert_eq!(again, Err(Violation::SetupTwice));
    }
}
