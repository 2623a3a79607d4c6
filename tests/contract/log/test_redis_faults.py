"""What only a real server can do: lose a reply, run out of memory, have no replica and no disk, refuse to answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from uuid import uuid4

import pytest
from support.sandbox.logs import sequences

from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.model import START, Position
from pipeline.oplog.appends import APPENDED, BIG_BYTES, SEEN, Append, Appended, Line, Placed, Scope
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.shared_state import BELL_MS, BIG_TTL_MS, IDEMPOTENCY_TTL_MS, PRODUCER_TTL_MS, ROOM_MS

S0 = Scope("s0", ("s0",))
KINDS = pytest.mark.parametrize("kind", ["redis", "valkey"])


class Proxy:
    """Passes bytes on to a port; the next `lose` replies go astray, and their connections with them."""

    def __init__(self, port: int):
        self.lose = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target), timeout=30)
                self._ends += (client, server)
                for source, target, replies in ((client, server, False), (server, client, True)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, target, replies)))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while passed := source.recv(65_536):
                if replies and self.lose:
                    self.lose -= 1
                    break
                target.sendall(passed)
        _shut(source, target)

    def close(self) -> None:
        _shut(self._listener, *self._ends)
        for thread in self._threads:
            thread.join(timeout=30)
        for end in (self._listener, *self._ends):
            end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(kind: str, log_server: Callable[[str], Any]) -> Any:
    return log_server(kind)


@pytest.fixture
def log(server: Any) -> Iterator[RedisLog]:
    log = RedisLog(server.url, prefix=f"t{uuid4().hex[:8]}", timeout_s=5)
    log.raise_epoch("s0", log.epoch("s0")[2], 7)
    yield log
    log.close()


@pytest.fixture
def proxy(server: Any) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def far(server: Any, log: RedisLog, proxy: Proxy) -> Iterator[Line]:
    """A line whose replies may be lost, that is connected."""
    distant = RedisLog(server.url.replace(str(server.port), str(proxy.port)), prefix=log.keys.prefix, timeout_s=5)
    line = distant.line()
    append(line, 1, b"first")
    yield line
    line.close()
    distant.close()


def append(line: Line, first: int, *payloads: bytes, key: str = "", row_id: int = 0) -> Appended:
    return line.append(S0, 7, 5, [Append(3, first, payloads)], key, row_id)


def payloads(log: RedisLog) -> list[bytes]:
    return [entry.payload for entry in log.read({3: START}, {3: 1000})[3]]


@KINDS
def test_an_op_whose_reply_was_lost_is_appended_once(log: RedisLog, proxy: Proxy, far: Line):
    proxy.lose = 1

    answer = append(far, 2, b"a")

    assert answer.placed == [Placed(SEEN, Position(7, 1))]
    assert payloads(log) == [b"first", b"a"]
    assert append(far, 3, b"b").placed == [Placed(APPENDED, Position(7, 2))]


@KINDS
def test_an_op_whose_reply_was_lost_twice_is_in_doubt_and_says_so(log: RedisLog, proxy: Proxy, far: Line):
    proxy.lose = 2

    with pytest.raises(LogUnavailable, match="may or may not be queued") as raised:
        append(far, 2, b"a")

    assert raised.value.sent
    assert raised.value.retryable
    assert payloads(log) == [b"first", b"a"]


@KINDS
def test_an_idempotency_key_survives_a_lost_reply(log: RedisLog, proxy: Proxy, far: Line):
    proxy.lose = 1

    answer = append(far, 2, b"a", key="k")

    assert answer.claim == "7 1 5 2 0"
    assert payloads(log) == [b"first", b"a"]


@KINDS
def test_a_server_that_forgot_its_scripts_is_told_them_again(server: Any, log: RedisLog):
    line = log.line()
    append(line, 1, b"a")
    server.client().script_flush()

    assert append(line, 2, b"b").placed[0].code == APPENDED
    server.client().script_flush()
    assert list(log.due("s0", 10)) == [3]
    server.client().script_flush()
    entries, _ = log.read_noted("s0", {3: START}, {3: 5}, {3: "0--1 first"}, anew=False)
    assert [entry.payload for entry in entries[3]] == [b"a", b"b"]
    assert log.attempts("s0") == {3: "0--1 first"}
    line.close()


@KINDS
def test_a_look_by_a_thread_that_ends_leaves_no_connection_behind(server: Any, log: RedisLog):
    """`pipeline top` looks from a thread of its own each time, where no worker publishes a record."""
    log.memory()
    before = len(server.client().client_list())

    for _ in range(5):
        thread = threading.Thread(target=lambda: (log.memory(), log.full(), log.placement()))
        thread.start()
        thread.join(timeout=30)

    assert len(server.client().client_list()) <= before + 1


def test_a_server_that_is_not_there_is_a_retryable_error_that_names_redis():
    log = RedisLog("redis://127.0.0.1:1/0", timeout_s=0.2, read_s=0.2)

    with pytest.raises(LogUnavailable, match=r"^Redis: "):
        append(log.line(), 1, b"a")
    with pytest.raises(LogUnavailable, match=r"^Redis: "):
        log.due("s0", 1)
    log.close()


def test_a_server_that_accepts_and_never_answers_fails_within_the_time_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        log = RedisLog(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=0.1, read_s=0.1)

        with pytest.raises(LogUnavailable):
            append(log.line(), 1, b"a")
        with pytest.raises(LogUnavailable):
            log.tails([3])
        log.close()


@KINDS
def test_a_wait_for_a_replica_that_is_not_there_ends_and_says_no(log: RedisLog):
    line = log.line()
    append(line, 1, b"a")

    assert not line.replicated(fsync=False, timeout_s=0.05)
    assert append(line, 2, b"b").placed[0].code == APPENDED, "the line goes on"
    line.close()


@pytest.mark.parametrize("kind", ["valkey"])
def test_a_wait_for_the_disk_ends_with_yes(log: RedisLog):
    line = log.line()
    append(line, 1, b"a")

    assert line.replicated(fsync=True, timeout_s=10)
    line.close()


@pytest.mark.parametrize("kind", ["redis"])
def test_an_old_server_that_cannot_wait_for_its_disk_says_what_it_takes(log: RedisLog):
    line = log.line()
    append(line, 1, b"a")

    with pytest.raises(PipelineError, match=r"Redis 7\.2.*the op is queued"):
        line.replicated(fsync=True, timeout_s=1)
    line.close()


@pytest.fixture
def crowded(server: Any, log: RedisLog) -> Iterator[Line]:
    """A line to a server that has no memory left, with work of a hundred ops in it."""
    line = log.line()
    append(line, 1, *[b"x" * 100] * 100)
    log.mark_dirty("s0", [4])
    client = server.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    yield line
    client.config_set("maxmemory", 0)
    line.close()


@KINDS
def test_a_server_without_memory_refuses_an_enqueue_and_nothing_is_written(server: Any, log: RedisLog, crowded: Line):
    server.client().delete(log.keys.room)  # or it expires meanwhile
    before = server.client().keys(f"{log.keys.prefix}:*")

    with pytest.raises(PipelineFull, match="maxmemory"):
        append(crowded, 101, b"y", key="k")

    assert len(payloads(log)) == 100
    assert sequences(log, 5) == {3: 100}
    assert sorted(server.client().keys(f"{log.keys.prefix}:*")) == sorted(before)
    assert log.memory()[0] > 1
    log.publish_records({"s0": "what people look at now"})
    assert log.records(["s0"])[1]["s0"][1] == "what people look at now"


@KINDS
def test_a_server_without_memory_takes_no_claim_but_knows_the_earlier_ones(server: Any, log: RedisLog):
    line = log.line()
    log.claim_key(3, "claimed", 77)
    append(line, 1, b"x", key="sent", row_id=78)
    client = server.client()
    client.config_set("maxmemory", 1)
    try:
        assert log.claim_key(3, "claimed", 5) == 77
        assert log.claim_key(3, "sent", 5) == 78
        with pytest.raises(PipelineFull, match="maxmemory"):
            log.claim_key(3, "new", 5)
    finally:
        client.config_set("maxmemory", 0)
        line.close()


@KINDS
def test_a_claim_expires_like_the_receipt_of_an_op(server: Any, log: RedisLog):
    line = log.line()
    log.claim_key(3, "claimed", 77)
    append(line, 1, b"x", key="sent")

    for key in ("claimed", "sent"):
        assert 86_000_000 < server.client().pttl(log.keys.claim(3, key)) <= IDEMPOTENCY_TTL_MS
    line.close()


@KINDS
def test_each_script_gives_a_key_the_time_to_live_of_its_kind(server: Any, log: RedisLog):
    line, keys, pttl = log.line(), log.keys, server.client().pttl

    append(line, 1, b"x" * BIG_BYTES, key="k")
    assert 0 < pttl(keys.bell("s0")) <= BELL_MS
    assert 0 < pttl(keys.room) <= ROOM_MS
    assert BIG_TTL_MS - 60_000 < pttl(f"{keys.bigs}3") <= BIG_TTL_MS
    assert IDEMPOTENCY_TTL_MS - 60_000 < pttl(keys.claim(3, "k")) <= IDEMPOTENCY_TTL_MS
    assert PRODUCER_TTL_MS - 60_000 < pttl(keys.producer(5)) <= PRODUCER_TTL_MS

    log.due("s0", 10)
    assert line.append_one(S0, 7, 5, 3, 2, b"y") == (Position(7, 1), True)
    assert 0 < pttl(keys.bell("s0")) <= BELL_MS

    log.due("s0", 10)
    assert log.finish("s0", {3: Position(7, 0)}) == (True, 1)
    assert 0 < pttl(keys.bell("s0")) <= BELL_MS
    line.close()


@KINDS
def test_a_server_without_memory_is_drained_to_the_end(log: RedisLog, crowded: Line):
    assert list(log.due("s0", 10)) == [4, 3]
    assert len(payloads(log)) == 100
    assert log.finish("s0", {3: Position(7, 50), 4: START}) == (True, 1)
    log.due("s0", 10)
    assert log.sweep("s0", due_ms=0) == (True, 1)
    assert log.finish("s0", {3: Position(7, 99)}) == (False, 0)
    assert log.marks("s0")[3] == Position(7, 99)
    assert log.trim({3: Position(7, 99)}) > 0


@KINDS
def test_a_server_without_memory_still_lets_the_workers_do_their_chores(log: RedisLog, crowded: Line):
    log.postpone("s0", [3], 60_000)
    log.mark_dirty("s0", [9])
    log.set_full("Redis uses 100% of its memory")

    assert log.take_lease("trim:s0", 60_000)
    assert not log.take_lease("trim:s0", 60_000)
    assert log.note_marks("s0", 10**6, "note", older_than_ms=0) is None
    assert log.note_marks("s0", 10**6 + 1, "later", older_than_ms=0) == "note"
    assert list(log.due("s0", 10)) == [4, 9]


#: What a worker asks and notes, by name.
ASKED: dict[str, Callable[[RedisLog], object]] = {
    "sizes": lambda log: log.sizes({3: START}, 100, 10**6),
    "read noted": lambda log: log.read_noted("s0", {3: START}, {3: 1}, {3: "0--1 a try"}, anew=False),
    "attempts": lambda log: log.note_attempts("s0", {3: "0--1 a try"}),
    "waits": lambda log: log.note_waits("s0", {3: ("schema/1-4", "words")}, 60_000),
    "leave": lambda log: log.leave("s0", "me"),
    "stirs": lambda log: log.stirs(["s0"]),
    "audit": lambda log: log.audit("s0", {3: START}),
    "epoch": lambda log: log.raise_epoch("s0", log.epoch("s0")[2], 8),
    "mend": lambda log: log.mend(S0, [3], ["trim:s0"], delete=True),
    "host": lambda log: log.note_host("worker w1", "words"),
    "deployment": lambda log: log.note_deployment("", "words"),
    "health": lambda log: log.publish_health({"s0": "words"}, 60_000),
}


@KINDS
@pytest.mark.parametrize("asks", ASKED.values(), ids=ASKED)
def test_a_server_without_memory_still_takes_what_workers_ask_and_note(
    log: RedisLog, crowded: Line, asks: Callable[[RedisLog], object]
):
    asks(log)


@KINDS
def test_the_largest_op_is_what_the_server_says_and_not_known_where_it_hides_that(server: Any, log: RedisLog):
    client = server.client()
    client.config_set("proto-max-bulk-len", "2mb")
    client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "&*", "+@all", "-config")
    narrow = RedisLog(f"redis://narrow:none@127.0.0.1:{server.port}/0", prefix=log.keys.prefix, timeout_s=5)
    try:
        assert log.largest_bytes() == 2 * 1024 * 1024
        assert narrow.largest_bytes() == 0
    finally:
        narrow.close()
        client.execute_command("ACL", "DELUSER", "narrow")
        client.config_set("proto-max-bulk-len", "512mb")


def test_a_worker_whose_server_has_hung_up_meanwhile_connects_anew(log_server: Callable[[str], Any]):
    server = log_server("redis")
    log = RedisLog(server.url, prefix=f"pl:t{uuid4().hex[:12]}", timeout_s=5)
    with closing(log), server.client() as admin:
        assert log.due("s0", 10, "me") == {}

        admin.client_kill_filter(_type="normal", skipme=True)

        assert log.due("s0", 10, "me") == {}
        assert list(log.listen("s0", "me", 0.05, 10))[-1] == {}
        assert log.read_noted("s0", {3: START}, {3: 1}, {3: "0--1 1"}, anew=False) == ({3: []}, {})
