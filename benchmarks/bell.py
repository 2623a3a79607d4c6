"""Silence the pipeline's doorbell from outside, and lose what it rings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import redis
from kombu import Producer

#: Every bell key of the pipeline contains this word.
BELL_PATTERN = "*bell*"


def bell_keys(log: redis.Redis) -> list[bytes]:
    """Return the keys of all bells that are rung now."""
    return list(log.scan_iter(BELL_PATTERN, count=10_000))


def silence(log: redis.Redis) -> None:
    """Delete all bells, so that the next enqueue must ring."""
    keys = bell_keys(log)
    if keys:
        log.delete(*keys)


class LostPublishes:
    """Counts the Celery messages that were swallowed."""

    def __init__(self) -> None:
        self.count = 0

    def swallow(self, *_: Any, **__: Any) -> None:
        """Count a message in place of `Producer.publish`."""
        self.count += 1


@contextmanager
def losing_publishes() -> Iterator[LostPublishes]:
    """Lose every Celery message of this process: the bell counts as rung, but no worker receives the message."""
    lost = LostPublishes()
    with patch.object(Producer, "publish", lost.swallow):
        yield lost
