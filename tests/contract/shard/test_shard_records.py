"""What a shard's database remembers: watermarks, producers, rejects and losses, and from them the fate of an op."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from support.sandbox.sessions import ENTRY, PRODUCER, both, mariadb, run

from pipeline.config.buckets import FIRST_PIECE
from pipeline.errors import ShardUnavailable
from pipeline.model import START, Op, Position, decode, encode
from pipeline.reads.health import probe
from pipeline.shard import NodeSession, records
from pipeline.shard.records import LostRange, Mark, Reject, ledger_queries, replays, set_aside

# watermarks -------------------------------------------------------------------------------------------------------


@both
def test_a_new_bucket_starts_before_every_position_and_is_not_reset_by_adding_it_again(shard: NodeSession):
    run_marks(shard, {3: Position(7, 5)})

    run(shard, ledger_queries.buckets_sql(shard.dialect, range(10)))

    found = ledger_queries.marks_of(shard)
    assert sorted(found) == list(range(10))
    assert found[3] == Mark(Position(7, 5), "active")
    assert found[4] == Mark(START, "active")


def run_marks(shard: NodeSession, positions: dict[int, Position]) -> None:
    with shard.transaction():
        records.move(shard, positions)


@both
def test_locked_watermarks_are_those_asked_for_up_to_a_limit(shard: NodeSession):
    run_marks(shard, {3: Position(7, 5), 5: Position(8, 0)})

    with shard.transaction():
        found = records.lock(shard, [3, 5, 99], 10)
        few = records.lock(shard, range(8), 3)

    assert found == {3: Mark(Position(7, 5), "active"), 5: Mark(Position(8, 0), "active")}
    assert len(few) == 3


@both
def test_the_watermarks_of_a_log_are_those_of_its_bucket_and_of_its_pieces(shard: NodeSession):
    pieces = {number + 3 * FIRST_PIECE: Position(7, number) for number in (2, 5)}
    run_marks(shard, pieces | {3: Position(8, 1)})

    with shard.transaction():
        found = records.marks(shard, {3, 5})
        none = records.marks(shard, set())

    assert {bucket: mark.position for bucket, mark in found.items()} == {
        3: Position(8, 1),
        5: START,
        5 + 3 * FIRST_PIECE: Position(7, 5),
    }
    assert none == {}


@mariadb
def test_a_worker_takes_what_another_does_not_hold_and_never_waits(shard: NodeSession, other: NodeSession):
    with shard.transaction():
        mine = records.lock(shard, [0, 1, 2], 10)
        with other.transaction():
            theirs = records.lock(other, range(8), 10)

    assert sorted(mine) == [0, 1, 2]
    assert sorted(theirs) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_on_sqlite_workers_take_turns(shard: NodeSession, other: NodeSession):
    with shard.transaction(), pytest.raises(ShardUnavailable, match="locked"), other.transaction():
        pass


@both
def test_a_producers_last_sequence_is_remembered_per_bucket(shard: NodeSession):
    with shard.transaction():
        records.remember(shard, {(3, PRODUCER): 9, (4, PRODUCER): 1})
        records.remember(shard, {(3, PRODUCER): 12})

    with shard.transaction():
        found = records.seen(shard, [(3, PRODUCER), (4, PRODUCER), (4, 5), (3, PRODUCER)])

    assert found == {(3, PRODUCER): 12, (4, PRODUCER): 1, (4, 5): 0}


@both
def test_a_reject_is_kept_whole_with_the_databases_reason(shard: NodeSession):
    entry = ENTRY._replace(payload='["insert","t","é \U0001f600 \\\\ \'"]'.encode())

    with shard.transaction():
        set_aside.set_aside(shard, [Reject(entry, "t", "id 5", 1062, "Duplicate entry 'x'")])

    [(op, *rest)] = shard.query("SELECT op, reason, code, state FROM pipeline_rejects")
    assert op.isascii()
    assert json.loads(op) == json.loads(entry.payload)
    assert rest == ["Duplicate entry 'x'", 1062, "rejected"]
    assert ledger_queries.aside(shard, [(3, PRODUCER, 9), (3, PRODUCER, 10)]) == [
        ("rejected", "Duplicate entry 'x'", 1062)
    ]
    assert ledger_queries.counts(shard) == {"rejected": 1, "parked": 0, "lost": 0, "forged": 0, "given_up": 0}


@both
@pytest.mark.parametrize("payload", [b"\xff\xfe\0", b'["insert", "t", "\xf0\x9f"]', b"", b"\xed\xa0\x80" * 500_000])
def test_bytes_that_are_no_text_are_kept_as_base64(shard: NodeSession, payload: bytes):
    with shard.transaction():
        set_aside.set_aside(shard, [Reject(ENTRY._replace(payload=payload), "?", "?", None, "no op")])

    [(op,)] = shard.query("SELECT op FROM pipeline_rejects")
    if payload:
        kept = json.loads(op)
        assert kept["bytes"] == len(payload)
        assert payload.startswith(b64decode(kept["base64"]))
        assert len(b64decode(kept["base64"])) >= min(len(payload), 600_000)
    else:
        assert op == ""


@both
def test_a_reject_whose_escapes_do_not_fit_is_kept_with_its_values(shard: NodeSession, monkeypatch: pytest.MonkeyPatch):
    payload = encode(Op("insert", "t", "h", 1, 5, (1,), ("\u4e2d" * 20_000,)))
    monkeypatch.setattr(shard, "statement_bytes", lambda: 90_000)

    with shard.transaction():
        set_aside.set_aside(shard, [Reject(ENTRY._replace(payload=payload), "t", "5", None, "no")])

    [(op,)] = shard.query("SELECT op FROM pipeline_rejects")
    assert op == payload.decode()


@both
def test_a_reject_with_odd_characters_in_its_names_is_recorded(shard: NodeSession):
    with shard.transaction():
        set_aside.set_aside(
            shard, [Reject(ENTRY, "t\0\ud83d", "\ud83d'", None, "it\0's \udc00 \U0001f600" + "\0" * 5000)]
        )

    [(table, row_key, reason)] = shard.query("SELECT table_name, row_key, reason FROM pipeline_rejects")
    assert (table, row_key) == ("t\\u0000\\ud83d", "\\ud83d'")
    assert reason.startswith("it\\u0000's \\udc00 \U0001f600\\u0000")
    assert len(reason) == 4000


@mariadb
def test_a_reject_with_an_emoji_is_recorded_over_a_connection_that_has_none(shard: NodeSession, uri: str):
    entry = ENTRY._replace(payload=encode(Op("insert", "t", "h", 1, 5, (1,), ("\U0001f600",))))
    old = NodeSession("s0", uri.replace("utf8mb4", "utf8"))

    with old.transaction():
        set_aside.set_aside(old, [Reject(entry, "t", "5", 1366, "Incorrect string value")])
    old.discard()

    [(op,)] = shard.query("SELECT op FROM pipeline_rejects")
    assert decode(op.encode()) == decode(entry.payload)


@both
def test_a_loss_recorded_twice_is_one(shard: NodeSession):
    for _ in range(2):
        with shard.transaction():
            records.lose(shard, [LostRange(3, 7, 0, 5, 6), LostRange(3, 0, PRODUCER, 2, 2)])
            records.lose(shard, [])

    assert ledger_queries.counts(shard)["lost"] == 3


@both
def test_idempotency_keys_are_known_per_bucket_and_letter_by_letter(shard: NodeSession):
    with shard.transaction():
        records.keep_keys(shard, [(3, "Order 7"), (4, "it's")])

    with shard.transaction():
        found = records.known_keys(
            shard, [(3, "Order 7"), (4, "it's"), (3, "order 7"), (4, "Order 7"), (3, "Order 7 ")]
        )

    assert found == {(3, "Order 7"), (4, "it's")}


@both
def test_keys_that_a_collation_finds_equal_are_kept_side_by_side(shard: NodeSession):
    keys = ["k", "k ", "K", "é", "e\u0301", "k\0", "\U0001f600", "\U0001f601", "x" * 190]
    scoped = [(3, Op("insert", "t", "h", 1, idempotency_key=key).scoped_key) for key in keys]

    with shard.transaction():
        records.keep_keys(shard, scoped[::2])
        records.keep_keys(shard, scoped[1:-1:2])

    with shard.transaction():
        assert records.known_keys(shard, scoped) == set(scoped)


@both
def test_what_nobody_asks_for_any_more_is_forgotten_and_the_rest_kept(shard: NodeSession):
    with shard.transaction():
        records.remember(shard, {(3, 1): 1, (3, 2): 2})
        records.keep_keys(shard, [(3, "k")])
        records.keep_ids(shard, [(ENTRY, 5)])
        shard.execute("UPDATE pipeline_producers SET seen_ms = seen_ms - 100000 WHERE producer = 1")

    with shard.transaction():
        records.forget_producers(shard, 60)

    assert shard.query("SELECT producer FROM pipeline_producers") == [(2,)]
    assert ledger_queries.row_id(shard, 3, PRODUCER, 9) == 5
    assert shard.query("SELECT COUNT(*) FROM pipeline_idempotency") == [(1,)]


# inquiries --------------------------------------------------------------------------------------------------------


def fate(shard: NodeSession, position: Position = ENTRY.position, seq: int = ENTRY.producer_seq) -> ledger_queries.Fate:
    return ledger_queries.fate(shard, 3, position, PRODUCER, seq)


@both
def test_the_fate_of_an_op_follows_watermark_producer_rejects_and_losses(shard: NodeSession):
    assert fate(shard) == ledger_queries.Fate(START, "active", None, None, False)

    with shard.transaction():
        records.move(shard, {3: Position(7, 5)})
        records.remember(shard, {(3, PRODUCER): 9})
    assert fate(shard).reached(Position(7, 5), 9)
    assert not fate(shard, seq=10).reached(Position(7, 6), 10)

    with shard.transaction():
        set_aside.set_aside(shard, [Reject(ENTRY, "t", "5", None, "no")])
        records.lose(
            shard, [LostRange(3, 7, 0, 8, 9), LostRange(3, 0, PRODUCER, 20, 22), LostRange(3, 0, PRODUCER, 5, 5)]
        )
    assert fate(shard).reject == ("rejected", "no", None)
    assert fate(shard, seq=21).lost
    assert not fate(shard, seq=23).lost
    elsewhere, missing, told = fate(shard, Position(7, 8), 9), fate(shard, Position(7, 8), 10), fate(shard, seq=5)
    assert elsewhere.reached(Position(7, 8), 9), "missing at its position, and applied at another"
    assert missing.lost
    assert not missing.reached(Position(7, 8), 10)
    assert told.lost
    assert not told.reached(Position(7, 5), 5), "what was told lost is final, however far its producer's sequence is"


@both
def test_without_its_producer_an_op_is_applied_only_if_its_own_epoch_was_passed(shard: NodeSession):
    run_marks(shard, {3: Position(8, 5)})

    found = fate(shard)

    assert found.reached(Position(8, 5), 9)
    assert not found.reached(Position(8, 6), 9)
    assert not found.reached(Position(7, 0), 9)


@both
def test_an_epoch_is_above_all_that_were_ever_seen_or_given_and_at_least_the_time(shard: NodeSession):
    run_marks(shard, {3: Position(50, 0)})

    assert ledger_queries.give_epoch(shard, "s0", 0, 0) == 51
    assert ledger_queries.give_epoch(shard, "s0", 0, 0) == 52
    assert ledger_queries.give_epoch(shard, "s0", 60, 0) == 61
    assert ledger_queries.give_epoch(shard, "*", 0, 0) == 62
    assert ledger_queries.give_epoch(shard, "s0", 0, 1000) == 1000
    assert ledger_queries.highest_epoch(shard) == 1000


@both
def test_definitions_are_kept_in_the_shard(shard: NodeSession):
    ledger_queries.keep_schemas(shard, {"0123456789ab": ("t", '{"table":"t"}')})
    ledger_queries.keep_schemas(shard, {"0123456789ab": ("t", '{"table":"t"}')})

    with shard.transaction():
        assert records.stored_schema(shard, "0123456789ab") == '{"table":"t"}'
        assert records.stored_schema(shard, "ba9876543210") is None


# rows that are held -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("others", [0, 200], ids=["of few", "of many"])
@pytest.mark.parametrize("more", [0, 300], ids=["", "where more are held"])
def test_a_held_row_is_told_by_bucket_and_key_with_the_first_op_that_holds_it(
    shard: NodeSession, others: int, more: int
):
    def aside(bucket: int, at: int, *keys: str) -> Reject:
        entry = ENTRY._replace(bucket=bucket, position=Position(7, at))
        return Reject(entry, "t", "5", None, "no", holds=frozenset(keys))

    with shard.transaction():
        set_aside.set_aside(shard, [aside(3, 9, "t 5", "t 6"), aside(3, 5, "t 5"), aside(4, 1, "T 5")])
        set_aside.set_aside(shard, [aside(3, 10 + n, f"other {n}") for n in range(more)])
        free = {(3, f"t {100 + n}") for n in range(others)}

        held = set_aside.holders(shard, {(3, "t 5"), (3, "t 6"), (3, "T 5"), (4, "t 5"), (4, "T 5"), (5, "t 5"), *free})

    assert held == {(3, "t 5"): Position(7, 5), (3, "t 6"): Position(7, 9), (4, "T 5"): Position(7, 1)}


@both
def test_more_ops_are_set_aside_at_once_than_one_statement_takes(shard: NodeSession):
    entries = [ENTRY._replace(position=Position(7, at), payload=b'["insert","t"]' + b" " * 900) for at in range(2500)]

    with shard.transaction():
        set_aside.set_aside(
            shard, [Reject(entry, "t", "5", None, "no", holds=frozenset(("t 5",))) for entry in entries]
        )

    assert shard.query("SELECT COUNT(*) FROM pipeline_rejects") == [(2500,)]
    assert shard.query("SELECT COUNT(*) FROM pipeline_held") == [(2500,)]


@both
def test_room_is_made_among_what_is_set_aside_the_settled_first_then_what_holds_no_row(shard: NodeSession):
    payload = json.dumps({"text": "x" * 50_000}).encode()
    ops = [ENTRY._replace(position=Position(7, seq), producer_seq=seq, payload=payload) for seq in range(6)]
    kept = [Reject(op, "t", "id 5", 1062, "Duplicate", holds=frozenset({"t 5"}) if n < 2 else frozenset())
            for n, op in enumerate(ops)]  # fmt: skip
    with shard.transaction():
        set_aside.set_aside(shard, [op._replace(state="parked") if n == 1 else op for n, op in enumerate(kept)])
    run(shard, "UPDATE pipeline_rejects SET state = 'replayed' WHERE seq = 5")
    sizes = "SELECT seq, state, LENGTH(op) > 1000 FROM pipeline_rejects ORDER BY seq"

    found = []
    for most_bytes in (260_000, 210_000, 0, 0):
        with shard.transaction():
            found.append(replays.bound_rejects(shard, most_bytes))
        found.append([(state, large) for _, state, large in shard.query(sizes)])

    whole, settled, gone = ("rejected", 1), ("replayed", 0), ("dropped", 0)
    held = [("rejected", 1), ("parked", 1)]
    assert found[:2] == [(1, 0), [*held, whole, whole, whole, settled]]
    assert found[2:4] == [(1, 1), [*held, gone, whole, whole, settled]]
    assert found[4:] == [(2, 2), [*held, gone, gone, gone, settled], (0, 0), [*held, gone, gone, gone, settled]]
    assert ledger_queries.counts(shard)["given_up"] == 3
    assert shard.query("SELECT reason FROM pipeline_rejects WHERE seq = 2")[0][0].endswith("rejects_mb: Duplicate")


@both
def test_a_table_of_what_is_set_aside_that_may_be_too_large_is_told_cheaply(shard: NodeSession):
    assert not replays.too_much(shard, 0)
    assert not replays.too_much(shard, 10**9) or shard.dialect.name == "sqlite"
    assert replays.too_much(shard, 1)


@both
def test_a_probe_says_how_large_a_statement_the_node_takes(shard: NodeSession):
    assert probe(shard).statement_bytes == shard.statement_bytes() > 500_000
