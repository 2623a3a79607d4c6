"""What one worker process holds: a client and an applier per shard, made when first used, anew after a fork."""

from __future__ import annotations

import os

from pipeline.client import Pipeline
from pipeline.write.apply import Applier
from workers.crash import step

_clients: dict[int, Pipeline] = {}
_appliers: dict[tuple[int, str], Applier] = {}


def client() -> Pipeline:
    """Return this process's client."""
    pid = os.getpid()
    if pid not in _clients:
        _clients.clear()
        _appliers.clear()
        _clients[pid] = Pipeline()
    return _clients[pid]


def applier(shard: str) -> Applier:
    """Return this process's applier of a shard.

    Raises:
        KeyError: the configuration has no such shard.
    """
    here = client()
    key = (os.getpid(), shard)
    if key not in _appliers:
        if shard not in here.topology.shards:
            raise KeyError(f"no shard {shard!r} in the configuration; there are {', '.join(here.topology.shards)}")
        _appliers[key] = Applier(shard, here.nodes.primary(shard), here.log, here.settings.apply, step)
    return _appliers[key]
