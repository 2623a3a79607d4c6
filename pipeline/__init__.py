"""The write path of pyDAL: queued writes, applied to shards exactly once and in order; reads that see your own writes.

    import pipeline

    pipeline.configure("pipeline.toml")
    pipeline.define_tables(db)
    receipt = pipeline.enqueue_insert(db.purchase, customer=7, qty=3)
    receipt.wait(timeout_s=2)

Every function here is a method of one `client.Pipeline` per process, made when first used. All errors are in
`pipeline.errors`; those of the door (`errors.BadOp`) mean that nothing was sent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.receipt import Receipt as _Receipt
from pipeline.receipt import Receipts

if TYPE_CHECKING:
    from pipeline.client import Pipeline

# grouped by purpose, not sorted
__all__ = [  # noqa: RUF022
    # set-up
    "configure",
    "define_tables",
    "current",
    "close",
    # writes
    "enqueue_insert",
    "enqueue_bulk_insert",
    "enqueue_update",
    "enqueue_delete",
    "enqueue_upsert",
    "atomic",
    "save_data",
    # receipts
    "Receipt",
    "Receipts",
    "wait_all",
    "barrier",
    # reads
    "get_db",
]

_lock = threading.Lock()
_client: Pipeline | None = None


class Receipt(_Receipt):
    """A receipt; `Receipt.parse(text)` reads a printed one, for the configured pipeline."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, source: Any = None) -> _Receipt:
        """Read what `str(receipt)` wrote.

        Raises:
            BadToken: the text is not a receipt, or was cut on its way.
        """
        return _Receipt.parse(text, source or current())


def configure(source: str | Path | Mapping[str, Any] | Pipeline | None = None) -> Pipeline:
    """Read the configuration and make this process's client of it; an earlier client is closed.

    Args:
        source: a path, a mapping of the same shape; by default `$PIPELINE_CONFIG`, else `./pipeline.toml`. Or a client
            that is made already, as `pipeline.testing` does.

    Raises:
        ConfigError: with every fault there is.
    """
    from pipeline.client import Pipeline

    global _client
    with _lock:
        made = source if isinstance(source, Pipeline) else Pipeline(source)
        if _client is not None:
            _client.close()
        _client = made
        return made


def current() -> Pipeline:
    """Return this process's client; configure it from the default place if nobody has."""
    return _client or configure()


def close() -> None:
    """Ring what is to be rung and close all connections. The next call configures anew."""
    global _client
    with _lock:
        if _client is not None:
            _client.close()
            _client = None


def define_tables(db: Any) -> None:
    """Make a pyDAL DAL's tables known, so that ops may name them by text; cheap enough for every request."""
    current().define_tables(db)


def enqueue_insert(table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> _Receipt:
    """Queue an insert: `enqueue_insert(db.purchase, customer=7, qty=3)`, or `("purchase", {"customer": 7})`.

    Defaults, `compute` and filters run now; the row's id is known at once. Besides fields it takes `shard_key`,
    `idempotency_key` (a second call with the same key queues nothing) and `durability`: `redis` (default: in Redis),
    `replica` (on a Redis replica too), `fsync` (on Redis's disk), `applied` (in the database).

    Raises:
        BadOp: a field or value that cannot be stored exactly, a missing shard key; nothing was sent.
        PipelineFull: nothing was sent, try later.
        LogUnavailable: Redis did not answer in time; the op may be queued or not.
    """
    return current().enqueue_insert(table, values, **fields)


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


def atomic() -> AbstractContextManager[None]:
    """Apply all ops of the `with` block together or not at all; they must belong to one bucket."""
    return current().atomic()


def save_data(table: Any, shard_key: Any, values: Mapping[str, Any]) -> _Receipt:
    """Queue an insert of a row whose shard key is given apart."""
    return current().save_data(table, shard_key, values)


def wait_all(receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
    """Wait until all ops are applied.

    Raises:
        Rejected, Lost, WaitTimeout: of the first that was not.
    """
    current().wait_all(receipts, timeout_s)


def barrier(table: Any, timeout_s: float = 30.0) -> None:
    """Wait until everything that was enqueued for a table before this call is applied."""
    current().barrier(table, timeout_s)


def get_db(table: Any, shard_key: Any) -> Any:
    """Return a pyDAL DAL on the primary of a row's shard."""
    return current().get_db(table, shard_key)
