"""Ops that the database refuses for good: they alone, with the database's own reason."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from support.oracle import nodes
from support.oracle.trial import Trial
from support.servers.rig import Rig

from pipeline.cli.dead import dead_group
from pipeline.errors import Rejected

pytestmark = pytest.mark.mariadb


def test_one_bad_op_in_a_batch_of_a_thousand_is_rejected_alone(mariadb: Rig, trial: Trial) -> None:
    client, tally = mariadb.client, mariadb.db.tally
    [owner] = mariadb.owners(1)
    client.enqueue_insert(tally, owner=owner, name="taken").wait(30)
    bad = trial.luck.randrange(1000)
    rows = [{"owner": owner, "name": "taken" if i == bad else f"name {i}"} for i in range(1000)]

    receipts = client.enqueue_bulk_insert(tally, rows)
    with pytest.raises(Rejected, match="1 of 1000 ops"):
        client.wait_all(receipts, timeout_s=60)

    with pytest.raises(Rejected, match="Duplicate entry") as caught:
        receipts[bad].wait(30)
    assert receipts[bad].status() == "rejected"
    assert "Duplicate entry" in str(caught.value)
    shard = client.topology.shard_of(receipts[bad].bucket)
    stored = nodes.rows(mariadb.primaries[shard], f"SELECT id, name FROM tally WHERE owner = {owner}")
    assert {id for id, name in stored if name != "taken"} == {r.id for i, r in enumerate(receipts) if i != bad}
    reasons = nodes.rows(
        mariadb.primaries[shard],
        f"SELECT table_name, row_key, code, reason, op FROM pipeline_rejects WHERE bucket = {receipts[bad].bucket}"
        f" AND producer = {receipts[bad].producer} AND producer_seq = {receipts[bad].producer_seq}",
    )
    [(table, row_key, code, reason, op)] = reasons
    assert (table, row_key, code) == ("tally", str(receipts[bad].id), 1062)
    assert "Duplicate entry" in reason
    assert '"taken"' in op


def test_a_refused_group_undoes_all_of_it_and_an_operator_mends_it_with_what_waits_behind(mariadb: Rig) -> None:
    client, tally = mariadb.client, mariadb.db.tally
    [owner] = mariadb.owners(1)
    first = client.enqueue_insert(tally, owner=owner, name="a")
    with client.atomic():
        client.enqueue_update(tally.id == first.id, n=tally.n + 1)
        clash = client.enqueue_insert(tally, owner=owner, name="a")
    last = client.enqueue_update(tally.id == first.id, n=tally.n * 10)
    other = client.enqueue_insert(tally, owner=owner, name="c")

    with pytest.raises(Rejected, match="Duplicate entry"):
        clash.wait(30)
    other.wait(30)

    shard, place = client.topology.shard_of(first.bucket), f"{clash.bucket}:{clash.position}"
    sql = f"SELECT name, n FROM tally WHERE owner = {owner} ORDER BY name"
    assert nodes.rows(mariadb.primaries[shard], sql) == [("a", 0), ("c", 0)]
    assert last.status() == "parked"
    config = ["--config", str(mariadb.config)]
    shown = CliRunner().invoke(dead_group, ["show", place, "--json", *config])
    assert json.loads(shown.output)["writes"][0]["cells"][3] == {"column": "n", "now": 0, "new": "n + 1", "typed": None}
    listed = CliRunner().invoke(
        dead_group, ["list", "--where", "code=1062", "--where", f"bucket={clash.bucket}", *config]
    )
    assert place in listed.output
    assert CliRunner().invoke(dead_group, ["edit", place, "name=b", "--member", "1", *config]).exit_code == 0
    replayed = CliRunner().invoke(dead_group, ["replay", place, "--json", *config])
    assert json.loads(replayed.output) == {"replayed": 2, "dropped": 0, "refused": 0, "parked": 0}
    assert nodes.rows(mariadb.primaries[shard], sql) == [("a", 10), ("b", 0), ("c", 0)]
    assert (clash.status(), last.wait(30)) == ("replayed", "replayed")


def test_an_expression_that_overflows_its_column_is_rejected_and_the_row_stays(mariadb: Rig) -> None:
    client, tally = mariadb.client, mariadb.db.tally
    [owner] = mariadb.owners(1)
    row = client.enqueue_insert(tally, owner=owner, name="big", n=2**31 - 1)

    too_much = client.enqueue_update(tally.id == row.id, n=tally.n + 1)

    with pytest.raises(Rejected, match="Out of range"):
        too_much.wait(30)
    shard = client.topology.shard_of(row.bucket)
    assert nodes.rows(mariadb.primaries[shard], f"SELECT n FROM tally WHERE owner = {owner}") == [(2**31 - 1,)]
