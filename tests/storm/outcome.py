"""What one schedule did and found, and the sum over many, as JSON and as rows of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from storm.deeds import DONE, Caller, all_deeds

#: What a broken promise begins with, and what the table calls it.
PROMISES = {
    "lost unreported": "lost, not reported",
    "falsely lost": "told lost, and applied",
    "lost": "lost without need",
    "doubled": "doubled",
    "reordered": "reordered",
    "refused early": "refused, though what it needs was enqueued before",
    "orphaned": "children without their parent",
    "stale": "stale reads of one's own",
    "torn": "torn",
    "wrong": "wrong rows",
    "refused, and done": "refused, and done",
    "surprise": "errors that callers must not see",
    "misplaced": "taken from a process with another configuration",
    "not recovered": "not recovered within 60 s",
    "worker ended": "main processes of workers that ended",
}


@dataclass
class Outcome:
    """One schedule."""

    kind: str
    seed: int
    broken: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)

    def count(self, callers: Sequence[Caller]) -> None:
        """Count what was said to callers, and told by receipts."""
        for deed in all_deeds(callers):
            self.ops[deed.said] += 1
            self.ops["lost, and told so"] += deed.told == "lost"
            self.ops["applied"] += deed.told in DONE
            self.ops["spooled"] += any(receipt.position is None for receipt in deed.receipts)
        self.ops["reads"] += sum(len(caller.sights) for caller in callers)


def report(outcomes: Iterable[Outcome]) -> dict[str, object]:
    """Return the sums of some schedules of one kind."""
    done = list(outcomes)
    broken = Counter(one.split(":", 1)[0] for outcome in done for one in outcome.broken)
    return {
        "schedules": len(done),
        "ops": dict(sum((one.ops for one in done), Counter())),
        "faults": dict(sum((one.faults for one in done), Counter()).most_common()),
        "broken": {PROMISES[name]: broken[name] for name in PROMISES},
        "failing seeds": sorted({one.seed for one in done if one.broken}),
        "first": [
            {"seed": one.seed, "faults": dict(one.faults), "broken": one.broken[:9]} for one in done if one.broken
        ][:3],
    }


def table(result: dict[str, dict[str, object]]) -> str:
    """Return the sums of both kinds as the table of docs/reliability.md."""
    kinds = [kind for kind, sums in result.items() if sums["schedules"]]
    rows = [["", *kinds], ["---", *("---:" for _ in kinds)]]
    rows.append(["schedules", *(f"{result[kind]['schedules']:,}" for kind in kinds)])
    for group in ("ops", "faults", "broken"):
        sums: dict[str, dict[str, int]] = {kind: result[kind][group] for kind in kinds}  # type: ignore[misc]
        names = dict.fromkeys(name for one in sums.values() for name in one)
        title = {"ops": "ops: ", "faults": "fault: ", "broken": "**broken**: "}[group]
        rows += [[f"{title}{name}", *(f"{sums[kind].get(name, 0):,}" for kind in kinds)] for name in names]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
