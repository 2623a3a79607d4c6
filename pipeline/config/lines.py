"""Find the line of a configuration's file that a fault is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

#: The section and perhaps the key that a fault's sentence names, in a TOML file or in an ini file.
_NAMED = re.compile(r"\[([\w.-]+)\](?: ([\w-]+))?")
_SECTION = re.compile(r"\s*\[\s*([\w.\"' -]+?)\s*\]")
_KEY = re.compile(r"\s*\"?([\w-]+)\"?\s*[=:]")


def with_lines(faults: Iterable[str], label: str) -> Iterator[str]:
    """Yield each fault with its file and line behind it, as far as the file has them.

    Args:
        faults: sentences that name a section and perhaps a key.
        label: the file's path; anything else changes nothing.
    """
    try:
        lines = Path(label).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for fault in faults:
        named = _NAMED.search(fault)
        line = named and _line(lines, *named.groups())
        yield f"{fault} ({Path(label).name}, line {line})" if line else fault


def _line(lines: list[str], section: str, key: str | None) -> int | None:
    """Return the number of the line of a key, else of its section."""
    inside, found = False, None
    for number, line in enumerate(lines, 1):
        if match := _SECTION.match(line):
            inside = match[1].replace('"', "").replace("'", "").replace(" ", "") == section
            found = number if inside else found
        elif inside and (match := _KEY.match(line)) and match[1] == key:
            return number
    return found
