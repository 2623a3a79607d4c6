"""A real web2py: `auth.enable_record_versioning` of attached tables, by forms, grid and appadmin, and on two shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.web.appadmin import appadmin
from support.web.shop import MODEL, Shop
from support.web.web2py_server import Browser, Site

pytestmark = pytest.mark.mariadb

#: Its own database is a shard's primary, which has all of a reference table: a first step with one database.
PAPERS = """\
from gluon.contrib.appconfig import AppConfig
from gluon.tools import Auth
from pipeline.web2py import Pipeline
import gluon.fileutils

gluon.fileutils.check_credentials = lambda *args, **options: True  # appadmin asks for an administrator
configuration = AppConfig()
db = DAL(configuration.take("db.uri"), pool_size=5, bigint_id=True, check_reserved=None)
auth = Auth(db)
auth.define_tables(username=False, signature=False)
db._migrate = False  # pyDAL would create the archive here, though its table says migrate=False
db.define_table(
    "paper",
    Field("title", length=40, requires=IS_NOT_EMPTY()),
    Field("n", "integer", default=0),
    Field("price", "decimal(8,2)", default=1),
    Field("body", "text"),
    auth.signature,
    migrate=False,
)
if request.get_vars.late:
    pipeline = Pipeline(db, configuration)
    pipeline.attach(db.paper)
    auth.enable_record_versioning(db)
else:
    auth.enable_record_versioning(db)
    pipeline = Pipeline(db, configuration)
    pipeline.attach(db.paper)
"""
CONTROLLER = """\
def index():
    return "ready"

def create():
    form = SQLFORM(db.paper)
    if form.process().accepted:
        redirect(URL("show", args=form.vars.id))
    return form.xml()

def edit():
    form = SQLFORM(db.paper, request.args(0), deletable=True)
    return "saved" if form.process().accepted else form.xml()

def grid():
    return SQLFORM.grid(db.paper, user_signature=False, csv=False, paginate=50).xml()

def history():
    old = db.paper_archive
    rows = db(old.current_record == request.args(0)).select(orderby=old.id)
    return response.json([[row.title, row.n, str(row.price), row.is_active] for row in rows])

def titles():
    return response.json([row.title for row in db(db.paper).select()])

def bump():
    for _ in range(int(request.args(1))):
        db(db.paper.id == request.args(0)).update(n=db.paper.n + 1)
    return "bumped"

def bump_and_fail():
    db(db.paper.id == request.args(0)).update(n=100)
    raise RuntimeError("a ticket")
"""
SALES = (
    MODEL
    + """\
db._migrate = False
auth.enable_record_versioning([db.sale])
pipeline = Pipeline(db, configuration)
pipeline.attach(db.sale)
"""
)
SALES_CONTROLLER = """\
def index():
    return "ready"

def write():
    return response.json([str(db.sale.insert(customer=int(text), qty=5)) for text in request.args])

def rewrite():
    least, most = int(request.args(0)), int(request.args(1))
    query = (db.sale.customer >= least) & (db.sale.customer <= most) & (db.sale.qty > 4)
    return response.json(db(query).update(qty=db.sale.qty + 1))

def delete():
    ids = [int(text) for text in request.args]
    return response.json(db(db.sale.id.belongs(ids)).delete())
"""
#: web2py shows the seconds of a default's moment and may have other names for it: only what is asked for is compared.
FIELDS = "title, n, is_active"


@pytest.fixture(scope="module")
def ready(shop: Shop, site: Site) -> None:
    folder = shop.application("papers", {"default": CONTROLLER}, "", model=PAPERS)
    ini = folder / "private" / "appconfig.ini"
    ini.write_text(ini.read_text().replace(shop.uri_of("papers"), shop.rig.primaries["s0"]))
    appadmin(folder)
    shop.application("versioned_sales", {"default": SALES_CONTROLLER}, "", model=SALES)
    site.browser().get("/versioned_sales/default/index")
    shop.prepare(site, "/papers/default/index")


@pytest.fixture
def ada(ready: None, site: Site) -> Iterator[Browser]:
    yield site.browser("/papers/default")
    assert site.tickets() == []


@pytest.fixture
def eve(ready: None, site: Site) -> Iterator[Browser]:
    yield site.browser("/versioned_sales/default")
    assert site.tickets() == []


def papers(shop: Shop, where: str, table: str = "paper", fields: str = FIELDS, shard: str = "s0") -> list[str]:
    shop.rig.client.barrier("paper", 30)
    return shop.ask(shard, f"SELECT {fields} FROM shop.{table} WHERE {where} ORDER BY id").splitlines()[1:]


def kept(shop: Shop, row_id: str, shard: str = "s0") -> list[str]:
    return papers(shop, f"current_record={row_id}", "paper_archive", shard=shard)


@pytest.mark.parametrize("late", ["", "?late=1"])
def test_forms_keep_each_version_and_delete_softly(ada: Browser, shop: Shop, late: str):
    row_id = ada.submit(f"create{late}", {"title": "first", "price": "2.50"}).location.rpartition("/")[2]
    assert papers(shop, f"id={row_id}") == ["first\t0\tT"]

    with shop.rig.frozen():  # no version is there yet when the next is asked for
        assert ada.submit(f"edit/{row_id}{late}", {"title": "second"}).text == "saved"
        assert ada.submit(f"edit/{row_id}{late}", {"n": "5"}).text == "saved"
    after_edits = ada.get(f"history/{row_id}").json()
    assert ada.submit(f"edit/{row_id}{late}", {"delete_this_record": "on"}).text == "saved"

    assert after_edits == [["first", 0, "2.50", True], ["second", 0, "2.50", True]]
    assert kept(shop, row_id) == ["first\t0\tT", "second\t0\tT", "second\t5\tT"]
    assert papers(shop, f"id={row_id}") == ["second\t5\tF"]
    assert "second" not in ada.get("titles").json()


def test_grid_and_appadmin_keep_each_version(ada: Browser, shop: Shop):
    ada.submit("grid/new/paper", {"title": "by grid"})
    [row_id] = papers(shop, "title='by grid'", fields="id")

    ada.submit(f"grid/edit/paper/{row_id}", {"n": "7"})
    assert papers(shop, f"id={row_id}") == ["by grid\t7\tT"]
    ada.submit(f"/papers/appadmin/update/db/paper/{row_id}", {"price": "5.00"})
    assert papers(shop, f"id={row_id}", fields="price") == ["5.00"]
    ada.submit(
        "/papers/appadmin/select/db", {"query": "db.paper.n==7", "update_check": "on", "update_fields": "body='x'"}
    )
    assert papers(shop, f"id={row_id}", fields="body") == ["x"]
    ada.get(f"grid/delete/paper/{row_id}")

    assert papers(shop, f"id={row_id}") == ["by grid\t7\tF"]
    assert papers(shop, f"current_record={row_id}", "paper_archive", "n, price, IFNULL(body,'-'), is_active") == [
        "0\t1.00\t-\tT", "7\t1.00\t-\tT", "7\t5.00\t-\tT", "7\t5.00\tx\tT"
    ]  # fmt: skip


def test_updates_that_are_queued_together_keep_every_state_in_between(ada: Browser, shop: Shop):
    row_id = ada.submit("create", {"title": "counted"}).location.rpartition("/")[2]

    for _ in range(3):
        ada.get(f"bump/{row_id}/4")

    assert kept(shop, row_id) == [f"counted\t{n}\tT" for n in range(12)]
    assert kept(shop, row_id, "s1") == kept(shop, row_id)  # of a reference table every shard has the same history
    assert papers(shop, f"id={row_id}") == ["counted\t12\tT"]


def test_a_ticket_keeps_no_version(ada: Browser, site: Site, shop: Shop):
    row_id = ada.submit("create", {"title": "safe"}).location.rpartition("/")[2]

    site.browser("/papers/default", tickets=True).get(f"bump_and_fail/{row_id}")

    assert len(site.forget_tickets()) == 1
    assert kept(shop, row_id) == []
    assert papers(shop, f"id={row_id}") == ["safe\t0\tT"]


def test_a_version_that_its_archive_cannot_hold_rejects_the_update_too(ada: Browser, shop: Shop):
    row_id = ada.submit("create", {"title": "x" * 30}).location.rpartition("/")[2]
    assert papers(shop, f"id={row_id}", fields="n") == ["0"]
    for shard in shop.rig.primaries:
        shop.ask(shard, "ALTER TABLE shop.paper_archive MODIFY title VARCHAR(20)")

    ada.get(f"bump/{row_id}/1")
    held = papers(shop, f"id={row_id}", fields="n"), kept(shop, row_id)
    for shard in shop.rig.primaries:
        shop.ask(shard, "ALTER TABLE shop.paper_archive MODIFY title VARCHAR(40)")

    assert held == (["0"], [])
    reasons = shop.ask("s0", "SELECT reason FROM shop.pipeline_rejects WHERE table_name='paper_archive'")
    assert "Data too long for column 'title'" in reasons


def test_versions_of_a_table_on_two_shards_stand_by_their_rows(eve: Browser, shop: Shop):
    customers = sorted(shop.rig.owners(4))
    ids = eve.get("write/" + "/".join(map(str, customers))).json()
    shop.rig.client.barrier("sale", 30)

    assert eve.get(f"rewrite/{customers[0]}/{customers[-1]}").json() == 4
    shop.rig.client.barrier("sale", 30)
    eve.get("delete/" + "/".join(ids))

    shop.rig.client.barrier("sale", 30)
    found = 0
    for shard in shop.rig.primaries:
        where = f"id IN ({','.join(ids)})"
        rows = shop.ask(shard, f"SELECT id, qty, is_active FROM shop.sale WHERE {where} ORDER BY id").splitlines()[1:]
        for row in rows:
            row_id, qty, active = row.split("\t")
            old = shop.ask(shard, f"SELECT qty FROM shop.sale_archive WHERE current_record={row_id} ORDER BY id")
            assert (qty, active, old.splitlines()[1:]) == ("6", "F", ["5", "6"])
            found += 1
    assert found == 4
