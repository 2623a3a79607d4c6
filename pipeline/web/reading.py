"""What one request reads: each call sees what its user has written and seen, unless `fresh=False`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.client import Pipeline
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.session import Session
from pipeline.web.read_db import ReadDAL, Refusal, table_for
from pipeline.web.reader import Reader


class Reading:
    """The calls of a request that read.

    Attributes:
        client: the process's.
    """

    def __init__(self, client: Pipeline, token: str | Callable[[], str | None] | None):
        self.client = client
        self._reader = Reader(client, token)
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

    def session_token(self, text: str | None = None) -> Session:
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
