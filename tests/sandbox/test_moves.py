"""Buckets move from one shard to another while ops arrive: whole, once, in order, and back."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydal import Field
from support.sandbox.deployments import BY_CUSTOMER, Site, apply, drain, file_of, insert, model, run, site

from pipeline.admin import moving as movers
from pipeline.admin import reshape, shards, upkeep
from pipeline.admin.migration import migrate
from pipeline.admin.moving import MoveEnded, Mover, carrier, orders
from pipeline.admin.moving.buckets_rows import CopyVoid, FencedSession
from pipeline.apply.replay import Replay
from pipeline.cli import move as face
from pipeline.cli import pipeline as command
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.enqueue import buckets as bucket_map
from pipeline.errors import PipelineError, ShardUnavailable, WrongDeployment
from pipeline.model import Position
from pipeline.shard import NodeSession, stored_rows
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger_queries import positions_of
from workers.chores import Moves

__all__ = ["site"]

CUSTOMERS = range(40)


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


def rows_on(client: Client, shard: str) -> list[tuple[int, int]]:
    return sorted(client.nodes.primary(shard).query("SELECT customer, qty FROM purchase"))


def states_of(client: Client, bucket: int) -> list[str | None]:
    found = (ledger_queries.marks_of(client.nodes.primary(s), [bucket]).get(bucket) for s in client.topology.shards)
    return [mark.state if mark else None for mark in found]


def bucket_with_rows(client: Client, shard: str) -> int:
    counts = Counter(client.topology.bucket_of("purchase", customer) for customer in CUSTOMERS)
    return next(bucket for bucket, _ in counts.most_common() if client.topology.shard_of(bucket) == shard)


def finished(mover: Mover) -> list[str]:
    return [step.stage for step in mover.steps()]


@pytest.fixture
def client(site: Site) -> Client:
    return run(site, *CUSTOMERS)


def test_a_bucket_moves_with_its_rows(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    before = rows_on(client, "s0") + rows_on(client, "s1")

    stages = finished(orders.order_move(client, [bucket], "s1", "me", keep_s=0))

    assert [*dict.fromkeys(stages)] == ["copying", "comparing", "stopping", "cleaning", "over"]
    assert states_of(client, bucket) == ["gone", "active"]
    assert sorted(rows_on(client, "s0") + rows_on(client, "s1")) == sorted(before)
    assert all(client.topology.bucket_of("purchase", customer) != bucket for customer, _ in rows_on(client, "s0"))
    assert client.topology.shard_of(bucket) == "s1"
    assert client.topology.placement.moves == {}


def test_ops_of_the_bucket_arrive_at_every_step(client: Client, site: Site) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    other, sent = site.client(), 0
    for _ in orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps():
        insert(other, customer)
        sent += 1
        drain(client)
    drain(client)
    drain(other)

    assert sent > 4
    assert [one for one, _ in rows_on(client, "s0") if one == customer] == []
    assert [one for one, _ in rows_on(client, "s1") if one == customer] == [customer] * (sent + 1)
    assert other.topology.shard_of(bucket) == "s1"


def test_a_move_goes_on_when_its_mover_dies_at_any_step(client: Client) -> None:
    bucket, target = bucket_with_rows(client, "s0"), "s1"
    before = sorted(rows_on(client, "s0") + rows_on(client, "s1"))
    steps = 0
    orders.order_move(client, [bucket], target, "me", keep_s=0)
    while found := [*orders.under_way(client)]:
        steps += 1
        insert(client, 1000 + steps)
        for _ in zip(range(steps), found[0].steps(), strict=False):
            pass  # and dies
        drain(client)
    assert states_of(client, bucket) == ["gone", "active"]
    assert len(rows_on(client, "s0") + rows_on(client, "s1")) == len(before) + steps


def test_buckets_move_together_and_back(client: Client) -> None:
    before = sorted(rows_on(client, "s0")), sorted(rows_on(client, "s1"))
    finished(orders.order_move(client, range(32), "s1", "me", keep_s=0))
    assert rows_on(client, "s0") == []

    insert(client, 3)
    finished(orders.order_move(client, range(32), "s0", "me", keep_s=0))
    drain(client)

    now = sorted(rows_on(client, "s0") + rows_on(client, "s1"))
    assert now == sorted([*before[0], *before[1], (3, 1)])
    assert rows_on(client, "s1") == [
        pair for pair in now if client.topology.shard_of(client.topology.bucket_of("purchase", pair[0])) == "s1"
    ]
    assert client.topology.placement.owners == dict.fromkeys(range(32), "s0")


def test_a_move_that_is_given_up_leaves_the_source_as_it_was(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    before = rows_on(client, "s0"), rows_on(client, "s1")
    mover = orders.order_move(client, [bucket], "s1", "me")
    for step in mover.steps():
        if step.stage == "comparing":
            break
    assert rows_on(client, "s1") != before[1]

    mover.give_up("enough")
    finished(next(orders.under_way(client)))

    assert (rows_on(client, "s0"), rows_on(client, "s1")) == before
    assert states_of(client, bucket) == ["active", "gone"]
    assert [*orders.under_way(client)] == []
    finished(orders.order_move(client, [bucket], "s1", "me", keep_s=0))
    assert states_of(client, bucket) == ["gone", "active"]


def test_a_difference_ends_the_move(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    mover = orders.order_move(client, [bucket], "s1", "me")
    mover._copy = lambda own=mover._copy: (yield from (*own(), *[_meddled(client, customer)]))  # type: ignore[method-assign]
    with pytest.raises(MoveEnded, match=r"1 rows of 'purchase' differ, such as id \d+"):
        finished(mover)
    assert states_of(client, bucket) == ["active", "gone"]


def _meddled(client: Client, customer: int) -> carrier.MoveStep:
    target = client.nodes.primary("s1")
    with target.transaction():
        target.execute(f"UPDATE purchase SET qty = 99 WHERE customer = {customer}")
    return carrier.MoveStep("copying")


def test_what_cannot_move_is_refused_before(client: Client) -> None:
    with pytest.raises(PipelineError, match="s1 owns 40 already"):
        orders.order_move(client, [40], "s1", "me")
    with pytest.raises(PipelineError, match="no shard 's7'"):
        orders.order_move(client, [1], "s7", "me")
    with pytest.raises(PipelineError, match=r"the buckets 1,40 are on s0, s1"):
        orders.order_move(client, [1, 40], "s1", "me")
    orders.order_move(client, [1], "s1", "me")
    with pytest.raises(PipelineError, match="is being moved already"):
        orders.order_move(client, [1], "s1", "me")


def test_a_shard_to_which_buckets_have_moved_is_not_removed(client: Client, site: Site) -> None:
    three = {"s0": "0-31", "s1": "32-63", "s2": ""}
    reshape.add_shard(site.client(shards=three), "s2")
    finished(orders.order_move(site.client(shards=three), [3], "s2", "me", keep_s=0))

    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing .* but owns buckets"):
        insert(site.client(shards={"s0": "0-31", "s1": "32-63"}), 3)
    with pytest.raises(WrongDeployment, match=r"\[shards\.s2\] is missing"):
        shards.remove_shard(site.client(shards={"s0": "0-31", "s1": "32-63"}), "s2")


def test_nothing_is_replayed_while_its_bucket_moves(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    next(mover.steps())
    session = client.nodes.primary("s0")
    worker = Replay("s0", session, client.log, client.settings.apply, client.settings.tables)

    list(worker.run({bucket: [Position(1, 0)]}, "me"))

    assert worker.left == {
        bucket: f"bucket {bucket} is being moved: wait for that, or run: pipeline move give-up {bucket}"
    }


def test_a_target_that_refuses_an_op_after_the_source_has_stopped_lets_the_source_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "REFUSED_S", 0.0)
    monkeypatch.setattr(stored_rows, "_triggers", lambda session, table: ())  # would be refused before
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    before = rows_on(client, "s1")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    catch_up = mover._carrier.catch_up

    def one_more(follow: Any) -> Any:
        yield from catch_up(follow)
        insert(client, customer)
        drain(client)

    monkeypatch.setattr(mover._carrier, "catch_up", one_more)
    with client.nodes.primary("s1").transaction():
        client.nodes.primary("s1").execute(
            "CREATE TRIGGER no BEFORE INSERT ON purchase WHEN (SELECT state FROM pipeline_watermarks"
            f" WHERE bucket = {bucket}) = 'catching' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(MoveEnded, match="refuses the op"):
        finished(mover)
    for left in orders.under_way(client):
        finished(left)

    assert states_of(client, bucket) == ["active", "gone"]
    assert rows_on(client, "s1") == before
    insert(client, customer)
    drain(client)
    assert [one for one, _ in rows_on(client, "s0")].count(customer) >= 3


def test_a_mover_that_was_thought_dead_deletes_nothing_of_a_bucket_that_came_back(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    before, producers = rows_on(client, "s0"), f"SELECT producer, seq FROM pipeline_producers WHERE bucket = {bucket}"
    known = client.nodes.primary("s0").query(producers)
    late = orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    while next(late).stage != "cleaning":
        pass

    finished(orders.order_move(client, [bucket], "s0", "me", keep_s=0))
    for _ in late:
        pass

    assert rows_on(client, "s0") == before
    assert client.nodes.primary("s0").query(producers) == known
    assert states_of(client, bucket) == ["active", "gone"]


def test_a_mover_that_was_thought_dead_writes_nothing_into_the_copy_of_its_successor(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    late = orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    while next(late).stage != "copying":
        pass

    [successor] = orders.under_way(client)
    finished(successor)
    insert(client, customer)
    drain(client)
    now = rows_on(client, "s1")
    for _ in late:
        pass

    assert rows_on(client, "s1") == now
    assert states_of(client, bucket) == ["gone", "active"]


def test_a_bucket_that_is_dirty_where_it_has_left_is_handed_on(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    finished(orders.order_move(client, [bucket], "s1", "me", keep_s=0))
    drain(client)
    client.log.mark_clean("s1", [bucket])
    client.log.mark_dirty("s0", [bucket])

    apply(client, "s0")

    assert (client.log.dirty("s0"), client.log.dirty("s1")) == (0, 1)


def test_what_the_source_sets_aside_comes_along_and_is_not_decided_anew(client: Client) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    [(row_id,)] = client.nodes.primary("s0").query(f"SELECT id FROM purchase WHERE customer = {customer}")
    purchase, aside = model().purchase, f"SELECT state, producer_seq FROM pipeline_rejects WHERE bucket = {bucket}"
    steps = orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    while next(steps).stage != "copying":
        pass

    client.enqueue_insert(purchase, id=row_id, customer=customer, qty=5)
    client.enqueue_update(purchase.id == row_id, shard_key=customer, qty=6)
    drain(client)
    there = client.nodes.primary("s0").query(aside)
    for _ in steps:
        pass

    assert [state for state, _ in there] == ["rejected", "parked"]
    assert client.nodes.primary("s1").query(aside) == there
    assert states_of(client, bucket) == ["gone", "holding"]


def test_the_log_of_a_bucket_that_moves_is_kept_for_its_target(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket_with_rows(client, "s0")
    monkeypatch.setattr(upkeep, "_on_every_node", lambda client, shard: positions_of(client.nodes.primary(shard)))
    free, steps = upkeep._replicated(client, "s0"), orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    kept: list[tuple[str, bool, bool]] = []
    for step in steps:
        kept += [(step.stage, bucket in upkeep._replicated(client, "s0"), bucket in upkeep._replicated(client, "s1"))]

    assert bucket in free
    assert [*dict.fromkeys(kept)] == [
        ("copying", False, False),
        ("comparing", True, False),
        ("stopping", False, False),
        ("stopping", False, True),
        ("cleaning", False, True),
        ("over", False, True),
    ]


def test_the_map_names_a_move_until_no_replica_has_rows_of_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_with_rows(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    steps, nodes_of = mover.steps(), mover.sides.nodes_of
    while next(steps).stage != "cleaning":
        pass
    behind = sqlite3.connect(tmp_path / "behind.sqlite")
    with sqlite3.connect(file_of(client, "s0")) as primary:
        primary.backup(behind)
    behind.execute("UPDATE pipeline_moves SET note = '{}'")
    behind.commit()
    replica = NodeSession("s0-r0", f"sqlite://{tmp_path}/behind.sqlite")
    more = {"s0": [replica], "s1": []}
    monkeypatch.setattr(mover.sides, "nodes_of", lambda shard: [*nodes_of(shard), *more[shard]])

    for _ in range(5):
        assert next(steps).stage in ("cleaning", "waiting")
    assert bucket in client.topology.placement.moves

    behind.execute("""UPDATE pipeline_moves SET note = '{"emptied": true}'""")
    behind.commit()
    assert [step.stage for step in steps][-1] == "over"
    assert client.topology.placement.moves == {}


def test_a_shard_that_is_away_stops_the_moves_of_no_other(
    site: Site, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = {"s0": "0-31", "s1": "32-63", "s2": ""}
    reshape.add_shard(site.client(shards=three), "s2")
    grown = site.client(shards=three)
    orders.order_move(grown, [3], "s2", "me", keep_s=0)
    orders.order_move(grown, [5], "s1", "me", keep_s=0)
    primary = grown.nodes.primary

    def without_s2(shard: str) -> Any:
        if shard == "s2":
            raise ShardUnavailable(shard, "away")
        return primary(shard)

    monkeypatch.setattr(grown.nodes, "primary", without_s2)
    go_on(Moves(grown))
    assert {(one.buckets, one.state) for one in orders.known(grown)} == {("5", "done"), ("3", "not known")}

    monkeypatch.setattr(grown.nodes, "primary", primary)
    grown.log.release_lease("moves", "1")
    go_on(Moves(grown))
    assert {(one.buckets, one.state) for one in orders.known(grown)} == {("5", "done"), ("3", "done")}


def go_on(moves: Moves) -> None:
    """Let a worker's mover have its turns until it has nothing to do."""
    while not moves.turn():
        pass


def test_a_move_that_keeps_its_source_for_long_holds_up_no_other(client: Client) -> None:
    orders.order_move(client, [3], "s1", "me", keep_s=3600)
    orders.order_move(client, [5], "s1", "me", keep_s=0)
    moves = Moves(client)

    for _ in polls(20, most_s=0.01):
        moves.turn()
        if {one.buckets: one.state for one in orders.known(client)} == {"3": "waiting", "5": "done"}:
            break
    assert {one.buckets: one.state for one in orders.known(client)} == {"3": "waiting", "5": "done"}


@pytest.mark.parametrize("key", ["purchase=7", "purchase=007"])
def test_a_key_is_moved_without_the_others_of_its_bucket_and_back(
    client: Client, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(client))
    bucket = client.topology.bucket_of("purchase", 7)
    home = client.topology.shard_of(bucket)
    target = "s1" if home == "s0" else "s0"
    before = rows_on(client, home)

    done = CliRunner().invoke(command, ["move", "--key", key, "--to", target, "--keep", "0"])

    assert done.exit_code == 0, done.output
    assert f"{target} has purchase=7\n" in done.output
    assert client.topology.shard_of(bucket) == home
    assert rows_on(client, home) == [row for row in before if row[0] != 7]
    assert (7, 1) in rows_on(client, target)
    shown = CliRunner().invoke(command, ["move", "show", key])
    assert f"purchase=7 from {home} to {target}: done, 1 rows copied" in shown.output
    assert "to send them back: pipeline move back purchase=7" in shown.output
    assert "purchase=7" in CliRunner().invoke(command, ["move", "list"]).output

    back = CliRunner().invoke(command, ["move", "back", key, "--keep", "0"])

    assert back.exit_code == 0, back.output
    assert f"{home} has purchase=7\n" in back.output
    assert rows_on(client, home) == before
    again = CliRunner().invoke(command, ["move", "back", key])
    assert f"{home} has purchase=7 already" in str(again.exception or again.output)


def test_a_move_of_a_key_is_given_up_by_its_name(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(client))
    home = client.topology.shard_of(client.topology.bucket_of("purchase", 7))
    target = "s1" if home == "s0" else "s0"
    orders.order_key(client, "purchase=7", target, "me")

    done = CliRunner().invoke(command, ["move", "give-up", "purchase=7"])

    assert done.exit_code == 0, done.output
    assert f"{home} keeps purchase=7; {target} is being cleaned\n" in done.output
    assert [*orders.under_way(client)] == []


def test_a_dry_run_of_a_key_says_how_many_rows_of_each_table_move(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {**BY_CUSTOMER, "review": {"shard_key": "customer"}}
    client, db = site.client(tables=tables, buckets=4), model()
    db.define_table("review", Field("customer", "integer"))
    client.define_tables(db)
    migrate(client)
    bucket = client.topology.bucket_of("purchase", 7)
    for customer in CUSTOMERS:
        insert(client, customer)
        client.enqueue_bulk_insert(db.review, [{"customer": customer}, {"customer": customer}])
    drain(client)
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(client))
    target = "s1" if client.topology.shard_of(bucket) == "s0" else "s0"

    said = CliRunner().invoke(command, ["move", "--key", "purchase=7", "--to", target, "--dry-run"])

    assert said.exit_code == 0, said.output
    assert "1 rows, 0.0 MB of purchase\n" in said.output
    assert "2 rows, 0.0 MB of review\n" in said.output
    assert "country" not in said.output
    assert client.topology.placement.moves == {}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--key", "purchse=7"], "did you mean 'purchase'"),
        (["--key", "purchase"], "write TABLE=VALUE"),
        (["--key", "country=7"], "each shard has all its rows"),
        (["--key", "purchase=abc"], "customer"),
        (["3", "--key", "purchase=7"], "either BUCKETS"),
        ([], "either BUCKETS"),
    ],
)
def test_what_names_no_key_and_no_bucket_moves_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, words: list[str], error: str
) -> None:
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(client))
    before = dict(client.topology.placement.owners)

    done = CliRunner().invoke(command, ["move", *words, "--to", "s1"])

    assert done.exit_code != 0
    assert error in f"{done.output} {done.exception}"
    assert before == dict(client.topology.placement.owners)


def test_a_worker_that_stops_lets_another_go_on_with_its_moves(client: Client, site: Site) -> None:
    orders.order_move(client, [3], "s1", "me", keep_s=1)
    first, second = Moves(client), Moves(site.client())
    while [one.state for one in orders.known(client)] != ["waiting"]:
        first.turn()
    first.close()

    client.log.release_lease("moves", "1")
    go_on(second)
    assert [one.state for one in orders.known(client)] == ["done"]


def test_a_map_that_redis_has_lost_is_not_written_down_without_a_shard(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(orders.order_move(client, [3], "s1", "me", keep_s=0))
    noted, primary = client.log.placement(), client.nodes.primary
    assert client.log.note_placement(noted, "")

    def without_s1(shard: str) -> Any:
        if shard == "s1":
            raise ShardUnavailable(shard, "away")
        return primary(shard)

    monkeypatch.setattr(client.nodes, "primary", without_s1)
    bucket_map.follow(client.log, client.nodes, client.topology)
    assert client.log.placement() == ""
    assert client.topology.shard_of(3) == "s1"

    monkeypatch.setattr(client.nodes, "primary", primary)
    bucket_map.follow(client.log, client.nodes, client.topology)
    assert client.log.placement() == noted


def test_a_move_that_its_target_has_forgotten_begins_anew(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's primary fails over just as the mover is at it."""
    bucket = bucket_with_rows(client, "s0")
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    catch_up = mover._carrier.catch_up

    def forgotten(follow: Any) -> Any:
        monkeypatch.setattr(mover._carrier, "catch_up", catch_up)
        target = client.nodes.primary("s1")
        with target.transaction():
            target.execute("DELETE FROM pipeline_moves")
            target.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {bucket}")
        return iter(())

    monkeypatch.setattr(mover._carrier, "catch_up", forgotten)

    stages = finished(mover)

    assert stages.count("copying") > 1
    assert states_of(client, bucket) == ["gone", "active"]


@pytest.mark.parametrize("then", ["began", "was given up"])
def test_a_mover_that_stands_still_at_the_cut_follows_no_more_when_another(client: Client, then: str) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    late = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    follow_once, steps = late._carrier.follow_once, late.steps()
    while next(steps).text != "s0 has stopped":
        pass

    [other] = orders.under_way(client)
    if then == "began":
        for step in other.steps():
            if step.text == "s1 goes on":
                break
        insert(client, customer)
        drain(client)
    else:
        other.give_up("enough")

    with pytest.raises(CopyVoid, match="does not follow any more"):
        follow_once(late._carrier.follow(), {bucket: Position(1, 0)})
    assert [step.stage for step in steps][-1] == "over"
    assert states_of(client, bucket) == (["gone", "active"] if then == "began" else ["active", "gone"])


def test_a_copy_that_begins_anew_is_no_difference_to_another_mover(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_with_rows(client, "s0")
    customer = next(one for one in CUSTOMERS if client.topology.bucket_of("purchase", one) == bucket)
    snapshot = FencedSession.snapshot

    def late(session: FencedSession) -> Any:
        state = states_of(client, bucket)[1]
        if session.node == "s1" and state == "catching":  # the target is compared
            monkeypatch.setattr(FencedSession, "snapshot", snapshot)
            target = client.nodes.primary("s1")
            with target.transaction():
                target.execute(f"UPDATE pipeline_watermarks SET state = 'copying' WHERE bucket = {bucket}")
                target.execute(f"DELETE FROM purchase WHERE customer = {customer}")
        return snapshot(session)

    monkeypatch.setattr(FencedSession, "snapshot", late)

    finished(orders.order_move(client, [bucket], "s1", "me", keep_s=0))

    assert states_of(client, bucket) == ["gone", "active"]
    assert customer in [one for one, _ in rows_on(client, "s1")]


def test_a_mover_that_waits_for_nodes_ends_once_another_has_moved_the_bucket(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_with_rows(client, "s0")
    late = orders.order_move(client, [bucket], "s1", "me", keep_s=0)
    with monkeypatch.context() as behind:
        behind.setattr(late.sides, "target_says", lambda states: False)
        steps = late.steps()
        while next(steps).text != "for every node of the target to have the copy":
            pass

    [other] = orders.under_way(client)
    finished(other)

    assert [step.stage for step, _ in zip(steps, range(20), strict=False)][-1] == "over"


def test_buckets_move_on_once_their_last_move_is_over_or_all_of_them_back(client: Client, site: Site) -> None:
    three = {"s0": "0-31", "s1": "32-63", "s2": ""}
    reshape.add_shard(site.client(shards=three), "s2")
    grown = site.client(shards=three)
    steps = orders.order_move(grown, [3, 5], "s1", "me", keep_s=3600).steps()
    while next(steps).text != "s1 goes on":
        pass

    for buckets, target in (([3, 5], "s2"), ([3], "s2"), ([3], "s0")):
        with pytest.raises(PipelineError, match="s0 keeps the rows of 3,5 until their last move is over"):
            orders.order_move(grown, buckets, target, "me")

    finished(orders.order_move(grown, [3, 5], "s0", "me", keep_s=0))
    assert {states_of(grown, bucket)[0] for bucket in (3, 5)} == {"active"}


def test_what_a_bucket_has_left_behind_is_deleted_although_it_has_moved_on(client: Client, site: Site) -> None:
    three = {"s0": "0-31", "s1": "32-63", "s2": ""}
    reshape.add_shard(site.client(shards=three), "s2")
    grown = site.client(shards=three)
    first = orders.order_move(grown, [3], "s1", "me", keep_s=0).steps()
    while next(first).stage != "cleaning":
        pass

    finished(orders.order_move(grown, [3], "s2", "me", keep_s=0))
    for left in orders.under_way(grown):
        finished(left)

    assert states_of(grown, 3) == ["gone", "gone", "active"]
    assert [*orders.under_way(grown)] == []
