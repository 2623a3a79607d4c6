"""Two Redis, each with the logs of one shard: what is written to both, while one is away, and by a wrong file."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.deployments import apply, drain, model, rows_of

from pipeline.admin.absence import take_queue
from pipeline.admin.check.evidence import ERROR, WARNING, gather
from pipeline.admin.check.surroundings import redis_findings
from pipeline.admin.migration import migrate
from pipeline.admin.reshape import adopt_rows
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.enqueue.deployment import misfits_of
from pipeline.errors import WrongDeployment
from pipeline.oplog.doorbell import SilentBell

SOON_S = 30


class Two:
    """Two servers and two shards: the logs of s1 are in the second."""

    def __init__(self, folder: Path, start: Callable[[str], Any]):
        self.folder, self.first, self.second = folder, start("redis"), start("redis")
        self.clients: list[Client] = []

    def client(
        self,
        *,
        s1: Mapping[str, str] = {"redis": "two"},
        url: str = "",
        spool: bool = False,
        tables: Mapping[str, Any] = {},
    ) -> Client:
        shards = {name: {"primary": f"sqlite://{self.folder}/{name}.sqlite"} for name in ("s0", "s1")}
        settings = load(
            {
                "pipeline": {"buckets": 8},
                "redis": {"url": self.first.url, "timeout_s": 2, "two": {"url": url or self.second.url}},
                "shards": {"s0": shards["s0"], "s1": {**shards["s1"], **s1}},
                "tables": {"purchase": {"shard_key": "customer", "rule": "modulo"}, "country": {"reference": True}}
                | dict(tables),
                "spool": {"path": f"{self.folder}/spool", "enabled": spool},
            },
            {},
        )
        made = Client(settings, bell=SilentBell())
        self.clients.append(made)
        return made


@pytest.fixture
def two(tmp_path: Path, start_log_server: Callable[[str], Any]) -> Iterator[Two]:
    made = Two(tmp_path, start_log_server)
    first = made.client()
    first.define_tables(model())
    migrate(first)
    yield made
    for client in made.clients:
        client.close()
    for server in (made.first, made.second):
        server.stop(signal.SIGKILL)


def test_each_redis_has_the_logs_of_its_shards_and_all_is_applied(two: Two):
    client = two.client()
    for customer in range(8):
        client.enqueue_insert(model().purchase, customer=customer, qty=1, idempotency_key=f"k{customer}")
    client.enqueue_insert(model().country, name="Chile")
    again = [client.enqueue_insert(model().purchase, customer=c, qty=1, idempotency_key=f"k{c}") for c in range(8)]

    drain(client)

    assert [row[1] for row in rows_of(client)] == [*range(8)]
    assert [row[1] for row in rows_of(client, "country")] == ["Chile", "Chile"]
    assert {receipt.status() for receipt in again} == {"applied"}
    assert logs_of(two.first) == {0, 1, 2, 3, 8}
    assert logs_of(two.second) == {4, 5, 6, 7}
    assert client.log.dirty("s0") == client.log.dirty("s1") == 0


@pytest.mark.parametrize(
    ("gone", "how"), [("second", signal.SIGKILL), ("first", signal.SIGKILL), ("first", signal.SIGSTOP)]
)
def test_a_redis_that_is_away_delays_the_ops_of_its_own_shards(two: Two, gone: str, how: int):
    client, server, shards = two.client(spool=True), getattr(two, gone), {0: "s0", 4: "s1"}
    away, there = (0, 4) if gone == "first" else (4, 0)
    for customer in (0, 4):
        client.enqueue_insert(model().purchase, customer=customer, qty=1)
    drain(client)
    leave(server, how)

    for customer in (away + 1, there + 1, away, there):
        client.enqueue_insert(model().purchase, customer=customer, qty=2)
    for _ in polls(SOON_S):
        drain_only(client, shards[there])
        if len(customers_on(client, shards[there])) == 3:
            break
    assert customers_on(client, shards[there]) == [there, there, there + 1]
    assert customers_on(client, shards[away]) == [away]

    come_back(server, how)
    assert client.drain_thread is not None
    client.drain_thread().wait_empty(SOON_S)
    drain(client)

    assert customers_on(client, shards[away]) == [away, away, away + 1]
    assert customers_on(client, shards[there]) == [there, there, there + 1]


def test_a_redis_that_forgot_all_is_given_definitions_and_epochs_anew(two: Two):
    client = two.client()
    client.enqueue_insert(model().purchase, customer=4, qty=1)
    drain(client)
    with two.second.client() as redis:
        redis.flushall()

    client.enqueue_insert(model().purchase, customer=4, qty=2)
    drain(two.client())

    assert customers_on(client, "s1") == [4, 4]


def test_a_file_that_looks_for_a_shards_logs_in_another_redis_is_refused(two: Two):
    fleeting = two.client(s1={})

    with pytest.raises(WrongDeployment, match=r'write redis = "two" under \[shards.s1\]'):
        fleeting.enqueue_insert(model().purchase, customer=4, qty=1)

    with pytest.raises(WrongDeployment, match="a shard's Redis is chosen before its first op"):
        take_queue(fleeting)


@pytest.mark.parametrize("bucket", [0, 4])
@pytest.mark.parametrize("section_first", [True, False])
def test_a_table_has_one_spread_in_both_redis(two: Two, bucket: int, section_first: bool):
    """An op of a table without a section is noted where its bucket's log is."""
    with_section, without = two.client(tables={"basket": {"shard_key": "customer"}}), two.client()
    baskets = DAL("sqlite:memory", bigint_id=True, migrate=False)
    baskets.define_table("basket", Field("customer", "integer"))
    without.op_builder._turn = cycle([bucket])
    if section_first:
        with_section.enqueue_insert(model().country, name="Chile")
    else:
        without.enqueue_insert(baskets.basket, customer=1)

    with pytest.raises(WrongDeployment, match="pipeline adopt-rows basket"):
        (without if section_first else with_section).enqueue_insert(baskets.basket, customer=1)


def test_a_change_of_mind_is_adopted_where_an_op_was_noted_in_one_redis_only(two: Two):
    without = two.client()
    baskets = DAL("sqlite:memory", bigint_id=True, migrate=False)
    baskets.define_table("basket", Field("customer", "integer"))
    without.op_builder._turn = cycle([4])
    without.define_tables(baskets)
    migrate(without)
    receipt = without.enqueue_insert(baskets.basket, customer=1)
    without.enqueue_delete(baskets.basket.id == receipt.id)
    drain(without)
    meant = two.client(tables={"basket": {"shard_key": "customer"}})

    assert adopt_rows(meant, "basket") == []

    meant.enqueue_insert(baskets.basket, customer=1)
    with pytest.raises(WrongDeployment, match="pipeline adopt-rows basket"):
        without.enqueue_insert(baskets.basket, customer=1)


def test_a_wrong_address_of_a_group_is_refused_and_check_names_it(two: Two, log_server: Callable[[str], Any]):
    two.client().enqueue_insert(model().purchase, customer=4, qty=1)
    wrong = two.client(url=log_server("valkey").url)
    wrong.enqueue_insert(model().purchase, customer=0, qty=1)  # the first Redis is right

    with pytest.raises(WrongDeployment, match="which knows nothing of it"):
        wrong.enqueue_insert(model().purchase, customer=4, qty=1)

    [misfit] = misfits_of(wrong.log, wrong.nodes, wrong.topology)
    assert misfit.startswith("[redis.two] url")

    take_queue(wrong)  # the second Redis is gone for good
    fresh = two.client(url=wrong.settings.groups["two"].url)
    fresh.enqueue_insert(model().purchase, customer=4, qty=3)
    drain(fresh)
    assert customers_on(fresh, "s1") == [4]


def test_check_asks_each_redis_with_this_users_rights(two: Two):
    settings = two.client().settings
    with two.second.client() as admin:
        admin.config_set("appendonly", "no")
    assert ("redis.two: appendonly", WARNING) in [(one.where, one.severity) for one in redis_findings(gather(settings))]

    two.second.stop(signal.SIGKILL)

    [found] = [one for one in redis_findings(gather(settings)) if one.nodes == ("redis.two",)]
    assert (found.severity, found.what[:16]) == (ERROR, "cannot be asked:")


def logs_of(server: Any) -> set[int]:
    with server.client() as redis:
        return {int(name.rpartition(":")[2]) for name in redis.scan_iter("pl:log:*")}


def customers_on(client: Client, shard: str) -> list[int]:
    return sorted(customer for (customer,) in client.nodes.primary(shard).query("SELECT customer FROM purchase"))


def leave(server: Any, how: int) -> None:
    """Let a server end, or stand still."""
    if how == signal.SIGKILL:
        server.stop(how)
    else:
        server._process.send_signal(how)


def come_back(server: Any, how: int) -> None:
    if how == signal.SIGKILL:
        server.start()
    else:
        server._process.send_signal(signal.SIGCONT)


def drain_only(client: Client, shard: str) -> None:
    while apply(client, shard).left:
        pass
