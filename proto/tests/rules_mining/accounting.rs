//! From a good share to its acknowledgement: rule P49, the ledger's duplicates, back-pressure, worker
//! names.

use proto::limits::{
    CREDIT_BATCH_AGE_MS, CREDIT_BATCH_MAX, CREDIT_BATCH_WAITING_MAX, CREDIT_BATCHES_OPEN_MAX,
    WORKER_TLV_MAX,
};
use proto::message::{EXTENSION_WORKER_HASHRATE, TLV_WORKER_USER_IDENTITY, Tlvs, write_tlv};
use proto::mining::server::{Effect, Policy};
use proto::mining::{Committed, CreditBatch, Kind};
use proto::target::Difficulty;

use crate::common::{Chain, HARD_NBITS, Ledger, Link, REGTEST_NBITS, Said, easy_policy};

fn submit_good(link: &mut Link, channel: u32) -> u32 {
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    share.sequence
}

#[test]
fn success_is_said_only_when_the_ledger_has_it() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let sequence = submit_good(&mut link, channel);
    assert!(link.pass(25_000).iter().all(|said| !matches!(said, Said::Accepted { .. })));
    let batch = link.batches().pop().unwrap();
    let committed = Committed { id: batch.id, duplicates: Vec::new() };
    let said = link.handle(proto::mining::server::Input::Committed(committed.clone())).unwrap();
    assert_eq!(said, [Said::Accepted { channel, last_sequence: sequence, count: 1, sum: 0 }]);
    // The same word again, or one about a batch that never was, says nothing.
    for id in [committed.id, 77] {
        let again = Committed { id, duplicates: Vec::new() };
        assert!(link.handle(proto::mining::server::Input::Committed(again)).unwrap().is_empty());
    }
}

#[test]
fn a_batch_leaves_when_it_is_old_or_full() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let credits = |link: &Link| {
        link.effects.iter().filter(|effect| matches!(effect, Effect::Credit(_))).count()
    };
    submit_good(&mut link, channel);
    link.pass(CREDIT_BATCH_AGE_MS - 1);
    assert_eq!(credits(&link), 0);
    link.pass(1);
    assert_eq!(credits(&link), 1);
    for _ in 0..CREDIT_BATCH_MAX - 1 {
        submit_good(&mut link, channel);
    }
    assert_eq!(credits(&link), 1);
    submit_good(&mut link, channel);
    assert_eq!(credits(&link), 2);
}

#[test]
fn counts_and_sums_are_those_of_the_batch_p49() {
    let mut chain = Chain::new(HARD_NBITS);
    let policy = Policy { group_addressing: false, ..easy_policy() };
    let mut link = Link::with(policy, 0, chain.active());
    let mut ledger = Ledger::default();
    let one = link.open_at_floor(Kind::Extended);
    let two = link.open_at_floor(Kind::Standard);
    let mut last = 0;
    for _ in 0..5 {
        submit_good(&mut link, one);
        last = submit_good(&mut link, two);
    }
    let mut bad = link.client.good_share(two);
    bad.ntime = 1;
    link.submit(&bad);
    // A tip and a target in between change nothing.
    link.template(chain.advance());
    link.update(one, 0.0, Difficulty::from_log2(-31).target().to_le_bytes());
    let said = link.commit(&mut ledger);
    let [
        Said::Accepted { channel: first, count: 5, .. },
        Said::Accepted { channel: second, count: 5, last_sequence, .. },
    ] = said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!((first, second, last_sequence), (one, two, last));
    submit_good(&mut link, two);
    let said = link.commit(&mut ledger);
    assert!(matches!(said[..], [Said::Accepted { count: 1, .. }]), "{said:?}");
}

#[test]
fn what_the_ledger_knew_is_an_error_and_the_rest_a_success() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let sequences: Vec<u32> = (0..4).map(|_| submit_good(&mut link, channel)).collect();
    let batch = link.batches().pop().unwrap();
    let mut ledger = Ledger::default();
    ledger.credited.insert(batch.groups[0].proofs[1].hash);
    ledger.credited.insert(batch.groups[0].proofs[3].hash);
    let committed = ledger.commit(&batch);
    let said = link.handle(proto::mining::server::Input::Committed(committed)).unwrap();
    let refused =
        |sequence| Said::Refused { channel, sequence, code: "duplicate-share".to_string() };
    assert_eq!(
        said,
        [
            refused(sequences[1]),
            refused(sequences[3]),
            Said::Accepted { channel, last_sequence: sequences[2], count: 2, sum: 0 },
        ]
    );
    assert_eq!(link.server.channels().next().unwrap().tally.accepted, 2);
}

#[test]
fn a_tip_that_comes_back_is_mined_with_other_headers() {
    // The channel has forgotten what it showed under the tip, so nothing of it may be found again.
    let mut chain = Chain::new(HARD_NBITS);
    let here = chain.active();
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let before = link.client.work(channel).clone();
    link.template(chain.reorganise());
    link.template(here);
    let after = link.client.work(channel).clone();
    assert_eq!((after.prev_hash, after.min_ntime), (before.prev_hash, before.min_ntime));
    assert_ne!(after.body, before.body);
}

#[test]
fn a_batch_is_for_every_channel_that_is_in_it() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channels: Vec<u32> = (0..5).map(|_| link.open_at_floor(Kind::Extended)).collect();
    for channel in &channels {
        submit_good(&mut link, *channel);
    }
    let batches = link.batches();
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].groups.len(), 5);
    let said = {
        let committed = Ledger::default().commit(&batches[0]);
        link.handle(proto::mining::server::Input::Committed(committed)).unwrap()
    };
    assert_eq!(said.len(), 5);
    let acknowledged =
        link.effects.iter().filter(|e| matches!(e, Effect::Acknowledged { shares: 1, .. }));
    assert_eq!(acknowledged.count(), 5);
}

#[test]
fn a_slow_ledger_stops_the_reading_and_its_answer_starts_it_again() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let mut ledger = Ledger::default();
    for batch in 1..=CREDIT_BATCHES_OPEN_MAX {
        assert!(link.server.takes_more(), "batch {batch}");
        submit_good(&mut link, channel);
        link.pass(CREDIT_BATCH_AGE_MS);
        assert_eq!(link.server.batches_under_way(), batch);
    }
    // The next batch stays open and grows, for a block may come behind any share.
    for share in 0..CREDIT_BATCH_WAITING_MAX {
        assert!(link.server.takes_more(), "share {share}");
        submit_good(&mut link, channel);
    }
    assert!(!link.server.takes_more());
    assert_eq!(link.server.batches_under_way(), CREDIT_BATCHES_OPEN_MAX);

    let credited = |link: &Link| -> Vec<CreditBatch> {
        let credit = |effect: &Effect| match effect {
            Effect::Credit(batch) => Some(batch.clone()),
            _ => None,
        };
        link.effects.iter().filter_map(credit).collect()
    };
    let committed = ledger.commit(&credited(&link)[0]);
    link.handle(proto::mining::server::Input::Committed(committed)).unwrap();
    assert!(link.server.takes_more());
    link.pass(CREDIT_BATCH_AGE_MS);
    let shares = |batch: &CreditBatch| -> usize {
        batch.groups.iter().map(|group| group.proofs.len()).sum()
    };
    assert_eq!(credited(&link).iter().map(shares).max(), Some(CREDIT_BATCH_WAITING_MAX));
}

#[test]
fn the_store_may_answer_in_any_order() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let mut ledger = Ledger::default();
    let mut batches = Vec::new();
    for _ in 0..3 {
        submit_good(&mut link, channel);
        batches.extend(link.batches());
    }
    for batch in batches.iter().rev() {
        let committed = ledger.commit(batch);
        let said = link.handle(proto::mining::server::Input::Committed(committed)).unwrap();
        assert!(matches!(said[..], [Said::Accepted { count: 1, .. }]));
    }
    assert_eq!(link.server.batches_under_way(), 0);
}

fn worker_tlv(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_tlv(EXTENSION_WORKER_HASHRATE, TLV_WORKER_USER_IDENTITY, name, &mut bytes);
    bytes
}

#[test]
fn a_share_carries_its_workers_name_where_that_was_agreed_e7() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let named = worker_tlv(b"rig42");
    for (agreed, worker) in [(false, "rig1"), (true, "rig42")] {
        link.server.set_worker_hashrate(agreed);
        let share = link.client.good_share(channel);
        assert!(link.submit_with(&share, Tlvs::new(&named)).is_empty());
        let batch = link.batches().pop().unwrap();
        let owner = &batch.groups[0].owner;
        assert_eq!((&*owner.account, &*owner.worker), ("alice", worker));
    }
}

#[test]
fn a_workers_name_that_is_too_long_or_no_text_is_refused_g17() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    link.server.set_worker_hashrate(true);
    let (longest, too_long) = ([b'w'; WORKER_TLV_MAX], [b'w'; WORKER_TLV_MAX + 1]);
    for (name, fine) in
        [(&b""[..], true), (&longest, true), (&too_long, false), (b"\xff", false), (b"a\nb", false)]
    {
        let tlv = worker_tlv(name);
        let share = link.client.good_share(channel);
        let said = link.submit_with(&share, Tlvs::new(&tlv));
        assert_eq!(said.is_empty(), fine, "{name:?}");
        assert!(fine || said[0].code() == Some("invalid-user-identity"));
    }
}

#[test]
fn a_block_with_a_bad_workers_name_is_refused_as_a_share_and_still_goes_out() {
    let mut link = Link::new(&Chain::new(REGTEST_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    link.server.set_worker_hashrate(true);
    let network = proto::target::Target::from_compact(REGTEST_NBITS);
    let work = link.client.work(channel).clone();
    let mut share = link.client.share_on(channel, &work);
    while !network.is_met_by(&link.client.hash(&work, &share)) {
        share.nonce += 1_000_000;
    }
    let said = link.submit_with(&share, Tlvs::new(&worker_tlv(&[b'w'; WORKER_TLV_MAX + 1])));
    assert_eq!(said[0].code(), Some("invalid-user-identity"));
    assert_eq!(link.blocks().len(), 1);
}

#[test]
fn bytes_behind_a_share_that_mean_nothing_are_ignored_g16() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    for agreed in [false, true] {
        link.server.set_worker_hashrate(agreed);
        let share = link.client.good_share(channel);
        assert!(link.submit_with(&share, Tlvs::new(&[1, 2, 3])).is_empty());
    }
}
