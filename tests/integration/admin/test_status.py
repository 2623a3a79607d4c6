"""`pipeline status` and `pipeline top` on real servers: exact counts, and "unknown" for what does not answer."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from click.testing import CliRunner
from support.servers.admin import Servers, model, servers

from pipeline import cli
from pipeline.admin import check, upkeep
from pipeline.admin.observe import Observer
from pipeline.admin.observe.record import Record, ShardRecord
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.clock import Deadline, polls
from pipeline.config.settings import load
from pipeline.model import START, Position
from pipeline.oplog.redis.log import RedisLog

pytestmark = pytest.mark.mariadb

OPS = 60


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("status")) as up:
        up.publish()
        yield up


@pytest.fixture
def pipeline(here: Servers) -> Iterator[Client]:
    client = here.client()
    client.define_tables(model())
    yield client
    drain(client)
    client.close()


@pytest.fixture
def observer(here: Servers, pipeline: Client) -> Iterator[Observer]:
    observer = Observer(load(here.config()))
    yield observer
    observer.close()


def test_queued_ops_are_counted_until_they_are_applied(pipeline: Client, observer: Observer) -> None:
    enqueue(pipeline, OPS)

    before = observer.look()
    drain(pipeline)
    after = observer.look()

    assert total(before, lambda shard: shard.depth) == OPS
    assert all(shard.oldest_ms is not None and shard.dirty for shard in before.shards)
    assert all(shard.rate is None for shard in before.shards)
    assert total(after, lambda shard: shard.depth) == 0
    assert all(shard.oldest_ms is None and shard.dirty == 0 for shard in after.shards)
    assert all(shard.rate for shard in after.shards)
    assert not after.unknown


def test_a_replica_that_stands_is_as_many_ops_behind_as_were_applied(
    here: Servers, pipeline: Client, observer: Observer
) -> None:
    settle(observer)
    here.sql("s0-r0", "STOP SLAVE SQL_THREAD")
    try:
        enqueue(pipeline, OPS)
        waiting = {shard.shard: shard.depth for shard in observer.look().shards}
        drain(pipeline)
        [behind] = observer.look().shards[0].replicas
    finally:
        here.sql("s0-r0", "START SLAVE SQL_THREAD")

    assert behind.lag_ops == waiting["s0"]
    assert behind.lag_ms
    settle(observer)


def test_refused_and_lost_ops_are_counted(here: Servers, pipeline: Client, observer: Observer) -> None:
    for _ in range(2):
        pipeline.enqueue_insert("purchase", customer=-1, day=date(2020, 1, 1))
    drain(pipeline)
    here.sql("s1", "INSERT INTO pipeline_lost VALUES (20, 1, 0, 5, 7, 0)")

    status = observer.look()

    assert total(status, lambda shard: shard.rejected) == 1
    assert status.shards[1].lost == 3
    found = CliRunner().invoke(cli.pipeline, ["status", "--config", str(here.cluster.config)])
    assert found.exit_code == 1
    assert found.output.startswith("fault: s0: 1 op was refused for good; ")
    assert re.search(r"the last is \d+:\d+-\d+ of purchase, error \d+", found.output)
    checked = check.check(here.config()).findings
    assert [(one.where, one.what) for one in checked[:2]] == [
        ("s0: 1 op", "was refused for good"),
        ("s1: 3 ops", "were lost by Redis"),
    ]


def test_a_paused_shard_is_named_with_who_and_why(here: Servers, pipeline: Client, observer: Observer) -> None:
    ask(here, "pause", "s0", "--reason", "a disk swap")
    enqueue(pipeline, OPS)
    outcome = worker(pipeline, "s0").apply()
    paused = observer.look().shards[0]

    asked = CliRunner().invoke(cli.pipeline, ["why", "s0", "--json", "--config", str(here.cluster.config)])
    assert ask(here, "resume", "s0") == "shard s0 goes on"
    drain(pipeline)

    reason, no_worker = paused.waits
    assert no_worker.kind == "no-worker"
    assert no_worker.since_ms > 0
    assert outcome.waiting == reason.sentence()
    assert asked.exit_code == 1
    assert outcome.waiting in json.loads(asked.output)["sentences"]
    assert json.loads(asked.output)["reasons"][0]["kind"] == "paused"
    assert "because s0 is paused (by " in outcome.waiting
    assert "a disk swap" in outcome.waiting
    assert paused.depth
    assert total(observer.look(), lambda shard: shard.depth) == 0
    assert ask(here, "why", "s0") == "nothing of shard s0 waits"
    assert ask(here, "drain", "s1").endswith("its ops wait until: pipeline resume s1")
    assert ask(here, "resume", "s1") == "shard s1 goes on"


def test_a_table_that_halts_is_resumed_and_what_waited_is_applied(here: Servers, pipeline: Client) -> None:
    same = [{"customer": -2, "day": date(2021, 1, 1)}] * 60
    pipeline.enqueue_bulk_insert("purchase", same)
    drain(pipeline)
    waiting = pipeline.enqueue_insert("purchase", customer=-2, day=date(2022, 1, 1))
    visit = pipeline.enqueue_insert("visit", note="goes on")
    drain(pipeline)

    found = CliRunner().invoke(cli.pipeline, ["status", "--config", str(here.cluster.config)])
    [shard] = pipeline.topology.shards_of(waiting.bucket)
    here.sql(shard, "ALTER TABLE purchase COMMENT = 'mended'")
    before = upkeep.release_waiting(pipeline, shard)
    after = (waiting.status(), visit.status())
    here.sql(shard, "DELETE FROM pipeline_rejects")

    assert f"fault: {shard}: purchase is halted: Duplicate entry for key" in found.output
    assert after[0] in ("replayed", "durable")
    assert after[1] in ("applied", "durable")
    assert before == 0, "the one that was tried was the only one"
    assert ask(here, "why", "purchase") == "nothing of table purchase waits"
    assert ask(here, "pause", "purchase").startswith("table purchase is paused")
    paused = pipeline.enqueue_insert("purchase", customer=-2, day=date(2023, 1, 1))
    drain(pipeline)
    assert paused.status() == "parked"
    assert ask(here, "resume", "purchase") == "table purchase goes on; 1 op that was set aside is settled"
    assert paused.status() == "replayed"


def test_a_full_pipeline_says_why(pipeline: Client, observer: Observer) -> None:
    pipeline.log.set_full("the disk is on fire")
    try:
        status = observer.look()
    finally:
        pipeline.log.set_full(None)

    assert status.redis.full == "the disk is on fire"
    assert observer.look().redis.full is None


def test_a_node_that_does_not_answer_is_unknown_and_never_nought(here: Servers, pipeline: Client) -> None:
    enqueue(pipeline, OPS)
    here.cluster.stop("s1", signal.SIGSTOP)
    here.cluster.stop("s0-r0", signal.SIGSTOP)
    try:
        run = CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(here.cluster.config)])
        plain = CliRunner().invoke(cli.pipeline, ["status", "--config", str(here.cluster.config)])
    finally:
        here.cluster.stop("s1", signal.SIGCONT)
        here.cluster.stop("s0-r0", signal.SIGCONT)

    assert run.exit_code == plain.exit_code == 1
    first, second = json.loads(run.output)["shards"]
    assert (first["nodes"][1]["lag_ops"], first["nodes"][1]["lag_ms"]) == (None, None)
    assert first["rejected"] is not None
    assert (second["rejected"], second["rate"], second["nodes"][1]["lag_ops"]) == (None, None, None)
    # the workers' last word is in Redis: a dead primary's queue can still be told, as a limit
    assert second["at_most"] is True
    assert first["depth"] + second["depth"] == OPS
    assert "replica=s0-r0 lag_ops=unknown lag=unknown" in plain.output
    assert "shard=s1 state=unknown queued=<=" in plain.output


def test_without_redis_the_queue_is_unknown_and_the_replicas_are_not(here: Servers) -> None:
    settle_with(here)
    config = here.config()
    config["redis"]["url"] = "redis://127.0.0.1:1/0"
    observer = Observer(load(config))

    status = observer.look()
    observer.close()

    assert {name for name, _ in status.unknown} == {"redis"}
    assert [shard.depth for shard in status.shards] == [None, None]
    assert [replica.lag_ops for shard in status.shards for replica in shard.replicas] == [0, 0]


def test_entries_are_counted_exactly_across_epochs(here: Servers) -> None:
    log = RedisLog(here.config()["redis"]["url"], prefix="epochs")
    with here.redis() as client:
        for id in ("3-0", "3-1", "3-2", "7-0", "9-0", "9-1"):
            client.xadd(log.keys.log(0), {"p": 1, "s": 1, "o": "x"}, id=id)

    counted = [log.queued({0: after, 1: START})[0] for after in POSITIONS]
    log.close()

    assert counted == [6, 5, 3, 2, 1, 0, 0]


POSITIONS = [START, *(Position(*pair) for pair in ((3, 0), (3, 2), (7, 0), (9, 0), (9, 1), (11, 4)))]


def test_the_screen_fits_into_a_hundred_columns(here: Servers, pipeline: Client) -> None:
    enqueue(pipeline, OPS)

    output = on_a_terminal(here, "status")[1]

    assert "applied/s" in output
    assert "s1-r0" in output
    assert "…" not in output


@pytest.mark.parametrize("leave", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_top_ends_with(here: Servers, leave: bytes) -> None:
    code, output = on_a_terminal(here, "top", ("s1-r0", leave))

    assert code == 0
    assert "s1-r0" in output
    assert "Traceback" not in output


def test_top_pauses_resumes_and_opens_a_shard_by_its_keys(here: Servers, pipeline: Client) -> None:
    here.sql("s0", "DELETE FROM pipeline_rejects")
    code, output = on_a_terminal(
        here,
        "top",
        ("s1-r0", b"p"),
        ("pause shard s0?", b"y"),
        ("shard s0 is paused", b"\x1b[B\x1b[Ar"),
        ("resume shard s0?", b"y"),
        ("shard s0 goes on", b"\r"),
        ("no op is set aside", b"x"),
        ("nothing of s0 is set aside", b"q"),
    )

    assert code == 0, output[-3000:]
    assert ask(here, "why", "s0") == "nothing of shard s0 waits"


def enqueue(pipeline: Client, ops: int) -> None:
    rows = [{"customer": customer, "day": date(2024, 1, 1), "note": os.urandom(4).hex()} for customer in range(ops)]
    pipeline.enqueue_bulk_insert("visit", [{"note": row["note"]} for row in rows])


def drain(pipeline: Client) -> None:
    for shard in pipeline.topology.shards:
        applier = worker(pipeline, shard)
        for _ in polls(20):
            if not pipeline.log.dirty(shard):  # type: ignore[attr-defined]
                break
            applier.apply()


def worker(pipeline: Client, shard: str) -> Applier:
    return Applier(shard, pipeline.nodes.primary(shard), pipeline.log, pipeline.settings.apply)


def ask(here: Servers, *command: str) -> str:
    run = CliRunner().invoke(cli.pipeline, [*command, "--config", str(here.cluster.config)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.output.strip()


def settle(observer: Observer) -> None:
    for _ in polls(20):
        replicas = [replica for shard in observer.look().shards for replica in shard.replicas]
        if all(replica.lag_ops == 0 for replica in replicas):
            return
    raise AssertionError(replicas)


def settle_with(here: Servers) -> None:
    observer = Observer(load(here.config()))
    settle(observer)
    observer.close()


def total(status: Record, figure: Callable[[ShardRecord], int | None]) -> int:
    numbers = [figure(shard) for shard in status.shards]
    assert None not in numbers
    return sum(number or 0 for number in numbers)


def on_a_terminal(here: Servers, command: str, *steps: tuple[str, bytes]) -> tuple[int, str]:
    """Run a command on a terminal of a hundred columns; press the keys of each step once its words are there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    argv = [sys.executable, "-m", "pipeline", command, "--config", str(here.cluster.config)]
    terminal: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(argv, env=environment, start_new_session=True, preexec_fn=own_terminal, **terminal) as run:
        os.close(theirs)
        output, seen, to_do, deadline = b"", 0, list(steps), Deadline(30)
        while not deadline.passed:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    output += os.read(ours, 65_536)
                except OSError:  # how Linux says that the other end is closed
                    break
            if to_do and (at := output.find(to_do[0][0].encode(), seen)) >= 0:
                os.write(ours, to_do.pop(0)[1])
                seen = at + 1
        os.close(ours)
        return run.wait(10), output.decode()


def own_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
