"""A table's gate: every value that goes into an op passes here and comes out final and exact, or is refused by name.

Defaults, `update=`, `compute` and filters run here, in the request, since the worker has neither user nor clock of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from pipeline.errors import BadOp, BadValue, UnknownField
from pipeline.op import Op
from pipeline.schema import TableSchema
from pipeline.values import checker, lenient
from pipeline.write.trees import columns_in, expression, is_expression

Check = Callable[[Any], Any]
#: Values of these types are called, as pyDAL does. Not all that can be called is meant to be: a Row can, too.
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class Gate:
    """What can be known of a table once: made per definition, not per request."""

    __slots__ = ("check", "column_of", "lenient", "required", "schema")

    def __init__(self, schema: TableSchema):
        self.schema = schema
        self.check: dict[str, Check] = {c.name: checker(schema.name, c) for c in schema.columns}
        self.lenient: dict[str, Check] = {c.name: lenient(schema.name, c) for c in schema.columns}
        self.column_of = schema.index
        #: Fields that an insert must end up with.
        self.required = frozenset(c.name for c in schema.columns if c.notnull and c.name != schema.id_name)

    def known(self, names: Mapping[str, Any]) -> None:
        """Refuse fields that the table does not have: pyDAL would drop them without a word."""
        for name in names:
            if name not in self.column_of:
                raise UnknownField(self.schema.name, name, self.column_of)

    def insert_values(self, table: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all values of a new row, by field, in the definition's order; the id only if it was given."""
        self.known(given)
        given, filtered = _called(given), _filtered(table)
        checked = {name: self.check[name](value) for name, value in given.items() if name not in filtered}
        hooked: dict[str, Any] = {}
        if filtered or any(f.compute for f in table):
            hooked = self._computed(table, given, "_fields_and_values_for_insert")
        final: dict[str, Any] = {}
        for name in self.column_of:
            if name in checked:
                final[name] = checked[name]
            elif name in hooked:
                final[name] = (self.check if name in given else self.lenient)[name](hooked[name])
            elif (default := table[name].default) is not None and name != self.schema.id_name:
                final[name] = self.lenient[name](default() if isinstance(default, FUNCTIONS) else default)
        missing = self.required - final.keys()
        if missing:
            raise BadValue(
                self.schema.name, min(missing), "is notnull, has no default, and was not given: give it a value"
            )
        return final

    def update_values(self, table: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Return the plain values and the expressions of an update, with `update=` and `compute` fields added."""
        self.known(given)
        given, filtered = _called(given), _filtered(table)
        plain: dict[str, Any] = {}
        computed: dict[str, list[Any]] = {}

        def put(name: str, value: Any) -> None:
            if is_expression(value):
                computed[name] = expression(value, name, self.schema, self.check)
            else:
                plain[name] = (self.check if name in given else self.lenient)[name](value)

        for name, value in given.items():
            if name not in filtered:
                put(name, value)
        for name, value in self._renewed(table, given, filtered).items():
            if name in filtered or name not in given:
                put(name, value)
        self._independent(plain, computed)
        return plain, computed

    def _renewed(self, table: Any, given: Mapping[str, Any], filtered: frozenset[str]) -> dict[str, Any]:
        if filtered & given.keys() or any(f.compute for f in table):
            return self._computed(table, given, "_fields_and_values_for_update")
        return _called({f.name: f.update for f in table if f.update is not None and f.name not in given})

    def _computed(self, table: Any, given: Mapping[str, Any], method: str) -> dict[str, Any]:
        """Let pyDAL run filters and `compute`, which may look at the other fields."""
        row = getattr(table, method)(dict(given))
        return {field.name: value for field, value in row.op_values()}

    def _independent(self, plain: Mapping[str, Any], computed: Mapping[str, list[Any]]) -> None:
        """Refuse an expression on a column that the same op sets: MySQL reads its new value, the standard its old."""
        set_here = {self.column_of[name] for name in (*plain, *computed)}
        for name, tree in computed.items():
            clash = columns_in(tree) & (set_here - {self.column_of[name]})
            if clash:
                other = self.schema.columns[min(clash)].name
                raise BadOp(
                    f"{self.schema.name}.{name} is computed from {other}, which the same call sets; databases differ "
                    "on which value it then reads: make it two calls, in the order you mean"
                )


def _filtered(table: Any) -> frozenset[str]:
    """Return the fields that the application filters. Not pyDAL's own filters of date and time: they cut in silence."""
    return frozenset(
        f.name for f in table if f.filter_in and not getattr(f.filter_in, "__module__", "").startswith("pydal.")
    )


def _called(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value() if isinstance(value, FUNCTIONS) else value for name, value in values.items()}


def with_values(op: Op, gate: Gate, plain: Mapping[str, Any], computed: Mapping[str, list[Any]]) -> Op:
    """Return the op with values and expressions, columns in the definition's order so that like ops group."""
    names = sorted(plain, key=gate.column_of.__getitem__)
    return Op(
        op.kind,
        op.table,
        op.schema,
        op.at_ms,
        op.id,
        tuple(gate.column_of[name] for name in names),
        tuple(plain[name] for name in names),
        op.where,
        tuple((gate.column_of[name], computed[name]) for name in sorted(computed, key=gate.column_of.__getitem__)),
        op.key,
        op.renew,
        op.idempotency_key,
    )
