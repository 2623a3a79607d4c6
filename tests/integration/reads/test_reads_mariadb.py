"""Reads on real MariaDB replicas: what a token asks for, what a session saw, what one database would have said."""

from __future__ import annotations

import random
import signal
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL
from support.chance import SEED
from support.servers.reads import ReadRig, define, read_rig

from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster.state import ClusterFailed
from pipeline.errors import BadRead, BadToken, PartialResult, ReadOnly, StaleRead
from pipeline.reads.health import NodeState

pytestmark = pytest.mark.mariadb
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
TEXTS = ["", "a", "A", "a ", "a\t", "ä", "b", "ß", "ss", "Z", "\U0001f600", "é", "e"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadRig]:
    with read_rig(tmp_path_factory.mktemp("reads") / "cluster") as made:
        yield made


@pytest.fixture(scope="module")
def oracle(rig: ReadRig) -> Iterator[Any]:
    """One database with a table like the shards' own."""
    rig.ask("s0", "CREATE DATABASE oracle CHARACTER SET utf8mb4; CREATE TABLE oracle.sale LIKE shop.sale")
    db = DAL(rig.client.nodes.uri("s0").replace("/shop", "/oracle"), migrate=False, check_reserved=None, bigint_id=True)
    db.define_table("sale", *[field.clone() for field in define().sale], migrate=False)
    yield db
    db.close()


@pytest.fixture
def frozen_worker(rig: ReadRig) -> Iterator[Any]:
    """Let nothing be applied until the test says so."""
    thawed = []

    def thaw() -> None:
        rig.cluster.stop("worker-0", signal.SIGCONT)
        thawed.append(True)

    rig.cluster.stop("worker-0", signal.SIGSTOP)
    yield thaw
    if not thawed:
        thaw()


def fill(rig: ReadRig, oracle: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Make rows the only ones of customers below 12, on the shards and in the oracle; return how to read them all."""
    client, sale = rig.client, rig.db.sale
    receipts = [client.enqueue_delete(sale.customer == customer) for customer in range(12)]
    receipts += client.enqueue_bulk_insert(sale, rows)
    client.wait_all(receipts)
    oracle(oracle.sale).delete()
    oracle.sale.bulk_insert(rows)
    oracle.commit()
    return {"after": receipts, "wait_s": 10}


# own writes -----------------------------------------------------------------------------------------------------


def test_own_writes_are_seen_on_replicas_while_these_are_well(rig: ReadRig) -> None:
    rig.settle()
    before = rig.client.counters.counts()

    for number in range(100):
        receipt = rig.client.enqueue_insert(rig.db.sale, customer=number, qty=number)
        receipt.wait(10)
        assert rig.client.get(rig.db.sale, receipt.id, after=receipt, wait_s=1).qty == number

    counted = Counter(rig.client.counters.counts()) - Counter(before)
    served = sum(n for (_, kind, _), n in counted.items() if kind == "replica")
    assert served >= 95


def test_a_replica_that_applies_nothing_is_passed_over_for_one_that_has_the_write(rig: ReadRig) -> None:
    rig.settle()
    customer = rig.customer_on("s0")

    with rig.stopped("s0-r0"):
        for number in range(20):
            receipt = rig.client.enqueue_insert(rig.db.sale, customer=customer, qty=number)
            receipt.wait(10)
            with rig.client.read("sale", customer, after=receipt, wait_s=5) as node:
                assert node(node.sale.id == receipt.id).count() == 1
                assert node.read_info.node == "s0-r1"


def test_with_no_replica_applying_the_primary_serves_or_the_caller_hears_why(rig: ReadRig) -> None:
    rig.settle()
    customer = rig.customer_on("s1")

    with rig.stopped(*rig.replicas("s1")):
        receipt = rig.client.enqueue_insert(rig.db.sale, customer=customer, qty=1)
        receipt.wait(10)
        with rig.client.read("sale", customer, after=receipt) as node:
            assert node(node.sale.id == receipt.id).count() == 1
            assert node.read_info.role == "primary"
        with pytest.raises(StaleRead) as caught:
            rig.client.get(rig.db.sale, receipt.id, after=receipt, on_stale="error")
        with rig.client.read("sale", customer, after=receipt, on_stale="stale") as node:
            assert node.read_info.stale

    assert caught.value.stage == "replicating"
    assert caught.value.waited_s >= 0.1


def test_a_write_that_is_still_queued_is_told_from_one_that_is_not_replicated(rig: ReadRig, frozen_worker: Any) -> None:
    receipt = rig.client.enqueue_insert(rig.db.sale, customer=1, qty=1)

    with pytest.raises(StaleRead) as caught:
        rig.client.get(rig.db.sale, receipt.id, after=receipt)

    assert caught.value.stage == "queued"
    frozen_worker()
    receipt.wait(10)
    assert rig.client.get(rig.db.sale, receipt.id, after=receipt, wait_s=5).qty == 1


def test_a_session_never_sees_an_older_state_than_before(rig: ReadRig) -> None:
    rig.settle()
    customer = rig.customer_on("s0", 5000)
    first = rig.client.enqueue_insert(rig.db.sale, customer=customer, qty=0)
    first.wait(10)
    session = rig.client.session_token()
    seen: list[int] = []

    def read() -> None:
        text = str(session)
        again = rig.client.session_token(text)
        row = rig.client.get(rig.db.sale, first.id, after=again, wait_s=5, on_stale="error")
        session._token = again.token
        seen.append(row.qty if row is not None else -1)

    session.wrote(first)
    for number in range(40):
        rig.client.enqueue_update(rig.db.sale.id == first.id, qty=rig.db.sale.qty + 1).wait(10)
        if number % 10 == 2:
            with rig.stopped(random.Random(SEED + number).choice(rig.replicas("s0"))):
                for _ in range(4):
                    read()
        else:
            read()

    assert seen == sorted(seen)
    assert seen[-1] > 20


# connections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False], ids=["primary", "replica"])
def test_a_write_through_a_read_is_refused_on_every_node(rig: ReadRig, stop: bool) -> None:
    rig.settle()
    customer = rig.customer_on("s0")

    with rig.stopped(*rig.replicas("s0")) if stop else rig.stopped():
        receipt = rig.client.enqueue_insert(rig.db.sale, customer=customer, qty=1)
        receipt.wait(10)
        with rig.client.read("sale", customer, after=receipt, wait_s=0.3) as node:
            assert node.read_info.role == ("primary" if stop else "replica")
            for write in (
                lambda: node.sale.insert(customer=customer),
                lambda: node(node.sale.id == receipt.id).update(qty=5),
                lambda: node(node.sale.id == receipt.id).delete(),
                lambda: node.executesql("CREATE TABLE nonsense (a INT)"),
                lambda: node.executesql("TRUNCATE TABLE sale"),
            ):
                with pytest.raises(ReadOnly, match=r"pipeline\.enqueue"):
                    write()


def test_a_connection_that_died_while_idle_is_replaced_unnoticed(rig: ReadRig) -> None:
    rig.settle()
    receipt = rig.client.enqueue_insert(rig.db.sale, customer=1, qty=3)
    receipt.wait(10)
    shard = rig.shard_of(1)

    for _ in range(6):
        assert rig.client.get(rig.db.sale, receipt.id, after=receipt, wait_s=5).qty == 3
        for node in (shard, *rig.replicas(shard)):
            kill_readers(rig, node)

    assert rig.client.get(rig.db.sale, receipt.id, after=receipt, wait_s=5).qty == 3


def kill_readers(rig: ReadRig, node: str) -> None:
    user = "reader" if "-" in node else "root"
    found = rig.ask(
        node,
        "SELECT id FROM information_schema.processlist WHERE command = 'Sleep' AND db = 'shop'"
        f" AND user = '{user}' AND id <> CONNECTION_ID()",
    )
    for number in found.split()[1:]:
        try:
            rig.ask(node, f"KILL {number}")
        except ClusterFailed as error:
            if "Unknown thread id" not in str(error):  # it closed by itself meanwhile
                raise


def test_a_reader_between_two_statements_holds_no_snapshot(rig: ReadRig) -> None:
    rig.settle()
    customer = rig.customer_on("s0", 7000)

    with rig.client.read("sale", customer) as node:
        before = node(node.sale.customer == customer).count()
        rig.client.enqueue_insert(rig.db.sale, customer=customer).wait(10)
        for _ in polls(10):
            if node(node.sale.customer == customer).count() == before + 1:
                break
        assert node(node.sale.customer == customer).count() == before + 1


def test_threads_read_their_own_writes_side_by_side(rig: ReadRig) -> None:
    rig.settle()
    wrong: list[Any] = []

    def work(mine: int) -> None:
        try:
            for number in range(15):
                receipt = rig.client.enqueue_insert(rig.db.sale, customer=mine, qty=number)
                receipt.wait(20)
                row = rig.client.get(rig.db.sale, receipt.id, after=receipt, wait_s=10)
                if row is None or row.qty != number:
                    wrong.append((mine, number, row))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# several shards -------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "customer": st.integers(0, 11),
            "qty": st.one_of(st.none(), st.integers(-3, 3)),
            "price": st.one_of(st.none(), st.decimals("-9.99", "9.99", places=2)),
            "weight": st.one_of(st.none(), st.sampled_from([-1.5, 0.0, 0.25, 8.0])),
            "name": st.one_of(st.none(), st.sampled_from(TEXTS)),
            "remark": st.one_of(st.none(), st.sampled_from(TEXTS)),
            "day": st.one_of(st.none(), st.sampled_from([date(2024, 2, 29), date(1999, 1, 1)])),
            "paid": st.one_of(st.none(), st.booleans()),
        }
    ),
    max_size=30,
)
FIELDS = ["customer", "qty", "price", "weight", "name", "remark", "day", "paid"]


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(rows=ROWS, data=st.data())
def test_rows_come_in_the_order_of_one_database(rig: ReadRig, oracle: Any, rows: Any, data: st.DataObject) -> None:
    fresh = fill(rig, oracle, rows)
    by = data.draw(st.lists(st.tuples(st.sampled_from(FIELDS), st.booleans()), min_size=1, max_size=3))
    first, last = sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))

    def ask(table: Any, select: Any, unlike: Any) -> list[Any]:
        terms = [~table[name] if down else table[name] for name, down in by]
        found = select((table.qty > -3) & (table.customer < 12), orderby=terms, **unlike)
        return [tuple(row[name] for name in FIELDS) for row in found]

    all_here = ask(rig.db.sale, rig.client.select, fresh)
    all_there = ask(oracle.sale, lambda q, **o: oracle(q).select(**o), {})
    page = ask(rig.db.sale, rig.client.select, {"limitby": (first, last), **fresh})

    assert Counter(all_here) == Counter(all_there)
    ranks = ranks_of(oracle, by)
    assert [ranks(row) for row in all_here] == [ranks(row) for row in all_there]
    assert [ranks(row) for row in page] == [ranks(row) for row in all_there[first:last]]


def ranks_of(oracle: Any, by: list[tuple[str, bool]]) -> Any:
    """Return a function to the rank that the database itself gives each value of a row: equal ones share it."""
    ranks: dict[str, dict[Any, int]] = {}
    for name, _ in by:
        sql = f"SELECT {name}, DENSE_RANK() OVER (ORDER BY {name}) FROM sale"
        table = oracle.sale
        parse = oracle._adapter.parse_value
        ranks[name] = {parse(v, table[name]._itype, table[name].type): r for v, r in oracle.executesql(sql)}
    return lambda row: tuple(ranks[name][row[FIELDS.index(name)]] for name, _ in by)


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(rows=ROWS, data=st.data())
def test_groups_and_aggregates_are_those_of_one_database(
    rig: ReadRig, oracle: Any, rows: Any, data: st.DataObject
) -> None:
    fresh = fill(rig, oracle, rows)
    by = data.draw(st.lists(st.sampled_from(["qty", "name", "day", "paid"]), max_size=2, unique=True))

    def ask(table: Any, select: Any, **options: Any) -> list[Any]:
        wanted = [
            table.id.count(), table.qty.sum(), table.qty.avg(), table.price.sum(), table.price.avg(),
            table.weight.avg(), table.weight.max(), table.day.max(), table.qty.count(distinct=True),
            table.remark.count(distinct=True), table.name.count(distinct=True),
        ]  # fmt: skip
        groups = [table[name] for name in by]
        if groups:
            options |= {"groupby": groups, "orderby": groups}
        found = select((table.customer > 2) & (table.customer < 12), *groups, *wanted, **options)
        # which of several equal texts names a group is the database's free choice
        shown = [name for name in by if name != "name"]
        return [(*(row.sale[name] for name in shown), *(row[one] for one in wanted)) for row in found]

    here = ask(rig.db.sale, rig.client.select, **fresh)
    there = ask(oracle.sale, lambda q, *f, **o: oracle(q).select(*f, **o))

    assert here == there


def test_distinct_texts_and_their_count_are_those_of_one_database(rig: ReadRig, oracle: Any) -> None:
    fresh = fill(rig, oracle, [{"customer": n % 12, "name": text} for n, text in enumerate(TEXTS * 3)])

    here = rig.client.select(rig.db.sale.customer < 12, rig.db.sale.name, distinct=True, **fresh)
    count = rig.client.count(rig.db.sale.customer < 12, distinct=rig.db.sale.name, **fresh)

    there = oracle(oracle.sale).count(distinct=oracle.sale.name)
    assert len(here) == count == there < len(set(TEXTS))


def test_a_join_by_the_shard_key_and_with_a_reference_table_is_made_on_every_shard(rig: ReadRig) -> None:
    client, db = rig.client, rig.db
    client.enqueue_insert(db.country, name="Chad", inhabitants=18).wait(10)
    receipts = []
    for customer in range(600, 610):
        receipts.append(client.enqueue_insert(db.sale, customer=customer, qty=customer, name="Chad"))
        receipts.append(client.enqueue_insert(db.line, customer=customer, text=f"line {customer}"))
    client.wait_all(receipts)
    rig.settle()

    assert client.count(db.line.customer >= 600) == 10
    joined = client.select(
        (db.sale.customer == db.line.customer) & (db.sale.customer >= 600), db.sale.qty, db.line.text,
        orderby=~db.sale.qty, limitby=(0, 4),
    )  # fmt: skip
    with_reference = client.select(
        (db.sale.name == db.country.name) & (db.sale.customer >= 600), db.sale.qty, db.country.inhabitants
    )
    left = client.select(
        (db.sale.customer >= 600) & (db.sale.customer < 610),
        db.sale.qty,
        db.line.text,
        left=db.line.on(db.line.customer == db.sale.customer),
    )

    assert [(row.sale.qty, row.line.text) for row in joined] == [(n, f"line {n}") for n in (609, 608, 607, 606)]
    assert {row.country.inhabitants for row in with_reference} == {18}
    assert len(with_reference) == len(left) == 10
    with pytest.raises(BadRead, match="repeat its rows"):
        client.select(db.country.id > 0, left=db.sale.on(db.sale.name == db.country.name))
    with pytest.raises(BadRead, match="not kept together"):
        client.select(db.sale.qty == db.line.sale)


def test_a_shard_that_does_not_answer_is_an_error_or_marked_as_missing(rig: ReadRig) -> None:
    rig.settle()
    receipt = rig.client.enqueue_insert(rig.db.sale, customer=rig.customer_on("s1"), qty=1)
    receipt.wait(10)
    nodes = ("s1", *rig.replicas("s1"))
    for node in nodes:
        rig.cluster.stop(node, signal.SIGSTOP)
    try:
        with pytest.raises(PartialResult) as caught:
            rig.client.select(rig.db.sale.id > 0, after=receipt, timeout_s=0.5)
        rows = rig.client.select(rig.db.sale.id > 0, partial=True, timeout_s=0.5)
    finally:
        for node in nodes:
            rig.cluster.stop(node, signal.SIGCONT)

    assert set(caught.value.missing) == {"s1"}
    assert rows.partial
    assert set(rows.missing) == {"s1"}
    assert [info.node.partition("-")[0] for info in rows.read_info] == ["s0"]


# queued writes --------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_a_pending_row_is_the_row_that_will_be_there(rig: ReadRig, data: st.DataObject) -> None:
    client, sale = rig.client, rig.db.sale
    customer = rig.customer_on("s0", 9000)
    client.enqueue_delete(sale.customer == customer)
    first = client.enqueue_insert(
        sale, customer=customer, qty=2, price=Decimal("1.25"), weight=0.1, name="n", day=date(2024, 2, 29)
    )
    first.wait(20)
    rig.settle()
    changes = [
        {"qty": sale.qty * data.draw(st.integers(-3, 3)) - 1},
        {"price": sale.price * 3 + 1},
        {"price": sale.price - data.draw(st.decimals("-9.99", "9.99", places=2))},
        {"weight": sale.weight * 0.1 + data.draw(st.sampled_from([0.2, -7.5, 3]))},
        {"name": sale.name + data.draw(st.sampled_from(["x", "é", "' \\"]))},
        {"qty": None, "paid": True},
        {"remark": "it's \\ \U0001f600", "day": None},
    ]
    rig.cluster.stop("worker-0", signal.SIGSTOP)
    try:
        for _ in range(data.draw(st.integers(1, 6))):
            change = data.draw(st.sampled_from(changes))
            where = data.draw(st.sampled_from([sale.id == first.id, (sale.customer == customer) & (sale.qty > 0)]))
            last = client.enqueue_update(where, shard_key=customer, **change)
        if data.draw(st.integers(0, 4)) == 0:
            last = client.enqueue_delete(sale.id == first.id)
        pending = client.get(sale, first.id, pending=True, on_stale="error")
    finally:
        rig.cluster.stop("worker-0", signal.SIGCONT)
    last.wait(20)
    applied = client.get(sale, first.id, after=last, wait_s=10)

    if applied is None:
        assert pending is None
    else:
        assert {name: pending[name] for name in sale.fields} == {name: applied[name] for name in sale.fields}


def test_replicas_take_reads_by_their_weights_and_none_beyond_its_limit(rig: ReadRig) -> None:
    rig.settle()
    customer = rig.customer_on("s0")
    client = rig.new_client(loads={"s0-r0": {"weight": 3}, "s0-r1": {"limit": 2}})

    with ExitStack() as running:
        served = [running.enter_context(client.read("sale", customer)).read_info.node for _ in range(12)]

    assert Counter(served) == {"s0-r0": 10, "s0-r1": 2}
    client.close()


def test_with_all_replicas_behind_each_process_lets_its_limit_of_reads_run_on_the_primary_at_once(rig: ReadRig) -> None:
    rig.settle()
    customer, replicas = rig.customer_on("s0"), rig.replicas("s0")
    clients = [rig.new_client(reads={"primary_limit": 2, "max_lag_s": 1}) for _ in range(2)]

    def behind() -> bool:
        """Whether all replicas lag but go on, as all clients know them."""
        reports = [client.health.report(node) for client in clients for node in replicas]
        return all(one.state is NodeState.IN and (one.lag_s or 0) > 2.5 for one in reports)

    with rig.delayed(3, *replicas):
        for _ in polls(60):
            if not behind():
                continue
            with ExitStack() as running:
                reads = [running.enter_context(clients[n % 2].read("sale", customer)).read_info for n in range(10)]
            if behind():
                break

    roles = [[info.role for info in reads[n::2]] for n in range(2)]
    assert roles == [["primary"] * 2 + ["replica"] * 3] * 2
    assert all(info.stale == (info.role == "replica") for info in reads)
    for client in clients:
        client.close()


def test_a_token_of_another_cluster_is_refused_as_such(rig: ReadRig, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Client({**tomllib.loads(rig.config.read_text()), "reads": {"secret": "another cluster's secret"}})
    session = other.session_token()
    session.wrote(rig.client.enqueue_insert(rig.db.sale, customer=1, qty=1))
    text = str(session)
    other.close()

    with pytest.raises(BadToken, match="another"):
        rig.client.session_token(text)
    with pytest.raises(BadToken, match="another"):
        rig.client.get(rig.db.sale, 1, shard_key=1, after=text)
    own = rig.client.session_token()
    own.wrote(rig.client.enqueue_insert(rig.db.sale, customer=1, qty=1))
    broken = str(own)
    with pytest.raises(BadToken):
        rig.client.count(rig.db.sale, after=broken[:-2] + ("AA" if broken[-2:] != "AA" else "BB"))
