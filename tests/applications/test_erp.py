"""A trader's application: orders with lines, products in categories, forms and grids; plain, on one shard, on two."""

from __future__ import annotations

import pytest
from support.applications.ground import Ground
from support.applications.journey import Journey
from support.applications.moving import Application, Placed, known, same_pages, same_rows
from support.applications.rows import Model
from support.web.web2py_server import Site

pytestmark = pytest.mark.mariadb

MODEL = Model(
    keys={
        "auth_user": ("email",),
        "category": ("name",),
        "supplier": ("name",),
        "product": ("sku",),
        "product_category": ("product", "category"),
        "customer": ("name",),
        "sale": ("number",),
        "sale_line": ("sale", "position"),
    },
    references={
        ("category", "parent"): "category",
        **{
            (table, column): "auth_user"
            for table in ("supplier", "product", "customer", "sale")
            for column in ("created_by", "modified_by")
        },
    },
    by_chance=frozenset({"created_on", "modified_on", "closed_on", "password", "registration_id"}),
)
RULE = 'rule = "placement:keep_old_rows"'
TWO_SHARDS = f"""
[tables.customer]
shard_key = "id"
{RULE}
[tables.sale]
shard_key = "customer"
{RULE}
[tables.sale_line]
shard_key = "customer"
{RULE}
[tables.category]
reference = true
[tables.supplier]
reference = true
[tables.product]
reference = true
[tables.product_category]
reference = true
"""
ERP = Application(
    "erp",
    MODEL,
    {1: ["erp_one_shard"], 2: ["erp_one_shard", "erp_two_shards"]},
    {1: "", 2: TWO_SHARDS},
    {
        1: [],
        2: [
            (
                "models/db.py",
                *(f'Field("position", "integer"),{more}' for more in ("", ' Field("customer", "bigint"),')),
            )
        ],
    },
)
DELIVERIES = "\n".join(f"Supplier {n};{('Oslo', 'Rome')[n % 2]};F{n:02};{n}.50" for n in range(40))


def before(visit: Journey) -> None:
    """What is there when the application moves."""
    known(visit, "ada", "bob")
    visit.send("ada", "categories", {"path": "Office/Paper"})
    visit.send("ada", "suppliers/new/supplier", {"name": "Old Mill", "city": "Turin"})
    visit.send("ada", "product_new", {"sku": "P1", "name": "Paper", "price": "4.50", "stock": "20"}, categories="Paper")
    old = visit.send("bob", "customer_new", {"name": "Old & Co", "email": "old@example.com"})
    visit.send("bob", f"sale_new/{old}", {"number": "2025-1", "day": "2025-12-01"}, basket="P1*2")


def trade(visit: Journey) -> None:
    """What is done after it has moved; Ada and Bob are still logged in."""
    visit.send("ada", "categories", {"path": "Office/Pens/Ink/Blue"})
    visit.send("bob", "categories", {"path": "Home/Garden"})
    visit.send("ada", "deliveries", {"lines": DELIVERIES})
    visit.send("ada", "suppliers/new/supplier", {"name": "New Mill", "city": "Bern"})
    pen = visit.send(
        "ada",
        "product_new",
        {"sku": "P2", "name": "Pen", "price": "1.25", "stock": "9"},
        categories="Pens,Blue,Gifts,Gifts",
    )
    visit.open("ada", f"product/{pen}")
    visit.open("bob", "products")
    for n in range(3):
        customer = visit.send(
            "bob", "customer_new", {"name": f"Customer {n}", "email": f"c{n}@example.com", "credit": "9.99"}
        )
        sale = visit.send(
            "bob", f"sale_new/{customer}", {"number": f"2026-{n}", "day": "2026-02-03"}, basket="P1*2,P2*3"
        )
        visit.post("ada", f"line_new/{sale}", sku="P2", qty=1)
        visit.open("bob", f"sale/{sale}")
        visit.post("ada", f"close/{sale}")
    visit.open("bob", f"customer/{customer}")
    visit.open("ada", "customer_list")
    visit.open("ada", "report")
    visit.send("ada", f"customer_edit/{customer}", {"credit": "500.00", "active": None})
    gone = visit.send("ada", "customer_new", {"name": "Gone", "email": ""})
    visit.send("ada", f"sale_new/{gone}", {"number": "2026-9", "day": ""}, basket="F01*1,F02*1")
    visit.send("ada", f"customer_edit/{gone}", {"delete_this_record": "on"})
    visit.open("ada", f"customer/{gone}")
    visit.open("ada", "report")
    visit.open("ada", "products")


@pytest.fixture(scope="module")
def plain(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, ERP, "plain").lived(before, trade)


@pytest.fixture(scope="module")
def one(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, ERP, "one").lived(before, trade, shards=1)


def test_on_one_shard_each_row_is_that_of_the_plain_copy(plain: Placed, one: Placed) -> None:
    same_rows(plain, one)


def test_on_one_shard_each_page_is_that_of_the_plain_copy(plain: Placed, one: Placed) -> None:
    same_pages(plain, one)


@pytest.fixture(scope="module")
def two(ground: Ground, site: Site) -> Placed:
    return Placed(ground, site, ERP, "two").lived(before, trade, shards=2)


def test_on_two_shards_each_row_is_that_of_the_plain_copy(plain: Placed, two: Placed) -> None:
    same_rows(plain, two)


def test_on_two_shards_each_page_is_that_of_the_plain_copy(plain: Placed, two: Placed) -> None:
    same_pages(plain, two)


def test_on_two_shards_rows_are_on_both(two: Placed, ground: Ground) -> None:
    assert {shard: bool(ground.rows(shard, two.name, "sale_line")) for shard in ("s0", "s1")} == {
        "s0": True,
        "s1": True,
    }


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("sale_line", "has no column customer"),
        ("sale.created_by", "has a foreign key to auth_user, which stays in this database"),
    ],
)
def test_what_two_shards_do_not_take_is_named_before(two: Placed, place: str, what: str) -> None:
    assert [finding for finding in two.must if finding["place"] == place and what in finding["what"]]
