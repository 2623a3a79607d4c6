"""The write path of pyDAL: queued writes, applied to shards exactly once and in order; reads that see your own writes.

    import pipeline

    pipeline.configure("pipeline.toml")
    pipeline.define_tables(db)
    receipt = pipeline.enqueue_insert(db.purchase, customer=7, qty=3)
    receipt.wait(timeout_s=2)

Every function is a call of one client per process, made when first used; `api/` documents them.
All errors are in `pipeline.errors`; those of a call (`errors.BadOp`) mean that nothing was sent.
"""

from __future__ import annotations

from pipeline.api import (
    Receipt,
    barrier,
    close,
    configure,
    count,
    current,
    get,
    get_db,
    read,
    select,
    session_token,
    wait_all,
)
from pipeline.api import configured as configured
from pipeline.api.writes import (
    atomic,
    attach,
    define_tables,
    enqueue_bulk_insert,
    enqueue_delete,
    enqueue_form,
    enqueue_insert,
    enqueue_update,
    enqueue_upsert,
    enqueue_validated_insert,
    save_data,
)
from pipeline.apply import Rejection, on_reject
from pipeline.dal.sql_texts import raw
from pipeline.model.receipt import Receipts

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
    "enqueue_validated_insert",
    "atomic",
    "save_data",
    "attach",
    "enqueue_form",
    # receipts
    "Receipt",
    "Receipts",
    "wait_all",
    "barrier",
    # in a worker
    "on_reject",
    "Rejection",
    # reads
    "read",
    "get",
    "select",
    "count",
    "session_token",
    "get_db",
    "raw",
]
