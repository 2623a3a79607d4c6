"""Open the spool's files: never through a link, never a stranger's; and rescue what a removed or damaged file holds.

The folder says who shares a spool. Where its group may write, as web processes and workers of two users need it, so
may the group write each file; else only the owner may. Ops wait in there, and the secret that signs tokens.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from pipeline import clock
from pipeline.errors import SpoolUnavailable
from pipeline.events import Event
from pipeline.owners import user

#: A file's modes: its owner's alone, or shared with its group.
OWN, SHARED = 0o600, 0o660


def open_private(path: Path, spool: Path) -> int:
    """Open a file of a spool to read and write, make it where it is missing, and return its descriptor.

    Args:
        path: the file.
        spool: the spool's own file, for errors.

    Raises:
        SpoolUnavailable: somebody else may write the folder, or has made the file.
        OSError: it cannot be opened.
    """
    if fault := folder_fault(spool):
        raise SpoolUnavailable(spool, *fault)
    folder = os.stat(path.parent)
    mode = SHARED if folder.st_mode & stat.S_IWGRP else OWN
    try:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _planted(spool, path, "is a link, or no file") from error
        raise
    try:
        found = os.fstat(file)
        _refuse_file(path, found, folder, spool)
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(file, mode)  # whatever the umask of this process is
    except BaseException:
        os.close(file)
        raise
    return file


def refuse_planted(paths: list[Path], spool: Path) -> None:
    """Refuse what SQLite would follow or share: links, and files of somebody else.

    Args:
        paths: files that SQLite opens by their names; missing ones are no fault.
        spool: the spool's own file.

    Raises:
        SpoolUnavailable: one of them is such.
    """
    folder = os.stat(spool.parent)
    for path in paths:
        try:
            _refuse_file(path, os.lstat(path), folder, spool)
        except FileNotFoundError:
            continue


def folder_fault(spool: Path) -> tuple[str, str] | None:
    """Return why a folder is not safe for a spool, and the cure; None where it is.

    Args:
        spool: the spool's own file; its folder is there.
    """
    found, me = os.stat(spool.parent), os.geteuid()
    if found.st_mode & stat.S_IWOTH:
        return f"every user of this machine may write in {spool.parent}", _of_its_own(me)
    shared = bool(found.st_mode & stat.S_IWGRP)
    if me == 0 and found.st_uid != 0:
        owner = user(found.st_uid)
        return f"{spool.parent} is of {owner}, who could lead root astray", f"run this as {owner}: sudo -u, or su"
    if found.st_uid not in (0, me) and not (shared and found.st_gid in {os.getegid(), *os.getgroups()}):
        return f"{spool.parent} is of {user(found.st_uid)}, and this is {user(me)}", _of_its_own(me)
    return None


def _of_its_own(me: int) -> str:
    """Return the cure of a folder; a worker asks for faults once a second, and a name is read from a file each time."""
    return (
        f"give it a folder of its own: `install -d -m 0700 -o {_name(me)} /var/lib/pipeline` (-m 2770 and -g where a "
        'group shares it), and write [spool] path = "/var/lib/pipeline/pipeline.spool"'
    )


def _refuse_file(path: Path, found: os.stat_result, folder: os.stat_result, spool: Path) -> None:
    """Refuse what somebody put in the file's place."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _planted(spool, path, "is a link, or no file")
    if found.st_mode & stat.S_IWOTH:
        raise _planted(spool, path, "may be written by every user")
    if found.st_uid not in (0, os.geteuid(), folder.st_uid) and not folder.st_mode & stat.S_IWGRP:
        raise _planted(spool, path, f"is of {user(found.st_uid)}")


def _planted(spool: Path, path: Path, what: str) -> SpoolUnavailable:
    cure = "see who made it and take it away; let only the spool's users write in its folder"
    return SpoolUnavailable(spool, f"{path} {what}", cure)


def _name(number: int) -> str:
    return user(number).removeprefix("user ")


#: What SQLite writes beside the file, by the end of its name.
BESIDE = ("-wal", "-shm")
#: What a removed or damaged file has that nothing else has, by table. Its numbers are never given again.
_RESCUED = {
    "definitions": "hash, table_name, text, waits",
    "entries": "bucket, producer, seq, kept, sent, payload",
    "agreed": "one, text",
}
logger = logging.getLogger("pipeline.spool")


def moved_aside(path: Path) -> sqlite3.Connection:
    """Move a damaged file aside for good, and return a connection to it.

    Args:
        path: the file.
    """
    aside = f"{path}.damaged-{clock.wall_ms()}"
    for suffix in ("", *BESIDE):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    logger.error(Event("spool_damaged", path=path, moved_to=aside, text="a new one takes its place"))
    return sqlite3.connect(f"file:{quote(aside)}?mode=ro", uri=True, isolation_level=None)


def take_over(old: sqlite3.Connection, new: sqlite3.Connection, path: Path) -> None:
    """Take over what another file holds, as far as it can be read; close the connection to it.

    One process does, at once: later would double. To send an op again is harmless for as long as Redis or the shard
    know its number.

    Args:
        old: to the other file.
        new: to the file that takes its place.
        path: of that file.
    """
    taken = 0
    try:
        [own] = old.execute("PRAGMA user_version").fetchone()
        new.execute("BEGIN IMMEDIATE")
        if new.execute("INSERT OR IGNORE INTO rescued VALUES (?)", (own,)).rowcount:
            for table, columns in _RESCUED.items():
                for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY rowid"):
                    marks = ", ".join("?" * len(row))
                    sql = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
                    taken += new.execute(sql, row).rowcount
    except sqlite3.Error as error:
        logger.error(Event("spool_not_recovered", path=path, error=error, text="not all of the spool could be read"))
    finally:
        if new.in_transaction:
            new.execute("COMMIT")
        old.close()
    logger.warning(Event("spool_recovered", path=path, rows=taken))
