//! The client's half of the rules against a server that is scripted message by message.

use super::*;
use crate::limits::FRAME_HEADER_LEN;
use crate::message::{ChannelEndpointChanged, FrameHeader, Received, UpdateChannelError};
use crate::mining::grind::Grinder;
use crate::target::Difficulty;
use crate::wire::{B064K, Seq0255U256};

const CHANNEL: u32 = 5;
const GROUP: u32 = 1;
/// Every second hash: what tests grind at.
const EASY: [u8; 32] = [0x7f; 32];

/// A client and the frames it sent.
struct Link {
    client: Client,
    out: Vec<u8>,
    now_ms: u64,
}

impl Link {
    fn new(options: ClientOptions) -> Self {
        let mut link = Self { client: Client::new(options), out: Vec::new(), now_ms: 0 };
        link.client.start(&mut link.out);
        link
    }

    fn standard() -> Self {
        Self::new(ClientOptions::new(ChannelKind::Standard, "alice.bench"))
    }

    fn extended() -> Self {
        let kind = ChannelKind::Extended { min_extranonce_size: 4 };
        Self::new(ClientOptions::new(kind, "alice.bench"))
    }

    fn tell<'a>(&mut self, message: impl Into<Message<'a>>) -> Handled {
        self.client.handle(self.now_ms, message.into(), Tlvs::NONE, &mut self.out)
    }

    /// Takes what was sent and hands each message to `check`.
    fn sent(&mut self, mut check: impl FnMut(Message<'_>, Tlvs<'_>)) -> usize {
        let out = std::mem::take(&mut self.out);
        let (mut rest, mut count) = (&out[..], 0);
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*header);
            let (payload, after) = after.split_at(header.length);
            let decoded = Message::decode(header.extension(), header.msg_type, payload).unwrap();
            let Received::Known(message, tlvs) = decoded else { panic!("{decoded:?}") };
            assert_eq!((header.extension_type, header.msg_type), message.kind());
            check(message, tlvs);
            (rest, count) = (after, count + 1);
        }
        count
    }

    fn names_sent(&mut self) -> Vec<&'static str> {
        let mut names = Vec::new();
        self.sent(|message, _| names.push(message.name()));
        names
    }

    /// Through setup and opening, with the outbox emptied.
    fn open(mut self) -> Self {
        self.tell(success(0)).unwrap();
        let opened = match self.client.options.kind {
            ChannelKind::Standard => self.tell(opened_standard()),
            ChannelKind::Extended { .. } => self.tell(opened_extended()),
        };
        assert!(matches!(opened, Ok(Some(Event::Opened { .. }))), "{opened:?}");
        self.out.clear();
        self
    }

    /// Open, with job 1 active on tip 1.
    fn mining(self) -> Self {
        let mut link = self.open();
        link.job(1, None).unwrap();
        assert_eq!(link.tell(tip(1, 1)), Ok(Some(Event::NewWork { new_tip: true })));
        link
    }

    fn job(&mut self, id: u32, min_ntime: Option<u32>) -> Handled {
        match self.client.options.kind {
            ChannelKind::Standard => self.tell(NewMiningJob { min_ntime, ..standard_job(id) }),
            ChannelKind::Extended { .. } => {
                self.tell(NewExtendedMiningJob { min_ntime, ..extended_job(id) })
            }
        }
    }

    fn work(&self) -> Arc<Work> {
        self.client.work().expect("there is work")
    }

    fn find(&self) -> Found {
        let work = self.work();
        let extranonce = B032::new(&vec![7; work.extranonce_size]).unwrap();
        let (ntime, version) = (work.min_ntime, work.version_with(0));
        Grinder::new(&work, extranonce, ntime, version, (0, 1 << 32)).run(1 << 32).unwrap()
    }
}

fn success(flags: u32) -> SetupConnectionSuccess {
    SetupConnectionSuccess { used_version: 2, flags }
}

fn opened_standard() -> OpenStandardMiningChannelSuccess {
    OpenStandardMiningChannelSuccess {
        request_id: 1,
        channel_id: CHANNEL,
        target: EASY,
        extranonce_prefix: B032::new(&[9; 8]).unwrap(),
        group_channel_id: GROUP,
    }
}

fn opened_extended() -> OpenExtendedMiningChannelSuccess {
    OpenExtendedMiningChannelSuccess {
        request_id: 1,
        channel_id: CHANNEL,
        target: EASY,
        extranonce_size: 16,
        extranonce_prefix: B032::new(&[9; 8]).unwrap(),
        group_channel_id: GROUP,
    }
}

fn standard_job(job_id: u32) -> NewMiningJob {
    let version = 0x2000_0000;
    NewMiningJob { channel_id: CHANNEL, job_id, min_ntime: None, version, merkle_root: [3; 32] }
}

fn extended_job(job_id: u32) -> NewExtendedMiningJob<'static> {
    NewExtendedMiningJob {
        channel_id: GROUP,
        job_id,
        min_ntime: None,
        version: 0x2000_0000,
        version_rolling_allowed: true,
        merkle_path: Seq0255U256::new(&[[4; 32]]).unwrap(),
        coinbase_tx_prefix: B064K::new(b"prefix").unwrap(),
        coinbase_tx_suffix: B064K::new(b"suffix").unwrap(),
    }
}

fn tip(job_id: u32, n: u8) -> SetNewPrevHash {
    // A network target that practically no hash meets.
    let nbits = 0x1d00_ffff;
    let prev_hash = [n; 32];
    SetNewPrevHash {
        channel_id: CHANNEL,
        job_id,
        prev_hash,
        min_ntime: 1_000 * u32::from(n),
        nbits,
    }
}

fn violates(handled: Handled) -> bool {
    matches!(handled, Err(Violation::Unexpected(_)))
}

#[test]
fn setup_comes_first_and_names_a_vendor_c1() {
    let mut link = Link::extended();
    let sent = link.sent(|message, _| {
        let Message::SetupConnection(setup) = message else { panic!("{message:?}") };
        assert_eq!((setup.protocol, setup.min_version, setup.max_version), (0, 2, 2));
        assert!(!setup.vendor.as_slice().is_empty());
        assert_eq!(setup.flags, setup_flags::REQUIRES_VERSION_ROLLING);
    });
    assert_eq!(sent, 1);
}

#[test]
fn the_flags_of_a_refusal_reach_the_driver_c2() {
    let kind = ChannelKind::Standard;
    let mut link =
        Link::new(ClientOptions { flags: u32::MAX, ..ClientOptions::new(kind, "probe") });
    let error_code = Str0255::text("unsupported-feature-flags");
    let refused = link.tell(SetupConnectionError { flags: 0xffff_fff8, error_code });
    let code = "unsupported-feature-flags".to_owned();
    assert_eq!(refused, Ok(Some(Event::SetupRefused { flags: 0xffff_fff8, code })));
    assert!(violates(link.tell(success(0))), "a refusal is final");
}

#[test]
fn a_channel_is_asked_for_right_after_success_c3() {
    for (mut link, name) in [
        (Link::standard(), "OpenStandardMiningChannel"),
        (Link::extended(), "OpenExtendedMiningChannel"),
    ] {
        link.out.clear();
        assert_eq!(link.tell(success(0)), Ok(None));
        assert_eq!(link.names_sent(), [name]);
    }
}

#[test]
fn no_standard_channel_is_asked_for_where_they_are_refused_c4() {
    let mut link = Link::standard();
    link.out.clear();
    let refused = link.tell(success(setup_flags::SUCCESS_REQUIRES_EXTENDED_CHANNELS));
    assert!(matches!(refused, Ok(Some(Event::OpenRefused { .. }))), "{refused:?}");
    assert!(link.out.is_empty());

    let mut extended = Link::extended();
    extended.out.clear();
    extended.tell(success(setup_flags::SUCCESS_REQUIRES_EXTENDED_CHANNELS)).unwrap();
    assert_eq!(extended.names_sent(), ["OpenExtendedMiningChannel"]);
}

#[test]
fn an_active_job_and_a_new_tip_replace_the_work_at_once_c5() {
    for link in [Link::standard(), Link::extended()] {
        let mut link = link.mining();
        let first = link.work();
        assert_eq!((first.job_id, first.prev_hash, first.min_ntime), (JobId(1), [1; 32], 1_000));

        assert_eq!(link.job(2, Some(1_030)), Ok(Some(Event::NewWork { new_tip: false })));
        let second = link.work();
        assert_eq!((second.job_id, second.prev_hash, second.min_ntime), (JobId(2), [1; 32], 1_030));

        assert_eq!(link.job(3, None), Ok(None));
        assert_eq!(link.work(), second, "a future job changes nothing yet");
        assert_eq!(link.tell(tip(3, 2)), Ok(Some(Event::NewWork { new_tip: true })));
        let third = link.work();
        assert_eq!((third.job_id, third.prev_hash, third.min_ntime), (JobId(3), [2; 32], 2_000));
    }
}

#[test]
fn what_the_server_has_in_the_rollable_bits_does_not_count_c6() {
    let mut link = Link::extended().mining();
    let noisy = NewExtendedMiningJob {
        version: 0x2000_0000 | VERSION_ROLLING_MASK,
        min_ntime: Some(1_001),
        ..extended_job(2)
    };
    let clean = link.work();
    link.tell(noisy).unwrap();
    let noisy = link.work();
    for rolled in [0, 0x1234_5678, u32::MAX] {
        assert_eq!(noisy.version_with(rolled), clean.version_with(rolled));
    }
}

#[test]
fn a_forbidden_version_is_left_as_it_is_c6() {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let options = ClientOptions { flags: 0, ..ClientOptions::new(kind, "fixed") };
    let mut link = Link::new(options.clone()).mining();
    let version = 0x3fff_ffff;
    let fixed = NewExtendedMiningJob {
        version,
        version_rolling_allowed: false,
        min_ntime: Some(1_001),
        ..extended_job(2)
    };
    link.tell(fixed).unwrap();
    assert_eq!(link.work().version_with(0), version);
    assert_eq!(link.work().version_with(u32::MAX), version);

    let mut whole_connection = Link::new(options);
    whole_connection.tell(success(setup_flags::SUCCESS_REQUIRES_FIXED_VERSION)).unwrap();
    whole_connection.tell(opened_extended()).unwrap();
    whole_connection.job(1, None).unwrap();
    whole_connection.tell(tip(1, 1)).unwrap();
    assert_eq!(whole_connection.work().version_mask, 0);
}

#[test]
fn a_server_may_not_forbid_rolling_to_who_requires_it_s9_p29() {
    let mut link = Link::extended();
    assert!(violates(link.tell(success(setup_flags::SUCCESS_REQUIRES_FIXED_VERSION))));
    let mut link = Link::extended().open();
    let fixed = NewExtendedMiningJob { version_rolling_allowed: false, ..extended_job(1) };
    assert!(violates(link.tell(fixed)));
}

#[test]
fn only_the_granted_extranonce_size_is_submitted_c7() {
    let mut link = Link::extended().mining();
    let work = link.work();
    let found = link.find();
    for wrong in [0, 15, 17, 32] {
        let extranonce = B032::new(&vec![7; wrong]).unwrap();
        let refused = link.client.submit(&work, Found { extranonce, ..found }, &mut link.out);
        assert_eq!(refused, Err(NotSubmitted::ExtranonceSize));
    }
    assert!(link.out.is_empty());
    assert_eq!(link.client.submit(&work, found, &mut link.out), Ok(1));
}

#[test]
fn sequence_numbers_count_up_c8() {
    for link in [Link::standard(), Link::extended()] {
        let mut link = link.mining();
        let (work, found) = (link.work(), link.find());
        let mut seen = Vec::new();
        for expected in 1..=3 {
            assert_eq!(link.client.submit(&work, found, &mut link.out), Ok(expected));
        }
        link.sent(|message, _| {
            if let Message::SubmitSharesStandard(share) = message {
                seen.push(share.sequence_number);
            }
            if let Message::SubmitSharesExtended(share) = message {
                seen.push(share.sequence_number);
            }
        });
        assert_eq!(seen, [1, 2, 3]);
    }
}

#[test]
fn time_rolls_one_second_a_second_c9() {
    let mut link = Link::standard().open();
    link.now_ms = 50_000;
    link.job(1, None).unwrap();
    link.tell(tip(1, 1)).unwrap();
    let work = link.work();
    assert_eq!(work.ntime(50_000), 1_000);
    assert_eq!(work.ntime(50_999), 1_000);
    assert_eq!(work.ntime(53_000), 1_003);
    assert_eq!(work.ntime(0), 1_000, "a clock that went back is no earlier");
    assert_eq!(work.ntime(u64::MAX), u32::MAX);
}

#[test]
fn reconnect_is_told_without_an_authority_of_its_own_c10_c11() {
    let mut link = Link::standard();
    let elsewhere = Reconnect { new_host: Str0255::text("eu.example"), new_port: 3_333 };
    assert!(violates(link.tell(elsewhere)), "not before the setup");
    let mut link = link.open();
    let (host, port) = (Some("eu.example".to_owned()), Some(3_333));
    assert_eq!(link.tell(elsewhere), Ok(Some(Event::Reconnect { host, port })));
    let same = Reconnect { new_host: Str0255::text(""), new_port: 0 };
    assert_eq!(link.tell(same), Ok(Some(Event::Reconnect { host: None, port: None })));
    let forged = Reconnect { new_host: Str0255::text("a b\n"), new_port: 0 };
    assert!(violates(link.tell(forged)));
}

#[test]
fn extensions_are_asked_for_before_anything_else_e1_e6_e7() {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let worker = "a-name-of-more-than-thirty-two-bytes".to_owned();
    let extensions = vec![EXTENSION_WORKER_HASHRATE];
    let options = ClientOptions { extensions, worker, ..ClientOptions::new(kind, "alice") };
    let ids = [2u16.to_le_bytes()];
    for (agreed, name) in [(&ids[..], Some(&b"a-name-of-more-than-thirty-two-b"[..])), (&[], None)]
    {
        let mut link = Link::new(options.clone());
        link.out.clear();
        link.tell(success(0)).unwrap();
        assert_eq!(link.names_sent(), ["RequestExtensions"]);
        assert!(violates(link.tell(opened_extended())));
        let supported_extensions = Seq064K::new(agreed).unwrap();
        link.tell(RequestExtensionsSuccess { request_id: 1, supported_extensions }).unwrap();
        assert_eq!(link.names_sent(), ["OpenExtendedMiningChannel"]);
        link.tell(opened_extended()).unwrap();
        link.job(1, None).unwrap();
        link.tell(tip(1, 1)).unwrap();
        let (work, found) = (link.work(), link.find());
        link.client.submit(&work, found, &mut link.out).unwrap();
        link.sent(|_, tlvs| assert_eq!(tlvs.worker(), Ok(name)));
    }
}

#[test]
fn a_server_without_our_extensions_is_mined_on_and_one_with_others_is_not() {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let options = ClientOptions { extensions: vec![2], ..ClientOptions::new(kind, "alice") };
    let ids = [3u16.to_le_bytes()];
    let mut link = Link::new(options.clone());
    link.tell(success(0)).unwrap();
    link.out.clear();
    let nothing = Seq064K::new(&[]).unwrap();
    let refusal = RequestExtensionsError {
        request_id: 1,
        unsupported_extensions: nothing,
        required_extensions: nothing,
    };
    link.tell(refusal).unwrap();
    assert_eq!(link.names_sent(), ["OpenExtendedMiningChannel"]);

    let mut link = Link::new(options);
    link.tell(success(0)).unwrap();
    link.out.clear();
    let required_extensions = Seq064K::new(&ids).unwrap();
    let demanded = link.tell(RequestExtensionsError { required_extensions, ..refusal });
    assert_eq!(demanded, Ok(Some(Event::ExtensionsRequired(vec![3]))));
    assert!(link.out.is_empty());
}

#[test]
fn a_bad_answer_to_an_open_is_a_violation_p4_p5_p6_p7() {
    let limit = Difficulty::from_log2(0).target();
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let options = ClientOptions { max_target: limit, ..ClientOptions::new(kind, "alice") };
    let good =
        OpenExtendedMiningChannelSuccess { target: limit.to_le_bytes(), ..opened_extended() };
    let above = Difficulty::from_log2(-1).target().to_le_bytes();
    let bad = [
        OpenExtendedMiningChannelSuccess { request_id: 2, ..good },
        OpenExtendedMiningChannelSuccess { target: above, ..good },
        OpenExtendedMiningChannelSuccess { target: [0; 32], ..good },
        OpenExtendedMiningChannelSuccess { extranonce_size: 3, ..good },
        OpenExtendedMiningChannelSuccess { extranonce_size: 25, ..good },
        OpenExtendedMiningChannelSuccess { extranonce_size: u16::MAX, ..good },
        OpenExtendedMiningChannelSuccess { group_channel_id: CHANNEL, ..good },
    ];
    for answer in bad {
        let mut link = Link::new(options.clone());
        link.tell(success(0)).unwrap();
        assert!(violates(link.tell(answer)), "{answer:?}");
    }
    let mut link = Link::new(options);
    link.tell(success(0)).unwrap();
    assert!(violates(link.tell(opened_standard())), "not what was asked for");
    let most = OpenExtendedMiningChannelSuccess { extranonce_size: 24, ..good };
    assert!(link.tell(most).is_ok());
    assert!(violates(link.tell(most)), "a second answer");
}

#[test]
fn jobs_come_to_the_channel_or_its_group_and_to_no_other() {
    let mut link = Link::extended().open();
    link.tell(NewExtendedMiningJob { channel_id: GROUP, ..extended_job(1) }).unwrap();
    link.tell(NewExtendedMiningJob { channel_id: CHANNEL, ..extended_job(2) }).unwrap();
    assert!(violates(link.tell(NewExtendedMiningJob { channel_id: 77, ..extended_job(3) })));
    link.tell(SetNewPrevHash { channel_id: GROUP, ..tip(2, 1) }).unwrap();
    assert_eq!(link.work().job_id, JobId(2));
    assert!(violates(link.tell(SetTarget { channel_id: 77, maximum_target: EASY })));
    assert!(violates(link.tell(standard_job(4))), "NewMiningJob for an extended channel, P22");
}

#[test]
fn another_group_takes_over_when_the_server_says_so_p12() {
    let mut link = Link::extended().mining();
    let (mine, other) = ([CHANNEL.to_le_bytes()], [8u32.to_le_bytes()]);
    let set = |group_channel_id, ids| SetGroupChannel {
        group_channel_id,
        channel_ids: Seq064K::new(ids).unwrap(),
    };
    assert!(violates(link.tell(set(CHANNEL, &mine))));
    link.tell(set(40, &mine)).unwrap();
    let job = |channel_id, id| NewExtendedMiningJob { channel_id, ..extended_job(id) };
    assert!(violates(link.tell(job(GROUP, 2))));
    link.tell(job(40, 2)).unwrap();
    link.tell(set(40, &other)).unwrap();
    assert!(violates(link.tell(job(40, 3))));
    link.tell(job(CHANNEL, 3)).unwrap();

    let mut standard = Link::standard().open();
    assert!(violates(standard.tell(set(40, &mine))), "P11");
    assert!(violates(standard.tell(extended_job(9))), "P11");
}

#[test]
fn a_standard_channel_that_takes_extended_jobs_makes_its_own_root() {
    let options = ClientOptions { flags: 0, ..ClientOptions::new(ChannelKind::Standard, "alice") };
    let mut link = Link::new(options).open();
    let to_channel = NewExtendedMiningJob { channel_id: CHANNEL, ..extended_job(1) };
    assert!(violates(link.tell(to_channel)), "P22: only to the group");
    link.tell(extended_job(1)).unwrap();
    link.tell(tip(1, 1)).unwrap();
    let coinbase = [&b"prefix"[..], &[9; 8], b"suffix"].concat();
    let root = merkle_root(crate::template::sha256d(&coinbase), &[[4; 32]]);
    assert_eq!(link.work().merkle_root(&[]), root);
}

#[test]
fn the_rolled_bytes_stand_between_prefix_and_suffix() {
    let link = Link::extended().mining();
    let rolled = [1u8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let coinbase = [&b"prefix"[..], &[9; 8], &rolled, b"suffix"].concat();
    let root = merkle_root(crate::template::sha256d(&coinbase), &[[4; 32]]);
    assert_eq!(link.work().merkle_root(&rolled), root);
    assert_eq!(link.work().header(&rolled).merkle_root, root);
}

#[test]
fn a_new_target_is_for_work_that_comes_p41() {
    let mut link = Link::extended().mining();
    link.job(2, None).unwrap();
    let harder = Difficulty::from_log2(3).target();
    let set = SetTarget { channel_id: GROUP, maximum_target: harder.to_le_bytes() };
    assert_eq!(link.tell(set), Ok(Some(Event::TargetChanged(harder))));
    assert_eq!(link.work().target, Target::from_le_bytes(EASY), "running work keeps its own");
    link.tell(tip(2, 2)).unwrap();
    assert_eq!(link.work().target, harder, "a future job is judged from its activation");
}

#[test]
fn a_target_above_the_limit_is_a_violation_p16() {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let limit = Difficulty::from_log2(0).target();
    let options = ClientOptions { max_target: limit, ..ClientOptions::new(kind, "alice") };
    let mut link = Link::new(options);
    link.tell(success(0)).unwrap();
    let target = limit.to_le_bytes();
    link.tell(OpenExtendedMiningChannelSuccess { target, ..opened_extended() }).unwrap();
    let set =
        |target: Target| SetTarget { channel_id: CHANNEL, maximum_target: target.to_le_bytes() };
    assert!(link.tell(set(limit)).is_ok());
    assert!(violates(link.tell(set(Difficulty::from_log2(-1).target()))));
    assert!(violates(link.tell(SetTarget { channel_id: CHANNEL, maximum_target: [0; 32] })));
}

#[test]
fn a_new_prefix_is_for_jobs_that_come_p51() {
    let mut link = Link::extended().open();
    link.job(1, None).unwrap();
    let set = |len: usize| SetExtranoncePrefix {
        channel_id: CHANNEL,
        extranonce_prefix: B032::new(&vec![8; len]).unwrap(),
    };
    assert!(violates(link.tell(set(17))), "33 bytes with what is rolled");
    link.tell(set(16)).unwrap();
    link.tell(set(8)).unwrap();
    link.job(2, None).unwrap();
    let root = |prefix: u8| {
        let coinbase = [&b"prefix"[..], &[prefix; 8], &[7; 16], b"suffix"].concat();
        merkle_root(crate::template::sha256d(&coinbase), &[[4; 32]])
    };
    link.tell(tip(1, 1)).unwrap();
    assert_eq!(link.work().merkle_root(&[7; 16]), root(9));
    link.job(3, Some(1_000)).unwrap();
    assert_eq!(link.work().merkle_root(&[7; 16]), root(8));
    let group = SetExtranoncePrefix { channel_id: GROUP, ..set(8) };
    assert!(violates(link.tell(group)), "never for a group");
}

#[test]
fn only_the_named_future_job_survives_a_tip_p24_p26() {
    let mut link = Link::extended().mining();
    link.job(2, None).unwrap();
    link.job(3, None).unwrap();
    assert!(violates(link.tell(tip(9, 2))), "never sent");
    link.tell(tip(3, 2)).unwrap();
    assert!(violates(link.tell(tip(2, 3))), "void since the tip before");
    assert!(violates(link.tell(tip(3, 3))), "no future job any more");
}

#[test]
fn a_job_to_start_on_needs_a_tip_and_an_id_of_its_own_p20_p21_p23() {
    let mut link = Link::standard().open();
    assert!(violates(link.job(1, Some(1_000))));
    let mut link = Link::standard().mining();
    assert!(violates(link.job(1, None)), "the id of the running job");
    link.job(2, None).unwrap();
    assert!(violates(link.job(2, None)), "the id of a future job");
}

#[test]
fn future_jobs_are_bounded_and_the_oldest_goes() {
    let mut link = Link::extended().open();
    for id in 0..=CLIENT_FUTURE_JOBS_MAX as u32 {
        link.job(id, None).unwrap();
    }
    assert!(violates(link.tell(tip(0, 1))));
    assert!(link.tell(tip(1, 1)).is_ok());
}

#[test]
fn answers_to_shares_reach_the_driver_whatever_their_code_g10() {
    let mut link = Link::standard().mining();
    let (work, found) = (link.work(), link.find());
    let credit = |last_sequence_number| SubmitSharesSuccess {
        channel_id: CHANNEL,
        last_sequence_number,
        new_submits_accepted_count: 2,
        new_shares_sum: 512,
    };
    assert!(violates(link.tell(credit(1))), "nothing was sent yet");
    for _ in 0..3 {
        link.client.submit(&work, found, &mut link.out).unwrap();
    }
    let acknowledged = Event::Acknowledged { last_sequence: 3, count: 2, sum: 512 };
    assert_eq!(link.tell(credit(3)), Ok(Some(acknowledged)));
    assert!(violates(link.tell(credit(4))));
    for text in ["stale-share", "never-heard-of", "\u{1b}[31m"] {
        let refused = link.tell(SubmitSharesError {
            channel_id: CHANNEL,
            sequence_number: 2,
            error_code: Str0255::text(text),
        });
        let code = text.escape_default().to_string().replace("\\u{1b}", "\\x1b");
        assert_eq!(refused, Ok(Some(Event::Refused { sequence: 2, code })));
    }
    assert!(link.client.work().is_some());
}

#[test]
fn a_closed_channel_has_no_work_and_takes_no_share_p13() {
    for by in [CHANNEL, GROUP] {
        let mut link = Link::extended().mining();
        let (work, found) = (link.work(), link.find());
        let reason_code = Str0255::text("bye");
        let closed = link.tell(CloseChannel { channel_id: by, reason_code });
        assert_eq!(closed, Ok(Some(Event::ChannelClosed { reason: "bye".to_owned() })));
        assert_eq!(link.client.work(), None);
        let refused = link.client.submit(&work, found, &mut link.out);
        assert_eq!(refused, Err(NotSubmitted::NoChannel));
        assert!(violates(link.job(2, None)), "nothing more may come for it");
    }
}

#[test]
fn a_message_out_of_its_state_is_a_violation_and_no_panic() {
    let answers: [fn(&mut Link) -> Handled; 12] = [
        |link| link.tell(opened_standard()),
        |link| link.tell(opened_extended()),
        |link| link.job(1, None),
        |link| link.job(1, Some(5)),
        |link| link.tell(tip(1, 1)),
        |link| link.tell(SetTarget { channel_id: CHANNEL, maximum_target: EASY }),
        |link| link.tell(ChannelEndpointChanged { channel_id: CHANNEL }),
        |link| link.tell(SetupConnectionSuccess { used_version: 3, flags: 0 }),
        |link| link.tell(CloseChannel { channel_id: CHANNEL, reason_code: Str0255::text("") }),
        |link| link.tell(UpdateChannelError { channel_id: CHANNEL, error_code: Str0255::text("") }),
        |link| {
            let ids = Seq064K::new(&[]).unwrap();
            link.tell(RequestExtensionsSuccess { request_id: 1, supported_extensions: ids })
        },
        |link| {
            let (channel_id, request_id, job_id) = (CHANNEL, 1, 1);
            link.tell(crate::message::SetCustomMiningJobSuccess { channel_id, request_id, job_id })
        },
    ];
    for answer in answers {
        for mut link in [Link::standard(), Link::extended()] {
            assert!(violates(answer(&mut link)), "before the setup");
        }
    }
    let mut own = Link::extended().mining();
    let (channel_id, sequence_number, job_id) = (CHANNEL, 1, 1);
    let (nonce, ntime, version) = (0, 0, 0);
    let share = SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version };
    assert!(violates(own.tell(share)), "a client's own message");
    assert!(violates(own.tell(success(0))), "a second setup");
}

#[test]
fn a_found_nonce_meets_the_target_and_the_search_goes_on_behind_it() {
    let link = Link::extended().mining();
    let work = link.work();
    let extranonce = B032::new(&[7; 16]).unwrap();
    let version = work.version_with(0x40);
    let mut grinder = Grinder::new(&work, extranonce, 1_001, version, (10, 100));
    let mut hits = Vec::new();
    while let Some(found) = grinder.run(u64::MAX) {
        let mut header = work.header(found.extranonce.as_slice());
        (header.nonce, header.ntime, header.version) = (found.nonce, found.ntime, found.version);
        assert!(work.target.is_met_by(&header.hash()));
        hits.push(found.nonce);
    }
    assert!(grinder.is_spent());
    let all = (10..100).filter(|nonce| {
        let mut header = work.header(&[7; 16]);
        (header.nonce, header.ntime, header.version) = (*nonce, 1_001, version);
        work.target.is_met_by(&header.hash())
    });
    assert_eq!(hits, all.collect::<Vec<u32>>());
    assert!(hits.len() > 20, "about half of 90");
}

fn selecting() -> Link {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    let mut options = ClientOptions::new(kind, "alice");
    options.flags |= setup_flags::REQUIRES_WORK_SELECTION;
    options.extensions = vec![EXTENSION_WORKER_HASHRATE];
    let mut link = Link::new(options);
    link.tell(success(0)).unwrap();
    let supported_extensions = Seq064K::new(&[[2, 0]]).unwrap();
    link.tell(RequestExtensionsSuccess { request_id: 1, supported_extensions }).unwrap();
    link.tell(opened_extended()).unwrap();
    link.out.clear();
    link
}

fn own_work(token: &[u8]) -> OwnWork<'_> {
    OwnWork {
        token,
        version: 0x2000_0000,
        tip: PrevHash { hash: [3; 32], nbits: 0x207f_ffff, min_ntime: 1_000 },
        coinbase_tx_version: 2,
        coinbase_prefix: &[1, 7, 24],
        coinbase_sequence: 5,
        coinbase_outputs: &[0],
        coinbase_locktime: 6,
        merkle_path: &[],
    }
}

fn refused_custom(request_id: u32) -> SetCustomMiningJobError<'static> {
    let error_code = Str0255::text("stale-chain-tip");
    SetCustomMiningJobError { channel_id: CHANNEL, request_id, error_code }
}

#[test]
fn a_custom_job_is_asked_for_in_its_own_words_and_answered_once_jc4() {
    let mut link = selecting();
    let first = link.client.custom_job(&own_work(&[8; 16]), &mut link.out).unwrap();
    let second = link.client.custom_job(&own_work(&[9; 16]), &mut link.out).unwrap();
    let mut asked = Vec::new();
    link.sent(|message, _| {
        let Message::SetCustomMiningJob(custom) = message else { panic!("{message:?}") };
        assert_eq!((custom.channel_id, custom.min_ntime), (CHANNEL, 1_000));
        assert_eq!((custom.prev_hash, custom.coinbase_tx_locktime), ([3; 32], 6));
        asked.push((custom.request_id, custom.mining_job_token.as_slice()[0]));
    });
    assert_eq!(asked, [(first, 8), (second, 9)]);

    let yes = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id: second, job_id: 77 };
    let accepted = Event::CustomAccepted { request_id: second, job_id: JobId(77) };
    assert_eq!(link.tell(yes), Ok(Some(accepted)));
    assert!(violates(link.tell(yes)), "it was answered");
    let code = "stale-chain-tip".to_owned();
    let refused = Event::CustomRefused { request_id: first, code };
    assert_eq!(link.tell(refused_custom(first)), Ok(Some(refused)));
    assert!(violates(link.tell(refused_custom(second + 1))), "it was never asked");
}

#[test]
fn requests_for_custom_jobs_without_an_answer_are_bounded() {
    let mut link = selecting();
    let mut ids = Vec::new();
    for _ in 0..CLIENT_CUSTOM_REQUESTS_MAX {
        ids.push(link.client.custom_job(&own_work(&[8; 16]), &mut link.out).unwrap());
    }
    let again = link.client.custom_job(&own_work(&[8; 16]), &mut link.out);
    assert_eq!(again, Err(NotAsked::TooMany));
    link.tell(refused_custom(ids[0])).unwrap();
    assert!(link.client.custom_job(&own_work(&[8; 16]), &mut link.out).is_ok());
    let long = link.client.custom_job(&own_work(&[8; 256]), &mut link.out);
    assert_eq!(long, Err(NotAsked::TooMany));
    link.tell(refused_custom(ids[1])).unwrap();
    let long = link.client.custom_job(&own_work(&[8; 256]), &mut link.out);
    assert_eq!(long, Err(NotAsked::NoMessage));
}

#[test]
fn only_a_connection_that_selects_work_asks_for_a_custom_job_jc8() {
    let mut link = Link::extended().open();
    let asked = link.client.custom_job(&own_work(&[8; 16]), &mut link.out);
    assert_eq!(asked, Err(NotAsked::NoChannel));
    let mut early = Link::new(selecting().client.options);
    early.out.clear();
    let asked = early.client.custom_job(&own_work(&[8; 16]), &mut early.out);
    assert_eq!(asked, Err(NotAsked::NoChannel));
    assert!(early.out.is_empty());
}

#[test]
fn the_servers_own_work_means_nothing_to_who_selects_his() {
    let mut link = selecting();
    assert_eq!(link.job(1, None), Ok(None));
    assert_eq!(link.tell(tip(1, 1)), Ok(None));
    assert_eq!(link.client.work(), None);
}

#[test]
fn each_share_names_its_own_worker_e7() {
    let mut link = selecting();
    let extranonce = B032::new(&[7; 16]).unwrap();
    let found = Found { nonce: 1, ntime: 2, version: 3, extranonce };
    let long = format!("{}é", "x".repeat(31));
    for worker in ["bitaxe", "", &long] {
        link.client.submit_for(worker, JobId(9), found, &mut link.out).unwrap();
    }
    let mut seen = Vec::new();
    link.sent(|message, tlvs| {
        let Message::SubmitSharesExtended(share) = message else { panic!("{message:?}") };
        let name = tlvs.worker().unwrap().unwrap().to_vec();
        seen.push((share.sequence_number, share.job_id, String::from_utf8(name).unwrap()));
    });
    let names = ["bitaxe".to_owned(), String::new(), "x".repeat(31)];
    let wanted: Vec<_> = (1..).zip(names).map(|(sequence, name)| (sequence, 9, name)).collect();
    assert_eq!(seen, wanted);
    let short = Found { extranonce: B032::new(&[7; 15]).unwrap(), ..found };
    let refused = link.client.submit_for("a", JobId(9), short, &mut link.out);
    assert_eq!(refused, Err(NotSubmitted::ExtranonceSize));
}

#[test]
fn a_new_rate_is_told_and_only_a_refusal_answers_p14() {
    let mut link = selecting();
    link.client.update(5e12, &mut link.out);
    link.sent(|message, _| {
        let Message::UpdateChannel(update) = message else { panic!("{message:?}") };
        assert_eq!((update.channel_id, update.nominal_hash_rate), (CHANNEL, 5e12));
    });
    let error_code = Str0255::text("max-target-out-of-range");
    let refused = link.tell(UpdateChannelError { channel_id: CHANNEL, error_code });
    let code = "max-target-out-of-range".to_owned();
    assert_eq!(refused, Ok(Some(Event::UpdateRefused { code })));
}
