//! One encrypted link without its socket: bytes in, frames out; messages in, bytes out; and the two
//! conversations that open every link, SetupConnection (spec chapter 3.6) and extension negotiation
//! (0x0001). Called by `net.rs`, by the task that owns a link, and by every machine (`Violation`).
//!
//! Nothing here waits, and no length that a peer claims is reserved for: memory follows the bytes that
//! arrived, up to the limit of the phase.

use thiserror::Error;

use crate::limits::{
    BUFFER_KEPT, CHUNK_MAX, DECLARE_CLIENT_PAYLOAD_MAX, EXTENSIONS_MAX, FRAME_HEADER_LEN,
    FRAME_PAYLOAD_MAX, MAC_LEN, MINING_CLIENT_PAYLOAD_MAX, SEALED_HEADER_LEN, SETUP_PAYLOAD_MAX,
};
use crate::message::{
    EXTENSION_NEGOTIATION, FrameHeader, Message, Protocol, Received, RequestExtensions,
    RequestExtensionsError, RequestExtensionsSuccess, SetupConnection, SetupConnectionError,
    SetupConnectionSuccess, setup_flags,
};
use crate::noise::{NoiseError, Opener, Sealer, Transport};
use crate::wire::{Seq064KU16, Str0255, WireError};

/// The peer broke the protocol: close the connection, and say this in the log. What a peer may be told
/// no about is a message and never one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// The handshake or a frame did not hold.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// A frame longer than this phase allows; nothing of its payload was taken.
    #[error("a frame of {length} bytes where {limit} is the limit")]
    FrameTooLarge {
        /// What its header says.
        length: usize,
        /// `Inbound::set_limit`.
        limit: usize,
    },
    /// A payload that is not the message it says it is.
    #[error("malformed message: {0}")]
    Wire(#[from] WireError),
    /// A message that has no place in this state, by name.
    #[error("{0} has no place here")]
    Unexpected(&'static str),
    /// A core message number that nobody knows, where ignoring it is not right.
    #[error("unknown message number {0:#04x}")]
    UnknownMessage(u8),
    /// A NaN, infinite or negative number (rule G13), by field.
    #[error("{0} is not a number that can be")]
    BadFloat(&'static str),
    /// `REFUSED_IN_A_ROW_MAX` shares were refused and none was good.
    #[error("{0} shares were refused in a row")]
    OnlyBadShares(u32),
    /// The first frame was something else (rule S10).
    #[error("the first message was not SetupConnection")]
    SetupMissing,
    /// A second SetupConnection (rule S10).
    #[error("SetupConnection came twice")]
    SetupTwice,
    /// RequestExtensions for more ids than `EXTENSIONS_MAX`.
    #[error("{0} extensions in one request")]
    TooManyExtensions(usize),
    /// The client was told what it must negotiate and went on without (rule E4).
    #[error("the extensions required here were not negotiated")]
    ExtensionsRequired,
}

/// One link's two directions, public so that a frame may borrow `inbound` while its answer goes into
/// `outbound`.
pub struct Connection {
    /// From the peer.
    pub inbound: Inbound,
    /// To the peer.
    pub outbound: Outbound,
}

impl Connection {
    /// Starts on a finished handshake, with the limit of the setup phase.
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        let Transport { sealer, opener } = transport;
        Self { inbound: Inbound::new(opener), outbound: Outbound::new(sealer) }
    }
}

/// A frame in clear, borrowed until the next one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its six bytes.
    pub header: FrameHeader,
    /// As many bytes as the header says.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// What the frame says. The channel bit is not looked at: older peers set others, and the number
    /// alone decides.
    pub fn message(&self) -> Result<Received<'a>, Violation> {
        let Self { header, payload } = *self;
        Ok(Message::decode(header.extension(), header.msg_type, payload)?)
    }
}

/// Bytes of the peer to frames.
///
/// It holds what was fed and not yet opened (less than a chunk between two calls of `next_frame` that
/// found nothing), and the opened part of one payload. After a violation it gives that violation for
/// ever: there is no picking up the thread behind a frame that did not open (rule G2).
pub struct Inbound {
    opener: Opener,
    limit: usize,
    sealed: Vec<u8>,
    /// `sealed` up to here is used up.
    taken: usize,
    /// The frame whose payload is still arriving.
    header: Option<FrameHeader>,
    payload: Vec<u8>,
    ended: Option<Violation>,
}

impl Inbound {
    /// Starts with the limit of the setup phase; `Connection::new` makes both directions.
    #[must_use]
    pub fn new(opener: Opener) -> Self {
        Self {
            opener,
            limit: SETUP_PAYLOAD_MAX,
            sealed: Vec::new(),
            taken: 0,
            header: None,
            payload: Vec::new(),
            ended: None,
        }
    }

    /// The longest payload from here on; starts at `SETUP_PAYLOAD_MAX`.
    pub fn set_limit(&mut self, payload_max: usize) {
        self.limit = payload_max.min(FRAME_PAYLOAD_MAX);
    }

    /// Takes what the socket gave. Feed no more before `next_frame` has given `None`, or the bytes pile
    /// up here and not in the kernel.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.ended.is_some() {
            return;
        }
        self.sealed.drain(..self.taken);
        self.taken = 0;
        self.sealed.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more is fed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Violation> {
        if let Some(violation) = self.ended {
            return Err(violation);
        }
        match self.open_next() {
            Ok(header) => Ok(header.map(|header| Frame { header, payload: &self.payload })),
            Err(violation) => {
                self.ended = Some(violation);
                self.sealed = Vec::new();
                self.taken = 0;
                Err(violation)
            }
        }
    }

    /// Opens as far as the bytes reach; the header once `payload` is whole.
    fn open_next(&mut self) -> Result<Option<FrameHeader>, Violation> {
        let header = match self.header {
            Some(header) => header,
            None => {
                self.payload.clear();
                self.payload.shrink_to(BUFFER_KEPT);
                let Some(sealed) = self.sealed[self.taken..].first_chunk::<SEALED_HEADER_LEN>()
                else {
                    return Ok(self.wait_for_more());
                };
                let header = self.opener.open_header(sealed)?;
                self.taken += SEALED_HEADER_LEN;
                let FrameHeader { length, .. } = header;
                if length > self.limit {
                    return Err(Violation::FrameTooLarge { length, limit: self.limit });
                }
                self.header = Some(header);
                header
            }
        };
        while self.payload.len() < header.length {
            let chunk = CHUNK_MAX.min(header.length - self.payload.len()) + MAC_LEN;
            let Some(sealed) = self.sealed[self.taken..].get(..chunk) else {
                return Ok(self.wait_for_more());
            };
            self.opener.open_chunk(sealed, &mut self.payload)?;
            self.taken += chunk;
        }
        self.header = None;
        Ok(Some(header))
    }

    /// Nothing more can be made of what is here. An idle link holds no buffer.
    fn wait_for_more(&mut self) -> Option<FrameHeader> {
        if self.taken == self.sealed.len() {
            self.sealed = Vec::new();
            self.taken = 0;
        }
        if self.header.is_none() {
            self.payload = Vec::new();
        }
        self.opener.rest();
        None
    }

    /// The peer has begun a frame and not ended it: it is to go on within some time, or the bytes that
    /// are held for it are held for ever.
    #[must_use]
    pub fn is_amid_frame(&self) -> bool {
        self.header.is_some() || self.taken < self.sealed.len()
    }

    /// Bytes that are held for this direction, used or not. For tests of the bounds.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.sealed.capacity() + self.payload.capacity()
    }
}

/// Messages to bytes for the peer.
pub struct Outbound {
    sealer: Sealer,
    sealed: Vec<u8>,
    /// `sealed` up to here is written.
    written: usize,
    over: bool,
}

impl Outbound {
    fn new(sealer: Sealer) -> Self {
        Self { sealer, sealed: Vec::new(), written: 0, over: false }
    }

    /// Seals one message behind what is pending.
    pub fn send(&mut self, message: &Message<'_>) {
        let mut clear = Vec::new();
        message.encode(&mut clear);
        self.send_frames(&clear);
    }

    /// Seals frames that stand back to back, as `Message::encode` wrote them into a machine's outbox.
    pub fn send_frames(&mut self, mut frames: &[u8]) {
        while let Some((header, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*header);
            let (payload, rest) = rest
                .split_at_checked(header.length)
                .expect("Message::encode writes as many bytes as its header says");
            frames = rest;
            self.over |= self.sealer.seal_frame(header, payload, &mut self.sealed).is_err();
        }
        self.sealer.rest();
        debug_assert!(frames.is_empty(), "an outbox ends with a whole frame");
    }

    /// What is still to be written, in order.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.sealed[self.written..]
    }

    /// The first `count` bytes of `pending` are written.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
        debug_assert!(self.written <= self.sealed.len());
        if self.written >= self.sealed.len() {
            self.sealed = Vec::new();
            self.written = 0;
        }
    }

    /// The session has carried all the frames that one key may; what was sent since is lost. Close.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }
}

// ---- SetupConnection ----

/// The only version there is.
const VERSION: u16 = 2;

/// Codes of SetupConnection.Error; SRI's strings, which miners in the field know.
pub mod setup_error {
    /// `flags` names the bits that are not served (rule S6).
    pub const UNSUPPORTED_FEATURE_FLAGS: &str = "unsupported-feature-flags";
    /// Not the subprotocol of this port, or none at all.
    pub const UNSUPPORTED_PROTOCOL: &str = "unsupported-protocol";
    /// Coinbase-only jobs are not taken here.
    pub const MISSING_DECLARE_TX_DATA: &str = "missing-declare-tx-data-flag";
    /// The range given does not hold 2.
    pub const PROTOCOL_VERSION_MISMATCH: &str = "protocol-version-mismatch";
}

/// What a port serves. The same on every host behind one name and port (rule S6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetupPolicy {
    /// The one subprotocol of the port.
    pub protocol: Protocol,
    /// Client bits that are served.
    pub supported_flags: u32,
    /// Overlook bits that are not served, as SRI does. Off by default: #225 makes refusal a MUST.
    pub accept_unknown_flags: bool,
    /// A declarator must show its transactions (DECLARE_TX_DATA).
    pub requires_tx_data: bool,
    /// Extensions that a client may negotiate.
    pub supported_extensions: &'static [u16],
    /// Extensions that a client must negotiate; a subset of the supported ones.
    pub required_extensions: &'static [u16],
}

impl SetupPolicy {
    /// A mining port that serves all three requirements a miner can have, and no extension.
    pub const MINING: Self = Self {
        protocol: Protocol::Mining,
        supported_flags: setup_flags::REQUIRES_STANDARD_JOBS
            | setup_flags::REQUIRES_WORK_SELECTION
            | setup_flags::REQUIRES_VERSION_ROLLING,
        accept_unknown_flags: false,
        requires_tx_data: false,
        supported_extensions: &[],
        required_extensions: &[],
    };
    /// A job-declaration port that serves declarators with and without transaction data.
    pub const JOB_DECLARATION: Self = Self {
        protocol: Protocol::JobDeclaration,
        supported_flags: setup_flags::DECLARE_TX_DATA,
        ..Self::MINING
    };
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// What the link speaks from here on.
    pub protocol: Protocol,
    /// Within the client's range.
    pub version: u16,
    /// The client's requirements.
    pub flags: u32,
    /// Ours, as SetupConnection.Success carries them.
    pub success_flags: u32,
}

impl Setup {
    /// For `Inbound::set_limit`: the longest payload that such a client has reason to send.
    #[must_use]
    pub fn client_payload_max(&self) -> usize {
        match self.protocol {
            Protocol::Mining => MINING_CLIENT_PAYLOAD_MAX,
            Protocol::JobDeclaration => DECLARE_CLIENT_PAYLOAD_MAX,
            // CoinbaseOutputConstraints, requests and a solution, whose coinbase is a B0_64K.
            Protocol::TemplateDistribution => MINING_CLIENT_PAYLOAD_MAX,
        }
    }
}

/// The answer to a SetupConnection (rules S3 to S7). Strings are not judged: an empty vendor breaks the
/// text's MUST, yet SRI's own declarator sends one (rule S11).
pub fn answer_setup(
    policy: &SetupPolicy,
    setup: &SetupConnection<'_>,
) -> Result<Setup, SetupConnectionError<'static>> {
    // Flags are 0 where flags are not the cause (chapter 3.6.3).
    let refuse = |flags, code| Err(SetupConnectionError { flags, error_code: Str0255::text(code) });
    if setup.protocol != policy.protocol as u8 {
        return refuse(0, setup_error::UNSUPPORTED_PROTOCOL);
    }
    if !(setup.min_version..=setup.max_version).contains(&VERSION) {
        return refuse(0, setup_error::PROTOCOL_VERSION_MISMATCH);
    }
    let unsupported = setup.flags & !policy.supported_flags;
    if unsupported != 0 && !policy.accept_unknown_flags {
        return refuse(unsupported, setup_error::UNSUPPORTED_FEATURE_FLAGS);
    }
    if policy.requires_tx_data && setup.flags & setup_flags::DECLARE_TX_DATA == 0 {
        return refuse(0, setup_error::MISSING_DECLARE_TX_DATA);
    }
    Ok(Setup {
        protocol: policy.protocol,
        version: VERSION,
        flags: setup.flags,
        success_flags: success_flags(policy.protocol, setup.flags),
    })
}

/// Our own requirements. REQUIRES_FIXED_VERSION is never among them, so rule S9 holds by itself.
fn success_flags(protocol: Protocol, client_flags: u32) -> u32 {
    match protocol {
        // Custom jobs need an extended channel; SRI's pool says so too.
        Protocol::Mining if client_flags & setup_flags::REQUIRES_WORK_SELECTION != 0 => {
            setup_flags::SUCCESS_REQUIRES_EXTENDED_CHANNELS
        }
        Protocol::Mining | Protocol::JobDeclaration | Protocol::TemplateDistribution => 0,
    }
}

// ---- extension negotiation ----

/// The answer to a RequestExtensions; ids in wire order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Negotiated {
    /// These of the asked ones may be used from here on.
    Success {
        /// Echoed.
        request_id: u16,
        /// In the order they were asked for, each once.
        supported: Vec<[u8; 2]>,
    },
    /// None of the asked ones is served, or one that is required here was not asked for (rule E3).
    Error {
        /// Echoed.
        request_id: u16,
        /// Asked for and not served.
        unsupported: Vec<[u8; 2]>,
        /// Required and not asked for.
        required: Vec<[u8; 2]>,
    },
}

impl Negotiated {
    /// Appends the answer as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let list = |ids| Seq064KU16::new(ids).expect("no list here is longer than EXTENSIONS_MAX");
        match self {
            Self::Success { request_id, supported } => Message::from(RequestExtensionsSuccess {
                request_id: *request_id,
                supported_extensions: list(supported),
            })
            .encode(out),
            Self::Error { request_id, unsupported, required } => {
                Message::from(RequestExtensionsError {
                    request_id: *request_id,
                    unsupported_extensions: list(unsupported),
                    required_extensions: list(required),
                })
                .encode(out);
            }
        }
    }
}

/// Holds what a client asks for against what is served and what is required here.
pub fn negotiate(
    supported: &[u16],
    required: &[u16],
    request: &RequestExtensions<'_>,
) -> Result<Negotiated, Violation> {
    debug_assert!(required.len() <= EXTENSIONS_MAX);
    let request_id = request.request_id;
    let asked = request.requested_extensions.as_slice();
    if asked.len() > EXTENSIONS_MAX {
        return Err(Violation::TooManyExtensions(asked.len()));
    }
    let mut served = Vec::new();
    let mut unsupported = Vec::new();
    for id in asked {
        let list = if supported.contains(&u16::from_le_bytes(*id)) {
            &mut served
        } else {
            &mut unsupported
        };
        if !list.contains(id) {
            list.push(*id);
        }
    }
    let missing: Vec<[u8; 2]> =
        required.iter().map(|id| id.to_le_bytes()).filter(|id| !asked.contains(id)).collect();
    // An empty request is refused too, as SRI does: none of what it asks for is served.
    if served.is_empty() || !missing.is_empty() {
        return Ok(Negotiated::Error { request_id, unsupported, required: missing });
    }
    Ok(Negotiated::Success { request_id, supported: served })
}

// ---- both, as a server's task meets them ----

/// The server's side of a link until its subprotocol's machine takes over, and its gatekeeper after:
/// every frame goes through `receive`, what it passes on is the subprotocol's.
#[derive(Debug)]
pub struct SetupMachine {
    policy: SetupPolicy,
    state: SetupState,
    extensions: Vec<u16>,
    /// The client was told which extensions it must negotiate.
    told_required: bool,
}

#[derive(Debug, Clone, Copy)]
enum SetupState {
    First,
    Refused,
    Agreed,
}

/// What a frame was to the opening of the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SetupStep<'a> {
    /// SetupConnection, answered with Success. Raise the limit of `Inbound`.
    Agreed(Setup),
    /// SetupConnection, answered with Error. Flush and close (rule S8).
    Refused(SetupConnectionError<'static>),
    /// RequestExtensions, answered; `has_extension` may have changed.
    Negotiated,
    /// An extension that nobody here speaks; nothing was said (rule G8).
    Discarded,
    /// For the subprotocol.
    Pass(Received<'a>),
}

impl SetupMachine {
    /// Waits for SetupConnection.
    #[must_use]
    pub fn new(policy: SetupPolicy) -> Self {
        Self { policy, state: SetupState::First, extensions: Vec::new(), told_required: false }
    }

    /// Takes what a frame said; answers are appended to `out` as frames.
    pub fn receive<'a>(
        &mut self,
        received: Received<'a>,
        out: &mut Vec<u8>,
    ) -> Result<SetupStep<'a>, Violation> {
        let setup = match received {
            Received::Known(Message::SetupConnection(setup), _) => Some(setup),
            Received::Known(..) | Received::UnknownCore(_) | Received::UnknownExtension(_) => None,
        };
        match (self.state, setup) {
            (SetupState::First, Some(setup)) => Ok(self.set_up(&setup, out)),
            (SetupState::First | SetupState::Refused, None) => Err(Violation::SetupMissing),
            (SetupState::Refused | SetupState::Agreed, Some(_)) => Err(Violation::SetupTwice),
            (SetupState::Agreed, None) => self.after_setup(received, out),
        }
    }

    /// Whether the client negotiated extension `id`.
    #[must_use]
    pub fn has_extension(&self, id: u16) -> bool {
        self.extensions.contains(&id)
    }

    fn set_up(&mut self, setup: &SetupConnection<'_>, out: &mut Vec<u8>) -> SetupStep<'static> {
        match answer_setup(&self.policy, setup) {
            Ok(agreed) => {
                self.state = SetupState::Agreed;
                let answer = SetupConnectionSuccess {
                    used_version: agreed.version,
                    flags: agreed.success_flags,
                };
                Message::from(answer).encode(out);
                SetupStep::Agreed(agreed)
            }
            Err(refusal) => {
                self.state = SetupState::Refused;
                Message::from(refusal).encode(out);
                SetupStep::Refused(refusal)
            }
        }
    }

    fn after_setup<'a>(
        &mut self,
        received: Received<'a>,
        out: &mut Vec<u8>,
    ) -> Result<SetupStep<'a>, Violation> {
        match received {
            Received::UnknownExtension(_) => Ok(SetupStep::Discarded),
            Received::Known(Message::RequestExtensions(request), _) => {
                self.negotiate(&request, out)?;
                Ok(SetupStep::Negotiated)
            }
            // The rest of 0x0001 is the server's to say.
            Received::Known(message, _) if message.kind().0 == EXTENSION_NEGOTIATION => {
                Err(Violation::Unexpected(message.name()))
            }
            Received::Known(..) | Received::UnknownCore(_) => {
                let met = |id: &u16| self.extensions.contains(id);
                if !self.policy.required_extensions.iter().all(met) {
                    return Err(Violation::ExtensionsRequired);
                }
                Ok(SetupStep::Pass(received))
            }
        }
    }

    /// The last Success stands; an Error takes nothing back, as with SRI.
    fn negotiate(
        &mut self,
        request: &RequestExtensions<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let SetupPolicy { supported_extensions, required_extensions, .. } = self.policy;
        let answer = negotiate(supported_extensions, required_extensions, request)?;
        match &answer {
            Negotiated::Success { supported, .. } => {
                self.extensions = supported.iter().map(|id| u16::from_le_bytes(*id)).collect();
            }
            Negotiated::Error { required, .. } => {
                // One try more is what rule E4 offers.
                if self.told_required && !required.is_empty() {
                    return Err(Violation::ExtensionsRequired);
                }
                self.told_required |= !required.is_empty();
            }
        }
        answer.encode(out);
        Ok(())
    }
}
