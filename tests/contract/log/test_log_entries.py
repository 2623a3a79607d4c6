"""What the logs hold, what of it is behind the watermarks, and the schemas that ops name."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.logs import EPOCH, S0, append, cut, entries, raise_to

from pipeline import clock
from pipeline.model import HEAD_BYTES, INSERT, START, Op, Position, encode, enqueued_ms
from pipeline.model.schema import Column, TableSchema
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, Line, Placed
from pipeline.oplog.redis.log import LAST_S, RedisLog
from pipeline.oplog.shared_state import NOTE_MS


def test_read_gives_what_is_behind_a_position_in_order_up_to_a_count_per_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"%d" % n for n in range(10)]), (4, 1, [b"x"]))

    found = log.read({3: Position(EPOCH, 1), 4: START, 5: START}, {3: 3, 4: 9, 5: 9})

    assert [entry.payload for entry in found[3]] == [b"2", b"3", b"4"]
    assert [entry.payload for entry in found[4]] == [b"x"]
    assert found[5] == []


def test_read_goes_on_into_the_next_epoch(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    raise_to(log, S0, EPOCH + 3)
    append(line, (3, 2, [b"b"]), epoch=EPOCH + 3)

    assert [e.payload for e in entries(log, 3, after=Position(EPOCH, 0))] == [b"b"]
    assert [e.payload for e in entries(log, 3, after=Position(EPOCH + 1, 5))] == [b"b"]
    assert entries(log, 3, after=Position(EPOCH + 3, 0)) == []


def test_heads_are_the_first_entries_behind_positions_and_tell_when_a_large_op_was_enqueued(log: Log, line: Line):
    small, large = (
        encode(Op(INSERT, "t", "0" * 64, 1_764_322_222_123.5, row, (1,), ("x" * size,)))
        for row, size in ((1, 9), (2, 100_000))
    )
    append(line, (3, 1, [small, small, large]), (4, 1, [large, small]))
    raise_to(log, S0, EPOCH + 1)
    append(line, (4, 3, [small, small]), epoch=EPOCH + 1)

    first = log.heads({3: Position(EPOCH, 0), 4: START, 5: START})
    next_ = log.heads({3: Position(EPOCH, 1), 4: Position(EPOCH, 1)})

    assert {b: (head.position, head.producer_seq) for b, head in first.items()} == {
        3: (Position(EPOCH, 1), 2),
        4: (Position(EPOCH, 0), 1),
    }
    assert {b: (head.position, head.producer_seq) for b, head in next_.items()} == {
        3: (Position(EPOCH, 2), 3),
        4: (Position(EPOCH + 1, 0), 3),
    }
    assert {first[3].producer, first[4].producer, next_[3].producer, next_[4].producer} == {entries(log, 3)[0].producer}
    assert first[3].payload == small
    assert first[4].payload == next_[3].payload == large[:HEAD_BYTES]
    assert {enqueued_ms(one.payload) for one in (*first.values(), *next_.values())} == {1_764_322_222_123.5}
    assert log.heads({}) == {}


def test_to_know_ends_and_heads_a_server_sends_no_large_op(log: Log, line: Line):
    if not isinstance(log, RedisLog):
        pytest.skip("only over one server it is known what it sends")
    large = encode(Op(INSERT, "t", "0" * 64, 1.0, 2, (1,), ("x" * 1_000_000,)))
    append(line, *((bucket, 1, [large]) for bucket in range(5)))
    raise_to(log, S0, EPOCH + 1)
    append(line, *((bucket, 2, [large]) for bucket in range(5)), epoch=EPOCH + 1)
    behind = dict.fromkeys(range(5), START)
    before = sent_bytes(log)

    assert log.queued(behind) == dict.fromkeys(range(5), 2)
    assert set(log.heads(behind)) == set(log.tails(range(5))) == set(range(5))

    assert sent_bytes(log) - before < 1_000_000


def test_logs_of_large_ops_are_counted_on_as_more_comes_and_goes(log: Log, line: Line):
    large = b"x" * 200_000
    append(line, (3, 1, [large, large]), (4, 1, [large]))
    assert log.queued({3: START, 4: START, 5: START}) == {3: 2, 4: 1, 5: 0}

    append(line, (3, 3, [b"a", large]), (5, 1, [large]))
    assert log.queued({3: START, 4: Position(EPOCH, 0), 5: START}) == {3: 4, 4: 0, 5: 1}

    raise_to(log, S0, EPOCH + 1)
    append(line, (3, 5, [large]), epoch=EPOCH + 1)
    log.trim({3: Position(EPOCH, 0)})
    assert log.queued({3: Position(EPOCH, 1), 4: START}) == {3: 3, 4: 1}
    assert log.tails([3, 4]) == {3: Position(EPOCH + 1, 0), 4: Position(EPOCH, 0)}


def test_a_log_of_large_ops_that_loses_its_end_is_counted_anew_after_half_a_minute(
    log: Log, line: Line, monkeypatch: pytest.MonkeyPatch
):
    append(line, (3, 1, [b"x" * 200_000] * 3))
    assert log.queued({3: START}) == {3: 3}

    cut(log, 3, keep=1)

    assert log.queued({3: START})[3] in (1, 3)
    assert log.tails([3]) == {3: Position(EPOCH, 0)}
    now_s = clock.mono_s()
    monkeypatch.setattr(clock, "mono_s", lambda: now_s + LAST_S)
    assert log.queued({3: START}) == {3: 1}


def test_a_server_reads_no_large_op_that_was_applied_to_say_that_none_is_behind_it(log: Log, line: Line):
    if not isinstance(log, RedisLog):
        pytest.skip("only over one server it is known what it reads")
    append(line, *((bucket, 1, [b"x" * 200_000]) for bucket in range(3)))
    done = dict.fromkeys(range(3), Position(EPOCH, 0))
    before = ends_read(log)

    assert log.finish("s0", done) == (False, 0)
    assert log.queued(done) == dict.fromkeys(range(3), 0)

    assert ends_read(log) == before


def test_a_finish_leaves_what_has_more_large_ops_behind_its_watermark(log: Log, line: Line):
    append(line, (3, 1, [b"x" * 200_000] * 2), (4, 1, [b"x" * 200_000]))

    assert log.finish("s0", {3: Position(EPOCH, 0), 4: Position(EPOCH, 0)})[1] == 1
    assert set(log.due("s0", 9)) == {3}
    assert log.finish("s0", {3: Position(EPOCH, 1)})[1] == 0


def test_ops_between_two_positions_are_counted_whether_or_not_they_were_deleted(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 300), (4, 1, [b"b"]))
    raise_to(log, S0, EPOCH + 1)
    append(line, (3, 301, [b"c"] * 300), epoch=EPOCH + 1)
    log.trim({3: Position(EPOCH + 1, 250)})
    before, end = Position(EPOCH, 299), Position(EPOCH + 1, 260)

    assert log.queued({3: before, 4: START}, {3: end}) == {3: 261, 4: 1}
    assert log.queued({3: Position(EPOCH + 1, 200)}, {3: end}) == {3: 60}
    assert log.queued({3: end}, {3: end}) == {3: 0}
    assert log.queued({3: START, 4: START}, {3: Position(EPOCH, 1), 4: Position(EPOCH, 0)}) == {3: 2, 4: 1}


def test_an_audit_reads_large_ops_of_one_log_at_a_time(log: Log, line: Line):
    large = b"x" * 200_000
    append(line, *((bucket, 1, [large]) for bucket in range(3)), *((bucket, 1, [b"x"]) for bucket in (3, 4, 5)))
    marks = {bucket: Position(EPOCH, 0) for bucket in range(6)}
    assert log.audit("s0", marks) == ""
    if type(log) is RedisLog:
        log._client.set(f"{log.keys.bigs}1", 10_000_000)
        log._client.set(f"{log.keys.bigs}2", 10_000_000)
        before = scripts_run(log)
        assert log.audit("s0", marks) == ""
        assert scripts_run(log) - before == 3

    assert log.audit("s0", {**marks, 2: Position(EPOCH, 1)}) == "forgot:2"


def scripts_run(log: RedisLog) -> int:
    found: Any = log._client.info("commandstats")
    return int(found["cmdstat_evalsha"]["calls"])


def ends_read(log: RedisLog) -> int:
    """Return how often the server was asked for the last entry of a log, which it reads for that."""
    found: Any = log._client.info("commandstats")
    return int(found.get("cmdstat_xrevrange", {"calls": 0})["calls"])


def sent_bytes(log: RedisLog) -> int:
    found: Any = log._client.info("stats")
    return int(found["total_net_output_bytes"])


def test_tails_are_the_last_positions_of_logs_that_have_entries(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))

    assert log.tails([3, 4]) == {3: Position(EPOCH, 1)}
    assert log.tails([]) == {}


def test_trim_deletes_nothing_beyond_the_position_and_at_most_a_hundred_too_few(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 500), (4, 1, [b"b"] * 500))

    trimmed = log.trim({3: Position(EPOCH, 399), 5: Position(EPOCH, 9)})

    left = [entry.position.seq for entry in entries(log, 3)]
    assert 300 <= trimmed <= 400
    assert left == list(range(trimmed, 500))
    assert len(entries(log, 4)) == 500


def test_trim_behind_a_mark_of_an_older_epoch_keeps_the_newer_one(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 300))
    raise_to(log, S0, EPOCH + 1)
    append(line, (3, 301, [b"b"] * 300), epoch=EPOCH + 1)

    log.trim({3: Position(EPOCH, 299)})

    left = [entry.position for entry in entries(log, 3) if entry.position.epoch == EPOCH + 1]
    assert left == [Position(EPOCH + 1, n) for n in range(300)]


def test_positions_go_on_densely_behind_what_was_trimmed(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 300))
    log.trim({3: Position(EPOCH, 299)})

    assert append(line, (3, 301, [b"b"])).placed == [Placed(APPENDED, Position(EPOCH, 300))]


def test_a_log_from_which_entries_were_deleted_is_trimmed_until_it_has_forgotten_that(log: Log, line: Line):
    append(line, (3, 1, [b"%d" % n for n in range(500)]))
    assert (log.trimmed(3), log.trimmed(4)) == (False, False)

    log.trim({3: Position(EPOCH, 499)})
    assert log.trimmed(3)

    cut(log, 3)
    assert not log.trimmed(3)


def test_a_fingerprint_is_noted_once_by_those_who_saw_the_same_before(log: Log):
    assert log.deployment() == ""

    assert log.note_deployment("", '{"a":1}')
    assert not log.note_deployment("", '{"b":1}')
    assert log.note_deployment('{"a":1}', '{"a":2}')

    assert log.deployment() == '{"a":2}'


def test_finish_publishes_watermarks_per_shard(log: Log):
    log.finish("s0", {3: Position(EPOCH, 4), 5: Position(EPOCH, 0)})
    log.finish("s0", {3: Position(EPOCH, 6)})

    assert log.marks("s0") == {3: Position(EPOCH, 6), 5: Position(EPOCH, 0)}
    assert log.mark("s0", 3) == Position(EPOCH, 6)
    assert log.mark("s0", 4) is None
    assert log.marks("s1") == {}


def test_the_mark_of_a_bucket_to_which_nothing_was_applied_is_below_every_position(log: Log):
    log.finish("s0", {3: START})

    mark = log.mark("s0", 3)

    assert mark is not None
    assert mark < Position(1, 0)


def test_notes_are_taken_once_a_minute_and_given_back_when_old_enough(log: Log):
    ten_minutes = 10 * NOTE_MS

    assert log.note_marks("s0", 1_000_000, "first", older_than_ms=ten_minutes) is None
    assert log.note_marks("s0", 1_000_000 + NOTE_MS - 1, "too soon", older_than_ms=ten_minutes) is None
    for minute in range(1, 10):
        assert log.note_marks("s0", 1_000_000 + minute * NOTE_MS, f"{minute}", older_than_ms=ten_minutes) is None

    assert log.note_marks("s0", 1_000_000 + 10 * NOTE_MS, "10", older_than_ms=ten_minutes) == "first"
    assert log.note_marks("s0", 1_000_000 + 11 * NOTE_MS, "11", older_than_ms=ten_minutes) == "1"
    assert log.note_marks("s1", 1_000_000 + 99 * NOTE_MS, "other", older_than_ms=ten_minutes) is None


def test_notes_do_not_pile_up_and_a_text_may_hold_blanks(log: Log):
    for minute in range(40):
        log.note_marks("s0", minute * NOTE_MS, f"note {minute}", older_than_ms=2 * NOTE_MS)

    assert log.note_marks("s0", 40 * NOTE_MS, "now", older_than_ms=2 * NOTE_MS) == "note 38"
    assert log.note_marks("s0", 41 * NOTE_MS, "now", older_than_ms=30 * NOTE_MS) is None


def published(name: str, *fields: str) -> tuple[str, str, str]:
    schema = TableSchema(name, (Column("id", "id"), *(Column(field, "integer") for field in fields)))
    return name, schema.hash, schema.to_json()


def test_schemas_are_found_by_hash_and_the_newest_by_table(log: Log):
    older, newer, other = published("purchase"), published("purchase", "é"), published("person")
    log.publish_schemas([older])
    log.publish_schemas([newer, other])
    log.publish_schemas([])

    assert {hash: log.schema(hash) for _, hash, _ in (older, newer)} == {hash: text for _, hash, text in (older, newer)}
    assert log.schema("h4") is None
    assert log.newest_schemas() == {"purchase": newer[2], "person": other[2]}


def test_a_schema_that_is_withdrawn_is_no_longer_the_newest_but_ops_that_name_it_are_understood(log: Log):
    purchase, person = published("purchase"), published("person")
    log.publish_schemas([purchase, person])

    log.withdraw_schema("purchase")
    log.withdraw_schema("nobody")

    assert log.newest_schemas() == {"person": person[2]}
    assert log.schema(purchase[1]) == purchase[2]


def test_there_are_no_schemas_at_first(log: Log):
    assert log.newest_schemas() == {}
