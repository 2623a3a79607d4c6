"""One request's pipeline: what it holds, what it drops, and what its user's next request must see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadOp, LogUnavailable, UnknownField
from pipeline.testing import Sandbox, sandbox
from pipeline.web.outbox import follow_commits
from pipeline.web.request import Request

TABLES = {"sale": {"shard_key": "customer"}}


@pytest.fixture
def db(box: Sandbox) -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
    box.client.define_tables(db)
    return db


def holding(box: Sandbox, token: str | None = None) -> Request:
    return Request(box.client, box.client.held(), token)


def test_a_request_has_every_function_of_the_package():
    missing = [name for name in pipeline.__all__ if not hasattr(Request, name)]

    assert missing == ["configure", "current", "close", "Receipts", "on_reject", "Rejection"]


def test_lazy_tables_are_looked_at_once_per_process_and_may_be_named_all_the_same(box: Sandbox):
    models = []
    for _ in range(2):
        db = DAL("sqlite:memory", bigint_id=True, migrate=False, lazy_tables=True)
        db.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
        box.client.define_tables(db)
        models.append(list(db._LAZY_TABLES))

    Request(box.client).enqueue_insert("sale", customer=7)

    assert models == [[], ["sale"]]
    box.assert_enqueued("sale", customer=7)


def test_nothing_is_sent_before_the_commit_and_all_in_order_after_it(box: Sandbox, db: Any):
    request = holding(box)

    receipt = request.enqueue_insert(db.sale, customer=7, qty=1)
    request.enqueue_update(db.sale.customer == 7, qty=db.sale.qty + 1)
    with request.atomic():
        request.enqueue_update(db.sale.customer == 7, qty=db.sale.qty * 5)
    request.enqueue_bulk_insert(db.sale, [{"customer": 8}, {"customer": 9}])

    assert receipt.id is not None
    assert receipt.position is None
    assert request.waiting == 5
    assert box.enqueued() == []
    request.finish()
    assert box.drain().applied == 5
    assert [row["qty"] for row in box.rows("sale") if row["customer"] == 7] == [10]


def test_a_failed_request_sends_nothing(box: Sandbox, db: Any):
    request = holding(box)
    request.enqueue_insert(db.sale, customer=7)

    request.drop()

    assert request.finish() is None
    assert box.enqueued() == []


@pytest.mark.parametrize("faces", [1, 2])
def test_what_was_queued_goes_with_a_transaction_that_the_application_ends_by_hand(box: Sandbox, db: Any, faces: int):
    here = [holding(box) for _ in range(faces)]
    for request in here:
        begun = [request].copy
        for _ in range(2):  # web2py's models run at each request
            follow_commits(db, begun)

    for request in here:
        request.enqueue_insert(db.sale, customer=7, qty=1)
    db.commit()
    for request in here:
        request.enqueue_insert(db.sale, customer=7, qty=2)
    db.rollback()
    for request in here:
        request.enqueue_insert(db.sale, customer=7, qty=3)
        request.drop()

    assert [one.values["qty"] for one in box.enqueued()] == [1] * faces


def test_the_next_request_of_the_user_sees_what_this_one_wrote(box: Sandbox, db: Any):
    request = holding(box)
    receipt = request.enqueue_insert(db.sale, customer=7, qty=1)
    text = request.finish()
    box.drain()

    after = holding(box, text)
    row = after.get(db.sale, receipt.id)

    assert row.qty == 1
    assert after.session_token().token[receipt.bucket].reached(receipt.position, {}) is not None


def test_a_read_waits_for_the_users_own_write_unless_he_does_without(box: Sandbox, db: Any):
    request = Request(box.client)

    receipt = request.enqueue_insert(db.sale, customer=7, qty=1)

    with pytest.raises(pipeline.errors.StaleRead):
        request.get(db.sale, receipt.id, wait_s=0)
    with pytest.raises(pipeline.errors.StaleRead):
        request.select(db.sale.customer == 7, wait_s=0)
    with pytest.raises(pipeline.errors.StaleRead):
        request.count(db.sale.customer == 7, wait_s=0)
    assert request.get(db.sale, receipt.id, fresh=False) is None
    assert len(request.select(db.sale.customer == 7, fresh=False)) == 0
    assert request.count(db.sale.customer == 7, fresh=False) == 0
    with request.read("sale", 7, fresh=False) as node:
        assert node(node.sale).count() == 0


def test_a_page_waits_longer_for_its_own_op_in_the_queue_than_for_a_replica(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    request = Request(box.client)
    receipt = request.enqueue_insert(db.sale, customer=7, qty=1)
    reads, read = [], box.client.reads.get

    def applied_between(*args: Any, **options: Any) -> Any:
        reads.append(1)
        if len(reads) == 3:
            box.drain()
        return read(*args, **options)

    monkeypatch.setattr(box.client.reads, "get", applied_between)

    assert request.get(db.sale, receipt.id).qty == 1
    assert len(reads) == 3


def test_a_page_gives_up_when_its_own_op_stays_queued(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.web.own_reads.QUEUED_S", 0.2)
    request = Request(box.client)
    request.enqueue_insert(db.sale, customer=7, qty=1)
    request.enqueue_insert(db.sale, customer=8, qty=1)

    with pytest.raises(pipeline.errors.StaleRead):
        request.count(db.sale.customer == 7)
    with pytest.raises(pipeline.errors.PartialResult):
        request.count(db.sale)
    with pytest.raises(pipeline.errors.StaleRead), request.read("sale", 7):
        pytest.fail("the block must not be entered")


def test_what_is_asked_for_besides_is_joined_with_the_users_own(box: Sandbox, db: Any):
    foreign = box.client.enqueue_insert(db.sale, customer=8)
    request = Request(box.client)

    with pytest.raises(pipeline.errors.StaleRead):
        request.count(db.sale.customer == 8, after=str(foreign), wait_s=0)
    assert not request.session_token().token
    box.drain()
    assert request.count(db.sale.customer == 8, after=foreign) == 1


def test_a_page_on_one_node_is_refused_a_spread_table_by_every_way_to_name_it():
    with sandbox({"sale": {"shard_key": "customer"}, "country": {"reference": True}}) as box:
        db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        db.define_table("sale", Field("customer", "integer"))
        db.define_table("country", Field("name"))
        box.client.define_tables(db)
        request = Request(box.client)
        rdb = request.read_db(db)  # its node has not met the table yet

        lands, inner = rdb(rdb.country), db(db.sale.id > 0).nested_select(db.sale.customer)
        ways: list[Callable[[], Any]] = [
            lambda: rdb.sale,
            lambda: rdb["sale"],
            lambda: rdb(db.sale.id > 0),
            lambda: rdb(db.sale),
            lambda: lands.select(db.sale.customer),
            lambda: lands.select(left=db.sale.on(db.sale.customer == db.country.id)),
            lambda: lands.select(orderby=db.sale.customer),
            lambda: lands.iterselect(db.sale.ALL),
            lambda: lands.count(distinct=db.sale.customer),
            lambda: lands(db.sale.id > 0),
            lambda: rdb(db.country.id.belongs(inner)),
            lambda: rdb(db.country.name == "x").select(inner.with_alias("some").customer),
            lambda: rdb.executesql("SELECT COUNT(*) FROM sale"),
        ]
        for way in ways:
            with pytest.raises(pipeline.errors.BadRead, match="'sale' are on 2 shards"):
                way()
        for text in (
            db.country.id.belongs(db(db.sale.id > 0)._select(db.sale.customer)),
            db.country.id.belongs(db.sale.customer > 0),
        ):
            with pytest.raises(pipeline.errors.BadRead, match="of a text"):
                rdb(text)
        assert rdb.executesql("SELECT COUNT(*) FROM country") == [(0,)]
        assert len(rdb(rdb.country).select(rdb.country.ALL, orderby=rdb.country.name, limitby=(0, 3))) == 0
        assert rdb(rdb.country).count() == 0
        assert request.read_db(db, "sale", 7)(db.sale.customer == 7).count() == 0
        request.finish()


def test_a_group_that_failed_leaves_nothing_to_be_seen(box: Sandbox, db: Any):
    request = Request(box.client)

    def group() -> None:
        with request.atomic():
            request.enqueue_insert(db.sale, customer=7)
            request.enqueue_insert(db.sale, customer=7, colour="red")

    with pytest.raises(UnknownField):
        group()

    assert not request.session_token().token
    assert box.enqueued() == []


def test_a_group_that_was_sent_is_seen(box: Sandbox, db: Any):
    request = Request(box.client)

    with request.atomic():
        receipt = request.enqueue_insert(db.sale, customer=7)
        assert not request.session_token().token

    assert receipt.bucket in request.session_token().token


def test_a_session_that_learnt_nothing_need_not_be_kept(box: Sandbox, db: Any):
    text = str(Request(box.client).session_token())

    assert Request(box.client, None, text).finish() is None
    assert Request(box.client).finish() is None


def test_a_session_that_is_as_it_came_need_not_be_stored_again(box: Sandbox, db: Any):
    first = Request(box.client)
    first.enqueue_insert(db.sale, customer=7)
    text = first.finish()

    second = Request(box.client, None, text)
    assert second.session_token().token

    assert second.finish() is None


def test_a_session_of_another_deployment_begins_anew(box: Sandbox, db: Any):
    request = Request(box.client, None, "tnonsense")

    assert request.count(db.sale.customer == 7) == 0


def budgets_of(box: Sandbox, db: Any, *requests: Request) -> list[Any]:
    """Return the budgets within which ops of requests are sent, two each."""
    seen: list[Any] = []
    box.log.fault = lambda where: seen.append(box.client.wait_budgets.here.budget) if where == "send" else None
    for request in requests:
        for key in ("first", "second"):  # whoever has a key is sent by himself
            request.enqueue_insert(db.sale, {"customer": 7}, idempotency_key=f"{id(request)} {key}")
        request.finish()
    return seen


def test_all_calls_of_a_web_request_and_its_end_wait_within_one_budget(box: Sandbox, db: Any):
    box.client.wait_budgets.most_s = 30.0
    requests = holding(box), Request(box.client, None, ""), holding(box)

    seen = budgets_of(box, db, *requests)

    assert seen == [budget for request in requests for budget in [request.budget] * 2]
    assert len({id(budget) for budget in seen}) == 3
    assert box.client.wait_budgets.here.budget is None


def test_in_a_script_each_call_has_a_budget_of_its_own(box: Sandbox, db: Any):
    box.client.wait_budgets.most_s = 30.0

    first, second = budgets_of(box, db, Request(box.client))

    assert first is not None
    assert first is not second


def test_a_page_whose_users_session_cannot_be_read_now_leaves_it_as_it_is(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    before = holding(box)
    before.enqueue_insert(db.sale, customer=7)
    text = before.finish()

    def away(text: str | None = None) -> Any:
        if text:
            raise LogUnavailable("away on purpose")
        return new()

    new = box.client.session_token
    monkeypatch.setattr(box.client, "session_token", away)
    request = holding(box, text)
    request.enqueue_insert(db.sale, customer=7)

    assert request.finish() is None
    assert len(box.enqueued("sale")) == 2


def test_a_request_that_ended_without_a_word_is_heard_of(box: Sandbox, db: Any, caplog: pytest.LogCaptureFixture):
    request = holding(box)
    request.enqueue_insert(db.sale, customer=7)

    del request

    assert "ops_never_sent ops=1" in caplog.text


# what a visitor may have put into a call ----------------------------------------------------------------------------


class Visited(Request):
    """A request that brought something."""

    sent: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def brought(self) -> dict[str, Any]:
        return self.sent


@pytest.fixture
def account(box: Sandbox) -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    fields = Field("customer", "integer"), Field("name"), Field("role", default="guest", writable=False)
    db.define_table("sale", *fields)
    box.client.define_tables(db)
    return db.sale


def visited(box: Sandbox, **sent: Any) -> Visited:
    made = Visited(box.client, box.client.held(), None)
    made.sent = sent
    return made


OPTIONS = {"durability": "applied", "idempotency_key": "theirs", "shard_key": "8", "again": "r1"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("call", ["enqueue_insert", "enqueue_validated_insert", "enqueue_upsert", "enqueue_update"])
def test_an_option_among_the_fields_of_a_request_is_refused_with_the_mapping_form(
    box: Sandbox, account: Any, call: str, option: str
):
    request_vars = {"name": "Ann", option: OPTIONS[option]}
    key = {"key": ["customer"]} if call == "enqueue_upsert" else {}
    target = account.customer == 7 if call == "enqueue_update" else account

    for given in (request_vars, {option: OPTIONS[option]}):
        request = visited(box, **given)
        for before in ((), ({"customer": 7},)) if given is request_vars else ((),):
            with pytest.raises(BadOp, match=rf"{call}\(….*{{'field': value}}, {option}="):
                getattr(request, call)(target, *before, **key, **given)
        request.finish()
    assert box.enqueued() == []


def test_options_stand_beside_a_mapping_whose_every_key_is_a_field(box: Sandbox, account: Any):
    request = visited(box, name="Ann", durability="applied")

    with pytest.raises(UnknownField, match="durability"):
        request.enqueue_insert(account, {**request.brought(), "customer": 7}, idempotency_key="mine")
    first = request.enqueue_insert(account, {"name": "Ann", "customer": 7}, idempotency_key="mine")
    request.enqueue_update(account.id == first.id, {"name": "Eve"}, shard_key=7)
    request.finish()

    box.drain()
    [row] = box.rows("sale")
    assert (row["id"], row["name"], row["role"]) == (first.id, "Eve", "guest")


@pytest.mark.parametrize("name", ["role", "id"])
@pytest.mark.parametrize("form", ["keywords", "mapping", "upsert", "by name", "bulk"])
def test_a_protected_field_takes_no_value_that_the_request_brought(box: Sandbox, account: Any, name: str, form: str):
    sent = {"name": "Ann", name: "".join(["9", "9"])}
    request = visited(box, **sent)
    table = "sale" if form == "by name" else account

    given = {"upsert": ((table, sent), {"key": ["customer"]}), "mapping": ((table, sent), {})}
    given["bulk"] = (table, iter([{"name": "Bob", "customer": 7}, sent])), {}
    args, named = given.get(form, ((table,), sent))
    calls = {"upsert": request.enqueue_upsert, "bulk": request.enqueue_bulk_insert}

    with pytest.raises(BadOp, match=f"the request brought the value of '{name}'"):
        calls.get(form, request.enqueue_insert)(*args, **named)


def test_a_protected_field_is_not_updated_by_a_request(box: Sandbox, account: Any):
    request = visited(box, name="Ann", role="admin")

    for target in (account.id == 5, account._db(account.customer == 7)):
        with pytest.raises(BadOp, match="the request brought the value of 'role'"):
            request.enqueue_update(target, **request.brought())


def test_a_protected_field_takes_what_the_code_gives(box: Sandbox, account: Any):
    request = visited(box, name="Ann", customer="7", role="admin", id="5")

    request.enqueue_insert(account, name="Ann", customer=7, role="member", id=6)
    request.finish()

    box.drain()
    [row] = box.rows("sale")
    assert (row["id"], row["role"]) == (6, "member")


def test_a_validated_insert_names_the_protected_fields_as_pydal_does(box: Sandbox, account: Any):
    request = visited(box, name="Ann", role="admin", id="5", other="x")

    found = request.enqueue_validated_insert(account, **request.brought())

    assert set(found.errors) == {"role", "id", "other"}
    assert found.receipt is None
