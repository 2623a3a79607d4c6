"""Send an op at its time: at once, with its atomic group, or after a commit."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from os import getpid
from typing import TYPE_CHECKING

from pipeline import clock
from pipeline.bounds import WaitBudget, in_all
from pipeline.config import Topology
from pipeline.enqueue.held_ops import Atomic, Chunk, Held, HeldOp, HeldOps, fill, fill_like
from pipeline.enqueue.producer import DURABLE_S
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.shipment import UNCHECKED_BYTES, OpPlace, Sends, Shipment, What, check_size, shipment_of, what_of
from pipeline.enqueue.spool_fallback import Fallback, RedisAway
from pipeline.errors import (
    BadOp,
    InDoubt,
    LogUnavailable,
    NotDurable,
    PipelineFull,
    ShardUnavailable,
    SpoolUnavailable,
    Unavailable,
    shown,
)
from pipeline.model import UPSERT, Addressed, Op, encode, head_of, id_of, id_of_new, with_id
from pipeline.model.receipt import Receipt, Receipts
from pipeline.oplog import Log
from pipeline.oplog.appends import KeyClaimed
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.oplog.shared_state import REFUSED

if TYPE_CHECKING:
    from pipeline.model.receipt import Source

DURABILITIES = ("redis", "replica", "fsync", "spooled", "applied")
#: The members of so small an atomic group are noted one by one: to count them takes its caller 3 µs.
FEW_MEMBERS = 8
#: What a counter of refused ops calls the error of their caller.
_REASONS = {PipelineFull: "full", SpoolUnavailable: "spool", ShardUnavailable: "shard", LogUnavailable: "redis"}


class Dispatch:
    """Sends ops, at their time. Threads may share it: each has groups and held ops of its own.

    Args:
        publisher: sends.
        source: who answers for the receipts.
        away: how long one call may wait for Redis, beside what its durability asks for; and the spool.
        log: knows how large an op may be, and counts.
        bell: its thread counts what was sent.
        topology: which shards apply a bucket.
    """

    budget: WaitBudget | None = None

    def __init__(
        self,
        publisher: Publisher | Fallback,
        source: Source,
        away: RedisAway,
        log: Log,
        bell: Bell | SilentBell,
        topology: Topology,
    ):
        self._publisher, self._source, self._log, self._bell = publisher, source, log, bell
        self._away, self.wait_budgets, self._topology = away, away.wait_budgets, topology
        self._here = threading.local()
        self._sends: Sends | None = None

    # taking -------------------------------------------------------------------------------------------------

    def take(self, addressed: Addressed, durability: str) -> Receipt:
        """Take an op that was built, and return its receipt."""
        bucket, op, started_s = addressed.bucket, addressed.op, clock.mono_s()
        payload = encode(op)
        if len(payload) > UNCHECKED_BYTES:
            check_size(payload, op.table, self._log, self.wait_budgets)
        here = self._here.__dict__
        if durability == "redis" and here.get("group") is None and here.get("held") is None:
            try:
                if op.idempotency_key is not None:
                    op, place = self._sent_under_key(addressed)
                else:
                    place = self._publisher.ship_one(bucket, payload)
            except Unavailable as error:
                self._raise_in_doubt(error, bucket, op, [Receipt(bucket, None, id_of(op), source=self._source)])
                raise
            # here, and not by `_count`: a call more, on the path of every request
            sends = self._sends
            if sends is None or sends.pid != getpid():
                sends = self._new_sends()
            kind, row_id, position = op.kind, place.row_id, place.position
            if row_id is None:  # else an earlier op with its key is there
                sends.single.append((bucket, kind, op.table, position is None, clock.mono_s() - started_s))
                row_id = op.id if kind != UPSERT else None
            if not sends.asked:
                sends.ask(self._bell)
            return Receipt(bucket, position, row_id, place.producer, place.seq, self._source)
        self.known_durability(durability)
        group: Atomic | None = here.get("group")
        if group is not None:
            receipt = Receipt(bucket, None, id_of(op), source=self._source)
            group.add(bucket, op, receipt, durability)
            return receipt
        if op.idempotency_key is not None and (new := id_of_new(op)) is not None:
            # its request may redirect to the row before the op is sent
            op = with_id(addressed, self._publisher.claim(bucket, op.scoped_key, new))
        receipt = Receipt(bucket, None, id_of(op), source=self._source)
        self._pass_on(HeldOp(bucket, op, durability, [receipt]))
        return receipt

    def take_again(self, addressed: Addressed, again: Receipt, durability: str) -> Receipt:
        """Take an op that may be queued already, at once, under the number of its receipt.

        Raises:
            BadOp: the receipt is of another op.
            InDoubt: it is in doubt once more.
        """
        bucket, op = addressed.bucket, addressed.op
        if op.idempotency_key is not None:  # which is as exact, and known to more
            return self.take(addressed, durability)
        if not isinstance(again, Receipt):
            raise BadOp(f"again= takes the receipt that the same call raised, not {shown(again)}")
        if not again.producer or again.bucket != bucket:
            raise BadOp(
                f"again= takes the receipt that the same call raised: this op on {op.table!r} belongs to bucket "
                f"{bucket}, the receipt to {again.bucket}; without a shard key, and with ids of the database, use "
                "idempotency_key"
            )
        numbered = {bucket: (again.producer, again.producer_seq)}
        receipt = Receipt(bucket, None, id_of(op), source=self._source)
        shipment = Shipment({bucket: (encode(op),)}, durability=self.known_durability(durability), numbered=numbered)
        try:
            place = self._publisher.ship(shipment)[bucket]
        except Unavailable as error:
            error.numbered = numbered
            self._raise_in_doubt(error, bucket, op, [receipt])
            raise
        self._follow(place, durability, [receipt])
        return receipt

    def take_many(self, made: Iterable[Addressed | Chunk], durability: str) -> Receipts:
        """Take many ops, one round trip per chunk and shard; return their receipts, each made at its first use."""
        self.known_durability(durability)
        if self.gathering:
            single = [self.take(addressed, durability) for addressed in made if not isinstance(addressed, Chunk)]
            return Receipts(single.__getitem__, len(single))
        chunks: list[Chunk] = []
        for chunk in self._chunks(made):
            chunks.append(self._sent_chunk(chunk, durability, chunks))
        return self._receipts(chunks)

    def _chunks(self, made: Iterable[Addressed | Chunk]) -> Iterator[Chunk]:
        chunk = Chunk()
        for one in made:
            if isinstance(one, Chunk):
                if len(chunk):
                    yield chunk
                    chunk = Chunk()
                for payload in one.large:
                    check_size(payload, head_of(payload)[1], self._log, self.wait_budgets)
                yield one
                continue
            payload = chunk.add(one.bucket, one.op)
            if len(payload) > UNCHECKED_BYTES:
                check_size(payload, one.op.table, self._log, self.wait_budgets)
            if chunk.full:
                yield chunk
                chunk = Chunk()
        if len(chunk):
            yield chunk

    def _receipts(self, chunks: Sequence[Chunk]) -> Receipts:
        ends = [*accumulate(map(len, chunks))]

        def receipt(row: int) -> Receipt:
            nth = bisect_right(ends, row)
            return chunks[nth].receipt(row - (ends[nth - 1] if nth else 0), self._source)

        return Receipts(receipt, ends[-1] if ends else 0)

    @property
    def gathering(self) -> bool:
        """Whether this thread's ops are not sent at once."""
        return getattr(self._here, "group", None) is not None or getattr(self._here, "held", None) is not None

    def unsent(self, table: str) -> bool:
        """Whether this thread has ops for a table that are not sent yet."""
        gathered = (getattr(self._here, "group", None), getattr(self._here, "held", None))
        return any(one is not None and one.holds(table) for one in gathered)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Gather the ops of this thread; apply them together or not at all. See the package's `atomic`."""
        if getattr(self._here, "group", None) is not None:
            yield
            return
        group = self._here.group = Atomic()
        try:
            yield
        finally:
            self._here.group = None
        if group.receipts:
            bucket, op, durability = group.sealed()
            if len(payload := encode(op)) > UNCHECKED_BYTES:
                check_size(payload, op.table, self._log, self.wait_budgets)
            self._pass_on(HeldOp(bucket, op, durability, group.receipts), payload)

    def held(self) -> Held:
        """Return an empty collection of ops to be sent later."""
        return Held(self._send_all, self._send)

    @contextmanager
    def holding(self, held: HeldOps) -> Iterator[HeldOps]:
        """Let this thread's ops go into *held* instead of being sent."""
        before = getattr(self._here, "held", None)
        self._here.held = held
        try:
            yield held
        finally:
            self._here.held = before

    def known_durability(self, durability: str) -> str:
        """Return it, if there is such a level.

        Raises:
            BadOp: there is not, or it needs the spool, which is not there.
        """
        if durability not in DURABILITIES:
            raise BadOp(f"durability is one of {', '.join(DURABILITIES)}; got {shown(durability)}")
        if durability == "spooled" and not isinstance(self._publisher, Fallback):
            raise BadOp('durability="spooled" needs the spool: set [spool] enabled = true and a path, or use "fsync"')
        return durability

    # sending ------------------------------------------------------------------------------------------------

    def send_chunk(self, chunk: Chunk, durability: str) -> Chunk:
        """Send a bulk call's chunk; its receipts can be made then."""
        places = self._ship(chunk, durability)
        if not all(place.durable for place in places.values()):
            raise NotDurable(durability, DURABLE_S, chunk.receipt(0, self._source))
        return chunk

    def _sent_chunk(self, chunk: Chunk, durability: str, before: Sequence[Chunk]) -> Chunk:
        """Send a chunk of a bulk call; where it is not taken, what is before it is queued nevertheless."""
        try:
            return self.send_chunk(chunk, durability)
        except Unavailable as error:
            self._count_refused(error, chunk.what)
            if not isinstance(error, NotDurable) and (error.numbered or before):
                there = chunk.queued(error.numbered, self._source)
                raise InDoubt(error, [*self._receipts(before), *there]) from error
            raise

    def _ship(self, chunk: Chunk, durability: str) -> Mapping[int, OpPlace]:
        started_s = clock.mono_s()
        places = self._publisher.ship(Shipment(chunk.payloads, durability=durability))
        chunk.placed(places)
        self._count(chunk.what, places, started_s)
        return places

    def _count(self, what: What, places: Mapping[int, OpPlace], started_s: float) -> None:
        """Note what was sent; see `take`, which does the same without a call."""
        sends = self._own_sends()
        sends.taken.append((what, places, clock.mono_s() - started_s))
        if not sends.asked:
            sends.ask(self._bell)

    def count(self, words: str, what: What) -> None:
        """Count ops that were not sent here; by the bell's thread, as all counting.

        Args:
            words: the first of their counters' names, such as `enqueued outbox`; see `oplog/shared_state`.
            what: how many there are.
        """
        sends = self._own_sends()
        sends.noted.append((words, what))
        if not sends.asked:
            sends.ask(self._bell)

    def _count_refused(self, error: Unavailable, what: What) -> None:
        """Count ops whose caller gets an error: those that may be queued nevertheless by a reason of their own."""
        if isinstance(error, NotDurable):
            return  # it is queued
        reason = next((name for kind, name in _REASONS.items() if isinstance(error, kind)), "other")
        for one, n in what.items():
            self.count(f"{REFUSED} {'doubt' if one[0] in error.numbered else reason}", {one: n})

    def _own_sends(self) -> Sends:
        sends = self._sends
        return self._new_sends() if sends is None or sends.pid != getpid() else sends

    def _new_sends(self) -> Sends:
        """Count anew in a new process; what its parent has noted is the parent's."""
        self._sends = Sends(self._log, self._topology, self._away.spool)
        return self._sends

    def _raise_in_doubt(self, error: Unavailable, bucket: int, op: Op, receipts: list[Receipt]) -> None:
        """Count an op that was not taken; raise with numbered receipts, or return where it is certainly not queued.

        Raises:
            InDoubt: it may be.
        """
        self._count_refused(error, what_of(bucket, op))
        if bucket in error.numbered and not isinstance(error, NotDurable):
            for receipt in receipts:
                receipt.producer, receipt.producer_seq = error.numbered[bucket]
            raise InDoubt(error, receipts) from error

    def _sent_under_key(self, addressed: Addressed) -> tuple[Op, OpPlace]:
        """Send an op whose id no caller has seen; return the op with the id that its key has claimed."""
        bucket, op = addressed.bucket, addressed.op
        try:
            return op, self._publisher.ship(shipment_of(bucket, op, "redis"))[bucket]
        except KeyClaimed as reserved:
            op = with_id(addressed, reserved.row_id)
        return op, self._sent(bucket, op, "redis")

    def _sent(self, bucket: int, op: Op, durability: str, payload: bytes = b"") -> OpPlace:
        """Send an op whose id a caller may have seen: the id is final. *payload*: the encoded op, where it is known."""
        if durability == "redis" and op.idempotency_key is None:
            return self._publisher.ship_one(bucket, payload or encode(op))
        shipment = shipment_of(bucket, op, durability)
        try:
            return self._publisher.ship(shipment)[bucket]
        except KeyClaimed:
            # Redis, or the spool, was away when one of two ids was given out. The shard takes the first op with that
            # key
            return self._publisher.ship(Shipment(shipment.runs, durability=durability))[bucket]

    def _pass_on(self, entry: HeldOp, payload: bytes = b"") -> None:
        held: HeldOps | None = getattr(self._here, "held", None)
        if held is not None:
            held.add(entry)
        else:
            self._send(entry, payload)

    @in_all
    def _send(self, entry: HeldOp, payload: bytes = b"") -> None:
        bucket, op, durability, receipts = entry
        started_s = clock.mono_s()
        try:
            place = self._sent(bucket, op, durability, payload)
        except Unavailable as error:
            self._raise_in_doubt(error, bucket, op, receipts)
            raise
        if len(op.ops) > FEW_MEMBERS or place.row_id is not None:
            self._count(what_of(bucket, op), {bucket: place}, started_s)
        else:  # as `take` does
            sends = self._own_sends()
            what = tuple([(one.kind, one.table) for one in op.ops]) or op.kind
            sends.single.append((bucket, what, op.table, place.position is None, clock.mono_s() - started_s))
            if not sends.asked:
                sends.ask(self._bell)
        self._follow(place, durability, receipts)

    def _follow(self, place: OpPlace, durability: str, receipts: list[Receipt]) -> None:
        """Note where an op is, and see that it is as durable as its caller wants."""
        for receipt in receipts:
            fill(receipt, place)
        if not place.durable:
            raise NotDurable(durability, DURABLE_S, receipts[0])
        if durability == "applied":
            with self.wait_budgets.within(None):
                receipts[0].wait(DURABLE_S)

    @in_all
    def _send_all(self, entries: list[HeldOp]) -> None:
        """Send entries that may share round trips."""
        if len(entries) == 1:
            self._send(entries[0])
            return
        start = 0
        while start < len(entries):
            chunk = Chunk()
            for entry in islice(entries, start, None):
                chunk.add(entry.bucket, entry.op)
                if chunk.full:
                    break
            part = entries[start : start + len(chunk)]
            try:
                self._ship(chunk, "redis")
            except Unavailable as error:
                self._count_refused(error, chunk.what)
                there = chunk.queued(error.numbered, self._source)
                for entry, made in zip(part, there, strict=True):
                    fill_like(made, entry.receipts)
                if error.numbered or start:
                    given = [one for entry in entries for one in entry.receipts]
                    raise InDoubt(error, [one if one.sent else None for one in given]) from error
                raise
            for nth, entry in enumerate(part):
                fill_like(chunk.receipt(nth, self._source), entry.receipts)
            start += len(chunk)
