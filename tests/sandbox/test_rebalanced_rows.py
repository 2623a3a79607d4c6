"""A shard that was added gets its share of the rows, and what knows nothing of the shard is refused from then on."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext

import pytest
from click.testing import CliRunner
from support.sandbox.deployments import Site, drain, insert, rows_of, run, site

from pipeline.admin import moving as movers
from pipeline.admin import reshape, shards
from pipeline.admin.moving import orders
from pipeline.cli import deployment as face
from pipeline.cli import pipeline as command
from pipeline.client import Client
from pipeline.config.buckets import format_ranges
from pipeline.enqueue.buckets import follow, follow_noted
from pipeline.errors import PipelineError, WrongDeployment

__all__ = ["site"]
CUSTOMERS = range(150)
OLD = {"s0": "0-31", "s1": "32-63"}


@pytest.fixture
def old(site: Site) -> Client:
    return run(site, *CUSTOMERS)


@pytest.fixture
def new(site: Site, old: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    grown = site.client(shards={**OLD, "s2": ""})
    reshape.add_shard(grown, "s2")
    return grown


def moved(client: Client, steps: list[shards.Transfer]) -> None:
    for _, target, buckets in shards.joined_moves(steps, 8):
        assert len(buckets) <= 8
        for _ in orders.order_move(client, buckets, target, "me", keep_s=0).steps():
            pass


def test_the_rows_of_all_buckets_are_counted_and_an_empty_shard_gets_a_third_of_them(old: Client, new: Client) -> None:
    before = rows_of(new)

    steps, weights = shards.planned(new, 0)
    moved(new, steps)

    assert weights.rows == Counter(old.topology.bucket_of("purchase", customer) for customer in CUSTOMERS)
    held = {shard: len(new.nodes.primary(shard).query("SELECT id FROM purchase")) for shard in new.topology.shards}
    assert {name: abs(count - 50) <= 6 for name, count in held.items()} == dict.fromkeys(held, True), held
    assert rows_of(new) == before
    assert shards.planned(new, 0)[0] == []


def test_a_bucket_that_is_written_to_counts_for_its_load(
    old: Client, new: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = old.topology.bucket_of("purchase", 7)

    def sample(seconds: float) -> None:
        assert 0 < seconds <= 5
        for _ in range(700):
            insert(new, 7)
        drain(new)

    monkeypatch.setattr(shards.clock, "sleep_s", sample)
    steps, weights = shards.planned(new, 5.0)

    assert weights.load == {**dict.fromkeys(range(64), 0), busy: 700}
    assert steps[0] == shards.Transfer(busy, new.topology.began(busy), "s2")
    monkeypatch.undo()
    assert busy not in [step.bucket for step in shards.plan(weights.together(["rows"]), *about(new))][:1]


def about(client: Client) -> tuple[dict[int, str], dict[str, float]]:
    topology = client.topology
    return {bucket: topology.shard_of(bucket) for bucket in range(64)}, dict.fromkeys(topology.shards, 1.0)


def test_a_process_without_the_shard_is_refused_once_buckets_are_there_also_by_a_redis_that_forgot_the_map(
    site: Site, old: Client, new: Client
) -> None:
    insert(old)
    moved(new, shards.planned(new, 0)[0])

    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing in worker\.toml, but .*; restart with"):
        insert(old)
    site.log.note_placement(site.log.placement(), "")
    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing in .*; restart with"):
        insert(site.client(shards=OLD))
    insert(new)


def test_a_shard_to_which_buckets_have_moved_is_not_removed_until_they_are_back(site: Site, new: Client) -> None:
    steps, _ = shards.planned(new, 0)
    moved(new, steps[:1])

    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing in .*; restart with"):
        shards.remove_shard(site.client(shards=OLD), "s2")
    moved(new, [shards.Transfer(steps[0].bucket, "s2", steps[0].source)])
    shards.remove_shard(site.client(shards=OLD), "s2")

    insert(site.client(shards=OLD))


def test_a_shard_with_buckets_in_the_file_is_removed_once_they_have_moved(site: Site, old: Client, new: Client) -> None:
    before = rows_of(new)
    moved(new, [shards.Transfer(bucket, "s0", "s2") for bucket in range(20)])
    fewer = {"s1": "32-63", "s2": "0-31"}
    with pytest.raises(PipelineError, match="puts the buckets 20-31 where they are not"):
        shards.remove_shard(site.client(shards=fewer), "s0")
    moved(new, [shards.Transfer(bucket, "s0", "s1") for bucket in range(20, 32)])

    with pytest.raises(PipelineError, match="puts the buckets 20-31 where they are not"):
        shards.remove_shard(site.client(shards=fewer), "s0")
    left = site.client(shards={"s1": "20-63", "s2": "0-19"})
    shards.remove_shard(left, "s0")

    with pytest.raises(WrongDeployment, match=r"\[shards"):
        insert(new)
    assert [new.topology.shard_of(bucket) for bucket in (0, 20, 32)] == ["s2", "s1", "s1"]
    assert rows_of(left) == before
    receipts = [insert(left, customer) for customer in CUSTOMERS]
    drain(left)
    assert {receipt.status() for receipt in receipts} == {"applied"}
    # who reads by the older file, and a Redis that has lost the map, still find what has moved
    site.log.note_placement(site.log.placement(), "")
    follow(site.log, left.nodes, left.topology)
    follow_noted(site.log, new.topology)
    assert [new.topology.shard_of(bucket) for bucket in (0, 20, 32)] == ["s2", "s1", "s1"]


def test_a_shard_is_not_removed_while_its_rows_are_kept(site: Site, new: Client) -> None:
    moved(new, [shards.Transfer(bucket, "s0", "s1") for bucket in range(1, 32)])
    steps = orders.order_move(new, [0], "s1", "me", keep_s=0).steps()
    while "cleaning" not in next(steps).stage:
        pass

    with pytest.raises(PipelineError, match="buckets move from or to 's0'"):
        shards.remove_shard(site.client(shards={"s1": "0-63", "s2": ""}), "s0")


def test_the_command_prints_its_plan_and_does_it(new: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(new))

    plan = json.loads(CliRunner().invoke(command, ["rebalance", "--plan", "--json", "--sample", "0"]).output)
    printed = CliRunner().invoke(command, ["rebalance", "--plan", "--sample", "0"]).output
    done = CliRunner().invoke(command, ["rebalance", "--max", "64", "--keep", "0", "--sample", "0"])

    assert {"bucket", "source", "target", "rows", "bytes", "load"} == set(plan[0])
    assert printed.splitlines()[0].startswith("few ops in 0 s, so load does not count")
    assert printed.splitlines()[1].startswith(format_ranges(one["bucket"] for one in plan if one["source"] == "s0"))
    assert done.exit_code == 0, done.output
    assert {new.topology.shard_of(one["bucket"]) for one in plan} == {"s2"}


def test_a_move_begins_while_the_rows_of_the_one_before_are_kept(new: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(new))
    done, order, clean = list[str](), orders.order_move, movers.Mover._clean
    monkeypatch.setattr(orders, "order_move", lambda *about: done.append("ordered") or order(*about))
    monkeypatch.setattr(movers.Mover, "_clean", lambda mover: done.append("cleaned") or clean(mover))

    result = CliRunner().invoke(command, ["rebalance", "--max", "8", "--keep", "0", "--sample", "0"])

    assert result.exit_code == 0, result.output
    assert done == ["ordered"] * (len(done) // 2) + ["cleaned"] * (len(done) // 2)
    assert len(done) > 4
    assert new.topology.placement.moves == {}


def test_nothing_is_planned_while_buckets_move(new: Client) -> None:
    orders.order_move(new, [1], "s2", "me")

    with pytest.raises(PipelineError, match="buckets move right now"):
        shards.planned(new, 0)
