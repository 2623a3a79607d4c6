"""Flower's settings: `celery -A workers flower --conf=deploy/flowerconfig.py`. The names are Flower's own."""

import os

#: Longest text in a cell of the task list; the whole value is on the task's own page in the log of the worker.
LONGEST_CELL = 200

#: `user:password`, several with commas. Flower would read the variable by itself, but takes an empty one for a login
#: with an empty name; unset or empty means no login here. Without a login Flower also refuses its API.
if os.environ.get("FLOWER_BASIC_AUTH"):
    basic_auth = os.environ["FLOWER_BASIC_AUTH"].split(",")

#: A task is a batch: its kwargs say which shard and how many ops, its result what became of them. The arguments are
#: empty and the id says nothing to a person, so neither is shown.
tasks_columns = "name,state,kwargs,result,received,started,runtime,worker,retries,exception"

#: "3 minutes ago" answers "is it moving?" at a glance.
natural_time = True

#: Flower keeps tasks in memory. 20,000 batches are hours of history; its default, 100,000, is some hundreds of MB.
max_tasks = 20_000

#: Workers that went away for good (a scaled-down container has a name of its own) leave the list after an hour.
purge_offline_workers = 3600

#: /metrics: a batch aims at 100 ms, so the buckets are dense around it and end at the hard time limit of a task, 120 s.
task_runtime_metric_buckets = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0]


def format_task(task):
    """Return the task with its long texts cut, so that a row of the list stays a row."""
    for name in ("args", "kwargs", "result", "exception"):
        text = getattr(task, name, None)
        if isinstance(text, str) and len(text) > LONGEST_CELL:
            setattr(task, name, text[: LONGEST_CELL - 1] + "…")
    return task
