"""A real py4web: versions and soft deletes of attached tables, by forms and grid, in both modes and on two shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.web.py4web_server import Site, serving
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Browser

from pipeline.clock import polls

pytest.importorskip("py4web")
pytestmark = pytest.mark.mariadb

#: Its own database is a shard's primary, which has all of a reference table: a first step with one database.
APPLICATION = """
import os
from decimal import Decimal
from py4web import DAL, Field, Session, action, redirect, request, URL
from py4web.utils.auth import Auth
from py4web.utils.form import Form
from py4web.utils.grid import Grid
from pydal.validators import IS_NOT_EMPTY
from pipeline.py4web import Pipeline

FOLDER = {databases!r}  # shared: the tables of users and of the outbox are made once
db = DAL({primary!r}, folder=FOLDER, pool_size=4, bigint_id=True)
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
auth = Auth(session, db, define_tables=True)
pipeline = Pipeline(db, {config!r}, mode={mode!r})
db.commit()
db._migrate = False  # pyDAL would create the archives here, though their tables say migrate=False
db.define_table(
    "paper",
    Field("title", length=40, requires=IS_NOT_EMPTY()),
    Field("n", "integer", default=0),
    Field("price", "decimal(8,2)", default=Decimal("1")),
    auth.signature,
    migrate=False,
)
db.define_table(
    "sale", Field("customer", "integer", notnull=True), Field("qty", "integer"), auth.signature, migrate=False
)
{versioned}


@action("index")
@action.uses(session, pipeline, db)
def index():
    pipeline.session_token()
    return "ready"


@action("create", method=["GET", "POST"])
@action.uses(session, pipeline, db)
def create():
    form = Form(db.paper, csrf_session=session)
    if form.accepted:
        redirect(URL("edit", form.vars["id"]))
    return form.xml()


@action("edit/<paper:int>", method=["GET", "POST"])
@action.uses(session, pipeline, db)
def edit(paper):
    form = Form(db.paper, paper, csrf_session=session)
    return "saved" if form.accepted else form.xml()


@action("grid", method=["GET", "POST"])
@action.uses(session, pipeline, db)
def grid():
    return Grid(db.paper, create=True, editable=True, deletable=True).render().xml()


@action("history/<paper:int>")
@action.uses(session, pipeline, db)
def history(paper):
    old = db.paper_archive
    rows = db(old.current_record == paper).select(orderby=old.id)
    return dict(rows=[[row.title, row.n, str(row.price), row.is_active] for row in rows])


@action("titles")
@action.uses(session, pipeline, db)
def titles():
    return dict(titles=[row.title for row in db(db.paper).select()])


@action("bump/<paper:int>/<times:int>")
@action.uses(session, pipeline, db)
def bump(paper, times):
    for _ in range(times):
        db(db.paper.id == paper).update(n=db.paper.n + 1)
    return "bumped"


@action("change_and_fail/<paper:int>")
@action.uses(session, pipeline, db)
def change_and_fail(paper):
    db(db.paper.id == paper).update(n=100)
    db(db.paper.id == paper).delete()
    1 / 0


@action("sell", method="POST")
@action.uses(session, pipeline, db)
def sell():
    return dict(ids=[str(db.sale.insert(customer=int(text), qty=5)) for text in request.forms["customers"].split()])


@action("resell/<least:int>/<most:int>")
@action.uses(session, pipeline, db)
def resell(least, most):
    query = (db.sale.customer >= least) & (db.sale.customer <= most) & (db.sale.qty > 4)
    return dict(count=db(query).update(qty=db.sale.qty + 1))


@action("unsell", method="POST")
@action.uses(session, pipeline, db)
def unsell():
    return dict(count=db(db.sale.id.belongs([int(text) for text in request.forms["ids"].split()])).delete())
"""
ATTACH = "pipeline.attach(db.paper)\npipeline.attach(db.sale)\n"
#: As people write it: with py4web's Auth and before, or with pyDAL's own word and after.
BEFORE = "auth.enable_record_versioning([db.paper, db.sale])\n" + ATTACH
AFTER = ATTACH + "db.paper._enable_record_versioning()\ndb.sale._enable_record_versioning()\n"
APPLICATIONS = {
    "before": ("on_commit", BEFORE), "after": ("on_commit", AFTER),
    "boxed_before": ("outbox", BEFORE), "boxed_after": ("outbox", AFTER),
}  # fmt: skip
#: What Celery writes about a killed child.
KILLED = "signal 9 (SIGKILL)"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop_of(tmp_path_factory.mktemp("py4web")) as made:
        databases = made.folder / "databases"
        databases.mkdir()
        for name, (mode, versioned) in APPLICATIONS.items():
            folder = made.folder / "apps" / name
            folder.mkdir(parents=True)
            text = APPLICATION.format(
                databases=str(databases), primary=made.rig.primaries["s0"], config=str(made.rig.config),
                mode=mode, versioned=versioned,
            )  # fmt: skip
            (folder / "__init__.py").write_text(text)
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        for name in APPLICATIONS:
            shop.prepare(made, f"/{name}/index")  # type: ignore[arg-type]  # it wants a browser only
        yield made


@pytest.fixture(params=APPLICATIONS)
def ada(request: pytest.FixtureRequest, site: Site) -> Browser:
    return site.browser(f"/{request.param}")


def papers(shop: Shop, where: str, table: str = "paper", fields: str = "title, n, is_active") -> list[str]:
    shop.rig.client.barrier("paper", 30)
    return shop.ask("s0", f"SELECT {fields} FROM shop.{table} WHERE {where} ORDER BY id").splitlines()[1:]


def kept(shop: Shop, row_id: str) -> list[str]:
    return papers(shop, f"current_record={row_id}", "paper_archive")


def created(ada: Browser, title: str) -> str:
    return ada.submit("create", {"title": title, "price": "2.50"}).location.rpartition("/")[2]


def test_forms_keep_each_version_and_delete_softly(ada: Browser, shop: Shop):
    row_id = created(ada, "first")
    assert papers(shop, f"id={row_id}") == ["first\t0\tT"]

    with shop.rig.frozen():  # no version is there yet when the next is asked for
        assert ada.submit(f"edit/{row_id}", {"title": "second"}).text == "saved"
        assert ada.submit(f"edit/{row_id}", {"n": "5"}).text == "saved"
    after_edits = ada.get(f"history/{row_id}").json()["rows"]
    assert ada.submit(f"edit/{row_id}", {"_delete": "on"}).text == "saved"

    assert after_edits == [["first", 0, "2.50", True], ["second", 0, "2.50", True]]
    assert kept(shop, row_id) == ["first\t0\tT", "second\t0\tT", "second\t5\tT"]
    assert papers(shop, f"id={row_id}") == ["second\t5\tF"]
    assert "second" not in ada.get("titles").json()["titles"]


def test_a_form_that_changes_nothing_keeps_no_version(ada: Browser, shop: Shop):
    row_id = created(ada, "unchanged")

    assert ada.submit(f"edit/{row_id}", {"title": "unchanged"}).text == "saved"

    assert kept(shop, row_id) == []


def test_the_grid_keeps_each_version_and_deletes_softly(ada: Browser, shop: Shop, customer: int):
    title = f"by grid {customer}"
    ada.submit("grid?mode=new", {"title": title, "price": "2.50"})
    [row_id] = papers(shop, f"title='{title}'", fields="id")

    ada.submit(f"grid?mode=edit&id={row_id}", {"n": "7"})
    assert papers(shop, f"id={row_id}") == [f"{title}\t7\tT"]
    ada.post(f"grid?mode=delete&id={row_id}")

    assert papers(shop, f"id={row_id}") == [f"{title}\t7\tF"]
    assert kept(shop, row_id) == [f"{title}\t0\tT", f"{title}\t7\tT"]
    assert title not in ada.get("grid").text


def test_a_ticket_keeps_no_version(ada: Browser, site: Site, shop: Shop, request: pytest.FixtureRequest):
    row_id = created(ada, "safe")

    name = request.node.callspec.params["ada"]
    answer = site.browser(f"/{name}", tickets=True).get(f"change_and_fail/{row_id}")
    ada.get(f"bump/{row_id}/1")  # in mode outbox it would send what was left

    assert answer.status == 500
    assert kept(shop, row_id) == ["safe\t0\tT"]
    assert papers(shop, f"id={row_id}") == ["safe\t1\tT"]


def test_versions_of_a_table_on_two_shards_stand_by_their_rows(ada: Browser, shop: Shop):
    customers = sorted(shop.rig.owners(4))
    ids = ada.post("sell", customers=" ".join(map(str, customers))).json()["ids"]
    shop.rig.client.barrier("sale", 30)

    assert ada.get(f"resell/{customers[0]}/{customers[-1]}").json() == {"count": 4}
    shop.rig.client.barrier("sale", 30)
    assert ada.post("unsell", ids=" ".join(ids)).json() == {"count": 0}  # pyDAL's count of a soft delete

    shop.rig.client.barrier("sale", 30)
    rows, shards = {}, set()
    for shard in shop.rig.primaries:
        asked = f"SELECT id, qty, is_active FROM shop.sale WHERE id IN ({','.join(ids)})"
        for row_id, *state in map(str.split, shop.ask(shard, asked).splitlines()[1:]):
            old = shop.ask(shard, f"SELECT qty FROM shop.sale_archive WHERE current_record={row_id} ORDER BY id")
            rows[row_id] = (state, old.splitlines()[1:])
            shards.add(shard)
    assert rows == {row_id: (["6", "F"], ["5", "6"]) for row_id in ids}
    assert shards == set(shop.rig.primaries)


@pytest.mark.parametrize("ada", ["before", "boxed_after"], indirect=True)
def test_a_killed_worker_neither_loses_a_version_nor_keeps_it_twice(ada: Browser, shop: Shop):
    rig, row_id, bumps = shop.rig, created(ada, "counted"), 0
    steady = rig.workers
    with rig.worker(PIPELINE_CRASH_AT="statement:0.4") as fragile:
        with rig.frozen(*steady):
            for _ in polls(60):
                ada.get(f"bump/{row_id}/8")
                bumps += 8
                if KILLED in rig.log_text(fragile):
                    break
            assert KILLED in rig.log_text(fragile)
        rig.client.barrier("paper", 60)

    assert kept(shop, row_id) == [f"counted\t{n}\tT" for n in range(bumps)]
    assert papers(shop, f"id={row_id}") == [f"counted\t{bumps}\tT"]
