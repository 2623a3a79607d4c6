"""Queue updates and deletes of an attached table, row by row where the query names no place; queue forms.

Queue a form that was validated and not written: web2py's `SQLFORM(...).process(dbio=False)`, py4web's `Form`.
A form is known by its attributes `table`, `record`, `vars`, `accepted`, `deleted`; neither framework is imported.

An edit form hands all its fields to `update`, touched or not. All fields would take back what others have changed
meanwhile, so only those that differ from the record shown are queued. Any other update means every value that it gives.

The rows that a query names are read from the primaries, since replicas may lack the latest. A row is changed only if it
still matches when its op is applied: the op carries the whole query.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from pipeline.calls import Calls
from pipeline.client import Client
from pipeline.dal import conjuncts, kind_of, op_name, pinned_values, real_name, with_filters
from pipeline.enqueue.final_values import Final
from pipeline.enqueue.op_builder import Archive
from pipeline.errors import BadOp, BadValue, ShardKeyError
from pipeline.model import carries_bucket
from pipeline.model.receipt import Receipt
from pipeline.model.values import python_value
from pipeline.model.values.texts import is_blank
from pipeline.reads.node_tables import NodeTables

#: What both frameworks show instead of a password; it comes back where the user left it alone.
PASSWORD_SHOWN = "********"
_shown: ContextVar[tuple[str, Any] | None] = ContextVar("pipeline_shown", default=None)
_NOTHING = object()
#: How long a write that must look for its rows waits for what was queued before it, s.
SETTLE_S = 5.0
#: More rows than this are not changed by one call: the request would hold that many ops.
MOST_ROWS = 10_000


def enqueue_form(form: Any, calls: Calls) -> Receipt | None:
    """Queue what a form says: an insert, an update of the fields that were changed, or a delete.

    Args:
        form: of a table, validated and not written.
        calls: of the process's client, or of the web request.

    Returns:
        The receipt; None where the user changed nothing. `form.vars.id` is the row's id.

    Raises:
        BadOp: the form was not accepted, has written by itself, or is no form of a table. Else as `enqueue_insert`.
    """
    _check(form)
    table, record = form.table, form.record
    row_id = record[table._id.name] if record else None
    if record:
        form.vars["id"] = row_id
    # shard key and all: a row with an id of the database's own does not tell its shard
    key = _key(table, record, calls)
    if _is_delete(form):
        return calls.enqueue_delete(table._id == row_id, **key) if record else None
    compiled = calls.client.op_builder.plan(table).compiled
    values = {name: _typed(compiled, name, value) for name, value in _given(form).items()}
    if not record:
        receipt = calls.enqueue_insert(table, values)
        form.vars["id"] = receipt.id
        return receipt
    fields = differing(values, record, compiled.check)
    if fields:
        fields.update(differing(_computed(table, record, values), record, compiled.check))
    return calls.enqueue_update(table._id == row_id, dict(fields), **key) if fields else None


def _check(form: Any) -> None:
    table: Any = getattr(form, "table", None)
    if kind_of(table) != "Table":
        raise BadOp("enqueue_form takes a form of a table: SQLFORM(db.purchase) or Form(db.purchase, dbio=False)")
    if not getattr(form, "accepted", False):
        raise BadOp(f"the form of {table._tablename!r} was not accepted: call enqueue_form only if form.accepted")
    if getattr(form, "dbio", False):  # py4web's tells; web2py's shows it by the id of the row it made
        raise BadOp(f"the form of {table._tablename!r} writes by itself: make it with dbio=False")
    in_row = [field.name for field in table if field.type == "upload" and isinstance(field.uploadfield, str)]
    if in_row and getattr(form, "custom", None) is not None:
        raise BadOp(
            f"{table._tablename}.{in_row[0]} keeps its file in the row, and SQLFORM forgets it with dbio=False: store "
            "files in a folder, or attach the table"
        )
    if not form.record and form.vars.get("id"):
        raise BadOp(f"the form of {table._tablename!r} has inserted by itself: use .process(dbio=False)")


def _is_delete(form: Any) -> bool:
    """Return whether the user wants to delete the record, and may.

    web2py sets `deleted` for whoever asks; with dbio=False py4web takes a delete for an edit.
    """
    custom, posted = getattr(form, "custom", None), getattr(form, "post_vars", None) or {}
    if custom is not None:
        return bool(form.deleted and custom.deletable)
    return bool(form.deleted or (form.deletable and posted.get("_delete")))


def _key(table: Any, record: Any, calls: Calls) -> dict[str, Any]:
    """Return the shard key of the record that a form shows, as an option; nothing where the id is the key."""
    key = calls.client.topology.table(table._tablename).shard_key
    if not record or key is None or key == table._id.name or record.get(key) is None:
        return {}
    return {"shard_key": record[key]}


def _given(form: Any) -> dict[str, Any]:
    """Return the form's values: of writable fields, and what the application's own validation has put there."""
    table, posted = form.table, getattr(form, "request_vars", None) or getattr(form, "post_vars", None) or {}
    return {name: value for name, value in form.vars.items() if _counts(table, name, posted)}


def _counts(table: Any, name: str, posted: Mapping[str, Any]) -> bool:
    if name not in table.fields:
        return False
    field = table[name]
    if field.type == "password" and posted.get(name) == PASSWORD_SHOWN:
        return False
    return field.type != table._id.type and not field.compute and (field.writable or name not in posted)


def _typed(compiled: Any, name: str, value: Any) -> Any:
    """Return a form's text as the value that it means, since `compute` looks at it; one ticked item as a list."""
    column = compiled.schema.columns[compiled.column_of[name]]
    if column.kind.startswith("list:"):
        given = value if isinstance(value, list | tuple) else [value] if value else []
        value = [item for item in given if not is_blank(item)]
    return python_value(column, compiled.check[name](value))


def _computed(table: Any, record: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the computed fields, from the record as the form leaves it: what they read may be unchanged."""
    computed = [field.name for field in table if field.compute]
    if not computed:
        return {}
    known = {n: record[n] for n in table.fields if n in record and n not in computed and n != table._id.name}
    row = table._fields_and_values_for_update({**known, **values})
    return {field.name: value for field, value in row.op_values() if field.name in computed}


@contextmanager
def editing(table: Any, record: Any) -> Iterator[None]:
    """Take updates of a table inside the block for a form's, which shows *record*; None: it creates one."""
    before = _shown.set((real_name(table), record) if record else None)
    try:
        yield
    finally:
        _shown.reset(before)


def changed(table: Any, values: Final) -> Final:
    """Return those of *values* that differ from the record of *table* that a form shows; all, where none is at work.

    Where only stamps differ, such as the time of the change, nothing was changed.
    """
    shown = _shown.get()
    if shown is None or shown[0] != real_name(table):
        return values
    found = differing(values, shown[1])
    return Final() if all(table[name].update is not None for name in found) else found


def differing(values: Mapping[str, Any], record: Any, check: Mapping[str, Callable[[Any], Any]] | None = None) -> Final:
    """Return the values that differ from a record's, compared in the form that is stored if *check* is given."""
    return Final((name, value) for name, value in values.items() if not _same(name, value, record, check))


def _same(name: str, value: Any, record: Any, check: Mapping[str, Callable[[Any], Any]] | None) -> bool:
    old = record.get(name, _NOTHING)
    if old is _NOTHING or kind_of(value):
        return False
    if check is None:
        return bool(old == value)
    try:
        return bool(check[name](value) == check[name](old))
    except BadValue:
        return False


class Found(NamedTuple):
    """A row that a query named, and its shard key; None where the id is the key."""

    id: int
    key: Any


class Changes:
    """Writes to the rows of one attached table.

    Args:
        calls: take them.
        table: the attached table.
        archive: where an update keeps each row as it was before. Then it is one op for each row, for each needs an id.
        own: whether what the request has queued is sent, and waited for, where rows must be looked for.
    """

    def __init__(self, calls: Calls, table: Any, archive: Archive | None = None, *, own: bool = False):
        self._calls, self._table, self._archive, self._own = calls, table, archive, own
        #: Of what was queued.
        self.receipts: list[Receipt] = []
        key = calls.client.topology.table(real_name(table)).shard_key
        self._key: str | None = None if key == table._id.name else key

    def update(self, query: Any, values: Final) -> int:
        """Queue an update to *values* of the rows that *query* names; return how many ops it became.

        Raises:
            BadOp: it would change a row's shard key, or the log cannot carry it; nothing was queued.
        """
        values = changed(self._table, values)
        if not values:
            return 1  # the row that a form shows stays as it is
        if self._nobody(query):
            return 0
        try:
            self._put(query, values)
        except ShardKeyError:
            if self._key is not None and self._key in values:
                return self._update_with_key(query, values)
            return self._each(query, lambda one, key: self._put(one, values, **key))
        return 1

    def delete(self, query: Any) -> int:
        """Queue a delete of the rows that *query* names; return how many ops it became."""
        if self._nobody(query):
            return 0
        try:
            self._remove(query)
        except ShardKeyError:
            return self._each(query, lambda one, key: self._remove(one, **key))
        return 1

    def _nobody(self, query: Any) -> bool:
        """Return whether a query asks for an id that no row has: `request.args(0) or 0`, or one that was not given."""
        row_id = self._table._id
        return any(op_name(p) == "eq" and p.first is row_id and _no_id(p.second) for p in conjuncts(query))

    def _put(self, query: Any, values: Final, **key: Any) -> None:
        """Queue one op; with an archive, a copy and an update in one group."""
        if self._archive is None:
            self.receipts.append(self._calls.enqueue_update(query, values, **key))
            return
        made = self._calls.client.op_builder.versioned_update(query, values, self._archive, **key)
        self.receipts.append(self._calls.take_together(made))

    def _remove(self, query: Any, **key: Any) -> None:
        self.receipts.append(self._calls.enqueue_delete(query, **key))

    def _update_with_key(self, query: Any, values: Final) -> int:
        """Queue an update that gives the shard key too, as `update_record()` does: it may repeat it, not change it."""
        assert self._key is not None
        field, new = self._table[self._key], values[self._key]
        named = bool(pinned_values(query, self._table, self._table._id.name))
        rows, rest = self._found(query, settle=not named), Final((n, v) for n, v in values.items() if n != self._key)
        check = self._calls.client.op_builder.plan(self._table).compiled.check[self._key]
        if any(check(row.key) != check(new) for row in rows):
            raise ShardKeyError(
                f"{self._table._tablename}.{self._key} is the shard key and cannot be changed: the row may live on "
                "another shard then; insert it anew and delete the old row"
            )
        if not rows and named:
            # it may be queued still: its op comes first
            self._put(_narrowed(query, (field == new) & query), values)
            return 1
        return self._enqueue(rows, query, lambda one, key: self._put(one, rest, **key)) if rest else 1

    def _each(self, query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        listed = self._listed(query)
        if listed is None:
            return self._enqueue(self._found(query, settle=True), query, enqueue)
        part, ids = listed
        rest = [one for one in conjuncts(query) if one is not part]
        for row_id in ids:  # each op carries its own id, not the whole list
            enqueue(_narrowed(query, reduce(and_, rest, self._table._id == row_id)), {})
        return len(ids)

    def _enqueue(self, rows: list[Found], query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        for row in rows:
            enqueue(
                _narrowed(query, (self._table._id == row.id) & query), {} if row.key is None else {"shard_key": row.key}
            )
        return len(rows)

    def _listed(self, query: Any) -> tuple[Any, list[int]] | None:
        """Return the part `id.belongs([5, 6])` of a query, and its ids, if they name the shard: no database is read."""
        table = self._table
        for part in conjuncts(query):
            if op_name(part) == "belongs" and part.first is table._id and isinstance(part.second, list | tuple | set):
                ids = sorted({int(one) for one in part.second})
                if self._key is None or all(map(carries_bucket, ids)):
                    self._check_count(len(ids))
                    return part, ids
        return None

    def _found(self, query: Any, *, settle: bool) -> list[Found]:
        """Return the rows that a query names, as the primaries have them now.

        Args:
            settle: wait before until all that was queued is applied, so that no row is overlooked.

        Raises:
            BadOp: this request has ops that wait for its commit, so nobody can look at their rows.
            WaitTimeout: the workers are behind.
        """
        table = self._table
        fields = [table._id] if self._key is None else [table._id, table[self._key]]
        name = real_name(table)
        if settle:
            self._settle(name)
        found = primary_rows(self._calls.client, table, with_filters(query, table), fields, MOST_ROWS + 1)
        self._check_count(len(found))
        return [Found(int(row[table._id.name]), row[self._key] if self._key else None) for row in found]

    def _check_count(self, rows: int) -> None:
        if rows > MOST_ROWS:
            raise BadOp(
                f"the query on {real_name(self._table)!r} names more than {MOST_ROWS:,} rows: fix the shard key in it "
                "with ==, or change the rows in smaller parts"
            )

    def _settle(self, name: str) -> None:
        if self._own and self._calls.unsent(name):
            self._calls.see_own({name})
        if self._calls.unsent(name):
            raise BadOp(
                f"this write to {name!r} must look for its rows in the database, where those that the same request has "
                "queued are not yet: fix the id or the shard key in the query with ==, attach the table with "
                'reads="own", call db.commit() before, or write in another request'
            )
        self._calls.client.barrier(name, SETTLE_S)


def _no_id(value: Any) -> bool:
    if isinstance(value, str):
        return not value or (value.removeprefix("-").isdecimal() and int(value) < 1)
    return value is None or (isinstance(value, int) and value < 1)


def _narrowed(query: Any, narrower: Any) -> Any:
    """Return a query that is made of another: the table's filters are ignored if they were."""
    made = copy.copy(narrower)
    made.ignore_common_filters = getattr(query, "ignore_common_filters", False)
    return made


def primary_rows(client: Client, table: Any, query: Any, fields: Iterable[Any], most: int) -> list[Any]:
    """Return rows of all shards, as the primaries have them.

    Args:
        client: whose shards.
        table: a table of the application's DAL.
        query: on it.
        fields: of the table, that the rows have.
        most: rows of each shard.

    Raises:
        ShardUnavailable: a primary did not answer; nothing is left out.
    """
    found: list[Any] = []
    topology, name, wanted = client.topology, real_name(table), [field.name for field in fields]
    for shard in topology.shards[:1] if topology.table(name).reference else topology.shards:
        session = client.nodes.primary(shard)
        with session.translated(), session.transaction():
            tables = NodeTables.on(session.db)
            own, at = tables.table(table), tables.own(query)
            at.ignore_common_filters = True  # they are in the query
            found += session.db(at).select(*(own[field] for field in wanted), limitby=(0, most))
    return found
