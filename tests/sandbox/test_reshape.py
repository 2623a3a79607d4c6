"""What a deployment is fixed on, changed by command; and databases that were restored, brought back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.deployments import (
    BY_CUSTOMER,
    Site,
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

from pipeline import clock
from pipeline.admin import absence as restoring
from pipeline.admin import reshape, shards, upkeep
from pipeline.admin.migration import migrate, statement
from pipeline.client import Client
from pipeline.enqueue import deployment
from pipeline.errors import PipelineError, WrongDeployment
from pipeline.model.fingerprint import Fingerprint
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.columns import columns_of
from pipeline.shard.records import ledger_queries

__all__ = ["site"]
OLD = {"s0": "0-31", "s1": "32-63"}
GROWN = {**OLD, "s2": ""}


def countries(client: Client, *names: str) -> None:
    for name in names:
        client.enqueue_insert(model().country, name=name)
    drain(client)


def names_on(client: Client, shard: str) -> list[str]:
    return [name for (name,) in client.nodes.primary(shard).query("SELECT name FROM country ORDER BY name")]


def test_a_new_shard_gets_the_reference_rows_at_one_watermark_and_reports_no_loss(site: Site) -> None:
    old = run(site, 7)
    countries(old, *(f"c{n:02}" for n in range(20)))
    reference = old.topology.reference_bucket
    site.log.trim({reference: site.log.tails([reference])[reference]})
    new = site.client(shards=GROWN)

    assert reshape.add_shard(new, "s2") == 20

    countries(new, *(f"d{n:02}" for n in range(20)))
    assert [len(names_on(new, shard)) for shard in GROWN] == [40, 40, 40]
    assert new.nodes.primary("s2").query("SELECT * FROM pipeline_lost") == []
    assert insert(old).status() == "queued"


def test_producers_go_on_without_a_shard_that_is_added_with_no_bucket(site: Site) -> None:
    old = run(site, 7)
    stop, sent, failed = threading.Event(), list[Any](), list[Exception]()

    def produce() -> None:
        while not stop.is_set():
            try:
                sent.append(insert(old, len(sent)))
            except PipelineError as error:
                failed.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        reshape.add_shard(site.client(shards=GROWN), "s2")
        before = len(sent)
        assert any(len(sent) > before or failed for _ in clock.polls(30))
    finally:
        stop.set()
        producer.join()
    assert failed == []


def test_a_process_that_lacks_an_empty_shard_may_start_and_may_not_migrate(site: Site) -> None:
    run(site, 7)
    reshape.add_shard(site.client(shards=GROWN), "s2")
    late = site.client(file="late.toml")

    insert(late)
    reshape.renew_epochs(late)
    insert(late)

    assert dict(Fingerprint.from_json(site.log.deployment()).shards)["s2"] == ""
    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing in late\.toml, but holds no bucket"):
        migrate(late)


def test_a_producer_of_before_a_shard_took_buckets_is_refused_at_its_next_op(site: Site) -> None:
    old = run(site)
    insert(old)
    spare = next(b for b in range(31, 0, -1) if b != old.topology.bucket_of("purchase", 7))

    reshape.add_shard(site.client(shards={"s0": spared(0, 32, spare), "s1": "32-63", "s2": str(spare)}), "s2")

    with pytest.raises(WrongDeployment, match=rf"\[shards\.s2\] is missing in .*, but holds buckets {spare} "):
        insert(old)


def test_a_shard_that_is_added_twice_is_added_once(site: Site) -> None:
    countries(run(site), "a", "b")
    new = site.client(shards=GROWN)

    assert (reshape.add_shard(new, "s2"), reshape.add_shard(new, "s2")) == (2, 0)

    assert names_on(new, "s2") == ["a", "b"]
    assert migrate(new) == 0


def test_a_new_shard_may_take_buckets_that_were_never_used_and_no_others(site: Site) -> None:
    used = run(site, 7).topology.bucket_of("purchase", 7)
    own = [b for b in range(32) if b != used][-1] if used < 32 else 31
    wrong = site.client(shards={"s0": spared(0, 32, used), "s1": spared(32, 64, used), "s2": str(used)})
    right = site.client(shards={"s0": spared(0, 32, own), "s1": "32-63", "s2": str(own)})

    with pytest.raises(PipelineError, match=f"the buckets {used} of .* are in use"):
        reshape.add_shard(wrong, "s2")
    reshape.add_shard(right, "s2")

    key = next(n for n in range(10_000) if right.topology.bucket_of("purchase", n) == own)
    receipt = insert(right, key)
    drain(right)
    assert receipt.status() == "applied"
    assert right.nodes.primary("s2").query("SELECT customer FROM purchase") == [(key,)]


def spared(first: int, end: int, bucket: int) -> str:
    return ",".join(str(b) for b in range(first, end) if b != bucket)


def test_no_worker_trims_the_reference_log_while_a_shard_that_it_does_not_know_may_need_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = clock.wall_ms()
    monkeypatch.setattr(clock, "wall_ms", lambda: now_ms)
    old, new = run(site), site.client(shards=GROWN)
    countries(old, "a")
    reshape.add_shard(new, "s2")
    for second in range(0, upkeep.FLOOR_S, 60):
        monkeypatch.setattr(clock, "wall_ms", lambda: now_ms + 1_000 * second)  # noqa: B023
        assert [upkeep.trim(new, shard) for shard in GROWN] == [0] * len(GROWN)

    monkeypatch.setattr(clock, "wall_ms", lambda: now_ms + 1_000 * upkeep.FLOOR_S)

    assert (upkeep.trim(old, "s0"), upkeep.trim(new, "s0")) == (0, 1)


def test_a_shard_with_buckets_is_not_removed_and_one_without_is(site: Site) -> None:
    run(site, 7)
    with pytest.raises(PipelineError, match="puts the buckets 32-63 where they are not"):
        shards.remove_shard(site.client(shards={"s0": None}), "s1")
    reshape.add_shard(site.client(shards=GROWN), "s2")
    three = site.client(shards=GROWN)
    insert(three)

    shards.remove_shard(site.client(shards=OLD), "s2")

    insert(site.client(shards=OLD))
    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is new"):
        insert(three)


def test_rows_that_are_where_a_new_key_puts_them_are_adopted_and_others_are_listed(site: Site) -> None:
    client = run(site, *range(8))
    tables = {**BY_CUSTOMER, "purchase": {"shard_key": "customer", "rule": "modulo"}}
    new = site.client(tables=tables)
    wrong = reshape.adopt_rows(new, "purchase")
    assert wrong
    with pytest.raises(WrongDeployment):
        insert(new)

    for row in wrong:
        session = client.nodes.primary(row.shard)
        [[columns]] = [session.query(f"SELECT customer, qty FROM purchase WHERE id = {row.row_id}")]
        for shard, sql in (
            (row.shard, f"DELETE FROM purchase WHERE id = {row.row_id}"),
            (
                row.belongs,
                f"INSERT INTO purchase (id, customer, qty) VALUES ({row.row_id}, {columns[0]}, {columns[1]})",
            ),
        ):
            with client.nodes.primary(shard).transaction() as session:
                session.execute(sql)
    assert reshape.adopt_rows(new, "purchase") == []

    insert(new)
    with pytest.raises(WrongDeployment, match="rule = 'hash'"):
        insert(client)


def test_rows_are_not_adopted_while_ops_of_the_old_key_wait(site: Site) -> None:
    insert(run(site, 7))

    with pytest.raises(PipelineError, match=r"1 ops of s. wait"):
        reshape.adopt_rows(site.client(tables={**BY_CUSTOMER, "purchase": {"shard_key": "qty"}}), "purchase")


def test_a_backup_without_our_tables_goes_on_behind_what_was_applied(site: Site) -> None:
    client = run(site, *range(20))
    queued = [insert(client, customer) for customer in range(5)]
    before = rows_of(client)
    for shard in client.topology.shards:
        drop_own_tables(client, shard)

        done = restoring.restore(client, shard)

        assert sum(one.skipped for one in done) + sum(one.replayed for one in done)
    drain(client)
    assert migrate(client) == 0
    assert [receipt.status() for receipt in queued] == ["applied"] * 5
    assert len(rows_of(client)) == len(before) + 5


def test_an_older_backup_gets_what_the_log_has_and_the_rest_is_recorded_as_lost(site: Site) -> None:
    client = run(site, 7)
    bucket = client.topology.bucket_of("purchase", 7)
    shard = client.topology.shard_of(bucket)
    older = backup_of(client, shard)
    lost = [insert(client, 7) for _ in range(3)]
    drain(client)
    site.log.trim({bucket: site.log.tails([bucket])[bucket]})
    kept = [insert(client, 7) for _ in range(2)]
    drain(client)
    restore(client, shard, older)

    [one] = [one for one in restoring.restore(client, shard) if one.bucket == bucket]

    drain(client)
    assert (one.replayed, one.skipped, [gap.last - gap.first + 1 for gap in one.lost]) == (2, 0, [3])
    assert [receipt.status() for receipt in lost] == ["lost"] * 3
    assert [receipt.status() for receipt in kept] == ["applied"] * 2
    assert len(rows_of(client)) == 3


def test_where_nobody_knows_what_was_applied_nothing_is_restored(site: Site) -> None:
    client = run(site, *range(5))
    text = site.log.deployment()
    site.log.fail_over()
    site.log.note_deployment("", text)
    insert(client)
    drop_own_tables(client, "s0")
    drop_own_tables(client, "s1")

    with pytest.raises(PipelineError, match="neither Redis nor a replica knows"):
        restoring.restore(client, client.topology.shard_of(client.topology.bucket_of("purchase", 7)))


def test_another_redis_takes_the_queue_over_and_the_one_before_is_refused(site: Site) -> None:
    first = run(site, 7)
    second = site.client(redis={"url": "redis://other.invalid/0", "prefix": "new"}, log=MemoryLog())

    restoring.take_queue(second)

    insert(second)
    site.log.restart()
    with pytest.raises(WrongDeployment, match="belongs to the deployment of"):
        insert(first)


def test_a_wiped_redis_gets_the_fingerprint_back_from_the_databases(site: Site) -> None:
    client = run(site, 7)
    text = site.log.deployment()
    site.log.fail_over()

    insert(client)

    assert site.log.deployment() == text
    with pytest.raises(WrongDeployment, match="buckets is 48"):
        insert(site.client(buckets=48))


#: Another name of the same Redis: there is something to note.
BY_PROXY = {"url": "redis://proxy.invalid/0"}


def set_up(site: Site) -> Client:
    client = site.client(file="worker.toml")
    client.define_tables(model())
    migrate(client)
    return client


def set_up_again(site: Site) -> Client:
    client = site.client(redis=BY_PROXY)
    migrate(client)
    return client


def grown(site: Site) -> Client:
    client = site.client(shards=GROWN)
    reshape.add_shard(client, "s2")
    return client


def shrunk(site: Site) -> Client:
    client = site.client(shards=OLD)
    shards.remove_shard(client, "s2")
    return client


def adopted(site: Site) -> Client:
    client = site.client(tables={**BY_CUSTOMER, "purchase": {"shard_key": "qty"}})
    reshape.adopt_rows(client, "purchase")
    return client


def restored(site: Site) -> Client:
    client = site.client(redis=BY_PROXY)
    restoring.restore(client, "s1")
    return client


COMMANDS: dict[str, tuple[Callable[[Site], object], Callable[[Site], Client]]] = {
    "migrate": (lambda site: None, set_up),
    "migrate again": (set_up, set_up_again),
    "shard add": (set_up, grown),
    "shard remove": (lambda site: (set_up(site), grown(site)), shrunk),
    "adopt-rows": (set_up, adopted),
    "restore": (set_up, restored),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_another_process_notes_while_a_command_runs_fails_it_not(
    site: Site, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run_command = COMMANDS[command]
    before(site)
    noting, others = site.log.note_deployment, iter(range(8))

    def note(seen: str, text: str, scope: str) -> bool:
        if (other := next(others, None)) is not None and (noted := Fingerprint.noted(site.log.deployment())):
            noting(site.log.deployment(), noted.with_tables([(f"other{other}", "by its own id")]).to_json(), scope)
        return noting(seen, text, scope)

    monkeypatch.setattr(site.log, "note_deployment", note)

    client = run_command(site)

    monkeypatch.undo()
    noted = Fingerprint.from_json(site.log.deployment())
    assert noted.shards == client.topology.fingerprint.shards
    assert noted.names("other0") or command == "migrate"


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("command", [one for one in COMMANDS if one != "shard remove"])
def test_a_command_that_was_killed_as_it_noted_a_fingerprint_is_given_again(
    site: Site, command: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run_command = COMMANDS[command]
    before(site)
    keeping, writes = ledger_queries.keep_fingerprint, iter(range(at))

    def keep(*given: Any) -> None:
        if next(writes, None) is None:
            raise KeyboardInterrupt
        keeping(*given)

    monkeypatch.setattr(deployment.ledger_queries, "keep_fingerprint", keep)
    with suppress(KeyboardInterrupt):
        run_command(site)
    monkeypatch.undo()

    client = run_command(site)

    kept = {ledger_queries.fingerprint_of(client.nodes.primary(shard))[0] for shard in client.topology.shards}
    assert kept == {site.log.deployment()}


@pytest.mark.parametrize("at", range(2))
def test_a_queue_that_was_taken_in_part_is_taken_by_the_next_run(
    site: Site, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(site, 7)
    second = site.client(redis={"url": "redis://other.invalid/0", "prefix": "new"}, log=MemoryLog())
    keeping, writes = ledger_queries.keep_fingerprint, iter(range(at))

    def keep(*given: Any) -> None:
        if next(writes, None) is None:
            raise KeyboardInterrupt
        keeping(*given)

    monkeypatch.setattr(deployment.ledger_queries, "keep_fingerprint", keep)
    with pytest.raises(KeyboardInterrupt):
        restoring.take_queue(second)
    monkeypatch.undo()

    restoring.take_queue(second)

    assert migrate(second) == 0
    assert insert(second).status() == "queued"


def test_of_two_migrations_at_once_each_does_what_the_other_has_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(site, 7)
    wider = DAL("sqlite:memory", bigint_id=True, migrate=False)
    fields = Field("customer", "integer"), Field("qty", "integer"), Field("note", length=40), Field("at", "integer")
    wider.define_table("purchase", *fields)
    first, second = site.client(), site.client()
    first.define_tables(wider)
    running, others = statement.run, iter([second])

    def run_step(*given: Any, **how: Any) -> None:
        for other in others:
            migrate(other)
        running(*given, **how)

    monkeypatch.setattr(statement, "run", run_step)

    assert migrate(first) == 0

    assert [column.name for column in columns_of(first.nodes.primary("s1"), "purchase")][-2:] == ["note", "at"]
