"""One node as the prober sees it: a thread and a connection of its own, so that a stalled node delays no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.model.op import Position
from pipeline.reads.health.reading import Look, NoReading, Reading
from pipeline.shard.session import Session
from pipeline.shard.writable import is_off

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
        self._reader = Session(node, uri, read_only=True, autocommit=True, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S)
        self._writer = Session(node, writing_uri, connect_s=TIMEOUT_S, statement_s=TIMEOUT_S)
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


def look_at(session: Session) -> Reading:
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


def beat(session: Session) -> None:
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
