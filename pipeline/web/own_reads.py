"""Keep what a request's user has written and seen, and let the request's reads see it, or say that they do not.

Keep what a request's user has written and seen, and refuse what a visitor may have put into a write. A keyword does not
show who has named it, the code or the request: `**request.vars` may bring options among the fields. So in a web request
options go with fields in a mapping: there every key is a field. A field with `writable=False`, and the id, have no
value that the request brought.

A read through the application's DAL comes after what the user wrote in earlier requests. What this request has queued
is sent at its commit; a read with `reads = "own"` sends it before, and waits for it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline import attachment, clock
from pipeline.calls import Calls
from pipeline.client import Client
from pipeline.dal import changed_by_delete, kind_of, query_of, real_name, tables_in
from pipeline.enqueue.final_values import Final
from pipeline.errors import BadOp, BadRead, BadToken, PartialResult, StaleRead, Unavailable, WaitTimeout
from pipeline.events import Event
from pipeline.model import DELETE, Op
from pipeline.model.receipt import Receipt
from pipeline.reads import ReadSession, Token

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
#: How long a page waits until its user's own ops are applied, s. A replica is waited for as the settings say: then the
#: primary answers, which does not help while the op is still in the queue.
QUEUED_S = 2.0
logger = logging.getLogger("pipeline.web")
_OPTIONS = ("shard_key", "idempotency_key", "durability", "again")
#: Types of what a request brings. Others, such as pyDAL's expressions, have an `==` of their own.
_PLAIN = (str, bytes, int, float, list, dict)
#: How long a read with `reads = "own"` waits until what its request has written is applied, s.
OWN_S = 5.0
#: Warnings, behind the action's name.
_OLDER = (
    'reads %s, to which it has written, and sees it as it was before: attach(db.%s, reads="own") lets it see its own '
    "writes; or read in the next request, after a redirect"
)
_CHOSEN = (
    "reads %r, to which it has written, on a node that read_db had chosen before, and sees it as it was: call read_db "
    "after the writes, in the next request"
)
_TOO_LATE = (
    "has read or written before its tables were attached, so MySQL may show it an older state than its user has "
    "written: attach in a model, before anything is read, or let the connections of the DAL be at READ COMMITTED "
    "(after_connection=, see docs/attach.md)"
)
#: Warnings that a process logs at most.
MOST_WARNED = 10_000
_warned: set[tuple[str, str]] = set()


class UserSession:
    """What one user has written and seen.

    Args:
        text: of the session, as `text` returned it at the end of an earlier request; or what returns it, asked once.
    """

    __slots__ = ("_client", "_recall", "_session", "_text", "_unread")

    def __init__(self, client: Client, text: str | Callable[[], str | None] | None = None):
        self._client, self._recall = client, text
        self._text: str | None = None
        self._session: ReadSession | None = None
        self._unread = False

    @property
    def session(self) -> ReadSession:
        """The session; a text that is not of this deployment begins a new one."""
        if self._session is None:
            self._text = self._recall() if callable(self._recall) else self._recall
            try:
                self._session = self._client.session_token(self._text)
            except BadToken as error:
                logger.warning(Event("session_begins_anew", error=error))
                self._session = self._client.session_token()
            except Unavailable as error:  # a page must not fail for it; what it cannot read it must not replace
                logger.warning(Event("session_not_read", error=error))
                self._session, self._unread = self._client.session_token(), True
        return self._session

    @property
    def known(self) -> Token | None:
        """What the user has written and seen; None: nothing. The same object as long as nothing is added."""
        return self.session.token or None

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until the primaries have it, by default as long as a page waits; whether they have.

        Raises:
            ShardUnavailable, LogUnavailable: it is unknown whether they have it.
        """
        return self._client.reads.settle(self.session, QUEUED_S if timeout_s is None else timeout_s)

    def wrote(self, receipts: Any) -> None:
        """Let the next reads see the ops of *receipts*."""
        self.session.wrote(receipts)

    def text(self) -> str | None:
        """Return the session's text if it has to be kept, None if it is as it came."""
        session = self._session
        if session is None or self._unread:
            return None
        try:
            text = str(session) if session.token else ""
        except Unavailable as error:  # a page must not fail for what the next one would like to know
            logger.warning(Event("session_not_kept", error=error))
            return None
        return None if text == (self._text or "") else text


def patient(call: Callable[Concatenate[Any, _Given], _Result]) -> Callable[Concatenate[Any, _Given], _Result]:
    """Let a read of a request wait while an op of its user is still queued, unless the caller says how long to wait.

    Args:
        call: a method that reads, with what the user has written and seen unless `fresh=False`.
    """

    @wraps(call)
    def read(self: Any, /, *args: _Given.args, **options: _Given.kwargs) -> _Result:
        if options.get("fresh", True):
            self.before_call(args, options)
        if not options.get("fresh", True) or "wait_s" in options or "on_stale" in options:
            return call(self, *args, **options)
        for deadline in clock.polls(QUEUED_S):
            try:
                return call(self, *args, **options)
            except (StaleRead, PartialResult) as error:
                if deadline.passed or not _still_queued(error):
                    raise
        raise AssertionError("the last poll returns or raises")

    return read


def _still_queued(error: BaseException) -> bool:
    if isinstance(error, PartialResult):
        return any(map(_still_queued, error.missing.values()))
    return isinstance(error, StaleRead) and error.stage == "queued"


def from_code(call: Callable[Concatenate[Any, _Given], _Result]) -> Callable[Concatenate[Any, _Given], _Result]:
    """Let a write of a request take options beside a mapping only, and protected fields from the code only.

    Args:
        call: a method that takes fields as a mapping or as keywords.
    """

    @wraps(call)
    def write(self: Any, /, *args: _Given.args, **named: _Given.kwargs) -> _Result:
        values = next((one for one in args[1:] if isinstance(one, Mapping)), None)
        fields = {name: value for name, value in named.items() if name not in _OPTIONS and name != "key"}
        options = [name for name in _OPTIONS if name in named]
        if options and (values is None or fields):
            raise BadOp(_keyword_form(call.__name__, options[0]))
        # of validated fields pyDAL's own rule holds: an error by field; and a Final is made by the application's code
        if call.__name__ != "enqueue_validated_insert" and not isinstance(values, Final):
            _refuse_protected(self, args[0] if args else None, {**(values or {}), **fields})
        return call(self, *args, **named)

    return write


def rows_from_code(request: Any, table: Any, rows: Any) -> Any:
    """Yield the rows of a bulk call, each with its protected fields from the code only; what is no rows as it is.

    Args:
        request: whose call it is.
        table: pyDAL's, or its name.
        rows: a mapping of fields each.
    """

    def checked() -> Iterator[Any]:
        for row in rows:
            if isinstance(row, Mapping):
                _refuse_protected(request, table, row)
            yield row

    return checked() if isinstance(rows, Iterable) else rows


def _keyword_form(call: str, option: str) -> str:
    return (
        f"in a web request {call} takes {option} beside a mapping only, since a visitor can name options in "
        f"**request.vars: {call}(…, {{'field': value}}, {option}=…)"
    )


def _refuse_protected(request: Any, target: Any, values: Mapping[str, Any]) -> None:
    """Raise if a request brought the value of a field that only code may give."""
    table = request.client.op_builder.table(target) if isinstance(target, str) else target
    if kind_of(table) != "Table":
        table = next(tables_in(query_of(target)), None)
    protected = [name for name in values if _is_protected(table, name)]
    brought = request.brought() if protected else {}
    for name in protected:
        if isinstance(values[name], _PLAIN) and name in brought and brought[name] == values[name]:
            raise BadOp(
                f"the request brought the value of {name!r}, which only code may give (the id, or writable=False): "
                "pass the fields that a visitor may fill by name, or use enqueue_validated_insert"
            )


def _is_protected(table: Any, name: str) -> bool:
    field = getattr(table, name, None) if isinstance(name, str) else None
    return field is not None and (getattr(field, "type", "") == "id" or getattr(field, "writable", True) is False)


class OwnReads(Calls):
    """What a request does before it reads. Used by one thread at a time.

    Args:
        user: what its user has written and seen.
        action: what the framework calls what it runs, for warnings.
    """

    def __init__(self, user: UserSession, action: str):
        self._user, self._action = user, action
        #: Of the ops that may not be sent yet; how many atomic blocks are open.
        self._unsent: list[Receipt] = []
        self._groups = 0
        #: What the primaries were given time for, and whether this transaction has read before.
        self._settled: Token | None = None
        self._has_read = False
        #: The tables of the ops of this transaction; how many of them were sent before its end.
        self._written: set[str] = set()
        self._early = 0
        #: The tables of which it deletes rows.
        self._deleted: set[str] = set()

    @abstractmethod
    def _send(self, *, early: bool = False) -> None:
        """Send what waits for the commit.

        Raises:
            BadRead: *early*, before the commit, and the ops' holder keeps them until then; nothing was sent.
        """

    def before_read(self, reading: attachment.Reading) -> None:
        """Let a statement that reads through `db` come after what the user has written, or warn that it does not.

        Raises:
            as `see_own`, where it reads an attached table with `reads = "own"`.
        """
        tables = set(self._written & reading.tables) if self._written else set[str]()
        behind = self._deleting(reading.db, reading.tables) if self._deleted else {}
        changed = tables.union(*behind.values())
        tables |= behind.keys()
        if changed & reading.own:
            self.see_own(tables, frozen=reading.frozen)
            return
        self._catch_up(reading)
        if tables and (reading.frozen or any(map(self.unsent, tables))):
            self._warn_of_older(tables)

    def before_call(self, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Do the same for a read through the pipeline, which sees what was sent."""
        if not self._written:
            return
        parts = [*args, *(options.get(name) for name in ("table", "query", "left", "join"))]
        named = [self.client.op_builder.table(one) for one in parts if isinstance(one, str) and one in self._written]
        found = {real_name(one): one for one in (*named, *tables_in(parts))}
        tables = self._written & found.keys()
        for one in found.values():
            tables |= set(self._deleting(one._db, found.keys()))
        if not any(map(self.unsent, tables)):
            return
        if any(map(attachment.sees_own, found.values())):
            self.see_own(tables)
        else:
            self._warn_of_older(tables)

    def _deleting(self, db: Any, tables: Set[str]) -> dict[str, Set[str]]:
        """Return the tables of which this request deletes rows, each with those of *tables* that this changes, too."""
        changed = {name: tables & changed_by_delete(db, name) for name in self._deleted if name in db.tables}
        return {name: found for name, found in changed.items() if found}

    def before_node(self, table: str, known: Set[str]) -> None:
        """Warn of a read, on a node that was chosen earlier, of a *table* that this request has written since.

        Args:
            table: its name.
            known: the tables that it had written, and sent, when the node was chosen.
        """
        if table in self._written and (table not in known or self.unsent(table)):
            self._warn(_CHOSEN, table)

    @property
    def written(self) -> frozenset[str]:
        """The tables that this request has written in its present transaction."""
        return frozenset(self._written)

    def see_own(self, tables: Set[str], *, frozen: bool = False) -> None:
        """Send what this request has queued, and wait until it is applied: ahead of a read of *tables*.

        Args:
            tables: names of those that the request has written.
            frozen: whether the transaction shows an older state all the same.

        Raises:
            BadRead: in an atomic block, in mode outbox, or *frozen*; nothing was sent. WaitTimeout: the workers are
                behind; the ops are sent. Rejected: an op was refused.
        """
        if self._groups:
            raise BadRead(f"{_listed(tables)} has ops of an atomic block that is not over: read before or behind it")
        if frozen:
            raise BadRead(
                f"the transaction had begun before {_listed(tables)} was attached, and shows the state of then: attach "
                "in a model, before anything is read, or give the DAL after_connection=lambda adapter: adapter.execute("
                '"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")'
            )
        sent = list(self._unsent)
        self._send(early=True)
        self._early += len(sent)
        with self.wait_budgets.within(None):
            self.client.wait_all(sent, OWN_S)
            if not self._user.settle(OWN_S):
                raise WaitTimeout("what this request has written", OWN_S, "queued")
        self._settled, self._has_read = self._user.known, True
        self._forget_written()

    def _catch_up(self, reading: attachment.Reading) -> None:
        """Give the primaries the time to get what the user has written before, ahead of a read through `db`.

        MySQL freezes the state at a transaction's first read, so that one waits whatever it reads. A page does not fail
        for it: it may show an older state then.
        """
        token, first = self._user.known, not self._has_read
        self._has_read = True
        if token is None or token is self._settled or not (first or reading.tables):
            return
        if first and reading.frozen:
            self._warn(_TOO_LATE)
        try:
            if not self._user.settle():
                logger.warning(Event("own_writes_unseen", action=self._action, why="the workers are behind"))
        except Unavailable as error:
            logger.warning(Event("own_writes_unseen", action=self._action, error=error))
        self._settled = self._user.known

    def _warn_of_older(self, tables: Set[str]) -> None:
        self._warn(_OLDER, _listed(tables), min(tables))

    def _warn(self, text: str, *values: Any) -> None:
        """Log a warning about the action, once in this process."""
        if (self._action, text) not in _warned and len(_warned) < MOST_WARNED:
            _warned.add((self._action, text))
            logger.warning(Event("own_read_of_older", action=self._action, text=text % values))

    def _rolled_back(self) -> None:
        if self._early:
            logger.warning(
                Event(
                    "rolled_back_after_send",
                    action=self._action,
                    ops=self._early,
                    text="the action failed or rolled back after it had read its own writes; "
                    "the ops that were sent for that stand",
                )
            )
        self._transaction_over()

    def _transaction_over(self) -> None:
        self._forget_written()
        self._early, self._has_read = 0, False

    def _wrote(self, op: Op) -> None:
        self._written.add(op.table)
        self._deleted.update(one.table for one in op.members if one.kind == DELETE)

    def _forget_written(self) -> None:
        self._written.clear()
        self._deleted.clear()


def _listed(tables: Set[str]) -> str:
    return ", ".join(map(repr, sorted(tables)))
