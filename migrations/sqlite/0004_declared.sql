-- Jobs that miners declared: what they claim, what they pay, and what their work is worth beside the
-- pool's own template. A job's row is written by the transaction of the first credit that names it
-- (pool/src/store.rs, `append`), or with its block, so that every row was paid for in work.

-- One row for each job that was mined. Coinbase parts (txid form, around the extranonce), merkle path (32
-- bytes a branch), version, prev_hash and nbits are what the headers of its shares are computed from.
CREATE TABLE declared_job (
    id                  BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    node                INTEGER NOT NULL,
    declared_at_ms      INTEGER NOT NULL,
    account             TEXT    NOT NULL,
    mode                TEXT    NOT NULL CHECK (mode IN ('full-template', 'coinbase-only')),
    height              INTEGER NOT NULL,
    prev_hash           BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    nbits               INTEGER NOT NULL,
    version             INTEGER NOT NULL,
    coinbase_prefix     BLOB    NOT NULL,
    coinbase_suffix     BLOB    NOT NULL,
    merkle_path         BLOB    NOT NULL CHECK (length(merkle_path) % 32 = 0),
    -- Without the coinbase; NULL where the miner keeps them to himself (coinbase-only).
    transactions        INTEGER,
    -- All that the coinbase pays, and of that what goes to the pool's script.
    value_sats          INTEGER NOT NULL CHECK (value_sats >= 0),
    pool_sats           INTEGER NOT NULL CHECK (pool_sats >= 0),
    -- Above the subsidy; of the pool's best template of the same tip in the minute before.
    fees_sats           INTEGER NOT NULL CHECK (fees_sats >= 0),
    reference_fees_sats INTEGER NOT NULL CHECK (reference_fees_sats >= 0),
    -- Credit for a million hashes.
    factor_ppm          INTEGER NOT NULL CHECK (factor_ppm >= 0)
) STRICT;

-- The newest first, as every list of them is read.
CREATE INDEX declared_job_by_declared_at ON declared_job (declared_at_ms);

-- NULL and a million for shares on the pool's own jobs, which all were before. What a row is credited is
-- work * factor_ppm / 1,000,000, rounded down; the fraction of a hash that is left is nobody's.
ALTER TABLE share_batch ADD COLUMN declared_id BLOB REFERENCES declared_job (id);
ALTER TABLE share_batch ADD COLUMN factor_ppm INTEGER NOT NULL DEFAULT 1000000 CHECK (factor_ppm >= 0);

-- The shares of a declared job, counted from the index alone. Shares on pool jobs cost it nothing.
CREATE INDEX share_batch_by_declared ON share_batch (declared_id, shares) WHERE declared_id IS NOT NULL;

-- Sum of what the rows of share_batch were credited; `work` stays the hashes that were made.
ALTER TABLE worker_total ADD COLUMN credit TEXT NOT NULL DEFAULT '0';
UPDATE worker_total SET credit = work;

-- Who brought the block to the network first: the miner's own node, PushSolution, or the share. Its job is
-- not referred to: a block is written down before anything else of it.
ALTER TABLE block ADD COLUMN route TEXT NOT NULL DEFAULT 'share' CHECK (route IN ('share', 'solution', 'miner'));
ALTER TABLE block ADD COLUMN declared_id BLOB;
