"""Judge whether a worker consumes, a web host's ops leave, and Flower hears: for service managers, not for people.

Judge whether a worker consumes, a web host's ops leave, and Flower hears: for service managers, not for people.
Nothing is red because Redis or a database is away: a restart of our process would mend neither.

Write and judge a worker's sign of life: a local file, so that the judgement needs no server.
Times are of the machine's steady clock, which all its processes share and no correction moves.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from pipeline import clock
from pipeline.admin.observe.readings import ask_all
from pipeline.config.settings import Settings
from pipeline.errors import LogUnavailable, PipelineError, SpoolUnavailable
from pipeline.oplog.doorbell import Bell
from pipeline.oplog.groups import log_of
from pipeline.shard import brief
from pipeline.spool import Spool
from pipeline.spool.turns import OWN, SHARED, folder_fault

#: How long a worker may do nothing although there is something to do, s, unless the check says otherwise.
WITHIN_S = 60.0
#: A sign that is so old is of a process that was killed, s; the next worker of the host deletes it.
FORGOTTEN_S = 600.0
#: A sign has a few hundred bytes; what is larger is none.
_MOST_BYTES = 64_000
#: How long a spool is watched whose ops wait although all servers answer, s: drains are two seconds apart.
WATCH_S = 8.0
#: How long Flower may take for its page, s.
ANSWER_S = 3.0
#: What was heard so long ago is old, s: each worker says something every two seconds.
HEARD_S = 30.0
#: How long a Flower that has heard nothing of late is watched, s: it may have just started.
FLOWER_WATCH_S = 6.0


class Beat(msgspec.Struct, frozen=True):
    """A thread of a worker.

    Attributes:
        alive: whether it runs.
        turn_s: when its last turn began or ended; None of threads whose turns may rightly take long.
    """

    alive: bool
    turn_s: float | None = None


class Sign(msgspec.Struct, frozen=True):
    """What a worker says of itself, once a second. Times are seconds of the machine's steady clock.

    Attributes:
        name: the worker's, as Flower shows it.
        shards: those whose doorbells it hears.
        at_s: when this was written.
        threads: by name.
        taken: doorbells that its pool has taken since it began.
        untaken_s: since when the pool has not taken a doorbell that was handed to it; None: it has taken all.
        unheard_s: since when doorbells wait in the broker while the pool has nothing to do; None: none waits, or the
            broker does not answer.
    """

    name: str
    pid: int
    shards: tuple[str, ...]
    at_s: float
    threads: dict[str, Beat]
    taken: int = 0
    untaken_s: float | None = None
    unheard_s: float | None = None
    version: int = 1


def sickness_of(sign: Sign, now_s: float, within_s: float = WITHIN_S) -> str:
    """Return why a worker does not consume, as a clause; empty where it does, or has nothing to do.

    Args:
        sign: what the worker says.
        now_s: the machine's steady clock.
        within_s: how long it may do nothing although there is something to do, seconds.
    """

    def long_ago(at_s: float | None) -> bool:
        return at_s is not None and abs(now_s - at_s) > within_s  # a clock that is behind was started anew

    def ago(at_s: float | None) -> str:
        known = at_s is not None and now_s >= at_s
        return f"for {now_s - (at_s or 0):.0f} s" if known else "since before this machine started"

    if long_ago(sign.at_s):
        return f"has given no sign of life {ago(sign.at_s)}, and gives one a second"
    if dead := [name for name, beat in sign.threads.items() if not beat.alive]:
        return f"has lost its thread {', '.join(dead)}"
    if late := [name for name, beat in sign.threads.items() if long_ago(beat.turn_s)]:
        return f"hangs in its thread {late[0]} {ago(sign.threads[late[0]].turn_s)}"
    if long_ago(sign.untaken_s):
        return f"has a pool that takes nothing: a doorbell has been handed to it {ago(sign.untaken_s)}"
    if long_ago(sign.unheard_s):
        return f"hears no doorbell: some have waited in the broker {ago(sign.unheard_s)}, and it does nothing"
    return ""


def write_sign(spool: str, sign: Sign) -> None:
    """Replace the worker's file beside the spool.

    Args:
        spool: the path of the spool's file.
        sign: what to write.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _path(spool, sign.pid)
    if fault := folder_fault(Path(spool)):
        raise PermissionError(f"{fault[0]}; {fault[1]}")
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    mode = SHARED if os.stat(path.parent).st_mode & 0o020 else OWN
    file = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.write(file, msgspec.json.encode(sign))
    finally:
        os.close(file)
    os.replace(new, path)


def forget_sign(spool: str, pid: int) -> None:
    """Delete the file of a worker that ends.

    Args:
        spool: the path of the spool's file.
        pid: of the worker.
    """
    with suppress(OSError):
        os.unlink(_path(spool, pid))


def forget_killed(spool: str) -> None:
    """Delete the files of workers that were killed long ago.

    Args:
        spool: the path of the spool's file.
    """
    for path, sign in _found(spool):
        if not 0 <= clock.mono_s() - sign.at_s <= FORGOTTEN_S or not _runs(sign.pid):
            with suppress(OSError):
                path.unlink()


def signs(spool: str) -> list[Sign]:
    """Return the signs of this host's workers, by name.

    Args:
        spool: the path of the spool's file.
    """
    return sorted((sign for _, sign in _found(spool)), key=lambda sign: (sign.name, sign.pid))


def judge_workers(found: Mapping[str, str], shard: str | None, spool: str) -> tuple[bool, str]:
    """Return whether all is well, and the sentence that says so.

    Args:
        found: by worker, why it does not consume; empty: it does.
        shard: what was asked for; None: all workers of the host.
        spool: the path of the spool's file.
    """
    sick = {name: why for name, why in found.items() if why}
    if sick:
        return False, "; ".join(f"worker {name} {why}" for name, why in sick.items())
    if not found:
        of = f" of shard {shard}" if shard else ""
        why = "none runs, or none may write there"
        return False, f"no worker{of} of this host gives a sign of life beside {spool}: {why}"
    if len(found) == 1:
        return True, f"worker {next(iter(found))} consumes or has nothing to do"
    return True, f"{len(found)} workers consume or have nothing to do"


def _path(spool: str, pid: int) -> Path:
    return Path(f"{spool}.worker-{socket.gethostname()}-{pid}")


def _found(spool: str) -> Iterator[tuple[Path, Sign]]:
    """Yield the files of this host's workers. Containers may share the folder; each has a host's name of its own."""
    base = Path(spool)
    start = f"{base.name}.worker-{socket.gethostname()}-"
    names = sorted(os.listdir(base.parent)) if base.parent.is_dir() else ()
    for name in names:
        if name.startswith(start) and name.removeprefix(start).isdigit() and (sign := _read(base.parent / name)):
            yield base.parent / name, sign


def _read(path: Path) -> Sign | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(file, _MOST_BYTES), type=Sign)
    except (OSError, msgspec.MsgspecError):
        return None
    finally:
        os.close(file)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
