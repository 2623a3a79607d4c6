"""Follow ops: what became of a receipt, and waiting until it is applied. The databases decide; Redis only hints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.enqueue.buckets import follow_noted, where
from pipeline.enqueue.publisher import Publisher
from pipeline.errors import LogUnavailable, Lost, PipelineError, Rejected, ShardUnavailable, Unavailable, WaitTimeout
from pipeline.model import START, Position
from pipeline.model.receipt import Receipt, Seal
from pipeline.model.wait_reason import WaitReason, reasons_of
from pipeline.oplog import Log
from pipeline.shard import NodeSession
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import GONE, LENT, MOVED, OWNED, STOPPED, ledger_queries, moves
from pipeline.shard.records.ledger_queries import Fate
from pipeline.shard.records.set_aside import GIVEN_UP
from pipeline.shard.records.stops import stop_reasons
from pipeline.spool import NullSpool, Spool

#: A shard forgets producers it has not heard of for so long; an older receipt of another epoch has no status.
REMEMBERED_S = 7 * 86_400
#: A waiter asks the database at least this often, whatever Redis says, s.
STATUS_S = 0.25
#: The seq of a position that no log reaches.
FAR = 2**52
#: What a receipt calls a state of an op that was set aside, where it has another word.
_SHOWN = {"waiting": "parked"}
_FINAL = ("applied", "durable", "replayed", "rejected", "dropped", "lost")
#: What shards say of one op of a reference table, the word that counts most first.
_WORST = ("lost", "rejected", "dropped", "parked", "queued", "replayed")


class Follower:
    """Answers for receipts, which its `seal` signs."""

    def __init__(
        self, topology: Topology, nodes: Nodes, log: Log, spool: Spool | NullSpool, publisher: Publisher, seal: Seal
    ):
        self.seal = seal
        self._topology, self._nodes, self._log, self._spool = topology, nodes, log, spool
        self._publisher = publisher
        #: The buckets of which a shard has said that one of their keys is away, or on its way.
        self._lent = set[int]()

    def status(self, receipt: Receipt) -> str:
        """Return spooled, queued, applied, durable, rejected, parked, replayed, dropped or lost.

        Raises:
            ShardUnavailable: the shard's primary does not answer: unknown is never taken for good.
        """
        if self._spooled(receipt):
            return "spooled"
        state = self._state(receipt)
        return "durable" if state == "applied" and self._on_all_replicas(receipt) else state

    def wait(self, receipt: Receipt, timeout_s: float) -> str:
        """Wait until an op is applied; see `Receipt.wait`."""
        asked_at, state = 0.0, "queued"
        for deadline in clock.polls(timeout_s):
            if self._hinted(receipt) or deadline.passed or clock.mono_s() - asked_at > STATUS_S:
                try:
                    asked_at, state = clock.mono_s(), self._state(receipt)
                except ShardUnavailable:
                    # a primary that died is followed within seconds; only the last word counts
                    if deadline.passed:
                        raise
            if state in _FINAL:
                return self._told(receipt, state)
        if self._spooled(receipt):
            state = "spooled"
        reason = self.why(receipt)
        what = f"the op at {receipt.bucket}:{receipt.position}"
        raise WaitTimeout(what, timeout_s, state, "" if reason is None else reason.clause())

    def why(self, receipt: Receipt) -> WaitReason | None:
        """Return why an op waits; None if it waits no more.

        Args:
            receipt: of the op.
        """
        shard = self._topology.shards_of(receipt.bucket)[0]
        if self._spooled(receipt):
            return WaitReason("spooled", shard, "spool")
        try:
            for shard, one in self._places(receipt):
                if (reason := self._why_queued(shard, one)) is not None:
                    return reason
        except LogUnavailable as error:
            return WaitReason("redis-away", shard, shard, str(error))
        except ShardUnavailable as error:
            return WaitReason("primary-away", shard, shard, str(error))
        return None

    def wait_all(self, receipts: Iterable[Receipt], timeout_s: float) -> None:
        """Wait until all are applied; asks once per producer and bucket, for its last op.

        Raises:
            Rejected: one of them was refused. WaitTimeout, Lost: as for one receipt.
        """
        last: dict[tuple[int, int], Receipt] = {}
        every: list[tuple[int, int, int]] = []
        for receipt in receipts:
            every.append((receipt.bucket, receipt.producer, receipt.producer_seq))
            key = (receipt.bucket, receipt.producer)
            if key not in last or last[key].producer_seq < receipt.producer_seq:
                last[key] = receipt
        deadline = clock.Deadline(timeout_s)
        for receipt in last.values():
            self.wait(receipt, deadline.left_s)
        numbers: dict[str, dict[int, int]] = {}
        for bucket, one in {receipt.bucket: receipt for receipt in last.values()}.items():
            for shard, there in self._places(one):
                numbers.setdefault(shard, {})[bucket] = there.bucket
        for shard, named in numbers.items():
            session, ops = self._nodes.primary(shard), [(named[b], p, seq) for b, p, seq in every if b in named]
            self._none_aside(session, ops, deadline)
            if lost := ledger_queries.lost(session, ops):
                raise Lost(f"{len(lost)} of {len(every)} ops were lost by Redis before they were applied")

    def barrier(self, table: str, timeout_s: float) -> None:
        """Wait until all that is in the logs of a table's buckets now is applied.

        Raises:
            WaitTimeout: it was not, in time.
        """
        rules, topology = self._topology.table(table), self._topology
        tails = self._log.tails((topology.reference_bucket,) if rules.reference else range(topology.buckets))
        behind = {*tails}
        for _ in clock.polls(timeout_s, first_s=0.005):
            ahead: dict[str, set[int]] = {}
            for bucket in behind:
                for shard in self._appliers(bucket):
                    ahead.setdefault(shard, set()).add(bucket)
            behind = set().union(*(self._behind(shard, own, tails) for shard, own in ahead.items()))
            if not behind:
                return
        raise WaitTimeout(f"the barrier of {table!r}: {len(behind)} buckets", timeout_s, "queued")

    def row_id(self, receipt: Receipt) -> int | None:
        """Return the id that the database gave to an op's row; None until it is applied."""
        found = (
            ledger_queries.row_id(self._nodes.primary(shard), one.bucket, one.producer, one.producer_seq)
            for shard, one in self._places(receipt)
        )
        return next((row for row in found if row is not None), None)

    def _spooled(self, receipt: Receipt) -> bool:
        sequence = (receipt.bucket, receipt.producer, receipt.producer_seq)
        return receipt.position is None and self._spool.holds(*sequence)

    # parts --------------------------------------------------------------------------------------------------

    def _state(self, receipt: Receipt) -> str:
        """Return the state on the shard that is furthest behind (a reference table's op is applied by all).

        So is an op of a bucket one of whose keys is away, as far as anybody can say without the op: by both.
        """
        states = [self._state_on(shard, one) for shard, one in self._places(receipt)]
        return next((state for state in _WORST if state in states), "applied")

    def _appliers(self, bucket: int) -> tuple[str, ...]:
        topology = self._topology
        return topology.shards if bucket == topology.reference_bucket else (topology.shard_of(bucket),)

    def _places(self, receipt: Receipt) -> Iterator[tuple[str, Receipt]]:
        """Yield the shards that apply an op, each with the receipt by the number that counts there."""
        bucket, topology = receipt.bucket, self._topology
        for shard in self._appliers(bucket):
            yield shard, receipt
        # what the bucket's shard has just said counts, whatever the map says
        if bucket in self._lent or (topology.split and bucket in topology.split):
            shard = topology.shard_of(bucket)
            legs = moves.legs(self._nodes.primary(shard))
            other, piece = moves.lent_by(shard, legs).get(bucket, ("", 0))
            if other and legs[piece].apart:
                yield other, receipt.elsewhere(piece)

    def _state_on(self, shard: str, receipt: Receipt) -> str:
        fate = self._fate(shard, receipt)
        if not self._accounted(fate, receipt) and (under := self._over(fate, receipt)):
            # what is known here is written down, and is final from then on
            self._publisher.judge({(log_number(receipt.bucket), receipt.producer): (receipt.producer_seq, under)})
            fate = self._fate(shard, receipt)
        if fate.reject is not None:
            return _SHOWN.get(fate.reject[0], fate.reject[0])
        if fate.lost:
            return "lost"
        return "applied" if self._reached(fate, receipt) else "queued"

    def _accounted(self, fate: Fate, receipt: Receipt) -> bool:
        return fate.reject is not None or fate.lost or self._reached(fate, receipt)

    def _over(self, fate: Fate, receipt: Receipt) -> int:
        """Return the epoch under which an op was acknowledged if it is over, so that the shard can judge the op; or 0.

        Raises:
            PipelineError: nobody remembers the op.
        """
        if receipt.position is None or fate.mark is None:
            return 0
        log = log_number(receipt.bucket)
        under, scope = receipt.position.epoch, self._publisher.scope_of(log)
        if fate.mark.epoch > under:
            if fate.applied_seq is None and not _is_young(under):
                raise PipelineError("this receipt is older than a week; its shard no longer remembers its producer")
            return under
        try:
            if fate.mark >= receipt.position:  # and not applied: the log was cut, and gave the position out again
                self._log.audit(scope.name, {log: Position(under, FAR)})
                self._publisher.epoch_of(scope)
            epoch, current, _ = self._log.epoch(scope.name)
        except LogUnavailable:
            return 0
        return under if current and epoch > under else 0

    def _why_queued(self, shard: str, receipt: Receipt) -> WaitReason | None:
        bucket, place, leg = receipt.bucket, receipt.position, None
        fate = _fate_on(self._nodes.primary(shard), receipt)
        # this process may have the map of before
        if bucket < FIRST_PIECE and fate.state is not None and fate.state not in OWNED:
            shard, leg = where(self._nodes, bucket, shard)
            fate = _fate_on(self._nodes.primary(shard), receipt)
        if fate.reject is not None and fate.reject[0] in ("parked", "waiting"):
            return self._why_aside(shard, receipt, *fate.reject[:2])
        mark, noted = fate.mark, self._log.waits(shard)
        if place is None or mark is None or mark >= place:
            return None
        if leg is not None:
            return replace(moves.moving_reasons({bucket: leg})[0], buckets=0)
        # a table that is stopped counts where the bucket is noted to wait for it
        stops = [stop for stop in stop_reasons(self._nodes.primary(shard), shard) if stop.scope == shard]
        if reasons := reasons_of(shard, {bucket: mark}, stops, noted.notes, noted.alive):
            return replace(reasons[0], buckets=0)
        after_mark, after_op = (self._log.queued({bucket: position})[bucket] for position in (mark, place))
        return WaitReason("queued", shard, shard, f"{max(0, after_mark - after_op - 1):,} ops in its bucket")

    def _why_aside(self, shard: str, receipt: Receipt, state: str, reason: str) -> WaitReason:
        session = self._nodes.primary(shard)
        table = ledger_queries.table_aside(session, receipt.bucket, receipt.producer, receipt.producer_seq)
        for stop in stop_reasons(session, shard):
            if stop.scope == table:
                return stop
        return WaitReason(state, shard, table, reason.removeprefix("waits behind the op at "))

    def _fate(self, shard: str, receipt: Receipt) -> Fate:
        """Return what a shard knows of an op; where the bucket has left it, what the shard knows that has it now."""
        found = _fate_on(self._nodes.primary(shard), receipt)
        if receipt.bucket >= FIRST_PIECE:
            return found
        if found.state in (MOVED, GONE):
            follow_noted(self._log, self._topology)
            owner = self._topology.shard_of(receipt.bucket)
            found = found if owner == shard else _fate_on(self._nodes.primary(owner), receipt)
        if found.state in (LENT, STOPPED):
            self._lent.add(receipt.bucket)
        else:
            self._lent.discard(receipt.bucket)
        return found

    def _reached(self, fate: Fate, receipt: Receipt) -> bool:
        """Whether an op, or its refusal, is committed on a node; one that was spooled is known by its sequence only."""
        if receipt.position is not None:
            if fate.applied_seq is None and _is_young(receipt.position.epoch):
                return False  # its producer's row cannot have expired: there was none
            return fate.reached(receipt.position, receipt.producer_seq)
        return fate.applied_seq is not None and fate.applied_seq >= receipt.producer_seq

    def _told(self, receipt: Receipt, state: str) -> str:
        if state == "lost":
            raise Lost(f"the op at {receipt.bucket}:{receipt.position} was lost by Redis before it was applied")
        if state in ("rejected", "dropped"):
            _, reason, code = self._reject(receipt)
            by_hand = state == "dropped" and not reason.startswith(GIVEN_UP)
            by = " was dropped by an operator after it" if by_hand else ""
            raise Rejected(f"the op at {receipt.bucket}:{receipt.position}{by}", reason, code)
        return state

    def _reject(self, receipt: Receipt) -> tuple[str, str, int | None]:
        """Return state, reason and code of an op that was set aside."""
        told = (self._fate(shard, one).reject for shard, one in self._places(receipt))
        aside = [reject for reject in told if reject is not None]
        return min(aside, key=lambda reject: _WORST.index(_SHOWN.get(reject[0], reject[0])), default=("", "", None))

    def _none_aside(self, session: NodeSession, ops: Sequence[tuple[int, int, int]], deadline: clock.Deadline) -> None:
        """Raise if one of *ops* was refused or dropped, or is still parked when the time is over."""
        parked = []
        for poll in clock.polls(deadline.left_s):
            aside = ledger_queries.aside(session, ops)
            if refused := [(reason, code) for state, reason, code in aside if state in ("rejected", "dropped")]:
                raise Rejected(f"{len(refused)} of {len(ops)} ops; the first", *refused[0])
            parked = [reason for state, reason, _ in aside if state != "replayed"]
            if not parked or poll.passed:
                break
        if parked:
            raise WaitTimeout(f"{len(parked)} of {len(ops)} ops", deadline.waited_s, "parked", parked[0])

    def _on_all_replicas(self, receipt: Receipt) -> bool:
        """Whether every replica that is fit has the op. One that does not answer counts as one that has it not."""
        for shard, there in self._places(receipt):
            counting = [one for one in self._nodes.replicas(shard) if not self._nodes.unfit(one.node)]
            if not counting:
                return False
            try:
                if not all(self._reached(_fate_on(session, there), there) for session in counting):
                    return False
            except PipelineError:
                return False
        return True

    def _hinted(self, receipt: Receipt) -> bool:
        """Whether what Redis has of the watermarks is worth asking the databases for."""
        target = self._topology.placement.moves.get(receipt.bucket, ("", ""))[1]  # may go on with the bucket already
        topology, bucket = self._topology, receipt.bucket
        told = [(shard, topology.mark_of(shard, bucket)) for shard in topology.shards_of(bucket)]
        return all(self._hint(*one, receipt) for one in told) or bool(target and self._hint(target, bucket, receipt))

    def _hint(self, shard: str, number: int, receipt: Receipt) -> bool:
        if receipt.position is None:
            return True
        try:
            mark = self._log.mark(shard, number)
        except Unavailable:
            return False
        return mark is not None and mark >= receipt.position

    def _behind(self, shard: str, buckets: set[int], tails: Mapping[int, Position]) -> set[int]:
        """Return the buckets of which a shard has not applied all; hear where those have gone that it has no more."""
        found = ledger_queries.marks_of(self._nodes.primary(shard), buckets)
        if any(mark.state in (MOVED, GONE) for mark in found.values()):
            follow_noted(self._log, self._topology)
        if missing := buckets - found.keys():
            raise ShardUnavailable(shard, f"it has no watermark of bucket {min(missing)}: run pipeline migrate")
        behind = {bucket for bucket in buckets if found[bucket].position < tails[bucket]}
        if lent := [bucket for bucket in buckets - behind if found[bucket].state in (LENT, STOPPED)]:
            behind |= self._keys_behind(shard, lent, tails)
        return behind

    def _keys_behind(self, shard: str, lent: Collection[int], tails: Mapping[int, Position]) -> set[int]:
        """Return those of some buckets whose key, which is away, is behind the end of their log."""
        legs, behind = moves.legs(self._nodes.primary(shard)), set[int]()
        for bucket, (other, piece) in moves.lent_by(shard, legs).items():
            if bucket in lent and legs[piece].apart:
                found = ledger_queries.marks_of(self._nodes.primary(other), [piece])
                behind |= {bucket} if piece not in found or found[piece].position < tails[bucket] else set()
        return behind


def _is_young(epoch: int) -> bool:
    """Whether a shard remembers all producers of an epoch: an epoch is the time of its beginning, or later."""
    return clock.wall_ms() / 1000 - epoch <= REMEMBERED_S


def _fate_on(session: NodeSession, receipt: Receipt) -> Fate:
    position = receipt.position or START
    return ledger_queries.fate(session, receipt.bucket, position, receipt.producer, receipt.producer_seq)
