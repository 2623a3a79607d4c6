"""Replicas that are away: how long the log waits for them, and what becomes of one for which it no longer does.

A replica is away from the moment since which it has not reached what its primary had then, whether it does not answer
or stands still. Time in which nobody looked does not count, and a lost note begins anew: not knowing never makes a
node unfit. After `[apply] replica_away_s` it is recorded as unfit, in the primary's database first, and only then is
anything trimmed that it lacks. It stays unfit until an operator says that it was rebuilt: its watermarks cannot tell,
since a replica that was made to skip what it missed has newer ones all the same.
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
from pipeline.shard import ledger_queries
from pipeline.shard.ledger import mark_fit, mark_unfit, unfit_nodes
from pipeline.shard.session import NodeSession

#: Upkeep looks every 10 s; a longer gap between two looks is time in which nobody looked, ms.
GAP_MS = 60_000
Marks = Mapping[int, Position]
logger = logging.getLogger("pipeline.upkeep")


class LastSeen(msgspec.Struct, frozen=True):
    """What upkeep noted of a replica: when it was last with its primary, and what it has to reach to be so again."""

    with_primary_ms: int
    looked_ms: int
    target: dict[int, Position]

    @property
    def away_ms(self) -> int:
        """For how long it has been away."""
        return self.looked_ms - self.with_primary_ms


def look(before: LastSeen | None, now_ms: int, primary: Marks, replica: Marks | None) -> LastSeen:
    """Return what to note after a look. Pure.

    Args:
        replica: its watermarks; None if it did not answer.
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
    """Return the replicas of a shard that count, each with its watermarks: None where it does not answer.

    One that has been away for too long is recorded as unfit, and does not count from then on.
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
    """Let a node count again that was unfit and has been rebuilt from its primary.

    Raises:
        PipelineError: there is no such replica, it was not unfit, or it does not have what its primary has.
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
    """Say in a sentence what is wrong with an unfit node, and what to do."""
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
