"""What a shard's database remembers: watermarks, producers, rejects and losses, and from them the fate of an op."""

from __future__ import annotations

import pytest
from support.sessions import ENTRY, PRODUCER, both, mariadb

from pipeline.errors import ShardUnavailable
from pipeline.model.op import START, Position
from pipeline.shard import ledger as marks
from pipeline.shard import ledger_queries as inquiry
from pipeline.shard.ledger import Loss, Mark, Reject
from pipeline.shard.session import Session

# watermarks -------------------------------------------------------------------------------------------------------


@both
def test_a_new_bucket_starts_before_every_position_and_is_not_reset_by_adding_it_again(shard: Session):
    run_marks(shard, {3: Position(7, 5)})

    inquiry.add_buckets(shard, range(10))
    inquiry.add_buckets(shard, [])

    found = inquiry.marks_of(shard)
    assert sorted(found) == list(range(10))
    assert found[3] == Mark(Position(7, 5), "active")
    assert found[4] == Mark(START, "active")


def run_marks(shard: Session, positions: dict[int, Position]) -> None:
    with shard.transaction():
        marks.move(shard, positions)


@both
def test_locked_watermarks_are_those_asked_for_up_to_a_limit(shard: Session):
    run_marks(shard, {3: Position(7, 5), 5: Position(8, 0)})

    with shard.transaction():
        found = marks.lock(shard, [3, 5, 99], 10)
        few = marks.lock(shard, range(8), 3)

    assert found == {3: Mark(Position(7, 5), "active"), 5: Mark(Position(8, 0), "active")}
    assert len(few) == 3


@mariadb
def test_a_worker_takes_what_another_does_not_hold_and_never_waits(shard: Session, other: Session):
    with shard.transaction():
        mine = marks.lock(shard, [0, 1, 2], 10)
        with other.transaction():
            theirs = marks.lock(other, range(8), 10)

    assert sorted(mine) == [0, 1, 2]
    assert sorted(theirs) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_on_sqlite_workers_take_turns(shard: Session, other: Session):
    with shard.transaction(), pytest.raises(ShardUnavailable, match="locked"), other.transaction():
        pass


@both
def test_a_producers_last_sequence_is_remembered_per_bucket(shard: Session):
    with shard.transaction():
        marks.remember(shard, {(3, PRODUCER): 9, (4, PRODUCER): 1})
        marks.remember(shard, {(3, PRODUCER): 12})

    with shard.transaction():
        found = marks.seen(shard, [(3, PRODUCER), (4, PRODUCER), (4, 5), (3, PRODUCER)])

    assert found == {(3, PRODUCER): 12, (4, PRODUCER): 1, (4, 5): 0}


@both
def test_a_reject_is_kept_whole_with_the_databases_reason(shard: Session):
    entry = ENTRY._replace(payload='["insert","t","é \U0001f600 \\\\ \'"]'.encode())

    with shard.transaction():
        marks.reject(shard, [Reject(entry, "t", "id 5", 1062, "Duplicate entry 'x'")])

    assert shard.query("SELECT op, reason, code, state FROM pipeline_rejects") == [
        (entry.payload.decode(), "Duplicate entry 'x'", 1062, "rejected")
    ]
    assert inquiry.refused(shard, [(3, PRODUCER, 9), (3, PRODUCER, 10)]) == [("Duplicate entry 'x'", 1062)]
    assert inquiry.counts(shard) == {"rejected": 1, "lost": 0}


@both
def test_a_loss_recorded_twice_is_one(shard: Session):
    for _ in range(2):
        with shard.transaction():
            marks.lose(shard, [Loss(3, 7, 0, 5, 6), Loss(3, 0, PRODUCER, 2, 2)])
            marks.lose(shard, [])

    assert inquiry.counts(shard)["lost"] == 3


@both
def test_idempotency_keys_are_known_per_bucket_and_letter_by_letter(shard: Session):
    with shard.transaction():
        marks.keep_keys(shard, [(3, "Order 7"), (4, "it's")])

    with shard.transaction():
        found = marks.known_keys(shard, [(3, "Order 7"), (4, "it's"), (3, "order 7"), (4, "Order 7"), (3, "Order 7 ")])

    assert found == {(3, "Order 7"), (4, "it's")}


@both
def test_what_nobody_asks_for_any_more_is_forgotten_and_the_rest_kept(shard: Session):
    with shard.transaction():
        marks.remember(shard, {(3, 1): 1, (3, 2): 2})
        marks.keep_keys(shard, [(3, "k")])
        marks.keep_ids(shard, [(ENTRY, 5)])
        shard.execute("UPDATE pipeline_producers SET seen_ms = seen_ms - 100000 WHERE producer = 1")

    with shard.transaction():
        marks.forget(shard, 60)

    assert shard.query("SELECT producer FROM pipeline_producers") == [(2,)]
    assert inquiry.row_id(shard, 3, PRODUCER, 9) == 5
    assert shard.query("SELECT COUNT(*) FROM pipeline_idempotency") == [(1,)]


# inquiries --------------------------------------------------------------------------------------------------------


def fate(shard: Session, position: Position = ENTRY.position, seq: int = ENTRY.producer_seq) -> inquiry.Fate:
    return inquiry.fate(shard, 3, position, PRODUCER, seq)


@both
def test_the_fate_of_an_op_follows_watermark_producer_rejects_and_losses(shard: Session):
    assert fate(shard) == inquiry.Fate(START, "active", None, None, False, False)

    with shard.transaction():
        marks.move(shard, {3: Position(7, 5)})
        marks.remember(shard, {(3, PRODUCER): 9})
    assert fate(shard).reached(Position(7, 5), 9)
    assert not fate(shard, seq=10).reached(Position(7, 6), 10)

    with shard.transaction():
        marks.reject(shard, [Reject(ENTRY, "t", "5", None, "no")])
        marks.lose(shard, [Loss(3, 7, 0, 8, 9), Loss(3, 0, PRODUCER, 20, 22)])
    assert fate(shard).reject == ("rejected", "no", None)
    assert fate(shard, seq=21).lost
    assert not fate(shard, seq=23).lost
    gone = fate(shard, Position(7, 8), 9)
    assert (gone.lost, gone.gap, gone.reached(Position(7, 8), 9)) == (True, True, False)


@both
def test_without_its_producer_an_op_is_applied_only_if_its_own_epoch_was_passed(shard: Session):
    run_marks(shard, {3: Position(8, 5)})

    found = fate(shard)

    assert found.reached(Position(8, 5), 9)
    assert not found.reached(Position(8, 6), 9)
    assert not found.reached(Position(7, 0), 9)


@both
def test_an_epoch_is_above_all_that_were_ever_seen_or_given_and_at_least_the_time(shard: Session):
    run_marks(shard, {3: Position(50, 0)})

    assert inquiry.give_epoch(shard, "s0", 0, 0) == 51
    assert inquiry.give_epoch(shard, "s0", 0, 0) == 52
    assert inquiry.give_epoch(shard, "s0", 60, 0) == 61
    assert inquiry.give_epoch(shard, "*", 0, 0) == 62
    assert inquiry.give_epoch(shard, "s0", 0, 1000) == 1000
    assert inquiry.highest_epoch(shard) == 1000


@both
def test_definitions_are_kept_in_the_shard(shard: Session):
    inquiry.keep_schemas(shard, {"0123456789ab": ("t", '{"table":"t"}')})
    inquiry.keep_schemas(shard, {"0123456789ab": ("t", '{"table":"t"}')})

    assert inquiry.schema(shard, "0123456789ab") == '{"table":"t"}'
    assert inquiry.schema(shard, "ba9876543210") is None
