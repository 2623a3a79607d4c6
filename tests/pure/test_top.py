"""`pipeline top`: what its keys do, and that each screen fits 80 columns and 24 lines, and needs no colour."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.admin.dead import AsideCount
from pipeline.admin.observe.moves import MoveRecord
from pipeline.admin.observe.record import NodeRecord, Record, RedisRecord, ShardRecord, TableRecord
from pipeline.cli.top import keys_in
from pipeline.cli.top.screens import Board, Order, Question, Sight, TopScreen, heard, pressed
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health import NodeState

REPLICA = NodeRecord("s0-r0", "replica", NodeState.IN, 123_456, 1_400, 40_000, 300, 812.0)
HALTED = WaitReason("breaker", "s0", "purchase", "Duplicate entry for key 'code'", 1_764_322_222_000)
S0 = ShardRecord(
    "s0", 0, 1_234_567, False, 184_000, 256, 12_345.0, rejected=17, lost=0,
    tables=(TableRecord("event", 102.0, 0), TableRecord("purchase", 0.0, 17, "halted")),
    nodes=(NodeRecord("s0", "primary", NodeState.IN, reads_per_s=3.0), REPLICA), waits=(HALTED,),
)  # fmt: skip
MOVES = (
    MoveRecord(
        "9", "s1", "s2", "stopping", 2, "ann", 7, still="no mover has been at it for 75 s", mend="start workers"
    ),
    MoveRecord("0-15,40", "s0", "s1", "copying", 1, "ann", 1_234_567, 12_345_678, 54_321.0, 204),
    MoveRecord("50", "s0", "s1", "waiting", 3, "ann", 10, text="42 s before rows of s0 are deleted"),
)
S1 = ShardRecord("s1", 0, 0, False, None, 0, 0.0, rejected=0, lost=0)
RECORD = Record(1_764_322_222_000, RedisRecord(0.31), (S0, S1), source="workers")
ASIDE = (AsideCount("s0", "purchase", "rejected", 1062, 17, 1_764_322_000_000),)
SEEN = Board(Sight(RECORD, 0.3, ASIDE))


def keys(board: Board, *names: str) -> tuple[Board, list[Order]]:
    orders = []
    for name in names:
        board, order = pressed(board, name)
        orders += [order] if order is not None else []
    return board, orders


def shown(board: Board, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        width=width, height=height, file=file, force_terminal=True, color_system=None, legacy_windows=False
    )
    console.print(TopScreen(board, max_age_s=60), end="")
    file.flush()
    return [line.rstrip() for line in file.buffer.getvalue().decode(encoding).splitlines()]  # type: ignore[attr-defined]


# keys ------------------------------------------------------------------------------------------------------------


def test_a_shard_is_selected_opened_and_left_again():
    board, _ = keys(SEEN, "down", "down", "enter")
    assert (board.opened, board.row) == ("s1", 0)

    board, _ = keys(board, "escape")
    assert (board.opened, board.row) == (None, 1)
    assert keys(board, "up", "up")[0].row == 0
    assert keys(SEEN, "q")[0].ended


@pytest.mark.parametrize(("key", "order"), [("p", Order("pause", "s0")), ("r", Order("resume", "s0"))])
def test_an_order_asks_first_and_any_key_but_y_is_a_no(key: str, order: Order):
    asked, orders = keys(SEEN, key)
    assert orders == []
    assert asked.question is not None
    assert asked.question.text.startswith(f"{order.verb} shard s0? ")

    assert keys(asked, "y")[1] == [order]
    refused, orders = keys(asked, "q")
    assert (orders, refused.question, refused.said, refused.ended) == ([], None, "nothing was done", False)


def test_on_a_shard_s_page_the_stopped_table_comes_first_and_is_what_the_order_is_about():
    board, orders = keys(SEEN, "enter", "down", "r", "y")

    assert board.tables == ["purchase", "event"]
    assert orders == [Order("resume", "s0", "purchase")]
    asked, _ = keys(SEEN, "enter", "down", "p")
    assert asked.question is not None
    assert "pause table purchase on all 2 shards?" in asked.question.text


def test_a_replay_is_counted_first_and_the_question_says_how_many():
    counting, orders = keys(SEEN, "x")
    assert orders == [Order("count", "s0")]
    assert counting.busy
    assert keys(counting, "p", "x")[1] == []
    assert not keys(counting, "q")[0].ended

    question = Question("replay 17 ops of s0?", Order("replay", "s0", ops={}))
    asked = heard(counting, SEEN.found, [question])
    answered, orders = keys(asked, "y")
    assert orders == [question.order]
    assert answered.busy

    going = heard(answered, SEEN.found, ["replaying: 3 applied, 0 refused again…"])
    assert going.busy
    done = heard(going, SEEN.found, ["17 replayed, 0 refused again, 0 still wait"])
    assert (done.busy, done.said) == (False, "17 replayed, 0 refused again, 0 still wait")


def test_before_the_first_look_keys_order_nothing():
    board, orders = keys(Board(), "down", "enter", "p", "x", "r", "")

    assert (board.opened, board.question, orders) == (None, None, [])
    assert "asking the servers" in "".join(shown(board))


def test_arrows_are_read_as_terminals_send_them():
    assert keys_in("\x1b[A\x1bOBj\x1b[1;5Ck\r") == ["up", "down", "down", "enter", "up", "enter"]
    assert keys_in("\x1b") == ["escape"]
    assert keys_in("qé") == ["q", "é"]


# screens ---------------------------------------------------------------------------------------------------------

QUESTION = Question(
    "replay 17 ops of s0, and 40 that wait behind? in order; refused ones stay set aside", Order("replay", "s0")
)
SCREENS = {
    "all": SEEN,
    "one": replace(SEEN, opened="s0", row=1),
    "asked": replace(SEEN, opened="s0", question=QUESTION),
    "said": replace(SEEN, said="17 replayed, 0 refused again, 0 still wait"),
    "many": Board(Sight(replace(RECORD, shards=tuple(replace(S0, shard=f"s{n}") for n in range(64)))), row=40),
    "many moving": Board(
        Sight(replace(RECORD, shards=tuple(replace(S0, shard=f"s{n}") for n in range(64)), moves=MOVES * 9))
    ),
    "moving": Board(Sight(replace(RECORD, moves=MOVES))),
    "one moving": Board(Sight(replace(RECORD, moves=MOVES)), opened="s1"),
    "unknown": Board(Sight(replace(RECORD, shards=(ShardRecord("s0", why="Can't connect " * 9),)), aside="no answer")),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_fits_and_ends_with_the_keys_or_the_question(name: str, width: int):
    found = shown(SCREENS[name], width)

    assert len(found) <= 24
    assert max(map(len, found)) <= width
    last = found[-1]
    assert last == "  y: yes   any other key: no" if name == "asked" else last.endswith("q end")


def test_without_colours_the_selected_row_its_state_and_an_old_record_are_seen():
    found = shown(replace(SEEN, row=1, found=replace_found(age_s=9.0)))

    assert any(line.startswith("  ▸ s1") and " fine " in line for line in found)
    assert any(line.startswith("    s0") and " halted " in line for line in found)
    assert "9 s old: a server is slow" in found[0]


def replace_found(age_s: float) -> Sight:
    return SEEN.found._replace(age_s=age_s)


def test_the_selected_shard_of_many_is_on_the_screen():
    found = shown(SCREENS["many"])

    assert any(line.startswith("  ▸ s40 ") for line in found)
    assert any(line.startswith("  shards ") and line.endswith(" of 64") for line in found)


def test_a_page_has_the_sentence_and_its_command_the_tables_the_nodes_and_what_is_set_aside():
    found = " ".join(line.strip() for line in shown(SCREENS["one"], 120, 40))

    for words in (
        "run: pipeline resume purchase",
        "▸ purchase halted",
        "s0-r0 replica in",
        "purchase rejected 1062 17",
    ):
        assert words in " ".join(found.split()), words


def test_moves_are_shown_and_on_the_page_of_a_shard_its_own():
    everywhere, on_s0 = (
        [line.split() for line in shown(Board(Sight(replace(RECORD, moves=MOVES)), opened=name), 100, 40)]
        for name in (None, "s0")
    )
    copying = ["0-15,40", "s0", "s1", "copying", "1,234,567", "12,345,678", "54,321", "3", "min"]
    stopping = ["9", "s1", "s2", "stopping", "7", "-", "-", "-"]

    assert copying in everywhere
    assert stopping in everywhere
    assert ["50:", "42", "s", "before", "rows", "of", "s0", "are", "deleted"] in on_s0
    assert copying in on_s0
    assert stopping not in on_s0
    assert any("stands still: no mover has been at it for 75 s" in " ".join(line) for line in everywhere)
    assert not any("stands still" in " ".join(line) for line in on_s0)


def test_a_terminal_without_utf8_gets_ascii():
    found = shown(replace(SEEN, opened="s0", said="counting…"), encoding="ascii")

    assert any(line.startswith("  > s0") for line in found)
    assert found[-1].startswith("  up/down select")
