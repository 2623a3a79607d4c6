"""Table definitions."""

from __future__ import annotations

from pipeline.oplog.memory.server import Server


class MemoryDefinitions(Server):
    """See `contract.Definitions`."""

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        with self._lock:
            new = hash not in self._server.schemas
            self._server.schemas[hash] = text
            self._server.tables[name] = hash
        if new:
            self.published(text)

    def schema(self, hash: str) -> str | None:
        with self._lock:
            return self._server.schemas.get(hash)

    def tables(self) -> dict[str, str]:
        with self._lock:
            return {name: self._server.schemas[hash] for name, hash in self._server.tables.items()}
