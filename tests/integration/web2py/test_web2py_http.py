"""A real web2py over HTTP, real shards behind it: what a developer writes in a controller, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.web.shop import Shop
from support.web.web2py_server import Browser, Site

from examples.web2py.server import THREADS

pytestmark = pytest.mark.mariadb

MODEL = "pipeline = Pipeline(db, configuration)\n"
CONTROLLER = """\
import json
from pipeline.errors import BadOp

def _fields():
    return {name: int(value) if value.isdigit() else value for name, value in request.post_vars.items()}

def index():
    return "ready"

def add():
    receipt = pipeline.enqueue_insert(db.sale, **_fields())
    return response.json(dict(id=str(receipt.id), sent=receipt.position is not None))

def add_twice():
    from pipeline.web2py import Pipeline
    pipeline.enqueue_insert(db.sale, customer=int(request.vars.customer))
    Pipeline(db, configuration).enqueue_insert(db.sale, customer=int(request.vars.customer) + 1000000)

def count_both():
    customer = request.args(0, cast=int)
    return response.json(pipeline.count(db.sale.customer.belongs([customer, customer + 1000000])))

def add_and_redirect():
    receipt = pipeline.enqueue_insert(db.sale, **_fields())
    redirect(URL("show", args=receipt.id))

def add_and_stop():
    pipeline.enqueue_insert(db.sale, **_fields())
    raise HTTP(418, "teapot")

def add_and_fail():
    pipeline.enqueue_insert(db.sale, **_fields())
    1 / 0

def add_and_break():
    pipeline.enqueue_insert(db.sale, **_fields())
    db.executesql("SELECT no_such_column FROM auth_user")

def add_by_hand():
    customer = request.vars.customer
    for qty in (1, 2, 3):
        try:
            receipt = pipeline.enqueue_insert(db.sale, customer=customer, qty=qty)
            if qty == 2:
                raise ValueError
            db.commit()
        except ValueError:
            db.rollback()
    seen = pipeline.get(db.sale, receipt.id).qty
    pipeline.enqueue_insert(db.sale, customer=customer, qty=4)
    if request.vars.fail:
        raise RuntimeError(seen)
    return response.json(seen)

def add_once():
    receipt = pipeline.enqueue_insert(db.sale, _fields(), idempotency_key=request.get_vars.key)
    return response.json(dict(id=str(receipt.id)))

def show():
    row = pipeline.get(db.sale, request.args(0, cast=int))
    return response.json(row.as_dict() if row else None)

def show_as_it_is():
    row = pipeline.get(db.sale, request.args(0, cast=int), fresh=False)
    return response.json(row.as_dict() if row else None)

def count():
    return response.json(pipeline.count(db.sale.customer == request.args(0, cast=int)))

def forgetful():
    session.forget(response)
    receipt = pipeline.enqueue_insert(db.sale, **_fields())
    return response.json(dict(id=str(receipt.id)))

def login():
    user = db.auth_user(email=request.vars.email)
    if not user:
        user = db.auth_user[db.auth_user.insert(email=request.vars.email, first_name="x", last_name="y")]
    auth.login_user(user)
    return response.json(str(user.id))

def add_and_lose_the_database():
    pipeline.enqueue_insert(db.sale, **_fields())
    db.auth_user.insert(email="gone@example.com")
    [[connection]] = db.executesql("SELECT CONNECTION_ID()")
    other = DAL(db._uri, migrate=False, db_uid="other")
    other.executesql("KILL %d" % connection)
    return "committed?"

def only_read():
    rdb = pipeline.read_db(db, "sale", request.args(0, cast=int))
    found = rdb(rdb.sale.customer == request.args(0, cast=int)).select(orderby=rdb.sale.id)
    again = rdb(db.sale.customer == request.args(0, cast=int)).count()
    [[in_transaction]] = rdb.executesql("SELECT @@in_transaction")
    return response.json(dict(qty=[row.qty for row in found], count=again, node=rdb.read_info.node,
        role=rdb.read_info.role, in_transaction=in_transaction))

def read_what_may_not_be_read():
    refused = []
    rdb = pipeline.read_db(db)
    names = [row.name for row in rdb(rdb.country).select()]
    for attempt in (lambda: rdb.sale, lambda: rdb(db.sale.qty > 0), lambda: rdb.country.insert(name="Utopia"),
                    lambda: rdb["sale"]):
        try:
            attempt()
            refused.append(None)
        except Exception as error:
            refused.append("%s: %s" % (type(error).__name__, error))
    return response.json(dict(refused=refused, names=names))

def add_country():
    pipeline.enqueue_insert(db.country, name=request.vars.name)

def fresh_row():
    pdb = pipeline.get_db("sale", request.args(0, cast=int))
    return response.json(pdb(pdb.sale.customer == request.args(0, cast=int)).count())

def seen_by():
    user = auth.user_id
    db.sale.reader = Field.Virtual("reader", lambda row: user)
    db.sale.name.filter_out = lambda name: "%s for %s" % (name, user)
    db.sale._common_filter = lambda query: db.sale.created_by == user
    row_id, customer = request.args(0, cast=int), request.args(1, cast=int)
    pdb, rdb = pipeline.get_db(db.sale, customer), pipeline.read_db(db, "sale", customer)
    rows = [pipeline.get(db.sale, row_id), pipeline.get(db.sale, row_id, pending=True),
        pipeline.select(db.sale, orderby=~db.sale.id).first(), pipeline.select(db.sale.customer == customer).first(),
        pdb(pdb.sale.customer == customer).select().first(), rdb(rdb.sale.customer == customer).select().first()]
    return response.json([row and [row.reader, row.name, row.created_by.email] for row in rows])

def cost():
    from pipeline.web2py import Pipeline
    import sys, timeit
    before = set(sys.modules)
    seconds = min(timeit.repeat(lambda: Pipeline(db, configuration), number=20, repeat=5)) / 20
    return response.json(dict(ms=seconds * 1000, imported=sorted(set(sys.modules) - before), clients=_clients()))

def memory():
    import gc
    gc.collect()
    alive = sum(type(one).__name__ == "Table" for one in gc.get_objects())
    return response.json(dict(tables=alive, of_a_request=len(db.tables), frozen=gc.get_freeze_count()))

def _clients():
    from pipeline import web
    return len(web._clients)

def odd_values():
    from gluon.contrib.appconfig import AppConfig
    name = T("a %s text", "translated")
    secret = CRYPT(salt="salty")("swordfish")[0]
    customer = db.auth_user(request.vars.user)
    event = db.auth_event(db.auth_event.insert(user_id=customer.id, description="x"))
    first = pipeline.enqueue_insert(db.sale, customer=event.user_id, name=name, secret=secret, tags=["a", "b|c"])
    second = pipeline.enqueue_insert(db.sale, customer=lambda: customer, name=lambda: "called")  # a Row is its id
    refused = {}
    for field, value in dict(customer=T("one"), at=db.sale.qty, name=customer, colour="red", day=request.now).items():
        try:
            pipeline.enqueue_insert(db.sale, {"customer": 1, field: value})
        except BadOp as error:
            refused[field] = str(error)
    kinds = [type(value).__name__ for value in (name, secret, event.user_id, customer)]
    return response.json(dict(ids=[str(first.id), str(second.id)], refused=refused, kinds=kinds))
"""


@pytest.fixture(scope="module", autouse=True)
def _application(shop: Shop, site: Site) -> None:
    shop.application("shop", {"default": CONTROLLER}, MODEL)
    shop.prepare(site, "/shop/default/index")


@pytest.fixture
def ada(site: Site) -> Iterator[Browser]:
    """A user's browser; no ticket may be left behind by it."""
    yield site.browser("/shop/default")
    assert site.tickets() == []


def test_an_op_is_sent_after_the_commit_and_its_id_is_known_before(ada: Browser, shop: Shop, customer: int):
    answer = ada.post("add", customer=customer, qty=3).json()

    assert answer["sent"] is False
    assert shop.sales(f"customer={customer}", "id, qty") == [f"{answer['id']}\t3"]


def test_a_second_object_of_the_same_request_is_the_same_pipeline(ada: Browser, shop: Shop, customer: int):
    with shop.lagging():
        ada.post("add_twice", customer=customer)
        seen = ada.get(f"count_both/{customer}").json()

    assert seen == 2
    shop.settle()


def test_redirect_and_http_send_as_web2py_commits_for_them(ada: Browser, shop: Shop, customer: int):
    redirected = ada.post("add_and_redirect", customer=customer, qty=1)
    stopped = ada.post("add_and_stop", customer=customer, qty=2)

    assert (redirected.status, stopped.status) == (303, 418)
    assert shop.sales(f"customer={customer}") == ["1", "2"]


@pytest.mark.parametrize("how", ["add_and_fail", "add_and_break"])
def test_a_ticket_sends_nothing(site: Site, shop: Shop, customer: int, how: str):
    answer = site.browser("/shop/default", tickets=True).post(how, customer=customer)

    assert answer.status == 500
    assert len(site.forget_tickets()) == 1
    assert shop.sales(f"customer={customer}") == []


def test_ops_go_the_way_of_a_transaction_that_a_controller_ends_by_hand(
    ada: Browser, site: Site, shop: Shop, customer: int
):
    seen = ada.post("add_by_hand", customer=customer).json()
    kept = shop.sales(f"customer={customer}")
    failed = site.browser("/shop/default", tickets=True).post("add_by_hand", customer=customer, fail=1)

    assert (seen, kept) == (3, ["1", "3", "4"])
    assert failed.status == 500
    assert "RuntimeError: 3" in site.forget_tickets()[0]
    assert shop.sales(f"customer={customer}") == ["1", "1", "3", "3", "4"]


def test_a_redirect_to_the_new_record_shows_it_while_the_replicas_lag(ada: Browser, shop: Shop, customer: int):
    with shop.lagging():
        location = ada.post("add_and_redirect", customer=customer, qty=5).location
        shown = ada.get(location).json()

    assert (shown["customer"], shown["qty"]) == (customer, 5)


def test_a_commit_that_fails_is_a_ticket_and_sends_nothing(site: Site, shop: Shop, customer: int):
    answer = site.browser("/shop/default", tickets=True).post("add_and_lose_the_database", customer=customer)

    assert answer.status == 500
    assert len(site.forget_tickets()) == 1
    assert shop.sales(f"customer={customer}") == []


def test_a_page_that_only_reads_gets_a_replica_with_the_users_own_and_no_open_transaction(
    ada: Browser, shop: Shop, customer: int
):
    shop.settle()
    answers = []
    for number in range(4):  # in turn by the server's threads, each of which keeps its connections
        ada.post("add", customer=customer, qty=number)
        answers.append(ada.get(f"only_read/{customer}").json())

    assert [answer["qty"] for answer in answers] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert [answer["count"] for answer in answers] == [1, 2, 3, 4]
    assert {answer["in_transaction"] for answer in answers} == {0}
    assert "replica" in {answer["role"] for answer in answers}


def test_a_page_on_one_node_is_refused_what_that_node_has_only_a_part_of(ada: Browser):
    ada.post("add_country", name="Norway")

    answer = ada.get("read_what_may_not_be_read").json()

    assert answer["names"] == ["Norway"]
    attribute, query, write, item = answer["refused"]
    for text in (attribute, query, item):
        assert "BadRead" in text
        assert "'sale' are on 2 shards" in text
        assert "pipeline.select" in text
    assert "ReadOnly" in write


def test_the_primarys_own_dal_is_fresh_at_every_request(ada: Browser, shop: Shop, customer: int):
    counts = []
    for _ in range(THREADS):
        ada.post("add", customer=customer)
        shop.rig.client.barrier("sale", 10)
        counts.append(ada.get(f"fresh_row/{customer}").json())

    assert counts == list(range(1, THREADS + 1))


def test_a_model_costs_little_and_makes_nothing_twice(ada: Browser):
    first, second = ada.get("cost").json(), ada.get("cost").json()

    assert second["imported"] == []
    assert first["clients"] == second["clients"]


def test_a_requests_tables_end_with_it_and_what_stays_is_no_garbage_to_look_for(ada: Browser, customer: int):
    for _ in range(6 * THREADS):
        ada.post("add", customer=customer)

    found = ada.get("memory").json()

    assert found["tables"] <= found["of_a_request"] * 3 * THREADS  # each thread knows the last that it wrote and read
    assert found["frozen"] > 10_000


def test_each_user_sees_his_own_and_need_not_wait_for_the_others(ada: Browser, site: Site, shop: Shop, customer: int):
    bob = site.browser("/shop/default")
    shop.settle()
    with shop.lagging():
        sale = ada.post("add", customer=customer).json()["id"]
        for_ada, for_bob = ada.get(f"count/{customer}").json(), bob.get(f"count/{customer}").json()
        careless = ada.get(f"show_as_it_is/{sale}").json()

    assert (for_ada, for_bob, careless) == (1, 0, None)
    shop.settle()


def test_rows_are_read_as_the_present_request_and_its_user_read_them(site: Site, shop: Shop, customer: int):
    users = {name: site.browser("/shop/default") for name in ("ada", "bob")}
    ids = {name: int(browser.post("login", email=f"{name}@{customer}").json()) for name, browser in users.items()}
    sale = users["ada"].post("add", customer=customer, name="pen").json()["id"]
    queued = users["bob"].get(f"seen_by/{sale}/{customer}").json()
    shop.settle()
    page = f"seen_by/{sale}/{customer}"
    with ThreadPoolExecutor(2) as threads:  # at once, in threads of the server that have read for the other before
        seen = {name: [threads.submit(lambda b=b: b.get(page).json()) for _ in range(6)] for name, b in users.items()}

    assert queued[:2] == [None, None]
    for answer in (future.result() for future in seen["ada"]):
        assert answer == [[ids["ada"], f"pen for {ids['ada']}", f"ada@{customer}"]] * 6
    for answer in (future.result() for future in seen["bob"]):
        assert answer == [None] * 6


def test_a_double_submit_with_an_idempotency_key_makes_one_row(ada: Browser, site: Site, shop: Shop, customer: int):
    first = ada.post(f"add_once?key=form-{customer}", customer=customer).json()
    second = ada.post(f"add_once?key=form-{customer}", customer=customer).json()

    assert shop.sales(f"customer={customer}", "id") == [first["id"]]
    assert second["id"] == first["id"]


def test_a_session_is_stored_only_for_what_it_has_to_remember(ada: Browser, site: Site, shop: Shop, customer: int):
    sessions = site.folder / "applications" / "shop" / "sessions"
    before = {path: path.stat().st_mtime_ns for path in sessions.rglob("*") if path.is_file()}

    ada.get("index")
    shop.rig.client.barrier("sale", 10)
    unchanged = {path: path.stat().st_mtime_ns for path in sessions.rglob("*") if path.is_file()}
    ada.post("forgetful", customer=customer)
    forgotten = {path: path.stat().st_mtime_ns for path in sessions.rglob("*") if path.is_file()}
    ada.post("add", customer=customer)
    stored = {path: path.stat().st_mtime_ns for path in sessions.rglob("*") if path.is_file()}

    assert before == unchanged == forgotten
    assert stored != before


def test_a_signature_is_of_the_requests_user_and_time(ada: Browser, shop: Shop, customer: int):
    user = ada.post("login", email=f"ada{customer}@example.com").json()

    ada.post("add", customer=customer)

    [row] = shop.sales(f"customer={customer}", "created_by, modified_by, created_on = at, is_active, day = DATE(at)")
    assert row == f"{user}\t{user}\t1\tT\t1"


def test_what_web2py_hands_about_is_stored_exactly_or_refused_by_name(ada: Browser, shop: Shop, customer: int):
    user = ada.post("login", email=f"odd{customer}@example.com").json()

    answer = ada.get("odd_values", user=user).json()

    rows = shop.sales(f"id in ({','.join(answer['ids'])})", "customer, name, left(secret, 17), tags")
    assert rows == [f"{user}\ta translated text\tpbkdf2(1000,20,sh\t|a|b||c|", f"{user}\tcalled\tNULL\tNULL"]
    assert answer["kinds"] == ["lazyT", "LazyCrypt", "Reference", "Row"]
    refused: dict[str, Any] = answer["refused"]
    assert refused.keys() == {"customer", "at", "name", "colour", "day"}
    assert all(f"sale.{field}" in text for field, text in refused.items() if field != "colour")
    assert "has no field 'colour'" in refused["colour"]
