"""Say where buckets are that have moved: the map that all processes of a deployment act on.

The shards themselves say who owns a bucket, in the state of its watermark; the configuration only says where it began.
The map is a copy of that in Redis, made anew from the shards wherever Redis has lost it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec


class Placement(NamedTuple):
    """A map.

    Attributes:
        version: grows with each change of the owners; 0: nothing has moved yet.
        owners: the shard of each bucket that is not where the configuration puts it.
        moves: of each bucket that is under way or has left rows behind, the shards from and to which it moves.
    """

    version: int = 0
    owners: Mapping[int, str] = MappingProxyType({})
    moves: Mapping[int, tuple[str, str]] = MappingProxyType({})

    def to_json(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode({**self._asdict(), "owners": dict(self.owners), "moves": dict(self.moves)}).decode()

    @classmethod
    def noted(cls, text: str) -> Placement | None:
        """Return the map that Redis has; None where nobody of ours has written it.

        Args:
            text: the value.
        """
        try:
            found = msgspec.json.decode(text, type=_Written)
        except ValueError:
            return None
        return cls(found.version, dict(found.owners), dict(found.moves))


#: The map of a deployment in which nothing has moved.
NOWHERE = Placement()


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    owners: dict[int, str]
    moves: dict[int, tuple[str, str]]
