"""Queue a form that was validated and not written: web2py's `SQLFORM(...).process(dbio=False)`, py4web's `Form`.

A form is known by its attributes `table`, `record`, `vars`, `accepted`, `deleted`; neither framework is imported.

An edit form hands all its fields to `update`, touched or not. That would take back what others have changed meanwhile,
so only the fields that differ from the record shown are queued. Any other update means every value that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pipeline.calls import Calls
from pipeline.dal.objects import kind_of, real_name
from pipeline.enqueue.final_values import Final
from pipeline.errors import BadOp, BadValue
from pipeline.model.receipt import Receipt
from pipeline.model.values import python_value
from pipeline.model.values.texts import is_blank

#: What both frameworks show instead of a password; it comes back where the user left it alone.
PASSWORD_SHOWN = "********"


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


_shown: ContextVar[tuple[str, Any] | None] = ContextVar("pipeline_shown", default=None)
_NOTHING = object()


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
