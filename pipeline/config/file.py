"""The configuration as it was written: found, read, and filled in from the environment.

What the values mean is for `settings` to judge. Nothing here repeats a value: it may hold a password.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import ini as ini_config
from pipeline.config.validators import a
from pipeline.errors import ConfigError, did_you_mean

T = TypeVar("T")

VARIABLE = "PIPELINE_CONFIG"
DEFAULT_PATH = "pipeline.toml"
#: `${NAME}`; without its brace it is a fault, not a text.
_REFERENCE = re.compile(r"\$\{([^}]*)(\})?")


def written(source: str | Path | Mapping[str, Any] | None, environ: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """Return the sections as they were written, and where they stand, for people.

    Raises:
        ConfigError: there is no such file, or it is not TOML; nor, by its name, an ini file.
    """
    if isinstance(source, Mapping):
        return source, "a dict"
    path, named_by = _find(source, environ)
    if path.suffix == ".ini" and path.exists():
        shape, elsewhere = ini_config.read(path)
        if elsewhere is None:
            return shape, str(path.absolute())
        path, named_by = elsewhere, f"{path} [{ini_config.SECTION}] {ini_config.ELSEWHERE} names a file, but"
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text), str(path.absolute())
    except OSError as error:
        raise ConfigError([f"{named_by} {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError:
        fault = f"{path} is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        fault = f"{path} is not TOML: {str(error).splitlines()[0]}"
    raise ConfigError([fault])  # out here: both errors carry the file's text, passwords included


def filled(value: Any, environ: Mapping[str, str], faults: list[str], path: tuple[str, ...] = ()) -> Any:
    """Return *value* with each `${NAME}` in its texts replaced from *environ*; what is missing goes to *faults*."""
    if isinstance(value, Mapping):
        return {str(key): filled(item, environ, faults, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(filled(item, environ, faults, path) for item in value)
    if not isinstance(value, str) or "${" not in value:
        return value

    def variable(match: re.Match[str]) -> str:
        name, closed = match.groups()
        if not closed:
            faults.append(f"{where(path)} has a '${{' without its '}}'")
        elif name not in environ:
            faults.append(f"{where(path)} needs the environment variable {name}, which is not set")
        return environ.get(name, match.group()) if closed else match.group()

    return _REFERENCE.sub(variable, value)


def section(kind: type[T], raw: object, name: str, faults: list[str], /, **given: Any) -> T | None:
    """Make a *kind*, a dataclass that checks itself, from one section; None, and more *faults*, if that failed."""
    if not isinstance(raw, Mapping):
        faults.append(f"[{name}] is {a(raw)}; it must be a section")
        return None
    keys = {one.name: one for one in fields(kind) if one.init and one.name not in given}  # type: ignore[arg-type]
    faults += [f"[{name}] has an unknown key {key!r}{did_you_mean(key, keys)}" for key in raw if key not in keys]
    values = {key: value for key, value in raw.items() if key in keys and value is not None}
    absent = {key: None for key, one in keys.items() if one.default is MISSING and one.default_factory is MISSING}
    try:
        return kind(**given, **{**absent, **values})
    except ConfigError as error:
        faults += error.faults
        return None


def group(kind: type[T], raw: object, name: str, faults: list[str]) -> dict[str, T | None]:
    """Make a *kind* from each section below the section *name*, as `section` does; each learns its own `name`."""
    if not isinstance(raw, Mapping):
        faults.append(f"[{name}] is {a(raw)}; it must hold sections such as [{name}.NAME]")
        return {}
    return {key: section(kind, item, f"{name}.{key}", faults, name=key) for key, item in raw.items()}


def where(path: tuple[str, ...]) -> str:
    """Return the full name of a key: `[shards.s0] primary`."""
    return f"[{'.'.join(path[:-1])}] {path[-1]}" if len(path) > 1 else "".join(path)


def _find(source: str | Path | None, environ: Mapping[str, str]) -> tuple[Path, str]:
    if source is not None:
        return Path(source).expanduser(), "the configuration"
    if path := environ.get(VARIABLE):
        return Path(path).expanduser(), f"${VARIABLE} names a file, but"
    return Path(DEFAULT_PATH), f"no configuration was given, ${VARIABLE} is not set, and"
