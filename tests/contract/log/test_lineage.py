"""A server that restarted, was promoted or forgot everything takes nothing before its epoch is raised."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from uuid import uuid4

import pytest

from pipeline.clock import polls
from pipeline.model import SPAN, START, Position
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, HOLE, SEEN, Append, Appended, EpochStale, Placed, Scope
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.log import RedisLog

S0 = Scope("s0", ("s0",))
PRODUCER = 5
EPOCH = 7
#: A span of ids that the clock has not reached.
FAR = 2**20


class System(Protocol):
    """A log with a lagging replica, and the faults that befall it."""

    log: Log

    def restart(self) -> None: ...
    def start_replicating(self) -> None: ...
    def stop_replicating(self) -> None: ...
    def promote(self) -> None: ...
    def wipe(self) -> None: ...
    def forget_ids(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.log = MemoryLog()
        self.replica: object = None

    def restart(self) -> None:
        self.log.restart()

    def start_replicating(self) -> None:
        pass

    def stop_replicating(self) -> None:
        self.replica = self.log.replica()

    def promote(self) -> None:
        self.log.fail_over(self.replica)

    def wipe(self) -> None:
        self.log.fail_over()

    def forget_ids(self) -> None:
        self.log._server.ids.clear()
        self.log._server.spans.clear()

    def close(self) -> None:
        self.log.close()


class OverRedis:
    def __init__(self, primary: Any, replica: Any) -> None:
        self.primary, self.replica = primary, replica
        self.prefix = f"t{uuid4().hex[:8]}"
        self.log = RedisLog(primary.url, prefix=self.prefix, timeout_s=5)

    def _replicated(self) -> None:
        for _ in polls(30):
            if self.replica.client().info("replication").get("master_link_status") != "up":
                continue
            if self.primary.client().wait(1, 1000) == 1:
                return
        pytest.fail("the replica did not catch up")

    def restart(self) -> None:
        self.primary.restart(signal.SIGKILL)

    def start_replicating(self) -> None:
        self.replica.client().replicaof("127.0.0.1", self.primary.port)
        self._replicated()
        # a server changes its identity when its first replica joins: one more epoch, and no harm
        raise_to(self.log, EPOCH)

    def stop_replicating(self) -> None:
        self._replicated()
        self.replica.client().replicaof("127.0.0.1", 1)  # keeps what it has, and stays a replica

    def promote(self) -> None:
        self.primary.stop(signal.SIGKILL)
        self.replica.client().replicaof("NO", "ONE")
        self.log.close()
        self.log = RedisLog(self.replica.url, prefix=self.prefix, timeout_s=5)

    def wipe(self) -> None:
        self.primary.client().flushall()
        self.primary.restart(signal.SIGKILL)

    def forget_ids(self) -> None:
        self.primary.client().delete(self.log.keys.ids)

    def close(self) -> None:
        self.log.close()
        self.primary.start()
        self.replica.client().replicaof("NO", "ONE")


@pytest.fixture(scope="module")
def pair(start_log_server: Callable[[str], Any]) -> Callable[[str], tuple[Any, Any]]:
    made: dict[str, tuple[Any, Any]] = {}

    def get(kind: str) -> tuple[Any, Any]:
        if kind not in made:
            made[kind] = start_log_server(kind), start_log_server(kind)
        return made[kind]

    return get


@pytest.fixture(params=["memory", "redis", "valkey"])
def system(request: pytest.FixtureRequest, pair: Callable[[str], tuple[Any, Any]]) -> Iterator[System]:
    system = InMemory() if request.param == "memory" else OverRedis(*pair(request.param))
    raise_to(system.log, EPOCH)
    yield system
    system.close()


def raise_to(log: Log, epoch: int) -> bool:
    return log.raise_epoch("s0", log.epoch("s0")[2], epoch)


def append(log: Log, epoch: int, first: int, *payloads: bytes, bucket: int = 3) -> Appended:
    line = log.line()
    try:
        return line.append(S0, epoch, PRODUCER, [Append(bucket, first, payloads)], "", 0)
    finally:
        line.close()


def payloads(log: Log) -> list[bytes]:
    return [entry.payload for entry in log.read({3: START}, {3: 1000})[3]]


def test_a_restarted_server_keeps_everything_and_takes_nothing_before_its_epoch_is_raised(system: System):
    append(system.log, 7, 1, b"a", b"b")

    system.restart()

    log = system.log
    assert log.epoch("s0")[:2] == (7, False)
    with pytest.raises(EpochStale):
        append(log, 7, 3, b"c")
    assert payloads(log) == [b"a", b"b"]
    assert raise_to(log, 8)
    assert append(log, 8, 3, b"c").placed == [Placed(APPENDED, Position(8, 0))]
    assert append(log, 8, 2, b"b").placed[0].code == SEEN


def test_a_line_in_use_takes_no_single_op_on_a_restarted_server_before_its_epoch_is_raised(system: System):
    line = system.log.line()
    for seq in (1, 2):  # the second goes the short way
        assert line.append_one(S0, 7, PRODUCER, 3, seq, b"%d" % seq) is not None

    system.restart()

    assert line.append_one(S0, 7, PRODUCER, 3, 3, b"3") is None
    assert line.append_one(S0, 7, PRODUCER, 3, 3, b"3") is None
    assert payloads(system.log) == [b"1", b"2"]
    assert raise_to(system.log, 8)
    position, _ = line.append_one(S0, 8, PRODUCER, 3, 3, b"3") or (None, False)
    assert position == Position(8, 0)
    line.close()


def test_a_promoted_replica_takes_nothing_before_its_epoch_is_raised(system: System):
    system.start_replicating()
    append(system.log, 7, 1, b"a")
    system.stop_replicating()
    append(system.log, 7, 2, b"lost")

    system.promote()

    log = system.log
    assert log.epoch("s0")[:2] == (7, False)
    with pytest.raises(EpochStale):
        append(log, 7, 3, b"c")
    assert payloads(log) == [b"a"]


def test_what_a_promoted_replica_never_saw_shows_as_a_hole_in_its_producers_sequence(system: System):
    system.start_replicating()
    append(system.log, 7, 1, b"a")
    system.stop_replicating()
    append(system.log, 7, 2, b"lost")
    system.promote()
    raise_to(system.log, 8)

    answer = append(system.log, 8, 3, b"c")

    assert answer.placed == [Placed(HOLE, Position(0, 1))]
    assert payloads(system.log) == [b"a"]


def test_a_server_that_forgot_everything_has_no_epoch_and_takes_nothing(system: System):
    append(system.log, 7, 1, b"a")

    system.wipe()

    assert system.log.epoch("s0")[:2] == (0, False)
    with pytest.raises(EpochStale):
        append(system.log, 7, 2, b"b")
    assert system.log.tails([3]) == {}


def test_an_epoch_is_not_raised_on_a_server_that_changed_since_it_was_looked_at(system: System):
    seen = system.log.epoch("s0")[2]

    system.restart()

    assert not system.log.raise_epoch("s0", seen, 8)
    assert system.log.epoch("s0")[:2] == (7, False)


def test_dirty_buckets_and_watermarks_outlive_a_restart(system: System):
    append(system.log, 7, 1, b"a", b"b")
    append(system.log, 7, 1, b"a", bucket=4)
    system.log.finish("s0", {4: Position(7, 0)})

    system.restart()

    assert list(system.log.due("s0", 10)) == [3]
    assert system.log.marks("s0") == {4: Position(7, 0)}


@pytest.mark.parametrize("fault", ["restart", "promote", "wipe", "forget_ids"])
def test_a_server_that_may_have_forgotten_what_it_gave_gives_no_ids_of_that_span(system: System, fault: str):
    system.start_replicating()
    system.log.give_ids("s0", {3: 10}, FAR)
    system.stop_replicating()
    system.log.give_ids("s0", {3: 10})

    getattr(system, fault)()

    assert system.log.give_ids("s0", {3: 10}).starts is None
    assert system.log.give_ids("s0", {3: 10}, FAR + 1).starts == {3: (FAR + 1) * SPAN}
