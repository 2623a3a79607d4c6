"""What processes share out among themselves: chores, producer numbers, the room that is left, a secret."""

from __future__ import annotations

from typing import Protocol

from pipeline.model.ids import Lease


class Chores(Protocol):
    """Leases on what one process at a time does."""

    def claim(self, name: str, for_ms: int) -> bool:
        """Take a lease on a chore that one worker at a time does; return whether it was free."""
        ...

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        """Take the lease on a chore, or lengthen one's own; return whether it is held under this token."""
        ...

    def release(self, name: str, token: str) -> None:
        """Give up a lease that is held under this token, if it still is."""
        ...


class Numbers(Protocol):
    """Leases on the numbers that make ids unique; see `ids`."""

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a producer number, or lengthen a lease; see `ids`."""
        ...

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a number for a whole host, or lengthen its lease; of those that no process gets."""
        ...


class Admission(Protocol):
    """Whether ops are let in."""

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        """Let nothing in for a while, or let everything in again."""
        ...

    def full(self) -> str | None:
        """Return why nothing is let in, or None while everything is."""
        ...

    def memory_share(self) -> float:
        """Return used memory as a share of the limit; 0.0 where there is no limit."""
        ...


class Secrets(Protocol):
    """What this deployment signs session tokens with."""

    def secret(self, proposed: str) -> str:
        """Return the secret of this deployment, which is the first that anybody proposed."""
        ...
