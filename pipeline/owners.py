"""Say who else may write a path: anybody but root, this process's user, and the user who installed Python or the
pipeline.

A module is run as whoever imports it, and a file is believed by whoever reads it: who may write there, acts as its
reader.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: The members of these groups may become root anyway.
ROOT_GROUPS = ("root", "wheel", "sudo", "admin")
#: The folder that holds the packages `pipeline` and `workers`.
HOME = Path(__file__).resolve().parents[1]


def stranger(path: Path) -> str | None:
    """Return who else may write a path, or swap it for another; None if nobody may.

    Args:
        path: a folder or a file; of one that is missing, the folder in which it could be made.
    """
    here = path.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    above = {*here.parents, *here.resolve().parents}
    return _writer(here.stat()) or next(filter(None, (_swapper(folder) for folder in sorted(above))), None)


def unsafe_import() -> str | None:
    """Return where Python imports from although somebody else may put files there, and the cure; None: nowhere."""
    for place in dict.fromkeys(os.path.abspath(entry) for entry in sys.path):
        if who := stranger(Path(place)):
            return (
                f"Python imports from {place}, where {who} may put modules, which would run as {user(os.geteuid())}: "
                "set PYTHONSAFEPATH=1 and WorkingDirectory=/ (or use `cd /` before), and take it out of PYTHONPATH, or "
                f"`chown` it to root and `chmod go-w` it"
            )
    return None


def leave_working_directory() -> None:
    """Take the working directory out of Python's path, where `python -m` and Celery put it, unless we are in it."""
    here = os.getcwd()
    meant = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    if Path(here) != HOME and here not in meant:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


def user(number: int) -> str:
    """Return the name of a user, or its number where it has no name.

    Args:
        number: the user's number.
    """
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _writer(found: os.stat_result) -> str | None:
    """Return who else may write what was found."""
    if found.st_uid not in _trusted():
        return user(found.st_uid)
    if found.st_mode & stat.S_IWOTH:
        return "every user"
    if found.st_mode & stat.S_IWGRP and any(other not in _trusted() for other in _members(found.st_gid)):
        return f"group {_group(found.st_gid)}"
    return None


def _swapper(folder: Path) -> str | None:
    """Return who else may rename what is in a folder; in a sticky one only the owner of each entry may."""
    found = folder.stat()
    return None if found.st_mode & stat.S_ISVTX and found.st_uid in _trusted() else _writer(found)


@cache
def _trusted() -> frozenset[int]:
    """Return the users who decide anyway what this process runs."""
    code = (HOME, Path(sys.prefix), Path(sys.base_prefix))
    return frozenset({0, os.geteuid(), *(folder.stat().st_uid for folder in code)})


@cache
def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@cache
def _members(number: int) -> tuple[int, ...]:
    """Return the users of a group; a group of no name may have any."""
    try:
        named = grp.getgrgid(number)
    except KeyError:
        return (-1,)
    if named.gr_name in ROOT_GROUPS:
        return ()
    return tuple(_numbers(named.gr_mem)) + tuple(one.pw_uid for one in pwd.getpwall() if one.pw_gid == number)


def _numbers(names: list[str]) -> Iterator[int]:
    for name in names:
        try:
            yield pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
