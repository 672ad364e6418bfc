-- Credited work. Written by one transaction per commit of the ledger (pool/src/store.rs, `append`);
-- several pool nodes write here at once. Times are Unix milliseconds, work is expected hashes.
-- Text compares by byte, so that rows have one order whatever the server's locale is.

-- The log: one row for the shares of one owner on one job that were committed together. `proofs` is
-- 64 bytes per share (proto/src/share.rs, `Proof::pack`), from which every share can be checked again.
-- Ready for PARTITION BY RANGE (received_at_ms): the only unique key begins with it, nothing refers to
-- the table, and rows are never updated. A plain table carries a pool for years before that pays.
CREATE TABLE share_batch (
    received_at_ms    BIGINT        NOT NULL,
    commit_id         BYTEA         NOT NULL CHECK (length(commit_id) = 16),
    part              BIGINT        NOT NULL,
    node              BIGINT        NOT NULL,
    account           TEXT COLLATE "C" NOT NULL,
    worker            TEXT COLLATE "C" NOT NULL,
    extranonce_prefix BYTEA         NOT NULL,
    template_id       BIGINT        NOT NULL,
    coinbase_sequence BIGINT        NOT NULL,
    prev_hash         BYTEA         NOT NULL CHECK (length(prev_hash) = 32),
    shares            BIGINT        NOT NULL CHECK (shares > 0),
    work              NUMERIC(78,0) NOT NULL,
    proofs            BYTEA         NOT NULL CHECK (length(proofs) = 64 * shares),
    -- A commit that is tried again after its answer was lost meets itself here and is not counted
    -- twice. Time comes first so that the same index reads a span of time (payout windows).
    PRIMARY KEY (received_at_ms, commit_id, part)
);

-- Hashes do not compress: do not try.
ALTER TABLE share_batch ALTER COLUMN proofs SET STORAGE EXTERNAL;

-- All proofs under one tip: what the ledger loads before it judges a share of a tip that it does not
-- hold in memory.
CREATE INDEX share_batch_by_prev_hash ON share_batch (prev_hash);

-- Every tip that a share was credited under. Inserted once and never updated: nodes do not queue for
-- its row.
CREATE TABLE tip (
    prev_hash     BYTEA  NOT NULL PRIMARY KEY CHECK (length(prev_hash) = 32),
    first_seen_ms BIGINT NOT NULL
);

-- The newest tips, for the rebuild at start.
CREATE INDEX tip_by_first_seen ON tip (first_seen_ms);

-- What a worker was credited since the beginning. `best_hash` is in the order that people read (most
-- significant byte first), so that the smaller value is the better share. No index but the key: the
-- row changes with every commit, and without one the update stays in its page. The free space is for
-- that.
CREATE TABLE worker_total (
    account          TEXT COLLATE "C" NOT NULL,
    worker           TEXT COLLATE "C" NOT NULL,
    shares           BIGINT        NOT NULL,
    work             NUMERIC(78,0) NOT NULL,
    last_share_at_ms BIGINT        NOT NULL,
    best_hash        BYTEA         NOT NULL CHECK (length(best_hash) = 32),
    -- The additive update finds its row here, and an account its workers.
    PRIMARY KEY (account, worker)
) WITH (fillfactor = 80);
