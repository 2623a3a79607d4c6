"""Remove the files that writes of an attached table with `autodelete` leave behind, once the op is applied.

pyDAL removes them before the write, which may be rejected or dropped yet. Here their names are noted then. A later
write or `attach` in this process checks whether the op is applied, and lets pyDAL's own function remove them. What a
process has noted when it ends stays on the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.attachment.reads import unheard
from pipeline.attachment.versions import Notes, archives_of
from pipeline.dal.objects import conjuncts, has_filters, kind_of, op_name
from pipeline.errors import PipelineError
from pipeline.model.receipt import Receipt

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
_notes: Notes[Callable[[], Any]] = Notes("files")


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
    remove = _notes.take(query, pairs)
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
            _notes.put(dbset.query, fields, lambda: self._own(found, fields))
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
