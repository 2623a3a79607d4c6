"""Texts that a column of a real MariaDB takes for equal are one shard key, or the column is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from support.examples import THOROUGH

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession, columns, ddl
from pipeline.shard.dialect import MySQL
from pipeline.shard.literals import encoder

pytestmark = pytest.mark.mariadb

#: Texts that one collation or another takes for equal: case, accents, blanks, digits, what is expanded or ignored.
CONFUSABLE = [*"aAeEiIıİsSzZß1١¹ \t\0\x01", "á", "a\u0301", "æ", "AE", "ﬁ", "\u3000", "あ", "ア", "\u200d", "😀", "😁"]
BINARY = ("utf8mb4_bin", "utf8mb4_nopad_bin", "latin1_bin")
LOOSE = (
    "utf8mb4_general_ci",
    "utf8mb4_unicode_ci",
    "utf8mb4_uca1400_ai_ci",
    "utf8mb4_general_nopad_ci",
    "latin1_swedish_ci",
)
KINDS = (Column("k", "string", 40), Column("k", "text"))
#: Different texts of each case, 12,000 in all in the thorough profile; so few are enough to find a loose column.
MANY, FEW = 1_500 if THOROUGH else 400, 300


def topology(**rules: object) -> Topology:
    shards = {name: {"primary": f"mysql:pymysql://app@{name}/shop"} for name in ("s0", "s1")}
    redis = {"url": "redis://localhost/0"}
    return Topology(load({"redis": redis, "shards": shards, "tables": {"keyed": {"shard_key": "k", **rules}}}))


@pytest.fixture(scope="module")
def session(mariadb_uri: str) -> Iterator[NodeSession]:
    root = NodeSession("root", mariadb_uri)
    root.query("CREATE DATABASE collated CHARACTER SET utf8mb4")
    root.discard()
    session = NodeSession("s0", mariadb_uri.replace("/shop", "/collated"))
    yield session
    session.discard()


def create(session: NodeSession, schema: TableSchema, collation: str = "") -> None:
    """Create the table as `migrate` does; or as others have, where a collation is given."""
    session.query("DROP TABLE IF EXISTS keyed")
    [sql, *_] = ddl.create_table(schema, topology(), MySQL())
    session.query(sql)
    if collation:
        charset = collation.partition("_")[0]
        kind = ddl.column_type(schema, schema.columns[1], MySQL())
        session.query(f"ALTER TABLE keyed MODIFY k {kind} CHARACTER SET {charset} COLLATE {collation}")


def split_keys(session: NodeSession, column: Column, texts: list[str]) -> list[list[str]]:
    """Store texts, and return those that the server takes for one while they are in several buckets."""
    encode, place = encoder(session.adapter, column), topology().placing("keyed", column)
    with session.transaction():
        session.execute(f"INSERT INTO keyed (k) VALUES {', '.join(f'({encode(text)})' for text in texts)}")
    same: dict[int, list[str]] = {}
    first = "(SELECT MIN(id) AS first, k FROM keyed GROUP BY k) AS one"
    found = session.query(f"SELECT one.first, keyed.id FROM keyed JOIN {first} ON keyed.k = one.k ORDER BY keyed.id")
    for (group, _), text in zip(found, texts, strict=True):
        same.setdefault(group, []).append(text)
    return [group for group in same.values() if len(set(map(place, group))) > 1]


def some_texts(n: int, case: str) -> list[str]:
    """Return so many different texts that the column of a case can hold; no two cases begin with the same."""
    random, latin = Random(case), "latin1" in case
    parts = [part for part in CONFUSABLE if not latin or part.encode("latin1", "ignore").decode("latin1") == part]
    found: dict[str, None] = {"": None}
    while len(found) < n:
        found["".join(random.choices(parts, k=random.randint(1, 4)))] = None
    return list(found)


@pytest.mark.parametrize("column", KINDS, ids=lambda column: column.type)
@pytest.mark.parametrize("collation", ["", *BINARY])
def test_texts_that_the_column_takes_for_equal_share_a_bucket(session: NodeSession, column: Column, collation: str):
    schema = TableSchema("keyed", (Column("id", "id"), column))
    create(session, schema, collation)

    assert split_keys(session, column, some_texts(MANY, f"{collation} {column.type}")) == []
    assert columns.unusable(session, schema, topology()) is None


@pytest.mark.parametrize("collation", LOOSE)
def test_a_column_whose_equal_texts_are_in_several_buckets_is_refused_by_name(session: NodeSession, collation: str):
    schema = TableSchema("keyed", (Column("id", "id"), KINDS[0]))
    create(session, schema, collation)

    refused = columns.unusable(session, schema, topology())

    assert split_keys(session, KINDS[0], some_texts(FEW, collation))
    assert refused is not None
    assert "keyed.k" in refused
    assert collation in refused
    assert "pipeline migrate" in refused


def test_only_a_text_by_which_rows_are_spread_needs_that(session: NodeSession):
    schema = TableSchema("keyed", (Column("id", "id"), KINDS[0], Column("n", "integer"), Column("flag", "boolean")))
    create(session, schema, "utf8mb4_general_ci")

    for rules in ({"shard_key": "n"}, {"shard_key": "flag"}, {"shard_key": None}):
        assert columns.unusable(session, schema, topology(**rules)) is None
