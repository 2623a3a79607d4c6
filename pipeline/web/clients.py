"""One client per process and configuration: requests come and go, connections and knowledge of the nodes stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline.client import Pipeline

_lock = threading.Lock()
_clients: dict[Hashable, Pipeline] = {}


def client_of(key: Hashable, source: Callable[[], Path | Mapping[str, Any]]) -> Pipeline:
    """Return the process's client of a configuration.

    The first one also answers for the functions of `pipeline`, unless somebody has called `pipeline.configure`.

    Args:
        key: what tells this configuration from others; cheap to make, since every request does.
        source: returns the configuration; called once.
    """
    client = _clients.get(key)
    if client is None:
        with _lock:
            client = _clients.get(key)
            if client is None:
                client = _clients[key] = Pipeline(source())
                if not pipeline.configured():
                    pipeline.configure(client)
    return client


def forget() -> None:
    """Close all clients; the next request makes its own."""
    with _lock:
        while _clients:
            _clients.popitem()[1].close()
