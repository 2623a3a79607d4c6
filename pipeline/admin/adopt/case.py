"""One database, all that was read of it, and what follows for each column and each foreign key. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.admin.adopt.kin import Kin
from pipeline.admin.checks.constraints import together
from pipeline.config.topology import Topology
from pipeline.shard.catalog import Catalog, ForeignKey
from pipeline.shard.columns import holds_64_bits
from pipeline.shard.survey import Survey


@dataclass(frozen=True, slots=True)
class Case:
    """What was found, and how it would be spread."""

    survey: Survey
    catalog: Catalog
    kin: Kin
    topology: Topology

    def stays(self, foreign: ForeignKey) -> bool:
        """Return whether a row will always stand on the shard of the row it refers to."""
        ours = [name in self.kin.taken for name in (foreign.table, foreign.parent)]
        if len(self.topology.shards) == 1 or not any(ours):
            return True
        return all(ours) and together(self.topology, foreign.table, foreign.columns, foreign.parent)

    def narrow(self) -> dict[tuple[str, str], str]:
        """Return (table, column) of what must hold 64 bits and does not, with the type that it needs.

        A foreign key that stays joins two columns of one type: what one needs the other needs too.
        """
        wide = {(name, key) for name in self.kin.taken if (key := self.catalog.tables[name].id)}
        wide |= {(ref.table, ref.column) for ref in self.kin.references if ref.table in self.kin.taken}
        joined = [
            ((key.table, key.columns[0]), (key.parent, key.parent_columns[0]))
            for key in self.catalog.foreign_keys
            if len(key.columns) == 1 and self.stays(key)
        ]
        while more := {b for pair in joined for a, b in (pair, pair[::-1]) if a in wide} - wide:
            wide |= more
        kinds = {place: self._type(*place) for place in wide}
        unsigned = {place for place, kind in kinds.items() if holds_64_bits(kind) and "unsigned" in kind}
        while more := {b for pair in joined for a, b in (pair, pair[::-1]) if a in unsigned} - unsigned:
            unsigned |= more
        wanted = {place: "BIGINT UNSIGNED" if place in unsigned else "BIGINT" for place in sorted(wide)}
        return {
            place: kind
            for place, kind in wanted.items()
            if "int" in kinds[place]
            and not (holds_64_bits(kinds[place]) and ("unsigned" in kinds[place]) == (place in unsigned))
        }

    def _type(self, table: str, column: str) -> str:
        return self.catalog.tables[table].columns[column].type
