"""What the Pipeline tab shows: the worst first, what mends it, nothing unknown as zero, nothing unescaped."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pipeline.admin.observe.moves import MoveRecord
from pipeline.admin.observe.published import History, Point, nothing_known
from pipeline.admin.observe.record import (
    BucketRecord,
    HostRecord,
    NodeRecord,
    Record,
    RedisRecord,
    ShardRecord,
    TableRecord,
)
from pipeline.config.settings import load
from pipeline.model.wait_reason import KINDS, WaitReason
from pipeline.reads.health import NodeState
from workers.pipeline_tab import overview
from workers.pipeline_tab.acts import Feed, Seen
from workers.pipeline_tab.cells import Curve, chart, sparkline

BAD = "<script>alert(1)</script>\"'&"
NODES = (
    NodeRecord("s0", "primary", NodeState.IN),
    NodeRecord("s0-r0", "replica", NodeState.IN, 0, 7, reads_share=0.9),
)
FINE = ShardRecord(
    "s0",
    1,
    depth=12,
    oldest_ms=40,
    rate=99.5,
    enqueue_rate=98.0,
    rejected=0,
    parked=0,
    lost=0,
    forged=0,
    given_up=0,
    nodes=NODES,
    owned=32,
)
REDIS = RedisRecord(0.2, 1 << 20)
POINTS = tuple(Point(n * 5000, n, None if n == 3 else n * 10, 5.0, 4.0, 0, 20) for n in range(20))


def seen(*shards: ShardRecord, redis: RedisRecord = REDIS, age_ms: int | None = 100) -> Seen:
    record = Record(1, redis, shards, fingerprint="abc", buckets=64)
    return Seen(1, record, age_ms, {shard.shard: History(POINTS, POINTS) for shard in shards})


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def cells(parts: dict[str, str]) -> list[str]:
    names = ("state", "depth", "oldest", "rate", "lag", "reads", "rejected", "lost")
    return [text(parts[f"pl-0-{name}"]) for name in names]


def test_where_nothing_is_wrong_it_says_so():
    parts = overview.overview(seen(FINE))

    assert text(parts["pl-faults"]) == "✓ Nothing is wrong."
    assert cells(parts) == ["fine", "12", "40 ms", "100", "7 ms", "90%", "0", "0"]
    assert text(parts["pl-fresh"]) == "live"


def test_what_is_unknown_is_never_shown_as_zero():
    parts = overview.overview(seen(ShardRecord("s0", queue_why="no", why="no"), redis=RedisRecord(why="no")))

    assert text(parts["pl-cards"]).count("unknown") == 6
    assert " 0" not in text(parts["pl-cards"])
    assert cells(parts) == [*["unknown"] * 4, "no replica", "–", "unknown", "unknown"]


def test_a_primary_that_is_away_is_told_once_with_what_becomes_of_its_ops_and_what_to_do():
    replica = NodeRecord("s0-r0", why="its primary does not answer, so its lag is unknown")
    away = ShardRecord("s0", depth=7, oldest_ms=40, why="OperationalError: refused", nodes=(NODES[0], replica))
    mend = "start its server, or promote a replica; then run: pipeline check"

    found = seen(away, replace(FINE, shard="s1"))

    told = f"The primary of s0 cannot be asked: its ops wait, and none is lost OperationalError: refused {mend}"
    assert text(overview.overview(found)["pl-faults"]) == told
    assert text(overview.shard_page(found, "s0")["pl-waits"]) == told


def test_a_deployment_of_which_nothing_is_known_says_why_once():
    record = nothing_known("no worker has published a record; run: celery -A workers worker", 1, ["s0", "s1"])

    parts = overview.overview(Seen(1, record, None, {}))

    assert text(parts["pl-faults"]) == "Nothing is known no worker has published a record celery -A workers worker"
    assert text(parts["pl-fresh"]) == "nothing is known"


def test_an_old_record_says_how_old_it_is_and_what_to_start_and_is_never_called_fine():
    found = seen(FINE, age_ms=90_000)
    found = found._replace(record=replace(found.record, at_ms=1_764_322_222_000))

    parts = overview.overview(found)

    assert text(parts["pl-fresh"]) == "90.0 s old: no worker publishes"
    assert text(parts["pl-faults"]) == (
        "No worker has said anything since 2025-11-28 09:30:22 UTC: all below is of then celery -A workers worker"
    )
    assert text(overview.shard_page(found, "s0")["pl-waits"]) == text(parts["pl-faults"])


def test_a_stopped_shard_has_the_sentence_and_the_command():
    wait = WaitReason("schema", "s0", "purchase", "Unknown column 'note'", 1_764_322_222_000, buckets=3)
    shard = replace(FINE, waits=(wait,), rejected=3, oldest_ms=80_000)

    parts = overview.overview(seen(shard))

    assert text(parts["pl-0-state"]) == "schema"
    faults = text(parts["pl-faults"])
    assert faults.index("3 ops were refused for good pipeline dead list") < faults.index("s0 is behind the schema")
    assert "have waited since 2025-11-28 09:30:22 UTC because" in faults
    assert "pipeline migrate" in faults
    assert "has waited 80 s, more than 60 s pipeline why s0 Open s0" in faults


def test_what_waits_on_many_shards_for_one_reason_is_told_once():
    waits = [WaitReason("paused", f"s{n}", "purchase", "by maria", 1_764_322_222_000 + n) for n in range(9)]

    parts = overview.overview(seen(*(replace(FINE, shard=one.shard, waits=(one,)) for one in waits)))

    faults = text(parts["pl-faults"])
    assert faults.count("purchase is paused") == 1
    assert "The same on 8 other shards: s1, s2, s3, s4, s5, … pipeline resume purchase" in faults
    assert text(parts["pl-0-state"]) == "table paused"


@pytest.mark.parametrize("kind", KINDS)
def test_what_mends_a_wait_stands_once_beside_what_waits(kind: str):
    wait = WaitReason(kind, "s0", "s0", "by maria", 1_764_322_222_000)

    waits = text(overview.shard_page(seen(replace(FINE, waits=(wait,))), "s0", read_only=True)["pl-waits"])

    assert waits == wait.sentence().replace(f"; {wait.command}", f" {wait.command.removeprefix('run: ')}")


def test_a_fault_that_many_shards_have_is_told_once_and_hides_no_other():
    shards = [replace(FINE, shard=f"s{n}", rejected=n, oldest_ms=60_001 + n) for n in range(64)]
    shards[40] = replace(shards[40], waits=(WaitReason("paused", "s40", "purchase", "by maria", 1),))

    faults = text(overview.overview(seen(*shards))["pl-faults"])

    assert faults.count("refused for good") == faults.count("has waited") == 1
    assert "s1: 1 op was refused for good The same on 62 other shards: s2, s3, s4, s5, s6, … pipeline dead" in faults
    assert "s0: the oldest op has waited 60 s, more than 60 s The same on 63 other shards: s1, s2," in faults
    assert "purchase is paused" in faults


def test_of_many_faults_some_are_named_and_the_others_counted():
    waits = tuple(WaitReason("breaker", "s0", f"table {n}", "1062", 1) for n in range(64))

    parts = overview.overview(seen(replace(FINE, waits=waits)))

    assert parts["pl-faults"].count("<li>") == 13
    assert text(parts["pl-faults"]).endswith("52 more pipeline status")


def test_a_replica_that_is_away_is_named_and_is_not_all_that_there_is():
    start = "start its server and its replication; then run: pipeline check"
    unfit = NodeRecord("s0-r0", "replica", NodeState.UNFIT, unfit="it is not like its primary")
    silent = NodeRecord("s0-r0", "replica", NodeState.OUT, why="connection refused", behind_since_ms=1_764_322_222_000)
    stalled = replace(silent, state=NodeState.STALLED, why="")

    said = []
    for node in (unfit, silent, stalled):
        found = seen(replace(FINE, nodes=(node,)))
        said.append(text(overview.overview(found)["pl-faults"]))
        assert text(overview.shard_page(found, "s0")["pl-waits"]) == said[-1]

    assert said == [
        "s0-r0 is unfit: reads go elsewhere it is not like its primary",
        f"s0-r0 has not answered since 2025-11-28 09:30:22 UTC: reads go elsewhere connection refused {start}",
        f"s0-r0 has been stalled since 2025-11-28 09:30:22 UTC: reads go elsewhere {start}",
    ]


def test_a_fault_has_a_link_to_the_page_with_its_buttons():
    waits = WaitReason("paused", "s 0", "s 0", "by maria", 1), WaitReason("schema", "s 0", "event", "no", 1)

    faults = overview.overview(seen(replace(FINE, shard="s 0", rejected=3, waits=waits)))["pl-faults"]

    page = "pipeline/shard/s%200"
    assert re.findall(r'href="([^"]+)">([^<]+)<', faults) == [
        ("pipeline/dead?shard=s%200", "See, replay or drop them"), (page, "Resume it on the page of s 0"),
        (page, "Open s 0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "value", "words"),
    [("s0", "shard:s0", "Resume s0"), ("event", "table:event", "Resume event on all shards")],
)
def test_what_is_stopped_has_a_button_beside_it_unless_flower_only_looks(scope: str, value: str, words: str):
    found = seen(replace(FINE, waits=(WaitReason("paused", "s0", scope, "by maria", 1),)))

    waits, seen_only = (overview.shard_page(found, "s0", read_only=only)["pl-waits"] for only in (False, True))

    assert f'form="pl-stop" name="resume" value="{value}">{words}</button>' in waits
    assert "<button" not in seen_only


def test_what_only_passes_stops_no_shard():
    assert replace(FINE, waits=(WaitReason("early", "s0", "event", "1:2-3"),)).state == ("fine", "good")


COPYING = MoveRecord("0-15,40", "s0", "s1", "copying", 1, "ann", 12_000, 100_000, 5_000.0, 18)
STILL = MoveRecord(
    "9", "s1", "s2", "stopping", 2, "ann", 7, still="no mover has been at it for 75 s", mend="start workers"
)


def test_moves_are_shown_with_a_bar_and_the_time_left_on_the_overview_and_on_their_shards():
    found = seen(FINE, replace(FINE, shard="s1"), replace(FINE, shard="s2"))
    found = found._replace(record=replace(found.record, moves=(STILL, COPYING)))

    parts = overview.overview(found)
    on_s0, on_s1 = (overview.shard_page(found, name)["pl-moves"] for name in ("s0", "s1"))

    assert 'max="100" value="12" aria-label="Rows of 0-15,40, copying"' in parts["pl-moves"]
    assert text(parts["pl-moves"]) == (
        "9 s1 → s2 stopping 7 – no mover has been at it for 75 s"
        " 0-15,40 s0 → s1 copying 12,000 of 100,000, 5,000 a second 18.0 s –"
    )
    assert "s1: the move of 9 to s2 stands still: no mover has been at it for 75 s start workers" in text(
        parts["pl-faults"]
    )
    assert "12 in 32 buckets" in text(overview.shard_page(found, "s0")["pl-cards"])
    assert text(on_s0).startswith("0-15,40 s0 → s1")
    assert text(on_s0) in text(on_s1)
    assert "9 s1 → s2" in text(on_s1)
    assert text(overview.shard_page(found, "s1")["pl-waits"]).startswith("the move of 9 to s2 stands still: no mover")
    assert text(overview.shard_page(found, "s0")["pl-waits"]) == "✓ Nothing waits."
    assert text(overview.overview(seen(FINE))["pl-moves"]) == "no bucket moves"


def test_of_many_moves_a_page_lists_some_and_counts_the_others():
    found = seen(FINE)
    found = found._replace(record=replace(found.record, moves=(COPYING,) * 50))

    assert text(overview.overview(found)["pl-moves"]).endswith("and 30 more: pipeline move list")


def test_no_text_from_outside_is_taken_for_html():
    wait = WaitReason("paused", "s0", BAD, BAD)
    node = NodeRecord(BAD, "replica", NodeState.OUT, unfit=BAD)
    shard = replace(
        FINE, shard=BAD, waits=(wait,), nodes=(node,), tables=(TableRecord(BAD, 1.0, 2, BAD),), why=BAD,
        buckets=(BucketRecord(1, 2),),
    )  # fmt: skip
    found = seen(shard, redis=RedisRecord(0.1, 1, BAD, strange=(BAD,)))
    move = MoveRecord(BAD, BAD, BAD, "copying", 1, BAD, 1, 2, text=BAD, still=BAD, mend=BAD)
    hosts = (HostRecord(BAD, BAD, 1, 2, 3, 4, BAD),)
    found = found._replace(record=replace(found.record, hosts=hosts, moves=(move,)))

    parts = overview.overview(found) | overview.shard_page(found, BAD) | overview.hosts(found)

    assert "<script" not in "".join(parts.values())
    assert 'alert(1)</script>"' not in "".join(parts.values())


def test_a_chart_has_a_gap_where_nothing_is_known():
    curve = Curve("oldest", 2, [point.oldest_ms for point in POINTS])

    drawn = chart([curve], [point.at_ms for point in POINTS], "Age", ["9", "4"])

    assert drawn.count("<polyline") == 2
    assert 'aria-label="Age: oldest, at most 9"' in drawn
    assert "nothing is recorded yet" in chart([], [], "Age", ["", ""])
    assert sparkline((None, None), "x").count("<polyline") == 0


def test_a_part_is_the_same_text_while_nothing_changes():
    assert overview.shard_page(seen(FINE), "s0") == overview.shard_page(seen(FINE), "s0")


def test_a_line_is_drawn_anew_once_it_has_a_further_point():
    def lines(points: tuple[Point, ...]) -> str:
        found = seen(replace(FINE, shard="drawn"))._replace(histories={"drawn": History(points, ())})
        return overview.overview(found)["pl-0-depths"]

    points = tuple(Point(n * 5000, n, n, 5.0, 4.0, 0, 20) for n in range(184))

    first, same, next_one = (lines(points[n : n + 180]) for n in (1, 2, 4))

    assert first == same
    assert next_one != first


@pytest.mark.parametrize(("shards", "every_s"), [(16, 1.0), (17, 2.0)])
def test_many_shards_are_read_every_other_second(monkeypatch: pytest.MonkeyPatch, shards: int, every_s: float):
    nodes = {f"s{n}": {"primary": f"sqlite://s{n}.sqlite"} for n in range(shards)}
    settings = load({"redis": {"url": "redis://127.0.0.1:1/0"}, "shards": nodes, "spool": {"enabled": False}})
    monkeypatch.setattr("workers.pipeline_tab.acts.load", lambda: settings)

    assert Feed().every_s == every_s
