"""What the prober, upkeep and readers tell one another of the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class News(Protocol):
    """What the prober knows of each node, for counts of reads."""

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        """Publish what is known of the nodes, at the server's time; what nobody renews is forgotten."""
        ...

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        """Return the server's time in ms and, of each node, when it was published and what.

        Args:
            counted: is added to the counts of `reads`, in the same round trip; a full server drops it.
        """
        ...

    def reads(self) -> dict[str, int]:
        """Return what all processes have counted."""
        ...


class Fitness(Protocol):
    """Which nodes are behind what the logs keep."""

    def seen(self, node: str) -> str | None:
        """Return what upkeep noted of a node when it last looked at it."""
        ...

    def note_seen(self, node: str, text: str) -> None:
        """Note what upkeep saw of a node."""
        ...

    def unfit(self) -> dict[str, str]:
        """Return, of each shard of which it is known, which of its nodes are unfit."""
        ...

    def publish_unfit(self, shard: str, text: str) -> None:
        """Tell which nodes of a shard are unfit; the shard's database knows it for good."""
        ...


class Budgets(Protocol):
    """How many reads the primaries may take for their replicas."""

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        """Add to the budget of a shard's primary, in reads, up to *most*; take one off; return whether it was there.

        A budget that nobody has used for a while is full.
        """
        ...
