"""Judge whether what a web host enqueues leaves it, and whether Flower answers and hears its workers."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from pipeline import clock
from pipeline.admin.observe.reached import ask_all
from pipeline.config.settings import Settings
from pipeline.errors import LogUnavailable, PipelineError, SpoolUnavailable
from pipeline.oplog.doorbell import Bell
from pipeline.oplog.groups import log_of
from pipeline.shard.session import brief
from pipeline.spool.private_files import folder_fault
from pipeline.spool.store import Spool

#: How long a spool is watched whose ops wait although all servers answer, s: drains are two seconds apart.
WATCH_S = 8.0


def judge_web(settings: Settings, watch_s: float = WATCH_S) -> tuple[bool, str]:
    """Return whether all is well, and the sentence that says so. Sends nothing, and makes no file.

    Args:
        settings: name Redis, the shards and the spool.
        watch_s: how long a spool is watched that does not move, seconds.
    """
    redis = _redis(settings)
    if not settings.spool.enabled:
        return True, f"{redis or 'Redis takes ops'}; there is no spool"
    path = Path(settings.spool.path)
    spool = Spool(path, settings.spool.max_mb * 1_000_000)
    try:
        if why := _unusable(path):
            raise SpoolUnavailable(path, why)
        found = spool.counts()
        if found.bytes >= settings.spool.max_mb * 1_000_000:
            why = f"holds {found.bytes / 1e6:.0f} MB of {settings.spool.max_mb}, and takes no more"
            return False, f"the spool {path} {why}: see pipeline spool drain"
        if not found.waiting:
            return True, f"{redis or 'Redis takes ops'}; the spool is ready and empty"
        waiting = f"{found.waiting:,} ops wait in the spool"
        if why := redis or _primaries(settings):
            return True, f"{waiting}: {why}"
        first = [one.id for one in spool.head()[:1]]
        for _ in clock.polls(watch_s, first_s=0.05, most_s=0.5):
            if [one.id for one in spool.head()[:1]] != first:
                return True, f"{waiting}, and they leave"
    except PipelineError as error:
        return False, str(error)
    finally:
        spool.close()
    return False, f"{waiting} although all servers answer, and none leaves: run: pipeline spool drain"


def _redis(settings: Settings) -> str:
    """Return why Redis takes no ops; empty where it does."""
    log = log_of(settings, read_s=1.0)
    try:
        full = log.full()
        return f"Redis lets nothing in ({full})" if full is not None else ""
    except LogUnavailable:
        return "Redis does not answer"
    finally:
        log.close()


def _primaries(settings: Settings) -> str:
    """Return which shard's primary does not answer: a drain may need it. Empty where all do."""
    found = ask_all({name: partial(_ask, name, shard.primary) for name, shard in settings.shards.items()})
    away = [name for name, told in found.items() if isinstance(told, PipelineError)]
    return f"the primary of {', '.join(away)} does not answer" if away else ""


def _ask(node: str, uri: str) -> int:
    with brief(node, uri) as session:
        return len(session.query("SELECT 1"))


def _unusable(path: Path) -> str:
    """Return why this process cannot use a spool; the file may be missing until the first op needs it."""
    if not path.parent.is_dir():
        return "its folder is missing"
    if fault := folder_fault(path):
        return "; ".join(fault)
    needed = path if path.exists() else path.parent
    return "" if os.access(needed, os.W_OK) else f"this process may not write {needed}"


#: How long Flower may take for its page, s.
ANSWER_S = 3.0
#: What was heard so long ago is old, s: each worker says something every two seconds.
HEARD_S = 30.0
#: How long a Flower that has heard nothing of late is watched, s: it may have just started.
FLOWER_WATCH_S = 6.0


def judge_flower(settings: Settings, url: str, watch_s: float = FLOWER_WATCH_S) -> tuple[bool, str]:
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
