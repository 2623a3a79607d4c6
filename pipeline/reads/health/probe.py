"""One node as the prober sees it: a thread and a connection of its own, so that a stalled node delays no other.

What one look at a node tells, and what follows from it: how far behind it is.

Invariant: nothing is derived from a missing reading. A replica's *horizon* is a moment, by the primary's own clock, of
which it is proved that all that was committed until then is there. Lag is the primary's now less the horizon, so with
no news it grows by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.model.op import Position
from pipeline.shard.nodes import is_off
from pipeline.shard.session import NodeSession

#: How long connecting, and each statement, may take, s.
TIMEOUT_S = 1
#: A primary that has committed ops so shortly before a beat needs none: what it wrote shows as much, ms. A third of the
#: time between two looks is left from then to the look before: see `picture.LEAST_SHARE`.
NO_BEAT_MS = 166
_T = TypeVar("_T")


class Probe:
    """Looks at one node, never twice at once.

    Args:
        uri: the node's address for reading.
        writing_uri: its address for writing, should it be the primary.
    """

    def __init__(self, node: str, uri: str, writing_uri: str):
        self.node = node
        # in autocommit a look is one round trip
        self._reader = NodeSession(
            node, uri, read_only=True, autocommit=True, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S
        )
        self._writer = NodeSession(node, writing_uri, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pipeline-probe-{node}")
        self._running: Future[object] | None = None
        self._look: Future[Look] | None = None

    def ask(self) -> None:
        """Begin a look, unless what was begun before is still under way."""
        self._look = self._begin(self._look_now)

    def answer(self, deadline: clock.Deadline) -> Look:
        """Return the look that was begun last; one that comes late is none."""
        if self._look is None:
            return NoReading("it has not answered the look before this one")
        try:
            return self._look.result(deadline.left_s)
        except TimeoutError:
            return NoReading("it did not answer in time")

    def beat(self) -> None:
        """Begin to renew the heartbeat, if this node beats."""
        self._begin(self._beat_now)

    def close(self) -> None:
        """Close the connections as soon as they are free; does not wait."""
        self._thread.submit(self._discard)
        self._thread.shutdown(wait=False)

    def _begin(self, job: Callable[[], _T]) -> Future[_T] | None:
        if self._running is not None and not self._running.done():
            return None
        begun = self._thread.submit(job)
        self._running = begun  # type: ignore[assignment]
        return begun

    def _look_now(self) -> Look:
        try:
            return look_at(self._reader)
        except PipelineError as error:
            return NoReading(str(error), refused=True)

    def _beat_now(self) -> None:
        try:
            beat(self._writer)
        except PipelineError:
            self._writer.discard()  # the next look tells that the node is in trouble, or that it lost its role

    def _discard(self) -> None:
        self._reader.discard()
        self._writer.discard()


def look_at(session: NodeSession) -> Reading:
    """Look at a node, in one statement and so in one consistent read; needs SELECT only.

    Raises:
        ShardUnavailable: it did not answer in time.
        NotMigrated: the pipeline's tables are missing there.
    """
    dialect = session.dialect
    # its clock comes first: what was committed before that moment is in what is read after it
    found = session.query(
        f"SELECT 'now', {dialect.now_ms}, {dialect.read_only or 'NULL'}, NULL, NULL"
        " UNION ALL SELECT 'beat', beat_ms, NULL, NULL, NULL FROM pipeline_heartbeat"
        " UNION ALL SELECT 'mark', bucket, epoch, seq, committed_ms FROM pipeline_watermarks"
    )
    now_ms, read_only, beat_ms, written_ms = 0, None, 0, 0
    marks: dict[int, Position] = {}
    for what, first, second, seq, committed_ms in found:
        if what == "mark":
            marks[int(first)] = Position(int(second), int(seq))
            written_ms = max(written_ms, int(committed_ms))
        elif what == "beat":
            beat_ms = int(first)
        else:
            now_ms, read_only = int(first), second
    return Reading(now_ms, None if read_only is None else is_off(read_only), marks, written_ms, beat_ms)


def beat(session: NodeSession) -> None:
    """Renew the heartbeat, unless ops were committed just now; an engine without replication needs none.

    Raises:
        ShardUnavailable: it did not answer in time, or takes no writes.
    """
    if session.dialect.read_only is None:
        return
    now_ms = session.dialect.now_ms
    with session.translated(), session.transaction():
        session.execute(
            f"INSERT INTO pipeline_heartbeat (id, beat_ms) SELECT 1, {now_ms} FROM DUAL WHERE NOT EXISTS"
            f" (SELECT 1 FROM pipeline_watermarks WHERE committed_ms > {now_ms} - {NO_BEAT_MS})"
            + session.dialect.on_conflict(["id"], ["beat_ms"])
        )


#: Looks at the primary that are kept, a second each. A replica further behind is measured by what it has committed.
LOOKS = 64


class Reading(NamedTuple):
    """What a node said of itself, in one consistent read.

    Attributes:
        now_ms: the node's own clock. Only the primary's is used.
        takes_writes: None where the engine cannot tell.
        marks: its watermarks.
        written_ms: when the newest of them was committed, by the primary's clock.
        beat_ms: the heartbeat, by the same clock.
    """

    now_ms: int
    takes_writes: bool | None
    marks: Mapping[int, Position]
    written_ms: int
    beat_ms: int

    @property
    def newest_ms(self) -> int:
        """When the newest thing that it has was committed."""
        return max(self.written_ms, self.beat_ms)

    def covers(self, other: Reading) -> bool:
        """Whether this node has everything that the other had."""
        mine = self.marks
        return self.beat_ms >= other.beat_ms and all(
            bucket in mine and mine[bucket] >= position for bucket, position in other.marks.items()
        )


class NoReading(NamedTuple):
    """A look that came to nothing. It is not a lag of zero; it is not a lag at all.

    Attributes:
        refused: whether the node, or its machine, said no: it is down, as nobody can tell of one that is silent.
    """

    why: str
    refused: bool = False


Look = Reading | NoReading


class Yardstick:
    """The primary's looks of late: what a replica's reading is measured against, and the primary's clock.

    Starts anew whenever another node is the primary, or the primary's clock has gone back: what was committed by
    another clock is then compared by position only, until the new clock has passed it.
    """

    def __init__(self) -> None:
        self._node = ""
        self._looks: deque[Reading] = deque(maxlen=LOOKS)
        self._offset_ms = 0.0
        self._other_clock_ms = 0

    def __bool__(self) -> bool:
        return bool(self._looks)

    def add(self, node: str, reading: Reading, asked_at_s: float) -> bool:
        """Take a look at the primary; return whether it started anew, which ends the horizons found so far.

        Args:
            asked_at_s: this process's clock before it was asked.
        """
        anew = node != self._node or (bool(self._looks) and reading.now_ms < self._looks[-1].now_ms)
        if anew:
            # the very first look has no other clock before it
            other_clock = self._node != ""
            self._node = node
            self._other_clock_ms = max(reading.newest_ms, self._newest_ms()) if other_clock else 0
            self._looks.clear()
        self._looks.append(reading)
        # the answer's way is counted as lag: an upper bound must not be too small
        self._offset_ms = reading.now_ms - 1000 * asked_at_s
        return anew

    def now_ms(self, at_s: float) -> float:
        """Return the primary's time at a moment of this process's clock, as its last look tells it."""
        return 1000 * at_s + self._offset_ms

    def horizon_ms(self, reading: Reading) -> int | None:
        """Return until when a replica has everything, by the primary's clock; None where nothing proves it."""
        horizon = next((look.now_ms for look in reversed(self._looks) if reading.covers(look)), None)
        # commits are replicated in their order: what was committed before the newest that it has is there too
        if self._looks and self._other_clock_ms < reading.newest_ms <= self._looks[-1].now_ms:
            return max(reading.newest_ms, horizon or 0)
        return horizon

    def _newest_ms(self) -> int:
        return self._looks[-1].newest_ms if self._looks else 0
