"""Merge the rows of several shards into those that one database would return: order, distinct, groups, aggregates.

Pure. Rows are raw, as the driver returns them. A text compares by the bytes that its database compares by
(`SortKey.weight`), so collations hold. NULL comes first, as in MySQL, MariaDB and SQLite. A day that Python lacks, as
0000-00-00, comes as a text, and compares as its digits do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

_Row = Sequence[Any]


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
