"""Read from all shards at once, and return one result, as if one database held all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.config import Topology
from pipeline.dal import kind_of, op_name, real_name, tables_in
from pipeline.dal.trees import narrowed_here
from pipeline.errors import BadRead, PartialResult, ShardUnavailable, Unavailable
from pipeline.oplog import Entries
from pipeline.per_process import PerProcess
from pipeline.reads.connections import NodeReader
from pipeline.reads.gather.merge import ReadyRead, ShardQuery, merged_rows, shaped
from pipeline.reads.gather.over_shards import answered, check_options
from pipeline.reads.node_dal import NodeDAL, ReadInfo, callers_names
from pipeline.reads.onward import Onward
from pipeline.reads.read_place import NoRowMatches, ReadPlace, needs_at, places_of_query
from pipeline.reads.routing import seconds
from pipeline.reads.routing.moving import Elsewhere
from pipeline.reads.routing.router import Router
from pipeline.tracing import in_this_trace

#: How long a read over several shards may take in all, s; below the driver's own time-out.
GATHER_S = 10.0
#: Reads over all shards that may run at a time in one process; more wait their turn.
AT_A_TIME = 8
#: The most values of a subselect that are put in its place.
MOST_VALUES = 10_000
#: Options of a subselect that pyDAL itself does not heed there.
_OF_A_CACHE = ("cache", "cacheable", "processor")
#: No process needs more threads than that.
MOST_THREADS = 64


class Part(NamedTuple):
    """What one shard returned."""

    value: Any
    info: ReadInfo
    db: NodeDAL


class SharedRead(NamedTuple):
    """What all parts of one read share; `ask` reads from one node, and there are `several`; `about` what is read."""

    ask: Callable[[NodeDAL], Any]
    onward: Onward
    deadline: clock.Deadline
    partial: bool = False
    several: bool = False
    about: ReadyRead | None = None


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
        deadline = clock.Deadline(seconds("timeout_s", timeout_s))

        def ask(db: NodeDAL) -> Any:
            return db.select(ready.query, ready.fields, ready.options, ready.left_out(db))

        asked = SharedRead(ask, onward, deadline, partial)
        ready = self._ready(query, fields, options, asked)
        if len(ready.places) == 1:
            (part,) = self._parts(ready, asked)[0]
            return _marked(part.value, [part], {})
        parts, missing = self._parts(ready, asked._replace(ask=shaped(ready)))
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
        deadline = clock.Deadline(seconds("timeout_s", timeout_s))
        asked = SharedRead(lambda db: db.where(ready.query, ready.left_out(db)).count(), onward, deadline)
        ready = self._ready(query, fields, {"distinct": True} if fields else {}, asked)
        if not fields:
            parts, _ = self._parts(ready, asked)
            return sum(part.value for part in parts)
        if len(ready.places) == 1:
            asked = asked._replace(
                ask=lambda db: db.where(ready.query, ready.left_out(db)).count(distinct=db.reader.own(ready.fields))
            )
            return int(self._parts(ready, asked)[0][0].value)
        parts, _ = self._parts(ready, asked._replace(ask=shaped(ready)))
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

    def _ready(self, query: Any, fields: Sequence[Any], options: Mapping[str, Any], asked: SharedRead) -> ReadyRead:
        """Return a read without what a shard cannot answer alone."""
        if len(self._topology.shards) == 1:
            return ReadyRead(query, tuple(fields), options, self._where(query, fields, options), self._topology)
        query = narrowed_here(query)
        places = self._where(query, fields, options)
        if len(places) > 1:
            check_options(options)
        steps = answered(self._topology, places, query, fields, options)
        try:
            subselect = next(steps)
            while True:
                subselect = steps.send(self._values(subselect, asked))
        except StopIteration as end:
            query, fields, options = end.value
        ready = ReadyRead(query, tuple(fields), options, places, self._topology)
        return ready._replace(places=self._with_references(ready, places))

    def _with_references(self, ready: ReadyRead, places: list[ReadPlace]) -> list[ReadPlace]:
        """Return places at which reference tables count that a read's subselects name."""
        within = {
            real_name(table) for table in tables_in([ready.query, *ready.fields, *ready.options.values()], inner=True)
        }
        if any(self._topology.table(name).reference for name in within):
            return [place.also(self._topology.reference_bucket) for place in places]
        return places

    def _values(self, select: Any, asked: SharedRead) -> list[Any]:
        """Return the values of a subselect, of all shards."""
        options = {name: value for name, value in select._attributes.items() if value and name not in _OF_A_CACHE}
        check_options(options)
        [field] = select._qfields
        field = field.first if op_name(field) == "_as" else field
        try:
            ready = self._ready(select._query, (field,), options, asked)
        except NoRowMatches:  # any shard finds none, and makes of nothing what a database makes of it
            nowhere = [ReadPlace(self._topology.shards[0], ())]
            ready = ReadyRead(select._query, (field,), options, nowhere, self._topology)
        first, behind = options.get("limitby") or (0, MOST_VALUES + 1)
        bound = {"limitby": (first, min(behind, first + MOST_VALUES + 1)), "orderby_on_limitby": False}
        bounded = ready._replace(options={**ready.options, **bound})
        parts, _ = self._parts(bounded, asked._replace(ask=shaped(bounded), partial=False))
        rows = merged_rows((part.value[1] for part in parts), parts[0].value[0].merge)
        if len(rows) > MOST_VALUES:
            raise BadRead(
                f"a subselect of {field} finds more than {MOST_VALUES:,} values: narrow it, or give nested_select "
                "distinct=True, or select the values first and read in parts"
            )
        return list(dict.fromkeys(row[0] for row in rows))

    def _where(self, query: Any, fields: Sequence[Any], options: Mapping[str, Any]) -> list[ReadPlace]:
        left, join = _listed(options.get("left")), _listed(options.get("join"))
        tables = list(tables_in([query, *fields, *left, *join, options.get("orderby"), options.get("groupby")]))
        if any(kind_of(table) == "Select" for table in tables):
            raise BadRead("a subselect as a table cannot be read here: open a node with pipeline.read, or join tables")
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

    def _parts(self, ready: ReadyRead, asked: SharedRead) -> tuple[list[Part], dict[str, Unavailable]]:
        """Read at all places; return what came, in their order, and what did not.

        Raises:
            PartialResult: something is missing, and the caller did not say that this will do.
        """
        places, outcomes = self._served(ready, asked._replace(about=ready))
        parts = [outcome for outcome in outcomes if isinstance(outcome, Part)]
        missing = {p.shard: o for p, o in zip(places, outcomes, strict=True) if not isinstance(o, Part)}
        if len(places) == 1 and missing:
            raise missing[places[0].shard]
        if missing and not (asked.partial and parts):
            raise PartialResult(missing)
        return parts, missing

    def _served(self, ready: ReadyRead, asked: SharedRead) -> tuple[Sequence[ReadPlace], list[Part | Unavailable]]:
        """Read at all places, and again where buckets were found to be served elsewhere; see `routing.moving`."""
        places: Sequence[ReadPlace] = ready.places
        asked = asked._replace(several=len(places) > 1)
        while True:
            if places[0].seen is not self._topology.placement and places[0].buckets != ():
                places = self._with_references(ready, self._where(ready.query, ready.fields, ready.options))
            places = self._router.served.places(places)
            outcomes = self._all(places, asked)
            if asked.deadline.passed or not any(isinstance(outcome, Elsewhere) for outcome in outcomes):
                return places, outcomes

    def _all(self, places: Sequence[ReadPlace], asked: SharedRead) -> list[Part | Unavailable]:
        if len(places) == 1:
            return [self._one(places[0], asked)]
        futures: list[Future[Part | Unavailable]] = [
            self._pool().submit(in_this_trace(self._one), place, asked) for place in places
        ]
        wait(futures, asked.deadline.left_s)
        late = f"no answer within {asked.deadline.at - asked.deadline.started:.3g} s"
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
                if not again or isinstance(error, Elsewhere):
                    return error
            except Unavailable as error:
                return error
        raise AssertionError

    def _read(self, place: ReadPlace, asked: SharedRead) -> Part:
        several, router = asked.several, self._router
        if place.row is not None:
            number, place = (place.buckets or ())[1], self._side_of(place, place.row, asked)
            # the bucket's shard may still have, or have again, rows of a key that is not read there
            several = number not in (place.buckets or ())
        with self._opened(place, asked, part=several) as read:
            db = NodeDAL(read.reader, read.read_info, asked.onward, excluded=read.excluded)
            part = Part(asked.ask(db), read.read_info, db)
        if several and router.served.changed(read):
            raise Elsewhere(0, place.shard)
        return part

    def _opened(self, place: ReadPlace, asked: SharedRead, *, part: bool) -> Any:
        after, bounds = asked.onward.after, asked.onward.bounds
        needs = needs_at(self._topology, self._log, after.token, place)
        return self._router.open(place, needs, bounds, session=after.session, part=part)

    def _side_of(self, place: ReadPlace, row: tuple[Any, int], asked: SharedRead) -> ReadPlace:
        """Return where a row is that its id alone names, of a bucket one of whose keys is perhaps on another shard.

        What the key's shard has not is no row of the key, whatever the bucket's shard still has of it.
        """
        served, topology, (table, row_id) = self._router.served, self._topology, row
        bucket, number, *also = place.buckets or ()
        home, away, piece = served.by(bucket), served.by(number), topology.placement.pieces.get(number)
        if home == away or piece is None:
            return place._replace(shard=home, row=None)
        rules = topology.table(real_name(table))
        there = ReadPlace(away, (number,), place.seen)
        with self._opened(there, asked, part=False) as read:
            is_there = read.reader.is_of_key(table, row_id, rules, piece.of.key)
        shard, one = (away, number) if is_there else (home, bucket)
        return ReadPlace(shard, (one, *also), place.seen)

    def _threads(self) -> ThreadPoolExecutor:
        threads = min(MOST_THREADS, AT_A_TIME * len(self._topology.shards))
        return ThreadPoolExecutor(threads, thread_name_prefix="pipeline-gather")


def _marked(rows: Any, parts: Sequence[Part], missing: dict[str, Unavailable]) -> Any:
    rows.read_info = [part.info for part in parts]
    rows.partial, rows.missing = bool(missing), missing
    return rows


def _listed(value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
