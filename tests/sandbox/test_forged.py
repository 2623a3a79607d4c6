"""Who can write to the log, and has no rights in a database, runs no SQL there: forged ops are set aside, alone."""

from __future__ import annotations

import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from msgspec import structs
from pydal import DAL, Field
from support.hostile import fields

import pipeline
from pipeline.admin.migration import migrate
from pipeline.errors import NewerOp, NotAnOp, PipelineError
from pipeline.model import COPY, FORGED, READ, Entry, Op, Position, decode, encode
from pipeline.model.receipt import Receipt
from pipeline.model.schema import TableSchema
from pipeline.shard.records.ledger_queries import counts
from pipeline.testing import Drained, Sandbox, sandbox

TYPES = [field.type for field in fields()]


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", *fields())
    db.define_table("secret", Field("who", "integer"), Field("name", "string", length=40))
    db.define_table("event_archive", Field("current_record", "reference event"), Field("name", length=40))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox(shards=1, buckets=1) as box:
        pipeline.define_tables(db)
        yield box


def forge(box: Sandbox, receipt: Receipt, **changed: Any) -> bytes:
    """Replace a queued op by another one, as who can write to Redis does."""
    entries = box.log._server.logs[receipt.bucket]
    [at] = [nth for nth, entry in enumerate(entries) if entry.position == receipt.position]
    payload = encode(structs.replace(decode(entries[at].payload), **changed))
    entries[at] = entries[at]._replace(payload=payload)
    return payload


def sql(box: Sandbox, query: str) -> list[Any]:
    return list(box.client.nodes.primary("s0").query(query))


def apply_forged(db: Any, box: Sandbox, cases: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Apply each forged op between two others; return what was not set aside as no op, and why."""
    kept, forged = [], {}
    for name, changed in cases.items():
        before, forged[name], behind = (pipeline.enqueue_insert(db.event, name="kept") for _ in range(3))
        kept += [before, behind]
        forge(box, forged[name], **changed)

    drained = box.drain()

    assert [name for name, receipt in forged.items() if receipt.status() != "rejected"] == []
    assert drained == Drained(len(kept), len(cases))
    assert {receipt.status() for receipt in kept} == {"applied"}
    assert [row["name"] for row in box.rows("event")] == ["kept"] * len(kept)
    found = sql(box, "SELECT epoch, seq, reason FROM pipeline_rejects")
    reasons = {Position(epoch, seq): reason for epoch, seq, reason in found}
    why = {name: reasons[receipt.position] for name, receipt in forged.items() if receipt.position is not None}
    return {name: reason for name, reason in why.items() if not reason.startswith(("not an op", "column"))}


#: Of each type what its column must not take, from SQL to what only looks right.
WRONG: dict[str, list[Any]] = {
    "integer": ["1", "1); DROP TABLE event; --", True, 1.5, ["1"], 2**70],
    "bigint": ["NULL", "0x10", False, -0.5],
    "double": ["1", "(SELECT 1)", True, "NaN", ["x"]],
    "decimal(10,2)": [
        "0); DROP TABLE event; --",
        "(SELECT name FROM secret)",
        "1.999",
        "1",
        "1e5",
        "NaN",
        "-",
        "1_0.00",
        "\u0661.00",
        "1.00\n",
        "123456789.00",
        7,
        1.5,
        True,
    ],
    "boolean": ["T", "1 OR 1=1", 2, []],
    "string": [5, True, ["a"], 1.5],
    "text": [5, True, ["a"]],
    "blob": ["not base64", "a", "YQ==\n", 5, ["YQ=="]],
    "json": ["{", "NaN", "x' OR '1'='1", "[" * 100_000 + "]" * 100_000, 5, ["{}"]],
    "date": ["2024-02-30", "2024-1-01", "20240101", "2024-W01-1", "now()", "2024-01-01'--", 20240101],
    "time": ["24:00:00", "1:00:00", "00:00:00'", "000000.1", 5, "12:00+01"],
    "datetime": [
        "2024-02-30 00:00:00",
        "2024-01-01T00:00:00",
        "2024-W01-1 00:00:00",
        "2024-01-02 03+01:00",
        "2024-01-02 03:04+01",
        "CURRENT_TIMESTAMP  ",
        0,
    ],
    "list:string": ["a", [1], 5],
    "list:integer": [["1"], "1", 5],
}
CASES = {f"{t} {value!r:.40}": (1 + TYPES.index(t), value) for t, values in WRONG.items() for value in values}


def test_values_of_another_type_than_their_columns_are_set_aside_and_stop_no_other(db: Any, box: Sandbox):
    inserts = {name: {"columns": (column,), "values": (value,)} for name, (column, value) in CASES.items()}

    assert apply_forged(db, box, inserts) == {}


@pytest.mark.parametrize("form", ["same", "in", "="])
def test_conditions_with_values_of_another_type_are_set_aside_and_stop_no_other(db: Any, box: Sandbox, form: str):
    def where(column: int, value: Any) -> list[Any]:
        return ["or", ["not", [form, column, [value] if form == "in" else value]], ["null", 1]]

    deletes = {name: {"kind": "delete", "id": None, **NOTHING, "where": where(*case)} for name, case in CASES.items()}

    assert apply_forged(db, box, deletes) == {}


def test_operands_of_another_type_are_set_aside_and_stop_no_other(db: Any, box: Sandbox):
    wrong = {name: case for name, case in CASES.items() if type(case[1]) not in (int, float)}
    updates = {
        name: {"kind": "update", **NOTHING, "expressions": ((column, ["+", ["c", column], ["v", value]]),)}
        for name, (column, value) in wrong.items()
    }

    assert apply_forged(db, box, updates) == {}


NOTHING: dict[str, Any] = {"columns": (), "values": ()}
ONE: dict[str, Any] = {"columns": (1,), "values": (5,)}
STRUCTURES: dict[str, dict[str, Any]] = {
    "an id of 0": {"id": 0},
    "a negative id": {"id": -1},
    "an id beyond 64 bits": {"id": 2**63},
    "an id that is true": {"id": True},
    "an id that is SQL": {"id": "1); DROP TABLE event; --"},
    "the id as a column": {"columns": (0,), "values": (5,)},
    "a column twice": {"columns": (1, 1), "values": (5, 6)},
    "the table of another definition": {"table": "secret"},
    "our own table": {"table": "pipeline_watermarks"},
    "an insert with a condition": {"where": ["=", 1, 7]},
    "an insert with expressions": {"expressions": ((1, ["v", 1]),)},
    "an insert with the key of an upsert": {"key": (1,)},
    "an update of nothing": {"kind": "update", "columns": (), "values": ()},
    "an update of no row": {"kind": "update", "id": None, **ONE},
    "a delete of no row": {"kind": "delete", "id": None, "columns": (), "values": ()},
    "an upsert whose key has no value": {"kind": "upsert", "columns": (1,), "values": (7,), "key": (2,)},
    "an upsert that renews what it has not": {
        "kind": "upsert",
        "columns": (1,),
        "values": (7,),
        "key": (1,),
        "renew": (2,),
    },
    "SQL in place of a column": {"kind": "update", **NOTHING, "expressions": ((1, ["c", "name FROM secret"]),)},
    "SQL in place of an operator": {
        "kind": "update",
        **NOTHING,
        "expressions": ((1, ["+ (SELECT 1) +", ["c", 1], ["c", 1]]),),
    },
    "an operand that is SQL": {
        "kind": "update",
        **NOTHING,
        "expressions": ((4, ["+", ["c", 4], ["v", "(SELECT 1)"]]),),
    },
    "an operand that is true": {"kind": "update", **NOTHING, "expressions": ((1, ["+", ["c", 1], ["v", True]]),)},
    "an operand that is a list": {"kind": "update", **NOTHING, "expressions": ((1, ["+", ["c", 1], ["v", [1]]]),)},
    "three operands": {"kind": "update", **NOTHING, "expressions": ((1, ["+", ["c", 1], ["c", 1], ["c", 1]]),)},
    "SQL in place of a comparison": {"kind": "delete", "id": None, **NOTHING, "where": ["= 1 OR 1 =", 1, 7]},
    "a comparison with two values": {"kind": "delete", "id": None, **NOTHING, "where": ["=", 1, 7, 8]},
    "a list of a list": {"kind": "delete", "id": None, **NOTHING, "where": ["in", 1, [[7]]]},
    "a text for a list": {"kind": "delete", "id": None, **NOTHING, "where": ["in", 1, "abc"]},
    "two nots": {"kind": "delete", "id": None, **NOTHING, "where": ["not", ["null", 1], ["null", 1]]},
    "an empty and": {"kind": "delete", "id": None, **NOTHING, "where": ["and"]},
    "an object for a condition": {"kind": "delete", "id": None, **NOTHING, "where": [{"and": 1}]},
    "a column beyond the table in a condition": {"kind": "delete", "id": None, **NOTHING, "where": ["=", 15, 7]},
    "a column below the table in a condition": {"kind": "delete", "id": None, **NOTHING, "where": ["=", -1, 7]},
    "a row by a text in a condition": {"kind": "update", "id": None, **ONE, "where": ["=", 0, "1 OR 1=1"]},
    "a huge row in a condition": {"kind": "update", "id": None, **ONE, "where": ["=", 0, 2**80]},
}


def test_ops_of_another_form_than_their_kind_are_set_aside_and_stop_no_other(db: Any, box: Sandbox):
    assert apply_forged(db, box, STRUCTURES) == {}


COPY_ONE: dict[str, Any] = {"kind": COPY, "table": "event_archive", "columns": (), "values": ()}


def hash_of(box: Sandbox, table: str) -> str:
    return TableSchema.from_json(box.log.newest_schemas()[table]).hash


COPIES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "another table": ("secret", ((2, ["c", 2]),)),
    "another table by its id": ("secret", ((1, ["c", 0]), (2, ["c", 2]))),
    "another table by a number": ("secret", ((1, ["c", 1]), (2, ["c", 2]))),
    "no link": ("event", ((2, ["c", 6]),)),
    "another column": ("event", ((1, ["c", 0]), (2, ["c", 7]))),
    "a value": ("event", ((1, ["c", 0]), (2, ["v", "x"]))),
    "an expression": ("event", ((1, ["c", 0]), (2, ["||", ["c", 6], ["c", 6]]))),
}


def test_copies_read_only_the_table_that_their_archive_refers_to(db: Any, box: Sandbox):
    row = pipeline.enqueue_insert(db.secret, who=1, name="hidden").id
    pipeline.enqueue_insert(db.event_archive, current_record=None)
    box.drain()
    forged = {
        name: {
            **COPY_ONE,
            "schema": hash_of(box, "event_archive"),
            "source": Op(READ, source, hash_of(box, source), 0, row),
            "expressions": expressions,
        }
        for name, (source, expressions) in COPIES.items()
    }

    assert apply_forged(db, box, forged) == {}
    assert [row["name"] for row in box.rows("event_archive")] == [None]


# what a thousand forgers make ---------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 1.5, "", "x", "'", '"', "`", "\\'", "\0", "%s", "{0}",
    "\U0001f600",
    "0) --", "1); DROP TABLE event; --", "(SELECT name FROM secret)", "2024-01-01", "12.50", "e", [], [[]], ["c", 0],
    ["v", 1], ["=", 0, 1], ["and"], [None], {}, {"a": 1}, "insert", "update", "delete", "upsert", "copy",
    "group", "read",
]  # fmt: skip


def mutated(chance: random.Random, value: Any, levels: int = 0) -> Any:
    """Return an op's JSON with a few of its parts exchanged, left out, doubled or nested."""
    if levels and chance.random() < 0.02:
        return chance.choice((chance.choice(ODD), [value], [value, value]))
    if not isinstance(value, list) or not value:
        return value
    parts = [mutated(chance, part, levels + 1) for part in value]
    if chance.random() < 0.02:
        parts.insert(chance.randrange(len(parts) + 1), chance.choice((*ODD, *parts)))
    if chance.random() < 0.02:
        parts.pop(chance.randrange(len(parts)))
    return parts


def newer(payload: bytes) -> bool:
    try:
        decode(payload)
    except NewerOp:
        return True
    except NotAnOp:
        return False
    return False


def real_ops(db: Any) -> None:
    row = pipeline.enqueue_insert(db.event, who=1, name="a", price="1.50", day="2024-01-01", tags=["a"]).id
    pipeline.enqueue_update(db.event.id == row, name="b", who=db.event.who + 1)
    pipeline.enqueue_update((db.event.id == row) & (db.event.name != "x"), note=db.event.note + "y")
    pipeline.enqueue_upsert(db.event, key=["id"], id=row, who=4)
    pipeline.enqueue_delete((db.event.id == row) & db.event.who.belongs([1, 2]))
    with pipeline.atomic():
        pipeline.enqueue_insert(db.event, id=row, who=1)
        pipeline.enqueue_update(db.event.id == row, price=db.event.price * 2)


def test_mutants_of_real_ops_run_no_sql_and_stop_no_other(db: Any, box: Sandbox):
    chance = random.Random(13)
    real_ops(db)
    pipeline.enqueue_insert(db.secret, who=1, name="hidden")
    box.drain()
    server = box.log._server
    real = [json.loads(entry.payload) for entry in server.logs[0] if b"event" in entry.payload]
    tables = dict(sql(box, "SELECT name, sql FROM sqlite_master"))
    own = {table: sql(box, f"SELECT * FROM {table}") for table in ("pipeline_schemas", "pipeline_deployment")}
    wellformed = 0
    for nth in range(1500):
        receipt = pipeline.enqueue_insert(db.event, name="filler")
        payload = json.dumps(mutated(chance, chance.choice(real))).encode()
        with suppress(NotAnOp, NewerOp):
            decode(payload)
            wellformed += 1
        if not newer(payload):  # for such an op a bucket waits
            server.logs[0][-1] = server.logs[0][-1]._replace(payload=payload)
        assert receipt.bucket == 0
        if nth % 50 == 0:
            pipeline.enqueue_insert(db.event, name="kept")

    box.drain()

    assert wellformed > 100
    assert sum(row["name"] == "kept" for row in box.rows("event")) == 30
    assert [row["name"] for row in box.rows("secret")] == ["hidden"]
    assert dict(sql(box, "SELECT name, sql FROM sqlite_master")) == tables
    assert {table: sql(box, f"SELECT * FROM {table}") for table in own} == own


# definitions --------------------------------------------------------------------------------------------------------


def hash_of_text(text: str) -> str:
    return urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.mark.parametrize("rname", ["pipeline_watermarks", "PIPELINE_REJECTS", "main.secret", "sqlite_master", "a` b"])
def test_an_op_of_a_definition_that_names_no_table_of_the_application_is_set_aside(db: Any, box: Sandbox, rname: str):
    pipeline.enqueue_insert(db.event, name="first")
    text = json.dumps({**json.loads(box.log.newest_schemas()["event"]), "rname": rname}, separators=(",", ":"))
    box.log._server.schemas[hash_of_text(text)] = text
    box.drain()
    marks = sql(box, "SELECT bucket, state FROM pipeline_watermarks")

    before, forged, behind = (pipeline.enqueue_insert(db.event, name="kept") for _ in range(3))
    forge(box, forged, schema=hash_of_text(text))

    assert box.drain() == Drained(2, 1)
    assert [receipt.status() for receipt in (before, forged, behind)] == ["applied", "rejected", "applied"]
    assert sql(box, "SELECT bucket, state FROM pipeline_watermarks") == marks


@pytest.mark.parametrize("known", [False, True], ids=["nowhere else", "also by the shard"])
def test_a_definition_under_the_hash_of_another_swaps_no_columns(db: Any, box: Sandbox, known: bool):
    receipt = pipeline.enqueue_insert(db.secret, who=1, name="x")
    own, text = hash_of(box, "secret"), box.log.newest_schemas()["secret"]
    if known:
        migrate(box.client)
    shape = json.loads(text)
    shape["columns"][1][0], shape["columns"][2][0] = "name", "who"
    box.log._server.schemas[own] = json.dumps(shape, separators=(",", ":"))

    if known:
        assert box.drain() == Drained(1, 0)
    else:
        with pytest.raises(PipelineError, match="no process has published the schema of secret"):
            box.drain()
        assert receipt.status() == "queued"
        box.log._server.schemas[own] = text
        box.log.mark_dirty("s0", [0])
        box.log._server.dirty["s0"][0] = 0
        box.drain()
    assert [(row["who"], row["name"]) for row in box.rows("secret")] == [(1, "x")]


# signatures ---------------------------------------------------------------------------------------------------------


def test_entries_without_a_right_signature_are_counted_and_fill_no_table(db: Any, box: Sandbox):
    receipts = []
    for nth in range(300):
        receipts.append(pipeline.enqueue_insert(db.event, name="kept"))
        entries = box.log._server.logs[0]
        strange = b'["p","5","s","1","o","%d"]' % nth
        again = Position(entries[-1].position.epoch, entries[-1].position.seq + 1)
        entries.append(Entry(0, again, 0, FORGED, strange))
        box.log._server.last[0] = again

    assert box.drain() == Drained(300, 300)

    assert {receipt.status() for receipt in receipts} == {"applied"}
    assert sql(box, "SELECT COUNT(*) FROM pipeline_rejects") == [(0,)]
    assert sql(box, "SELECT bucket, entries, entry FROM pipeline_forged") == [(0, 300, '["p","5","s","1","o","299"]')]
    assert counts(box.client.nodes.primary("s0"))["forged"] == 300
