"""Buckets move to and fro while whoever moves, applies or serves ends at any statement."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.examples import THOROUGH
from support.sandbox.moving import storm

#: Moves of a run, and how many runs: 8 moves in `make check`, 120 in `make test`, ten times as many in `make soak`.
EACH, RUNS = (10, 12 * SOAK) if THOROUGH or SOAK > 1 else (4, 2)


@pytest.mark.parametrize("seed", range(RUNS))
def test_buckets_move_while_movers_workers_and_primaries_end_at_any_statement(seed: int) -> None:
    with storm(seed) as made:
        made.run(EACH)

        assert made.broken() == []
    assert not made.faults["mover: MoveEnded"]  # nobody meddles, so no move ends for a difference
    assert made.faults["mover killed"]
    assert made.faults["primary killed"]
