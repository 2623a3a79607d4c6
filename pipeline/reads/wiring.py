"""Wire the reads of one process: connections to nodes, who chooses among them, and the sessions of readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config.settings import Settings
from pipeline.config.topology import Topology
from pipeline.oplog.contract import Log
from pipeline.reads.connections import NodeReaders
from pipeline.reads.reads import Reads
from pipeline.reads.routing.health_cache import HealthCache
from pipeline.reads.routing.router import Router
from pipeline.reads.token_cookie import Seal
from pipeline.shard.nodes import Nodes


def wire_reads(
    settings: Settings,
    topology: Topology,
    log: Log,
    nodes: Nodes,
    health: HealthCache,
    seal: Seal,
    find_table: Callable[[Any], Any],
) -> Reads:
    """Return the reads of one process.

    Args:
        settings: the bounds of a read, and what each replica may carry.
        topology: where rows belong.
        log: has the ops that are queued.
        nodes: who is primary and who replica of each shard.
        health: what the prober has published of the nodes.
        seal: prints the sessions of readers, and reads them.
        find_table: returns the pyDAL table that a caller means by a table or a name.
    """
    router = Router(nodes, NodeReaders(nodes), health, settings.reads.primary_limit, settings.loads())
    return Reads(settings, topology, log, router, find_table, seal)
