"""What an operator sees of ops that were set aside, and does with them: `pipeline dead`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pymysql
import pytest
from click.testing import CliRunner, Result
from pydal import DAL, Field

import pipeline
from pipeline.admin import dead, dead_op
from pipeline.admin.dead import Where, place_of
from pipeline.cli.dead import dead_group
from pipeline.errors import BadOp, BadValue, UnknownField
from pipeline.model.receipt import Receipt
from pipeline.shard import NodeSession
from pipeline.testing import Drained, Sandbox, sandbox

TABLES = {"sale": {"shard_key": "customer"}, "day": {"shard_key": "who", "unique": [["who", "name"]]}}


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table(
        "sale",
        Field("customer", "integer"),
        Field("code", length=12, unique=True),
        Field("qty", "integer", notnull=True, default=0),
        Field("price", "decimal(9,2)"),
    )
    db.define_table("day", Field("who", "integer"), Field("name", length=20), Field("n", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        monkeypatch.setattr("pipeline.cli.dead.opened", lambda config: nullcontext(box.client))
        yield box


def run(*words: str, width: int = 80) -> Result:
    return CliRunner().invoke(dead_group, words, env={"COLUMNS": str(width)})


def place(receipt: Receipt) -> str:
    return f"{receipt.bucket}:{receipt.position}"


@pytest.fixture
def refused(db: Any, box: Sandbox) -> Receipt:
    """An insert whose code is taken, and an update that waits behind it."""
    pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    receipt = pipeline.enqueue_insert(db.sale, customer=7, code="A1", qty=3)
    pipeline.enqueue_update(db.sale.id == receipt.id, qty=db.sale.qty + 1)
    assert box.drain() == Drained(1, 1)
    return receipt


@pytest.mark.parametrize("drop", [True, False])
def test_a_shard_stirs_once_its_ops_were_replayed_or_dropped(box: Sandbox, refused: Receipt, drop: bool):
    where = Where(((refused.bucket, refused.position),))
    assert "orders" not in box.log.counts("s0")

    list(dead.replay(box.client, dead.chosen(box.client, where, dead.HEADS), drop=drop))

    assert box.log.counts("s0")["orders"] == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_fits_the_terminal_and_has_place_state_row_and_reason(refused: Receipt, width: int):
    result = run("list", width=width)

    assert result.exit_code == 1
    assert max(map(len, result.output.splitlines())) <= width
    for part in (place(refused), "rejected", "parked", "sale", "UNIQUE", f"pipeline dead show {place(refused)}"):
        assert part in result.output, result.output


def test_a_narrow_list_has_each_reason_in_one_piece_below_its_op(refused: Receipt):
    lines = run("list", width=80).output.splitlines()

    [at] = [n for n, line in enumerate(lines) if "parked" in line]
    assert lines[at + 1].rstrip() == f"    waits behind the op at {place(refused)}"
    assert "reason" in run("list", width=120).output.splitlines()[0]


def test_the_list_for_programs_has_each_op_and_an_empty_one_is_no_fault(box: Sandbox, refused: Receipt):
    listed = json.loads(run("list", "--json").output)
    none = run("list", "--where", "table=other")

    assert [(one["op"], one["state"], one["table"]) for one in listed] == [
        (place(refused), "rejected", "sale"),
        (f"{refused.bucket}:{refused.position.epoch}-2", "parked", "sale"),
    ]
    assert (none.exit_code, none.output) == (0, "no op is set aside\n")


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("table=sale", 2), ("table=day", 0), ("shard=s0", 2), ("state=parked", 1), ("state=replayed", 0),
        ("reason=unique", 1), ("reason=%", 0), ("since=1h", 2), ("bucket=99", 0), ("code=1062", 0),
    ],
)  # fmt: skip
def test_conditions_narrow_what_is_meant(refused: Receipt, condition: str, count: int):
    assert len(json.loads(run("list", "--json", "--where", condition).output)) == count


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("tabel=x", "did you mean 'table'"), ("table", "as key=value"), ("state=ready", "is none of rejected, "),
        ("since=soon", "such as 2h"), ("bucket=x", "is no number"),
    ],
)  # fmt: skip
def test_a_condition_that_is_not_understood_is_refused(pair: str, says: str):
    with pytest.raises(BadOp, match=says):
        Where.parse([pair])


def test_one_op_is_shown_beside_the_row_as_it_is(db: Any, box: Sandbox):
    row = pipeline.enqueue_insert(db.sale, customer=7, code="A1", qty=5).id
    pipeline.enqueue_insert(db.sale, customer=7, code="B2")
    receipt = pipeline.enqueue_update(db.sale.id == row, code="B2", price="2.50", qty=db.sale.qty + 1)
    pipeline.enqueue_update(db.sale.id == row, qty=9)
    box.drain()

    result = run("show", place(receipt))

    assert result.exit_code == 0, result.exception
    assert max(map(len, result.output.splitlines())) <= 80
    lines = [line.split() for line in result.output.splitlines()]
    assert ["code", "'A1'", "'B2'"] in lines
    assert ["price", "None", "2.50"] in lines
    assert ["qty", "5", "qty", "+", "1"] in lines
    assert "ops that wait behind it: 1" in result.output
    shown = json.loads(run("show", place(receipt), "--json").output)
    assert shown["writes"][0]["cells"][2] == {"column": "code", "now": "A1", "new": "'B2'", "typed": "B2"}


def test_an_edited_op_is_applied_as_edited_and_what_waited_follows(db: Any, box: Sandbox, refused: Receipt):
    edited = run("edit", place(refused), "code=A2", "price=1.25")
    assert edited.output == f"{place(refused)} is changed; to apply it: pipeline dead replay {place(refused)}\n"

    replayed = run("replay", place(refused), "--json")

    assert json.loads(replayed.output) == {"replayed": 2, "dropped": 0, "refused": 0, "parked": 0}
    row = next(row for row in box.rows("sale") if row["id"] == refused.id)
    assert (row["code"], row["qty"], str(row["price"])) == ("A2", 4, "1.25")
    actions = box.client.nodes.primary("s0").query("SELECT action, result, op_before FROM pipeline_actions ORDER BY id")
    assert [action[:2] for action in actions] == [("edit", "rejected"), ("replay", "replayed")]
    assert '"A1"' in actions[0][2]


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"cod": "x"}, UnknownField, "did you mean 'code'"),
        ({"code": "much too long a code"}, BadValue, "sale.code"),
        ({"qty": "three"}, BadValue, "sale.qty"),
        ({"qty": None}, BadValue, "sale.qty is notnull"),
        ({"customer": 8}, BadOp, "customer says which row"),
        ({"id": 8}, BadOp, "id says which row"),
    ],
)
def test_an_edit_passes_the_checks_of_a_call(
    box: Sandbox, refused: Receipt, values: dict[str, Any], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        dead_op.edit(box.client, place_of(place(refused)), values)

    assert box.client.nodes.primary("s0").query("SELECT COUNT(*) FROM pipeline_actions") == [(0,)]


def test_the_key_of_an_upsert_cannot_be_edited_and_its_new_value_is_renewed(db: Any, box: Sandbox):
    box.client.nodes.primary("s0").query(
        "CREATE TRIGGER unlucky BEFORE INSERT ON day WHEN NEW.n = 13 BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    key = {"key": ["who", "name"]}
    pipeline.enqueue_upsert(db.day, **key, who=7, name="mon", n=1)
    receipt = pipeline.enqueue_upsert(db.day, **key, who=7, name="mon", n=13)
    box.drain()

    with pytest.raises(BadOp, match="name says which row"):
        dead_op.edit(box.client, place_of(place(receipt)), {"name": "tue"})
    dead_op.edit(box.client, place_of(place(receipt)), {"n": 14})
    run("replay", place(receipt))

    assert [row["n"] for row in box.rows("day")] == [14]
    assert dead_op.show(box.client, place_of(place(receipt))).writes[0].there is True


def test_a_member_of_an_atomic_group_is_edited_by_its_number(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    with pipeline.atomic():
        pipeline.enqueue_insert(db.sale, customer=7, code="A0")
        receipt = pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    box.drain()

    edited = run("edit", place(receipt), "code=A2", "--member", "1")
    run("replay", place(receipt))

    assert edited.exit_code == 0
    assert sorted(row["code"] for row in box.rows("sale")) == ["A0", "A1", "A2"]


def test_a_dry_run_says_what_would_become_of_each_op_and_changes_nothing(db: Any, box: Sandbox, refused: Receipt):
    pipeline.enqueue_insert(db.sale, customer=7, code="A1", qty=9)
    box.drain()

    def seen() -> list[Any]:
        primary = box.client.nodes.primary("s0")
        asked = ("SELECT * FROM pipeline_rejects ORDER BY 1, 2, 3", "SELECT * FROM pipeline_held ORDER BY 1, 2, 3, 4")
        return [*map(primary.query, (*asked, "SELECT * FROM pipeline_actions")), box.rows("sale")]

    before = seen()
    refusing = run("replay", place(refused), "--dry-run")
    dropping = json.loads(run("drop", place(refused), "--dry-run", "--json").output)
    with box.client.nodes.primary("s0").transaction() as session:
        session.execute("DELETE FROM sale")
    now = json.loads(run("replay", "--all", "--dry-run", "--json").output)

    assert refusing.exit_code == 1
    assert " rejected UNIQUE constraint failed" in refusing.output
    assert "nothing is changed; it would be: 0 replayed, 0 dropped, 1 refused again, 1 still" in refusing.output
    assert [op["state"] for op in dropping["ops"]] == ["dropped", "replayed"]
    assert [op["state"] for op in now["ops"]] == ["replayed", "replayed", "rejected"]
    assert now["ops"][2]["reason"] == "UNIQUE constraint failed: sale.code"
    assert seen()[:3] == before[:3]
    assert (len(before[3]), seen()[3]) == (1, [])


def test_a_refused_replay_exits_with_1_and_a_drop_lets_what_waits_go(box: Sandbox, refused: Receipt):
    again = run("replay", "--where", "table=sale")
    dropped = run("drop", place(refused))

    assert (again.exit_code, again.output) == (
        1,
        "0 replayed, 0 dropped, 1 refused again, 1 still wait behind others\n",
    )
    assert dropped.output == "1 replayed, 1 dropped, 0 refused again, 0 still wait behind others\n"
    assert refused.status() == "dropped"


def test_a_locked_row_leaves_its_own_bucket_as_it_is(
    db: Any, box: Sandbox, refused: Receipt, monkeypatch: pytest.MonkeyPatch
):
    others = [pipeline.enqueue_insert(db.sale, customer=who, code="A1", qty=4) for who in range(20)]
    box.drain()
    with box.client.nodes.primary("s0").transaction() as session:
        session.execute("DELETE FROM sale")
    real = NodeSession.execute

    def execute(session: NodeSession, sql: str) -> int:
        if f"({refused.id}," in sql:
            raise pymysql.err.OperationalError(1205, "Lock wait timeout exceeded")
        return real(session, sql)

    monkeypatch.setattr(NodeSession, "execute", execute)
    result = run("replay", "--all")

    assert result.exit_code == 1
    assert "not tried: " in result.output
    assert "Lock wait timeout exceeded" in result.output
    assert refused.status() == "rejected"
    settled = {receipt.status() for receipt in others if receipt.bucket != refused.bucket}
    assert "replayed" in settled


def test_nothing_is_replayed_or_dropped_that_was_not_named(box: Sandbox, refused: Receipt):
    bare, parked = run("drop"), run("replay", f"{refused.bucket}:{refused.position.epoch}-2")

    assert (bare.exit_code, parked.exit_code) == (2, 1)
    assert "name ops, or say which with --where, or --all" in bare.output
    assert "a parked one follows the op that it waits behind" in str(parked.exception)
    assert refused.status() == "rejected"
