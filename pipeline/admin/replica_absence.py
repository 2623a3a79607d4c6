"""Measure how long replicas have been absent, and take one out of account once it has been absent for too long.

A replica is absent since the last check at which it had caught up with the primary's previous position. It may be
unreachable or merely stuck. Time without checks does not count, and a lost note starts the count again: missing
knowledge never makes a node unfit.

After `[apply] replica_away_s` the replica is recorded as unfit in the primary's database. Only then is the log trimmed
of what the replica lacks. A replica stays unfit until an operator declares it rebuilt. Its watermarks prove nothing: a
replica that skipped what it missed has newer ones all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import msgspec

from pipeline import clock
from pipeline.client import Client
from pipeline.errors import NotMigrated, PipelineError, Unavailable
from pipeline.model.op import Position
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import mark_fit, mark_unfit, unfit_nodes
from pipeline.shard.session import NodeSession

#: Upkeep checks every 10 s; a longer gap between two checks does not count as absence, ms.
GAP_MS = 60_000
Marks = Mapping[int, Position]
logger = logging.getLogger("pipeline.upkeep")


class LastSeen(msgspec.Struct, frozen=True):
    """What upkeep stores of a replica.

    Attributes:
        with_primary_ms: when the replica had last caught up, by the wall clock, less the time without checks.
        looked_ms: when it was last checked.
        target: the primary's watermarks then; a replica that has them has caught up.
    """

    with_primary_ms: int
    looked_ms: int
    target: dict[int, Position]

    @property
    def away_ms(self) -> int:
        """How long the replica has been absent, ms."""
        return self.looked_ms - self.with_primary_ms


def look(before: LastSeen | None, now_ms: int, primary: Marks, replica: Marks | None) -> LastSeen:
    """Return what to store after a check. Pure.

    Args:
        before: what the last check stored; None at the first.
        now_ms: the wall clock.
        primary: the primary's watermarks.
        replica: the replica's watermarks; None if it did not answer.
    """
    start = Position(-1, -1)
    if before is None or (
        replica is not None and all(replica.get(b, start) >= mark for b, mark in before.target.items())
    ):
        return LastSeen(now_ms, now_ms, dict(primary))
    unwatched_ms = max(0, now_ms - before.looked_ms)
    gap_ms = unwatched_ms if unwatched_ms > GAP_MS else 0
    return LastSeen(before.with_primary_ms + gap_ms, now_ms, before.target)


def fit_replicas(pipeline: Client, shard: str, primary: Marks) -> list[tuple[NodeSession, Marks | None]]:
    """Return the replicas of a shard that count, each with its watermarks: None for one that does not answer.

    A replica that has been absent for too long is recorded as unfit, and does not count from then on.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        primary: the primary's watermarks.
    """
    session = pipeline.nodes.primary(shard)
    unfit, counting = unfit_nodes(session), []
    for replica in pipeline.nodes.replicas(shard):
        if replica.node in unfit:
            continue
        there = _marks_of(replica)
        seen = _looked_at(pipeline, replica.node, primary, there)
        if seen.away_ms > pipeline.settings.apply.replica_away_s * 1000:
            mark_unfit(session, replica.node, seen.with_primary_ms)
            unfit[replica.node] = seen.with_primary_ms
            logger.error(
                "node %s is unfit from now on: %s", replica.node, why_unfit(replica.node, seen.with_primary_ms)
            )
        else:
            counting.append((replica, there))
    pipeline.log.publish_unfit(shard, json.dumps(unfit))
    return counting


def declare_rebuilt(pipeline: Client, node: str, timeout_s: float = 30.0) -> None:
    """Let an unfit node count again after it was rebuilt from its primary.

    Args:
        pipeline: the deployment.
        node: the replica's name, such as `s0-r0`.
        timeout_s: how long the replica may take to reach the primary's watermarks.

    Raises:
        PipelineError: there is no such replica, it was not unfit, or it lacks what its primary has.
    """
    shard = next((name for name in pipeline.topology.shards if node in pipeline.nodes.names(name)), None)
    if shard is None:
        raise PipelineError(f"there is no node {node!r} in the configuration")
    primary = pipeline.nodes.primary(shard)
    if node not in unfit_nodes(primary):
        raise PipelineError(f"node {node!r} is not unfit: there is nothing to do")
    target = {bucket: mark.position for bucket, mark in ledger_queries.marks_of(primary).items()}
    [replica] = [one for one in pipeline.nodes.replicas(shard) if one.node == node]
    for _ in clock.polls(timeout_s):
        there = _marks_of(replica)
        if there is not None and all(there.get(b, Position(-1, -1)) >= mark for b, mark in target.items()):
            break
    else:
        raise PipelineError(f"node {node!r} lacks what {primary.node} has, after {timeout_s:g} s too: rebuild it first")
    pipeline.log.note_seen(node, _text(look(None, clock.wall_ms(), target, target)))
    mark_fit(primary, node)
    pipeline.log.publish_unfit(shard, json.dumps(unfit_nodes(primary)))


def why_unfit(node: str, since_ms: int) -> str:
    """Return a sentence that says what is wrong with an unfit node, and what to do.

    Args:
        node: the replica's name.
        since_ms: when it had last caught up, by the wall clock.
    """
    away_s = max(0, clock.wall_ms() - since_ms) // 1000
    return (
        f"it was last with its primary {away_s:,} s ago, and the log no longer keeps what it lacks:"
        f" rebuild it, then run pipeline rebuilt {node}"
    )


def _marks_of(replica: NodeSession) -> Marks | None:
    try:
        return {bucket: mark.position for bucket, mark in ledger_queries.marks_of(replica).items()}
    except (Unavailable, NotMigrated) as error:
        logger.warning("%s is away: %s", replica.node, error)
        return None


def _looked_at(pipeline: Client, node: str, primary: Marks, replica: Marks | None) -> LastSeen:
    noted = pipeline.log.seen(node)
    before = msgspec.json.decode(noted, type=LastSeen) if noted else None
    seen = look(before, clock.wall_ms(), primary, replica)
    pipeline.log.note_seen(node, _text(seen))
    return seen


def _text(seen: LastSeen) -> str:
    return msgspec.json.encode(seen).decode()
