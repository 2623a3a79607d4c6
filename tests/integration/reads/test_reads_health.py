"""What the prober sees on real replicas, and what every reader then knows."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from click.testing import CliRunner
from support.servers.probing import REPLICAS, Shard, prober_of, probing, shard, until
from support.servers.proxy import Proxy

from pipeline import cli, clock
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health import IN_ROTATION, Report, beat
from pipeline.reads.health.prober import Duty, Prober
from pipeline.reads.routing import Bounds, Candidate, choose
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
    reports = {name: one.report(name) for name in REPLICAS}
    found = [Candidate(name, report.lag_s, report.state) for name, report in reports.items()]
    bounds = Bounds(bound_s, 0.0, "error")
    choice = choose(found, bounds, token=False, jitter=lambda: 0.5)
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
        assert mended.report("s0-r1").state in IN_ROTATION


def test_a_stopped_sql_thread_lets_the_lag_grow_and_a_started_one_ends_it(mended: Shard) -> None:
    mended.sql("s0-r0", "STOP SLAVE SQL_THREAD")

    until(lambda: mended.lag_s("s0-r0") > 2 * BOUND_S)
    assert chosen(mended) == "s0-r1"

    mended.sql("s0-r0", "START SLAVE")
    mended.healthy()


def test_a_written_row_that_has_not_come_is_lag_also_without_a_heartbeat(mended: Shard) -> None:
    mended.sql("s0-r0", "STOP SLAVE SQL_THREAD")
    mended.sql("s0", "UPDATE shop.pipeline_watermarks SET epoch = 1, seq = seq + 1, committed_ms = 1 WHERE bucket = 0")

    until(lambda: mended.report("s0-r1").marks.get(0) == mended.report("s0").marks.get(0) is not None)

    assert mended.report("s0-r0").marks.get(0) != mended.report("s0").marks.get(0)


def test_a_killed_replica_is_taken_out_and_comes_back_by_good_looks(mended: Shard) -> None:
    mended.cluster.kill("s0-r0")

    until(lambda: mended.report("s0-r0").out)
    assert mended.report("s0-r0").why
    assert mended.report("s0-r0").marks == {}
    assert chosen(mended) == "s0-r1"
    states = {replica["node"]: replica for replica in status(mended)["shards"][0]["nodes"]}
    assert states["s0-r0"]["state"] == "out"
    assert states["s0-r1"]["state"] == "in"
    assert states["s0-r1"]["reading_ms"] is not None
    assert states["s0-r1"]["age_ms"] is not None

    mended.cluster.start("s0-r0")
    mended.healthy("s0-r0")


def test_while_the_primary_is_away_nobody_is_called_fresh(mended: Shard) -> None:
    mended.cluster.kill("s0")

    until(lambda: chosen(mended) is None)
    assert mended.report("s0").takes_writes is None
    assert all(mended.report(name).state in IN_ROTATION for name in REPLICAS)

    mended.cluster.start("s0")
    mended.healthy()
    assert mended.report("s0").takes_writes is True


def test_a_stalled_node_delays_the_looks_at_no_other(mended: Shard) -> None:
    settings = load(mended.config)
    log = RedisLog(settings.redis.url, prefix="other")
    with Proxy(mended.port("s0-r1")) as way:
        text = mended.config.read_text().replace(f":{mended.port('s0-r1')}/", f":{way.port}/")
        (mended.config.parent / "run" / "stalled.toml").write_text(text)
        prober = Prober(Nodes(load(mended.config.parent / "run" / "stalled.toml")), ["s0"], log)
        prober.probe()
        way.pause()

        for _ in range(3):
            started = clock.mono_s()
            prober.probe()
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


def test_reads_of_all_processes_are_counted_by_node_and_reason_and_cost_no_round_trip_of_their_own(
    mended: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Client(mended.config)
    other.define_tables(mended.db)
    before = counted(mended)
    for client in (mended.client, other):
        client.health.report("s0-r0")
        with monkeypatch.context() as away:
            away.setattr(RedisLog, "tails", None)
            for _ in range(50):
                with client.read("tally", 1):
                    pass

    until(lambda: counted(mended) - before == 100)

    other.close()
    kinds = {(one["node"], one["kind"], one["reason"]) for one in status(mended)["reads"]}
    assert {("s0-r0", "replica", "fresh"), ("s0-r1", "replica", "fresh")} <= kinds
    assert len(kinds) <= 3 * 5 * 13


def test_what_a_process_counted_last_is_told_when_it_closes(mended: Shard) -> None:
    before = counted(mended)
    client = Client(mended.config)
    client.define_tables(mended.db)
    with client.read("tally", 1):
        pass

    client.close()

    assert counted(mended) - before == 1


def status(one: Shard) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(one.config)]).output
    )
    return found


def counted(one: Shard) -> int:
    """Return how many reads of all processes were counted."""
    return sum(one.client.log.reads().values())


def queries(one: Shard, node: str) -> int:
    """Return how often a node was looked at: each look is one statement over the watermarks and the heartbeat."""
    text = one.sql(node, "SELECT SUM(argument LIKE '%UNION ALL%pipeline_watermarks') FROM mysql.general_log")
    return int(text.split()[-1].replace("NULL", "0"))


def test_a_replica_is_looked_at_once_a_second_however_many_processes_read(mended: Shard) -> None:
    mended.sql("s0-r0", "SET GLOBAL log_output='TABLE'; TRUNCATE mysql.general_log; SET GLOBAL general_log=1")
    rivals = [prober_of(mended) for _ in range(3)]
    clients = [Client(mended.config) for _ in range(4)]
    started = clock.mono_s()
    for rival in rivals:
        rival.start()

    def read_until_seven_looks() -> bool:
        for client in clients:
            client.health.report("s0-r0")
        return queries(mended, "s0-r0") >= 7

    until(read_until_seven_looks)
    looks, elapsed_s = queries(mended, "s0-r0"), clock.mono_s() - started

    mended.sql("s0-r0", "SET GLOBAL general_log=0")
    for rival in rivals:
        rival.stop()
    for client in clients:
        client.close()
    assert looks <= elapsed_s + 2


@pytest.mark.parametrize("fault", ["stalled", "stopped", "frozen"])
def test_a_replica_that_stands_still_leaves_however_much_lag_is_allowed(mended: Shard, fault: str) -> None:
    with Proxy(mended.port("s0")) as link:
        mended.follow("s0-r1", link.port)
        mended.healthy()
        write_some(mended.client)
        until(lambda: chosen(mended, 60.0) is not None)

        if fault == "stalled":
            link.pause()
        elif fault == "stopped":
            mended.sql("s0-r1", "STOP SLAVE")
        else:
            mended.cluster.stop("s0-r1", signal.SIGSTOP)

        until(lambda: mended.report("s0-r1").stalled or mended.report("s0-r1").why != "")
        # it does not come back by the passing of time, though its lag is far below the bound
        served = {chosen(mended, 60.0) for _ in polls(3.0)}
        if fault == "frozen":
            mended.cluster.stop("s0-r1", signal.SIGCONT)
        assert "s0-r1" not in served
        assert "s0-r0" in served


def test_a_heart_beats_where_nothing_was_written_just_now_and_writes_nothing_where_ops_flow(
    mended: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.reads.health.NO_BEAT_MS", 600_000)
    session = mended.client.nodes.primary("s0")
    query = "SELECT beat_ms FROM pipeline_heartbeat"
    write_some(mended.client)
    mended.sql("s0", "UPDATE shop.pipeline_watermarks SET committed_ms = UNIX_TIMESTAMP(SYSDATE(6)) * 1000")
    [(before,)] = session.query(query)
    position = mended.sql("s0", "SELECT @@gtid_binlog_pos")

    beat(session)
    assert session.query(query) == [(before,)]
    assert mended.sql("s0", "SELECT @@gtid_binlog_pos") == position
    mended.sql("s0", "UPDATE shop.pipeline_watermarks SET committed_ms = committed_ms - 1200000")
    beat(session)

    assert session.query(query)[0][0] > before


def write_some(client: Client) -> None:
    client.enqueue_bulk_insert("tally", [{"owner": at, "n": 0} for at in range(8)])
    applier = Applier("s0", client.nodes.primary("s0"), client.log, client.settings.apply)
    until(lambda: applier.apply() is not None and not client.log.dirty("s0"))


def test_a_replica_of_which_three_looks_in_ten_time_out_changes_at_most_once_a_minute(mended: Shard) -> None:
    """A minute of looks is made as fast as they go: the judge counts looks, not seconds."""
    settings = load(mended.config)
    log = RedisLog(settings.redis.url, prefix="flapping")
    rng = random.Random(3)
    with Proxy(mended.port("s0-r1")) as way:
        text = mended.config.read_text().replace(f":{mended.port('s0-r1')}/", f":{way.port}/")
        (mended.config.parent / "run" / "flapping.toml").write_text(text)
        prober = Prober(Nodes(load(mended.config.parent / "run" / "flapping.toml")), ["s0"], log)

        def answers() -> bool:
            prober.probe()
            return not Report.from_json(log.health()[1]["s0-r1"][1]).why

        until(answers)  # the first look may take too long on a busy machine
        verdicts, failed = [], 0
        for _ in range(60):
            missing = rng.random() < 0.3
            failed += missing
            way.pause() if missing else way.resume()
            prober.probe()
            verdicts.append('"out":true' in log.health()[1]["s0-r1"][1])
        way.resume()
        prober.close()
    log.close()

    assert failed >= 8
    assert sum(one != other for one, other in pairwise(verdicts)) <= 1
