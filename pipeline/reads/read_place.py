"""Find where a read has to go: which buckets of which shards can hold its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, NOWHERE, Piece, Placement, log_number
from pipeline.config.settings import TableSettings
from pipeline.dal import conjuncts, field_table, kind_of, op_name, pinned_values, real_name
from pipeline.errors import BadRead, BadToken, ShardKeyError, shown
from pipeline.model.schema import Column, column_of
from pipeline.model.values import TEXT_KINDS
from pipeline.model.values.texts import RANGES
from pipeline.oplog import Entries
from pipeline.per_process import chance
from pipeline.reads import Need, Token


class NoRowMatches(BadRead):
    """A query contradicts itself."""


class ReadPlace(NamedTuple):
    """A shard, and what matters there.

    Attributes:
        shard: its name.
        buckets: their numbers, and those of shard keys that have a shard of their own, their *pieces*; None: all.
        seen: the map that says so.
        row: a table and an id that are all that names a row of the bucket `buckets[0]`, whose piece is `buckets[1]`.
            The row is of either, and perhaps on another shard.
    """

    shard: str
    buckets: tuple[int, ...] | None
    seen: Placement = NOWHERE
    row: tuple[Any, int] | None = None

    def also(self, bucket: int) -> ReadPlace:
        """Return the place where a bucket matters, too."""
        known = self.buckets is None or bucket in self.buckets
        return self if known else self._replace(buckets=(*(self.buckets or ()), bucket))


def place_of_key(topology: Topology, table: Any, shard_key: Any) -> ReadPlace:
    """Return the place of the rows of a table with a shard key.

    Args:
        topology: who has which bucket.
        table: the pyDAL table.
        shard_key: the key, in any spelling that a write takes; None: all rows of the table.

    Raises:
        BadRead: the rows are on several shards.
        BadValue, ShardKeyError: a write would refuse the key, too.
    """
    seen, reference = topology.placement, topology.reference_bucket
    if _rules(topology, table).reference:
        return ReadPlace(chance.choice(topology.shards), (reference,), seen)
    if shard_key is not None:
        number = number_of_key(topology, table, shard_key)
        # what else is read in the same block may be a reference table
        return ReadPlace(topology.serves(number), (number, reference), seen)
    if len(topology.shards) == 1:
        return ReadPlace(topology.shards[0], None, seen)
    raise BadRead(
        f"the rows of {real_name(table)!r} are on {len(topology.shards)} shards: give shard_key=, "
        "or use pipeline.select"
    )


def place_of_id(topology: Topology, table: Any, row_id: int, shard_key: Any) -> ReadPlace | None:
    """Return the place of one row; None where the id does not carry its bucket, as one from before the pipeline.

    Args:
        topology: who has which bucket.
        table: the pyDAL table.
        row_id: the row's id.
        shard_key: the row's shard key, where the caller knows it.
    """
    seen, rules = topology.placement, _rules(topology, table)
    if rules.reference:
        return ReadPlace(chance.choice(topology.shards), (topology.reference_bucket,), seen)
    if shard_key is None and rules.shard_key in (None, "", table._id.name):
        shard_key = row_id
    if shard_key is not None:
        bucket = bucket_of_key(topology, table, shard_key)
        if topology.split:
            bucket = number_of_key(topology, table, shard_key)
            return ReadPlace(topology.serves(bucket), (bucket,), seen)
        return ReadPlace(topology.shards_of(bucket)[0], (bucket,), seen)
    carried = topology.bucket_in(row_id)
    if carried is not None:
        if topology.split and (piece := _piece_beside(topology, table, carried)) is not None:
            return ReadPlace(topology.owners[carried], (carried, piece.number), seen, (table, row_id))
        return ReadPlace(topology.owners[carried], (carried,), seen)
    return ReadPlace(topology.shards[0], None, seen) if len(topology.shards) == 1 else None


def places_of_query(
    topology: Topology, query: Any, tables: Iterable[Any], joins: Iterable[Any] = ()
) -> list[ReadPlace]:
    """Return the places of the rows that a query over these tables can find.

    Args:
        topology: who has which bucket.
        query: of the caller's DAL.
        tables: those that it asks.
        joins: the conditions of its joins.

    Raises:
        BadRead: it joins tables whose rows are not kept together.
    """
    seen, conditions = topology.placement, [query, *joins]
    known = {table._tablename: table for table in tables}
    sharded = [table for table in known.values() if not _rules(topology, table).reference]
    if not sharded:
        return [ReadPlace(chance.choice(topology.shards), (topology.reference_bucket,), seen)]
    also = (topology.reference_bucket,) if len(sharded) < len(known) else ()
    pins = [_pin(topology, query, table) for table in sharded]
    pinned = {log_number(pin.number) for pin in pins if pin is not None}
    if pinned and (None not in pins or kept_together(topology, conditions, sharded)):
        if len(pinned) > 1:
            raise BadRead("the query fixes shard keys that belong to two buckets: no row can match on one shard")
        (bucket,) = pinned
        if topology.split and bucket in topology.split:
            place = _place_beside(topology, bucket, pins, kept_together(topology, conditions, sharded))
            return [place._replace(buckets=(*(place.buckets or ()), *also))]
        return [ReadPlace(topology.shards_of(bucket)[0], (bucket, *also), seen)]
    if len(topology.shards) == 1:
        return [ReadPlace(topology.shards[0], None, seen)]
    if not kept_together(topology, conditions, sharded):
        names = ", ".join(sorted(real_name(table) for table in sharded))
        raise BadRead(
            f"the tables {names} are not kept together: join them by the fields that shard them, or make one a "
            "reference table, or read them one after the other"
        )
    return [ReadPlace(shard, (*numbers_on(topology, shard), *also), seen) for shard in topology.shards]


def numbers_on(topology: Topology, shard: str) -> tuple[int, ...]:
    """Return the buckets that a shard serves, and the pieces.

    Args:
        topology: who has which bucket.
        shard: its name.
    """
    pieces = (number for number, piece in topology.placement.pieces.items() if piece.shard == shard)
    return (*topology.buckets_of(shard), *pieces)


def counted_at(topology: Topology, shard: str, numbers: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers of the watermarks that count for buckets and pieces on a shard, each once.

    Args:
        topology: who has which bucket.
        shard: its name.
        numbers: of buckets and pieces; of a piece on its bucket's own shard the bucket's watermark counts.
    """
    if not topology.split:
        return tuple(numbers)

    def counted(number: int) -> int:
        at_home = number >= FIRST_PIECE and topology.shard_of(log_number(number)) == shard
        return log_number(number) if at_home else number

    return tuple(dict.fromkeys(map(counted, numbers)))


def number_of_key(topology: Topology, table: Any, key: Any) -> int:
    """Return the piece that a shard key is, or else the bucket of the rows with it.

    Args:
        topology: who has which bucket.
        table: the pyDAL table.
        key: in any spelling that a write takes.

    Raises:
        BadValue, ShardKeyError: a write would refuse the key, too.
    """
    bucket = bucket_of_key(topology, table, key)
    if not topology.split or bucket not in topology.split:
        return bucket
    piece = topology.piece_of(real_name(table), column_of(table[_key_of(topology, table)]), key)
    return bucket if piece is None else piece.number


def bucket_of_key(topology: Topology, table: Any, key: Any) -> int:
    """Return the bucket of the rows of a table with a shard key.

    Args:
        topology: who has which bucket.
        table: the pyDAL table.
        key: in any spelling that a write takes.

    Raises:
        BadValue, ShardKeyError: a write would refuse the key, too.
    """
    name = _key_of(topology, table)
    if name not in table.fields:
        raise ShardKeyError(f"table {real_name(table)!r} has no field {name!r}, by which the settings shard it")
    return topology.finding(real_name(table), column_of(table[name]))(key)


def needs_at(topology: Topology, log: Entries, token: Token, place: ReadPlace) -> dict[int, Need]:
    """Return what a read must see, by bucket.

    Args:
        topology: who has which bucket.
        log: asked only for a token that asks for the rest.
        token: what the reader must see anywhere.
        place: where the read goes.

    Raises:
        BadToken: the token names a bucket that is not there.
        LogUnavailable: the token asks for the rest, and the log does not say how far it goes.
    """
    if not token:
        return {}
    if token.highest > topology.reference_bucket:
        raise BadToken(f"this token is of another pipeline: there is no bucket {token.highest} here")
    buckets = place.buckets
    if buckets is None:
        buckets = (*numbers_on(topology, place.shard), topology.reference_bucket)
    if topology.split:  # a need of the bucket's log counts on both shards that apply it
        buckets = counted_at(topology, place.shard, buckets)
        found = {one: token[log_number(one)] for one in buckets if log_number(one) in token}
    else:
        found = token.within(buckets)
    if token.rest:
        tails = log.tails([bucket for bucket in buckets if bucket not in found])
        found |= {bucket: Need(position) for bucket, position in tails.items()}
    return found


def _rules(topology: Topology, table: Any) -> TableSettings:
    return topology.table(real_name(table))


def _key_of(topology: Topology, table: Any) -> str:
    """Return the name of the field that shards a table."""
    return _rules(topology, table).shard_key or str(table._id.name)


def pinned_number(topology: Topology, query: Any, table: Any) -> int | None:
    """Return the bucket, or the piece, to which a query fixes the rows of a table; None: it does not, or to either.

    Args:
        topology: who has which bucket.
        query: of the caller's DAL.
        table: the pyDAL table.
    """
    pin = _pin(topology, query, table)
    return None if pin is None or pin.row is not None else pin.number


class _Pin(NamedTuple):
    """To what a query fixes the rows of a table: a bucket or a piece; or a row of either, by table and id alone."""

    number: int
    row: tuple[Any, int] | None = None


def _pin(topology: Topology, query: Any, table: Any) -> _Pin | None:
    name, key = real_name(table), _key_of(topology, table)
    values = pinned_values(query, table, key)
    if "" in values and column_of(table[key]).kind not in TEXT_KINDS:
        values = [value for value in values if value != ""]  # pyDAL's NULL: no row of any shard is equal
    numbers = {number_of_key(topology, table, value) for value in values}
    row = None
    if not numbers and key != table._id.name:
        own = {topology.bucket_in(row_id): row_id for row_id in pinned_values(query, table, table._id.name)}
        numbers = {bucket for bucket in own if bucket is not None}
        if topology.split and len(numbers) == 1 and _piece_beside(topology, table, min(numbers)) is not None:
            row = table, own[min(numbers)]
    if len({*map(log_number, numbers)}) > 1:
        raise NoRowMatches(f"the query fixes the shard key of {name!r} to two values, of two buckets: no row can match")
    return _Pin(min(numbers), row) if numbers else None  # to two values of one bucket: no row is found anywhere


def _piece_beside(topology: Topology, table: Any, bucket: int) -> Piece | None:
    """Return the piece of a bucket that rows of a table may be of, whose shard is perhaps another one."""
    piece = topology.split.get(bucket)
    return piece if piece is not None and topology.takes(piece, real_name(table)) else None


def _place_beside(topology: Topology, bucket: int, pins: Iterable[_Pin | None], kept: bool) -> ReadPlace:
    """Return the place of a read of a bucket one of whose keys is away, or on the way.

    Raises:
        BadRead: it may be about rows of that key and of others.
    """
    found, piece, seen = [pin for pin in pins if pin is not None], topology.split[bucket], topology.placement
    certain = {pin.number for pin in found if pin.row is None}
    if certain and (kept or (len(certain) == 1 and all(pin.row is None for pin in found))):
        return ReadPlace(topology.serves(min(certain)), (min(certain),), seen)
    home, both = topology.shard_of(bucket), (bucket, piece.number)
    if not certain and (kept or len(found) == 1):
        return ReadPlace(home, both, seen, found[0].row)
    if topology.serves(piece.number) == home:
        return ReadPlace(home, both, seen)
    raise BadRead(
        f"the query fixes rows of bucket {bucket}, and {piece.of} of that bucket has a shard of its own: join them by "
        "the fields that shard them, or read one after the other"
    )


def kept_together(topology: Topology, conditions: list[Any], tables: list[Any]) -> bool:
    """Return whether conditions join tables by the fields that shard them, so that matching rows share a bucket.

    Args:
        topology: who has which bucket.
        conditions: of the caller's DAL.
        tables: the tables; a reference table is none of them.
    """
    groups = {table._tablename: {table._tablename} for table in tables}
    by_name = {table._tablename: table for table in tables}
    for one, other in _equal_fields(conditions):
        pair = [field_table(one)._tablename, field_table(other)._tablename]
        if not all(name in by_name for name in pair):
            continue
        if one.name != _key_of(topology, by_name[pair[0]]) or other.name != _key_of(topology, by_name[pair[1]]):
            continue
        rules = [_rules(topology, by_name[name]) for name in pair]
        if not _placed_alike(column_of(one), column_of(other)):
            continue
        if [rules[0].rule, rules[0].bounds, rules[0].lookup] != [rules[1].rule, rules[1].bounds, rules[1].lookup]:
            continue
        merged = groups[pair[0]] | groups[pair[1]]
        for name in merged:
            groups[name] = merged
    return any(len(group) == len(tables) for group in groups.values())


def _placed_alike(one: Column, other: Column) -> bool:
    """Return whether values that are equal in two columns have one form, and so one bucket."""
    kinds = {one.kind, other.kind}
    return kinds <= set(RANGES) or kinds <= {"string", "text"} or one.type == other.type


def _equal_fields(conditions: list[Any]) -> Iterator[tuple[Any, Any]]:
    for part in conditions:
        for piece in conjuncts(part):
            if op_name(piece) == "eq" and kind_of(piece.first) == "Field" and kind_of(piece.second) == "Field":
                yield piece.first, piece.second


def whole_id(table: Any, row_id: Any) -> int:
    """Return the id of a row of *table* as a number.

    Raises:
        BadRead: it is none.
    """
    try:
        if isinstance(row_id, bool | float) or (isinstance(row_id, Decimal) and row_id.adjusted() > 20):
            raise ValueError  # Python takes minutes for the digits of 1E+999999
        return int(row_id)
    except (TypeError, ValueError):
        raise BadRead(f"the id of a row of {table._tablename!r} is a whole number, not {shown(row_id)}") from None
