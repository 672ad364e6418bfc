//! What a server said, owned, so that a test can keep and compare it.

use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message, Received};
use proto::mining::Kind;
use proto::target::Target;
use proto::template::sha256d;

/// One frame of a mining server.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Opened {
        kind: Kind,
        request_id: u32,
        channel: u32,
        target: Target,
        prefix: Vec<u8>,
        /// Bytes the client may roll; 0 on a standard channel.
        rollable: usize,
        group: u32,
    },
    OpenError {
        request_id: u32,
        code: String,
    },
    Job {
        channel: u32,
        job: u32,
        /// `None`: a future job.
        min_ntime: Option<u32>,
        version: u32,
        body: JobBody,
        payload_len: usize,
    },
    PrevHash {
        channel: u32,
        job: u32,
        prev_hash: [u8; 32],
        min_ntime: u32,
        nbits: u32,
    },
    Target {
        channel: u32,
        target: Target,
    },
    UpdateError {
        channel: u32,
        code: String,
    },
    Accepted {
        channel: u32,
        last_sequence: u32,
        count: u32,
        sum: u64,
    },
    Refused {
        channel: u32,
        sequence: u32,
        code: String,
    },
    CustomSuccess {
        channel: u32,
        request_id: u32,
        job: u32,
    },
    CustomError {
        channel: u32,
        request_id: u32,
        code: String,
    },
}

/// What a job message carries of the coinbase.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum JobBody {
    Standard { merkle_root: [u8; 32] },
    Extended { prefix: Vec<u8>, suffix: Vec<u8>, path: Vec<[u8; 32]>, rolling: bool },
}

impl JobBody {
    /// The header's merkle root with this full extranonce, as a client computes it.
    pub fn merkle_root(&self, extranonce: &[u8]) -> [u8; 32] {
        match self {
            Self::Standard { merkle_root } => *merkle_root,
            Self::Extended { prefix, suffix, path, .. } => {
                let txid = sha256d(&[prefix, extranonce, suffix].concat());
                path.iter().fold(txid, |node, sibling| sha256d(&[node, *sibling].concat()))
            }
        }
    }
}

impl Said {
    /// The refusal's code, if this is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::OpenError { code, .. }
            | Self::UpdateError { code, .. }
            | Self::Refused { code, .. }
            | Self::CustomError { code, .. } => Some(code),
            Self::Opened { .. }
            | Self::Job { .. }
            | Self::PrevHash { .. }
            | Self::Target { .. }
            | Self::CustomSuccess { .. }
            | Self::Accepted { .. } => None,
        }
    }
}

/// Cuts an outbox into frames and reads each. Fails at a header that names another channel bit or
/// extension than the message has (rule G5), at bytes behind a message, and at a message that no
/// mining server says.
pub fn decode(mut frames: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*head);
        let (payload, after) = rest.split_at(header.length);
        frames = after;
        let Ok(Received::Known(message, tlvs)) =
            Message::decode(header.extension(), header.msg_type, payload)
        else {
            panic!("an unreadable frame of type {:#x}", header.msg_type);
        };
        assert_eq!(message.kind(), (header.extension_type, header.msg_type), "rule G5");
        assert!(tlvs.as_slice().is_empty(), "bytes behind the message");
        said.push(describe(message, payload.len()));
    }
    assert!(frames.is_empty(), "half a header");
    said
}

fn describe(message: Message<'_>, payload_len: usize) -> Said {
    match message {
        Message::OpenStandardMiningChannelSuccess(m) => Said::Opened {
            kind: Kind::Standard,
            request_id: m.request_id,
            channel: m.channel_id,
            target: Target::from_le_bytes(m.target),
            prefix: m.extranonce_prefix.as_slice().to_vec(),
            rollable: 0,
            group: m.group_channel_id,
        },
        Message::OpenExtendedMiningChannelSuccess(m) => Said::Opened {
            kind: Kind::Extended,
            request_id: m.request_id,
            channel: m.channel_id,
            target: Target::from_le_bytes(m.target),
            prefix: m.extranonce_prefix.as_slice().to_vec(),
            rollable: usize::from(m.extranonce_size),
            group: m.group_channel_id,
        },
        Message::OpenMiningChannelError(m) => {
            Said::OpenError { request_id: m.request_id, code: text(m.error_code.as_slice()) }
        }
        Message::NewMiningJob(m) => Said::Job {
            channel: m.channel_id,
            job: m.job_id,
            min_ntime: m.min_ntime,
            version: m.version,
            body: JobBody::Standard { merkle_root: m.merkle_root },
            payload_len,
        },
        Message::NewExtendedMiningJob(m) => Said::Job {
            channel: m.channel_id,
            job: m.job_id,
            min_ntime: m.min_ntime,
            version: m.version,
            body: JobBody::Extended {
                prefix: m.coinbase_tx_prefix.as_slice().to_vec(),
                suffix: m.coinbase_tx_suffix.as_slice().to_vec(),
                path: m.merkle_path.as_slice().to_vec(),
                rolling: m.version_rolling_allowed,
            },
            payload_len,
        },
        Message::SetNewPrevHash(m) => Said::PrevHash {
            channel: m.channel_id,
            job: m.job_id,
            prev_hash: m.prev_hash,
            min_ntime: m.min_ntime,
            nbits: m.nbits,
        },
        Message::SetTarget(m) => {
            Said::Target { channel: m.channel_id, target: Target::from_le_bytes(m.maximum_target) }
        }
        other => describe_answer(&other),
    }
}

fn describe_answer(message: &Message<'_>) -> Said {
    match message {
        Message::UpdateChannelError(m) => {
            Said::UpdateError { channel: m.channel_id, code: text(m.error_code.as_slice()) }
        }
        Message::SubmitSharesSuccess(m) => Said::Accepted {
            channel: m.channel_id,
            last_sequence: m.last_sequence_number,
            count: m.new_submits_accepted_count,
            sum: m.new_shares_sum,
        },
        Message::SubmitSharesError(m) => Said::Refused {
            channel: m.channel_id,
            sequence: m.sequence_number,
            code: text(m.error_code.as_slice()),
        },
        Message::SetCustomMiningJobSuccess(m) => {
            Said::CustomSuccess { channel: m.channel_id, request_id: m.request_id, job: m.job_id }
        }
        Message::SetCustomMiningJobError(m) => Said::CustomError {
            channel: m.channel_id,
            request_id: m.request_id,
            code: text(m.error_code.as_slice()),
        },
        other => panic!("a mining server said {}", other.name()),
    }
}

/// Rule G11: printable ASCII, and not empty.
fn text(code: &[u8]) -> String {
    assert!(!code.is_empty() && code.iter().all(|byte| (0x20..=0x7e).contains(byte)), "rule G11");
    String::from_utf8(code.to_vec()).unwrap()
}
