"""Judge whether Flower answers, and receives the events of workers: its own page says OK also without them."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from pipeline import clock
from pipeline.config.settings import Settings
from pipeline.errors import LogUnavailable
from pipeline.oplog.doorbell import Bell
from pipeline.oplog.groups import log_of

#: How long Flower may take for its page, s.
ANSWER_S = 3.0
#: What was heard so long ago is old, s: each worker says something every two seconds.
HEARD_S = 30.0
#: How long a Flower that has heard nothing of late is watched, s: it may have just started.
WATCH_S = 6.0


def judge_flower(settings: Settings, url: str, watch_s: float = WATCH_S) -> tuple[bool, str]:
    """Return whether all is well, and the sentence that says so.

    Args:
        settings: name Redis, which knows whether a worker runs.
        url: of Flower, with its prefix, if it has one.
        watch_s: how long it is watched where it has heard nothing of late, seconds.
    """
    try:
        for _ in clock.polls(watch_s, first_s=0.2, most_s=1.0):
            heard_s = _heard_s(url)
            if heard_s is not None and heard_s <= HEARD_S:
                return True, "Flower answers, and hears its workers"
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return False, f"Flower does not answer at {url}: {reason}"
    runs = _worker_runs(settings)
    if runs is None:
        return True, "Flower answers; Redis does not, so there is nothing to hear"
    if not runs:
        return True, "Flower answers; no worker runs that it could hear"
    return False, f"Flower answers, but has heard nothing for {HEARD_S:g} s although a worker runs: restart Flower"


def _heard_s(url: str) -> float | None:
    """Return how long ago Flower heard a worker; None: never since it began."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/healthcheck", timeout=ANSWER_S) as page:
        found = re.search(rb"^heard_s=([0-9.]+)$", page.read(1000), re.MULTILINE)
    return float(found[1]) if found else None


def _worker_runs(settings: Settings) -> bool | None:
    """Return whether a worker gives a sign of life to Redis; None if Redis, or the broker, does not answer."""
    log = log_of(settings, read_s=1.0)
    broker = Bell(settings.redis.broker_url, settings.redis.prefix, settings.shards)
    try:
        if broker.waiting() is None:
            return None
        return any(log.waits(shard).alive for shard in settings.shards)
    except LogUnavailable:
        return None
    finally:
        log.close()
        broker.close()
