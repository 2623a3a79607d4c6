"""Buckets move to and fro under load while movers, workers and primaries are killed: nothing is lost or doubled."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing

import pytest
from support.chance import SOAK
from support.oracle import judge
from support.oracle.producer import Producer, environment
from support.oracle.trial import Trial

from pipeline import clock
from pipeline.admin import moving as movers
from pipeline.admin.moving import Mover, orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config import Topology
from pipeline.enqueue.buckets import follow
from pipeline.errors import PipelineError, Unavailable
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.moves import MoveNote

pytestmark = pytest.mark.mariadb
#: Rounds of each run, moves that are under way at once in each, and how long one may take with all that is killed, s.
#: `PIPELINE_SOAK=6` makes 144 moves, and kills everything in every stage.
ROUNDS, AT_ONCE, MOVE_S = 4 * SOAK, 1 if SOAK == 1 else 6, 90 if SOAK == 1 else 300
#: How far replicas may be behind, s: a busy machine's are. Beyond it, a mover waits, and one that dies waits anew.
MAX_LAG_S = 30
#: What is killed, and in which stage of a move: within 24 rounds each in each stage; a run begins anywhere.
VICTIMS = ("command", "worker-0", "source", "target")
STAGES = ("copy", "catch", "finish", "publish", "clean", "begin")
KILLS = [(VICTIMS[n % 4], STAGES[(n + n // 12) % 6]) for n in range(24)]
#: `pipeline move`, which waits for no readers.
COMMAND = "from pipeline.admin import moving; moving.HEARD_S = 0.0; from pipeline.cli import main; main()"


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)  # no reads here


def test_buckets_move_under_load_while_anything_is_killed(trial: Trial) -> None:
    topology, owners = trial.rig.client.topology, trial.choose_owners(12)
    buckets = sorted({topology.bucket_of("tally", owner) for owner in owners})
    load, producers, killed = trial.load(), list[Producer](), Counter[str]()
    first = trial.luck.randrange(len(KILLS))

    for n in range(ROUNDS):
        if all(one.child.poll() is not None for one in producers):
            trial.join()
            trial.send(load, 60)  # groups and versions, too, while nothing is killed: neither can be sent again
            producers = [trial.producer(300, per_s=100, sure=True) for _ in range(2)]
        trial.await_progress(producers)
        one = Round(trial, trial.luck.sample(buckets, AT_ONCE))
        killed[one.run(*KILLS[(first + n) % len(KILLS)])] += 1
        judge.owners_of(trial.rig.primaries, topology)
    trial.join()

    print(f"{ROUNDS * AT_ONCE} moves, {len(trial.ledger):,} ops: {dict(trial.holds())}")
    print(f"killed: {dict(sorted(killed.items()))}")
    owners = judge.owners_of(trial.rig.primaries, topology)
    assert {bucket: followed(trial.rig.client).shard_of(bucket) for bucket in buckets}.items() <= owners.items()
    assert topology.placement.moves == {}


class Round:
    """Some buckets that move at once, each to the other shard, and something that is killed once."""

    def __init__(self, trial: Trial, buckets: list[int]):
        self.trial, self.client, self.buckets = trial, trial.rig.client, buckets
        topology = followed(self.client)
        self.sources = {bucket: topology.shard_of(bucket) for bucket in buckets}
        self.targets = {b: next(one for one in topology.shards if one != self.sources[b]) for b in buckets}
        self.over, self.failed = set[int](), list[BaseException]()

    def run(self, victim: str, stage: str) -> str:
        """Move all; return what was killed, and in which stage the first of the moves was then."""
        first, *others = self.buckets
        command = self.command(first) if victim == "command" else None
        threads = [self.thread(bucket) for bucket in (others if command else self.buckets)]
        met = self.await_stage(first, stage, command)
        if command:
            command.kill()
            command.wait()
            threads.append(self.thread(first))
        else:
            name = {"source": self.sources, "target": self.targets}.get(victim, {}).get(first, victim)
            self.trial.rig.cluster.kill(name)
            self.trial.rig.cluster.start(name)
        for thread in threads:
            thread.join()
        assert self.failed == []
        return f"{victim} in {met}"

    def command(self, bucket: int) -> subprocess.Popen[bytes]:
        """Start a command that moves a bucket."""
        words = f"move {bucket} --to {self.targets[bucket]} --keep 0 --max-lag {MAX_LAG_S}".split()
        words += ["--config", str(self.trial.rig.config)]
        return subprocess.Popen([sys.executable, "-c", COMMAND, *words], env=environment(), stderr=subprocess.DEVNULL)

    def thread(self, bucket: int) -> threading.Thread:
        """Start to move a bucket, or to go on with what a command has begun."""
        luck = random.Random(self.trial.luck.random())

        def move() -> None:
            try:
                with closing(Client(self.trial.rig.config)) as client:
                    begin(client, bucket, self.targets[bucket])
                    moved(client, luck, bucket, self.targets[bucket])
            except BaseException as error:
                self.failed.append(error)
            self.over.add(bucket)

        made = threading.Thread(target=move)
        made.start()
        return made

    def await_stage(self, bucket: int, stage: str, command: subprocess.Popen[bytes] | None) -> str:
        """Wait until a move is in a stage, or behind it; return its stage."""
        order, met = ("", "begin", "copy", "catch", "finish", "publish", "clean", "over"), ""
        for _ in polls(MOVE_S, first_s=0.001, most_s=0.003):
            over = command.poll() is not None if command else bucket in self.over
            try:
                met = next((one.stage() for one in of_bucket(self.client, bucket)), "over" if over else "")
            except (PipelineError, OSError):
                continue
            if met not in order or order.index(met) >= order.index(stage):
                break
        return met


@pytest.mark.parametrize("state", ["copying", "catching up"])
def test_workers_go_on_with_a_move_whose_command_was_killed(trial: Trial, state: str) -> None:
    client, topology = trial.rig.client, trial.rig.client.topology
    bucket = topology.bucket_of("tally", trial.choose_owners(1)[0])
    target = next(shard for shard in topology.shards if shard != topology.shard_of(bucket))
    trial.producer(600 * SOAK)

    command = ["-m", "pipeline", "move", str(bucket), "--to", target, "--keep", "0", "--config", str(trial.rig.config)]
    child = subprocess.Popen([sys.executable, *command], env=environment(), stderr=subprocess.DEVNULL)
    for _ in polls(MOVE_S, first_s=0.01):
        if states(client, target, bucket) == {"copying": "copying", "catching up": "catching"}[state]:
            break
    child.kill()
    child.wait()

    for _ in polls(MOVE_S, most_s=0.5):
        if not [one for one in orders.under_way(client) if bucket in one.buckets]:
            break
    trial.join()
    assert states(client, target, bucket) in ("active", "holding")
    trial.holds()


def followed(client: Client) -> Topology:
    """Return who has which bucket, by what the shards say now."""
    follow(client.log, client.nodes, client.topology, anew=True)
    return client.topology


def begin(client: Client, bucket: int, target: str) -> None:
    """Order a move, unless a command has."""
    for _ in polls(MOVE_S):
        try:
            if followed(client).shard_of(bucket) != target and not of_bucket(client, bucket):
                orders.order_move(client, [bucket], target, "test", keep_s=0, note=MoveNote(max_lag_s=MAX_LAG_S))
            return
        except Unavailable:
            continue
    raise AssertionError("a primary did not come back")


def of_bucket(client: Client, bucket: int) -> list[Mover]:
    """Return a mover of a bucket's move that is not over; a shard that is away may know of one, so it is waited for."""
    told = [(shard, moves.legs(client.nodes.primary(shard), [bucket])) for shard in client.topology.shards]
    return [Mover(client, leg, (bucket,)) for shard, legs in told for leg in legs.values() if leg.under_way(shard)]


def moved(client: Client, luck: random.Random, bucket: int, target: str) -> None:
    """Go on with a move by movers that die now and then."""
    deadline, last = clock.Deadline(MOVE_S), ""
    while not deadline.passed:
        try:
            found = of_bucket(client, bucket)
            if not found:
                return
            if not found[0].hold():
                last = "a worker is at it"
                clock.sleep_s(0.1)
                continue
            try:
                for _, step in zip(range(luck.randrange(1, 20)), found[0].steps(), strict=False):
                    last = f"{step.stage} {step.text}"
            finally:
                found[0].release()  # as if its lease had run out
        except (Unavailable, PipelineError) as error:
            last = f"{type(error).__name__}: {error}"
            clock.sleep_s(0.1)
    known = [one for one in orders.known(client) if one.buckets == str(bucket)]
    raise AssertionError(f"bucket {bucket} did not get to {target}: {known}; {last}")


def states(client: Client, shard: str, bucket: int) -> str:
    mark = ledger_queries.marks_of(client.nodes.primary(shard), [bucket]).get(bucket)
    return mark.state if mark else ""
