//! Every message of Stratum V2: number, channel bit, fields in wire order. Common, Mining, Job
//! Declaration, Template Distribution (spec chapters 3, 5, 6, 7), extension 0x0001 and the TLVs of
//! 0x0002. Called by `connection.rs` (bytes in, bytes out) and by every machine (a `match`).
//!
//! A message borrows from the frame it was read from; the small ones own what they are and are `Copy`.
//! Nothing here judges a value: that `protocol` is 9 or a target is zero is the machines' business.

use crate::limits::{FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, WORKER_TLV_MAX};
use crate::wire::{
    B032, B064K, B0255, Field, Reader, Seq064KU16, Seq064KU32, Seq064KU256, Seq0255U256, Str0255,
    TransactionList, WireError,
};

/// Bit 15 of `extension_type`: the payload starts with a channel id (chapter 3.2.1; the text's "least
/// significant bit" is a slip, its own example 0x8ABC shows the top one).
pub const CHANNEL_BIT: u16 = 0x8000;
/// Messages of the four core protocols.
pub const EXTENSION_CORE: u16 = 0x0000;
/// Extensions Negotiation.
pub const EXTENSION_NEGOTIATION: u16 = 0x0001;
/// Worker-Specific Hashrate Tracking: a worker's name on each extended share.
pub const EXTENSION_WORKER_HASHRATE: u16 = 0x0002;

/// The six bytes before each payload (chapter 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// As sent, channel bit included.
    pub extension_type: u16,
    /// Meaning depends on the extension.
    pub msg_type: u8,
    /// Payload bytes, 0 to 16,777,215.
    pub length: usize,
}

impl FrameHeader {
    /// Reads the six bytes; every value of them is a header.
    #[must_use]
    pub fn decode(bytes: [u8; FRAME_HEADER_LEN]) -> Self {
        let [e0, e1, msg_type, l0, l1, l2] = bytes;
        Self {
            extension_type: u16::from_le_bytes([e0, e1]),
            msg_type,
            length: u32::from_le_bytes([l0, l1, l2, 0]) as usize,
        }
    }

    /// The six bytes.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        debug_assert!(self.length <= FRAME_PAYLOAD_MAX);
        let [e0, e1] = self.extension_type.to_le_bytes();
        let [l0, l1, l2, _] = (self.length as u32).to_le_bytes();
        [e0, e1, self.msg_type, l0, l1, l2]
    }

    /// The extension without the channel bit.
    #[must_use]
    pub fn extension(self) -> u16 {
        self.extension_type & !CHANNEL_BIT
    }

    /// Whether the sender marked it as a channel message.
    #[must_use]
    pub fn channel_bit(self) -> bool {
        self.extension_type & CHANNEL_BIT != 0
    }
}

/// What a frame turned out to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Received<'a> {
    /// A message we know, and what stands behind its last base field.
    Known(Message<'a>, Tlvs<'a>),
    /// A core number that no message has. The peer is newer than we are, or wrong.
    UnknownCore(u8),
    /// A message of an extension that nobody here speaks; discarded silently (rule G8).
    UnknownExtension(u16),
}

macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$lt:lifetime>)? = $ext:literal, $number:literal, $channel:literal {
            $( $(#[$field_doc:meta])* $field:ident: $type:ty, )*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq)]
            pub struct $name $(<$lt>)? {
                $( $(#[$field_doc])* pub $field: $type, )*
            }

            impl<'a> $name $(<$lt>)? {
                // A function for each: in one, the compiler gathers the fields of all messages in one
                // place and moves them on from there, which takes longer than reading them.
                #[inline(never)]
                fn receive(payload: &'a [u8]) -> Result<Received<'a>, WireError> {
                    // Looked at once here, and not again at each field that is always so long.
                    if payload.len() < const { 0 $( + <$type as Field<'a>>::LEN_MIN )* } {
                        return Err(WireError::Truncated);
                    }
                    let mut reader = Reader::new(payload);
                    let message = Self { $( $field: Field::read(&mut reader)?, )* };
                    Ok(Received::Known(Message::$name(message), Tlvs { bytes: reader.rest() }))
                }

                fn write(&self, out: &mut Vec<u8>) {
                    $( self.$field.write(out); )*
                }
            }

            impl<'a> From<$name $(<$lt>)?> for Message<'a> {
                fn from(message: $name $(<$lt>)?) -> Self {
                    Self::$name(message)
                }
            }
        )*

        /// Any message we speak.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum Message<'a> {
            $( $(#[$doc])* $name($name $(<$lt>)?), )*
        }

        impl<'a> Message<'a> {
            /// Extension (channel bit included, as sent) and number of this message.
            #[must_use]
            pub fn kind(&self) -> (u16, u8) {
                match self {
                    $( Self::$name(_) => ($ext | if $channel { CHANNEL_BIT } else { 0 }, $number), )*
                }
            }

            /// The message's name in the code and the logs.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $( Self::$name(_) => stringify!($name), )*
                }
            }

            /// Appends the payload.
            pub fn write_payload(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$name(message) => message.write(out), )*
                }
            }

            /// Reads the payload of message `number` of `extension` (channel bit masked away: older
            /// peers set other bits, and the number alone decides).
            pub fn decode(
                extension: u16,
                number: u8,
                payload: &'a [u8],
            ) -> Result<Received<'a>, WireError> {
                match (extension, number) {
                    $( ($ext, $number) => $name::receive(payload), )*
                    (EXTENSION_CORE, number) => Ok(Received::UnknownCore(number)),
                    (extension, _) => Ok(Received::UnknownExtension(extension)),
                }
            }
        }
    };
}

messages! {
    // Common
    /// `SetupConnection`. Client to server. First message of a connection; the server may not send
    /// anything before answering it (#225).
    SetupConnection<'a> = 0x0000, 0x00, false {
        /// 0 mining, 1 job declaration, 2 template distribution.
        protocol: u8,
        /// 2 in this version of the protocol.
        min_version: u16,
        /// 2.
        max_version: u16,
        /// Requirements, per protocol (`setup_flags`).
        flags: u32,
        /// ASCII host the client dialled.
        endpoint_host: Str0255<'a>,
        /// Port the client dialled.
        endpoint_port: u16,
        /// MUST be non-empty by the text.
        vendor: Str0255<'a>,
        /// SHOULD be set.
        hardware_version: Str0255<'a>,
        /// May be empty.
        firmware: Str0255<'a>,
        /// SHOULD be empty unless telemetry is wanted.
        device_id: Str0255<'a>,
    }
    /// `SetupConnection.Success`. Server to client.
    SetupConnectionSuccess = 0x0000, 0x01, false {
        /// Within min..max.
        used_version: u16,
        /// Server-side requirement bits (`setup_flags`), not an echo.
        flags: u32,
    }
    /// `SetupConnection.Error`. Server to client. Then the connection is closed.
    SetupConnectionError<'a> = 0x0000, 0x02, false {
        /// All client bits the server does not support.
        flags: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `ChannelEndpointChanged`. Server to client. A proxy tells a channel user that the other end
    /// changed; reset extension state.
    ChannelEndpointChanged = 0x0000, 0x03, true {
        /// Channel.
        channel_id: u32,
    }
    /// `Reconnect`. Server to client. Hop-by-hop, not relayed.
    Reconnect<'a> = 0x0000, 0x04, false {
        /// Empty = same host.
        new_host: Str0255<'a>,
        /// 0 = same port.
        new_port: u16,
    }

    // Mining
    /// `OpenStandardMiningChannel`. Client to server.
    OpenStandardMiningChannel<'a> = 0x0000, 0x10, false {
        /// Unique per connection, echoed.
        request_id: u32,
        /// Any bytes, account.worker by convention.
        user_identity: Str0255<'a>,
        /// H/s.
        nominal_hash_rate: f32,
        /// Easiest target the device can take.
        max_target: [u8; 32],
    }
    /// `OpenStandardMiningChannel.Success`. Server to client.
    OpenStandardMiningChannelSuccess = 0x0000, 0x11, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Unique per connection, shares a namespace with group ids.
        channel_id: u32,
        /// Initial.
        target: [u8; 32],
        /// The whole extranonce of this channel.
        extranonce_prefix: B032,
        /// Group it belongs to.
        group_channel_id: u32,
    }
    /// `OpenMiningChannel.Error`. Server to client.
    OpenMiningChannelError<'a> = 0x0000, 0x12, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `OpenExtendedMiningChannel`. Client to server.
    OpenExtendedMiningChannel<'a> = 0x0000, 0x13, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Any bytes, account.worker by convention.
        user_identity: Str0255<'a>,
        /// H/s.
        nominal_hash_rate: f32,
        /// Easiest target the client can take.
        max_target: [u8; 32],
        /// Rollable bytes the client needs.
        min_extranonce_size: u16,
    }
    /// `OpenExtendedMiningChannel.Success`. Server to client. Field order differs from the standard
    /// variant: size comes before prefix.
    OpenExtendedMiningChannelSuccess = 0x0000, 0x14, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Channel.
        channel_id: u32,
        /// Initial share target.
        target: [u8; 32],
        /// Rollable bytes granted.
        extranonce_size: u16,
        /// Server part, precedes the rollable part.
        extranonce_prefix: B032,
        /// Added 2025-10.
        group_channel_id: u32,
    }
    /// `NewMiningJob`. Server to client. Standard channels only.
    NewMiningJob = 0x0000, 0x15, true {
        /// Channel.
        channel_id: u32,
        /// Unique among valid jobs of the channel.
        job_id: u32,
        /// Empty = future job.
        min_ntime: Option<u32>,
        /// Version.
        version: u32,
        /// Raw header order.
        merkle_root: [u8; 32],
    }
    /// `UpdateChannel`. Client to server. No reply when accepted.
    UpdateChannel = 0x0000, 0x16, true {
        /// Channel.
        channel_id: u32,
        /// H/s.
        nominal_hash_rate: f32,
        /// Client cap (renamed `max_target` in #228).
        maximum_target: [u8; 32],
    }
    /// `UpdateChannel.Error`. Server to client.
    UpdateChannelError<'a> = 0x0000, 0x17, true {
        /// Channel.
        channel_id: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `CloseChannel`. Either way. A group id closes every member.
    CloseChannel<'a> = 0x0000, 0x18, true {
        /// Channel.
        channel_id: u32,
        /// Same character rules as error codes.
        reason_code: Str0255<'a>,
    }
    /// `SetExtranoncePrefix`. Server to client. Applies to jobs sent after it; not for group ids.
    SetExtranoncePrefix = 0x0000, 0x19, true {
        /// Channel.
        channel_id: u32,
        /// Keep the total length constant for group members.
        extranonce_prefix: B032,
    }
    /// `SubmitSharesStandard`. Client to server.
    SubmitSharesStandard = 0x0000, 0x1a, true {
        /// Channel.
        channel_id: u32,
        /// Client counter, echoed.
        sequence_number: u32,
        /// Job.
        job_id: u32,
        /// Nonce.
        nonce: u32,
        /// Full header time.
        ntime: u32,
        /// Full header version, not just rolled bits.
        version: u32,
    }
    /// `SubmitSharesExtended`. Client to server. TLVs may follow.
    SubmitSharesExtended = 0x0000, 0x1b, true {
        /// Channel.
        channel_id: u32,
        /// Sequence number.
        sequence_number: u32,
        /// Job.
        job_id: u32,
        /// Nonce.
        nonce: u32,
        /// Ntime.
        ntime: u32,
        /// Version.
        version: u32,
        /// Length must equal the granted size.
        extranonce: B032,
    }
    /// `SubmitShares.Success`. Server to client. Batched.
    SubmitSharesSuccess = 0x0000, 0x1c, true {
        /// Channel.
        channel_id: u32,
        /// Newest accepted.
        last_sequence_number: u32,
        /// In this batch.
        new_submits_accepted_count: u32,
        /// Sum of share difficulty in this batch, integer.
        new_shares_sum: u64,
    }
    /// `SubmitShares.Error`. Server to client. One per bad share, at once.
    SubmitSharesError<'a> = 0x0000, 0x1d, true {
        /// Channel.
        channel_id: u32,
        /// Of the bad share.
        sequence_number: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `NewExtendedMiningJob`. Server to client. Extended or group channel id.
    NewExtendedMiningJob<'a> = 0x0000, 0x1f, true {
        /// Channel.
        channel_id: u32,
        /// Job.
        job_id: u32,
        /// Empty = future.
        min_ntime: Option<u32>,
        /// Version.
        version: u32,
        /// Version rolling allowed.
        version_rolling_allowed: bool,
        /// Siblings, deepest first.
        merkle_path: Seq0255U256<'a>,
        /// No segwit marker/flag.
        coinbase_tx_prefix: B064K<'a>,
        /// No witness.
        coinbase_tx_suffix: B064K<'a>,
    }
    /// `SetNewPrevHash`. Server to client. To a group or a channel id.
    SetNewPrevHash = 0x0000, 0x20, true {
        /// Channel.
        channel_id: u32,
        /// A future job sent before.
        job_id: u32,
        /// Raw header order.
        prev_hash: [u8; 32],
        /// Start time for hashing.
        min_ntime: u32,
        /// Compact target as in the header.
        nbits: u32,
    }
    /// `SetTarget`. Server to client. Group id applies to all members.
    SetTarget = 0x0000, 0x21, true {
        /// Channel.
        channel_id: u32,
        /// Share target now in force (renamed `target` in #228).
        maximum_target: [u8; 32],
    }
    /// `SetCustomMiningJob`. Client to server. JDC to pool.
    SetCustomMiningJob<'a> = 0x0000, 0x22, true {
        /// Extended or group.
        channel_id: u32,
        /// Echoed in the answer.
        request_id: u32,
        /// From Allocate (coinbase-only) or Declare.Success (full template).
        mining_job_token: B0255<'a>,
        /// Version.
        version: u32,
        /// Prev hash.
        prev_hash: [u8; 32],
        /// Not optional: custom jobs are never future.
        min_ntime: u32,
        /// Nbits.
        nbits: u32,
        /// Coinbase tx version.
        coinbase_tx_version: u32,
        /// ScriptSig bytes before the extranonce.
        coinbase_prefix: B0255<'a>,
        /// Coinbase_tx_input_nSequence.
        coinbase_tx_input_sequence: u32,
        /// CompactSize count + outputs.
        coinbase_tx_outputs: B064K<'a>,
        /// Coinbase tx locktime.
        coinbase_tx_locktime: u32,
        /// Merkle path.
        merkle_path: Seq0255U256<'a>,
    }
    /// `SetCustomMiningJob.Success`. Server to client. The pool commits to reward the job.
    SetCustomMiningJobSuccess = 0x0000, 0x23, true {
        /// Channel.
        channel_id: u32,
        /// Echoed in the answer.
        request_id: u32,
        /// To be used in shares.
        job_id: u32,
    }
    /// `SetCustomMiningJob.Error`. Server to client.
    SetCustomMiningJobError<'a> = 0x0000, 0x24, true {
        /// Channel.
        channel_id: u32,
        /// Echoed in the answer.
        request_id: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `SetGroupChannel`. Server to client. Channel bit is 0 although it starts with an id.
    SetGroupChannel<'a> = 0x0000, 0x25, false {
        /// Group channel id.
        group_channel_id: u32,
        /// Members from now on.
        channel_ids: Seq064KU32<'a>,
    }

    // JobDeclaration
    /// `AllocateMiningJobToken`. Declarator to server. Identifier precedes request id.
    AllocateMiningJobToken<'a> = 0x0000, 0x50, false {
        /// Account.
        user_identifier: Str0255<'a>,
        /// Echoed in the answer.
        request_id: u32,
    }
    /// `AllocateMiningJobToken.Success`. Server to declarator.
    AllocateMiningJobTokenSuccess<'a> = 0x0000, 0x51, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Opaque.
        mining_job_token: B0255<'a>,
        /// CompactSize count + outputs, values 0.
        coinbase_tx_outputs: B064K<'a>,
    }
    /// `ProvideMissingTransactions`. Server to declarator. Full-template mode.
    ProvideMissingTransactions<'a> = 0x0000, 0x55, false {
        /// Of the DeclareMiningJob.
        request_id: u32,
        /// 0-based, coinbase not counted.
        unknown_tx_position_list: Seq064KU16<'a>,
    }
    /// `ProvideMissingTransactions.Success`. Declarator to server.
    ProvideMissingTransactionsSuccess<'a> = 0x0000, 0x56, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Full witness serialisation, in the order asked.
        transaction_list: TransactionList<'a>,
    }
    /// `DeclareMiningJob`. Declarator to server. Full-template mode.
    DeclareMiningJob<'a> = 0x0000, 0x57, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Mining job token.
        mining_job_token: B0255<'a>,
        /// Version.
        version: u32,
        /// WITH segwit marker/flag.
        coinbase_tx_prefix: B064K<'a>,
        /// WITH witness.
        coinbase_tx_suffix: B064K<'a>,
        /// Block order, without coinbase.
        wtxid_list: Seq064KU256<'a>,
        /// Opaque.
        excess_data: B064K<'a>,
    }
    /// `DeclareMiningJob.Success`. Server to declarator.
    DeclareMiningJobSuccess<'a> = 0x0000, 0x58, false {
        /// Echoed in the answer.
        request_id: u32,
        /// May be a signed commitment.
        new_mining_job_token: B0255<'a>,
    }
    /// `DeclareMiningJob.Error`. Server to declarator.
    DeclareMiningJobError<'a> = 0x0000, 0x59, false {
        /// Echoed in the answer.
        request_id: u32,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
        /// Free bytes.
        error_details: B064K<'a>,
    }
    /// `PushSolution`. Declarator to server. No reply; no reference to a job (issue #188).
    PushSolution = 0x0000, 0x60, false {
        /// Full: prefix + rolled.
        extranonce: B032,
        /// Prev hash.
        prev_hash: [u8; 32],
        /// Nonce.
        nonce: u32,
        /// Ntime.
        ntime: u32,
        /// Nbits.
        nbits: u32,
        /// Version.
        version: u32,
    }

    // TemplateDistribution
    /// `CoinbaseOutputConstraints`. Client to template provider. First message after setup; may be
    /// resent.
    CoinbaseOutputConstraints = 0x0000, 0x70, false {
        /// Serialized bytes of our outputs.
        coinbase_output_max_additional_size: u32,
        /// Coinbase output max additional sigops.
        coinbase_output_max_additional_sigops: u16,
    }
    /// `NewTemplate`. Template provider to client. PR #198 (open) would insert `coinbase_witness`
    /// OPTION[U256] before the locktime: hard break.
    NewTemplate<'a> = 0x0000, 0x71, false {
        /// Strictly increasing.
        template_id: u64,
        /// Future template.
        future_template: bool,
        /// Version.
        version: u32,
        /// Coinbase tx version.
        coinbase_tx_version: u32,
        /// At most 8 bytes, BIP34 push included.
        coinbase_prefix: B0255<'a>,
        /// Coinbase tx input sequence.
        coinbase_tx_input_sequence: u32,
        /// Sats for our outputs (subsidy + fees).
        coinbase_tx_value_remaining: u64,
        /// Coinbase tx outputs count.
        coinbase_tx_outputs_count: u32,
        /// NO CompactSize prefix.
        coinbase_tx_outputs: B064K<'a>,
        /// Coinbase tx locktime.
        coinbase_tx_locktime: u32,
        /// Merkle path.
        merkle_path: Seq0255U256<'a>,
    }
    /// `SetNewPrevHash`. Template provider to client.
    TemplateSetNewPrevHash = 0x0000, 0x72, false {
        /// Template id.
        template_id: u64,
        /// Prev hash.
        prev_hash: [u8; 32],
        /// Start time, not the minimum.
        header_timestamp: u32,
        /// NBits.
        nbits: u32,
        /// May be below the nBits target.
        target: [u8; 32],
    }
    /// `RequestTransactionData`. Client to template provider.
    RequestTransactionData = 0x0000, 0x73, false {
        /// Template id.
        template_id: u64,
    }
    /// `RequestTransactionData.Success`. Template provider to client.
    RequestTransactionDataSuccess<'a> = 0x0000, 0x74, false {
        /// Template id.
        template_id: u64,
        /// Opaque, do not parse.
        excess_data: B064K<'a>,
        /// Without coinbase, block order.
        transaction_list: TransactionList<'a>,
    }
    /// `RequestTransactionData.Error`. Template provider to client.
    RequestTransactionDataError<'a> = 0x0000, 0x75, false {
        /// Template id.
        template_id: u64,
        /// Printable ASCII code, at most 255 bytes.
        error_code: Str0255<'a>,
    }
    /// `SubmitSolution`. Client to template provider.
    SubmitSolution<'a> = 0x0000, 0x76, false {
        /// Template id.
        template_id: u64,
        /// Version.
        version: u32,
        /// Header timestamp.
        header_timestamp: u32,
        /// Header nonce.
        header_nonce: u32,
        /// Full, WITH witness.
        coinbase_tx: B064K<'a>,
    }

    // ExtensionsNegotiation
    /// `RequestExtensions`. Client to server. Right after SetupConnection.Success; request id is
    /// U16 here.
    RequestExtensions<'a> = 0x0001, 0x00, false {
        /// Echoed in the answer.
        request_id: u16,
        /// Requested extensions.
        requested_extensions: Seq064KU16<'a>,
    }
    /// `RequestExtensions.Success`. Server to client.
    RequestExtensionsSuccess<'a> = 0x0001, 0x01, false {
        /// Echoed in the answer.
        request_id: u16,
        /// Subset of the request.
        supported_extensions: Seq064KU16<'a>,
    }
    /// `RequestExtensions.Error`. Server to client.
    RequestExtensionsError<'a> = 0x0001, 0x02, false {
        /// Echoed in the answer.
        request_id: u16,
        /// Unsupported extensions.
        unsupported_extensions: Seq064KU16<'a>,
        /// Required but not asked for.
        required_extensions: Seq064KU16<'a>,
    }
}

impl Message<'_> {
    /// Appends header and payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_with(out, |_| {});
    }

    /// Appends header, payload and the TLVs that `tlvs` writes.
    pub fn encode_with(&self, out: &mut Vec<u8>, tlvs: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        self.write_payload(out);
        tlvs(out);
        let (extension_type, msg_type) = self.kind();
        let length = out.len() - start - FRAME_HEADER_LEN;
        let header = FrameHeader { extension_type, msg_type, length };
        out[start..start + FRAME_HEADER_LEN].copy_from_slice(&header.encode());
    }
}

/// Requirement bits of SetupConnection on a mining connection (chapter 5.3.1).
pub mod setup_flags {
    /// Client: it cannot process extended jobs.
    pub const REQUIRES_STANDARD_JOBS: u32 = 1 << 0;
    /// Client: it will send SetCustomMiningJob.
    pub const REQUIRES_WORK_SELECTION: u32 = 1 << 1;
    /// Client: no job may forbid version rolling.
    pub const REQUIRES_VERSION_ROLLING: u32 = 1 << 2;
    /// Server: version changes are refused.
    pub const SUCCESS_REQUIRES_FIXED_VERSION: u32 = 1 << 0;
    /// Server: standard channels are refused.
    pub const SUCCESS_REQUIRES_EXTENDED_CHANNELS: u32 = 1 << 1;
    /// Declarator: it will reveal the transactions of its jobs (chapter 6.4.1).
    pub const DECLARE_TX_DATA: u32 = 1 << 0;
}

/// The subprotocols of SetupConnection (chapter 3.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// 0.
    Mining = 0,
    /// 1.
    JobDeclaration = 1,
    /// 2.
    TemplateDistribution = 2,
}

/// What follows the last base field of a message: extension fields, not looked at until asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tlvs<'a> {
    bytes: &'a [u8],
}

/// One extension field (chapter 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tlv<'a> {
    /// Extension that owns the field.
    pub extension: u16,
    /// Field of that extension.
    pub field: u8,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> Tlvs<'a> {
    /// No extension field at all.
    pub const NONE: Tlvs<'static> = Tlvs { bytes: &[] };

    /// Takes bytes as they stand behind a message.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_slice(&self) -> &'a [u8] {
        self.bytes
    }

    /// The field `field` of `extension`, if it stands here. Integers are little-endian; a peer that
    /// copied the spec's printed example sends them big-endian, which is accepted where the
    /// little-endian reading finds nothing.
    ///
    /// Bytes that are no TLV at all mean that nothing is found: rule G16 ignores what was not negotiated.
    #[must_use]
    pub fn find(&self, extension: u16, field: u8) -> Option<&'a [u8]> {
        let read = |order: fn([u8; 2]) -> u16| {
            TlvIter { rest: self.bytes, order }
                .flatten()
                .find(|tlv| tlv.extension == extension && tlv.field == field)
                .map(|tlv| tlv.value)
        };
        read(u16::from_le_bytes).or_else(|| read(u16::from_be_bytes))
    }

    /// The worker's name of extension 0x0002. `Err` above 32 bytes: the message is to be rejected
    /// (rule G17).
    pub fn worker(&self) -> Result<Option<&'a [u8]>, WireError> {
        match self.find(EXTENSION_WORKER_HASHRATE, TLV_WORKER_USER_IDENTITY) {
            Some(name) if name.len() > WORKER_TLV_MAX => Err(WireError::Tlv),
            found => Ok(found),
        }
    }

    /// Every field in little-endian reading, ending at the first that is not whole.
    pub fn iter(&self) -> impl Iterator<Item = Result<Tlv<'a>, WireError>> + use<'a> {
        TlvIter { rest: self.bytes, order: u16::from_le_bytes }
    }
}

/// Field of extension 0x0002: the worker's name, 0 to 32 bytes.
pub const TLV_WORKER_USER_IDENTITY: u8 = 0x01;

/// Appends one TLV, little-endian. `value` must fit a U16 length; ours are names and ids.
pub fn write_tlv(extension: u16, field: u8, value: &[u8], out: &mut Vec<u8>) {
    extension.write(out);
    field.write(out);
    (value.len() as u16).write(out);
    out.extend_from_slice(value);
}

struct TlvIter<'a> {
    rest: &'a [u8],
    order: fn([u8; 2]) -> u16,
}

impl<'a> Iterator for TlvIter<'a> {
    type Item = Result<Tlv<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.rest);
        let tlv = (|| {
            let extension = (self.order)(*reader.array()?);
            let field = u8::read(&mut reader)?;
            let length = usize::from((self.order)(*reader.array()?));
            Ok(Tlv { extension, field, value: reader.bytes(length)? })
        })();
        // After bytes that are no TLV there is no telling where the next one would start.
        self.rest = if tlv.is_ok() { reader.rest() } else { &[] };
        Some(tlv)
    }
}
