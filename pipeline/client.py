"""The client: one deployment, seen from this process. One per process; threads may share it.

The calls that tell: what became of an op, what is in the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from pipeline.calls import Writes
from pipeline.clock import Deadline
from pipeline.dal.filters import CallersFilters
from pipeline.dal.objects import for_all_threads, renamed
from pipeline.model.receipt import Receipt
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.session import After, ReadSession
from pipeline.wiring import Parts


class Answers(Parts):
    """What asks."""

    # receipts -----------------------------------------------------------------------------------------------

    def status(self, receipt: Receipt) -> str:
        """Return a receipt's status; see `Receipt.status`."""
        return self.follower.status(receipt)

    def wait(self, receipt: Receipt, timeout_s: float) -> str:
        """Wait for a receipt; see `Receipt.wait`."""
        return self.follower.wait(receipt, timeout_s)

    def row_id(self, receipt: Receipt) -> int | None:
        """Return the id that the database gave, once it has."""
        return self.follower.row_id(receipt)

    def wait_all(self, receipts: Iterable[Receipt], timeout_s: float = 30.0) -> None:
        """Wait until all are applied; see `follow.Follower.wait_all`."""
        self.follower.wait_all(receipts, timeout_s)

    def barrier(self, table: Any, timeout_s: float = 30.0) -> None:
        """Wait until all that was enqueued for a table before this call is applied, this host's spool included."""
        deadline = Deadline(timeout_s)
        if self._drain_thread is not None:
            self._drain_thread.wait_empty(timeout_s)
        self.follower.barrier(table if isinstance(table, str) else table._tablename, deadline.left_s)

    def parse(self, text: str) -> Receipt:
        """Read a printed receipt."""
        return Receipt.parse(text, self.follower)

    # reads --------------------------------------------------------------------------------------------------

    def read(self, table: Any, shard_key: Any = None, **options: Any) -> AbstractContextManager[NodeDAL]:
        """Open a node for reading; see the package's `read`."""
        return self._reads.read(table, shard_key, **options)

    def get(self, table: Any, row_id: Any, **options: Any) -> Any:
        """Return one row or None; see the package's `get`."""
        return self._reads.get(table, row_id, **options)

    def select(self, query: Any, *fields: Any, **options: Any) -> Any:
        """Return rows of all shards; see the package's `select`."""
        return self._reads.select(query, *fields, **options)

    def count(self, query: Any, **options: Any) -> int:
        """Return how many rows of all shards match; see the package's `count`."""
        return self._reads.count(query, **options)

    def session_token(self, text: str | None = None) -> ReadSession:
        """Return a reader's session, new or from its text; see the package's `session_token`."""
        return self._reads.session(text)

    def settle(self, session: ReadSession, timeout_s: float) -> bool:
        """Wait until the primaries have what a session has written and seen; whether they have.

        Raises:
            ShardUnavailable, LogUnavailable: it cannot be told.
        """
        return self._reads.settle(session, timeout_s)

    def joined(self, session: ReadSession, after: Any) -> After:
        """Return an `after=` that asks for what a session does and for more; the answer is noted in the session."""
        return self._reads.joined(session, after)

    # databases ----------------------------------------------------------------------------------------------

    def get_db(self, table: Any, shard_key: Any) -> Any:
        """Return a pyDAL DAL on the primary of a row's shard, with the table defined: for reads that must be fresh.

        All callers share it. Common filters are those of the table's own DAL, in this thread, until its next call.
        """
        table = self.op_builder.table(table)
        bucket = self.topology.bucket_of(table._tablename, shard_key)
        db = self.define_on(self.nodes.primary(self.topology.shards_of(bucket)[0]).db, table)
        CallersFilters.on(db).of(table._db)
        return db

    def define_on(self, db: Any, table: Any) -> Any:
        """Define a table and its siblings on a node's DAL, and return the DAL."""
        with self._define_lock:
            for other in self.op_builder.siblings(table):
                if other._tablename not in db.tables:
                    rname = {"rname": other._rname} if renamed(other) else {}
                    fields = [field.clone() for field in other]  # of the table itself pyDAL takes no id of another name
                    for field in db.define_table(other._tablename, *fields, migrate=False, **rname):
                        for_all_threads(field)
        return db


class Client(Writes, Answers):
    """One deployment, seen from this process; see `Parts` for the arguments."""
