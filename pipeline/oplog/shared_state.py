"""Define what processes share beside the ops. Redis may forget all of it: it is made anew, or a database knows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.model.ids import Given
from pipeline.oplog.appends import Scope


class SharedState(Protocol):
    """What processes share beside the ops: leases, counters of ids, the full flag, the secret, and reports on nodes."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        """Take the lease on a chore if it is free; return whether it was. It ends by itself.

        Args:
            name: the chore.
            for_ms: how long the lease lasts; for one name always the same.
        """
        ...

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        """Take the lease on a chore, or lengthen one's own; return whether it is held under the token.

        Args:
            name: the chore.
            token: the holder's.
            for_ms: how long the lease lasts from now on.
        """
        ...

    def hold_leases(self, names: Iterable[str], token: str, for_ms: int) -> None:
        """Do as `hold_lease` for each name, in one round trip.

        Args:
            names: the chores.
            token: the holder's.
            for_ms: how long the leases last from now on.
        """
        ...

    def look(self, leases: Iterable[str], scopes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Return which leases are there, and which scopes have an epoch of this server, in one round trip.

        Args:
            leases: chores.
            scopes: names of scopes.
        """
        ...

    def stirs(self, shards: Iterable[str]) -> dict[str, str]:
        """Return of each shard a text that is another one after each batch and order, in one round trip.

        It is empty while the shard has work, or somebody is at it.

        Args:
            shards: their names.
        """
        ...

    def release_lease(self, name: str, token: str) -> None:
        """End a lease, if it is still held under the token.

        Args:
            name: the chore.
            token: the holder's.
        """
        ...

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        """Give blocks of counters, of which row ids are made; see `model.ids`.

        Args:
            shard: whose buckets they are.
            wanted: of each bucket, how many: fewer than a span has.
            new_span: from now on counters are given of this span, if it is above the one in use. Its database gave it
                a moment ago, for this call alone.
        """
        ...

    def mend(self, scope: Scope, buckets: Iterable[int], leases: Iterable[str], *, delete: bool) -> list[str]:
        """Return the names of keys that no process of ours has written, by their type, size and expiry.

        What is deleted is as what a Redis forgets: the databases know it, or it is made anew.

        Args:
            scope: whose keys are judged, beside those of the whole deployment.
            buckets: whose logs are judged.
            leases: names of chores.
            delete: whether to delete them.
        """
        ...

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        """Refuse all appends for a while, or accept appends again.

        Args:
            reason: the text of the refusal; None: accept.
            for_ms: how long to refuse.
        """
        ...

    def full(self) -> str | None:
        """Return why appends are refused, or None while they are accepted."""
        ...

    def memory(self) -> tuple[float, int]:
        """Return used memory as a share of the limit, 0.0 if there is no limit, and in bytes."""
        ...

    def largest_bytes(self) -> int:
        """Return the size of the largest op that the log takes; 0: not known."""
        ...

    def secret(self, proposed: str) -> str:
        """Return the secret that this deployment signs session tokens with: the first that anybody proposed.

        Args:
            proposed: the secret to store if there is none.
        """
        ...

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        """Publish a report on each node, at the server's time, in place of all earlier ones.

        Args:
            nodes: of each node, its report.
            for_ms: when the reports expire.
        """
        ...

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]], str]:
        """Return the server's time in ms; of each node, when its report was published and the report; and the map.

        Args:
            counted: is added to `reads` in the same round trip; a full server drops it.
        """
        ...

    def reads(self) -> dict[str, int]:
        """Return the counts of reads of all processes."""
        ...

    def note_host(self, host: str, text: str) -> None:
        """Note what a host says of its spool, also while memory is full; hosts that are silent for a day are forgotten.

        Args:
            host: what kind of host it is, a blank, and its name.
            text: what it says.
        """
        ...

    def hosts(self) -> dict[str, tuple[int, str]]:
        """Return what each host has said last, and when, ms since 1970 by the log's clock."""
        ...

    def publish_records(self, records: Mapping[str, str], points: Mapping[str, tuple[str, str]] = {}) -> None:
        """Publish records at the server's time, each in place of the one before; and add points to their histories.

        Args:
            records: by name, the record: of each shard, or `EVERYWHERE`.
            points: by the same names, a point for the last minutes and one for the last hours; empty: none.
        """
        ...

    def records(self, names: Iterable[str]) -> tuple[int, dict[str, tuple[int, str]]]:
        """Return the server's time in ms and, of each record there is, when it was published and the record.

        Args:
            names: of the records.
        """
        ...

    def histories(self, names: Iterable[str], most: int | None = None) -> dict[str, tuple[list[str], list[str]]]:
        """Return by record the points of its last minutes and of its last hours, the oldest first.

        Args:
            names: of the records.
            most: how many of each, the newest; None for all.
        """
        ...

    def seen(self, node: str) -> str | None:
        """Return upkeep's last note on a node.

        Args:
            node: the node's name.
        """
        ...

    def note_seen(self, node: str, text: str) -> None:
        """Store upkeep's note on a node.

        Args:
            node: the node's name.
            text: the note.
        """
        ...

    def unfit(self) -> dict[str, str]:
        """Return the published unfit nodes of each shard."""
        ...

    def publish_unfit(self, shard: str, text: str) -> None:
        """Publish which nodes of a shard are unfit: a copy of what the shard's database says.

        Args:
            shard: the shard's name.
            text: its unfit nodes.
        """
        ...
