"""Keys move to shards of their own and back while whoever moves, applies or serves ends at any statement."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.examples import THOROUGH
from support.sandbox.moving import storm
from support.sandbox.moving_keys import KeyStorm

#: Moves of a run, and how many runs: 8 moves in `make check`, 24 in `make test`, ten times as many in `make soak`.
EACH, RUNS = (8, 3 * SOAK) if THOROUGH or SOAK > 1 else (4, 2)


@pytest.mark.parametrize("seed", range(RUNS))
def test_keys_move_while_movers_workers_and_primaries_end_at_any_statement(seed: int) -> None:
    with storm(seed, KeyStorm) as made:
        made.run(EACH)

        assert made.broken() == []
    assert made.faults["ways out ordered"]
    assert made.faults["mover killed"]
    assert made.faults["primary killed"]
