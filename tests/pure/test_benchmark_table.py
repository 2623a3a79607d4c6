"""How a benchmark finds the moment at which the last row is there."""

from __future__ import annotations

import pytest

from benchmarks import table as tables
from benchmarks.table import Table


class Filling(Table):
    """A table that 100,000 rows come into within a second, by a clock of its own; a count takes 0.04 s.

    Args:
        share: of the rows that its server estimates.
        still_s: for how long no row comes half-way.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float, still_s: float = 0.0):
        self.now_s, self.share, self.still_s, self.counts = 0.0, share, still_s, 0
        monkeypatch.setattr(tables.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(tables.time, "sleep", self._pass)

    def _pass(self, for_s: float) -> None:
        self.now_s += for_s

    @property
    def _rows(self) -> int:
        return round(100_000 * min(1.0, min(self.now_s, 0.5) + max(0.0, self.now_s - 0.5 - self.still_s)))

    def count(self) -> int:
        found, self.counts = self._rows, self.counts + 1
        self._pass(0.04)
        return found

    def _estimate(self) -> int:
        return round(self.share * self._rows)


@pytest.mark.parametrize("share", [0.85, 0.97, 1.0, 1.1])
@pytest.mark.parametrize("still_s", [0.0, 0.3])
def test_the_end_is_found_soon_and_by_few_counts_however_wrong_the_estimates(
    monkeypatch: pytest.MonkeyPatch, share: float, still_s: float
):
    table = Filling(monkeypatch, share, still_s)

    ended_s = table.drained_at(100_000, 60) - (1.0 + still_s)

    assert 0 <= ended_s < 0.11
    assert table.counts < 8
