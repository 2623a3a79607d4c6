"""Replace the spool of a deployment without one: nothing waits in it, and it takes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import IdsUsedUp, SpoolUnavailable
from pipeline.model.fingerprint import Fingerprint
from pipeline.spool.store import Number


class NullSpool:
    """What `store.Spool` and its reserve of ids say where they hold nothing."""

    __slots__ = ()

    @property
    def reserve(self) -> NullSpool:
        """The reserve: it has no ids."""
        return self

    def take(self, bucket: int, most: int) -> range:
        """Raise `IdsUsedUp`."""
        raise IdsUsedUp("this host keeps no ids in reserve: it has no spool")

    def waiting(self) -> bool:
        """Return False."""
        return False

    def holds(self, bucket: int, producer: int, seq: int) -> bool:
        """Return False."""
        return False

    def keeps(self, bucket: int, producer: int, up_to: int) -> bool:
        """Return False."""
        return False

    def agree(self, deployment: Fingerprint | None) -> None:
        """Do nothing: no op is taken in."""

    def keep_definitions(self, definitions: Iterable[tuple[str, str, str]], *, wait: bool) -> None:
        """Raise `SpoolUnavailable`."""
        raise SpoolUnavailable("(none)", "it is not enabled")

    def add(
        self,
        runs: Mapping[int, Sequence[bytes]],
        *,
        kept: bool = False,
        numbered: Mapping[int, Number] | None = None,
        behind: bool = False,
    ) -> dict[int, Number]:
        """Raise `SpoolUnavailable`."""
        raise SpoolUnavailable("(none)", "it is not enabled")
