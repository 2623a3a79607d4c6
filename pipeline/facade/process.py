"""The one client of this process: made when first used, or when it is configured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.client import Pipeline

_lock = threading.Lock()
client: Pipeline | None = None


def configure(source: str | Path | Mapping[str, Any] | Pipeline | None = None) -> Pipeline:
    """Read the configuration and make this process's client of it; an earlier client is closed.

    Args:
        source: a path, a mapping of the same shape; by default `$PIPELINE_CONFIG`, else `./pipeline.toml`. Or a client
            that is made already, as `pipeline.testing` does.

    Raises:
        ConfigError: with every fault there is.
    """
    from pipeline.client import Pipeline

    global client
    with _lock:
        made = source if isinstance(source, Pipeline) else Pipeline(source)
        if client is not None:
            client.close()
        client = made
        return made


def current() -> Pipeline:
    """Return this process's client; configure it from the default place if nobody has."""
    return client or configure()


def configured() -> bool:
    """Return whether this process has a client already."""
    return client is not None


def close() -> None:
    """Ring what is to be rung and close all connections. The next call configures anew."""
    global client
    with _lock:
        if client is not None:
            client.close()
            client = None


def define_tables(db: Any) -> None:
    """Make a pyDAL DAL's tables known, so that ops may name them by text; cheap enough for every request."""
    current().define_tables(db)
