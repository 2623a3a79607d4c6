"""Find uWSGI servers of this host that may run no threads: a client refuses to start in one that does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.admin.check.finding import WARNING, Finding

if TYPE_CHECKING:
    from pipeline.admin.check.evidence import Evidence

#: Installed by a system, or by pip, which starts it as a script or a module of Python.
_PROGRAMS = frozenset(("uwsgi", "uwsgi-core", "uwsgi_python3", "pyuwsgi"))
#: uWSGI's own words for threads, in an ini file and on its command line.
_THREADS = re.compile(r"^\s*(?:--)?(?:enable-threads(?:\s*=\s*(?:true|1|yes|on))?|threads\s*=?\s*[1-9]\d*)\s*$", re.M)


def uwsgi_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield a warning for each uWSGI server that names no threads; its version is not seen from outside.

    Args:
        evidence: `uwsgi` holds the command lines.
    """
    for command in evidence.uwsgi:
        yield Finding(
            WARNING,
            f"uWSGI ({command})",
            "names no threads; one older than 2.0.27 runs none then, and refuses this application's first call",
            "add `enable-threads = true` to its ini file, or --enable-threads",
        )


def servers_without_threads(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return the command lines of this host's uWSGI servers that name no threads, each once.

    Args:
        proc: where the system lists its processes; nothing is found on a system without it.
    """
    found = (_words(one) for one in proc.glob("[0-9]*/cmdline"))
    servers = {tuple(words) for words in found if any(Path(word).name in _PROGRAMS for word in words[:3])}
    return tuple(sorted(" ".join(words) for words in servers if not _run_threads(words)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:  # the process has ended, or belongs to another user
        return []


def _run_threads(words: tuple[str, ...]) -> bool:
    texts = ["\n".join(words), " ".join(words).replace(" --", "\n--")]
    texts += [_ini(word) for word in words if word.endswith(".ini")]
    return any(_THREADS.search(text) for text in texts)


def _ini(name: str) -> str:
    try:
        return Path(name).read_text(errors="replace")
    except OSError:
        return ""
