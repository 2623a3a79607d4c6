"""Make ops of the calls on one pyDAL table; what is known of the table is found once, not per call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter, length_hint
from typing import Any

from pipeline import clock
from pipeline.bounds import keep_newest
from pipeline.dal import has_filters, with_filters
from pipeline.dal.trees import Tree, condition
from pipeline.enqueue import held_ops
from pipeline.enqueue.buckets import (
    bucket_of_new,
    bucket_of_rows,
    check_upsert_filters,
    check_upsert_key,
    check_upsert_values,
    keeps_its_place,
    sorted_by_bucket,
    sorted_in_turn,
)
from pipeline.enqueue.final_values import (
    FUNCTIONS,
    CompiledTable,
    Final,
    UpdatePlan,
    call_of,
    called,
    computed,
    filtered,
    update_values,
)
from pipeline.enqueue.held_ops import Chunk
from pipeline.enqueue.row_ids import RowIds
from pipeline.errors import BadOp, BadQuery, BadValue, shown
from pipeline.model import DELETE, INSERT, UPDATE, UPSERT, Addressed, Op, encode
from pipeline.model.sheet import Sheet
from pipeline.model.values import are_canonical

#: Longest idempotency key, characters: a key is a number, an address or a digest, and each op carries it.
MAX_KEY = 190
#: Plans of one table that are kept; who names the fields of a row may name them in any order. 50,000 took 156 MB.
MOST_PLANS = 200
#: So many rows are turned into columns at once: 10,000 tuples set Python's collector off, which took 0.6 µs a row.
AT_ONCE = 256
#: So many rows say how large the first chunk of a bulk call may be.
SAMPLE = 8


class TablePlan:
    """Makes the ops of one pyDAL table object. Threads may share it.

    The plan refers to its table and the table to its plan, and nothing else does: they end together. web2py makes its
    tables anew at each request. Other programs use a table for ever, and must not pay each time.

    Args:
        row_ids: of the client whose plan this is: two clients may share a table.
        turn: gives the bucket of the next row that may live anywhere.
    """

    __slots__ = (
        "_fields", "_row_plans", "_rule", "_turn", "_update_plans", "_upsert_keys", "compiled", "row_ids", "table"
    )  # fmt: skip

    def __init__(self, table: Any, compiled: CompiledTable, row_ids: RowIds, turn: Iterator[int]):
        self.table, self.compiled, self.row_ids, self._turn = table, compiled, row_ids, turn
        self._rule, self._fields = compiled.bucket_of, tuple(table)
        self._row_plans: dict[tuple[str, ...], RowPlan] = {}
        self._update_plans: dict[tuple[str, ...], UpdatePlan] = {}
        self._upsert_keys: dict[tuple[str, ...], bool] = {}

    def new_row(
        self, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None, plan: RowPlan | None = None
    ) -> Addressed:
        """Make an insert; *plan*: of the row's shape, where it is known."""
        if key is not None:
            _checked_key(key)
        plan = plan or self._row_plan(values)
        columns, final, row = plan.row(values)
        at, compiled = plan.key_at, self.compiled
        now_ms = clock.wall_ns() // 1000 / 1000  # to a microsecond: ops of a request keep their order
        id_given = row is not None
        if at is not None and row is None and shard_key is None and final[at] is not None:
            bucket = self._rule(final[at])  # nearly always
        else:
            bucket = bucket_of_new(compiled, self._turn, columns, final, row, shard_key, key)
        if row is None and compiled.rules.ids == "pipeline":
            row = self.row_ids.new(bucket if bucket < compiled.topology.buckets else next(self._turn), now_ms)
        schema = compiled.schema
        op = Op(INSERT, schema.name, schema.hash, now_ms, row, columns, tuple(final), None, (), (), (), key)
        return Addressed(bucket, op, id_given)

    def new_rows(
        self, rows: Iterable[Mapping[str, Any]], shard_key: Any = None, *, at_once: bool = False
    ) -> Iterator[Addressed | Chunk]:
        """Make an insert of each row; *at_once*: in chunks to be sent, where the rows are as usual."""
        if not isinstance(rows, Iterable):
            raise BadOp(f"expected rows, a mapping of fields each, not {shown(rows)}")
        if not at_once or shard_key is not None:
            yield from self._singly(rows, shard_key)
            return
        waiting, left = iter(rows), length_hint(rows)
        part = list(islice(waiting, most := held_ops.CHUNK_ROWS))
        if len(part) == most and (found := self._columns(some := part[:SAMPLE])) is not None:
            most = held_ops.rows_like(len(some), len(encode(found[1])))
            part += islice(waiting, max(0, held_ops.even(left, most) - len(part)))
        while part:
            chunk = self._chunk(part)
            if chunk is not None:
                most = chunk.rows_like
            if chunk is not None and chunk.is_too_large:
                waiting = chain(part, waiting)
            else:
                left -= len(part)
                yield from (chunk,) if chunk is not None else self._singly(part)
            part = list(islice(waiting, held_ops.even(left, most)))

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> tuple[RowPlan, list[Sequence[Any]]] | None:
        """Return the values of rows by columns; None where they have to be made one by one, with the same meaning.

        Then there are other fields, a value that is refused, filters, defaults that are called, given ids.
        """
        if set(map(type, rows)) != {dict} or not self.compiled.takes_sheets:
            return None
        plan = RowPlan(self.compiled, self.table, self._fields, rows[0], self.compiled.rules.shard_key)
        columns = plan.columns(rows)
        return (plan, columns) if columns is not None else None

    def _chunk(self, rows: Sequence[Mapping[str, Any]]) -> Chunk | None:
        """Return rows as a chunk of sheets; None where they have to be made one by one, see `_columns`."""
        compiled, schema, key = self.compiled, self.compiled.schema, self.compiled.rules.shard_key
        found = self._columns(rows)
        if found is None:
            return None
        plan, columns = found
        if key is None or key == schema.id_name:
            order, parts = sorted_in_turn(columns, len(rows), compiled.topology.buckets, self._turn)
        elif plan.key_at is None or None in columns[plan.key_at]:
            return None
        else:
            order = list(map(self._rule, columns[plan.key_at]))
            parts = sorted_by_bucket(columns, order)
        now_ms = clock.wall_ns() // 1000 / 1000
        sheets = {}
        for bucket, values in parts.items():
            ids = self.row_ids.many(bucket, len(values[0]), now_ms)
            sheets[bucket] = Sheet(schema.name, schema.hash, now_ms, ids, plan.numbers, values)
        return Chunk.of(order, sheets)

    def _singly(self, rows: Iterable[Mapping[str, Any]], shard_key: Any = None) -> Iterator[Addressed]:
        plan, names = None, None
        for row in rows:
            try:
                given = row.keys()
            except AttributeError:
                raise BadOp(f"expected each row as a mapping of fields, not {shown(row)}") from None
            if plan is None or given != names:
                names = given
                plan = RowPlan(self.compiled, self.table, self._fields, row, self.compiled.rules.shard_key)
            yield self.new_row(row, shard_key, None, plan)

    def update(
        self, where: Tree, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an update of the rows that a condition names: one row, or rows of one bucket."""
        compiled, column_of = self.compiled, self.compiled.column_of
        shape = self._update_plan(values) if type(values) is dict else None
        if shape is not None and (made := shape.of(values)) is not None:
            bucket, row = bucket_of_rows(compiled, where, shard_key)
            columns, final, trees_ = made
            condition_ = where if row is None else None
            op = Op(UPDATE, *self._head(row), columns, final, condition_, trees_, idempotency_key=_checked_key(key))
            return Addressed(bucket, op)
        plain, trees = update_values(compiled, self.table, self._fields, values)
        bucket, row = bucket_of_rows(compiled, where, shard_key)
        keeps_its_place(compiled, where, plain, trees)
        names, expressions = compiled.in_order(plain), compiled.in_order(trees)
        op = Op(
            UPDATE,
            *self._head(row),
            tuple(column_of[name] for name in names),
            tuple(plain[name] for name in names),
            where if row is None else None,
            tuple((column_of[name], trees[name]) for name in expressions),
            idempotency_key=_checked_key(key),
        )
        return Addressed(bucket, op)

    def delete(self, where: Tree, shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make a delete of the rows that a condition names."""
        bucket, row = bucket_of_rows(self.compiled, where, shard_key)
        condition_ = where if row is None else None
        return Addressed(bucket, Op(DELETE, *self._head(row), where=condition_, idempotency_key=_checked_key(key)))

    def upsert(
        self, fields: tuple[str, ...], values: Mapping[str, Any], shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an insert that becomes an update where a row with the same values of *fields* is there."""
        compiled, column_of = self.compiled, self.compiled.column_of
        if fields in self._upsert_keys:
            check_upsert_values(compiled, fields, values)
        else:
            check_upsert_key(compiled, fields, values)
            keep_newest(self._upsert_keys, fields, True, MOST_PLANS)
        if has_filters(self.table):
            check_upsert_filters(compiled, self.table, {name: compiled.check[name](values[name]) for name in fields})
        plan = self._row_plan(values)
        inserted = self.new_row(values, shard_key, key, plan)
        op, rest = inserted.op, {k: v for k, v in values.items() if k not in fields}
        columns, final, update = op.columns, op.values, self._update_plan(rest)
        extra: dict[int, Any] = {}
        # nearly always the insert has checked these values just as an update would
        if plan.final or not (renew := update.plain(rest)):
            if (made := update.of(rest)) is not None:
                extra = dict(zip(made[0], made[1], strict=True))
            else:
                renewed, _ = update_values(compiled, self.table, self._fields, rest)
                extra = {column_of[name]: value for name, value in renewed.items()}
            renew = tuple(sorted(extra))
        if extra or not plan.in_order:
            merged = dict(sorted({**dict(zip(columns, final, strict=True)), **extra}.items()))
            columns, final = tuple(merged), tuple(merged.values())
        named = tuple([column_of[name] for name in fields])
        upsert = Op(
            UPSERT, op.table, op.schema, op.at_ms, op.id, columns, final, None, (), named, renew, idempotency_key=key
        )
        return Addressed(inserted.bucket, upsert)

    def where(self, query: Any) -> Tree:
        """Return a query on the table as a tree, narrowed by the table's filters."""
        compiled = self.compiled
        return condition(with_filters(query, self.table), compiled.schema, compiled.lenient)

    def where_id(self, row_id: Any) -> Tree:
        """Return the condition that names a row by its id, narrowed by the table's filters."""
        schema = self.compiled.schema
        if row_id is None:
            raise BadQuery(f"say which rows of {schema.name!r}: pass a query such as db.{schema.name}.id == 5")
        row = self.compiled.check[schema.id_name](row_id)
        return self.where(self.table._id == row) if has_filters(self.table) else ["=", schema.id_index, row]

    # parts --------------------------------------------------------------------------------------------------

    def _row_plan(self, values: Mapping[str, Any]) -> RowPlan:
        names = tuple(values)
        plan = self._row_plans.get(names)
        if plan is None or isinstance(values, Final) or plan.outdated():
            plan = RowPlan(self.compiled, self.table, self._fields, values, self.compiled.rules.shard_key)
            if not plan.final:
                keep_newest(self._row_plans, names, plan, MOST_PLANS)
        return plan

    def _update_plan(self, values: Mapping[str, Any]) -> UpdatePlan:
        names = tuple(values)
        plan = self._update_plans.get(names)
        if plan is None or plan.outdated():
            plan = keep_newest(self._update_plans, names, UpdatePlan(self.compiled, self._fields, names), MOST_PLANS)
        return plan

    def _head(self, row: int | None) -> tuple[str, str, float, int | None]:
        return self.compiled.schema.name, self.compiled.schema.hash, clock.wall_ns() // 1000 / 1000, row


class RowPlan:
    """How rows of one shape become new rows: which fields are given, which are defaults; made once per call or more.

    Args:
        fields: of the table.
        names: the fields that the rows give; of a `Final`, pyDAL has made all values.
        key: the shard key of the table.

    Attributes:
        final: whether pyDAL has made all values.
        in_order: whether the columns are in the definition's order.
        key_at: where among the values the shard key is; None where the rows may differ in that.
        numbers: the numbers of the columns, in the order of the values.
    """

    __slots__ = (
        "_checks",
        "_compiled",
        "_constants",
        "_filters",
        "_id_given",
        "_late",
        "_seen_absent",
        "_seen_given",
        "_table",
        "final",
        "in_order",
        "key_at",
        "numbers",
    )

    def __init__(
        self, compiled: CompiledTable, table: Any, fields: Sequence[Any], names: Iterable[str], key: str | None = None
    ):
        given, self.final = frozenset(names), isinstance(names, Final)
        compiled.known(given)
        self._compiled, self._table = compiled, table
        fields = () if self.final else tuple(fields)
        defaults = self._defaults(fields, given)
        id_name, check = compiled.schema.id_name, compiled.lenient if self.final else compiled.check
        self._id_given = id_name in given
        ordered = compiled.in_order(given - {id_name})
        self._checks = [(name, check[name]) for name in ordered]
        self._seen_given = [(f, f.compute, f.filter_in) for f in fields if f.name in given]
        self._seen_absent = [(f, f.compute, f.default) for f in fields if f.name not in given]
        late = {name: call for name, value in defaults.items() if (call := call_of(value)) is not None}
        constant = {name: value for name, value in defaults.items() if name not in late}
        self._constants = [compiled.lenient[name](value) for name, value in constant.items()]
        self._late = [(compiled.lenient[name], call) for name, call in late.items()]
        self.numbers = tuple(compiled.column_of[name] for name in (*ordered, *constant, *late))
        key_column = compiled.column_of.get(key) if key and self._filters is None else None
        self.key_at = self.numbers.index(key_column) if key_column in self.numbers else None
        self.in_order = list(self.numbers) == sorted(self.numbers)

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
        if self._filters is not None:
            return self._computed_row(called(values), self._filters)
        try:
            final = [check(values[name]) for name, check in self._checks]
        except BadValue:
            if not any(isinstance(value, FUNCTIONS) for value in values.values()):
                raise
            return self.row(called(values))
        if self._constants:
            final += self._constants
        for check, default in self._late:
            final.append(check(default()))
        if not self._id_given:
            return self.numbers, final, None
        id_name = self._compiled.schema.id_name
        return self.numbers, final, self._compiled.check[id_name](values[id_name])

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]] | None:
        """Return the final values of rows by columns; None where they have to be made one by one."""
        names = [name for name, _ in self._checks]
        if self._filters is not None or self._late or self._id_given or not names:
            return None
        if set(map(len, rows)) != {len(names)}:
            return None
        given: list[list[Any]] = [[] for _ in names]
        one = itemgetter(*names, names[0])
        try:
            for at in range(0, len(rows), AT_ONCE):
                for column, values in zip(given, zip(*map(one, rows[at : at + AT_ONCE]), strict=True), strict=False):
                    column += values
            known = self._compiled.schema.columns
            final: list[Sequence[Any]] = [
                values if are_canonical(known[number], values) else list(map(check, values))
                for (_, check), number, values in zip(self._checks, self.numbers, given, strict=False)
            ]
        except (KeyError, BadValue):
            return None
        return final + [[constant] * len(rows) for constant in self._constants]

    def _defaults(self, fields: tuple[Any, ...], given: frozenset[str]) -> dict[str, Any]:
        """Return the defaults of the fields that are not given; note what pyDAL has to compute or to filter."""
        filters = filtered(fields) & given
        #: None: neither filters nor `compute`.
        self._filters = filters if filters or any(f.compute for f in fields) else None
        id_name = self._compiled.schema.id_name
        absent = (f for f in fields if f.name not in given and f.name != id_name)
        defaults = {f.name: f.default for f in absent if f.default is not None}
        if self._filters is None:
            self._compiled.complete(given | defaults.keys())
        return defaults

    def _computed_row(
        self, values: Mapping[str, Any], filters: frozenset[str]
    ) -> tuple[tuple[int, ...], list[Any], int | None]:
        """Check what was given; let pyDAL filter and compute the rest, which may read the other fields."""
        compiled = self._compiled
        final = {name: compiled.check[name](value) for name, value in values.items() if name not in filters}
        for name, value in computed(self._table, values, "_fields_and_values_for_insert").items():
            if name not in final:
                final[name] = (compiled.check if name in values else compiled.lenient)[name](value)
        row_id = final.pop(compiled.schema.id_name, None)
        compiled.complete(final.keys())
        names = compiled.in_order(final)
        return tuple(compiled.column_of[name] for name in names), [final[name] for name in names], row_id


def _checked_key(key: str | None) -> str | None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_KEY):
        raise BadOp(f"idempotency_key must be a text of 1 to {MAX_KEY} characters")
    if key is not None and not key.isascii() and any("\ud800" <= one <= "\udfff" for one in key):
        raise BadOp("idempotency_key holds half a character (a lone surrogate): decode its bytes as UTF-8")
    return key
