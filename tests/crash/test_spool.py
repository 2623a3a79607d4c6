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

import pytest
from support.oracle import producer
from support.servers.rig import Rig
from support.servers.spooled import Spooled

from pipeline import clock
from pipeline.client import Client
from pipeline.clock import polls

#: Less than the 5 s of a call that has the patience of a background job: if a request made one, it would show.
STALLED_S = 4.0
TIMEOUT_S = 0.25


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


@pytest.mark.parametrize(("step", "lineage"), [("replication", "new"), (":bell:", "new"), (":bell:", "as it was")])
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
    assert spooled.drained()  # on a busy machine the first ops may have gone through the spool
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
    spooled.rig.cluster.start("redis")
    receipts = [spooled.client.parse(str(receipt)) for receipt in receipts]

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
            [sys.executable, "-m", "support.servers.spool_victim", *arguments],
            env=producer.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def command(config: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the command-line tool."""
    environment = {**os.environ, "PIPELINE_CONFIG": str(config)}
    return subprocess.Popen([sys.executable, "-m", "pipeline", *words], env=environment, stdout=subprocess.PIPE)
