"""Write and judge a worker's sign of life: a local file, so that the judgement needs no server.

Times are of the machine's steady clock, which all its processes share and no correction moves.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from pipeline import clock
from pipeline.spool.private_files import OWN, SHARED, folder_fault

#: How long a worker may do nothing although there is something to do, s, unless the check says otherwise.
WITHIN_S = 60.0
#: A sign that is so old is of a process that was killed, s; the next worker of the host deletes it.
FORGOTTEN_S = 600.0
#: A sign has a few hundred bytes; what is larger is none.
_MOST_BYTES = 64_000


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
