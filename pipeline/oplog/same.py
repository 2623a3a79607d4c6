"""What stands under an idempotency key: the receipt of the first op that was sent with it, or a reserved id only.

A reservation is the id of a row as text; a receipt is five numbers, the last of them the row's id, 0 for none. Only a
receipt means that an op is in a log: `enqueue.lua` tells them apart by the blank, and so does this.
"""

from __future__ import annotations


def is_receipt(text: str) -> bool:
    """Whether an op was sent with the key."""
    return " " in text


def row_id_in(text: str) -> int:
    """Return the row's id, 0 where the op makes no row or its database gives the id."""
    return int(text.rpartition(" ")[2])
