"""Replay or drop ops that were set aside, with everything that waits behind them, in order and exactly once.

Invariant: a replay is a transaction that holds the bucket's watermark, as an apply transaction does. The rows that it
writes, those that are held from then on and the state of each op are committed together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from pipeline import clock
from pipeline.apply.batch import FactBook
from pipeline.apply.executor import ConstraintsChanged, Executor, SchemaBehind
from pipeline.apply.grouping import Item, grouped
from pipeline.apply.held_rows import HeldRows
from pipeline.apply.misfits import misfit
from pipeline.apply.pace import Lessons
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import NewerOp, NotAnOp, ShardUnavailable, Unavailable
from pipeline.model.op import Op, Position, decode
from pipeline.oplog.contract import Entries
from pipeline.shard import actions
from pipeline.shard.driver_errors import Fault, fault_of, is_driver_error, sentence_of
from pipeline.shard.records import ledger, replays
from pipeline.shard.records.ledger import Reject
from pipeline.shard.records.replays import DROPPED, REPLAYED, Aside, Place
from pipeline.shard.records.set_aside import REJECTED
from pipeline.shard.records.stops import stopped_tables
from pipeline.shard.session import NodeSession

#: How often one batch is tried: a deadlock or a lock that an apply transaction holds passes.
TRIES = 5
_RETRIED = (Fault.TRANSIENT, Fault.LOCKED, Fault.OVERTIME)


class Replayed(NamedTuple):
    """What one transaction of a replay did: how many ops it settled, and what it left.

    Attributes:
        replayed, dropped: ops that are settled.
        refused: ops that the database refused, once more or for the first time.
        parked: ops that still wait behind another.
        heads: of the ops that were chosen, how many this transaction took.
    """

    replayed: int
    dropped: int
    refused: int
    parked: int
    heads: int


class Replay:
    """Replays one shard's ops.

    Args:
        session: of the shard's primary.
        log: has the schemas.
        settings: what one transaction may take.
        tables: what the configuration says of tables, by name.
        despite: a table of which ops are replayed although it is stopped.
    """

    def __init__(
        self,
        session: NodeSession,
        log: Entries,
        settings: ApplySettings,
        tables: Mapping[str, TableSettings],
        despite: str = "",
    ):
        self._despite, self._stopped = despite, set[str]()
        self._session, self._settings, self._tables = session, settings, tables
        self._facts = FactBook(session.node, session, log)

    def run(self, chosen: Mapping[int, Iterable[Position]], who: str, *, drop: bool = False) -> Iterator[Replayed]:
        """Replay ops and what waits behind them; each transaction is committed when its result is yielded.

        A run that is cut short leaves the first ops that it has not come to *waiting*; the next run may choose them.

        Args:
            chosen: the positions, by bucket.
            who: for the record of actions.
            drop: give the ops up instead, and replay what waits behind them.

        Raises:
            Unavailable: the shard does not answer; what was yielded is done.
        """
        heads = {(bucket, position) for bucket, own in chosen.items() for position in own}
        todo = {bucket: set(own) for bucket, own in chosen.items()}
        while todo:
            taken, result, untried = self._with_retries(todo, heads, who, drop)
            for bucket, position in taken:
                todo[bucket].discard(position)
            for bucket, position in untried:
                todo[bucket].add(position)
            todo = {bucket: own for bucket, own in todo.items() if own}
            yield result

    def _with_retries(
        self, todo: Mapping[int, Set[Position]], heads: Set[Place], who: str, drop: bool
    ) -> tuple[Sequence[Place], Replayed, Sequence[Place]]:
        attempt, blocked = 1, dict[str, str]()
        while True:
            try:
                with self._session.transaction():
                    return self._transaction(todo, heads, who, drop, blocked)
            except SchemaBehind as error:  # each time another schema is left out: no try is used up
                self._facts.forget()
                blocked[error.schema] = str(error)
                continue
            except ConstraintsChanged as error:
                self._facts.forget()
                failure: Exception = error
            except Unavailable:
                raise
            except Exception as error:
                if not is_driver_error(error) or fault_of(error) not in _RETRIED:
                    raise
                failure = error
            if attempt == TRIES:
                raise ShardUnavailable(self._session.node, sentence_of(failure)) from failure
            clock.sleep_s(clock.backoff_s(attempt, first_s=0.01, most_s=0.2))
            attempt += 1

    def _transaction(
        self, todo: Mapping[int, Set[Position]], heads: Set[Place], who: str, drop: bool, blocked: Mapping[str, str]
    ) -> tuple[Sequence[Place], Replayed, Sequence[Place]]:
        session = self._session
        places = self._places(todo)
        ops, gone = replays.take(session, list(places), self._settings.max_bytes)
        dropped = {op.place for op in ops if drop and op.place in heads}
        left = self._execute(ops, places, dropped, blocked)
        unsettled = {(one.entry.bucket, one.entry.position): one.state for one in left}
        replayed = [op.place for op in ops if op.place not in unsettled.keys() | dropped]
        rows = {(op.entry.bucket, key) for op in ops for key in places[op.place]}
        untried = replays.settle(session, ops, rows, {REPLAYED: replayed, DROPPED: dropped}, left)
        acted = {op.place: unsettled.get(op.place, DROPPED if drop else REPLAYED) for op in ops if op.place in heads}
        actions.note_actions(session, who, "drop" if drop else "replay", acted)
        refused = sum(state == REJECTED for state in unsettled.values())
        result = Replayed(len(replayed), len(dropped), refused, len(left) - refused, len(acted) + len(gone))
        return [*(op.place for op in ops), *gone], result, untried

    def _places(self, todo: Mapping[int, Set[Position]]) -> dict[Place, frozenset[str]]:
        """Lock some buckets; return the places of the ops to take, in order within each bucket, and their row keys."""
        buckets = sorted(todo)[: self._settings.buckets]
        replays.lock_buckets(self._session, buckets)
        places: dict[Place, frozenset[str]] = {}
        for bucket in buckets:
            if (room := self._settings.max_rows - len(places)) > 0:
                places |= replays.behind(self._session, bucket, sorted(todo[bucket]), room)
        return places

    def _execute(
        self,
        ops: Sequence[Aside],
        keys: Mapping[Place, frozenset[str]],
        dropped: Set[Place],
        blocked: Mapping[str, str],
    ) -> list[Reject]:
        """Execute ops but for the dropped; return those that stay set aside: refused, parked, or not known yet."""
        session, left = self._session, list[Reject]()
        self._stopped = stopped_tables(session) - {self._despite}
        items, late = list[Item](), dict[Place, tuple[Item, str]]()
        for op in (op for op in ops if op.place not in dropped):
            try:
                item = Item(op.entry, decode(op.entry.payload))
            except (NotAnOp, NewerOp):
                left.append(Reject(op.entry, op.table, op.row_key, op.code, op.reason, op.state))
                continue
            if why := self._why_not(item.op, blocked):
                late[op.place] = (item, why)
            elif misfit(item.op, self._facts.known):
                left.append(Reject(op.entry, op.table, op.row_key, op.code, op.reason, op.state))
            else:
                items.append(item)
        rows = HeldRows(self._facts.known, self._tables, None)
        rows.read(session, items, without={op.place for op in ops})
        left += [rows.wait(item, keys[place], why) for place, (item, why) in late.items()]
        executor = Executor(session, self._facts.known, rows, lambda name: None, Lessons(), last_try=True)
        executor.run(grouped(_by_time(items), self._facts.known))
        if executor.ids:
            ledger.keep_ids(session, executor.ids)
        return left + executor.rejects

    def _why_not(self, op: Op, blocked: Mapping[str, str]) -> str:
        """Return why an op cannot be executed yet, or the empty string."""
        for one in op.named:
            if one.table in self._stopped:
                return f"its table {one.table} was stopped"
            if one.schema in blocked:
                return blocked[one.schema]
            if not self._facts.learn(one.schema):
                return f"schema {one.schema} of table {one.table} is not known here"
        return ""


def _by_time(items: Iterable[Item]) -> Iterable[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    A row may refer to a row of another bucket, which was then made before.
    """
    buckets: dict[int, list[Item]] = {}
    for item in items:
        buckets.setdefault(item.entry.bucket, []).append(item)
    return heapq.merge(*buckets.values(), key=lambda item: item.op.at_ms)
