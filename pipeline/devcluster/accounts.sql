-- The accounts of a local cluster, made once in the template of every node's data directory. All of them only from this
-- machine and with the cluster's own password: root may do everything, app owns the schema, reader reads it, replicator
-- replicates.
FLUSH PRIVILEGES;
DELETE FROM mysql.global_priv WHERE User = '' OR User = 'root' AND Host NOT IN ('localhost', '127.0.0.1');
FLUSH PRIVILEGES;
CREATE DATABASE shop CHARACTER SET utf8mb4;
ALTER USER root@localhost IDENTIFIED BY '${PASSWORD}', root@'127.0.0.1' IDENTIFIED BY '${PASSWORD}';
CREATE USER app@'127.0.0.1' IDENTIFIED BY '${PASSWORD}', reader@'127.0.0.1' IDENTIFIED BY '${PASSWORD}',
    replicator@'127.0.0.1' IDENTIFIED BY '${PASSWORD}';
GRANT ALL PRIVILEGES ON shop.* TO app@'127.0.0.1';
GRANT SELECT ON shop.* TO reader@'127.0.0.1';
GRANT REPLICATION SLAVE ON *.* TO replicator@'127.0.0.1';
