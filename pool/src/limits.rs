//! The pool's own bounds, each with its reason; those of the protocol are in proto's `limits`. Imports
//! nothing but those and job-declarator's. What happens at a bound is decided where it is met and tested there.

use std::time::Duration;

use job_declarator::limits::{IPC_CALL_DEADLINE, IPC_QUESTIONS_MAX};

// ---- credit ----

/// Batches that wait for the ledger: the eight that a connection may have open, for 16,000 connections,
/// so that none waits with a block behind its shares while the store is away. Places are made as they
/// are needed.
pub const CREDIT_QUEUE_MAX: usize = 131_072;
/// Batches that one transaction takes ...
pub const CREDIT_COMMIT_BATCHES_MAX: usize = 512;
/// ... and the shares in them at which it takes no further batch: with the last, which may have grown
/// while the ledger was behind, 36,864 shares and 2.4 MB of proofs. More would make every miner in it
/// wait longer and save nothing, and after an outage might never fit into `STORE_COMMIT_MAX`.
pub const CREDIT_COMMIT_SHARES_MAX: usize = 32_768;
/// Tips whose proofs the ledger holds in memory: the newest, the one before (devices finish a job that
/// they had), and two for a chain that reorganises. A tip beyond is loaded from the store when a share
/// asks for it, so the bound costs time and never a double credit. A key of 16 bytes stands for a
/// proof of 64 bytes on disk: what is held of a tip is bounded by the work that miners paid for it.
pub const SEEN_TIPS_MAX: usize = 4;
/// Declared jobs that the ledger knows to be in the store, 16 bytes each, twice: 250 declarators with a new
/// template every 30 s need 16 minutes for as many. One that is forgotten is written once more, to no effect.
pub const DECLARED_WRITTEN_MAX: usize = 8_192;
/// First pause after the store refused a commit, doubled at each refusal ...
pub const CREDIT_RETRY_FIRST: Duration = Duration::from_millis(50);
/// ... up to this: a store that comes back is noticed before a miner gives up (30 s and more).
pub const CREDIT_RETRY_MAX: Duration = Duration::from_secs(5);
/// Not ready when the store has refused credit for so long: shares wait unacknowledged. A restart of
/// PostgreSQL takes less.
pub const CREDIT_FAILING_MAX: Duration = Duration::from_secs(5);
/// How long a shutdown waits for a store that does not answer. What is not committed then was not
/// acknowledged either.
pub const CREDIT_SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

// ---- store ----

/// Connections to PostgreSQL of one pool node: one writes credit, the others answer the API.
pub const POSTGRES_CONNECTIONS_MAX: u32 = 6;
/// Connections that read an SQLite file while one other writes it.
pub const SQLITE_READERS_MAX: u32 = 4;
/// How long a free connection is waited for, or a lock of another process on an SQLite file.
pub const STORE_WAIT_MAX: Duration = Duration::from_secs(5);
/// A transaction on PostgreSQL that takes longer is given up and tried again on a new connection: the
/// old one may hang on a dead network for minutes.
pub const STORE_COMMIT_MAX: Duration = Duration::from_secs(30);
/// Rows in one SQLite statement of up to 12 values each, below its 32,766 parameters.
pub const SQLITE_ROWS_MAX: usize = 1_000;
/// Workers listed with their account, the most recent first; sums are over all of them.
pub const ACCOUNT_WORKERS_MAX: usize = 1_000;

// ---- connections ----

/// Handshakes that wait for a thread to compute them, 0.1 to 0.3 ms of a core each: enough that no thread
/// waits for the next one. Whoever is beyond waits for a place.
pub const HANDSHAKES_AT_ONCE: usize = 64;
/// Threads that compute handshakes, one for each core: a farm that comes back may have the whole machine
/// while nothing else wants it. With eight cores ten thousand are in within half a second.
pub const HANDSHAKE_THREADS_MAX: usize = 8;
/// Their niceness: where a share and a handshake want the same core the handshake has a tenth of it, in
/// which a core still does some 300 a second.
pub const HANDSHAKE_NICE: i32 = 10;
/// What is worth nothing (a refused share, a message that is no share) is served to one household at one in
/// so many microseconds, 2,000 a second: a farm of 2,000 devices, all of them late, sends 400 a second,
/// and a flood from one address costs a hundredth of a core ...
pub const WORTHLESS_EVERY_US: u64 = 500;
/// ... beyond so many at once: a proxy that opens its thousand channels, and one that changes them all.
pub const WORTHLESS_BURST: u32 = 4_096;
/// How often households that owe nothing are forgotten.
pub const WORTHLESS_SWEEP_MS: u64 = 1_000;
/// Between looks at a client that has sent a part of its first 64 bytes, doubled each time ...
pub const ACT_ONE_PAUSE: Duration = Duration::from_millis(20);
/// ... up to this: ten thousand that trickle are looked at as often as one flood of shares is read.
pub const ACT_ONE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A client that has not taken one byte of what it was sent for so long is gone or hostile.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(60);
/// How long a good-bye may take: the last frames are flushed and the peer's close is awaited.
pub const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Open files that are not connections: the store, keys, the node, pages, and blocks being written.
pub const FILES_RESERVED: u64 = 128;
/// Connects that the system holds until they are accepted: a farm that comes back at once.
pub const LISTEN_BACKLOG: u32 = 1_024;
/// What a connection takes to be told of a tip, on one core ...
pub const TOLD_EACH: Duration = Duration::from_micros(15);
/// ... and the most that small ones wait for the large ones to be told, seven hundred of them: a tenth of what a
/// tip takes to the last of five thousand.
pub const HEAD_START_MAX: Duration = Duration::from_millis(10);
/// How often a connection shows itself to the API.
pub const BOARD_EVERY_MS: u64 = 5_000;

// ---- job declaration ----

/// Questions to the book of tokens that wait. Each is answered in microseconds; beyond, who asks waits.
pub const TOKEN_ASKS_MAX: usize = 1_024;
/// Tips whose approved jobs have tokens: two blocks may come in one second, and on a development chain
/// more. Tokens and bytes are bounded besides.
pub const APPROVED_TIPS_KEPT: usize = 6;
/// Custom jobs that one household may set at once: 250 declarators at a new tip, twice ...
pub const CUSTOM_JOBS_BURST: u64 = 500;
/// ... and then one in so many milliseconds: 250 with a new template every 30 s set eight a second. Each
/// may become a row of some kilobytes in the store once a share is found on it.
pub const CUSTOM_JOB_EVERY_MS: u64 = 100;
/// How long a job whose miner is a tip ahead of our node is held for the node to follow: a block crosses
/// the network in a second or two, and a declarator that hears nothing for ten looks for another pool.
pub const AHEAD_WAIT_MAX: Duration = Duration::from_secs(4);
/// Refusals that a connection's row shows with their reasons, the newest.
pub const REFUSALS_SHOWN: usize = 16;
/// Tips whose custom jobs a connection remembers for its ledger: this one, and two that a batch may still
/// have shares of that waited for the store.
pub const CUSTOM_TIPS_KEPT: usize = 3;
/// Of each of these tips so many jobs, the newest: more than a connection may set in ten minutes.
pub const CUSTOM_JOBS_KEPT: usize = 512;
/// Verdicts that the server has not spoken of; it answers each at once, unless its channel is gone.
pub const CUSTOM_PENDING_MAX: usize = 32;
/// Questions to the library that wait, each with its declaration of up to half a megabyte.
pub const LIBRARY_ASKS_MAX: usize = 64;
/// Templates whose transactions the library holds: the last of the tip before and what our node showed on
/// this one, at up to 4 MB each and mostly the same transactions.
pub const LIBRARY_TEMPLATES_MAX: usize = 8;
/// Transactions that the library names, some 200 bytes each beside what they are: thirty blocks full.
pub const LIBRARY_TRANSACTIONS_MAX: usize = 200_000;
/// Lists of transactions that are told by their hash; at the bound those that nobody holds are forgotten.
pub const LIBRARY_BODIES_MAX: usize = 4_096;
/// Checks of declarations that are with the node at once, each with a whole block of up to 4 MB; a household
/// has one fewer, so that no one has all. As many as the link to the node takes, and Core takes one after
/// the other: a tenth of a second for a full block.
pub const NODE_CHECKS_MAX: usize = job_declarator::limits::RPC_CHECKS_MAX;
/// Lists of transactions on the present tip that are known to be valid; at the bound all are forgotten, and
/// the node is asked again.
pub const TAKEN_BODIES_MAX: usize = 1_024;
/// Checks at once take one core each, and where there is one core there are two turns: of these, too, a
/// household has one fewer than there are.
pub const CHECKS_MIN: usize = 2;
/// What a verdict takes the node beyond this keeps the household's turn, not that of all, ...
pub const NODE_CHECK_LONG: Duration = Duration::from_secs(1);
/// ... nine times as long again: of blocks that are long to check nobody has more than a tenth of the node's time.
pub const REST_FACTOR: u32 = 9;
/// The same where there was no verdict: the node may have been away.
pub const REST_FACTOR_UNKNOWN: u32 = 2;
/// A node that has not answered for so long does not: the declaration is refused as our fault. So is one whose
/// turn at the node has not come.
pub const NODE_CHECK_DEADLINE: Duration = Duration::from_secs(20);
/// Declarations that wait for transactions, of up to 4 MB each, from everybody: half a gigabyte if all of
/// them are sent whole blocks at once ...
pub const PROVIDING_MAX: usize = 128;
/// ... and from one household, whose uplink they would share anyway; 64 households would have to be silent
/// at once to hold up others, where four fill the port. One beyond waits for its turn to ask ...
pub const PROVIDING_PER_HOUSEHOLD_MAX: usize = 2;
/// ... for so long, and is refused then.
pub const PROVIDING_WAIT_MAX: Duration = Duration::from_secs(20);
/// What approved jobs may hold beside the transactions of our templates: from everybody, each thing once ...
pub const APPROVED_LEN_MAX: usize = 256 * 1024 * 1024;
/// ... and from one household: 40 declarators with 9 lists of 4,000 transactions of their own each, or six
/// full blocks that our node has no part of.
pub const APPROVED_LEN_PER_HOUSEHOLD_MAX: usize = 24 * 1024 * 1024;
/// Approved jobs of a connection that PushSolution is tried on, the newest first, of this tip and the last:
/// four minutes of a template every 30 s, where devices change over within seconds. Each try is two hashes
/// and a merkle path.
pub const SOLUTION_JOBS_MAX: usize = 8;
/// From the first byte of a frame to its last: 4 MB at two megabits a second are sixteen seconds.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(30);
/// A declarer that has not asked for a token by then has no business here. SRI's asks at once.
pub const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(60);
/// Verdicts on declarations that the API shows, the newest.
pub const VERDICTS_SHOWN: usize = 200;
/// Declarers listed by /api/v1/declared, by id.
pub const DECLARER_ROWS_MAX: usize = 1_000;
/// Declared jobs listed there, the newest.
pub const DECLARED_ROWS_MAX: usize = 100;
/// Fees that declared jobs are measured by are the most that our templates of the tip had in this time, so
/// that a node which is a moment behind punishes nobody.
pub const REFERENCE_FEES_SPAN: Duration = Duration::from_secs(60);
/// Templates within that time that are told apart; Core shows two a minute, a chain under test more. At the
/// bound the fees of the oldest count as those of the next.
pub const REFERENCE_TEMPLATES_MAX: usize = 64;

// ---- node and blocks ----

/// First pause after a node did not answer, doubled each time ...
pub const NODE_RETRY_FIRST: Duration = Duration::from_millis(250);
/// ... up to this: a node that comes back is mined on again within seconds.
pub const NODE_RETRY_MAX: Duration = Duration::from_secs(5);
/// While the pool waits for a node at start it says so this often.
pub const NODE_WAIT_SAID_EVERY: Duration = Duration::from_secs(60);
/// Complaints about clients that cannot get in: one line in this time, however many knock.
pub const COMPLAIN_EVERY_MS: u64 = 10_000;
/// A node that has nothing new is asked whether it lives this often; the API calls the pool not ready
/// after a minute of silence.
pub const NODE_SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(20);
/// New blocks that are offered to nodes at once, and as many again that only their miners can send and that
/// are looked for. Mainnet never has two; a development chain under a fast device may have many while its
/// node is away, and one beyond waits on disk.
pub const BLOCKS_UNDER_WAY_MAX: usize = 64;
/// Blocks from the disk that are offered at once, beside the new ones: of an earlier run, or beyond the
/// number above. Each is up to 4 MB in memory, and a node takes one after the other anyway.
pub const WAITING_BLOCKS_AT_ONCE: usize = 4;
/// Found blocks that wait on disk for their turn, as file names; one beyond is left to the next start.
pub const BLOCKS_WAITING_MAX: usize = 65_536;
/// Blocks that are told by their hash, so that the same one by two routes is kept once. Those routes are
/// seconds apart; a development chain may have many blocks in one.
pub const BLOCKS_REMEMBERED: usize = 256;
/// How often a node is asked for the block that a miner keeps to himself, a quarter of a second and then up
/// to five apart: ten minutes, when another stands in its place.
pub const THEIR_BLOCK_LOOKS_MAX: usize = 120;
/// Settled blocks kept as files. The chain and the store have them; the files are for a closer look.
pub const SETTLED_BLOCKS_KEPT: usize = 1_000;

// ---- pages ----

/// Rows on their way to the board. With one row a connection every 5 s, 4,096 are two seconds of ten
/// thousand connections; each is a pointer. At the bound a row is dropped and counted.
pub const BOARD_QUEUE_MAX: usize = 4_096;
/// Pages that read the store at once, the others wait: half of what reads an SQLite file, so that the
/// ledger and a health check always find a connection.
pub const STORE_PAGES_MAX: usize = 2;
/// Connections listed by /api/v1/channels ...
pub const CONNECTION_ROWS_MAX: usize = 1_000;
/// ... and channels of all those, at some 700 bytes each: a page is a megabyte or two. Two of the largest
/// connections fit. The totals there and of /api/v1/pool are over all.
pub const CHANNEL_ROWS_MAX: usize = 2_048;
/// Blocks listed, the newest first.
pub const BLOCK_ROWS_MAX: usize = 100;
/// Workers listed, the most recent first.
pub const WORKER_ROWS_MAX: usize = 1_000;
/// Not ready when the node's last good answer is older: its work may be of the past.
pub const NODE_SILENCE_MAX: Duration = Duration::from_secs(60);

// ---- the demo's miner ----

/// Shares of the built-in miner that wait to be sent. A full queue stops its threads, never its link.
pub const CPU_MINER_FOUND_MAX: usize = 64;

const _: () = assert!(WORTHLESS_BURST as usize > 2 * proto::limits::CHANNELS_PER_CONNECTION_MAX);
// A check that Core does not answer over IPC has time to be asked over RPC, and none is sent there for want
// of a place.
const _: () = assert!(IPC_CALL_DEADLINE.as_secs() * 2 < NODE_CHECK_DEADLINE.as_secs());
const _: () = assert!(NODE_CHECKS_MAX <= IPC_QUESTIONS_MAX);
const _: () = assert!(CREDIT_COMMIT_BATCHES_MAX <= CREDIT_QUEUE_MAX);
const _: () = assert!(SQLITE_ROWS_MAX * 12 <= 32_766);
const _: () = assert!(STORE_PAGES_MAX < SQLITE_READERS_MAX as usize);
const _: () = assert!(CHANNEL_ROWS_MAX >= proto::limits::CHANNELS_PER_CONNECTION_MAX);
