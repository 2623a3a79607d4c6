"""Order moves of buckets, and find those that are under way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.migration import published
from pipeline.admin.moving import Mover
from pipeline.admin.moving.buckets_rows import MovedTable, Size, apart, moved_tables, rows_in, size_of
from pipeline.admin.observe.moves import OneMove, each_move, how_far, leg_of_target, pace_of
from pipeline.admin.stops import stir
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.buckets import format_ranges
from pipeline.enqueue.buckets import Told, follow
from pipeline.errors import PipelineError, Unavailable, did_you_mean
from pipeline.events import Event
from pipeline.model.schema import Column, TableSchema
from pipeline.model.values import key_form, lenient
from pipeline.per_process import chance
from pipeline.shard import NodeSession, records
from pipeline.shard.co_location import bucket_sql
from pipeline.shard.records import APPLYING, COPYING, MOVED, Mark, ledger_queries, moves
from pipeline.shard.records.moves import DEFAULTS, Leg, MoveNote

#: How long rows of the source are kept once the target goes on, s: readers may have the map of before.
KEEP_S = 60
logger = logging.getLogger("pipeline.moves")


def order_move(
    client: Client,
    buckets: Collection[int],
    target: str,
    who: str,
    keep_s: int = KEEP_S,
    note: MoveNote = DEFAULTS,
) -> Mover:
    """Order that buckets of one shard move to another; return the mover, whose `steps` do it.

    Args:
        client: the deployment.
        buckets: which; all on one shard.
        target: the name of the shard that they move to.
        who: for the record.
        keep_s: how long the source keeps its rows once the target goes on, s.
        note: has the limits of the copy, and how many rows there are.

    Raises:
        PipelineError: they cannot be moved, with what to change; nothing was changed.
    """
    source, _ = _movable(client, buckets, target)
    session, wanted = client.nodes.primary(source), tuple(sorted(buckets))
    number = chance.getrandbits(62)
    with session.translated(), session.transaction():
        marks = records.lock_buckets(session, wanted)
        found = moves.legs_within(session, wanted)
        _refuse_busy(source, wanted, marks, found)
        leg = Leg(wanted[0], number, source, target, clock.wall_ms(), keep_s, who[:128], note, None, None)
        for bucket in wanted:
            moves.write_leg(session, leg._replace(bucket=bucket))
    stir(client, source)  # workers search for it only where something has happened
    return Mover(client, leg, wanted)


def _movable(client: Client, buckets: Collection[int], target: str) -> tuple[str, list[MovedTable]]:
    """Return the shard that owns some buckets, and the tables with rows to move; raise where these cannot move."""
    source = source_of(client, buckets, target)
    _refuse_unfinished(client, buckets, source, target)
    return source, moved_tables(client, buckets, source, target)


def _refuse_busy(source: str, wanted: Iterable[int], marks: Mapping[int, Mark], found: Mapping[int, Leg]) -> None:
    """Raise where a bucket is halted, or moves already."""
    for bucket in wanted:
        if bucket not in marks or marks[bucket].state not in APPLYING:
            state = marks[bucket].state if bucket in marks else "unknown"
            raise PipelineError(
                f"bucket {bucket} on {source} is {state}: see pipeline why; a halted one goes on once its first op is "
                "replayed or dropped"
            )
        if bucket in found and found[bucket].under_way(source) and found[bucket].source == source:
            raise PipelineError(f"bucket {bucket} is being moved already: see pipeline move list")


def _refuse_unfinished(client: Client, buckets: Collection[int], source: str, target: str) -> None:
    """Raise where a shard still keeps rows of buckets that have left it, unless all of its move go back together."""
    came = {leg.move: leg.source for leg in moves.legs(client.nodes.primary(source), buckets).values()}
    for move, before in came.items():
        legs = moves.legs(client.nodes.primary(before)) if before != source else {}
        kept = {bucket for bucket, leg in legs.items() if leg.move == move and leg.state == MOVED}
        if kept and not (target == before and kept <= {*buckets}):
            raise PipelineError(
                f"{before} keeps the rows of {format_ranges(kept)} until their last move is over: wait for that, see "
                f"pipeline move list, or send them back: pipeline move back {format_ranges(kept)}"
            )


def source_of(client: Client, buckets: Collection[int], target: str) -> str:
    """Return the shard that owns some buckets.

    Args:
        client: the deployment.
        buckets: which.
        target: the shard that they are to move to.

    Raises:
        PipelineError: they are on several shards, on the target, or there are no such buckets or shard.
    """
    topology = client.topology
    if target not in topology.shards:
        raise PipelineError(f"no shard {target!r} is in this deployment{did_you_mean(target, topology.shards)}")
    if strange := [bucket for bucket in buckets if not 0 <= bucket < topology.buckets] or not buckets:
        raise PipelineError(f"no buckets {strange or ''}: there are 0-{topology.buckets - 1}")
    follow(client.log, client.nodes, topology, anew=True)
    owners = {topology.shard_of(bucket) for bucket in buckets}
    if owners == {target}:
        raise PipelineError(f"{target} owns {format_ranges(buckets)} already")
    if len(owners) > 1:
        raise PipelineError(
            f"the buckets {format_ranges(buckets)} are on {', '.join(sorted(owners))}: move each shard's"
        )
    source = owners.pop()
    if topology.group_of(source) != topology.group_of(target):
        raise PipelineError(f"{source} and {target} have their logs in two Redis: buckets move within one only")
    return source


def rows_to_move(client: Client, buckets: Collection[int], target: str) -> dict[str, int]:
    """Return how many rows of each table would move: each is counted, where `sizes` reads the beginning of a table.

    Args:
        client: the deployment.
        buckets: which; all on one shard.
        target: the name of the shard that they would move to.

    Raises:
        PipelineError: they cannot be moved, with what to change.
    """
    source, tables = _movable(client, buckets, target)
    return rows_in(client.nodes.primary(source), tables)


class KeyRows(NamedTuple):
    """Rows of a table that move with a shard key's bucket.

    Attributes:
        rows: that have the key.
        along: that have another one.
        others: how many other keys these have; 0 where the table is not spread by such keys.
    """

    table: str
    rows: int
    along: int
    others: int


class KeyPlace(NamedTuple):
    """Where a shard key is, and with whom.

    Attributes:
        bucket: its bucket; a key has none of its own, see docs/notes/26-moves.md.
        tables: what moves with it, of the key's own table first.
    """

    bucket: int
    tables: list[KeyRows]


def find_key(client: Client, text: str, *, all_tables: bool) -> KeyPlace:
    """Return where a shard key is, and what shares its bucket.

    Args:
        client: the deployment.
        text: the table and the key, in any spelling that a write takes: `purchase=4711`.
        all_tables: whether to look through all that have rows in the bucket; else through the key's own.

    Raises:
        PipelineError: there is no such table, it is not spread by keys, or they are none of its column.
    """
    name, _, key = text.partition("=")
    tables, topology = {schema.name: schema for schema in published(client)}, client.topology
    if name not in tables or not key:
        near = did_you_mean(name, tables)
        raise PipelineError(f"{text!r} names no key: write TABLE=VALUE, with a table of this deployment{near}")
    if topology.table(name).reference:
        raise PipelineError(f"table {name!r} is a reference table: each shard has all its rows")
    bucket = topology.finding(name, _key_column(topology, tables[name]))(key)
    follow(client.log, client.nodes, topology, anew=True)
    session = client.nodes.primary(topology.shard_of(bucket))
    others = [other for other in tables if other != name and not topology.table(other).reference]
    named = (name, *sorted(others if all_tables else []))
    found = [_rows_with(topology, session, tables[one], key, bucket) for one in named]
    return KeyPlace(bucket, [found[0], *(one for one in found[1:] if one.rows or one.along)])


def _key_column(topology: Topology, schema: TableSchema) -> Column:
    return schema.columns[schema.index[topology.table(schema.name).shard_key or schema.id_name]]


def _rows_with(topology: Topology, session: NodeSession, schema: TableSchema, key: str, bucket: int) -> KeyRows:
    """Return a table's rows in a bucket, apart by whether they have a key: whether its text leads there, too."""
    rules, column = topology.table(schema.name), _key_column(topology, schema)
    stored, table = session.dialect.quote(column.name_there), session.dialect.quote(schema.name_there)
    which = f"{bucket_sql(session.dialect, rules, schema, topology.buckets)} = {bucket}"
    final = lenient(schema.name, column)
    form = key_form(column) or final
    try:
        same = topology.finding(schema.name, column)(key) == bucket
    except PipelineError:  # it is no key of this table
        same = False
    if not same:
        [(count,)] = session.query(f"SELECT COUNT(*) FROM {table} WHERE {which}")
        return KeyRows(schema.name, 0, int(count), 0)
    found = session.query(f"SELECT {stored}, COUNT(*) FROM {table} WHERE {which} GROUP BY {stored}")
    along = [count for value, count in found if form(final(value)) != form(final(key))]
    return KeyRows(schema.name, sum(count for _, count in found) - sum(along), sum(along), len(along))


def sizes(client: Client, buckets: Collection[int], target: str) -> list[Size]:
    """Return what would move, and how long that would take; nothing is changed on either shard.

    The beginning of each table is read as a copy reads it, for a second or two.

    Args:
        client: the deployment.
        buckets: which; all on one shard.
        target: the name of the shard that they would move to.

    Raises:
        PipelineError: they cannot be moved, with what to change.
    """
    source, tables = _movable(client, buckets, target)
    session = client.nodes.primary(source)
    _refuse_busy(source, buckets, ledger_queries.marks_of(session, buckets), moves.legs(session, buckets))
    with apart(client, source) as reader, reader.snapshot():
        return [size_of(reader, table) for table in tables]


def under_way(client: Client) -> Iterator[Mover]:
    """Yield a mover of each move that is not over, as far as the shards that answer say it.

    Args:
        client: the deployment.
    """
    for each in each_move(_told(client)):
        if legs := [leg for shard, leg in each if leg.under_way(shard)]:
            yield Mover(client, legs[0], tuple(sorted({leg.bucket for leg in legs})))


def _told(client: Client) -> Told:
    """Return the last move of each bucket that has moved, by shard that answers."""
    told: dict[str, Mapping[int, Leg]] = {}
    for shard in client.topology.shards:
        try:
            told[shard] = moves.legs(client.nodes.primary(shard))
        except Unavailable as error:  # a shard that is away hides no move of others
            logger.warning(Event("moves_unknown", shard=shard, error=error))
    return told


def of_buckets(client: Client, buckets: Iterable[int]) -> list[Mover]:
    """Return the movers of the moves under way that some buckets are part of.

    Args:
        client: the deployment.
        buckets: which.

    Raises:
        PipelineError: none of them moves.
    """
    wanted = {*buckets}
    found = [mover for mover in under_way(client) if wanted & {*mover.buckets}]
    if not found:
        raise PipelineError(f"none of the buckets {format_ranges(wanted)} is being moved: see pipeline move list")
    return found


class KnownMove(NamedTuple):
    """A move as people are shown it.

    Attributes:
        buckets: as ranges.
        state: how far it is, `done`, or `not known` where a shard does not answer.
        rows: that were copied so far.
        trouble: why it ended, or the empty text.
        total: about how many rows there are to copy; 0: not known.
        left_s: about how long the copy takes from now, s; None: not known, or it is over.
        waits: what the mover waits for; empty: for nothing.
        limits: as options of the command.
    """

    move: int
    buckets: str
    source: str
    target: str
    state: str
    rows: int
    who: str
    began_ms: int
    trouble: str
    total: int
    left_s: int | None
    waits: str
    limits: str


def known(client: Client) -> list[KnownMove]:
    """Return the last move of each bucket that has moved or was to, by move, the newest first.

    Args:
        client: the deployment.
    """
    told = _told(client)
    return sorted((_shown(told, each) for each in each_move(told)), key=lambda one: -one.began_ms)


def _shown(told: Told, each: OneMove) -> KnownMove:
    leg = leg_of_target(each)
    note, state = leg.note, "given up" if leg.note.trouble else how_far(told, each)
    return KnownMove(
        leg.move,
        format_ranges({one.bucket for _, one in each}),
        leg.source,
        leg.target,
        state,
        note.rows,
        leg.who,
        leg.began_ms,
        note.trouble,
        note.total,
        pace_of(note).left_s if state == note.step == COPYING else None,
        "" if state in ("done", "given up") else note.waits,
        f"--keep {leg.keep_s} --max-lag {note.max_lag_s:g} --max-load {note.max_load}",
    )


def came_from(client: Client, buckets: Collection[int]) -> str:
    """Return the shard from which the last move of some buckets began.

    Args:
        client: the deployment.
        buckets: which.

    Raises:
        PipelineError: they have not moved, or from several shards, or the move is not that far.
    """
    owners = {client.topology.shard_of(bucket) for bucket in buckets}
    legs = [moves.legs(client.nodes.primary(owner), buckets) for owner in owners]
    sources = {leg.source for found in legs for leg in found.values()} - owners
    if len(owners) != 1 or len(legs[0]) != len({*buckets}) or len(sources) != 1:
        raise PipelineError(f"the buckets {format_ranges(buckets)} have no move of all of them to send back")
    return sources.pop()
