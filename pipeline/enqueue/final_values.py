"""Make a call's values final and exact, or refuse them by name; publish the schema of a table before its first op.

All these steps run here, in the request: the worker has neither the request's user nor its clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any
from weakref import WeakValueDictionary

from pipeline.bounds import WaitBudgetSpent
from pipeline.config import Topology
from pipeline.dal import PLAIN
from pipeline.dal.trees import columns_in, expression, is_expression
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import BadOp, BadValue, LogUnavailable, PipelineFull, Unavailable, UnknownField
from pipeline.events import Event
from pipeline.model.schema import TableSchema
from pipeline.model.values import checker, lenient
from pipeline.model.values.texts import LAZY_TEXTS
from pipeline.oplog import Entries
from pipeline.shard import columns
from pipeline.shard.nodes import Nodes

logger = logging.getLogger("pipeline.publish")
Check = Callable[[Any], Any]
#: Values of these types are called, as pyDAL does. Not all that can be called is meant to be: a Row can, too.
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
#: Values of these types are neither called nor computed.
_GIVEN = PLAIN | {NoneType}
#: Columns, their final values, and columns with their expressions.
Updated = tuple[tuple[int, ...], tuple[Any, ...], tuple[tuple[int, list[Any]], ...]]


class SchemaPublisher:
    """Publishes definitions, and checks once whether a table can keep its ids and its shard key."""

    def __init__(self, log: Entries, nodes: Nodes, topology: Topology, away: RedisAway):
        self._log, self._nodes, self._topology, self._away = log, nodes, topology, away
        #: Those that a plan still uses: what no table has any more needs to be published no more.
        self._published = WeakValueDictionary[str, TableSchema]()
        self._spooled: set[str] = set()

    def publish(self, schemas: Iterable[TableSchema]) -> None:
        """Publish those definitions that this process has not, in one round trip; with a spool, they go there while
        Redis is away.

        Raises:
            LogUnavailable: Redis did not answer, and there is no spool; none is published.
        """
        new = {schema.hash: schema for schema in schemas if schema.hash not in self._published}
        if not new:
            return
        if self._away.open or not self._taken(new.values()):
            # whoever drains the spool publishes them; the ops that need them are behind them in there, or sent later
            kept = [(schema.hash, schema.name, schema.to_json()) for schema in new.values()]
            self._away.spool.keep_definitions(kept, wait=True)
            self._spooled |= new.keys()
        self._published |= new
        self._spooled &= set(self._published)

    def keep(self) -> None:
        """Keep all definitions of this process in the spool: who drains it may be another."""
        new = [schema for schema in list(self._published.values()) if schema.hash not in self._spooled]
        if new:
            kept = [(schema.hash, schema.name, schema.to_json()) for schema in new]
            self._away.spool.keep_definitions(kept, wait=False)
            self._spooled |= {schema.hash for schema in new}

    def republish(self) -> None:
        """Publish all anew, after Redis may have forgotten them."""
        self._send(list(self._published.values()))

    def _taken(self, schemas: Iterable[TableSchema]) -> bool:
        try:
            self._send(schemas)
        except (LogUnavailable, PipelineFull) as error:
            self._away.hear(error)
            return False
        return True

    def _send(self, schemas: Iterable[TableSchema]) -> None:
        self._log.publish_schemas((schema.name, schema.hash, schema.to_json()) for schema in schemas)

    def approve(self, schema: TableSchema) -> None:
        """Check on one shard that answers; where the table is not there yet, migrate will make it right.

        Where none answers within half of the caller's wait budget, the op is taken. A worker, whose database does
        answer, rejects the op with the database's reason if the id does not fit. `check` then finds the shard key's
        collation.

        Raises:
            BadOp: the table keeps its ids in an INT column, where a 53-bit id does not fit. Or its shard key is in a
                column that takes different texts for equal.
        """
        if self._topology.table(schema.name).ids != "pipeline" and not columns.text_key(schema, self._topology):
            return
        try:
            why = self._away.wait_budgets.aside(lambda: self._refused(schema), share=0.5)
        except (Unavailable, WaitBudgetSpent) as error:
            logger.warning(
                Event(
                    "id_column_not_checked",
                    table=schema.name,
                    error=error,
                    text="the workers will tell whether ids fit",
                )
            )
            return
        if why is not None:
            raise BadOp(why)

    def _refused(self, schema: TableSchema) -> str | None:
        for shard in self._topology.shards:
            try:
                return columns.unusable(self._nodes.primary(shard), schema, self._topology)
            except Unavailable as error:
                unreachable = error
        raise unreachable


class Final(dict[str, Any]):
    """Values that pyDAL has made final: defaults, `update=`, `compute` and filters have run, and do not run again.

    Given in the mapping form of a call. Moments are cut to the column, as pyDAL does on its way to a database.
    """


class CompiledTable:
    """What the definition of a table and its settings say, ready for use; made once per definition, not per request.

    Attributes:
        check: of each field, makes a given value final and exact; `lenient` does so with what pyDAL has made itself.
        column_of: of each field, the number of its column.
        bucket_of: finds the bucket of a final shard key; of an id, where rows are spread by their ids.
        required: the fields that an insert must end up with.
        rules: the table's settings.
    """

    __slots__ = ("bucket_of", "check", "column_of", "lenient", "required", "rules", "schema", "topology")

    def __init__(self, schema: TableSchema, topology: Topology):
        self.schema, self.topology = schema, topology
        self.rules = topology.table(schema.name)
        self.check: dict[str, Check] = {c.name: checker(schema.name, c) for c in schema.columns}
        self.lenient: dict[str, Check] = {c.name: lenient(schema.name, c) for c in schema.columns}
        self.column_of = schema.index
        key = self.column_of.get(self.rules.shard_key or "", schema.id_index)
        self.bucket_of = topology.placing(schema.name, schema.columns[key])
        self.required = frozenset(c.name for c in schema.columns if c.notnull and c.name != schema.id_name)

    @property
    def takes_sheets(self) -> bool:
        """Whether like inserts may be sheets: no lists, ids of the pipeline, and no row that refers to another of them.

        All rows of a sheet have one time, and order across buckets is by time.
        """
        own = self.schema.name
        odd = any(column.kind.startswith("list:") or column.parent == own for column in self.schema.columns)
        return self.rules.ids == "pipeline" and not self.rules.reference and not odd

    def known(self, names: Iterable[str]) -> None:
        """Refuse fields that the table does not have: pyDAL would drop them without a word."""
        for name in names:
            if name not in self.column_of:
                raise UnknownField(self.schema.name, name, self.column_of)

    def complete(self, names: Set[str]) -> None:
        """Refuse a row that lacks a required field."""
        missing = self.required - names
        if missing:
            raise BadValue(
                self.schema.name, min(missing), "is notnull, has no default, and was not given: give it a value"
            )

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return field names in the definition's order, so that like ops group."""
        return sorted(names, key=self.column_of.__getitem__)


class UpdatePlan:
    """How an update of some fields becomes columns, values and expressions, where pyDAL adds nothing; once per shape.

    Args:
        fields: of the table.
        names: of the fields that the updates give.
    """

    __slots__ = ("_checks", "_columns", "_compiled", "_seen")

    def __init__(self, compiled: CompiledTable, fields: Iterable[Any], names: Sequence[str]):
        compiled.known(names)
        self._compiled = compiled
        self._seen = [(f, f.filter_in, f.compute, f.update) for f in fields]
        key = None if compiled.rules.reference else compiled.rules.shard_key
        added = (compute or (update is not None and f.name not in names) for f, _, compute, update in self._seen)
        ordered = compiled.in_order(names)
        odd = any(added) or filtered(f for f, *_ in self._seen) or not {compiled.schema.id_name, key}.isdisjoint(names)
        self._columns = () if odd else tuple(compiled.column_of[name] for name in ordered)
        self._checks = [(name, compiled.check[name]) for name in ordered]

    def outdated(self) -> bool:
        """Return whether the table has got another filter, `compute` or `update` since: controllers do that."""
        for f, filter_in, compute, update in self._seen:  # once per op: any() costs more
            if f.filter_in is not filter_in or f.compute is not compute or f.update is not update:
                return True
        return False

    def plain(self, given: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the columns of an update, in order, where each gets the value that is given; else none."""
        return self._columns if _GIVEN.issuperset(map(type, given.values())) else ()

    def of(self, given: Mapping[str, Any]) -> Updated | None:
        """Return what an update sets; None where pyDAL adds something or calls a value: see `update_values`."""
        columns = self._columns
        if not columns:
            return None
        if _GIVEN.issuperset(map(type, given.values())):
            return columns, tuple([check(given[name]) for name, check in self._checks]), ()
        compiled, plain, trees = self._compiled, dict[str, Any](), dict[str, list[Any]]()
        for name, check in self._checks:
            value = given[name]
            if type(value) in _GIVEN:
                plain[name] = check(value)
            elif is_expression(value):
                trees[name] = expression(value, name, compiled.schema, compiled.check)
            else:
                return None
        _independent(compiled, plain, trees)
        number = compiled.column_of
        return (
            tuple(map(number.__getitem__, plain)),
            tuple(plain.values()),
            tuple((number[k], v) for k, v in trees.items()),
        )


def update_values(
    compiled: CompiledTable, table: Any, fields: Iterable[Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the plain values and the expressions of an update, with `update=` and `compute` fields added.

    Args:
        compiled: the rows' table.
        table: pyDAL's.
        fields: of the table.
        given: the call's values.
    """
    compiled.known(given)
    final = isinstance(given, Final)
    given = called(given)
    filters, renewed = (frozenset[str](), dict[str, Any]()) if final else _renewed(table, fields, given)
    plain: dict[str, Any] = {}
    trees: dict[str, list[Any]] = {}

    def put(name: str, value: Any) -> None:
        if is_expression(value):
            trees[name] = expression(value, name, compiled.schema, compiled.check)
        else:
            plain[name] = (compiled.check if name in given and not final else compiled.lenient)[name](value)

    for name, value in given.items():
        if name not in filters:
            put(name, value)
    for name, value in renewed.items():
        if name in filters or name not in given:
            put(name, value)
    _independent(compiled, plain, trees)
    return plain, trees


def computed(table: Any, given: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Let pyDAL run filters and `compute`, which may read the other fields."""
    row = getattr(table, method)(dict(given))
    return {field.name: value for field, value in row.op_values()}


def filtered(fields: Iterable[Any]) -> frozenset[str]:
    """Return the names of those fields that the application filters."""
    return frozenset(f.name for f in fields if f.filter_in and _own_filter(f.filter_in))


def _own_filter(filter_in: Any) -> bool:
    """Return whether a filter is the application's: pyDAL's own of date and time cut in silence."""
    return not getattr(filter_in, "__module__", "").startswith("pydal.")


def call_of(value: Any) -> Callable[[], Any] | None:
    """Return what gives a default's value anew for each row: a function, or a translation's text; None: nothing."""
    if isinstance(value, FUNCTIONS):
        return value
    return value.__str__ if type(value).__name__ in LAZY_TEXTS else None


def called(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, each function replaced by its result."""
    return {name: value() if isinstance(value, FUNCTIONS) else value for name, value in values.items()}


def _renewed(table: Any, fields: Iterable[Any], given: Mapping[str, Any]) -> tuple[Set[str], dict[str, Any]]:
    """Return the fields that the application filters, and what pyDAL adds to an update; reads each field once."""
    filters, added, computes = set[str](), dict[str, Any](), False
    for f in fields:
        if f.filter_in and _own_filter(f.filter_in):
            filters.add(f.name)
        if f.compute:
            computes = True
        if f.update is not None and f.name not in given:
            added[f.name] = f.update
    if computes or not filters.isdisjoint(given):
        return filters, computed(table, given, "_fields_and_values_for_update")
    return filters, called(added)


def _independent(compiled: CompiledTable, plain: Mapping[str, Any], trees: Mapping[str, list[Any]]) -> None:
    """Refuse an expression on a column that the same op sets: MySQL reads its new value, the standard its old."""
    if not trees or len(plain) + len(trees) == 1:
        return
    set_here = {compiled.column_of[name] for name in (*plain, *trees)}
    for name, tree in trees.items():
        clash = columns_in(tree) & (set_here - {compiled.column_of[name]})
        if clash:
            table, other = compiled.schema.name, compiled.schema.columns[min(clash)].name
            raise BadOp(
                f"{table}.{name} is computed from {other}, which the same call sets; databases differ "
                "on which value it then reads: make it two calls, in the order you mean"
            )
