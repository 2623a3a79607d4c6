"""Configure the Celery worker of the peer "one task per write", with the settings that suit many small tasks best."""

from __future__ import annotations

from celery import Celery

from benchmarks.peers.purchases import insert, target
from benchmarks.rows import Row
from benchmarks.target import CELERY_DATABASE

app = Celery("celery_peer", broker=target.peer_url(CELERY_DATABASE), set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    # Shorter messages and fewer keys in each BRPOP.
    broker_transport_options={"priority_steps": [0], "body_encoding": None, "socket_timeout": 30},
)


@app.task(name="purchase.insert")
def insert_purchase(row: Row) -> None:
    """Write one row."""
    insert(row)
