"""Processes that read different configurations of one deployment: refused before the first wrong write, in words."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress
from typing import Any

import pytest
from support.sandbox.deployments import (
    BY_CUSTOMER,
    Site,
    apply,
    backup_of,
    drain,
    drop_own_tables,
    insert,
    model,
    restore,
    rows_of,
    run,
    site,
)
from support.sandbox.spooling import Switched

from pipeline import clock
from pipeline.admin.check import surroundings
from pipeline.admin.check.evidence import Evidence
from pipeline.admin.migration import migrate, plan_of
from pipeline.admin.reshape import adopt_rows
from pipeline.client import Client
from pipeline.enqueue import epochs
from pipeline.enqueue.deployment import misfits_of
from pipeline.enqueue.spool_drain import Drainer
from pipeline.enqueue.spool_fallback import DrainThread
from pipeline.errors import LogUnavailable, PipelineError, ShardUnavailable, WrongDeployment
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.memory.log import MemoryLog
from pipeline.spool import Counts, Spool
from workers import threads

__all__ = ["site"]


def test_another_number_of_buckets_is_refused_with_both_values(site: Site) -> None:
    run(site, 7)
    other = site.client(buckets=48)

    with pytest.raises(WrongDeployment, match=r"buckets is 48 in web.toml, but 64 in worker.toml; write buckets = 64"):
        insert(other)
    with pytest.raises(WrongDeployment, match=r"buckets is 48"):
        migrate(other)
    assert next(fault.why for fault in plan_of(other).faults).startswith("[pipeline] buckets is 48")


@pytest.mark.parametrize(
    "spread", [{"shard_key": "qty"}, {"shard_key": "customer", "rule": "modulo"}, {"reference": True}, {}]
)
def test_another_spread_of_a_table_with_rows_is_refused(site: Site, spread: dict[str, Any]) -> None:
    run(site, 7)
    tables = {**BY_CUSTOMER, "purchase": spread} if spread else {"country": {"reference": True}}

    with pytest.raises(WrongDeployment, match=r"\[tables\.purchase\] is spread .* pipeline adopt-rows purchase"):
        insert(site.client(tables=tables))


OTHERWISE = {**BY_CUSTOMER, "purchase": {"shard_key": "qty"}}
BY_ID: dict[str, Any] = {"country": {"reference": True}}


@pytest.mark.parametrize(("first", "then"), [(BY_CUSTOMER, OTHERWISE), (BY_ID, OTHERWISE), (BY_CUSTOMER, BY_ID)])
def test_a_table_without_rows_whose_ops_are_queued_is_not_spread_otherwise(
    site: Site, first: dict[str, Any], then: dict[str, Any]
) -> None:
    run(site, tables=BY_ID)
    insert(site.client(tables=first))

    with pytest.raises(WrongDeployment, match=r"\[tables\.purchase\] is spread .* pipeline adopt-rows purchase"):
        insert(site.client(tables=then, file="other.toml"))

    insert(site.client(tables=first), 8)


@pytest.mark.parametrize(("first", "then"), [(BY_CUSTOMER, OTHERWISE), (BY_ID, OTHERWISE), (BY_CUSTOMER, BY_ID)])
def test_two_processes_that_run_do_not_spread_a_table_in_two_ways(
    site: Site, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """Both have sent ops of another table, and know the epochs."""
    run(site, tables=BY_ID)
    clients = site.client(tables=first), site.client(tables=then, file="other.toml")
    for client in clients:
        with suppress(WrongDeployment):
            client.enqueue_insert(model().country, name="x")
    took = []
    for client in clients:
        with suppress(WrongDeployment):
            insert(client)
            took.append(client)

    [only] = took
    drain(only)
    assert len(rows_of(only)) == 1
    for client in clients:
        if client is not only:
            with pytest.raises(WrongDeployment, match="pipeline adopt-rows purchase"):
                insert(client)


def test_a_new_table_may_come_and_whoever_does_not_use_it_goes_on(site: Site) -> None:
    before = run(site)
    insert(before)

    insert(site.client(tables={**BY_CUSTOMER, "basket": {"shard_key": "customer"}}))

    insert(before)
    insert(site.client())
    drain(before)
    assert len(rows_of(before)) == 4


def test_a_change_of_mind_before_the_first_op_needs_the_command(site: Site) -> None:
    before = run(site)
    meant = site.client(tables=OTHERWISE, file="meant.toml")
    with pytest.raises(WrongDeployment, match="pipeline adopt-rows purchase"):
        insert(meant)

    assert adopt_rows(meant, "purchase") == []

    insert(meant)
    with pytest.raises(WrongDeployment, match=r"by shard_key = 'customer'.*but by shard_key = 'qty'"):
        insert(before)


def test_a_table_that_comes_while_another_thread_learns_the_epoch_is_compared(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(site, tables=BY_ID)
    client, table, verify = site.client(tables=BY_ID), model().purchase, epochs.verify
    compared, came = threading.Event(), threading.Event()

    def slowly(*told: Any, **more: Any) -> Any:
        found = verify(*told, **more)
        if not came.is_set():
            compared.set()
            assert came.wait(20)
        return found

    monkeypatch.setattr(epochs, "verify", slowly)
    learns = threading.Thread(target=client.publisher.warm)
    learns.start()
    assert compared.wait(20)
    client.op_builder.plan(table)
    came.set()
    learns.join(20)
    client.enqueue_insert(table, customer=7, qty=1)

    with pytest.raises(WrongDeployment, match="pipeline adopt-rows purchase"):
        insert(site.client(tables=OTHERWISE, file="other.toml"))


def test_a_table_that_comes_with_the_last_ops_of_a_spool_is_noted_before_they_are_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrainThread, "wake", lambda self, at_once=False: None)
    run(site, tables=BY_ID)
    web, worker = (site.client(tables=BY_ID, spool="a.spool") for _ in range(2))
    for scope in worker.publisher.scopes.values():
        worker.publisher.epoch_of(scope)
    assert web.spool is not None
    web.enqueue_insert(model().country, name="x", durability="spooled")
    came: list[Any] = []

    def step(name: str) -> None:
        if name == "settle" and not came:
            came.append(insert(web, durability="spooled"))

    spool = worker.spool
    assert isinstance(spool, Spool)
    found = Drainer(spool, worker.publisher, worker.log, worker.nodes, worker.topology, step).drain()

    assert (found.sent, found.empty, found.why) == (2, True, "")
    with pytest.raises(WrongDeployment, match="pipeline adopt-rows purchase"):
        insert(site.client(tables=OTHERWISE, file="other.toml"))


@pytest.mark.parametrize("noted", [True, False])
def test_a_table_that_is_used_first_while_redis_is_away_is_compared_before_its_ops_are_sent(
    away_at_times: Switched, site: Site, noted: bool
) -> None:
    run(site, tables=BY_ID)
    before = site.client(tables=BY_ID, spool="a.spool")
    before.enqueue_insert(model().country, name="x")
    away_at_times.away = True
    insert(before)
    before.close()  # its own thread would send the op
    away_at_times.away = False
    after = site.client(tables=BY_ID, spool="a.spool")
    if noted:
        insert(site.client(file="other.toml"))  # nobody has told the deployment of this table before
        with pytest.raises(WrongDeployment, match=r"1 ops in .* were placed by another"):
            drained(after)
        assert counts_of(after).waiting == 1
    else:
        drained(after)
        with pytest.raises(WrongDeployment, match="adopt-rows purchase"):
            insert(site.client(file="other.toml"))


@pytest.mark.parametrize(
    ("shards", "why"),
    [
        ({"s0": None}, r"\[shards\.s1\] is missing in web.toml, but holds buckets 32-63"),
        ({"s1": None, "s0": None}, r"\[shards\.s0\] has the buckets 32-63 in web.toml, but 0-31"),
        ({"s0": None, "s1": None, "s2": None}, r"\[shards\.s2\] is new .* pipeline shard add s2"),
    ],
)
def test_other_shards_are_refused(site: Site, shards: dict[str, None], why: str) -> None:
    run(site, 7)

    with pytest.raises(WrongDeployment, match=why):
        insert(site.client(shards=shards))
    with pytest.raises(WrongDeployment, match=why):
        migrate(site.client(shards=shards))


@pytest.mark.parametrize(
    ("redis", "why"),
    [({"prefix": "other"}, "prefix is 'other'"), ({"url": "redis://other.invalid/0"}, "which knows nothing of it")],
)
def test_a_second_queue_over_the_same_databases_is_refused_an_epoch(
    site: Site, redis: dict[str, str], why: str
) -> None:
    run(site, 7)
    second = site.client(redis=redis, log=MemoryLog())

    with pytest.raises(WrongDeployment, match=rf"{why}.* pipeline restore --redis"):
        insert(second)
    with pytest.raises(WrongDeployment, match=why):
        migrate(second)
    assert second.log.epoch("s0")[0] == 0


def test_a_file_that_does_not_fit_spools_nothing_though_the_caller_asks_for_the_spool_first(site: Site) -> None:
    run(site, 7)
    other = site.client(buckets=48, spool="a.spool")

    with pytest.raises(WrongDeployment, match=r"buckets is 48 in web.toml, but 64 in worker.toml"):
        insert(other, durability="spooled")

    assert counts_of(other).waiting == 0


@pytest.mark.parametrize(
    ("differs", "why"),
    [
        ({"buckets": 48}, r"buckets is 48 in web.toml, but 64 in right.toml"),
        ({"redis": {"prefix": "staging"}}, r"prefix is 'staging' in web.toml, but .* prefix 'pl' in right.toml"),
        ({"tables": {**BY_CUSTOMER, "purchase": {"shard_key": "qty"}}}, r"\[tables\.purchase\] is spread by .*'qty'"),
        ({"tables": {"country": {"reference": True}}}, r"\[tables\.purchase\] is spread by its own id"),
    ],
)
def test_while_redis_is_away_a_host_spools_only_by_the_file_that_was_compared_last(
    away_at_times: Switched, site: Site, differs: dict[str, Any], why: str
) -> None:
    run(site, 7)
    right = site.client(spool="a.spool", file="right.toml")
    insert(right)
    other = site.client(spool="a.spool", **differs)

    away_at_times.away = True
    with pytest.raises(WrongDeployment, match=rf"{why}.*a\.spool"):
        insert(other, 8)
    kept = insert(right, 9)
    assert counts_of(right).waiting == 1
    away_at_times.away = False

    drained(right)
    drain(right)
    assert kept.status() == "applied"


def test_a_spool_of_a_release_that_noted_no_prefix_takes_and_sends_ops(away_at_times: Switched, site: Site) -> None:
    run(site)
    first = site.client(spool="a.spool")
    insert(first)
    first.close()
    with closing(sqlite3.connect(site.folder / "a.spool")) as db, db:
        [(text,)] = db.execute("SELECT text FROM agreed")
        db.execute("UPDATE agreed SET text = ?", (text.replace('"prefix":"pl"', '"prefix":""'),))
    second = site.client(spool="a.spool")
    away_at_times.away = True
    kept = insert(second)
    away_at_times.away = False
    drained(second)
    drain(second)

    assert kept.status() == "applied"


def test_ops_that_wait_in_a_spool_are_not_sent_by_a_file_that_places_them_otherwise(
    away_at_times: Switched, site: Site
) -> None:
    run(site)
    before = site.client(spool="a.spool", file="before.toml")
    tables = model()
    before.enqueue_delete(tables.purchase.id == insert(before).id)
    drain(before)
    away_at_times.away = True
    waits = insert(before)
    before.close()  # its own thread would send the op
    away_at_times.away = False
    after = site.client(spool="a.spool", tables=OTHERWISE)
    adopt_rows(after, "purchase")

    with pytest.raises(WrongDeployment, match=r"1 ops in .*a\.spool were placed by another .* in before\.toml"):
        drained(after)

    assert after.follower.status(waits) == "spooled"
    assert counts_of(after).waiting == 1


@pytest.fixture
def away_at_times(site: Site) -> Switched:
    site.log = log = Switched()
    return log


def counts_of(client: Client) -> Counts:
    assert client.spool is not None
    return client.spool.counts()


def drained(client: Client) -> None:
    drainer = client.drainer
    assert drainer is not None
    assert any(drainer.drain().empty for _ in clock.polls(20)), "the client's own thread may be at it"


def test_staging_is_refused_production_s_queue(site: Site) -> None:
    run(site, 7)
    fresh = site.client(folder="staging")

    with pytest.raises(WrongDeployment, match="a \\[redis\\] prefix or url of its own"):
        migrate(fresh)

    before = set(site.log.tails(range(65)).values())
    own = site.client(folder="staging", redis={"prefix": "staging"}, log=MemoryLog())
    migrate(own)
    with pytest.raises(WrongDeployment, match="belongs to the deployment of"):
        insert(site.client(folder="staging"))
    assert set(site.log.tails(range(65)).values()) == before


def test_a_database_restored_without_our_tables_is_not_prepared_to_apply_the_log_once_more(site: Site) -> None:
    client = run(site, *range(20))
    before = rows_of(client)
    for shard in client.topology.shards:
        drop_own_tables(client, shard)

    with pytest.raises(WrongDeployment, match=r"lacks what was applied there .* pipeline restore s0"):
        migrate(client)

    assert rows_of(client) == before
    assert not client.nodes.primary("s0").query("SELECT 1 FROM sqlite_master WHERE name = 'pipeline_watermarks'")


def test_nothing_is_applied_onto_an_older_database_whose_log_is_gone(site: Site) -> None:
    client = run(site, 7)
    bucket = client.topology.bucket_of("purchase", 7)
    shard = client.topology.shard_of(bucket)
    older = backup_of(client, shard)
    for _ in range(5):
        insert(client, 7)
    drain(client)
    site.log.trim({bucket: site.log.tails([bucket])[bucket]})
    restore(client, shard, older)
    waits = insert(client, 7)

    for _ in range(4):
        apply(client, shard)

    assert len(rows_of(client)) == 1
    assert waits.status() == "queued"
    reason = WaitReason.from_json(next(iter(site.log.waits(shard).notes.values()))[1])
    assert reason is not None
    assert reason.kind == "restored"
    with pytest.raises(WrongDeployment, match=rf"in the buckets {bucket}: .* pipeline restore {shard}"):
        migrate(client)


def test_an_older_database_whose_log_is_whole_is_brought_up_to_date_by_the_log(site: Site) -> None:
    client = run(site, 7)
    shard = client.topology.shard_of(client.topology.bucket_of("purchase", 7))
    older = backup_of(client, shard)
    for _ in range(5):
        insert(client, 7)
    drain(client)
    whole = rows_of(client)
    restore(client, shard, older)

    assert migrate(client) == 0
    site.log.mark_dirty(shard, client.topology.buckets_of(shard))
    drain(client)

    assert rows_of(client) == whole


def test_a_replica_in_common_makes_no_common_deployment(site: Site) -> None:
    run(site, 7)
    copied = site.client(folder="staging", replicas=".")

    with pytest.raises(WrongDeployment, match="url of its own"):
        migrate(copied)


def test_a_copy_of_the_databases_is_no_part_of_the_deployment(site: Site) -> None:
    client = run(site, 7)
    copied = site.client(folder="staging")
    for shard in ("s0", "s1"):
        restore(copied, shard, backup_of(client, shard))

    with pytest.raises(WrongDeployment, match=r"whose s\d is sqlite .*; if the database has moved there"):
        insert(copied)


def test_a_redis_is_known_after_a_wipe_by_every_address_that_led_to_it(site: Site) -> None:
    run(site, 7)
    insert(site.client(redis={"url": "redis://proxy.invalid/0"}))
    site.log.fail_over()

    receipt = insert(site.client(redis={"url": "redis://proxy.invalid/0"}))

    assert receipt.status() == "queued"


def test_what_another_process_notes_meanwhile_is_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run(site, 7)
    client = site.client(redis={"url": "redis://proxy.invalid/0"})
    noting, refused = site.log.note_deployment, [True] * 8

    def note(seen: str, text: str, scope: str) -> bool:
        return False if refused and refused.pop() else noting(seen, text, scope)

    monkeypatch.setattr(site.log, "note_deployment", note)

    assert insert(client).status() == "queued"


def test_a_worker_that_does_not_fit_ends_at_its_start(site: Site) -> None:
    run(site, 7)
    threads.compare_configuration(site.client())

    with pytest.raises(SystemExit):
        threads.compare_configuration(site.client(buckets=48))


def test_a_worker_starts_while_a_shard_or_redis_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run(site, 7)
    client = site.client()
    monkeypatch.setattr(client.nodes, "primary", away(ShardUnavailable("s0", "away")))
    threads.compare_configuration(client)
    monkeypatch.setattr(site.log, "deployment", away(LogUnavailable("away")))
    threads.compare_configuration(client)


def away(error: Exception) -> Any:
    def refuse(*_: object) -> Any:
        raise error

    return refuse


def test_check_says_what_does_not_fit_and_what_to_do(site: Site) -> None:
    run(site, 7)
    other = site.client(buckets=48)
    misfits = tuple(misfits_of(other.log, other.nodes, other.topology))
    nothing = PipelineError("not asked")
    evidence = Evidence(other.settings, other.topology, nothing, nothing, (), "", None, {}, {}, misfits=misfits)

    [finding] = surroundings.deployment_findings(evidence)

    assert (finding.severity, finding.place) == ("error", "[pipeline] buckets")
    assert finding.what == "is 48 in web.toml, but 64 in worker.toml"
    assert finding.fix.startswith("write buckets = 64")
