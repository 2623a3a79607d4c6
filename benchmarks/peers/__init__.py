"""List every peer, in the order of the table."""

from __future__ import annotations

from benchmarks.peer import Peer
from benchmarks.peers import celery_tasks, direct, dramatiq_actors, huey_tasks, ours, streams

#: What a peer keeps that has a task or a message per write: late acknowledgement where it has that.
_PER_WRITE = "at least once; no order"
_BY_HAND = "at least once; order by shard, with one consumer; no failover"
_PACKED = streams.consumers(packed=True)

PEERS: tuple[Peer, ...] = (
    Peer("pipeline", "pipeline", 1, ours.bulk, "once, in order, over failovers", typed=True),
    Peer("pipeline, one by one", "pipeline, one by one", 0.12, ours.one_by_one, "the same", typed=True),
    Peer("celery -c 1", "celery", 0.015, celery_tasks.workers(1), _PER_WRITE),
    Peer("celery -c 2", "celery", 0.015, celery_tasks.workers(2), _PER_WRITE),
    Peer("celery -c 4", "celery", 0.015, celery_tasks.workers(4), _PER_WRITE),
    Peer("celery 2 × -c 2", "celery", 0.015, celery_tasks.workers(2, nodes=2), _PER_WRITE),
    Peer("dramatiq 2 × 4", "dramatiq", 0.03, dramatiq_actors.workers(2, 4), _PER_WRITE),
    Peer("huey 2 processes", "huey", 0.02, huey_tasks.workers("process", 2), "at most once; no order"),
    Peer("huey 8 threads", "huey", 0.02, huey_tasks.workers("thread", 8), "at most once; no order"),
    Peer("pyDAL insert + commit", "pyDAL insert + commit", 0.03, direct.insert_and_commit, "the caller waits"),
    Peer("streams by hand", "streams by hand", 0.5, streams.consumers(packed=False), _BY_HAND, typed=True),
    Peer("streams by hand, packed", "streams by hand, packed", 1, _PACKED, _BY_HAND, typed=True),
    Peer("executemany", "executemany", 2, direct.executemany(), "the caller waits", typed=True),
    Peer("LOAD DATA", "LOAD DATA", 2, direct.load_data(), "the caller waits", typed=True),
)
