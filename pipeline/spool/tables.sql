-- The spool's tables. WAL; who commits syncs the journal afterwards. One file per host and deployment.

-- Ops in the order in which they were taken. Whoever sends one again sends it under the same producer and sequence.
CREATE TABLE IF NOT EXISTS entries (
    id       INTEGER PRIMARY KEY,
    bucket   INTEGER NOT NULL,
    producer INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    kept     INTEGER NOT NULL,            -- 1: stays until every node of its shards has it
    sent     INTEGER NOT NULL DEFAULT 0,  -- the epoch under which Redis has it; 0: it has it not
    payload  BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS entries_numbers ON entries (bucket, producer, seq);
CREATE INDEX IF NOT EXISTS entries_unsent ON entries (id) WHERE sent = 0;

-- The numbers that the spool itself gives: of each bucket its producer and the next sequence.
CREATE TABLE IF NOT EXISTS buckets (
    bucket   INTEGER PRIMARY KEY,
    producer INTEGER NOT NULL,
    next     INTEGER NOT NULL,
    used_ms  INTEGER NOT NULL
);
-- The producers that were drawn, the newest last.
CREATE TABLE IF NOT EXISTS producers (
    nth      INTEGER PRIMARY KEY AUTOINCREMENT,
    producer INTEGER NOT NULL,
    made_ms  INTEGER NOT NULL
);

-- Table definitions of the ops: Redis may lack them, or have forgotten them.
CREATE TABLE IF NOT EXISTS definitions (
    hash       TEXT PRIMARY KEY,
    table_name TEXT NOT NULL,
    text       TEXT NOT NULL,
    waits      INTEGER NOT NULL           -- 1: Redis has never had it
);

-- Of each bucket counters for row ids, given to this host alone, of which its processes take while Redis is away.
CREATE TABLE IF NOT EXISTS reserved_ids (
    bucket  INTEGER PRIMARY KEY,
    next    INTEGER NOT NULL,
    stop    INTEGER NOT NULL,
    made_ms INTEGER NOT NULL
);

-- What signs session tokens, for a process that starts while Redis is away.
CREATE TABLE IF NOT EXISTS secret (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    text TEXT NOT NULL
);

-- Of the configuration that a process of this host last compared with its deployment, what places ops: JSON.
CREATE TABLE IF NOT EXISTS agreed (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    text TEXT NOT NULL
);

-- The removed or damaged files whose ops have been taken over, by the number that each file has as its user_version.
CREATE TABLE IF NOT EXISTS rescued (
    file INTEGER PRIMARY KEY
);
