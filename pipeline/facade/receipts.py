"""Receipts: what became of the writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.facade.process import current
from pipeline.model.receipt import Receipt as _Receipt


class Receipt(_Receipt):
    """A receipt; `Receipt.parse(text)` reads a printed one, for the configured pipeline."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, source: Any = None) -> _Receipt:
        """Read what `str(receipt)` wrote.

        Raises:
            BadToken: the text is not a receipt, or was cut on its way.
        """
        return _Receipt.parse(text, source or current())


def wait_all(receipts: Iterable[_Receipt], timeout_s: float = 30.0) -> None:
    """Wait until all ops are applied.

    Raises:
        Rejected, Lost, WaitTimeout: of the first that was not.
    """
    current().wait_all(receipts, timeout_s)


def barrier(table: Any, timeout_s: float = 30.0) -> None:
    """Wait until everything that was enqueued for a table before this call is applied."""
    current().barrier(table, timeout_s)
