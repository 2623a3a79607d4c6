"""The fingerprint of a set of rows: how many, and a checksum that does not depend on their order.

The checksum is the sum of a 64-bit hash of each row, modulo 2**64. A sum, not an exclusive or: a row that is there
twice changes it. Fingerprints of disjoint sets add up to that of their union.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

_MODULUS = 1 << 64


@dataclass(slots=True)
class Fingerprint:
    """A count and a checksum that grow row by row."""

    rows: int = 0
    checksum: int = 0

    def add(self, values: Iterable[object]) -> None:
        """Add one row: its values in a fixed order, without the id."""
        text = "\x1f".join(["\\N" if value is None else str(value) for value in values])
        digest = blake2b(text.encode(), digest_size=8).digest()
        self.rows += 1
        self.checksum = (self.checksum + int.from_bytes(digest, "big")) % _MODULUS

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.rows + other.rows, (self.checksum + other.checksum) % _MODULUS)

    def __str__(self) -> str:
        return f"{self.checksum:016x}"
