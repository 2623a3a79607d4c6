"""Reads through the façade, on SQLite shards in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadRead, BadToken, PartialResult, ReadOnly, StaleRead, UnknownTable
from pipeline.testing import Sandbox, sandbox


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox({"sale": {"shard_key": "customer"}, "country": {"reference": True}}, shards=2) as made:
        yield made


@pytest.fixture
def db(box: Sandbox) -> Any:
    made = DAL("sqlite:memory", migrate=False)
    made.define_table("sale", Field("customer", "integer", notnull=True), Field("qty", "integer"))
    made.define_table("country", Field("name"))
    pipeline.define_tables(made)
    return made


def shard_of(box: Sandbox, customer: int) -> str:
    topology = box.client.topology
    return topology.shard_of(topology.bucket_of("sale", customer))


def test_a_read_shows_what_its_token_asks_for_or_says_how_far_it_has_come(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)

    with pytest.raises(StaleRead) as caught:
        pipeline.get(db.sale, receipt.id, after=receipt, wait_s=0.01)
    box.drain()
    row = pipeline.get("sale", receipt.id, after=str(receipt))

    assert caught.value.stage == "queued"
    assert row.qty == 2


def test_an_id_that_does_not_tell_its_shard_is_looked_for_on_all(box: Sandbox, db: Any) -> None:
    customers = [next(n for n in range(1, 99) if shard_of(box, n) == shard) for shard in ("s0", "s1")]
    for customer, old_id in zip(customers, (5, 6), strict=True):
        pipeline.enqueue_insert(db.sale, id=old_id, customer=customer, qty=old_id)
    box.drain()

    assert [pipeline.get(db.sale, old_id).qty for old_id in (5, 6)] == [5, 6]
    assert pipeline.get(db.sale, 7) is None
    assert pipeline.get(db.sale, 2**63 - 1) is None
    pipeline.enqueue_insert(db.sale, id=5, customer=customers[1], qty=7)
    box.drain()
    with pytest.raises(BadRead, match="2 shards have a row of 'sale' with the id 5: give shard_key="):
        pipeline.get(db.sale, 5)
    assert pipeline.get(db.sale, 5, shard_key=customers[1]).qty == 7


def test_a_token_holds_up_only_reads_of_its_own_bucket(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    other = next(n for n in range(2, 99) if box.client.topology.bucket_of("sale", n) != receipt.bucket)

    with pipeline.read("sale", other, after=receipt, wait_s=0.0) as node:
        assert node(node.sale).count() == 0
    with pytest.raises(StaleRead), pipeline.read("sale", 1, after=receipt, wait_s=0.0):
        pass


def test_queries_of_the_callers_own_dal_work_on_the_node(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    box.drain()

    with pipeline.read(db.sale, 1, after=[receipt]) as node:
        assert node(db.sale.qty == 2).select(node.sale.qty).first().qty == 2
        assert node(node.sale.qty == 2).count() == 1
        assert node.read_info.role == "primary"


@pytest.mark.parametrize(
    "write",
    [
        lambda node: node.sale.insert(customer=1),
        lambda node: node(node.sale.id > 0).update(qty=1),
        lambda node: node(node.sale.id > 0).delete(),
        lambda node: node.executesql("CREATE TABLE x (a INTEGER)"),
        lambda node: node(node.sale.id > 0).select().first().update_record(qty=3),
    ],
)
def test_a_write_through_a_read_is_refused_with_a_word_on_what_to_do(box: Sandbox, db: Any, write: Any) -> None:
    pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    box.drain()

    with pipeline.read("sale", 1) as node, pytest.raises(ReadOnly, match=r"pipeline\.enqueue"):
        write(node)

    assert pipeline.count(db.sale.qty == 2) == 1


def test_a_reference_table_is_read_from_any_shard(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.country, name="Chad")
    box.drain()

    shards = set()
    for _ in range(40):
        rows = pipeline.select(db.country, after=receipt)
        assert [row.name for row in rows] == ["Chad"]
        shards |= {info.node for info in rows.read_info}
    assert shards == {"s0", "s1"}
    assert pipeline.get(db.country, receipt.id).name == "Chad"


def test_common_filters_are_those_of_the_caller_and_of_his_request(box: Sandbox, db: Any) -> None:
    for qty in (1, 2):
        pipeline.enqueue_insert(db.sale, customer=1, qty=qty)
    box.drain()

    seen = []
    for mine in (1, 2, None):
        db.sale._common_filter = None if mine is None else lambda query, mine=mine: db.sale.qty == mine
        seen.append([row.qty for row in pipeline.select(db.sale.id > 0, orderby=db.sale.qty)])
        seen.append([row.qty for row in pipeline.select(db.sale.customer == 1, orderby=db.sale.qty)])

    assert seen == [[1], [1], [2], [2], [1, 2], [1, 2]]


def test_get_db_narrows_by_the_filters_of_the_present_caller_and_of_nobody_before(box: Sandbox, db: Any) -> None:
    for qty in (1, 2):
        pipeline.enqueue_insert(db.sale, customer=1, qty=qty)
    box.drain()

    def seen_by(mine: int | None, how: str) -> list[int]:
        callers = DAL("sqlite:memory", migrate=False, lazy_tables=True)
        callers._request_tenant = "qty"
        default = mine if how == "tenant" else None
        callers.define_table("sale", Field("customer", "integer"), Field("qty", "integer", default=default))
        callers.define_table("other", Field("customer", "integer"))
        if mine is not None and how == "filter":
            callers.sale._common_filter = lambda query: callers.sale.qty == mine
        asked = callers.other if how == "tenant" else callers.sale  # the other way round, it is still a lazy one
        pdb = pipeline.get_db(asked, 1)
        alias = pdb.sale.with_alias("s")
        found = [row.qty for row in pdb(pdb.sale.customer == 1).select(orderby=pdb.sale.qty)]
        assert found == [row.qty for row in pdb(alias.customer == 1).select(alias.ALL, orderby=alias.qty)]
        assert len(found) == pdb(pdb.sale).count()
        assert pdb(pdb.sale.customer == 1, ignore_common_filters=True).count() == 2
        callers.close()
        return found

    tries = [(mine, how) for how in ("filter", "tenant") for mine in (1, 2, None)]

    assert [seen_by(*one) for one in tries] == [[1], [2], [1, 2], [1], [2], [1, 2]]


def test_a_tables_new_definition_replaces_the_old_one_on_the_nodes(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    box.drain()
    assert pipeline.get(db.sale, receipt.id).qty == 2
    fewer = DAL("sqlite:memory", migrate=False)
    fewer.define_table("sale", Field("customer", "integer", notnull=True))

    assert "qty" not in pipeline.get(fewer.sale, receipt.id)
    assert pipeline.get(db.sale, receipt.id).qty == 2


def test_an_id_column_of_another_name_is_kept(box: Sandbox) -> None:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("thing", Field("code", "id"), Field("word"))
    pipeline.define_tables(db)
    receipt = pipeline.enqueue_insert(db.thing, word="x")
    box.drain()

    assert pipeline.get(db.thing, receipt.id).word == "x"


def test_references_and_other_tables_are_defined_when_they_are_named(box: Sandbox) -> None:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("country", Field("name"))
    db.define_table("town", Field("country", "reference country"), Field("name"))
    db.define_table("street", Field("town", "reference town"), Field("next", "reference street"))
    pipeline.define_tables(db)
    chad = pipeline.enqueue_insert(db.country, name="Chad")
    town = pipeline.enqueue_insert(db.town, country=chad.id, name="Abéché")
    street = pipeline.enqueue_insert(db.street, town=town.id)
    box.drain()

    assert pipeline.get(db.street, street.id).town == town.id
    assert pipeline.get(db.town, town.id).country == chad.id
    with pipeline.read("country") as node:
        assert node(node.country).select().first().name == "Chad"
        assert "town" in node["town"].fields or node.town.name.type == "string"
        with pytest.raises(AttributeError):
            node.nonsense  # noqa: B018


def test_a_reference_to_a_table_that_nobody_defined_is_a_number(box: Sandbox) -> None:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("thing", Field("maker", "reference auth_user"))
    pipeline.define_tables(db)
    receipt = pipeline.enqueue_insert(db.thing, maker=7)
    box.drain()

    assert pipeline.get(db.thing, receipt.id).maker == 7


def test_virtual_fields_come_along(box: Sandbox) -> None:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("thing", Field("n", "integer"), Field.Virtual("twice", lambda row: row.thing.n * 2))
    pipeline.define_tables(db)
    receipt = pipeline.enqueue_insert(db.thing, n=4)
    box.drain()

    assert pipeline.get(db.thing, receipt.id).twice == 8


def test_a_session_sees_its_own_writes_and_travels_as_text(box: Sandbox, db: Any) -> None:
    session = pipeline.session_token()
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    session.wrote(receipt)

    again = pipeline.session_token(str(session))

    with pytest.raises(PartialResult) as caught:
        pipeline.select(db.sale, after=again, wait_s=0.01)
    assert [(shard, error.stage) for shard, error in caught.value.missing.items()] == [(shard_of(box, 1), "queued")]
    assert [info.node for info in pipeline.select(db.sale, after=again, wait_s=0.01, partial=True).read_info] != []
    box.drain()
    assert len(pipeline.select(db.sale, after=again)) == 1
    assert again.token[receipt.bucket].position == receipt.position


def test_a_coarse_token_asks_for_everything_that_stands_in_the_log(box: Sandbox, db: Any) -> None:
    pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    coarse = pipeline.session_token(str(pipeline.session_token()))
    coarse._token = coarse.token.merged(type(coarse.token)(rest=True))

    with pytest.raises(StaleRead), pipeline.read("sale", 1, after=coarse.token, wait_s=0.0):
        pass
    box.drain()
    with pipeline.read("sale", 1, after=coarse.token, wait_s=0.0) as node:
        assert node(node.sale).count() == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda db: pipeline.get("sail", 1), UnknownTable, "did you mean 'sale'"),
        (lambda db: pipeline.read("sail").__enter__(), UnknownTable, "did you mean 'sale'"),
        (lambda db: pipeline.select("sail"), UnknownTable, "did you mean 'sale'"),
        (lambda db: pipeline.count("sail"), UnknownTable, "did you mean 'sale'"),
        (lambda db: pipeline.read("sale", 1, max_lag_s=-1).__enter__(), BadRead, "max_lag_s must be a number"),
        (lambda db: pipeline.count(db.sale.qty > 1, wait_s=-1), BadRead, "wait_s must be a number"),
        (lambda db: pipeline.get(7, 1), BadRead, "expected a pyDAL table"),
        (lambda db: pipeline.get(db.sale, "x"), BadRead, "whole number"),
        (lambda db: pipeline.get(db.sale, 5, pending=True), BadRead, "give shard_key="),
        (lambda db: pipeline.get(db.sale, 5, shard_key=1, wait_s=-1), BadRead, "wait_s must be a number"),
        (
            lambda db: pipeline.get(db.sale, 5, shard_key=1, max_lag=1),
            TypeError,
            "unexpected keyword argument 'max_lag'",
        ),
        (lambda db: pipeline.get(db.sale, 5, shard_key=1, after=3.5), BadRead, "after= takes"),
        (lambda db: pipeline.get(db.sale, 5, shard_key=1, after="tX"), BadToken, "not a session token"),
        (lambda db: pipeline.read("sale").__enter__(), BadRead, "give shard_key="),
        (lambda db: pipeline.select(3), BadRead, "expected a pyDAL query"),
        (lambda db: pipeline.session_token("tAAAA"), BadToken, "not a session token"),
    ],
)
def test_a_bad_call_says_what_to_change(box: Sandbox, db: Any, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(db)


def kept(key: str, make: Any, seconds: int, store: dict[str, Any] = {}) -> Any:  # noqa: B006 - it is to be kept
    """A model of a cache, as web2py's `cache.ram`, whose time is never over."""
    return store[key] if key in store else store.setdefault(key, make())


@pytest.mark.parametrize("cacheable", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda db, **options: pipeline.select(db.country.id > 0, **options),
        lambda db, **options: pipeline.select(db.sale.id > 0, **options),
        lambda db, **options: pipeline.select(db.sale.customer == 1, **options),
        lambda db, **options: pipeline.count(db.country.id > 0, cache=options["cache"]),
        lambda db, **options: on_a_node(lambda node: node(db.country).select(**options)),
        lambda db, **options: on_a_node(lambda node: node(db.country)(db.country.name == "N").select(**options)),
        lambda db, **options: on_a_node(lambda node: node(db.country).count(cache=options["cache"])),
    ],
)
def test_rows_that_are_kept_by_a_cache_are_never_taken_for_fresh_ones(
    box: Sandbox, db: Any, call: Any, cacheable: bool
) -> None:
    for cache in ((kept, 60), {"model": kept, "expiration": 60}):
        with pytest.raises(BadRead, match=r"cache= would return rows that lack what the reader must see"):
            call(db, cache=cache, cacheable=cacheable)


def on_a_node(read: Any) -> Any:
    with pipeline.read("country") as node:
        return read(node)


def test_threads_share_a_client_each_with_a_connection_of_its_own(box: Sandbox, db: Any) -> None:
    receipts = [pipeline.enqueue_insert(db.sale, customer=n, qty=n) for n in range(8)]
    box.drain()
    wrong: list[Any] = []

    def read(mine: int) -> None:
        for _ in range(30):
            row = pipeline.get(db.sale, receipts[mine].id, after=receipts[mine])
            total = pipeline.select(db.sale.id > 0, db.sale.qty.sum()).first()[db.sale.qty.sum()]
            if row.qty != mine or total != 28:
                wrong.append((mine, row, total))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_reads_on_connections_of_its_own(box: Sandbox, db: Any) -> None:
    receipt = pipeline.enqueue_insert(db.sale, customer=1, qty=2)
    box.drain()
    assert pipeline.count(db.sale) == 1

    child = os.fork()
    if child == 0:
        right = pipeline.get(db.sale, receipt.id, after=receipt).qty == 2 and pipeline.count(db.sale) == 1
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert pipeline.count(db.sale) == 1
