"""A real py4web over HTTP, real shards behind it: what a developer writes in an action, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from support.web.py4web_docs import printed_application
from support.web.py4web_server import Site, serving
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Browser

pytest.importorskip("py4web")
pytestmark = pytest.mark.mariadb

APPLICATION = """
import json, os
from py4web import DAL, HTTP, URL, Field, Session, action, redirect, request, response
from py4web.utils.auth import Auth
from py4web.utils.dbstore import DBStore
from py4web.utils.form import Form, FormStyleDefault
from py4web.utils.grid import Grid, GridClassStyle
from pipeline.errors import PipelineError
from pipeline.py4web import Pipeline

CELERY_BROKER = {broker!r}
HERE = os.path.dirname(__file__)
os.makedirs(os.path.join(HERE, "databases"), exist_ok=True)
db = DAL({own!r}, folder=os.path.join(HERE, "databases"), pool_size=4, bigint_id=True)
db.define_table("clerk", Field("name"))
db.commit()
SECRET = "1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!"
session = Session(secret=SECRET)
stored = Session(secret=SECRET, storage=DBStore(db), name="{{app_name}}_stored")
auth = Auth(session, db)
auth.enable()
pipeline = Pipeline(db, {config!r}, broker=CELERY_BROKER)
now = Pipeline(db, {config!r}, mode="now")
db.define_table(
    "sale",
    Field("customer", "integer", notnull=True),
    Field("qty", "integer", default=1),
    Field("name", length=40, default=lambda: "by default", filter_out=lambda name: name and name.upper()),
    Field("secret", "password", length=255),
    Field("day", "date"),
    Field("at", "datetime"),
    Field("tags", "list:string"),
    auth.signature,
    migrate=False,
)
db.define_table("country", Field("name", length=60), Field("capital", length=60), migrate=False)
# a first step with one database: db is a shard's primary, and has all of a reference table
one = DAL({primary!r}, folder=os.path.join(HERE, "databases"), pool_size=4, bigint_id=True, migrate=False)
one.define_table("country", Field("name", length=60), Field("capital", length=60, requires=[]))
attached = Pipeline(one, {config!r}, broker=CELERY_BROKER)
attached.attach(one.country)
# another name of the same host: a pool of connections of its own, which are at READ COMMITTED
own = DAL({primary!r}.replace("127.0.0.1", "localhost"), pool_size=4, bigint_id=True, migrate=False)
own.define_table("country", Field("name", length=60), Field("capital", length=60))
owned = Pipeline(own, {config!r}, broker=CELERY_BROKER)
owned.attach(own.country, reads="own")


def fields():
    return {{name: int(value) if value.isdigit() else value for name, value in request.forms.items()}}


def shown(row):
    return json.dumps(row and {{name: row[name] for name in ("customer", "qty", "name")}})


@action("index")
@action.uses(session, pipeline, db)
def index():
    pipeline.session_token()
    return "ready"


@action("add", method="POST")
@action.uses(session, pipeline, db)
def add():
    receipt = pipeline.enqueue_insert(db.sale, **fields())
    return dict(id=str(receipt.id), sent=receipt.position is not None)


@action("add_and_redirect", method="POST")
@action.uses(session, pipeline, db)
def add_and_redirect():
    redirect(URL("show", pipeline.enqueue_insert(db.sale, **fields()).id))


@action("add_and_stop", method="POST")
@action.uses(session, pipeline, db)
def add_and_stop():
    pipeline.enqueue_insert(db.sale, **fields())
    raise HTTP(418, "teapot")


@action("add_and_fail", method="POST")
@action.uses(session, pipeline, db)
def add_and_fail():
    db.clerk.insert(name="ghost")
    pipeline.enqueue_insert(db.sale, **fields())
    1 / 0


@action("add_and_break", method="POST")
@action.uses(session, pipeline, db)
def add_and_break():
    pipeline.enqueue_insert(db.sale, **fields())
    db.clerk.insert(name="ghost")
    try:
        db.executesql("KILL CONNECTION_ID()")
    except Exception:
        pass  # the connection is gone: the commit must fail


@action("add_by_hand", method="POST")
@action.uses(session, pipeline, db)
def add_by_hand():
    customer = fields()["customer"]
    pipeline.enqueue_insert(db.sale, customer=customer, qty=1)
    db.commit()
    pipeline.enqueue_insert(db.sale, customer=customer, qty=2)
    db.rollback()
    pipeline.enqueue_insert(db.sale, customer=customer, qty=3)
    1 / 0


@action("add_now", method="POST")
@action.uses(session, now, db)
def add_now():
    receipt = now.enqueue_insert(db.sale, **fields())
    return dict(id=str(receipt.id), sent=receipt.position is not None)


@action("add_by_form", method=["GET", "POST"])
@action.uses(session, pipeline, db)
def add_by_form():
    fields = [field for field in db.sale if field.name in ("customer", "qty")]
    form = Form(fields, dbio=False, csrf_session=session, form_name="sale")
    if form.accepted:
        redirect(URL("show", pipeline.enqueue_insert(db.sale, form.vars).id))
    return dict(token=form.formkey, errors=form.errors)


@action("country", method=["GET", "POST"])
@action("country/<country:int>", method=["GET", "POST"])
@action.uses(session, attached, one)
def country(country=None):
    form = Form(one.country, country, csrf_protection=False)
    if form.accepted:
        return dict(id=str(form.vars.get("id")), deleted=form.deleted)
    return dict(vars={{name: str(value) for name, value in form.vars.items()}})


@action("grid", method=["GET", "POST"])
@action.uses(session, attached, one)
def grid():
    return str(Grid(one.country, grid_class_style=GridClassStyle, formstyle=FormStyleDefault).render())


@action("login/<user:int>")
@action.uses(session)
def login(user):
    session["user"] = dict(id=user)


@action("countries")
@action.uses(session, attached, one)
def countries():
    one.executesql("SELECT COUNT(*) FROM sale")  # as auth.user reads its user, before anything else
    return dict(names=[row.name for row in one(one.country).select()])


@action("countries_of_all")
@action.uses(one)
def countries_of_all():
    return dict(names=[row.name for row in one(one.country).select()])


def country_and_list(db, name):
    row_id = db.country.insert(name=name)
    listed = db(db.country.name == name).count()
    db(db.country.id == row_id).update(capital="new")
    return dict(listed=listed, names=[row.name for row in db(db.country.capital == "new").select()])


@action("country_and_list/<name>")
@action.uses(session, attached, one)
def country_and_list_by_default(name):
    return country_and_list(one, name)


@action("country_and_list_own/<name>")
@action.uses(session, owned, own)
def country_and_list_own(name):
    return country_and_list(own, name)


@action("country_not_listed", method="POST")
@action.uses(session, one)
def country_not_listed():
    one.country.insert(name="Utopia")


@action("show/<sale:int>")
@action.uses(session, pipeline, db)
def show(sale):
    return shown(pipeline.get(db.sale, sale))


@action("show_as_it_is/<sale:int>")
@action.uses(session, pipeline, db)
def show_as_it_is(sale):
    return shown(pipeline.get(db.sale, sale, fresh=False))


@action("add_without_session", method="POST")
@action.uses(pipeline, db)
def add_without_session():
    return dict(id=str(pipeline.enqueue_insert(db.sale, **fields()).id))


@action("show_without_session/<sale:int>")
@action.uses(pipeline, db)
def show_without_session(sale):
    return shown(pipeline.get(db.sale, sale))


@action("add_in_stored", method="POST")
@action.uses(pipeline, stored, db)
def add_in_stored():
    stored["seen"] = "yes"
    return dict(id=str(pipeline.enqueue_insert(db.sale, **fields()).id))


@action("show_in_stored/<sale:int>")
@action.uses(pipeline, stored, db)
def show_in_stored(sale):
    return shown(pipeline.get(db.sale, sale))


@action("wrong_order", method="POST")
@action.uses(session, db, pipeline)
def wrong_order():
    pipeline.enqueue_insert(db.sale, **fields())


@action("wrong_order_by_session", method="POST")
@action.uses(stored, pipeline, db)
def wrong_order_by_session():
    pipeline.enqueue_insert(db.sale, **fields())


@action("not_listed", method="POST")
@action.uses(session, db)
def not_listed():
    pipeline.enqueue_insert(db.sale, **fields())


@action("clerks")
@action.uses(db)
def clerks():
    return dict(names=[row.name for row in db(db.clerk).select()])
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop_of(tmp_path_factory.mktemp("py4web")) as made:
        broker = made.rig.client.settings.redis.broker_url
        folder = made.py4web_application(APPLICATION, "py4web", broker=broker, primary=made.rig.primaries["s0"])
        printed_application(folder.parent / "docs", made.rig.config, made.uri_of("py4web"), broker)
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        made.browser().get("/docs/index")
        shop.prepare(made, "/shop/index")  # type: ignore[arg-type]  # it wants a browser only
        yield made


@pytest.fixture
def ada(site: Site) -> Browser:
    return site.browser("/shop")


def test_an_op_is_sent_after_the_commit_and_its_id_is_known_before(ada: Browser, shop: Shop, customer: int):
    answer = ada.post("add", customer=customer, qty=3).json()

    assert answer["sent"] is False
    assert shop.sales(f"customer={customer}", "id, qty, name") == [f"{answer['id']}\t3\tby default"]


def test_redirect_and_http_send_as_py4web_commits_for_them(ada: Browser, shop: Shop, customer: int):
    redirected = ada.post("add_and_redirect", customer=customer, qty=1)
    stopped = ada.post("add_and_stop", customer=customer, qty=2)

    assert (redirected.status, stopped.status) == (303, 418)
    assert shop.sales(f"customer={customer}") == ["1", "2"]


@pytest.mark.parametrize(("how", "why"), [("add_and_fail", "division by zero"), ("add_and_break", "pymysql.err.")])
def test_a_ticket_sends_nothing(site: Site, ada: Browser, shop: Shop, customer: int, how: str, why: str):
    answer = site.browser("/shop", tickets=True).post(how, customer=customer)

    assert answer.status == 500
    assert why in site.log
    assert shop.sales(f"customer={customer}") == []
    assert ada.get("clerks").json() == {"names": []}


def test_ops_go_the_way_of_a_transaction_that_an_action_ends_by_hand(site: Site, shop: Shop, customer: int):
    answer = site.browser("/shop", tickets=True).post("add_by_hand", customer=customer)

    assert answer.status == 500
    assert "division by zero" in site.log
    assert shop.sales(f"customer={customer}") == ["1"]


def test_in_mode_now_an_op_is_sent_at_the_call(ada: Browser, shop: Shop, customer: int):
    assert ada.post("add_now", customer=customer, qty=4).json()["sent"] is True

    assert shop.sales(f"customer={customer}") == ["4"]


def test_a_form_with_dbio_false_is_checked_there_and_written_by_the_pipeline(ada: Browser, shop: Shop, customer: int):
    token = ada.get("add_by_form").json()["token"]

    refused = ada.post("add_by_form", customer="x", qty=1, _formkey=token, _formname="sale").json()
    token = refused["token"]
    accepted = ada.post("add_by_form", customer=customer, qty=6, _formkey=token, _formname="sale")

    assert "customer" in refused["errors"]
    assert accepted.status == 303
    assert shop.sales(f"customer={customer}") == ["6"]


OWN = {
    "": "a session in its cookie",
    "_without_session": "no session: a cookie of the pipeline's own",
    "_in_stored": "a session that is stored in db",
}


@pytest.mark.parametrize("kind", OWN, ids=OWN.values())
def test_a_user_sees_his_own_write_while_the_replicas_lag(ada: Browser, shop: Shop, customer: int, kind: str):
    shop.settle()
    with shop.lagging():
        sale = ada.post(f"add{kind}", customer=customer, qty=5).json()["id"]
        shown = ada.get(f"show{kind}/{sale}").json()
        careless = ada.get(f"show_as_it_is/{sale}").json()

    assert (shown["customer"], shown["qty"]) == (customer, 5)
    assert careless is None
    shop.settle()


def test_two_users_at_once_have_each_their_own_ops_and_their_own_memory(site: Site, shop: Shop):
    users = {owner: site.browser("/shop") for owner in shop.rig.owners(4)}

    def writes_and_reads(owner: int) -> list[Any]:
        browser = users[owner]
        return [browser.get(browser.post("add_and_redirect", customer=owner, qty=n).location).json() for n in range(8)]

    with ThreadPoolExecutor(len(users)) as threads:
        seen = dict(zip(users, threads.map(writes_and_reads, users), strict=True))

    for owner, rows in seen.items():
        assert [(row["customer"], row["qty"], row["name"]) for row in rows] == [
            (owner, n, "BY DEFAULT") for n in range(8)
        ]
        assert shop.sales(f"customer={owner}") == [str(n) for n in range(8)]


MISUSES = {
    "wrong_order": "Write @action.uses(session, pipeline, db)",
    "wrong_order_by_session": "a session that is stored in db brings db with it",
    "not_listed": "the pipeline is not among this action's fixtures",
}


@pytest.mark.parametrize("action", MISUSES)
def test_a_misuse_is_told_with_what_to_write_and_sends_nothing(site: Site, shop: Shop, customer: int, action: str):
    answer = site.browser("/shop", tickets=True).post(action, customer=customer)

    assert answer.status == 500
    assert MISUSES[action] in site.log
    assert shop.sales(f"customer={customer}") == []


# attached at import -----------------------------------------------------------------------------------------------


def countries(shop: Shop, row_id: str) -> list[str]:
    shop.rig.client.barrier("country", 30)
    return [
        shop.ask(shard, f"SELECT name, capital FROM shop.country WHERE id={row_id}") for shard in shop.rig.primaries
    ]


def test_forms_of_an_attached_table_create_edit_what_was_changed_and_delete(ada: Browser, shop: Shop):
    row_id = ada.post("country", name="Norway", capital="Oslo", _formname="country").json()["id"]
    created = countries(shop, row_id)

    with shop.rig.frozen():  # the second form shows the row as it was
        ada.post(f"country/{row_id}", name="Norge", capital="Oslo", _formname="country")
        ada.post(f"country/{row_id}", name="Norway", capital="Bergen", _formname="country")
    edited = countries(shop, row_id)
    ada.post(f"country/{row_id}", _delete="on", _formname="country")

    assert created == ["name\tcapital\nNorway\tOslo\n"] * 2
    assert edited == ["name\tcapital\nNorge\tBergen\n"] * 2
    assert countries(shop, row_id) == ["", ""]


def test_a_grid_of_an_attached_table_creates_edits_and_deletes(ada: Browser, shop: Shop):
    ada.submit("grid?mode=new", {"name": "by grid", "capital": "A"})
    shop.rig.client.barrier("country", 30)
    row_id = shop.ask("s0", "SELECT id FROM shop.country WHERE name='by grid'").split()[1]
    ada.submit(f"grid?mode=edit&id={row_id}", {"capital": "B"})
    edited = countries(shop, row_id)
    shown = ada.get("grid").text
    ada.submit(f"grid?mode=delete&id={row_id}", {})  # it asks whether that is meant

    assert edited == ["name\tcapital\nby grid\tB\n"] * 2
    assert "by grid" in shown
    assert countries(shop, row_id) == ["", ""]


def test_a_signature_is_of_the_requests_user_and_time(ada: Browser, shop: Shop, customer: int):
    ada.get("login/5")

    ada.post("add", customer=customer)

    now = "ABS(TIMESTAMPDIFF(SECOND, created_on, UTC_TIMESTAMP())) < 60"
    assert shop.sales(f"customer={customer}", f"created_by, modified_by, {now}") == ["5\t5\t1"]


def test_a_page_waits_for_its_users_own_row_and_one_without_the_fixture_just_reads(
    ada: Browser, site: Site, shop: Shop
):
    with ThreadPoolExecutor(1) as pool:
        with shop.rig.frozen():
            ada.post("country", name="Sweden", capital="Stockholm", _formname="country")
            for_all = ada.get("countries_of_all").json()["names"]
            page = pool.submit(ada.get, "countries")
            waits = not wait([page], 0.3).done
        for_ada = page.result().json()["names"]

    assert waits
    assert "Sweden" in for_ada
    assert "Sweden" not in for_all


def test_an_action_that_reads_what_it_has_just_written_is_warned_of_or_right(ada: Browser, site: Site):
    by_default = [ada.get(f"country_and_list/plain{n}").json() for n in range(2)]
    own = [ada.get(f"country_and_list_own/own{n}").json() for n in range(5)]

    assert [one["listed"] for one in by_default] == [0, 0]
    assert site.log.count("/shop/country_and_list/<name> text=\"reads 'country', to which it has written") == 1
    assert site.log.count("to which it has written") == 1
    assert [one["listed"] for one in own] == [1] * 5
    assert [f"own{n}" in one["names"] for n, one in enumerate(own)] == [True] * 5


def test_a_write_to_an_attached_table_without_the_fixture_is_an_error(site: Site, shop: Shop):
    answer = site.browser("/shop", tickets=True).post("country_not_listed")

    assert answer.status == 500
    assert "not among this action's fixtures" in site.log


def test_the_application_of_the_documentation_runs_as_printed(site: Site, shop: Shop):
    reader = site.browser("/docs")

    with shop.lagging():
        bought = reader.submit("buy", {"customer": "7", "qty": "3"})
        shown = reader.get(bought.location)

    assert (bought.status, shown.text) == (303, "3 of 7")
