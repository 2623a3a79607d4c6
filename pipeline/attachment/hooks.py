"""Hook into pyDAL's own statements of an attached table: reads see their user's writes, versions stay, files go.

Let statements that read through the application's own DAL come after what their user has written.
A statement's text names its tables, whoever wrote it: pyDAL, a subselect, `executesql`. So the adapter's one method
that runs statements is replaced. The user sees own writes where the DAL is on the primary, as with a single shard.

MySQL shows the state of a transaction's first read to its end. So the first read of any table waits, not the first one
of an attached table. And `reads = "own"` puts the connection at READ COMMITTED, where each statement has a state of its
own.

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
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline import clock
from pipeline.config.settings import TableSettings
from pipeline.dal import conjuncts, has_filters, kind_of, op_name
from pipeline.enqueue.op_builder import Archive
from pipeline.errors import BadOp, PipelineError
from pipeline.model.receipt import Receipt

#: What `reads=` of `attach` takes: a request's own writes are in its own reads, or in the next request's.
READS = ("own", "next")
_SELECT = re.compile(r"\bselect\b.*?\bfrom\b", re.IGNORECASE | re.DOTALL)
_VALUES = re.compile(r"\s*insert\s+into\s+[^\s(]+\s*\([^)]*\)\s*values\b", re.IGNORECASE)
_LITERAL = re.compile(r"'(?:[^']|'')*'")
#: A name that is no column's: no dot before it.
_TABLE_NAME = re.compile(r"""(?<!\.)(?<!\.["`\[])\b\w+""")
_WORD = re.compile(r"\w+")
#: MySQL's answer to a change of a transaction that has begun.
_BEGUN = 1568
_SHOW = "SHOW SESSION VARIABLES WHERE Variable_name IN ('transaction_isolation', 'tx_isolation')"
_EACH_ANEW = {"READ-COMMITTED", "READ-UNCOMMITTED"}
#: Where a connection keeps which state its statements show: the present one; that one from the next transaction on;
#: or that of their transaction's first read.
_MARK = "_pipeline_shows"
_ANEW, _SOON, _KEPT = "anew", "soon", "kept"


def reads_own(table: Any, rules: TableSettings, reads: str | None, mode: str = "now") -> bool:
    """Return whether a request's own writes of an attached table are to be in its own reads.

    Args:
        table: a pyDAL table.
        rules: its settings.
        reads: as given to `attach`; None: as its settings say.
        mode: when the request's ops are sent.

    Raises:
        BadOp: there is no such value, or the mode does not allow it.
    """
    chosen, name = reads or rules.reads or "next", table._tablename
    if chosen not in READS:
        raise BadOp(f"reads of table {name!r} is one of {', '.join(READS)}; got {reads!r}")
    if chosen == "own" and mode == "outbox":
        raise BadOp(
            f'table {name!r} has reads = "own", which sends ops before the commit, and mode = outbox, which promises '
            'that an op is sent only if its transaction commits: use mode on_commit or now, or reads = "next"'
        )
    return chosen == "own"


class Reading:
    """A statement that reads, before it is run.

    Attributes:
        own: the names of the tables of which a request sees its own writes.
    """

    def __init__(self, adapter: Any, sql: str, attached: Mapping[str, Any]):
        self._adapter, self._sql, self._attached = adapter, sql, attached
        self.own = frozenset(name for name, one in attached.items() if one.own)

    @cached_property
    def tables(self) -> frozenset[str]:
        """The attached tables that the statement names."""
        text = self._sql.casefold()
        near = {name: one for name, one in self._attached.items() if one.written in text}
        if not near:
            return frozenset()
        text = _LITERAL.sub("", text)
        plain, words = set(_TABLE_NAME.findall(text)), set(_WORD.findall(text))
        return frozenset(name for name, one in near.items() if one.written in (words if one.qualified else plain))

    @property
    def db(self) -> Any:
        """The DAL."""
        return self._adapter.db

    @cached_property
    def frozen(self) -> bool:
        """Whether the transaction may show an older state than what is committed now."""
        adapter = self._adapter
        return adapter.dbengine == "mysql" and _level(adapter) != _ANEW and _has_begun(adapter)


_unheard: ContextVar[bool] = ContextVar("pipeline_unheard", default=False)


@contextmanager
def unheard() -> Iterator[None]:
    """Let statements of the block pass: they are the pipeline's own."""
    before = _unheard.set(True)
    try:
        yield
    finally:
        _unheard.reset(before)


def watch_reads(adapter: Any, attached: Mapping[str, Any]) -> None:
    """Call each `before_read` of the attached tables ahead of every statement that reads.

    Args:
        adapter: of the application's DAL.
        attached: by name; its tables may change.
    """
    own: Callable[..., Any] = adapter.execute

    def execute(*args: Any, **options: Any) -> Any:
        sql = args[0] if args else ""
        if not _unheard.get():
            with unheard():
                if any(one.own for one in attached.values()):
                    _read_committed(adapter)
                if _SELECT.search(sql) and not _VALUES.match(sql):
                    reading = Reading(adapter, str(sql), attached)
                    for before_read in {one.before_read for one in attached.values()}:
                        before_read(reading)
        return own(*args, **options)

    adapter.execute = execute


def _read_committed(adapter: Any) -> None:
    """Let each statement of this connection have a state of its own, from its next transaction on at the latest."""
    if adapter.dbengine != "mysql" or (level := _level(adapter)) == _ANEW:
        return
    if level == _KEPT:
        _run(adapter, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    setattr(adapter.connection, _MARK, _SOON if _has_begun(adapter) else _ANEW)


def _level(adapter: Any) -> str:
    """Return what is known of this connection; the server is asked once."""
    known: str | None = getattr(adapter.connection, _MARK, None)
    if known is None:
        _run(adapter, _SHOW)
        levels = {str(value).upper() for _, value in adapter.cursor.fetchall()}
        known = _ANEW if levels and levels <= _EACH_ANEW else _KEPT
        setattr(adapter.connection, _MARK, known)
    return known


def _has_begun(adapter: Any) -> bool:
    """Return whether a transaction is open on this connection: the server refuses to change one."""
    try:
        _run(adapter, "SET TRANSACTION READ WRITE")
    except Exception as error:
        if error.args[:1] == (_BEGUN,):
            return True
        raise
    return False


def _run(adapter: Any, sql: str) -> None:
    adapter.cursor.execute(sql)


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
