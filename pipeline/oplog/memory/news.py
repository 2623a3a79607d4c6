"""What the prober, upkeep and readers tell one another."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.oplog.memory.server import Server, Timed
from pipeline.oplog.ttls import BUDGET_MS


class MemoryNews(Server):
    """See `contract.News`, `contract.Fitness` and `contract.Budgets`."""

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        with self._lock:
            self._server.health = {node: Timed(text, self.now_ms()) for node, text in nodes.items()}
            self._server.health_until_ms = self.now_ms() + for_ms

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with self._lock:
            for what, more in counted.items():
                self._server.reads[what] = self._server.reads.get(what, 0) + more
            known = self._server.health if self.now_ms() < self._server.health_until_ms else {}
            return self.now_ms(), {node: (said.until_ms, said.value) for node, said in known.items()}

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

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        with self._lock:
            left = min(float(self._get(f"budget:{shard}") or most) + reads, most)
            taken = take and left >= 1 - 1e-6
            self._set(f"budget:{shard}", str(left - taken), BUDGET_MS)
            return taken
