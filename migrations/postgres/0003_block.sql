-- Blocks that a share of ours made. Hashes in header byte order.
CREATE TABLE block (
    hash        BYTEA NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    height      BIGINT NOT NULL,
    prev_hash   BYTEA NOT NULL CHECK (length(prev_hash) = 32),
    found_at_ms BIGINT NOT NULL,
    account     TEXT COLLATE "C" NOT NULL,
    worker      TEXT COLLATE "C" NOT NULL,
    value_sats  BIGINT NOT NULL,
    nbits       BIGINT NOT NULL,
    state       TEXT COLLATE "C" NOT NULL CHECK (state IN ('found', 'accepted', 'stale', 'rejected', 'confirmed')),
    detail      TEXT COLLATE "C" NOT NULL
);

-- The newest blocks first, as every list of them is read.
CREATE INDEX block_by_found_at ON block (found_at_ms);
