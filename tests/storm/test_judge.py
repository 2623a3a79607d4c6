"""The judge of the storm sees each broken promise, and says nothing where all are kept."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from storm.deeds import ACKNOWLEDGED, IN_DOUBT, REFUSED, Deed, Sight
from storm.judge import BODIES, Rows, verdict
from storm.outcome import PROMISES

ROW = ("tally", 0, 7)


def bump(token: str, told: str = "applied", said: str = ACKNOWLEDGED) -> Deed:
    return Deed("bump", 0, token, [ROW], said, told=told)


def rows(trace: str, n: int | None = None, **bodies: dict[str, int]) -> Rows:
    count = len([token for token in trace.split(",") if token]) if n is None else n
    known = {name: Counter(bodies.get(name, {})) for name in (*BODIES, "country")}
    return Rows({7: (0, "shared", count, trace)}, known)


def broken(deeds: list[Deed], found: Rows, *, sights: Any = (), may_lose: bool = False, **more: Any) -> list[str]:
    caller = SimpleNamespace(
        name="c", durability="redis", deeds=deeds, sights=list(sights), surprises=[], families=[], **more
    )
    return [sentence.split(":")[0] for sentence in verdict([caller], found, may_lose=may_lose)]  # type: ignore[list-item]


def test_where_all_promises_are_kept_nothing_is_said() -> None:
    deeds = [bump("c.0,"), bump("c.1,", "lost"), bump("c.2,", "", IN_DOUBT), bump("c.3,", "", REFUSED), bump("c.4,")]

    assert broken(deeds, rows("c.0,c.2,c.4,"), may_lose=True) == []


@pytest.mark.parametrize(
    ("promise", "deeds", "found"),
    [
        ("lost unreported", [bump("c.0,")], rows("")),
        ("falsely lost", [bump("c.0,", "lost")], rows("c.0,")),
        ("doubled", [bump("c.0,")], rows("c.0,c.0,")),
        ("doubled", [bump("c.0,", "", IN_DOUBT)], rows("c.0,c.0,")),
        ("reordered", [bump("c.0,"), bump("c.1,")], rows("c.1,c.0,")),
        ("torn", [bump("c.0,")], rows("c.0,", n=2)),
        ("torn", [Deed("group", 0, "c.0,", [ROW, ("event", 0, "c.0,")], ACKNOWLEDGED, told="applied")], rows("c.0,")),
        ("refused, and done", [bump("c.0,", "", REFUSED)], rows("c.0,")),
        ("not recovered", [bump("c.0,", "queued")], rows("")),
        ("wrong", [Deed("upsert", 0, "c.0,", [("upserted", 0, "up")], ACKNOWLEDGED, told="applied")], rows("")),
    ],
)
def test_each_broken_promise_is_seen(promise: str, deeds: list[Deed], found: Rows) -> None:
    assert promise in broken(deeds, found, may_lose=True)
    assert promise in PROMISES


def test_a_loss_is_none_where_nothing_was_forgotten() -> None:
    assert broken([bump("c.0,", "lost")], rows("")) == ["lost"]


def test_an_op_of_a_reference_table_is_there_once_every_shard_has_it() -> None:
    country = Deed("country", 0, "c.0,", [("country", 0, "c.0,")], ACKNOWLEDGED, told="applied")

    assert broken([country], rows("", country={"c.0,": 0})) == ["lost unreported"]
    assert broken([country], rows("", country={"c.0,": 1})) == []


def test_a_read_that_lacks_ones_own_write_is_stale() -> None:
    own = bump("c.0,")

    assert broken([own], rows("c.0,"), sights=[Sight(own, "", False)]) == ["stale"]
    assert broken([own], rows("c.0,"), sights=[Sight(own, "c.0,", False)]) == []


def test_a_session_never_reads_what_is_older_than_it_has_read() -> None:
    own = bump("c.0,")
    sights = [Sight(own, "c.0,x.1,", True), Sight(own, "c.0,", True)]

    assert broken([own], rows("c.0,x.1,"), sights=sights) == ["stale"]
