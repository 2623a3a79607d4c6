"""Take a replica out of account that has been absent for too long, or that is not like its primary.

A replica is absent since the last check at which it had caught up with the primary's previous position. It may be
unreachable or merely stuck. Time without checks does not count, and a lost note starts the count again: missing
knowledge never makes a node unfit.

After `[apply] replica_away_s` the replica is recorded as unfit in the primary's database. Only then is the log trimmed
of what the replica lacks. A replica stays unfit until an operator declares it rebuilt. Its watermarks prove nothing: a
replica that skipped what it missed has newer ones all the same.

The same holds for a replica with a filter, or one that passes over errors: rows may be missing there for good. Another
difference (`shard/survey/likeness`) makes a replica unfit for as long as it lasts. What the account may not see is no
proof: a warning names the node.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from pipeline import clock
from pipeline.client import Client
from pipeline.errors import NotMigrated, PipelineError, Unavailable
from pipeline.events import Event
from pipeline.model.op import Position
from pipeline.model.wait_reason import utc_text
from pipeline.oplog.shared_state import SharedState
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import mark_fit, mark_unfit, unfit_nodes
from pipeline.shard.session import NodeSession
from pipeline.shard.survey.likeness import Difference, differences
from pipeline.shard.survey.mysql import traits

#: Upkeep checks every 10 s; a longer gap between two checks does not count as absence, ms.
GAP_MS = 60_000
#: How long the comparison of a replica with its primary counts, ms: it costs five queries on each.
COMPARED_MS = 30_000
Marks = Mapping[int, Position]
logger = logging.getLogger("pipeline.upkeep")


class LastSeen(msgspec.Struct, frozen=True):
    """What upkeep stores of a replica.

    Attributes:
        with_primary_ms: when the replica had last caught up, by the wall clock, less the time without checks.
        looked_ms: when it was last checked.
        target: the primary's watermarks then; a replica that has them has caught up.
        compared_ms: when it was last compared with its primary; 0: never.
        unlike: in what it was not like its primary then, and what to do; empty where it was.
        lasting: whether rows may be missing there for good.
    """

    with_primary_ms: int
    looked_ms: int
    target: dict[int, Position]
    compared_ms: int = 0
    unlike: str = ""
    lasting: bool = False

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
    if before is None:
        return LastSeen(now_ms, now_ms, dict(primary))
    if replica is not None and all(replica.get(b, start) >= mark for b, mark in before.target.items()):
        return replace(before, with_primary_ms=now_ms, looked_ms=now_ms, target=dict(primary))
    unwatched_ms = now_ms - before.looked_ms
    # a clock that was set back makes a replica neither nearer nor further
    gap_ms = 0 if 0 <= unwatched_ms <= GAP_MS else unwatched_ms
    return replace(before, with_primary_ms=before.with_primary_ms + gap_ms, looked_ms=now_ms)


def fit_replicas(pipeline: Client, shard: str, primary: Marks) -> list[tuple[NodeSession, Marks | None]]:
    """Return the replicas of a shard that count, each with its watermarks: None for one that does not answer.

    A replica that has been absent for too long, or may lack rows for good, is recorded as unfit. It does not count from
    then on. One that differs in another way does not count for as long as it does.

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
        seen = _looked_at(pipeline, session, replica, primary, there)
        away = seen.away_ms > pipeline.settings.apply.replica_away_s * 1000
        why = _why_away(replica.node, seen.with_primary_ms) if away else seen.unlike
        if not why:
            counting.append((replica, there))
            continue
        if away or seen.lasting:
            mark_unfit(session, replica.node, seen.with_primary_ms, why)
            logger.error(Event("node_unfit", node=replica.node, why=why))
        unfit[replica.node] = why
    pipeline.log.publish_unfit(shard, json.dumps(unfit))
    return counting


def last_seen_of(log: SharedState, node: str) -> LastSeen | None:
    """Return what upkeep stored of a replica last; None where it has stored nothing.

    Args:
        log: has it.
        node: the replica's name.
    """
    noted = log.seen(node)
    try:
        return msgspec.json.decode(noted, type=LastSeen) if noted else None
    except (msgspec.MsgspecError, UnicodeError):  # no upkeep has written it
        return None


def declare_rebuilt(pipeline: Client, node: str, timeout_s: float = 30.0) -> None:
    """Let an unfit node count again after it was rebuilt from its primary.

    Args:
        pipeline: the deployment.
        node: the replica's name, such as `s0-r0`.
        timeout_s: how long the replica may take to reach the primary's watermarks.

    Raises:
        PipelineError: there is no such replica, it was not unfit, it lacks what its primary has, or is not like it.
    """
    shard = next((name for name in pipeline.topology.shards if node in pipeline.nodes.names(name)), None)
    if shard is None:
        raise PipelineError(f"there is no node {node!r} in the configuration")
    primary = pipeline.nodes.primary(shard)
    [replica] = [one for one in pipeline.nodes.replicas(shard) if one.node == node]
    if unlike := list(differences(traits(replica), traits(primary))):
        raise PipelineError(f"node {node!r} is not like its primary: {_sentence(unlike)}")
    if node not in unfit_nodes(primary):
        raise PipelineError(f"node {node!r} is not unfit: there is nothing to do")
    target = ledger_queries.positions_of(primary)
    for _ in clock.polls(timeout_s):
        there = _marks_of(replica)
        if there is not None and all(there.get(b, Position(-1, -1)) >= mark for b, mark in target.items()):
            break
    else:
        raise PipelineError(f"node {node!r} lacks what {primary.node} has, after {timeout_s:g} s too: rebuild it first")
    pipeline.log.note_seen(node, _text(look(None, clock.wall_ms(), target, target)))
    mark_fit(primary, node)
    pipeline.log.publish_unfit(shard, json.dumps(unfit_nodes(primary)))


def _why_away(node: str, since_ms: int) -> str:
    return (
        f"it was last with its primary at {utc_text(since_ms)}, and the log no longer keeps what it lacks:"
        f" rebuild it, then run pipeline rebuilt {node}"
    )


def _marks_of(replica: NodeSession) -> Marks | None:
    try:
        return ledger_queries.positions_of(replica)
    except (Unavailable, NotMigrated) as error:
        logger.warning(Event("replica_away", node=replica.node, error=error))
        return None


def _looked_at(
    pipeline: Client, primary: NodeSession, replica: NodeSession, target: Marks, there: Marks | None
) -> LastSeen:
    now_ms = clock.wall_ms()
    seen = look(last_seen_of(pipeline.log, replica.node), now_ms, target, there)
    # a clock that was set back ends no comparison later
    if there is not None and not 0 <= now_ms - seen.compared_ms < COMPARED_MS:
        seen = _compared(seen, primary, replica)
    pipeline.log.note_seen(replica.node, _text(seen))
    return seen


def _compared(before: LastSeen, primary: NodeSession, replica: NodeSession) -> LastSeen:
    """Return the note with a new comparison; the same note where a node does not answer."""
    node = replica.node
    try:
        here = traits(replica)
        found = list(differences(here, traits(primary)))
    except Unavailable as error:
        logger.warning(Event("replica_not_compared", node=node, error=error))
        return before
    if not (here.seen or before.compared_ms):
        logger.warning(Event("replication_not_shown", node=node, text="filters of its replication may go unseen"))
    lasting = any(one.lasting for one in found)
    unlike = _sentence(found) + (f"; then rebuild it from its primary, and run pipeline rebuilt {node}" * lasting)
    if unlike != before.unlike:
        logger.log(
            logging.ERROR if unlike else logging.INFO,
            Event("replica_unlike", node=node, why=unlike) if unlike else Event("replica_alike", node=node),
        )
    return replace(before, compared_ms=before.looked_ms, unlike=unlike, lasting=lasting)


def _sentence(found: Sequence[Difference]) -> str:
    return "; ".join(f"{one.place} {one.what}: {one.cure}" for one in found)


def _text(seen: LastSeen) -> str:
    return msgspec.json.encode(seen).decode()
