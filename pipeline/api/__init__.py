"""The public functions: each is a call of this process's client, made when first used or when it is configured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.client import Client

_lock = threading.Lock()
client: Client | None = None


def configure(source: str | Path | Mapping[str, Any] | Client | None = None) -> Client:
    """Read the configuration and make this process's client of it; an earlier client is closed.

    Args:
        source: a path, or a mapping of the same shape; by default `$PIPELINE_CONFIG`, else `./pipeline.toml`. Or a
            client that is made already, as `pipeline.testing` does.

    Returns:
        The client.

    Raises:
        ConfigError: with every fault there is.
    """
    from pipeline.client import Client

    global client
    with _lock:
        made = source if isinstance(source, Client) else Client(source)
        if client is not None:
            client.close()
        client = made
        return made


def current() -> Client:
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
