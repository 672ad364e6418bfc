//! What lasts: credited shares, counters, found blocks, starts. The only file with SQL. Called by
//! `credit` (which alone appends shares), by `block`, by `run` at start and by the API.
//!
//! Two databases, one behaviour (the suite in `tests/store.rs` runs against both): SQLite in a file
//! beside the pool, PostgreSQL by URL for several pool nodes. Everything is exact: work is a `U256`
//! and travels as decimal text. When `append` returns `Ok`, its shares survive a power cut.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use proto::mining::{CreditGroup, DeclaredId, Worth};
use proto::share::Proof;
use proto::target::Target;
use ruint::aliases::U256;
use serde::{Deserialize, Serialize};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    ConnectOptions, Connection, PgConnection, QueryBuilder, Row, SqlSafeStr, Sqlite,
    SqliteConnection, SqlitePool,
};
use thiserror::Error;

use crate::hexed;
use crate::limits::{
    ACCOUNT_WORKERS_MAX, POSTGRES_CONNECTIONS_MAX, SQLITE_READERS_MAX, SQLITE_ROWS_MAX,
    STORE_COMMIT_MAX, STORE_WAIT_MAX,
};

/// Version, what it makes, for SQLite, for PostgreSQL: one list, so that neither can lack a step.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "share",
        include_str!("../../migrations/sqlite/0001_share.sql"),
        include_str!("../../migrations/postgres/0001_share.sql"),
    ),
    (
        2,
        "node",
        include_str!("../../migrations/sqlite/0002_node.sql"),
        include_str!("../../migrations/postgres/0002_node.sql"),
    ),
    (
        3,
        "block",
        include_str!("../../migrations/sqlite/0003_block.sql"),
        include_str!("../../migrations/postgres/0003_block.sql"),
    ),
    (
        4,
        "declared",
        include_str!("../../migrations/sqlite/0004_declared.sql"),
        include_str!("../../migrations/postgres/0004_declared.sql"),
    ),
];

/// The store did not do what was asked: our failure, never a miner's.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database refused, or could not be reached.
    #[error("{doing}: {cause}")]
    Database {
        /// What was being done.
        doing: Cow<'static, str>,
        /// What the driver said.
        cause: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("migrating the store: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The file or its folder could not be made.
    #[error("making {path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// Not a place where credit lasts. Never repeats the URL, which may hold a password.
    #[error("the store's address: {0}")]
    Url(&'static str),
    /// What was read cannot have been written by us.
    #[error("the store holds {0}")]
    Corrupt(String),
    /// `set_block_state` for a block that was never recorded.
    #[error("block {0} is not in the store")]
    NoSuchBlock(String),
    /// A commit on PostgreSQL took longer than `STORE_COMMIT_MAX`.
    #[error("{0}: no answer in time")]
    Timeout(Cow<'static, str>),
}

/// Names one transaction of shares for ever, so that it can be tried again without counting twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommitId(pub [u8; 16]);

/// Accepted shares of one owner on one job, on their way to disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareBatch {
    /// When they came, Unix milliseconds. The same at every attempt.
    pub received_at_ms: u64,
    /// Whose, on what, and the proofs.
    pub group: CreditGroup,
    /// The job that `group.worth` names, if it is a declared one: its row is written with its first
    /// shares.
    pub declared: Option<Arc<DeclaredRecord>>,
}

/// How much a miner tells of his job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclareMode {
    /// Every transaction.
    FullTemplate,
    /// The coinbase and its merkle path.
    CoinbaseOnly,
}

impl DeclareMode {
    const ALL: [Self; 2] = [Self::FullTemplate, Self::CoinbaseOnly];

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FullTemplate => "full-template",
            Self::CoinbaseOnly => "coinbase-only",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let known = Self::ALL.into_iter().find(|mode| mode.as_str() == text);
        known.ok_or_else(|| StoreError::Corrupt(format!("a declared job in mode {text:?}")))
    }
}

/// A job that a miner declared, as far as it lasts: what the headers of its shares are computed from, what
/// it claims and pays, and what its work is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredRecord {
    /// Names it for ever.
    #[serde(with = "hexed::id")]
    pub id: DeclaredId,
    /// The pool process that approved it.
    pub node: u16,
    /// Unix milliseconds of its approval.
    pub declared_at_ms: u64,
    /// Who declared it.
    pub account: String,
    /// What was told of it.
    pub mode: DeclareMode,
    /// Of the block that it would be.
    pub height: u32,
    /// The tip that it builds on, header byte order.
    #[serde(with = "hexed")]
    pub prev_hash: [u8; 32],
    /// Compact target of that block.
    pub nbits: u32,
    /// Header version before rolling.
    pub version: u32,
    /// Coinbase up to the extranonce, txid form.
    #[serde(with = "hexed")]
    pub coinbase_prefix: Vec<u8>,
    /// Coinbase behind the extranonce, txid form.
    #[serde(with = "hexed")]
    pub coinbase_suffix: Vec<u8>,
    /// Siblings of the coinbase, deepest first.
    #[serde(with = "hexed::list")]
    pub merkle_path: Vec<[u8; 32]>,
    /// Without the coinbase; `None` in coinbase-only mode.
    pub transactions: Option<u32>,
    /// Sum of all its outputs.
    pub value_sats: u64,
    /// Of these what goes to the pool's script.
    pub pool_sats: u64,
    /// What it claims above the subsidy.
    pub fees_sats: u64,
    /// Fees of the pool's own best template of the same tip, in the minute before.
    pub reference_fees_sats: u64,
    /// Credit for a million hashes.
    pub factor_ppm: u32,
}

/// A declared job and what was credited on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredTotals {
    /// The job.
    pub job: DeclaredRecord,
    /// Credited on it.
    pub shares: u64,
}

/// By which way a block reached the network first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// The share that made it; the only way for blocks of the pool's own jobs.
    Share,
    /// The declarer's PushSolution.
    Solution,
    /// The miner's own node: ours knew it before anybody told us.
    Miner,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Share, Self::Solution, Self::Miner];

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Solution => "solution",
            Self::Miner => "miner",
        }
    }

    /// From what `as_str` gives.
    ///
    /// # Errors
    /// `Corrupt`: it is none of them.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let known = Self::ALL.into_iter().find(|route| route.as_str() == text);
        known.ok_or_else(|| StoreError::Corrupt(format!("a block by way of {text:?}")))
    }
}

/// What `append` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Written now.
    New,
    /// An earlier attempt with this id was committed after all; nothing was changed.
    AlreadyThere,
}

/// Where a found block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockState {
    /// On disk, no node has answered yet.
    Found,
    /// A node took it as its tip or already knew it.
    Accepted,
    /// Valid, but another block has its place.
    Stale,
    /// Every node refused it.
    Rejected,
    /// Deep enough to spend.
    Confirmed,
}

impl BlockState {
    const ALL: [Self; 5] =
        [Self::Found, Self::Accepted, Self::Stale, Self::Rejected, Self::Confirmed];

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Accepted => "accepted",
            Self::Stale => "stale",
            Self::Rejected => "rejected",
            Self::Confirmed => "confirmed",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| StoreError::Corrupt(format!("a block in state {text:?}")))
    }
}

/// A block that a share of ours made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Header byte order.
    #[serde(with = "hexed")]
    pub hash: [u8; 32],
    /// Height of this block.
    pub height: u32,
    /// The block before, header byte order.
    #[serde(with = "hexed")]
    pub prev_hash: [u8; 32],
    /// Unix milliseconds.
    pub found_at_ms: u64,
    /// Who found it.
    pub account: String,
    /// With which device.
    pub worker: String,
    /// The template's coinbase value: subsidy and fees.
    pub value_sats: u64,
    /// Compact network target that it met.
    pub nbits: u32,
    /// Where it stands.
    pub state: BlockState,
    /// What a node said of it, for people; may be empty.
    pub detail: String,
    /// By which way it came first, as far as that is known yet.
    pub route: Route,
    /// The declared job that it was found on; `None` for one of the pool's own.
    #[serde(with = "hexed::some_id")]
    pub declared: Option<DeclaredId>,
}

impl BlockRecord {
    /// For people: the network difficulty that it met.
    #[must_use]
    pub fn difficulty_for_display(&self) -> f64 {
        Target::from_compact(self.nbits).difficulty_for_display()
    }
}

/// The pool since its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Credited.
    pub shares: u64,
    /// Expected hashes behind them.
    pub work: U256,
    /// What of that was credited: less where a declared job pays less than the pool's own.
    pub credit: U256,
    /// Accounts with at least one share.
    pub accounts: u64,
    /// Workers with at least one share.
    pub workers: u64,
    /// In any state.
    pub blocks_found: u64,
    /// Accepted or confirmed.
    pub blocks_accepted: u64,
}

/// One worker since its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Its account.
    pub account: String,
    /// Its name there; may be empty.
    pub worker: String,
    /// Credited.
    pub shares: u64,
    /// Expected hashes behind them.
    pub work: U256,
    /// What of that was credited.
    pub credit: U256,
    /// Unix milliseconds.
    pub last_share_at_ms: u64,
    /// Lowest header hash of its shares, header byte order.
    pub best_hash: [u8; 32],
}

/// One account since its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTotals {
    /// Credited, all workers.
    pub shares: u64,
    /// Expected hashes behind them.
    pub work: U256,
    /// What of that was credited.
    pub credit: U256,
    /// Unix milliseconds.
    pub last_share_at_ms: u64,
    /// Lowest header hash, header byte order.
    pub best_hash: [u8; 32],
    /// The most recent first, at most `ACCOUNT_WORKERS_MAX`.
    pub workers: Vec<WorkerTotals>,
}

/// The store. A clone is the same store.
#[derive(Debug, Clone)]
pub struct Store(Database);

#[derive(Debug, Clone)]
enum Database {
    Sqlite(SqliteFile),
    Postgres(PgPool),
}

/// One connection writes, so that a writer waits for a connection and never meets a lock.
#[derive(Debug, Clone)]
struct SqliteFile {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// The same statement on either database, with the pool that reads (or, second form, that writes).
macro_rules! on_either {
    ($store:expr, read $pool:ident => $body:expr) => {
        match &$store.0 {
            Database::Sqlite(SqliteFile { readers: $pool, .. }) => $body,
            Database::Postgres($pool) => $body,
        }
    };
    ($store:expr, write $pool:ident => $body:expr) => {
        match &$store.0 {
            Database::Sqlite(SqliteFile { writer: $pool, .. }) => $body,
            Database::Postgres($pool) => $body,
        }
    };
}

/// The row of a declared job, on either database.
macro_rules! insert_declared {
    ($connection:expr, $job:expr) => {{
        let job: &DeclaredRecord = $job;
        sqlx::query(
            "INSERT INTO declared_job (id, node, declared_at_ms, account, mode, height, prev_hash,
                 nbits, version, coinbase_prefix, coinbase_suffix, merkle_path, transactions,
                 value_sats, pool_sats, fees_sats, reference_fees_sats, factor_ppm)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(job.id.0.to_vec())
        .bind(i64::from(job.node))
        .bind(signed(job.declared_at_ms))
        .bind(text(&job.account).into_owned())
        .bind(job.mode.as_str())
        .bind(i64::from(job.height))
        .bind(job.prev_hash.to_vec())
        .bind(i64::from(job.nbits))
        .bind(i64::from(job.version))
        .bind(job.coinbase_prefix.clone())
        .bind(job.coinbase_suffix.clone())
        .bind(job.merkle_path.concat())
        .bind(job.transactions.map(i64::from))
        .bind(signed(job.value_sats))
        .bind(signed(job.pool_sats))
        .bind(signed(job.fees_sats))
        .bind(signed(job.reference_fees_sats))
        .bind(i64::from(job.factor_ppm))
        .execute($connection)
    }};
}

/// A row of `declared_jobs`, on either database.
macro_rules! declared_totals {
    ($row:expr) => {{
        let get_failed = || failed("reading declared jobs");
        let number = |column: &str| $row.try_get::<i64, _>(column).map_err(get_failed());
        let bytes = |column: &str| $row.try_get::<Vec<u8>, _>(column).map_err(get_failed());
        let words = |column: &str| $row.try_get::<String, _>(column).map_err(get_failed());
        let transactions: Option<i64> = $row.try_get("transactions").map_err(get_failed())?;
        Ok(DeclaredTotals {
            job: DeclaredRecord {
                id: declared_id(bytes("id")?)?,
                node: node_number(number("node")?)?,
                declared_at_ms: unsigned(number("declared_at_ms")?)?,
                account: words("account")?,
                mode: DeclareMode::parse(&words("mode")?)?,
                height: narrow(number("height")?)?,
                prev_hash: hash(bytes("prev_hash")?)?,
                nbits: narrow(number("nbits")?)?,
                version: narrow(number("version")?)?,
                coinbase_prefix: bytes("coinbase_prefix")?,
                coinbase_suffix: bytes("coinbase_suffix")?,
                merkle_path: bytes("merkle_path")?.as_chunks().0.to_vec(),
                transactions: transactions.map(narrow).transpose()?,
                value_sats: unsigned(number("value_sats")?)?,
                pool_sats: unsigned(number("pool_sats")?)?,
                fees_sats: unsigned(number("fees_sats")?)?,
                reference_fees_sats: unsigned(number("reference_fees_sats")?)?,
                factor_ppm: narrow(number("factor_ppm")?)?,
            },
            shares: unsigned(number("shares")?)?,
        })
    }};
}

impl Store {
    /// Opens the store and brings its schema up to date. `url` is `postgres://...`, `sqlite:PATH` or a
    /// plain path; a file that is not there is made (mode 0600, its folder 0700).
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self(Database::Postgres(open_postgres(url).await?)));
        }
        let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
        let path = path.unwrap_or(url);
        if path.contains("://") {
            return Err(StoreError::Url("neither postgres:// nor sqlite: nor a path"));
        }
        if path.is_empty() || path.contains(":memory:") {
            return Err(StoreError::Url("credit must last, so a file is needed"));
        }
        Ok(Self(Database::Sqlite(open_sqlite(Path::new(path)).await?)))
    }

    /// Counts a start of this node and returns its number, modulo 2^16: never the same twice in a row,
    /// the same again after 65,536 starts (with one start a minute: 45 days, when no block found then
    /// can still be mined).
    pub async fn begin_epoch(&self, node: u16) -> Result<u16, StoreError> {
        let sql = "INSERT INTO node_start (node, starts) VALUES ($1, 1)
             ON CONFLICT (node) DO UPDATE SET starts = node_start.starts + 1 RETURNING starts";
        let starts: i64 = on_either!(self, write pool => {
            sqlx::query_scalar(sql).bind(i64::from(node)).fetch_one(pool).await
        })
        .map_err(failed("counting a start"))?;
        // The low sixteen bits are what is meant.
        Ok((starts & 0xffff) as u16)
    }

    /// Writes all of it or nothing, in one transaction, and adds it to the counters. With an id that
    /// was committed before it changes nothing: after a failure whose outcome is unknown, call it again
    /// with the same arguments.
    pub async fn append(
        &self,
        node: u16,
        commit: CommitId,
        batches: &[ShareBatch],
    ) -> Result<Appended, StoreError> {
        let rows = Rows::of(batches)?;
        let doing = || format!("writing {} share batches", batches.len());
        match &self.0 {
            Database::Sqlite(file) => {
                let mut writer = file.writer.acquire().await.map_err(failed(doing()))?;
                let written = append_sqlite(&mut writer, node, commit, &rows).await;
                if written.is_err() {
                    // A full disk makes SQLite roll back by itself, and the connection would believe
                    // for ever that its transaction is open.
                    writer.close_on_drop();
                }
                written
            }
            Database::Postgres(pool) => {
                let mut connection = pool.acquire().await.map_err(failed(doing()))?;
                let write = append_postgres(&mut connection, node, commit, &rows);
                let written = tokio::time::timeout(STORE_COMMIT_MAX, write).await;
                let written = written.unwrap_or_else(|_| Err(StoreError::Timeout(doing().into())));
                if written.is_err() {
                    // In what state it is nobody knows; the next attempt gets another.
                    connection.close_on_drop();
                }
                written
            }
        }
    }

    /// Header hashes of every share credited under a tip, in no order.
    pub async fn proofs_of(&self, prev_hash: [u8; 32]) -> Result<Vec<[u8; 32]>, StoreError> {
        let sql = "SELECT proofs FROM share_batch WHERE prev_hash = $1";
        let blobs: Vec<Vec<u8>> = on_either!(self, read pool => {
            sqlx::query_scalar(sql).bind(prev_hash.to_vec()).fetch_all(pool).await
        })
        .map_err(failed("reading the proofs of a tip"))?;

        let mut hashes = Vec::new();
        for blob in &blobs {
            let (proofs, rest) = blob.as_chunks::<{ Proof::LEN }>();
            if !rest.is_empty() {
                return Err(StoreError::Corrupt(format!("{} bytes of proofs", blob.len())));
            }
            hashes.extend(proofs.iter().map(|bytes| Proof::unpack(bytes).hash));
        }
        Ok(hashes)
    }

    /// Tips under which shares were credited, the newest first.
    pub async fn recent_prev_hashes(&self, limit: usize) -> Result<Vec<[u8; 32]>, StoreError> {
        let sql = "SELECT prev_hash FROM tip ORDER BY first_seen_ms DESC, prev_hash LIMIT $1";
        let rows: Vec<Vec<u8>> = on_either!(self, read pool => {
            sqlx::query_scalar(sql).bind(signed(limit as u64)).fetch_all(pool).await
        })
        .map_err(failed("reading the newest tips"))?;
        rows.into_iter().map(hash).collect()
    }

    /// Writes down a found block. One that is there already stays as it is: at start, blocks on disk
    /// are recorded again.
    pub async fn record_block(&self, block: &BlockRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO block (hash, height, prev_hash, found_at_ms, account, worker,
                 value_sats, nbits, state, detail, route, declared_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (hash) DO NOTHING";
        on_either!(self, write pool => {
            sqlx::query(sql)
                .bind(block.hash.to_vec())
                .bind(i64::from(block.height))
                .bind(block.prev_hash.to_vec())
                .bind(signed(block.found_at_ms))
                .bind(text(&block.account))
                .bind(text(&block.worker))
                .bind(signed(block.value_sats))
                .bind(i64::from(block.nbits))
                .bind(block.state.as_str())
                .bind(text(&block.detail))
                .bind(block.route.as_str())
                .bind(block.declared.map(|id| id.0.to_vec()))
                .execute(pool)
                .await
                .map(|_| ())
        })
        .map_err(failed("recording a found block"))
    }

    /// Says what became of a block and by which way it came first, and in `detail` what a node said of it.
    pub async fn set_block_state(
        &self,
        hash: [u8; 32],
        state: BlockState,
        route: Route,
        detail: &str,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE block SET state = $2, detail = $3, route = $4 WHERE hash = $1";
        let changed = on_either!(self, write pool => {
            sqlx::query(sql)
                .bind(hash.to_vec())
                .bind(state.as_str())
                .bind(text(detail))
                .bind(route.as_str())
                .execute(pool)
                .await
                .map(|done| done.rows_affected())
        })
        .map_err(failed("writing a block's state"))?;
        if changed == 0 {
            let people_read: Vec<u8> = hash.iter().rev().copied().collect();
            return Err(StoreError::NoSuchBlock(hex::encode(people_read)));
        }
        Ok(())
    }

    /// Found blocks, the newest first.
    pub async fn blocks(&self, limit: usize) -> Result<Vec<BlockRecord>, StoreError> {
        let sql = "SELECT hash, height, prev_hash, found_at_ms, account, worker, value_sats, nbits,
                 state, detail, route, declared_id
             FROM block ORDER BY found_at_ms DESC, hash LIMIT $1";
        let rows: Vec<BlockRow> = on_either!(self, read pool => {
            sqlx::query_as(sql).bind(signed(limit as u64)).fetch_all(pool).await
        })
        .map_err(failed("reading blocks"))?;
        rows.into_iter().map(block_record).collect()
    }

    /// Blocks that nodes took, by the way they came first, as `Route::ALL` lists them: all of them, and of
    /// these those found on declared jobs.
    pub async fn blocks_by_route(&self) -> Result<[(Route, u64, u64); 3], StoreError> {
        let sql = "SELECT route, COUNT(*), COUNT(declared_id) FROM block
             WHERE state IN ('accepted', 'confirmed') GROUP BY route";
        let rows: Vec<(String, i64, i64)> = on_either!(self, read pool => {
            sqlx::query_as(sql).fetch_all(pool).await
        })
        .map_err(failed("counting blocks by route"))?;
        let mut counts = Route::ALL.map(|route| (route, 0, 0));
        for (route, all, declared) in rows {
            let route = Route::parse(&route)?;
            for count in counts.iter_mut().filter(|count| count.0 == route) {
                *count = (route, unsigned(all)?, unsigned(declared)?);
            }
        }
        Ok(counts)
    }

    /// Writes down a declared job that a block was found on. One that is there already stays as it is.
    pub async fn record_declared(&self, job: &DeclaredRecord) -> Result<(), StoreError> {
        on_either!(self, write pool => insert_declared!(pool, job).await.map(|_| ()))
            .map_err(failed("recording a declared job"))
    }

    /// Declared jobs that were mined, the newest first.
    pub async fn declared_jobs(&self, limit: usize) -> Result<Vec<DeclaredTotals>, StoreError> {
        let sql =
            "SELECT id, node, declared_at_ms, account, mode, height, prev_hash, nbits, version,
                 transactions, value_sats, pool_sats, fees_sats, reference_fees_sats, factor_ppm,
                 coinbase_prefix, coinbase_suffix, merkle_path,
                 CAST((SELECT COALESCE(SUM(shares), 0) FROM share_batch
                     WHERE declared_id = declared_job.id) AS BIGINT) AS shares
             FROM declared_job ORDER BY declared_at_ms DESC, id LIMIT $1";
        on_either!(self, read pool => {
            let rows = sqlx::query(sql).bind(signed(limit as u64)).fetch_all(pool).await;
            let rows = rows.map_err(failed("reading declared jobs"))?;
            rows.iter().map(|row| declared_totals!(row)).collect()
        })
    }

    /// The pool since its beginning.
    pub async fn totals(&self) -> Result<Totals, StoreError> {
        let mut totals = match &self.0 {
            Database::Sqlite(file) => shares_total_sqlite(&file.readers).await?,
            Database::Postgres(pool) => shares_total_postgres(pool).await?,
        };
        let sql = "SELECT COUNT(*), COUNT(CASE WHEN state IN ('accepted', 'confirmed') THEN 1 END)
             FROM block";
        let blocks: (i64, i64) = on_either!(self, read pool => {
            sqlx::query_as(sql).fetch_one(pool).await
        })
        .map_err(failed("counting blocks"))?;
        totals.blocks_found = unsigned(blocks.0)?;
        totals.blocks_accepted = unsigned(blocks.1)?;
        Ok(totals)
    }

    /// Workers of all accounts, the most recent first.
    pub async fn workers(&self, limit: usize) -> Result<Vec<WorkerTotals>, StoreError> {
        let sql = "SELECT account, worker, shares, CAST(work AS TEXT), CAST(credit AS TEXT),
                 last_share_at_ms, best_hash
             FROM worker_total ORDER BY last_share_at_ms DESC, account, worker LIMIT $1";
        let rows: Vec<WorkerRow> = on_either!(self, read pool => {
            sqlx::query_as(sql).bind(signed(limit as u64)).fetch_all(pool).await
        })
        .map_err(failed("reading workers"))?;
        rows.into_iter().map(worker_totals).collect()
    }

    /// One account. `None` if it never had a share credited.
    pub async fn account(&self, name: &str) -> Result<Option<AccountTotals>, StoreError> {
        let sql = "SELECT account, worker, shares, CAST(work AS TEXT), CAST(credit AS TEXT),
                 last_share_at_ms, best_hash
             FROM worker_total WHERE account = $1 ORDER BY last_share_at_ms DESC, worker";
        let rows: Vec<WorkerRow> = on_either!(self, read pool => {
            sqlx::query_as(sql).bind(text(name)).fetch_all(pool).await
        })
        .map_err(failed("reading an account"))?;

        let workers = rows.into_iter().map(worker_totals).collect::<Result<Vec<_>, _>>()?;
        let Some(latest) = workers.first() else { return Ok(None) };
        let mut account = AccountTotals {
            shares: 0,
            work: U256::ZERO,
            credit: U256::ZERO,
            last_share_at_ms: latest.last_share_at_ms,
            best_hash: latest.best_hash,
            workers: Vec::new(),
        };
        for worker in &workers {
            account.shares += worker.shares;
            account.work = sum(account.work, worker.work)?;
            account.credit = sum(account.credit, worker.credit)?;
            account.best_hash = better(account.best_hash, worker.best_hash);
        }
        account.workers = workers;
        account.workers.truncate(ACCOUNT_WORKERS_MAX);
        Ok(Some(account))
    }

    /// Whether the database answers at all.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on_either!(self, read pool => sqlx::query("SELECT 1").execute(pool).await.map(|_| ()))
            .map_err(failed("asking the store for a sign of life"))
    }

    /// Waits until every connection is closed. Optional: what was acknowledged is on disk without it.
    pub async fn close(&self) {
        match &self.0 {
            Database::Sqlite(file) => {
                file.readers.close().await;
                file.writer.close().await;
            }
            Database::Postgres(pool) => pool.close().await,
        }
    }
}

async fn open_sqlite(path: &Path) -> Result<SqliteFile, StoreError> {
    make_private_file(path)
        .map_err(|cause| StoreError::File { path: path.to_path_buf(), cause })?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(STORE_WAIT_MAX)
        .disable_statement_logging();
    // FULL: a commit returns when the disk has it. NORMAL would lose the last ones at a power cut.
    let writing =
        options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(STORE_WAIT_MAX)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(writing)
        .await
        .map_err(failed("opening the SQLite file"))?;
    migrator(|&(_, _, sqlite, _)| sqlite).run(&writer).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(SQLITE_READERS_MAX)
        .acquire_timeout(STORE_WAIT_MAX)
        .connect_with(options.read_only(true))
        .await
        .map_err(failed("opening the SQLite file to read"))?;
    Ok(SqliteFile { writer, readers })
}

/// SQLite gives its log beside the file the same mode. The folder is synced so that the new name is
/// as durable as what will stand in the file.
fn make_private_file(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut make_folder = std::fs::DirBuilder::new();
    make_folder.recursive(true);
    let mut make_file = std::fs::OpenOptions::new();
    make_file.create(true).append(true);
    #[cfg(unix)]
    {
        std::os::unix::fs::DirBuilderExt::mode(&mut make_folder, 0o700);
        std::os::unix::fs::OpenOptionsExt::mode(&mut make_file, 0o600);
    }
    make_folder.create(folder)?;
    make_file.open(path)?.sync_all()?;
    #[cfg(unix)]
    std::fs::File::open(folder)?.sync_all()?;
    Ok(())
}

async fn open_postgres(url: &str) -> Result<PgPool, StoreError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Url("not a PostgreSQL URL"))?
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS_MAX)
        .acquire_timeout(STORE_WAIT_MAX)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A server may be set not to wait for its disk; our acknowledgements must. Stronger
                // settings (waiting for replicas) stay.
                sqlx::query(
                    "SELECT set_config('synchronous_commit', 'on', false)
                     WHERE current_setting('synchronous_commit') = 'off'",
                )
                .execute(connection)
                .await
                .map(|_| ())
            })
        })
        .connect_with(options)
        .await
        .map_err(failed("connecting to PostgreSQL"))?;
    let encoding: String = sqlx::query_scalar("SHOW server_encoding")
        .fetch_one(&pool)
        .await
        .map_err(failed("asking PostgreSQL for its encoding"))?;
    if encoding != "UTF8" {
        // One worker's name that the server cannot write would hold up everybody's credit.
        return Err(StoreError::Url("the PostgreSQL database must have encoding UTF8"));
    }
    migrator(|&(_, _, _, postgres)| postgres).run(&pool).await?;
    Ok(pool)
}

fn migrator(sql: fn(&(i64, &str, &'static str, &'static str)) -> &'static str) -> Migrator {
    let migration = |one: &'static (i64, &str, &str, &str)| {
        let sql = sql(one).into_sql_str();
        Migration::new(one.0, one.1.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

// ---- appending ----

/// What a transaction writes, computed before it begins.
struct Rows<'a> {
    shares: Vec<ShareRow<'a>>,
    /// Tips with the first time they were seen.
    tips: BTreeMap<[u8; 32], u64>,
    /// By account and worker: two nodes that update the same rows take them in the same order, so
    /// neither waits for the other for ever.
    workers: BTreeMap<(Cow<'a, str>, Cow<'a, str>), Counters>,
    /// Declared jobs that shares were made on.
    declared: BTreeMap<[u8; 16], &'a DeclaredRecord>,
}

struct ShareRow<'a> {
    batch: &'a ShareBatch,
    work: U256,
    proofs: Vec<u8>,
}

struct Counters {
    shares: u64,
    work: U256,
    credit: U256,
    last_share_at_ms: u64,
    best_hash: [u8; 32],
}

impl<'a> Rows<'a> {
    fn of(batches: &'a [ShareBatch]) -> Result<Self, StoreError> {
        let mut rows = Self {
            shares: Vec::new(),
            tips: BTreeMap::new(),
            workers: BTreeMap::new(),
            declared: BTreeMap::new(),
        };
        for batch in batches.iter().filter(|batch| !batch.group.proofs.is_empty()) {
            rows.add(batch)?;
        }
        Ok(rows)
    }

    fn add(&mut self, batch: &'a ShareBatch) -> Result<(), StoreError> {
        let group = &batch.group;
        let mut work = U256::ZERO;
        let mut best_hash = [0xff; 32];
        for proof in &group.proofs {
            work = sum(work, proof.difficulty.target().work())?;
            best_hash = better(best_hash, proof.hash);
        }
        let proofs = group.proofs.iter().flat_map(Proof::pack).collect();
        let credit = credit_for(work, group.worth)?;
        if let Some(job) = &batch.declared {
            self.declared.insert(job.id.0, job);
        }
        self.shares.push(ShareRow { batch, work, proofs });

        let first_seen = self.tips.entry(group.prev_hash).or_insert(batch.received_at_ms);
        *first_seen = batch.received_at_ms.min(*first_seen);

        let owner = (text(&group.owner.account), text(&group.owner.worker));
        let counters = self.workers.entry(owner).or_insert(Counters {
            shares: 0,
            work: U256::ZERO,
            credit: U256::ZERO,
            last_share_at_ms: 0,
            best_hash: [0xff; 32],
        });
        counters.shares += group.proofs.len() as u64;
        counters.work = sum(counters.work, work)?;
        counters.credit = sum(counters.credit, credit)?;
        counters.last_share_at_ms = counters.last_share_at_ms.max(batch.received_at_ms);
        counters.best_hash = better(counters.best_hash, best_hash);
        Ok(())
    }

    /// Whether the log took all rows, or none because they were there.
    fn appended(&self, written: u64) -> Result<Appended, StoreError> {
        match written {
            all if all == self.shares.len() as u64 => Ok(Appended::New),
            0 => Ok(Appended::AlreadyThere),
            some => Err(StoreError::Corrupt(format!(
                "{some} of the {} rows of one commit",
                self.shares.len()
            ))),
        }
    }
}

async fn append_sqlite(
    writer: &mut SqliteConnection,
    node: u16,
    commit: CommitId,
    rows: &Rows<'_>,
) -> Result<Appended, StoreError> {
    let doing = "writing share batches";
    // IMMEDIATE: takes the write lock now, so that what is read below cannot change before it is
    // written, whoever else has the file open.
    let mut transaction =
        writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed("beginning a commit"))?;

    for job in rows.declared.values() {
        let written = insert_declared!(&mut *transaction, job).await;
        written.map_err(failed("writing a declared job"))?;
    }
    let mut written = 0;
    let numbered: Vec<(usize, &ShareRow<'_>)> = rows.shares.iter().enumerate().collect();
    for chunk in numbered.chunks(SQLITE_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO share_batch (received_at_ms, commit_id, part, node, account, worker,
                 extranonce_prefix, template_id, coinbase_sequence, prev_hash, shares, work,
                 proofs, declared_id, factor_ppm) ",
        );
        query.push_values(chunk, |mut row, (part, share)| {
            let group = &share.batch.group;
            row.push_bind(signed(share.batch.received_at_ms))
                .push_bind(commit.0.to_vec())
                .push_bind(signed(*part as u64))
                .push_bind(i64::from(node))
                .push_bind(text(&group.owner.account).into_owned())
                .push_bind(text(&group.owner.worker).into_owned())
                .push_bind(group.extranonce_prefix.as_bytes().to_vec())
                .push_bind(group.template.0.cast_signed())
                .push_bind(i64::from(group.coinbase_sequence))
                .push_bind(group.prev_hash.to_vec())
                .push_bind(signed(group.proofs.len() as u64))
                .push_bind(share.work.to_string())
                .push_bind(share.proofs.clone())
                .push_bind(group.worth.declared.map(|id| id.0.to_vec()))
                .push_bind(i64::from(group.worth.factor_ppm));
        });
        query.push(" ON CONFLICT DO NOTHING");
        let done = query.build().persistent(chunk.len() == 1).execute(&mut *transaction).await;
        written += done.map_err(failed(doing))?.rows_affected();
    }
    let appended = rows.appended(written)?;
    if appended == Appended::AlreadyThere {
        return Ok(appended);
    }

    for (prev_hash, first_seen_ms) in &rows.tips {
        sqlx::query(
            "INSERT INTO tip (prev_hash, first_seen_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(prev_hash.to_vec())
        .bind(signed(*first_seen_ms))
        .execute(&mut *transaction)
        .await
        .map_err(failed("writing a tip"))?;
    }
    let workers: Vec<_> = rows.workers.iter().collect();
    for chunk in workers.chunks(SQLITE_ROWS_MAX) {
        add_to_workers_sqlite(&mut transaction, chunk).await?;
    }
    transaction.commit().await.map_err(failed("committing share batches"))?;
    Ok(appended)
}

type OwnerCounters<'a> = (&'a (Cow<'a, str>, Cow<'a, str>), &'a Counters);

/// SQLite cannot add numbers of this size: read, add, write, under the lock that the transaction has.
async fn add_to_workers_sqlite(
    connection: &mut sqlx::SqliteConnection,
    workers: &[OwnerCounters<'_>],
) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT account, worker, work, credit FROM worker_total WHERE (account, worker) IN (",
    );
    query.push_values(workers, |mut row, ((account, worker), _)| {
        row.push_bind(account.to_string()).push_bind(worker.to_string());
    });
    query.push(")");
    let known: Vec<(String, String, String, String)> = query
        .build_query_as()
        .persistent(workers.len() == 1)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed("reading counters"))?;
    let mut before = HashMap::new();
    for (account, worker, work, credit) in known {
        before.insert((account, worker), (parse_work(&work)?, parse_work(&credit)?));
    }

    let mut sums = Vec::with_capacity(workers.len());
    for ((account, worker), counters) in workers {
        let had = before.get(&(account.to_string(), worker.to_string()));
        let (work, credit) = had.copied().unwrap_or_default();
        let (work, credit) = (sum(work, counters.work)?, sum(credit, counters.credit)?);
        sums.push((account, worker, counters, work, credit));
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO worker_total (account, worker, shares, work, credit, last_share_at_ms,
             best_hash) ",
    );
    query.push_values(&sums, |mut row, (account, worker, counters, work, credit)| {
        row.push_bind(account.to_string())
            .push_bind(worker.to_string())
            .push_bind(signed(counters.shares))
            .push_bind(work.to_string())
            .push_bind(credit.to_string())
            .push_bind(signed(counters.last_share_at_ms))
            .push_bind(as_people_read(counters.best_hash).to_vec());
    });
    query.push(
        " ON CONFLICT (account, worker) DO UPDATE SET
             shares = shares + excluded.shares,
             work = excluded.work,
             credit = excluded.credit,
             last_share_at_ms = max(last_share_at_ms, excluded.last_share_at_ms),
             best_hash = min(best_hash, excluded.best_hash)",
    );
    let done = query.build().persistent(workers.len() == 1).execute(connection).await;
    done.map(|_| ()).map_err(failed("adding to counters"))
}

async fn append_postgres(
    connection: &mut PgConnection,
    node: u16,
    commit: CommitId,
    rows: &Rows<'_>,
) -> Result<Appended, StoreError> {
    let mut transaction = connection.begin().await.map_err(failed("beginning a commit"))?;
    for job in rows.declared.values() {
        let written = insert_declared!(&mut *transaction, job).await;
        written.map_err(failed("writing a declared job"))?;
    }
    let column = |of: fn(&ShareBatch) -> i64| -> Vec<i64> {
        rows.shares.iter().map(|share| of(share.batch)).collect()
    };
    let groups = || rows.shares.iter().map(|share| &share.batch.group);
    let done = sqlx::query(
        "INSERT INTO share_batch (commit_id, node, received_at_ms, part, account, worker,
             extranonce_prefix, template_id, coinbase_sequence, prev_hash, shares, work,
             proofs, declared_id, factor_ppm)
         SELECT $1, $2, * FROM UNNEST($3::bigint[], $4::bigint[], $5::text[], $6::text[],
             $7::bytea[], $8::bigint[], $9::bigint[], $10::bytea[], $11::bigint[],
             $12::text[]::numeric[], $13::bytea[], $14::bytea[], $15::bigint[])
         ON CONFLICT DO NOTHING",
    )
    .bind(commit.0.to_vec())
    .bind(i64::from(node))
    .bind(column(|batch| signed(batch.received_at_ms)))
    .bind((0..rows.shares.len()).map(|part| signed(part as u64)).collect::<Vec<_>>())
    .bind(groups().map(|group| text(&group.owner.account).into_owned()).collect::<Vec<_>>())
    .bind(groups().map(|group| text(&group.owner.worker).into_owned()).collect::<Vec<_>>())
    .bind(groups().map(|group| group.extranonce_prefix.as_bytes().to_vec()).collect::<Vec<_>>())
    .bind(column(|batch| batch.group.template.0.cast_signed()))
    .bind(column(|batch| i64::from(batch.group.coinbase_sequence)))
    .bind(groups().map(|group| group.prev_hash.to_vec()).collect::<Vec<_>>())
    .bind(column(|batch| signed(batch.group.proofs.len() as u64)))
    .bind(rows.shares.iter().map(|share| share.work.to_string()).collect::<Vec<_>>())
    .bind(rows.shares.iter().map(|share| share.proofs.as_slice()).collect::<Vec<_>>())
    .bind(groups().map(|group| group.worth.declared.map(|id| id.0.to_vec())).collect::<Vec<_>>())
    .bind(column(|batch| i64::from(batch.group.worth.factor_ppm)))
    .execute(&mut *transaction)
    .await
    .map_err(failed("writing share batches"))?;
    let appended = rows.appended(done.rows_affected())?;
    if appended == Appended::AlreadyThere {
        transaction.rollback().await.map_err(failed("leaving a commit that was there"))?;
        return Ok(appended);
    }

    // Without an update: nodes that see the same tip do not wait for each other's row.
    sqlx::query(
        "INSERT INTO tip (prev_hash, first_seen_ms)
         SELECT * FROM UNNEST($1::bytea[], $2::bigint[]) ON CONFLICT DO NOTHING",
    )
    .bind(rows.tips.keys().map(|prev_hash| prev_hash.to_vec()).collect::<Vec<_>>())
    .bind(rows.tips.values().map(|first_seen_ms| signed(*first_seen_ms)).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await
    .map_err(failed("writing tips"))?;
    add_to_workers_postgres(&mut transaction, rows).await?;
    transaction.commit().await.map_err(failed("committing share batches"))?;
    Ok(appended)
}

async fn add_to_workers_postgres(
    connection: &mut PgConnection,
    rows: &Rows<'_>,
) -> Result<(), StoreError> {
    let counters = || rows.workers.values();
    sqlx::query(
        "INSERT INTO worker_total (account, worker, shares, work, credit, last_share_at_ms,
             best_hash)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::text[]::numeric[],
             $5::text[]::numeric[], $6::bigint[], $7::bytea[])
         ON CONFLICT (account, worker) DO UPDATE SET
             shares = worker_total.shares + excluded.shares,
             work = worker_total.work + excluded.work,
             credit = worker_total.credit + excluded.credit,
             last_share_at_ms = GREATEST(worker_total.last_share_at_ms, excluded.last_share_at_ms),
             best_hash = LEAST(worker_total.best_hash, excluded.best_hash)",
    )
    .bind(rows.workers.keys().map(|(account, _)| account.to_string()).collect::<Vec<_>>())
    .bind(rows.workers.keys().map(|(_, worker)| worker.to_string()).collect::<Vec<_>>())
    .bind(counters().map(|worker| signed(worker.shares)).collect::<Vec<_>>())
    .bind(counters().map(|worker| worker.work.to_string()).collect::<Vec<_>>())
    .bind(counters().map(|worker| worker.credit.to_string()).collect::<Vec<_>>())
    .bind(counters().map(|worker| signed(worker.last_share_at_ms)).collect::<Vec<_>>())
    .bind(counters().map(|worker| as_people_read(worker.best_hash).to_vec()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(failed("adding to counters"))
}

// ---- reading ----

type WorkerRow = (String, String, i64, String, String, i64, Vec<u8>);

fn worker_totals(row: WorkerRow) -> Result<WorkerTotals, StoreError> {
    let (account, worker, shares, work, credit, last_share_at_ms, best_hash) = row;
    Ok(WorkerTotals {
        account,
        worker,
        shares: unsigned(shares)?,
        work: parse_work(&work)?,
        credit: parse_work(&credit)?,
        last_share_at_ms: unsigned(last_share_at_ms)?,
        best_hash: as_people_read(hash(best_hash)?),
    })
}

type BlockRow =
    (Vec<u8>, i64, Vec<u8>, i64, String, String, i64, i64, String, String, String, Option<Vec<u8>>);

fn block_record(row: BlockRow) -> Result<BlockRecord, StoreError> {
    let (block, height, prev, found_at_ms, account, worker, value_sats, nbits, ..) = row;
    let (.., state, detail, route, declared) = row;
    Ok(BlockRecord {
        hash: hash(block)?,
        height: narrow(height)?,
        prev_hash: hash(prev)?,
        found_at_ms: unsigned(found_at_ms)?,
        account,
        worker,
        value_sats: unsigned(value_sats)?,
        nbits: narrow(nbits)?,
        state: BlockState::parse(&state)?,
        detail,
        route: Route::parse(&route)?,
        declared: declared.map(declared_id).transpose()?,
    })
}

async fn shares_total_sqlite(readers: &SqlitePool) -> Result<Totals, StoreError> {
    let rows: Vec<(String, i64, String, String)> =
        sqlx::query_as("SELECT account, shares, work, credit FROM worker_total ORDER BY account")
            .fetch_all(readers)
            .await
            .map_err(failed("summing shares"))?;
    let mut totals = Totals { workers: rows.len() as u64, ..Totals::default() };
    let mut last_account = None;
    for (account, shares, work, credit) in &rows {
        totals.shares += unsigned(*shares)?;
        totals.work = sum(totals.work, parse_work(work)?)?;
        totals.credit = sum(totals.credit, parse_work(credit)?)?;
        totals.accounts += u64::from(last_account.replace(account) != Some(account));
    }
    Ok(totals)
}

async fn shares_total_postgres(pool: &PgPool) -> Result<Totals, StoreError> {
    let (shares, work, credit, accounts, workers): (i64, String, String, i64, i64) =
        sqlx::query_as(
            "SELECT COALESCE(SUM(shares), 0)::bigint, COALESCE(SUM(work), 0)::text,
             COALESCE(SUM(credit), 0)::text, COUNT(DISTINCT account), COUNT(*) FROM worker_total",
        )
        .fetch_one(pool)
        .await
        .map_err(failed("summing shares"))?;
    Ok(Totals {
        shares: unsigned(shares)?,
        work: parse_work(&work)?,
        credit: parse_work(&credit)?,
        accounts: unsigned(accounts)?,
        workers: unsigned(workers)?,
        ..Totals::default()
    })
}

// ---- between our types and SQL's ----

fn failed(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(sqlx::Error) -> StoreError {
    let doing = doing.into();
    |cause| StoreError::Database { doing, cause }
}

/// PostgreSQL has no NUL in text, and one name with it would make a whole commit fail for ever.
fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Times and counts stay far below 2^63; one that does not is cut there.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number)
        .map_err(|_| StoreError::Corrupt(format!("{number} where nothing is below 0")))
}

fn hash(bytes: Vec<u8>) -> Result<[u8; 32], StoreError> {
    bytes
        .try_into()
        .map_err(|bytes: Vec<u8>| StoreError::Corrupt(format!("a hash of {} bytes", bytes.len())))
}

fn parse_work(decimal: &str) -> Result<U256, StoreError> {
    U256::from_str_radix(decimal, 10)
        .map_err(|_| StoreError::Corrupt(format!("{decimal:?} as work")))
}

fn narrow(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| StoreError::Corrupt(format!("{number} for 32 bits")))
}

fn node_number(number: i64) -> Result<u16, StoreError> {
    u16::try_from(number).map_err(|_| StoreError::Corrupt(format!("{number} for a node")))
}

fn declared_id(bytes: Vec<u8>) -> Result<DeclaredId, StoreError> {
    let corrupt = |bytes: Vec<u8>| StoreError::Corrupt(format!("an id of {} bytes", bytes.len()));
    bytes.try_into().map(DeclaredId).map_err(corrupt)
}

/// What `work` is credited on a job of that worth: the whole of it on the pool's own. Rounded down for the
/// sum of a row, so less than one hash of each row is credited to nobody.
fn credit_for(work: U256, worth: Worth) -> Result<U256, StoreError> {
    let million = U256::from(1_000_000_u32);
    if worth.factor_ppm == 1_000_000 {
        return Ok(work);
    }
    let parts = work.checked_mul(U256::from(worth.factor_ppm));
    let parts = parts.ok_or_else(|| StoreError::Corrupt("work above 2^256".into()))?;
    Ok(parts / million)
}

/// 2^32 shares of the hardest difficulty there is would be needed to overflow.
fn sum(a: U256, b: U256) -> Result<U256, StoreError> {
    a.checked_add(b).ok_or_else(|| StoreError::Corrupt("work above 2^256".into()))
}

/// Header byte order to that in which hashes are written for people, and back.
fn as_people_read(mut hash: [u8; 32]) -> [u8; 32] {
    hash.reverse();
    hash
}

/// The lower of two header hashes, read as the little-endian numbers that they are.
fn better(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    if a.iter().rev().le(b.iter().rev()) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_file_is_in_the_list_for_both_databases() {
        let listed =
            MIGRATIONS.iter().map(|(version, name, ..)| format!("{version:04}_{name}.sql"));
        let listed: Vec<String> = listed.collect();
        for database in ["sqlite", "postgres"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(database);
            let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
            let mut files: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
            files.sort();
            assert_eq!(files, listed, "{database}");
        }
    }

    #[test]
    fn every_block_state_is_read_as_it_was_written() {
        for state in BlockState::ALL {
            assert_eq!(BlockState::parse(state.as_str()).unwrap(), state);
        }
        assert!(BlockState::parse("lost").is_err());
    }

    #[test]
    fn every_route_and_mode_is_read_as_it_was_written() {
        for route in Route::ALL {
            assert_eq!(Route::parse(route.as_str()).unwrap(), route);
        }
        for mode in DeclareMode::ALL {
            assert_eq!(DeclareMode::parse(mode.as_str()).unwrap(), mode);
        }
        assert!(Route::parse("pigeon").is_err() && DeclareMode::parse("half").is_err());
    }

    #[test]
    fn credit_is_work_by_its_factor_rounded_down() {
        let credit = |work: u64, factor_ppm| {
            credit_for(U256::from(work), Worth { declared: None, factor_ppm }).unwrap()
        };
        assert_eq!(credit(7, 1_000_000), U256::from(7));
        assert_eq!(credit(1_000_001, 999_999), U256::from(999_999));
        assert_eq!(credit(1_000_000, 1_020_000), U256::from(1_020_000));
        assert_eq!(credit(1, 999_999), U256::ZERO);
        let most = Worth { declared: None, factor_ppm: 999_999 };
        assert!(credit_for(U256::MAX, most).is_err());
        assert_eq!(credit_for(U256::MAX >> 20, most).unwrap() >> 235, U256::ONE);
    }

    #[test]
    fn the_better_hash_is_the_lower_number() {
        let low_in_its_last_byte = [[0xff; 31].as_slice(), &[0]].concat().try_into().unwrap();
        let high_in_its_last_byte = [[0; 31].as_slice(), &[1]].concat().try_into().unwrap();
        assert_eq!(better(low_in_its_last_byte, high_in_its_last_byte), low_in_its_last_byte);
        assert_eq!(better(high_in_its_last_byte, low_in_its_last_byte), low_in_its_last_byte);
    }

    #[tokio::test]
    async fn an_address_where_credit_would_not_last_is_refused_without_repeating_it() {
        for url in ["", "sqlite:", "sqlite::memory:", "mysql://user:secret@host/db"] {
            let error = Store::open(url).await.unwrap_err();
            assert!(matches!(error, StoreError::Url(_)));
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[tokio::test]
    async fn a_disk_that_was_full_takes_credit_again_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("pool.sqlite").display());
        let store = Store::open(&url).await.unwrap();
        let Database::Sqlite(file) = &store.0 else { panic!("not SQLite") };
        // As a full disk: SQLite says SQLITE_FULL and rolls back by itself.
        let pages: i64 =
            sqlx::query_scalar("PRAGMA page_count").fetch_one(&file.writer).await.unwrap();
        let limit = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&file.writer).await.unwrap();

        let proof = Proof {
            hash: [1; 32],
            nonce: 0,
            ntime: 0,
            version: 0,
            rolled: [0; 16],
            difficulty: proto::target::Difficulty::from_log2(0),
            is_block: false,
        };
        let group = CreditGroup {
            channel: proto::mining::ChannelId(2),
            owner: proto::mining::Owner { account: "a".into(), worker: "b".into() },
            extranonce_prefix: proto::extranonce::ExtranoncePrefix::from_bytes([0; 8]),
            template: proto::template::TemplateId(1),
            coinbase_sequence: 0,
            prev_hash: [2; 32],
            worth: Worth::POOL_JOB,
            proofs: vec![proof; 4_000],
        };
        let rows = [ShareBatch { received_at_ms: 1, group, declared: None }];
        let id = CommitId([7; 16]);
        assert!(store.append(0, id, &rows).await.is_err(), "there was room after all");
        // Room again is another connection's limit here; nothing else was done to the store.
        assert_eq!(store.append(0, id, &rows).await.unwrap(), Appended::New);
    }
}
