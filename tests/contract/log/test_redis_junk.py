"""Entries that no producer wrote, in a real log: each is read, whatever its fields, and keeps its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from pipeline.model import START, Position
from pipeline.oplog.redis.log import RedisLog

JUNK: list[tuple[bytes | str, ...]] = [
    ("o", "x"),
    ("p", "5", "s", "1"),
    ("p", "5", "s", "1", "o", "x", "q", "y"),
    ("p", "web-1", "s", "1", "o", "x"),
    ("p", "5", "s", "first", "o", "x"),
    ("p", b"\xff\xfe", "s", "\u0661", "o", b"\0\xff"),
    ("p", "0", "s", "1", "o", "x"),
    ("p", "5", "s", "-1", "o", "x"),
    ("p", "5", "s", str(2**63), "o", "x"),
    ("p", "9" * 5000, "s", "1", "o", "x"),
    ("p", "5", "s", "1", "o", '["pack","item","hash",1.5,null,[],[],null,[],[],[],null,[],null,3]'),
    ("p", "5", "s", "1", "o", '["pack","item","hash",1.5,null,[],[],null,[],[],[],null,[1,2,3],null'),
    ("p", "5", "s", "1", "o", '["pack","item"]'),
    ("p", "5", "s", "1", "o", b'["pack",\xff]'),
    ("p", "5", "s", "1", "o", f'["pack","item","h",1.5,null,[],[],null,[],[],[],null,[{"1," * 99}1],null,3]'),
]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_entries_that_no_producer_wrote_are_read_with_their_bytes_among_the_others(
    kind: str, log_server: Callable[[str], Any]
):
    server = log_server(kind)
    log = RedisLog(server.url, prefix=f"t{uuid4().hex[:12]}", timeout_s=5)
    for nth, fields in enumerate(JUNK):
        server.client().execute_command("XADD", log.keys.log(3), f"7-{nth}", *fields)
    server.client().execute_command("XADD", log.keys.log(3), f"7-{len(JUNK)}", "p", "5", "s", "1", "o", b"\xff op")

    *strange, op = log.read({3: START}, {3: 99})[3]

    assert [entry.position for entry in strange] == [Position(7, nth) for nth in range(len(JUNK))]
    assert {(entry.producer, entry.producer_seq) for entry in strange} == {(0, 0)}
    kept = [[word.encode("latin-1") for word in json.loads(entry.payload.decode("ascii"))] for entry in strange]
    assert kept == [[word if isinstance(word, bytes) else word.encode() for word in fields] for fields in JUNK]
    assert (op.producer, op.producer_seq, op.payload) == (5, 1, b"\xff op")
    log.close()
