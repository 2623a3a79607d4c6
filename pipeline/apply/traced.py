"""Apply ops within traces: one span per batch that links to the calls of its ops, and one in the trace of each call."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline import clock, tracing
from pipeline.apply.applier import Applier
from pipeline.apply.batch import Batch
from pipeline.apply.grouping import Item
from pipeline.apply.transaction import Outcome
from pipeline.model.op import TracedOp

if TYPE_CHECKING:
    from pipeline.oplog.doorbell import Bell, SilentBell

#: The most calls of one batch that are linked, and that get a span each; a batch may have thousands of ops.
MOST_LINKS = 32


class _Met(NamedTuple):
    """The first op of a call that a batch has committed, what became of it, and when, ns since 1970."""

    item: Item
    state: str
    at_ns: int


class TracedApplier(Applier):
    """An applier whose batches join the traces of their ops, and the open one, such as Celery's own span."""

    def apply(self, bell: Bell | SilentBell | None = None) -> Outcome:
        """Apply one batch; see `Applier.apply`."""
        began_ns = clock.wall_ns()
        self._met, self._commits_ns = dict[str, _Met](), list[int]()
        outcome = super().apply(bell)
        if self._met or (self._commits_ns and tracing.recording()):
            self._export(outcome, began_ns)
        return outcome

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        at_ns = clock.wall_ns()
        super()._finish(batch, outcome)
        self._commits_ns.append(at_ns)
        aside = {(one.entry.bucket, one.entry.position): one.state for one in batch.aside}
        for item in (*batch.items, *(item for item, _ in batch.halted)):
            if isinstance(item.op, TracedOp) and len(self._met) < MOST_LINKS:
                state = aside.get(item.place, "applied")
                self._met.setdefault(item.op.traceparent, _Met(item, state, at_ns))

    def _export(self, outcome: Outcome, began_ns: int) -> None:
        about = {"pipeline.shard": self.shard, "pipeline.applied": outcome.applied, "pipeline.buckets": outcome.buckets}
        about |= {"pipeline.rejected": outcome.rejected, "pipeline.parked": outcome.parked}
        batch = tracing.started("pipeline.apply", "CONSUMER", about, links=self._met, start_ns=began_ns)
        for at_ns in self._commits_ns:
            batch.add_event("commit", timestamp=at_ns)
        batch.end()
        for parent, (item, state, at_ns) in self._met.items():
            bucket, position = item.entry.bucket, str(item.entry.position)
            one = {"pipeline.shard": self.shard, "pipeline.bucket": bucket, "pipeline.position": position}
            one |= {"pipeline.table": item.op.table, "pipeline.kind": item.op.kind, "pipeline.state": state}
            links = [tracing.parent_of(batch)]
            commit = tracing.started("pipeline.commit", "CONSUMER", one, parent=parent, links=links, start_ns=began_ns)
            if state == "rejected":
                tracing.failed(commit)
            commit.end(at_ns)


def applier_type() -> type[Applier]:
    """Return which applier this process uses."""
    return TracedApplier if tracing.on() else Applier
