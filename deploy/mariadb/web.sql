-- What web processes write on a shard: nothing but which epochs are used, and what the deployment agrees on. Rows of
-- tables are written by workers. Run on the PRIMARY, as root, after the first `pipeline migrate`: a right on a table needs
-- the table. Names in braces are filled by ../prepare.sh. Safe to run twice.
GRANT INSERT, UPDATE ON `${DB_NAME}`.pipeline_epochs TO 'web'@'%';
GRANT INSERT, UPDATE ON `${DB_NAME}`.pipeline_deployment TO 'web'@'%';

-- Flower lists the ops that are set aside with their reasons, and who replayed or dropped what. The page of one op also
-- shows its row as it is now, and so the values of your tables. Whoever has Flower's login may see them only once you run:
--   GRANT SELECT ON `${DB_NAME}`.* TO 'flower'@'%';
GRANT SELECT ON `${DB_NAME}`.pipeline_rejects TO 'flower'@'%';
GRANT SELECT ON `${DB_NAME}`.pipeline_actions TO 'flower'@'%';
