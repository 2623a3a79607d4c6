"""Keep what one worker process needs: a client and an applier per shard, made at their first use, anew after a fork.

For crash tests, `PIPELINE_CRASH_AT=commit:0.1` kills the process with SIGKILL before one in ten commits.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
from collections.abc import Iterable

from celery.utils.log import current_process_index

from pipeline.apply.applier import Applier
from pipeline.apply.traced import applier_type
from pipeline.client import Client
from pipeline.enqueue.deployment import verify
from pipeline.per_process import PerProcess, chance

#: This process's client.
process_client = PerProcess(Client)
_appliers = PerProcess[dict[str, Applier]](dict)
#: Shared with the pool's processes, which are forked later: 1 once the worker has been asked to stop.
_stopping = mmap.mmap(-1, 1)
#: Shared in the same way: at the place of each process, 1 + the number of the shard that it stays at, else 0.
_stays = memoryview(mmap.mmap(-1, 128)).cast("H")
#: Which step of an applier is a crash, and in which share of all cases.
_at, _, _share = os.environ.get("PIPELINE_CRASH_AT", "").partition(":")


def applier(shard: str) -> Applier:
    """Return this process's applier of a shard, on the node that is the shard's primary now.

    Args:
        shard: the shard's name.

    Raises:
        KeyError: the configuration has no such shard.
        ShardUnavailable: two nodes accept writes, and neither is the configured primary.
        WrongDeployment: the configuration does not fit the deployment that the shard belongs to.
    """
    here = process_client()
    if shard not in here.topology.shards:
        raise KeyError(f"no shard {shard!r} in the configuration; there are {', '.join(here.topology.shards)}")
    appliers, primary = _appliers(), here.nodes.primary(shard)
    known = appliers.get(shard)
    if known is None:
        gc.freeze()  # what Celery and the model have made stays: no collection looks at it
    if known is None or known.node != primary.node:
        verify(here.log, here.nodes, here.topology, here.publisher.scopes[shard], asking=True)
        known = appliers[shard] = applier_type()(
            shard, primary, here.log, here.settings.apply, step, here.settings.tables
        )
    return known


def ask_to_stop(asked: bool = True) -> None:
    """Have all processes of this worker leave the shards that they are at; called in the main process.

    Args:
        asked: False: they may stay.
    """
    _stopping[0] = asked


def asked_to_stop() -> bool:
    """Return whether this process's worker has been asked to stop."""
    return bool(_stopping[0])


def stay_at(shard: str | None) -> None:
    """Note for the other processes of this worker at which shard this one is; one that has no number notes nothing.

    Args:
        shard: the shard's name; None: at none any more.
    """
    place, names = current_process_index(base=0), process_client().topology.shards
    if place is not None and place < len(_stays):
        _stays[place] = 1 + names.index(shard) if shard in names else 0


def are_stayed_at(shards: Iterable[str]) -> bool:
    """Return whether at each of some shards there is a process of this worker; one that was killed counts for a while.

    Args:
        shards: their names.
    """
    names = process_client().topology.shards
    return {names[number - 1] for number in {*_stays} if number}.issuperset(shards)


def step(name: str) -> None:
    """Kill the process if the environment asks for a crash at the step *name*."""
    if name == _at and chance.random() < float(_share or 1):
        os.kill(os.getpid(), signal.SIGKILL)
