"""The sessions of this process: one per node, made when first used, made anew after a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.settings import Settings
from pipeline.shard.session import Session


class Nodes:
    """Every node of the deployment by its name: `s0` is a primary, `s0-r0` its first replica."""

    def __init__(self, settings: Settings):
        self._uris = {name: shard.primary for name, shard in settings.shards.items()}
        self._replicas: dict[str, tuple[str, ...]] = {}
        for name, shard in settings.shards.items():
            replicas = {f"{name}-r{i}": uri for i, uri in enumerate(shard.replicas)}
            self._uris |= replicas
            self._replicas[name] = tuple(replicas)
        self._sessions: dict[str, Session] = {}
        self._pid = os.getpid()

    def primary(self, shard: str) -> Session:
        """Return the session of a shard's primary."""
        return self._session(shard, read_only=False)

    def replicas(self, shard: str) -> Iterator[Session]:
        """Return the sessions of a shard's replicas; they refuse writes."""
        return (self._session(name, read_only=True) for name in self._replicas[shard])

    def replica_names(self, shard: str) -> tuple[str, ...]:
        """Return the names of a shard's replicas."""
        return self._replicas[shard]

    def close(self) -> None:
        """Close this thread's connections."""
        for session in self._sessions.values():
            session.discard()

    def _session(self, name: str, *, read_only: bool) -> Session:
        if self._pid != os.getpid():
            # the parent's sockets are not ours to use, nor to close
            self._sessions, self._pid = {}, os.getpid()
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(name, self._uris[name], read_only=read_only)
        return session
