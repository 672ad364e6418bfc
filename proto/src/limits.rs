//! Every bound of the protocol machines in one place, each with its reason. A bound that nobody can
//! say why it stands is a bug. Read by every module of this crate; imports nothing.
//!
//! What happens at each bound is decided where it is met (refuse, close, drop the oldest) and tested
//! there, one step beyond.

// ---- frames (spec chapter 3.2, 4.6) ----

/// Frame header: extension type U16, message type U8, length U24.
pub const FRAME_HEADER_LEN: usize = 6;
/// Poly1305 tag behind every encrypted piece.
pub const MAC_LEN: usize = 16;
/// The encrypted header alone.
pub const SEALED_HEADER_LEN: usize = FRAME_HEADER_LEN + MAC_LEN;
/// A Noise message is at most 65,535 bytes, tag included, so a payload is cut here.
pub const CHUNK_MAX: usize = 65_535 - MAC_LEN;
/// U24: no payload can say more of itself.
pub const FRAME_PAYLOAD_MAX: usize = 0x00ff_ffff;

/// Before SetupConnection is answered: five strings of 255 bytes and the numbers are 1,293 bytes.
pub const SETUP_PAYLOAD_MAX: usize = 1_536;
/// From a mining client: SetCustomMiningJob with 64 KiB of outputs and an 8 KiB path is the largest.
pub const MINING_CLIENT_PAYLOAD_MAX: usize = 80 * 1024;
/// From a mining server: NewExtendedMiningJob with prefix and suffix of 64 KiB and an 8 KiB path.
pub const MINING_SERVER_PAYLOAD_MAX: usize = 150 * 1024;
/// From a declarator: DeclareMiningJob with 65,535 wtxids, which must be readable to be refused, and
/// three fields of 64 KiB.
pub const DECLARE_CLIENT_PAYLOAD_MAX: usize = 2_304 * 1024;
/// From a declarator that was asked for transactions, as long as it is: ProvideMissingTransactions.Success
/// may carry a whole block (4 MB).
pub const DECLARE_PROVIDE_PAYLOAD_MAX: usize = 4_096 * 1024;
/// From a job-declaration server: SEQ0_64K of U16 positions and a 64 KiB coinbase are far below.
pub const DECLARE_SERVER_PAYLOAD_MAX: usize = 256 * 1024;

// ---- one link's buffers ----

/// What one read takes off a socket: some hundred shares, and small beside a task's stack.
pub const READ_MAX: usize = 16 * 1024;
/// Room for a payload that a busy link keeps from one frame to the next; an idle one keeps none.
pub const BUFFER_KEPT: usize = 4 * 1024;
/// Bytes of a peer that are read and dropped while we wait for it to close. Closing over unread bytes
/// would reset the link and could take our last message with it.
pub const CLOSING_READ_MAX: usize = 256 * 1024;

// ---- handshake (spec chapter 4) ----

/// A public key in its ElligatorSwift encoding.
pub const ELLSWIFT_LEN: usize = 64;
/// Act 1: one ElligatorSwift key in clear.
pub const ACT_ONE_LEN: usize = ELLSWIFT_LEN;
/// Act 2: ephemeral key (64), sealed static key (64 + 16), sealed certificate (74 + 16).
pub const ACT_TWO_LEN: usize = 234;
/// Certificate: version 2, valid_from 4, not_valid_after 4, signature 64.
pub const CERTIFICATE_LEN: usize = 74;
/// A front end may be this far off a client's clock before a certificate counts as expired (SRI: 10 s).
pub const CLOCK_DRIFT_S: u32 = 10;
/// Sessions end long before the AEAD nonce runs out: 2^48 frames are nine thousand years at 1,000/s.
pub const FRAMES_MAX: u64 = 1 << 48;

// ---- a mining connection ----

/// Channels of one connection. A farm's proxy needs hundreds; each costs us a search-space prefix and
/// about a kilobyte.
pub const CHANNELS_PER_CONNECTION_MAX: usize = 1_024;
/// Bytes of a user identity that we keep (STR0_255 allows 255; Whatsminer overflows above 127).
pub const USER_IDENTITY_MAX: usize = 128;
/// Full extranonce of every channel of the pool: one length for all, so that no two channels can shift
/// a coinbase prefix into the other's extranonce.
pub const EXTRANONCE_LEN: usize = EXTRANONCE_PREFIX_LEN + EXTRANONCE_ROLLABLE_LEN;
/// Node id 2, start epoch 2, channel number 4.
pub const EXTRANONCE_PREFIX_LEN: usize = 8;
/// What an extended channel may roll. SRI's declarator asks for 10, SRI's pool grants 16.
pub const EXTRANONCE_ROLLABLE_LEN: usize = 16;
/// In a house, what of the full extranonce is the job's: the end of its coinbase prefix, where the prefix of
/// the pool that is mined at stands. So another pool is another job, and a device's own prefix stays, which
/// most firmware cannot change.
pub const HOUSE_LEAD_LEN: usize = 12;
/// The last bytes of a lead are the job's number: a declared coinbase has no other room for one.
pub const HOUSE_NUMBER_LEN: usize = 4;
/// A device's own prefix in a house: its channel number. Nodes and starts need none, since the pool's
/// prefix before it is new for each connection to the pool.
pub const HOUSE_PREFIX_LEN: usize = 4;
/// What a device in a house may roll: 2^64 coinbases, each of 2^48 headers that version and nonce make.
pub const HOUSE_ROLLABLE_LEN: usize = 8;
/// What a declarator needs to roll on its channel at a pool: the job's number, the channel's and what the
/// device rolled. All of it is in a proof.
pub const HOUSE_EXTRANONCE_LEN: usize = HOUSE_NUMBER_LEN + HOUSE_PREFIX_LEN + HOUSE_ROLLABLE_LEN;
/// A coinbase up to its scriptSig: version 4, input count 1, outpoint 36, length of the script 1.
pub const COINBASE_SCRIPT_SIG_AT: usize = 42;
/// Jobs that a channel keeps under one prev_hash besides the newest. A device may still be hashing the
/// previous job when a new one arrives; 16 accept its shares for 16 s at one template a second.
pub const PAST_JOBS_MAX: usize = 16;
/// Tips before the present one whose jobs a connection still knows: to say `stale-share` and not
/// `invalid-job-id`, and to see a block that was found a moment too late and may yet win its race.
pub const STALE_TIPS_MAX: usize = 2;
/// Jobs of such a tip: those that a device may still have been hashing when it ended. A connection that is
/// sent a job every half minute would otherwise keep three tips' worth, a kilobyte more.
pub const STALE_JOBS_MAX: usize = 4;
/// Submitted shares that are judged at once: four times what the widest kernel takes. More of one read
/// are judged in turns.
pub const SHARES_AT_ONCE_MAX: usize = 64;
/// Future jobs that a client keeps for one channel; above it the oldest goes. A server has a few per
/// template change waiting at most, and a whole set is 2.4 MB at its largest.
pub const CLIENT_FUTURE_JOBS_MAX: usize = 16;
/// Requests for custom jobs of one client without an answer: as many as a pool of ours judges at once.
pub const CLIENT_CUSTOM_REQUESTS_MAX: usize = CUSTOM_REQUESTS_MAX;
/// Duplicate keys that a channel remembers under one tip. At 12 shares a minute this is 60 days; when a
/// flood fills it the channel stops adding and the ledger, which knows every proof, stays the judge.
pub const SEEN_SHARES_MAX: usize = 1 << 20;
/// A credit batch leaves when it holds this many shares ...
pub const CREDIT_BATCH_MAX: usize = 64;
/// ... or when its first share is this old: an acknowledgement well within 50 ms, one commit for a burst.
pub const CREDIT_BATCH_AGE_MS: u64 = 25;
/// Batches of one connection that wait for their commit. At the bound the next one stays open and grows.
pub const CREDIT_BATCHES_OPEN_MAX: usize = 8;
/// Shares in a batch that grows while the ledger is behind: an outage of five hours at 12 shares a minute,
/// at 80 bytes each. Only when it is full is the socket not read, since a block may come behind a share.
pub const CREDIT_BATCH_WAITING_MAX: usize = 4_096;
/// A running job is sent anew, with a later ntime, after this long: a standard channel at 5 TH/s is
/// through its 2^48 hashes in 58 s, and firmware reconnects after 180 s without a byte.
pub const JOB_REFRESH_MS: u64 = 30_000;
/// How often a silent channel's difficulty is looked at.
pub const VARDIFF_CHECK_MS: u64 = 5_000;
/// UpdateChannel may declare a new hash rate this often; in between only its target limit counts, so
/// that nobody steers difficulty by flapping.
pub const DECLARE_RATE_EVERY_MS: u64 = 10_000;
/// A share on a future job waits this long for the tip that would make it judgeable.
pub const EARLY_SHARE_WAIT_MS: u64 = 10_000;
/// The hardest share difficulty, 2^51: the largest batch of it still sums to less than the U64 of
/// SubmitShares.Success holds.
pub const DIFFICULTY_LOG2_MAX: i16 = 51;
/// Channels that a connection may open in its first moment: a proxy brings its whole farm ...
pub const OPENS_BURST: u64 = CHANNELS_PER_CONNECTION_MAX as u64;
/// ... and then one in so many milliseconds. Each takes a prefix that is never given out again: at ten a
/// second a thousand connections need five days for all 2^32, and what is refused then is only new
/// channels, until a restart.
pub const OPEN_EVERY_MS: u64 = 100;
/// Extensions a client may ask for in one RequestExtensions.
pub const EXTENSIONS_MAX: usize = 64;
/// Worker name in a 0x0002 TLV.
pub const WORKER_TLV_MAX: usize = 32;
/// Shares that wait for a prev_hash that our node has not shown yet (rule P53), for a connection.
pub const EARLY_SHARES_MAX: usize = 64;
/// Refused shares without a good one between them, after which a connection is closed: a flood of them
/// costs us a hash each and its sender none. A device whose every share is refused for an hour at three
/// a second has something to mend.
pub const REFUSED_IN_A_ROW_MAX: u32 = 10_000;
/// Found blocks that a connection remembers, so that a repeated share does not send one again. On a
/// real network two are many; on one where every share is a block the node says "known" to the rest.
pub const BLOCKS_SENT_MAX: usize = 64;

// ---- shares ----

/// BIP323: the version bits that a miner may roll.
pub const VERSION_ROLLING_MASK: u32 = 0x1fff_ffe0;
/// A share's ntime may run this far ahead of the seconds that passed since its job was sent: devices
/// whose clock rolls a little fast are not punished.
pub const NTIME_SLACK_S: u32 = 600;
/// Core refuses a block 7,200 s ahead of its clock; 200 s are left for clocks that differ.
pub const NTIME_AHEAD_MAX_S: u32 = 7_000;

// ---- tokens (spec chapter 6.4.3) ----

/// How long a token waits for a job to be declared with it. SRI's declarator keeps a stock of them and may
/// use one a day later; when it is told that a token is unknown, it leaves the pool.
pub const TOKEN_ALLOCATED_LIVES_MS: u64 = 24 * 60 * 60 * 1_000;
/// How long an approved job waits to be asked for on the mining connection. A declarator does so within a
/// second; ten minutes outlast a reconnect. Jobs of a tip that is gone end before (`Tokens::end_jobs`).
pub const TOKEN_APPROVED_LIVES_MS: u64 = 10 * 60 * 1_000;
/// Tokens that a client, which is a whole household or farm behind one address, may ask for at once ...
pub const TOKENS_BURST: u64 = 1_024;
/// ... and then one in so many milliseconds: what 200 declarators need with a template every 20 s.
pub const TOKEN_EVERY_MS: u64 = 100;
/// Tokens of one client without a declared job: SRI's declarator keeps two, so a thousand of them. Beyond,
/// the oldest gives way.
pub const TOKENS_PER_CLIENT_MAX: usize = 2_048;
/// Approved jobs of one client that nobody asked for on a mining connection yet: at a new tip each of its
/// declarators has one, and some have two. Beyond, the oldest gives way ...
pub const APPROVED_PER_CLIENT_MAX: usize = 1_024;
/// ... and also beyond so many bytes that nobody else holds, as their check counted: a dozen blocks of
/// transactions. The newest always stays.
pub const APPROVED_BYTES_PER_CLIENT_MAX: usize = 48 * 1024 * 1024;
/// Bytes of all approved jobs; beyond, the client that holds most loses its oldest.
pub const APPROVED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Tokens in all, at about 300 bytes each beside what is declared. Beyond, the client that holds most loses
/// its oldest, so that nobody can hoard what another needs.
pub const TOKENS_MAX: usize = 100_000;

// ---- custom jobs (spec 05 §5.3.18) ----

/// Requests of one connection that the pool judges: a client asks for one job at a time, or for two when a
/// tip and its fuller template come together. It may be ahead of our node, and then waits for seconds.
pub const CUSTOM_REQUESTS_MAX: usize = 8;
/// Custom jobs that a client may ask for at once ...
pub const CUSTOM_JOBS_BURST: u64 = 30;
/// ... and then one in so many milliseconds: as many as jobs may be declared.
pub const CUSTOM_JOB_EVERY_MS: u64 = 2_000;
/// Different custom jobs under one tip whose difficulty a connection keeps, at about 80 bytes each: at the
/// pace above two hours and a quarter of jobs. Beyond, a new one is refused until the tip moves; a
/// difficulty that was forgotten would let a client choose the one that pays him most.
pub const CUSTOM_SPACES_MAX: usize = 4_096;
/// Where a connection has many channels, so many for each: a job for the group is as many as the group has
/// channels. Eight minutes and a half of jobs at the pace above, without the ones that a tip pays for; at 16
/// bytes a channel that is 4 KiB.
pub const CUSTOM_SPACES_PER_CHANNEL: usize = 256;

/// Tokens, declarations and custom jobs that a new tip pays for, beyond their paces: an empty template, a
/// full one, and two for a client that is slow to follow. Where blocks come by the second, as on chains for
/// tests, the paces alone would leave an honest declarer without a job.
pub const JOBS_PER_TIP: u64 = 4;

// ---- declarations (spec chapter 6) ----

/// Outputs of a declared or custom coinbase, with their count: every share of the job hashes them. Ninety
/// outputs to Taproot keys.
pub const COINBASE_OUTPUTS_MAX: usize = 4_096;
/// DeclareMiningJob's prefix: version, marker and flag, input count, outpoint, length and the script before
/// the extranonce are at most 146 bytes.
pub const DECLARED_PREFIX_MAX: usize = 256;
/// Of DeclareMiningJob's suffix, what is no output: rest of a script, nSequence, witness, lock time.
pub const SUFFIX_BESIDES_OUTPUTS_MAX: usize = 256;
/// Declarations that a declarer may make at once ...
pub const DECLARATIONS_BURST: u64 = 30;
/// ... and then one in so many milliseconds: 30 a minute, where a template every 30 s makes two.
pub const DECLARATION_EVERY_MS: u64 = 2_000;
/// Declarations of one connection without an answer, each of half a megabyte at its largest. When all are
/// under check, the socket is not read; when one waits for its declarer, the oldest such gives way.
pub const DECLARATIONS_OPEN_MAX: usize = 4;
/// How long a declarer may take to send transactions that he was asked for: a whole block through a
/// home's 0.6 Mbit/s.
pub const PROVIDE_WAIT_MS: u64 = 60_000;
/// Requests for transactions whose answer may still come although it is of no use any more: more than a
/// burst of declarations can make while one answer is on its way.
pub const GIVEN_UP_MAX: usize = 64;
/// Tokens that a declarer may ask for at once: a minute's worth ...
pub const DECLARER_TOKENS_BURST: u64 = 20;
/// ... and then one in so many milliseconds, 20 a minute: a template every 30 s needs two.
pub const DECLARER_TOKEN_EVERY_MS: u64 = 3_000;
/// Requests for tokens that wait their time. SRI's declarator has two at its start.
pub const TOKEN_REQUESTS_WAITING_MAX: usize = 32;
/// Solutions that a declarer may push at once: on a real network one a year is many, on a development
/// chain each share may be one ...
pub const SOLUTIONS_BURST: u64 = 64;
/// ... and then one in so many milliseconds. More are dropped: a share of the same job is a block, too.
pub const SOLUTION_EVERY_MS: u64 = 100;
/// Text that a refusal carries behind its code.
pub const DETAILS_MAX: usize = 1_024;
/// Transactions of a declared job: of the smallest that there can be (60 bytes, 240 weight units) a block
/// of 4,000,000 holds no more.
pub const DECLARED_TRANSACTIONS_MAX: usize = 16_666;

// ---- declarators (spec chapter 6, the client's side) ----

/// How long a declarator waits for a token or for the answer to a declaration. A pool holds a declaration for
/// some seconds until its node has followed, and asks for transactions in between.
pub const CLIENT_ANSWER_MAX_MS: u64 = 30_000;
/// Declarations without an answer: as many as a pool of ours checks at once for one declarer.
pub const CLIENT_DECLARATIONS_MAX: usize = DECLARATIONS_OPEN_MAX;
/// Tokens in hand at most: a pool gives twenty at once and then twenty a minute.
pub const CLIENT_TOKENS_MAX: usize = 8;

// ---- jobs ----

/// scriptSig of a coinbase, consensus limit.
pub const SCRIPT_SIG_MAX: usize = 100;
/// NewExtendedMiningJob to a device that we do not know: NerdQAxe+ and Bitaxe before v2.15 drop the
/// link above 2,048 bytes of payload.
pub const JOB_PAYLOAD_UNKNOWN_DEVICE_MAX: usize = 1_900;
/// Merkle path of a job: Bitaxe drops a job with more than 20 branches; 20 is a million transactions.
pub const MERKLE_PATH_MAX: usize = 20;

const _: () = assert!(ACT_TWO_LEN == 64 + (64 + MAC_LEN) + (CERTIFICATE_LEN + MAC_LEN));
const _: () = assert!(EXTRANONCE_LEN <= 32);
const _: () = assert!(HOUSE_LEAD_LEN + HOUSE_PREFIX_LEN + HOUSE_ROLLABLE_LEN == EXTRANONCE_LEN);
const _: () = assert!(HOUSE_EXTRANONCE_LEN == EXTRANONCE_ROLLABLE_LEN);
const _: () = assert!(HOUSE_NUMBER_LEN == size_of::<u32>() && HOUSE_PREFIX_LEN == size_of::<u32>());
const _: () = assert!(HOUSE_LEAD_LEN < COINBASE_SCRIPT_SIG_AT + HOUSE_NUMBER_LEN);
const _: () = assert!((CREDIT_BATCH_WAITING_MAX as u128) << DIFFICULTY_LOG2_MAX < u64::MAX as u128);
const _: () = assert!(EXTRANONCE_LEN + 1 < SCRIPT_SIG_MAX);
const _: () = assert!(STALE_JOBS_MAX <= PAST_JOBS_MAX);
const _: () = assert!(CREDIT_BATCH_MAX <= CREDIT_BATCH_WAITING_MAX);
const _: () = assert!(MINING_SERVER_PAYLOAD_MAX <= FRAME_PAYLOAD_MAX);
const _: () = assert!(SETUP_PAYLOAD_MAX <= MINING_CLIENT_PAYLOAD_MAX);
const _: () = assert!(DECLARE_CLIENT_PAYLOAD_MAX > 65_535 * 32 + 3 * 65_537 + 300);
const _: () = assert!(DECLARE_CLIENT_PAYLOAD_MAX <= DECLARE_PROVIDE_PAYLOAD_MAX);
const _: () = assert!(COINBASE_OUTPUTS_MAX + SUFFIX_BESIDES_OUTPUTS_MAX <= 65_535);
const _: () = assert!(DECLARED_TRANSACTIONS_MAX <= 65_535 && DETAILS_MAX <= 65_535);
