"""The bell of the pipeline, seen from outside: to silence it, and to lose what it rings."""

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
    """Take all bells away, so that the next enqueue must ring."""
    keys = bell_keys(log)
    if keys:
        log.delete(*keys)


class LostPublishes:
    """Counts the Celery messages that were swallowed."""

    def __init__(self) -> None:
        self.count = 0

    def swallow(self, *_: Any, **__: Any) -> None:
        """Stand in for `Producer.publish`."""
        self.count += 1


@contextmanager
def losing_publishes() -> Iterator[LostPublishes]:
    """Lose every Celery message of this process: the bell counts as rung, but nobody hears it."""
    lost = LostPublishes()
    with patch.object(Producer, "publish", lost.swallow):
        yield lost
