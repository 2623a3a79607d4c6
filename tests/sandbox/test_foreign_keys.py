"""Foreign keys over SQLite: which `migrate` creates, what `ondelete` then does, and which the shards cannot hold."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.deployments import Site, drain, site

from pipeline.admin import reshape
from pipeline.admin.migration import migrate, plan_of
from pipeline.admin.upkeep import release_waiting
from pipeline.client import Client
from pipeline.errors import MigrationUnfinished, PipelineError
from pipeline.model.schema import TableSchema, schema_of
from pipeline.shard.co_location import refused
from pipeline.shard.table_facts import ForeignKey, constraints_of

__all__ = ["site"]
ONE = {"s0": None}
TWO = {"s0": None, "s1": None}


@pytest.mark.parametrize(
    ("shards", "tables", "held"),
    [
        (ONE, {}, {"item.purchase", "purchase.customer", "node.up"}),
        (TWO, {}, set()),
        ({"s0": "0-63", "s1": ""}, {}, {"item.purchase", "purchase.customer", "node.up"}),
        (TWO, {"purchase": {"shard_key": "customer"}}, {"purchase.customer"}),
        (
            TWO,
            {"purchase": {"shard_key": "customer"}, "item": {"shard_key": "purchase"}},
            {"purchase.customer", "item.purchase"},
        ),
        (TWO, {"customer": {"reference": True}}, {"purchase.customer"}),
        (
            TWO,
            {"customer": {"reference": True}, "purchase": {"reference": True}},
            {"purchase.customer", "item.purchase"},
        ),
        (TWO, {"purchase": {"reference": True}}, {"item.purchase"}),
        (TWO, {"purchase": {"shard_key": "id"}, "customer": {"shard_key": "id"}}, set()),
        (TWO, {"node": {"reference": True}}, {"node.up"}),
    ],
)
def test_a_foreign_key_is_created_where_parent_and_child_are_always_on_one_shard(
    site: Site, shards: dict[str, Any], tables: dict[str, Any], held: set[str]
) -> None:
    client = ready(site, shards, tables)

    for shard in shards:
        assert keys(client, shard) == held
    assert migrate(client) == 0


@pytest.mark.parametrize("ondelete", ["CASCADE", "SET NULL", "RESTRICT", "NO ACTION"])
def test_ondelete_does_what_it_does_in_plain_pydal(site: Site, ondelete: str) -> None:
    plain = model(ondelete, migrate=True)
    client = ready(site, ONE, {}, ondelete)
    queued = client.enqueue_insert(plain.customer, name="a").id
    bought = client.enqueue_insert(plain.purchase, customer=queued).id
    client.enqueue_insert(plain.item, purchase=bought)
    drain(client)
    own = plain.customer.insert(name="a")
    plain.item.insert(purchase=plain.purchase.insert(customer=own))

    receipt = client.enqueue_delete(plain.customer, queued)
    drain(client)
    try:
        plain(plain.customer.id == own).delete()
        wanted = "applied"
    except sqlite3.IntegrityError:
        wanted = "rejected"

    assert receipt.status() == wanted
    session = client.nodes.primary("s0")
    for table, field in (("customer", "name"), ("purchase", "customer"), ("item", "purchase")):
        found = [value for (value,) in session.query(f"SELECT {field} FROM {table}")]
        there = [row[field] for row in plain(plain[table]).select()]
        assert [value is None for value in found] == [value is None for value in there]
    plain.close()


@pytest.mark.parametrize(
    ("ondelete", "notnull", "why"),
    [("SET NULL", True, "needs a field that may be NULL"), ("SET DEFAULT", False, "is none of CASCADE, SET NULL")],
)
def test_a_rule_that_no_server_takes_is_a_fault_and_keeps_no_table(
    site: Site, ondelete: str, notnull: bool, why: str
) -> None:
    client = site.client(shards=ONE, tables={})
    client.define_tables(model(ondelete, notnull=notnull))

    with pytest.raises(MigrationUnfinished, match=f"purchase.customer: no foreign key is created: .*{why}"):
        migrate(client)

    assert keys(client, "s0") == {"item.purchase", "node.up"}
    assert client.nodes.primary("s0").query("SELECT customer FROM purchase") == []


def test_a_field_that_is_new_gets_its_foreign_key(site: Site) -> None:
    client = site.client(shards=ONE, tables={})
    db = DAL(None, migrate=False)
    db.define_table("customer", Field("name"))
    db.define_table("purchase", Field("note"))
    client.define_tables(db)
    migrate(client)

    client.define_tables(model())
    migrate(client)

    assert keys(client, "s0") == {"purchase.customer", "item.purchase", "node.up"}


def test_definitions_with_another_ondelete_differ_and_the_default_is_not_written() -> None:
    one, other = (client_schema(ondelete) for ondelete in ("CASCADE", "SET NULL"))

    assert one.hash != other.hash
    assert '"CASCADE"' not in one.to_json()
    assert TableSchema.from_json(other.to_json()) == other
    assert [column.ondelete for column in other.columns] == ["CASCADE", "SET NULL"]
    assert refused(other.columns[1]) == ""


def test_a_second_shard_is_refused_while_a_foreign_key_would_reach_into_it(site: Site) -> None:
    client = ready(site, {"s0": "0-63"}, {})
    before = plan_of(client)
    grown = {"s0": "0-31", "s1": "32-63"}

    with pytest.raises(
        PipelineError, match=r"one shard into another: .*purchase.customer to customer.*DROP FOREIGN KEY"
    ):
        reshape.add_shard(site.client(shards=grown, tables={}), "s1")

    assert plan_of(client) == before
    assert client.enqueue_insert(model().customer, name="a").status() == "queued"


def test_a_second_shard_without_buckets_takes_no_row_and_so_no_foreign_key_reaches_into_it(site: Site) -> None:
    ready(site, {"s0": "0-63"}, {})

    assert reshape.add_shard(site.client(shards={"s0": "0-63", "s1": ""}, tables={}), "s1") == 0


def test_a_reference_table_that_refers_to_itself_is_copied_to_a_new_shard_in_any_order(site: Site) -> None:
    rules = {"node": {"reference": True}, "customer": {"reference": True}, "purchase": {"shard_key": "customer"},
             "item": {"shard_key": "purchase"}}  # fmt: skip
    client = ready(site, {"s0": "0-63"}, rules)
    db = model()
    first, second = (client.enqueue_insert(db.node, up=None).id for _ in range(2))
    client.enqueue_update(db.node, first, up=second)
    drain(client)

    assert reshape.add_shard(site.client(shards={"s0": "0-63", "s1": ""}, tables=rules), "s1") == 2


def ready(site: Site, shards: dict[str, Any], tables: dict[str, Any], ondelete: str = "CASCADE") -> Client:
    client = site.client(shards=shards, tables=tables)
    client.define_tables(model(ondelete))
    migrate(client)
    return client


def model(ondelete: str = "CASCADE", *, notnull: bool = False, migrate: bool = False) -> Any:
    db = DAL("sqlite:memory", migrate=migrate)
    db.define_table("customer", Field("name"))
    refers = Field("customer", "reference customer", ondelete=ondelete, notnull=notnull)
    db.define_table("purchase", refers)
    db.define_table("item", Field("purchase", "reference purchase"))
    db.define_table("node", Field("up", "reference node"))
    return db


def client_schema(ondelete: str) -> TableSchema:
    return schema_of(model(ondelete).purchase)


def keys(client: Client, shard: str) -> set[str]:
    session = client.nodes.primary(shard)
    found = {table: constraints_of(session, table).parents for table in ("customer", "purchase", "item", "node")}
    for parents in found.values():
        assert all(isinstance(key, ForeignKey) and key.parent_columns == ("id",) for key in parents)
    return {f"{table}.{key.columns[0]}" for table, parents in found.items() for key in parents}


def test_a_child_waits_with_the_parent_whose_schema_is_to_come_and_is_not_refused(site: Site) -> None:
    client = ready(site, ONE, {"purchase": {"shard_key": "customer"}})
    newer = DAL("sqlite:memory", migrate=False)
    newer.define_table("customer", Field("name"), Field("colour"))
    newer.define_table("purchase", Field("customer", "reference customer"))
    client.define_tables(newer)
    parent = client.enqueue_insert(newer.customer, name="a", colour="red")
    child = client.enqueue_insert(newer.purchase, customer=parent.id)
    assert child.bucket == parent.bucket

    drain(client)
    assert (parent.status(), child.status()) == ("parked", "parked")

    migrate(client)
    assert release_waiting(client, "s0") == 2
    assert (parent.status(), child.status()) == ("replayed", "replayed")
