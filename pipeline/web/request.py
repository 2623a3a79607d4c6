"""Make every call of `pipeline` for one web request: ops wait for its commit, reads see its user's own writes.

Give a controller that only reads a DAL: one node of one shard for the whole request, with the caller's tables. With
several shards no node has all rows of a sharded table. Such a table is refused by name, unless the shard key says which
shard is meant.

Invariant: what is held is sent by `finish`, ahead of a read with `reads = "own"`, or never. The framework's object
calls `finish` once the framework has committed, and `drop` when the request failed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any

from pipeline import attachment
from pipeline.calls import Calls
from pipeline.client import Client
from pipeline.dal import real_name, tables_in
from pipeline.enqueue.held_ops import Chunk, HeldOps
from pipeline.errors import BadRead, Unavailable
from pipeline.events import Event
from pipeline.model import Addressed
from pipeline.model.receipt import Receipt as _Receipt
from pipeline.model.receipt import Receipts
from pipeline.reads import ReadSession
from pipeline.reads.gather.over_shards import answered
from pipeline.reads.node_dal import NodeDAL, uncached
from pipeline.reads.read_place import ReadPlace
from pipeline.web.own_reads import OwnReads, UserSession, from_code, patient, rows_from_code

_WORD = re.compile(r"\w+")
#: When the ops of a request are sent: at each call, after its commit, or after its commit from a table in its database.
MODES = ("now", "on_commit", "outbox")
logger = logging.getLogger("pipeline.web")


class ReadDAL:
    """A node's DAL, read-only. Tables and queries of the caller's own DAL may be used with it.

    Args:
        node: opened for the request.
        names: of the caller's tables.
        refuse: raises where the rows of a table are not all there.
    """

    __slots__ = ("_names", "_node", "_refuse")

    def __init__(self, node: NodeDAL, names: Collection[str], refuse: Refusal):
        self._node, self._names, self._refuse = node, frozenset(names), refuse

    def __call__(self, query: Any = None, *args: Any, **options: Any) -> Any:
        """Return pyDAL's Set of a query."""
        self._refuse.read(query)
        return uncached(self._node(query, *args, **options), self._refuse.read)

    def executesql(self, query: str, *args: Any, **options: Any) -> Any:
        """Run a statement, as pyDAL's method of the name does."""
        for word in self._names.intersection(_WORD.findall(query)):
            self._refuse(word)
        return self._node.executesql(query, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:  # the node itself may not have been asked for it yet
            self._refuse(name)
        return getattr(self._node, name)

    def __getitem__(self, name: str) -> Any:
        self._refuse(name)
        return self._node[name]

    def __contains__(self, name: object) -> bool:
        return name in self._node

    def __iter__(self) -> Iterator[Any]:
        return iter(self._node)

    def __repr__(self) -> str:
        return repr(self._node)


class Refusal:
    """Refuses tables whose rows are not all on the node.

    Args:
        request: reads; it warns of tables that it has written since the node was chosen.
        keyed: whether a shard key was given: then the caller means the rows with that key, and its neighbours.
    """

    def __init__(self, request: OwnReads, keyed: bool):
        self._request, self._topology, self._written = request, request.client.topology, request.written
        self._whole = keyed or len(self._topology.shards) == 1

    def read(self, query: Any, fields: Sequence[Any] = (), options: Mapping[str, Any] = {}) -> None:
        """Refuse a read that names such a table, in a subselect or a join too, or whose text may.

        Raises:
            BadRead: naming what to use instead.
        """
        if query is None:
            return
        for table in tables_in([query, *fields, *options.values()], inner=True):
            self(real_name(table))
        if self._whole:
            return
        place = ReadPlace(self._topology.shards[0], None)
        for _ in answered(self._topology, [place], query, fields, options):
            raise AssertionError("a subselect of tables that each shard has")

    def __call__(self, name: str) -> None:
        """Refuse a table.

        Raises:
            BadRead: naming what to use instead.
        """
        self._request.before_node(name, self._written)
        shards = len(self._topology.shards)
        if self._whole or self._topology.table(name).reference:
            return
        key = self._topology.table(name).shard_key or "id"
        raise BadRead(
            f"the rows of {name!r} are on {shards} shards, and read_db is one node: use pipeline.select(...) for all "
            f"of them, or read_db(db, {name!r}, shard_key=…) for those with one {key!r}"
        )


def table_for(client: Client, db: Any) -> Any:
    """Return a table by which a node may be chosen when the caller has named none: one of which a node has all rows.

    Args:
        client: whose shards.
        db: the application's DAL.

    Raises:
        BadRead: there is none.
    """
    lazy = getattr(db, "_LAZY_TABLES", {})
    names = sorted(db.tables, key=lambda name: name in lazy)
    shards = len(client.topology.shards)
    for name in names:
        if client.topology.table(name).reference or shards == 1:
            return db[name]
    raise BadRead(
        f"there are {shards} shards and no reference table: say which rows are meant, read_db(db, TABLE, shard_key=…), "
        "or use pipeline.select(...)"
    )


class Request(OwnReads):
    """The pipeline as one request sees it. Used by one thread at a time.

    Args:
        client: the process's.
        held: takes the ops until the commit; None sends each at its call.
        token: the text of the user's session, as the last request left it; or what returns it.
        action: what the framework calls what it runs, for warnings.
    """

    def __init__(
        self,
        client: Client,
        held: HeldOps | None = None,
        token: str | Callable[[], str | None] | None = None,
        action: str = "a script",
    ):
        self.client, self.wait_budgets, self._held = client, client.wait_budgets, held
        # a web request waits for Redis so long with all its calls together; in a script each call does
        self.budget = client.wait_budgets.budget() if held is not None or token is not None else None
        self._at_end: list[Callable[[bool], Any]] = []
        super().__init__(UserSession(client, token), action)

    # writes -------------------------------------------------------------------------------------------------

    enqueue_insert = from_code(Calls.enqueue_insert)
    enqueue_update = from_code(Calls.enqueue_update)
    enqueue_upsert = from_code(Calls.enqueue_upsert)
    enqueue_validated_insert = from_code(Calls.enqueue_validated_insert)

    def enqueue_bulk_insert(self, table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
        """Queue an insert of each of *rows* into *table*; see `pipeline.enqueue_bulk_insert`."""
        return super().enqueue_bulk_insert(table, rows_from_code(self, table, rows), **options)

    def brought(self) -> Mapping[str, Any]:
        """Return what the visitor sent, by name: the framework's object knows."""
        return {}

    def _take(self, addressed: Addressed, durability: str) -> _Receipt:
        with self._holding():
            receipt = self.client.dispatch.take(addressed, durability)
        self._unsent.append(receipt)
        self._wrote(addressed.op)
        self._note_sent()
        return receipt

    def _take_many(self, made: Iterator[Addressed | Chunk], durability: str) -> Receipts:
        with self._holding():
            receipts = self.client._take_many(self._noted(made), durability)
        if self._waits:
            self._unsent.extend(receipts)
        else:
            self._user.wrote(receipts)
        return receipts

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Apply all ops of the block together or not at all; see `pipeline.atomic`."""
        self._groups += 1
        try:
            with self.wait_budgets.within(self.budget), self._holding(), self.client.atomic():
                yield
        finally:
            self._groups -= 1
        self._note_sent()

    def unsent(self, table: str) -> bool:
        """Return whether this request has ops for *table* that wait for its commit, or for the end of a block."""
        with self._holding():
            return self.client.unsent(table)

    def attach(self, table: Any, reads: str | None = None, mode: str = "now") -> None:
        """Queue what pyDAL writes to *table*; see `pipeline.attach`.

        Args:
            table: a table of the application's DAL.
            reads: `own`: this request's reads see its own writes of the table, which are sent and waited for before
                such a read; `next`: the next request's do. By default as its settings say.
            mode: when the request's ops are sent.
        """
        own = attachment.reads_own(table, self.client.topology.table(real_name(table)), reads, mode)
        attachment.attach(table, lambda: self, lambda: self.client, self.before_read, own=own)

    def enqueue_form(self, form: Any) -> _Receipt | None:
        """Queue what an accepted *form* says; see `pipeline.enqueue_form`."""
        return attachment.enqueue_form(form, self)

    @property
    def Receipt(self) -> Calls:  # noqa: N802 - a class in the package, with the one function `parse`
        """What reads printed receipts: `pipeline.Receipt.parse(text)`."""
        return self

    # reads --------------------------------------------------------------------------------------------------

    get = patient(Calls.get)
    select = patient(Calls.select)  # type: ignore[arg-type]  # mypy takes `self` for a keyword beside *fields
    count = patient(Calls.count)

    @contextmanager
    @wraps(Calls.read)
    def read(self, *args: Any, **options: Any) -> Iterator[NodeDAL]:  # noqa: D102
        with ExitStack() as stack:
            yield self._entered(*args, stack=stack, **options)

    @patient
    def _entered(self, /, *args: Any, stack: ExitStack, **options: Any) -> NodeDAL:
        return stack.enter_context(super().read(*args, **options))

    def _after(self, value: Any, fresh: bool) -> Any:
        return self.client.reads.joined(self._user.session, value) if fresh else value

    def session_token(self, text: str | None = None) -> ReadSession:
        """Return this user's session; with a *text*, the session that the text is of."""
        return self._user.session if text is None else self.client.session_token(text)

    def get_db(self, table: Any, shard_key: Any) -> Any:
        """Return a DAL on the primary of the rows of *table* with *shard_key*; it commits with the request."""
        db = super().get_db(table, shard_key)
        self._at_end.append(lambda well: db.commit() if well else db.rollback())
        return db

    def read_db(self, db: Any, table: Any = None, shard_key: Any = None, **options: Any) -> Any:
        """Return a DAL with the same tables, for a controller that only reads: `rdb = pipeline.read_db(db)`.

        It is one node, a replica if one may serve, and has what the user has written and seen. It opens no transaction,
        refuses writes, and is given back with the request; `rdb.read_info` names the node. With several shards
        it takes reference tables, or the tables of one shard key.

        Args:
            db: the DAL of the application.
            table, shard_key: whose shard; not needed for reference tables, nor with a single shard.
            options: `after`, `max_lag_s`, `wait_s`, `on_stale` as for `read`; `fresh=False` does without what the user
                has written and seen.

        Raises:
            BadRead: at the use of a table whose rows are on several shards. Else as `read`.
        """
        chosen = table if table is not None else table_for(self.client, db)
        opened = self.read(chosen, shard_key, **options)
        node = opened.__enter__()
        self._at_end.append(lambda well: opened.__exit__(None, None, None))
        return ReadDAL(node, db.tables, Refusal(self, shard_key is not None))

    # the request's end, for the framework's object ----------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many ops wait for the commit."""
        return len(self._held) if self._held is not None else 0

    def forget(self) -> None:
        """Drop what waits, since its transaction was rolled back; the request goes on."""
        if self._held is not None:
            self._held.drop()
        self._rolled_back()

    def send(self) -> None:
        """Send what waits, once its transaction has been committed.

        Raises:
            as the call that made the op would have: the database has committed then, the op is not sent.
        """
        try:
            with attachment.unheard():
                self._send()
        finally:
            self._transaction_over()

    def finish(self) -> str | None:
        """Send what still waits and end; return the session's text, None if it is as before.

        An empty text: there is nothing to remember any more. Raises as `send`.
        """
        try:
            self.send()
        finally:
            self._end(well=True)
        with self.wait_budgets.within(self.budget):
            return self._user.text()

    def drop(self) -> None:
        """Forget what waits, and end: the request failed."""
        self.forget()
        self._unsent.clear()
        self._end(well=False)

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None and self.waiting:
            logger.error(
                Event("ops_never_sent", ops=self.waiting, text="the request ended without telling this object")
            )

    # parts --------------------------------------------------------------------------------------------------

    def _send(self, *, early: bool = False) -> None:
        if early and self._held is not None and not self._held.early:
            raise BadRead("in mode outbox nothing is sent before its commit, so the request cannot read its own writes")
        try:
            if self._held is not None:
                with self.wait_budgets.within(self.budget):
                    self._held.send()
        finally:
            self._note_sent(always=True)

    def _noted(self, made: Iterator[Addressed | Chunk]) -> Iterator[Addressed | Chunk]:
        for one in made:
            if isinstance(one, Addressed):
                self._wrote(one.op)
            else:
                self._written |= {table for _, _, table in one.what}
            yield one

    def _end(self, *, well: bool) -> None:
        """Give back what was opened for the request, the last one first."""
        while self._at_end:
            try:
                self._at_end.pop()(well)
            except Unavailable as error:  # it is gone by itself
                logger.warning(Event("node_went_away", error=error))

    @property
    def _waits(self) -> bool:
        return self._held is not None or self._groups > 0

    def _holding(self) -> AbstractContextManager[object]:
        """Let the ops of the block wait for the commit."""
        return nullcontext() if self._held is None else self.client.holding(self._held)

    def _note_sent(self, *, always: bool = False) -> None:
        """Let the next reads see what has been sent by now; what was not was dropped with its group."""
        if self._waits and not always:
            return
        sent = [receipt for receipt in self._unsent if receipt.sent]
        self._unsent.clear()
        if sent:
            with self.wait_budgets.within(self.budget):
                self._user.wrote(sent)
