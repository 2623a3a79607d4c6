"""When a worker is called sick: it does nothing although there is something to do, or has lost a part of itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.admin.health import Beat, Sign, judge_workers, sickness_of

NOW_S = 10_000.0
WELL = Sign(
    "s0.0@db0", 4711, ("s0",), NOW_S - 1, {"sweeper": Beat(True, NOW_S - 0.3), "chores-s0": Beat(True)}, taken=17
)


@pytest.mark.parametrize("sign", [
    WELL,
    replace(WELL, untaken_s=NOW_S - 59),  # handed over just now, as all day long
    replace(WELL, unheard_s=NOW_S - 59),
    replace(WELL, threads={"chores-s0": Beat(True, None)}),
    replace(WELL, threads={}),
    replace(WELL, at_s=NOW_S + 0.1, untaken_s=NOW_S + 0.2),  # written while it was read
])  # fmt: skip
def test_a_worker_that_consumes_or_has_nothing_to_do_is_well(sign: Sign):
    assert sickness_of(sign, NOW_S) == ""


@pytest.mark.parametrize(("sign", "why"), [
    (replace(WELL, at_s=NOW_S - 61), "has given no sign of life for 61 s, and gives one a second"),
    (replace(WELL, at_s=NOW_S + 99), "has given no sign of life since before this machine started"),
    (replace(WELL, threads={"sweeper": Beat(False, NOW_S)}), "has lost its thread sweeper"),
    (replace(WELL, threads={"chores-s0": Beat(False)}), "has lost its thread chores-s0"),
    (replace(WELL, threads={"prober": Beat(True, NOW_S - 61)}), "hangs in its thread prober for 61 s"),
    (replace(WELL, untaken_s=NOW_S - 61), "has a pool that takes nothing: a doorbell has been handed to it for 61 s"),
    (replace(WELL, unheard_s=NOW_S - 61), "hears no doorbell: some have waited in the broker for 61 s"),
])  # fmt: skip
def test_a_worker_that_does_not_consume_is_sick_and_it_is_said_why(sign: Sign, why: str):
    assert sickness_of(sign, NOW_S).startswith(why)


def test_the_time_that_it_may_do_nothing_is_the_operator_s():
    assert sickness_of(replace(WELL, untaken_s=NOW_S - 5), NOW_S, within_s=4)
    assert not sickness_of(replace(WELL, untaken_s=NOW_S - 5), NOW_S, within_s=6)


def test_the_sentence_names_the_sick_or_counts_the_well():
    assert judge_workers({"a": "", "b": ""}, None, "x.spool") == (True, "2 workers consume or have nothing to do")
    assert judge_workers({"a": "", "b": "hangs"}, None, "x.spool") == (False, "worker b hangs")
    well, sentence = judge_workers({}, "s0", "x.spool")
    assert not well
    assert sentence.startswith("no worker of shard s0 of this host gives a sign of life beside x.spool")
