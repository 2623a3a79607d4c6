"""The functions of `pipeline`, a module per purpose. Each is a method of this process's `client.Pipeline`.

The one client of this process: made when first used, or when it is configured.

Writes: each is checked here and now, queued, and applied once and in order.

Reads: of a replica where one may serve, and never older than what the reader has written or seen.

Receipts: what became of the writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.model.receipt import Receipt as _Receipt
from pipeline.model.receipt import Receipts

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.client import Client
    from pipeline.enqueue.held_ops import Validated
    from pipeline.reads.node_dal import NodeDAL
    from pipeline.reads.session import ReadSession

_lock = threading.Lock()
client: Client | None = None


def configure(source: str | Path | Mapping[str, Any] | Client | None = None) -> Client:
    """Read the configuration and make this process's client of it; an earlier client is closed.

    Args:
        source: a path, a mapping of the same shape; by default `$PIPELINE_CONFIG`, else `./pipeline.toml`. Or a client
            that is made already, as `pipeline.testing` does.

    Raises:
        ConfigError: with every fault there is.
    """
    from pipeline.client import Client

    global client
    with _lock:
        made = source if isinstance(source, Client) else Client(source)
        if client is not None:
            client.close()
        client = made
        return made


def current() -> Client:
    """Return this process's client; configure it from the default place if nobody has."""
    return client or configure()


def configured() -> bool:
    """Return whether this process has a client already."""
    return client is not None


def close() -> None:
    """Ring what is to be rung and close all connections. The next call configures anew."""
    global client
    with _lock:
        if client is not None:
            client.close()
            client = None


def define_tables(db: Any) -> None:
    """Make a pyDAL DAL's tables known, so that ops may name them by text; cheap enough for every request."""
    current().define_tables(db)


def enqueue_insert(table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> _Receipt:
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
    return (client or configure()).enqueue_insert(table, values, **fields)


def enqueue_bulk_insert(table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
    """Queue an insert of each row; one round trip per thousand rows and shard.

    Rows before a bad one are queued already when it raises; check them first where that matters.

    Returns:
        Their receipts, in order; each is made when it is looked at.
    """
    return current().enqueue_bulk_insert(table, rows, **options)


def enqueue_update(
    target: Any, second: Any = None, third: Mapping[str, Any] | None = None, /, **fields: Any
) -> _Receipt:
    """Queue an update: `enqueue_update(db.purchase.id == 5, qty=db.purchase.qty + 1)`, or `(db.purchase, 5, {...})`.

    The query must fix the row's id or its shard key. Values may be arithmetic on own columns, or text joined to them.
    """
    return current().enqueue_update(target, second, third, **fields)


def enqueue_delete(target: Any, row_id: Any = None, /, **options: Any) -> _Receipt:
    """Queue a delete: `enqueue_delete(db.purchase.id == 5)`, or `(db.purchase, 5)`."""
    return current().enqueue_delete(target, row_id, **options)


def enqueue_upsert(
    table: Any, values: Mapping[str, Any] | None = None, /, *, key: Iterable[str], **fields: Any
) -> _Receipt:
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


def save_data(table: Any, shard_key: Any, values: Mapping[str, Any]) -> _Receipt:
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


def enqueue_form(form: Any) -> _Receipt | None:
    """Queue what a form that was validated and not written says: `SQLFORM(db.purchase).process(dbio=False)`.

    An edit ships the fields that the user has changed, and None is returned if there are none.

    Raises:
        BadOp: the form was not accepted.
    """
    import pipeline
    from pipeline import attachment

    return attachment.enqueue_form(form, pipeline, current)


def read(
    table: Any,
    shard_key: Any = None,
    after: Any = None,
    max_lag_s: float | None = None,
    wait_s: float | None = None,
    on_stale: str | None = None,
) -> AbstractContextManager[NodeDAL]:
    """Open a node of a shard for reading: `with read("purchase", shard_key=7, after=receipt) as db: db(...).select()`.

    The block gets a pyDAL DAL, read-only, on a replica if one may serve; `db.read_info` tells which and why.

    Args:
        shard_key: whose rows are to be read; not needed for a reference table, nor with a single shard.
        after: what must be seen: a receipt, several, a session (see `session_token`), or the text of one.
        max_lag_s: how far behind the replica may be.
        wait_s: how long to wait for a replica, or for the op, in all.
        on_stale: what to do when no replica will do: `primary`, `stale` (marked in `read_info`) or `error`. The
            settings' section `[reads]` has the defaults of these three.

    Raises:
        StaleRead: `after` could not be seen in time; `stage` tells how far it had come. Try again later.
        ShardUnavailable: no node answers.
        BadRead, BadToken, UnknownTable: nothing was asked; the message says what to change.
        ReadOnly: (inside the block) a write was tried.
    """
    options = {"after": after, "max_lag_s": max_lag_s, "wait_s": wait_s, "on_stale": on_stale}
    return current().read(table, shard_key, **options)


def get(table: Any, row_id: Any, after: Any = None, *, pending: bool = False, **options: Any) -> Any:
    """Return one row by its id, or None: `get(db.purchase, receipt.id, after=receipt)`.

    Args:
        after: as for `read`.
        pending: lay ops that are still queued over the row, without waiting; a row that they touch has `pending` True.
        options: `max_lag_s`, `wait_s`, `on_stale` as for `read`; `shard_key`, where the id does not tell the shard and
            not all are to be asked.
    """
    return current().get(table, row_id, after=after, pending=pending, **options)


def select(query: Any, *fields: Any, after: Any = None, partial: bool = False, **options: Any) -> Any:
    """Return rows of all shards as one pyDAL Rows: `select(db.purchase.qty > 1, orderby=~db.purchase.qty)`.

    A query that fixes the shard key goes to its shard alone and may be any query of pyDAL. Over several shards it
    takes `orderby`, `limitby` (with an orderby), `groupby`, `distinct`, the aggregates sum, avg, min, max, count, and
    joins by the shard key or with reference tables. `rows.read_info` lists how each shard was read.

    Args:
        after: as for `read`; only the shards that it concerns wait.
        partial: do without shards that do not answer; `rows.partial` and `rows.missing` tell.
        options: pyDAL's; `timeout_s` of the whole; `max_lag_s`, `wait_s`, `on_stale` as for `read`.

    Raises:
        PartialResult: a shard did not answer. Else as for `read`.
    """
    return current().select(query, *fields, after=after, partial=partial, **options)


def count(query: Any, distinct: Any = None, after: Any = None, **options: Any) -> int:
    """Return how many rows of all shards match, or how many distinct values there are."""
    return current().count(query, distinct=distinct, after=after, **options)


def session_token(text: str | None = None) -> ReadSession:
    """Return a reader's session: pass it as `after=` to every read, and it never shows an older state than before.

    Tell it of his writes with `wrote(receipt)`; `str()` of it is signed and fits a cookie, and comes back as *text*.

    Raises:
        BadToken: the text was changed on its way, or is another deployment's. Start with an empty session then.
    """
    return current().session_token(text)


def get_db(table: Any, shard_key: Any) -> Any:
    """Return a pyDAL DAL on the primary of a row's shard."""
    return current().get_db(table, shard_key)


class Receipt(_Receipt):
    """A receipt; `Receipt.parse(text)` reads a printed one, for the configured pipeline."""

    @classmethod
    def parse(cls, text: str, source: Any = None) -> _Receipt:
        """Read what `str(receipt)` wrote.

        Raises:
            BadToken: the text is not a receipt, or was cut on its way.
        """
        return _Receipt.parse(text, source or current())


def wait_all(receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
    """Wait until all ops are applied.

    Raises:
        Rejected, Lost, WaitTimeout: of the first that was not.
    """
    current().wait_all(receipts, timeout_s)


def barrier(table: Any, timeout_s: float = 30.0) -> None:
    """Wait until everything that was enqueued for a table before this call is applied."""
    current().barrier(table, timeout_s)
