"""A table's gate: every value that goes into an op passes here and comes out final and exact, or is refused by name.

Defaults, `update=`, `compute` and filters run here, in the request, since the worker has neither user nor clock of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from pipeline.config.bucket_rules import Rule
from pipeline.config.settings import TableSettings
from pipeline.dal.trees import columns_in, expression, is_expression
from pipeline.errors import BadOp, BadValue, UnknownField
from pipeline.model.op import Op
from pipeline.model.schema import TableSchema
from pipeline.model.values import checker, lenient
from pipeline.model.values.texts import LAZY_TEXTS

_Check = Callable[[Any], Any]
#: Values of these types are called, as pyDAL does. Not all that can be called is meant to be: a Row can, too.
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class Final(dict[str, Any]):
    """Values that pyDAL has made final: defaults, `update=`, `compute` and filters have run, and do not run again.

    Given in the mapping form of a call. Moments are cut to the column, as pyDAL does on its way to a database.
    """


class Gate:
    """What can be known of a table once: made per definition, not per request."""

    __slots__ = ("check", "column_of", "lenient", "required", "schema")

    def __init__(self, schema: TableSchema):
        self.schema = schema
        self.check: dict[str, _Check] = {c.name: checker(schema.name, c) for c in schema.columns}
        self.lenient: dict[str, _Check] = {c.name: lenient(schema.name, c) for c in schema.columns}
        self.column_of = schema.index
        #: Fields that an insert must end up with.
        self.required = frozenset(c.name for c in schema.columns if c.notnull and c.name != schema.id_name)

    def known(self, names: Mapping[str, Any]) -> None:
        """Refuse fields that the table does not have: pyDAL would drop them without a word."""
        for name in names:
            if name not in self.column_of:
                raise UnknownField(self.schema.name, name, self.column_of)

    def row_plan(self, table: Any, names: Iterable[str], key: str | None = None) -> RowPlan:
        """Return how rows that give these fields, and have that shard key, become new rows of this table."""
        given = frozenset(names)
        self.known(dict.fromkeys(given))
        if isinstance(names, Final):
            self._complete(given)
            return RowPlan(self, (), given, {}, None, self.lenient, key)
        filtered = _filtered(table) & given
        computed = bool(filtered) or any(f.compute for f in table)
        defaults = {
            name: table[name].default
            for name in self.column_of
            if name not in given and name != self.schema.id_name and table[name].default is not None
        }
        if not computed:
            self._complete(given | defaults.keys())
        return RowPlan(self, table, given, defaults, filtered if computed else None, self.check, key)

    def update_values(self, table: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Return the plain values and the expressions of an update, with `update=` and `compute` fields added."""
        self.known(given)
        final = isinstance(given, Final)
        given, filtered = _called(given), frozenset() if final else _filtered(table)
        plain: dict[str, Any] = {}
        computed: dict[str, list[Any]] = {}

        def put(name: str, value: Any) -> None:
            if is_expression(value):
                computed[name] = expression(value, name, self.schema, self.check)
            else:
                plain[name] = (self.check if name in given and not final else self.lenient)[name](value)

        for name, value in given.items():
            if name not in filtered:
                put(name, value)
        for name, value in ({} if final else self._renewed(table, given, filtered)).items():
            if name in filtered or name not in given:
                put(name, value)
        self._independent(plain, computed)
        return plain, computed

    def _complete(self, names: Set[str]) -> None:
        missing = self.required - names
        if missing:
            raise BadValue(
                self.schema.name, min(missing), "is notnull, has no default, and was not given: give it a value"
            )

    def _renewed(self, table: Any, given: Mapping[str, Any], filtered: frozenset[str]) -> dict[str, Any]:
        if filtered & given.keys() or any(f.compute for f in table):
            return self.computed(table, given, "_fields_and_values_for_update")
        return _called({f.name: f.update for f in table if f.update is not None and f.name not in given})

    def computed(self, table: Any, given: Mapping[str, Any], method: str) -> dict[str, Any]:
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


class Known:
    """A table object that has been met: its gate, its rules, and the plans of its rows.

    web2py makes its tables anew at each request; other programs use one for ever, and must not pay each time. It refers
    to its table and is referred to by nothing else, so they end together.

    Args:
        door: whose gate and rules these are.
    """

    __slots__ = ("_plans", "gate", "op_builder", "rule", "rules", "table")

    def __init__(self, table: Any, gate: Gate, rules: TableSettings, rule: Rule, op_builder: object):
        self.table, self.gate, self.rules, self.rule, self.op_builder = table, gate, rules, rule, op_builder
        self._plans: dict[tuple[str, ...], RowPlan] = {}

    def plan(self, table: Any, values: Mapping[str, Any]) -> RowPlan:
        """Return the plan of rows that give these fields; made anew if a default, filter or `compute` was replaced."""
        names = tuple(values)
        plan = self._plans.get(names)
        if plan is None or plan.outdated():
            plan = self._plans[names] = self.gate.row_plan(table, names, self.rules.shard_key)
        return plan


class RowPlan:
    """How rows of one shape become new rows: which fields are given, which are defaults; made once per call or more.

    Attributes:
        columns: the columns of the rows that come out, the id left out.
        id_given: whether the rows bring their own id.
        key_at: where among the values the shard key is; None where the rows may differ in that.
    """

    __slots__ = (
        "_checks",
        "_constants",
        "_filtered",
        "_gate",
        "_late",
        "_seen_absent",
        "_seen_given",
        "_table",
        "columns",
        "given",
        "id_given",
        "key_at",
    )

    def __init__(
        self,
        gate: Gate,
        table: Any,
        given: frozenset[str],
        defaults: Mapping[str, Any],
        filtered: frozenset[str] | None,  # None: neither filters nor `compute`
        check: Mapping[str, _Check],
        key: str | None,
    ) -> None:
        self._gate, self._table, self.given = gate, table, given
        id_name = gate.schema.id_name
        self.id_given = id_name in given
        names = sorted(given - {id_name}, key=gate.column_of.__getitem__)
        self._checks = [(name, check[name]) for name in names]
        self._seen_given = [(f, f.compute, f.filter_in) for f in table if f.name in given]
        self._seen_absent = [(f, f.compute, f.default) for f in table if f.name not in given]
        self._filtered = filtered
        late = {name: call for name, value in defaults.items() if (call := _call_of(value)) is not None}
        constant = {name: value for name, value in defaults.items() if name not in late}
        self._constants = [gate.lenient[name](value) for name, value in constant.items()]
        self._late = [(gate.lenient[name], call) for name, call in late.items()]
        self.columns = tuple(gate.column_of[name] for name in (*names, *constant, *late))
        key_column = gate.column_of.get(key) if key and filtered is None else None
        self.key_at = self.columns.index(key_column) if key_column in self.columns else None

    def outdated(self) -> bool:
        """Return whether the table has got another default, `compute` or filter since: controllers do that."""
        for f, compute, filter_in in self._seen_given:
            if f.compute is not compute or f.filter_in is not filter_in:
                return True
        for f, compute, default in self._seen_absent:  # noqa: SIM110  # once per op: any() costs more
            if f.compute is not compute or f.default is not default:
                return True
        return False

    def row(self, values: Mapping[str, Any]) -> tuple[tuple[int, ...], list[Any], int | None]:
        """Return columns, their final values, and the id if the row brings one."""
        if self._filtered is not None:
            return self._computed_row(_called(values), self._filtered)
        try:
            final = [check(values[name]) for name, check in self._checks]
        except BadValue:
            if not any(isinstance(value, FUNCTIONS) for value in values.values()):
                raise
            return self.row(_called(values))
        if self._constants:
            final += self._constants
        for check, default in self._late:
            final.append(check(default()))
        if not self.id_given:
            return self.columns, final, None
        id_name = self._gate.schema.id_name
        return self.columns, final, self._gate.check[id_name](values[id_name])

    def _computed_row(
        self, values: Mapping[str, Any], filtered: frozenset[str]
    ) -> tuple[tuple[int, ...], list[Any], int | None]:
        """Check what was given; let pyDAL filter and compute the rest, which may look at the other fields."""
        gate, id_name = self._gate, self._gate.schema.id_name
        final = {name: gate.check[name](value) for name, value in values.items() if name not in filtered}
        for name, value in gate.computed(self._table, values, "_fields_and_values_for_insert").items():
            if name not in final:
                final[name] = (gate.check if name in values else gate.lenient)[name](value)
        row_id = final.pop(id_name, None)
        gate._complete(final.keys())
        names = sorted(final, key=gate.column_of.__getitem__)
        return tuple(gate.column_of[name] for name in names), [final[name] for name in names], row_id


def _filtered(table: Any) -> frozenset[str]:
    """Return the fields that the application filters. Not pyDAL's own filters of date and time: they cut in silence."""
    return frozenset(
        f.name for f in table if f.filter_in and not getattr(f.filter_in, "__module__", "").startswith("pydal.")
    )


def _call_of(value: Any) -> Callable[[], Any] | None:
    """Return what gives a default's value anew for each row: a function, or a translation's text; None: nothing."""
    if isinstance(value, FUNCTIONS):
        return value
    return value.__str__ if type(value).__name__ in LAZY_TEXTS else None


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
