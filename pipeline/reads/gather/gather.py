"""Read from all shards at once, and give one result, as if one database held all rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.dal.objects import kind_of, op_name, real_name, tables_in
from pipeline.errors import BadRead, PartialResult, ShardUnavailable, Unavailable
from pipeline.reads.connections import NodeReader
from pipeline.reads.gather.merge import merged_rows
from pipeline.reads.gather.shard_query import ShardQuery, check_options, shape_of
from pipeline.reads.node_dal import NodeDAL, ReadInfo, callers_names
from pipeline.reads.read_place import Places, ReadPlace
from pipeline.reads.routing.policy import Bounds, seconds
from pipeline.reads.routing.router import Router
from pipeline.reads.session import ReadSession, Token

#: How long a read over several shards may take in all, s; below the driver's own time-out.
GATHER_S = 10.0
#: Reads over all shards that may run at a time in one process; more wait their turn.
AT_A_TIME = 8
#: No process needs more threads than that.
MOST_THREADS = 64


class Part(NamedTuple):
    """What one shard gave."""

    value: Any
    info: ReadInfo
    db: NodeDAL


class Gather:
    """Reads over shards. Threads may share it; it has threads of its own, made when first needed."""

    def __init__(self, router: Router, places: Places, shards: int):
        self._router, self._places = router, places
        self._threads = min(MOST_THREADS, AT_A_TIME * shards)
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def select(
        self,
        query: Any,
        fields: Sequence[Any],
        token: Token,
        session: ReadSession | None,
        bounds: Bounds,
        *,
        partial: bool = False,
        timeout_s: float = GATHER_S,
        **options: Any,
    ) -> Any:
        """Return pyDAL Rows with `read_info`, `partial` and `missing`; see the package's `select`."""
        places = self._where(query, fields, options)
        asked = SharedRead(token, session, bounds, partial, seconds("timeout_s", timeout_s))
        if len(places) == 1:
            (part,) = self._parts(places, lambda db: db.select(query, fields, options), asked)[0]
            return _marked(part.value, [part], {})
        check_options(options)
        parts, missing = self._parts(places, _shaped(query, tuple(fields), options), asked)
        first: ShardQuery = parts[0].value[0]
        reader: NodeReader = parts[0].value[2]
        rows = merged_rows((part.value[1] for part in parts), first.merge)
        cacheable = bool(options.get("cacheable"))
        names = callers_names(first.names, first.columns, fields)
        parsed = reader.adapter.parse(rows, first.columns, names, cacheable=cacheable)
        return _marked(parsed, parts, missing)

    def count(
        self,
        query: Any,
        distinct: Any,
        token: Token,
        session: ReadSession | None,
        bounds: Bounds,
        *,
        timeout_s: float = GATHER_S,
    ) -> int:
        """Return how many rows match; see the package's `count`."""
        fields = () if distinct is None else tuple(distinct) if isinstance(distinct, list | tuple) else (distinct,)
        if any(kind_of(field) not in ("Field", "Expression") for field in fields):
            raise BadRead("distinct= of a count takes a field, or several")
        places = self._where(query, fields, {})
        asked = SharedRead(token, session, bounds, False, seconds("timeout_s", timeout_s))
        if not fields:
            parts, _ = self._parts(places, lambda db: db(query).count(), asked)
            return sum(part.value for part in parts)
        if len(places) == 1:
            parts, _ = self._parts(places, lambda db: db(query).count(distinct=db.reader.own(fields)), asked)
            return int(parts[0].value)
        parts, _ = self._parts(places, _shaped(query, fields, {"distinct": True}), asked)
        rows = merged_rows((part.value[1] for part in parts), parts[0].value[0].merge)
        # as COUNT(DISTINCT a, b) does, leave out what has a NULL
        return sum(None not in row for row in rows)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    # parts --------------------------------------------------------------------------------------------------

    def _where(self, query: Any, fields: Sequence[Any], options: dict[str, Any]) -> list[ReadPlace]:
        left, join = _listed(options.get("left")), _listed(options.get("join"))
        tables = list(tables_in([query, *fields, *left, *join]))
        ons = [item.second for item in (*left, *join) if op_name(item) == "on"]
        places = self._places.of_query(query, tables, ons)
        outer = {table._tablename for item in left for table in tables_in(getattr(item, "first", item))}
        if len(places) > 1 and outer:
            inner = [table for table in tables if table._tablename not in outer]
            if all(self._places.is_reference(real_name(table)) for table in inner):
                raise BadRead(
                    "a left join from a reference table to a sharded one would repeat its rows on every shard"
                )
        return places

    def _parts(
        self, places: Sequence[ReadPlace], read: Callable[[NodeDAL], Any], asked: SharedRead
    ) -> tuple[list[Part], dict[str, Unavailable]]:
        """Read at all places; return what came, in their order, and what did not.

        Raises:
            PartialResult: something is missing, and the caller did not say that this will do.
        """
        outcomes = self._all(places, lambda place: self._one(place, read, asked), asked.timeout_s)
        parts = [outcome for outcome in outcomes if isinstance(outcome, Part)]
        missing = {p.shard: o for p, o in zip(places, outcomes, strict=True) if not isinstance(o, Part)}
        if len(places) == 1 and missing:
            raise missing[places[0].shard]
        if missing and not (asked.partial and parts):
            raise PartialResult(missing)
        return parts, missing

    def _one(self, place: ReadPlace, read: Callable[[NodeDAL], Any], asked: SharedRead) -> Part:
        for again in (True, False):
            try:
                needs = self._places.needs(asked.token, place)
                with self._router.open(
                    place.shard, needs, asked.bounds, session=asked.session, buckets=place.buckets
                ) as db:
                    return Part(read(db), db.read_info, db)
            except ShardUnavailable:
                if not again:
                    raise
        raise AssertionError

    def _all(
        self, places: Sequence[ReadPlace], read: Callable[[ReadPlace], Part], timeout_s: float
    ) -> list[Part | Unavailable]:
        if len(places) == 1:
            return [_outcome(lambda place=place: read(place)) for place in places]  # type: ignore[misc]
        deadline = clock.Deadline(timeout_s)
        futures: list[Future[Part]] = [self._executor().submit(read, place) for place in places]
        wait(futures, deadline.left_s)
        late = f"no answer within {timeout_s:.3g} s"
        outcomes: list[Part | Unavailable] = []
        for place, future in zip(places, futures, strict=True):
            if future.done():
                outcomes.append(_outcome(future.result))
            else:
                future.cancel()
                outcomes.append(ShardUnavailable(place.shard, late))
        return outcomes

    def _executor(self) -> ThreadPoolExecutor:
        if self._pid != os.getpid():  # a fork has none of its parent's threads
            self._pool, self._pid = None, os.getpid()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pipeline-gather")
        return self._pool


class SharedRead(NamedTuple):
    """What all parts of one read share."""

    token: Token
    session: ReadSession | None
    bounds: Bounds
    partial: bool
    timeout_s: float


def _shaped(
    query: Any, fields: tuple[Any, ...], options: dict[str, Any]
) -> Callable[[NodeDAL], tuple[ShardQuery, list[tuple[Any, ...]], NodeReader]]:
    """Return what each shard has to do; the statement is written once for all shards of a kind.

    Who has written it comes with it: only that reader is sure to know the tables, and so to read the rows.
    """
    shapes: dict[str, tuple[ShardQuery, NodeReader]] = {}

    def read(db: NodeDAL) -> tuple[ShardQuery, list[tuple[Any, ...]], NodeReader]:
        kind = db.reader.dialect.name
        shaped = shapes.get(kind)
        if shaped is None:
            shaped = shapes[kind] = shape_of(db.reader, query, fields, options), db.reader
        shape, writer = shaped
        return shape, db.reader.rows(shape.sql), writer

    return read


def _outcome(call: Callable[[], Part]) -> Part | Unavailable:
    try:
        return call()
    except Unavailable as error:
        return error


def _marked(rows: Any, parts: Sequence[Part], missing: dict[str, Unavailable]) -> Any:
    rows.read_info = [part.info for part in parts]
    rows.partial, rows.missing = bool(missing), missing
    return rows


def _listed(value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
