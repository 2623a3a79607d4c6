"""One request's pipeline: every function of the package, bound to what this request writes and what its user has seen.

Invariant: what is held is sent by `finish` or never. The face calls `finish` once the framework has committed, and
`drop` when the request failed.

What one request reads: each call sees what its user has written and seen, unless `fresh=False`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline import attachment
from pipeline.client import Client
from pipeline.enqueue.held_ops import HeldOps, Validated
from pipeline.errors import Unavailable
from pipeline.model.op import Addressed
from pipeline.model.receipt import Receipt as _Receipt
from pipeline.model.receipt import Receipts
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.session import ReadSession, Token
from pipeline.web.read_db import ReadDAL, Refusal, table_for
from pipeline.web.user_session import UserSession


class Reading:
    """The calls of a request that read.

    Attributes:
        client: the process's.
    """

    def __init__(self, client: Client, token: str | Callable[[], str | None] | None):
        self.client = client
        self._reader = UserSession(client, token)
        self._at_end: list[Callable[[bool], Any]] = []

    @contextmanager
    def read(
        self, table: Any, shard_key: Any = None, after: Any = None, *, fresh: bool = True, **options: Any
    ) -> Iterator[NodeDAL]:
        """Open a node for reading; see the package's `read`."""
        with ExitStack() as stack:
            call = lambda seen: stack.enter_context(  # noqa: E731
                self.client.read(table, shard_key, after=seen, **options)
            )
            yield self._reader.asked(call, after, fresh, options)

    def get(self, table: Any, row_id: Any, after: Any = None, *, fresh: bool = True, **options: Any) -> Any:
        """Return one row or None; see the package's `get`."""
        call = lambda seen: self.client.get(table, row_id, after=seen, **options)  # noqa: E731
        return self._reader.asked(call, after, fresh, options)

    def select(self, query: Any, *fields: Any, after: Any = None, fresh: bool = True, **options: Any) -> Any:
        """Return rows of all shards; see the package's `select`."""
        call = lambda seen: self.client.select(query, *fields, after=seen, **options)  # noqa: E731
        return self._reader.asked(call, after, fresh, options)

    def count(self, query: Any, distinct: Any = None, after: Any = None, *, fresh: bool = True, **options: Any) -> int:
        """Return how many rows of all shards match; see the package's `count`."""
        call = lambda seen: self.client.count(query, distinct=distinct, after=seen, **options)  # noqa: E731
        return self._reader.asked(call, after, fresh, options)

    def session_token(self, text: str | None = None) -> ReadSession:
        """Return this user's session; with a text, the session that the text is of."""
        return self._reader.session if text is None else self.client.session_token(text)

    def get_db(self, table: Any, shard_key: Any) -> Any:
        """Return a pyDAL DAL on the primary of a row's shard; its transaction ends with the request."""
        db = self.client.get_db(table, shard_key)
        self._at_end.append(lambda well: db.commit() if well else db.rollback())
        return db

    def read_db(self, db: Any, table: Any = None, shard_key: Any = None, *, fresh: bool = True, **options: Any) -> Any:
        """Return a DAL with the same tables, for a controller that only reads: `rdb = pipeline.read_db(db)`.

        It is one node, a replica if one may serve, and has what the user has written and seen. It opens no transaction,
        refuses writes, and is given back with the request; `rdb.read_info` tells which node it is. With several shards
        it takes reference tables, or the tables of one shard key.

        Args:
            table, shard_key: whose shard; not needed for reference tables, nor with a single shard.
            options: `after`, `max_lag_s`, `wait_s`, `on_stale` as for `read`.

        Raises:
            BadRead: at the use of a table whose rows are on several shards. Else as `read`.
        """
        chosen = table if table is not None else table_for(self.client, db)
        opened = self.read(chosen, shard_key, fresh=fresh, **options)
        node = opened.__enter__()
        self._at_end.append(lambda well: opened.__exit__(None, None, None))
        return ReadDAL(node, db.tables, Refusal(self.client, shard_key is not None))


#: When the ops of a request are sent: at each call, after its commit, or after its commit from a table in its database.
MODES = ("now", "on_commit", "outbox")
logger = logging.getLogger("pipeline.web")


class Request(Reading):
    """The pipeline as one request sees it. Used by one thread at a time.

    Args:
        client: the process's.
        held: takes the ops until the commit; None sends each at its call.
        token: the text of the user's session, as the last request left it; or what returns it.
    """

    def __init__(
        self, client: Client, held: HeldOps | None = None, token: str | Callable[[], str | None] | None = None
    ):
        super().__init__(client, token)
        self._held = held
        #: A web request waits for Redis so long with all its calls together; in a script each call does.
        self._budget = client.wait_budgets.budget() if held is not None or token is not None else None
        self._unsent: list[_Receipt] = []
        self._groups = 0
        #: What the primaries were given time for.
        self._settled: Token | None = None

    # writes -------------------------------------------------------------------------------------------------

    def enqueue_insert(self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> _Receipt:
        """Queue an insert; see the package's `enqueue_insert`."""
        with self._holding():
            return self._made(self.client.enqueue_insert(table, values, **fields))

    def enqueue_bulk_insert(self, table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
        """Queue an insert of each row; see the package's `enqueue_bulk_insert`."""
        with self._holding():
            receipts = self.client.enqueue_bulk_insert(table, rows, **options)
        if self._waits:
            self._unsent.extend(receipts)
        else:
            self._reader.wrote(receipts)
        return receipts

    def enqueue_update(
        self, target: Any, second: Any = None, third: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> _Receipt:
        """Queue an update; see the package's `enqueue_update`."""
        with self._holding():
            return self._made(self.client.enqueue_update(target, second, third, **fields))

    def enqueue_delete(self, target: Any, row_id: Any = None, /, **options: Any) -> _Receipt:
        """Queue a delete; see the package's `enqueue_delete`."""
        with self._holding():
            return self._made(self.client.enqueue_delete(target, row_id, **options))

    def enqueue_upsert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, *, key: Iterable[str], **fields: Any
    ) -> _Receipt:
        """Queue an insert that updates the row with the same key; see the package's `enqueue_upsert`."""
        with self._holding():
            return self._made(self.client.enqueue_upsert(table, values, key=key, **fields))

    def enqueue_validated_insert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> Validated:
        """Validate and queue an insert; see the package's `enqueue_validated_insert`."""
        with self._holding():
            found = self.client.enqueue_validated_insert(table, values, **fields)
        if found.receipt is not None:
            self._made(found.receipt)
        return found

    def save_data(self, table: Any, shard_key: Any, values: Mapping[str, Any]) -> _Receipt:
        """Queue an insert of a row whose shard key is given apart."""
        with self._holding():
            return self._made(self.client.save_data(table, shard_key, values))

    def take_together(self, made: Iterable[Addressed]) -> _Receipt:
        """Queue ops that the door has made in one atomic group; what attached tables need."""
        with self._holding():
            return self._made(self.client.take_together(made))

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Apply all ops of the block together or not at all; see the package's `atomic`."""
        self._groups += 1
        try:
            with self._holding(), self.client.atomic():
                yield
        finally:
            self._groups -= 1
        if not self._waits:
            self._note_sent()

    def unsent(self, table: str) -> bool:
        """Return whether this request has ops for a table that wait for its commit, or for the end of a block."""
        with self._holding():
            return self.client.unsent(table)

    def attach(self, table: Any) -> None:
        """Queue what pyDAL writes to a table; see the package's `attach`."""
        attachment.attach(table, self, lambda: self.client)

    def enqueue_form(self, form: Any) -> _Receipt | None:
        """Queue what an accepted form says; see the package's `enqueue_form`."""
        return attachment.enqueue_form(form, self, lambda: self.client)

    def catch_up(self) -> None:
        """Give the primaries the time to get what the user has written before, ahead of a read through `db`.

        Once, until he writes again. A page does not fail for it: it may show an older state then.
        """
        token = self._reader.known
        if token is None or token is self._settled:
            return
        try:
            if not self._reader.settle():
                logger.warning("the user may not see his own writes: the workers are behind")
        except Unavailable as error:
            logger.warning("the user may not see his own writes: %s", error)
        self._settled = self._reader.known

    # receipts -----------------------------------------------------------------------------------------------

    @property
    def Receipt(self) -> Client:  # noqa: N802 - a class in the package, with the one function `parse`
        """Who reads printed receipts: `pipeline.Receipt.parse(text)`."""
        return self.client

    def wait_all(self, receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
        """Wait until all are applied; see the package's `wait_all`."""
        self.client.wait_all(receipts, timeout_s)

    def barrier(self, table: Any, timeout_s: float = 30.0) -> None:
        """Wait until all that was enqueued for a table before this call is applied."""
        self.client.barrier(table, timeout_s)

    def define_tables(self, db: Any) -> None:
        """Make a DAL's tables known; the face does it for the application's own."""
        self.client.define_tables(db)

    # the request's end, for the face ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many ops wait for the commit."""
        return len(self._held) if self._held is not None else 0

    def forget(self) -> None:
        """Drop what waits; the request goes on."""
        if self._held is not None:
            self._held.drop()

    def send(self) -> None:
        """Send what waits, once its transaction has been committed.

        Raises:
            as the call that made the op would have: the database has committed then, the op is not sent.
        """
        try:
            if self._held is not None:
                with self.client.wait_budgets.within(self._budget):
                    self._held.send()
        finally:
            self._note_sent()

    def finish(self) -> str | None:
        """Send what still waits and end; return the session's text, None if it is as before.

        An empty text: there is nothing to remember any more. Raises as `send`.
        """
        try:
            self.send()
        finally:
            self._end(well=True)
        with self.client.wait_budgets.within(self._budget):
            return self._reader.text()

    def drop(self) -> None:
        """Forget what waits, and end: the request failed."""
        self.forget()
        self._unsent.clear()
        self._end(well=False)

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None and self.waiting:
            logger.error("%d ops were never sent: the request ended without telling this object", self.waiting)

    # parts --------------------------------------------------------------------------------------------------

    def _end(self, *, well: bool) -> None:
        """Give back what was opened for the request, the last one first."""
        while self._at_end:
            try:
                self._at_end.pop()(well)
            except Unavailable as error:  # it is gone by itself
                logger.warning("a node went away before the request's end: %s", error)

    @property
    def _waits(self) -> bool:
        return self._held is not None or self._groups > 0

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Let the ops of the block wait for the commit, and its calls wait no longer than this request may."""
        with self.client.wait_budgets.within(self._budget):
            if self._held is None:
                yield
            else:
                with self.client.holding(self._held):
                    yield

    def _made(self, receipt: _Receipt) -> _Receipt:
        self._unsent.append(receipt)
        if not self._waits:
            self._note_sent()
        return receipt

    def _note_sent(self) -> None:
        """Let the next reads see what has been sent by now; what was not was dropped with its group."""
        sent = [receipt for receipt in self._unsent if receipt.sent]
        self._unsent.clear()
        if sent:
            with self.client.wait_budgets.within(self._budget):
                self._reader.wrote(sent)
