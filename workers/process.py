"""What one worker process holds: a client and an applier per shard, made when first used, anew after a fork.

For crash tests: `PIPELINE_CRASH_AT=commit:0.1` kills the process with SIGKILL before one in ten commits.
"""

from __future__ import annotations

import os
import random
import signal

from pipeline.apply.applier import Applier
from pipeline.client import Client

_clients: dict[int, Client] = {}
_appliers: dict[tuple[int, str], Applier] = {}


def process_client() -> Client:
    """Return this process's client."""
    pid = os.getpid()
    if pid not in _clients:
        _clients.clear()
        _appliers.clear()
        _clients[pid] = Client()
    return _clients[pid]


def applier(shard: str) -> Applier:
    """Return this process's applier of a shard, on the node that is its primary now.

    Raises:
        KeyError: the configuration has no such shard.
        ShardUnavailable: two nodes take writes, and neither is the configured primary.
    """
    here = process_client()
    if shard not in here.topology.shards:
        raise KeyError(f"no shard {shard!r} in the configuration; there are {', '.join(here.topology.shards)}")
    key, primary = (os.getpid(), shard), here.nodes.primary(shard)
    known = _appliers.get(key)
    if known is None or known.node != primary.node:
        known = _appliers[key] = Applier(shard, primary, here.log, here.settings.apply, step)
    return known


_at, _, _share = os.environ.get("PIPELINE_CRASH_AT", "").partition(":")


def step(name: str) -> None:
    """Be killed here, perhaps."""
    if name == _at and random.random() < float(_share or 1):
        os.kill(os.getpid(), signal.SIGKILL)
