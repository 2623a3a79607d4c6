"""What a shard's file says of its replicas: an address each, or a table with an address, a weight and a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.uris import shard_address
from pipeline.config.validators import Check, number, refused, whole
from pipeline.errors import did_you_mean

#: The keys of a replica that is written as a table, and what each may be.
_CHECKS: dict[str, Check] = {"uri": shard_address, "weight": number(0, 1_000), "limit": whole(1, 100_000)}


@dataclass(frozen=True, slots=True)
class Load:
    """What one replica is asked to carry.

    Attributes:
        weight: its share of the reads beside the other replicas; with 0 it takes none, and is there to be promoted.
        limit: how many reads each process lets run there at once; None: any number.
    """

    weight: float = 1.0
    limit: int | None = None


def replica_fault(value: object) -> str | None:
    """Accept an address, or a table with an address and perhaps a weight and a limit."""
    if not isinstance(value, Mapping):
        return shard_address(value) if isinstance(value, str) else refused(value, "an address, or a table { uri = … }")
    faults = [f"has an unknown key {key!r}{did_you_mean(key, _CHECKS)}" for key in value if key not in _CHECKS]
    given = {"uri": None, **value}
    faults += [f"{key} {fault}" for key, check in _CHECKS.items() if key in given and (fault := check(given[key]))]
    return "; ".join(faults) or None


def uris_of(replicas: Iterable[str | Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the addresses."""
    return tuple(one if isinstance(one, str) else one["uri"] for one in replicas)


def loads_of(replicas: Iterable[str | Mapping[str, Any]]) -> tuple[Load, ...]:
    """Return what each is to carry, in the same order."""
    return tuple(
        Load() if isinstance(one, str) else Load(**{k: v for k, v in one.items() if k != "uri"}) for one in replicas
    )
