"""The ops of other releases, as recorded, are applied; the ops of this release are such bytes as others read.

`support/recorded` has, of each release, the bytes of one op of each kind, and the schemas that the ops name.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import recorded

from pipeline.model import COPY, DELETE, GROUP, INSERT, UPDATE, UPSERT, Entry, Op, Position, decode, encode
from pipeline.model.schema import TableSchema
from pipeline.testing import Drained, Sandbox

TABLES = {
    "event": {"shard_key": "who"},
    "event_archive": {"shard_key": "who"},
    "plan": {"shard_key": "who", "unique": [["who", "day"]]},
}
FILES = sorted(Path(next(iter(recorded.__path__))).glob("ops-*.json"))
releases = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


def payloads(path: Path) -> list[bytes]:
    return [text.encode() for text in json.loads(path.read_text())["entries"]]


def older(payload: bytes) -> bytes:
    """Return an op as it was before ops had a version."""
    return json.dumps(without_version(json.loads(payload))).encode()


def without_version(op: list[Any]) -> list[Any]:
    *fields, members, source, _ = op
    return [*fields, [without_version(one) for one in members], without_version(source) if source else None]


def queue(box: Sandbox, path: Path, ops: list[bytes]) -> None:
    """Put recorded ops and schemas into the log, as the web side of that release did."""
    recorded = json.loads(path.read_text())["schemas"]
    box.log.publish_schemas((schema["table"], hash, schema["json"]) for hash, schema in recorded.items())
    bucket = 0
    box.log._server.logs[bucket] = [Entry(bucket, Position(7, n), 5, n + 1, op) for n, op in enumerate(ops)]
    box.log._server.last[bucket] = Position(7, len(ops) - 1)
    box.log.mark_dirty(box.client.topology.shard_of(bucket), [bucket])


def test_every_release_has_its_record_and_every_kind_is_in_it():
    assert FILES
    for path in FILES:
        ops = [decode(payload) for payload in payloads(path)]
        kinds = {op.kind for op in ops} | {member.kind for op in ops for member in op.members}
        assert {INSERT, UPDATE, DELETE, UPSERT, GROUP, COPY} <= kinds


@releases
@pytest.mark.parametrize("before_versions", [False, True], ids=["as recorded", "before ops had a version"])
def test_upgraded_workers_apply_the_ops_of_an_older_web_side(box: Sandbox, path: Path, before_versions: bool):
    queue(box, path, [older(one) if before_versions else one for one in payloads(path)])

    assert box.drain() == Drained(9, 0)

    rows = box.client.nodes.primary(box.client.topology.shard_of(0)).query
    assert rows("SELECT n, note, ok, at, price, tags FROM event ORDER BY id") == [
        (100, "it's é \U0001f600", "F", datetime(2026, 1, 2, 3, 4, 5), 1.5, "|a||b|c|"),
        (3, "grouped", None, None, None, None),
    ]
    assert rows("SELECT n FROM event_archive") == [(5,)]
    assert rows("SELECT day, n FROM plan") == [("monday", 2)]


@releases
def test_workers_that_are_not_upgraded_yet_get_the_bytes_that_they_know(path: Path):
    for payload in payloads(path):
        op = decode(payload)
        assert encode(op) == payload
        assert op.version == 1


@releases
def test_schemas_keep_their_text_and_their_hash(path: Path):
    for hash, schema in json.loads(path.read_text())["schemas"].items():
        assert TableSchema.from_json(schema["json"]).to_json() == schema["json"]
        assert TableSchema.from_json(schema["json"]).hash == hash


def test_an_op_is_of_the_first_version_unless_it_says_so():
    assert Op(INSERT, "t", "h", 1).version == 1
