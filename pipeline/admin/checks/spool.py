"""The spool: whether this user could leave an op there if Redis were away, and whether its disk has the room.

It looks at the host where it runs: run it where the web application runs, as its user.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, WARNING, Finding

_PLACE = "[spool] path"


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what would keep ops out of the spool."""
    settings = evidence.settings.spool
    if not settings.enabled:
        return
    path = Path(settings.path)
    if not path.parent.is_dir():
        yield Finding(
            ERROR, _PLACE, f"its folder {path.parent} is not there", "create it, for the web user and workers"
        )
    elif not all(os.access(one, os.W_OK) for one in (path.parent, path) if one.exists()):
        yield Finding(
            ERROR,
            _PLACE,
            f"{path} cannot be written by this user: while Redis is away, its ops are refused",
            "give the web user and the workers of the host a group in common that may write there",
        )
    elif (free := shutil.disk_usage(path.parent).free) < settings.max_mb * 1_000_000:
        yield Finding(
            WARNING,
            "[spool] max_mb",
            f"is {settings.max_mb}, its disk has {free // 1_000_000} MB left",
            "make room, or lower it",
        )
