"""Choose the bucket of an op, or refuse what would move a row; follow the map of buckets that have moved.

Follow the map of buckets that have moved; make it anew from the shards where Redis has lost it.
Each shard says in the state of a watermark whether it owns a bucket. The map in Redis is a copy of that.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from operator import and_, itemgetter
from typing import Any

from pipeline import model
from pipeline.config import Topology
from pipeline.config.buckets import Piece, Placement
from pipeline.dal import conjuncts, pinned_values
from pipeline.dal.trees import Tree, limits_of, pinned
from pipeline.enqueue.final_values import CompiledTable
from pipeline.errors import BadOp, CrossBucket, LogUnavailable, ShardKeyError, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog import Log
from pipeline.oplog.appends import Appends
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import GONE, LENT, MOVED, OWNED, STOPPED, moves
from pipeline.shard.records.moves import ON_THE_WAY, Leg

#: The last move of each bucket, by the shards that have answered.
Told = Mapping[str, Mapping[int, Leg]]
logger = logging.getLogger("pipeline.moves")


def follow(log: Log, nodes: Nodes, topology: Topology, *, anew: bool = False) -> Placement:
    """Let a process act on the map of its deployment; return the map.

    Args:
        log: has the map.
        nodes: the databases, asked where Redis has no map.
        topology: follows the map.
        anew: whether to ask the databases in any case: this Redis may be of another time.

    Raises:
        WrongDeployment: buckets have moved to a shard that the configuration lacks.
        LogUnavailable: Redis did not answer.
    """
    text = log.placement()
    known = Placement.noted(text)
    if known is None or anew:
        drawn, whole = draw(nodes, topology, known or topology.placement)
        # of a shard that is silent the map says on what it said. Without a map of before, what such a shard owns is not
        # known: nothing is written down, and the next process asks again
        if drawn != known and (whole or known is not None):
            log.note_placement(text, drawn.to_json())
        known = drawn
    topology.follow(known)
    return known


def follow_noted(log: Appends, topology: Topology) -> None:
    """Let a command act on the map that Redis has; without Redis, or a map there, buckets are where they began.

    Args:
        log: has the map.
        topology: follows the map.

    Raises:
        WrongDeployment: buckets have moved to a shard that the configuration lacks.
    """
    try:
        known = Placement.noted(log.placement())
    except LogUnavailable:
        return
    if known is not None:
        topology.follow(known)


def where(nodes: Nodes, bucket: int, shard: str) -> tuple[str, Leg | None]:
    """Return the shard that owns a bucket and None; at a cut-over, the shard that has stopped and its row of the move.

    Args:
        nodes: the databases.
        bucket: which; not the reference bucket.
        shard: one that owns it as far as a map says, perhaps an old one.

    Raises:
        ShardUnavailable: a shard that has to be asked does not answer.
    """
    leg, asked = moves.legs(nodes.primary(shard), [bucket]).get(bucket), {shard}
    while leg is not None and leg.state not in OWNED:
        arrives = leg.state in ON_THE_WAY
        other = leg.source if arrives else leg.target
        try:
            theirs = moves.legs(nodes.primary(other), [bucket]).get(bucket)
        except Unavailable:
            if leg.state == MOVED:
                break
            raise
        if theirs is None and arrives:  # it has forgotten the move, or never owned the bucket under one
            return other, None
        if theirs is None or other in asked or theirs.state in ON_THE_WAY:
            break
        asked.add(other)
        shard, leg = other, theirs
        if arrives and leg.state == MOVED:
            break
    return shard, None if leg is None or leg.state in OWNED else leg


def draw(nodes: Nodes, topology: Topology, known: Placement) -> tuple[Placement, bool]:
    """Return the map as the shards say it, and whether all of them have answered.

    Args:
        nodes: the databases.
        topology: where buckets began.
        known: the map of before, for the buckets of shards that do not answer.

    Raises:
        WrongDeployment: a bucket has left for a shard that the configuration lacks.
    """
    told: dict[str, Mapping[int, Leg]] = {}
    for shard in topology.shards:
        try:
            told[shard] = moves.legs(nodes.primary(shard))
        except Unavailable as error:
            logger.warning(Event("map_without_shard", shard=shard, error=error))
    _refuse_unknown(told, topology)
    silent = [shard for shard in topology.shards if shard not in told]
    buckets = {bucket for found in told.values() for bucket, leg in found.items() if leg.of is None}
    owners = {bucket: _owner(bucket, told, topology) for bucket in buckets}
    under_way = {
        bucket: (leg.source, leg.target)
        for shard, found in told.items()
        for bucket, leg in found.items()
        if leg.under_way(shard)
    }
    if silent:
        owners = {**{b: shard for b, shard in known.owners.items() if shard in silent}, **owners}
        under_way = {**{b: pair for b, pair in known.moves.items() if {*pair} & {*silent}}, **under_way}
    pieces = _pieces(told, topology, known, owners, under_way)
    # also those that are where the file puts them: an older file puts them elsewhere
    elsewhere = dict(sorted(owners.items()))
    version = known.version + ((elsewhere, pieces) != (dict(known.owners), dict(known.pieces)))
    return Placement(version, elsewhere, dict(sorted(under_way.items())), pieces), not silent


def _pieces(
    told: Told, topology: Topology, known: Placement, owners: Mapping[int, str], under_way: Collection[int]
) -> dict[int, Piece]:
    """Return the keys that are away from their buckets, or under way."""
    found = dict[int, Piece]()
    names = {b: leg.of for legs in told.values() for b, leg in legs.items() if leg.of is not None}
    for number, of in sorted(names.items()):
        home = owners.get(of.bucket) or topology.began(of.bucket)
        legs = {shard: legs[number] for shard, legs in told.items() if number in legs}
        away = [shard for shard, leg in legs.items() if leg.apart and leg.state in OWNED]
        # on the way back its shard has stopped, until the bucket's has taken the key
        away += [s for s, leg in legs.items() if leg.apart and leg.state == MOVED and s == leg.source != home]
        if not away and number in known.pieces and known.pieces[number].shard not in told:
            away = [known.pieces[number].shard]
        # a bucket goes on without its key only once the key's shard has begun: what was restored there says nothing
        if not away and home in legs and legs[home].apart and legs[home].home in (LENT, STOPPED):
            away = [legs[home].other(home)]
        if home in legs and not legs[home].apart and legs[home].state in OWNED:
            away = []
        if away or number in under_way:
            found[number] = Piece(number, of, away[0] if away else home)
    return {**{n: piece for n, piece in known.pieces.items() if piece.shard not in told and n not in names}, **found}


def _refuse_unknown(told: Told, topology: Topology) -> None:
    """Raise if a bucket has left for a shard that is not asked: this process cannot say who owns the bucket."""
    owned = {bucket for found in told.values() for bucket, leg in found.items() if leg.state in OWNED}
    for leg in (leg for found in told.values() for leg in found.values()):
        if leg.state in (MOVED, GONE) and leg.bucket not in owned and leg.target not in topology.shards and leg.apart:
            raise WrongDeployment(
                [
                    f"[shards.{leg.target}] is missing in {topology.fingerprint.source}, but bucket {leg.bucket} has "
                    "left for it; restart with the configuration that names it"
                ]
            )


def _owner(bucket: int, told: Told, topology: Topology) -> str:
    """Return the shard that owns a bucket, or will go on with it: one that has stopped is followed by its target."""
    owned = [(found[bucket].began_ms, shard) for shard, found in told.items() if bucket in found]
    owned = [(began_ms, shard) for began_ms, shard in owned if told[shard][bucket].state in OWNED]
    if owned:  # one that was restored from a backup may say so still: the bucket came to the other one later
        return max(owned)[1]
    shard = topology.began(bucket)
    for _ in topology.shards:
        leg = told[shard].get(bucket) if shard in told else None
        if leg is None or leg.state != GONE or leg.target not in topology.shards:
            break
        shard = leg.target
    stopped = (one for one, found in told.items() if bucket in found and found[bucket].state == MOVED)
    return next(stopped, shard)


def bucket_of_new(
    compiled: CompiledTable,
    turn: Iterator[int],
    columns: tuple[int, ...],
    final: list[Any],
    row: int | None,
    shard_key: Any,
    idempotency_key: str | None = None,
) -> int:
    """Return the bucket of a new row.

    Args:
        compiled: the row's table.
        turn: gives the bucket of the next row that may live anywhere.
        columns: the numbers of the row's columns.
        final: their values.
        row: its id, if it brings one.
        shard_key: what the caller gave beside the values.
        idempotency_key: what the caller gave beside the values.

    Raises:
        ShardKeyError: the row has no shard key, or two.
    """
    schema, topology, key = compiled.schema, compiled.topology, compiled.rules.shard_key
    if compiled.rules.reference:
        return topology.reference_bucket
    if key is None or key == schema.id_name:
        return _bucket_of_new_id(compiled, turn, row, shard_key, idempotency_key)
    column = compiled.column_of.get(key)
    own = final[columns.index(column)] if column in columns else None
    if own is None:
        raise ShardKeyError(f"table {schema.name!r} is sharded by {key!r}: the insert must give it a value")
    if shard_key is not None and compiled.check[key](shard_key) != own:
        raise ShardKeyError(f"shard_key= differs from the value of {schema.name}.{key}: leave it out")
    bucket = compiled.bucket_of(own)
    if row is not None and model.carries_bucket(row) and model.bucket_of(row) != bucket:
        raise ShardKeyError(
            f"the id given for {schema.name!r} carries bucket {model.bucket_of(row)}, its shard key belongs to "
            f"{bucket}: let the pipeline make the id"
        )
    return bucket


def sorted_in_turn(
    columns: Sequence[Sequence[Any]], count: int, buckets: int, turn: Iterator[int]
) -> tuple[list[int], dict[int, list[Sequence[Any]]]]:
    """Return the bucket of each row, and the rows of each bucket: as many of each as if they took turns.

    Args:
        columns: the rows' values.
        count: how many rows.
        buckets: how many buckets.
        turn: gives the bucket of the next rows.
    """
    each, more = divmod(count, buckets)
    order: list[int] = []
    parts = {}
    for nth, bucket in enumerate(islice(turn, min(count, buckets))):
        begin = len(order)
        order += [bucket] * (each + (nth < more))
        parts[bucket] = [column[begin : len(order)] for column in columns]
    return order, parts


def sorted_by_bucket(columns: Sequence[Sequence[Any]], order: Sequence[int]) -> dict[int, list[Sequence[Any]]]:
    """Return the rows of each bucket.

    Args:
        columns: the rows' values.
        order: the bucket of each row.
    """
    places: dict[int, list[int]] = {}
    for row, bucket in enumerate(order):
        try:
            places[bucket].append(row)
        except KeyError:
            places[bucket] = [row]
    parts: dict[int, list[Sequence[Any]]] = {}
    for bucket, at in places.items():
        if len(at) == 1:
            parts[bucket] = [(column[at[0]],) for column in columns]
        else:
            some = itemgetter(*at)
            parts[bucket] = [some(column) for column in columns]
    return parts


def bucket_of_rows(compiled: CompiledTable, where: Tree, shard_key: Any) -> tuple[int, int | None]:
    """Return the bucket of the rows that a condition names, and the one id if the condition names just that.

    Args:
        compiled: the rows' table.
        where: the condition.
        shard_key: what the caller gave beside the condition; None: nothing.

    Raises:
        ShardKeyError: the condition fixes neither id nor shard key.
        CrossBucket: the condition fixes both, and they do not belong together.
    """
    schema, rules = compiled.schema, compiled.rules
    row = pinned(where, schema.id_index)
    only = row if where[0] == "=" and row is not None else None
    if rules.reference:
        return compiled.topology.reference_bucket, only
    by_id = rules.shard_key is None or rules.shard_key == schema.id_name
    found = _named_by_id(compiled, row) if by_id else _named_by_key(compiled, where, row, shard_key)
    if len(found) > 1:
        raise CrossBucket(
            f"the query on {schema.name!r} names rows of two buckets: its id and its shard key do not belong together"
        )
    if not found:
        key = schema.id_name if by_id else rules.shard_key
        raise ShardKeyError(
            f"cannot tell the shard of this write to {schema.name!r}: the query must fix {key!r} with =="
            + ("" if by_id else ", or pass shard_key=")
        )
    return found.pop(), only


def keeps_its_place(
    compiled: CompiledTable, where: Tree, plain: Mapping[str, Any], computed: Mapping[str, Any]
) -> None:
    """Refuse an update after which a row would belong elsewhere.

    Raises:
        BadOp: it changes the id. ShardKeyError: it changes the shard key.
    """
    name, key, rules = compiled.schema.name, compiled.rules.shard_key, compiled.rules
    if compiled.schema.id_name in plain or compiled.schema.id_name in computed:
        raise BadOp(f"the id of a row of {name!r} cannot be changed: insert a new row and delete the old one")
    if key is None or rules.reference or (key not in plain and key not in computed):
        return
    if key in computed or pinned(where, compiled.column_of[key]) != plain[key]:
        raise ShardKeyError(
            f"{name}.{key} is the shard key and cannot be changed: the row may live on another shard then; "
            "insert it anew and delete the old row"
        )


def check_upsert_key(compiled: CompiledTable, fields: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Refuse an upsert whose key names no single row of one shard; what is right once, is so for all values.

    Raises:
        BadOp: a key field has no value, or there is no such unique index. ShardKeyError: the key spans shards.
    """
    name, schema, rules = compiled.schema.name, compiled.schema, compiled.rules
    compiled.known(fields)
    check_upsert_values(compiled, fields, values)
    single = len(fields) == 1 and (fields[0] == schema.id_name or schema.columns[schema.index[fields[0]]].unique)
    if not single and set(fields) not in [set(group) for group in rules.unique]:
        raise BadOp(
            f"an upsert into {name!r} needs a unique index on ({', '.join(fields)}): add it as "
            f"[tables.{name}] unique = [{list(fields)}], and run pipeline migrate"
        )
    if others := _other_unique(compiled, fields):
        raise BadOp(
            f"an upsert into {name!r} by ({', '.join(fields)}) is ambiguous: ({'), ('.join(others)}) is unique too, "
            "and the database would update whichever row it finds; look the row up, then use enqueue_update or "
            "enqueue_insert"
        )
    key = rules.shard_key
    if key and not rules.reference and fields != (schema.id_name,) and key not in fields:
        raise ShardKeyError(f"the key of an upsert into {name!r} must contain its shard key {key!r}")
    if not key and not rules.reference and fields != (schema.id_name,):
        raise ShardKeyError(f"table {name!r} is sharded by its id, so it can be upserted by its id only")


def check_upsert_values(compiled: CompiledTable, fields: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Refuse an upsert whose values name no single row.

    Raises:
        BadOp: a key field has no value, or an id is given beside another key.
    """
    name, schema = compiled.schema.name, compiled.schema
    absent = [field for field in fields if values.get(field) is None]
    if not fields or absent:
        raise BadOp(
            f"an upsert into {name!r} needs a value for each of its key fields" + (f": {absent}" if absent else "")
        )
    if schema.id_name not in fields and values.get(schema.id_name) is not None:
        raise BadOp(
            f"an upsert into {name!r} by ({', '.join(fields)}) cannot give an id too: the database would update the "
            "row that has the id, whatever its key; leave the id out, or give key='id' alone"
        )


def check_upsert_filters(compiled: CompiledTable, table: Any, key: Mapping[str, Any]) -> None:
    """Refuse an upsert whose key may find a row that the table's filters hide: another tenant's would be overwritten.

    Args:
        compiled: the row's table.
        table: the pyDAL table, with the filters of the present request.
        key: the final values of the key's fields.

    Raises:
        BadOp: a filter asks for more than for equal values of key fields.
    """
    asked = reduce(and_, (table[name] == value for name, value in key.items()))
    for limit in limits_of(table, asked):
        if not all(_fixed_by(part, compiled, table, key) for part in conjuncts(limit)):
            raise BadOp(
                f"an upsert into {compiled.schema.name!r} by ({', '.join(key)}) may overwrite a row that the table's "
                "filters hide, such as another tenant's: put each field that the filters fix into the key, with that "
                "value; or look the row up, then use enqueue_update or enqueue_insert"
            )


def _fixed_by(part: Any, compiled: CompiledTable, table: Any, key: Mapping[str, Any]) -> bool:
    """Return whether a part of a filter holds for every row with a key: it says nothing but a field of the key."""
    name = getattr(part.first, "name", "")
    return name in key and [compiled.lenient[name](value) for value in pinned_values(part, table, name)] == [key[name]]


def _other_unique(compiled: CompiledTable, fields: tuple[str, ...]) -> list[str]:
    """Return the unique columns, or groups of columns, by which a row may also be found."""
    schema = compiled.schema
    single = [(column.name,) for column in schema.columns if column.unique and column.name != schema.id_name]
    unique = {frozenset(group): group for group in (*single, *compiled.rules.unique)}
    return sorted(", ".join(group) for columns, group in unique.items() if columns != set(fields))


def _bucket_of_new_id(
    compiled: CompiledTable, turn: Iterator[int], row: int | None, shard_key: Any, idempotency_key: str | None
) -> int:
    name, topology = compiled.schema.name, compiled.topology
    if shard_key is not None:
        raise ShardKeyError(f"table {name!r} is sharded by its own id: leave shard_key= out of an insert")
    if row is not None:
        return compiled.bucket_of(row)
    if idempotency_key is not None:  # a bucket knows its own keys only: the same key must find the same one
        return zlib.crc32(f"{name} {idempotency_key}".encode()) % topology.buckets
    return next(turn)


def _named_by_id(compiled: CompiledTable, row: Any) -> set[int]:
    return set() if row is None else {compiled.bucket_of(row)}


def _named_by_key(compiled: CompiledTable, where: Tree, row: Any, shard_key: Any) -> set[int]:
    name, key, topology = compiled.schema.name, compiled.rules.shard_key, compiled.topology
    assert key is not None
    if key not in compiled.column_of:
        raise ShardKeyError(f"table {name!r} has no field {key!r}, by which the settings shard it")
    value = pinned(where, compiled.column_of[key])
    found = set() if value is None else {compiled.bucket_of(value)}
    if shard_key is not None:
        found.add(compiled.bucket_of(compiled.check[key](shard_key)))
    if (own := topology.bucket_in(row)) is not None:
        found.add(own)
    return found
