"""A form that is sent twice at once, to one process or to two, of web2py or py4web: one row, and both pages show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.web import py4web_server, web2py_server
from support.web.doubled import MEET, both_show_the_one_row, sent_at_once, the_second_wrote_the_row
from support.web.shop import Shop
from support.web.web2py_server import Browser

pytestmark = pytest.mark.mariadb

MODEL = f"""\
{MEET}
from pipeline.errors import BadOp
pipeline = Pipeline(db, configuration, mode=request.args(0) if request.function == "add" else "on_commit")
"""
CONTROLLER = """\
def index():
    Pipeline(db, configuration, mode="outbox")  # it makes its table
    return "ready"

def add():
    meet(request.folder, "before", request.get_vars)
    values = dict(customer=int(request.post_vars.customer), qty=int(request.post_vars.qty))
    receipt = pipeline.enqueue_insert(db.sale, values, idempotency_key=request.get_vars.key)
    meet(request.folder, "told", request.get_vars)
    if request.get_vars.failing == request.get_vars.who:
        1 / 0
    redirect(URL("show", args=receipt.id))

def give():
    try:
        pipeline.enqueue_insert(db.sale, **request.vars)
    except BadOp as error:
        return str(error)

def show():
    row = pipeline.get(db.sale, request.args(0, cast=int), wait_s=10)
    return response.json(dict(id=str(row.id), qty=row.qty) if row else None)
"""
APPLICATION = """
import os
from py4web import DAL, URL, Field, Session, action, redirect, request
from pipeline.errors import BadOp
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


@action("give", method="POST")
@action.uses(session, modes["on_commit"], db)
def give():
    try:
        modes["on_commit"].enqueue_insert(db.sale, **request.json or request.forms)
    except BadOp as error:
        return str(error)


def adding(mode):
    @action("add/" + mode, method="POST")
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
MODES = ["now", "on_commit", "outbox"]


@pytest.fixture(scope="module", params=["web2py", "py4web"])
def sites(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Sites]:
    """Two processes that serve one application."""
    base = "/shop" if request.param == "py4web" else "/doubled/default"
    if request.param == "py4web":
        pytest.importorskip("py4web")
        shop.py4web_application(APPLICATION, "py4web", meet=MEET)
        serving = py4web_server.serving
    else:
        shop.application("doubled", {"default": CONTROLLER}, MODEL)
        serving = web2py_server.serving
    with ExitStack() as stack:
        made = [stack.enter_context(serving(shop.folder)) for _ in range(2)]
        shop.prepare(made[0], f"{base}/index")
        yield Sites(base, made)


class Sites:
    """The processes, and users of theirs."""

    def __init__(self, base: str, processes: list[web2py_server.Site] | list[py4web_server.Site]):
        self._base, self._processes = base, processes

    def users(self, *of: int) -> list[Browser]:
        """Return a user for each of these processes."""
        return [self._processes[number].browser(self._base, tickets=True) for number in of]

    def forget_tickets(self) -> list[str]:
        return self._processes[0].forget_tickets()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_both_are_redirected_to_the_one_row(sites: Sites, shop: Shop, customer: int, mode: str, processes: int):
    pair = sites.users(0, processes - 1)

    answers = sent_at_once(pair, f"add/{mode}", {"customer": customer}, key=f"form-{customer}")

    both_show_the_one_row(pair, answers, shop, customer)


@pytest.mark.parametrize("mode", ["on_commit", "outbox"])
def test_a_ticket_of_the_first_leaves_the_row_to_the_second_under_the_id_that_both_were_told(
    sites: Sites, shop: Shop, customer: int, mode: str
):
    pair = sites.users(0, 1)

    answers = sent_at_once(pair, f"add/{mode}", {"customer": customer}, key=f"form-{customer}", failing="first")

    [ticket] = sites.forget_tickets()
    assert "division by zero" in ticket
    the_second_wrote_the_row(pair, answers, shop, customer)


@pytest.mark.parametrize("name", ["durability", "idempotency_key", "shard_key", "id"])
def test_what_a_visitor_adds_to_a_form_is_no_option_and_no_id(sites: Sites, shop: Shop, customer: int, name: str):
    [user] = sites.users(0)

    answer = user.post("give", {"customer": customer}, qty=1, **{name: customer})

    assert answer.status == 200
    assert f"{name}=…" in answer.text or "the request brought the value of 'id'" in answer.text
    assert shop.sales(f"customer={customer}", "id") == []
