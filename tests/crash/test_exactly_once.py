"""I2: whatever is killed, cut or sent twice, each op takes effect once. The model counts with `n = n + 1`."""

from __future__ import annotations

import pytest
from support.chance import SOAK
from support.oracle import nodes
from support.oracle.trial import Trial
from support.servers.proxy import Proxy

from pipeline.client import Client
from pipeline.clock import polls

pytestmark = pytest.mark.mariadb

#: What a worker child is killed before; see `Applier`.
STEPS = ("due", "lock", "read", "execute", "statement", "mark", "commit", "committed", "finish")
#: How long a killed worker may delay its buckets; the design says 3 s.
SOON_S = 15
#: What Celery writes about a killed child.
KILLED = "signal 9 (SIGKILL)"
#: MySQL's packet of a COMMIT: its length, its number, COM_QUERY.
COMMIT = b"\x07\x00\x00\x00\x03COMMIT"
#: With this begins what a small batch sends together.
SEEN = b"SELECT bucket, producer, seq FROM pipeline_producers"


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_leaves_each_op_applied_once(trial: Trial, step: str) -> None:
    rig = trial.rig
    with rig.frozen("worker-1"), rig.worker(PIPELINE_CRASH_AT=f"{step}:0.5") as fragile:
        load = trial.load()

        for _ in polls(60):
            rig.put_off_reconcile()
            trial.send(load, 25)
            rig.client.bell.flush()
            trial.settle(SOON_S)
            if rig.log_text(fragile).count(KILLED) >= 2 * SOAK:
                break
        assert rig.log_text(fragile).count(KILLED) >= 2 * SOAK
    trial.holds()


def test_an_op_that_stands_in_the_log_twice_is_applied_once(trial: Trial) -> None:
    rig = trial.rig
    sent = trial.send(trial.load(), 60 * SOAK)
    trial.settle()

    # what a producer does that cannot know what a new Redis has kept: it sends all of it again, in order
    for bucket in {one.bucket for one in sent}:
        log = rig.client.log.keys.log(bucket)
        wanted = {b"%d-%d" % one.position for one in sent}
        for id, fields in rig.redis.xrange(log):
            if id in wanted:
                rig.redis.xadd(log, fields, id=id.split(b"-")[0] + b"-*")
        rig.redis.zadd(rig.client.log.keys.dirty(rig.client.topology.shard_of(bucket)), {str(bucket): 0})
    rig.client.barrier("tally", 60)

    trial.holds()


@pytest.mark.parametrize("asked", [COMMIT, SEEN])
def test_what_a_server_has_done_is_not_done_again_though_its_answer_is_lost(trial: Trial, asked: bytes) -> None:
    rig = trial.rig
    with Proxy(rig.port("s0")) as s0, Proxy(rig.port("s1")) as s1:
        config = rig.config_through({rig.port("s0"): s0.port, rig.port("s1"): s1.port})
        with rig.frozen(), rig.worker(config):
            load = trial.load()
            for _ in range(6 * SOAK):
                for proxy in (s0, s1):
                    proxy.swallow_answers(asked, 1)
                trial.send(load, 40)
                trial.settle()

            trial.holds()

            assert s0.cuts + s1.cuts >= 6


def test_a_lost_answer_to_a_producer_neither_loses_nor_doubles_its_op(trial: Trial) -> None:
    rig = trial.rig
    with Proxy(rig.port("redis")) as proxy:
        client = Client(rig.config_through({rig.port("redis"): proxy.port}))
        client.define_tables(rig.db)
        load = trial.load(client)
        sent = trial.send(load, 10)
        for _ in range(20 * SOAK):
            proxy.swallow_answers(b"EVALSHA", 1)
            sent += trial.send(load, 5)
        client.close()

        trial.holds()

        assert proxy.cuts >= 20
        assert len({one.op for one in sent}) == len(sent)


def test_an_op_in_doubt_may_be_sent_again_under_its_idempotency_key(trial: Trial) -> None:
    rig = trial.rig
    with Proxy(rig.port("redis")) as proxy:
        client = Client(rig.config_through({rig.port("redis"): proxy.port}))
        client.define_tables(rig.db)
        load = trial.load(client, sure=True)
        trial.send(load, 10)
        for _ in range(15 * SOAK):
            # the client itself tries twice; a third and a fourth answer are lost to the caller's own retry
            proxy.swallow_answers(b"EVALSHA", trial.luck.choice((2, 3, 4)))
            trial.send(load, 3)
        client.close()

        trial.holds()

        assert proxy.cuts >= 30


def test_a_batch_that_waits_in_vain_for_a_lock_is_undone_whole_and_done_again(trial: Trial) -> None:
    rig, topology = trial.rig, trial.rig.client.topology
    trial.owners += [owner for owner in rig.owners(200) if topology.bucket_of("tally", owner) == 0]
    free, locked = trial.owners[:2], trial.owners[2:3]
    uri = rig.primaries[topology.shard_of(0)]
    bumps = trial.load(owners=locked, weights={"bump": 1})
    trial.send(bumps, 5)
    trial.settle()

    with nodes.locked_rows(uri, locked[0]):
        with rig.frozen():
            trial.send(trial.load(owners=free, weights={"insert": 1}), 20)
            trial.send(bumps, 20)
        first = nodes.await_waiters(uri)
        nodes.await_waiters(uri, but=first)

    assert trial.holds()["rejected"] == 0
