"""Order moves of buckets, and find those that are under way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.migration import published
from pipeline.admin.moving import Mover
from pipeline.admin.moving.buckets_rows import (
    MovedTable,
    Size,
    apart,
    moved_tables,
    refuse_held,
    rows_in,
    size_of,
)
from pipeline.admin.moving.sides import Sides
from pipeline.admin.observe.moves import OneMove, each_move, how_far, leg_of_target, pace_of, what_moves
from pipeline.admin.stops import stir
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.buckets import (
    KeyName,
    Piece,
    Placement,
    format_ranges,
    key_text,
    log_number,
    named_buckets,
    new_piece,
    spread_alike,
)
from pipeline.enqueue.buckets import Told, follow
from pipeline.errors import PipelineError, Unavailable, did_you_mean
from pipeline.events import Event
from pipeline.model.schema import Column, TableSchema
from pipeline.per_process import chance
from pipeline.shard import records
from pipeline.shard.columns import columns_of
from pipeline.shard.records import APPLYING, COPYING, GONE, LENT, MOVED, OWNED, STOPPED, Mark, ledger_queries, moves
from pipeline.shard.records.moves import DEFAULTS, Leg, MoveNote
from pipeline.shard.table_facts import constraints_of

#: The longest key that can move alone, characters: as wide as its column.
MOST_KEY = 190
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
        note: has the limits of the copy, and how many rows are to be copied.

    Raises:
        PipelineError: these cannot be moved, with what to change; nothing was changed.
    """
    source, _ = _movable(client, buckets, target)
    _refuse_pieces(client.topology.placement, buckets)
    session, wanted = client.nodes.primary(source), tuple(sorted(buckets))
    number = chance.getrandbits(62)
    with session.translated(), session.transaction():
        marks = records.lock_buckets(session, wanted)
        found = moves.legs_within(session, wanted)
        _refuse_busy(source, wanted, marks, found)
        _refuse_lent(source, moves.pieces_within(session, wanted))
        moves.forget_pieces(session, wanted)
        leg = Leg(wanted[0], number, source, target, clock.wall_ms(), keep_s, who[:128], note, None, None)
        for bucket in wanted:
            moves.write_leg(session, leg._replace(bucket=bucket))
    stir(client, source)  # workers search for it only where something has happened
    return Mover(client, leg, wanted)


def order_key(
    client: Client, text: str, target: str, who: str, keep_s: int = KEEP_S, note: MoveNote = DEFAULTS
) -> Mover:
    """Order that one shard key moves to a shard of its own, or back to that of its bucket; see `order_move`.

    Args:
        client: the deployment.
        text: TABLE=VALUE.
        target: the name of the shard that the key moves to.
        who, keep_s, note: as for `order_move`.

    Raises:
        PipelineError: the key cannot be moved, with what to change; nothing was changed.
    """
    (of, home, piece), source, _ = _movable_key(client, text, target)
    number = piece.number if piece is not None else new_piece(of.bucket, chance.getrandbits(40))
    leg = Leg(number, chance.getrandbits(62), source, target, clock.wall_ms(), keep_s, who[:128], note, None, None, of)
    session, sides = client.nodes.primary(source), Sides(client, leg, (number,))
    _refuse_left_over(sides, (source, target), of, None if piece is None else number)
    with session.translated(), session.transaction():
        marks, found = moves.lock_both(session, [number]), moves.legs_within(session, [of.bucket])
        if source == home:
            _refuse_busy(source, [of.bucket], marks, found)
            _refuse_lent(source, moves.pieces_within(session, [of.bucket]))
            moves.forget_pieces(session, [of.bucket])
        elif number not in marks or marks[number].state not in APPLYING:
            state = marks[number].state if number in marks else "unknown"
            raise PipelineError(f"{of} on {source} is {state}: see pipeline move list and pipeline why")
        refuse_held(client, session, of, of.bucket if source == home else number)
        moves.write_leg(session, leg)
    stir(client, source)
    return Mover(client, leg, (number,))


def order_back(client: Client, what: str, who: str, keep_s: int = KEEP_S, note: MoveNote = DEFAULTS) -> Mover:
    """Order that buckets, or a key, go back to where their last move began; see `order_move` and `order_key`.

    Args:
        client: the deployment.
        what: ranges of buckets, or a key as for `order_key`.
        who, keep_s, note: as for `order_move`.

    Raises:
        PipelineError: no move that is over had all of them.
    """
    if "=" in what:
        of, home, _ = _key_named(client, what)
        return order_key(client, str(of), home, who, keep_s, note)
    wanted = named_buckets(what)
    return order_move(client, wanted, came_from(client, wanted), who, keep_s, note)


def came_from(client: Client, buckets: Collection[int]) -> str:
    """Return the shard from which the last move of some buckets began.

    Args:
        client: the deployment.
        buckets: which.

    Raises:
        PipelineError: some of them have not moved, or from several shards, or their move is not that far.
    """
    owners = {client.topology.shard_of(bucket) for bucket in buckets}
    legs = [moves.legs(client.nodes.primary(owner), buckets) for owner in owners]
    sources = {leg.source for found in legs for leg in found.values()} - owners
    if len(owners) != 1 or len(legs[0]) != len({*buckets}) or len(sources) != 1:
        raise PipelineError(f"the buckets {format_ranges(buckets)} have no move of all of them to send back")
    return sources.pop()


def source_of(client: Client, buckets: Collection[int], target: str) -> str:
    """Return the shard that owns some buckets.

    Args:
        client: the deployment.
        buckets: which.
        target: the name of the shard that they are to move to.

    Raises:
        PipelineError: the buckets are on several shards, or on the target; or there are no such buckets or shard.
    """
    topology = client.topology
    _refuse_unknown(topology, target)
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
    """Return how many rows of each table would move, every row counted: `sizes` reads the beginning of a table only.

    Args:
        client: the deployment.
        buckets: which; all on one shard.
        target: the name of the shard that they would move to.

    Raises:
        PipelineError: the buckets cannot be moved, with what to change.
    """
    source, tables = _movable(client, buckets, target)
    return rows_in(client.nodes.primary(source), tables)


def sizes(client: Client, buckets: Collection[int], target: str) -> list[Size]:
    """Return what would move, and how long that would take; nothing is changed on either shard.

    The beginning of each table is read as a copy reads it, for a second or two.

    Args:
        client: the deployment.
        buckets: which; all on one shard.
        target: the name of the shard that they would move to.

    Raises:
        PipelineError: the buckets cannot be moved, with what to change.
    """
    source, tables = _movable(client, buckets, target)
    session = client.nodes.primary(source)
    _refuse_busy(source, buckets, ledger_queries.marks_of(session, buckets), moves.legs(session, buckets))
    return _sizes(client, source, tables)


def key_sizes(client: Client, text: str, target: str) -> list[Size]:
    """Return what would move with a key, and how long that would take; see `sizes`.

    Args:
        client: the deployment.
        text: TABLE=VALUE.
        target: the name of the shard that the key would move to.

    Raises:
        PipelineError: the key cannot be moved, with what to change.
    """
    _, source, tables = _movable_key(client, text, target)
    return _sizes(client, source, tables)


def under_way(client: Client) -> Iterator[Mover]:
    """Yield a mover of each move that is not over, as far as shards answer.

    Args:
        client: the deployment.
    """
    for each in each_move(_told(client)):
        if legs := [leg for shard, leg in each if leg.under_way(shard)]:
            yield Mover(client, legs[0], tuple(sorted({leg.bucket for leg in legs})))


def of_named(client: Client, what: str) -> list[Mover]:
    """Return the movers of the moves under way that buckets, or a key, are part of.

    Args:
        client: the deployment.
        what: ranges of buckets, or a key as for `order_key`.

    Raises:
        PipelineError: none of these is being moved.
    """
    if "=" not in what:
        return of_buckets(client, named_buckets(what))
    of = _key_of(client, what)
    moving = ((one, one.leg.of) for one in under_way(client))
    found = [one for one, its in moving if its is not None and its._replace(table=of.table) == of]
    if not found:
        raise PipelineError(f"{of} is not being moved: see pipeline move list")
    return found


def of_buckets(client: Client, buckets: Iterable[int]) -> list[Mover]:
    """Return the movers of the moves under way that some buckets are part of.

    Args:
        client: the deployment.
        buckets: which.

    Raises:
        PipelineError: none of these is being moved.
    """
    wanted = {*buckets}
    found = [mover for mover in under_way(client) if wanted & {*mover.buckets}]
    if not found:
        raise PipelineError(f"none of the buckets {format_ranges(wanted)} is being moved: see pipeline move list")
    return found


class KnownMove(NamedTuple):
    """A move as a command shows it.

    Attributes:
        move: its number.
        buckets: as ranges; or the key that moves.
        source, target: the shards.
        state: how far the move is, `done`, `given up`, or `not known` where a shard does not answer.
        rows: that were copied so far.
        who: ordered the move.
        began_ms: when the move was ordered, ms since 1970.
        trouble: why the move ended; empty: nothing is wrong.
        total: about how many rows there are to copy; 0: not known.
        left_s: about how long the copy takes from now, s; None: not known, or the copy is over.
        waits: what the mover waits for; empty: for nothing.
        limits: of the copy, as options of the command.
        numbers: of the buckets, or of the piece.
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
    numbers: tuple[int, ...] = ()


def known(client: Client) -> list[KnownMove]:
    """Return the last move of each bucket that has moved or was to, by move, the newest first.

    Args:
        client: the deployment.
    """
    told = _told(client)
    return sorted((_shown(told, each) for each in each_move(told)), key=lambda one: -one.began_ms)


def known_of(client: Client, what: str) -> list[KnownMove]:
    """Return the last moves of buckets, or of a key; see `known`.

    Args:
        client: the deployment.
        what: ranges of buckets, or a key as for `order_key`.
    """
    if "=" in what:
        of = _key_of(client, what)
        named = ((one, one.buckets.partition("=")[2]) for one in known(client))
        return [one for one, key in named if key == of.key and of.bucket in map(log_number, one.numbers)]
    wanted = {*named_buckets(what)}
    return [one for one in known(client) if wanted.intersection(one.numbers)]


def _movable(client: Client, buckets: Collection[int], target: str) -> tuple[str, list[MovedTable]]:
    """Return the shard that owns some buckets, and the tables with rows to move; raise where these cannot move."""
    source = source_of(client, buckets, target)
    _refuse_unfinished(client, buckets, source, target)
    return source, moved_tables(client, buckets, source, target)


def _movable_key(
    client: Client, text: str, target: str
) -> tuple[tuple[KeyName, str, Piece | None], str, list[MovedTable]]:
    """Return what `_key_named` does, the shard of the key, and its tables; raise where the key cannot move."""
    of, home, piece = _key_named(client, text)
    source = piece.shard if piece is not None else home
    _refuse_key(client, of, home, piece, target)
    tables = moved_tables(client, [of.bucket], source, target, of)
    _refuse_torn(client, of, source, tables)
    return (of, home, piece), source, tables


def _key_named(client: Client, text: str) -> tuple[KeyName, str, Piece | None]:
    """Return a key, the shard of its bucket, and the piece that it is where it is elsewhere."""
    of, topology = _key_of(client, text), client.topology
    follow(client.log, client.nodes, topology, anew=True)
    home, piece = topology.shard_of(of.bucket), topology.split.get(of.bucket)
    if piece is None:
        return of, home, None
    if not topology.takes(piece, of.table) or piece.of.key != of.key:
        where = f"is on {piece.shard}" if piece.shard != home else "is on its way"
        raise PipelineError(
            f"{piece.of} {where}, and bucket {of.bucket} lends one key at a time: send it back first: "
            f"pipeline move back {piece.of}"
        )
    if piece.number in topology.placement.moves:
        raise PipelineError(f"{piece.of} is being moved already: see pipeline move list")
    return piece.of, home, piece


def _key_of(client: Client, text: str) -> KeyName:
    """Return the key that an operator names."""
    name, _, key = text.partition("=")
    tables, topology = {schema.name: schema for schema in published(client)}, client.topology
    if name not in tables or not key:
        near = did_you_mean(name, tables)
        raise PipelineError(f"{text!r} names no key: write TABLE=VALUE, with a table of this deployment{near}")
    if topology.table(name).reference:
        raise PipelineError(f"table {name!r} is a reference table: each shard has all its rows")
    column = _key_column(topology, tables[name])
    bucket = topology.finding(name, column)(key)
    of = KeyName(bucket, name, key_text(topology.table(name), column, key))
    if len(of.key) > MOST_KEY:
        raise PipelineError(f"the key of {name!r} has more than {MOST_KEY} characters: it cannot move alone")
    return of


def _key_column(topology: Topology, schema: TableSchema) -> Column:
    return schema.columns[schema.index[topology.table(schema.name).shard_key or schema.id_name]]


def _refuse_unknown(topology: Topology, target: str) -> None:
    """Raise where there is no such shard."""
    if target not in topology.shards:
        raise PipelineError(f"no shard {target!r} is in this deployment{did_you_mean(target, topology.shards)}")


def _refuse_unfinished(client: Client, buckets: Collection[int], source: str, target: str) -> None:
    """Raise where a shard keeps rows of buckets that have left it, unless all buckets of that move go back together."""
    came = {leg.move: leg.source for leg in moves.legs(client.nodes.primary(source), buckets).values()}
    for move, before in came.items():
        legs = moves.legs(client.nodes.primary(before)) if before != source else {}
        kept = {bucket for bucket, leg in legs.items() if leg.move == move and leg.state == MOVED}
        if kept and not (target == before and kept <= {*buckets}):
            raise PipelineError(
                f"{before} keeps the rows of {format_ranges(kept)} until their last move is over: wait for that, see "
                f"pipeline move list, or send them back: pipeline move back {format_ranges(kept)}"
            )


def _refuse_key(client: Client, of: KeyName, home: str, piece: Piece | None, target: str) -> None:
    """Raise where a key cannot go to a shard."""
    topology, source = client.topology, home if piece is None else piece.shard
    _refuse_unknown(topology, target)
    if source == target:
        raise PipelineError(f"{target} has {of} already")
    if piece is not None and target != home:
        raise PipelineError(
            f"{of} is on {source}, away from its bucket {of.bucket} on {home}: send it back first: pipeline move "
            f"back {of}"
        )
    if topology.group_of(source) != topology.group_of(target):
        raise PipelineError(f"{source} and {target} have their logs in two Redis: keys move within one only")
    if of.bucket in topology.placement.moves:
        raise PipelineError(f"bucket {of.bucket} of {of} is being moved: see pipeline move list")
    _refuse_unfinished(client, [of.bucket], home, home)


def _refuse_torn(client: Client, of: KeyName, source: str, tables: Iterable[MovedTable]) -> None:
    """Raise where rows of a key and of others have to be on one shard, or a table halts its buckets."""
    session, topology, schemas = client.nodes.primary(source), client.topology, published(client)
    alike = {table.schema.name_there.lower() for table in tables}
    parents = {one.name_there.lower(): one for one in schemas}
    for schema in schemas:
        rules = topology.table(schema.name)
        if rules.reference or not columns_of(session, schema.name_there):
            continue
        if schema.name_there.lower() in alike and rules.on_reject == "halt":
            raise PipelineError(
                f"[tables.{schema.name}] on_reject = 'halt' stops a bucket, and {of} would have one of its own: choose "
                "'park' or 'skip'"
            )
        with session.translated():
            keys = constraints_of(session, schema.name_there).parents
        for key in keys:
            parent = parents.get(key.parent.lower())
            if parent is None or topology.table(parent.name).reference:
                continue
            if {schema.name_there.lower(), key.parent.lower()}.isdisjoint(alike):
                continue
            if not _by_one_key(topology, schema, key.columns, parent):
                raise PipelineError(
                    f"{schema.name}.{', '.join(key.columns)} refers to {parent.name!r} by a foreign key, and rows of "
                    f"{of} may refer to rows of other keys: a key moves alone where tables are spread by one key, or "
                    f"by the reference; else move its bucket: pipeline move {of.bucket}"
                )


def _by_one_key(topology: Topology, child: TableSchema, own: tuple[str, ...], parent: TableSchema) -> bool:
    """Return whether a row and the row that it refers to have one key."""
    rules, others = topology.table(child.name), topology.table(parent.name)
    if not spread_alike(rules, others):
        return False
    key = _key_column(topology, child).name_there
    if others.shard_key in (None, parent.id_name):
        return own == (key,) and rules.shard_key not in (None, child.id_name)
    return rules.shard_key == others.shard_key


def _refuse_pieces(placement: Placement, buckets: Collection[int]) -> None:
    """Raise where a key of a bucket is away, or a shard keeps rows of a key that has come back."""
    for number, piece in placement.pieces.items():
        if piece.of.bucket in buckets and number in placement.moves:
            raise PipelineError(f"{piece.of} of bucket {piece.of.bucket} is being moved: see pipeline move list")


def _refuse_busy(source: str, wanted: Iterable[int], marks: Mapping[int, Mark], found: Mapping[int, Leg]) -> None:
    """Raise where a bucket applies no ops, or moves already."""
    for bucket in wanted:
        if bucket not in marks or marks[bucket].state not in APPLYING:
            state = marks[bucket].state if bucket in marks else "unknown"
            raise PipelineError(
                f"bucket {bucket} on {source} is {state}: see pipeline why; a halted one goes on once its first op is "
                "replayed or dropped"
            )
        if bucket in found and found[bucket].under_way(source) and found[bucket].source == source:
            raise PipelineError(f"bucket {bucket} is being moved already: see pipeline move list")


def _refuse_lent(source: str, legs: Mapping[int, Leg]) -> None:
    """Raise where a bucket has lent one of its keys, or is about to."""
    for leg in legs.values():
        if leg.of is not None and (leg.home in (LENT, STOPPED) or leg.under_way(source)):
            raise PipelineError(
                f"{leg.of} of bucket {leg.of.bucket} is on {leg.other(source)}, or on its way: send it back first: "
                f"pipeline move back {leg.of}"
            )


def _refuse_left_over(sides: Sides, shards: Iterable[str], of: KeyName, piece: int | None) -> None:
    """Raise while a node knows of a move of the key, or of another key of its bucket, that is not over."""
    for shard in shards:
        for node in sides.nodes_of(shard):
            for number, leg in moves.legs(node).items():
                if leg.of is None or leg.of.bucket != of.bucket:
                    continue
                away = number == piece and leg.apart and leg.state == GONE
                if leg.under_way(shard) or (number == piece and not away and leg.state not in OWNED):
                    raise PipelineError(f"{node.node} has not got over the last move of {leg.of} yet: try again soon")


def _sizes(client: Client, source: str, tables: list[MovedTable]) -> list[Size]:
    with apart(client, source) as reader, reader.snapshot():
        return [size_of(reader, table) for table in tables]


def _told(client: Client) -> Told:
    """Return the last move of each bucket that has moved, by shard that answers."""
    told: dict[str, Mapping[int, Leg]] = {}
    for shard in client.topology.shards:
        try:
            told[shard] = moves.legs(client.nodes.primary(shard))
        except Unavailable as error:  # a shard that is away hides no move of others
            logger.warning(Event("moves_unknown", shard=shard, error=error))
    return told


def _shown(told: Told, each: OneMove) -> KnownMove:
    leg = leg_of_target(each)
    note, state = leg.note, "given up" if leg.note.trouble else how_far(told, each)
    return KnownMove(
        leg.move,
        what_moves(each),
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
        tuple(sorted({one.bucket for _, one in each})),
    )
