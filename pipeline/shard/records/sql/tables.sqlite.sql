-- The pipeline's own tables, for SQLite; see tables.mysql.sql for what each is for. Made by `pipeline migrate`.

CREATE TABLE IF NOT EXISTS pipeline_watermarks (
  bucket INTEGER NOT NULL PRIMARY KEY,
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  state VARCHAR(16) NOT NULL,
  committed_ms INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS pipeline_producers (
  bucket INTEGER NOT NULL,
  producer INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  seen_ms INTEGER NOT NULL,
  PRIMARY KEY (bucket, producer)
);

CREATE TABLE IF NOT EXISTS pipeline_rejects (
  bucket INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  producer INTEGER NOT NULL,
  producer_seq INTEGER NOT NULL,
  state VARCHAR(16) NOT NULL,
  table_name VARCHAR(128) NOT NULL,
  row_key VARCHAR(255) NOT NULL,
  code INTEGER NULL,
  reason TEXT NOT NULL,
  op TEXT NOT NULL,
  rejected_ms INTEGER NOT NULL,
  changed_ms INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (bucket, epoch, seq)
);

CREATE TABLE IF NOT EXISTS pipeline_held (
  bucket INTEGER NOT NULL,
  row_key VARCHAR(190) NOT NULL,
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (bucket, row_key, epoch, seq)
);

CREATE TABLE IF NOT EXISTS pipeline_actions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  who VARCHAR(128) NOT NULL,
  action VARCHAR(16) NOT NULL,
  bucket INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  result VARCHAR(16) NOT NULL,
  op_before TEXT NULL
);

CREATE TABLE IF NOT EXISTS pipeline_forged (
  bucket INTEGER NOT NULL PRIMARY KEY,
  entries INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  entry TEXT NOT NULL,
  seen_ms INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS pipeline_lost (
  bucket INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  producer INTEGER NOT NULL,
  first_seq INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  seen_ms INTEGER NOT NULL,
  PRIMARY KEY (bucket, epoch, producer, first_seq)
);

CREATE TABLE IF NOT EXISTS pipeline_epochs (
  scope VARCHAR(64) NOT NULL PRIMARY KEY,
  epoch INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS pipeline_idempotency (
  bucket INTEGER NOT NULL,
  idempotency_key VARCHAR(190) NOT NULL,
  seen_ms INTEGER NOT NULL,
  PRIMARY KEY (bucket, idempotency_key)
);

CREATE TABLE IF NOT EXISTS pipeline_ids (
  bucket INTEGER NOT NULL,
  producer INTEGER NOT NULL,
  producer_seq INTEGER NOT NULL,
  row_id INTEGER NOT NULL,
  seen_ms INTEGER NOT NULL,
  PRIMARY KEY (bucket, producer, producer_seq)
);

CREATE TABLE IF NOT EXISTS pipeline_schemas (
  hash CHAR(43) NOT NULL PRIMARY KEY,
  table_name VARCHAR(128) NOT NULL,
  definition TEXT NOT NULL,
  kept_ms INTEGER NULL
);

CREATE TABLE IF NOT EXISTS pipeline_heartbeat (
  id INTEGER NOT NULL PRIMARY KEY,
  beat_ms INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS pipeline_unfit (
  node VARCHAR(80) NOT NULL PRIMARY KEY,
  since_ms INTEGER NOT NULL,
  why TEXT NOT NULL DEFAULT ''
);

CREATE TABLE IF NOT EXISTS pipeline_stops (
  scope VARCHAR(128) NOT NULL,
  kind VARCHAR(16) NOT NULL,
  reason TEXT NOT NULL,
  since_ms INTEGER NOT NULL,
  by_whom VARCHAR(128) NOT NULL,
  definition VARCHAR(64) NOT NULL,
  PRIMARY KEY (scope, kind)
);

CREATE TABLE IF NOT EXISTS pipeline_moves (
  bucket INTEGER NOT NULL PRIMARY KEY,
  move INTEGER NOT NULL,
  source VARCHAR(64) NOT NULL,
  target VARCHAR(64) NOT NULL,
  began_ms INTEGER NOT NULL,
  keep_s INTEGER NOT NULL,
  who VARCHAR(128) NOT NULL,
  note TEXT NOT NULL,
  of_bucket INTEGER NULL,
  of_table VARCHAR(128) NULL,
  of_key VARCHAR(190) NULL
);

CREATE TABLE IF NOT EXISTS pipeline_deployment (
  id INTEGER NOT NULL PRIMARY KEY,
  fingerprint TEXT NOT NULL
);
