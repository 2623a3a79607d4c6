"""Shard keys move to a shard of their own and back under load while movers, workers and primaries are killed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from threading import Thread
from typing import Any

import pytest
from support.chance import SOAK
from support.oracle import judge
from support.oracle.load import MIXED, TWO_KEYS
from support.oracle.producer import Producer
from support.oracle.trial import Trial
from support.servers.dying_movers import GIVE_UP, STAGES, THERE, DyingMovers

from pipeline.clock import polls

pytestmark = pytest.mark.mariadb
#: How often a key goes there and back; a mover is killed in each stage of each way. `PIPELINE_SOAK=10` kills 140.
ROUNDS = SOAK
#: A mover is killed behind the beginning of its stage by up to so many moments; most stages have fewer.
MOMENTS = 8
#: What is sent: single ops, groups, groups of two keys. An archive without the key takes no versions of it.
WEIGHTS = {kind: weight for kind, weight in MIXED.items() if kind != "version"} | TWO_KEYS
#: How many calls a producer makes a round, and a second, and how many of these are bulk calls. Workers of a slow
#: machine fall behind an endless load, each update of all rows of a key takes longer, and no key gets anywhere.
LOAD: dict[str, Any] = {"ops": 700, "per_s": 60, "sheets": 0.05, "weights": WEIGHTS}


@pytest.fixture
def movers(trial: Trial) -> Iterator[DyingMovers]:
    with closing(DyingMovers(trial.rig.config)) as made:
        yield made


def test_keys_move_there_and_back_under_load_while_anything_is_killed(trial: Trial, movers: DyingMovers) -> None:
    killed = Counter[str]()
    # a worker that moves waits for 12 s until all readers know of the move: movers are the test's own here
    with trial.rig.put_off("moves"), trial.rig.worker(ready=False, PIPELINE_CRASH_AT="any:0.004"):
        for _ in range(ROUNDS):
            killed += one_round(trial, movers)

    accounts, given = dict(trial.holds()), len(trial.operator.commands)
    print(f"{len(trial.ledger):,} ops: {accounts}; {given} commands; killed: {dict(sorted(killed.items()))}")


def one_round(trial: Trial, movers: DyingMovers) -> Counter[str]:
    """Move a key there and back, while another one is away; return what was killed, and when."""
    rig = trial.rig
    (key, *_), (other, *_) = shared = two_shared_buckets(trial)
    owners = [owner for found in shared for owner in found]
    trial.owners += owners
    producers = [trial.producer(owners=owners, **LOAD) for _ in range(2)]
    home, away = places(trial, other)
    there(trial, movers, other, away)
    killed = trip(trial, movers, producers, key, places(trial, key))
    killed += trip(trial, movers, producers, key, places(trial, key)[::-1])
    for one in producers:
        one.stop()
    trial.join()

    trial.holds()
    assert judge.away(rig.primaries).keys() == {rig.client.topology.bucket_of("tally", other)}
    there(trial, movers, other, home)
    trial.holds()
    assert judge.away(rig.primaries) == {}
    return killed


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


def trip(trial: Trial, movers: DyingMovers, producers: list[Producer], key: int, way: tuple[str, ...]) -> Counter[str]:
    """Move a key by movers that are killed, one in each stage, as is something else; return what was killed."""
    luck, killed = trial.luck, Counter[str]()
    victim, when = luck.choice(("worker-0", *way)), luck.choice(STAGES)
    given_up = luck.choice(("copy", "catch", "finish"))
    for stage in STAGES:
        trial.await_progress(producers, 10)
        crash = Thread(target=killed_and_started, args=(trial, victim)) if stage == when else None
        if crash:
            crash.start()
            killed[victim] += 1
        for what in (GIVE_UP, stage) if stage == given_up else (stage,):
            became = moved(trial, movers, key, way[1], what, luck.randint(1, MOMENTS))
            killed[f"{what}: {became.partition(':')[0]}"] += 1
        if crash:
            crash.join()
    there(trial, movers, key, way[1])
    return killed


def killed_and_started(trial: Trial, name: str) -> None:
    trial.rig.cluster.kill(name)
    trial.rig.cluster.start(name)


def there(trial: Trial, movers: DyingMovers, key: int, shard: str) -> None:
    """Let a key come to a shard, whatever has become of its moves."""
    said = ""
    for _ in polls(120, first_s=0.01, most_s=0.5):
        if (said := moved(trial, movers, key, shard)) == THERE:
            trial.note_key(key)
            return
    raise AssertionError(f"{key} does not get to {shard}: {said}; {trial.operator.commands[-5:]}")


def moved(trial: Trial, movers: DyingMovers, key: int, shard: str, stage: str = "", moment: int = 0) -> str:
    """Let a mover move a key, and settle what it names as in the way, as an operator does; return what became of it."""
    said, operator = "", trial.operator
    for _ in polls(120, first_s=0.01, most_s=0.5):
        said = movers.move(f"tally={key}", shard, stage, moment)
        if not (named := operator.named(said)):
            return said
        if not operator.settle(named):
            movers.move(f"tally={key}", shard)  # what was copied is deleted first
            operator.settle(named)
    raise AssertionError(f"{key} does not get to {shard}: {said}; {trial.operator.commands[-5:]}")
