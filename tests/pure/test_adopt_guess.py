"""By which key `adopt` would shard each table: with the row that it refers to, where that is one row only."""

from __future__ import annotations

from pipeline.admin.adopt import findings
from pipeline.admin.adopt_guesses import MOST_COPIED_ROWS, Case, guess_shard_keys
from pipeline.config import Topology
from pipeline.config.settings import RedisSettings, Settings, ShardSettings
from pipeline.shard.survey import Catalog, CatalogColumn, CatalogTable, Survey
from pipeline.shard.table_facts import ForeignKey

LARGE = MOST_COPIED_ROWS + 1


def test_a_child_goes_with_its_parent_and_a_grandchild_by_the_parents_key() -> None:
    case = adopted({"customer": [], "purchase": ["customer"], "item": ["purchase"], "visit": ["customer"]})

    assert keys(case) == {"purchase": "customer", "item": "customer", "visit": "customer"}
    assert case.torn() == {}


def test_a_tree_beside_the_largest_one_goes_with_its_own_root() -> None:
    case = adopted({"customer": [], "purchase": ["customer"], "visit": ["customer"], "blog": [], "post": ["blog"],
                    "vote": ["post"]})  # fmt: skip

    assert keys(case) == {"purchase": "customer", "visit": "customer", "post": "blog", "vote": "blog"}
    assert [(one.table, one.column, one.via.parent) for one in case.guess.added] == [("vote", "blog", "post")]


def test_two_parents_that_forbid_it_are_told_by_name_with_what_to_do() -> None:
    case = adopted({"customer": [], "purchase": ["customer"], "visit": ["customer"], "product": [],
                    "line": ["purchase", "product"]})  # fmt: skip

    [told] = [one for one in findings(case) if "of one only" in one.what]

    assert told.place == "line (purchase, product)"
    assert "refers to purchase and product" in told.what
    assert "it goes with its purchase" in told.what
    assert told.fix.startswith(
        f"[tables.product] reference = true ({LARGE} rows), which copies the table to every shard"
    )
    assert "or no foreign key" in told.fix


def test_one_shard_forbids_nothing() -> None:
    case = adopted({"customer": [], "product": [], "line": ["customer", "product"]}, shards=1)

    assert (keys(case), case.torn()) == ({}, {})


def test_tables_that_refer_to_each_other_do_not_follow_each_other_in_a_circle() -> None:
    case = adopted(
        {"customer": [], "purchase": ["customer"], "visit": ["customer"], "chief": ["team"], "team": ["chief"]}
    )

    assert keys(case).keys() & {"chief", "team"} in ({"chief"}, {"team"})
    assert case.guess.added == ()


def adopted(tables: dict[str, list[str]], shards: int = 2) -> Case:
    """Return a database of large tables, whose columns refer to the tables of their names."""
    found = {}
    for name, parents in tables.items():
        columns = {c: CatalogColumn(c, "bigint(20)", False, None, c == "id", "") for c in ("id", *parents)}
        found[name] = CatalogTable(name, LARGE, columns, ("id",), {})
    refers = [ForeignKey((parent,), parent, table=name) for name, parents in tables.items() for parent in parents]
    catalog = Catalog(found, refers, ())
    guess = guess_shard_keys(catalog, {}, shards)
    settings = Settings(
        redis=RedisSettings("redis://unused.invalid"),
        shards={f"s{n}": ShardSettings(f"s{n}", f"sqlite://{n}") for n in range(shards)},
        tables=guess.tables,
    )
    return Case(Survey("database", "mysql", "11.4-MariaDB"), catalog, guess, Topology(settings))


def keys(case: Case) -> dict[str, str | None]:
    return {name: table.shard_key for name, table in case.guess.tables.items()}
