"""A column as the log knows it: what pyDAL's `Field` says about storage, and nothing else.

The type is pyDAL's own text (`decimal(10,2)`, `reference person`): a worker can hand it back to pyDAL unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: pyDAL types that are kept exactly like another type. The big- ones are pyDAL's own words for 64-bit keys.
SAME_AS = {"password": "string", "upload": "string", "big-id": "id", "big-reference": "reference"}
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. `length` counts characters and limits string, password and upload only."""

    name: str
    type: str
    length: int | None = None
    notnull: bool = False
    unique: bool = False
    rname: str | None = None

    @property
    def kind(self) -> str:
        """The family of the type, without its parameters: `decimal`, `reference`, `list:reference`, `string`, …

        A reference to a keyed table (`reference t.code`) keeps its whole text: its values are not ids. A decimal
        without its digits is `decimal(?)`.
        """
        word, _, target = self.type.partition(" ")
        if "." in target:
            return self.type
        if word.startswith("decimal"):
            return "decimal" if _DECIMAL.fullmatch(self.type) else "decimal(?)"
        return SAME_AS.get(word, word)

    @property
    def digits(self) -> tuple[int, int]:
        """How many digits a decimal keeps: in all, and after the point.

        Raises:
            ValueError: the type is not `decimal(p,s)`.
        """
        match = _DECIMAL.fullmatch(self.type)
        if match is None:
            raise ValueError(f"{self.name!r} is {self.type!r}, not a decimal(p,s)")
        return int(match[1]), int(match[2])
