"""Wait for what became of queued ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.api.process import current
from pipeline.model.receipt import Receipt as _Receipt

if TYPE_CHECKING:
    from pipeline.model.receipt import Source


class Receipt(_Receipt):
    """A receipt; `Receipt.parse(text)` reads a printed one, for the configured pipeline."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, source: Source | None = None) -> _Receipt:
        """Read what `str(receipt)` wrote.

        Args:
            text: the printed receipt.
            source: who answers for it; by default this process's client.

        Raises:
            BadToken: the text is not a receipt, or was cut on its way.
        """
        return _Receipt.parse(text, source or current().follower)


def wait_all(receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
    """Wait until all ops are applied.

    Args:
        receipts: of the ops.
        timeout_s: how long to wait in all, s.

    Raises:
        Rejected, Lost: of the first that was not applied. WaitTimeout: the workers are behind; wait again.
    """
    current().wait_all(receipts, timeout_s)


def barrier(table: Any, timeout_s: float = 30.0) -> None:
    """Wait until everything that was enqueued for a table before this call is applied, this host's spool included.

    Args:
        table: a pyDAL table, or its name.
        timeout_s: how long to wait in all, s.

    Raises:
        WaitTimeout: the workers are behind; wait again.
    """
    current().barrier(table, timeout_s)
