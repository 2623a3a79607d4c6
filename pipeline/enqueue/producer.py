"""Send ops as one producer, in a dense sequence per bucket; keep in mind what was acknowledged until shards have it.

Keep in mind what was acknowledged to this process, until every shard has it.
What was acknowledged comes in question when its epoch is over: Redis is another server, or has forgotten a part. Then
the shards judge it, see `Authority.settle`. A thread does it, since the process may send nothing more. The sender that
met the failure may be gone by then: what was acknowledged to it stays in mind.

Used by one thread at a time, so that its ops reach a log in the order of its sequence. After a failure whose outcome
is unknown a producer is thrown away, never used on: its next sequence number could hide the op in doubt.

`resend` sends again what another has numbered: an outbox, the spool. To send an op twice is harmless. The caller gives
of each bucket all that it still holds: what is below has been sent before. The log drops what it has seen, and so does
the shard. What the log has lost of what is below leaves a hole in the producer's sequence. The worker that applies the
op behind the hole knows what is missing, and records it by name.

A producer that has sent nothing to a bucket for a day must not go on there: log and shard may have forgotten it. The
caller takes a new number then.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline import clock
from pipeline.config import Topology
from pipeline.enqueue.epochs import Authority, EpochCache
from pipeline.enqueue.shipment import Acked, OpPlace, Sender, Shipment, parse_claim
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import LogUnavailable, PipelineError
from pipeline.events import Event
from pipeline.model import Position, new_producer
from pipeline.model.fingerprint import Fingerprint
from pipeline.oplog.appends import EVERYWHERE, HELD, HOLE, Append, Appended, Appends, Line, Scope, scopes_of

#: A process asks whether an epoch is over at this interval, s.
LOOK_S = 5.0
logger = logging.getLogger("pipeline.losses")
#: A producer that is older ends, and another begins: Redis forgets its sequences after two days, a shard after seven.
FRESH_S = 86_400
#: How long the durabilities beyond `redis` wait, s.
DURABLE_S = 5.0
_NONE: Acked = (0, 0)
#: Rounds of one call: the first, one behind an overlap, one behind a hole, and one in case others send too.
ROUNDS = 4
#: How often one call begins anew under another epoch.
EPOCHS = 3


class Acknowledged:
    """What was acknowledged to one process. Thread-safe; after a fork the child starts with nothing in mind.

    Args:
        authority: raises epochs, and judges what the log lost.
        away: has the wait budgets, since raising an epoch asks databases; and the spool.

    Attributes:
        scopes: all scopes by name.
        topology: says which scope a bucket is of.
    """

    def __init__(self, log: Appends, topology: Topology, authority: Authority, away: RedisAway):
        self._log, self._authority, self.away = log, authority, away
        self.scopes = scopes_of(topology.shards)
        self._reference = self.scopes[EVERYWHERE]
        self.topology = topology
        self._epochs = EpochCache(log, authority, away.wait_budgets)
        self._watching: threading.Thread | None = None
        self._start()

    @property
    def deployment(self) -> Fingerprint | None:
        """The deployment's fingerprint, as it was compared last; None: it was not yet."""
        return self._authority.deployment

    def admit(self, tables: Collection[str], scope: str = "") -> bool:
        """See that it is noted how tables are spread, before their first op; see `EpochCache.admit`."""
        return self._epochs.admit(tables, scope)

    def scope_of(self, bucket: int) -> Scope:
        """Return the scope of a bucket's log."""
        return self.scopes[self.topology.owners[bucket]]

    def remember(self, producer: int, reached: Mapping[int, tuple[int, Position]]) -> None:
        """Keep in mind what `resend` has sent and nobody holds any more: this process has it named if it is lost.

        Args:
            producer: the number that the ops have.
            reached: of each bucket, the last sequence and its position.
        """
        self._acked.append((producer, {bucket: (seq, at.epoch) for bucket, (seq, at) in reached.items() if at.epoch}))
        self._keep_watch()

    def settle(self) -> bool:
        """Have judged what was acknowledged to this process; return whether nothing is in question any more.

        What was acknowledged is in mind until every shard of its bucket has it. It comes in question when its epoch is
        over: Redis is another server, or has forgotten a part.
        """
        self._begin_in_child()
        with self._settling:
            learnt = self._learn_epochs()
            self._end_stale()
            while self._acked:
                producer, acked = self._acked.popleft()
                for bucket, one in acked.items():
                    self._in_mind[bucket, producer] = max(one, self._in_mind.get((bucket, producer), one))
            for pair in self.judge(self._in_mind):
                del self._in_mind[pair]
            known = self._epochs.last
            over = (under < known.get(self.topology.owners[pair[0]], 0) for pair, (_, under) in self._in_mind.items())
            self._settled = learnt and not any(over)
            return self._settled

    def judge(self, acked: Mapping[Sender, Acked]) -> set[Sender]:
        """Have the shards judge what was acknowledged, as far as they can now; see `Authority.settle`.

        Args:
            acked: of each bucket and producer the last sequence, and the epoch under which it was acknowledged.

        Returns:
            What every shard of its bucket has: it is applied, set aside, or recorded as lost.
        """
        shares: dict[Scope, dict[Sender, Acked]] = {}
        done = set[Sender]()
        try:
            for (bucket, producer), one in acked.items():
                if not self.away.spool.keeps(bucket, producer, one[0]):  # else it is sent again
                    shares.setdefault(self.scope_of(bucket), {})[bucket, producer] = one
            for scope, share in shares.items():
                epoch, current, _ = self._log.epoch(scope.name)
                done |= self._authority.settle(scope, epoch if current else 0, share)
        except PipelineError as error:
            logger.warning(Event("losses_judged_later", error=error))
        return done

    def close(self) -> None:
        """Name what is known to be lost, and end the thread."""
        self._begin_in_child()
        if not self._settled:
            self.settle()
        self._watching = None
        self._look.set()

    # parts --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin, in a child anew: a fork must not wait for its parent's locks."""
        self._acked: deque[tuple[int, dict[int, Acked]]] = deque()
        self._in_mind: dict[Sender, Acked] = {}
        self._settling, self._look = threading.Lock(), threading.Event()
        self._settled, self._watching = True, None
        self._epochs.start()
        self._pid = os.getpid()

    def _begin_in_child(self) -> None:
        if self._pid != os.getpid():
            self._start()

    def _question(self) -> None:
        """Note that an epoch is over; the thread does the rest."""
        self._settled = False
        self._look.set()

    def _end_stale(self) -> None:
        """Give up what is kept under an epoch that is over, so that it can be judged."""

    def _learn_epochs(self) -> bool:
        """Learn the epochs of all scopes that were sent to; whether all are known."""
        try:
            for name in list(self._epochs.last):
                self._epochs.asked(self.scopes[name])
        except PipelineError as error:
            logger.warning(Event("losses_not_known", error=error))
            return False
        return True

    def _keep_watch(self) -> None:
        """Let a thread settle what is acknowledged to this process, which may send nothing more."""
        if self._watching is None or not self._watching.is_alive():
            self._watching = threading.Thread(target=self._watch, name="pipeline-losses", daemon=True)
            self._watching.start()

    def _settled_safely(self) -> bool:
        try:
            return self.settle()
        except Exception as error:  # the outermost loop: the thread goes on
            logger.warning(Event("losses_not_judged", error=error))
            return False

    def _watch(self) -> None:
        failures, look = 0, self._look
        while self._watching is threading.current_thread():
            look.wait(clock.backoff_s(failures, most_s=LOOK_S) if failures else LOOK_S)
            look.clear()
            if self._watching is threading.current_thread():
                failures = 0 if self._settled_safely() else failures + 1
        self.away.wait_budgets.ended()


class Producer:
    """Sends ops over one line.

    Args:
        line: the connection.
        patient: whether the line waits longer, for many ops at once.
        lineages: how many changes of the server's lineage this process knew of when it began.

    Attributes:
        producer: a random 63-bit number, never used twice; even: nobody sends its ops again once they are acknowledged.
        acked: of each bucket, what was acknowledged last.
        made_at_s: when it began.
    """

    __slots__ = ("acked", "line", "lineages", "made_at_s", "patient", "producer")

    def __init__(self, line: Line, patient: bool = False, lineages: int = 0):
        self.line, self.patient, self.lineages = line, patient, lineages
        self.producer = new_producer()
        self.acked: dict[int, Acked] = {}
        self.made_at_s = clock.mono_s()

    def send(self, scope: Scope, epoch: int, shipment: Shipment) -> tuple[Appended, dict[int, int]]:
        """Append ops; return the log's answer and the first sequence of each bucket."""
        first = {bucket: self.acked.get(bucket, _NONE)[0] + 1 for bucket in shipment.runs}
        appends = [Append(bucket, first[bucket], ops) for bucket, ops in shipment.runs.items()]
        try:
            answer = self.line.append(scope, epoch, self.producer, appends, shipment.key, shipment.row_id or 0)
        except LogUnavailable as error:
            self._in_doubt(error, first)
            raise
        for append, placed in zip(appends, answer.placed, strict=False):
            if placed.code not in (HOLE, HELD):
                self.acked[append.bucket] = append.first + len(append.payloads) - 1, placed.position.epoch
        return answer, first

    def numbers(self, buckets: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Return under which numbers the next ops of these buckets go."""
        return {bucket: (self.producer, self.acked.get(bucket, _NONE)[0] + 1) for bucket in buckets}

    def pass_holes(self, last: Mapping[int, int]) -> None:
        """Let the log go on where it knows less than it acknowledged: what it lost shows in the shard as a gap.

        Args:
            last: of each bucket, the last sequence that the log knows.

        Raises:
            LogUnavailable: the log did not answer.
        """
        for bucket, seq in last.items():
            self.line.pass_hole(self.producer, bucket, seq, self.acked.get(bucket, _NONE)[0])

    def send_one(self, scope: Scope, epoch: int, bucket: int, payload: bytes) -> tuple[Position, int, bool] | None:
        """Append one op of a scope with one shard; None where nothing was written: `send` says why.

        Returns:
            The op's position, its sequence, and whether to ring.
        """
        seq = self.acked.get(bucket, _NONE)[0] + 1
        try:
            placed = self.line.append_one(scope, epoch, self.producer, bucket, seq, payload)
        except LogUnavailable as error:
            self._in_doubt(error, {bucket: seq})
            raise
        if placed is None:
            return None
        self.acked[bucket] = seq, placed[0].epoch
        return placed[0], seq, placed[1]

    def reached(self, durability: str) -> bool:
        """Wait until what was sent is on Redis's replica or disk, if the durability asks for that; whether it is."""
        if durability not in ("replica", "fsync"):
            return True
        return self.line.replicated(fsync=durability == "fsync", timeout_s=DURABLE_S)

    def claimed(self, text: str, bucket: int) -> OpPlace:
        """Return the place of the op that was sent with an idempotency key before; go on behind it if it was ours."""
        place = parse_claim(text)
        if place.producer == self.producer and place.position is not None:
            self.acked[bucket] = max(self.acked.get(bucket, _NONE), (place.seq, place.position.epoch))
        return place

    def _in_doubt(self, error: LogUnavailable, first: Mapping[int, int]) -> None:
        """Note under which numbers ops may be in the log."""
        if error.sent:
            error.numbered = {bucket: (self.producer, seq) for bucket, seq in first.items()}


class Run(NamedTuple):
    """Ops of one bucket in order, and their producer's sequence of the first of them; the others follow densely."""

    first: int
    payloads: Sequence[bytes]

    @property
    def last(self) -> int:
        """The sequence of the last."""
        return self.first + len(self.payloads) - 1


def resend(
    line: Line, epoch: int, scope: Scope, producer: int, runs: Mapping[int, Run]
) -> tuple[dict[int, Position], set[str]]:
    """Append what the log has not seen, under an epoch.

    Returns:
        Of each bucket, where its last op stands at the latest; and the shards to ring.

    Raises:
        EpochStale: the epoch is not that any more.
        the other errors of `Line.append`.
    """
    left, reached, ring = dict(runs), dict[int, Position](), set[str]()
    for _ in range(ROUNDS):
        answer = line.append(scope, epoch, producer, [Append(bucket, *run) for bucket, run in left.items()], "", 0)
        ring.update(answer.ring)
        behind: dict[int, Run] = {}
        for (bucket, run), (code, position) in zip(left.items(), answer.placed, strict=True):
            if code == HELD:
                behind[bucket] = run
            elif code != HOLE:
                reached[bucket] = Position(position.epoch, position.seq + len(run.payloads) - 1)
            elif position.seq >= run.first:
                behind[bucket] = Run(position.seq + 1, run.payloads[position.seq + 1 - run.first :])
            else:
                line.pass_hole(producer, bucket, position.seq, run.first - 1)
                behind[bucket] = run
        if not behind:
            return reached, ring
        left = behind
    raise LogUnavailable("others send under the same producer; try again")
