"""I9 on real servers: an op that ends whatever executes it is set aside alone, and others are applied meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.clock import polls
from pipeline.devcluster import state
from pipeline.errors import Rejected, ShardUnavailable, WaitTimeout
from pipeline.model.receipt import Receipt

pytestmark = pytest.mark.mariadb

OTHERS = 60
#: Sleeps at one value only, longer than any statement may take.
TRIGGER = """CREATE TRIGGER slow BEFORE INSERT ON event FOR EACH ROW
BEGIN IF NEW.body = 'slow' THEN DO SLEEP({}); END IF; END"""
#: Whether a worker executes the statement that sleeps.
AT_IT = "SELECT id FROM information_schema.processlist WHERE state = 'User sleep'"


@pytest.fixture
def quick(mariadb: Rig) -> Iterator[str]:
    """Two worker processes that give a statement one second, instead of the usual workers."""
    text = Path(mariadb.config).read_text()
    config = mariadb.cluster.directory / "run" / "quick.toml"
    config.write_text(text.replace("[apply]\n", "[apply]\nstatement_s = 1\n"))
    with mariadb.frozen(), mariadb.worker(config, concurrency=2) as name:
        yield name


@contextmanager
def slow(rig: Rig, for_s: int) -> Iterator[None]:
    """Let each insert of the body `slow` sleep, on all shards."""
    for uri in rig.primaries.values():
        nodes.rows(uri, TRIGGER.format(for_s))
    try:
        yield
    finally:
        for uri in rig.primaries.values():
            nodes.rows(uri, "DROP TRIGGER slow")


@contextmanager
def whenever_at_it(uri: str, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do something each time that a worker executes the statement that sleeps; yields a list of these times."""
    ended, times = threading.Event(), list[int]()

    def watch() -> None:
        known: set[int] = set()
        while not ended.wait(0.05):
            at_it = {number for (number,) in nodes.rows(uri, AT_IT)} - known
            if at_it:
                known |= at_it  # the server goes on sleeping for a client that is gone
                times.append(1)
                act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join(60)


def send(rig: Rig, worker: str) -> tuple[Receipt, list[Receipt], str]:
    """Queue one bad op among others; return its receipt, those of the others, and its shard's primary."""
    client, [owner, *owners] = rig.client, rig.owners(1 + OTHERS)
    with rig.frozen(worker):  # so that all are one batch
        bad = client.enqueue_insert("event", owner=owner, body="slow")
        good = [client.enqueue_insert("event", owner=one, body="fine") for one in owners]
    return bad, good, rig.primaries[client.topology.shard_of(bad.bucket)]


def children_of(rig: Rig, name: str) -> list[int]:
    [pid] = [process.pid for process in state.read_state(rig.cluster.directory).processes if process.name == name]
    # a thread of the worker forks those that take the place of the dead
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for text in lists for child in text.split()]


def test_a_statement_that_always_takes_too_long_is_rejected_and_others_pass_it(mariadb: Rig, quick: str) -> None:
    with slow(mariadb, for_s=30):
        bad, good, _ = send(mariadb, quick)

        mariadb.client.wait_all(good, timeout_s=60)
        with pytest.raises(Rejected, match="poison"):
            bad.wait(60)


def test_a_statement_in_which_the_worker_is_killed_each_time_is_rejected(mariadb: Rig, quick: str) -> None:
    def kill() -> None:
        for pid in children_of(mariadb, quick):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    with slow(mariadb, for_s=1):
        bad, good, uri = send(mariadb, quick)
        with whenever_at_it(uri, kill) as times:
            mariadb.client.wait_all(good, timeout_s=60)
            with pytest.raises(Rejected, match="poison"):
                bad.wait(60)

    assert len(times) >= 3


def patiently(wait: Callable[[], object]) -> None:
    """Wait also through the times in which the test keeps the database down."""
    for _ in polls(120):
        try:
            wait()
            return
        except (ShardUnavailable, WaitTimeout):
            continue
    pytest.fail("it did not come to pass")


def test_a_statement_that_crashes_the_database_each_time_is_rejected(mariadb: Rig, quick: str) -> None:
    noted: list[str | None] = []

    def crash() -> None:
        noted.append(mariadb.client.log.attempts(shard).get(bad.bucket))
        mariadb.cluster.kill(shard)
        mariadb.cluster.start(shard)

    with slow(mariadb, for_s=30):  # longer than a statement may take, should the crash come late
        bad, good, uri = send(mariadb, quick)
        shard = mariadb.client.topology.shard_of(bad.bucket)
        with whenever_at_it(uri, crash) as times:
            patiently(lambda: mariadb.client.wait_all(good, timeout_s=10))
            with pytest.raises(Rejected, match="poison"):
                patiently(lambda: bad.wait(10))

    # beside others, alone in its bucket, and then the op alone; what was noted shows a death that nobody has counted
    assert 3 <= len(times) <= 8, (noted, mariadb.log_text(quick)[-20_000:])


def test_a_row_that_another_program_holds_delays_its_own_bucket_alone(mariadb: Rig) -> None:
    client, [owner, *owners] = mariadb.client, mariadb.owners(1 + OTHERS)
    made = {one: client.enqueue_insert("tally", owner=one, name="n") for one in (owner, *owners)}
    client.wait_all(made.values(), timeout_s=30)
    shard = client.topology.shard_of(made[owner].bucket)

    with nodes.locked_rows(mariadb.primaries[shard], owner):
        waits = client.enqueue_update(mariadb.db.tally.id == made[owner].id, name="held")
        others = [one for one in owners if made[one].bucket != made[owner].bucket]
        for _ in range(3):
            sent = [client.enqueue_update(mariadb.db.tally.id == made[one].id, name="free") for one in others]
            client.wait_all(sent, timeout_s=30)
        assert waits.status() == "queued"

    waits.wait(30)
    [[name]] = nodes.rows(mariadb.primaries[shard], f"SELECT name FROM tally WHERE id = {waits.id}")
    assert name == "held"
