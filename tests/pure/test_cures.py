"""What `check` advises about a server that refuses: the cure of its own words, not of another fault."""

from __future__ import annotations

import pytest

from pipeline.admin.check.evidence import database_cure, redis_cure
from pipeline.errors import NotMigrated


@pytest.mark.parametrize(
    ("why", "cure"),
    [
        ("You can't write against a read only replica.", "this Redis is a replica: follow the primary"),
        ("READONLY You can't write against a read only replica. script: 5f", "this Redis is a replica"),
        (
            "AuthenticationError: invalid username-password pair or user is disabled.",
            "correct user and password in KEY",
        ),
        ("AuthenticationError: Authentication required.", "correct user and password in KEY"),
        ("NoPermissionError: this user has no permissions to run the 'set' command", "ACL SETUSER"),
        ("NOPERM No permissions to access a key", "ACL SETUSER"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", "make room on the disk"),
        ("NOREPLICAS Not enough good replicas to write.", "start the replicas of this Redis"),
        ("the pipeline is full: Redis is at maxmemory; nothing was queued, try again later", "more memory (maxmemory)"),
        ("BusyLoadingError: Redis is loading the dataset in memory", "wait until this Redis has loaded"),
        ("ConnectionError: Error 111 connecting to h:1. Connection refused.", "start the server, or correct KEY"),
    ],
)
def test_a_refusal_of_redis_has_its_own_cure(why: str, cure: str):
    assert cure in redis_cure(why, "KEY")


@pytest.mark.parametrize(
    ("why", "cure"),
    [
        (
            "OperationalError: Access denied for user 'app'@'h' (using password: YES)",
            "correct user and password in [shards.s0], or create the user, and GRANT it the database",
        ),
        (
            "OperationalError: Access denied for user 'app'@'h' to database 'shop'",
            "GRANT the user of [shards.s0] its rights on this database",
        ),
        ("SELECT command denied to user 'app'@'h' for table 't'", "GRANT the user of [shards.s0] its rights"),
        ("OperationalError: Unknown database 'shop'", "create the database, or correct its name in [shards.s0]"),
        ("OperationalError: Too many connections", "raise max_connections, or start fewer processes"),
        ("Can't connect to MySQL server on 'h' ([Errno 111])", "start the server, or correct [shards.s0]"),
    ],
)
def test_a_refusal_of_a_database_has_its_own_cure(why: str, cure: str):
    assert database_cure(why, "s0").startswith(cure)


def test_a_right_that_is_missing_is_granted_and_no_table_is_made():
    denied = "SELECT command denied to user 'reader'@'%' for table `shop`.`pipeline_watermarks`"

    assert str(NotMigrated("s0", denied)).endswith("; GRANT its user what pipeline check names")
    assert str(NotMigrated("s0", "Table 'shop.pipeline_ids' doesn't exist")).endswith("; run: pipeline migrate")
