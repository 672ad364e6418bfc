//! Fuzz harness of the mining server as a state machine: bytes become operations (channels opened and
//! closed, shares good, bad, replayed, stale and early, templates, tips that come back, custom jobs asked
//! for and judged in any order, commits in any order, ceilings, time), of a pool's server or a house's, and
//! after each the invariants are asserted. Run by `tests/fuzz_mining_ops.rs` on fixed seeds and by the
//! cargo-fuzz target of the same name; needs nothing but `proto`.
//!
//! `common::Client` checks what is said; here stands what is kept: every share is answered once, every
//! proof is credited once and worth what it shows, every batch is acknowledged once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use common::client::Work;
use common::{
    ANY_TARGET, AtPool, Chain, Custom, HARD_NBITS, Ledger, Link, REGTEST_NBITS, Said, Share,
};
use proto::connection::Violation;
use proto::extranonce::{ExtranonceAllocator, ExtranoncePrefix};
use proto::job::{ActiveTemplate, HeaderFields};
use proto::limits::{
    BLOCKS_SENT_MAX, CREDIT_BATCH_WAITING_MAX, DIFFICULTY_LOG2_MAX, EARLY_SHARE_WAIT_MS,
    HOUSE_NUMBER_LEN, VARDIFF_CHECK_MS,
};
use proto::message::{Message, Received, Tlvs, setup_flags};
use proto::mining::server::{CustomAccepted, Effect, Input, Policy};
use proto::mining::{CreditBatch, CustomJobRequest, CustomRefusal, Kind, Worth};
use proto::target::{Difficulty, Target};
use proto::template::Template;

/// Operations of one run; more bytes are not looked at.
const STEPS_MAX: usize = 400;
/// Hashes that a "good" share may cost; beyond, it is submitted as it is.
const GRIND_MAX: u32 = 256;

/// Runs the operations that `data` spells. Panics where an invariant is broken.
pub fn mining_ops(data: &[u8]) {
    let mut data = Bytes(data);
    let mut world = World::new(&mut data);
    for _ in 0..STEPS_MAX {
        if data.0.is_empty() {
            break;
        }
        if world.step(&mut data).is_err() {
            // A violation ends the connection; what it holds for the ledger is still sent off.
            world.end();
            return;
        }
        world.check();
    }
    world.settle_everything();
    world.end();
}

/// The fuzzer's bytes, then zeros.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.u8()) % from.len()]
    }
}

/// Shares of one open channel: each is answered once.
#[derive(Default)]
struct Answers {
    submitted: u64,
    accepted: u64,
    refused: u64,
}

struct World {
    chain: Chain,
    link: Link,
    policy: Policy,
    /// As it was set last.
    ceiling: Difficulty,
    ledger: Ledger,
    /// Every job that a channel was given, to recompute proofs from.
    given: HashMap<u32, Vec<Work>>,
    published: Vec<Arc<ActiveTemplate>>,
    batches: VecDeque<CreditBatch>,
    batch_ids: HashSet<u64>,
    answers: BTreeMap<u32, Answers>,
    shown: Vec<Share>,
    /// Work of tips that are no more.
    old: VecDeque<(u32, Work)>,
    blocks: VecDeque<[u8; 32]>,
    /// What custom jobs were asked to be made of, by request.
    templates: HashMap<u32, Arc<Template>>,
    /// Requests that the pool has not judged.
    requests: Vec<CustomJobRequest>,
    /// Promised jobs by id; all others are the pool's own.
    promised: HashMap<u32, Worth>,
    next_request: u32,
}

impl World {
    fn new(data: &mut Bytes<'_>) -> Self {
        let switches = data.u8();
        let on = |bit: u8| switches & (1 << bit) != 0;
        let nbits = if on(0) { REGTEST_NBITS } else { HARD_NBITS };
        let policy = Policy {
            shares_per_minute: if on(1) { 12.0 } else { 1e9 },
            floor: Difficulty::from_log2(if on(2) { -28 } else { -32 }),
            ceiling: Difficulty::from_log2(DIFFICULTY_LOG2_MAX),
            bad_floats_end_connection: on(3),
            group_addressing: !on(4),
        };
        let flags =
            [0, 0, setup_flags::REQUIRES_STANDARD_JOBS, setup_flags::REQUIRES_WORK_SELECTION]
                [usize::from(switches >> 6)];
        // A house takes no work that its devices select.
        let is_house = on(5) && flags & setup_flags::REQUIRES_WORK_SELECTION == 0;
        let (chain, extranonces) = match is_house {
            true => (Chain::in_house(nbits, AtPool::new(4, 16)), ExtranonceAllocator::for_house()),
            false => (Chain::new(nbits), ExtranonceAllocator::new(7, 9)),
        };
        let link = Link::on(extranonces, policy.clone(), flags, chain.active());
        Self {
            link,
            ceiling: policy.ceiling,
            policy,
            ledger: Ledger::default(),
            given: HashMap::new(),
            published: vec![chain.active()],
            batches: VecDeque::new(),
            batch_ids: HashSet::new(),
            answers: BTreeMap::new(),
            shown: Vec::new(),
            old: VecDeque::new(),
            blocks: VecDeque::new(),
            templates: HashMap::new(),
            requests: Vec::new(),
            promised: HashMap::new(),
            next_request: 0,
            chain,
        }
    }

    fn step(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let op = data.u8() % 32;
        // The task leaves the socket alone while the ledger is behind.
        if op < 24 && !self.link.server.takes_more() {
            return self.commit(data);
        }
        match op {
            0..=1 => self.open(data),
            2..=3 => self.update(data),
            4 => self.close(data),
            5..=13 => self.submit_on_newest(data),
            14..=15 => self.submit_spoiled(data),
            16..=17 => self.replay(data),
            18..=19 => self.submit_old(data),
            20 => self.submit_early(data),
            21 if data.u8() & 1 == 0 => self.custom_job(data),
            21 => self.judge_custom_job(data),
            22 => self.raw_message(data),
            23 => {
                let choice = data.u8();
                self.link.server.set_worker_hashrate(choice & 1 == 1);
                if choice >= 128 {
                    self.ceiling = Difficulty::from_log2(i16::from(choice % 16) - 33);
                    let said = self.link.set_ceiling(self.ceiling);
                    self.hear(&said);
                }
                Ok(())
            }
            24..=26 => self.template(data),
            27..=28 => self.commit(data),
            29..=30 => self.wait(data),
            _ => {
                // A clock that is set: forward, back, and right again.
                self.link.clock_set_s = data.pick(&[0, 0, 30, -30, 3_000, -3_000]);
                self.link.set_clock(self.link.now.mono_ms);
                Ok(())
            }
        }
    }

    /// A channel that is open, or now and then an id that is none.
    fn channel(&self, data: &mut Bytes<'_>) -> u32 {
        let pick = usize::from(data.u8());
        let open = &self.link.client.devices;
        if pick >= 240 || open.is_empty() {
            return [0, 1, 2, 77][pick % 4];
        }
        *open.keys().nth(pick % open.len()).expect("within the length")
    }

    fn rate(data: &mut Bytes<'_>) -> f32 {
        let odd = f32::from_bits(data.u32());
        data.pick(&[0.0, 0.0, 1.0, 1e3, 1e12, 1e12, f32::MAX, odd])
    }

    fn limit(data: &mut Bytes<'_>) -> [u8; 32] {
        let power = |log2| Difficulty::from_log2(log2).target().to_le_bytes();
        let mut odd = [data.u8(); 32];
        odd[31] = data.u8();
        let few = power(i16::from(data.u8() % 8) - 32);
        data.pick(&[
            ANY_TARGET,
            ANY_TARGET,
            ANY_TARGET,
            few,
            few,
            power(62),
            power(63),
            [0; 32],
            odd,
        ])
    }

    fn open(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let kind = if data.u8() & 1 == 0 { Kind::Extended } else { Kind::Standard };
        let (rate, limit) = (Self::rate(data), Self::limit(data));
        let said = self.link.try_open(kind, rate, limit)?;
        assert!(matches!(said[0], Said::Opened { .. } | Said::OpenError { .. }), "{said:?}");
        if let Said::Opened { channel, .. } = said[0] {
            self.answers.insert(channel, Answers::default());
        }
        self.hear(&said[1..]);
        Ok(())
    }

    fn update(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let (channel, rate, limit) = (self.channel(data), Self::rate(data), Self::limit(data));
        let said = self.link.try_update(channel, rate, limit)?;
        self.hear(&said);
        Ok(())
    }

    fn close(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let channel = self.channel(data);
        let said = self.link.close(channel);
        assert!(said.is_empty(), "rule P13: {said:?}");
        self.answers.retain(|id, _| self.link.client.devices.contains_key(id));
        Ok(())
    }

    fn submit(&mut self, share: Share, tlvs: &[u8]) -> Result<(), Violation> {
        if let Some(answers) = self.answers.get_mut(&share.channel) {
            answers.submitted += 1;
        }
        let said = self.link.submit_with(&share, Tlvs::new(tlvs));
        if let Some(Said::Refused { channel, sequence, .. }) = said.first() {
            assert_eq!((*channel, *sequence), (share.channel, share.sequence), "rule P47");
        }
        self.hear(&said);
        self.shown.push(share);
        Ok(())
    }

    fn good_share(&mut self, channel: u32, work: &Work) -> Share {
        let mut share = self.link.client.share_on(channel, work);
        let mut header = self.link.client.header(work, &share);
        for _ in 0..GRIND_MAX {
            if work.target.is_met_by(&header.hash()) {
                break;
            }
            header.nonce = header.nonce.wrapping_add(0x0001_0000);
        }
        share.nonce = header.nonce;
        share
    }

    fn submit_on_newest(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let channel = self.channel(data);
        let Some(device) = self.link.client.devices.get(&channel) else { return Ok(()) };
        if device.works.is_empty() {
            // It makes its jobs itself and has made none.
            return self.custom_job(data);
        }
        let back = usize::from(data.u8() / 64) % device.works.len();
        let work = device.works[device.works.len() - 1 - back].clone();
        let share = self.good_share(channel, &work);
        let tlvs: &[u8] = data.pick(&[&[], &[], &[2, 0, 1, 3, 0, b'r', b'i', b'g'], &[9, 9]]);
        self.submit(share, tlvs)
    }

    fn submit_spoiled(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let channel = self.channel(data);
        let Some(device) = self.link.client.devices.get(&channel) else { return Ok(()) };
        let Some(work) = device.works.last().cloned() else { return self.judge_custom_job(data) };
        let mut share = self.good_share(channel, &work);
        match data.u8() % 8 {
            0 => share.version ^= 1 << (data.u8() % 32),
            1 => share.ntime = work.min_ntime.wrapping_add(data.u32() % 16_000),
            2 => share.ntime = work.min_ntime - 1,
            3 => share.job = data.u32() % 64,
            4 => share.rolled = Some(vec![data.u8(); usize::from(data.u8() % 33)]),
            5 => share.rolled = None,
            6 => share.nonce = data.u32(),
            _ => share.channel = data.u32() % 8,
        }
        self.submit(share, &[])
    }

    fn replay(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        if self.shown.is_empty() {
            return Ok(());
        }
        let mut share = self.shown[data.u32() as usize % self.shown.len()].clone();
        let device = self.link.client.devices.get(&share.channel);
        let device = device.filter(|device| !device.works.is_empty());
        if let (Some(device), true) = (device, data.u8() & 1 == 1) {
            // The same header by another job's name.
            share.job = device.works[usize::from(data.u8()) % device.works.len()].job;
        }
        self.submit(share, &[])
    }

    fn submit_old(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        if self.old.is_empty() {
            return Ok(());
        }
        let (channel, work) = self.old[usize::from(data.u8()) % self.old.len()].clone();
        if !self.link.client.devices.contains_key(&channel) {
            return Ok(());
        }
        let share = self.good_share(channel, &work);
        self.submit(share, &[])
    }

    fn submit_early(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let channel = self.channel(data);
        let Some(device) = self.link.client.devices.get(&channel) else { return Ok(()) };
        let Some(ahead) = self.link.client.ahead(channel) else {
            return self.judge_custom_job(data);
        };
        let work = device.works.last().expect("a job is sent ahead after one to work on").clone();
        let mut share = self.link.client.share_on(channel, &work);
        share.job = ahead;
        share.ntime = share.ntime.wrapping_add(u32::from(data.u8()));
        self.submit(share, &[])
    }

    /// A job of the client's own: mostly one that the pool could promise, and often one that was asked for
    /// before by another name.
    fn custom_job(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let channel = self.channel(data);
        let back = usize::from(data.u8() % 3) / 2;
        let active = &self.published[self.published.len() - 1 - back.min(self.published.len() - 1)];
        let mut custom = Custom::of(active).numbered(u32::from(data.u8() % 3));
        match data.u8() {
            0 => custom.token = vec![1; usize::from(data.u8())],
            1 => custom.script = vec![1; usize::from(data.u8())],
            2 => custom.outputs = vec![1; usize::from(data.u8()) * 32],
            3 => custom.path = vec![[1; 32]; usize::from(data.u8() % 30)],
            4..=63 => custom.version ^= 1 << (data.u8() % 32),
            64..=127 => custom.tip.min_ntime += u32::from(data.u8()),
            _ => {}
        }
        self.next_request += 1;
        self.templates.insert(self.next_request, Arc::clone(&custom.template));
        let said = self.link.ask(channel, self.next_request, &custom);
        match said[..] {
            [] => assert!(self.link.client.selects_work(), "rule P60"),
            [Said::CustomError { channel: to, request_id, .. }] => {
                assert_eq!((to, request_id), (channel, self.next_request), "rule P62");
            }
            _ => panic!("{said:?}"),
        }
        Ok(())
    }

    /// The pool's answer to one of the requests, good or not; now and then to none.
    fn judge_custom_job(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let request = self.requests.remove(usize::from(data.u8()) % self.requests.len());
        let choice = data.u8();
        let said = match choice {
            0..=31 => {
                let refusal = CustomRefusal::ALL[usize::from(choice) % CustomRefusal::ALL.len()];
                self.link.verdict(&request, Err((refusal, "no".to_owned())))
            }
            _ => {
                let template = &self.templates[&request.request_id];
                let factor_ppm = 900_000 + 1_000 * u32::from(choice % 64);
                self.link.promise(&request, template, common::worth(choice, factor_ppm))
            }
        };
        assert!(said.len() <= 1, "{said:?}");
        // A second answer is none.
        assert!(
            self.link.verdict(&request, Err((CustomRefusal::Internal, String::new()))).is_empty()
        );
        self.hear(&said);
        Ok(())
    }

    /// A promise is worth what the verdict said, or what the same work under the same tip was worth first.
    fn check_promise(&mut self, accepted: &CustomAccepted) {
        let job = accepted.job_id.0;
        for device in self.link.client.devices.values() {
            let Some(new) = device.works.iter().find(|work| work.job == job) else { continue };
            for old in device.works.iter().filter(|work| work.job != job && new.is_work_of(work)) {
                let Some(known) = self.promised.get(&old.job) else { continue };
                assert_eq!(known.factor_ppm, accepted.worth.factor_ppm);
                assert_eq!(old.target, new.target);
            }
        }
        assert!(self.promised.insert(job, accepted.worth).is_none(), "job {job} promised twice");
    }

    /// Any message that the bytes happen to spell, but for the three whose answers are counted above.
    fn raw_message(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let number = data.u8();
        let payload = std::mem::take(&mut data.0);
        let (payload, rest) = payload.split_at(payload.len().min(60));
        data.0 = rest;
        match Message::decode(0, number, payload) {
            Ok(Received::Known(
                Message::SubmitSharesExtended(_)
                | Message::SubmitSharesStandard(_)
                | Message::CloseChannel(_)
                | Message::UpdateChannel(_)
                | Message::OpenStandardMiningChannel(_)
                | Message::OpenExtendedMiningChannel(_),
                _,
            )) => Ok(()),
            Ok(Received::Known(message, tlvs)) => {
                let said = self.link.handle(Input::Message(message, tlvs))?;
                self.hear(&said);
                Ok(())
            }
            Ok(Received::UnknownCore(_) | Received::UnknownExtension(_)) | Err(_) => Ok(()),
        }
    }

    fn template(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        for (channel, device) in &self.link.client.devices {
            self.old.extend(device.works.last().map(|work| (*channel, work.clone())));
        }
        let surplus = self.old.len().saturating_sub(16);
        self.old.drain(..surplus);
        if let Some(house) = &mut self.chain.house {
            // Every template is mined at another pool.
            *house = AtPool::new(house.prefix.len() % 16 + 1, 16);
        }
        let active = match data.u8() % 8 {
            0..=2 => self.chain.fuller(),
            3..=4 => self.chain.advance_at(self.link.now.unix_s),
            5 => self.chain.reorganise(),
            6 => self.chain.without_next(),
            // The tip comes back that was before, or the template does.
            _ => {
                let back = 1 + usize::from(data.u8() % 3);
                Arc::clone(&self.published[self.published.len().saturating_sub(back)])
            }
        };
        self.published.push(Arc::clone(&active));
        let said = self.link.template(active);
        self.hear(&said);
        Ok(())
    }

    fn wait(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let ms = data.pick(&[0, 1, 50, 99, 100, 1_000, 5_000, 30_000]);
        let said = self.link.pass(ms);
        self.hear(&said);
        Ok(())
    }

    /// One batch comes back, mostly the oldest.
    fn commit(&mut self, data: &mut Bytes<'_>) -> Result<(), Violation> {
        let choice = data.u8();
        if choice >= 192 {
            self.collect_open_batch();
        }
        let newest = choice.is_multiple_of(4);
        let at = if newest { self.batches.len().saturating_sub(1) } else { 0 };
        let Some(batch) = self.batches.remove(at) else { return Ok(()) };
        if choice % 16 == 1 {
            // Somebody else was credited for one of these first.
            self.ledger.credited.insert(batch.groups[0].proofs[0].hash);
        }
        self.commit_batch(&batch);
        Ok(())
    }

    fn commit_batch(&mut self, batch: &CreditBatch) {
        let committed = self.ledger.commit(batch);
        // What each open channel is to hear: the proofs of it, less those not credited.
        let mut proofs: BTreeMap<u32, i64> = BTreeMap::new();
        for group in &batch.groups {
            *proofs.entry(group.channel.0).or_default() += group.proofs.len() as i64;
        }
        let total: i64 = proofs.values().sum();
        let duplicates = committed.duplicates.len() as i64;
        proofs.retain(|channel, _| self.answers.contains_key(channel));
        let closed = proofs.values().sum::<i64>() != total;
        let said = self.link.handle(Input::Committed(committed)).unwrap();
        let mut refused = 0;
        for one in &said {
            let (channel, answered) = match one {
                Said::Accepted { channel, count, .. } => (channel, i64::from(*count)),
                Said::Refused { channel, code, .. } => {
                    assert_eq!(code, "duplicate-share");
                    refused += 1;
                    (channel, 1)
                }
                other => panic!("{other:?} after a commit"),
            };
            *proofs.get_mut(channel).expect("a channel of the batch") -= answered;
        }
        assert!(proofs.values().all(|left| *left == 0), "unanswered: {proofs:?}");
        assert!(refused == duplicates || closed && refused < duplicates, "wrong ones refused");
        self.hear(&said);
    }

    fn hear(&mut self, said: &[Said]) {
        for one in said {
            match one {
                Said::Accepted { channel, count, .. } => {
                    let answers =
                        self.answers.get_mut(channel).expect("Success on an open channel");
                    answers.accepted += u64::from(*count);
                }
                Said::Refused { channel, .. } => {
                    if let Some(answers) = self.answers.get_mut(channel) {
                        answers.refused += 1;
                    }
                }
                Said::Opened { .. } => panic!("opened unasked"),
                Said::OpenError { .. }
                | Said::Job { .. }
                | Said::PrevHash { .. }
                | Said::Target { .. }
                | Said::UpdateError { .. }
                | Said::CustomSuccess { .. }
                | Said::CustomError { .. } => {}
            }
        }
    }

    /// What must hold after every operation.
    fn check(&mut self) {
        for (channel, device) in &self.link.client.devices {
            let given = self.given.entry(*channel).or_default();
            let new = |work: &&Work| given.iter().all(|known| known.job != work.job);
            let new: Vec<Work> = device.works.iter().filter(new).cloned().collect();
            given.extend(new);
        }
        self.take_effects();
        assert_eq!(self.link.server.batches_under_way(), self.batches.len());
        for (id, device) in &self.link.client.devices {
            assert!(device.target <= self.policy.floor.target(), "channel {id} is below the floor");
            let limit = Difficulty::easiest_within(device.limit).unwrap_or(Difficulty::MAX);
            let hardest = self.ceiling.max(self.policy.floor).max(limit);
            assert!(device.target >= hardest.target(), "channel {id} is above the ceiling");
        }
        let open: Vec<u32> = self.link.server.channels().map(|view| view.id.0).collect();
        assert!(open.iter().eq(self.link.client.devices.keys()));
        for view in self.link.server.channels() {
            let answers = &self.answers[&view.id.0];
            assert_eq!(view.tally.accepted, answers.accepted);
            assert_eq!(
                view.tally.refused.iter().copied().map(u64::from).sum::<u64>(),
                answers.refused
            );
            assert!(answers.accepted + answers.refused <= answers.submitted);
            assert_eq!(view.difficulty.target(), self.link.client.device(view.id.0).target);
        }
    }

    fn take_effects(&mut self) {
        for effect in std::mem::take(&mut self.link.effects) {
            match effect {
                Effect::Credit(batch) => {
                    self.check_batch(&batch);
                    self.batches.push_back(batch);
                }
                Effect::BlockFound(block) => {
                    assert_eq!(block.hash, block.header.hash());
                    let network = Target::from_compact(self.chain.nbits);
                    assert!(network.is_met_by(&block.hash));
                    let root = block.job.merkle_root(&block.extranonce);
                    assert_eq!(root, block.header.merkle_root);
                    assert!(!self.blocks.contains(&block.hash), "a block sent twice");
                    self.blocks.push_back(block.hash);
                    if self.blocks.len() > BLOCKS_SENT_MAX {
                        self.blocks.pop_front();
                    }
                }
                Effect::Acknowledged { shares, oldest_ms, .. } => {
                    assert!(shares > 0 && oldest_ms <= self.link.now.mono_ms);
                }
                Effect::CustomJob(request) => self.requests.push(*request),
                Effect::CustomAccepted(accepted) => self.check_promise(&accepted),
                Effect::CustomRefused(refused) => assert!(!refused.refusal.code().is_empty()),
                Effect::Refused { .. }
                | Effect::Opened(_)
                | Effect::OpenRefused(_)
                | Effect::Closed(..) => {}
            }
        }
    }

    /// Everything in a batch can be recomputed from the batch and its jobs, and is worth what it says.
    fn check_batch(&mut self, batch: &CreditBatch) {
        assert!(self.batch_ids.insert(batch.id), "batch {} twice", batch.id);
        let proofs: usize = batch.groups.iter().map(|group| group.proofs.len()).sum();
        assert!((1..=CREDIT_BATCH_WAITING_MAX).contains(&proofs));
        for group in &batch.groups {
            assert!(!group.proofs.is_empty());
            for proof in &group.proofs {
                let is_shown_by = |merkle_root| {
                    let header = HeaderFields {
                        version: proof.version,
                        prev_hash: group.prev_hash,
                        merkle_root,
                        ntime: proof.ntime,
                        nbits: self.chain.nbits,
                        nonce: proof.nonce,
                    };
                    header.hash() == proof.hash
                };
                let full = match group.extranonce_prefix {
                    ExtranoncePrefix::Pool(_) => {
                        group.extranonce_prefix.followed_by(&proof.rolled).unwrap().to_vec()
                    }
                    ExtranoncePrefix::House(_) => {
                        let at_pool = &self.chain.promised[&group.template];
                        assert!(is_shown_by(at_pool.root(&proof.rolled)), "none at the pool");
                        proof.rolled[HOUSE_NUMBER_LEN..].to_vec()
                    }
                };
                let shows = |work: &&Work| is_shown_by(work.body.merkle_root(&full));
                let shown: Vec<&Work> = self.given[&group.channel.0].iter().filter(shows).collect();
                assert!(!shown.is_empty(), "a proof of no job: {proof:?}");
                // Our own jobs share no header; a client's own may have several names.
                assert!(shown.len() == 1 || self.link.client.selects_work());
                let is_worth = |work: &&Work| {
                    self.promised.get(&work.job).unwrap_or(&Worth::POOL_JOB) == &group.worth
                };
                let paid_for = |work: &&Work| work.target == proof.difficulty.target();
                assert!(shown.iter().any(is_worth), "{:?}", group.worth);
                assert!(proof.is_block || shown.iter().any(paid_for));
                let network = Target::from_compact(self.chain.nbits);
                assert_eq!(proof.is_block, network.is_met_by(&proof.hash));
                let paid = proof.difficulty;
                let earned = paid.target().is_met_by(&proof.hash) && paid >= self.policy.floor;
                assert!(earned || proof.is_block && paid == Difficulty::MIN, "{proof:?}");
            }
        }
    }

    fn collect_open_batch(&mut self) {
        for batch in self.link.batches() {
            self.check_batch(&batch);
            self.batches.push_back(batch);
        }
    }

    /// In the end every share of an open channel has had its one answer.
    fn settle_everything(&mut self) {
        self.collect_open_batch();
        while let Some(batch) = self.batches.pop_front() {
            self.commit_batch(&batch);
        }
        let said = self.link.pass(EARLY_SHARE_WAIT_MS + VARDIFF_CHECK_MS);
        self.hear(&said);
        self.check();
        for (channel, answers) in &self.answers {
            let answered = answers.accepted + answers.refused;
            assert_eq!(answered, answers.submitted, "channel {channel} waits for an answer");
        }
    }

    /// The connection ends: nothing accepted is lost, the open batch leaves.
    fn end(&mut self) {
        self.take_effects();
        self.collect_open_batch();
        assert_eq!(self.link.server.batches_under_way(), self.batches.len());
    }
}
