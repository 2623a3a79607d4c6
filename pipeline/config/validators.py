"""Check configured values, one small function per kind, and find the line of the file that a fault is about.

A check takes the value and returns None, or the rest of a sentence that begins with the key. No sentence repeats a
configured text, since any text may hold a password; numbers are shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.errors import ConfigError, did_you_mean

Validator = Callable[[object], str | None]


def faults_of(section: str, checks: Mapping[str, Validator], record: object) -> list[str]:
    """Return a sentence for each attribute of *record* that its check refuses.

    Args:
        section: the section's name, without brackets.
        checks: a check by attribute.
        record: a record of the section.
    """
    return [f"[{section}] {key} {fault}" for key, check in checks.items() if (fault := check(getattr(record, key)))]


def raise_faults(faults: Iterable[str]) -> None:
    """Raise `ConfigError` if there are *faults*."""
    if faults := list(faults):
        raise ConfigError(faults)


def whole_number(low: int, high: int) -> Validator:
    """Accept an int from *low* to *high*; a bool is no int."""
    must = f"a whole number from {low} to {high}"

    def check(value: object) -> str | None:
        return None if is_whole(value) and low <= value <= high else refusal(value, must, show_number=True)  # type: ignore[operator]

    return check


def number(low: float, high: float) -> Validator:
    """Accept an int or a float from *low* to *high*; not a bool, not NaN."""
    must = f"a number from {low:g} to {high:g}"

    def check(value: object) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        return None if fits else refusal(value, must, show_number=True)

    return check


def choice(*words: str) -> Validator:
    """Accept one of *words*."""
    must = ("one of " if len(words) > 1 else "") + ", ".join(words)

    def check(value: object) -> str | None:
        if value in words:
            return None
        return refusal(value, must) + (did_you_mean(value, words) if isinstance(value, str) else "")

    return check


def flag(value: object) -> str | None:
    """Accept *value* if it is a bool."""
    return None if isinstance(value, bool) else refusal(value, "true or false")


def pattern(regex: str, must: str) -> Validator:
    """Accept a text that matches *regex* as a whole; *must* says the same in words."""
    compiled = re.compile(regex)

    def check(value: object) -> str | None:
        return None if isinstance(value, str) and compiled.fullmatch(value) else refusal(value, must)

    return check


#: Accepts a time zone as MySQL takes one.
zone_name = pattern(r"[+-]\d\d:\d\d|SYSTEM|[A-Z]\w+(/[\w+-]+)*", "+02:00, a name such as Europe/Berlin, or SYSTEM")


def optional(check: Validator) -> Validator:
    """Accept None, and what *check* accepts."""
    return lambda value: None if value is None else check(value)


def each(check: Validator, must: str) -> Validator:
    """Accept a tuple whose every item passes *check*; *must* says in words what the list holds."""

    def check_all(value: object) -> str | None:
        if not isinstance(value, tuple):
            return refusal(value, must)
        faults = [f"item {at} {fault}" for at, item in enumerate(value, 1) if (fault := check(item))]
        return "; ".join(faults) or None

    return check_all


def ascending(value: object) -> str | None:
    """Accept *value* if it is a tuple of ints, or of texts, each greater than the one before it."""
    must = "a list of whole numbers, or of texts, each greater than the one before it"
    if not isinstance(value, tuple):
        return refusal(value, must)
    if not (all(map(is_whole, value)) or all(isinstance(item, str) for item in value)):
        return f"mixes types; it must be {must}"
    rising = all(low < high for low, high in pairwise(value))
    return None if rising else f"is not in order; it must be {must}"


def bucket_table(value: object) -> str | None:
    """Accept *value* if it maps keys (texts or ints) to bucket numbers that are not negative."""
    if not isinstance(value, Mapping):
        return refusal(value, "a table of key = bucket")
    keys = all(isinstance(key, str) or is_whole(key) for key in value)
    buckets = all(is_whole(bucket) and bucket >= 0 for bucket in value.values())
    return None if keys and buckets else "must be a table of key = bucket, each bucket a whole number from 0"


def is_whole(value: object) -> bool:
    """Return whether *value* is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def refusal(value: object, must: str, *, show_number: bool = False) -> str:
    """Return `is <what is there>; it must be <must>`.

    Args:
        value: what is there.
        must: what it must be, in words.
        show_number: whether a number is shown; a text never is.
    """
    if value is None:
        return f"is missing; it must be {must}"
    if isinstance(value, bool) or not (show_number and isinstance(value, int | float)):
        return f"is {a(value)}; it must be {must}"
    return f"is {value!r}; it must be {must}"


def a(value: object) -> str:
    """Return the type of *value* in the words of the file: `a text`, `a list`, `a section`."""
    if isinstance(value, bool):
        return "a bool"
    if isinstance(value, str):
        return "a text" if value else "an empty text"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "a list"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


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
