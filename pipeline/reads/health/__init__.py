"""Probe one node, and define what the prober publishes of it, and what every reader makes of that report.

Probe one node, on a thread and connections of its own: a stalled node delays no other. Derive its lag.
Invariant: nothing is derived from a failed probe. A replica's *horizon* is a moment, by the primary's own clock; it is
proved that the replica has all that was committed until then. Lag is the primary's now less the horizon, so it grows by
itself while there is no news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.model import Position
from pipeline.shard import NodeSession
from pipeline.shard.nodes import is_off
from pipeline.shard.records import ASIDE_IN

#: The prober publishes once a second; an older report says nothing of how the node is now, s.
SILENT_S = 3.0
#: How long connecting, and each statement, may take, s.
TIMEOUT_S = 1
#: A primary that has committed ops so shortly before a heartbeat needs none: those ops show as much, ms. A third of the
#: time between two probes is left from then to the probe before: see `shard_health.LEAST_SHARE`.
NO_BEAT_MS = 166
_T = TypeVar("_T")
#: Results of the primary that are kept, a second each. A replica further behind is measured by what it has committed.
RESULTS_KEPT = 64


class NodeState(StrEnum):
    """What readers make of a node, by its newest report."""

    #: It serves.
    IN = "in"
    #: It serves only where no other may: it answered, but got nothing while its primary went on.
    STALLED = "stalled"
    #: It serves only where no other may: the last probe failed, or its lag was never measured. Never a lag of zero.
    NO_READING = "no reading"
    #: Out of rotation, but the last probe succeeded: the last resort before a read is refused.
    RECOVERING = "recovering"
    #: Out of rotation: it has failed to answer.
    OUT = "out"
    #: Away for too long, or not like its primary: it never serves, and is never followed, until that is mended.
    UNFIT = "unfit"
    #: Nothing is published about it.
    NO_PROBER = "no prober"
    #: Redis does not answer.
    UNKNOWN = "unknown"


#: Only a node of these states is in rotation.
IN_ROTATION = frozenset((NodeState.IN, NodeState.STALLED, NodeState.NO_READING, NodeState.NO_PROBER))


class Report(msgspec.Struct, frozen=True):
    """One node, as published; in a reading process with the time of its publication.

    Attributes:
        lag_ms: an upper bound of its lag when this was published; None: its lag was never measured.
        out: whether the flap judge has taken it out of rotation.
        takes_writes: whether it is a primary; None where its engine cannot say, or it does not answer.
        why: why the last probe failed; empty after a good one.
        marks: its watermarks; empty where the last probe failed, since the node may be a rebuilt one.
        unfit: why it is unfit and what to do; empty where it is fit.
        stalled: whether it got next to nothing between the last two probes, though its primary went on.
        statement_bytes: the size of the largest statement that it takes; 0: not known.
        holding: the buckets in which it has ops that are set aside; None: not known.
        published_s: when this was published, by this process's steady clock; never published itself.
    """

    lag_ms: int | None = None
    out: bool = False
    takes_writes: bool | None = None
    why: str = ""
    marks: dict[int, Position] = msgspec.field(default_factory=dict)
    unfit: str = ""
    stalled: bool = msgspec.field(default=False, name="still")
    statement_bytes: int = 0
    holding: frozenset[int] | None = None
    published_s: float | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_json(cls, text: str, published_s: float | msgspec.UnsetType = msgspec.UNSET) -> Report:
        """Read what `to_json` wrote; a field that this version does not know is passed over.

        Args:
            text: the JSON.
            published_s: when it was published, by this process's steady clock; left out where that does not matter.
        """
        try:
            told = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError):  # no prober has written it: nothing is known
            told = cls()
        return msgspec.structs.replace(told, published_s=published_s)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return msgspec.json.encode(self).decode()

    @property
    def state(self) -> NodeState:
        """What readers made of the node when this was published."""
        if self.unfit:
            return NodeState.UNFIT
        if self.out:
            return NodeState.OUT if self.why or self.stalled else NodeState.RECOVERING
        if self.why or self.lag_ms is None:
            return NodeState.NO_READING
        return NodeState.STALLED if self.stalled else NodeState.IN

    def state_at(self, now_s: float) -> NodeState:
        """Return what readers make of the node now: of a prober that is silent, no report is news.

        Args:
            now_s: by this process's steady clock.
        """
        state = self.state
        if state is NodeState.IN and isinstance(self.published_s, float) and now_s - self.published_s > SILENT_S:
            return NodeState.STALLED
        return state

    @property
    def lag_s(self) -> float | None:
        """An upper bound of the node's lag now; None where it was never measured."""
        return self.lag_at(clock.mono_s())

    def lag_at(self, now_s: float) -> float | None:
        """Return an upper bound of the node's lag: as published, and the report's age. None: it was never measured.

        Args:
            now_s: by this process's steady clock.
        """
        if self.lag_ms is None or not isinstance(self.published_s, float):
            return None
        return now_s - self.published_s + self.lag_ms / 1000


_decoder = msgspec.json.Decoder(Report)

#: The report of a node about which nothing is published.
NO_REPORT = Report()


def unfit_of(text: str) -> dict[str, str]:
    """Return a shard's unfit nodes as upkeep publishes them, each with the reason; none where nobody of ours has.

    Args:
        text: JSON.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError):
        return {}


class ProbeResult(NamedTuple):
    """What a node answered, from one consistent read.

    Attributes:
        now_ms: the node's own clock. Only the primary's is used.
        takes_writes: None where the engine cannot say.
        marks: its watermarks.
        written_ms: when the newest of them was committed, by the primary's clock.
        beat_ms: the heartbeat, by the same clock.
        statement_bytes: the size of the largest statement that it takes; 0: not known.
        holding: the buckets in which it has ops that are set aside.
    """

    now_ms: int
    takes_writes: bool | None
    marks: Mapping[int, Position]
    written_ms: int
    beat_ms: int
    statement_bytes: int = 0
    holding: frozenset[int] = frozenset()

    @property
    def newest_ms(self) -> int:
        """When the newest thing that the node has was committed."""
        return max(self.written_ms, self.beat_ms)

    def covers(self, other: ProbeResult) -> bool:
        """Whether this node has everything that another one had.

        Args:
            other: what the other node answered.
        """
        mine = self.marks
        return self.beat_ms >= other.beat_ms and all(
            bucket in mine and mine[bucket] >= position for bucket, position in other.marks.items()
        )


class NoResult(NamedTuple):
    """A probe that failed. It is not a lag of zero; it is not a lag at all.

    Attributes:
        why: for people.
        refused: whether the node, or its machine, said no: then the node is down. Silence does not prove that.
    """

    why: str
    refused: bool = False


class NodeProbe:
    """Probes one node, never twice at once.

    Args:
        node: its name, for messages.
        uri: its address for reading.
        writing_uri: its address for writing, should it be the primary.
    """

    def __init__(self, node: str, uri: str, writing_uri: str):
        self.node = node
        # in autocommit a probe is one round trip
        self._reader = NodeSession(
            node, uri, read_only=True, autocommit=True, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S
        )
        self._writer = NodeSession(node, writing_uri, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pipeline-probe-{node}")
        self._running: Future[object] | None = None
        self._asked: Future[ProbeResult | NoResult] | None = None

    def begin(self) -> None:
        """Begin to probe, unless what was begun before is still under way."""
        self._asked = self._begin(self._probe)

    def result(self, deadline: clock.Deadline) -> ProbeResult | NoResult:
        """Return the result of the probe that was begun last; one that comes late is none.

        Args:
            deadline: how long to wait.
        """
        if self._asked is None:
            return NoResult("it has not answered the probe before this one")
        try:
            return self._asked.result(deadline.left_s)
        except TimeoutError:
            return NoResult("it did not answer in time")

    def beat(self) -> None:
        """Begin to renew the heartbeat, if the node is due for one."""
        self._begin(self._beat)

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

    def _probe(self) -> ProbeResult | NoResult:
        try:
            return probe(self._reader)
        except PipelineError as error:
            return NoResult(str(error), refused=True)

    def _beat(self) -> None:
        try:
            beat(self._writer)
        except PipelineError:
            self._writer.discard()  # the next probe shows that the node is in trouble, or has lost its role

    def _discard(self) -> None:
        self._reader.discard()
        self._writer.discard()


def probe(session: NodeSession) -> ProbeResult:
    """Probe a node, in one statement and so in one consistent read; needs SELECT only.

    Args:
        session: of the node.

    Raises:
        ShardUnavailable: it did not answer in time.
        NotMigrated: the pipeline's tables are missing there.
    """
    dialect = session.dialect
    # its clock comes first: what was committed before that moment is in what is read after it
    found = session.query(
        f"SELECT 'now', {dialect.now_ms}, {dialect.read_only or 'NULL'}, {dialect.most_bytes}, NULL, NULL"
        " UNION ALL SELECT 'beat', beat_ms, NULL, NULL, NULL, NULL FROM pipeline_heartbeat"
        " UNION ALL SELECT 'mark', bucket, epoch, seq, committed_ms, state FROM pipeline_watermarks"
    )
    now_ms, read_only, most_bytes, beat_ms, written_ms = 0, None, 0, 0, 0
    marks: dict[int, Position] = {}
    holding: list[int] = []
    for what, first, second, seq, committed_ms, state in found:
        if what == "mark":
            marks[int(first)] = Position(int(second), int(seq))
            if state in ASIDE_IN:
                holding.append(int(first))
            written_ms = max(written_ms, int(committed_ms))
        elif what == "beat":
            beat_ms = int(first)
        else:
            now_ms, read_only, most_bytes = int(first), second, int(seq)
    takes_writes = None if read_only is None else is_off(read_only)
    return ProbeResult(now_ms, takes_writes, marks, written_ms, beat_ms, most_bytes, frozenset(holding))


def beat(session: NodeSession) -> None:
    """Renew the heartbeat, unless ops were committed just now; an engine without replication needs none.

    Args:
        session: of the primary, for writing.

    Raises:
        ShardUnavailable: it did not answer in time, or takes no writes.
    """
    if session.dialect.read_only is None:
        return
    now_ms = session.dialect.now_ms
    with session.translated(), session.transaction():
        session.execute(
            f"INSERT INTO pipeline_heartbeat (id, beat_ms) SELECT 1, {now_ms} FROM DUAL WHERE NOT EXISTS"
            f" (SELECT 1 FROM pipeline_watermarks WHERE committed_ms BETWEEN {now_ms} - {NO_BEAT_MS} AND {now_ms})"
            + session.dialect.on_conflict(["id"], ["beat_ms"])
        )


class LagMeter:
    """Measures replicas against the primary's results of late, by the primary's clock.

    Starts anew whenever another node is the primary, or the primary's clock has gone back. What was committed by
    another clock is then compared by position only, until the new clock has passed it.
    """

    def __init__(self) -> None:
        self._node = ""
        self._results: deque[ProbeResult] = deque(maxlen=RESULTS_KEPT)
        self._offset_ms = 0.0
        self._other_clock_ms = 0

    def add(self, node: str, result: ProbeResult, asked_at_s: float) -> bool:
        """Take a result of the primary; return whether the meter started anew, which ends the horizons found so far.

        Args:
            node: the primary.
            result: what it answered.
            asked_at_s: this process's clock before it was probed.
        """
        anew = node != self._node or (bool(self._results) and result.now_ms < self._results[-1].now_ms)
        if anew:
            # the very first result has no other clock before it
            other_clock = self._node != ""
            self._node = node
            self._other_clock_ms = max(result.newest_ms, self._newest_ms()) if other_clock else 0
            self._results.clear()
        self._results.append(result)
        # the answer's way is counted as lag: an upper bound must not be too small
        self._offset_ms = result.now_ms - 1000 * asked_at_s
        return anew

    def now_ms(self, at_s: float) -> float:
        """Return the primary's time, ms, as its last result has it.

        Args:
            at_s: a moment of this process's clock.
        """
        return 1000 * at_s + self._offset_ms

    def horizon_ms(self, result: ProbeResult) -> int | None:
        """Return until when a replica has everything, by the primary's clock; None where nothing proves it.

        Args:
            result: what the replica answered.
        """
        horizon = next((one.now_ms for one in reversed(self._results) if result.covers(one)), None)
        # commits are replicated in their order: what was committed before the newest that it has is there too
        if self._results and self._other_clock_ms < result.newest_ms <= self._results[-1].now_ms:
            return max(result.newest_ms, horizon or 0)
        return horizon

    def _newest_ms(self) -> int:
        return self._results[-1].newest_ms if self._results else 0
