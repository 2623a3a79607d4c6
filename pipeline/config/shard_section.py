"""Write one shard more, or one less, into the text of a configuration: comments stay, and so does each `${NAME}`.

Where the shards share the buckets evenly, each gets the buckets that it has: another number of shards would change the
split. With one shard less, each other gets the buckets that it has by the map.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

#: The first line of a shard's section.
_HEADER = re.compile(r"(?m)^[ \t]*\[[ \t]*shards[ \t]*\.[ \t]*[\"']?([A-Za-z0-9_-]+)[\"']?[ \t]*\][^\n]*(?:\n|\Z)")

#: The line of a section that names its buckets.
_BUCKETS = re.compile(r"(?m)^[ \t]*buckets[ \t]*=[ \t]*(\"[^\"\n]*\"|'[^'\n]*')")


def with_shard(text: str, name: str, primary: str, replicas: Sequence[str], owned: Mapping[str, str]) -> str:
    """Return the text of a TOML file with a section more, whose shard owns no bucket.

    Args:
        text: the file's.
        name: the new shard's.
        primary: the address of its primary, as it is to be written.
        replicas: the addresses of its replicas, likewise.
        owned: of each shard of the file its buckets as ranges.

    Raises:
        ConfigError: the shards are written in a way that cannot be edited; it says what to write by hand.
    """
    before = tomllib.loads(text)
    shards: Mapping[str, Any] = before["shards"]
    silent = {one: owned[one] for one, section in shards.items() if "buckets" not in section}

    def split_written(header: re.Match[str]) -> str:
        ranges = silent.get(header[1])
        return header[0] if ranges is None else f'{header[0].rstrip()}\nbuckets = "{ranges}"\n'

    section = {"primary": primary, **({"replicas": list(replicas)} if replicas else {}), "buckets": ""}
    lines = [
        f"[shards.{name}]",
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()),
    ]
    made = _HEADER.sub(split_written, text).rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"
    kept = {one: section | ({"buckets": silent[one]} if one in silent else {}) for one, section in shards.items()}
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == {**before, "shards": {**kept, name: section}}:
            return made
    by_hand = [f'buckets = "{ranges}" under [shards.{one}]' for one, ranges in silent.items()]
    raise ConfigError([f"the file cannot be edited by a program; write {', '.join(by_hand)}, and [shards.{name}]"])


def without_shard(text: str, name: str, owned: Mapping[str, str]) -> str:
    """Return the text of a TOML file with a section less, in which each other shard has the buckets that it owns.

    Args:
        text: the file's.
        name: of the shard whose section goes.
        owned: of each other shard its buckets as ranges.

    Raises:
        ConfigError: the shards are written in a way that cannot be edited; it says what to write by hand.
    """
    before = tomllib.loads(text)
    parts = ((shard, body) for shard, body in _parts(text) if shard != name)
    made = "".join(body if shard is None else _with_buckets(body, owned[shard]) for shard, body in parts)
    wanted = {one: {**section, "buckets": owned[one]} for one, section in before["shards"].items() if one != name}
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == {**before, "shards": wanted}:
            return made
    by_hand = [f'buckets = "{ranges}" under [shards.{one}]' for one, ranges in owned.items()]
    raise ConfigError([f"the file cannot be edited by a program; take out [shards.{name}], write {', '.join(by_hand)}"])


def _parts(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield a text in pieces with the shard whose section each is; the comments above a header are no shard's."""
    shard: str | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if not line.lstrip().startswith("["):
            lines.append(line)
            continue
        above = list(takewhile(lambda one: not one.strip() or one.lstrip().startswith("#"), reversed(lines)))
        yield shard, "".join(lines[: len(lines) - len(above)])
        yield None, "".join(reversed(above))
        header = _HEADER.fullmatch(line)
        shard, lines = header[1] if header else None, [line]
    yield shard, "".join(lines)


def _with_buckets(section: str, ranges: str) -> str:
    """Return a shard's section with other buckets: in the place of its line, or in a line below the header."""
    line = f'buckets = "{ranges}"'
    made, count = _BUCKETS.subn(line, section, count=1)
    header, end, rest = section.partition("\n")
    return made if count else f"{header}\n{line}{end}{rest}"


def replace_file(path: Path, text: str) -> None:
    """Put a text in the place of a file's, whole or not at all; rights and owner stay.

    Args:
        path: of the file, or of a link to it.
        text: the new one.

    Raises:
        ConfigError: the file cannot be written; it is as it was.
    """
    real, made = path.resolve(), ""
    try:
        found = real.stat()
        number, made = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), found.st_mode & 0o777)
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            os.fsync(file.fileno())
        os.replace(made, real)
    except OSError as error:
        with suppress(OSError):
            os.unlink(made)
        raise ConfigError([f"{path} cannot be written ({error.strerror}); give the command with --print"]) from error
