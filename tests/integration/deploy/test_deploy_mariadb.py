"""The fragments and the SQL files of deploy/mariadb, on servers that run with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pymysql
import pytest
from support.servers.deploying import DEPLOY, needs, run, within
from support.servers.shipped import Node, mariadb_node

from pipeline.devcluster.processes import free_ports

READ_ONLY = 1290


@dataclass(frozen=True)
class Shard:
    primary: Node
    replica: Node


@pytest.fixture(scope="module")
def shard(secrets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    """A primary and a replica that run with the fragments, set up by the SQL files."""
    words = secrets.words
    passwords = {
        "root": "",
        "worker": words["DB_PASSWORD"],
        "web": words["WEB_DB_PASSWORD"],
        "reader": words["READER_PASSWORD"],
        "migrate": words["MIGRATE_PASSWORD"],
        "replicator": words["REPLICATION_PASSWORD"],
    }
    with ExitStack() as stack:
        home = tmp_path_factory.mktemp("mariadb")
        primary = stack.enter_context(mariadb_node(home / "p", secrets.port, "primary", 10, passwords))
        primary.script(secrets.target / "secrets" / "accounts.sql")
        replica = stack.enter_context(mariadb_node(home / "r", free_ports(1)[0], "replica", 11, passwords))
        replica.script(secrets.target / "secrets" / "replicate-127.0.0.1.sql")
        primary.rows("migrate", "CREATE TABLE shop.thing (id BIGINT PRIMARY KEY, label VARCHAR(3)) ENGINE=InnoDB")
        primary.rows("worker", "INSERT INTO shop.thing VALUES (1, 'one')")
        assert within(30, lambda: has_row(replica)), "the replica did not replicate"
        yield Shard(primary, replica)


def has_row(replica: Node) -> bool:
    try:
        return replica.rows("reader", "SELECT label FROM shop.thing") == (("one",),)
    except pymysql.MySQLError:
        return False


@pytest.mark.mariadb
@needs("mariadbd")
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_mariadbd_parses_the_fragments(role: str, tmp_path: Path) -> None:
    options = tmp_path / "my.cnf"
    options.write_text(f"!include {DEPLOY}/mariadb/node.cnf\n!include {DEPLOY}/mariadb/{role}.cnf\n")

    done = run("mariadbd", f"--defaults-file={options}", f"--datadir={tmp_path}", "--help", "--verbose")

    shown = dict(line.split(None, 1) for line in done.stdout.splitlines() if len(line.split(None, 1)) == 2)
    assert shown["slave-net-timeout"].strip() == "4"
    assert shown["read-only"].strip() == ("TRUE" if role == "replica" else "FALSE")
    assert "unknown" not in done.stderr.lower()


@pytest.mark.mariadb
@needs("mariadbd")
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_a_running_server_has_every_value_of_the_fragments(role: str, shard: Shard) -> None:
    wanted = {**options_of("node"), **options_of(role)}
    wanted["time_zone"] = wanted.pop("default_time_zone")  # the server's name for it
    node: Node = getattr(shard, role)

    have = dict(node.rows("root", "SHOW GLOBAL VARIABLES"))

    special = {"log_bin": "ON"}  # the server shows whether, and the name elsewhere
    wrong = {
        name: (value, have.get(name))
        for name, value in wanted.items()
        if plain(have.get(name, "")) != plain(special.get(name, value))
    }
    assert len(wanted) > 20
    assert wrong == {}


def options_of(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (DEPLOY / "mariadb" / f"{name}.cnf").read_text().splitlines())
    return {key.strip(): value.strip() for key, found, value in (line.partition("=") for line in lines) if found}


def plain(value: str) -> str:
    """Return a server's and a file's spelling of one value alike."""
    if value[:-1].isdigit() and value.endswith("M"):
        return str(int(value[:-1]) << 20)
    return {"ON": "1", "OFF": "0"}.get(value.upper(), value.lower())


@pytest.mark.mariadb
@needs("mariadbd")
def test_the_reader_only_reads(shard: Shard) -> None:
    assert shard.replica.rows("reader", "SELECT COUNT(*) FROM shop.thing") == ((1,),)
    assert shard.replica.rows("reader", "SELECT @@read_only") == ((1,),)
    for sql in ("INSERT INTO shop.thing VALUES (2, 'two')", "DELETE FROM shop.thing", "SELECT * FROM mysql.user"):
        assert shard.primary.refuses("reader", sql), sql
    grants = "SHOW GRANTS FOR reader"  # on the replica read_only answers first, so look at what a promotion would leave
    assert shard.replica.rows("root", grants) == shard.primary.rows("root", grants)


@pytest.mark.mariadb
@needs("mariadbd")
def test_a_worker_writes_rows_and_nothing_else(shard: Shard) -> None:
    shard.primary.rows("worker", "INSERT INTO shop.thing VALUES (5, 'x')")
    shard.primary.rows("worker", "SELECT id FROM shop.thing WHERE id = 5 FOR UPDATE SKIP LOCKED")
    shard.primary.rows("worker", "DELETE FROM shop.thing WHERE id = 5")

    for sql in (
        "DROP DATABASE shop",
        "DROP TABLE shop.thing",
        "CREATE TABLE shop.other (id BIGINT)",
        "ALTER TABLE shop.thing ADD x INT",
        "SELECT * FROM mysql.user",
        "SET GLOBAL read_only = 0",
    ):
        assert shard.primary.refuses("worker", sql), sql


@pytest.mark.mariadb
@needs("mariadbd")
def test_migrate_makes_and_alters_tables_but_drops_none(shard: Shard) -> None:
    shard.primary.rows("migrate", "CREATE TABLE shop.made (id BIGINT PRIMARY KEY, a INT)")
    shard.primary.rows("migrate", "ALTER TABLE shop.made ADD b INT, ADD INDEX by_b (b)")

    for sql in ("DROP TABLE shop.made", "DROP DATABASE shop", "SELECT * FROM mysql.user", "CREATE DATABASE other"):
        assert shard.primary.refuses("migrate", sql), sql


@pytest.mark.mariadb
@needs("mariadbd")
def test_a_replica_takes_writes_from_its_primary_only(shard: Shard) -> None:
    with pytest.raises(pymysql.MySQLError) as caught:
        shard.replica.rows("worker", "INSERT INTO shop.thing VALUES (3, 'x')")

    assert caught.value.args[0] == READ_ONLY


@pytest.mark.mariadb
@needs("mariadbd")
def test_a_value_that_does_not_fit_is_refused(shard: Shard) -> None:
    with pytest.raises(pymysql.MySQLError, match="too long"):
        shard.primary.rows("root", "INSERT INTO shop.thing VALUES (4, 'four')")


@pytest.mark.mariadb
@needs("mariadbd")
def test_the_accounts_can_be_made_twice(shard: Shard, secrets: SimpleNamespace) -> None:
    shard.primary.script(secrets.target / "secrets" / "accounts.sql")

    assert shard.primary.rows("worker", "SELECT 1") == ((1,),)
