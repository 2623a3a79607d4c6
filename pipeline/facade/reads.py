"""Reads: of a replica where one may serve, and never older than what the reader has written or seen."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.facade.process import current

if TYPE_CHECKING:
    from pipeline.reads.node_dal import NodeDAL
    from pipeline.reads.session import Session


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


def session_token(text: str | None = None) -> Session:
    """Return a reader's session: pass it as `after=` to every read, and it never shows an older state than before.

    Tell it of his writes with `wrote(receipt)`; `str()` of it is signed and fits a cookie, and comes back as *text*.

    Raises:
        BadToken: the text was changed on its way, or is another deployment's. Start with an empty session then.
    """
    return current().session_token(text)


def get_db(table: Any, shard_key: Any) -> Any:
    """Return a pyDAL DAL on the primary of a row's shard."""
    return current().get_db(table, shard_key)
