-- Credited work. Written by one transaction per commit of the ledger (pool/src/store.rs, `append`).
-- Times are Unix milliseconds, work is expected hashes in decimal text: SQLite has no integer above
-- 64 bits, and a sum of work must be exact.

-- The log: one row for the shares of one owner on one job that were committed together. `proofs` is
-- 64 bytes per share (proto/src/share.rs, `Proof::pack`), from which every share can be checked again.
CREATE TABLE share_batch (
    received_at_ms    INTEGER NOT NULL,
    commit_id         BLOB    NOT NULL CHECK (length(commit_id) = 16),
    part              INTEGER NOT NULL,
    node              INTEGER NOT NULL,
    account           TEXT    NOT NULL,
    worker            TEXT    NOT NULL,
    extranonce_prefix BLOB    NOT NULL,
    template_id       INTEGER NOT NULL,
    coinbase_sequence INTEGER NOT NULL,
    prev_hash         BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    shares            INTEGER NOT NULL CHECK (shares > 0),
    work              TEXT    NOT NULL,
    proofs            BLOB    NOT NULL CHECK (length(proofs) = 64 * shares),
    -- A commit that is tried again after its answer was lost meets itself here and is not counted
    -- twice. Time comes first so that the same index reads a span of time (payout windows).
    PRIMARY KEY (received_at_ms, commit_id, part)
) STRICT;

-- All proofs under one tip: what the ledger loads before it judges a share of a tip that it does not
-- hold in memory.
CREATE INDEX share_batch_by_prev_hash ON share_batch (prev_hash);

-- Every tip that a share was credited under.
CREATE TABLE tip (
    prev_hash     BLOB    NOT NULL PRIMARY KEY CHECK (length(prev_hash) = 32),
    first_seen_ms INTEGER NOT NULL
) STRICT;

-- The newest tips, for the rebuild at start.
CREATE INDEX tip_by_first_seen ON tip (first_seen_ms);

-- What a worker was credited since the beginning. `best_hash` is in the order that people read (most
-- significant byte first), so that the smaller blob is the better share.
CREATE TABLE worker_total (
    account          TEXT    NOT NULL,
    worker           TEXT    NOT NULL,
    shares           INTEGER NOT NULL,
    work             TEXT    NOT NULL,
    last_share_at_ms INTEGER NOT NULL,
    best_hash        BLOB    NOT NULL CHECK (length(best_hash) = 32),
    -- The additive update finds its row here, and an account its workers.
    PRIMARY KEY (account, worker)
) STRICT, WITHOUT ROWID;
