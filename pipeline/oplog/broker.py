"""Celery's broker settings: one place for the web process that rings and for the workers that listen.

Each value has its reason; the traps behind them are in docs/notes/03-celery-on-redis.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.oplog.redis.connection import sentinel_parts

#: The task that drains a shard. Rung by name: the web process never imports the workers.
APPLY_TASK = "pipeline.apply"


def queue_of(shard: str) -> str:
    """Return the Celery queue of a shard, for `celery -A workers worker -Q shard.s0`."""
    return f"shard.{shard}"


def broker_settings(url: str, prefix: str, shards: Iterable[str]) -> dict[str, Any]:
    """Return the Celery settings that concern the broker."""
    from kombu import Queue

    broker_url, options = _broker_url(url)
    return {
        "broker_url": broker_url,
        "broker_transport_options": {
            **options,
            "global_keyprefix": f"{prefix}:celery:",
            # a killed worker's doorbell comes back after this; the sweeper has rung long before
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # one list per queue: no priorities, a quarter of the keys in every BRPOP
            "priority_steps": [0],
            # without it a publish on a dead connection hangs the web request for ever
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": "pipeline-celery",
        },
        "task_queues": [Queue(queue_of(shard), routing_key=queue_of(shard)) for shard in shards],
        # a mistyped shard queue fails loudly instead of collecting messages that nobody reads
        "task_create_missing_queues": False,
        # a web process must not wait: a failed ring costs at most a second, until the sweeper
        "task_publish_retry": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
    }


def _broker_url(url: str) -> tuple[str, dict[str, Any]]:
    if not url.startswith("sentinel://"):
        return url.replace("unix://", "redis+socket://", 1), {}
    hosts, master, login = sentinel_parts(url)
    password = f":{login['password']}@" if login.get("password") else ""
    urls = ";".join(f"sentinel://{password}{host}:{port}/{login['db']}" for host, port in hosts)
    return urls, {"master_name": master}
