"""Writes: each is checked here and now, queued, and applied once and in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.facade import process
from pipeline.facade.process import configure, current
from pipeline.model.receipt import Receipt, Receipts

if TYPE_CHECKING:
    from pipeline.enqueue.validated import Validated


def enqueue_insert(table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> Receipt:
    """Queue an insert: `enqueue_insert(db.purchase, customer=7, qty=3)`, or `("purchase", {"customer": 7})`.

    Defaults, `compute` and filters run now; the row's id is known at once. Besides fields it takes `shard_key`,
    `idempotency_key` (a second call with the same key queues nothing) and `durability`: `redis` (default: in Redis),
    `replica` (on a Redis replica too), `fsync` (on Redis's disk), `spooled` (on this host's disk until every replica
    has it), `applied` (in the database). While Redis is away the op goes to the spool, whatever the durability.

    Raises:
        BadOp: a field or value that cannot be stored exactly, a missing shard key; nothing was sent.
        PipelineFull: nothing was sent, try later: Redis takes nothing, and the spool is full.
        LogUnavailable: only without a spool: Redis did not answer in time; the op may be queued or not.
    """
    return (process.client or configure()).enqueue_insert(table, values, **fields)


def enqueue_bulk_insert(table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
    """Queue an insert of each row; one round trip per thousand rows and shard.

    Rows before a bad one are queued already when it raises; check them first where that matters.

    Returns:
        Their receipts, in order; each is made when it is looked at.
    """
    return current().enqueue_bulk_insert(table, rows, **options)


def enqueue_update(
    target: Any, second: Any = None, third: Mapping[str, Any] | None = None, /, **fields: Any
) -> Receipt:
    """Queue an update: `enqueue_update(db.purchase.id == 5, qty=db.purchase.qty + 1)`, or `(db.purchase, 5, {...})`.

    The query must fix the row's id or its shard key. Values may be arithmetic on own columns, or text joined to them.
    """
    return current().enqueue_update(target, second, third, **fields)


def enqueue_delete(target: Any, row_id: Any = None, /, **options: Any) -> Receipt:
    """Queue a delete: `enqueue_delete(db.purchase.id == 5)`, or `(db.purchase, 5)`."""
    return current().enqueue_delete(target, row_id, **options)


def enqueue_upsert(
    table: Any, values: Mapping[str, Any] | None = None, /, *, key: Iterable[str], **fields: Any
) -> Receipt:
    """Queue an insert that updates the row with the same key fields, if there is one.

    The database needs a unique index on exactly these fields: `unique = [["customer", "day"]]` under the table's
    settings makes `pipeline migrate` create it. Only the fields given here are updated; defaults are for new rows.
    """
    return current().enqueue_upsert(table, values, key=key, **fields)


def enqueue_validated_insert(table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> Validated:
    """Run a table's validators and queue the insert if they pass, as pyDAL's `validate_and_insert` does.

    Returns:
        `id`, `errors` by field and `success`, as keys and as attributes; `receipt` is None where there are errors. A
        value that the column cannot hold exactly is an error of its field.

    Raises:
        as `enqueue_insert`, but for such values.
    """
    return current().enqueue_validated_insert(table, values, **fields)


def save_data(table: Any, shard_key: Any, values: Mapping[str, Any]) -> Receipt:
    """Queue an insert of a row whose shard key is given apart."""
    return current().save_data(table, shard_key, values)


def atomic() -> AbstractContextManager[None]:
    """Apply all ops of the `with` block together or not at all; they must belong to one bucket."""
    return current().atomic()


def attach(table: Any) -> None:
    """Queue what pyDAL itself writes to a table: `insert`, `update_record`, `db(query).delete()`, forms and grids.

    Where a framework's own object is used (`pipeline.web2py`, `pipeline.py4web`), call its `attach` instead.

    Raises:
        BadOp: a table that must be written at once, such as `auth_user`; it says why.
    """
    from pipeline import attachment

    attachment.attach(table, attachment.Everyone(current), current)


def enqueue_form(form: Any) -> Receipt | None:
    """Queue what a form that was validated and not written says: `SQLFORM(db.purchase).process(dbio=False)`.

    An edit ships the fields that the user has changed, and None is returned if there are none.

    Raises:
        BadOp: the form was not accepted.
    """
    import pipeline
    from pipeline import attachment

    return attachment.enqueue_form(form, pipeline, current)
