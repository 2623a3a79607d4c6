"""What an engine's part of a cluster looks like, and the contract of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.devcluster.state import Service

#: Runs a service that ends by itself, and raises when it ends badly.
RunStep = Callable[[Service], None]


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as `pipeline.toml` names it: pyDAL URIs of its primary and replicas."""

    name: str
    primary: str
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The database servers of a cluster: what to run, where it is reached, and the folders it lives in."""

    services: tuple[Service, ...]
    shards: tuple[Shard, ...]
    folders: tuple[str, ...]


class Engine(Protocol):
    """The databases of a cluster. The modules `mariadb` and `embedded` are engines."""

    def log_server_argv(self) -> tuple[str, ...]:
        """Return the command of the Redis or Valkey that goes with this engine."""

    def lay_out(self, directory: Path, shards: int, replicas: int) -> Layout:
        """Decide names, ports and commands; makes nothing yet."""

    def prepare(self, directory: Path, layout: Layout, run: RunStep) -> None:
        """Make the files that the services need."""

    def link(self, layout: Layout) -> None:
        """Make the replicas follow their primaries, once all services answer."""


def node_names(shards: int, replicas: int) -> dict[str, tuple[str, ...]]:
    """Return each shard's name with its replicas': s0 with s0-r0, s0-r1."""
    return {f"s{i}": tuple(f"s{i}-r{j}" for j in range(replicas)) for i in range(shards)}
