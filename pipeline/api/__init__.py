"""Offer the public functions, each a call of this process's client: here those that read, or wait."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.model.receipt import Receipt as _Receipt

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.client import Client
    from pipeline.model.receipt import Source
    from pipeline.reads import ReadSession
    from pipeline.reads.node_dal import NodeDAL


_lock = threading.Lock()
client: Client | None = None


def configure(source: str | Path | Mapping[str, Any] | Client | None = None) -> Client:
    """Read the configuration and make this process's client of it; an earlier client is closed.

    Args:
        source: the path of a TOML file, or a mapping of the same shape; by default `$PIPELINE_CONFIG`, else
            `./pipeline.toml`. Or a client that is made already, as `pipeline.testing` does.

    Returns:
        The client.

    Raises:
        ConfigError: with every fault that the configuration has.
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
    """Return this process's client; where there is none, configure it from the default place.

    Raises:
        ConfigError: as `configure`.
    """
    return client or configure()


def configured() -> bool:
    """Return whether this process has a client already."""
    return client is not None


def close() -> None:
    """Ring the doorbells that are due, and close all connections. The next call configures anew."""
    global client
    with _lock:
        if client is not None:
            client.close()
            client = None


def read(
    table: Any,
    shard_key: Any = None,
    after: Any = None,
    max_lag_s: float | None = None,
    wait_s: float | None = None,
    on_stale: str | None = None,
) -> AbstractContextManager[NodeDAL]:
    """Open a node of a shard for reading: `with read("purchase", shard_key=7, after=receipt) as db: db(...).select()`.

    The block gets a pyDAL DAL, read-only, on a replica if one may serve; `db.read_info` tells which and why. The
    settings' section `[reads]` has the defaults of *max_lag_s*, *wait_s* and *on_stale*.

    Args:
        table: a pyDAL table, or the name of one that is known.
        shard_key: the value whose rows are read, spelt in any way that a write takes; not needed for a reference
            table, nor with a single shard.
        after: what must be seen: a receipt, an iterable of receipts, a session (see `session_token`), or its text.
        max_lag_s: how far behind the replica may be, s.
        wait_s: how long to wait in all, for a replica or for the op, s.
        on_stale: what to do when no replica will do: `primary`, `stale` (marked in `read_info`) or `error`.

    Raises:
        StaleRead: no node showed what *after* and *max_lag_s* ask for in time; `stage` says why. Try again later.
        ShardUnavailable: no node answers. Try again later.
        LogUnavailable: *after* is a text, and Redis has the key of its signature and does not answer.
        BadRead, BadToken, BadValue, ShardKeyError, UnknownTable: no node was queried; the message says what to change.
        ReadOnly: (inside the block) a write was tried.
    """
    return current().read(table, shard_key, after, max_lag_s=max_lag_s, wait_s=wait_s, on_stale=on_stale)


def get(
    table: Any,
    row_id: Any,
    after: Any = None,
    *,
    pending: bool = False,
    shard_key: Any = None,
    max_lag_s: float | None = None,
    wait_s: float | None = None,
    on_stale: str | None = None,
) -> Any:
    """Return one row by its id, or None: `get(db.purchase, receipt.id, after=receipt)`.

    Args:
        table: a pyDAL table, or the name of one that is known.
        row_id: the row's id, an int or its text.
        pending: lay ops that are still queued over the row, without waiting; a row that such ops touch has `pending`
            True. An op that the database will refuse is laid over the row too.
        shard_key: the row's, where the id does not show the shard and not all shards are to be queried.
        after, max_lag_s, wait_s, on_stale: as for `read`.

    Returns:
        A pyDAL Row, or None.

    Raises:
        BadRead: also where several shards have a row with that id, or *pending* needs a *shard_key*. Else as `read`.
    """
    return (client or configure()).get(
        table,
        row_id,
        after,
        pending=pending,
        shard_key=shard_key,
        max_lag_s=max_lag_s,
        wait_s=wait_s,
        on_stale=on_stale,
    )


def select(
    query: Any,
    *fields: Any,
    after: Any = None,
    partial: bool = False,
    timeout_s: float = 10.0,
    max_lag_s: float | None = None,
    wait_s: float | None = None,
    on_stale: str | None = None,
    **attributes: Any,
) -> Any:
    """Return rows of all shards as one pyDAL Rows: `select(db.purchase.qty > 1, orderby=~db.purchase.qty)`.

    A query that fixes the shard key goes to its shard alone and may be any query of pyDAL.

    Args:
        query: a pyDAL query, `db(query)`, a table, or the name of one that is known.
        fields: of the result, as for pyDAL's `select`; none: all.
        partial: do without shards that do not answer; `rows.partial` and `rows.missing` name these.
        timeout_s: how long the whole may take, s.
        after, max_lag_s, wait_s, on_stale: as for `read`; only the shards that *after* concerns wait.
        attributes: pyDAL's. Over several shards: `orderby`, `limitby` (with an orderby), `groupby`, `distinct`, the
            aggregates sum, avg, min, max, count, and joins by the shard key or with reference tables. A `belongs` of
            `db(query).nested_select(field)` is answered over all shards first.

    Returns:
        A pyDAL Rows; its `read_info` lists how each shard was read.

    Raises:
        PartialResult: a shard did not answer; `missing` has its error. Try again, or with *partial*. Else as `read`.
    """
    return current().select(
        query,
        *fields,
        after=after,
        partial=partial,
        timeout_s=timeout_s,
        max_lag_s=max_lag_s,
        wait_s=wait_s,
        on_stale=on_stale,
        **attributes,
    )


def count(
    query: Any,
    distinct: Any = None,
    after: Any = None,
    *,
    timeout_s: float = 10.0,
    max_lag_s: float | None = None,
    wait_s: float | None = None,
    on_stale: str | None = None,
    cache: Any = None,
) -> int:
    """Return how many rows of all shards match, or how many distinct values there are.

    Args:
        query: a pyDAL query, `db(query)`, a table, or the name of one that is known.
        distinct: a field, or a sequence of fields, whose distinct values are counted, but for those with a NULL.
        timeout_s: how long the whole may take, s.
        after, max_lag_s, wait_s, on_stale: as for `read`.
        cache: pyDAL's, which is refused: a kept number lacks what the reader must see.

    Raises:
        PartialResult: a shard did not answer; `missing` has its error. Try again. Else as `read`.
    """
    return current().count(
        query,
        distinct,
        after,
        timeout_s=timeout_s,
        max_lag_s=max_lag_s,
        wait_s=wait_s,
        on_stale=on_stale,
        cache=cache,
    )


def session_token(text: str | None = None) -> ReadSession:
    """Return a reader's session: a read that gets the session as `after=` never shows an older state than one before.

    Call the session's `wrote(receipt)` after each write of the reader; its `str()` is signed and fits a cookie.

    Args:
        text: an earlier session, as `str()` printed it; None: a new session.

    Raises:
        BadToken: the text was changed on its way, or is another deployment's. Start with an empty session then.
        LogUnavailable: Redis has the key of the signature, and does not answer. Try again later.
    """
    return current().session_token(text)


def get_db(table: Any, shard_key: Any) -> Any:
    """Return a pyDAL DAL on the primary of a row's shard, for reads that must be fresh.

    The connection is this thread's; tables, defaults, virtual fields and filters are those of the table's own DAL.

    Args:
        table: a pyDAL table, or the name of one that is known.
        shard_key: the value whose rows are read, spelt in any way that a write takes.

    Raises:
        BadOp: an unknown table, or a shard key that its column cannot hold; the message says what to change.
        Exception: (at a read) the driver's own, such as its OperationalError where the primary does not answer.
    """
    return current().get_db(table, shard_key)


class Receipt(_Receipt):
    """A receipt; `Receipt.parse(text)` reads a printed one, for the configured pipeline."""

    @classmethod
    def parse(cls, text: str, source: Source | None = None) -> _Receipt:  # type: ignore[override]
        """Read what `str(receipt)` wrote.

        Args:
            text: the printed receipt, whole.
            source: what answers for the receipt; by default this process's client.

        Raises:
            BadToken: the text is not a receipt of this deployment, or was cut or changed on its way.
            LogUnavailable: Redis has the key of the signature, and does not answer. Try again later.
        """
        source = source or current().follower
        return _Receipt.parse(text, source.seal, source)


def wait_all(receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
    """Wait until all ops are applied.

    Args:
        receipts: those of the ops, in any order.
        timeout_s: how long to wait in all, s.

    Raises:
        Rejected, Lost: an op will never be applied; the others may be.
        WaitTimeout: the workers are behind; wait again.
        ShardUnavailable: a primary does not answer; wait again.
        PipelineError: a receipt has not been sent yet, or is older than a week.
    """
    current().wait_all(receipts, timeout_s)


def barrier(table: Any, timeout_s: float = 30.0) -> None:
    """Wait until everything that was enqueued for a table before this call is applied, this host's spool included.

    Args:
        table: a pyDAL table, or the name of one that is known.
        timeout_s: how long to wait in all, s.

    Raises:
        UnknownTable: nobody has defined, configured or published a table of that name.
        WaitTimeout: the workers are behind; wait again.
        LogUnavailable, ShardUnavailable: Redis or a primary does not answer; wait again.
    """
    current().barrier(table, timeout_s)
