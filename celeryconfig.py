"""Hold Celery's settings for the workers and Flower, each with its reason; `celery -A workers worker` finds them here.

The broker's own settings are shared with the web process that rings: `pipeline.oplog.doorbell`. The reasons come from
docs/notes/03-celery-on-redis.md.
"""

from __future__ import annotations

from pipeline.config import settings
from pipeline.oplog.doorbell import APPLY_TASK as _APPLY
from pipeline.oplog.doorbell import broker_settings as _broker_settings

_loaded = settings.load()
globals().update(_broker_settings(_loaded.redis.broker_url, _loaded.redis.prefix, _loaded.shards))

imports = ("workers.tasks",)
timezone = "UTC"

# delivery: a message is only a hint, so no worker may hold messages back
task_acks_late = True  # the broker delivers a killed worker's bell again
task_acks_on_failure = True  # the ops stay in the log; a failed bell need not be delivered again
task_acks_on_timeout = True
task_reject_on_worker_lost = False  # a message that kills its worker would loop for ever; the sweeper rings anyway
worker_prefetch_multiplier = 1  # with late acks: a worker holds no bell that it is not ringing
task_track_started = True
task_default_queue = next(iter(globals()["task_queues"])).name

# limits: a batch aims at 100 ms; one that takes a minute hangs
task_soft_time_limit = 60
task_time_limit = 75
worker_max_tasks_per_child = 10_000  # a fresh process now and then, which makes its own connections
worker_max_memory_per_child = 400_000  # KiB

# stopping: SIGTERM has the batch finish. No worker_soft_shutdown_timeout with REMAP_SIGTERM: Celery sleeps for all of
# it while a task is active, and a worker under load stays at its shard
worker_cancel_long_running_tasks_on_connection_loss = True  # its bell is rung again, and batches are exact anyway

# staying connected: retry Redis for ever
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# refused (OOM, READONLY, MISCONF, NOREPLICAS): reconnect; by default that ends the main process (celery#7946, #5716)
broker_channel_error_retry = True

# Flower: one readable task per batch
worker_send_task_events = True
task_send_sent_event = True
task_annotations = {_APPLY: {"resultrepr_maxsize": 512}}
