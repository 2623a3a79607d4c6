"""What the prober sees on real replicas, and what every reader then knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.probing import REPLICAS, Shard, probing, shard, until
from support.proxy import Proxy

from pipeline import clock
from pipeline.log.redis_log import RedisLog
from pipeline.reads.policy import Candidate, choose
from pipeline.reads.prober import Duty, Prober
from pipeline.settings import load
from pipeline.shard.nodes import Nodes

pytestmark = pytest.mark.mariadb
BOUND_S = 1.5


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    with shard(tmp_path_factory.mktemp("health") / "cluster") as made:
        yield made


@pytest.fixture
def mended(one: Shard) -> Iterator[Shard]:
    """The shard under the eyes of a prober, all well; whatever a test breaks is mended after it."""
    with probing(one):
        one.healthy()
        yield one
        for name in ("s0", *REPLICAS):
            one.cluster.start(name)
        for name in REPLICAS:
            one.follow(name, one.port("s0"))


def chosen(one: Shard, bound_s: float = BOUND_S) -> str | None:
    views = {name: one.view(name) for name in REPLICAS}
    found = [Candidate(name, view.lag_s, view.out) for name, view in views.items()]
    choice = choose(
        found, max_lag_s=bound_s, token=False, on_stale="error", primary_allowed=lambda: False, jitter=lambda: 0.5
    )
    return choice.node


def test_a_stalled_link_is_seen_although_the_server_says_that_it_lags_zero_seconds(mended: Shard) -> None:
    with Proxy(mended.port("s0")) as link:
        mended.follow("s0-r1", link.port)
        mended.healthy()

        link.pause()

        until(lambda: mended.lag_s("s0-r1") > 2 * BOUND_S)
        assert mended.seconds_behind("s0-r1") == "0"
        assert mended.lag_s("s0-r0") < BOUND_S
        assert chosen(mended) == "s0-r0"
        assert not mended.view("s0-r1").out


def test_a_stopped_sql_thread_lets_the_lag_grow_and_a_started_one_ends_it(mended: Shard) -> None:
    mended.sql("s0-r0", "STOP SLAVE SQL_THREAD")

    until(lambda: mended.lag_s("s0-r0") > 2 * BOUND_S)
    assert chosen(mended) == "s0-r1"

    mended.sql("s0-r0", "START SLAVE")
    mended.healthy()


def test_a_written_row_that_has_not_come_is_lag_also_without_a_heartbeat(mended: Shard) -> None:
    mended.sql("s0-r0", "STOP SLAVE SQL_THREAD")
    mended.sql("s0", "UPDATE shop.pipeline_watermarks SET epoch = 1, seq = seq + 1, committed_ms = 1 WHERE bucket = 0")

    until(lambda: mended.view("s0-r1").marks.get(0) == mended.view("s0").marks.get(0) is not None)

    assert mended.view("s0-r0").marks.get(0) != mended.view("s0").marks.get(0)


def test_a_killed_replica_is_taken_out_and_comes_back_by_good_looks(mended: Shard) -> None:
    mended.cluster.kill("s0-r0")

    until(lambda: mended.view("s0-r0").out)
    assert mended.view("s0-r0").why
    assert mended.view("s0-r0").marks == {}
    assert chosen(mended) == "s0-r1"

    mended.cluster.start("s0-r0")
    mended.healthy("s0-r0")


def test_while_the_primary_is_away_nobody_is_called_fresh(mended: Shard) -> None:
    mended.cluster.kill("s0")

    until(lambda: chosen(mended) is None)
    assert mended.view("s0").primary is None
    assert all(not mended.view(name).out for name in REPLICAS)

    mended.cluster.start("s0")
    mended.healthy()
    assert mended.view("s0").primary is True


def test_a_stalled_node_delays_the_looks_at_no_other(mended: Shard) -> None:
    settings = load(mended.config)
    log = RedisLog(settings.redis.url, prefix="other")
    with Proxy(mended.port("s0-r1")) as way:
        text = mended.config.read_text().replace(f":{mended.port('s0-r1')}/", f":{way.port}/")
        (mended.config.parent / "run" / "stalled.toml").write_text(text)
        prober = Prober(Nodes(load(mended.config.parent / "run" / "stalled.toml")), ["s0"], log)
        prober.look()
        way.pause()

        for _ in range(3):
            started = clock.mono_s()
            prober.look()
            told = log.health()[1]
            assert '"why":""' in told["s0-r0"][1]
            assert '"why":""' not in told["s0-r1"][1]
            assert clock.mono_s() - started < 5

        way.resume()
        prober.close()
    log.close()


def test_the_age_of_what_was_told_is_added_to_the_lag(one: Shard) -> None:
    with probing(one):
        one.healthy()

    before = one.lag_s("s0-r0")

    until(lambda: one.lag_s("s0-r0") > before + 2)


def test_the_lease_moves_when_its_holder_dies_and_the_verdicts_move_with_it(one: Shard) -> None:
    settings = load(one.config)
    log = RedisLog(settings.redis.url, prefix="lease")
    told: list[list[str]] = []

    def engage(out: object) -> Prober:
        told.append(list(out))  # type: ignore[call-overload]
        return Prober(Nodes(settings), ["s0"], log, told[-1])

    dying, heir = Duty(log, engage), Duty(log, engage)
    dying.turn()
    log.publish_health({"s0-r1": '{"out":true}'}, 30_000)
    heir.turn()
    assert dying.held
    assert not heir.held

    until(lambda: heir.turn() >= 0 and heir.held)  # the other turns no more

    assert told == [[], ["s0-r1"]]
    dying.turn()
    assert not dying.held
    heir.end()
    dying.turn()
    assert dying.held
    dying.end()
    log.close()
