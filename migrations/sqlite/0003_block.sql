-- Blocks that a share of ours made. Hashes in header byte order.
CREATE TABLE block (
    hash        BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    height      INTEGER NOT NULL,
    prev_hash   BLOB NOT NULL CHECK (length(prev_hash) = 32),
    found_at_ms INTEGER NOT NULL,
    account     TEXT NOT NULL,
    worker      TEXT NOT NULL,
    value_sats  INTEGER NOT NULL,
    nbits       INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('found', 'accepted', 'stale', 'rejected', 'confirmed')),
    detail      TEXT NOT NULL
) STRICT;

-- The newest blocks first, as every list of them is read.
CREATE INDEX block_by_found_at ON block (found_at_ms);
