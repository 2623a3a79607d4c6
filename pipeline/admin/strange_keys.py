"""Find keys in Redis, under the pipeline's own names, that no process of the pipeline has written.

What they hold stops one thing or another: a set in place of a log, a bell that never expires. Workers delete them. That
is as if Redis had forgotten them, which the pipeline survives: the databases know it, or it is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config.topology import Topology
from pipeline.oplog.appends import EVERYWHERE, Scope, scopes_of
from pipeline.oplog.contract import RECONCILE
from pipeline.oplog.shared_state import SharedState
from pipeline.oplog.waits import ALIVE


def strange_keys(
    log: SharedState, topology: Topology, scope: Scope, chores: Iterable[str] = (), *, delete: bool = False
) -> list[str]:
    """Return the names of such keys of a scope, and of the whole deployment.

    Args:
        log: has the keys.
        topology: whose logs are judged.
        scope: a shard's, or that of the reference log.
        chores: of a shard; each has a lease.
        delete: whether to delete them.
    """
    buckets = (topology.reference_bucket,) if scope.name == EVERYWHERE else topology.buckets_of(scope.name)
    known = (
        f"lineage:{scope.name}",
        f"span:{scope.name}",
        f"mend:{scope.name}",
        f"sweep:{scope.name}",
        "probe",
        "observe",
        "moves",
        ALIVE.format(scope.name),
    )
    leases = {*known, RECONCILE.format(scope.name), *(f"{name}:{scope.name}" for name in chores)}
    return log.mend(scope, buckets, leases, delete=delete)


def every_strange_key(log: SharedState, topology: Topology) -> tuple[str, ...]:
    """Return the names of all such keys, and delete none.

    Args:
        log: has the keys.
        topology: whose logs are judged.
    """
    scopes = scopes_of(topology.shards).values()
    return tuple(sorted({name for scope in scopes for name in strange_keys(log, topology, scope)}))
