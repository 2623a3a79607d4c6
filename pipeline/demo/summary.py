"""Hold the result of a run as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.demo.growth import Growth
from pipeline.demo.reads import Mixed, OwnWrite
from pipeline.demo.verify import Comparison


@dataclass(frozen=True, slots=True)
class Summary:
    """What was done, how fast, and whether it is right."""

    engine: str
    rows: int
    ops: int
    #: From the first enqueue to the last applied op.
    seconds: float
    batches: int | None
    single_p50_us: float | None
    single_p99_us: float | None
    flower_url: str | None
    own_write: OwnWrite
    mixed: Mixed
    comparisons: tuple[Comparison, ...]
    growth: Growth | None = None

    @property
    def ops_per_s(self) -> float:
        """Ops a second, from enqueue to committed."""
        return self.ops / self.seconds if self.seconds else 0.0

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each."""
        wrong = [str(comparison) for comparison in self.comparisons if not comparison.equal]
        if not self.own_write.true:
            wrong.append(f"a read did not see its own write: {self.own_write}")
        if self.mixed.wrong:
            wrong.append(f"{self.mixed.wrong} of the mixed reads did not see their own write")
        if self.growth is not None and not self.growth.moved:
            wrong.append("no bucket has moved to the third shard")
        return wrong

    def as_json(self) -> dict[str, Any]:
        """Return what a program would read."""
        return {
            "ok": not self.faults,
            "faults": self.faults,
            "engine": self.engine,
            "rows": self.rows,
            "ops": self.ops,
            "seconds": round(self.seconds, 3),
            "ops_per_s": round(self.ops_per_s),
            "batches": self.batches,
            "single_enqueue_us": {"p50": _rounded(self.single_p50_us), "p99": _rounded(self.single_p99_us)},
            "flower": self.flower_url,
            "read_your_writes": {
                "node": self.own_write.node,
                "role": self.own_write.role,
                "waited_s": round(self.own_write.waited_s, 4),
                "ok": self.own_write.true,
            },
            "reads": [
                {"node": node, "kind": kind, "reason": reason, "reads": reads}
                for node, kind, reason, reads in self.mixed.counts
            ],
            "checked": [
                {
                    "table": one.table,
                    "shard": one.shard,
                    "rows": one.found.rows,
                    "rows_expected": one.expected.rows,
                    "checksum": str(one.found),
                    "checksum_expected": str(one.expected),
                    "equal": one.equal,
                }
                for one in self.comparisons
            ],
            **({"growth": _grown(self.growth)} if self.growth else {}),
        }


def _grown(growth: Growth) -> dict[str, Any]:
    return {
        "buckets_moved": growth.moved,
        "ops_meanwhile": growth.ops,
        "samples": [asdict(one) for one in growth.samples],
    }


def _rounded(number: float | None) -> int | None:
    return None if number is None else round(number)
