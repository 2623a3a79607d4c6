"""Name a cluster's shards and their nodes, and hold the addresses by which `pipeline.toml` reaches each shard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as `pipeline.toml` names it: pyDAL URIs of its primary and replicas."""

    name: str
    primary: str
    replicas: tuple[str, ...]


def node_names(shards: int, replicas: int) -> dict[str, tuple[str, ...]]:
    """Return the name of each shard, which is also its primary's, with the names of its replicas.

    Args:
        shards: how many shards: 1 gives `s0`, 2 gives `s0` and `s1`.
        replicas: how many replicas each shard has: 2 gives `s0-r0` and `s0-r1`.
    """
    return {f"s{i}": tuple(f"s{i}-r{j}" for j in range(replicas)) for i in range(shards)}
