"""What an operator settles, and groups that two shards do in parts, as the judge of tests does them once more."""

from __future__ import annotations

from typing import Any

from support.oracle.ledger import Acknowledged, Apart, Settled, Side, replay

from pipeline.model import Position

#: Deeds of one bucket, in order: two keys' rows, a taken name, what waits behind it, and a name that is free again.
DEEDS: list[Any] = [
    ["insert", 1, "a", 11],
    ["insert", 2, "b", 21],
    ["insert", 1, "a", 12],
    ["group", ["bump", 1, 12, "x,"], ["bump", 2, 21, "x,"]],
    ["bump", 2, 21, "y,"],
    ["delete", 1, 11],
]
LEDGER = [Acknowledged(7, Position(1, n), 5, n, deed) for n, deed in enumerate(DEEDS)]
TAKEN, GROUP, LATER = (LEDGER[n].op for n in (2, 3, 4))


def settled(upto: int, *, drop: bool, side: Side | None = None) -> Settled:
    dropped = frozenset({TAKEN}) if drop else frozenset()
    return Settled(7, Position(1, upto), (TAKEN, GROUP) if side else (TAKEN, GROUP, LATER), dropped, side)


def traces(verdict: Any) -> dict[int, str]:
    return {id: row.trace for id, row in verdict.model.rows.items()}


def test_what_waits_behind_a_refused_op_waits_until_it_is_dropped():
    assert replay(LEDGER).parked == {GROUP, LATER}

    verdict = replay(LEDGER, settled=[settled(4, drop=True)])

    assert (verdict.refused, verdict.parked) == (set(), set())
    assert (verdict.dropped, verdict.replayed) == ({TAKEN}, {GROUP, LATER})
    assert traces(verdict) == {21: "x,y,"}


def test_a_replay_is_done_at_its_watermark_and_may_be_refused_again():
    again, done = (replay(LEDGER, settled=[settled(upto, drop=False)]) for upto in (4, 5))

    assert (again.refused, again.parked) == ({TAKEN}, {GROUP, LATER})
    assert (done.refused, done.replayed) == (set(), {TAKEN, GROUP, LATER})
    assert traces(done) == {12: "x,", 21: "x,y,"}


def test_of_a_group_each_shard_does_its_part_while_the_key_is_away():
    away = [Apart(7, 1, Position(1, 2))]

    verdict = replay(LEDGER, apart=away)

    assert (verdict.refused, verdict.parked) == ({TAKEN}, {GROUP})
    assert traces(verdict) == {21: "x,y,"}
    dropped = replay(LEDGER, apart=away, settled=[settled(5, drop=True, side=(1, True))])
    assert (dropped.replayed, dropped.parked, traces(dropped)) == ({GROUP}, set(), {21: "x,y,"})


def test_a_group_of_before_the_key_left_is_done_as_it_is():
    assert replay(LEDGER, apart=[Apart(7, 1, Position(1, 3))]).parked == {GROUP, LATER}


def test_a_buckets_part_may_wait_for_a_row_of_the_key_that_another_group_holds_there():
    """The bucket's shard says so: it depends on whether the shard knows the row to be the key's."""
    deeds = [
        ["insert", 2, "b", 21],
        ["insert", 1, "c", 13],
        ["insert", 2, "b", 22],
        ["group", ["bump", 1, 13, "x,"], ["bump", 2, 22, "x,"]],
        ["group", ["bump", 1, 13, "y,"], ["bump", 2, 21, "y,"]],
        ["bump", 1, 13, "z,"],
    ]
    ledger = [Acknowledged(7, Position(1, n), 5, n, deed) for n, deed in enumerate(deeds)]
    away, both = [Apart(7, 1, Position(1, 1))], (ledger[2].op, ledger[3].op, ledger[4].op)
    again = Settled(7, Position(1, 5), both, frozenset(), (1, False), frozenset(both))
    dropped = Settled(7, Position(1, 5), both, frozenset({both[0]}), (1, False))

    verdict = replay(ledger, apart=away, settled=[again, dropped])

    assert (verdict.replayed, verdict.parked, verdict.strange) == ({both[1], both[2]}, set(), set())
    assert verdict.echoes == {ledger[5].op}
    assert traces(verdict) == {13: "x,y,z,", 21: "y,"}


def test_what_is_settled_has_to_have_been_set_aside():
    strange = Settled(7, Position(1, 5), (LEDGER[0].op,), frozenset(), None)

    assert replay(LEDGER, settled=[strange]).strange == {LEDGER[0].op}
