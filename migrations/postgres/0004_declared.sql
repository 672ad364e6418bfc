-- Jobs that miners declared: what they claim, what they pay, and what their work is worth beside the
-- pool's own template. A job's row is written by the transaction of the first credit that names it
-- (pool/src/store.rs, `append`), or with its block, so that every row was paid for in work.

-- One row for each job that was mined. Coinbase parts (txid form, around the extranonce), merkle path (32
-- bytes a branch), version, prev_hash and nbits are what the headers of its shares are computed from.
CREATE TABLE declared_job (
    id                  BYTEA  NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    node                BIGINT NOT NULL,
    declared_at_ms      BIGINT NOT NULL,
    account             TEXT COLLATE "C" NOT NULL,
    mode                TEXT COLLATE "C" NOT NULL CHECK (mode IN ('full-template', 'coinbase-only')),
    height              BIGINT NOT NULL,
    prev_hash           BYTEA  NOT NULL CHECK (length(prev_hash) = 32),
    nbits               BIGINT NOT NULL,
    version             BIGINT NOT NULL,
    coinbase_prefix     BYTEA  NOT NULL,
    coinbase_suffix     BYTEA  NOT NULL,
    merkle_path         BYTEA  NOT NULL CHECK (length(merkle_path) % 32 = 0),
    -- Without the coinbase; NULL where the miner keeps them to himself (coinbase-only).
    transactions        BIGINT,
    -- All that the coinbase pays, and of that what goes to the pool's script.
    value_sats          BIGINT NOT NULL CHECK (value_sats >= 0),
    pool_sats           BIGINT NOT NULL CHECK (pool_sats >= 0),
    -- Above the subsidy; of the pool's best template of the same tip in the minute before.
    fees_sats           BIGINT NOT NULL CHECK (fees_sats >= 0),
    reference_fees_sats BIGINT NOT NULL CHECK (reference_fees_sats >= 0),
    -- Credit for a million hashes.
    factor_ppm          BIGINT NOT NULL CHECK (factor_ppm >= 0)
);

-- The newest first, as every list of them is read.
CREATE INDEX declared_job_by_declared_at ON declared_job (declared_at_ms);

-- NULL and a million for shares on the pool's own jobs, which all were before. What a row is credited is
-- work * factor_ppm / 1,000,000, rounded down; the fraction of a hash that is left is nobody's.
ALTER TABLE share_batch ADD COLUMN declared_id BYTEA REFERENCES declared_job (id);
ALTER TABLE share_batch ADD COLUMN factor_ppm BIGINT NOT NULL DEFAULT 1000000 CHECK (factor_ppm >= 0);

-- The shares of a declared job, counted from the index alone. Shares on pool jobs cost it nothing.
CREATE INDEX share_batch_by_declared ON share_batch (declared_id, shares) WHERE declared_id IS NOT NULL;

-- Sum of what the rows of share_batch were credited; `work` stays the hashes that were made.
ALTER TABLE worker_total ADD COLUMN credit NUMERIC(78,0) NOT NULL DEFAULT 0;
UPDATE worker_total SET credit = work;

-- Who brought the block to the network first: the miner's own node, PushSolution, or the share. Its job is
-- not referred to: a block is written down before anything else of it.
ALTER TABLE block ADD COLUMN route TEXT COLLATE "C" NOT NULL DEFAULT 'share' CHECK (route IN ('share', 'solution', 'miner'));
ALTER TABLE block ADD COLUMN declared_id BYTEA;
