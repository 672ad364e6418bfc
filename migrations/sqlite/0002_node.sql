-- Starts of each pool node. The count stands in every extranonce prefix of a run, so that no two runs
-- hand out the same search space.
CREATE TABLE node_start (
    node   INTEGER NOT NULL PRIMARY KEY,
    starts INTEGER NOT NULL
) STRICT;
