"""Stop the pool of a worker while a process has a task that the worker has not heard of yet."""

from __future__ import annotations

import subprocess
import sys

#: Less than what billiard waits by itself, s.
SOON_S = 25
#: What Celery does as a worker is stopped at such a moment.
STOP = """
import time
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop
import workers

hub = Hub()
set_event_loop(hub)
tasks = TaskPool(1, threads=False, app=Celery("stops"), initargs=(Celery("stops"), "stops@here"))
tasks.start()
tasks.register_with_event_loop(hub)
loop = hub.create_loop()
while not tasks.did_start_ok():
    next(loop)
sent = tasks.on_apply(time.sleep, (1,))
while sent._write_to is None:
    next(loop)
assert not sent._accepted
tasks.flush()
tasks.stop()
print("ended")
"""


def test_a_pool_ends_soon_with_a_task_under_way_that_nobody_has_heard_of() -> None:
    said = subprocess.run([sys.executable, "-c", STOP], check=True, capture_output=True, timeout=SOON_S)

    assert said.stdout == b"ended\n"
