"""Write the log: an event a line, with a stable name, and keys that hold ids and counts; never a row's values.

`docs/operations.md` lists the events. A message of ours is an `Event`, so any formatter prints it as key=value;
`Lines` also prints the time, the level and what other libraries log, as text or as JSON.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

#: What `[log] format` may be.
FORMATS = ("text", "json")
#: The longest text of one key, characters: a database's sentence may quote a statement.
MOST_TEXT = 1_000
#: Where a database quotes a value in its sentence, by MariaDB's `errmsg-utf8.txt`: 1062, 1586; 1292, 1366, 1411; 1690;
#: 1064 and 3140, which quote a piece of the statement or of the document.
_QUOTED = (
    (re.compile(r"(Duplicate entry) (['\"]).*\2(?= for key )", re.DOTALL), r"\1"),
    (re.compile(r"(Duplicate entry) (['\"]).*", re.DOTALL), r"\1"),
    (re.compile(r"(ncorrect [\w ]{1,40} value): (['\"]).*\2(?= for (?:column|function) )", re.DOTALL), r"\1"),
    (re.compile(r"(ncorrect [\w ]{1,40} value): (['\"]).*", re.DOTALL), r"\1"),
    (re.compile(r"(value is out of range) in .*", re.DOTALL), r"\1"),
    (re.compile(r"( near) (['\"]).*\2(?= at line )", re.DOTALL), r"\1"),
    (re.compile(r"( near) (['\"]).*", re.DOTALL), r"\1"),
    (re.compile(r"(Invalid JSON text): .*(?= at position )", re.DOTALL), r"\1"),
    # ours: an upsert's row is known by the values of its key, see `shard/records/set_aside.py`
    (re.compile(r"(, which holds the row \S+) \{.*", re.DOTALL), r"\1"),
)
#: A text without any of these quotes nothing, and is no address.
_SUSPECT = re.compile(r"['\"@=(]")
#: A password in an address, and an argument of an address that holds one.
_PASSWORD = re.compile(r"(://[^\s:/@]*):\S+@")
_ARGUMENT = re.compile(r"(?i)([?&](?:[\w-]*(?:pass|pwd|secret|token)[\w-]*)=)[^&\s'\"]*")
_BARE = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f]+")


def without_values(text: str) -> str:
    """Return a sentence without the values that a database quotes in it, and without passwords of addresses.

    What a trigger says with SIGNAL is the application's own sentence, and stays.

    Args:
        text: such as `Duplicate entry 'bob@example.org' for key 'email'`.
    """
    if not _SUSPECT.search(text):
        return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"
    for quoted, kept in _QUOTED:
        text = quoted.sub(kept, text)
    text = _ARGUMENT.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


class Event:
    """What happened: the message of a record of the log.

    Args:
        name: stable, of small letters and underscores.
        fields: ids and counts by stable keys; an exception is shown by its class and its sentence without values. A key
            `text` holds a sentence for people. None is left out.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str, /, **fields: object):
        self.name, self.fields = name, fields

    def plain(self) -> dict[str, Any]:
        """Return the fields as values of JSON."""
        return {key: _plain(value) for key, value in self.fields.items() if value is not None}

    def __str__(self) -> str:
        return " ".join((self.name, *(_pair(key, value) for key, value in self.plain().items())))


class Lines(logging.Formatter):
    """A formatter that prints a record as one line: `at`, `level`, `logger`, `event`, and the event's own keys.

    A record of another library has the event `message`, and its text without values under `text`. A traceback is one
    key, `trace`.

    Args:
        form: `text` for key=value, or `json`.
    """

    def __init__(self, form: str = "text"):
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line.

        Args:
            record: of any logger.
        """
        event = record.msg if isinstance(record.msg, Event) else Event("message", text=record.getMessage())
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"at": at, "level": record.levelname.lower(), "logger": record.name, "event": event.name}
        line |= {key: value for key, value in event.plain().items() if key not in line}
        if record.exc_info and record.exc_info[0] is not None:
            line["trace"] = without_values(self.formatException(record.exc_info))
        if self._json:
            return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        return " ".join(_pair(key, value) for key, value in line.items())


def log_to_stderr(form: str, level: int = logging.WARNING) -> None:
    """Print the log to stderr, unless this process has set up its log already.

    Args:
        form: see `Lines`.
        level: the least level that is printed.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(form))
    logging.basicConfig(level=level, handlers=[handler])


def _plain(value: object) -> object:
    if isinstance(value, BaseException):
        return without_values(f"{type(value).__name__}: {value}")
    if isinstance(value, bool | int | float):
        return round(value, 3) if isinstance(value, float) else value
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(str(_plain(one)) for one in value)
    return without_values(str(value))


def _pair(key: str, value: object) -> str:
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return f"{key}={text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)}"
