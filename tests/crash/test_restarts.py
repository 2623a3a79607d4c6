"""Databases and workers that die and come back under load; everything goes on by itself."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.oracle import nodes
from support.oracle.trial import Trial
from support.servers.units import environment_of

from pipeline.clock import polls

pytestmark = pytest.mark.mariadb


def test_a_primary_that_is_killed_under_load_loses_and_doubles_nothing(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(6)
    producers = [trial.producer(500 * SOAK) for _ in range(2)]

    for _ in range(2 * SOAK):
        trial.await_progress(producers)
        shard = trial.luck.choice(list(rig.primaries))
        rig.cluster.kill(shard)
        rig.cluster.start(shard)
    trial.join()

    trial.holds()


def test_a_worker_that_is_killed_whole_delays_but_loses_and_doubles_nothing(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(6)
    producers = [trial.producer(500 * SOAK) for _ in range(2)]

    for _ in range(2 * SOAK):
        trial.await_progress(producers)
        name = trial.luck.choice(("worker-0", "worker-1"))
        rig.cluster.kill(name)
        rig.cluster.start(name)
    trial.join()

    trial.holds()


def test_a_worker_of_the_unit_that_is_asked_to_stop_finishes_its_batch(trial: Trial) -> None:
    rig, topology = trial.rig, trial.rig.client.topology
    [owner] = trial.choose_owners(1)
    load = trial.load(weights={"bump": 1})
    trial.send(load, 5)
    trial.settle()
    uri = rig.primaries[topology.shard_of(topology.bucket_of("tally", owner))]

    with rig.frozen(), rig.worker(**environment_of("pipeline-worker@.service")) as worker:
        with nodes.locked_rows(uri, owner):
            with rig.frozen(worker):  # so that all are one batch
                trial.send(load, 20)
            nodes.await_waiters(uri)
            rig.ask_to_stop(worker)
            assert any("Warm shutdown" in rig.log_text(worker) for _ in polls(10))
            assert rig.cluster.is_alive(worker)
            waiting = list(trial.states().values()).count("queued")
            assert waiting

        assert rig.wait_gone(worker, 30)
        # the batch that waited for the row is committed, and nobody else could have done that
        assert list(trial.states().values()).count("queued") < waiting
    trial.holds()


def test_redis_that_is_killed_under_load_and_comes_back_with_its_file_loses_nothing(trial: Trial) -> None:
    rig = trial.rig
    trial.choose_owners(6)
    producers = [trial.producer(400 * SOAK, sure=True) for _ in range(2)]

    for _ in range(2 * SOAK):
        trial.await_progress(producers)
        rig.kill_redis()
        rig.cluster.start("redis")
    trial.join()

    assert trial.holds()["lost"] == 0
