"""Route reads within the trace of their caller: a span for each, which says what node was chosen and why."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pipeline import clock, tracing
from pipeline.reads.routing.moving import MovingRead
from pipeline.reads.routing.router import Read, Router


class TracedRead(Read):
    """A read with a span, while a trace is open."""

    def __enter__(self) -> TracedRead:
        """Choose a node and open it; see `Read`."""
        about = {"pipeline.shard": self.shard, "pipeline.token": bool(self.needs)}
        self._span = tracing.started("pipeline.read", "CLIENT", about, start_ns=clock.wall_ns())
        try:
            super().__enter__()
        except BaseException as error:
            tracing.failed(self._span, error)
            self._span.end()
            raise
        info = self.read_info
        told = {"node": info.node, "role": info.role, "reason": info.reason, "stale": info.stale}
        self._span.set_attributes({f"pipeline.{name}": value for name, value in told.items()})
        self._span.set_attribute("pipeline.waited_s", info.waited_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the node back; see `Read`."""
        try:
            super().__exit__(kind, failure, traceback)
        finally:
            if failure is not None:
                tracing.failed(self._span, failure)
            self._span.end()


class TracedRouter(Router):
    """A router whose reads join the open trace."""

    def open(self, *args: Any, **options: Any) -> Read | MovingRead:
        """Return a read of a shard, to be entered; see `Router.open`."""
        return super().open(*args, **options, kind=TracedRead if tracing.recording() else Read)


def router_type() -> type[Router]:
    """Return which router this process uses."""
    return TracedRouter if tracing.on() else Router
