"""How one read of one shard is routed, with nodes that are fakes of our own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from threading import Barrier, Thread, local
from typing import Any

import pytest
from support.sandbox.routing import BOUNDS, HAS, LACKS, NEEDS, S0, Deployment, lagging

from pipeline import clock
from pipeline.config.sections import Load
from pipeline.errors import ShardUnavailable, StaleRead
from pipeline.model import Position
from pipeline.reads import ReadSession, Token, reads
from pipeline.reads.health import Report
from pipeline.reads.read_place import ReadPlace
from pipeline.reads.routing import Bounds


@pytest.fixture
def there() -> Deployment:
    return Deployment()


def test_a_read_without_a_token_asks_no_node_and_goes_to_a_replica(there: Deployment) -> None:
    info = there.read()

    assert (info.role, info.stale, info.reason, info.waited_s) == ("replica", False, "fresh", 0.0)
    assert sum(reader.probes for reader in there.readers.values()) == 0


def test_of_two_replicas_the_one_that_has_the_token_serves_it(there: Deployment) -> None:
    there.readers["s0-r1"].marks_now = dict(HAS)

    assert there.read(NEEDS).node == "s0-r1"


def test_a_position_that_is_known_to_be_reached_costs_no_look(there: Deployment) -> None:
    there.readers["s0-r0"].known = dict(HAS)

    info = there.read(NEEDS)

    assert (info.node, info.reason) == ("s0-r0", "token-known")
    assert there.readers["s0-r0"].probes == 0


def test_the_probers_word_counts_only_if_the_connection_is_older_than_it(there: Deployment) -> None:
    there.published["s0-r0"] = lagging(0.1, marks=HAS)
    there.readers["s0-r1"].away = True

    there.readers["s0-r0"].age_s = 0.05
    asked = there.read(NEEDS)
    there.readers["s0-r0"].age_s = 0.5
    known = there.read(NEEDS)

    assert (asked.node, asked.reason) == ("s0", "token-not-reached")
    assert (known.node, known.reason) == ("s0-r0", "token-known")


def test_a_read_waits_for_a_replica_that_catches_up_in_time(there: Deployment) -> None:
    there.readers["s0-r0"].catches_up_after = 3

    info = there.read(NEEDS, BOUNDS.changed(wait_s=20))

    assert (info.node, info.role, info.reason) == ("s0-r0", "replica", "token-asked")
    assert there.busy() == 0


def test_when_no_replica_gets_it_in_time_the_primary_serves_within_its_limit(there: Deployment) -> None:
    with ExitStack() as running:
        served = [running.enter_context(there.router.open(S0, NEEDS, BOUNDS)).read_info.role for _ in range(2)]
        with pytest.raises(StaleRead) as caught:
            there.read(NEEDS)

    assert served == ["primary", "primary"]
    assert there.read(NEEDS).role == "primary"
    assert (caught.value.stage, caught.value.reason, caught.value.retryable) == ("replicating", "over-limit", True)


def test_what_is_still_queued_is_reported_as_queued_and_never_read_past(there: Deployment) -> None:
    there.readers["s0"].marks_now = dict(LACKS)

    with pytest.raises(StaleRead) as caught:
        there.read(NEEDS)

    assert caught.value.stage == "queued"
    assert there.reasons[-1][0] == "error"


def test_a_stale_answer_is_given_only_to_who_chose_it_and_is_marked(there: Deployment) -> None:
    info = there.read(NEEDS, Bounds(5.0, 0.01, "stale"))

    assert (info.role, info.stale) == ("replica", True)
    with pytest.raises(StaleRead, match=r"over-limit|token-not-reached"):
        there.read(NEEDS, Bounds(5.0, 0.01, "error"))


def test_a_stale_answer_of_the_primary_is_marked_too(there: Deployment) -> None:
    there.published = {}
    there.readers["s0"].marks_now = dict(LACKS)

    info = there.read(NEEDS, Bounds(5.0, 0.01, "stale"))

    assert (info.role, info.stale) == ("primary", True)


def test_lagging_replicas_send_reads_to_the_primary_up_to_its_limit_at_once(there: Deployment) -> None:
    there.published = {"s0-r0": lagging(9.0), "s0-r1": lagging(8.0)}

    assert {there.read().role for _ in range(10)} == {"primary"}  # one after the other
    with ExitStack() as running:
        infos = [running.enter_context(there.router.open(S0, {}, BOUNDS)).read_info for _ in range(3)]

    assert [(i.role, i.stale) for i in infos] == [("primary", False), ("primary", False), ("replica", True)]
    assert (infos[2].node, infos[2].lag_s, infos[2].reason) == ("s0-r1", pytest.approx(8.0, abs=1.0), "over-limit")


@pytest.mark.parametrize("needs", [{}, NEEDS])
@pytest.mark.parametrize(
    "report",
    [
        Report(out=True, why="it refuses"),
        Report(unfit="away"),
        Report(),
        lagging(60.0, stalled=True),  # stopped
        lagging(60.0, age_s=20),  # by a prober that is gone
    ],
)
def test_with_its_only_replica_gone_a_shard_serves_any_number_of_reads_from_its_primary(
    there: Deployment, report: Report, needs: dict[int, Any]
) -> None:
    there.published = {"s0-r0": report}

    assert together(there, needs) == {("s0", False): 32}


@pytest.mark.parametrize("needs", [{}, NEEDS])
def test_with_its_only_replica_not_answering_a_shard_serves_any_number_of_reads_from_its_primary(
    there: Deployment, needs: dict[int, Any]
) -> None:
    there.published = {"s0-r0": lagging(0.1)}
    there.readers["s0-r0"].away = True

    assert together(there, needs) == {("s0", False): 32}


AWAY = [
    lagging(60.0),  # nothing proves that it is nearer
    lagging(60.0, stalled=True),
    Report(),  # a process that has no report yet
    Report(lag_ms=60_000, out=True, published_s=0.0),  # it answers again
]


@pytest.mark.parametrize("report", AWAY)
def test_while_the_primary_cannot_be_reached_a_replica_serves_reads_without_a_token(
    there: Deployment, report: Report
) -> None:
    there.published = {"s0-r0": report, "s0-r1": Report(unfit="away")}
    there.readers["s0"].away = True

    infos = {there.read() for _ in range(5)}

    assert {(info.node, info.stale, info.reason) for info in infos} == {("s0-r0", True, "primary-away")}
    assert there.busy() == 0


@pytest.mark.parametrize("report", AWAY)
def test_while_the_primary_cannot_be_reached_a_token_is_served_by_the_replica_that_has_it(
    there: Deployment, report: Report
) -> None:
    there.published = {"s0-r0": lagging(50.0), "s0-r1": report}
    there.readers["s0"].away = True
    there.readers["s0-r1"].marks_now = dict(HAS)

    assert (there.read(NEEDS).node, there.read(NEEDS).reason) == ("s0-r1", "primary-away")

    there.readers["s0-r1"].marks_now = dict(LACKS)
    with pytest.raises(ShardUnavailable, match="s0"):
        there.read(NEEDS)
    assert there.busy() == 0


def test_while_the_primary_cannot_be_reached_no_unfit_replica_serves(there: Deployment) -> None:
    there.published = {"s0-r0": Report(unfit="away"), "s0-r1": Report(out=True, why="it refuses")}
    there.readers["s0"].away = True

    with pytest.raises(ShardUnavailable, match="s0"):
        there.read()


def test_a_read_that_wants_no_stale_answer_is_refused_while_the_primary_cannot_be_reached(there: Deployment) -> None:
    there.published = {"s0-r0": lagging(60.0)}
    there.readers["s0"].away = True

    with pytest.raises(StaleRead, match="all-lagging"):
        there.read(bounds=Bounds(5.0, 0.03, "error"))


def together(there: Deployment, needs: dict[int, Any]) -> Counter[tuple[str, bool]]:
    """Let 32 threads read, none of which ends before all have begun; count by node and whether it was stale."""
    all_in, served = Barrier(32), Counter[tuple[str, bool]]()

    def read() -> None:
        try:
            with there.router.open(S0, needs, BOUNDS) as db:
                served[db.read_info.node, db.read_info.stale] += 1
                all_in.wait(10)
        except StaleRead:
            served["refused", True] += 1
            all_in.wait(10)

    threads = [Thread(target=read) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return served


def test_a_replica_that_fails_is_left_alone_and_another_serves(there: Deployment) -> None:
    there.readers["s0-r0"].away = True

    nodes = {there.read().node for _ in range(5)}

    assert nodes == {"s0-r1"}


def test_with_all_nodes_away_the_error_names_one_and_the_primary_is_suspected(there: Deployment) -> None:
    for reader in there.readers.values():
        reader.away = True

    with pytest.raises(ShardUnavailable):
        there.read()

    assert there.suspected > 0


def test_a_failure_in_the_middle_of_a_read_keeps_the_next_read_off_that_node(there: Deployment) -> None:
    with pytest.raises(ShardUnavailable), there.router.open(S0, {}, BOUNDS) as db:
        raise ShardUnavailable(db.read_info.node, "it went away")

    assert there.read().node != db.read_info.node


def test_a_session_takes_up_what_the_node_has_after_the_answer(there: Deployment) -> None:
    session = ReadSession(Token(), None)
    there.readers["s0-r0"].marks_now = {3: Position(1, 9)}
    there.published = {"s0-r0": lagging(0.1)}

    with there.router.open(ReadPlace("s0", (3,)), {}, BOUNDS, session=session):
        there.readers["s0-r0"].marks_now = {3: Position(1, 12)}  # applied while the read ran

    assert session.token[3].position == Position(1, 12)


def test_a_replica_takes_no_more_reads_at_once_than_its_limit_and_then_again(
    there: Deployment,
) -> None:
    there.loads |= {"s0-r0": Load(limit=1), "s0-r1": Load(limit=2)}
    with ExitStack() as running:
        served = [running.enter_context(there.router.open(S0, {}, BOUNDS)).read_info for _ in range(4)]

    assert sorted(info.node for info in served[:3]) == ["s0-r0", "s0-r1", "s0-r1"]
    assert (served[3].node, served[3].reason) == ("s0", "all-busy")
    assert there.read().role == "replica"


def test_threads_that_choose_at_the_same_time_keep_to_the_limit_together(there: Deployment) -> None:
    there.loads |= {"s0-r0": Load(limit=1), "s0-r1": Load(limit=1)}
    all_in, served = Barrier(8), Counter[str]()
    chose = local()

    def choose_together() -> float:
        if not hasattr(chose, "once"):
            chose.once = all_in.wait(10)
        return 0.5

    there.router._jitter = choose_together

    def read() -> None:
        with there.router.open(S0, {}, BOUNDS) as db:
            served[db.read_info.node] += 1
            all_in.wait(10)

    threads = [Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert served == {"s0-r0": 1, "s0-r1": 1, "s0": 6}


def test_a_read_that_fails_to_open_frees_its_place(there: Deployment) -> None:
    there.loads |= {"s0-r0": Load(limit=1), "s0-r1": Load(limit=1)}
    there.readers["s0-r0"].away = there.readers["s0-r1"].away = True
    there.read()

    assert sum(there.router.in_flight().by_node.values()) == 0


def test_a_replica_of_no_weight_takes_no_read_and_a_shard_of_such_reads_from_its_primary(there: Deployment) -> None:
    there.loads |= {"s0-r0": Load(weight=0)}
    assert {there.read().node for _ in range(10)} == {"s0-r1"}

    there.loads |= {"s0-r1": Load(weight=0)}

    assert (there.read().node, there.read().reason) == ("s0", "no-replica")


@pytest.mark.parametrize("broken", ["it does not answer", "it is not known", "its reader fails", "its user fails"])
def test_a_read_on_the_primary_gives_its_place_back_however_it_ends(
    there: Deployment, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.published = {"s0-r0": lagging(60.0)}
    there.readers["s0-r0"].away = broken == "it does not answer"
    with monkeypatch.context() as patch:
        if broken == "it does not answer":
            patch.setattr(there.readers["s0"], "away", True)
        elif broken == "it is not known":
            patch.setattr(there, "primary_name", _second(there.primary_name, ShardUnavailable("s0", "on purpose")))
        elif broken == "its reader fails":
            patch.setattr(there.readers["s0"], "ready", _second(lambda: None, ValueError("on purpose"), at=1))
        with pytest.raises((ShardUnavailable, ValueError)), there.router.open(S0, {}, BOUNDS):
            raise ValueError("the user's own")

    assert there.busy() == 0
    assert there.read().role == "primary"


def _second(call: Callable[..., Any], error: Exception, at: int = 2) -> Callable[..., Any]:
    """Return *call*, which raises from one of its calls on."""
    calls = count(1)

    def called(*arguments: Any) -> Any:
        if next(calls) >= at:
            raise error
        return call(*arguments)

    return called


def test_a_read_goes_by_the_newest_news_and_by_the_lag_as_it_has_grown_since(there: Deployment) -> None:
    first = there.read().node
    there.published = {"s0-r0": lagging(0.1, stalled=first == "s0-r0"), "s0-r1": lagging(0.1, stalled=first != "s0-r0")}
    second = there.read().node
    there.published = {"s0-r0": lagging(4.99), "s0-r1": lagging(9.0)}

    roles = {there.read(bounds=Bounds(5.0, 0.0, "primary")).role for _ in clock.polls(0.1)}

    assert first != second
    assert roles == {"replica", "primary"}


def test_a_fork_begins_with_no_reads_running(there: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    there.loads |= {"s0-r0": Load(limit=1), "s0-r1": Load(limit=1)}
    with there.router.open(S0, {}, BOUNDS), there.router.open(S0, {}, BOUNDS):
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert there.read().role == "replica"

    assert set(there.router.in_flight().by_node.values()) == {0}


def failing(times: int, tries: list[int]) -> Any:
    def call() -> str:
        tries.append(1)
        if len(tries) <= times:
            raise ShardUnavailable("s0", "the connection had died")
        return "answer"

    return call


def test_a_read_outlives_dead_connections_to_all_nodes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "AT_ONCE_S", 60.0)
    tries: list[int] = []

    assert reads.tried_on(failing(3, tries)) == "answer"

    with pytest.raises(ShardUnavailable):
        reads.tried_on(failing(99, tries))
    assert len(tries) == 4 + reads.MOST_TRIES


def test_a_node_that_fails_slowly_costs_one_more_try_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "AT_ONCE_S", 0.0)
    tries: list[int] = []

    with pytest.raises(ShardUnavailable):
        reads.tried_on(failing(3, tries))

    assert len(tries) == 2


@pytest.mark.parametrize("source", ["the prober", "this thread", "an older prober"])
def test_a_read_that_must_see_what_is_set_aside_is_marked_whoever_knows_of_it(there: Deployment, source: str) -> None:
    replica = there.readers["s0-r0"]
    replica.aside, replica.age_s = True, 0.5
    if source == "this thread":
        replica.known, replica.here.holding = dict(HAS), {3}
    else:
        holding = None if source == "an older prober" else frozenset({3})
        there.published["s0-r0"] = lagging(0.1, marks=HAS, holding=holding)

    info = there.read(NEEDS)

    assert (info.node, info.stale, info.reason) == ("s0-r0", True, "set-aside")
    assert not there.read().stale
    replica.aside = False  # a refused op holds its row, and is not to come
    assert not there.read(NEEDS).stale


def test_a_session_keeps_what_was_set_aside_on_any_node(there: Deployment) -> None:
    marks = {3: Position(1, 10), 4: Position(1, 2)}
    reports = {"s0": frozenset[int](), "s0-r0": frozenset({3}), "s0-r1": frozenset[int]()}
    for node, holding in reports.items():
        there.published[node] = lagging(0.1, marks=marks, holding=holding)

    assert there.router.passed("s0") == {4: Position(1, 2)}
