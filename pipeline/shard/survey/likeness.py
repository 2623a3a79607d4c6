"""Judge whether a replica is like its primary: each row gets there, only replication writes, texts and times are equal.

A replica's watermarks say what was applied. They prove nothing of rows that a filter left out, or whose errors were
passed over: the watermarks moved all the same. Pure; `survey.mysql.traits` reads what is judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

_EMPTY: Mapping[str, str] = {}
#: How many columns of another collation are named.
NAMED = 3


class Traits(NamedTuple):
    """What of a node decides whether a replica shows what its primary has. Names and values are in lower case.

    Attributes:
        database: its name.
        settings: global settings, and filters of the replication's channels, by the settings' names.
        seen: whether the user may see all filters; else only those among the global settings.
        replicates: whether it follows another server; None where that is not known.
        clock: what its own time zone makes of two moments of a year.
        collations: by `table.column`; the empty name is the database itself.
    """

    database: str
    settings: Mapping[str, str]
    seen: bool = True
    replicates: bool | None = None
    clock: str = ""
    collations: Mapping[str, str] = _EMPTY


class Difference(NamedTuple):
    """One way in which a replica is not like its primary.

    Attributes:
        place: a setting or a column.
        what: what is there; the sentence continues after the place.
        cure: the SQL, or what to change.
        lasting: whether rows may be missing for good, also once the cause is gone: the replica has to be rebuilt.
    """

    place: str
    what: str
    cure: str
    lasting: bool = False


def differences(replica: Traits, primary: Traits) -> Iterator[Difference]:
    """Yield in what a replica is not like its primary.

    Args:
        replica: what the replica answered.
        primary: what its primary answered, at about the same time.
    """
    yield from _left_out(replica)
    if _is_off(replica, "read_only") and _is_off(primary, "read_only") and replica.replicates is not False:
        what = "is OFF: anything could write here, and the replica would differ from its primary"
        yield Difference("read_only", what, "SET GLOBAL read_only = ON, and in my.cnf")
    if replica.clock != primary.clock:
        what = f"makes {replica.clock} of what its primary takes for {primary.clock}"
        yield Difference("time_zone", what, "give both servers the same time_zone, also in my.cnf")
    yield from _collated_otherwise(replica.collations, primary.collations)


def _left_out(replica: Traits) -> Iterator[Difference]:
    """Yield each setting for which rows do not get to a replica though its watermarks move."""
    settings = replica.settings
    for name, value in _filters(replica):
        what = f"is {value}: what it leaves out is missing here, and watermarks do not show it"
        yield Difference(name, what, "remove the filter, also from my.cnf", lasting=True)
    for name in ("slave_exec_mode", "replica_exec_mode"):
        if settings.get(name) == "idempotent":
            what = "is IDEMPOTENT: a change of a row that is missing here is passed over"
            yield Difference(name, what, f"SET GLOBAL {name} = STRICT, and in my.cnf", lasting=True)
            break  # MySQL 8 has the setting under both names
    for name in ("slave_skip_errors", "replica_skip_errors"):
        if settings.get(name, "off") not in ("", "off"):
            what = f"is {settings[name]}: changes that fail with such an error are passed over"
            yield Difference(name, what, "remove it from my.cnf, and restart the server", lasting=True)
            break


def _filters(replica: Traits) -> Iterator[tuple[str, str]]:
    """Yield each filter that may leave out changes of the database, by its setting's name. Others are no fault."""
    own = replica.database
    hits: dict[str, bool] = {}
    listed = {name: _list(value) for name, value in replica.settings.items() if name.startswith("replicate_")}
    hits["replicate_do_db"] = own not in listed.get("replicate_do_db", [own])
    hits["replicate_ignore_db"] = own in listed.get("replicate_ignore_db", ())
    everything = f"{own}.%" in listed.get("replicate_wild_do_table", ())
    for name in ("replicate_do_table", "replicate_wild_do_table"):
        hits[name] = not everything
    for name in ("replicate_ignore_table", "replicate_wild_ignore_table"):
        hits[name] = any(_may_be_in(own, pattern) for pattern in listed.get(name, ()))
    hits["replicate_rewrite_db"] = any(own in pair for pair in listed.get("replicate_rewrite_db", ()))
    for name in ("replicate_do_domain_ids", "replicate_ignore_domain_ids"):
        hits[name] = True
    for name, hit in hits.items():
        if hit and listed.get(name):
            yield name, replica.settings[name]


def _may_be_in(database: str, pattern: str) -> bool:
    """Return whether tables of the database may match a filter's pattern; a `%` or `_` is never taken literally."""
    place = pattern.replace("\\", "").partition(".")[0]
    return fnmatchcase(database, place.replace("%", "*").replace("_", "?"))


def _collated_otherwise(replica: Mapping[str, str], primary: Mapping[str, str]) -> Iterator[Difference]:
    """Yield what has another collation; a column that one of the two lacks is for another check."""
    others = [name for name, collation in replica.items() if primary.get(name, collation) != collation]
    if not others:
        return
    first = others[0]
    names = ", ".join(name or "the database" for name in others[:NAMED])
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    what = f"has {replica[first]} where its primary has {primary[first]}: texts compare otherwise"
    yield Difference(f"collation of {names}{more}", what, "give both the same collation, or rebuild the replica")


def _is_off(node: Traits, name: str) -> bool:
    return node.settings.get(name) in ("0", "off")


def _list(value: str) -> Sequence[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
