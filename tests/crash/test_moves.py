"""Buckets move to and fro under load while movers, workers and primaries are killed: nothing is lost or doubled."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.chance import SOAK
from support.oracle.producer import Producer, environment
from support.oracle.trial import Trial

from pipeline import clock
from pipeline.admin.moving import mover as movers
from pipeline.admin.moving import orders
from pipeline.clock import polls
from pipeline.errors import PipelineError, Unavailable
from pipeline.shard.records import ledger_queries

pytestmark = pytest.mark.mariadb
#: Moves of each run, of each pair of producers, and how long one may take with all that is killed meanwhile, s.
MOVES, EACH, MOVE_S = 4 * SOAK, 4, 90


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)  # no reads here


def test_buckets_move_under_load_while_anything_is_killed(trial: Trial) -> None:
    rig, topology = trial.rig, trial.rig.client.topology
    owners = trial.choose_owners(6)
    buckets = sorted({topology.bucket_of("tally", owner) for owner in owners})
    producers = list[Producer]()

    for n in range(MOVES):
        if n % EACH == 0:
            trial.join()
            producers = [trial.producer(600) for _ in range(2)]
        trial.await_progress(producers)
        bucket = trial.luck.choice(buckets)
        target = next(shard for shard in topology.shards if shard != topology.shard_of(bucket))
        begin(trial, bucket, target)
        victim = ("", "worker-0", topology.shard_of(bucket), target)[n % 4]
        moved(trial, bucket, target, victim)
    trial.join()

    print(f"{MOVES} moves, {len(trial.ledger):,} ops: {dict(trial.holds())}")
    for bucket in buckets:
        owned = [shard for shard in topology.shards if states(trial, shard, bucket) in ("active", "holding")]
        assert owned == [topology.shard_of(bucket)]
    assert rig.client.topology.placement.moves == {}


@pytest.mark.parametrize("state", ["copying", "catching up"])
def test_workers_go_on_with_a_move_whose_command_was_killed(trial: Trial, state: str) -> None:
    client, topology = trial.rig.client, trial.rig.client.topology
    bucket = topology.bucket_of("tally", trial.choose_owners(1)[0])
    target = next(shard for shard in topology.shards if shard != topology.shard_of(bucket))
    trial.producer(600 * SOAK)

    command = ["-m", "pipeline", "move", str(bucket), "--to", target, "--keep", "0", "--config", str(trial.rig.config)]
    child = subprocess.Popen([sys.executable, *command], env=environment(), stderr=subprocess.DEVNULL)
    for _ in polls(MOVE_S, first_s=0.01):
        if states(trial, target, bucket) == {"copying": "copying", "catching up": "catching"}[state]:
            break
    child.kill()
    child.wait()

    for _ in polls(MOVE_S, most_s=0.5):
        if not [one for one in orders.under_way(client) if bucket in one.buckets]:
            break
    trial.join()
    assert states(trial, target, bucket) in ("active", "holding")
    trial.holds()


def begin(trial: Trial, bucket: int, target: str) -> None:
    for _ in polls(MOVE_S):
        try:
            orders.order_move(trial.rig.client, [bucket], target, "test", keep_s=0)
            return
        except Unavailable:
            continue
    raise AssertionError("a primary did not come back")


def moved(trial: Trial, bucket: int, target: str, victim: str) -> None:
    """Go on with a move by movers that die now and then, and kill something in the middle."""
    client, deadline = trial.rig.client, clock.Deadline(MOVE_S)
    killed, last = not victim, ""
    while not deadline.passed:
        try:
            found = [one for one in orders.under_way(client) if bucket in one.buckets]
            if not found:
                return
            if not found[0].hold():
                last = "a worker is at it"
                clock.sleep_s(0.2)
                if not killed:
                    killed = True
                    trial.rig.cluster.kill(victim)
                    trial.rig.cluster.start(victim)
                continue
            lives = trial.luck.randrange(1, 8)
            try:
                for _, step in zip(range(lives), found[0].steps(), strict=False):
                    last = f"{step.stage} {step.text}"
                    if not killed and trial.luck.random() < 0.3:
                        killed = True
                        trial.rig.cluster.kill(victim)
                        trial.rig.cluster.start(victim)
            finally:
                found[0].release()  # as if its lease had run out
        except (Unavailable, PipelineError) as error:
            last = f"{type(error).__name__}: {error}"
            clock.sleep_s(0.2)
    raise AssertionError(f"bucket {bucket} did not get to {target}: {orders.known(client)[0]}; {last}")


def states(trial: Trial, shard: str, bucket: int) -> str:
    mark = ledger_queries.marks_of(trial.rig.client.nodes.primary(shard), [bucket]).get(bucket)
    return mark.state if mark else ""
