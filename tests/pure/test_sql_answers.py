"""What a MySQL server answers to statements that were sent together: rows, errors, and connections that break."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from pymysql.err import IntegrityError, MySQLError, OperationalError

from pipeline import clock
from pipeline.shard.mysql_connection import MOST_UNREAD, SINGLY_S, NodeConnection, _takers

OK = b"\x00\x01\x00\x02\x00\x00\x00"
END = b"\xfe\x00\x00\x02\x00"
#: 1062, as a server says it.
DUPLICATE = b"\xff\x26\x04#23000Duplicate entry '7' for key 'PRIMARY'"
BIGINT, VARCHAR = 8, 253


def packets(*payloads: bytes, first: int = 1) -> bytes:
    return b"".join(len(one).to_bytes(3, "little") + bytes([(first + n) % 256]) + one for n, one in enumerate(payloads))


def column(kind: int) -> bytes:
    names = b"".join(bytes([len(name)]) + name for name in (b"def", b"", b"t", b"t", b"name", b"name"))
    return names + b"\x0c" + b"\x3f\x00" + b"\x14\x00\x00\x00" + bytes([kind]) + b"\x03\x50\x00\x00\x00"


def value(text: bytes | None) -> bytes:
    if text is None:
        return b"\xfb"
    size = len(text)
    return (bytes([size]) if size < 251 else b"\xfc" + size.to_bytes(2, "little")) + text


def table(*rows: tuple[bytes | None, ...], kinds: tuple[int, ...] = (BIGINT, VARCHAR)) -> bytes:
    columns = [column(kind) for kind in kinds]
    return packets(bytes([len(kinds)]), *columns, END, *(b"".join(map(value, row)) for row in rows), END)


class Server:
    """A socket and a file of it: takes everything, and gives what was prepared, in small pieces."""

    def __init__(self, answers: bytes, piece: int = 7):
        self.sent, self.answers, self._piece = b"", answers, piece

    def sendall(self, sent: bytes) -> None:
        self.sent += sent

    def settimeout(self, timeout_s: float | None) -> None:
        pass

    def read1(self, size: int) -> bytes:
        piece, self.answers = self.answers[: self._piece], self.answers[self._piece :]
        if piece == b"!":
            raise TimeoutError("timed out")
        return piece

    def close(self) -> None:
        pass


def connected(answers: bytes, piece: int = 7, *, proved: bool = True) -> tuple[Any, Server]:
    """Return a connection to a server; that takes several statements at once, if it is *proved*."""
    host = uuid4().hex
    _takers[f"{host}:3306"].proved = proved
    connection: Any = NodeConnection(host=host, defer_connect=True, read_timeout=20, write_timeout=20)
    server = Server(answers, piece)
    connection._sock = connection._rfile = server
    connection._current_timeout = None
    return connection, server


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_each_statement_is_a_packet_and_has_its_rows(piece: int):
    rows = [(b"-7", b"active"), (b"9223372036854775807", None), (None, b"x" * 300), (b"0", "é".encode())]
    connection, server = connected(table(*rows) + packets(OK) + table(), piece)

    found = connection.ask(["SELECT 1", "INSERT é", "SELECT 2"])

    assert found == [[(-7, "active"), (2**63 - 1, None), (None, "x" * 300), (0, "é")], [], []]
    assert server.sent == packets(b"\x03SELECT 1", first=0) + packets("\x03INSERT é".encode(), first=0) + packets(
        b"\x03SELECT 2", first=0
    )


def test_more_packets_than_a_number_counts_are_in_order():
    connection, _ = connected(table(*((b"%d" % n, b"") for n in range(600))), 10_000)

    assert connection.ask(["SELECT"]) == [[(n, "") for n in range(600)]]


def test_an_error_among_them_is_raised_once_all_answers_are_read():
    connection, server = connected(packets(OK) + packets(DUPLICATE) + table((b"1", b"a")))

    with pytest.raises(IntegrityError, match="Duplicate entry '7'"):
        connection.ask(["INSERT", "INSERT", "SELECT"])

    server.answers = packets(OK)
    assert connection.ask(["INSERT"]) == [[]]


def test_of_statements_that_may_fail_each_a_few_are_sent_before_their_answers_are_read(monkeypatch: pytest.MonkeyPatch):
    connection, server = connected(b"", 10_000)
    lots = list[int]()

    def sendall(sent: bytes) -> None:
        assert not server.answers
        lots.append(sent.count(b"INSERT"))
        server.answers = b"".join(packets(DUPLICATE if sent.count(b"7") and n == 1 else OK) for n in range(lots[-1]))

    monkeypatch.setattr(server, "sendall", sendall)

    failures = connection.execute_each(["INSERT"] * MOST_UNREAD + ["INSERT 7"] * 2)

    assert lots == [MOST_UNREAD, 2]
    assert [str(error) for error in failures if error] == ["(1062, \"Duplicate entry '7' for key 'PRIMARY'\")"]
    assert failures[-1] is not None


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("code", [1205, 1969])
def test_behind_one_that_waited_for_a_lock_or_too_long_no_answer_is_waited_for(code: int, behind: int):
    waited = b"\xff" + code.to_bytes(2, "little") + b"#HY000it waited"
    connection, _ = connected(packets(OK) + packets(waited) + behind * packets(OK))

    with pytest.raises(OperationalError, match=str(code)):
        connection.ask(["INSERT", "UPDATE", "INSERT"][: 2 + behind])

    assert (connection._sock is None) == bool(behind)


@pytest.mark.parametrize(
    "answers",
    [
        packets(OK),  # and then the connection ends
        packets(OK) + b"!",
        packets(OK) + packets(OK, first=2),
        packets(OK) + packets(DUPLICATE, first=0),  # of a server that shuts down
        packets(OK) + packets(b""),
        packets(OK) * 3,
    ],
)
def test_a_connection_that_broke_is_of_no_use_any_more(answers: bytes):
    connection, _ = connected(answers, 1 if answers.endswith(b"!") else 10_000)

    with pytest.raises(OperationalError, match="2013"):
        connection.ask(["INSERT", "INSERT"])

    with pytest.raises(MySQLError):
        connection.ask(["INSERT"])


def test_what_interrupts_a_wait_ends_the_connection(monkeypatch: pytest.MonkeyPatch):
    connection, server = connected(packets(OK))

    def interrupted(size: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "read1", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connection.ask(["INSERT"])

    assert connection._sock is None


def test_a_server_is_probed_before_it_gets_several_statements_at_once():
    one = table((b"1",), kinds=(BIGINT,))
    connection, server = connected(b"", proved=False)
    turns = iter([one + one, one + packets(OK)])
    take = server.sendall
    server.sendall = lambda sent: (take(sent), setattr(server, "answers", next(turns)))

    assert connection.ask(["SELECT 1", "DO 1"]) == [[(1,)], []]
    probe = packets(b"\x03SELECT 1", first=0) * 2
    assert server.sent == probe + packets(b"\x03SELECT 1", first=0) + packets(b"\x03DO 1", first=0)


def test_what_breaks_among_several_is_sent_singly_for_longer_each_time(monkeypatch: pytest.MonkeyPatch):
    now_s = clock.mono_s()
    monkeypatch.setattr(clock, "mono_s", lambda: now_s)
    connection, server = connected(packets(OK) + b"!", piece=1)
    taker = _takers[connection._place]
    for for_s in (SINGLY_S, 2 * SINGLY_S):
        with pytest.raises(OperationalError, match="no answer"):
            connection.ask(["DO 1", "DO 2"])

        connection._sock = connection._rfile = server
        server.sent, server.answers = b"", packets(OK) + packets(DUPLICATE) + packets(OK)
        assert [bool(error) for error in connection.execute_each(["DO 1", "DO 2", "DO 3"])] == [False, True, False]
        assert taker.one_at_a_time
        now_s += for_s
        assert not taker.one_at_a_time
        taker.proved, server.answers = True, packets(OK) + b"!"


def test_a_statement_alone_that_breaks_says_nothing_of_several():
    connection, _ = connected(b"!", piece=1)
    with pytest.raises(OperationalError):
        connection.commit()

    assert _takers[connection._place].proved
