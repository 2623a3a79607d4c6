"""`pipeline migrate` over SQLite: what an older release or an older model left, and what cannot be done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin.migration import migrate, plan_of, published
from pipeline.admin.migration.definitions import definitions, forget
from pipeline.client import Client
from pipeline.errors import BadOp, MigrationUnfinished, PipelineError
from pipeline.model.schema import schema_of
from pipeline.shard.columns import columns_of, indexes_of
from pipeline.testing import Sandbox

TABLES: dict[str, dict[str, object]] = {"purchase": {"shard_key": "customer"}}


def test_own_tables_of_an_older_release_get_their_new_columns(box: Sandbox) -> None:
    run(box, "ALTER TABLE pipeline_rejects DROP COLUMN code")

    assert migrate(box.client) == 2

    assert "code" in columns(box, "pipeline_rejects")
    assert migrate(box.client) == 0


def test_a_new_field_becomes_a_column_on_every_shard_and_queued_ops_of_both_models_are_applied(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    old = pipeline.enqueue_insert("purchase", customer=7)
    release("purchase", Field("customer", "integer"), Field("note"))
    new = pipeline.enqueue_insert("purchase", customer=8, note="x")

    assert migrate(box.client) == 2

    box.drain()
    assert (old.status(), new.status()) == ("applied", "applied")
    assert migrate(box.client) == 0


def test_the_plan_names_the_column_of_each_shard_and_changes_nothing(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    release("purchase", Field("customer", "integer"), Field("note", length=20))

    plan = plan_of(box.client)

    assert [(step.shard, step.what) for step in plan.steps] == [
        ("s0", "purchase.note: new column"),
        ("s1", "purchase.note: new column"),
    ]
    assert plan.steps[0].sql == 'ALTER TABLE "purchase" ADD COLUMN "note" CHAR(20)'
    assert "note" not in columns(box, "purchase")


def test_a_run_that_dies_between_two_columns_is_run_again(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    release("purchase", Field("customer", "integer"), Field("note"), Field("more"))
    steps: list[object] = []

    def die(step: object) -> None:
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(box.client, die)

    assert migrate(box.client) == 1
    assert columns(box, "purchase") == ["id", "customer", "note", "more"]
    assert migrate(box.client) == 0


def test_a_new_column_that_must_have_a_value_is_refused_with_what_to_do(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    release("purchase", Field("customer", "integer"), Field("n", "integer", notnull=True), Field("note"))

    with pytest.raises(MigrationUnfinished, match=r"purchase\.n: .*notnull=False") as raised:
        migrate(box.client)

    assert (len(raised.value.faults), raised.value.done) == (2, 2)
    assert columns(box, "purchase") == ["id", "customer", "note"]


def test_one_table_that_cannot_be_created_keeps_no_other(box: Sandbox) -> None:
    box.log.published = lambda text: None  # nobody creates tables but migrate
    release("aplace", Field("at", "geometry()"))
    run(box, "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
    run(box, "CREATE VIEW bview AS SELECT id, name FROM things")
    release("bview", Field("name", unique=True))
    release("purchase", Field("customer", "integer"))

    with pytest.raises(MigrationUnfinished) as raised:
        migrate(box.client)

    assert columns(box, "purchase") == ["id", "customer"]
    assert [fault.split(": ")[:2] for fault in raised.value.faults] == [
        ["s0", "aplace"],
        ["s0", "bview"],
        ["s1", "aplace"],
        ["s1", "bview"],
    ]


def test_a_definition_that_no_model_has_any_more_can_be_withdrawn(box: Sandbox) -> None:
    box.log.published = lambda text: None
    release("place", Field("at", "geometry()"))

    forget(box.client, "place")

    assert migrate(box.client) == 0
    with pytest.raises(PipelineError, match="no table 'plac' is published"):
        forget(box.client, "plac")


def test_a_view_is_named_and_keeps_no_table_from_its_columns(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    run(box, "CREATE VIEW report AS SELECT id, customer FROM purchase")
    box.log.published = lambda definition: None
    release("report", Field("customer", "integer"))
    release("purchase", Field("customer", "integer"), Field("note"))

    with pytest.raises(MigrationUnfinished) as caught:
        migrate(box.client)

    [fault] = [fault for fault in caught.value.faults if fault.startswith("s0")]
    assert fault.startswith("s0: report: is a view")
    assert 'leave it to its database, [pipeline] ignore = ["report"]' in fault
    assert "note" in columns(box, "purchase")


def test_a_table_that_is_left_to_its_database_is_neither_published_nor_touched_nor_written(box: Sandbox) -> None:
    settings = replace(box.client.settings, ignore=("report", "old_*"))
    client = Client(settings, log=box.log, bell=box.bell)
    db = DAL(None)
    for name in ("report", "old_price", "purchase"):
        db.define_table(name, Field("customer", "integer"))

    client.define_tables(db)
    pipeline.define_tables(db)  # as a process with the older configuration does

    assert client.op_builder.plan(db.purchase)
    with pytest.raises(BadOp, match=r"'old_price' is left to its database by \[pipeline\] ignore"):
        client.enqueue_insert(db.old_price, customer=7)
    assert [schema.name for schema in published(client)] == ["purchase"]
    assert {schema.name for schema in published(box.client)} == {"report", "old_price", "purchase"}
    client.close()


def test_a_definition_that_queued_ops_name_is_not_withdrawn(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    pipeline.enqueue_insert("purchase", customer=7)
    with pipeline.atomic():
        pipeline.enqueue_insert("purchase", customer=7)

    with pytest.raises(PipelineError, match="2 ops that are not applied name 'purchase'"):
        forget(box.client, "purchase")

    [one] = definitions(box.client)
    assert (one.table, one.fields, one.queued, one.older) == ("purchase", 2, 2, 0)
    box.drain()
    forget(box.client, "purchase")
    assert definitions(box.client) == []


def test_an_op_that_was_rejected_keeps_its_definition(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer", unique=True))
    for _ in range(2):
        pipeline.enqueue_insert("purchase", customer=7)
    box.drain()

    with pytest.raises(PipelineError, match="1 ops that are not applied"):
        forget(box.client, "purchase")


# contracting ----------------------------------------------------------------------------------------------------


def test_a_column_that_the_model_no_longer_has_is_dropped_only_when_asked(box: Sandbox) -> None:
    grown(box)
    release("purchase", Field("customer", "integer"))

    assert migrate(box.client) == 0
    assert migrate(box.client, contracts=True) == 4  # an index and a column on each shard

    assert columns(box, "purchase") == ["id", "customer"]
    assert migrate(box.client, contracts=True) == 0


def test_nothing_is_dropped_while_an_op_of_the_older_model_is_queued(box: Sandbox) -> None:
    grown(box)
    pipeline.enqueue_insert("purchase", customer=7, note="x")
    release("purchase", Field("customer", "integer"))
    migrate(box.client)

    with pytest.raises(MigrationUnfinished, match="1 ops that are not applied yet name an older definition"):
        migrate(box.client, contracts=True)
    assert "note" in columns(box, "purchase")

    box.drain()
    migrate(box.client, contracts=True)
    assert "note" not in columns(box, "purchase")


def test_a_column_that_no_definition_ever_named_is_left_alone(box: Sandbox) -> None:
    grown(box)
    run(box, "ALTER TABLE purchase ADD COLUMN theirs TEXT")
    release("purchase", Field("customer", "integer"))
    migrate(box.client)

    migrate(box.client, contracts=True)

    assert columns(box, "purchase") == ["id", "customer", "theirs"]


def test_an_older_model_that_a_late_process_publishes_again_drops_nothing(box: Sandbox) -> None:
    release("purchase", Field("customer", "integer"))
    migrate(box.client)
    grown(box)
    release("purchase", Field("customer", "integer"), again=True)

    with pytest.raises(MigrationUnfinished, match="is an older one"):
        migrate(box.client, contracts=True)

    assert "note" in columns(box, "purchase")


def test_nothing_is_dropped_while_something_else_cannot_be_done(box: Sandbox) -> None:
    grown(box)
    release("purchase", Field("customer", "integer"))
    migrate(box.client)
    box.log.published = lambda text: None
    release("place", Field("at", "geometry()"))

    with pytest.raises(MigrationUnfinished, match="nothing is dropped before all else is done"):
        migrate(box.client, contracts=True)

    assert "note" in columns(box, "purchase")


# names in the database ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rname", ['"bought"', "`bought`", "[bought]", "bought"])
def test_a_table_of_another_name_in_the_database_is_like_any_other(box: Sandbox, rname: str) -> None:
    release("purchase", Field("customer", "integer"), Field("code", unique=True), rname=rname)

    assert migrate(box.client) == 0

    assert ("code",) in [index.columns for index in indexes_of(primary(box), "bought") if index.unique]
    for _ in range(20):
        receipt = pipeline.enqueue_insert("purchase", customer=7, code="a")
        pipeline.enqueue_delete(box.client.op_builder.table("purchase").id == receipt.id, shard_key=7)
    assert box.drain() == (40, 0)


# many tables ----------------------------------------------------------------------------------------------------


def test_six_hundred_tables_are_published_at_once(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.log.published = lambda text: None
    calls: list[int] = []
    publish = box.log.publish_schemas
    monkeypatch.setattr(
        box.log, "publish_schemas", lambda schemas: publish(given := list(schemas)) or calls.append(len(given))
    )
    db = DAL(None, migrate=False)
    for number in range(600):
        db.define_table(f"t{number}", Field("n", "integer"))

    pipeline.define_tables(db)

    assert calls == [600]
    assert len(box.log.newest_schemas()) == 600


def grown(box: Sandbox) -> None:
    """Release a model whose table has a column more, with an index."""
    release("purchase", Field("customer", "integer"), Field("note", unique=True))
    migrate(box.client)


def release(name: str, *fields: Any, rname: str | None = None, again: bool = False) -> None:
    """Publish a model with one table; *again* as another process would, which has not published it before."""
    db = DAL("sqlite:memory", migrate=False)
    table = db.define_table(name, *fields, **({"rname": rname} if rname else {}))
    if again:
        schema = schema_of(table)
        pipeline.current().log.publish_schemas([(schema.name, schema.hash, schema.to_json())])
    else:
        pipeline.define_tables(db)


def primary(box: Sandbox) -> Any:
    return box.client.nodes.primary("s1")


def columns(box: Sandbox, table: str) -> list[str]:
    return [column.name for column in columns_of(primary(box), table)]


def run(box: Sandbox, sql: str) -> None:
    for shard in box.client.topology.shards:
        session = box.client.nodes.primary(shard)
        with session.transaction():
            session.execute(sql)
