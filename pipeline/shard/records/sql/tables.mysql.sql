-- The pipeline's own tables, on every primary (replicas get them by replication). Made by `pipeline migrate`.
-- `pipeline migrate` also brings tables of older releases to what stands here: it adds columns and keys, widens types,
-- and converts to the table's collation. So: a column or a key is one line, columns come first, only the table names a
-- collation, and a new column may be NULL or has a DEFAULT. A primary key never changes.

-- The watermarks: everything up to (epoch, seq) of this bucket's log has been applied here.
-- Written in the transaction of the rows themselves. state: active; holding (applied too, and ops set aside hold rows);
-- halted (nothing is applied until the op at the watermark is replayed or dropped). Workers skip any other state:
-- copying, catching (the bucket is on its way here), moved (it has left, its rows are here yet), gone. Of a bucket one
-- of whose keys has a shard of its own: lent (applied without the key; ops set aside may hold rows), stopped (nothing is
-- applied while the key leaves, or comes back).
CREATE TABLE IF NOT EXISTS pipeline_watermarks (
  bucket INT NOT NULL PRIMARY KEY,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  state VARCHAR(16) NOT NULL,
  committed_ms BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The last op of each producer that was applied: the authority on what has been seen, across epochs.
CREATE TABLE IF NOT EXISTS pipeline_producers (
  bucket INT NOT NULL,
  producer BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  seen_ms BIGINT NOT NULL,
  PRIMARY KEY (bucket, producer),
  KEY (seen_ms)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Ops that were set aside, whole (without values where they do not fit into one statement): their watermark has moved on.
-- state: rejected (the database refused it), waiting (it waits for what its reason names), parked (it waits behind an op
-- of the same row), replayed (it was applied later), dropped (an operator gave it up).
CREATE TABLE IF NOT EXISTS pipeline_rejects (
  bucket INT NOT NULL,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  producer BIGINT NOT NULL,
  producer_seq BIGINT NOT NULL,
  state VARCHAR(16) NOT NULL,
  table_name VARCHAR(128) NOT NULL,
  row_key VARCHAR(255) NOT NULL,
  code INT NULL,
  reason TEXT NOT NULL,
  op LONGTEXT NOT NULL,
  rejected_ms BIGINT NOT NULL,
  changed_ms BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (bucket, epoch, seq),
  KEY (bucket, producer, producer_seq),
  KEY (state, changed_ms)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The rows that ops set aside hold: a later op of such a row is parked behind them. row_key: table and id, or table and
-- the key of an upsert; cut and hashed where it is longer.
CREATE TABLE IF NOT EXISTS pipeline_held (
  bucket INT NOT NULL,
  row_key VARCHAR(190) NOT NULL,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  PRIMARY KEY (bucket, row_key, epoch, seq),
  KEY (bucket, epoch, seq)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What operators did to ops that were set aside: replay, drop or edit. result: the state that the action left.
-- op_before: the op before an edit.
CREATE TABLE IF NOT EXISTS pipeline_actions (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  at_ms BIGINT NOT NULL,
  who VARCHAR(128) NOT NULL,
  action VARCHAR(16) NOT NULL,
  bucket INT NOT NULL,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  result VARCHAR(16) NOT NULL,
  op_before LONGTEXT NULL,
  KEY (bucket, epoch, seq)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Entries whose signature is missing or wrong: how many a bucket has had, and the last. No op of this deployment is
-- among these. One row a bucket, so that a stranger fills no table.
CREATE TABLE IF NOT EXISTS pipeline_forged (
  bucket INT NOT NULL PRIMARY KEY,
  entries BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  entry TEXT NOT NULL,
  seen_ms BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Proof of loss: positions that the log skipped (producer 0), or sequences of a producer that Redis forgot.
CREATE TABLE IF NOT EXISTS pipeline_lost (
  bucket INT NOT NULL,
  epoch BIGINT NOT NULL,
  producer BIGINT NOT NULL,
  first_seq BIGINT NOT NULL,
  last_seq BIGINT NOT NULL,
  seen_ms BIGINT NOT NULL,
  PRIMARY KEY (bucket, epoch, producer, first_seq)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The last epoch that was given out for a scope, committed before its first use, so that none comes twice.
CREATE TABLE IF NOT EXISTS pipeline_epochs (
  scope VARCHAR(64) NOT NULL PRIMARY KEY,
  epoch BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Idempotency keys that were applied, each as a digest of the op's kind, table and key: a collation would find `k` and
-- `k ` equal. Kept longer than Redis keeps them.
CREATE TABLE IF NOT EXISTS pipeline_idempotency (
  bucket INT NOT NULL,
  idempotency_key VARCHAR(190) NOT NULL,
  seen_ms BIGINT NOT NULL,
  PRIMARY KEY (bucket, idempotency_key),
  KEY (seen_ms)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The ids that the database gave to rows of tables with ids = "database", for their receipts.
CREATE TABLE IF NOT EXISTS pipeline_ids (
  bucket INT NOT NULL,
  producer BIGINT NOT NULL,
  producer_seq BIGINT NOT NULL,
  row_id BIGINT NOT NULL,
  seen_ms BIGINT NOT NULL,
  PRIMARY KEY (bucket, producer, producer_seq),
  KEY (seen_ms)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Schemas by hash, for the case that Redis has lost them; kept_ms: when migrate first stored it here.
CREATE TABLE IF NOT EXISTS pipeline_schemas (
  hash CHAR(43) NOT NULL PRIMARY KEY,
  table_name VARCHAR(128) NOT NULL,
  definition LONGTEXT NOT NULL,
  kept_ms BIGINT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row that the prober renews while nothing is written, so that a stalled replica shows before the next write.
CREATE TABLE IF NOT EXISTS pipeline_heartbeat (
  id TINYINT NOT NULL PRIMARY KEY,
  beat_ms BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Replicas that were away for too long, or that may lack rows for good: the log has deleted entries that they need. A
-- replica here serves no read until it is rebuilt. why: for people, with what to do.
CREATE TABLE IF NOT EXISTS pipeline_unfit (
  node VARCHAR(80) NOT NULL PRIMARY KEY,
  since_ms BIGINT NOT NULL,
  why VARCHAR(1000) NOT NULL DEFAULT ''
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What is stopped on this shard. scope: '*' is the whole shard, else a table. kind: paused (by an operator) or breaker
-- (too many ops were refused); definition: a digest of the table's definition when the breaker last tried an op.
CREATE TABLE IF NOT EXISTS pipeline_stops (
  scope VARCHAR(128) NOT NULL,
  kind VARCHAR(16) NOT NULL,
  reason TEXT NOT NULL,
  since_ms BIGINT NOT NULL,
  by_whom VARCHAR(128) NOT NULL,
  definition VARCHAR(64) NOT NULL,
  PRIMARY KEY (scope, kind)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Moves of buckets, on the shard that a bucket leaves and on the one that it goes to: how far each is says the state of
-- its watermark. A row stays when the move is over: it says where the bucket went. move: one number for all buckets that
-- move together. note: progress and trouble, for people. Of a piece, one shard key that has a shard of its own, bucket is
-- a number of its own, and of_bucket, of_table and of_key name the key; a piece without a watermark is in its bucket.
CREATE TABLE IF NOT EXISTS pipeline_moves (
  bucket INT NOT NULL PRIMARY KEY,
  move BIGINT NOT NULL,
  source VARCHAR(64) NOT NULL,
  target VARCHAR(64) NOT NULL,
  began_ms BIGINT NOT NULL,
  keep_s INT NOT NULL,
  who VARCHAR(128) NOT NULL,
  note TEXT NOT NULL,
  of_bucket INT NULL,
  of_table VARCHAR(128) NULL,
  of_key VARCHAR(190) NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row: the fingerprint of the deployment that this database belongs to; see pipeline/model/fingerprint.py.
CREATE TABLE IF NOT EXISTS pipeline_deployment (
  id TINYINT NOT NULL PRIMARY KEY,
  fingerprint LONGTEXT NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
