"""A shard is restored from a backup of before a bucket's move, on real servers: one owner, and no row lost unseen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.oracle import judge, nodes
from support.oracle.ledger import Acknowledged
from support.oracle.trial import Trial

from pipeline.admin import moving as movers
from pipeline.admin import upkeep
from pipeline.admin.moving import orders
from pipeline.cli import pipeline as command
from pipeline.clock import polls
from pipeline.model import Position

pytestmark = pytest.mark.mariadb


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)  # no reads here


def backup_of(trial: Trial, shard: str) -> Callable[[], None]:
    """Copy all tables of a shard; return what puts them back, as one transaction."""
    uri = trial.rig.primaries[shard]
    with nodes.connection(uri) as made:
        kept = f"kept{trial.luck.getrandbits(30)}"
        nodes.fetch(made, f"CREATE DATABASE {kept}")
        tables = [name for (name,) in nodes.fetch(made, "SHOW TABLES")]
        for name in tables:
            nodes.fetch(made, f"CREATE TABLE {kept}.{name} AS SELECT * FROM {name}")

    def put_back() -> None:
        with nodes.connection(uri) as made:
            for sql in ("SET foreign_key_checks = 0", "START TRANSACTION"):
                nodes.fetch(made, sql)
            for name in tables:
                nodes.fetch(made, f"DELETE FROM {name}")
                nodes.fetch(made, f"INSERT INTO {name} SELECT * FROM {kept}.{name}")
            nodes.fetch(made, "COMMIT")

    return put_back


def restore(trial: Trial, shard: str) -> Result:
    return CliRunner().invoke(command, ["restore", shard, "--yes", "--config", str(trial.rig.config)])


def await_applied(uri: str, last: Acknowledged) -> None:
    for _ in polls(30):
        sql = f"SELECT epoch, seq FROM pipeline_watermarks WHERE bucket = {last.bucket}"
        if Position(*nodes.rows(uri, sql)[0]) >= last.position:
            return
    raise AssertionError(f"{last} is not applied")


def go_on(trial: Trial) -> None:
    for mover in orders.under_way(trial.rig.client):
        list(mover.steps())


def test_a_backup_of_before_a_move_makes_no_two_owners_and_loses_no_rows(trial: Trial) -> None:
    client, primaries = trial.rig.client, trial.rig.primaries
    [owner] = trial.choose_owners(1)
    bucket = client.topology.bucket_of("tally", owner)
    source = client.topology.shard_of(bucket)
    [target] = {*client.topology.shards} - {source}
    load = trial.load(owners=[owner])
    trial.send(load, 60)
    trial.settle()

    def rows(shard: str) -> list[Any]:
        return sorted(nodes.rows(primaries[shard], f"SELECT id, n, trace FROM tally WHERE owner = {owner}"))

    with trial.rig.put_off("moves"):
        older = {shard: backup_of(trial, shard) for shard in (source, target)}
        old_rows = rows(source)
        orders.order_move(client, [bucket], target, "a test", keep_s=0)
        go_on(trial)
        trial.send(load, 40)
        trial.holds()

        older[source]()
        assert upkeep.reconcile(client, source) == 0
        *_, last = trial.send(load, 20)
        with pytest.raises(AssertionError, match=f"two shards own bucket {bucket}"):
            judge.owners_of(primaries, client.topology)
        await_applied(primaries[target], last)
        assert rows(source) == old_rows  # no worker has applied anything there
        given = restore(trial, source)
        assert given.exit_code == 0, given.output
        assert f"bucket {bucket} is on {target} by now: its rows here are deleted" in given.output
        go_on(trial)
        assert rows(source) == []
        trial.holds()

        newer = backup_of(trial, target)
        older[target]()
        refused = restore(trial, target)
        assert refused.exit_code == 1
        assert re.search(
            f"lacks the rows of the buckets {bucket}, which moved there from {source}", str(refused.exception)
        )
        newer()
        trial.holds()
