//! What real devices put up with (the rules are in `common::Client`; here they are provoked), and SRI's
//! client channels as a second opinion.

use std::collections::BTreeMap;
use std::sync::Arc;

use channels_sv2::client::extended::ExtendedChannel;
use channels_sv2::client::group::GroupChannel;
use channels_sv2::extranonce_manager::ExtranoncePrefix;
use mining_sv2::{NewExtendedMiningJobOwned, SetNewPrevHashOwned};

use proto::job::{Job, JobId};
use proto::limits::{
    FRAME_HEADER_LEN, JOB_PAYLOAD_UNKNOWN_DEVICE_MAX, JOB_REFRESH_MS, VARDIFF_CHECK_MS,
};
use proto::mining::Kind;
use proto::mining::server::Policy;
use proto::target::Difficulty;
use proto::template::CoinbaseParts;

use crate::common::{
    ANY_TARGET, Chain, DECLARED_RATE, HARD_NBITS, JobBody, Link, Said, easy_policy, lively_policy,
};

#[test]
fn the_answer_to_an_open_is_the_very_next_frame() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for kind in [Kind::Standard, Kind::Extended, Kind::Extended] {
        let said = link.open(kind, DECLARED_RATE, ANY_TARGET);
        assert!(matches!(said[0], Said::Opened { .. }), "{said:?}");
    }
}

#[test]
fn a_new_target_is_followed_at_once_by_a_job_that_it_binds() {
    let mut link = Link::with(lively_policy(), 0, Chain::new(HARD_NBITS).active());
    let said = link.open(Kind::Extended, DECLARED_RATE, ANY_TARGET);
    let Said::Opened { channel, target: first, .. } = said[0] else { panic!("{said:?}") };
    let said = link.pass(600_000);
    let mut targets = 0;
    for pair in said.windows(2) {
        if let Said::Target { channel: to, .. } = pair[0] {
            let fresh = |one: &Said| matches!(one, Said::Job { channel, min_ntime: Some(_), .. } if *channel == to);
            assert!(fresh(&pair[1]), "{pair:?}");
            targets += 1;
        }
    }
    assert!(targets >= 2, "ten minutes of silence at a declared terahash");
    assert!(link.client.work(channel).target > first);
}

#[test]
fn no_work_is_given_twice_though_nothing_changed() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channels = [
        link.open_at_floor(Kind::Standard),
        link.open_at_floor(Kind::Extended),
        link.open_at_floor(Kind::Extended),
    ];
    // `Client` fails at a job whose content a channel had before under this tip. The limits make
    // SetTarget and its fresh job come several times in one second.
    for round in 0i16..40 {
        for channel in channels {
            let limit = Difficulty::from_log2(round - 31).target();
            link.update(channel, 0.0, limit.to_le_bytes());
        }
        link.pass(if round % 4 == 0 { JOB_REFRESH_MS } else { VARDIFF_CHECK_MS / 20 });
    }
    assert!(link.client.work(channels[0]).target < Difficulty::from_log2(0).target());
}

#[test]
fn a_job_fits_the_frames_of_the_smallest_device() {
    let mut chain = Chain::new(HARD_NBITS);
    chain.transactions = 5_000;
    let mut link = Link::with(easy_policy(), 0, chain.advance());
    let said = link.open(Kind::Extended, DECLARED_RATE, ANY_TARGET);
    let Said::Job { ref body, payload_len, .. } = said[1] else { panic!("{said:?}") };
    let JobBody::Extended { path, .. } = body else { panic!("{body:?}") };
    assert_eq!(path.len(), 13);
    assert!(payload_len <= JOB_PAYLOAD_UNKNOWN_DEVICE_MAX, "{payload_len}");
}

#[test]
fn a_job_knows_the_length_of_its_message_and_whether_every_device_takes_it() {
    let job = Chain::new(HARD_NBITS).advance().job.clone();
    let of = |suffix: usize| {
        let coinbase = CoinbaseParts { suffix: vec![0; suffix], ..job.coinbase() };
        Job::from_parts(job.template().clone(), coinbase)
    };
    let payload_of = |job: &Job| {
        let mut frame = Vec::new();
        job.say_extended(1, JobId(1), Some(1), &mut frame);
        frame.len() - FRAME_HEADER_LEN
    };
    assert_eq!(job.payload_len(), payload_of(&job));
    let room = JOB_PAYLOAD_UNKNOWN_DEVICE_MAX - of(0).payload_len();
    assert!(of(room).fits_every_device());
    assert_eq!(of(room).payload_len(), payload_of(&of(room)));
    assert!(!of(room + 1).fits_every_device());
}

#[test]
fn something_is_said_at_least_every_half_minute() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    link.open_at_floor(Kind::Extended);
    for _ in 0..20 {
        assert!(!link.pass(JOB_REFRESH_MS).is_empty());
    }
}

/// SRI's proxy in small: what each frame does to its channels and its group (translator_sv2,
/// `mining_message_handler.rs`). Any error here makes it leave the pool.
struct Proxy {
    group: GroupChannel,
    channels: BTreeMap<u32, ExtendedChannel>,
}

impl Proxy {
    fn new() -> Self {
        Self { group: GroupChannel::new(1), channels: BTreeMap::new() }
    }

    fn hear_all(&mut self, said: &[Said]) {
        for one in said {
            match one {
                Said::Opened { channel, prefix, rollable, target, .. } => {
                    let channel_state = ExtendedChannel::new(
                        *channel,
                        "alice".to_string(),
                        ExtranoncePrefix::from_wire(prefix.clone()).unwrap(),
                        bitcoin::Target::from_le_bytes(target.to_le_bytes()),
                        1e12,
                        true,
                        *rollable as u16,
                        None,
                    )
                    .unwrap();
                    self.group.add_channel_id(*channel, prefix.len() + rollable).unwrap();
                    self.channels.insert(*channel, channel_state);
                }
                Said::Job { channel, .. } => self.hear_job(*channel, &job_message(one)),
                Said::PrevHash { channel, job, prev_hash, min_ntime, nbits } => {
                    let message = SetNewPrevHashOwned {
                        channel_id: *channel,
                        job_id: *job,
                        prev_hash: (*prev_hash).into(),
                        min_ntime: *min_ntime,
                        nbits: *nbits,
                    };
                    self.hear_prev_hash(&message);
                }
                Said::Target { channel, target } => {
                    let target = bitcoin::Target::from_le_bytes(target.to_le_bytes());
                    self.channels.get_mut(channel).unwrap().set_target(target).unwrap();
                }
                Said::OpenError { .. }
                | Said::UpdateError { .. }
                | Said::Accepted { .. }
                | Said::Refused { .. }
                | Said::CustomSuccess { .. }
                | Said::CustomError { .. } => panic!("{one:?}"),
            }
        }
    }

    fn hear_job(&mut self, to: u32, job: &NewExtendedMiningJobOwned) {
        if to != 1 {
            let channel = self.channels.get_mut(&to).unwrap();
            channel.on_new_extended_mining_job(job.clone()).unwrap();
            return;
        }
        self.group.on_new_extended_mining_job(job.clone());
        for (id, channel) in &mut self.channels {
            let mut own = job.clone();
            own.channel_id = *id;
            channel.on_new_extended_mining_job(own).unwrap();
        }
    }

    fn hear_prev_hash(&mut self, message: &SetNewPrevHashOwned) {
        if message.channel_id != 1 {
            let channel = self.channels.get_mut(&message.channel_id).unwrap();
            channel.on_set_new_prev_hash(message.clone()).unwrap();
            return;
        }
        self.group.on_set_new_prev_hash(message.clone()).unwrap();
        for channel in self.channels.values_mut() {
            channel.on_set_new_prev_hash(message.clone()).unwrap();
        }
    }
}

fn job_message(said: &Said) -> NewExtendedMiningJobOwned {
    let Said::Job {
        channel,
        job,
        min_ntime,
        version,
        body: JobBody::Extended { prefix, suffix, path, rolling },
        ..
    } = said
    else {
        panic!("{said:?}")
    };
    let path: Vec<binary_sv2::U256Owned> = path.iter().map(|node| (*node).into()).collect();
    NewExtendedMiningJobOwned {
        channel_id: *channel,
        job_id: *job,
        min_ntime: binary_sv2::Sv2OptionOwned::new(*min_ntime),
        version: *version,
        version_rolling_allowed: *rolling,
        merkle_path: path.try_into().unwrap(),
        coinbase_tx_prefix: prefix.clone().try_into().unwrap(),
        coinbase_tx_suffix: suffix.clone().try_into().unwrap(),
    }
}

#[test]
fn sris_proxy_can_follow_everything_that_is_said_to_a_group() {
    for group_addressing in [true, false] {
        let policy = Policy { group_addressing, ..easy_policy() };
        let mut chain = Chain::new(HARD_NBITS);
        let mut link = Link::with(policy, 0, chain.active());
        let mut proxy = Proxy::new();
        proxy.hear_all(&link.open(Kind::Extended, DECLARED_RATE, ANY_TARGET));
        for round in 0..12 {
            if round % 3 == 0 {
                proxy.hear_all(&link.open(Kind::Extended, DECLARED_RATE, ANY_TARGET));
            }
            proxy.hear_all(&link.template(chain.fuller()));
            proxy.hear_all(&link.pass(20_000));
            proxy.hear_all(&link.template(if round == 7 {
                chain.reorganise()
            } else {
                chain.advance()
            }));
        }
        assert_eq!(proxy.channels.len(), 5);
        let tip = chain.active().tip.hash;
        for channel in proxy.channels.values() {
            let known: binary_sv2::U256Owned = tip.into();
            assert_eq!(channel.get_chain_tip().unwrap().prev_hash(), known);
        }
    }
}

#[test]
fn a_template_that_changes_nothing_is_not_worth_a_frame() {
    let chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    link.open_at_floor(Kind::Extended);
    assert!(link.template(chain.active()).is_empty());
    assert!(link.template(Arc::clone(&chain.active())).is_empty());
}
