"""Let ops go on that were set aside while their table was stopped, in order; try one where a breaker stopped it.

Whoever lifts a stop releases its ops. A worker's chore does it too, in case that process died.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from pipeline.apply.replay import Replay
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.events import Event
from pipeline.model.op import Position
from pipeline.model.schema import TableSchema
from pipeline.shard.records import replays
from pipeline.shard.records.stops import BREAKER, WHOLE, Stop, definition_of, lift, note_definition, stops_of
from pipeline.shard.session import NodeSession

#: The most ops that one query names: what waits behind them is replayed with them.
_HEADS = 5000
logger = logging.getLogger("pipeline.upkeep")


def release(pipeline: Client, shard: str, who: str) -> Iterator[int]:
    """Replay the ops that wait for a table that is stopped no more; yield how many each transaction has settled.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        who: for the record of actions.

    Raises:
        ShardUnavailable: the primary does not answer; what was yielded is done.
    """
    session, settings = pipeline.nodes.primary(shard), pipeline.settings
    chosen, patient = _released(session), True
    while chosen:
        settled, replay = 0, Replay(shard, session, pipeline.log, settings.apply, settings.tables, patient=patient)
        for result in replay.run(chosen, who):
            settled += result.replayed + result.refused
            yield result.replayed + result.refused
        if replay.left:
            why = min(replay.left.values())
            logger.warning(Event("release_stopped", shard=shard, buckets=len(replay.left), why=why))
        # an op that needs another's row may have had its turn before that one; where none gets on, none helps another
        chosen, patient = _released(session, needy=True) if settled or patient else {}, settled > 0


def _released(session: NodeSession, *, needy: bool = False) -> dict[int, list[Position]]:
    """Return the places of ops that wait for no table that is stopped, by bucket.

    Args:
        session: of the shard's primary.
        needy: only those that may need others.
    """
    stopped = {stop.scope for stop in stops_of(session)}
    with session.translated(), session.transaction():
        waiting = replays.waiting(session, _HEADS)
    chosen: dict[int, list[Position]] = {}
    for (bucket, position), table, needs in waiting:
        if not {WHOLE, needs or table} & stopped and (needs or not needy):
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
    with session.translated(), session.transaction():
        heads = [one.place for one in replays.waiting(session, _HEADS) if one.table == stop.scope and not one.needs]
    if heads:
        one = replace(pipeline.settings.apply, max_rows=1)
        replay = Replay(shard, session, pipeline.log, one, pipeline.settings.tables, despite=stop.scope)
        bucket, position = heads[0]
        result = next(replay.run({bucket: [position]}, who))
        if not result.replayed:
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
