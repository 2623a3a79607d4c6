#!/bin/sh
# Make the passwords and fill the templates that need them: .env (for compose), secrets/*.acl, secrets/*.sql, and a
# secrets/*.env for each kind of process: pipeline (workers), web, flower. Run it once, before the first start. It never overwrites: delete .env and secrets/ to begin anew.
# Usage: ./prepare.sh [DIRECTORY]      (default: beside this script)
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here}

if [ -e "$target/.env" ] || [ -e "$target/secrets" ]; then
    echo "prepare.sh: $target/.env or $target/secrets is there already; nothing was changed" >&2
    exit 1
fi

# Hexadecimal: pyDAL does not decode %40 and the like in a URI, so a password may have no special character.
password() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# Print a template with each ${NAME} replaced from the environment; a missing name is an error.
fill() {
    awk '{
        while (match($0, /\$\{[A-Z_]+\}/)) {
            name = substr($0, RSTART + 2, RLENGTH - 3)
            if (!(name in ENVIRON)) { print FILENAME ": " name " is not set" > "/dev/stderr"; exit 1 }
            $0 = substr($0, 1, RSTART - 1) ENVIRON[name] substr($0, RSTART + RLENGTH)
        }
        print
    }' "$1"
}

mkdir -p "$target/secrets"
cat > "$target/.env" <<EOF
DB_NAME=${DB_NAME:-shop}
DB_USER=worker
DB_PASSWORD=$(password)
WEB_DB_PASSWORD=$(password)
READER_PASSWORD=$(password)
FLOWER_DB_PASSWORD=$(password)
MIGRATE_PASSWORD=$(password)
REPLICATION_PASSWORD=$(password)
MARIADB_ROOT_PASSWORD=$(password)
REDIS_USER=worker
REDIS_PASSWORD=$(password)
REDIS_WEB_PASSWORD=$(password)
REDIS_FLOWER_PASSWORD=$(password)
BROKER_USER=pipeline
BROKER_PASSWORD=$(password)
BROKER_WEB_PASSWORD=$(password)
REDIS_ADMIN_PASSWORD=$(password)
FLOWER_BASIC_AUTH=operator:$(password)
EOF

set -a
. "$target/.env"
PRIMARY_PORT=${PRIMARY_PORT:-3306}
fill "$here/redis/log.acl" > "$target/secrets/log.acl"
fill "$here/redis/broker.acl" > "$target/secrets/broker.acl"
fill "$here/mariadb/accounts.sql" > "$target/secrets/accounts.sql"
fill "$here/mariadb/web.sql" > "$target/secrets/web.sql"
for shard in ${SHARDS:-s0 s1}; do
    PRIMARY_HOST=$shard
    fill "$here/mariadb/replicate.sql" > "$target/secrets/replicate-$shard.sql"
done
# Containers read these files under their own user ids; the directory above keeps other people out.
chmod 644 "$target"/secrets/*
for process in pipeline web flower; do
    fill "$here/systemd/$process.env.example" > "$target/secrets/$process.env"
done
echo "prepare.sh: wrote $target/.env and $target/secrets/"
