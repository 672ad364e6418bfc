//! The client machine over bytes, as a server's outbox has them: the `TestMiner` that other tests borrow
//! is shown here to find, prove and send its shares.

#[path = "common/miner.rs"]
mod miner;

use miner::{TestMiner, find_nonce, header_hash};
use proto::connection::Violation;
use proto::message::{
    Message, NewMiningJob, OpenStandardMiningChannelSuccess, SetNewPrevHash, SetTarget,
    SetupConnectionSuccess, SubmitSharesSuccess,
};
use proto::mining::client::{ChannelKind, ClientOptions, Event};
use proto::target::Target;
use proto::wire::B032;

fn frames(messages: &[Message<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut out));
    out
}

/// Setup, channel 2 at a target that every 256th hash meets, job 1 on a tip.
fn opened() -> Vec<u8> {
    let mut target = [0xff; 32];
    target[31] = 0;
    let (channel_id, job_id, prev_hash) = (2, 1, [5; 32]);
    let extranonce_prefix = B032::new(&[1; 24]).expect("24 bytes fit");
    let (version, merkle_root) = (0x2000_0000, [6; 32]);
    frames(&[
        SetupConnectionSuccess { used_version: 2, flags: 0 }.into(),
        OpenStandardMiningChannelSuccess {
            request_id: 1,
            channel_id,
            target,
            extranonce_prefix,
            group_channel_id: 1,
        }
        .into(),
        NewMiningJob { channel_id, job_id, min_ntime: None, version, merkle_root }.into(),
        SetNewPrevHash { channel_id, job_id, prev_hash, min_ntime: 9, nbits: 0x1d00_ffff }.into(),
    ])
}

#[test]
fn a_miner_hears_frames_and_says_shares_that_hold() {
    let mut miner = TestMiner::new(ClientOptions::new(ChannelKind::Standard, "alice"));
    miner.hear(&opened()).expect("a good server");
    assert!(!miner.said().is_empty(), "setup and open");
    for sequence in 1..=10 {
        let (work, found) = miner.find();
        assert!(work.target.is_met_by(&header_hash(&work, &found)));
        assert_eq!(miner.mine(), sequence);
    }
    assert_eq!(miner.said().len(), 10 * (6 + 24), "ten frames of SubmitSharesStandard");
    let success = SubmitSharesSuccess {
        channel_id: 2,
        last_sequence_number: 10,
        new_submits_accepted_count: 10,
        new_shares_sum: 0,
    };
    miner.hear(&frames(&[success.into()])).expect("a good server");
    let acknowledged = Event::Acknowledged { last_sequence: 10, count: 10, sum: 0 };
    assert_eq!(miner.events.last(), Some(&acknowledged));
}

#[test]
fn a_harder_target_than_the_works_own_can_be_searched_for() {
    let mut miner = TestMiner::new(ClientOptions::new(ChannelKind::Standard, "alice"));
    miner.hear(&opened()).expect("a good server");
    let mut harder = [0xff; 32];
    (harder[31], harder[30]) = (0, 0x0f);
    let harder = Target::from_le_bytes(harder);
    let found = find_nonce(&miner.work(), &[], harder, 0).expect("one in 4,096");
    assert!(harder.is_met_by(&header_hash(&miner.work(), &found)));
    assert_eq!(find_nonce(&miner.work(), &[], Target::from_le_bytes([0; 32]), 0), None);
}

#[test]
fn a_frame_cut_short_is_a_violation() {
    let mut miner = TestMiner::new(ClientOptions::new(ChannelKind::Standard, "alice"));
    miner.hear(&opened()).expect("a good server");
    let set = SetTarget { channel_id: 2, maximum_target: [0xff; 32] };
    let mut short = frames(&[set.into()]);
    short.pop();
    short[3] -= 1;
    assert!(matches!(miner.hear(&short), Err(Violation::Wire(_))));
}
