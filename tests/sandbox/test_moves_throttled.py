"""A move waits while replicas are behind or a primary is busy, says for what, and goes on by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from support.sandbox.deployments import Site, run, site

from pipeline.admin import moving as movers
from pipeline.admin.migration.statement import Behind, ReplicaLag
from pipeline.admin.moving import orders, sides
from pipeline.admin.moving.carrier import MoveStep
from pipeline.admin.moving.sides import Throttle
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.shard.records import moves
from pipeline.shard.records.moves import MoveNote

__all__ = ["site"]

CUSTOMERS = range(40)


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(movers, "NOTED_S", 0.0)
    monkeypatch.setattr(sides, "CHECK_S", 0.0)
    return run(site, *CUSTOMERS)


class Nodes:
    """What the nodes of both shards say from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.lags: dict[str, float | None] = {}
        self.threads: dict[str, int] = {}
        monkeypatch.setattr(ReplicaLag, "lags", lambda one: self._behind(one._shard))
        monkeypatch.setattr(sides, "running_threads", lambda session: self.threads.get(session.node, 1))

    def _behind(self, shard: str) -> list[Behind]:
        return [Behind(shard, node, lag_s) for node, lag_s in self.lags.items() if node.startswith(shard)]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(monkeypatch)


def with_rows(client: Client) -> int:
    return client.topology.bucket_of("purchase", 3)


def why(client: Client, **limits: Any) -> str:
    with Throttle(client, ("s0", "s1"), MoveNote(**limits)) as throttle:
        return throttle.why()


def until_it_waits(steps: Iterator[MoveStep]) -> str:
    for step in steps:
        if step.stage == "waiting":
            return step.text
    raise AssertionError("it has not waited")


@pytest.mark.parametrize("node", ["s0-r0", "s1-r0"])
def test_a_copy_waits_for_a_replica_of_either_shard_says_so_and_goes_on(
    client: Client, nodes: Nodes, node: str
) -> None:
    steps = orders.order_move(client, [3], "s1", "me", keep_s=0).steps()
    nodes.lags[node] = 12.0

    said = until_it_waits(steps)
    [known] = orders.known(client)

    assert said == f"{node} is 12.0 s behind, --max-lag is 5"
    assert (known.state, known.waits) == ("copying", said)
    nodes.lags[node] = 5.0
    assert [step.stage for step in steps][-1] == "over"
    assert [(one.state, one.waits) for one in orders.known(client)] == [("done", "")]


def test_rows_are_deleted_no_faster_than_replicas_follow(client: Client, nodes: Nodes) -> None:
    steps = orders.order_move(client, [with_rows(client)], "s1", "me", keep_s=0).steps()
    for step in steps:
        if step.stage == "cleaning":
            break
    nodes.lags = {"s0-r0": 12.0, "s1-r0": 99.0}

    assert until_it_waits(steps) == "s0-r0 is 12.0 s behind, --max-lag is 5"


def test_a_lag_that_is_not_known_is_not_taken_for_good(client: Client, nodes: Nodes) -> None:
    nodes.lags["s1-r0"] = math.inf

    assert why(client) == "s1-r0 is not known to have caught up, --max-lag is 5"


def test_a_replica_that_does_not_answer_is_waited_for_and_then_no_more(
    client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.lags["s1-r0"] = None
    assert why(client) == "s1-r0 does not answer: the mover goes on without it in 30 s"

    monkeypatch.setattr(sides, "AWAY_S", 0.0)
    assert why(client) == ""


def test_a_replica_that_answers_again_counts_again(
    client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Throttle(client, ("s0", "s1"), MoveNote()) as throttle:
        nodes.lags["s1-r0"] = None
        throttle.why()
        throttle._away["s1-r0"] -= 29
        nodes.lags["s1-r0"] = 600.0
        assert throttle.why() == "s1-r0 is 600.0 s behind, --max-lag is 5"
        nodes.lags["s1-r0"] = None
        assert throttle.why().endswith("in 30 s")


def test_an_unfit_replica_stops_no_move(client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.lags = {"s1-r0": 999.0, "s0-r0": None}
    monkeypatch.setattr(client.nodes, "unfit", lambda node: True)

    assert why(client) == ""


def test_a_move_waits_while_a_primary_is_busy(client: Client, nodes: Nodes) -> None:
    nodes.threads = {"s0": 25, "s1": 26}

    assert why(client) == "s1 runs 26 threads, --max-load is 25"
    assert why(client, max_load=26) == ""


def test_whoever_goes_on_with_a_move_keeps_its_limits(client: Client, nodes: Nodes) -> None:
    nodes.lags["s1-r0"], nodes.threads["s0"] = 12.0, 3
    note = MoveNote(max_lag_s=20.0, max_load=2, total=7)
    orders.order_move(client, [with_rows(client)], "s1", "me", keep_s=0, note=note)
    [mover] = orders.under_way(client)
    steps = mover.steps()

    assert until_it_waits(steps) == "s0 runs 3 threads, --max-load is 2"
    nodes.threads.clear()
    while next(steps).stage != "cleaning":
        pass
    nodes.threads["s0"] = 3
    assert until_it_waits(steps) == "s0 runs 3 threads, --max-load is 2"
    assert orders.known(client)[0].total == 7


def test_a_comparison_waits_for_load_and_not_for_replicas(client: Client, nodes: Nodes) -> None:
    steps = orders.order_move(client, [3], "s1", "me", keep_s=0).steps()
    while next(steps).stage != "comparing":
        nodes.lags["s1-r0"] = 1.0
    nodes.lags["s1-r0"], nodes.threads["s1"] = 12.0, 40

    assert until_it_waits(steps) == "s1 runs 40 threads, --max-load is 25"
    nodes.threads.clear()
    while next(steps).stage != "stopping":
        pass


def test_a_server_that_does_not_answer_is_what_a_move_waits_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = orders.order_move(client, [3], "s1", "me", keep_s=0)

    def away(begun: object) -> bool:
        raise ShardUnavailable("s0", "s0-r0 does not answer")

    monkeypatch.setattr(mover.sides, "source_has", away)
    with pytest.raises(ShardUnavailable) as stopped:
        list(mover.steps())

    [known] = orders.known(client)
    assert (known.state, known.waits) == ("copying", str(stopped.value))


def test_how_far_a_move_is_is_never_noted_over_what_another_mover_notes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = orders.order_move(client, [3], "s1", "me", keep_s=0)
    session, known = client.nodes.primary("s0"), moves.legs(client.nodes.primary("s0"), [3])
    moves.note(session, [3], mover.leg.move, attempt=2)

    with monkeypatch.context() as late:
        late.setattr(moves, "legs", lambda session, buckets: known)
        moves.note_progress(session, [3], mover.leg.move, "waiting", "for nothing", 7)

    assert moves.legs(session, [3])[3].note == MoveNote(attempt=2)
