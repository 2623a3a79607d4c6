"""Keep the versions of an attached table's rows; remove the files that writes of a table with `autodelete` leave.

`_enable_record_versioning` puts two callbacks on a table: one keeps a row before an update, one makes of a delete an
update of `is_active`. Both are replaced until the table is detached. The first only notes, for the adapter's method
that comes right behind it, that the update is to keep its rows.

pyDAL hands the callback a set and the row, and the adapter the set's query and the row's pairs. Both are compared by
identity: a later callback may have forbidden the write that was noted.

Remove the files that writes of an attached table with `autodelete` leave behind, once the op is applied.
pyDAL removes them before the write, which may be rejected or dropped yet. Here their names are noted then. A later
write or `attach` in this process checks whether the op is applied, and lets pyDAL's own function remove them. What a
process has noted when it ends stays on the disk.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline import clock
from pipeline.attachment.reads import unheard
from pipeline.dal import conjuncts, has_filters, kind_of, op_name
from pipeline.enqueue.op_builder import Archive
from pipeline.errors import BadOp, PipelineError
from pipeline.model.receipt import Receipt

_Seen = TypeVar("_Seen")


class Notes(Generic[_Seen]):
    """The last note of each thread or task."""

    def __init__(self, name: str):
        self._last: ContextVar[tuple[Any, Any, _Seen] | None] = ContextVar(f"pipeline_{name}", default=None)

    def put(self, query: Any, row: Any, seen: _Seen) -> None:
        """Note what was *seen* of the write of a *query*; *row* is None for a delete."""
        self._last.set((query, row, seen))

    def take(self, query: Any, pairs: Iterable[tuple[Any, Any]] | None) -> _Seen | None:
        """Return what was seen of just the write of *query* and *pairs*, and forget it."""
        last = self._last.get()
        self._last.set(None)
        if last is None or last[0] is not query:
            return None
        _, row, seen = last
        theirs = None if row is None else row.op_values()
        return seen if _identities(theirs) == _identities(pairs) else None


def _identities(pairs: Iterable[tuple[Any, Any]] | None) -> list[int] | None:
    return None if pairs is None else list(map(id, chain.from_iterable(pairs)))


_ENABLE = "_enable_record_versioning"
_notes: Notes[Archive] = Notes("versions")


def keep_versions(table: Any, attached: Callable[[Any], bool], take_archive: Callable[[Archive], None]) -> None:
    """Keep a table's versions through the pipeline, if versioning is on.

    Args:
        attached: whether a table is.
        take_archive: called with its archive; raises where the pipeline cannot fill it.

    Raises:
        BadOp: the versions cannot be kept; it says why. Nothing has changed then.
    """
    kept = [_Keeping(table, one, attached) if _is_of_pydal(one) else one for one in table._before_update]
    for one in kept:
        if isinstance(one, _Keeping):
            take_archive(one.archive)
    table._before_update[:] = kept
    table._before_delete[:] = [
        _soft(table, one, attached) if _is_of_pydal(one) else one for one in table._before_delete
    ]


def watch_enabling(table: Any, enabled: Callable[[Any], None]) -> None:
    """Call *enabled* with the table whenever versioning is put on it."""
    if _ENABLE in vars(table):
        return
    enable = getattr(table, _ENABLE)

    def enable_and_tell(*args: Any, **options: Any) -> Any:
        made = enable(*args, **options)
        enabled(table)
        return made

    object.__setattr__(table, _ENABLE, enable_and_tell)


def archives_of(table: Any) -> list[Any]:
    """Return the tables that keep the versions of a table's rows."""
    return [one.archive.table for one in table._before_update if isinstance(one, _Keeping)]


def noted(query: Any, pairs: Iterable[tuple[Any, Any]]) -> Archive | None:
    """Return where just the update of *query* and *pairs* keeps its rows, and forget it."""
    return _notes.take(query, pairs)


def refuse_unadopted(table: Any) -> None:
    """Raise where versioning came to an attached table past the method that was watched.

    Raises:
        BadOp: it says what to do.
    """
    if any(map(_is_of_pydal, table._before_update)):
        raise BadOp(
            f"table {table._tablename!r} got record versioning after it was attached, in a way that nobody was told "
            "of: attach it again after that"
        )


class _Keeping:
    """Replaces pyDAL's callback that keeps a row before an update."""

    def __init__(self, table: Any, own: Callable[..., Any], attached: Callable[[Any], bool]):
        self._table, self._own, self._attached = table, own, attached
        given = {name: one.default for name, one in inspect.signature(own).parameters.items()}
        if not {"db", "an", "cn"} <= given.keys():
            raise BadOp(f"table {table._tablename!r}: this pyDAL keeps versions in a way that is not known here")
        if given["db"] is not table._db:
            raise BadOp(
                f"table {table._tablename!r} keeps its versions in another database (archive_db); through the pipeline "
                "they stand by their rows, in one transaction: leave archive_db out"
            )
        self._name, self._link = given["an"], given["cn"]

    @property
    def archive(self) -> Archive:
        """Where they go."""
        return Archive(self._table._db[self._name], self._link)

    def __call__(self, dbset: Any, fields: Any) -> Any:
        if not self._attached(self._table):
            return self._own(dbset, fields)
        archive = self.archive
        refuse_callbacks(self._table, archive.table)
        _notes.put(dbset.query, fields, archive)
        return False


def refuse_callbacks(table: Any, archive: Any) -> None:
    """Raise for the *archive* of a *table* with callbacks of the application's own: a worker cannot call them.

    Raises:
        BadOp: it says which.
    """
    for name in ("_before_insert", "_after_insert"):
        own = [one for one in getattr(archive, name) if not getattr(one, "__module__", "").startswith("pydal.")]
        if own:
            raise BadOp(
                f"{archive._tablename}.{name} has callbacks, and the versions of {table._tablename!r} are made by a "
                "worker, which has none: remove them, or leave the table unattached"
            )


def _soft(table: Any, own: Callable[..., Any], attached: Callable[[Any], bool]) -> Callable[..., Any]:
    """Return the callback that makes of a delete an update, and never a delete for all that no row was found."""

    def softly(dbset: Any) -> Any:
        gone = own(dbset)
        return True if attached(table) else gone

    return softly


def _is_of_pydal(callback: Any) -> bool:
    return _ENABLE in getattr(callback, "__qualname__", "")


_NAME = "delete_uploaded_files"
#: Removals that wait for their op; the oldest is forgotten first, and its file stays.
MOST_FILES = 1000
#: How many are looked at in one go: each asks a database.
AT_ONCE = 10
#: A removal that waits for longer is forgotten, and its file stays: its op was dropped, or nobody can tell, s.
MOST_S = 3600.0


class _Waiting(NamedTuple):
    receipt: Receipt
    remove: Callable[[], Any]
    since_s: float


_waiting: deque[_Waiting] = deque(maxlen=MOST_FILES)
_removals: Notes[Callable[[], Any]] = Notes("files")


def delay_removal(table: Any, attached: Callable[[Any], bool]) -> None:
    """Let pyDAL's own removal wait while a table is attached."""
    for callbacks in (table._before_update, table._before_delete):
        callbacks[:] = [
            _Removal(table, one, attached) if getattr(one, "__name__", "") == _NAME else one for one in callbacks
        ]


def leave(query: Any, pairs: Iterable[tuple[Any, Any]] | None, receipts: Sequence[Receipt]) -> None:
    """Let the files that just this write leaves behind be removed once it is applied.

    Args:
        query: of the write.
        pairs: of fields and values, as the adapter got them; None for a delete.
        receipts: of the ops that the write became.
    """
    remove = _removals.take(query, pairs)
    if remove is not None and len(receipts) == 1:
        _waiting.append(_Waiting(receipts[0], remove, clock.mono_s()))


def sweep() -> None:
    """Remove the files whose ops are applied by now. Cheap where there are none."""
    for _ in range(min(len(_waiting), AT_ONCE)):
        try:
            one = _waiting.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            state = one.receipt.status() if one.receipt.sent else "queued"
        except PipelineError:  # nobody can tell now, and asking for the next would only take as long
            _keep(one)
            return
        if state in ("applied", "durable", "replayed"):
            one.remove()
        elif state in ("queued", "spooled", "parked"):
            _keep(one)


def _keep(one: _Waiting) -> None:
    if clock.mono_s() - one.since_s < MOST_S:
        _waiting.append(one)


class _Removal:
    """Replaces pyDAL's callback that removes files."""

    def __init__(self, table: Any, own: Callable[..., Any], attached: Callable[[Any], bool]):
        self._table, self._own, self._attached = table, own, attached

    def __call__(self, dbset: Any, fields: Any = None) -> Any:
        if not self._attached(self._table):
            return self._own(dbset, fields)
        table = self._table
        names = [f.name for f in table if f.type == "upload" and f.uploadfield is True and f.autodelete]
        # a version names its file as long as it is kept
        if names and not archives_of(table) and _is_of_one_row(dbset.query, table):
            with unheard():
                found = _Found(dbset, dbset.select(*(table[name] for name in names)))
            _removals.put(dbset.query, fields, lambda: self._own(found, fields))
        return False


class _Found:
    """A set whose rows are known already, for pyDAL's function."""

    def __init__(self, dbset: Any, rows: Any):
        self.db, self.query, self._rows = dbset.db, dbset.query, rows

    def select(self, *fields: Any) -> Any:
        return self._rows


def _is_of_one_row(query: Any, table: Any) -> bool:
    """Return whether a query is `id == 5` and no more: any other may match no longer when the op is applied."""
    if has_filters(table) and not getattr(query, "ignore_common_filters", False):
        return False
    parts = list(conjuncts(query))
    return len(parts) == 1 and op_name(query) == "eq" and query.first is table._id and not kind_of(query.second)
