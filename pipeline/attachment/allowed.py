"""Decide which tables and values do not fit the pipeline, and say why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.bounds import keep_newest
from pipeline.config.settings import TableSettings
from pipeline.errors import BadOp, BadValue
from pipeline.events import Event
from pipeline.model.ids import carries_bucket

logger = logging.getLogger("pipeline.attachment")
#: The most digits of an id of the pipeline.
_DIGITS = 16
#: (table, field) of the columns that this process has warned about.
_warned: dict[tuple[str, str], bool] = {}
#: By the start of a table's name: who owns it, and what it would break.
OWNERS = {
    "auth_": "a login or a registration reads its row back in the same request",
    "web2py_session_": "a session is read by the next request, whatever is queued",
    "py4web_session": "a session is read by the next request, whatever is queued",
    "scheduler_": "web2py's scheduler locks and reads its rows at once",
    "pipeline_": "it belongs to the pipeline",
}

#: The largest file of an `uploadfield="…"`: the log keeps every op in Redis's memory until it is replicated.
MOST_BYTES = 1_000_000


def check_attachable(table: Any, rules: TableSettings) -> None:
    """Raise for a table that cannot be attached.

    Args:
        table: a pyDAL table.
        rules: its settings.

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


def refuse_large(table: Any, values: Mapping[str, Any]) -> None:
    """Raise for a file in a row that is larger than an op should be.

    Args:
        table: a pyDAL table.
        values: of the row, by field.

    Raises:
        BadValue: it says where such files belong.
    """
    for field in table:
        kept_in = field.uploadfield if field.type == "upload" else None
        value = values.get(kept_in) if isinstance(kept_in, str) else None
        if value is not None and len(value) > MOST_BYTES:
            raise BadValue(
                table._tablename,
                str(kept_in),
                f"takes files of at most {MOST_BYTES:,} bytes through the queue, not {len(value):,}: store files in a "
                "folder (uploadfield=True), so that only their names travel",
            )


def warn_narrow(table: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Log, once a column and process, that an id of the pipeline goes into a column that cannot hold it.

    Args:
        table: a pyDAL table that its own database keeps.
        pairs: the fields that are written, with their values.
    """
    for field, value in pairs:
        if not _narrow(table, field.type):
            continue
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS else value
        if not isinstance(number, int) or not carries_bucket(number):
            continue
        if (place := (table._tablename, field.name)) not in _warned:
            keep_newest(_warned, place, True)
            logger.warning(
                Event(
                    "narrow_column",
                    table=place[0],
                    column=place[1],
                    id=number,
                    text="by its model the column has 32 bits and is given an id of 53 bits that the pipeline made: a "
                    "server cuts it to 2147483647 or refuses it. Make the field `reference <table>` (with "
                    "DAL(…, bigint_id=True)) or `bigint`, and the column BIGINT; pipeline adopt prints both",
                )
            )


def _narrow(table: Any, kind: Any) -> bool:
    return kind == "integer" or (isinstance(kind, str) and kind.startswith("reference ") and not table._db._bigint_id)
