"""Compute what a queued op will make of a row, the way the databases compute it. Pure.

`Unforeseeable` is raised where only the database knows the result: collations, divisions, a value that will not fit.
The caller then waits for the op instead of showing a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from pipeline.model.op import COPY, DELETE, INSERT, UPDATE, UPSERT, Op
from pipeline.model.schema import TableSchema
from pipeline.model.values import python_value
from pipeline.model.values.numbers import RANGES

#: A row's values by field, as pyDAL reads them; None where there is no row.
Values = dict[str, Any] | None


class Unforeseeable(Exception):
    """What the database will do with an op cannot be computed exactly here."""


def row_after(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    """Return what a row is after one row write; the same object if it is not touched.

    Args:
        op: the row write.
        schema: of its table.
        row_id: the row's id.
        values: the row before, None where there is none.
    """
    return _EFFECTS[op.kind](op, schema, row_id, values)


def _inserted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.id != row_id or values is not None:
        return values  # a second row with the same id will be refused
    empty: dict[str, Any] = {column.name: None for column in schema.columns}
    return empty | _given(op, schema) | {schema.id_name: row_id}


def _updated(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if values is None or not _touches(op, schema, row_id, values):
        return values
    computed = {}
    for number, tree in op.expressions:
        column = schema.columns[number]
        computed[column.name] = _stored(column, _computed(tree, schema, column, values))
    return values | _given(op, schema) | computed


def _deleted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    return None if values is not None and _touches(op, schema, row_id, values) else values


def _upserted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.key == (schema.id_index,):
        if op.id != row_id:
            return values
        if values is None:
            return _inserted(op, schema, row_id, None)
        return values | _given(op, schema, only=op.renew)
    if op.id == row_id:
        raise Unforeseeable("whether an upsert makes a row depends on the other rows")
    if values is None:
        return None
    given = _given(op, schema)
    same = [_equal(schema.columns[key], values[schema.columns[key].name], given) for key in op.key]
    if False in same:
        return values
    if None in same:
        raise Unforeseeable("whether two texts are the same key is for the database to say")
    return values | _given(op, schema, only=op.renew)


def _copied(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.id != row_id or values is not None:
        return values
    raise Unforeseeable("what a copy will find in its source is for the database to say")


_EFFECTS: Mapping[str, Callable[[Op, TableSchema, int, Values], Values]] = {
    INSERT: _inserted,
    UPDATE: _updated,
    DELETE: _deleted,
    UPSERT: _upserted,
    COPY: _copied,
}


def _given(op: Op, schema: TableSchema, only: tuple[int, ...] | None = None) -> dict[str, Any]:
    pairs = zip(op.columns, op.values, strict=True)
    columns = schema.columns
    return {columns[n].name: python_value(columns[n], v) for n, v in pairs if only is None or n in only}


def _equal(column: Any, value: Any, given: Mapping[str, Any]) -> bool | None:
    other = given.get(column.name)
    if value is None or other is None:
        return False  # NULLs are never the same key
    return True if value == other else None if _is_text(column) else False


def _touches(op: Op, schema: TableSchema, row_id: int, values: dict[str, Any]) -> bool:
    if op.where is None:
        return op.id == row_id
    return _holds(op.where, schema, values) is True


# conditions -----------------------------------------------------------------------------------------------------


def _holds(tree: Any, schema: TableSchema, values: dict[str, Any]) -> bool | None:
    """Return whether a condition holds; None is SQL's unknown."""
    head, *rest = tree
    if head in ("and", "or"):
        parts = [_holds(part, schema, values) for part in rest]
        final = head == "or"
        return final if final in parts else None if None in parts else not final
    if head == "not":
        inner = _holds(rest[0], schema, values)
        return None if inner is None else not inner
    column = schema.columns[rest[0]]
    value = values[column.name]
    if head == "null":
        return value is None
    if head == "in":
        found = [_compared("=", column, value, other) for other in rest[1]]
        return True if True in found else None if None in found else False
    return _compared(head, column, value, rest[1])


_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "<>": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_COMPARABLE = ("integer", "bigint", "id", "reference", "double", "decimal", "boolean", "date", "time", "datetime")


def _compared(head: str, column: Any, value: Any, canonical: Any) -> bool | None:
    if value is None or canonical is None:
        return None
    other = python_value(column, canonical)
    if column.kind in _COMPARABLE:
        return _ORDER[head](value, other)
    if value == other and _is_text(column):
        return head in ("=", "<=", ">=")  # the same text is the same under every collation
    raise Unforeseeable("how two texts compare is for the database to say")


# expressions ----------------------------------------------------------------------------------------------------

_WHOLE = ("integer", "bigint", "id", "reference")


def _computed(tree: Any, schema: TableSchema, target: Any, values: dict[str, Any]) -> Any:
    head, *rest = tree
    if head == "c":
        return values[schema.columns[rest[0]].name]
    if head == "v":
        (value,) = rest
        return value if isinstance(value, int | float) else python_value(target, value)
    left, right = (_computed(part, schema, target, values) for part in rest)
    if left is None or right is None:
        return None
    if head == "||":
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        raise Unforeseeable("a text is joined to what is no text")
    return _arithmetic(head, left, right)


def _arithmetic(sign: str, left: Any, right: Any) -> Any:
    kinds = {type(left), type(right)}
    if any(issubclass(kind, bool) or not issubclass(kind, int | float | Decimal) for kind in kinds):
        raise Unforeseeable("arithmetic on what is no number")
    if all(issubclass(kind, int) for kind in kinds):
        return _whole(sign, int(left), int(right))
    if float in kinds:
        if not (isinstance(left, float) or isinstance(right, float)) or Decimal in kinds or sign not in "+-*":
            raise Unforeseeable("a division, or numbers of several kinds")
        return _finite(_SIGNS[sign](float(left), float(right)))
    if sign not in "+-*":
        raise Unforeseeable("databases differ in the digits of a quotient")
    with localcontext() as context:
        context.prec = 200
        return _SIGNS[sign](Decimal(left), Decimal(right))


_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def _whole(sign: str, left: int, right: int) -> int:
    if sign == "%" and right:
        result = int(math.copysign(1, left)) * (abs(left) % abs(right))
    elif sign in _SIGNS:
        result = _SIGNS[sign](left, right)
    else:
        raise Unforeseeable("a quotient of whole numbers")
    if not -(2**63) <= result < 2**63:
        raise Unforeseeable("out of range")
    return result


def _finite(result: float) -> float:
    if math.isfinite(result):
        return result
    raise Unforeseeable("out of range")


def _stored(column: Any, value: Any) -> Any:
    """Return what a column keeps of a computed value."""
    if value is None:
        if column.notnull:
            raise Unforeseeable("NULL will be refused")
        return None
    if column.kind in _WHOLE and isinstance(value, int):
        low, high = RANGES[column.kind]
        if low <= value <= high:
            return value
    elif column.kind == "double" and isinstance(value, int | float):
        return float(value)
    elif column.kind == "decimal" and isinstance(value, int | Decimal):
        digits, scale = column.digits
        rounded = Decimal(value).quantize(Decimal(1).scaleb(-scale), rounding=ROUND_HALF_UP)
        if abs(rounded) < Decimal(10) ** (digits - scale):
            return rounded
    elif isinstance(value, str) and column.kind in ("string", "text") and len(value) <= (column.length or len(value)):
        return value
    raise Unforeseeable("the database will round it, or refuse it")


def _is_text(column: Any) -> bool:
    return column.kind not in _COMPARABLE
