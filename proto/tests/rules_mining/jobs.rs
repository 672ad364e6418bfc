//! Jobs and tips: rules P20 to P32 and G19.

use std::collections::HashSet;
use std::sync::Arc;

use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash;

use proto::job::JobId;
use proto::limits::{JOB_REFRESH_MS, NTIME_AHEAD_MAX_S};
use proto::message::setup_flags;
use proto::mining::Kind;
use proto::mining::server::{Input, Outbox, Policy};
use proto::template::sha256d;

use crate::common::{
    Chain, HARD_NBITS, JobBody, Link, REGTEST_NBITS, START_S, Said, decode, easy_policy,
};

#[test]
fn a_new_channel_hears_a_future_job_then_its_tip_p20_p21() {
    for kind in [Kind::Standard, Kind::Extended] {
        let chain = Chain::new(HARD_NBITS);
        let mut link = Link::new(&chain);
        let said = link.open(kind, 0.0, [0xff; 32]);
        let [
            Said::Opened { channel, .. },
            Said::Job { channel: to, job, min_ntime: None, .. },
            Said::PrevHash { channel: also_to, job: started, prev_hash, nbits, min_ntime },
            Said::Job { min_ntime: None, .. },
        ] = &said[..]
        else {
            panic!("{said:?}")
        };
        assert_eq!((to, also_to, job), (channel, channel, started));
        let tip = chain.active().tip;
        assert_eq!((*prev_hash, *nbits, *min_ntime), (tip.hash, tip.nbits, tip.min_ntime));
    }
}

#[test]
fn each_kind_of_channel_gets_its_kind_of_job_p22() {
    let policy = Policy { group_addressing: false, ..easy_policy() };
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(policy, 0, chain.active());
    let standard = link.open_at_floor(Kind::Standard);
    let extended = link.open_at_floor(Kind::Extended);
    let said = link.template(chain.fuller());
    for one in said {
        let Said::Job { channel, body, .. } = one else { panic!("{one:?}") };
        match body {
            JobBody::Standard { .. } => assert_eq!(channel, standard),
            JobBody::Extended { .. } => assert_eq!(channel, extended),
        }
    }
}

#[test]
fn no_job_id_comes_twice_on_a_channel_whoever_it_was_sent_to_p23() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let alone = link.open_at_floor(Kind::Extended);
    link.template(chain.fuller());
    let second = link.open_at_floor(Kind::Standard);
    // `Client` fails at the first id that a channel hears twice.
    for round in 0..50 {
        link.template(if round % 5 == 0 { chain.advance() } else { chain.fuller() });
        link.update(second, 0.0, link.client.device(second).target.to_le_bytes());
        link.pass(JOB_REFRESH_MS);
    }
    assert!(link.client.device(alone).works.len() > 4);
}

#[test]
fn a_tip_names_a_job_that_was_sent_ahead_p24() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let ahead = link.client.ahead(channel).unwrap();
    let said = link.template(chain.advance());
    let Said::PrevHash { job, .. } = said[0] else { panic!("{said:?}") };
    assert_eq!(job, ahead);

    // Nothing was sent ahead: the job comes first, then the tip.
    let mut link = Link::with(easy_policy(), 0, chain.without_next());
    link.open_at_floor(Kind::Extended);
    let said = link.template(chain.advance());
    assert!(matches!(said[..2], [Said::Job { min_ntime: None, .. }, Said::PrevHash { .. }]));
}

#[test]
fn a_tip_is_told_to_the_group_only_if_its_job_was_p24() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    // Each of these heard of the job ahead by its own id; the group itself did not. SRI's proxy keeps
    // the two apart and leaves a pool that mixes them: `Client` fails where it would.
    link.open_at_floor(Kind::Extended);
    link.open_at_floor(Kind::Extended);
    let said = link.template(chain.advance());
    assert_eq!(said.iter().filter(|one| matches!(one, Said::PrevHash { .. })).count(), 2);
    // From here on the group knows, also for a channel that joins late.
    link.open_at_floor(Kind::Extended);
    let said = link.template(chain.advance());
    assert!(matches!(said[0], Said::PrevHash { channel: 1, .. }), "{said:?}");
}

#[test]
fn a_client_that_is_left_with_one_channel_hears_the_tip_on_it_p24() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let stays = link.open_at_floor(Kind::Extended);
    let leaves = link.open_at_floor(Kind::Extended);
    link.template(chain.advance());
    link.close(leaves);
    let said = link.template(chain.advance());
    assert!(matches!(said[0], Said::PrevHash { channel, .. } if channel == stays));
}

#[test]
fn a_share_becomes_a_block_that_the_bitcoin_crate_accepts_p25() {
    for kind in [Kind::Standard, Kind::Extended] {
        let mut chain = Chain::new(REGTEST_NBITS);
        chain.transactions = 6;
        let mut link = Link::with(easy_policy(), 0, chain.advance());
        let channel = link.open_at_floor(kind);
        // The second job of a tip: its coinbase has a number in it.
        link.template(chain.fuller());
        let work = link.client.work(channel).clone();
        let network = proto::target::Target::from_compact(REGTEST_NBITS);
        let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
        link.submit(&share);
        let found = link.blocks().pop().expect("a block");
        assert_eq!(found.header, link.client.header(&work, &share));

        let bytes = found.job.block(&found.header, &found.extranonce).unwrap();
        let block: bitcoin::Block = deserialize(&bytes).expect("a whole block");
        assert!(block.check_merkle_root() && block.check_witness_commitment());
        assert_eq!(block.txdata.len(), 8);
        assert_eq!(block.block_hash().to_byte_array(), found.hash);
        assert!(block.header.validate_pow(block.header.target()).is_ok());
        assert_eq!(block.bip34_block_height(), Ok(900_002));
        assert_eq!(block.txdata[0].input[0].sequence.0, work.job);
        // What the client hashed was the txid form: no marker, no witness.
        assert!(!block.txdata[0].input[0].witness.is_empty());
        if let JobBody::Extended { prefix, suffix, .. } = &work.body {
            let mined = [&prefix[..], found.extranonce.as_slice(), &suffix[..]].concat();
            let mined: bitcoin::Transaction = deserialize(&mined).expect("without witness");
            assert_eq!(mined.compute_txid(), block.txdata[0].compute_txid());
        }
    }
}

#[test]
fn every_job_of_a_template_has_its_transactions_in_its_order_g19() {
    let mut chain = Chain::new(REGTEST_NBITS);
    chain.transactions = 6;
    let active = chain.advance();
    let template = active.job.template();
    let mut link = Link::with(easy_policy(), 0, active.clone());
    let channel = link.open_at_floor(Kind::Extended);
    // Fresh search space ten times over: another id, start and number each time.
    link.pass(10 * JOB_REFRESH_MS);
    let works = link.client.device(channel).works.clone();
    assert_eq!(works.len(), 11);
    let network = proto::target::Target::from_compact(REGTEST_NBITS);
    let mut coinbases = HashSet::new();
    for work in &works {
        let share = link.client.grind(channel, work, |hash| network.is_met_by(hash));
        link.submit(&share);
        let found = link.blocks().pop().expect("a block");
        let bytes = found.job.block(&found.header, &found.extranonce).expect("known in full");
        let block: bitcoin::Block = deserialize(&bytes).expect("a whole block");
        let mined: Vec<Arc<[u8]>> =
            block.txdata[1..].iter().map(|tx| serialize(tx).into()).collect();
        assert_eq!(mined, template.known_transactions());
        coinbases.insert(block.txdata[0].compute_txid());
        let JobBody::Extended { path, .. } = &work.body else { panic!("{work:?}") };
        assert_eq!(*path, template.merkle_path);
    }
    assert_eq!(coinbases.len(), works.len(), "search space is the coinbase's");
}

#[test]
fn a_new_tip_voids_every_other_job_p26_p27() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let first = link.client.good_share(channel);
    link.template(chain.fuller());
    let second = link.client.good_share(channel);
    let ahead = link.client.ahead(channel).unwrap();
    link.template(chain.reorganise());
    for (share, code) in [(&first, "stale-share"), (&second, "stale-share")] {
        assert_eq!(link.submit(share)[0].code(), Some(code));
    }
    // The job that waited for another height is void too.
    let mut void = first;
    void.job = ahead;
    assert_eq!(link.submit(&void)[0].code(), Some("invalid-job-id"));
    assert!(link.batches().is_empty());
}

#[test]
fn a_job_for_another_height_is_never_started_p28() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let ahead = link.client.ahead(channel).unwrap();
    // The tip is replaced by another of the same height: the job ahead is one too high.
    let said = link.template(chain.reorganise());
    let [
        Said::Job { job, min_ntime: None, .. },
        Said::PrevHash { job: started, .. },
        Said::Job { min_ntime: None, .. },
    ] = said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!(job, started);
    assert_ne!(started, ahead);
}

#[test]
fn the_fuller_job_follows_the_tip_at_once_p28() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    link.open_at_floor(Kind::Extended);
    let said = link.template(chain.advance());
    let [
        Said::PrevHash { .. },
        Said::Job { min_ntime: Some(_), body: JobBody::Extended { path, .. }, .. },
        Said::Job { min_ntime: None, .. },
    ] = &said[..]
    else {
        panic!("{said:?}")
    };
    assert!(!path.is_empty());
}

#[test]
fn a_tip_is_said_alone_and_its_jobs_when_the_burst_ends() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    link.open_at_floor(Kind::Extended);
    let mut say = |input: Input<'_>| {
        let mut out = Outbox::default();
        link.server.handle(link.now, input, &mut out).unwrap();
        decode(&out.frames)
    };
    let said = say(Input::Template(chain.advance()));
    assert!(matches!(said[..], [Said::PrevHash { .. }]), "{said:?}");
    let said = say(Input::BurstEnd);
    let [Said::Job { min_ntime: Some(_), .. }, Said::Job { min_ntime: None, .. }] = said[..] else {
        panic!("{said:?}")
    };
    assert!(say(Input::BurstEnd).is_empty());

    // Two tips on each other's heels: what the first owed is never said, and as nothing was sent ahead
    // for the second its full job is what starts on it.
    say(Input::Template(chain.advance()));
    let said = say(Input::Template(chain.advance()));
    let [Said::Job { job, min_ntime: None, .. }, Said::PrevHash { job: started, .. }] = said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!(job, started);
    assert!(matches!(say(Input::BurstEnd)[..], [Said::Job { min_ntime: None, .. }]));
}

#[test]
fn a_target_that_changes_under_one_tip_is_told_like_a_new_tip() {
    // What testnet does when no block was found for twenty minutes.
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let before = link.open_at_floor(Kind::Extended);
    chain.nbits = REGTEST_NBITS;
    link.template(chain.fuller());
    let after = link.open_at_floor(Kind::Standard);
    let network = proto::target::Target::from_compact(REGTEST_NBITS);
    for channel in [before, after] {
        let work = link.client.work(channel).clone();
        assert_eq!(work.nbits, REGTEST_NBITS);
        let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
        assert!(link.submit(&share).is_empty());
        assert_eq!(link.blocks().len(), 1, "a block at the new target");
    }
}

#[test]
fn every_job_may_be_rolled_p29() {
    let mut chain = Chain::new(HARD_NBITS);
    let flags = setup_flags::REQUIRES_VERSION_ROLLING;
    let mut link = Link::with(easy_policy(), flags, chain.active());
    let mut said = link.open(Kind::Extended, 0.0, [0xff; 32]);
    said.extend(link.template(chain.advance()));
    said.extend(link.pass(JOB_REFRESH_MS));
    let mut jobs = 0;
    for one in &said {
        if let Said::Job { body: JobBody::Extended { rolling, .. }, .. } = one {
            assert!(rolling);
            jobs += 1;
        }
    }
    assert!(jobs >= 5);
}

#[test]
fn no_job_starts_further_ahead_than_the_network_takes_p30() {
    let mut chain = Chain::new(HARD_NBITS);
    chain.advance_at(START_S - 50_000);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    link.template(chain.fuller());
    assert!(link.client.work(channel).min_ntime >= START_S);
    // The clock was wrong and is set back: "later than the last job" must not win over the limit.
    link.now.unix_s -= 8_000;
    for _ in 0..20 {
        link.template(chain.fuller());
        let start = link.client.work(channel).min_ntime;
        assert!(start <= link.now.unix_s + NTIME_AHEAD_MAX_S, "{start}");
    }
}

#[test]
fn fresh_search_space_comes_before_a_standard_job_is_through_p31() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Standard);
    for _ in 0..20 {
        let before = link.client.work(channel).clone();
        let said = link.pass(JOB_REFRESH_MS);
        assert!(!said.is_empty(), "silence for {JOB_REFRESH_MS} ms");
        let after = link.client.work(channel);
        assert!(after.min_ntime > before.min_ntime && after.job != before.job);
    }
}

#[test]
fn a_thousand_channels_take_one_frame_for_each_job_p32() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    for at in 0..1_000 {
        link.open_at_floor(if at % 2 == 0 { Kind::Standard } else { Kind::Extended });
    }
    // The job ahead was told to each channel when it opened, so this once the tip is too.
    assert_eq!(link.template(chain.advance()).len(), 1_000 + 2);
    assert_eq!(link.template(chain.fuller()).len(), 1, "a template");
    assert_eq!(link.template(chain.advance()).len(), 3, "tip, full job, job ahead");
    let said = link.pass(JOB_REFRESH_MS);
    assert_eq!(said.iter().filter(|one| matches!(one, Said::Job { .. })).count(), 1, "a refresh");
}

#[test]
fn each_of_many_standard_channels_gets_its_own_root_p22() {
    // More than one kernel takes at once, extended channels in between.
    let policy = Policy { group_addressing: false, ..easy_policy() };
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(policy, 0, chain.active());
    for at in 0..37 {
        link.open_at_floor(if at % 5 == 4 { Kind::Extended } else { Kind::Standard });
    }
    let said = link.template(chain.fuller());
    assert_eq!(said.len(), 37);
    for one in &said {
        let Said::Job { channel, job, body: JobBody::Standard { merkle_root }, .. } = one else {
            continue;
        };
        let prefix = link.client.device(*channel).prefix.as_slice();
        let work = chain.active().job.numbered(JobId(*job));
        let coinbase = work.coinbase();
        let txid = sha256d(&[&coinbase.prefix, prefix, &coinbase.suffix[..]].concat());
        assert_eq!(*merkle_root, proto::template::merkle_root(txid, work.merkle_path()));
    }
}

#[test]
fn without_group_addressing_each_channel_hears_everything_by_its_own_id_p32() {
    let policy = Policy { group_addressing: false, ..easy_policy() };
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(policy, 0, chain.active());
    for _ in 0..10 {
        link.open_at_floor(Kind::Extended);
    }
    let mut said = link.template(chain.fuller());
    assert_eq!(said.len(), 10);
    said.extend(link.template(chain.advance()));
    assert_eq!(said.len(), 40);
    let by_own_id = |one: &Said| match one {
        Said::Job { channel, .. } | Said::PrevHash { channel, .. } => *channel > 1,
        other => panic!("{other:?}"),
    };
    assert!(said.iter().all(by_own_id));
}
