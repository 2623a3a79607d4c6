"""Read from all shards at once, and return one result, as if one database held all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.config.topology import Topology
from pipeline.dal.filters import narrowed_here
from pipeline.dal.objects import kind_of, op_name, real_name, tables_in
from pipeline.errors import BadRead, PartialResult, ShardUnavailable, Unavailable
from pipeline.oplog.contract import Entries
from pipeline.per_process import PerProcess
from pipeline.reads.connections import NodeReader
from pipeline.reads.gather.merge import merged_rows
from pipeline.reads.gather.shard_query import ShardQuery, check_options, shape_of
from pipeline.reads.node_dal import NodeDAL, ReadInfo, callers_names
from pipeline.reads.onward import Onward
from pipeline.reads.read_place import ReadPlace, needs_at, places_of_query
from pipeline.reads.routing.policy import seconds
from pipeline.reads.routing.router import Router

#: How long a read over several shards may take in all, s; below the driver's own time-out.
GATHER_S = 10.0
#: Reads over all shards that may run at a time in one process; more wait their turn.
AT_A_TIME = 8
#: No process needs more threads than that.
MOST_THREADS = 64


class Part(NamedTuple):
    """What one shard returned."""

    value: Any
    info: ReadInfo
    db: NodeDAL


class SharedRead(NamedTuple):
    """What all parts of one read share; `ask` reads from one node."""

    ask: Callable[[NodeDAL], Any]
    onward: Onward
    timeout_s: float
    partial: bool = False


class Gather:
    """Reads over shards. Threads may share it; it has threads of its own, made when first needed.

    Args:
        router: chooses a node of each shard.
        topology: who has which bucket.
        log: asked only for tokens that ask for the rest.
    """

    def __init__(self, router: Router, topology: Topology, log: Entries):
        self._router, self._topology, self._log = router, topology, log
        self._pool = PerProcess(self._threads)  # a fork has none of its parent's threads

    def select(
        self,
        query: Any,
        fields: Sequence[Any],
        onward: Onward,
        options: Mapping[str, Any],
        *,
        partial: bool = False,
        timeout_s: float = GATHER_S,
    ) -> Any:
        """Return pyDAL Rows with `read_info`, `partial` and `missing`; see `pipeline.select`.

        Args:
            query: of the caller's DAL.
            fields: of the result; none: all of the query's tables.
            onward: what must be seen, the session that takes up what was seen, and the bounds on each shard.
            options: pyDAL's.
            partial: whether shards that do not answer may be missing.
            timeout_s: of the whole.
        """
        places = self._where(query, fields, options)
        asked = SharedRead(
            lambda db: db.select(query, fields, options),
            onward,
            seconds("timeout_s", timeout_s),
            partial,
        )
        if len(places) == 1:
            (part,) = self._parts(places, asked)[0]
            return _marked(part.value, [part], {})
        check_options(options)
        query = narrowed_here(query)
        parts, missing = self._parts(places, asked._replace(ask=_shaped(query, tuple(fields), options)))
        first: ShardQuery = parts[0].value[0]
        reader: NodeReader = parts[0].value[2]
        rows = merged_rows((part.value[1] for part in parts), first.merge)
        cacheable = bool(options.get("cacheable"))
        names = callers_names(first.names, first.columns, fields)
        reader.come(tables_in([query, *fields, *options.values()]), onward)
        parsed = reader.adapter.parse(rows, first.columns, names, cacheable=cacheable)
        return _marked(parsed, parts, missing)

    def count(
        self,
        query: Any,
        distinct: Any,
        onward: Onward,
        *,
        timeout_s: float = GATHER_S,
    ) -> int:
        """Return how many rows match; see `pipeline.count`.

        Args:
            query: of the caller's DAL.
            distinct: a field or several, whose distinct values are counted; None: rows are.
            onward: as for `select`.
            timeout_s: of the whole.
        """
        fields = () if distinct is None else tuple(distinct) if isinstance(distinct, list | tuple) else (distinct,)
        if any(kind_of(field) not in ("Field", "Expression") for field in fields):
            raise BadRead("distinct= of a count takes a field, or several")
        places = self._where(query, fields, {})
        query = narrowed_here(query)
        asked = SharedRead(lambda db: db.where(query).count(), onward, timeout_s=seconds("timeout_s", timeout_s))
        if not fields:
            parts, _ = self._parts(places, asked)
            return sum(part.value for part in parts)
        if len(places) == 1:
            asked = asked._replace(ask=lambda db: db.where(query).count(distinct=db.reader.own(fields)))
            return int(self._parts(places, asked)[0][0].value)
        parts, _ = self._parts(places, asked._replace(ask=_shaped(query, fields, {"distinct": True})))
        rows = merged_rows((part.value[1] for part in parts), parts[0].value[0].merge)
        # as COUNT(DISTINCT a, b) does, leave out what has a NULL
        return sum(None not in row for row in rows)

    def close(self) -> None:
        """End the threads of this process."""
        pool = self._pool.made()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            self._pool = PerProcess(self._threads)

    # parts --------------------------------------------------------------------------------------------------

    def _where(self, query: Any, fields: Sequence[Any], options: Mapping[str, Any]) -> list[ReadPlace]:
        left, join = _listed(options.get("left")), _listed(options.get("join"))
        tables = list(tables_in([query, *fields, *left, *join]))
        ons = [item.second for item in (*left, *join) if op_name(item) == "on"]
        places = places_of_query(self._topology, query, tables, ons)
        outer = {table._tablename for item in left for table in tables_in(getattr(item, "first", item))}
        if len(places) > 1 and outer:
            inner = [table for table in tables if table._tablename not in outer]
            if all(self._topology.table(real_name(table)).reference for table in inner):
                raise BadRead(
                    "a left join from a reference table to a sharded one would repeat its rows on every shard"
                )
        return places

    def _parts(self, places: Sequence[ReadPlace], asked: SharedRead) -> tuple[list[Part], dict[str, Unavailable]]:
        """Read at all places; return what came, in their order, and what did not.

        Raises:
            PartialResult: something is missing, and the caller did not say that this will do.
        """
        outcomes = self._all(places, asked)
        parts = [outcome for outcome in outcomes if isinstance(outcome, Part)]
        missing = {p.shard: o for p, o in zip(places, outcomes, strict=True) if not isinstance(o, Part)}
        if len(places) == 1 and missing:
            raise missing[places[0].shard]
        if missing and not (asked.partial and parts):
            raise PartialResult(missing)
        return parts, missing

    def _all(self, places: Sequence[ReadPlace], asked: SharedRead) -> list[Part | Unavailable]:
        if len(places) == 1:
            return [self._one(places[0], asked)]
        deadline = clock.Deadline(asked.timeout_s)
        futures: list[Future[Part | Unavailable]] = [self._pool().submit(self._one, place, asked) for place in places]
        wait(futures, deadline.left_s)
        late = f"no answer within {asked.timeout_s:.3g} s"
        outcomes: list[Part | Unavailable] = []
        for place, future in zip(places, futures, strict=True):
            if future.done():
                outcomes.append(future.result())
            else:
                future.cancel()
                outcomes.append(ShardUnavailable(place.shard, late))
        return outcomes

    def _one(self, place: ReadPlace, asked: SharedRead) -> Part | Unavailable:
        """Read at one place, on another node if the first one fails."""
        for again in (True, False):
            try:
                return self._read(place, asked)
            except ShardUnavailable as error:
                if not again:
                    return error
            except Unavailable as error:
                return error
        raise AssertionError

    def _read(self, place: ReadPlace, asked: SharedRead) -> Part:
        after, bounds = asked.onward.after, asked.onward.bounds
        needs = needs_at(self._topology, self._log, after.token, place)
        with self._router.open(place.shard, needs, bounds, session=after.session, buckets=place.buckets) as read:
            db = NodeDAL(read.reader, read.read_info, asked.onward)
            return Part(asked.ask(db), read.read_info, db)

    def _threads(self) -> ThreadPoolExecutor:
        threads = min(MOST_THREADS, AT_A_TIME * len(self._topology.shards))
        return ThreadPoolExecutor(threads, thread_name_prefix="pipeline-gather")


def _shaped(
    query: Any, fields: tuple[Any, ...], options: Mapping[str, Any]
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


def _marked(rows: Any, parts: Sequence[Part], missing: dict[str, Unavailable]) -> Any:
    rows.read_info = [part.info for part in parts]
    rows.partial, rows.missing = bool(missing), missing
    return rows


def _listed(value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
