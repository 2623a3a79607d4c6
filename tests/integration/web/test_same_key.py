"""A form that is sent twice at once to a real py4web: one row, and both pages show it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.web.doubled import MEET, both_show_the_one_row, sent_at_once, the_second_wrote_the_row
from support.web.py4web_server import Site, serving
from support.web.shop import Shop, shop_of
from support.web.web2py_server import Browser

pytest.importorskip("py4web")
pytestmark = pytest.mark.mariadb

APPLICATION = """
import os
from py4web import DAL, URL, Field, Session, action, redirect, request
from pipeline.py4web import Pipeline

{meet}

HERE = os.path.dirname(__file__)
os.makedirs(os.path.join(HERE, "databases"), exist_ok=True)
db = DAL({own!r}, folder=os.path.join(HERE, "databases"), pool_size=4, bigint_id=True)
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
modes = {{mode: Pipeline(db, {config!r}, mode=mode) for mode in ("now", "on_commit", "outbox")}}
db.define_table("sale", Field("customer", "integer"), Field("qty", "integer", default=1), migrate=False)
db.commit()


@action("index")
@action.uses(session, modes["on_commit"], db)
def index():
    modes["on_commit"].session_token()
    return "ready"


@action("show/<row:int>")
@action.uses(session, modes["on_commit"], db)
def show(row):
    found = modes["on_commit"].get(db.sale, row, wait_s=10)
    return dict(id=str(found.id), qty=found.qty)


def adding(mode):
    @action("add_" + mode, method="POST")
    @action.uses(session, modes[mode], db)
    def add():
        meet(HERE, "before", request.query)
        values = dict(customer=int(request.forms["customer"]), qty=int(request.forms["qty"]))
        receipt = modes[mode].enqueue_insert(db.sale, values, idempotency_key=request.query["key"])
        meet(HERE, "told", request.query)
        if request.query.get("failing") == request.query["who"]:
            1 / 0
        redirect(URL("show", receipt.id))


for mode in modes:
    adding(mode)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop_of(tmp_path_factory.mktemp("py4web")) as made:
        made.py4web_application(APPLICATION, "doubled", meet=MEET)
        yield made


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with serving(shop.folder) as made:
        shop.prepare(made, "/shop/index")  # type: ignore[arg-type]  # it wants a browser only
        yield made


@pytest.fixture
def pair(site: Site) -> list[Browser]:
    return [site.browser("/shop", tickets=True) for _ in range(2)]


@pytest.mark.parametrize("mode", ["now", "on_commit", "outbox"])
def test_both_are_redirected_to_the_one_row(pair: list[Browser], shop: Shop, customer: int, mode: str):
    answers = sent_at_once(pair, f"add_{mode}", {"customer": customer}, key=f"form-{customer}")

    both_show_the_one_row(pair, answers, shop, customer)


@pytest.mark.parametrize("mode", ["on_commit", "outbox"])
def test_a_ticket_of_the_first_leaves_the_row_to_the_second_under_the_id_that_both_were_told(
    pair: list[Browser], shop: Shop, customer: int, mode: str
):
    answers = sent_at_once(pair, f"add_{mode}", {"customer": customer}, key=f"form-{customer}", failing="first")

    the_second_wrote_the_row(pair, answers, shop, customer)
