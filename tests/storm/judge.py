"""The judge of a schedule: what the databases hold, against what was said to the callers and what receipts tell.

It reads with plain connections. A sentence is a broken promise; a schedule that keeps all gives none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from storm import families
from storm.deeds import ACKNOWLEDGED, DONE, IN_DOUBT, REFUSED, Caller, Deed
from support.oracle import nodes

#: Kinds whose effect is judged row by row in the order of their caller, and not by their token alone.
IN_TURN = ("upsert", "insert", "update", "delete")
#: What each token is looked for in.
BODIES = ("event", "note", "parent", "child", "no parent")


@dataclass
class Rows:
    """What all shards hold.

    Attributes:
        tally: by id: owner, name, n, trace.
        bodies: of each other table, how often which token is there; of a reference table how often on each shard, or
            0 where a shard lacks it: then the op is lost, though other shards have applied it.
    """

    tally: dict[int, tuple[int, str, int, str]] = field(default_factory=dict)
    bodies: dict[str, Counter[str]] = field(default_factory=dict)

    def named(self, owner: int, name: str) -> tuple[int, str] | None:
        """Return n and trace of the row with a unique key."""
        return next((row[2:] for row in self.tally.values() if row[:2] == (owner, name)), None)


def rows_of(primaries: dict[str, str], owners: Iterable[int]) -> Rows:
    """Read the rows of some owners from all primaries."""
    rows, chosen = Rows({}, {name: Counter() for name in BODIES}), ", ".join(map(str, owners))
    countries: list[Counter[str]] = []
    for uri in primaries.values():
        with nodes.connection(uri) as made:
            where = f"WHERE owner IN ({chosen})"
            sql = f"SELECT id, owner, name, n, trace FROM tally {where}"
            rows.tally |= {id: (o, name, n, trace) for id, o, name, n, trace in nodes.fetch(made, sql)}
            for table in ("event", "note"):
                rows.bodies[table].update(body for (body,) in nodes.fetch(made, f"SELECT body FROM {table} {where}"))
            for table, found in families.bodies(made, chosen):
                rows.bodies[table] += found
            countries.append(Counter(name for (name,) in nodes.fetch(made, "SELECT name FROM country")))
    every = set().union(*countries)
    least = {name: min(found[name] for found in countries) for name in every}
    rows.bodies["country"] = Counter({name: least[name] and max(found[name] for found in countries) for name in every})
    return rows


def verdict(callers: Sequence[Caller], rows: Rows, *, may_lose: bool, in_order: bool = True) -> list[str]:
    """Return every broken promise, a sentence each.

    Args:
        callers: whose deeds have their last word in `told`.
        rows: what the databases hold.
        may_lose: whether Redis has forgotten anything, so that an op of level `redis` may be told lost.
        in_order: whether no host's clock was set.
    """
    said: list[str] = []
    for caller in callers:
        said += [f"surprise: {one}" for one in caller.surprises]
        for deed in caller.deeds:
            if deed.kind not in families.KINDS or deed.told not in families.SET_ASIDE:
                said += _unsettled(deed, may_lose and caller.durability == "redis")
            if deed.kind not in (*IN_TURN, *families.KINDS):
                said += _effect(deed, rows)
        said += _order(caller, rows)
        said += _in_turn(caller, rows)
        said += _reads(caller)
        said += families.broken_by(caller.families, rows.bodies, in_order=in_order and not may_lose)
    return [*said, *_counts(rows)]


def _unsettled(deed: Deed, may_lose: bool) -> Iterator[str]:
    if deed.said != ACKNOWLEDGED:
        return
    if deed.told == "lost" and not may_lose:
        yield f"lost: {deed} is told lost, and nothing was forgotten that it hung on"
    elif deed.told not in DONE | {"lost"}:
        yield f"not recovered: {deed}"


def _effect(deed: Deed, rows: Rows) -> Iterator[str]:
    there = [_times(place, deed.token, rows) for place in deed.places]
    if len(set(there)) > 1:
        yield f"torn: {deed} took effect {there} times"
    if max(there) > 1:
        yield f"doubled: {deed} took effect {max(there)} times"
    if deed.said == REFUSED and max(there):
        yield f"refused, and done: {deed}"
    if deed.said != ACKNOWLEDGED:
        return
    if deed.told in DONE and not min(there):
        yield f"lost unreported: {deed}"
    if deed.told == "lost" and max(there):
        yield f"falsely lost: {deed}"


def _times(place: tuple[str, int, int | str], token: str, rows: Rows) -> int:
    table, _, row = place
    if table == "tally":
        found = rows.tally.get(int(row))
        return found[3].split(",").count(token.rstrip(",")) if found else 0
    return rows.bodies[table][token]


def _order(caller: Caller, rows: Rows) -> Iterator[str]:
    """Yield where the tokens of a caller's deeds are in another order than its calls."""
    known = {deed.token: n for n, deed in enumerate(caller.deeds) if deed.said == ACKNOWLEDGED}
    for owner, name, _, trace in rows.tally.values():
        mine = [known[f"{token},"] for token in trace.split(",") if f"{token}," in known]
        if mine != sorted(mine):
            yield f"reordered: {caller.name} on {owner}/{name}: {mine}"


def _counts(rows: Rows) -> Iterator[str]:
    for owner, name, n, trace in rows.tally.values():
        tokens = [token for token in trace.split(",") if token]
        if n != len(tokens):
            yield f"torn: {owner}/{name} has n = {n} and {len(tokens)} tokens"


def _in_turn(caller: Caller, rows: Rows) -> Iterator[str]:
    """Yield where a row that is a caller's own is not as its deeds leave it, one after the other."""
    turns: dict[tuple[str, int, int | str], list[Deed]] = {}
    for deed in caller.deeds:
        if deed.kind in IN_TURN:
            turns.setdefault(deed.places[0], []).append(deed)
    for (_, owner, name), deeds in turns.items():
        possible = {None}
        for deed in deeds:
            done = {_after(deed, trace) for trace in possible}
            if deed.said == IN_DOUBT:
                possible |= done
            elif deed.said == ACKNOWLEDGED and deed.told in DONE:
                possible = done
        found = rows.named(owner, str(name))
        trace = None if found is None else found[1]
        if trace not in possible:
            yield f"wrong: {owner}/{name} has {trace!r}, may have {possible}: {deeds}"


def _after(deed: Deed, trace: str | None) -> str | None:
    if deed.kind == "delete":
        return None
    if deed.kind == "update":
        return None if trace is None else trace + deed.token
    return "" if deed.kind == "insert" else deed.token


def _reads(caller: Caller) -> Iterator[str]:
    """Yield reads that lacked what their caller had written, or had seen before."""
    seen: dict[int, set[str]] = {}
    lost = {deed.token.rstrip(",") for deed in caller.deeds if deed.told == "lost"}
    for sight in caller.sights:
        tokens, owner = set(sight.trace.split(",")), sight.own.owner
        own = sight.own.token.rstrip(",")
        if own not in tokens and sight.own.told in DONE:
            yield f"stale: {caller.name} read {sight.trace[-60:]!r} after {sight.own}"
        if sight.session:
            if gone := seen.get(owner, set()) - tokens - lost:
                yield f"stale: {caller.name} saw {gone} in its session before, and not in {sight.trace[-60:]!r}"
            seen[owner] = tokens
