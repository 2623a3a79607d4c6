"""py4web in mode outbox: ops are rows of the request's own transaction, and outlive the process that committed them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import RemoteDisconnected

import pytest
from support.web.py4web_server import Site, serving
from support.web.shop import Shop, shop_of
from support.web.web2py_server import START_S, Browser

pytest.importorskip("py4web")
pytestmark = pytest.mark.mariadb

APPLICATION = """
import os, signal
from py4web import DAL, Field, Session, action, request
from py4web.utils.form import Form
from pipeline.py4web import Pipeline

HERE = os.path.dirname(__file__)
os.makedirs(os.path.join(HERE, "databases"), exist_ok=True)
db = DAL({own!r}, folder=os.path.join(HERE, "databases"), pool_size=4, bigint_id=True)
db.define_table("clerk", Field("name"))
db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer", default=1),
                Field("name", length=40, default=""), migrate=False)
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
pipeline = Pipeline(db, {config!r}, mode="outbox")
db.define_table("country", Field("name", length=60), Field("capital", length=60, requires=[]), migrate=False)
pipeline.attach(db.country)
db.commit()


def doomed():
    if request.forms.get("die") == "before sending":
        pipeline.request._held.send = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if request.forms.get("die") == "before deleting":
        pipeline.request._held.send.__globals__["delete"] = lambda *args: os.kill(os.getpid(), signal.SIGKILL)


@action("index")
@action.uses(session, pipeline, db)
def index():
    pipeline.session_token()
    return "ready"


@action("add", method="POST")
@action.uses(session, pipeline, db)
def add():
    receipt = pipeline.enqueue_insert(db.sale, customer=int(request.forms["customer"]))
    return dict(id=str(receipt.id), rows=db(db.pipeline_outbox).count())


@action("note", method="POST")
@action.uses(session, pipeline, db)
def note():
    customer = int(request.forms["customer"])
    for letter in request.forms["letters"]:
        pipeline.enqueue_update(db.sale.customer == customer, name=db.sale.name + letter)
        if letter == "-":
            db.rollback()
    doomed()


@action("note_and_fail", method="POST")
@action.uses(session, pipeline, db)
def note_and_fail():
    note.__wrapped__()
    1 / 0


@action("note_and_break", method="POST")
@action.uses(session, pipeline, db)
def note_and_break():
    note.__wrapped__()
    try:
        db.executesql("KILL CONNECTION_ID()")
    except Exception:
        pass  # the connection is gone: the commit must fail


@action("note_without_db", method="POST")
@action.uses(session, pipeline)
def note_without_db():
    note.__wrapped__()


@action("country", method=["GET", "POST"])
@action.uses(session, pipeline, db)
def country():
    form = Form(db.country, csrf_protection=False)
    if form.accepted:
        db.country.insert(name="beside " + form.vars["name"])
        doomed()
        return dict(id=str(form.vars.get("id")))
    return dict(errors=form.errors)


@action("kept")
@action.uses(db)
def kept():
    return dict(rows=db(db.pipeline_outbox).count())
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop_of(tmp_path_factory.mktemp("py4web")) as made:
        made.py4web_application(APPLICATION, "boxed")
        with serving(made.folder) as first:
            made.prepare(first, "/shop/index")  # type: ignore[arg-type]  # it wants a browser only
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        yield made


@pytest.fixture
def ada(site: Site) -> Browser:
    return site.browser("/shop")


@contextmanager
def killed(shop: Shop) -> Iterator[Browser]:
    """Serve until a request of the block kills the server."""
    with serving(shop.folder) as doomed:
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            yield doomed.browser("/shop")
        doomed.process.wait(START_S)


def test_an_op_is_a_row_until_it_is_sent_after_the_commit(ada: Browser, shop: Shop, customer: int):
    answer = ada.post("add", customer=customer).json()

    assert answer["rows"] == 1
    assert ada.get("kept").json() == {"rows": 0}
    assert shop.sales(f"customer={customer}", "id") == [answer["id"]]


def test_the_connection_of_db_goes_back_to_its_pool(ada: Browser, shop: Shop, customer: int):
    for _ in range(20):
        ada.post("add", customer=customer)

    open_ones = shop.ask("s0", "SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'own_boxed'").split()[-1]

    assert int(open_ones) <= 4 + 1  # the pool's, and that of the thread which imported the application


def test_what_was_rolled_back_is_not_sent(ada: Browser, shop: Shop, customer: int):
    ada.post("add", customer=customer)

    ada.post("note", customer=customer, letters="ab-cd")

    assert shop.sales(f"customer={customer}", "name") == ["cd"]


@pytest.mark.parametrize("how", ["note_and_fail", "note_and_break", "note_without_db"])
def test_a_ticket_leaves_nothing_in_the_outbox(site: Site, ada: Browser, shop: Shop, customer: int, how: str):
    ada.post("add", customer=customer)

    answer = site.browser("/shop", tickets=True).post(how, customer=customer, letters="a")

    assert answer.status == 500
    assert how != "note_without_db" or "in mode outbox list db too" in site.log
    assert ada.get("kept").json() == {"rows": 0}
    assert shop.sales(f"customer={customer}", "name") == [""]


@pytest.mark.parametrize("when", ["before sending", "before deleting"])
def test_a_server_killed_after_its_commit_loses_and_doubles_nothing(ada: Browser, shop: Shop, customer: int, when: str):
    ada.post("add", customer=customer)
    with killed(shop) as browser:
        browser.post("note", customer=customer, letters="ab", die=when)
    left = ada.get("kept").json()

    ada.post("note", customer=customer, letters="cd")

    assert left == {"rows": 2}
    assert ada.get("kept").json() == {"rows": 0}
    assert shop.sales(f"customer={customer}", "name") == ["abcd"]


def test_a_form_of_an_attached_table_is_two_rows_of_the_outbox_which_the_command_relays(ada: Browser, shop: Shop):
    with killed(shop) as browser:
        browser.post("country", name="Norway", capital="Oslo", _formname="country", die="before sending")
    left = ada.get("kept").json()

    command = [sys.executable, "-m", "pipeline", "outbox", "relay", "--config", str(shop.rig.config)]
    done = subprocess.run(
        [*command, "--uri", shop.uri_of("boxed")], capture_output=True, text=True, timeout=60, check=False
    )
    row_id = ada.post("country", name="Sweden", capital="Stockholm", _formname="country").json()["id"]

    assert left == {"rows": 2}
    assert (done.returncode, done.stdout) == (0, "2 ops were sent\n"), done.stderr
    shop.rig.client.barrier("country", 30)
    # a busy machine may make ids of the host's reserve, which are older
    names = shop.ask("s1", "SELECT name FROM shop.country ORDER BY name").split("\n")[1:-1]
    assert names == ["beside Norway", "beside Sweden", "Norway", "Sweden"]
    assert shop.ask("s0", f"SELECT name FROM shop.country WHERE id = {row_id}").split() == ["name", "Sweden"]
