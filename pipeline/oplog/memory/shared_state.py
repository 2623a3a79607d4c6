"""Keep in this process what processes share beside the ops: leases, the full flag, the secret, reports on nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.errors import NoProducerNumber
from pipeline.model.ids import HOSTS, PRODUCERS, SPAN_MS, Lease
from pipeline.oplog.memory.server import MemoryServer, Timed
from pipeline.oplog.ttls import HOST_LEASE_MS, LEASE_MS


class MemorySharedState(MemoryServer):
    """See `contract.SharedState`."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        with self._lock:
            return self._take(f"lease:{name}", for_ms)

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        with self._lock:
            if self._get(f"lease:{name}") not in (None, token):
                return False
            self._set(f"lease:{name}", token, for_ms)
            return for_ms > 0

    def release_lease(self, name: str, token: str) -> None:
        self.hold_lease(name, token, 0)

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._leased(token, lease, until_ms, LEASE_MS, range(PRODUCERS))

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._leased(token, lease, until_ms, HOST_LEASE_MS, range(PRODUCERS, PRODUCERS + HOSTS))

    def _leased(self, token: str, lease: Lease | None, until_ms: int, for_ms: int, numbers: Iterable[int]) -> Lease:
        with self._lock:
            leases, now = self._server.leases, self.now_ms()
            if lease is not None and leases.get(lease.number, ("", 0, 0))[0] == token:
                return Lease(lease.number, 0, self._lease(lease.number, token, until_ms, for_ms))
            for number in numbers:
                _, after, ends = leases.get(number, ("", 0, 0))
                if ends < now:
                    return Lease(number, after, self._lease(number, token, until_ms, for_ms))
            raise NoProducerNumber

    def _lease(self, number: int, token: str, until_ms: int, for_ms: int) -> int:
        after = self._server.leases.get(number, ("", 0, 0))[1]
        last = max(until_ms, after + SPAN_MS)
        self._server.leases[number] = token, last, self.now_ms() + for_ms
        return last

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        with self._lock:
            if reason is None:
                self._server.keys.pop("full", None)
            else:
                self._set("full", reason, for_ms)

    def full(self) -> str | None:
        with self._lock:
            return self._get("full")

    def memory_share(self) -> float:
        with self._lock:
            return self._size_bytes() / self.limit_bytes if self.limit_bytes else 0.0

    def largest_bytes(self) -> int:
        with self._lock:
            return self.most_bulk_bytes

    def secret(self, proposed: str) -> str:
        with self._lock:
            return self._server.keys.setdefault("secret", Timed(proposed, 1 << 62)).value

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        with self._lock:
            self._server.health = {node: Timed(text, self.now_ms()) for node, text in nodes.items()}
            self._server.health_until_ms = self.now_ms() + for_ms

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with self._lock:
            for what, more in counted.items():
                self._server.reads[what] = self._server.reads.get(what, 0) + more
            known = self._server.health if self.now_ms() < self._server.health_until_ms else {}
            return self.now_ms(), {node: (report.until_ms, report.value) for node, report in known.items()}

    def reads(self) -> dict[str, int]:
        with self._lock:
            return dict(self._server.reads)

    def seen(self, node: str) -> str | None:
        with self._lock:
            return self._server.seen.get(node)

    def note_seen(self, node: str, text: str) -> None:
        with self._lock:
            self._server.seen[node] = text

    def unfit(self) -> dict[str, str]:
        with self._lock:
            return dict(self._server.unfit)

    def publish_unfit(self, shard: str, text: str) -> None:
        with self._lock:
            self._server.unfit[shard] = text
