"""A publisher over the fake log, and a line that breaks where a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.shipment import Acked, OpPlace, Sender, Shipment
from pipeline.errors import ShardUnavailable
from pipeline.model import START, Entry
from pipeline.oplog.appends import Scope
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.records import LostRange

TOPOLOGY = Topology(
    load(
        {
            "pipeline": {"buckets": 4},
            "redis": {"url": "redis://127.0.0.1:1/0"},
            "shards": {name: {"primary": f"sqlite:///nowhere/{name}.sqlite"} for name in ("s0", "s1")},
        }
    )
)
REFERENCE = TOPOLOGY.reference_bucket


class Shop:
    """A publisher over a log in memory, and everything that it told others."""

    def __init__(self) -> None:
        self.log, self.bell = MemoryLog(), SilentBell()
        self.lost: list[LostRange] = []
        self.raised: list[str] = []
        self.away = False
        authority: Any = self
        self.publisher = Publisher(self.log, TOPOLOGY, self.bell, authority)

    def raise_epoch(self, scope: Scope, known: int = 0) -> int:
        if self.away:
            raise ShardUnavailable("s0", "away")
        self.raised.append(scope.name)
        _, _, seen = self.log.epoch(scope.name)
        assert self.log.raise_epoch(scope.name, seen, 100 + len(self.raised))
        return 100 + len(self.raised)

    def settle(self, scope: Scope, epoch: int, acked: Mapping[Sender, Acked]) -> set[Sender]:
        """Find lost what is not in the log and stands under an older epoch: here no op is ever applied."""
        if self.away:
            raise ShardUnavailable("s0", "away")
        told = {(lost.bucket, lost.producer): lost.last for lost in self.lost}
        for (bucket, producer), (last, under) in acked.items():
            there = [e.producer_seq for e in self.entries(bucket) if e.producer == producer]
            if under < epoch and max([0, *there]) < last and told.get((bucket, producer), 0) < last:
                self.lost.append(LostRange(bucket, 0, producer, max([0, *there]) + 1, last))
        return {pair for pair, (last, _) in acked.items() if told.get(pair, 0) >= last}

    def together(self, one: str, other: str) -> bool:
        """Say that all scopes are on one server."""
        return True

    def renew(self) -> None:
        """Renew nothing: there are no schemas and no ids."""

    def ship(self, bucket: int, payload: bytes, key: str = "", row_id: int | None = None) -> OpPlace:
        return self.publisher.ship(Shipment({bucket: (payload,)}, key, row_id))[bucket]

    def payloads(self, bucket: int) -> list[bytes]:
        return [entry.payload for entry in self.entries(bucket)]

    def entries(self, bucket: int) -> list[Entry]:
        return self.log.read({bucket: START}, {bucket: 1000})[bucket]


def authority(shop: Shop) -> Any:
    """Return the authority of another publisher on the same log, which finds the first epoch raised."""
    known = {"settle": shop.settle, "renew": shop.renew, "together": shop.together}
    return SimpleNamespace(raise_epoch=lambda scope, known: 101, **known)


def breaking(*where: str) -> Callable[[str], None]:
    """Return a fault that breaks the connection at these moments, in turn."""
    left = list(where)

    def fault(moment: str) -> None:
        if left and left[0] == moment:
            left.pop(0)
            raise ConnectionError("broken on purpose")

    return fault
