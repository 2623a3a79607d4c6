"""Pause, resume and drain a shard or a table by order; let ops go on that were set aside behind a stop.

Let ops go on that were set aside while their table was stopped, in order; try one where a breaker stopped it. A process
that lifts a stop releases its ops. A worker's chore releases ops too, in case that process ended.
"""

from __future__ import annotations

import getpass
import logging
import socket
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import NamedTuple

from pipeline import clock
from pipeline.apply.replay import Became, Replay
from pipeline.client import Client
from pipeline.enqueue.buckets import follow_noted
from pipeline.errors import BadOp, PipelineError, ShardUnavailable, Unavailable, did_you_mean
from pipeline.events import Event
from pipeline.model import Position
from pipeline.model.schema import TableSchema
from pipeline.oplog.shared_state import ORDERS
from pipeline.shard import NodeSession
from pipeline.shard.records import ledger_queries, replays
from pipeline.shard.records.replays import Place
from pipeline.shard.records.set_aside import behind_of
from pipeline.shard.records.stops import (
    BREAKER,
    PAUSED,
    WHOLE,
    Stop,
    definition_of,
    give,
    lift,
    note_definition,
    stops_of,
)

#: The most ops that one query names: what waits behind them is replayed with them.
_HEADS = 5000
logger = logging.getLogger("pipeline.upkeep")


class Target(NamedTuple):
    """What an order is about.

    Attributes:
        name: the shard's or the table's.
        scope: as the shards store it.
        shards: where it is stored.
    """

    name: str
    scope: str
    shards: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'shard' if self.scope == WHOLE else 'table'} {self.name}"


def target_of(pipeline: Client, name: str) -> Target:
    """Return the shard or the table of a name; `shard:x` and `table:x` tell two of the same name apart.

    Args:
        pipeline: the deployment.
        name: as the operator gave it.

    Raises:
        BadOp: neither has this name, or both have.
    """
    kind, _, bare = name.rpartition(":")
    shards = pipeline.topology.shards
    is_shard = bare in shards and kind != "table"
    if is_shard and kind == "shard":
        return Target(bare, WHOLE, (bare,))
    tables = {*pipeline.settings.tables, *_published(pipeline, needed=not is_shard)}
    is_table = bare in tables and kind != "shard"
    if is_shard and is_table:
        raise BadOp(f"a shard and a table have the name {bare!r}: write shard:{bare} or table:{bare}")
    if is_shard:
        return Target(bare, WHOLE, (bare,))
    if is_table:
        return Target(bare, bare, tuple(shards))
    raise BadOp(f"no shard and no published table has the name {bare!r}{did_you_mean(bare, {*shards, *tables})}")


def pause(pipeline: Client, target: Target, reason: str = "", by: str = "") -> None:
    """Stop a target on all of its shards. Workers obey within a second, after their current batch.

    Args:
        pipeline: the deployment.
        target: what to stop.
        reason: shown wherever its ops are seen to wait.
        by: who orders it, shown there too; by default the user of this process.

    Raises:
        PipelineError: a primary did not answer; the message names it. The other shards are paused: repeat the call.
    """
    failed = {}
    for shard in target.shards:
        try:
            give(pipeline.nodes.primary(shard), Stop(target.scope, PAUSED, reason, 0, by or who()))
            stir(pipeline, shard)
        except PipelineError as error:
            failed[shard] = error
    _report(target, failed)


def resume(pipeline: Client, target: Target) -> list[Stop]:
    """Lift the stops of a target on all of its shards; return what was lifted. `release` lets go on what was set aside.

    A table that a breaker stopped stays stopped where the op that waits first is refused again.

    Args:
        pipeline: the deployment.
        target: what to resume.

    Raises:
        PipelineError: a primary did not answer; the message names it. The other shards go on: repeat the call.
    """
    follow_noted(pipeline.log, pipeline.topology)  # Flower and top know the map of when they began
    lifted, failed = [], {}
    for shard in target.shards:
        try:
            mine = [one for one in stops_of(pipeline.nodes.primary(shard)) if one.scope == target.scope]
            lifted += [one for one in mine if _lift(pipeline, shard, one)]
            stir(pipeline, shard)
            _wake(pipeline, shard)
        except PipelineError as error:
            failed[shard] = error
    _report(target, failed)
    return lifted


def drain_and_pause(pipeline: Client, target: Target, timeout_s: float, reason: str = "") -> Iterator[int]:
    """Yield how many of the ops that are queued now are left, until none is; then pause the target.

    Args:
        pipeline: the deployment.
        target: what to drain. The ops of a table wait in the buckets of its shards, so all ops in them are counted.
        timeout_s: how long to wait, seconds; after it nothing is paused.
        reason: as of `pause`.

    Raises:
        PipelineError: the target is paused already, or a primary did not answer.
    """
    for shard in target.shards:
        for one in stops_of(pipeline.nodes.primary(shard)):
            if one.scope in (WHOLE, target.scope):
                raise PipelineError(one.reason_on(shard).sentence())
    topology = pipeline.topology
    follow_noted(pipeline.log, topology)
    queued = {shard: pipeline.log.tails(topology.applied_by(shard)) for shard in target.shards}
    for _ in clock.polls(timeout_s, first_s=0.05, most_s=0.5):
        left = sum(_left(pipeline, shard, tails) for shard, tails in queued.items())
        if left == 0:
            pause(pipeline, target, reason)
        yield left
        if left == 0:
            return


def stops_on(pipeline: Client, shard: str, target: Target) -> list[Stop]:
    """Return how a target is stopped on a shard.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        target: of the order.
    """
    return [one for one in stops_of(pipeline.nodes.primary(shard)) if one.scope == target.scope]


def who() -> str:
    """Return who gives an order: the user and the host of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def _published(pipeline: Client, *, needed: bool) -> list[str]:
    """Return the names of the published tables; a shard can be paused while Redis does not answer."""
    try:
        return list(pipeline.log.newest_schemas())
    except Unavailable:
        if needed:
            raise
        return []


def _report(target: Target, failed: Mapping[str, PipelineError]) -> None:
    """Raise where an order reached not all shards of its target."""
    if failed:
        why = "; ".join(f"shard {shard}: {error}" for shard, error in failed.items())
        done = ", ".join(shard for shard in target.shards if shard not in failed) or "none"
        raise PipelineError(f"{why} (done: {done}); mend it and repeat the command")


def _lift(pipeline: Client, shard: str, order: Stop) -> bool:
    if order.kind == BREAKER:
        return try_one(pipeline, shard, order, who())
    return lift(pipeline.nodes.primary(shard), order.scope, order.kind)


def stir(pipeline: Client, shard: str) -> None:
    """Have workers look at a shard that was quiet: screens show the order, and what it held back is released.

    Args:
        pipeline: the deployment.
        shard: at which people have ordered something.
    """
    try:
        pipeline.log.finish(shard, {}, counts={ORDERS: 1})
    except Unavailable:
        return


def _wake(pipeline: Client, shard: str) -> None:
    """End the rest of a shard's buckets; where Redis does not answer, the rest ends by itself."""
    topology = pipeline.topology
    try:
        pipeline.log.postpone(shard, topology.applied_by(shard), 0)
        pipeline.bell.ring_now(shard, 1)
    except Unavailable:
        return


def _left(pipeline: Client, shard: str, tails: Mapping[int, Position]) -> int:
    """Return how many ops up to the tails a shard has not applied."""
    found = ledger_queries.marks_of(pipeline.nodes.primary(shard), tails) if tails else {}
    behind = {bucket: mark.position for bucket, mark in found.items() if mark.position < tails[bucket]}
    if not behind:
        return 0
    return max(1, sum(pipeline.log.queued(behind, {bucket: tails[bucket] for bucket in behind}).values()))


def release(pipeline: Client, shard: str, who: str) -> Iterator[int]:
    """Replay the ops that wait for a table that is stopped no more, or for a definition that is there by now; yield how
    many each transaction has settled.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        who: for the record of actions.

    Raises:
        ShardUnavailable: the primary does not answer; what was yielded is done.
    """
    session, settings = pipeline.nodes.primary(shard), pipeline.settings
    behind = set[tuple[str, str]]()
    for what, tried in _definitions_tried(pipeline, shard, who):
        if tried is None or behind_of(shard, what[0], tried.reason, 0) is not None:
            behind.add(what)
    chosen, patient = _released(session, behind), True
    while chosen:
        settled = 0
        replay = Replay(shard, session, pipeline.log, settings.apply, settings.tables, patient=patient, whole=True)
        for result in replay.run(chosen, who):
            settled += result.replayed + result.refused
            # a table of which no op was tried, as each waited behind another, or that refuses again
            behind |= {(one.table, one.reason) for one in replay.became if behind_of(shard, one.table, one.reason, 0)}
            yield result.replayed + result.refused
        if replay.left:
            why = min(replay.left.values())
            logger.warning(Event("release_stopped", shard=shard, buckets=len(replay.left), why=why))
        # an op that needs another's row may have had its turn before that one; where none gets on, none helps another
        chosen, patient = _released(session, behind, needy=True) if settled or patient else {}, settled > 0


def _definitions_tried(pipeline: Client, shard: str, who: str) -> Iterator[tuple[tuple[str, str], Became | None]]:
    """Try one op for each definition that ops wait for; yield its table and reason, and what would become of it."""
    session = pipeline.nodes.primary(shard)
    stopped = {stop.scope for stop in stops_of(session)}
    heads: dict[tuple[str, str], Place] = {}
    for one in _waiting(session):
        if behind_of(shard, one.table, one.reason, 0) is not None and not {WHOLE, one.table} & stopped:
            heads.setdefault((one.table, one.reason), one.place)
    for what, place in heads.items():
        # were it done now, it might come before older ops of other buckets
        yield what, _tried(pipeline, shard, place, who, trial=True)


def _tried(
    pipeline: Client, shard: str, place: Place, who: str, despite: str = "", *, trial: bool = False
) -> Became | None:
    """Replay one op that waits, or only look what would become of it; return that. None: a row of it is locked."""
    session, settings = pipeline.nodes.primary(shard), pipeline.settings
    alone = replace(settings.apply, max_rows=1)
    bucket, position = place
    replay = Replay(shard, session, pipeline.log, alone, settings.tables, despite=despite)
    next(replay.run({bucket: [position]}, who, trial=trial))
    return next(iter(replay.became), None)


def _waiting(session: NodeSession) -> list[replays.Waiting]:
    with session.translated(), session.transaction():
        return replays.waiting(session, _HEADS)


def _released(session: NodeSession, behind: Set[tuple[str, str]], *, needy: bool = False) -> dict[int, list[Position]]:
    """Return the places of ops that wait for no table that is stopped, nor for a definition, by bucket.

    Args:
        session: of the shard's primary.
        behind: the tables and reasons of those that still wait for their definition.
        needy: only those that may need others.
    """
    stopped, tables = {stop.scope for stop in stops_of(session)}, {table for table, _ in behind}
    chosen: dict[int, list[Position]] = {}
    for (bucket, position), table, needs, reason in _waiting(session):
        waits = needs in tables if needs else (table, reason) in behind
        if not waits and not {WHOLE, needs or table} & stopped and (needs or not needy):
            chosen.setdefault(bucket, []).append(position)
    return chosen


def try_one(pipeline: Client, shard: str, stop: Stop, who: str) -> bool:
    """Try one op of a table that a breaker stopped; lift the stop if the op is taken, or if none waits.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        stop: the breaker's.
        who: for the record of actions.

    Returns:
        Whether the table goes on.
    """
    session = pipeline.nodes.primary(shard)
    heads = [one.place for one in _waiting(session) if one.table == stop.scope and not one.needs]
    tried = _tried(pipeline, shard, heads[0], who, despite=stop.scope) if heads else None
    if heads and (tried is None or tried.state != replays.REPLAYED):
        logger.warning(Event("table_stays_halted", shard=shard, table=stop.scope))
        return False
    return lift(session, stop.scope, BREAKER)


def try_changed(pipeline: Client, shard: str, who: str) -> list[str]:
    """Try one op of each table that a breaker stopped and whose definition has changed; return the tables that go on.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        who: for the record of actions.
    """
    session = pipeline.nodes.primary(shard)
    halted = [stop for stop in stops_of(session) if stop.kind == BREAKER]
    names = _database_names(pipeline) if halted else {}
    done = []
    for stop in halted:
        definition = definition_of(session, names.get(stop.scope, stop.scope))
        if definition in ("", stop.definition):
            continue
        try:
            if try_one(pipeline, shard, stop, who):
                done.append(stop.scope)
            else:
                note_definition(session, stop.scope, definition)
        except ShardUnavailable as error:  # other tables are released all the same
            logger.warning(Event("table_not_tried", shard=shard, table=stop.scope, error=error))
    return done


def _database_names(pipeline: Client) -> dict[str, str]:
    schemas = map(TableSchema.from_json, pipeline.log.newest_schemas().values())
    return {schema.name: schema.name_there for schema in schemas}
