"""The spool under real faults: nothing acknowledged is lost or doubled, the order holds, and no call waits for long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import nodes, producer
from support.proxy import Proxy
from support.rig import Rig

from pipeline import clock
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.model.receipt import Receipt

SPOOL = '[spool]\npath = "{}"\n'
#: Less than the 5 s of a call that has the patience of a background job: if a request made one, it would show.
STALLED_S = 4.0
TIMEOUT_S = 0.25


class Spooled:
    """A deployment with a Redis behind a proxy, and clients that have a spool."""

    def __init__(self, rig: Rig, folder: Path):
        self.rig = rig
        self.proxy = Proxy(rig.port("redis"))
        self.path = folder / "app.spool"
        text = SPOOL.format(self.path)
        self.config = rig.config_through({rig.port("redis"): self.proxy.port}, text, "[redis]\ntimeout_s = 0.25\n")
        self.client = self.another()
        [self.owner] = rig.owners(1)
        self.tokens: list[str] = []
        self.row = self.client.enqueue_insert(rig.db.tally, owner=self.owner, name="counter")

    def another(self) -> Client:
        made = Client(self.config)
        made.define_tables(self.rig.db)
        return made

    def forget_epochs(self) -> None:
        """Let Redis be as another server, which has never given out an epoch."""
        redis = self.rig.redis
        redis.delete(*redis.scan_iter(match=f"{self.client.log.keys.epoch('*')[:-1]}*"))

    def epochs(self) -> int:
        """Return how many scopes have an epoch."""
        return len(list(self.rig.redis.scan_iter(match=f"{self.client.log.keys.epoch('*')[:-1]}*")))

    def run(self, code: str) -> str:
        """Return what a process of its own prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PIPELINE_CONFIG": str(self.config), "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def bump(self, client: Client | None = None, **how: Any) -> Receipt:
        """Send an op that shows when it is doubled, lost or out of order."""
        token = f"{len(self.tokens)},"
        self.tokens.append(token)
        tally = self.rig.db.tally
        values = {"n": tally.n + 1, "trace": tally.trace + token}
        return (client or self.client).enqueue_update("tally", self.row.id, values, shard_key=self.owner, **how)

    def drained(self) -> bool:
        return any(not self.client.spool.waiting() for _ in polls(30))

    def found(self) -> tuple[int, str]:
        """Return the counter's row as it is in its shard."""
        shard = self.client.topology.shard_of(self.row.bucket)
        with nodes.connection(self.rig.primaries[shard]) as made:
            [(n, trace)] = nodes.fetch(made, f"SELECT n, trace FROM tally WHERE id = {self.row.id}")
        return n, trace

    def holds(self, receipts: list[Receipt]) -> None:
        """Assert that every op was applied once and in order."""
        with self.rig.worker(self.rig.config):
            for receipt in receipts:
                assert receipt.wait(30) in ("applied", "durable")
            assert self.found() == (len(self.tokens), "".join(self.tokens))

    def close(self) -> None:
        self.client.close()
        self.proxy.close()


@pytest.fixture
def spooled(valkey: Rig, tmp_path: Path) -> Iterator[Spooled]:
    with closing(Spooled(valkey, tmp_path)) as made:
        yield made


def test_while_redis_is_dead_ops_are_taken_and_applied_in_order_once_it_is_back(spooled: Spooled) -> None:
    receipts = [spooled.bump() for _ in range(20)]
    spooled.rig.cluster.kill("redis")
    receipts += [spooled.bump() for _ in range(50)]
    assert receipts[-1].status() == "spooled"

    spooled.rig.cluster.start("redis")
    receipts += [spooled.bump() for _ in range(50)]
    assert spooled.drained()
    receipts += [spooled.bump() for _ in range(20)]

    assert receipts[-1].position is not None
    spooled.holds(receipts)


def test_while_redis_hangs_only_the_first_call_waits_and_not_for_long(spooled: Spooled) -> None:
    receipts = [spooled.bump()]
    spooled.proxy.pause()

    started = clock.mono_s()
    receipts.append(spooled.bump())
    first_s = clock.mono_s() - started
    fresh = spooled.another()
    receipts.append(fresh.enqueue_insert(spooled.rig.db.event, owner=spooled.owner, body="from a new process"))
    receipts += [spooled.bump() for _ in range(50)]
    all_s = clock.mono_s() - started

    assert first_s < STALLED_S
    assert all_s < STALLED_S + first_s
    assert {receipt.position for receipt in receipts[1:]} == {None}
    spooled.proxy.resume()
    spooled.proxy.cut()
    assert spooled.drained()
    spooled.holds(receipts)
    fresh.close()


@pytest.mark.parametrize(
    ("step", "lineage"), [("replication", "new"), ("HGETALL", "new"), (":bell:", "new"), (":bell:", "as it was")]
)
def test_what_is_done_late_for_a_call_that_has_left_is_done_once(spooled: Spooled, step: str, lineage: str) -> None:
    receipts = [spooled.bump()]
    if lineage == "new":
        spooled.forget_epochs()
    spooled.proxy.pause_at(step.encode())

    receipts.append(spooled.bump())
    left_with = receipts[-1].position
    spooled.proxy.resume()  # the connections stand: whatever was asked is answered now
    receipts += [spooled.bump() for _ in range(20)]

    assert left_with is None
    assert spooled.drained()
    spooled.holds(receipts)


def test_while_each_reply_lingers_ops_are_neither_doubled_nor_reordered(spooled: Spooled) -> None:
    receipts = [spooled.bump()]
    spooled.forget_epochs()
    spooled.proxy.delay_s = 0.35 * TIMEOUT_S  # three round trips are longer than a call may take
    receipts += [spooled.bump() for _ in range(5)]
    fresh = spooled.another()
    receipts += [spooled.bump(client=fresh) for _ in range(5)]

    spooled.proxy.delay_s = 0.0
    receipts += [spooled.bump() for _ in range(5)]

    assert spooled.drained()
    spooled.holds(receipts)
    fresh.close()


def test_workers_raise_the_epochs_that_redis_forgot_before_a_producer_needs_them(spooled: Spooled) -> None:
    receipts = [spooled.bump()]
    spooled.forget_epochs()

    with spooled.rig.worker(spooled.config):
        assert any(spooled.epochs() == 3 for _ in polls(20))

    receipts.append(spooled.bump())
    spooled.holds(receipts)


def test_a_reply_that_redis_swallows_doubles_nothing(spooled: Spooled) -> None:
    receipts = [spooled.bump() for _ in range(3)]
    spooled.proxy.swallow_answers(b"EVALSHA", 2)
    receipts += [spooled.bump() for _ in range(10)]

    assert spooled.drained()

    spooled.holds(receipts)


def test_redis_at_maxmemory_or_read_only_spools(spooled: Spooled) -> None:
    redis = spooled.rig.redis
    receipts = [spooled.bump()]
    redis.config_set("maxmemory", 1)
    receipts.append(spooled.bump())
    redis.config_set("maxmemory", 0)
    assert spooled.drained()
    redis.replicaof("127.0.0.1", "1")
    receipts.append(spooled.bump())
    assert receipts[1].position is None
    assert receipts[2].position is None

    redis.replicaof("no", "one")

    assert spooled.drained()
    spooled.holds(receipts)


def test_an_emptied_redis_loses_nothing_that_was_spooled_first(spooled: Spooled) -> None:
    receipts = [spooled.bump(durability="spooled") for _ in range(30)]
    assert spooled.drained()
    with spooled.rig.worker(spooled.rig.config):
        assert receipts[10].wait(30) == "applied"
    receipts += [spooled.bump(durability="spooled") for _ in range(30)]
    assert spooled.drained()
    spooled.rig.redis.flushall()
    receipts += [spooled.bump(durability="spooled") for _ in range(10)]

    assert any(spooled.client.log.tails([spooled.row.bucket]) for _ in polls(30))
    assert spooled.drained()

    spooled.holds(receipts)
    assert any(spooled.client.spool.counts().kept == 0 for _ in polls(30))


def test_two_commands_that_drain_at_once_double_nothing(spooled: Spooled) -> None:
    receipts = [spooled.bump()]
    spooled.rig.cluster.kill("redis")
    receipts += [spooled.bump() for _ in range(300)]
    spooled.client.close()
    spooled.rig.cluster.start("redis")

    commands = [command(spooled.config, "spool", "drain", "--json") for _ in range(3)]
    answers = [json.loads(one.communicate(timeout=60)[0]) for one in commands]

    assert sum(answer["sent"] for answer in answers) == 300
    assert {answer["waiting"] for answer in answers} == {0}
    spooled.client = spooled.another()
    spooled.holds([spooled.client.parse(str(receipt)) for receipt in receipts])


def test_a_worker_drains_the_spool_of_processes_that_have_gone(spooled: Spooled) -> None:
    spooled.rig.cluster.kill("redis")
    receipts = [spooled.bump() for _ in range(20)]
    spooled.client.close()
    spooled.client = Client(spooled.rig.config)
    receipts = [spooled.client.parse(str(receipt)) for receipt in receipts]
    spooled.rig.cluster.start("redis")

    with spooled.rig.worker(spooled.config):
        for receipt in receipts:
            assert receipt.wait(40) == "applied"

    assert spooled.found() == (20, "".join(spooled.tokens))


STEPS = ["add", "marked", "spooled", "definitions", "send", "sent", "settle"]


@pytest.mark.parametrize("step", STEPS)
def test_a_producer_killed_at_any_step_loses_nothing_that_was_acknowledged(spooled: Spooled, step: str) -> None:
    output = Path(f"{spooled.path}.out")
    spooled.rig.cluster.kill("redis")
    child = victim(spooled, step, output)
    assert any(output.read_text().count("\n") >= 10 or child.poll() is not None for _ in polls(30))
    spooled.rig.cluster.start("redis")
    child.wait(60)
    assert child.returncode == -signal.SIGKILL, f"see {output}.log"

    spooled.tokens = []
    receipts = [spooled.client.parse(text) for text in output.read_text().split()]
    assert spooled.client.drainer.drain().mine
    assert spooled.drained()

    assert receipts
    with spooled.rig.worker(spooled.rig.config):
        for receipt in receipts:
            assert receipt.wait(30) == "applied"
        n, trace = spooled.found()
    tokens = trace.split(",")[:-1]
    assert n == len(tokens)
    assert tokens == [str(nth) for nth in range(n)]
    # what was killed before it was acknowledged may be there or not
    assert len(receipts) <= n <= len(receipts) + 1


def victim(spooled: Spooled, step: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a process that bumps until it dies at a step."""
    output.touch()
    arguments = [str(spooled.config), str(output), step, str(spooled.row.id), str(spooled.owner)]
    with Path(f"{output}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "support.spool_victim", *arguments],
            env=producer.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def command(config: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the command-line tool."""
    environment = {**os.environ, "PIPELINE_CONFIG": str(config)}
    return subprocess.Popen([sys.executable, "-m", "pipeline", *words], env=environment, stdout=subprocess.PIPE)
