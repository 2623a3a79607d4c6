"""Parents and children in other buckets of a shard, whose order a foreign key wants: their tables, and their judge.

A child is enqueued after its parent, a delete after all that refers to its row. So nothing is refused that arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydal import Field
from support.oracle import nodes

if TYPE_CHECKING:
    from storm.deeds import Deed

#: What ops of families are called.
PARENT, CHILD, ORPHANED, LEFT = "parent", "child", "child deleted", "parent deleted"
KINDS = (PARENT, CHILD, ORPHANED, LEFT)
TABLES: Mapping[str, Mapping[str, Any]] = {name: {"shard_key": "owner"} for name in (PARENT, CHILD)}
TOML = "".join(f'\n[tables.{name}]\nshard_key = "owner"\n' for name in TABLES)
#: What a receipt says of an op that the database refused, or that is behind one of the same row.
SET_ASIDE = frozenset({"rejected", "parked"})


class Family(NamedTuple):
    """A parent, its child, and perhaps their deletes: deeds of one caller, in order."""

    deeds: list[Deed]


def define(db: Any) -> Any:
    """Add the tables to a DAL, and return it."""
    db.define_table(PARENT, Field("owner", "integer", notnull=True), Field("body", length=60))
    db.define_table(
        CHILD,
        Field("owner", "integer", notnull=True),
        Field("up", f"reference {PARENT}"),
        Field("body", length=60),
    )
    return db


def bodies(made: Any, owners: str) -> Iterator[tuple[str, Counter[str]]]:
    """Yield of each table how often which token is there, and of `no parent` the tokens of children without one.

    Args:
        made: a connection to a node.
        owners: whose rows, separated by commas.
    """
    for table in TABLES:
        found = nodes.fetch(made, f"SELECT body FROM {table} WHERE owner IN ({owners})")
        yield table, Counter(body for (body,) in found)
    has_parent = f"EXISTS (SELECT 1 FROM {PARENT} p WHERE p.id = c.up)"
    orphans = f"SELECT body FROM {CHILD} c WHERE owner IN ({owners}) AND NOT {has_parent}"
    yield "no parent", Counter(body for (body,) in nodes.fetch(made, orphans))


def broken_by(families: Iterable[Family], rows: Mapping[str, Counter[str]], *, in_order: bool) -> Iterator[str]:
    """Yield every broken promise.

    Args:
        families: whose deeds have their last word in `told`.
        rows: what `bodies` yields, of all primaries.
        in_order: whether nothing has shaken the order in which ops arrive: what Redis has forgotten is sent again, and
            may come after what refers to it; a host whose clock is set says wrongly when it enqueued.
    """
    yield from (f"orphaned: {token}" for token in rows["no parent"])
    for family in families:
        refused = [deed for deed in family.deeds if deed.told in SET_ASIDE]
        arrived = all(deed.said == "acknowledged" and deed.told != "lost" for deed in family.deeds)
        if refused and arrived and in_order:
            yield f"refused early: {family.deeds}"
        yield from _rows_differ(family.deeds, rows, settled=arrived and not refused)


def _rows_differ(deeds: Sequence[Deed], rows: Mapping[str, Counter[str]], *, settled: bool) -> Iterator[str]:
    kinds = {deed.kind for deed in deeds}
    due = {PARENT: LEFT not in kinds, CHILD: CHILD in kinds and not kinds & {ORPHANED, LEFT}}
    for table, expected in due.items():
        times = rows[table][deeds[0].token]
        if times > 1:
            yield f"doubled: {table} of {deeds} is there {times} times"
        if settled and times != expected:
            yield f"wrong: {table} of {deeds} is there {times} times"
