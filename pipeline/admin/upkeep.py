"""Reconcile the dirty set, trim logs, forget producers, find strange keys in Redis; workers run these chores.

Find keys in Redis, under the pipeline's own names, that no process of the pipeline has written. A strange key stops one
thing or another: a set in place of a log, a bell that never expires. Workers delete them. A key that is deleted is as
one that Redis has forgotten: the databases know its value, or it is made anew.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable, Mapping

import msgspec

from pipeline import clock
from pipeline.admin import absence, stops
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, format_ranges, log_number
from pipeline.enqueue.buckets import follow
from pipeline.enqueue.receipt_status import REMEMBERED_S
from pipeline.errors import NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model import START, Position, may_come_again
from pipeline.model.fingerprint import Fingerprint
from pipeline.oplog import RECONCILE
from pipeline.oplog.appends import EVERYWHERE, Scope, scopes_of
from pipeline.oplog.shared_state import ALIVE, SharedState
from pipeline.shard import records
from pipeline.shard.records import ledger_queries, moves, replays

#: What was sent under older epochs is judged once in so long, ms; Redis forgets producers after two days.
JUDGED_MS = 86_400_000
#: How long a shard without replicas keeps applied entries, s: a dump of its primary may be that old.
FLOOR_S = 600
#: The size of what is set aside is looked at once in so long, ms.
SIZED_MS = 60_000
logger = logging.getLogger("pipeline.upkeep")


def strange_keys(
    log: SharedState, topology: Topology, scope: Scope, chores: Iterable[str] = (), *, delete: bool = False
) -> list[str]:
    """Return the names of such keys of a scope, and of the whole deployment.

    Args:
        log: has the keys.
        topology: whose logs are judged.
        scope: a shard's, or that of the reference log.
        chores: of a shard; each has a lease.
        delete: whether to delete them.
    """
    buckets = (topology.reference_bucket,) if scope.name == EVERYWHERE else topology.buckets_of(scope.name)
    known = (
        f"lineage:{scope.name}",
        f"span:{scope.name}",
        f"mend:{scope.name}",
        f"sweep:{scope.name}",
        "probe",
        "observe",
        "moves",
        ALIVE.format(scope.name),
    )
    leases = {*known, RECONCILE.format(scope.name), *(f"{name}:{scope.name}" for name in chores)}
    return log.mend(scope, buckets, leases, delete=delete)


def every_strange_key(log: SharedState, topology: Topology) -> tuple[str, ...]:
    """Return the names of all such keys, and delete none.

    Args:
        log: has the keys.
        topology: whose logs are judged.
    """
    scopes = scopes_of(topology.shards).values()
    return tuple(sorted({name for scope in scopes for name in strange_keys(log, topology, scope)}))


def reconcile(pipeline: Client, shard: str) -> int:
    """Mark dirty every bucket whose log goes beyond its watermark; return how many there are.

    The dirty set is an index of this comparison and can be wrong. A worker clears the mark after its commit. If the
    primary dies then, the promoted node lacks the commit.

    A log that does not reach its watermark has forgotten entries, or is another's: its epoch ends, and a new one is
    raised.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
    """
    found = ledger_queries.marks_of(pipeline.nodes.primary(shard))
    mine = {bucket: mark.position for bucket, mark in found.items() if mark.owned}
    for bucket in _elsewhere(pipeline, shard, mine):
        del mine[bucket]
    tails = pipeline.log.tails(mine)
    behind = unapplied(mine, tails)
    pipeline.log.mark_dirty(shard, behind)
    _report_other_deployments(pipeline, shard, mine, tails)
    _audit(pipeline, shard, mine)
    return len(behind)


def _elsewhere(pipeline: Client, shard: str, mine: Iterable[int]) -> set[int]:
    """Return those of a shard's buckets that another shard has: its database was restored from a backup of before."""
    topology = pipeline.topology
    if strange := topology.elsewhere(shard, mine):  # the map that this process knows may be old
        follow(pipeline.log, pipeline.nodes, topology, anew=True)
        strange = topology.elsewhere(shard, strange)
    if strange:
        logger.error(
            Event(
                "buckets_elsewhere", shard=shard, buckets=format_ranges(strange),
                text="other shards have these buckets by now: the shard was restored from a backup of before they "
                f"left; run: pipeline restore {shard}",
            ))  # fmt: skip
    return strange


def _audit(pipeline: Client, shard: str, mine: Mapping[int, Position]) -> None:
    logs = {log_number(number): position for number, position in mine.items()}
    for scope, marks in pipeline.publisher.by_scope(logs).items():
        if pipeline.log.audit(scope.name, marks):
            pipeline.publisher.epoch_of(scope)  # raises another, and says why


def name_losses(pipeline: Client, shard: str) -> int:
    """Have judged what Redis still knows to be sent under an epoch that is over; return how much could not be yet.

    A log may be gone while its producers' sequences stay, and the producers have ended. It is done once an epoch, since
    it reads what Redis knows of all producers.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
    """
    log, publisher, left = pipeline.log, pipeline.publisher, 0
    shared = [EVERYWHERE] if shard == pipeline.topology.shards[0] else []
    for scope in (shard, *shared):
        epoch, current, _ = log.epoch(scope)
        done = f"losses:{scope}:{epoch}"
        if not current or not log.take_lease(done, JUDGED_MS):
            continue
        unsure = 0
        for producer, sent in log.senders(scope):
            over = {
                (bucket, producer): one
                for bucket, one in sent.items()
                # what its holder may send again is not lost
                if 0 < one[1] < epoch and not may_come_again(producer) and publisher.scope_of(bucket).name == scope
            }
            unsure += len(over) - len(publisher.judge(over)) if over else 0
        if unsure:
            log.release_lease(done, "1")
        left += unsure
    return left


def release_waiting(pipeline: Client, shard: str) -> int:
    """Let go on what waits for a table that is stopped no more; return how many ops.

    A table that a breaker halted is tried when its definition has changed.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
    """
    who = f"worker@{socket.gethostname()}"
    try:
        stops.try_changed(pipeline, shard, who)
        return sum(stops.release(pipeline, shard, who))
    except NotMigrated:  # the tables are older than this worker: nothing can be set aside
        return 0


def unapplied(marks: Mapping[int, Position], tails: Mapping[int, Position]) -> list[int]:
    """Return the buckets whose log goes beyond their watermark.

    Args:
        marks: the shard's watermarks, by bucket.
        tails: the last position in each bucket's log; a bucket without a log is left out.
    """
    return [bucket for bucket, mark in marks.items() if bucket in tails and tails[bucket] > mark]


def _report_other_deployments(
    pipeline: Client, shard: str, mine: dict[int, Position], tails: dict[int, Position]
) -> None:
    """Log an error if a watermark has a later epoch than this Redis gives out: another Redis feeds the same shard.

    A Redis that lost its epochs is a different case: its epoch is not current any more, or is above all watermarks.
    """
    ahead = [bucket for bucket, mark in mine.items() if bucket in tails and tails[bucket].epoch < mark.epoch]
    scopes = {bucket: pipeline.publisher.scope_of(log_number(bucket)) for bucket in ahead}
    epochs = {scope: pipeline.log.epoch(scope.name) for scope in {*scopes.values()}}
    for bucket in ahead:
        epoch, current, _ = epochs[scopes[bucket]]
        if current and epoch < mine[bucket].epoch:
            logger.error(
                Event(
                    "another_deployment", shard=shard, bucket=bucket, mark_epoch=mine[bucket].epoch, epoch=epoch,
                    text="another deployment applies ops to this shard: ops are taken for applied that are not; "
                    "give each [redis] url and prefix databases of its own",
                ))  # fmt: skip
            return


def trim(pipeline: Client, shard: str) -> int:
    """Delete log entries behind the replicated watermark; return about how many.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
    """
    behind = _replicated(pipeline, shard)
    trimmed = pipeline.log.trim(behind) if behind else 0
    # at the end, since a primary whose disk is full refuses it
    primary = pipeline.nodes.primary(shard)
    marks = ledger_queries.positions_of(primary)
    waiting = [bucket for bucket, ops in pipeline.log.queued(marks).items() if ops]
    with primary.translated(), primary.transaction():
        records.forget_producers(primary, REMEMBERED_S, waiting)
    _forget_rejects(pipeline, shard)
    return trimmed


def _forget_rejects(pipeline: Client, shard: str) -> None:
    """Give up what was set aside long ago, and what is too much; nothing of a bucket that two shards compare."""
    primary, settings = pipeline.nodes.primary(shard), pipeline.settings.apply
    under_way = [leg for leg in moves.legs(primary).values() if leg.under_way(shard)]
    moving = {number for leg in under_way for number in (leg.bucket, log_number(leg.bucket))}
    with primary.translated(), primary.transaction():
        replays.forget_settled(primary, REMEMBERED_S, moving)
        if dropped := replays.drop_old_rejects(primary, settings.rejects_days, moving):
            logger.warning(Event("rejects_forgotten", shard=shard, ops=dropped, days=settings.rejects_days))
    most_bytes = settings.rejects_mb * 1_000_000
    # the sizes are added up over all of the table: not at each turn
    if not replays.too_much(primary, most_bytes) or not pipeline.log.take_lease(f"rejects:{shard}", SIZED_MS):
        return
    given_up, more = 0, True
    while more:
        with primary.translated(), primary.transaction():
            changed, dropped = replays.bound_rejects(primary, most_bytes, moving)
        more, given_up = changed > 0, given_up + dropped
    if given_up:
        logger.warning(Event("rejects_given_up", shard=shard, ops=given_up, limit_mb=settings.rejects_mb))


def _replicated(pipeline: Client, shard: str) -> dict[int, Position]:
    """Return per bucket the position that every node of every shard that applies it has passed."""
    reference = pipeline.topology.reference_bucket
    lowest = _on_every_node(pipeline, shard)
    if reference in lowest and not _knows_all_shards(pipeline):
        del lowest[reference]
    if reference in lowest:
        for other in pipeline.topology.shards:
            if other != shard:
                there = _reached(pipeline, other, reference)
                if there is None:
                    lowest.pop(reference, None)
                    break
                lowest[reference] = min(lowest[reference], there)
    lowest = _not_moving(pipeline, shard, lowest)
    return {b: position for b, position in lowest.items() if position.epoch > 0 and b < FIRST_PIECE}


def _not_moving(pipeline: Client, shard: str, lowest: dict[int, Position]) -> dict[int, Position]:
    """Return the positions up to which nobody needs the log either who copies a bucket, or has it from a move.

    Nor who has, or copies, one of its keys.
    """
    session = pipeline.nodes.primary(shard)
    legs = moves.legs(session)
    for bucket, (other, piece) in moves.lent_by(shard, legs).items():
        there = _reached(pipeline, other, piece)
        here = lowest.get(bucket)
        if there is None or here is None:
            lowest.pop(bucket, None)
            continue
        returns = legs[piece].state in moves.ON_THE_WAY
        lowest[bucket] = min(here, there, lowest.get(piece, START) if returns else here)
    for bucket, leg in legs.items():
        if leg.of is not None:
            continue
        owned = leg.state in records.OWNED
        there = _reached(pipeline, leg.target, bucket) if owned and leg.under_way(shard) else None
        if there is not None:
            lowest[bucket] = min(lowest.get(bucket, there), there)
        elif leg.under_way(shard) or not owned:
            lowest.pop(bucket, None)
    return lowest


def _knows_all_shards(pipeline: Client) -> bool:
    """Return whether this process's configuration names every shard: one may have been added since it started."""
    text = pipeline.log.deployment()
    fingerprint = Fingerprint.noted(text)
    if fingerprint is None:
        return not text
    return {name for name, _ in fingerprint.shards} <= {*pipeline.topology.shards}


def _reached(pipeline: Client, shard: str, bucket: int) -> Position | None:
    """Return the position that every node of another shard has passed; None where that is not known."""
    try:
        return _on_every_node(pipeline, shard).get(bucket)
    except Unavailable as error:  # a shard that is away keeps the log that all share, and no other
        logger.warning(Event("reference_log_not_trimmed", shard=shard, error=error))
        return None


def _on_every_node(pipeline: Client, shard: str) -> dict[int, Position]:
    lowest = {b: m.position for b, m in ledger_queries.marks_of(pipeline.nodes.primary(shard)).items()}
    counting = absence.fit_replicas(pipeline, shard, lowest)
    if not counting:
        return _as_of(pipeline, shard, lowest)
    for replica, there in counting:
        if there is None:
            # the replica may return and be promoted: keep every entry that it may still need
            logger.warning(Event("not_trimmed", shard=shard, node=replica.node, why="the node is away"))
            return {}
        lowest = {b: min(p, there[b]) for b, p in lowest.items() if b in there}
    return lowest


def _as_of(pipeline: Client, shard: str, now: dict[int, Position]) -> dict[int, Position]:
    """Return the watermarks of `FLOOR_S` ago, from notes in the log; add a note of today's."""
    text = json.dumps({bucket: str(position) for bucket, position in now.items()})
    noted = pipeline.log.note_marks(shard, clock.wall_ms(), text, older_than_ms=FLOOR_S * 1000)
    try:
        then = msgspec.json.decode(noted or "{}", type=dict[int, str])
        return {bucket: Position.parse(position) for bucket, position in then.items()}
    except (msgspec.MsgspecError, ValueError):  # nobody of ours has noted it: nothing is known to be so old
        return {}
