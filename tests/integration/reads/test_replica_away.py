"""A replica that was away for too long, on MariaDB: the log no longer waits for it, and it is used for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pymysql
import pytest
from click.testing import CliRunner
from support.servers.probing import Shard, probing, shard, until

from pipeline import cli
from pipeline.admin import absence, upkeep
from pipeline.admin.check import check
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.reads.health import NodeState

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    with shard(tmp_path_factory.mktemp("away") / "cluster") as made:
        yield made


@pytest.fixture
def hasty(one: Shard) -> Iterator[Client]:
    """A client whose log waits a second for a replica that is away."""
    settings = load(one.config)
    client = Client(replace(settings, apply=replace(settings.apply, replica_away_s=1)))
    client.define_tables(one.db)
    yield client
    client.close()


def write(client: Client, number: int) -> None:
    """Enqueue and apply so many ops."""
    client.enqueue_bulk_insert("tally", [{"owner": at, "n": 0} for at in range(number)])
    applier = Applier("s0", client.nodes.primary("s0"), client.log, client.settings.apply)
    until(lambda: applier.apply() is not None and not client.log.dirty("s0"))


def trimmed(client: Client) -> int:
    return upkeep.trim(client, "s0")


def test_an_away_replica_holds_the_log_until_it_is_unfit_and_then_is_used_for_nothing_until_rebuilt(
    one: Shard, hasty: Client
) -> None:
    with probing(one):
        one.healthy()
        write(hasty, 20)
        patient = Client(one.config)
        until(lambda: upkeep.trim(patient, "s0") > 0)
        patient.close()

        one.sql("s0-r1", "STOP SLAVE")
        write(hasty, 400)
        assert trimmed(hasty) == 0  # it is away, but not for long
        until(lambda: trimmed(hasty) > 0)

        # it is known for good: in the database, though Redis forget it
        with pytest.raises(PipelineError, match="lacks what s0 has"):
            absence.declare_rebuilt(hasty, "s0-r1", 0.1)
        until(lambda: one.report("s0-r1").unfit)
        hasty.log.publish_unfit("s0", "{}")
        trimmed(hasty)
        until(lambda: one.report("s0-r1").unfit)

        # it comes back, replication makes up for all it missed, and it is unfit all the same
        one.sql("s0-r1", "START SLAVE")
        until(lambda: one.report("s0-r1").marks == one.report("s0").marks != {})
        trimmed(hasty)
        assert one.report("s0-r1").state is NodeState.UNFIT
        served = {read_node(one.client) for _ in range(30)}
        assert served == {"s0-r0"}
        assert told_of(one, "s0-r1")["state"] == "unfit"
        assert [found.nodes for found in check(one.config).findings if "is unfit" in found.what] == [("s0-r1",)]

        # nor is it followed when somebody promotes it
        one.sql("s0-r1", "SET GLOBAL read_only=0")
        one.sql("s0", "SET GLOBAL read_only=1")
        one.client.nodes.suspect("s0")
        until(lambda: one.report("s0").takes_writes is False)
        one.client.nodes.suspect("s0")
        assert one.client.nodes.primary_name("s0") == "s0"
        assert one.report("s0-r1").takes_writes is None
        one.sql("s0", "SET GLOBAL read_only=0")
        one.sql("s0-r1", "SET GLOBAL read_only=1")
        until(lambda: one.report("s0").takes_writes is True)

        run = CliRunner().invoke(cli.pipeline, ["rebuilt", "s0-r1", "--config", str(one.config)])

        assert run.output == "s0-r1 counts again\n"
        until(lambda: not one.report("s0-r1").unfit)
        one.healthy()
        until(lambda: read_node(one.client) == "s0-r1")
        again = CliRunner().invoke(cli.pipeline, ["rebuilt", "s0-r1", "--config", str(one.config)])
        assert "is not unfit" in str(again.exception)


@pytest.fixture
def followed(one: Shard) -> Iterator[Shard]:
    """The shard while it is probed; who breaks a replica mends it."""
    with probing(one):
        one.healthy()
        yield one


def compared(one: Shard, client: Client) -> str:
    """Have the replicas compared with their primary now; return what the reports then say of the second one."""
    client.log.note_seen("s0-r1", "")
    upkeep.trim(client, "s0")
    known = json.loads(client.log.unfit()["s0"]).get("s0-r1", "")
    until(lambda: one.report("s0-r1").unfit == known)
    return str(known)


def test_a_replica_that_may_lack_rows_serves_nothing_and_does_not_count_until_it_is_rebuilt(
    followed: Shard, hasty: Client
) -> None:
    one = followed
    wrong = "SET GLOBAL replicate_ignore_table='shop.tally'; SET GLOBAL slave_exec_mode='IDEMPOTENT'"
    one.sql("s0-r1", f"STOP SLAVE; {wrong}; START SLAVE")

    why = compared(one, hasty)

    assert why.startswith("replicate_ignore_table is shop.tally: ")
    assert "slave_exec_mode is IDEMPOTENT: " in why
    assert why.endswith("rebuild it from its primary, and run pipeline rebuilt s0-r1")
    receipt = hasty.enqueue_insert("tally", {"owner": 3, "n": 0})
    write(hasty, 1)
    assert None not in [one.client.get(one.db.tally, receipt.id, after=receipt) for _ in range(20)]
    assert told_of(one, "s0-r1")["unfit"] == why
    places = {found.place for found in check(one.config).findings if found.nodes == ("s0-r1",)}
    assert places >= {"replicate_ignore_table", "slave_exec_mode", ""}

    # once the cause is gone, the rows are missing all the same
    with pytest.raises(PipelineError, match="not like its primary: replicate_ignore_table"):
        absence.declare_rebuilt(hasty, "s0-r1")
    mended = "SET GLOBAL replicate_ignore_table=''; SET GLOBAL slave_exec_mode='STRICT'"
    one.sql("s0-r1", f"STOP SLAVE; {mended}; START SLAVE")
    assert compared(one, hasty) == why
    absence.declare_rebuilt(hasty, "s0-r1")
    assert compared(one, hasty) == ""


def test_a_replica_that_is_not_like_its_primary_serves_nothing_and_is_not_followed_until_it_is(
    followed: Shard, hasty: Client
) -> None:
    one, add = followed, "SET sql_log_bin=0; ALTER TABLE shop.tally ADD COLUMN word VARCHAR(9) COLLATE"
    one.sql("s0", f"{add} utf8mb4_bin")
    one.sql("s0-r1", f"{add} utf8mb4_general_ci; SET GLOBAL read_only=0; SET GLOBAL time_zone='+05:00'")
    places = {"read_only", "time_zone", "collation of tally.word"}

    why = compared(one, hasty)

    assert all(place in why for place in places)
    assert {read_node(one.client) for _ in range(20)} == {"s0-r0"}
    assert one.report("s0-r1").takes_writes is None
    assert {found.place for found in check(one.config).findings if found.nodes == ("s0-r1",)} >= places
    one.sql("s0-r1", "SET GLOBAL read_only=1; SET GLOBAL time_zone='SYSTEM'")
    for node in ("s0", "s0-r1"):
        one.sql(node, "SET sql_log_bin=0; ALTER TABLE shop.tally DROP COLUMN word")
    assert compared(one, hasty) == ""


def test_an_idle_primary_beats_also_after_its_clock_was_set_back(followed: Shard) -> None:
    one, beat = followed, "SELECT beat_ms FROM shop.pipeline_heartbeat"
    one.sql("s0", "UPDATE shop.pipeline_watermarks SET committed_ms = committed_ms + 3600000")

    before = one.sql("s0", beat)

    until(lambda: one.sql("s0", beat) != before)


def test_while_its_primary_has_no_connection_left_a_replica_serves_reads(one: Shard, hasty: Client) -> None:
    receipt = hasty.enqueue_insert("tally", {"owner": 1, "n": 0})
    write(hasty, 1)
    one.sql("s0", "SET GLOBAL max_connections=10")
    taken: list[pymysql.Connection[Any]] = []
    reader = Client(one.config)
    reader.define_tables(one.db)
    try:
        with suppress(pymysql.err.OperationalError):
            while len(taken) < 20:
                taken.append(
                    pymysql.connect(host="127.0.0.1", port=one.port("s0"), user="app", password=one.cluster.password)
                )
        assert len(taken) < 20
        # no replica is known to be near enough
        assert reader.get(one.db.tally, receipt.id, max_lag_s=0) is not None
        assert reader.get(one.db.tally, receipt.id, after=receipt, max_lag_s=0) is not None
        assert reader.count(one.db.tally, max_lag_s=0) > 0
        with reader.read("tally", 1, max_lag_s=0) as db:
            assert (db.read_info.role, db.read_info.reason) == ("replica", "primary-away")
    finally:
        reader.close()
        for connection in taken:
            connection.close()
        one.sql("s0", "SET GLOBAL max_connections=151")


def read_node(client: Client) -> str:
    with client.read("tally", 1) as db:
        return str(db.read_info.node)


def told_of(one: Shard, node: str) -> dict[str, object]:
    run = CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(one.config)])
    [found] = [replica for replica in json.loads(run.output)["shards"][0]["nodes"] if replica["node"] == node]
    return dict(found)
