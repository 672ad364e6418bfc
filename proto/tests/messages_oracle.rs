//! Every message against SRI's crates: what we write they read to the same fields, what they write we
//! read, numbers and channel bits are theirs, and no bytes make ours panic. Rules G5, G16 to G18.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

use binary_sv2 as sri;
use framing_sv2::header::Header;
use parsers_sv2::{AnyMessage, IsSv2Message, parse_message_frame_with_tlvs};
use proptest::prelude::*;
use proto::message::*;
use proto::wire::{
    B032, B064K, B0255, Seq064KU16, Seq064KU32, Seq064KU256, Seq0255U256, Str0255, TransactionList,
    WireError,
};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

// ---- drawing a message ----

/// A value from a seed, with the ends of its range more often than chance has them. Borrowed parts are
/// leaked: a test's few megabytes.
trait Draw {
    fn draw(rng: &mut StdRng) -> Self;
}

macro_rules! draw_integers {
    ($($int:ty),*) => {$(
        impl Draw for $int {
            fn draw(rng: &mut StdRng) -> Self {
                [0, <$int>::MAX, rng.r#gen(), rng.r#gen()][rng.gen_range(0..4)]
            }
        }
    )*};
}
draw_integers!(u8, u16, u32, u64);

impl Draw for f32 {
    /// Any bits, a NaN among them: the wire carries what it is given (rule G13 is the machine's).
    fn draw(rng: &mut StdRng) -> Self {
        Self::from_bits(Draw::draw(rng))
    }
}

impl Draw for bool {
    fn draw(rng: &mut StdRng) -> Self {
        rng.r#gen()
    }
}

impl Draw for [u8; 32] {
    fn draw(rng: &mut StdRng) -> Self {
        rng.r#gen()
    }
}

impl Draw for Option<u32> {
    fn draw(rng: &mut StdRng) -> Self {
        rng.r#gen::<bool>().then(|| Draw::draw(rng))
    }
}

/// A length up to `max`: mostly short, now and then all of it.
fn length(rng: &mut StdRng, max: usize) -> usize {
    match rng.gen_range(0..50) {
        0 => max,
        1..5 => 0,
        _ => rng.gen_range(0..=max.min(40)),
    }
}

fn bytes(rng: &mut StdRng, max: usize) -> &'static [u8] {
    let mut bytes = vec![0; length(rng, max)];
    rng.fill_bytes(&mut bytes);
    bytes.leak()
}

fn arrays<const N: usize>(rng: &mut StdRng, max: usize) -> &'static [[u8; N]] {
    let count = length(rng, max);
    let mut arrays = vec![[0; N]; count];
    arrays.iter_mut().for_each(|array| rng.fill_bytes(array));
    arrays.leak()
}

impl Draw for B032 {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(bytes(rng, 32)).unwrap()
    }
}

impl Draw for Str0255<'static> {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(bytes(rng, 255)).unwrap()
    }
}

impl Draw for B0255<'static> {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(bytes(rng, 255)).unwrap()
    }
}

impl Draw for B064K<'static> {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(bytes(rng, 65_535)).unwrap()
    }
}

impl Draw for Seq0255U256<'static> {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(arrays(rng, 255)).unwrap()
    }
}

impl<const N: usize> Draw for proto::wire::Seq064K<'static, N> {
    fn draw(rng: &mut StdRng) -> Self {
        Self::new(arrays(rng, 65_535)).unwrap()
    }
}

impl Draw for TransactionList<'static> {
    fn draw(rng: &mut StdRng) -> Self {
        let count = length(rng, 300);
        let transactions: Vec<_> = (0..count).map(|_| bytes(rng, 70_000)).collect();
        Self::new(&transactions, Box::leak(Box::default())).unwrap()
    }
}

// ---- holding a field against SRI's ----

trait Same<Theirs> {
    fn same(&self, theirs: &Theirs) -> bool;
}

macro_rules! same_as_they_are {
    ($($type:ty),*) => {$(
        impl Same<$type> for $type {
            fn same(&self, theirs: &$type) -> bool {
                self == theirs
            }
        }
    )*};
}
same_as_they_are!(u16, u32, u64, bool);

impl Same<f32> for f32 {
    fn same(&self, theirs: &f32) -> bool {
        self.to_bits() == theirs.to_bits()
    }
}

impl Same<common_messages_sv2::Protocol> for u8 {
    fn same(&self, theirs: &common_messages_sv2::Protocol) -> bool {
        *self == *theirs as u8
    }
}

macro_rules! same_bytes {
    ($($ours:ty, $theirs:ty;)*) => {$(
        impl Same<$theirs> for $ours {
            fn same(&self, theirs: &$theirs) -> bool {
                self.as_slice() == theirs.as_bytes()
            }
        }
    )*};
}
same_bytes! {
    [u8; 32], sri::U256<'_>;
    B032, sri::B032<'_>;
    Str0255<'_>, sri::Str0255<'_>;
    B0255<'_>, sri::B0255<'_>;
    B064K<'_>, sri::B064K<'_>;
}

impl Same<sri::Sv2Option<'_, u32>> for Option<u32> {
    fn same(&self, theirs: &sri::Sv2Option<'_, u32>) -> bool {
        self.as_ref() == theirs.as_ref()
    }
}

impl<'a> Same<sri::Seq0255<'a, sri::U256<'a>>> for Seq0255U256<'_> {
    fn same(&self, theirs: &sri::Seq0255<'a, sri::U256<'a>>) -> bool {
        self.as_slice().iter().map(|hash| &hash[..]).eq(theirs.iter().map(|hash| hash.as_bytes()))
    }
}

impl<'a> Same<sri::Seq064K<'a, sri::U256<'a>>> for Seq064KU256<'_> {
    fn same(&self, theirs: &sri::Seq064K<'a, sri::U256<'a>>) -> bool {
        self.as_slice().iter().map(|hash| &hash[..]).eq(theirs.iter().map(|hash| hash.as_bytes()))
    }
}

impl Same<sri::Seq064K<'_, u16>> for Seq064KU16<'_> {
    fn same(&self, theirs: &sri::Seq064K<'_, u16>) -> bool {
        self.iter().eq(theirs.iter().copied())
    }
}

impl Same<sri::Seq064K<'_, u32>> for Seq064KU32<'_> {
    fn same(&self, theirs: &sri::Seq064K<'_, u32>) -> bool {
        self.iter().eq(theirs.iter().copied())
    }
}

impl<'a> Same<sri::Seq064K<'a, sri::B016M<'a>>> for TransactionList<'_> {
    fn same(&self, theirs: &sri::Seq064K<'a, sri::B016M<'a>>) -> bool {
        self.iter().eq(theirs.iter().map(|transaction| transaction.as_bytes()))
    }
}

// ---- every message beside SRI's ----

macro_rules! same_field {
    ($ours:ident $theirs:ident $field:ident) => {
        $ours.$field.same(&$theirs.$field)
    };
    ($ours:ident $theirs:ident $field:ident $other:ident) => {
        $ours.$field.same(&$theirs.$other)
    };
}

macro_rules! beside_sri {
    ($($name:ident, $theirs:path { $($field:ident $(= $other:ident)?),* $(,)? })*) => {
        /// One of each message.
        fn draw_all(rng: &mut StdRng) -> Vec<Message<'static>> {
            vec![$( $name { $($field: Draw::draw(rng)),* }.into() ),*]
        }

        /// SRI reads the same fields out of `payload`; what SRI makes of them again.
        fn sri_reads_the_same(message: &Message<'_>, payload: &[u8]) -> Vec<u8> {
            let mut bytes = payload.to_vec();
            match message {$(
                Message::$name(ours) => {
                    let theirs: $theirs = sri::from_bytes(&mut bytes).unwrap();
                    $( assert!(
                        same_field!(ours theirs $field $($other)?),
                        concat!(stringify!($name), ".", stringify!($field))
                    ); )*
                    sri::to_bytes(theirs).unwrap()
                }
            )*}
        }
    };
}

beside_sri! {
    SetupConnection, common_messages_sv2::SetupConnection {
        protocol, min_version, max_version, flags, endpoint_host, endpoint_port, vendor,
        hardware_version, firmware, device_id,
    }
    SetupConnectionSuccess, common_messages_sv2::SetupConnectionSuccess { used_version, flags }
    SetupConnectionError, common_messages_sv2::SetupConnectionError { flags, error_code }
    ChannelEndpointChanged, common_messages_sv2::ChannelEndpointChanged { channel_id }
    Reconnect, common_messages_sv2::Reconnect { new_host, new_port }
    OpenStandardMiningChannel, mining_sv2::OpenStandardMiningChannel {
        request_id, user_identity, nominal_hash_rate, max_target,
    }
    OpenStandardMiningChannelSuccess, mining_sv2::OpenStandardMiningChannelSuccess {
        request_id, channel_id, target, extranonce_prefix, group_channel_id,
    }
    OpenMiningChannelError, mining_sv2::OpenMiningChannelError { request_id, error_code }
    OpenExtendedMiningChannel, mining_sv2::OpenExtendedMiningChannel {
        request_id, user_identity, nominal_hash_rate, max_target, min_extranonce_size,
    }
    OpenExtendedMiningChannelSuccess, mining_sv2::OpenExtendedMiningChannelSuccess {
        request_id, channel_id, target, extranonce_size, extranonce_prefix, group_channel_id,
    }
    NewMiningJob, mining_sv2::NewMiningJob { channel_id, job_id, min_ntime, version, merkle_root }
    UpdateChannel, mining_sv2::UpdateChannel { channel_id, nominal_hash_rate, maximum_target }
    UpdateChannelError, mining_sv2::UpdateChannelError { channel_id, error_code }
    CloseChannel, mining_sv2::CloseChannel { channel_id, reason_code }
    SetExtranoncePrefix, mining_sv2::SetExtranoncePrefix { channel_id, extranonce_prefix }
    SubmitSharesStandard, mining_sv2::SubmitSharesStandard {
        channel_id, sequence_number, job_id, nonce, ntime, version,
    }
    SubmitSharesExtended, mining_sv2::SubmitSharesExtended {
        channel_id, sequence_number, job_id, nonce, ntime, version, extranonce,
    }
    SubmitSharesSuccess, mining_sv2::SubmitSharesSuccess {
        channel_id, last_sequence_number, new_submits_accepted_count, new_shares_sum,
    }
    SubmitSharesError, mining_sv2::SubmitSharesError { channel_id, sequence_number, error_code }
    NewExtendedMiningJob, mining_sv2::NewExtendedMiningJob {
        channel_id, job_id, min_ntime, version, version_rolling_allowed, merkle_path,
        coinbase_tx_prefix, coinbase_tx_suffix,
    }
    SetNewPrevHash, mining_sv2::SetNewPrevHash { channel_id, job_id, prev_hash, min_ntime, nbits }
    SetTarget, mining_sv2::SetTarget { channel_id, maximum_target }
    SetCustomMiningJob, mining_sv2::SetCustomMiningJob {
        channel_id, request_id, mining_job_token = token, version, prev_hash, min_ntime, nbits,
        coinbase_tx_version, coinbase_prefix,
        coinbase_tx_input_sequence = coinbase_tx_input_n_sequence, coinbase_tx_outputs,
        coinbase_tx_locktime, merkle_path,
    }
    SetCustomMiningJobSuccess, mining_sv2::SetCustomMiningJobSuccess {
        channel_id, request_id, job_id,
    }
    SetCustomMiningJobError, mining_sv2::SetCustomMiningJobError {
        channel_id, request_id, error_code,
    }
    SetGroupChannel, mining_sv2::SetGroupChannel { group_channel_id, channel_ids }
    AllocateMiningJobToken, job_declaration_sv2::AllocateMiningJobToken {
        user_identifier, request_id,
    }
    AllocateMiningJobTokenSuccess, job_declaration_sv2::AllocateMiningJobTokenSuccess {
        request_id, mining_job_token, coinbase_tx_outputs = coinbase_outputs,
    }
    ProvideMissingTransactions, job_declaration_sv2::ProvideMissingTransactions {
        request_id, unknown_tx_position_list,
    }
    ProvideMissingTransactionsSuccess, job_declaration_sv2::ProvideMissingTransactionsSuccess {
        request_id, transaction_list,
    }
    DeclareMiningJob, job_declaration_sv2::DeclareMiningJob {
        request_id, mining_job_token, version, coinbase_tx_prefix, coinbase_tx_suffix, wtxid_list,
        excess_data,
    }
    DeclareMiningJobSuccess, job_declaration_sv2::DeclareMiningJobSuccess {
        request_id, new_mining_job_token,
    }
    DeclareMiningJobError, job_declaration_sv2::DeclareMiningJobError {
        request_id, error_code, error_details,
    }
    PushSolution, job_declaration_sv2::PushSolution {
        extranonce, prev_hash, nonce, ntime, nbits, version,
    }
    CoinbaseOutputConstraints, template_distribution_sv2::CoinbaseOutputConstraints {
        coinbase_output_max_additional_size, coinbase_output_max_additional_sigops,
    }
    NewTemplate, template_distribution_sv2::NewTemplate {
        template_id, future_template, version, coinbase_tx_version, coinbase_prefix,
        coinbase_tx_input_sequence, coinbase_tx_value_remaining, coinbase_tx_outputs_count,
        coinbase_tx_outputs, coinbase_tx_locktime, merkle_path,
    }
    TemplateSetNewPrevHash, template_distribution_sv2::SetNewPrevHash {
        template_id, prev_hash, header_timestamp, nbits = n_bits, target,
    }
    RequestTransactionData, template_distribution_sv2::RequestTransactionData { template_id }
    RequestTransactionDataSuccess, template_distribution_sv2::RequestTransactionDataSuccess {
        template_id, excess_data, transaction_list,
    }
    RequestTransactionDataError, template_distribution_sv2::RequestTransactionDataError {
        template_id, error_code,
    }
    SubmitSolution, template_distribution_sv2::SubmitSolution {
        template_id, version, header_timestamp, header_nonce, coinbase_tx,
    }
    RequestExtensions, extensions_sv2::RequestExtensions { request_id, requested_extensions }
    RequestExtensionsSuccess, extensions_sv2::RequestExtensionsSuccess {
        request_id, supported_extensions,
    }
    RequestExtensionsError, extensions_sv2::RequestExtensionsError {
        request_id, unsupported_extensions, required_extensions,
    }
}

/// One of each, from a seed. SRI knows three protocols and refuses others as it decodes; ours leaves
/// that to `answer_setup`.
fn messages(seed: u64) -> Vec<Message<'static>> {
    let mut messages = draw_all(&mut StdRng::seed_from_u64(seed));
    for message in &mut messages {
        if let Message::SetupConnection(setup) = message {
            setup.protocol %= 3;
        }
    }
    messages
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode(&mut frame);
    frame
}

/// Header and payload of one frame.
fn split(frame: &[u8]) -> (FrameHeader, &[u8]) {
    let (header, payload) = frame.split_first_chunk().unwrap();
    let header = FrameHeader::decode(*header);
    assert_eq!(header.length, payload.len());
    (header, payload)
}

fn decoded(header: FrameHeader, payload: &[u8]) -> Result<Received<'_>, WireError> {
    Message::decode(header.extension(), header.msg_type, payload)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_we_write_sri_reads_and_what_sri_writes_we_read(seed: u64) {
        for message in messages(seed) {
            let frame = encoded(&message);
            let (header, payload) = split(&frame);
            let theirs = sri_reads_the_same(&message, payload);
            prop_assert!(theirs == payload, "{} written by SRI", message.name());

            let Ok(Received::Known(ours, tlvs)) = decoded(header, &theirs) else {
                panic!("{} was not read", message.name());
            };
            prop_assert_eq!(tlvs, Tlvs::NONE);
            // Bytes and not `==`, for which a NaN is not itself.
            prop_assert!(encoded(&ours) == frame, "{} written again", message.name());
        }
    }

    #[test]
    fn numbers_extensions_and_channel_bits_are_sris_g5(seed: u64) {
        for message in messages(seed) {
            let frame = encoded(&message);
            let (header, payload) = split(&frame);
            let mut payload = payload.to_vec();
            let theirs = Header::from_bytes(&frame).unwrap();
            let theirs = AnyMessage::try_from((theirs, &mut payload[..])).unwrap();
            prop_assert_eq!(theirs.message_type(), header.msg_type);
            prop_assert_eq!(theirs.channel_bit(), header.channel_bit());
            prop_assert_eq!(theirs.extension_type(), header.extension());
        }
    }

    #[test]
    fn every_truncation_of_every_message_is_refused_r02(seed: u64) {
        for message in messages(seed) {
            let frame = encoded(&message);
            let (header, payload) = split(&frame);
            // Every cut of a short message, both ends of a long one.
            let cuts = (0..payload.len()).filter(|cut| *cut < 400 || payload.len() - cut < 400);
            for cut in cuts {
                let read = decoded(header, &payload[..cut]);
                prop_assert_eq!(read, Err(WireError::Truncated), "{} at {}", message.name(), cut);
            }
        }
    }

    #[test]
    fn no_bytes_make_any_message_panic_r03(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        for number in 0..=u8::MAX {
            for extension in [0, 1, 2, 0x3abc] {
                // Refused or read, and what was read can be written.
                if let Ok(Received::Known(message, _)) =
                    Message::decode(extension, number, &payload)
                {
                    let again = encoded(&message);
                    prop_assert!(again.len() <= 6 + payload.len());
                }
            }
        }
    }

    #[test]
    fn extension_fields_are_sris_g18(
        fields in proptest::collection::vec(
            (1_u16..5, 0_u8..3, proptest::collection::vec(any::<u8>(), 0..40)),
            0..5,
        ),
    ) {
        let mut bytes = Vec::new();
        for (extension, field, value) in &fields {
            write_tlv(*extension, *field, value, &mut bytes);
        }
        let theirs = parsers_sv2::TlvList::from_bytes(&bytes).to_vec();
        prop_assert_eq!(theirs.len(), fields.len());
        for (tlv, theirs) in Tlvs::new(&bytes).iter().zip(&theirs) {
            let tlv = tlv.unwrap();
            prop_assert_eq!(tlv.extension, theirs.r#type.extension_type);
            prop_assert_eq!(tlv.field, theirs.r#type.field_type);
            prop_assert_eq!(tlv.value, &theirs.value[..]);
        }
    }
}

#[test]
fn every_number_that_sri_knows_is_known_and_no_other() {
    for number in 0..=u8::MAX {
        let theirs = parsers_sv2::CommonMessageTypes::try_from(number).is_ok()
            || parsers_sv2::MiningTypes::try_from(number).is_ok()
            || parsers_sv2::JobDeclarationTypes::try_from(number).is_ok()
            || parsers_sv2::TemplateDistributionTypes::try_from(number).is_ok();
        let ours = !matches!(Message::decode(0, number, &[]), Ok(Received::UnknownCore(_)));
        assert_eq!(ours, theirs, "{number:#04x}");

        let theirs = parsers_sv2::ExtensionsNegotiationTypes::try_from(number).is_ok();
        let ours = !matches!(Message::decode(1, number, &[]), Ok(Received::UnknownExtension(1)));
        assert_eq!(ours, theirs, "{number:#04x} of extension 1");
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn known_bytes(message: impl Into<Message<'static>>, bytes: &str) {
    let message = message.into();
    let bytes = hex(bytes);
    assert_eq!(encoded(&message), bytes, "{}", message.name());
    let (header, payload) = split(&bytes);
    assert_eq!(decoded(header, payload), Ok(Received::Known(message, Tlvs::NONE)));
}

/// Bytes that the SRI crates wrote, kept here so that ours and a later SRI cannot drift together.
#[test]
fn known_setup_messages_have_their_known_bytes() {
    let setup = SetupConnection {
        protocol: 0,
        min_version: 2,
        max_version: 2,
        flags: 5,
        endpoint_host: Str0255::text("pool.example"),
        endpoint_port: 34_254,
        vendor: Str0255::text("v"),
        hardware_version: Str0255::text("h"),
        firmware: Str0255::text("f"),
        device_id: Str0255::text(""),
    };
    known_bytes(
        setup,
        "0000001f0000 00 0200 0200 05000000 0c706f6f6c2e6578616d706c65 ce85 0176 0168 0166 00",
    );
    known_bytes(SetupConnectionSuccess { used_version: 2, flags: 0 }, "000001060000 0200 00000000");
    let open = OpenStandardMiningChannel {
        request_id: 7,
        user_identity: Str0255::text("bc1q.w"),
        nominal_hash_rate: 1e12,
        max_target: [0xff; 32],
    };
    let target = "ff".repeat(32);
    known_bytes(open, &format!("0000102f0000 07000000 06626331712e77 a5d46853 {target}"));
    let members = Box::leak(Box::new([2_u32.to_le_bytes(), 3_u32.to_le_bytes()]));
    let channel_ids = Seq064KU32::new(members).unwrap();
    known_bytes(
        SetGroupChannel { group_channel_id: 1, channel_ids },
        "0000250e0000 01000000 0200 02000000 03000000",
    );
}

#[test]
fn known_jobs_and_shares_have_their_known_bytes() {
    let future = NewMiningJob {
        channel_id: 2,
        job_id: 3,
        min_ntime: None,
        version: 0x2000_0000,
        merkle_root: [0xaa; 32],
    };
    let root = "aa".repeat(32);
    known_bytes(future, &format!("0080152d0000 02000000 03000000 00 00000020 {root}"));
    let active = NewMiningJob { job_id: 4, min_ntime: Some(0x6500_0000), ..future };
    known_bytes(active, &format!("008015310000 02000000 04000000 01 00000065 00000020 {root}"));
    let share = SubmitSharesExtended {
        channel_id: 2,
        sequence_number: 1,
        job_id: 3,
        nonce: 0xdead_beef,
        ntime: 0x6500_0001,
        version: 0x2000_0000,
        extranonce: B032::new(&[1, 2, 3, 4]).unwrap(),
    };
    known_bytes(
        share,
        "00801b1d0000 02000000 01000000 03000000 efbeadde 01000065 00000020 0401020304",
    );
    let success = SubmitSharesSuccess {
        channel_id: 2,
        last_sequence_number: 10,
        new_submits_accepted_count: 10,
        new_shares_sum: 1_000,
    };
    known_bytes(success, "00801c140000 02000000 0a000000 0a000000 e803000000000000");
}

/// A share with `tlvs` behind it, as a payload.
fn share_with(tlvs: &[u8]) -> Vec<u8> {
    let share = SubmitSharesExtended {
        channel_id: 2,
        sequence_number: 1,
        job_id: 3,
        nonce: 4,
        ntime: 5,
        version: 6,
        extranonce: B032::new(&[1, 2, 3, 4]).unwrap(),
    };
    let mut frame = Vec::new();
    Message::from(share).encode_with(&mut frame, |out| out.extend_from_slice(tlvs));
    frame
}

fn tlvs_of(frame: &[u8]) -> Tlvs<'_> {
    let (header, payload) = split(frame);
    let Ok(Received::Known(_, tlvs)) = decoded(header, payload) else { panic!("a share") };
    tlvs
}

#[test]
fn a_workers_name_is_read_in_both_byte_orders_and_written_in_sris_e7() {
    let mut ours = Vec::new();
    write_tlv(2, 1, b"Worker_001", &mut ours);
    assert_eq!(ours, hex("0200 01 0a00 576f726b65725f303031"), "as SRI sends it");

    let frame = share_with(&ours);
    let (_, payload) = split(&frame);
    let header = Header::from_bytes(&frame).unwrap();
    let mut payload = payload.to_vec();
    let (_, theirs) = parse_message_frame_with_tlvs(header, &mut payload, &[2]).unwrap();
    assert_eq!(theirs.unwrap()[0].value, b"Worker_001");

    for bytes in ["0200 01 0a00 576f726b65725f303031", "0002 01 000a 576f726b65725f303031"] {
        let frame = share_with(&hex(bytes));
        assert_eq!(tlvs_of(&frame).worker(), Ok(Some(&b"Worker_001"[..])), "{bytes}");
    }
}

#[test]
fn a_workers_name_holds_32_bytes_and_not_33_g17_e7() {
    for (length, accepted) in [(0, true), (32, true), (33, false), (255, false)] {
        let name = vec![b'w'; length];
        let mut tlv = Vec::new();
        write_tlv(2, 1, &name, &mut tlv);
        let frame = share_with(&tlv);
        let expected = if accepted { Ok(Some(&name[..])) } else { Err(WireError::Tlv) };
        assert_eq!(tlvs_of(&frame).worker(), expected, "{length} bytes");
    }
}

#[test]
fn junk_behind_a_share_is_no_field_and_no_harm_g16() {
    for junk in [&[0xff][..], &[0; 4], &[2, 0, 1, 0xff, 0xff, 1], &[0x34, 0x12, 9, 1, 0, 7]] {
        let frame = share_with(junk);
        assert_eq!(tlvs_of(&frame).worker(), Ok(None), "{junk:02x?}");
        assert_eq!(tlvs_of(&frame).as_slice(), junk);
    }
}

#[test]
fn a_workers_name_is_found_in_any_place_g18() {
    let name = (2, 1, &b"w"[..]);
    let others = [(3, 1, &b"later extension"[..]), (2, 2, b"later field"), (1, 0, b"")];
    for place in 0..=others.len() {
        let mut fields = others.to_vec();
        fields.insert(place, name);
        let mut tlvs = Vec::new();
        for (extension, field, value) in fields {
            write_tlv(extension, field, value, &mut tlvs);
        }
        let frame = share_with(&tlvs);
        assert_eq!(tlvs_of(&frame).worker(), Ok(Some(&b"w"[..])), "at {place}");
    }
}

#[test]
fn a_nan_reaches_the_machine_that_judges_it_g13() {
    let open = OpenStandardMiningChannel {
        request_id: 1,
        user_identity: Str0255::text("bc1q"),
        nominal_hash_rate: f32::NAN,
        max_target: [0xff; 32],
    };
    let frame = encoded(&open.into());
    let (header, payload) = split(&frame);
    let Ok(Received::Known(Message::OpenStandardMiningChannel(read), _)) = decoded(header, payload)
    else {
        panic!("not read");
    };
    assert!(read.nominal_hash_rate.is_nan());
}
