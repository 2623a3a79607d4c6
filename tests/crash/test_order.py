"""I3: per key and producer, ops are applied in the order of their acknowledgement. The model's text shows the order."""

from __future__ import annotations

import signal

import pytest
from support.chance import SOAK
from support.oracle.trial import Trial

from pipeline.clock import polls

pytestmark = pytest.mark.mariadb


def test_workers_that_stall_at_random_never_reorder_a_key(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(5)
    with rig.worker(), rig.worker():
        workers = rig.workers
        producers = [trial.producer(400 * SOAK) for _ in range(4)]

        stopped: set[str] = set()
        for _ in polls(120, first_s=0.05):
            name = trial.luck.choice(workers)
            going = name in stopped
            rig.cluster.stop(name, signal.SIGCONT if going else signal.SIGSTOP)
            stopped ^= {name}
            if all(one.child.poll() is not None for one in producers):
                break
        for name in stopped:
            rig.cluster.stop(name, signal.SIGCONT)
        trial.join()

        accounts = trial.holds()

    assert len(trial.ledger) == 1600 * SOAK
    assert accounts["applied"] > 1000 * SOAK
    assert accounts["rejected"] > 0


def test_two_workers_share_one_shard_and_keep_its_order(trial: Trial) -> None:
    rig = trial.rig
    topology = rig.client.topology
    owners = [o for o in rig.owners(60) if topology.shard_of(topology.bucket_of("tally", o)) == "s0"]
    trial.owners += owners[:12]
    load = trial.load()
    before = {name: applied_by(trial, name) for name in rig.workers}

    for _ in polls(60):
        trial.send(load, 50 * SOAK)
        if all(applied_by(trial, name) > before[name] for name in rig.workers):
            break
    trial.holds()

    assert all(applied_by(trial, name) > before[name] for name in rig.workers)


def applied_by(trial: Trial, worker: str) -> int:
    """Return how many batches with ops in them a worker has logged."""
    lines = trial.rig.log_text(worker).splitlines()
    return sum("'applied': " in line and "'applied': 0" not in line for line in lines)
