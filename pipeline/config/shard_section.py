"""Write one shard more into the text of a configuration: comments stay, and so does each variable `${NAME}`.

Where the shards share the buckets evenly, each gets the buckets that it has: one shard more would change the split.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

#: The first line of a shard's section.
_HEADER = re.compile(r"(?m)^[ \t]*\[[ \t]*shards[ \t]*\.[ \t]*[\"']?([A-Za-z0-9_-]+)[\"']?[ \t]*\][^\n]*(?:\n|\Z)")


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
