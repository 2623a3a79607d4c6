"""I5: Redis forgets all, then the end of its file, under load: each loss is named, and none that is named applied."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.oracle.trial import Trial

pytestmark = pytest.mark.mariadb


def test_what_a_redis_forgets_under_load_is_named_and_never_applied(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(6)
    producers = [trial.producer(250 * SOAK, sure=True) for _ in range(3)]
    told: set[tuple[int, int, int]] = set()

    for _ in range(SOAK):
        trial.await_progress(producers)
        rig.redis.flushdb()
        trial.await_progress(producers)
        rig.cluster.kill("redis")
        size = rig.log_file.stat().st_size
        with rig.log_file.open("r+b") as file:  # the machine died too
            file.truncate(trial.luck.randrange(size // 2, size))
        rig.cluster.start("redis")
        told |= {one for one, state in trial.states().items() if state == "lost"}
    trial.join()

    accounts, states = trial.holds(), trial.states()
    assert accounts["lost"] > 0
    assert {states[one] for one in told} <= {"lost"}
