"""Which tables must not be attached, and why: a function from a table and its settings to an error."""

from __future__ import annotations

from typing import Any

from pipeline.errors import BadOp
from pipeline.settings import TableSettings

#: By the start of a table's name: who owns it, and what it would break.
OWNERS = {
    "auth_": "a login or a registration reads its row back in the same request",
    "web2py_session_": "a session is read by the next request, whatever is queued",
    "py4web_session": "a session is read by the next request, whatever is queued",
    "scheduler_": "web2py's scheduler locks and reads its rows at once",
    "pipeline_": "it belongs to the pipeline",
}
VERSIONED = (
    "its archive copy is made from the row as it is when the update is applied, which only the database knows then: "
    "leave this table unattached"
)


def refuse(table: Any, rules: TableSettings) -> None:
    """Raise for a table that cannot be attached.

    Raises:
        BadOp: it says why, and what to do.
    """
    name = table._tablename
    for start, why in OWNERS.items():
        if name.startswith(start):
            raise BadOp(f"table {name!r} cannot be attached: {why}; it stays in its own database")
    if rules.ids != "pipeline":
        raise BadOp(
            f'table {name!r} has ids = "database", so insert() could not return the id: set ids = "pipeline" under '
            f"[tables.{name}], or call enqueue_insert, whose receipt learns the id once the row is there"
        )
    if versioned(table):
        raise BadOp(f"table {name!r} has record versioning and cannot be attached: {VERSIONED}")


def versioned(table: Any) -> bool:
    """Return whether pyDAL's record versioning watches a table."""
    return any("_enable_record_versioning" in getattr(one, "__qualname__", "") for one in table._before_update)
