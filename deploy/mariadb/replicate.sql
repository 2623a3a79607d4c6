-- Make an empty server a replica. Run on the REPLICA, as root, once. Names in braces are filled by ../prepare.sh.
-- It starts at the primary's first binary log, which works as long as none has expired (7 days). A replica that comes
-- later starts from a backup (docs/operations.md, "Backups").
CHANGE MASTER TO
    MASTER_HOST = '${PRIMARY_HOST}',
    MASTER_PORT = ${PRIMARY_PORT},
    MASTER_USER = 'replicator',
    MASTER_PASSWORD = '${REPLICATION_PASSWORD}',
    MASTER_USE_GTID = slave_pos,
    MASTER_CONNECT_RETRY = 1;
START SLAVE;
