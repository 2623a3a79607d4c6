"""Signed entries and definitions: what another has written, changed or repeated elsewhere is told from our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from support.sandbox.logs import EPOCH, S0, raise_to

from pipeline.model import FORGED, START, Entry, Op, encode
from pipeline.model.schema import Column, TableSchema
from pipeline.oplog.appends import Append
from pipeline.oplog.redis.log import RedisLog

OLD, NEW = "o" * 32, "n" * 40
OP, OTHER = (encode(Op("insert", "t", "h", 1.5, row)) for row in (1, 2))
PURCHASE = TableSchema("purchase", (Column("id", "id"), Column("n", "integer")))
PERSON = TableSchema("person", (Column("id", "id"), Column("name", "string", 20)))


class Deployment:
    """The logs of processes with one prefix, and with different keys."""

    def __init__(self, server: Any):
        self.server, self.prefix = server, f"t{uuid4().hex[:12]}"
        self.raw = server.client()
        self.raw.connection_pool.connection_kwargs["decode_responses"] = False
        self._logs: list[RedisLog] = []
        raise_to(self.log(), S0, EPOCH)

    def log(self, key: str = "", **options: Any) -> RedisLog:
        log = RedisLog(self.server.url, prefix=self.prefix, timeout_s=5, sign_key=key, **options)
        self._logs.append(log)
        return log

    def write(self, key: str, *payloads: bytes, producer: int = 5, first: int = 1) -> None:
        line = self.log(key).line()
        line.append(S0, EPOCH, producer, [Append(3, first, payloads)], "", 0)
        line.close()

    def read(self, key: str = "", bucket: int = 3, **options: Any) -> list[Entry]:
        return self.log(key, **options).read({bucket: START}, {bucket: 999})[bucket]

    def close(self) -> None:
        for log in self._logs:
            log.close()


@pytest.fixture(params=["redis", "valkey"])
def here(request: pytest.FixtureRequest, log_server: Callable[[str], Any]) -> Iterator[Deployment]:
    made = Deployment(log_server(request.param))
    yield made
    made.close()


def senders(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(entry.producer, entry.producer_seq) for entry in entries]


def test_what_was_signed_is_read_as_it_was_sent_alone_in_runs_and_sent_again(here: Deployment):
    line = here.log(OLD).line()
    here.write(OLD, OP, OTHER)
    again = line.append(S0, EPOCH, 5, [Append(3, 2, [OTHER])], "", 0)
    one = line.append_one(S0, EPOCH, 5, 3, 3, OP)
    line.close()

    found = here.read(OLD)

    assert one is not None
    assert [placed.position for placed in again.placed] == [found[1].position]
    assert [entry.payload for entry in found] == [OP, OTHER, OP]
    assert senders(found) == [(5, 1), (5, 2), (5, 3)]
    assert OP not in [
        fields[b"o"] for _, fields in here.raw.execute_command("XRANGE", f"{here.prefix}:log:3", "-", "+")
    ]


def test_what_another_writes_changes_or_repeats_elsewhere_is_forged_and_nothing_else_is(here: Deployment):
    here.write(OLD, OP)
    [(_, fields)] = here.raw.execute_command("XRANGE", f"{here.prefix}:log:3", "-", "+")
    mine = fields[b"o"]
    forged = [
        ("p", "5", "s", "2", "o", OP),
        ("p", "5", "s", "2", "o", mine),
        ("p", "6", "s", "1", "o", mine),
        ("p", "5", "s", "1", "o", mine.replace(b"insert", b"delete")),
        ("p", "5", "s", "1", "o", mine[:-1] + bytes([mine[-1] ^ 1])),
        ("p", "5", "s", "1", "o", mine[:-32]),
        ("p", "5", "s", "1", "o", b"\n" + b"\0" * 32),
        ("p", "5", "s", "1", "o", b""),
    ]
    for one in forged:
        here.raw.execute_command("XADD", f"{here.prefix}:log:3", f"{EPOCH}-*", *one)
    here.raw.execute_command("XADD", f"{here.prefix}:log:4", f"{EPOCH}-0", "p", "5", "s", "1", "o", mine)
    here.write(OLD, OP, first=2)

    own, *strange, last = here.read(OLD)

    assert senders([own, last]) == [(5, 1), (5, 2)]
    assert senders(strange) == [(0, FORGED)] * len(forged)
    assert senders(here.read(OLD, 4)) == [(0, FORGED)]


def test_a_key_is_changed_while_both_are_known(here: Deployment):
    here.write(OLD, OP)
    here.write(f"{OLD} {NEW}", OP, first=2)
    here.write(f"{NEW} {OLD}", OP, first=3)

    assert senders(here.read(f"{NEW} {OLD}")) == senders(here.read(f"{OLD} {NEW}")) == [(5, 1), (5, 2), (5, 3)]
    assert senders(here.read(NEW)) == [(0, FORGED), (0, FORGED), (5, 3)]


def test_a_key_of_another_deployment_on_the_same_server_signs_nothing_here(here: Deployment):
    other = RedisLog(here.server.url, prefix=here.prefix + "x", sign_key=OLD)
    other.keys = here.log().keys
    line = other.line()
    line.append(S0, EPOCH, 5, [Append(3, 1, [OP])], "", 0)
    line.close()
    other.close()

    assert senders(here.read(OLD)) == [(0, FORGED)]


def test_processes_get_their_key_one_after_the_other(here: Deployment):
    here.write("", OP)
    for seq in range(2, 601):
        here.write(OLD, OP, first=seq)  # a signature may end in any byte

    without, with_key = here.read(), here.read(OLD, accept_unsigned=True)

    assert [entry.payload for entry in without] == [entry.payload for entry in with_key] == [OP] * 600
    assert senders(here.read(OLD))[:2] == [(0, FORGED), (5, 2)]
    wrong = ("p", "5", "s", "601", "o", OP + b"\n" + b"x" * 32)
    here.raw.execute_command("XADD", f"{here.prefix}:log:3", f"{EPOCH}-*", *wrong)
    assert senders(here.read(OLD, accept_unsigned=True))[-1] == (0, FORGED)


def test_a_definition_that_another_has_written_is_none(here: Deployment):
    here.log(OLD).publish_schemas([("purchase", PURCHASE.hash, PURCHASE.to_json())])
    here.log().publish_schemas([("person", PERSON.hash, PERSON.to_json())])

    assert here.log(OLD).schema(PURCHASE.hash) == here.log().schema(PURCHASE.hash) == PURCHASE.to_json()
    assert here.log(OLD).schema(PERSON.hash) is None
    assert here.log(OLD).newest_schemas() == {"purchase": PURCHASE.to_json()}
    assert here.log(OLD, accept_unsigned=True).newest_schemas().keys() == {"purchase", "person"}


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"{}",
        b"[" * 100_000,
        PERSON.to_json().encode(),
        PURCHASE.to_json().replace('"n"', '"m"').encode(),
        PURCHASE.to_json().replace('"rname":null', '"rname":"pipeline_watermarks"').encode(),
    ],
)
def test_a_newest_definition_that_is_none_of_its_table_is_passed_over(here: Deployment, text: bytes):
    here.log().publish_schemas((one.name, one.hash, one.to_json()) for one in (PURCHASE, PERSON))
    here.raw.execute_command("HSET", f"{here.prefix}:schemas", PURCHASE.hash, text)

    assert here.log().newest_schemas().keys() == {"person"}
