//! A mining server for the devices in a house: what they find is what the pool sees that the house mines
//! at, also when it is another pool's turn, and no device is asked for more than the pool asks of the house.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

#[path = "common/mod.rs"]
mod common;

use std::sync::Arc;

use proto::extranonce::{ExtranonceAllocator, ExtranoncePrefix, Layout};
use proto::job::{ActiveTemplate, HeaderFields, Job, JobId};
use proto::limits::{
    COINBASE_SCRIPT_SIG_AT, HOUSE_EXTRANONCE_LEN, HOUSE_NUMBER_LEN, HOUSE_PREFIX_LEN,
    HOUSE_ROLLABLE_LEN, JOB_REFRESH_MS, MERKLE_PATH_MAX, SCRIPT_SIG_MAX,
};
use proto::message::{
    Message, OpenExtendedMiningChannel, OpenStandardMiningChannel, SubmitSharesExtended,
    SubmitSharesStandard, Tlvs,
};
use proto::mining::server::{Input, Outbox, Policy, Server};
use proto::mining::{CreditGroup, Kind, Now};
use proto::share::{Claim, FrozenJob, Proof, Refusal, Submitted};
use proto::target::{Difficulty, Target};
use proto::template::{CoinbaseError, CoinbaseParts, Template};
use proto::wire::{B032, Str0255};
use sha2::{Digest, Sha256};

use common::{
    ANY_TARGET, AtPool, Chain, HARD_NBITS, JobBody, Ledger, Link, REGTEST_NBITS, START_S, Said,
    decode, easy_policy, kept, lively_policy,
};

const KINDS: [Kind; 2] = [Kind::Extended, Kind::Standard];

/// Channels at pools: of prefixes short, like ours and long, and one that grants more than is needed.
fn pools() -> [AtPool; 4] {
    [(4, 16), (8, 16), (16, 16), (12, 20)].map(|(prefix, rollable)| AtPool::new(prefix, rollable))
}

fn house(chain: &Chain, policy: Policy) -> Link {
    Link::on(ExtranonceAllocator::for_house(), policy, 0, chain.active())
}

fn log2(log2: i16) -> Difficulty {
    Difficulty::from_log2(log2)
}

/// Credits all that is open; the groups of it.
fn credited(link: &mut Link) -> Vec<CreditGroup> {
    let mut ledger = Ledger::default();
    let batches = link.batches();
    for batch in &batches {
        let said = link.handle(Input::Committed(ledger.commit(batch))).unwrap();
        assert!(said.iter().all(|one| matches!(one, Said::Accepted { .. })), "{said:?}");
    }
    batches.into_iter().flat_map(|batch| batch.groups).collect()
}

/// Hash of the header as the pool has it, of nothing but what the house would submit, by the `sha2` crate
/// alone.
fn hash_at_pool(chain: &Chain, group: &CreditGroup, proof: &Proof) -> [u8; 32] {
    let twice = |bytes: &[u8]| <[u8; 32]>::from(Sha256::digest(Sha256::digest(bytes)));
    let promised = &chain.promised[&group.template];
    let txid = twice(&promised.transaction(&proof.rolled));
    let root = promised.path.iter().fold(txid, |node, next| twice(&[node, *next].concat()));
    let header = HeaderFields {
        version: proof.version,
        prev_hash: group.prev_hash,
        merkle_root: root,
        ntime: proof.ntime,
        nbits: chain.nbits,
        nonce: proof.nonce,
    };
    twice(&header.to_bytes())
}

/// Finds a share, and holds it against the pool's view.
fn find_one(link: &mut Link, chain: &Chain, channel: u32) -> (Proof, AtPool) {
    let share = link.client.good_share(channel);
    let said = link.submit(&share);
    assert!(said.is_empty(), "{said:?}");
    let [group] = &credited(link)[..] else { panic!("one group") };
    let [proof] = group.proofs[..] else { panic!("one proof") };
    assert_eq!(hash_at_pool(chain, group, &proof), proof.hash);
    let (number, rest) = proof.rolled.split_at(HOUSE_NUMBER_LEN);
    let (own, rolled) = rest.split_at(HOUSE_PREFIX_LEN);
    assert_eq!(number, share.job.to_be_bytes());
    assert_eq!(group.extranonce_prefix, ExtranoncePrefix::House(own.try_into().unwrap()));
    assert_eq!(rolled, share.rolled.unwrap_or(vec![0; HOUSE_ROLLABLE_LEN]));
    (proof, chain.promised[&group.template].channel.clone())
}

#[test]
fn a_devices_share_is_one_at_the_pool_whichever_pool_it_is() {
    for kind in KINDS {
        let [first, others @ ..] = pools();
        let mut chain = Chain::in_house(HARD_NBITS, first.clone());
        let mut link = house(&chain, easy_policy());
        let channel = link.open_at_floor(kind);
        assert_eq!(find_one(&mut link, &chain, channel).1, first);
        for (at, pool) in others.into_iter().enumerate() {
            chain.house = Some(pool.clone());
            // A SetExtranoncePrefix among this is a message that the test's client does not know.
            let said = link.template(if at == 1 { chain.advance() } else { chain.fuller() });
            assert!(said.iter().any(|one| matches!(one, Said::Job { .. })), "{said:?}");
            assert_eq!(find_one(&mut link, &chain, channel).1, pool);
        }
    }
}

#[test]
fn a_share_of_the_pool_before_is_still_that_pools() {
    let [first, second, ..] = pools();
    for kind in KINDS {
        let mut chain = Chain::in_house(HARD_NBITS, first.clone());
        let mut link = house(&chain, easy_policy());
        let channel = link.open_at_floor(kind);
        let before = link.client.work(channel).clone();
        chain.house = Some(second.clone());
        link.template(chain.fuller());
        let late = link.client.good_share_on(channel, &before);
        link.submit(&late);
        let share = link.client.good_share(channel);
        link.submit(&share);
        let groups = credited(&mut link);
        let pools = groups.iter().map(|group| &chain.promised[&group.template].channel);
        assert!(pools.eq([&first, &second]));
        for group in &groups {
            assert_eq!(hash_at_pool(&chain, group, &group.proofs[0]), group.proofs[0].hash);
        }
    }
}

#[test]
fn channels_of_a_group_find_shares_of_one_job_and_different_headers() {
    let mut chain = Chain::in_house(HARD_NBITS, AtPool::new(4, 16));
    let mut link = house(&chain, easy_policy());
    let channels = KINDS.map(|kind| link.open_at_floor(kind));
    let said = link.template(chain.fuller());
    let jobs = said.iter().filter(|one| matches!(one, Said::Job { .. }));
    assert_eq!(jobs.count(), 1, "one frame for both");
    let proofs = channels.map(|channel| find_one(&mut link, &chain, channel).0);
    assert_eq!(proofs[0].rolled[..4], proofs[1].rolled[..4], "one job");
    assert_ne!(proofs[0].rolled[4..8], proofs[1].rolled[4..8], "two channels");
}

#[test]
fn devices_on_two_connections_search_apart_on_jobs_of_one_number() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let channels = ExtranonceAllocator::for_house();
    let rolled = [0, 1].map(|_| {
        let mut link = Link::on(channels.clone(), easy_policy(), 0, chain.active());
        let channel = link.open_at_floor(Kind::Extended);
        find_one(&mut link, &chain, channel).0.rolled
    });
    assert_eq!(rolled[0][..4], rolled[1][..4], "each connection counts its jobs");
    assert_ne!(rolled[0], rolled[1]);
}

#[test]
fn a_device_has_its_number_and_eight_bytes_for_ever() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let mut link = house(&chain, easy_policy());
    let [extended, standard] = KINDS.map(|kind| link.open_at_floor(kind));
    let extended = link.client.device(extended);
    assert_eq!((&extended.prefix[..], extended.rollable), (&[0, 0, 0, 0][..], 8));
    let standard = link.client.device(standard);
    assert_eq!(standard.prefix, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_job_is_sent_with_its_pools_prefix_and_its_number_and_counted_so() {
    for pool in pools() {
        let mut chain = Chain::in_house(HARD_NBITS, pool.clone());
        let mut link = house(&chain, easy_policy());
        link.open_at_floor(Kind::Extended);
        let active = chain.fuller();
        let said = link.template(Arc::clone(&active));
        let Said::Job { job, ref body, payload_len, min_ntime: Some(_), .. } = said[0] else {
            panic!("{said:?}")
        };
        let JobBody::Extended { prefix, suffix, path, .. } = body else { panic!("{body:?}") };
        let promised = &chain.promised[&active.job.template().id];
        let unused = vec![0; pool.rollable - HOUSE_EXTRANONCE_LEN];
        let number = job.to_be_bytes();
        let all = [&promised.coinbase.prefix[..], &pool.prefix, &unused, &number].concat();
        assert_eq!((prefix, suffix, path), (&all, &promised.coinbase.suffix, &promised.path));
        assert_eq!(payload_len, active.job.payload_len());
        assert!(active.job.fits_every_device());
    }
}

#[test]
fn two_jobs_of_one_work_share_no_header() {
    for kind in KINDS {
        let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
        let mut link = house(&chain, easy_policy());
        let channel = link.open_at_floor(kind);
        for _ in 0..2 {
            link.pass(JOB_REFRESH_MS);
        }
        let works = &link.client.device(channel).works;
        let mut bodies: Vec<&JobBody> = works.iter().map(|work| &work.body).collect();
        assert!(bodies.len() >= 3, "the first and two that were refreshed");
        let count = bodies.len();
        bodies.dedup();
        assert_eq!(bodies.len(), count, "{kind:?}");
        find_one(&mut link, &chain, channel);
    }
}

#[test]
fn the_highest_number_of_a_job_is_written_in_full() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let active = chain.active();
    let job = active.job.numbered(JobId(u32::MAX));
    let prefix = ExtranonceAllocator::for_house().allocate().unwrap();
    let full = job.extranonce(&prefix, &[7; 8]).unwrap();
    assert_eq!(full[8..12], [0xff; 4]);
    assert_eq!(full[..8], AtPool::new(8, 16).prefix[..], "the lead ends with the pool's prefix");
    let promised = &chain.promised[&job.template().id];
    assert_eq!(job.merkle_root(&full), promised.root(full[8..].try_into().unwrap()));
    assert_eq!(job.coinbase_sequence(), job.template().coinbase_sequence);
    assert_eq!(job.layout(), Layout::House);
    let parts = job.coinbase();
    let whole = [&parts.prefix[..], &full, &parts.suffix].concat();
    assert_eq!(whole, promised.transaction(full[8..].try_into().unwrap()));
}

#[test]
fn a_found_block_is_whole_and_its_coinbase_is_the_promised_one() {
    for (kind, pool) in KINDS.into_iter().flat_map(|kind| pools().map(|pool| (kind, pool))) {
        let mut chain = Chain::in_house(REGTEST_NBITS, pool);
        let mut link = house(&chain, easy_policy());
        let channel = link.open_at_floor(kind);
        link.template(chain.fuller());
        let network = Target::from_compact(REGTEST_NBITS);
        let work = link.client.work(channel).clone();
        let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
        link.submit(&share);
        let [found] = &link.blocks()[..] else { panic!("a block") };
        let bytes = found.job.block(&found.header, &found.extranonce).unwrap();
        let block: bitcoin::Block = bitcoin::consensus::deserialize(&bytes).unwrap();
        assert!(block.check_merkle_root() && block.check_witness_commitment());
        let mut coinbase = block.txdata[0].clone();
        coinbase.input[0].witness.clear();
        let rolled = found.extranonce[8..].try_into().unwrap();
        let promised = chain.promised[&found.job.template().id].transaction(rolled);
        assert_eq!(bitcoin::consensus::serialize(&coinbase), promised);
    }
}

#[test]
fn only_the_eight_bytes_that_were_granted_are_taken_p44() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(4, 16));
    let mut link = house(&chain, easy_policy());
    let channel = link.open_at_floor(Kind::Extended);
    for wrong in [0, 7, 9, 16, 32] {
        let mut share = link.client.good_share(channel);
        share.rolled = Some(vec![0x5a; wrong]);
        let said = link.submit(&share);
        assert_eq!(said[0].code(), Some("bad-extranonce-size"), "{wrong}");
    }
    find_one(&mut link, &chain, channel);
}

#[test]
fn more_than_eight_bytes_are_not_granted_p5() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(4, 16));
    let mut link = house(&chain, easy_policy());
    for (asked, code) in [(0, None), (8, None), (9, Some("min-extranonce-size-too-large"))] {
        assert_eq!(link.say(open_extended(asked))[0].code(), code, "{asked}");
    }
}

fn open_extended(min_extranonce_size: u16) -> OpenExtendedMiningChannel<'static> {
    OpenExtendedMiningChannel {
        request_id: 5,
        user_identity: Str0255::text("alice"),
        nominal_hash_rate: 0.0,
        max_target: ANY_TARGET,
        min_extranonce_size,
    }
}

/// A coinbase of these lengths, and a path of so many branches.
fn of_lengths(prefix: usize, suffix: usize, path: usize) -> Result<Job, CoinbaseError> {
    let chain = Chain::new(HARD_NBITS);
    let template = Template {
        merkle_path: vec![[1; 32]; path],
        ..Template::clone(chain.active().job.template())
    };
    let coinbase = CoinbaseParts { prefix: vec![9; prefix], suffix: vec![9; suffix] };
    Job::for_house(Arc::new(template), coinbase)
}

#[test]
fn a_job_has_room_for_its_number_and_fits_what_carries_it() {
    let least = COINBASE_SCRIPT_SIG_AT + HOUSE_NUMBER_LEN;
    let most = COINBASE_SCRIPT_SIG_AT + SCRIPT_SIG_MAX - HOUSE_PREFIX_LEN - HOUSE_ROLLABLE_LEN;
    for prefix in [least, most] {
        of_lengths(prefix, 65_535, MERKLE_PATH_MAX).unwrap();
    }
    for short in [0, HOUSE_NUMBER_LEN, 11, 12, least - 1] {
        assert_eq!(of_lengths(short, 60, 0).unwrap_err(), CoinbaseError::NoLead(short));
    }
    let long = CoinbaseError::ScriptSig(SCRIPT_SIG_MAX + 1);
    assert_eq!(of_lengths(most + 1, 60, 0).unwrap_err(), long);
    assert_eq!(of_lengths(most, 65_536, 0).unwrap_err(), CoinbaseError::TooLong(65_536));
    let path = MERKLE_PATH_MAX + 1;
    assert_eq!(of_lengths(most, 60, path).unwrap_err(), CoinbaseError::MerklePath(path));
}

#[test]
fn a_share_of_a_job_and_a_channel_that_do_not_belong_together_is_refused() {
    let pool = Chain::new(HARD_NBITS).active();
    let house = Chain::in_house(HARD_NBITS, AtPool::new(4, 16)).active();
    let pools = ExtranonceAllocator::new(1, 1);
    let houses = ExtranonceAllocator::for_house();
    for (active, extranonces) in [(&pool, &houses), (&house, &pools)] {
        let prefix = extranonces.allocate().unwrap();
        let rollable = prefix.layout().rollable_len();
        let job = frozen(active, prefix);
        assert_eq!(job.job.standard_extranonce(&prefix), None);
        let rolled = B032::new(&vec![3; rollable]).unwrap();
        let claim =
            Claim { job: JobId(1), nonce: 0, ntime: 0, version: 0x2000_0000, rolled: Some(rolled) };
        let refused = Submitted::new(job, &claim).unwrap_err();
        assert_eq!(refused, Refusal::BadExtranonceSize);

        let mut server = server(extranonces, active);
        let codes = refused_by(&mut server, rolled);
        assert_eq!(codes, ["bad-extranonce-size", "invalid-channel-id"]);
    }
}

fn frozen(active: &ActiveTemplate, prefix: ExtranoncePrefix) -> &'static FrozenJob<'static> {
    kept(FrozenJob {
        job: kept(active.job.clone()),
        tip: kept(active.tip),
        network_target: kept(Target::from_compact(active.tip.nbits)),
        difficulty: Difficulty::MIN,
        target: Difficulty::MIN.target(),
        min_ntime: 0,
        since: 0,
        prefix,
        merkle_root: None,
        version_rolling: true,
    })
}

const NOW: Now = Now { mono_ms: 1_000, unix_s: START_S };

fn server(extranonces: &ExtranonceAllocator, active: &Arc<ActiveTemplate>) -> Server {
    let policy = Arc::new(easy_policy());
    Server::new(policy, 0, extranonces.clone(), Arc::clone(active), NOW)
}

/// The codes of a share on an extended channel and of one on a standard channel.
fn refused_by(server: &mut Server, extranonce: B032) -> Vec<String> {
    let mut out = Outbox::default();
    let standard = OpenStandardMiningChannel {
        request_id: 6,
        user_identity: Str0255::text("alice"),
        nominal_hash_rate: 0.0,
        max_target: ANY_TARGET,
    };
    let (sequence_number, nonce, ntime, version) = (1, 0, START_S, 0x2000_0000);
    let messages: [Message<'_>; 4] = [
        open_extended(4).into(),
        standard.into(),
        SubmitSharesExtended {
            channel_id: 2,
            sequence_number,
            job_id: 1,
            nonce,
            ntime,
            version,
            extranonce,
        }
        .into(),
        SubmitSharesStandard { channel_id: 3, sequence_number, job_id: 3, nonce, ntime, version }
            .into(),
    ];
    for message in messages {
        server.handle(NOW, Input::Message(message, Tlvs::NONE), &mut out).unwrap();
    }
    let later = Now { mono_ms: NOW.mono_ms + JOB_REFRESH_MS, ..NOW };
    server.handle(later, Input::Time, &mut out).unwrap();
    let said = decode(&out.frames);
    said.iter()
        .filter(|one| matches!(one, Said::Refused { .. }))
        .filter_map(|one| one.code().map(str::to_owned))
        .collect()
}

// ---- the ceiling that a pool's target is ----

fn at(link: &Link, channel: u32) -> Difficulty {
    let view = link.server.channels().find(|view| view.id.0 == channel);
    view.expect("an open channel").difficulty
}

/// Shares as fast as they come, for as long as a difficulty takes to follow them.
fn mine(link: &mut Link, channel: u32, ceiling: Difficulty) {
    for _ in 0..60 {
        let share = link.client.good_share(channel);
        link.submit(&share);
        link.pass(100);
        assert!(at(link, channel) <= ceiling);
    }
}

#[test]
fn a_ceiling_lowers_what_is_above_it_at_once_with_a_fresh_job_behind() {
    for kind in KINDS {
        let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
        let mut link = house(&chain, lively_policy());
        let easy = link.open_at_floor(kind);
        let rate = 1e3;
        let said = link.open(kind, rate, ANY_TARGET);
        let Said::Opened { channel: hard, .. } = said[0] else { panic!("{said:?}") };
        let (before, old) = (at(&link, hard), link.client.work(hard).clone());
        let ceiling = log2(before.log2() - 3);
        assert!(at(&link, easy) < ceiling);

        let said = link.set_ceiling(ceiling);
        assert!(matches!(said[0], Said::Target { channel, target }
            if channel == hard && target == ceiling.target()));
        assert!(
            matches!(said[1], Said::Job { channel, min_ntime: Some(_), .. } if channel == hard)
        );
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!((at(&link, easy), at(&link, hard)), (Difficulty::MIN, ceiling));

        // Each job keeps what it was sent with.
        let shares = [link.client.good_share_on(hard, &old), link.client.good_share(hard)];
        assert!(link.submit_together(&shares).is_empty());
        let groups = credited(&mut link);
        let proofs = groups.iter().flat_map(|group| &group.proofs);
        assert!(proofs.map(|proof| proof.difficulty).eq([before, ceiling]));
        assert!(link.set_ceiling(ceiling).is_empty(), "said again it is no news");
    }
}

#[test]
fn no_channel_rises_above_a_ceiling_and_a_higher_one_gives_it_room() {
    for kind in KINDS {
        let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
        let mut link = house(&chain, lively_policy());
        let channel = link.open_at_floor(kind);
        let (low, high) = (log2(-29), log2(-26));
        assert!(link.set_ceiling(low).is_empty(), "nothing was above it");
        mine(&mut link, channel, low);
        assert_eq!(at(&link, channel), low);

        let rated = link.open(kind, 1e15, ANY_TARGET);
        assert!(matches!(rated[0], Said::Opened { target, .. } if target == low.target()));
        assert!(link.set_ceiling(high).is_empty(), "room is no reason to rise");
        assert_eq!(at(&link, channel), low);
        mine(&mut link, channel, high);
        assert_eq!(at(&link, channel), high);
    }
}

#[test]
fn a_declared_rate_does_not_lift_a_channel_above_the_ceiling() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let mut link = house(&chain, lively_policy());
    let channel = link.open_at_floor(Kind::Extended);
    link.set_ceiling(log2(-20));
    link.pass(60_000);
    link.update(channel, 1e15, ANY_TARGET);
    assert_eq!(at(&link, channel), log2(-20));
}

#[test]
fn a_clients_own_limit_and_the_floor_win_over_the_ceiling() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let floor = log2(-30);
    let mut link = house(&chain, Policy { floor, ..lively_policy() });
    let limited = link.open(Kind::Extended, 0.0, log2(-10).target().to_le_bytes());
    let Said::Opened { channel: limited, .. } = limited[0] else { panic!("{limited:?}") };
    let other = link.open_at_floor(Kind::Extended);
    assert!(link.set_ceiling(log2(-20)).is_empty());
    assert_eq!(at(&link, limited), log2(-10));
    assert!(link.set_ceiling(Difficulty::MIN).is_empty());
    assert_eq!(at(&link, other), floor);
    link.update(other, 0.0, log2(-12).target().to_le_bytes());
    assert_eq!(at(&link, other), log2(-12));
    // Without the limit it comes back under the ceiling.
    link.set_ceiling(log2(-20));
    link.update(other, 0.0, ANY_TARGET);
    assert_eq!(at(&link, other), log2(-20));
}

#[test]
fn a_ceiling_that_is_said_never_lifts_the_policys() {
    let chain = Chain::in_house(HARD_NBITS, AtPool::new(8, 16));
    let ceiling = log2(-25);
    let mut link = house(&chain, Policy { ceiling, ..lively_policy() });
    link.set_ceiling(Difficulty::MAX);
    let said = link.open(Kind::Standard, 1e15, ANY_TARGET);
    assert!(matches!(said[0], Said::Opened { target, .. } if target == ceiling.target()));
}
