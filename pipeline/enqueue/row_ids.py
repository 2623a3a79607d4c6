"""Make row ids of blocks that Redis gave to this process or, while Redis is away, of the host's reserve.

The layout of an id, and why ids are unique, is in `pipeline.model`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from itertools import islice
from operator import length_hint

from pipeline import clock
from pipeline.bounds import WaitBudgetSpent
from pipeline.config import Topology
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import IdsUsedUp, LogUnavailable, Unavailable
from pipeline.events import Event
from pipeline.model import FIRST_SPAN, SPANS, Given, ids_of
from pipeline.oplog.shared_state import SharedState
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import ledger_queries
from pipeline.spool import IdReserve, NullSpool

#: The least and the most ids of a block. A block has twice what the one before was used for.
LEAST, MOST = 8, 1 << 16
#: The rest of a block is dropped after so long, ms: rows of two processes sort by their time, to a second.
FRESH_MS = 1000
#: A process that used no more ids in the last second in which it made any asks so often for ids of one bucket alone: of
#: 128 buckets they cost the process 110 µs and Redis 190, of one 32 and 10.
FEW = 3
#: What a host keeps of each bucket for when Redis is away.
RESERVE = 1 << 16
#: The time between two checks of the reserve, s, and the share of what a caller may wait that one may take.
RESERVE_CHECK_S, RESERVE_SHARE = 60.0, 0.3
#: The share of what a caller may wait that it waits for new ids, where the host has some in reserve: its op is still to
#: be sent.
ASK_SHARE = 0.4
#: How long one process may take to fetch a span before another fetches one too, s; and how long all wait for it, s.
SPAN_LEASE_S, SPAN_S = 2.0, 10.0
logger = logging.getLogger("pipeline.ids")


class RowIds:
    """Makes ids. Thread-safe; a fork goes on with blocks of its own.

    Args:
        log: gives the blocks.
        topology: which shard gives the spans of a bucket.
        nodes: the shards' databases.
        away: has the host's reserve, and the wait budgets: the time for which one waits until another has a block
            counts too.
    """

    def __init__(self, log: SharedState, topology: Topology, nodes: Nodes, away: RedisAway):
        self._log, self._topology, self._nodes, self._away = log, topology, nodes, away
        self._start()

    def new(self, bucket: int, now_ms: float) -> int:
        """Return a new id of a bucket.

        Args:
            now_ms: the wall clock, in ms since 1970.

        Raises:
            Unavailable: a block was due, Redis or a new span's database did not answer, and there is no spool.
            IdsUsedUp: the same, and the host's reserve has none left.
        """
        if not self._fresh_from_ms <= now_ms < self._fresh_until_ms or self._pid != os.getpid():
            self._freshen(now_ms)
        while True:
            try:
                return next(self._blocks[bucket])
            except (KeyError, StopIteration):
                self._refill(bucket, alone=self._alone > 0)

    def many(self, bucket: int, count: int, now_ms: float) -> list[int]:
        """Return new ids of a bucket, in order; see `new`.

        Args:
            bucket: the rows' bucket.
            count: how many.
            now_ms: as for `new`.
        """
        if not self._fresh_from_ms <= now_ms < self._fresh_until_ms or self._pid != os.getpid():
            self._freshen(now_ms)
        found: list[int] = []
        while True:
            found += islice(self._blocks.get(bucket, ()), count - len(found))
            if len(found) == count:
                return found
            self._refill(bucket, count)

    def follow(self, shard: str) -> None:
        """Let a shard's ids follow the clock into the next span, and give them a span after Redis lost the last one.

        Raises:
            Unavailable: Redis or the shard's primary did not answer; call again later.
        """
        given = self._log.give_ids(shard, {})
        if given.starts is None or given.span < given.due:
            self._log.give_ids(shard, {}, self._new_span(shard, given))

    def _start(self) -> None:
        """Begin, in a child anew: a fork must not go on with its parent's blocks, nor wait for its locks."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._fresh_from_ms = self._fresh_until_ms = 0.0
        self._blocks: dict[int, Iterator[int]] = {}
        self._alone = FEW  # so many more times within this second
        self._sizes: dict[int, int] = {}  # of each bucket's last block; once it was dropped, how much of it was used
        self._reserve_due_s = 0.0

    def _freshen(self, now_ms: float) -> None:
        """Drop what is left of the blocks, unless Redis is away: then they are used to the end."""
        if self._pid != os.getpid():
            self._start()
        if not self._away.open:
            used = 0
            for bucket, block in list(self._blocks.items()):
                self._sizes[bucket] -= length_hint(block)
                used += self._sizes[bucket]
            self._blocks, self._alone = {}, FEW if used <= FEW else 0
        self._fresh_from_ms, self._fresh_until_ms = now_ms, now_ms + FRESH_MS

    def _refill(self, bucket: int, least: int = LEAST, *, alone: bool = False) -> None:
        """Get new blocks: of all buckets of the shard, so that each of them costs no round trip of its own.

        A bulk call takes as many of each bucket; a process that seldom makes an id takes those of one bucket *alone*.
        """
        lock = self._lock
        self._away.wait_budgets.enter(lock)
        try:
            if length_hint(self._blocks.get(bucket, ())):
                return  # another thread's
            self._alone -= alone
            for one, counters in self._given(bucket, {bucket: least} if alone else self._wanted(bucket, least)).items():
                self._sizes[one], self._blocks[one] = len(counters), iter(ids_of(one, counters))
        finally:
            lock.release()

    def _given(self, bucket: int, wanted: dict[int, int]) -> dict[int, range]:
        away, shard = self._away, self._topology.shard_of(bucket)
        kept = self._reserved(bucket, wanted[bucket]) if away.open else None
        if kept is not None:
            return kept
        try:
            with away.wait_budgets.part(ASK_SHARE):
                given = self._asked(shard, wanted)
        except Unavailable as error:
            # with an id of the reserve the op itself finds out whether Redis is away, or was busy for a moment
            if kept := self._reserved(bucket, wanted[bucket]):
                return kept
            away.hear(error)
            return self._asked_at_last(bucket, wanted[bucket])
        self._see_to_the_reserve()
        return given

    def _wanted(self, bucket: int, least: int) -> dict[int, int]:
        """Return how many ids to fetch: twice what was used, so that a bulk load fetches ever less often."""
        buckets = self._topology.buckets_of(self._topology.shard_of(bucket))
        used = [self._sizes.get(one, 0) - length_hint(self._blocks.get(one, ())) for one in buckets]
        least = max(least, 2 * sum(used) // len(used))
        return {one: min(max(2 * n, least), MOST) for one, n in zip(buckets, used, strict=True)}

    def _asked(self, shard: str, wanted: dict[int, int]) -> dict[int, range]:
        """Take them from the log; fetch a span where it has none."""
        starts = self._log.give_ids(shard, wanted).starts
        if starts is None:
            try:
                starts = self._away.wait_budgets.aside(lambda: self._asked_with_span(shard, wanted))
            except WaitBudgetSpent as error:
                raise LogUnavailable(f"no new ids of shard {shard!r} yet: {error}", sent=False) from error
        return {bucket: range(start, start + wanted[bucket]) for bucket, start in starts.items()}

    def _asked_with_span(self, shard: str, wanted: dict[int, int]) -> dict[int, int]:
        """Let one process of all fetch a span; the others wait for it, or after a while fetch one too."""
        log, lease, began_s = self._log, f"span:{shard}", clock.mono_s()
        for _ in clock.polls(SPAN_S, first_s=0.005):
            mine = log.take_lease(lease, int(SPAN_LEASE_S * 1000)) or clock.mono_s() - began_s > SPAN_LEASE_S
            try:
                given = log.give_ids(shard, wanted)
                if given.starts is None and mine:
                    given = log.give_ids(shard, wanted, self._new_span(shard, given))
            finally:  # what one process meets, the others are not to wait for
                if mine:
                    log.release_lease(lease, "1")
            if given.starts is not None:
                return given.starts
        raise LogUnavailable(f"shard {shard!r} got no span of ids", sent=False)

    def _new_span(self, shard: str, given: Given) -> int:
        span = ledger_queries.give_span(self._nodes.primary(shard), given.span, max(given.due, FIRST_SPAN))
        if span >= SPANS:
            raise IdsUsedUp(f"shard {shard!r} has given out all of its ids")
        logger.info(Event("ids_span", shard=shard, span=span, before=given.span))
        return span

    def _reserved(self, bucket: int, most: int) -> dict[int, range] | None:
        """Take from the host's reserve; None where it has nothing."""
        try:
            return {bucket: self._away.spool.reserve.take(bucket, most)}
        except IdsUsedUp:
            return None

    def _asked_at_last(self, bucket: int, most: int) -> dict[int, range]:
        """Try once more, for as long again: a new host has no reserve, and under load other things take the time."""
        shard, wait_budgets = self._topology.shard_of(bucket), self._away.wait_budgets
        with wait_budgets.within(wait_budgets.budget()):
            try:
                return self._asked(shard, {bucket: most})
            except Unavailable as error:
                logger.warning(Event("ids_not_given", shard=shard, error=error))
        return {bucket: self._away.spool.reserve.take(bucket, most)}

    def _see_to_the_reserve(self) -> None:
        """See that the host has a reserve: each process checks once a minute, and one renews it once an hour."""
        now_s, away, spool = clock.mono_s(), self._away, self._away.spool
        if isinstance(spool, NullSpool) or now_s < self._reserve_due_s:
            return
        self._reserve_due_s = now_s + RESERVE_CHECK_S
        try:
            away.wait_budgets.aside(lambda: self._renew(spool.reserve), share=RESERVE_SHARE)
        except WaitBudgetSpent:
            logger.info(Event("ids_reserve_renewing"))

    def _renew(self, reserve: IdReserve) -> None:
        with reserve.lock().tried() as mine:
            for shard in self._topology.shards if mine else ():
                buckets = self._topology.buckets_of(shard)
                try:
                    if any(map(reserve.due, buckets[:1])):
                        reserve.keep(self._asked(shard, dict.fromkeys(buckets, RESERVE)))
                except Unavailable as error:
                    logger.warning(Event("ids_not_reserved", shard=shard, error=error))
