//! Every bound of this crate in one place, each with its reason. What happens at a
//! bound is decided where it is met and tested there, one step beyond.

use std::time::Duration;

// ---- consensus, as far as a template is checked against it ----

/// BIP141: a block's weight.
pub const BLOCK_WEIGHT_MAX: u64 = 4_000_000;
/// No block is longer than its weight.
pub const BLOCK_LEN_MAX: usize = 4_000_000;
/// Transactions of a block: the smallest has 60 bytes without witness, 240 weight units, so no valid
/// block holds more.
pub const BLOCK_TRANSACTIONS_MAX: usize = 16_667;
/// BIP141: bytes outside of a witness weigh this much, signature operations outside of one cost it.
pub const WITNESS_SCALE: u64 = 4;
/// BIP141: cost of a block's signature operations.
pub const SIGOP_COST_MAX: u64 = 80_000;
/// 21 million bitcoin.
pub const MONEY_MAX_SATS: u64 = 2_100_000_000_000_000;
/// Lock times from here on are seconds (BIP65), so no chain's height is ever taken beyond it.
pub const HEIGHT_MAX: u32 = 499_999_999;
/// Blocks between halvings, every network but regtest.
pub const HALVING_INTERVAL: u32 = 210_000;
/// Blocks between halvings on regtest.
pub const HALVING_INTERVAL_REGTEST: u32 = 150;

// ---- Bitcoin Core over RPC ----

/// The longest answer read. A full block's template is 8 MB of hex and about 350 bytes of names, hashes
/// and dependencies around each transaction: 14 MB at the worst.
pub const RPC_ANSWER_LEN_MAX: usize = 32 * 1024 * 1024;
/// Headers of an answer; Core sends about 150 bytes, proxies a few hundred.
pub const RPC_HEADERS_LEN_MAX: usize = 16 * 1024;
/// A cookie is `__cookie__:` and 64 digits.
pub const RPC_COOKIE_LEN_MAX: usize = 1_024;
/// Ordinary calls in flight, each a thread (and `minreq` takes a second one while it connects). Core has 16 RPC threads by default and others use
/// them too.
pub const RPC_CALLS_MAX: usize = 4;
/// Block submissions in flight, apart from calls: a block never waits behind a stalled question.
pub const RPC_SUBMISSIONS_MAX: usize = 4;
/// An ordinary call: Core answers in milliseconds, or in some seconds while it connects a block.
pub const RPC_CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Submitting a block: Core validates it before it answers, slowly on a cold cache.
pub const RPC_SUBMIT_DEADLINE: Duration = Duration::from_secs(60);
/// A long-poll with neither a block nor a transaction; then it is simply asked again.
pub const RPC_LONG_POLL_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// While a long-poll waits the tip is asked for this often: a connection whose other end vanished
/// without a word would otherwise keep us on a dead tip until the deadline.
pub const RPC_PROBE_INTERVAL: Duration = Duration::from_secs(15);
/// Without a long-poll (one that was given up still holds the only place) the tip is asked for this
/// often.
pub const RPC_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Without a long-poll a template is this old at most before it is asked for anew (Core's long-poll
/// answers after 60 s if transactions came).
pub const RPC_POLL_REFRESH: Duration = Duration::from_secs(30);

/// Checks of declared jobs in flight, apart from both: each keeps Core's main lock for as long as a block
/// takes to validate (a tenth of a second with a warm cache), so more would gain nothing, only delay a
/// block that is submitted meanwhile. 8 MB of hex each.
pub const RPC_CHECKS_MAX: usize = 2;

// ---- Bitcoin Core over IPC ----

/// Checks that wait for their turn at Core, each with a block of up to 4 MB: the three that the pool makes at
/// once. One more goes to the RPC.
pub const IPC_QUESTIONS_MAX: usize = 3;
/// From a question to its answer, waiting for others included: time for several full blocks on a small
/// computer, and early enough for the RPC to be asked in what is left of the pool's 20 s.
pub const IPC_CALL_DEADLINE: Duration = Duration::from_secs(8);
/// After a failure the RPC is asked for so long, without another attempt: a node takes longer to start, and
/// one that is of another version should not be asked, nor written of, at every job.
pub const IPC_RETRY_PAUSE: Duration = Duration::from_secs(10);
/// The longest answer read, in words of 8 bytes: two short texts, or an exception's.
pub const IPC_ANSWER_WORDS_MAX: usize = 8_192;

// ---- declared jobs ----

/// What stands before the extranonce: version 4, marker and flag 2, count 1, previous output 36, a length
/// of one byte, scriptSig.
pub const COINBASE_PREFIX_LEN_MAX: usize = 4 + 2 + 1 + 36 + 1 + proto::limits::SCRIPT_SIG_MAX;
/// What stands behind it: nSequence 4, outputs, a witness of one 32-byte item, nLockTime 4.
pub const COINBASE_SUFFIX_LEN_MAX: usize = 4 + proto::limits::COINBASE_OUTPUTS_MAX + 34 + 4;

/// A transaction that is supplied, without its witness: what Core relays (400,000 weight units). Each of its
/// signatures may hash all of it, so one of a megabyte keeps a node for tens of seconds under its lock.
/// Longer ones are declared where the pool's own node has them.
pub const SUPPLIED_STRIPPED_MAX: u64 = 100_000;

// ---- connections ----

/// A worker looks for new bytes and due timers after so many turns of tasks. Tokio's own 61 turns of a flood,
/// a millisecond each, were two commits' time; one look costs a microsecond.
pub const TURNS_PER_LOOK: u32 = 8;

// ---- configuration and keys ----

/// Coinbase text: with the height, the push opcodes and the extranonce it must stay under the 100
/// bytes that consensus allows a coinbase script; 40 leave room for what later versions add.
pub const TAG_MAX: usize = 40;
/// An identity is some 500 bytes; a key file beyond this is not one.
pub const KEY_FILE_MAX: u64 = 16 * 1024;
/// Pools in order of preference. With two or three a miner is covered; each costs a connection while
/// the ones before it are away.
pub const POOLS_MAX: usize = 8;
/// Addresses that a pool is known to pay from its blocks. A pool has one, or a few in turn.
pub const KNOWN_ADDRESSES_MAX: usize = 64;
/// What pools credit, with a device's own name behind it: `.` and the name take the rest of the 128 bytes that
/// a pool may bound a user identity to.
pub const USER_MAX: usize = 90;

// ---- the embedded chain ----

/// Transactions in a template of the embedded chain. Each weighs 381, so this is 3.1 of 4 million and
/// leaves room for any coinbase.
pub const EMBEDDED_TRANSACTIONS_MAX: usize = 8_000;
/// Prepared blocks of the embedded chain: coinbases must be 100 deep to be spent (and above height 16
/// the BIP34 push looks as it does everywhere).
pub const EMBEDDED_START_HEIGHT_MIN: u32 = 101;
/// Preparing takes about half a millisecond a block.
pub const EMBEDDED_START_HEIGHT_MAX: u32 = 10_000;

// ---- which pool (upstream.rs) ----

/// Pause after the first failure of a pool; doubled with each until it was sound again.
pub const POOL_RETRY_FIRST_MS: u64 = 1_000;
/// The longest of those pauses: with the time that a pool has to prove itself, and a spread of a quarter, a
/// house is back within a minute of its pool's health.
pub const POOL_RETRY_LAST_MS: u64 = 30_000;
/// Pause after a pool said no (to a job, a share, a channel): it will again, and each try costs some work.
/// Doubled with each until the pool was sound, so that a house is back within 90 s only at one that was.
pub const POOL_RETRY_REFUSED_MS: u64 = 45_000;
/// The longest of those pauses: a pool that wants work and credits none has a sixth of the time at most.
pub const POOL_RETRY_REFUSED_LAST_MS: u64 = 600_000;
/// Used for so long in all without crediting anything, a pool that fails waits like one that says no: as long
/// as a single share may wait for its first answer.
pub const POOL_UNCREDITED_MAX_MS: u64 = SHARE_ANSWER_MAX_MS;
/// A preferred pool that is back must have been good for so long before another is left for it.
pub const POOL_RETURN_AFTER_MS: u64 = 10_000;
/// In use for so long without a failure, and crediting shares, a pool is sound: what was before does not count against it.
pub const POOL_SOUND_AFTER_MS: u64 = 60_000;
/// A pool that is dialled has so long before the one behind it is dialled, too.
pub const POOL_STAGGER_MS: u64 = 3_000;

// ---- a session with a pool (declarator.rs) ----

/// From dialling until it can be mined on. A home's line and a busy pool need a second.
pub const SESSION_SETUP_MAX_MS: u64 = 15_000;
/// How long the pool may take to promise a custom job or not: ours waits up to 4 s for its node.
pub const CUSTOM_ANSWER_MAX_MS: u64 = 10_000;
/// A declaration without a word for three times as long as the pool ever took, but at least this: the pool is
/// gone. Its check may wait for a node that connects a block.
pub const DECLARED_ANSWER_MIN_MS: u64 = 10_000;
/// A share without a word for twice as long as the pool ever took, but at least this: the pool is gone ...
pub const SHARE_ANSWER_MIN_MS: u64 = 5_000;
/// ... and at most this, for SRI's pool answers ten shares at once. Also what a pool may take at first, when
/// nothing is known of it.
pub const SHARE_ANSWER_MAX_MS: u64 = 120_000;
/// The most shares at once that a pool is taken to answer: SRI's takes ten. One that answers thousands once
/// would have nothing due for hours after it.
pub const SHARE_BATCH_MAX: usize = 64;
/// More shares than this without an answer, and the oldest of them is overdue by its age alone: fewer may be a
/// batch of SRI's that is not full because the devices went to sleep.
pub const SHARE_BATCH_USUAL: usize = 10;
/// How old the oldest may become at most where answers always took their time: a full batch of a dozen a minute.
pub const SHARE_AGE_MAX_MS: u64 = 600_000;
/// Shares that were sent and have no answer: a pool that batches by thousands is none.
pub const SHARES_UNANSWERED_MAX: usize = 4_096;
/// Shares that wait for a job's promise: minutes of a fleet's at a pool's usual dozen a minute. Beyond, the
/// newest is let go and counted.
pub const SHARES_WAITING_MAX: usize = 4_096;
/// Good shares that a pool refuses in a row before it is left. One or two are lost to races.
pub const SHARES_REFUSED_IN_A_ROW_MAX: u32 = 5;
/// The same for stale ones, of which a fast fleet has some with each tip.
pub const SHARES_STALE_IN_A_ROW_MAX: u32 = 50;
/// A pool may call shares stale for so long while our own node has its tip: a small node takes its time to
/// connect a block, and its pool's did not.
pub const STALE_BEFORE_TIP_MS: u64 = 30_000;
/// And for so long after our node has another: what was on its way.
pub const STALE_AFTER_TIP_MS: u64 = 10_000;
/// A share's time may be ahead of ours, or of its job's as that goes on, by so much: devices may roll twice of
/// it, and a pool with a stricter clock would refuse each, five of which end a session.
pub const SHARE_NTIME_AHEAD_MAX_S: u32 = 300;
/// Frames for one link go together up to so many bytes, so that what waited for one promise is a handful of
/// messages in `LINK_QUEUE_MAX` and not thousands.
pub const SEND_JOINED_MAX: usize = 64 * 1024;
/// Shares, of the size that the pool takes, that it may leave without credit, beside half of all: a pool is
/// honest whose count is a Poisson number, and that of f expected is below f/2 - 20 with a probability under
/// exp(-31) for every f (Chernoff: f (1 - x + x ln x) with x = 1/2 - 20/f is least at f = 70, 31.9).
/// Looked at every five seconds, that is once in a hundred million years.
pub const CREDIT_MISSING_SHARES_MAX: f64 = 20.0;
/// Shares of that size that are judged; beyond, both counts are halved. A pool that was honest for a year and
/// is no more is left within two hundred shares.
pub const CREDIT_SHARES_JUDGED: f64 = 128.0;
/// What was found is judged after so long: no promise and no answer may take longer.
pub const CREDIT_SETTLES_AFTER_MS: u64 = SHARE_ANSWER_MAX_MS;
/// Counted in steps of so long.
pub const CREDIT_STEP_MS: u64 = 5_000;
/// What was found so shortly before another tip came is not held against the pool: it may have waited for a
/// promise, or have been stale to a pool that heard of the tip first. A tenth of the time between blocks.
pub const CREDIT_EXCUSED_MS: u64 = 60_000;
/// Seconds of the fleet's hashes that a share may take: a fiftieth of the usual pace. With fewer shares nobody
/// can tell for hours whether the pool credits any.
pub const HARD_SHARE_MAX_S: f64 = 600.0;
/// A pool that was told the fleet's rate may ask for more for so long: ours listens in ten seconds.
pub const HARD_MAX_MS: u64 = 120_000;
/// A session that was left still hears of its last shares for so long.
pub const SESSION_LINGER_MS: u64 = 5_000;
/// Sessions that linger at once; beyond, the oldest ends.
pub const SESSIONS_LINGERING_MAX: usize = 4;
/// Tries to have one job promised that the pool says is of an old tip; by then one of the two nodes is
/// behind, and the pool's own jobs are mined until ours has another tip.
pub const STALE_TRIES_MAX: u32 = 6;
/// Pause before the second of them; doubled with each. SRI's server is some milliseconds behind its own node,
/// and shares wait for its promise: the first pause is short, all together eight seconds.
pub const STALE_RETRY_MS: u64 = 250;
/// The last try is so long after the pool's first such word: a pool may hold each answer for seconds, ours for
/// four, to see whether its own node follows, and six of those would be half a minute of shares that wait.
pub const STALE_MAX_MS: u64 = 8_000;
/// Jobs whose shares are still known: those of three tips, at a template every half minute and more.
pub const WORKS_KEPT_MAX: usize = 128;
/// This computer's calendar may be so far from the node's; beyond, the node's counts. Core warns of the same.
pub const CLOCK_OFF_MAX_S: u32 = 60;
/// A pool's other target reaches the devices this often at most: each time every one of them looks.
pub const CEILING_EVERY_MS: u64 = 1_000;
/// A pool's own job on the tip that devices work on follows the one before by so long at least: each is sent
/// to every device. Also two prefixes of the extranonce, or two tips, after one that came as fast.
pub const THEIR_JOBS_EVERY_MS: u64 = 1_000;
/// A pool's target may be so many times as easy as the own node's: one retarget lies between them at most.
pub const THEIR_TARGET_EASIER_MAX: u64 = 4;
/// For so long the target of the node's newest template is one to compare with.
pub const NODE_TARGET_KNOWN_MS: u64 = 24 * 60 * 60 * 1_000;
/// Blocks whose shares were sent before the house's server had a word on them: a share follows in a moment.
pub const BLOCKS_SENT_KEPT: usize = 64;
/// The fleet's rate is told to the pool this often at most.
pub const FLEET_TOLD_EVERY_MS: u64 = 1_000;
/// A pool that asks a share of the fleet more than twice as often, or seldom, than it should is told again
/// this often: ours listens to one word in ten seconds.
pub const FLEET_TOLD_AGAIN_MS: u64 = 15_000;
/// H/s that a pool is told when nothing is known of the fleet: a Bitaxe.
pub const FLEET_UNKNOWN: f64 = 1e12;
/// How long the node may take for its first word before pools are asked for their own jobs.
pub const NODE_FIRST_WORD_MS: u64 = 2_000;
/// A node that fails for so long is away: one that restarts its RPC between two calls is not.
pub const NODE_AWAY_AFTER_MS: u64 = 3_000;
/// Without a sign of life of the node for so long, its templates are not built upon any more.
pub const NODE_SILENCE_MAX_MS: u64 = 20_000;
/// A node that waits for something newer is asked for a sign of life this often.
pub const NODE_ASKED_EVERY: Duration = Duration::from_secs(5);
/// Pause before a node that failed is asked again; doubled up to the last.
pub const NODE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// The longest of them.
pub const NODE_PAUSE_LAST: Duration = Duration::from_secs(5);
/// A node that stays away for one reason is written of this often.
pub const NODE_WAIT_SAID_EVERY: Duration = Duration::from_secs(60);
/// Connecting to a pool, and then the handshake: devices give up as late.
pub const LINK_CONNECT_MAX: Duration = Duration::from_secs(7);
/// A pool's socket that was quiet is asked whether it is there after so long, and so often; the ways by which
/// nothing comes back are so known within a quarter of a minute, however seldom shares are found.
pub const LINK_QUIET: Duration = Duration::from_secs(5);
/// See `LINK_QUIET`.
pub const LINK_ASKED_EVERY: Duration = Duration::from_secs(3);
/// See `LINK_QUIET`.
pub const LINK_ASKED_TIMES: u32 = 3;
/// What was sent is acknowledged by the pool's machine within so many milliseconds, or there is none.
pub const LINK_TAKEN_WITHIN_MS: u32 = 10_000;
/// Addresses of a pool's name that are tried. The next is begun this long after the one before, which goes on.
pub const LINK_ADDRESSES_MAX: usize = 8;
/// See `LINK_ADDRESSES_MAX`; what browsers wait.
pub const LINK_NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// A pool that takes no byte for so long is gone.
pub const LINK_WRITE_STALL: Duration = Duration::from_secs(10);
/// Messages that wait for a link to take them; shares of seconds, or a template's.
pub const LINK_QUEUE_MAX: usize = 1_024;
/// What links, devices and the node say that waits for the declarator's task: it does each in microseconds.
pub const CORE_QUEUE_MAX: usize = 1_024;

// ---- ports, the pool's and the pages' too (accept.rs, http.rs) ----

/// Pause after a failed accept (out of file descriptors): others end in the meantime.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// ---- devices (device.rs, door.rs) ----

/// What is shown is this old at most, and the fleet is measured as often.
pub const SHOWN_EVERY: Duration = Duration::from_secs(1);
/// Shares from which a channel's rate is measured instead of taken from the pace that it is given.
pub const FLEET_MEASURED_FROM: u64 = 30;
/// A channel that has found less than that is believed for so long what its pace aims at; then what it found
/// counts, also if that is nothing.
pub const FLEET_BELIEVED_MS: u64 = 180_000;
/// Channels of the whole house beyond the first of each connection, which has its place with it: what stands
/// behind proxies, at some kilobytes each. However many of these one device takes, every other has its own.
pub const HOUSE_CHANNELS_MAX: usize = 2_048;
/// Channels of one connection: a proxy has hundreds of devices behind it, and leaves room for another proxy.
pub const CHANNELS_OF_ONE_MAX: usize = 512;
/// Channels of one connection whose opening is a line in the log; a proxy's others are at debug.
pub const OPENS_SAID: usize = 4;
/// What links may take for their last words when the program stops.
pub const LINKS_DRAIN: Duration = Duration::from_secs(1);
/// All that waits for a pool, however slowly it takes it: beyond, it is gone.
pub const LINK_FLUSH_MAX: Duration = Duration::from_secs(60);
/// What a disk may take for a found block before it is offered from memory.
pub const BLOCK_WRITE_MAX: Duration = Duration::from_secs(2);
/// Devices that left, on the page.
pub const DEVICES_GONE_SHOWN: usize = 16;
/// Addresses and reasons of those who were refused, on the page.
pub const REFUSED_SHOWN: usize = 16;
/// log2 of the easiest difficulty of a device: a NerdMiner of 20 kH/s finds a share in some ten seconds at 2^-14,
/// and whatever is slower than that is one of a kind.
pub const DEVICE_FLOOR_LOG2: i16 = -20;
/// A device's row on the page is this old at most.
pub const DEVICE_SHOWN_EVERY_MS: u64 = 2_000;
/// A device that takes no byte for so long is dropped: its socket's buffer holds minutes of jobs.
pub const DEVICE_WRITE_STALL: Duration = Duration::from_secs(20);
/// A device that was refused may read why for so long.
pub const DEVICE_GOODBYE: Duration = Duration::from_secs(2);
/// What one read takes of a V1 device: some shares.
pub const SV1_READ_MAX: usize = 4_096;
/// Connections that wait to be accepted.
pub const DOOR_BACKLOG: u32 = 256;
/// How long devices have to go when the program stops.
pub const DEVICES_DRAIN: Duration = Duration::from_secs(3);

// ---- found blocks (blocks.rs) ----

/// Lines of the log that wait for whoever reads it: some seconds of a bad day. Beyond, they are dropped and
/// counted.
pub const LOG_LINES_MAX: usize = 8_192;
/// A last word waits so long for its reader.
pub const SAID_WITHIN: Duration = Duration::from_secs(1);
/// Threads that wait for a disk have so long once all else has ended.
pub const RUNTIME_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Pause before a block is offered again to a node that gave no answer.
pub const BLOCK_RETRY: Duration = Duration::from_secs(2);
/// How often it is said that one has no answer yet: a node may be away for days.
pub const BLOCK_UNANSWERED_SAID_EVERY: Duration = Duration::from_secs(60);
/// Questions to the disk at once: one for the blocks of before, the rest for blocks that come while it hangs.
pub const BLOCK_DISK_ASKED_MAX: usize = 4;
/// Blocks in memory that the disk did not take, 4 MB each at most: more than a house finds before somebody looks.
pub const BLOCKS_UNWRITTEN_MAX: usize = 4;
/// Settled blocks whose files are kept: a house finds one in years, a development chain some in a minute.
pub const BLOCKS_SETTLED_KEPT: usize = 16;

/// Switches that the page shows.
pub const SWITCHES_SHOWN: usize = 32;

const _: () =
    assert!((POOL_RETRY_REFUSED_MS * 5 / 4) + POOL_RETURN_AFTER_MS + SESSION_SETUP_MAX_MS < 90_000);
const _: () = assert!(POOL_RETRY_LAST_MS <= POOL_RETRY_REFUSED_MS);
const _: () = assert!(STALE_RETRY_MS << STALE_TRIES_MAX > STALE_MAX_MS);
const _: () = assert!(SHARE_ANSWER_MIN_MS < SHARE_ANSWER_MAX_MS);
const _: () = assert!(SHARE_ANSWER_MAX_MS < SHARE_AGE_MAX_MS);
const _: () = assert!(SHARE_BATCH_USUAL < SHARE_BATCH_MAX);
const _: () = assert!((SHARE_BATCH_MAX as f64) < CREDIT_SHARES_JUDGED);
const _: () =
    assert!(CREDIT_SETTLES_AFTER_MS >= proto::limits::CLIENT_ANSWER_MAX_MS + CUSTOM_ANSWER_MAX_MS);
const _: () = assert!(POOL_RETRY_REFUSED_MS < POOL_RETRY_REFUSED_LAST_MS);
const _: () = assert!(EMBEDDED_TRANSACTIONS_MAX as u64 * 381 < BLOCK_WEIGHT_MAX * 4 / 5);
// A job as devices are sent it, whatever a pool wants to be paid: firmware that takes more than the smallest does
// takes 8 KiB, and some of it is left for what is sent along. Around outputs and path stand 200 bytes at most.
const _: () = assert!(
    proto::limits::COINBASE_OUTPUTS_MAX + 32 * proto::limits::MERKLE_PATH_MAX + 200 < 6_500
);
const _: () = assert!(BLOCK_TRANSACTIONS_MAX < 1 << proto::limits::MERKLE_PATH_MAX);
const _: () = assert!(RPC_ANSWER_LEN_MAX > 3 * BLOCK_LEN_MAX);

// ---- Stratum V1 devices ----

/// Bytes of a line, its end not counted: the longest that devices send is a mining.submit with a long worker
/// name, some 300. A longer line ends the session.
pub const SV1_LINE_MAX: usize = 1_024;
/// Bytes of a request's id as it is written. Devices count up from 1; each unanswered share keeps one.
pub const SV1_ID_LEN_MAX: usize = 64;
/// Lines in a row that are no JSON-RPC and are told so; the next one ends the session. A browser's request has
/// more lines than that, and a device writes JSON or never will.
pub const SV1_BAD_LINES_MAX: u32 = 5;
/// Requests besides shares that a device may make at once: its first moment has seven at most ...
pub const SV1_REQUESTS_BURST: u64 = 64;
/// ... and then one in so many milliseconds: a device that pings does so once in some seconds.
pub const SV1_REQUEST_EVERY_MS: u64 = 250;
/// mining.subscribe that wait for the channel: a device says it once and may say it again when the answer
/// takes its time.
pub const SV1_SUBSCRIBES_WAITING_MAX: usize = 4;
/// How long a channel's opening waits for the worker's name and the wished difficulty, which most devices send
/// behind mining.subscribe without a pause. Others wait for its answer first, and half a second does not hurt
/// them.
pub const SV1_OPEN_WAIT_MS: u64 = 500;
/// A wished difficulty becomes an UpdateChannel this often: a server heeds a declared rate only so often, by a
/// clock that may be read a moment later than ours.
pub const SV1_WISH_EVERY_MS: u64 = proto::limits::DECLARE_RATE_EVERY_MS + 1_000;
/// What a device must be able to roll: with fewer bytes a fast one runs out between two jobs.
pub const SV1_EXTRANONCE2_LEN_MIN: u16 = 4;
/// The version bits that BIP310's devices roll. Those that BIP323 frees beside them no firmware asks for.
pub const SV1_VERSION_MASK: u32 = 0x1fff_e000;
/// Jobs ahead of their tip, as text of twice their size. Our server has one under way, and two for a moment;
/// beyond, the oldest goes.
pub const SV1_JOBS_AHEAD_MAX: usize = 4;
/// Jobs that a share may name, eight bytes each: more than the server knows, which is the judge of what is
/// stale. Beyond, the oldest is forgotten.
pub const SV1_JOBS_MAX: usize = 64;
/// Shares without an answer, at most a hundred bytes each: two hours at 12 a minute while nothing is
/// committed. Beyond, they are refused ...
pub const SV1_UNANSWERED_MAX: usize = 2_048;
/// ... but the socket is left alone before that, with room for all shares of one more read.
pub const SV1_UNANSWERED_SPARE: usize = 512;
/// The shortest line that is a share: its words, a job of one digit, four extranonce bytes.
const SV1_SHARE_LEN_MIN: usize =
    r#"{"method":"mining.submit","params":[0,"1","00000000","0","0"]}"#.len() + 1;

const _: () = assert!(SV1_VERSION_MASK & !proto::limits::VERSION_ROLLING_MASK == 0);
const _: () = assert!(SV1_UNANSWERED_SPARE < SV1_UNANSWERED_MAX);
const _: () =
    assert!((proto::limits::READ_MAX + SV1_LINE_MAX) / SV1_SHARE_LEN_MIN < SV1_UNANSWERED_SPARE);

// ---- pages over HTTP, the pool's too (http.rs) ----

/// A page that takes longer is given up: the work goes first.
pub const PAGE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pages being made at once. A dashboard asks for four, Prometheus for one; beyond it is "busy". Health
/// is not counted: whoever restarts us must not be told of a busy dashboard.
pub const PAGES_MAX: usize = 16;
/// HTTP connections at once: a dozen browsers with four each, and Prometheus. One more closes the one that
/// is open the longest, so that idle ones never keep a health check out.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// From the connect, or from the end of a page, to the end of the next request's head. A dashboard that
/// looks every few seconds keeps its connection; to open another is cheap on one machine.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(10);
/// Request line and headers. A browser's cookies for this host may be some kilobytes.
pub const HTTP_HEAD_MAX: usize = 16 * 1024;

// ---- the page for a person at home (status.rs) ----

/// Devices listed, the first; a house has a dozen. The sums are over all.
pub const DEVICE_ROWS_MAX: usize = 256;
/// Characters shown of a text that a device or a pool chose: a worker's name is as long as an address with
/// a name behind it. Longer ones are cut.
pub const SHOWN_TEXT_MAX: usize = 80;
/// Characters shown of a reason: a pool's words, the node's, or ours around them, which are a sentence or two.
pub const SHOWN_REASON_MAX: usize = 300;
/// What is shown is published every second or two. Older than this, the program has come to a stand, and
/// the page says so.
pub const STATUS_AGE_MAX_S: u32 = 60;

// ---- what a pool shows for the owner (credit.rs) ----

/// How often a pool is asked: its page is made of a database, and a difference of interest takes hours.
pub const CREDIT_ASK_EVERY: Duration = Duration::from_secs(60);
/// From dialling to the last byte of its answer.
pub const CREDIT_ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Its answer, head included: our pool's thousand rows are a quarter of that.
pub const CREDIT_ANSWER_LEN_MAX: usize = 1024 * 1024;
/// Shares that may be on their way while a pool is asked, the owner's dozen a minute: within so many no
/// difference is said.
pub const CREDIT_IN_FLIGHT_SHARES: u64 = 8;
/// Parts in a hundred that a pool may show less, beside those in flight, before it is said.
pub const CREDIT_LESS_PERCENT_MAX: u64 = 2;
/// Times that a pool's number may go down and be counted from anew: an operator repairs a database once.
pub const CREDIT_WENT_DOWN_MAX: u32 = 2;
/// 2^256 has 78 digits; a longer number is none.
pub const CREDIT_DIGITS_MAX: usize = 78;

const _: () = assert!(CREDIT_ANSWER_DEADLINE.as_secs() < CREDIT_ASK_EVERY.as_secs());
