"""A run of the benchmark of refused ops gives a figure only where each row is there once, each bad one set aside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.probes import refused
from benchmarks.probes.bad_things import BAD
from benchmarks.rows import Row, take
from benchmarks.table import NotDrained, Table

#: Ten rows, of which the sixth is to be refused.
SENT = [{**row, "note": BAD} if n == 5 else row for n, row in enumerate(take(10))]


class World(Table):
    """What a run sees of servers and workers: each row is applied at once, as a fault has it."""

    def __init__(self, fault: Callable[[list[Row]], list[Row]]):
        self.fault, self.rows, self.aside = fault, list[Row](), 0

    def enqueue(self, table: Any, sent: list[Row]) -> None:
        applied = self.fault(sent) if sent is SENT else sent
        self.rows += [row for row in applied if row["note"] != BAD]
        self.aside += sum(row["note"] == BAD for row in applied)

    def empty(self) -> None:
        self.rows = []

    def count(self) -> int:
        return len(self.rows)

    def _estimate(self) -> int:
        return len(self.rows)

    def found(self, target: Any, sql: str) -> list[tuple[int, ...]]:
        assert sql == refused.FOUND
        return [(len(self.rows), sum(row["customer"] for row in self.rows), self.aside), (0, 0, 0)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[Row]], list[Row]]], dict[str, float]]:
    """Return what makes one round with a fault."""

    def run(fault: Callable[[list[Row]], list[Row]]) -> dict[str, float]:
        world, cpu = World(fault), iter((1.0, 3.0))
        barrier = SimpleNamespace(enqueue_bulk_insert=world.enqueue, barrier=lambda table, timeout_s: None)
        monkeypatch.setattr(refused, "pipeline", barrier)
        monkeypatch.setattr(refused, "every", world.found)
        monkeypatch.setattr(refused, "everywhere", lambda target, *statements: None)
        monkeypatch.setattr(refused, "running", lambda target, *commands: nullcontext())
        monkeypatch.setattr(refused, "Meter", lambda target: SimpleNamespace(read=lambda: {"workers": next(cpu)}))
        monkeypatch.setattr(refused, "WARM_S", 0.0)
        return refused._refused_round(None, world, None, SENT, world.enqueue)  # type: ignore[arg-type]

    return run


def test_a_run_in_which_each_row_is_there_once_gives_the_cpu_of_a_row(measured: Any) -> None:
    assert measured(lambda sent: sent) == {"workers": 2.0 / len(SENT) * 1e6}


@pytest.mark.parametrize(
    "fault",
    [
        lambda sent: sent[1:],
        lambda sent: [sent[0], *sent],
        lambda sent: [sent[1], *sent[1:]],
        lambda sent: [{**row, "note": "taken"} for row in sent[1:]],
        lambda sent: [row for row in sent if row["note"] != BAD],
        lambda sent: [*sent, sent[5]],
    ],
    ids=[
        "lost",
        "doubled",
        "one lost, one doubled",
        "the bad one taken for a lost one",
        "the bad one lost",
        "set aside twice",
    ],
)
def test_a_run_that_loses_or_doubles_a_row_gives_no_figure(measured: Any, fault: Any) -> None:
    with pytest.raises((NotDrained, AssertionError), match=r"committed|lost or doubled"):
        measured(fault)
