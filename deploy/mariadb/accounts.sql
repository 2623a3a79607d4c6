-- Accounts of one shard. Run on the PRIMARY only, as root; replication carries it to the replicas, so a promoted
-- replica knows everybody already. Names in braces are filled by ../prepare.sh. Safe to run twice. A new password: ALTER USER.
--
-- '%' is any address: narrow it to your network ('10.1.%'), and add REQUIRE SSL where the network is not yours.
-- An underscore in a database's name is a wildcard in GRANT: write my\_shop.
-- A server made without --skip-test-db has accounts with no name that catch web@localhost: DROP USER ''@'localhost'.

CREATE DATABASE IF NOT EXISTS `${DB_NAME}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;

-- Workers and the operator's commands, on primaries: rows, never tables. TRIGGER lets them see which tables a trigger
-- writes: ops on these keep their order then.
CREATE USER IF NOT EXISTS 'worker'@'%' IDENTIFIED BY '${DB_PASSWORD}';
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `${DB_NAME}`.* TO 'worker'@'%';

-- Web processes, on primaries: reads. What they write themselves is granted by web.sql, once `pipeline migrate` has run.
CREATE USER IF NOT EXISTS 'web'@'%' IDENTIFIED BY '${WEB_DB_PASSWORD}';
GRANT SELECT ON `${DB_NAME}`.* TO 'web'@'%';

-- Reads and the lag probe, on replicas. The probe reads the watermark table; it needs no monitoring privilege.
CREATE USER IF NOT EXISTS 'reader'@'%' IDENTIFIED BY '${READER_PASSWORD}';
GRANT SELECT ON `${DB_NAME}`.* TO 'reader'@'%';

-- Flower, on primaries: nothing yet. web.sql lets it list the ops that are set aside.
CREATE USER IF NOT EXISTS 'flower'@'%' IDENTIFIED BY '${FLOWER_DB_PASSWORD}';

-- `pipeline migrate`, run by a person: makes and alters tables. It cannot drop one.
CREATE USER IF NOT EXISTS 'migrate'@'%' IDENTIFIED BY '${MIGRATE_PASSWORD}';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, REFERENCES ON `${DB_NAME}`.* TO 'migrate'@'%';

-- Replicas, to fetch the binary log.
CREATE USER IF NOT EXISTS 'replicator'@'%' IDENTIFIED BY '${REPLICATION_PASSWORD}';
GRANT REPLICATION SLAVE ON *.* TO 'replicator'@'%';
