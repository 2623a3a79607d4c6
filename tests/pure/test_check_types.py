"""Whether a database column holds what a field promises, and whether rows that refer to each other stay together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.admin import check
from pipeline.admin.check import schemas
from pipeline.admin.check.evidence import ERROR, WARNING, Evidence, Finding, merged_findings, without_copies
from pipeline.admin.check.schemas import drift_lines
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.columns import plain_type, type_fault
from pipeline.shard.survey import Survey, SurveyedColumn, SurveyedTable
from pipeline.shard.table_facts import Constraints, ForeignKey


@pytest.mark.parametrize(
    ("field", "there"),
    [
        (Column("a", "string", 100), "varchar(100)"),
        (Column("a", "string", 100), "varchar(101)"),
        (Column("a", "string", 100), "text"),
        (Column("a", "text"), "longtext"),
        (Column("a", "list:string"), "mediumtext"),
        (Column("a", "boolean"), "char(1)"),
        (Column("a", "integer"), "int(11)"),
        (Column("a", "integer"), "bigint"),
        (Column("a", "bigint"), "bigint(20)"),
        (Column("a", "reference b"), "bigint(20) unsigned"),
        (Column("a", "double"), "double"),
        (Column("a", "decimal(10,2)"), "decimal(12,3)"),
        (Column("a", "datetime"), "datetime(6)"),
        (Column("a", "blob"), "longblob"),
        (Column("a", "something new"), "geometry"),
    ],
)
def test_a_column_that_holds_all_of_its_field_is_well(field: Column, there: str) -> None:
    assert type_fault(field, there) is None


@pytest.mark.parametrize(
    ("field", "there"),
    [
        (Column("a", "string", 100), "varchar(99)"),
        (Column("a", "string", 300), "tinytext"),
        (Column("a", "string", 10), "int(11)"),
        (Column("a", "text"), "varchar(255)"),
        (Column("a", "boolean"), "tinyint(1)"),
        (Column("a", "integer"), "smallint(6)"),
        (Column("a", "bigint"), "int(11)"),
        (Column("a", "reference b"), "int(11)"),
        (Column("a", "decimal(10,2)"), "decimal(10,3)"),
        (Column("a", "decimal(10,2)"), "decimal(10,1)"),
        (Column("a", "decimal(10,2)"), "double"),
        (Column("a", "datetime"), "date"),
        (Column("a", "blob"), "longtext"),
    ],
)
def test_a_column_that_holds_less_than_its_field_is_told_with_its_type(field: Column, there: str) -> None:
    assert there in str(type_fault(field, there))


def test_the_display_width_of_older_servers_makes_no_difference() -> None:
    assert plain_type("bigint(20) unsigned") == plain_type("bigint unsigned")
    assert plain_type("varchar(20)") != plain_type("varchar(30)")


@pytest.mark.parametrize(
    ("tables", "leaves"),
    [
        ({}, True),
        ({"person": {"reference": True}}, False),
        ({"order": {"shard_key": "person"}}, False),  # a person's id carries its bucket
        ({"order": {"shard_key": "person"}, "person": {"shard_key": "town"}}, True),  # ids made elsewhere carry nothing
        ({"order": {"shard_key": "town"}, "person": {"shard_key": "town"}}, False),
        ({"order": {"shard_key": "town", "rule": "modulo"}, "person": {"shard_key": "town"}}, True),
        ({"order": {"reference": True}}, True),
    ],
)
def test_a_foreign_key_must_stay_on_its_shard(tables: dict[str, Any], leaves: bool) -> None:
    found = list(check.constraint_findings(evidence(tables, old_ids=frozenset(["person"]))))

    assert [f.where for f in found] == (["s0: order.person"] if leaves else [])


def test_a_table_may_be_sharded_by_a_reference_whatever_its_parent_is_sharded_by_if_the_pipeline_made_its_ids() -> None:
    tables = {"order": {"shard_key": "person"}, "person": {"shard_key": "town"}}

    assert list(check.constraint_findings(evidence(tables))) == []


@pytest.mark.parametrize(
    ("tables", "told", "cure"),
    [
        ({}, [("person", "whose rows may be on another shard", "rows outlive the person")], 'shard_key = "person"'),
        ({"order": {"shard_key": "person"}}, [("no foreign key to person", "does nothing", "outlive")], "FOREIGN KEY"),
    ],
)
def test_a_reference_without_a_foreign_key_is_told_with_what_that_means_for_ondelete(
    tables: dict[str, Any], told: list[tuple[str, ...]], cure: str
) -> None:
    found = list(check.constraint_findings(modelled(evidence(tables), Constraints())))

    assert [(f.severity, f.place) for f in found] == [(WARNING, "order.person"), (WARNING, "order.clerk")]
    assert all(word in found[0].what for words in told for word in words)
    assert cure in found[0].fix
    assert "clerk, which the pipeline does not write" in found[1].what
    assert "keep the id of a clerk that is deleted" in found[1].what


def test_versions_may_outlive_their_row() -> None:
    paper = TableSchema("paper", (Column("id", "id"), Column("title", "string")))
    archive = TableSchema("paper_archive", (*paper.columns, Column("current_record", "reference paper")))
    node = Survey("s0", "mysql", "11.4-MariaDB", tables={"paper_archive": SurveyedTable("paper_archive", "InnoDB", {})})

    assert list(check.constraint_findings(replace(evidence({}), schemas=(paper, archive), nodes={"s0": node}))) == []


def test_a_foreign_key_that_does_something_else_than_the_model_says_is_told_with_the_statements() -> None:
    standing = Constraints(parents=(ForeignKey(("person",), "person", table="order", name="of", on_delete="RESTRICT"),))
    found = list(check.constraint_findings(modelled(evidence({"order": {"shard_key": "person"}}), standing)))

    assert found[0].what == "refers to person ON DELETE RESTRICT, but the model says CASCADE"
    assert found[0].fix.split("; ") == [
        "ALTER TABLE `order` DROP FOREIGN KEY `of`",
        "ALTER TABLE `order` ADD FOREIGN KEY (`person`) REFERENCES `person` (`id`) ON DELETE CASCADE",
    ]


def test_a_replica_without_the_foreign_key_of_its_primary_is_told_as_it_will_differ() -> None:
    found = evidence({"order": {"shard_key": "person"}})
    bare = Survey("s0-r0", "mysql", "10.11.0-MariaDB", tables={"order": SurveyedTable("order", "InnoDB", {})})
    found = replace(found, nodes={**found.nodes, "s0-r0": bare}, primary_of=PRIMARY_OF)

    [told] = check.constraint_findings(found)

    assert told.where == "s0-r0: order.person"
    assert "on its primary and not here" in told.what


def modelled(found: Evidence, standing: Constraints) -> Evidence:
    """Return evidence with the published model, in which `order` refers to `person`, and to a table of others."""
    refers = (Column("person", "reference person"), Column("clerk", "reference clerk", ondelete="SET NULL"))
    schemas = (TableSchema("order", (Column("id", "id"), *refers)), TableSchema("person", (Column("id", "id"),)))
    order = SurveyedTable("order", "InnoDB", {}, standing)
    node = Survey("s0", "mysql", "10.11.0-MariaDB", tables={"order": order})
    return replace(found, schemas=schemas, nodes={"s0": node})


def test_what_several_nodes_share_is_one_finding_and_errors_come_first() -> None:
    one = Finding(ERROR, "t.id", "is int", "ALTER", ("s0",))
    risk = Finding(WARNING, "clock", "is late", "NTP", ("s0",))

    found = merged_findings([risk, one, replace(one, nodes=("s1",))])

    assert [f.where for f in found] == ["s0, s1: t.id", "s0: clock"]


def test_a_replica_is_not_named_for_what_it_has_from_its_primary() -> None:
    narrow = Finding(ERROR, "t.id", "is int", "ALTER", ("s0",))

    found = without_copies([narrow, replace(narrow, nodes=("s0-r0",)), replace(narrow, nodes=("s1-r0",))], PRIMARY_OF)

    assert [f.nodes for f in found] == [("s0", "s1-r0")]


def test_columns_that_differ_between_nodes_are_shown_as_a_diff() -> None:
    def node(name: str, **columns: str) -> Survey:
        found = {column: SurveyedColumn(kind, None, False) for column, kind in columns.items()}
        return Survey(name, "mysql", "11.4-MariaDB", tables={"purchase": SurveyedTable("purchase", "InnoDB", found)})

    nodes = [
        node("s0", id="bigint(20)", note="varchar(100)"),
        node("s0-r0", id="bigint", note="varchar(100)", extra="int"),
        node("s1", id="bigint", note="varchar(200)"),
        Survey("s1-r0", "mysql", "11.4-MariaDB"),
    ]
    schema = TableSchema("purchase", (Column("id", "id"), Column("note", "string", 100)))
    found = replace(evidence({}), schemas=(schema,), nodes={node.node: node for node in nodes})

    assert drift_lines(found) == [
        "purchase.note   varchar(100) on s0 and s0-r0, varchar(200) on s1",
        "purchase.extra  missing on s0 and s1, int on s0-r0",
    ]
    differing = [(f.place, f.what) for f in schemas.schema_findings(found) if f.what.startswith("differs")]
    assert [place for place, _ in differing] == ["purchase.note", "purchase.extra"]


@pytest.mark.parametrize(
    ("there", "fix"),
    [("varchar(50)", "pipeline migrate"), ("int", "changing int to varchar(100) is no widening")],
)
def test_check_sends_to_migrate_only_for_what_migrate_does(there: str, fix: str) -> None:
    columns = {"id": SurveyedColumn("bigint", None, False), "note": SurveyedColumn(there, None, False)}
    node = Survey("s0", "mysql", "11.4-MariaDB", tables={"order": SurveyedTable("order", "InnoDB", columns)})
    schema = TableSchema("order", (Column("id", "id"), Column("note", "string", 100)))

    found = schemas.schema_findings(replace(evidence({}), schemas=(schema,), nodes={"s0": node}))

    assert [f.fix.split(":")[0] for f in found if f.place == "order.note"] == [fix]


@pytest.mark.parametrize(
    ("collation", "rules", "found"),
    [
        ("utf8mb4_general_ci", {"shard_key": "note"}, True),
        ("utf8mb4_0900_as_cs", {"shard_key": "note"}, True),
        ("utf8mb4_general_ci", {"shard_key": "id"}, False),
        ("utf8mb4_bin", {"shard_key": "note"}, False),
        ("utf8mb4_nopad_bin", {"shard_key": "note"}, False),
        ("ascii_bin", {"shard_key": "note"}, False),
    ],
)
def test_a_shard_key_that_takes_texts_for_equal_is_named(collation: str, rules: dict[str, Any], found: bool) -> None:
    note = SurveyedColumn("varchar(100)", "utf8mb4", False, "", collation)
    columns = {"id": SurveyedColumn("bigint", None, False), "note": note}
    node = Survey("s0", "mysql", "11.4-MariaDB", tables={"order": SurveyedTable("order", "InnoDB", columns)})
    schema = TableSchema("order", (Column("id", "id"), Column("note", "string", 100)))

    about = schemas.schema_findings(replace(evidence({"order": rules}), schemas=(schema,), nodes={"s0": node}))

    named = [one for one in about if one.place == "order.note" and collation in one.what]
    assert [(one.severity, one.fix) for one in named] == ([(ERROR, "pipeline migrate")] if found else [])


PRIMARY_OF = {"s0-r0": "s0", "s1-r0": "s1"}


def evidence(tables: dict[str, Any], old_ids: frozenset[str] = frozenset()) -> Evidence:
    """Return two shards, on the first of which `order.person` refers to `person.id`."""
    shards = {name: {"primary": f"mysql:pymysql://app@{name}/shop"} for name in ("s0", "s1")}
    tables = {"order": {}, "person": {}, **tables}
    settings = load({"redis": {"url": "redis://localhost/0"}, "shards": shards, "tables": tables})
    order = SurveyedTable("order", "InnoDB", {}, Constraints(parents=(ForeignKey(("person",), "person"),)))
    node = Survey("s0", "mysql", "10.11.0-MariaDB", tables={"order": order}, old_ids=old_ids)
    away = PipelineError("not asked")
    return Evidence(settings, Topology(settings), away, away, (), "", None, {"s0": node}, {})


@pytest.mark.parametrize(("zone", "found"), [("", 0), ("+01:00 and +02:00", 3)])
def test_what_the_zone_of_a_session_decides_is_told_where_the_server_is_in_another(zone: str, found: int) -> None:
    columns = {
        "at": SurveyedColumn("timestamp", None, False),
        "made": SurveyedColumn("datetime", None, False, "now"),
        "day": SurveyedColumn("date", None, False),
    }
    tables = {name: SurveyedTable(name, "InnoDB", columns) for name in ("visit", "hits")}
    node = Survey("s0", "mysql", "10.11", tables=tables, zone=zone, clocks=[("visit", "stamps"), ("hits", "counts")])

    told = list(schemas.moments(node, ["visit"], WARNING))

    places = ["visit.at", "visit.made", "trigger stamps on visit"]
    assert [one.place for one in told] == places[:found]
    assert all("the server is at +01:00 and +02:00" in one.what and "time_zone" in one.fix for one in told)
