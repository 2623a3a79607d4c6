"""Shard keys move to a shard of their own and back under load while movers, workers and primaries are killed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest
from support.chance import SOAK
from support.oracle import judge
from support.oracle.load import MIXED, TWO_KEYS
from support.oracle.producer import Producer
from support.oracle.trial import Trial
from support.servers.dying_movers import GIVE_UP, STAGES, THERE, DyingMovers

from pipeline.clock import polls

pytestmark = pytest.mark.mariadb
#: How often the key goes there and back; in each trip a mover is killed in every stage. `PIPELINE_SOAK=10` kills 140.
ROUNDS = SOAK
#: A mover is killed behind the beginning of its stage by up to so many moments; most stages have fewer.
MOMENTS = 8
#: What is sent: single ops, groups, groups of two keys. An archive without the key takes no versions of it.
WEIGHTS = {kind: weight for kind, weight in MIXED.items() if kind != "version"} | TWO_KEYS
#: How many ops a producer sends a second, and how many of its calls are bulk calls.
LOAD = {"per_s": 60, "sheets": 0.05, "weights": WEIGHTS}


@pytest.fixture
def movers(trial: Trial) -> Iterator[DyingMovers]:
    with closing(DyingMovers(trial.rig.config)) as made:
        yield made


def test_keys_move_there_and_back_under_load_while_anything_is_killed(trial: Trial, movers: DyingMovers) -> None:
    rig = trial.rig
    (key, *_), (other, *_) = shared = two_shared_buckets(trial)
    trial.owners += [owner for owners in shared for owner in owners]
    if SOAK == 1:
        rig.put_off("moves")  # a mover of a worker waits for 12 s until all readers know of the move

    with rig.worker(ready=False, PIPELINE_CRASH_AT="any:0.004"):
        producers = [trial.producer(100_000, **LOAD) for _ in range(2)]
        there(movers, other, places(trial, other)[1])
        killed = Counter[str]()
        for _ in range(ROUNDS):
            home, away = places(trial, key)
            killed += trip(trial, movers, producers, key, (home, away))
            killed += trip(trial, movers, producers, key, (away, home))
        for one in producers:
            one.stop()
        trial.join()

        print(f"{len(trial.ledger):,} ops: {dict(trial.holds())}; killed: {dict(sorted(killed.items()))}")
        assert judge.away(rig.primaries).keys() == {rig.client.topology.bucket_of("tally", other)}
        there(movers, other, places(trial, other)[0])
    trial.holds()
    assert judge.away(rig.primaries) == {}


def two_shared_buckets(trial: Trial) -> list[list[int]]:
    """Return three shard keys of each of two buckets."""
    topology, by_bucket = trial.rig.client.topology, defaultdict[int, list[int]](list)
    for owner in trial.rig.owners(150):
        by_bucket[topology.bucket_of("tally", owner)].append(owner)
    return [owners[:3] for owners in by_bucket.values() if len(owners) > 2][:2]


def places(trial: Trial, key: int) -> tuple[str, str]:
    """Return the shard of a key's bucket, and the other one."""
    topology = trial.rig.client.topology
    home = topology.shard_of(topology.bucket_of("tally", key))
    [away] = {*topology.shards} - {home}
    return home, away


def trip(trial: Trial, movers: DyingMovers, producers: list[Producer], key: int, way: tuple[str, str]) -> Counter[str]:
    """Move a key by movers that are killed, one in each stage; return what was killed."""
    luck, killed = trial.luck, Counter[str]()
    victim, when = luck.choice(("worker-0", *way)), luck.choice(STAGES)
    given_up = luck.choice(("copy", "catch", "finish"))
    for stage in STAGES:
        trial.await_progress(producers, 10)
        crash = Thread(target=killed_and_started, args=(trial, victim)) if stage == when else None
        if crash:
            crash.start()
            killed[victim] += 1
        if stage == given_up:
            killed[f"{GIVE_UP}: {movers.move(f'tally={key}', way[1], GIVE_UP, luck.randint(1, MOMENTS))}"] += 1
        killed[movers.move(f"tally={key}", way[1], stage, luck.randint(1, MOMENTS))] += 1
        if crash:
            crash.join()
    there(movers, key, way[1])
    return killed


def killed_and_started(trial: Trial, name: str) -> None:
    trial.rig.cluster.kill(name)
    trial.rig.cluster.start(name)


def there(movers: DyingMovers, key: int, shard: str) -> None:
    """Let a key come to a shard, whatever has become of its moves."""
    said = ""
    for _ in polls(120, first_s=0.01, most_s=0.5):
        if (said := movers.move(f"tally={key}", shard)) == THERE:
            return
    raise AssertionError(f"{key} does not get to {shard}: {said}")
