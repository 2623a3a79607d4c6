"""Let statements that read through the application's own DAL come after what their user has written.

A statement's text names its tables, whoever wrote it: pyDAL, a subselect, `executesql`. So the adapter's one method
that runs statements is replaced. The user sees own writes where the DAL is on the primary, as with a single shard.

MySQL shows the state of a transaction's first read to its end. So the first read of any table waits, not the first one
of an attached table. And `reads = "own"` puts the connection at READ COMMITTED, where each statement has a state of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from pipeline.config.settings import TableSettings
from pipeline.errors import BadOp

#: What `reads=` of `attach` takes: a request's own writes are in its own reads, or in the next request's.
READS = ("own", "next")
_SELECT = re.compile(r"\bselect\b.*?\bfrom\b", re.IGNORECASE | re.DOTALL)
_VALUES = re.compile(r"\s*insert\s+into\s+[^\s(]+\s*\([^)]*\)\s*values\b", re.IGNORECASE)
_LITERAL = re.compile(r"'(?:[^']|'')*'")
#: A name that is no column's: no dot before it.
_NAME = re.compile(r"""(?<!\.)(?<!\.["`\[])\b\w+""")
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
        plain, words = set(_NAME.findall(text)), set(_WORD.findall(text))
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
