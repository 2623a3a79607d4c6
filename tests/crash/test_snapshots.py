"""I4: watermark and effects move together: at any moment, on any node, the rows are the model's at that watermark."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from support.chance import SOAK
from support.oracle import judge, nodes
from support.oracle.ledger import replay
from support.oracle.trial import Trial

from pipeline.clock import polls
from pipeline.model import Position

pytestmark = pytest.mark.mariadb


#: A machine that stands still for a moment may show no node in the middle of a load: then there is another one.
MOST_WAVES = 10


class Snapshot(NamedTuple):
    """What one node held at one moment."""

    node: str
    marks: dict[int, Position]
    rows: dict[tuple[int, str], tuple[int, str, int]]


def test_a_snapshot_at_any_moment_on_any_node_is_a_prefix_of_the_log(trial: Trial) -> None:
    owners_on_every_shard(trial, 4)
    uris = {f"{shard} primary": uri for shard, uri in trial.rig.primaries.items()}
    uris |= {f"{shard} replica": uri for shard, uri in trial.rig.replicas.items()}

    middle: list[Snapshot] = []
    for _ in range(MOST_WAVES):
        middle += [shot for shot in snapshots_during(trial, uris) if shot.rows]
        seen = {(shot.node, *sorted(shot.marks.items())) for shot in middle}
        if len(seen) > len(uris):
            break
    trial.holds()

    assert len(seen) > len(uris), f"no node was seen in the middle of {MOST_WAVES} loads"
    for shot in middle:
        # a mark may be of a key that another test has moved
        there = {b for b in shot.marks.keys() & {one.bucket for one in trial.ledger} if on_node(trial, b, shot.node)}
        ledger = [one for one in trial.ledger if one.bucket in there]
        said = judge.differences(replay(ledger, shot.marks).model, shot.rows)
        assert not said, f"{shot.node}: " + "\n".join(said[: judge.SHOWN])


def snapshots_during(trial: Trial, uris: dict[str, str]) -> list[Snapshot]:
    """Let two producers work, and look at the nodes in turn until both have ended."""
    producers = [trial.producer(1000 * SOAK) for _ in range(2)]
    taken, running = [], True
    for _ in polls(120, first_s=0.02):
        # asked first, so that each node is looked at once more behind the last op
        was_running, running = running, any(one.child.poll() is None for one in producers)
        taken += [snapshot(node, uris[node], trial.owners) for node in trial.luck.sample(list(uris), len(uris))]
        if not was_running:
            break
    trial.join()
    return taken


def test_replicas_end_equal_to_their_primaries(trial: Trial) -> None:
    trial.send(trial.load(), 200 * SOAK)
    trial.holds()
    wanted = trial.rows(trial.rig.primaries)

    for _ in polls(30):
        found = trial.rows(trial.rig.replicas)
        if found == wanted:
            break

    assert found == wanted


def owners_on_every_shard(trial: Trial, count: int) -> None:
    """Take that many shard keys of each shard."""
    topology, left = trial.rig.client.topology, dict.fromkeys(trial.rig.primaries, count)
    for owner in trial.rig.owners(200):
        shard = topology.shard_of(topology.bucket_of("tally", owner))
        if left[shard]:
            left[shard] -= 1
            trial.owners.append(owner)


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
