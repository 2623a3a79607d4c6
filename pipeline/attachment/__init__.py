"""Let pyDAL's own words write through the pipeline, table by table: `pipeline.attach(db.purchase)`.

    db.purchase.insert(customer=7)        # queued; returns the real id
    db(db.purchase.id == 5).update(qty=2) # queued; returns how many ops

Forms, grids, appadmin and CSV import use the same words, so they work unchanged. Reads go where they went; before the
first of a request, its database is given the time to get what the user has written before. What the request itself has
written is seen with `reads = "own"`; else a warning says that it is not.

pyDAL's writes all end in a few methods of the DAL's adapter, after defaults, `compute`, filters and the `_before_*`
callbacks, and before the `_after_*` ones. Those methods are replaced on the one adapter, once; they look at the table.

Invariant: a write to an attached table becomes ops or an error, never SQL. `executesql` alone goes around it: nothing
can catch SQL text, so one that names an attached table is logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.attachment import hooks
from pipeline.attachment.changes import Changes, editing, enqueue_form
from pipeline.attachment.hooks import (
    Reading,
    archives_of,
    keep_versions,
    noted,
    reads_own,
    refuse_callbacks,
    refuse_unadopted,
    unheard,
    watch_enabling,
    watch_reads,
)
from pipeline.bounds import keep_newest
from pipeline.calls import Calls
from pipeline.client import Client
from pipeline.config.settings import TableSettings
from pipeline.dal import kind_of, real_name, reference_to
from pipeline.dal.sql_texts import guard, unguard
from pipeline.enqueue.final_values import Final
from pipeline.enqueue.op_builder import Archive
from pipeline.errors import BadOp, BadValue, Unavailable
from pipeline.events import Event
from pipeline.model import carries_bucket
from pipeline.model.values.texts import rounded

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
__all__ = [
    "Reading",
    "attach",
    "attached",
    "detach",
    "editing",
    "enqueue_form",
    "reads_own",
    "sees_own",
    "unheard",
]
#: Where the adapter keeps its attached tables, and whose calls each makes.
_ATTRIBUTE = "_pipeline_attached"
_METHODS = ("insert", "bulk_insert", "update", "delete", "truncate", "drop_table")
#: A pair of a pyDAL field and its value, as the adapter is given them.
Pairs = Iterable[tuple[Any, Any]]
#: Values of these types pyDAL leaves to MySQL, which rounds them to a decimal's digits.
_ROUNDED = (Decimal, float, str)
_WRITES = re.compile(r"\s*(insert|replace|update|delete|truncate|load)\b", re.IGNORECASE)
_WORDS = re.compile(r"\w+")


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


class _Attached(NamedTuple):
    """Whose calls an attached table makes; as for `attach`.

    Attributes:
        own: whether its readers see what their own request has written.
        written: the table's name in SQL, in small letters; *qualified*: the last of its words.
    """

    calls: Callable[[], Calls]
    client: Callable[[], Client]
    before_read: Callable[[Reading], object]
    own: bool
    written: str
    qualified: bool


def attach(
    table: Any,
    calls: Callable[[], Calls],
    client: Callable[[], Client],
    before_read: Callable[[Reading], object] = lambda reading: None,
    *,
    own: bool = False,
) -> None:
    """Queue what pyDAL would write to a table and to the archive of its versions. Again: its calls are replaced.

    Args:
        table: a table of the application's DAL.
        calls: returns who takes the table's writes, a web request or a client; called at each.
        client: returns the client behind them, also where writes are refused.
        before_read: called ahead of each statement that reads, of any table: it gives the primaries the time to get
            what the user has written. What a client sends is nobody's, so its readers wait for nothing.
        own: whether readers see what their own request has written: see `reads.reads_own`.

    Raises:
        BadOp: a table that must be written at once, or whose rows need what only its database knows; it says why.
    """
    if kind_of(table) != "Table":
        raise BadOp(f"attach takes a table of the DAL, such as db.purchase, not {type(table).__name__}")
    check_attachable(table, client().topology.table(real_name(table)))
    with suppress(Unavailable):  # a page that only reads must not fail for it; the first write asks again
        client().op_builder.plan(table)

    def take_archive(archive: Archive) -> None:
        client().op_builder.check_archive(table, archive)
        refuse_callbacks(table, archive.table)
        attach(archive.table, calls, client, before_read, own=own)

    keep_versions(table, attached, take_archive)
    adapter = table._db._adapter
    if _ATTRIBUTE not in vars(adapter):
        _replace(adapter)
        warn(table._db, lambda: vars(adapter).get(_ATTRIBUTE, ()))
        map_ids(table._db)
    *schema, written = _WORDS.findall((table._rname or real_name(table)).casefold())
    getattr(adapter, _ATTRIBUTE)[real_name(table)] = _Attached(calls, client, before_read, own, written, bool(schema))
    watch_enabling(table, _attach_again)
    hooks.delay_removal(table, attached)
    hooks.sweep()


def detach(table: Any) -> None:
    """Let pyDAL write a table, and the archive of its versions, to its own database again."""
    for archive in archives_of(table):
        detach(archive)
    adapter = table._db._adapter
    tables = vars(adapter).get(_ATTRIBUTE, {})
    tables.pop(real_name(table), None)
    if not tables and _ATTRIBUTE in vars(adapter):
        delattr(adapter, _ATTRIBUTE)
        unwarn(table._db)
        unmap(table._db)
        for name in (*_METHODS, "execute"):
            delattr(adapter, name)
        unguard(adapter)


def attached(table: Any) -> bool:
    """Return whether a table's writes are queued."""
    return real_name(table) in vars(table._db._adapter).get(_ATTRIBUTE, {})


def sees_own(table: Any) -> bool:
    """Return whether a table is attached so that a request's reads see its own writes."""
    found = vars(table._db._adapter).get(_ATTRIBUTE, {}).get(real_name(table))
    return found is not None and found.own


def _attach_again(table: Any) -> None:
    if attached(table):
        one = getattr(table._db._adapter, _ATTRIBUTE)[real_name(table)]
        attach(table, one.calls, one.client, one.before_read, own=one.own)


def _replace(adapter: Any) -> None:
    """Put methods on this adapter that check first whether the table is attached."""
    writes = _Writes(adapter)
    for name in _METHODS:
        setattr(adapter, name, getattr(writes, name))
    watch_reads(adapter, writes.tables)
    guard(adapter, writes.tables)
    setattr(adapter, _ATTRIBUTE, writes.tables)


class _Writes:
    """The adapter's methods that write, under pyDAL's names: queued for an attached table, else its own."""

    def __init__(self, adapter: Any):
        self.tables: dict[str, _Attached] = {}
        self._own = {name: getattr(adapter, name) for name in _METHODS}

    def insert(self, table: Any, fields: Pairs) -> Any:
        found = self._found(table)
        if found is None:
            warn_narrow(table, fields := list(fields))
            return self._own["insert"](table, fields)
        return reference_to(table, found.enqueue_insert(table, _values(table, fields)).id)

    def bulk_insert(self, table: Any, items: Iterable[Pairs]) -> Any:
        found = self._found(table)
        if found is None:
            return self._own["bulk_insert"](table, items)
        receipts = found.enqueue_bulk_insert(table, [_values(table, item) for item in items])
        return [reference_to(table, receipt.id) for receipt in receipts]

    def update(self, table: Any, query: Any, fields: Pairs) -> Any:
        found = self._found(table)
        if found is None:
            warn_narrow(table, fields := list(fields))
            return self._own["update"](table, query, fields)
        pairs = list(fields)
        changes = Changes(found, table, noted(query, pairs), own=sees_own(table))
        count = changes.update(query, _values(table, pairs))
        return _cleared(query, pairs, changes, count)

    def delete(self, table: Any, query: Any) -> Any:
        found = self._found(table)
        if found is None:
            return self._own["delete"](table, query)
        changes = Changes(found, table, own=sees_own(table))
        return _cleared(query, None, changes, changes.delete(query))

    def truncate(self, table: Any, mode: str = "") -> Any:
        if real_name(table) not in self.tables:
            return self._own["truncate"](table, mode)
        raise BadOp(
            f"table {table._tablename!r} is attached and cannot be truncated: ops that are queued would come after it; "
            "delete its rows, or call detach first when nothing is queued"
        )

    def drop_table(self, table: Any, mode: str = "") -> Any:
        if real_name(table) not in self.tables:
            return self._own["drop_table"](table, mode)
        raise BadOp(
            f"table {table._tablename!r} is attached and cannot be dropped: ops may be queued for it; detach it"
        )

    def _found(self, table: Any) -> Calls | None:
        """Return who takes the writes of a table; None: its own database."""
        found = self.tables.get(real_name(table))
        if found is not None:
            refuse_unadopted(table)
        return found and found.calls()


def _cleared(query: Any, pairs: Any, changes: Changes, count: int) -> int:
    """Let the files go that a change leaves behind, and return how many ops it became."""
    hooks.leave(query, pairs, changes.receipts)
    hooks.sweep()
    return count


def _values(table: Any, fields: Pairs) -> Final:
    values = Final(
        (field.name, rounded(field.type, value) if isinstance(value, _ROUNDED) and _is_decimal(field) else value)
        for field, value in fields
    )
    refuse_large(table, values)
    return values


def _is_decimal(field: Any) -> bool:
    return isinstance(field.type, str) and field.type.startswith("decimal(")


def warn(db: Any, attached: Callable[[], Iterable[str]]) -> None:
    """Let `db.executesql` log what goes around the pipeline.

    Args:
        db: the DAL.
        attached: returns the names of its attached tables.
    """
    own = db.executesql

    def executesql(query: Any, *rest: Any, **options: Any) -> Any:
        if _WRITES.match(str(query)):
            for name in sorted(set(attached()) & set(_WORDS.findall(str(query)))):
                logger.warning(
                    Event(
                        "write_around",
                        table=name,
                        text="executesql writes around the pipeline: ops that are queued for its rows come after it, "
                        "and other shards and the users' own reads know nothing of it; use enqueue_update or "
                        "enqueue_delete",
                    )
                )
        return own(query, *rest, **options)

    object.__setattr__(db, "executesql", executesql)


def unwarn(db: Any) -> None:
    """Let `executesql` of *db* log nothing any more."""
    vars(db).pop("executesql", None)


def map_ids(db: Any) -> None:
    """Let `db.import_from_csv_file` map each id, unless the caller gives a map.

    By default pyDAL adds one offset to all ids of a table, as a database numbers its rows. The pipeline's ids do not
    follow each other, so references would point nowhere.
    """
    own = db.import_from_csv_file

    def import_from_csv_file(ifile: Any, id_map: Any = None, *rest: Any, **options: Any) -> Any:
        return own(ifile, {} if id_map is None else id_map, *rest, **options)

    object.__setattr__(db, "import_from_csv_file", import_from_csv_file)


def unmap(db: Any) -> None:
    """Let *db* import as pyDAL does."""
    vars(db).pop("import_from_csv_file", None)
