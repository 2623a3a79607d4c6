"""Make the calls of `pipeline`, each written once, for a process's client and for a web request.

The two differ in where an op goes and in what a read must see. Options are documented in `pipeline.api`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.bounds import WaitBudget, WaitBudgets, in_all
from pipeline.clock import Deadline
from pipeline.dal.sql_texts import raw
from pipeline.enqueue.held_ops import Chunk, Validated, validated
from pipeline.enqueue.op_builder import merged
from pipeline.errors import BadOp
from pipeline.model import Addressed
from pipeline.model.receipt import Receipt, Receipts
from pipeline.reads import ReadSession
from pipeline.reads.gather import GATHER_S
from pipeline.reads.node_dal import NodeDAL, PrimaryDAL
from pipeline.reads.node_tables import NodeTables
from pipeline.reads.read_place import number_of_key

if TYPE_CHECKING:
    from pipeline.client import Client


class Calls(ABC):
    """Every call that writes, waits or reads. `Client` sends an op at its call; a web `Request` may hold it.

    Attributes:
        client: whose parts the calls use; a client is its own.
        wait_budgets: the client's.
        budget: what all calls together may wait for Redis; None: each call has a budget of its own.
        _take: sends or holds an op with its durability, and returns its receipt.
    """

    client: Client
    wait_budgets: WaitBudgets
    budget: WaitBudget | None = None
    _take: Callable[[Addressed, str], Receipt]

    @property
    def _sends_at_once(self) -> bool:
        """Whether a call sends its ops itself, and nothing is noted of each."""
        return False

    @abstractmethod
    def _take_many(self, made: Iterator[Addressed | Chunk], durability: str) -> Receipts:
        """Send or hold ops, each made when taken."""

    def _after(self, value: Any, fresh: bool) -> Any:
        """Return the `after=` of a read: *value*, and with *fresh* what a request's user has written and seen."""
        return value

    @abstractmethod
    def atomic(self) -> AbstractContextManager[None]:
        """Apply all ops of the block together or not at all; see `pipeline.atomic`."""

    @abstractmethod
    def unsent(self, table: str) -> bool:
        """Return whether ops for a table, given by name, are not sent yet: in an atomic block, or held."""

    def see_own(self, tables: Set[str], *, frozen: bool = False) -> None:  # noqa: B027 - nothing waits in a client
        """Send what waits for a commit ahead of a read of *tables*, and wait for it; a client sends at its calls."""

    # writes -------------------------------------------------------------------------------------------------

    @in_all
    def define_tables(self, db: Any) -> None:
        """Make the tables of *db* known, so that ops may name them by text. Cheap enough for every request."""
        self.client.op_builder.define(db)

    @in_all
    def enqueue_insert(
        self,
        table: Any,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
        again: Receipt | None = None,
        **fields: Any,
    ) -> Receipt:
        """Queue an insert of *values* or *fields* into *table*; see `pipeline.enqueue_insert`."""
        # as `merged` does with what the function of `pipeline.api` passes on: one mapping
        given = values if type(values) is dict and not fields else fields if values is None else merged(values, fields)
        if again is not None:
            made = self.client.op_builder.insert_again(table, given, again, shard_key, idempotency_key)
            return self._sent(made, durability, again)
        return self._take(self.client.op_builder.insert(table, given, shard_key, idempotency_key), durability)

    def enqueue_bulk_insert(
        self,
        table: Any,
        rows: Iterable[Mapping[str, Any]],
        *,
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
    ) -> Receipts:
        """Queue an insert of each of *rows* into *table*; see `pipeline.enqueue_bulk_insert`."""
        if idempotency_key is not None:
            raise BadOp("a bulk insert takes no idempotency_key: each op needs its own, so enqueue them one by one")
        # a bulk load waits as long as it takes, unless it is a web request's
        with self.wait_budgets.within(self.budget):
            made = self.client.op_builder.inserts(table, rows, shard_key, at_once=self._sends_at_once)
            return self._take_many(made, durability)

    @in_all
    def enqueue_update(
        self,
        target: Any,
        row_id_or_values: Any = None,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
        again: Receipt | None = None,
        **fields: Any,
    ) -> Receipt:
        """Queue an update of *target*; see `pipeline.enqueue_update`, also for *row_id_or_values*."""
        second = row_id_or_values
        row_id, values = (second, values) if second is None or not isinstance(second, Mapping) else (None, second)
        given = fields if values is None else merged(values, fields)
        return self._sent(
            self.client.op_builder.update(target, row_id, given, shard_key, idempotency_key), durability, again
        )

    @in_all
    def enqueue_delete(
        self,
        target: Any,
        row_id: Any = None,
        /,
        *,
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
        again: Receipt | None = None,
    ) -> Receipt:
        """Queue a delete of *target*, or of the row *row_id* of it; see `pipeline.enqueue_delete`."""
        made = self.client.op_builder.delete(target, row_id, shard_key, idempotency_key)
        return self._sent(made, durability, again)

    @in_all
    def enqueue_upsert(
        self,
        table: Any,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        key: Iterable[str],
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
        again: Receipt | None = None,
        **fields: Any,
    ) -> Receipt:
        """Queue an insert into *table*, or an update of the row with the same *key*; see `pipeline.enqueue_upsert`."""
        given = fields if values is None else merged(values, fields)
        return self._sent(
            self.client.op_builder.upsert(table, key, given, shard_key, idempotency_key), durability, again
        )

    def _sent(self, made: Addressed, durability: str, again: Receipt | None) -> Receipt:
        """Send or hold an op; one that may be queued already is sent at once, since it is no part of a group."""
        return (
            self._take(made, durability) if again is None else self.client.dispatch.take_again(made, again, durability)
        )

    def enqueue_validated_insert(
        self,
        table: Any,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        shard_key: Any = None,
        idempotency_key: str | None = None,
        durability: str = "redis",
        **fields: Any,
    ) -> Validated:
        """Validate *values* or *fields* and queue them for *table*; see `pipeline.enqueue_validated_insert`."""
        table = self.client.op_builder.table(table)
        options = {"shard_key": shard_key, "idempotency_key": idempotency_key, "durability": durability}
        insert = partial(self.enqueue_insert, table, **options)
        return validated(table, fields if values is None else merged(values, fields), insert)

    def save_data(self, table: Any, shard_key: Any, values: Mapping[str, Any]) -> Receipt:
        """Queue an insert of *values* into *table*, whose *shard_key* is given apart; see `pipeline.save_data`."""
        name = self.client.topology.table(self.client.op_builder.table(table)._tablename).shard_key
        return self.enqueue_insert(table, {**values, name: shard_key} if name else dict(values))

    @in_all
    def take_together(self, made: Iterable[Addressed]) -> Receipt:
        """Queue *made* ops, all of one bucket, as one group; return the last one's receipt."""
        with self.atomic():
            return [self._take(one, "redis") for one in made][-1]

    # receipts -----------------------------------------------------------------------------------------------

    def wait_all(self, receipts: Iterable[Receipt], timeout_s: float = 30.0) -> None:
        """Wait until the ops of *receipts* are applied, at most *timeout_s*; see `pipeline.wait_all`."""
        self.client.follower.wait_all(receipts, timeout_s)

    def barrier(self, table: Any, timeout_s: float = 30.0) -> None:
        """Wait until what was enqueued for *table* is applied, at most *timeout_s*; see `pipeline.barrier`."""
        deadline, name = Deadline(timeout_s), self.client.table_name(table)
        if self.client.drain_thread is not None:  # what is in this host's spool comes first
            self.client.drain_thread().wait_empty(timeout_s)
        self.client.follower.barrier(name, deadline.left_s)

    def parse(self, text: str) -> Receipt:
        """Return the receipt that was printed as *text*."""
        return Receipt.parse(text, self.client.follower.seal, self.client.follower)

    # reads --------------------------------------------------------------------------------------------------

    raw = staticmethod(raw)

    def read(
        self,
        table: Any,
        shard_key: Any = None,
        after: Any = None,
        *,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        fresh: bool = True,
    ) -> AbstractContextManager[NodeDAL]:
        """Open a node that has *table*, for the rows of *shard_key*; see `pipeline.read`.

        Args:
            after, max_lag_s, wait_s, on_stale: see `pipeline.read`.
            fresh: in a web request: also wait for what the request's user has written and seen.
        """
        bounds: dict[str, Any] = {"max_lag_s": max_lag_s, "wait_s": wait_s, "on_stale": on_stale}
        return self.client.reads.read(table, shard_key, self._after(after, fresh), **bounds)

    def get(
        self,
        table: Any,
        row_id: Any,
        after: Any = None,
        *,
        pending: bool = False,
        shard_key: Any = None,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        fresh: bool = True,
    ) -> Any:
        """Return the row of *table* with the id *row_id*, or None; see `pipeline.get`.

        Args:
            pending, shard_key: see `pipeline.get`.
            after, max_lag_s, wait_s, on_stale, fresh: see `read`.
        """
        bounds: dict[str, Any] = {"max_lag_s": max_lag_s, "wait_s": wait_s, "on_stale": on_stale}
        return self.client.reads.get(table, row_id, self._after(after, fresh), pending, shard_key, **bounds)

    def select(
        self,
        query: Any,
        *fields: Any,
        after: Any = None,
        partial: bool = False,
        timeout_s: float = GATHER_S,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        fresh: bool = True,
        **attributes: Any,
    ) -> Any:
        """Return *fields* of the rows that match *query*, of all shards; see `pipeline.select`.

        Args:
            partial, timeout_s, attributes: see `pipeline.select`.
            after, max_lag_s, wait_s, on_stale, fresh: see `read`.
        """
        bounds: dict[str, Any] = {"max_lag_s": max_lag_s, "wait_s": wait_s, "on_stale": on_stale}
        attributes |= {"after": self._after(after, fresh), "partial": partial, "timeout_s": timeout_s}
        return self.client.reads.select(query, *fields, **bounds, **attributes)

    def count(
        self,
        query: Any,
        distinct: Any = None,
        after: Any = None,
        *,
        timeout_s: float = GATHER_S,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        fresh: bool = True,
        cache: Any = None,
    ) -> int:
        """Return how many rows match *query*, on all shards; see `pipeline.count`.

        Args:
            distinct, timeout_s: see `pipeline.count`.
            after, max_lag_s, wait_s, on_stale, fresh: see `read`.
            cache: is refused.
        """
        bounds: dict[str, Any] = {"cache": cache, "max_lag_s": max_lag_s, "wait_s": wait_s, "on_stale": on_stale}
        return self.client.reads.count(query, distinct, self._after(after, fresh), timeout_s=timeout_s, **bounds)

    def session_token(self, text: str | None = None) -> ReadSession:
        """Return a reader's session, new or from its *text*; see `pipeline.session_token`."""
        return self.client.reads.session(text)

    def get_db(self, table: Any, shard_key: Any) -> Any:
        """Return a DAL on the primary that has *shard_key*, with *table* defined; see `pipeline.get_db`."""
        client, table = self.client, self.client.op_builder.table(table)
        shard = client.topology.serves(number_of_key(client.topology, table, shard_key))
        onward = client.reads.onward(table._db, self._after(None, fresh=True))
        return PrimaryDAL(NodeTables.on(client.nodes.primary(shard).db), shard, onward, client.op_builder.table)
