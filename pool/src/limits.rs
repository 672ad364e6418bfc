//! The pool's own bounds, each with its reason; those of the protocol are in proto's `limits`. Imports
//! nothing but those. What happens at a bound is decided where it is met and tested there.

use std::time::Duration;

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

/// Handshakes at once: 0.1 ms of one core each, so a storm of ten thousand takes a second and shares
/// go on in between.
pub const HANDSHAKES_AT_ONCE: usize = 64;
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
/// Pause after a failed accept (out of file descriptors): others end in the meantime.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a connection shows itself to the API.
pub const BOARD_EVERY_MS: u64 = 5_000;

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
/// New blocks that are offered to nodes at once. Mainnet never has two; a development chain under a fast
/// device may have many while its node is away, and one beyond waits on disk.
pub const BLOCKS_UNDER_WAY_MAX: usize = 64;
/// Blocks from the disk that are offered at once, beside the new ones: of an earlier run, or beyond the
/// number above. Each is up to 4 MB in memory, and a node takes one after the other anyway.
pub const WAITING_BLOCKS_AT_ONCE: usize = 4;
/// Found blocks that wait on disk for their turn, as file names; one beyond is left to the next start.
pub const BLOCKS_WAITING_MAX: usize = 65_536;
/// Settled blocks kept as files. The chain and the store have them; the files are for a closer look.
pub const SETTLED_BLOCKS_KEPT: usize = 1_000;

// ---- pages and keys ----

/// Rows on their way to the board. With one row a connection every 5 s, 4,096 are two seconds of ten
/// thousand connections; each is a pointer. At the bound a row is dropped and counted.
pub const BOARD_QUEUE_MAX: usize = 4_096;
/// A page that takes longer is given up: the pool's own work goes first.
pub const PAGE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pages being made at once. A dashboard asks for four, Prometheus for one; beyond it is "busy". Health
/// is not counted: whoever restarts us must not be told of a busy dashboard.
pub const PAGES_MAX: usize = 16;
/// Pages that read the store at once, the others wait: half of what reads an SQLite file, so that the
/// ledger and a health check always find a connection.
pub const STORE_PAGES_MAX: usize = 2;
/// HTTP connections at once: a dozen browsers with four each, and Prometheus. One more closes the one that
/// is open the longest, so that idle ones never keep a health check out.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// From the connect, or from the end of a page, to the end of the next request's head. A dashboard that
/// looks every few seconds keeps its connection; to open another is cheap on one machine.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(10);
/// Request line and headers. A browser's cookies for this host may be some kilobytes.
pub const HTTP_HEAD_MAX: usize = 16 * 1024;
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
/// An identity is some 500 bytes; a key file beyond this is not one.
pub const KEY_FILE_MAX: u64 = 16 * 1024;
/// Coinbase text: with the height, the push opcodes and the extranonce it must stay under the 100
/// bytes that consensus allows a coinbase script; 40 leave room for what later versions add.
pub const TAG_MAX: usize = 40;

// ---- the demo's miner ----

/// Shares of the built-in miner that wait to be sent. A full queue stops its threads, never its link.
pub const CPU_MINER_FOUND_MAX: usize = 64;

const _: () = assert!(CREDIT_COMMIT_BATCHES_MAX <= CREDIT_QUEUE_MAX);
const _: () = assert!(SQLITE_ROWS_MAX * 12 <= 32_766);
const _: () = assert!(STORE_PAGES_MAX < SQLITE_READERS_MAX as usize);
const _: () = assert!(CHANNEL_ROWS_MAX >= proto::limits::CHANNELS_PER_CONNECTION_MAX);
