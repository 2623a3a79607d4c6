"""Write the statement that reads one shard's part of a result; merge parts into what one database would return.

Pure. Rows are raw, as the driver returns them. A text compares by the bytes that its database compares by
(`SortKey.weight`), so collations hold. NULL comes first, as in MySQL, MariaDB and SQLite. A day that Python lacks, as
0000-00-00, comes as a text, and compares as its digits do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, NamedTuple

from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE
from pipeline.dal import kind_of, op_name, real_name, tables_in
from pipeline.dal.sql_texts import raw
from pipeline.errors import BadRead
from pipeline.model.schema import schema_of
from pipeline.reads.connections import NodeReader
from pipeline.reads.gather.over_shards import terms_of
from pipeline.reads.node_dal import NodeDAL, besides
from pipeline.reads.read_place import ReadPlace
from pipeline.shard.co_location import bucket_sql, key_sql

_AGGREGATES = ("SUM", "MIN", "MAX", "AVG")
#: Columns of any other type may be texts, which compare by their collation.
_NO_TEXTS = (
    *("integer", "bigint", "id", "reference", "big-", "double", "float", "decimal", "date", "time", "boolean"),
    *("blob", "geometry", "geography"),
)

_Row = Sequence[Any]


class ShardQuery(NamedTuple):
    """One shard's part.

    Attributes:
        sql: what it is asked.
        columns: the expressions of the result, for pyDAL's parser; `names` is what pyDAL calls them.
    """

    sql: str
    columns: list[Any]
    names: list[str]
    merge: Merge


def shape_of(
    reader: NodeReader, query: Any, fields: tuple[Any, ...], options: Mapping[str, Any], left_out: str = ""
) -> ShardQuery:
    """Return the query for a shard; every shard of a dialect returns the same merge.

    Args:
        reader: a node of the shard.
        query: of the caller's DAL.
        fields: of the result, of the caller's DAL.
        options: of the `select`.
        left_out: SQL of which rows are left out; see `ReadyRead`.
    """
    own = {name: reader.own(options[name]) for name in ("orderby", "groupby", "left", "join") if options.get(name)}
    query = reader.db(reader.own(query)).query
    query = besides(query, left_out) if left_out else query
    adapter = reader.adapter
    tables = adapter.tables(query, *(own.get(name) for name in ("join", "left", "orderby", "groupby")))
    columns = adapter.expand_all([reader.own(field) for field in fields], tables)
    builder = _Builder(reader, columns)
    groups = tuple(builder.key(term) for term in terms_of(own.get("groupby")))
    for at, expression in enumerate(columns):
        builder.aggregate(at, expression)
    order = tuple(builder.term(term) for term in terms_of(own.get("orderby")))
    distinct = bool(options.get("distinct"))
    if distinct and any(term.key.at >= len(columns) for term in order):
        raise BadRead("with distinct, orderby over several shards takes selected fields only")
    identity = tuple(builder.key(expression) for expression in columns) if distinct else None
    grouped = bool(groups or builder.aggregates)
    limitby = options.get("limitby") or None
    merge = Merge(len(columns), order, grouped, groups, tuple(builder.aggregates), identity, limitby)
    attributes = dict(own)
    if grouped:
        attributes.pop("orderby", None)
        by = [*terms_of(own.get("groupby")), *builder.subgroups]
        attributes.pop("groupby", None)
        if by:
            attributes["groupby"] = by
    elif limitby:
        attributes["limitby"] = (0, limitby[1])
    names, sql = adapter._select_wcols(query, builder.asked, distinct=distinct, **attributes)
    return ShardQuery(sql, columns, names[: len(columns)], merge)


class ReadyRead(NamedTuple):
    """What is read, and where: each place has all rows that its part of the answer depends on."""

    query: Any
    fields: tuple[Any, ...]
    options: Mapping[str, Any]
    places: list[ReadPlace]
    topology: Topology

    def left_out(self, db: NodeDAL) -> str:
        """Return the SQL that leaves out rows of buckets and keys that another shard serves, or an empty text.

        Args:
            db: of the node that is asked.

        Raises:
            PipelineError: the database cannot compute the bucket of a row.
        """
        if not db.excluded:
            return ""
        buckets = ", ".join(str(one) for one in db.excluded if one < FIRST_PIECE)
        pieces = [self.topology.placement.pieces[one] for one in db.excluded if one in self.topology.placement.pieces]
        found = dict[str, str]()
        for table in tables_in([self.query, *self.fields, *self.options.values()]):
            settings, schema, dialect = self.topology.table(real_name(table)), schema_of(table), db.reader.dialect
            if settings.reference:
                continue
            there = db.reader.table(table).sql_shortref
            if buckets:
                bucket = bucket_sql(dialect, settings, schema, self.topology.buckets, there)
                found[table._tablename] = f"({bucket} IN ({buckets})) IS NOT TRUE"
            for piece in pieces:
                if self.topology.takes(piece, real_name(table)):
                    own = key_sql(dialect, settings, schema, piece.of.key, there)
                    found[f"{table._tablename} {piece.of}"] = f"({own}) IS NOT TRUE"
        return f"({' AND '.join(found.values())})" if found else ""


def shaped(ready: ReadyRead) -> Callable[[NodeDAL], tuple[ShardQuery, list[tuple[Any, ...]], NodeReader]]:
    """Return what each shard has to do; the statement is written once for all shards of a kind that leave out nothing.

    Who has written it comes with it: only that reader is sure to know the tables, and so to read the rows.

    Args:
        ready: what is read.
    """
    shapes: dict[tuple[str, tuple[int, ...]], tuple[ShardQuery, NodeReader]] = {}

    def read(db: NodeDAL) -> tuple[ShardQuery, list[tuple[Any, ...]], NodeReader]:
        kind = db.reader.dialect.name, db.excluded
        found = shapes.get(kind)
        if found is None:
            found = shapes[kind] = shape_of(db.reader, *ready[:3], ready.left_out(db)), db.reader
        shape, writer = found
        return shape, db.reader.rows(shape.sql), writer

    return read


class _Builder:
    """Collects the columns that a shard is asked for beyond the result's own."""

    def __init__(self, reader: NodeReader, columns: list[Any]):
        self._reader = reader
        self.asked = list(columns)
        self._at = {self._sql(_bare(column)): at for at, column in reversed(list(enumerate(columns)))}
        self._weights: dict[int, int] = {}
        self._merged: dict[int, Aggregate] = {}
        self.subgroups: list[Any] = []

    @property
    def aggregates(self) -> list[Aggregate]:
        return list(self._merged.values())

    def key(self, expression: Any) -> SortKey:
        """Return where a row has the value of an expression; it is asked for if it is not yet."""
        expression = _bare(expression)
        at = self._at_of(expression)
        return SortKey(at, self._weight(at, expression))

    def term(self, term: Any) -> Term:
        """Return a term of an ORDER BY."""
        descending = op_name(term) == "invert"
        expression = _bare(term.first if descending else term)
        at = self._at_of(expression)
        merged = self.aggregate(at, expression)
        if merged is not None and merged.kind not in ("MIN", "MAX"):
            return Term(SortKey(at), descending)
        return Term(SortKey(at, self._weight(at, expression)), descending)

    def aggregate(self, at: int, expression: Any) -> Aggregate | None:
        """Note that a column is an aggregate, if it is one."""
        if at in self._merged:
            return self._merged[at]
        expression = _bare(expression)
        kind = _aggregate_kind(expression)
        if kind is None:
            if any(_aggregate_kind(part) for part in _parts(expression)):
                raise BadRead(
                    "an expression around an aggregate cannot be merged over several shards: compute it after"
                )
            return None
        if kind == "DISTINCT":
            value = expression.first
            self.subgroups.append(value)
            made = Aggregate(kind, self.key(value), at)
        elif kind == "AVG":
            parts = (self._at_of(expression.first.sum()), self._at_of(expression.first.count()))
            made = Aggregate(kind, SortKey(at), at, parts)
        else:
            weight = self._weight(at, expression) if kind in ("MIN", "MAX") else None
            made = Aggregate(kind, SortKey(at, weight), at)
        self._merged[at] = made
        return made

    def _at_of(self, expression: Any) -> int:
        sql = self._sql(expression)
        at = self._at.get(sql)
        if at is None:
            at = self._at[sql] = len(self.asked)
            self.asked.append(expression)
        return at

    def _weight(self, at: int, expression: Any) -> int | None:
        """Return the column of a text's collation weight; of a `case` and its like pyDAL does not know the type."""
        if str(expression.type).startswith(_NO_TEXTS) and op_name(expression) != "coalesce":
            return None
        sql = self._reader.dialect.weight(self._sql(expression))
        if sql is None:
            return None
        if at not in self._weights:
            self._weights[at] = len(self.asked)
            self.asked += self._reader.adapter.expand_all(list(map(raw, sql)), {})
        return self._weights[at]

    def _sql(self, expression: Any) -> str:
        return str(self._reader.adapter.expand(expression))


def _bare(expression: Any) -> Any:
    """Return an expression without its alias."""
    return expression.first if op_name(expression) == "_as" else expression


def _aggregate_kind(expression: Any) -> str | None:
    name = op_name(expression)
    if name == "aggregate" and expression.second in _AGGREGATES:
        return str(expression.second)
    if name == "count":
        return "DISTINCT" if expression.second else "COUNT"
    return None


def _parts(expression: Any) -> Iterator[Any]:
    for part in (getattr(expression, "first", None), getattr(expression, "second", None)):
        if kind_of(part) == "Expression":
            yield part
            yield from _parts(part)


@dataclass(frozen=True, slots=True)
class SortKey:
    """Where a row has a value that it is compared by.

    Attributes:
        at: the column of the value.
        weight: the column of its collation weight, and behind it that of the padding, which count where the value is a
            text; None: the value is the key.
    """

    at: int
    weight: int | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One term of an ORDER BY."""

    key: SortKey
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate of a result.

    Attributes:
        kind: SUM, MIN, MAX, COUNT, AVG or DISTINCT (a COUNT DISTINCT: the rows carry the values).
        key: the column of a shard's own result; for DISTINCT that of the values.
        result: the column that takes the merged result.
        parts: of an AVG: the columns of the sum and of the count.
    """

    kind: str
    key: SortKey
    result: int
    parts: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Merge:
    """How the rows of several shards become one result.

    Attributes:
        grouped: whether there are aggregates or groups.
        groups: what makes a group.
        identity: what makes two rows the same one, where they shall be distinct; None where they need not.
    """

    width: int
    order: tuple[Term, ...] = ()
    grouped: bool = False
    groups: tuple[SortKey, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    identity: tuple[SortKey, ...] | None = None
    limitby: tuple[int, int] | None = None


def merged_rows(parts: Iterable[Iterable[_Row]], merge: Merge) -> list[_Row]:
    """Return the rows of one result, each cut to the columns that were asked for.

    Args:
        parts: the rows of each shard.
        merge: how they become one result.
    """
    rows: list[_Row] = [row for part in parts for row in part]
    if merge.grouped:
        rows = list(_grouped(rows, merge))
    elif merge.identity is not None:
        rows = list({_identity(row, merge.identity): row for row in reversed(rows)}.values())[::-1]
    for term in reversed(merge.order):
        rows.sort(key=_sort_key(term.key, rows), reverse=term.descending)
    if merge.limitby is not None:
        rows = rows[slice(*merge.limitby)]
    return [row[: merge.width] for row in rows]


# comparing ------------------------------------------------------------------------------------------------------


def _sort_key(key: SortKey, rows: Sequence[_Row]) -> Callable[[_Row], Any]:
    at, weight = key.at, key.weight
    kinds = {type(row[at]) for row in rows} - {type(None)}
    if kinds & {date, datetime} and str in kinds:
        return lambda row: "" if row[at] is None else str(row[at])
    if weight is None or str not in kinds:
        return lambda row: (row[at] is not None, row[at] if row[at] is not None else 0)
    longest = max((len(row[weight]) for row in rows if row[weight] is not None), default=0)
    return lambda row: b"" if row[weight] is None else b"\1" + _padded(row[weight], row[weight + 1], longest)


def _padded(weight: bytes, pad: bytes | None, length: int) -> bytes:
    """Return the bytes by which a text compares: the shorter of two is filled up, where its collation does so."""
    return weight if not pad else weight + pad * ((length - len(weight)) // len(pad))


def _identity(row: _Row, keys: Iterable[SortKey]) -> tuple[Any, ...]:
    return tuple([_same(row, key) for key in keys])


def _same(row: _Row, key: SortKey) -> Any:
    """Return what is equal for values that the database takes for equal."""
    if key.weight is None or not isinstance(row[key.at], str):
        return row[key.at]
    weight, pad = row[key.weight], row[key.weight + 1]
    if weight is None or not pad:
        return weight
    while weight.endswith(pad):
        weight = weight[: -len(pad)]
    return weight


# groups ---------------------------------------------------------------------------------------------------------


def _grouped(rows: Iterable[_Row], merge: Merge) -> Iterator[_Row]:
    groups: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        groups.setdefault(_identity(row, merge.groups), []).append(row)
    if not groups and not merge.groups:
        # an aggregate over nothing is still one row
        empty: list[Any] = [None] * max((one.result + 1 for one in merge.aggregates), default=0)
        for one in merge.aggregates:
            empty[one.result] = 0 if one.kind in ("COUNT", "DISTINCT") else None
        yield empty
    for members in groups.values():
        result = list(members[0])
        for one in merge.aggregates:
            result[one.result] = _combined(one, members)
            if one.kind in ("MIN", "MAX") and one.key.weight is not None:
                best = _extreme(one, members)
                result[one.key.weight : one.key.weight + 2] = (
                    best[one.key.weight : one.key.weight + 2] if best else [None] * 2
                )
        yield result


def _combined(one: Aggregate, rows: Sequence[_Row]) -> Any:
    if one.kind == "DISTINCT":
        return len({_same(row, one.key) for row in rows if row[one.key.at] is not None})
    if one.kind in ("MIN", "MAX"):
        best = _extreme(one, rows)
        return best[one.key.at] if best is not None else None
    if one.kind == "AVG":
        return _average(one, rows)
    return _sum(row[one.key.at] for row in rows)


def _extreme(one: Aggregate, rows: Sequence[_Row]) -> _Row | None:
    there = [row for row in rows if row[one.key.at] is not None]
    best = max if one.kind == "MAX" else min
    return best(there, key=_sort_key(one.key, there)) if there else None


def _average(one: Aggregate, rows: Sequence[_Row]) -> Any:
    """Return sum / count, with the digits that the shard gave its own average."""
    total, count = _sum(row[one.parts[0]] for row in rows), sum(row[one.parts[1]] for row in rows)
    if not count:
        return None
    if not isinstance(total, Decimal):
        return total / count
    digits = min(
        (row[one.key.at].as_tuple().exponent for row in rows if isinstance(row[one.key.at], Decimal)), default=-4
    )
    with localcontext() as context:
        context.prec = 100
        return (total / count).quantize(Decimal(1).scaleb(digits), rounding=ROUND_HALF_UP)


def _sum(values: Iterable[Any]) -> Any:
    there = [value for value in values if value is not None]
    with localcontext() as context:
        context.prec = 100
        return sum(there[1:], there[0]) if there else None
