"""The example shop in a real browser: forms, grid, upload, two users, a double click, a replica that stands still."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.fixtures import needs_mariadb
from support.web.chromium import chromium, visitor
from support.web.running_shop import ShopRig, shop_rig
from support.web.web2py_forms import form_fields
from support.web.web2py_server import needs_web2py

from examples.web2py.load import drive

pytestmark = pytest.mark.mariadb

#: A picture of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
#: An action that fails once its write is queued; the shop has none.
FAILING = """\
def buy():
    pipeline.enqueue_insert(db.purchase, customer=request.args(0, cast=int), item="never bought", price=1)
    1 / 0
"""
#: A form with a key, and what it leads to: the page of the new row. The requests do not wait for each other's session.
ONCE = """\
def form():
    once = INPUT(_type="hidden", _name="once", _value=request.args(1))
    return FORM(once, _class="buy", _action=URL("buy", args=request.args(0)), _method="post").xml()

def buy():
    session._unlock(response)
    bought = dict(customer=request.args(0, cast=int), item="once", price=1)
    receipt = pipeline.enqueue_insert(db.purchase, bought, idempotency_key=request.post_vars.once)
    redirect(URL("default", "purchase", args=receipt.id))
"""
#: An application's front end: rows as JSON, and what it sends back as JSON.
IDS = """\
import json

def make():
    for n in range(20):
        pipeline.enqueue_insert(db.customer, name="Numbered %i" % n)
    return ""

def rows():
    found = pipeline.select(db.customer.name.startswith("Numbered"), orderby=db.customer.id)
    return response.json([dict(id=row.id, name=row.name) for row in found])

def names():
    ids = json.loads(request.body.read())["ids"]
    return response.json([pipeline.get(db.customer, id).name for id in ids])
"""
#: Read the rows, send their ids back, and return what was read, how the ids look there, and what was found by them.
SEND_IDS_BACK = """async ([rows, names]) => {
    const read = await fetch(rows).then((answer) => answer.json());
    const body = JSON.stringify({ ids: read.map((row) => row.id) });
    const found = await fetch(names, { method: "POST", body }).then((answer) => answer.json());
    return [read.map((row) => row.name), read.map((row) => String(row.id)), found];
}"""
#: Two answers of the shop to one form: a browser that clicks twice may or may not send twice.
SEND_TWICE = """() => {
    const form = document.querySelector("form.buy");
    const body = new URLSearchParams(new FormData(form));
    const send = () => fetch(form.action, { method: "POST", body }).then((answer) => answer.url);
    return Promise.all([send(), send()]);
}"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShopRig]:
    needs_web2py()
    needs_mariadb()
    with shop_rig(tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


class User:
    """Somebody who is logged in, and his page."""

    def __init__(self, page: Any, rig: ShopRig, name: str):
        self.page, self.base = page, f"{rig.shop.url}/default"
        # the browser sends the form, and paints no page of it: what it keeps is as if it had
        login = f"{self.base}/user/login"
        told = {"email": f"{name}@example.com", "password": "pipeline"}
        answer = page.request.post(login, form=form_fields(page.request.get(login).text(), "email") | told)
        assert name in answer.text().lower()

    def open(self, path: str) -> None:
        assert self.page.goto(f"{self.base}/{path}").ok

    def fill(self, **fields: str) -> None:
        """Fill the page's form in and send it."""
        for name, value in fields.items():
            self.page.fill(f"main [name={name}]", value)
        self.page.click("main [type=submit]")

    def add_customer(self, name: str) -> str:
        """Add a customer by the form; return the id that the address of the next page has."""
        self.open("customer_new")
        self.fill(name=name)
        return self.number("customer")

    def number(self, page: str) -> str:
        """Return the id in the address, which is that of a certain page."""
        self.page.wait_for_url(re.compile(rf"/{page}/\d+$"))
        return str(self.page.url.rsplit("/", 1)[1])

    def shows(self, text: str) -> bool:
        return text in self.page.inner_text("main")


@pytest.fixture
def ada(browser: Any, rig: ShopRig) -> Iterator[User]:
    with visitor(browser) as page:
        yield User(page, rig, "ada")


@pytest.fixture
def bob(browser: Any, rig: ShopRig) -> Iterator[User]:
    with visitor(browser) as page:
        yield User(page, rig, "bob")


def test_a_form_creates_edits_and_deletes_and_each_page_shows_it_at_once(ada: User, rig: ShopRig):
    customer = ada.add_customer("Zoe Quist")
    created = ada.shows("Zoe Quist")
    ada.open(f"customer_edit/{customer}")
    ada.fill(city="Oslo")
    ada.number("customer")
    edited = ada.shows("Oslo")
    stored = rig.rows("customer", f"id={customer}", "name, city, created_by, modified_by")
    ada.open(f"customer_edit/{customer}")
    ada.page.check("[name=delete_this_record]")
    ada.fill()

    assert (created, edited) == (True, True)
    assert stored == ["Zoe Quist\tOslo\t1\t1"]
    assert rig.rows("customer", f"id={customer}") == []
    assert ada.page.goto(f"{ada.base}/customer/{customer}").status == 404


def test_a_grid_of_an_attached_table_creates_edits_and_deletes(ada: User, rig: ShopRig):
    ada.open("catalogue")
    ada.page.click("text=Add Record")
    ada.fill(name="Aneroid", price="45.50")
    line = ada.page.locator("tr", has_text="Aneroid")
    line.get_by_text("Edit").click()
    ada.fill(price="47.25")
    ada.page.wait_for_selector("tr:has-text('47.25')")
    stored = rig.rows("item", "name='Aneroid'", "price")
    ada.page.once("dialog", lambda dialog: dialog.accept())
    line.get_by_text("Delete").click()
    line.wait_for(state="detached")

    assert stored == ["47.25", "47.25"]  # a reference table: a row on each shard
    assert rig.rows("item", "name='Aneroid'") == []


def test_a_page_is_as_wide_as_a_telephone(ada: User):
    ada.page.set_viewport_size({"width": 375, "height": 740})
    wider = {}
    for path in ("index", "customers", "customer_new", "catalogue", "catalogue/new/item"):
        ada.page.goto(f"{ada.base}/{path}")
        wider[path] = ada.page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert set(wider.values()) == {0}, wider


def test_a_row_of_the_grid_stays_if_the_user_thinks_better_of_deleting_it(ada: User, rig: ShopRig):
    ada.open("catalogue")
    ada.page.once("dialog", lambda dialog: dialog.dismiss())

    ada.page.locator("tr", has_text="Tide clock").get_by_text("Delete").click()

    assert len(rig.rows("item", "name='Tide clock'")) == 2


def test_a_redirect_to_the_new_record_shows_it_while_the_replicas_stand_still(ada: User, rig: ShopRig):
    with rig.lagging():
        ada.add_customer("Yara Late")
        seen = ada.shows("Yara Late")
        served_by = ada.page.get_attribute(".reads li", "class")
        ada.page.click("text=Buy")
        ada.page.click("text=Look")
        ada.number("purchase")
        bought = ada.shows("Yara Late")

    assert (seen, bought) == (True, True)
    assert served_by == "primary"


def test_each_user_sees_his_own_writes_and_does_not_wait_for_those_of_others(ada: User, bob: User, rig: ShopRig):
    customer = ada.add_customer("Shared Friend")
    rig.rows("customer", f"id={customer}")
    bob.open("index")  # a blank page may ask no site for anything
    bob.page.wait_for_function(f"fetch('{bob.base}/customer/{customer}').then((answer) => answer.ok)")
    with rig.lagging():
        for user, quantity in ((ada, "31"), (bob, "32")):
            user.open(f"customer/{customer}")
            user.page.fill("[name=qty]", quantity)
            user.page.click("text=Buy")
            user.page.wait_for_selector(f"td:text-is('{quantity}')")
        bob.open(f"customer/{customer}")
        seen_by_bob = bob.shows("32")
        ada.open(f"customer/{customer}")
        seen_by_ada = ada.shows("31")

    assert (seen_by_ada, seen_by_bob) == (True, True)
    assert rig.rows("purchase", f"customer={customer}", "qty, created_by") == ["31\t1", "32\t2"]


def test_a_form_that_is_sent_twice_makes_one_row(ada: User, rig: ShopRig):
    customer = ada.add_customer("Double Click")

    answers = ada.page.evaluate(SEND_TWICE)

    assert answers == [f"{ada.base}/customer/{customer}"] * 2
    assert len(rig.rows("purchase", f"customer={customer}")) == 1


def test_a_form_that_is_sent_twice_leads_to_the_page_of_the_one_row_both_times(ada: User, rig: ShopRig):
    customer = ada.add_customer("Quick Finger")
    (rig.shop.folder / "controllers" / "once.py").write_text(ONCE)
    assert ada.page.goto(f"{rig.shop.url}/once/form/{customer}/form-{customer}").ok

    answers = ada.page.evaluate(SEND_TWICE)

    [row] = rig.rows("purchase", f"customer={customer}", "id")
    assert answers == [f"{ada.base}/purchase/{row}"] * 2


def test_ids_are_exact_through_json_in_a_browser_and_find_their_rows_when_they_are_sent_back(ada: User, rig: ShopRig):
    (rig.shop.folder / "controllers" / "ids.py").write_text(IDS)
    ids = f"{rig.shop.url}/ids"
    assert ada.page.goto(f"{ids}/make").ok

    names, shown, found = ada.page.evaluate(SEND_IDS_BACK, [f"{ids}/rows", f"{ids}/names"])

    assert sorted(names) == sorted(f"Numbered {n}" for n in range(20))
    assert found == names
    assert sorted(shown) == sorted(rig.rows("customer", "name LIKE 'Numbered%'", "id"))
    assert ada.page.evaluate("JSON.stringify(JSON.parse('[9007199254740993]'))") == "[9007199254740992]"


def test_a_write_is_shown_as_it_becomes_durable_and_the_page_need_not_be_loaded_again(ada: User):
    ada.add_customer("Stepwise")

    ada.page.wait_for_selector("#writes li[data-state=durable]:has-text('Stepwise added')")

    assert ada.page.locator("#writes li.done").count() == 3


def test_an_uploaded_picture_is_shown(ada: User, rig: ShopRig):
    ada.open("customer_new")
    ada.page.set_input_files("[name=photo]", {"name": "face.png", "mimeType": "image/png", "buffer": PIXEL})
    ada.fill(name="Framed")
    ada.number("customer")

    assert ada.page.evaluate("document.querySelector('main img.face').naturalWidth") == 1


def test_a_refused_form_queues_nothing_and_says_why(ada: User, rig: ShopRig):
    ada.open("customer_new")

    ada.fill(name="Nobody", email="not an address")

    assert ada.shows("Enter a valid email address") or ada.page.inner_text(".error")
    assert rig.rows("customer", "name='Nobody'") == []


def test_a_ticket_sends_nothing(ada: User, rig: ShopRig):
    customer = ada.add_customer("Unlucky")
    (rig.shop.folder / "controllers" / "failing.py").write_text(FAILING)
    with ExitStack() as after:
        answer = ada.page.goto(f"{rig.shop.url}/failing/buy/{customer}")
        for path in rig.shop.errors:
            after.callback(path.unlink)

        assert answer.status == 500
        assert "ZeroDivisionError" in rig.tickets()[0]
        assert rig.rows("purchase", f"customer={customer}") == []


def test_who_signs_up_is_logged_in_and_signs_what_he_writes(browser: Any, rig: ShopRig):
    with visitor(browser) as page:
        page.goto(f"{rig.shop.url}/default/user/register")
        for name, value in {"first_name": "Cleo", "last_name": "C", "email": "cleo@example.com"}.items():
            page.fill(f"[name={name}]", value)
        page.fill("[name=password]", "swordfish-7")
        page.fill("[name=password_two]", "swordfish-7")
        page.click("[type=submit]")
        page.wait_for_selector(".who:has-text('Cleo')")
        page.goto(f"{rig.shop.url}/default/customer_new")
        page.fill("main [name=name]", "Of Cleo")
        page.click("main [type=submit]")
        page.wait_for_selector("h1:has-text('Of Cleo')")

    assert rig.rows("customer", "name='Of Cleo'", "created_by") == ["3"]


def test_a_guest_may_look_and_not_write(browser: Any, rig: ShopRig):
    with visitor(browser) as page:
        page.goto(f"{rig.shop.url}/default/customer_new")

        assert page.url.startswith(f"{rig.shop.url}/default/user/login")


def test_many_users_get_no_error_and_no_stale_page_of_their_own_and_are_served_by_replicas(rig: ShopRig):
    load = drive(rig.shop, users=6, seconds=6)

    assert load.faults == []
    assert load.own_reads >= 6
