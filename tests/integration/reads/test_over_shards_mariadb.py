"""Reads over two shards on real MariaDB servers give what one database with all rows gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from pydal import DAL, Field
from support.hostile_texts import HOSTILE_TEXTS
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.errors import BadOp, BadRead
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog

pytestmark = pytest.mark.mariadb
TEXTS = ["", "a", "A", "a ", "ä", "b", "B", "ß", "ss", "Z", "é", None]
TABLES = {
    "sale": {"shard_key": "customer"},
    "line": {"shard_key": "customer"},
    "country": {"reference": True},
    "pref": {"shard_key": "customer", "unique": [["customer", "request_tenant"]]},
}


class Both(NamedTuple):
    """The same rows over two shards, and in one database."""

    db: Any
    whole: Any
    client: Client
    drain: Callable[[], None]


def define(db: Any) -> Any:
    db.define_table(
        "sale",
        Field("customer", "integer", notnull=True),
        Field("qty", "integer"),
        Field("price", "decimal(10,2)"),
        Field("weight", "double"),
        Field("name", length=40),
        Field("day", "date"),
        Field("paid", "boolean"),
    )
    db.define_table(
        "line", Field("customer", "integer", notnull=True), Field("qty", "integer"), Field("name", length=40)
    )
    db.define_table("memo", Field("price", "decimal(10,2)"), Field("weight", "double"), Field("day", "date"))
    db.define_table("feast", Field("n", "integer"), Field("day", "date"))
    db.define_table("country", Field("qty", "integer"))
    db.define_table(
        "pref", Field("customer", "integer", notnull=True), Field("n", "integer"), Field("request_tenant", length=20)
    )
    return db


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for n in range(48):
        yield "sale", {
            "customer": n % 12,
            "qty": None if n % 11 == 10 else n % 7, "price": Decimal(n % 9) / 4, "weight": n % 8 / 3,

            "name": TEXTS[n % 12], "day": date(2024, 1, 1) + timedelta(n), "paid": (True, False, None)[n % 3],
        }  # fmt: skip
    for n in range(14):
        yield "line", {"customer": n, "qty": None if n == 3 else n % 5, "name": TEXTS[n * 5 % 12]}
        yield "memo", {"price": Decimal(n % 5) / 4, "weight": n % 3 / 3, "day": date(2024, 1, 1) + timedelta(n * 5)}
    for n in range(8):
        yield "feast", {"n": n, "day": None if n == 4 else date(2024, 2, 20 - n)}
    for n in range(3):
        yield "country", {"qty": n}


@pytest.fixture(scope="module")
def both(mariadb: Rig) -> Iterator[Both]:
    uris = {name: mariadb.primaries[name].replace("/shop", "/parts") for name in ("s0", "s1")}
    for name in uris:
        nodes.rows(mariadb.primaries[name], "CREATE DATABASE parts CHARACTER SET utf8mb4")
    log = MemoryLog()
    shards = {name: {"primary": uri} for name, uri in uris.items()}
    redis = {"url": "redis://away.invalid/0"}
    configuration = {"pipeline": {"buckets": 16}, "redis": redis, "shards": shards, "tables": TABLES}
    client, db = (
        Client(configuration, log=log, bell=SilentBell()),
        define(DAL("sqlite:memory", migrate=False, bigint_id=True)),
    )
    client.define_tables(db)
    migrate(client)
    whole = one_database(mariadb.primaries["s0"])
    for table, row in rows():
        client.enqueue_insert(db[table], **row)
        whole[table].insert(**row)
    whole.commit()

    def drain() -> None:
        for shard in client.topology.shards:
            settings = client.settings
            applier = Applier(shard, client.nodes.primary(shard), log, settings.apply, tables=settings.tables)
            while applier.apply().left:
                pass

    drain()
    yield Both(db, whole, client, drain)
    whole.close()
    client.close()
    for name in uris:
        nodes.rows(mariadb.primaries[name], "DROP DATABASE parts")
    nodes.rows(mariadb.primaries["s0"], "DROP DATABASE parts_whole")


def one_database(primary: str) -> Any:
    """Return a DAL of one database whose tables are made like the shards' own."""
    nodes.rows(primary, "CREATE DATABASE parts_whole CHARACTER SET utf8mb4")
    for name in ("sale", "line", "memo", "feast", "country"):
        nodes.rows(primary, f"CREATE TABLE parts_whole.{name} LIKE parts.{name}")
        nodes.rows(primary, f"ALTER TABLE parts_whole.{name} MODIFY id BIGINT AUTO_INCREMENT")
    return define(DAL(primary.replace("/shop", "/parts_whole"), migrate=False, bigint_id=True))


def days(found: Any) -> list[Any]:
    return sorted(row.day for row in found)


def of(db: Any, field: Any, query: Any, other: Any, **options: Any) -> Any:
    return field.belongs(db(query).nested_select(other, **options))


SUBSELECTS: dict[str, Callable[[Any], Any]] = {
    "whole numbers": lambda db: of(db, db.sale.qty, db.line.customer > 7, db.line.qty),
    "not in, with a NULL": lambda db: ~of(db, db.sale.qty, db.line.customer < 6, db.line.qty),
    "not in": lambda db: ~of(db, db.sale.qty, db.line.customer > 7, db.line.qty),
    "texts that a collation finds equal": lambda db: of(db, db.sale.name, db.line.customer > 5, db.line.name),
    "prices": lambda db: of(db, db.sale.price, db.memo.day > date(2024, 1, 20), db.memo.price),
    "doubles": lambda db: of(db, db.sale.weight, db.memo.weight > 0.1, db.memo.weight),
    "days": lambda db: of(db, db.sale.day, db.memo.price > 0.3, db.memo.day),
    "truths": lambda db: of(db, db.sale.paid, db.sale.qty == 3, db.sale.paid, correlated=False),
    "the highest text": lambda db: of(db, db.sale.name, db.line.id > 0, db.line.name.max()),
    "an average": lambda db: of(db, db.sale.qty, db.line.qty.belongs(1, 3), db.line.qty.avg()),
    "a reference table": lambda db: of(db, db.sale.qty, db.country.qty > 0, db.country.qty),
    "rows of the same shard key": lambda db: of(db, db.sale.qty, db.line.customer == db.sale.customer, db.line.qty),
    "beside a shard key": lambda db: (
        (db.sale.customer == 4) & of(db, db.sale.day, db.memo.price > 0.3, db.memo.day)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SUBSELECTS)
def test_belongs_of_a_subselect_finds_what_one_database_finds(both: Both, what: str) -> None:
    there = days(both.whole(SUBSELECTS[what](both.whole)).select(both.whole.sale.day))

    assert days(both.client.select(SUBSELECTS[what](both.db), both.db.sale.day)) == there
    assert both.client.count(SUBSELECTS[what](both.db)) == len(there)


@pytest.mark.parametrize(
    "make",
    [
        lambda sale: (sale.qty > 3).case("B", "a"),
        lambda sale: (sale.qty > 3).case("a ", "A"),
        lambda sale: (sale.qty > 3).case(10, 9),
        lambda sale: sale.name.coalesce("ä"),
        lambda sale: sale.name.upper(),
        lambda sale: sale.name.replace("a", "Z"),
    ],
    ids=("a case of texts", "texts that are equal", "a case of numbers", "a coalesce", "upper", "replace"),
)
def test_expressions_are_ordered_by_the_collation_as_in_one_database(both: Both, make: Callable[[Any], Any]) -> None:
    def ask(db: Any, select: Any) -> list[Any]:
        found, value = [], make(db.sale)
        for first in (value, ~value):
            found.append([row.day for row in select(db.sale.id > 0, db.sale.day, orderby=[first, db.sale.day])])
        grouped = select(db.sale.id > 0, db.sale.id.count(), value.max(), groupby=value, orderby=value)
        return [*found, [row[db.sale.id.count()] for row in grouped]]

    assert ask(both.db, both.client.select) == ask(
        both.whole, lambda q, *fields, **how: both.whole(q).select(*fields, **how)
    )


def test_days_that_python_has_not_come_first_as_in_one_database(both: Both, mariadb: Rig) -> None:
    for primary, database in (("s0", "parts"), ("s1", "parts"), ("s0", "parts_whole")):
        zero = f"SET STATEMENT sql_mode = '' FOR UPDATE {database}.feast SET day = '0000-00-00' WHERE n IN (2, 5)"
        nodes.rows(mariadb.primaries[primary], zero)
    both.whole.commit()  # its snapshot is from before

    def ask(db: Any, select: Any) -> list[Any]:
        rows = [
            select(db.feast.id > 0, db.feast.n, orderby=[first, db.feast.n]) for first in (db.feast.day, ~db.feast.day)
        ]
        return [[row.n for row in found] for found in rows]

    here = ask(both.db, both.client.select)

    assert here == ask(both.whole, lambda q, *fields, **how: both.whole(q).select(*fields, **how))
    assert here[0][:3] == [4, 2, 5]


def test_hostile_texts_find_what_they_name_or_are_refused(both: Both) -> None:
    sale, whole = both.db.sale, both.whole
    for text in HOSTILE_TEXTS:
        for make in (
            lambda table: table.price == text,  # noqa: B023 - called at once
            lambda table: table.price.belongs([text, "0.25"]),  # noqa: B023
            lambda table: table.name == text,  # noqa: B023
            lambda table: (table.id > 0).case("a", "b") == text,  # noqa: B023
        ):
            try:
                found = days(both.client.select(make(sale), sale.day))
            except BadRead:
                continue
            assert found == days(whole(make(whole.sale)).select(whole.sale.day)), text
            assert len(found) < 48, text
        if text not in ("", "id", "price", "<random>"):
            for options in ({"orderby": text}, {"groupby": text}, {"left": text}, {"limitby": (0, text)}):
                with pytest.raises(BadRead):
                    both.client.select(sale.customer == 3, **options)


def test_an_upsert_of_one_tenant_leaves_the_rows_of_another(both: Both) -> None:
    pref, client, key = both.db.pref, both.client, ["customer", "request_tenant"]
    ids = {}
    for tenant in ("a", "b"):
        pref.request_tenant.default = tenant
        ids[tenant] = client.enqueue_insert(pref, customer=1, n=0).id
    both.drain()

    client.enqueue_upsert(pref, key=key, customer=1, request_tenant="b", n=5)
    with pytest.raises(BadOp, match="filters hide"):
        client.enqueue_upsert(pref, key=key, customer=1, request_tenant="a", n=6)
    with pytest.raises(BadOp, match="leave the id out"):
        client.enqueue_upsert(pref, key=key, id=ids["a"], customer=1, request_tenant="b", n=7)
    both.drain()

    seen = [(row.id, row.n) for row in client.select(pref)]
    pref.request_tenant.default = "a"
    assert (seen, client.get(pref, ids["a"]).n, client.get(pref, ids["b"])) == ([(ids["b"], 5)], 0, None)
    pref.request_tenant.default = None


def test_a_read_that_is_larger_than_the_server_takes_is_refused_with_the_servers_limit(both: Both) -> None:
    [(limit,)] = both.client.nodes.primary("s0").query("SELECT @@max_allowed_packet")
    sale = both.db.sale
    assert len(both.client.select(sale.name == "x" * 1_000_000)) == 0

    with pytest.raises(BadRead, match=rf"statement of [\d,]+ bytes, and max_allowed_packet of .* is {limit:,}"):
        both.client.select(sale.name == "é" * (limit // 2))
    with pytest.raises(BadRead, match="max_allowed_packet"), both.client.read(sale, 1) as node:
        node((sale.customer == 1) & (sale.name == "x" * limit)).select()
