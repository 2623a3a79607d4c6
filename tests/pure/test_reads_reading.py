"""How far behind a replica is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import Position
from pipeline.reads.health import LagMeter, NodeState, NoResult, ProbeResult, Report
from pipeline.reads.health.prober import ShardHealth

NOW = 1_000_000


def result(
    now_ms: int, seq: int, written_ms: int, beat_ms: int = 0, *, takes_writes: bool | None = False, epoch: int = 9
) -> ProbeResult:
    return ProbeResult(now_ms, takes_writes, {1: Position(epoch, seq)}, written_ms, beat_ms)


def lag_ms(meter: LagMeter, replica: ProbeResult, at_s: float) -> float:
    horizon = meter.horizon_ms(replica)
    assert horizon is not None
    return meter.now_ms(at_s) - horizon


def test_a_replica_with_all_that_the_primary_has_does_not_lag_however_old_that_is() -> None:
    meter = LagMeter()
    meter.add("s0", result(NOW, seq=5, written_ms=NOW - 500_000), 100.0)

    assert lag_ms(meter, result(0, seq=5, written_ms=NOW - 500_000), 100.0) == 0


def test_a_replica_lags_since_the_last_look_at_the_primary_that_it_covers() -> None:
    meter = LagMeter()
    meter.add("s0", result(NOW, seq=5, written_ms=NOW - 500_000), 100.0)
    meter.add("s0", result(NOW + 1000, seq=6, written_ms=NOW + 999), 101.0)
    meter.add("s0", result(NOW + 2000, seq=6, written_ms=NOW + 999), 102.0)

    assert lag_ms(meter, result(0, seq=5, written_ms=NOW - 500_000), 102.0) == 2000


def test_while_writes_flow_the_newest_of_them_measures_the_lag_to_the_millisecond() -> None:
    meter = LagMeter()
    meter.add("s0", result(NOW, seq=5, written_ms=NOW), 100.0)
    meter.add("s0", result(NOW + 1000, seq=90, written_ms=NOW + 998), 101.0)

    assert lag_ms(meter, result(0, seq=80, written_ms=NOW + 950), 101.0) == 50


def test_a_stalled_replica_of_an_idle_primary_lags_more_with_every_heartbeat() -> None:
    meter = LagMeter()
    for second in range(10):
        beat_ms = NOW + 1000 * (second - 1)
        meter.add("s0", result(NOW + 1000 * second, 5, NOW - 9000, beat_ms), 100.0 + second)

    assert lag_ms(meter, result(0, 5, NOW - 9000, beat_ms=NOW + 1000), 109.0) == 7000


def test_another_clock_is_never_taken_for_the_primary_s() -> None:
    ahead_ms = NOW + 60_000
    meter = LagMeter()
    meter.add("s0", result(ahead_ms, seq=5, written_ms=ahead_ms - 10), 100.0)
    meter.add("s0-r0", result(NOW, seq=5, written_ms=ahead_ms - 10), 101.0)
    for second in range(1, 62):
        meter.add("s0-r0", result(NOW + 1000 * second, 5 + second, NOW + 1000 * second), 101.0 + second)

    stalled = result(0, seq=6, written_ms=ahead_ms - 10)

    assert lag_ms(meter, stalled, 162.0) == 60_000


def test_a_replica_of_which_nothing_is_proved_has_no_lag_at_all() -> None:
    assert LagMeter().horizon_ms(result(0, seq=5, written_ms=NOW)) is None


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.floats(0, 30))
def test_missing_looks_only_ever_add_to_the_lag(answers: list[bool], later_s: float) -> None:
    health = ShardHealth("s0", ["s0", "s0-r0"])
    last_good: int | None = None

    for second, answer in enumerate(answers):
        now_ms = NOW + 1000 * second
        primary = result(now_ms, second, now_ms, takes_writes=True)
        replica = result(0, second, now_ms) if answer else NoResult("silence")
        health.take({"s0": primary, "s0-r0": replica}, 100.0 + second)
        last_good = second if answer else last_good

    report = health.reports(100.0 + len(answers) - 1 + later_s)["s0-r0"]
    if last_good is None:
        assert report.lag_ms is None
    else:
        assert report.lag_ms == round(1000 * (len(answers) - 1 - last_good + later_s))
    assert (report.marks != {}) == answers[-1]


def test_a_replica_that_has_got_nothing_since_the_look_before_stands_still() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0", "s0-r1"])
    still = []

    for second in range(4):
        # r1 is three seconds behind but goes on; r0 stands still from the second look on
        health.take(
            {
                "s0": result(NOW + 1000 * second, 5 + second, NOW + 1000 * second, takes_writes=True),
                "s0-r0": result(0, 5 + min(second, 1), NOW + 1000 * min(second, 1)),
                "s0-r1": result(0, 2 + second, NOW + 1000 * (second - 3)),
            },
            100.0 + second,
        )
        reports = health.reports(100.0 + second)
        still.append((reports["s0-r0"].stalled, reports["s0-r1"].stalled))

    assert still == [(False, False), (False, False), (True, False), (True, False)]


def test_a_replica_that_was_stopped_soon_after_a_look_is_seen_at_the_next_one_and_a_slow_one_is_not() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0", "s0-r1"])

    for second, stopped_ms, slow_ms in ((0, 0, 0), (1, 300, 400)):
        health.take(
            {
                "s0": result(NOW + 1000 * second, 5 + 9 * second, NOW + 999 * second, takes_writes=True),
                "s0-r0": result(0, 5 + 2 * second, NOW + stopped_ms),
                "s0-r1": result(0, 5 + 3 * second, NOW + slow_ms),
            },
            100.0 + second,
        )

    reports = health.reports(101.0)
    assert (reports["s0-r0"].stalled, reports["s0-r1"].stalled) == (True, False)


def test_after_a_silence_of_the_primary_a_replica_is_not_blamed_for_what_nobody_saw() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0"])
    for second, primary in enumerate((True, False, True)):
        now_ms = NOW + 1000 * second
        look = result(now_ms, 5 + second, now_ms, takes_writes=True) if primary else NoResult("silence")
        health.take({"s0": look, "s0-r0": result(0, 5, NOW + 100 * second)}, 100.0 + second)

    assert not health.reports(102.0)["s0-r0"].stalled


def test_nobody_stands_still_while_the_primary_says_nothing() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0"])
    health.take({"s0": result(NOW, 5, NOW, takes_writes=True), "s0-r0": result(0, 5, NOW)}, 100.0)

    health.take({"s0": NoResult("silence"), "s0-r0": result(0, 5, NOW)}, 101.0)

    assert not health.reports(101.0)["s0-r0"].stalled


def test_a_promoted_replica_is_the_primary_and_is_measured_by_its_own_clock() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0", "s0-r1"])
    health.take(
        {
            "s0": result(NOW, 5, NOW, takes_writes=True),
            "s0-r0": result(0, 5, NOW),
            "s0-r1": result(0, 5, NOW),
        },
        100.0,
    )

    health.take(
        {
            "s0": NoResult("connection refused"),
            "s0-r0": result(7000, 6, 6999, takes_writes=True),
            "s0-r1": result(0, 5, NOW),
        },
        101.0,
    )

    reports = health.reports(101.0)
    assert health.primary == "s0-r0"
    assert reports["s0-r0"].lag_ms == 0
    assert reports["s0-r1"].lag_ms is None
    assert reports["s0"].takes_writes is None


def test_two_that_take_writes_do_not_move_the_primary() -> None:
    health = ShardHealth("s0", ["s0", "s0-r0", "s0-r1"])

    health.take(
        {
            "s0": NoResult("connection refused"),
            "s0-r0": result(0, 5, NOW, takes_writes=True),
            "s0-r1": result(0, 5, NOW, takes_writes=True),
        },
        100.0,
    )

    assert health.primary == "s0"


def test_a_report_is_published_in_the_fields_that_every_version_reads_and_its_time_is_the_readers_own() -> None:
    report = Report(40, True, None, "silence", {3: Position(9, 4)}, "it was away", stalled=True)

    text = report.to_json()

    assert json.loads(text) == {
        "lag_ms": 40,
        "out": True,
        "takes_writes": None,
        "why": "silence",
        "marks": {"3": [9, 4]},
        "unfit": "it was away",
        "still": True,
        "statement_bytes": 0,
        "holding": None,
    }
    assert Report.from_json(text) == report
    assert Report.from_json('{"out":true,"a later field":1}', 5.0) == Report(out=True, published_s=5.0)


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (Report(0), NodeState.IN),
        (Report(0, stalled=True), NodeState.STALLED),
        (Report(0, why="silence"), NodeState.NO_READING),
        (Report(), NodeState.NO_READING),
        (Report(0, out=True), NodeState.RECOVERING),
        (Report(0, out=True, stalled=True), NodeState.OUT),
        (Report(0, out=True, why="silence"), NodeState.OUT),
        (Report(0, unfit="away"), NodeState.UNFIT),
    ],
)
def test_a_report_says_what_readers_make_of_the_node(report: Report, state: NodeState) -> None:
    assert report.state is state
