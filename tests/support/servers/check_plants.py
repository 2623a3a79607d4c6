"""Faults that are planted in a healthy cluster for `pipeline check` to find, and how each must be found."""

from __future__ import annotations

from typing import NamedTuple


class Plant(NamedTuple):
    """A fault made and undone by SQL as root, and how it must be found."""

    node: str
    sql: str
    undo: str
    where: str
    what: str
    fix: str
    severity: str = "error"


#: Only on the node itself.
OFF = "SET sql_log_bin = 0; "
#: A server whose own time zone is not that of the pipeline's sessions.
ZONED, UTC = "SET GLOBAL time_zone = '+02:00'; ", "SET GLOBAL time_zone = 'SYSTEM'; "
PLANTS = {
    "an INT id column": Plant(
        "s0",
        "ALTER TABLE visit MODIFY id INT NOT NULL AUTO_INCREMENT",
        "ALTER TABLE visit MODIFY id BIGINT NOT NULL AUTO_INCREMENT",
        "s0: visit.id",
        "is int(11), which cannot hold a 53-bit id",
        "ALTER TABLE `visit` MODIFY `id` BIGINT NOT NULL AUTO_INCREMENT",
    ),
    "a published table in MyISAM": Plant(
        "s1",
        "ALTER TABLE visit ENGINE=MyISAM",
        "ALTER TABLE visit ENGINE=InnoDB",
        "s1: visit",
        "is MyISAM",
        "ALTER TABLE `visit` ENGINE=InnoDB",
    ),
    "one of our tables in MyISAM": Plant(
        "s1",
        "ALTER TABLE pipeline_lost ENGINE=MyISAM",
        "ALTER TABLE pipeline_lost ENGINE=InnoDB",
        "s1: pipeline_lost",
        "is MyISAM",
        "ALTER TABLE `pipeline_lost` ENGINE=InnoDB",
    ),
    "another table in MyISAM": Plant(
        "s0",
        "CREATE TABLE hits (id INT) ENGINE=MyISAM",
        "DROP TABLE hits",
        "s0: hits",
        "is MyISAM",
        "ALTER TABLE `hits` ENGINE=InnoDB",
        severity="warning",
    ),
    "a server that is not strict": Plant(
        "s0",
        "SET GLOBAL sql_mode = ''",
        "SET GLOBAL sql_mode = 'STRICT_TRANS_TABLES'",
        "s0: sql_mode",
        "is not strict",
        "SET GLOBAL sql_mode",
        severity="warning",
    ),
    "a utf8mb3 column": Plant(
        "s0",
        "ALTER TABLE visit MODIFY note VARCHAR(100) CHARACTER SET utf8mb3",
        "ALTER TABLE visit MODIFY note VARCHAR(100) CHARACTER SET utf8mb4",
        "s0: visit.note",
        "is utf8mb3",
        "ALTER TABLE `visit` CONVERT TO CHARACTER SET utf8mb4",
    ),
    "a utf8mb3 database": Plant(
        "s1",
        "ALTER DATABASE shop CHARACTER SET utf8mb3",
        "ALTER DATABASE shop CHARACTER SET utf8mb4",
        "s1: database shop",
        "character set utf8mb3",
        "ALTER DATABASE `shop` CHARACTER SET utf8mb4",
        severity="warning",
    ),
    "a table missing on one shard": Plant(
        "s1",
        "RENAME TABLE visit TO visit_away",
        "RENAME TABLE visit_away TO visit",
        "s1: visit",
        "missing here",
        "pipeline migrate",
    ),
    "a table missing on one replica": Plant(
        "s1-r0",
        OFF + "RENAME TABLE visit TO visit_away",
        OFF + "RENAME TABLE visit_away TO visit",
        "s1-r0: visit",
        "missing here",
        "its primary has it",
    ),
    "a column missing on one shard": Plant(
        "s0",
        "ALTER TABLE visit DROP COLUMN note",
        "ALTER TABLE visit ADD COLUMN note VARCHAR(100)",
        "s0: visit.note",
        "is missing here",
        "pipeline migrate",
    ),
    "a column missing on one replica": Plant(
        "s0-r0",
        OFF + "ALTER TABLE visit DROP COLUMN note",
        OFF + "ALTER TABLE visit ADD COLUMN note VARCHAR(100)",
        "s0-r0: visit.note",
        "is missing here",
        "its primary has it",
    ),
    "a column of our own missing on one shard": Plant(
        "s0",
        "ALTER TABLE pipeline_rejects DROP COLUMN reason",
        "ALTER TABLE pipeline_rejects ADD COLUMN reason TEXT NOT NULL",
        "s0: the pipeline's own tables",
        "are missing here (pipeline_rejects.reason)",
        "pipeline migrate",
    ),
    "a column too short for its definition": Plant(
        "s1",
        "ALTER TABLE purchase MODIFY note VARCHAR(50)",
        "ALTER TABLE purchase MODIFY note VARCHAR(100)",
        "s1: purchase.note",
        "is varchar(50), but the published length is 100",
        "pipeline migrate",
    ),
    "types that differ between shards": Plant(
        "s1",
        "ALTER TABLE purchase MODIFY note VARCHAR(200)",
        "ALTER TABLE purchase MODIFY note VARCHAR(100)",
        "purchase.note",
        "varchar(100) on s0",
        "ALTER TABLE",
    ),
    "a decimal with too few digits": Plant(
        "s0",
        "ALTER TABLE purchase MODIFY price DECIMAL(10,1)",
        "ALTER TABLE purchase MODIFY price DECIMAL(10,2)",
        "s0: purchase.price",
        "is decimal(10,1)",
        "is no widening",
    ),
    "a FLOAT column": Plant(
        "s0",
        "ALTER TABLE purchase MODIFY weight FLOAT",
        "ALTER TABLE purchase MODIFY weight DOUBLE",
        "s0: purchase.weight",
        "is float",
        "ALTER TABLE `purchase` MODIFY `weight` DOUBLE",
        severity="warning",
    ),
    "a column that nobody fills": Plant(
        "s0",
        "ALTER TABLE visit ADD COLUMN source INT NOT NULL",
        "ALTER TABLE visit DROP COLUMN source",
        "s0: visit.source",
        "every insert is rejected",
        "ALTER TABLE `visit` MODIFY `source` INT(11) NULL",
    ),
    "a unique index that is missing": Plant(
        "s1",
        "DROP INDEX uk_purchase_customer_day ON purchase",
        "CREATE UNIQUE INDEX uk_purchase_customer_day ON purchase (customer, day)",
        "s1: purchase (customer, day)",
        "is not unique",
        "CREATE UNIQUE INDEX `uk_purchase_customer_day` ON `purchase` (`customer`, `day`)",
    ),
    "two unique indexes on an upserted table": Plant(
        "s0",
        "CREATE UNIQUE INDEX once ON purchase (note)",
        "DROP INDEX once ON purchase",
        "s0: purchase",
        "has 2 unique indexes",
        "DROP INDEX",
    ),
    "a foreign key that leaves the shard": Plant(
        "s0",
        "ALTER TABLE visit ADD CONSTRAINT away FOREIGN KEY (purchase) REFERENCES purchase (id)",
        "ALTER TABLE visit DROP FOREIGN KEY away",
        "s0: visit.purchase",
        "foreign key to purchase",
        "ALTER TABLE `visit` DROP FOREIGN KEY `away`; or [tables.purchase] reference = true",
    ),
    "a replica that takes writes": Plant(
        "s0-r0",
        "SET GLOBAL read_only = 0",
        "SET GLOBAL read_only = 1",
        "s0-r0: read_only",
        "is OFF",
        "SET GLOBAL read_only = ON",
    ),
    "a primary that takes none": Plant(
        "s0",
        "SET GLOBAL read_only = 1",
        "SET GLOBAL read_only = 0",
        "s0: read_only",
        "is ON",
        "SET GLOBAL read_only = OFF",
    ),
    "replication that stands": Plant(
        "s1-r0", "STOP SLAVE", "START SLAVE", "s1-r0: replication", "is not running", "START SLAVE"
    ),
    "statements in the binary log": Plant(
        "s0",
        "SET GLOBAL binlog_format = 'STATEMENT'",
        "SET GLOBAL binlog_format = 'ROW'",
        "s0: binlog_format",
        "is STATEMENT",
        "SET GLOBAL binlog_format = ROW",
    ),
    "a mixed binary log": Plant(
        "s0",
        "SET GLOBAL binlog_format = 'MIXED'",
        "SET GLOBAL binlog_format = 'ROW'",
        "s0: binlog_format",
        "is MIXED",
        "SET GLOBAL binlog_format = ROW",
        severity="warning",
    ),
    "commits that a crash forgets": Plant(
        "s0",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
        "s0: innodb_flush_log_at_trx_commit",
        "is 2",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
        severity="warning",
    ),
    "a binary log that is not synced": Plant(
        "s1",
        "SET GLOBAL sync_binlog = 0",
        "SET GLOBAL sync_binlog = 1",
        "s1: sync_binlog",
        "is 0",
        "SET GLOBAL sync_binlog = 1",
        severity="warning",
    ),
    "a small packet": Plant(
        "s0",
        "SET GLOBAL max_allowed_packet = 524288",
        "SET GLOBAL max_allowed_packet = 16777216",
        "s0: max_allowed_packet",
        "is 524,288 bytes",
        "SET GLOBAL max_allowed_packet",
        severity="warning",
    ),
    "a reader that may not read": Plant(
        "s0-r0",
        OFF + "REVOKE SELECT ON shop.* FROM reader@'127.0.0.1'; GRANT SELECT ON shop.purchase TO reader@'127.0.0.1'",
        OFF + "REVOKE SELECT ON shop.purchase FROM reader@'127.0.0.1'; GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
        "visit",
        "the user reader@127.0.0.1 may not SELECT",
        "GRANT SELECT ON `shop`.* TO 'reader'@'127.0.0.1'",
    ),
    "a bucket without its row": Plant(
        "s0",
        "DELETE FROM pipeline_watermarks WHERE bucket = 3",
        "INSERT INTO pipeline_watermarks VALUES (3, 0, -1, 'active', 0)",
        "s0: buckets",
        "3 have no watermark row here",
        "pipeline migrate",
    ),
    "a bucket on two shards": Plant(
        "s1",
        "INSERT INTO pipeline_watermarks VALUES (3, 0, -1, 'active', 0)",
        "DELETE FROM pipeline_watermarks WHERE bucket = 3",
        "s0, s1: buckets",
        "3 are active on more than one shard",
        "state = 'moved'",
    ),
    "a bucket that has moved away": Plant(
        "s0",
        "UPDATE pipeline_watermarks SET state = 'moved' WHERE bucket = 3",
        "UPDATE pipeline_watermarks SET state = 'active' WHERE bucket = 3",
        "s0: buckets",
        "3 have moved away",
        'buckets = "…"',
    ),
    "a TIMESTAMP on a server in another zone": Plant(
        "s0",
        f"{ZONED}ALTER TABLE visit ADD at TIMESTAMP NULL",
        f"{UTC}ALTER TABLE visit DROP at",
        "s0: visit.at",
        "is a TIMESTAMP, which the server converts",
        'time_zone = "SYSTEM"',
    ),
    "a column that is filled with the time of a server in another zone": Plant(
        "s0",
        f"{ZONED}ALTER TABLE visit ADD made DATETIME DEFAULT CURRENT_TIMESTAMP",
        f"{UTC}ALTER TABLE visit DROP made",
        "s0: visit.made",
        "is filled by the database with the time in the zone of a session: the pipeline's sessions are not, but the "
        "server is at +02:00",
        'time_zone = "SYSTEM"',
    ),
    "a trigger that asks a server in another zone for the time": Plant(
        "s0",
        f"{ZONED}CREATE TRIGGER stamps BEFORE INSERT ON visit FOR EACH ROW SET @at = NOW()",
        f"{UTC}DROP TRIGGER stamps",
        "s0: trigger stamps on visit",
        "asks for the time",
        'time_zone = "SYSTEM"',
    ),
    "a column that the database computes": Plant(
        "s0",
        "ALTER TABLE purchase DROP weight, ADD weight DOUBLE AS (customer + 1) STORED",
        "ALTER TABLE purchase DROP weight, ADD weight DOUBLE",
        "s0: purchase.weight",
        "is computed by the database",
        "give the field no default",
        severity="warning",
    ),
}
