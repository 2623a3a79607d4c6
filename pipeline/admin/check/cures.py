"""Choose what to do about a server that refused or did not answer, by the server's own words."""

from __future__ import annotations

from collections.abc import Sequence

#: Words of Redis, and the cure; the first that fits counts. `{key}` is the setting with the address.
_REDIS = (
    (
        ("READONLY", "read only replica", "ReadOnlyError"),
        "this Redis is a replica: follow the primary, with its address or sentinel:// in {key}",
    ),
    (("WRONGPASS", "NOAUTH", "Authentication", "invalid username-password"), "correct user and password in {key}"),
    (
        ("NOPERM", "no permissions", "NoPermission", "this user has no", "can't run this command"),
        "ACL SETUSER as its user in deploy/redis/log.acl, or broker.acl, with ~<prefix>:* of [redis] prefix",
    ),
    (("MISCONF",), "make room on the disk of this Redis: it cannot save, so it refuses to write"),
    (("NOREPLICAS", "good replicas"), "start the replicas of this Redis, or lower min-replicas-to-write"),
    (("maxmemory", "OOM"), "give this Redis more memory (maxmemory), and start workers"),
    (("LOADING", "loading the dataset"), "wait until this Redis has loaded its data"),
)
#: Words of the databases.
_DATABASE = (
    (("to database", "command denied"), "GRANT the user of [shards.{key}] its rights on this database"),
    (
        ("Access denied for user", "(1045", "caching_sha2", "auth_gssapi"),
        "correct user and password in [shards.{key}], or create the user, and GRANT it the database",
    ),
    (("Unknown database",), "create the database, or correct its name in [shards.{key}]"),
    (("Too many connections", "max_user_connections"), "raise max_connections, or start fewer processes"),
    (("is blocked because",), "run mariadb-admin flush-hosts on this node"),
)


def redis_cure(why: str, key: str) -> str:
    """Return the cure of what Redis said.

    Args:
        why: its words, or the driver's.
        key: the setting with the address.
    """
    return _cure(_REDIS, why, key) or f"start the server, or correct {key}"


def database_cure(why: str, shard: str) -> str:
    """Return the cure of what a database said.

    Args:
        why: its words, or the driver's.
        shard: the node's shard.
    """
    return _cure(_DATABASE, why, shard) or f"start the server, or correct [shards.{shard}]"


def _cure(table: Sequence[tuple[tuple[str, ...], str]], why: str, key: str) -> str:
    found = (cure for words, cure in table if any(word in why for word in words))
    return next(found, "").format(key=key)
