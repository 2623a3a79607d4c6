"""A move goes on where the last mover has stopped: what is copied is kept, and follows what ops change meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.sandbox.deployments import Site, backup_of, drain, insert, model, restore, run, site

from pipeline import clock
from pipeline.admin import moving as movers
from pipeline.admin.moving import Mover, carrier, orders
from pipeline.admin.moving.sides import Sides
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.shard import row_sync
from pipeline.shard.row_sync import RowSync
from pipeline.shard.stored_rows import StoredIds, StoredRows

__all__ = ["site"]

#: A customer whose bucket is on s0, and how many rows it has; how many a chunk has.
CUSTOMER, ROWS, FEW = 3, 24, 3
PURCHASE = model().purchase


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(carrier, "KEPT_S", 0.0)
    monkeypatch.setattr(row_sync, "FIRST", FEW)
    monkeypatch.setattr(row_sync, "MOST", FEW)
    made = run(site)
    assert made.topology.shard_of(bucket(made)) == "s0"
    for _ in range(ROWS):
        insert(made, CUSTOMER)
    drain(made)
    return made


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, int | None]]:
    """The ranges of ids that movers look at on the target, by which they compare it with the source."""
    found, compared = [], RowSync._compared

    def noted(self: RowSync, after: int | None, upto: int | None) -> Any:
        found.append((after, upto))
        return compared(self, after, upto)

    monkeypatch.setattr(RowSync, "_compared", noted)
    return found


def bucket(client: Client) -> int:
    return client.topology.bucket_of("purchase", CUSTOMER)


def rows_on(client: Client, shard: str) -> list[tuple[int, int]]:
    return sorted(client.nodes.primary(shard).query("SELECT id, qty FROM purchase"))


def ids(client: Client) -> list[int]:
    return [id for id, _ in rows_on(client, "s0")]


def one_life(mover: Mover, steps: int, stage: str = "copying") -> None:
    """Let a mover die after some steps of a stage."""
    for step in mover.steps():
        steps -= step.stage == stage
        if not steps:
            return


def successor(client: Client) -> Mover:
    [found] = orders.under_way(client)
    return found


def test_a_copy_goes_on_in_the_middle_of_a_table(client: Client, looked: list[tuple[int | None, int | None]]) -> None:
    one_life(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), 4)
    kept = looked[-1][1]
    looked.clear()

    one_life(successor(client), 1)

    assert kept == ids(client)[4 * FEW - 1]
    assert looked[0][0] == kept


def test_movers_that_live_for_one_step_of_a_copy_get_through(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = rows_on(client, "s0"), dict[int, int]()
    has = Sides.source_has

    def late(sides: Sides, begun: Any) -> bool:  # a replica of the source that takes its time
        asked[id(sides)] = asked.get(id(sides), 0) + 1
        return asked[id(sides)] > 2 and has(sides, begun)

    monkeypatch.setattr(Sides, "source_has", late)
    orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0)

    lives = 0
    while found := [*orders.under_way(client)]:
        lives += 1
        assert lives < 100
        for _ in zip(range(2), found[0].steps(), strict=False):
            pass  # a wait and a chunk, and it dies

    assert rows_on(client, "s1") == before


def test_a_mover_whose_copy_another_has_made_void_gives_way(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0).steps()
    while next(first).stage != "copying":
        pass
    second, slept = successor(client).steps(), list[float]()
    next(second)
    assert next(first).text.startswith("to copy again: another mover is at these buckets")

    def goes_on(for_s: float) -> None:  # else each would begin anew, and no copy would ever be whole
        slept.append(for_s)
        assert next(second).stage == "copying"

    with monkeypatch.context() as asleep:
        asleep.setattr(clock, "sleep_s", goes_on)
        next(first)

    assert slept[0] >= movers.GIVES_WAY_S[0]
    assert [step.stage for step in first][-1] == "over"


CHANGES: dict[str, Callable[[Client, int], Any]] = {
    "update": lambda client, row: client.enqueue_update(PURCHASE.id == row, shard_key=CUSTOMER, qty=7),
    "delete": lambda client, row: client.enqueue_delete(PURCHASE.id == row, shard_key=CUSTOMER),
    "update by query": lambda client, row: client.enqueue_update(
        (PURCHASE.customer == CUSTOMER) & (PURCHASE.qty == 1), shard_key=CUSTOMER, qty=8
    ),
    "insert": lambda client, row: client.enqueue_insert(PURCHASE, customer=CUSTOMER, qty=5),
    "upsert": lambda client, row: client.enqueue_upsert(PURCHASE, key=["id"], id=row, customer=CUSTOMER, qty=9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_copied_follows_what_ops_have_changed_since(client: Client, change: str) -> None:
    one_life(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), 4)
    CHANGES[change](client, ids(client)[2])
    drain(client)
    wanted = rows_on(client, "s0")

    stages = [step.stage for step in successor(client).steps()]

    assert stages[-1] == "over"
    assert rows_on(client, "s1") == wanted


def test_only_what_ops_have_touched_is_read_again(
    client: Client, looked: list[tuple[int | None, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_life(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), 4)
    kept, changed = looked[-1][1], ids(client)[2]
    CHANGES["update"](client, changed)
    drain(client)
    looked.clear()
    read, sent = StoredRows.read, list[int]()
    monkeypatch.setattr(StoredRows, "read", lambda rows, ids: sent.extend(ids) or read(rows, ids))

    one_life(successor(client), 1)

    assert looked[0][0] == kept
    assert [id for id in sent if kept is not None and id <= kept] == [changed]


@pytest.mark.parametrize("kept", [slice(0, 0), slice(1, None), slice(0, 1)], ids=["none", "the last", "the first"])
def test_a_copy_whose_log_has_lost_ops_begins_anew(
    client: Client,
    site: Site,
    looked: list[tuple[int | None, int | None]],
    monkeypatch: pytest.MonkeyPatch,
    kept: slice,
) -> None:
    one_life(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), 4)
    for row in ids(client)[:2]:
        CHANGES["update"](client, row)
    drain(client)
    looked.clear()
    read, there = site.log.read, site.log.tails([bucket(client)])[bucket(client)].seq
    lost = {there - 1, there} - {*[there - 1, there][kept]}
    monkeypatch.setattr(
        type(site.log),
        "read",
        lambda log, after, count: {
            one: [entry for entry in found if entry.position.seq not in lost]
            for one, found in read(after, count).items()
        },
    )

    one_life(successor(client), 1)

    assert looked[0][0] is None


def test_a_target_that_fails_over_keeps_no_place_that_it_has_no_rows_for(client: Client) -> None:
    mover = orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0)
    one_life(mover, 2)
    replica = backup_of(client, "s1")
    one_life(successor(client), 3)
    late = successor(client)
    wanted = rows_on(client, "s0")

    restore(client, "s1", replica)
    stages = [step.stage for step in late.steps()]

    assert stages[-1] == "over"
    assert rows_on(client, "s1") == wanted


def test_a_target_that_has_forgotten_the_move_is_given_no_place(client: Client) -> None:
    replica = backup_of(client, "s1")
    one_life(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), 4)
    late = successor(client)
    assert late.leg.source == "s0"
    late.leg = late.leg._replace(note=late.sides.note)  # as the target's row has it
    wanted = rows_on(client, "s0")

    restore(client, "s1", replica)
    stages = [step.stage for step in late.steps()]

    assert stages[-1] == "over"
    assert rows_on(client, "s1") == wanted


def test_a_comparison_goes_on_where_the_last_one_stopped(
    client: Client, looked: list[tuple[int | None, int | None]]
) -> None:
    mover = orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0)
    one_life(mover, 4, "comparing")
    kept = looked[-1][1]
    insert(client, CUSTOMER)
    drain(client)
    looked.clear()

    one_life(successor(client), 1, "comparing")

    assert looked[0][0] == kept
    assert [step.stage for step in successor(client).steps()][-1] == "over"


def test_what_is_deleted_is_not_looked_for_again_while_a_node_is_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0)
    with monkeypatch.context() as behind:
        behind.setattr(Sides, "emptied", lambda sides, shard: False)
        for step in mover.steps():
            if step.text == "for every node of s0 to have deleted its rows":
                break
    assert rows_on(client, "s0") == []
    monkeypatch.delattr(StoredIds, "ids")

    assert [step.stage for step in successor(client).steps()] == ["over"]


def test_whoever_goes_on_copies_no_row_before_all_readers_know_of_the_move(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 60.0)
    first = next(orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0).steps())

    second = next(successor(client).steps())

    assert (first.stage, second.stage) == ("waiting", "waiting")
    assert first.text.endswith("until all readers know of the move")
    assert second.text.endswith("until all readers know of the move")


def test_a_chunk_whose_commit_got_no_reply_ends_no_move(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, insert_rows, cut = orders.order_move(client, [bucket(client)], "s1", "me", keep_s=0), StoredRows.insert, []

    def committed(self: StoredRows, rows: Any) -> None:
        insert_rows(self, rows)
        if not cut:
            cut.append(rows)
            raise ShardUnavailable("s1", "the connection was cut behind the commit")

    monkeypatch.setattr(StoredRows, "insert", committed)
    before = rows_on(client, "s0")

    with pytest.raises(ShardUnavailable):
        one_life(mover, ROWS)
    for _ in mover.steps():
        pass

    assert len(cut[0]) == FEW
    assert rows_on(client, "s1") == before
    assert rows_on(client, "s0") == []
