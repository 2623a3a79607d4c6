"""The wire, against a server that says what the test tells it to."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
import redis
from hiredis import pack_command
from support.servers.redis_stub import HANG_UP, Stub

from pipeline.oplog.redis.wire import READ_BYTES, Wire

PING = pack_command(("PING",))
TIMEOUT_S = 0.3


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


@pytest.fixture
def pool(stub: Stub) -> Iterator[redis.ConnectionPool]:
    made = redis.ConnectionPool(host="127.0.0.1", port=stub.port, socket_timeout=TIMEOUT_S, protocol=2)
    yield made
    made.disconnect()


@pytest.mark.parametrize(
    "text",
    [
        "NOSCRIPT No matching script. Please use EVAL.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica.",
        "LOADING Redis is loading the dataset in memory",
        "ERR something else",
    ],
)
def test_a_refusal_is_what_the_driver_would_raise(stub: Stub, pool: redis.ConnectionPool, text: str):
    wire, driver = Wire(pool), redis.Redis(connection_pool=pool, retry=None)
    stub.replies = [(f"-{text}\r\n".encode(),)] * 2

    with pytest.raises(redis.exceptions.RedisError) as ours:
        wire.ask(PING)
    with pytest.raises(redis.exceptions.RedisError) as theirs:
        driver.ping()

    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


def test_a_refusal_leaves_the_wire_in_use(stub: Stub, pool: redis.ConnectionPool):
    wire = Wire(pool)
    stub.replies = [(b"-ERR no\r\n",), (b"$3\r\nyes\r\n",)]

    with pytest.raises(redis.exceptions.ResponseError):
        wire.ask(PING)

    assert wire.ask(PING) == b"yes"


def test_a_reply_may_come_in_pieces_and_be_longer_than_one_read(stub: Stub, pool: redis.ConnectionPool):
    long = b"x" * (3 * READ_BYTES)
    stub.replies = [(b"$%d\r" % len(long), b"\n" + long[:100], long[100:] + b"\r\n")]

    assert Wire(pool).ask(PING) == long


def test_what_the_server_says_unasked_is_no_reply(stub: Stub, pool: redis.ConnectionPool):
    stub.replies = [(b">2\r\n$6\r\nMOVING\r\n:1\r\n", b"$4\r\nmine\r\n")]

    assert Wire(pool).ask(PING) == b"mine"


def test_a_server_that_hangs_costs_the_connections_time_out_and_its_late_reply_reaches_nobody(
    stub: Stub, pool: redis.ConnectionPool
):
    wire = Wire(pool)
    stub.replies = [()]

    with pytest.raises((BlockingIOError, TimeoutError)):
        wire.ask(PING)
    wire.close()
    stub.replies = [(b"$5\r\nfresh\r\n",)]

    assert Wire(pool).ask(PING) == b"fresh"
    assert stub.taken == 2  # not on the old connection


def test_a_server_that_closed_the_connection_is_told_from_one_that_answers(stub: Stub, pool: redis.ConnectionPool):
    wire = Wire(pool)
    stub.replies = [(HANG_UP,)]

    with pytest.raises(redis.exceptions.ConnectionError):
        wire.ask(PING)


def test_commands_that_are_sent_together_have_their_replies_in_order_and_refusals_among_them(
    stub: Stub, pool: redis.ConnectionPool
):
    wire = Wire(pool)
    stub.replies = [(b"$1\r\na\r\n-ERR", b" no\r\n>2\r\n$6\r\nMOVING\r\n:1\r\n", b":7\r\n")]

    first, second, third = wire.ask_all(3 * PING, 3)

    assert (first, str(second), third) == (b"a", "no", 7)
    assert not wire.readable()


def test_a_wire_to_a_server_that_has_become_a_replica_is_used_no_more(stub: Stub, pool: redis.ConnectionPool):
    wire = Wire(pool)
    stub.replies = [(b"-READONLY You can't write against a read only replica.\r\n",)]

    with pytest.raises(redis.exceptions.ReadOnlyError):
        wire.ask_all(PING, 1)

    assert wire.readable(), "it has to be made anew"


def test_an_interrupted_call_leaves_no_reply_for_the_next_one(
    stub: Stub, pool: redis.ConnectionPool, monkeypatch: pytest.MonkeyPatch
):
    wire = Wire(pool)
    stub.replies = [(b"$3\r\nold\r\n",), (b"$3\r\nnew\r\n",)]
    real = wire._socket

    class Interrupted:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def recv(self, size: int) -> bytes:
            select.select([real], [], [], 10)  # the reply has come
            raise KeyboardInterrupt

    wire._socket = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        wire.ask(PING)
    wire._socket = real
    wire.close()

    assert Wire(pool).ask(PING) == b"new"


def test_the_driver_gets_its_connection_back_with_the_time_out_it_had(pool: redis.ConnectionPool):
    connection = pool.get_connection()
    pool.release(connection)
    before = connection._sock.gettimeout()

    wire = Wire(pool)
    wire.close()

    assert before == TIMEOUT_S
    assert connection._sock.gettimeout() == before
