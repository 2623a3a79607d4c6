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
    session = pipeline.nodes.primary(shard)
    stopped = {stop.scope for stop in stops_of(session)}
    chosen: dict[int, list[Position]] = {}
    with session.translated(), session.transaction():
        waiting = replays.waiting(session, _HEADS)
    for bucket, position, table in waiting:
        if table not in stopped:
            chosen.setdefault(bucket, []).append(position)
    if WHOLE in stopped or not chosen:
        return
    replay = Replay(shard, session, pipeline.log, pipeline.settings.apply, pipeline.settings.tables)
    for result in replay.run(chosen, who):
        yield result.replayed + result.refused
    if replay.left:
        logger.warning(Event("release_stopped", shard=shard, buckets=len(replay.left), why=min(replay.left.values())))


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
        heads = [(bucket, place) for bucket, place, table in replays.waiting(session, _HEADS) if table == stop.scope]
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
