"""A shard's state has one word, which every screen shows."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.admin.observe.record import NodeRecord, Record, RedisRecord, ShardRecord
from pipeline.cli.status_screen import lines, screen, shards_table
from pipeline.model.wait_reason import KINDS, WaitReason
from pipeline.reads.health import NodeState
from workers.pipeline_tab import overview
from workers.pipeline_tab.acts import Seen

FINE = ShardRecord("s0", 0, 12, False, 40, 3, 1.0, rejected=0, parked=0, lost=0, nodes=(NodeRecord("s0", "primary"),))
WORDS = {
    "fine": FINE,
    "unknown": replace(FINE, why="no"),
    "late": replace(FINE, oldest_ms=5_001),
    "rejected ops": replace(FINE, rejected=1),
    "lost ops": replace(FINE, rejected=1, lost=1),
    "replica away": replace(FINE, nodes=(NodeRecord("s0-r0", state=NodeState.STALLED),), rejected=1),
    "paused": replace(FINE, waits=(WaitReason("paused", "s0", "s0"),)),
    "table paused": replace(FINE, waits=(WaitReason("paused", "s0", "event"),)),
    "table halted": replace(FINE, waits=(WaitReason("breaker", "s0", "event"),), rejected=50),
    "no worker": replace(FINE, waits=(WaitReason("early", "s0", "event"), WaitReason("no-worker", "s0", "s0"))),
}


def printed(table: object) -> str:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("word", WORDS)
def test_all_screens_show_the_same_word(word: str):
    shard = WORDS[word]
    found = Record(0, RedisRecord(0.3, 1), (shard,))
    seen = Seen(1, found, 0, {})

    told = [
        shard.state.word,
        found.as_json()["shards"][0]["state"],
        next(line for line in lines(found, 60) if line.startswith("shard="))
        .split()[1]
        .partition("=")[2]
        .replace("-", " "),
    ]

    assert told == [word] * 3
    for shown in (printed(screen(found, Console(width=80), 60)), printed(shards_table([shard], Console(), -1))):
        row = next(line for line in shown.splitlines() if line.split()[:1] == ["s0"])
        assert f" {word} " in row
    for html in (overview.overview(seen)["pl-0-state"], overview.shard_page(seen, "s0")["pl-cards"]):
        assert f">{word}</span>" in html


@pytest.mark.parametrize(
    ("scope", "kind", "word"),
    [("audit", "breaker", "table halted"), ("audit", "schema", "schema"), ("s0", "breaker", "paused")],
)
def test_a_table_that_somebody_has_paused_hides_nothing_that_is_wrong(scope: str, kind: str, word: str):
    waits = (WaitReason("paused", "s0", scope), WaitReason(kind, "s0", "event"))

    assert replace(FINE, waits=waits).state.word == word


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_is_too_long_for_eighty_columns(kind: str):
    shard = replace(
        FINE,
        depth=1_234_567,
        oldest_ms=5_000_000,
        rate=12_345.0,
        rejected=123_456,
        lost=123,
        waits=(WaitReason(kind, "s0", "event"),),
    )

    shown = printed(shards_table([shard], Console(), 0))

    assert f" {shard.state.word} " in shown
    assert "…" not in shown
