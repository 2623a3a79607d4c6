"""Queue writes: a write is checked at its call, and applied once and in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline import api
from pipeline.api import current
from pipeline.model.receipt import Receipt, Receipts

if TYPE_CHECKING:
    from pipeline.enqueue.held_ops import Validated


def define_tables(db: Any) -> None:
    """Make a pyDAL DAL's tables known, so that ops may name them by text; cheap enough for every request.

    Args:
        db: the DAL, with its tables defined. A table that cannot be queued is logged; its first op raises.

    Raises:
        ConfigError: as `configure`.
    """
    current().define_tables(db)


def enqueue_insert(
    table: Any,
    values: Mapping[str, Any] | None = None,
    /,
    *,
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
    again: Receipt | None = None,
    **fields: Any,
) -> Receipt:
    """Queue an insert: `enqueue_insert(db.purchase, customer=7, qty=3)`, or `("purchase", {"customer": 7})`.

    Defaults, `compute` and filters run now; the row's id is known at once. While Redis is away the op goes to the
    spool, whatever the durability.

    Args:
        table: a pyDAL table, or the name of one that is known.
        values: fields by name; a field that is named like an option goes here.
        shard_key: the row's, where its fields do not tell.
        idempotency_key: names this write: a second insert into the table with the same key, byte by byte, queues
            nothing. 1 to 190 characters.
        durability: where the op has to be when the call returns. `redis`: in Redis. `replica`: on a Redis replica too.
            `fsync`: on Redis's disk. `spooled`: on this host's disk, until every node of its shard has the op.
            `applied`: in the database.
        again: the receipt of an `InDoubt` that the same call raised: an op that is queued already is not queued again.
        fields: the fields by name, beside those in *values*.

    Returns:
        The receipt: the row's `id`, and the op's place in its log.

    Raises:
        BadOp: a field or value that cannot be stored exactly, a missing shard key; nothing was sent.
        ConfigError: the configuration is faulty, or does not fit the deployment (`WrongDeployment`); nothing was sent.
        PipelineFull, SpoolUnavailable: neither Redis nor the spool takes the op; nothing was sent, try later.
        IdsUsedUp: Redis is away, and this host has no ids left; nothing was sent, try later.
        InDoubt: Redis's reply was lost, and no spool took the op: it may be queued. Repeat the call with `again`.
        LogUnavailable: only without a spool: Redis did not answer in time; nothing was sent, try later.
        NotMigrated, ShardUnavailable: a process's first ops may need a primary, which is not ready; nothing was sent.
        NotDurable: the op is queued, but has not reached its durability within 5 s; follow `receipt`.
        WaitTimeout, Rejected, Lost: only with `applied`, as `Receipt.wait`; the call waits for 5 s at most.
        PipelineError: this Redis has neither replica nor disk for the durability; the op is queued.
    """
    client = api.client or api.configure()
    usual = values is None and shard_key is None and idempotency_key is None and again is None
    if usual and durability == "redis":  # as one mapping they pass three calls without being copied: 0.6 us
        return client.enqueue_insert(table, fields)
    return client.enqueue_insert(
        table,
        values,
        shard_key=shard_key,
        idempotency_key=idempotency_key,
        durability=durability,
        again=again,
        **fields,
    )


def enqueue_bulk_insert(
    table: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
) -> Receipts:
    """Queue an insert of each row; one round trip per thousand rows and shard.

    Rows before a bad one are queued already when that raises; check all rows first where this matters.

    Args:
        table: a pyDAL table, or the name of one that is known.
        rows: of each row, the fields by name.
        shard_key: of all rows, where their fields do not show it.
        idempotency_key: is refused: each op needs its own, so enqueue such rows one by one.
        durability: as for `enqueue_insert`, of all rows; with `applied` the call waits for 30 s at most.

    Returns:
        The rows' receipts, in order; each is made at its first use.

    Raises:
        InDoubt: of which rows, `receipts` says; enqueue each of these one by one with `again`.
        PipelineError: else as `enqueue_insert`.
    """
    return current().enqueue_bulk_insert(
        table, rows, shard_key=shard_key, idempotency_key=idempotency_key, durability=durability
    )


def enqueue_update(
    target: Any,
    row_id_or_values: Any = None,
    values: Mapping[str, Any] | None = None,
    /,
    *,
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
    again: Receipt | None = None,
    **fields: Any,
) -> Receipt:
    """Queue an update: `enqueue_update(db.purchase.id == 5, qty=db.purchase.qty + 1)`, or `(db.purchase, 5, {...})`.

    Args:
        target: a query that fixes the row's id or its shard key, or `db(query)`; or a table, or its name.
        row_id_or_values: behind a table the id of the row; behind a query the values, or nothing.
        values: fields by name, behind a table and an id.
        shard_key: of the rows, where neither query nor id shows it.
        idempotency_key, durability, again: as for `enqueue_insert`.
        fields: the fields by name, beside the values. A field may be arithmetic on columns of its row, or text joined
            to them.

    Returns:
        The receipt.

    Raises:
        BadOp: also for a query that the log cannot carry, or a changed shard key.
        PipelineError: else as `enqueue_insert`.
    """
    client = api.client or api.configure()
    usual = shard_key is None and idempotency_key is None and again is None and durability == "redis"
    if usual and values is None and not isinstance(row_id_or_values, Mapping):  # as `enqueue_insert` does
        return client.enqueue_update(target, row_id_or_values, fields)
    return client.enqueue_update(
        target,
        row_id_or_values,
        values,
        shard_key=shard_key,
        idempotency_key=idempotency_key,
        durability=durability,
        again=again,
        **fields,
    )


def enqueue_delete(
    target: Any,
    row_id: Any = None,
    /,
    *,
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
    again: Receipt | None = None,
) -> Receipt:
    """Queue a delete: `enqueue_delete(db.purchase.id == 5)`, or `(db.purchase, 5)`.

    Args:
        target: a query that fixes the row's id or its shard key, or `db(query)`; or a table, or its name.
        row_id: behind a table: the id of the row.
        shard_key: of the rows, where neither query nor id shows it.
        idempotency_key, durability, again: as for `enqueue_insert`.

    Returns:
        The receipt.

    Raises:
        BadOp: also for a query that the log cannot carry.
        PipelineError: else as `enqueue_insert`.
    """
    return current().enqueue_delete(
        target, row_id, shard_key=shard_key, idempotency_key=idempotency_key, durability=durability, again=again
    )


def enqueue_upsert(
    table: Any,
    values: Mapping[str, Any] | None = None,
    /,
    *,
    key: Iterable[str],
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
    again: Receipt | None = None,
    **fields: Any,
) -> Receipt:
    """Queue an insert that updates the row with the same key fields, if there is one.

    Only the fields given here are updated; defaults are for new rows.

    Args:
        table: a pyDAL table, or the name of one that is known.
        key: the names of the key fields. The database needs a unique index on exactly these: `unique = [["customer",
            "day"]]` under the table's settings makes `pipeline migrate` create it.
        values, shard_key, idempotency_key, durability, again, fields: as for `enqueue_insert`.

    Returns:
        The receipt; its `id` is known once the op is applied.

    Raises:
        BadOp: also for a key without its shard key.
        PipelineError: else as `enqueue_insert`.
    """
    client = api.client or api.configure()
    usual = shard_key is None and idempotency_key is None and again is None and durability == "redis"
    if usual and values is None:  # as `enqueue_insert` does
        return client.enqueue_upsert(table, fields, key=key)
    return client.enqueue_upsert(
        table,
        values,
        key=key,
        shard_key=shard_key,
        idempotency_key=idempotency_key,
        durability=durability,
        again=again,
        **fields,
    )


def enqueue_validated_insert(
    table: Any,
    values: Mapping[str, Any] | None = None,
    /,
    *,
    shard_key: Any = None,
    idempotency_key: str | None = None,
    durability: str = "redis",
    **fields: Any,
) -> Validated:
    """Run a table's validators and queue the insert if they pass, as pyDAL's `validate_and_insert` does.

    Args:
        table: a pyDAL table, or the name of one that is known.
        values, shard_key, idempotency_key, durability, fields: as for `enqueue_insert`.

    Returns:
        `id`, `errors` by field and `success`, as keys and as attributes; `receipt` is None where there are errors. A
        value that the column cannot hold exactly is an error of its field.

    Raises:
        PipelineError: as `enqueue_insert`, but for such values.
    """
    return current().enqueue_validated_insert(
        table, values, shard_key=shard_key, idempotency_key=idempotency_key, durability=durability, **fields
    )


def save_data(table: Any, shard_key: Any, values: Mapping[str, Any]) -> Receipt:
    """Queue an insert of a row whose shard key is given apart.

    Args:
        table: a pyDAL table, or the name of one that is known.
        shard_key: the value of the table's shard key.
        values: the other fields by name.

    Returns:
        The receipt.

    Raises:
        PipelineError: as `enqueue_insert`.
    """
    return current().save_data(table, shard_key, values)


def atomic() -> AbstractContextManager[None]:
    """Apply all ops of the `with` block together or not at all; they must belong to one bucket.

    Raises:
        CrossBucket: (inside the block) at the call that would leave the bucket; nothing of the group was sent.
        PipelineError: (at the end of the block) as `enqueue_insert`.
    """
    return current().atomic()


def attach(table: Any) -> None:
    """Queue what pyDAL itself writes to a table: `insert`, `update_record`, `db(query).delete()`, forms and grids.

    Where a framework's own object is used (`pipeline.web2py`, `pipeline.py4web`), call its `attach` instead.

    Args:
        table: a pyDAL table.

    Raises:
        BadOp: a table that must be written at once, such as `auth_user`; the message says why.
        ConfigError: as `configure`.
    """
    from pipeline import attachment

    attachment.attach(table, current, current)


def enqueue_form(form: Any) -> Receipt | None:
    """Queue what a form that was validated and not written says: `SQLFORM(db.purchase).process(dbio=False)`.

    Args:
        form: web2py's or py4web's, of a table, and accepted.

    Returns:
        The receipt; None for an edit in which the user has changed no field. An edit ships the changed fields alone.

    Raises:
        BadOp: also where the form was not accepted, or writes by itself.
        PipelineError: else as `enqueue_insert`.
    """
    from pipeline import attachment

    return attachment.enqueue_form(form, current())
