-- What web processes write on a shard: nothing but which epochs are used, and what the deployment agrees on. Rows of
-- tables are written by workers. Run on the PRIMARY, as root, after the first `pipeline migrate`: a right on a table needs
-- the table. Names in braces are filled by ../prepare.sh. Safe to run twice.
GRANT INSERT, UPDATE ON `${DB_NAME}`.pipeline_epochs TO 'web'@'%';
GRANT INSERT, UPDATE ON `${DB_NAME}`.pipeline_deployment TO 'web'@'%';
