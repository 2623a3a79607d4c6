"""The model: what the rows of `tally` must be after a list of deeds, done one after the other in a plain dict.

A deed is what one op does, as JSON: `["insert", owner, name, id]`, `["bump", owner, id, token]`,
`["bump_all", owner, token]`, `["upsert", owner, name, token]`, `["delete", owner, id]`, `["group", deed, …]`,
`["version", owner, id, token, kept id]`: a bump that keeps the row as it was, under another id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Deed = list[Any]


class Row(NamedTuple):
    """A row of `tally`; its id is None where only the database knows which one it kept."""

    owner: int
    name: str
    n: int
    trace: str


class Refused(Exception):
    """The database must refuse this deed."""


@dataclass
class Model:
    """The rows by id (for upserted rows: by a stand-in), with the unique key (owner, name)."""

    rows: dict[Any, Row] = field(default_factory=dict)
    names: dict[tuple[int, str], Any] = field(default_factory=dict)
    #: By id: whose they are, and the row as it was.
    versions: dict[int, tuple[int, Row]] = field(default_factory=dict)

    def do(self, deed: Deed) -> None:
        """Do one deed.

        Raises:
            Refused: it would break the unique key; nothing has changed.
        """
        kind, *rest = deed
        getattr(self, f"_{kind}")(*rest)

    def _insert(self, owner: int, name: str, id: int) -> None:
        if (owner, name) in self.names:
            raise Refused(name)
        self.rows[id] = Row(owner, name, 0, "")
        self.names[owner, name] = id

    def _bump(self, owner: int, id: int, token: str) -> None:
        row = self.rows.get(id)
        if row is not None:
            self.rows[id] = row._replace(n=row.n + 1, trace=row.trace + token)

    def _bump_all(self, owner: int, token: str) -> None:
        for id, row in list(self.rows.items()):
            if row.owner == owner:
                self._bump(owner, id, token)

    def _version(self, owner: int, id: int, token: str, kept: int) -> None:
        row = self.rows.get(id)
        if row is not None:
            self.versions[kept] = (id, row)
        self._bump(owner, id, token)

    def _upsert(self, owner: int, name: str, token: str) -> None:
        id = self.names.setdefault((owner, name), ("upserted", owner, name, token))
        self.rows[id] = Row(owner, name, 1, token)

    def _delete(self, owner: int, id: int) -> None:
        row = self.rows.pop(id, None)
        if row is not None:
            del self.names[row.owner, row.name]

    def _group(self, *deeds: Deed) -> None:
        before = dict(self.rows), dict(self.names), dict(self.versions)
        try:
            for deed in deeds:
                self.do(deed)
        except Refused:
            self.rows, self.names, self.versions = before
            raise
