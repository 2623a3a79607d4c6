"""I5: Redis forgets all, then the end of its file, under load: each loss is named, and none that is named applied."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.oracle import judge
from support.oracle.trial import Trial

pytestmark = pytest.mark.mariadb


def test_what_a_redis_forgets_under_load_is_named_and_never_applied(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(6)
    producers = [trial.producer(400 * SOAK, sure=True) for _ in range(3)]
    told: set[tuple[int, int, int]] = set()

    for _ in range(SOAK):
        trial.await_progress(producers)
        rig.redis.flushdb()
        with rig.frozen():  # so that the end of the file holds what is not applied
            before = rig.log_file.stat().st_size
            trial.await_progress(producers)
            rig.cluster.kill("redis")
            size = rig.log_file.stat().st_size
            with rig.log_file.open("r+b") as file:  # the machine died too
                file.truncate(trial.luck.randrange(before, (before + size) // 2))
        rig.cluster.start("redis")
        noted = [one for made in producers for one in made.noted]
        states = judge.states(rig.primaries, rig.client.topology, noted)
        told |= {op for op, state in states.items() if state == "lost"}
    trial.join()

    accounts, states = trial.holds(), trial.states()
    assert accounts["lost"] > 0
    assert {states[one] for one in told} <= {"lost"}
