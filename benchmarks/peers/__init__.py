"""List every peer, in the order of the table."""

from __future__ import annotations

from benchmarks.peer import Peer
from benchmarks.peers import celery_tasks, direct, dramatiq_actors, huey_tasks, ours

PEERS: tuple[Peer, ...] = (
    Peer("pipeline", "pipeline", 1, ours.bulk, typed=True),
    Peer("pipeline, one by one", "pipeline, one by one", 0.12, ours.one_by_one, typed=True),
    Peer("celery -c 1", "celery", 0.015, celery_tasks.workers(1)),
    Peer("celery -c 2", "celery", 0.015, celery_tasks.workers(2)),
    Peer("celery -c 4", "celery", 0.015, celery_tasks.workers(4)),
    Peer("celery 2 × -c 2", "celery", 0.015, celery_tasks.workers(2, nodes=2)),
    Peer("dramatiq 2 × 4", "dramatiq", 0.03, dramatiq_actors.workers(2, 4)),
    Peer("huey 2 processes", "huey", 0.02, huey_tasks.workers("process", 2)),
    Peer("huey 8 threads", "huey", 0.02, huey_tasks.workers("thread", 8)),
    Peer("pyDAL insert + commit", "pyDAL insert + commit", 0.03, direct.insert_and_commit),
    Peer("executemany", "executemany", 2, direct.executemany, typed=True),
)
