"""I4: watermark and effects move together: at any moment, on any node, the rows are the model's at that watermark."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from support import judge, nodes
from support.chance import SOAK
from support.ledger import replay
from support.trial import Trial

from pipeline.clock import polls
from pipeline.op import Position

pytestmark = pytest.mark.mariadb


class Snapshot(NamedTuple):
    """What one node held at one moment."""

    node: str
    marks: dict[int, Position]
    rows: dict[tuple[int, str], tuple[int, str, int]]


def test_a_snapshot_at_any_moment_on_any_node_is_a_prefix_of_the_log(trial: Trial) -> None:
    trial.choose_owners(6)
    producers = [trial.producer(350 * SOAK) for _ in range(2)]
    uris = {f"{shard} primary": uri for shard, uri in trial.rig.primaries.items()}
    uris |= {f"{shard} replica": uri for shard, uri in trial.rig.replicas.items()}

    taken = []
    for _ in polls(60, first_s=0.02):
        node = trial.luck.choice(list(uris))
        taken.append(snapshot(node, uris[node], trial.owners))
        everywhere = {shot.node for shot in taken if shot.rows} == set(uris)
        if everywhere and all(one.child.poll() is not None for one in producers):
            break
    trial.join()
    trial.holds()

    middle = [shot for shot in taken if shot.rows]
    assert {shot.node for shot in middle} == set(uris)
    for shot in middle:
        there = {one.bucket for one in trial.ledger} & {b for b in shot.marks if on_node(trial, b, shot.node)}
        ledger = [one for one in trial.ledger if one.bucket in there]
        said = judge.differences(replay(ledger, shot.marks).model, shot.rows)
        assert not said, f"{shot.node}: " + "\n".join(said[: judge.SHOWN])


def test_replicas_end_equal_to_their_primaries(trial: Trial) -> None:
    trial.send(trial.load(), 200 * SOAK)
    trial.holds()
    wanted = trial.rows(trial.rig.primaries)

    for _ in polls(30):
        found = trial.rows(trial.rig.replicas)
        if found == wanted:
            break

    assert found == wanted


def snapshot(node: str, uri: str, owners: list[int]) -> Snapshot:
    """Read watermarks and rows in one consistent snapshot."""
    with nodes.connection(uri) as made:
        fetch(made, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        fetch(made, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        marks = nodes.fetch(made, "SELECT bucket, epoch, seq FROM pipeline_watermarks")
        rows = judge.tally_of(made, owners)
        fetch(made, "COMMIT")
    return Snapshot(node, {bucket: Position(epoch, seq) for bucket, epoch, seq in marks}, rows)


def fetch(made: Any, sql: str) -> None:
    """Run a statement that gives nothing."""
    nodes.fetch(made, sql)


def on_node(trial: Trial, bucket: int, node: str) -> bool:
    """Whether a bucket lives on the shard of a node."""
    return trial.rig.client.topology.shards_of(bucket) == (node.partition(" ")[0],)
