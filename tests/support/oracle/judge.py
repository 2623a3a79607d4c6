"""The judge: what the databases hold, read with plain connections, against what the ledger says they must hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.model import Position
from support.oracle import nodes
from support.oracle.ledger import Acknowledged, Apart, Op, owners_in, rows_of, set_of
from support.oracle.model import Deed, Model, Row

#: The states of an op that is set aside; and of a part of a group, what says most first.
_ASIDE = ("rejected", "waiting", "parked")
_STOOD = "SELECT epoch, seq FROM pipeline_watermarks WHERE bucket = {} AND state = 'gone'"
_NEWS = (*_ASIDE, "dropped", "replayed", "lost", "applied")

#: How many differences a failure shows.
SHOWN = 8
#: Where a log begins.
START = Position(0, -1)
#: The states of a bucket on the shard that owns it.
OWNED = ("active", "holding", "halted", "lent", "stopped")


def states(primaries: dict[str, str], topology: Topology, ledger: Iterable[Acknowledged]) -> dict[Op, str]:
    """Return what became of each op: applied, lost, queued if nobody accounts for it, or its state if set aside.

    While a key is away both shards pass each entry of its bucket's log. A group that names both keys, and that only one
    of them refuses, is `torn`. A group that names rows by their ids is in the state of the part that is set aside.
    """
    books, owners = {shard: _Book(uri) for shard, uri in primaries.items()}, owners_of(primaries, topology)
    apart, found = away(primaries), dict[Op, str]()
    for one in set_of(ledger):
        owned = [owners[one.bucket]] if one.bucket in owners else topology.shards_of(one.bucket)
        told = [books[shard].state(one) for shard in owned]
        state = next((state for state in told if state != "applied"), "applied")
        if one.bucket in apart:
            shard, number, key = apart[one.bucket]
            there = books[shard].state(one._replace(bucket=number))
            mine = {owner == key for owner in owners_in(one.deed)}
            if "queued" in (state, there):
                state = "queued"
            elif len(mine) > 1 and state != there:
                both = sorted((state, there), key=_NEWS.index)
                state = "torn" if may_be_dropped(one.deed) else both[0]
            elif mine == {True}:
                state = there
        found[one.op] = state
    return found


def waits_in_bucket(primaries: dict[str, str], topology: Topology, ledger: Iterable[Acknowledged]) -> dict[Op, bool]:
    """Return of groups of several keys whether the shard of their bucket has set them aside."""
    books, owners = {shard: _Book(uri) for shard, uri in primaries.items()}, owners_of(primaries, topology)
    groups = (one for one in set_of(ledger) if len(owners_in(one.deed)) > 1)
    return {one.op: books[owners[one.bucket]].state(one) in _ASIDE for one in groups}


def left(primaries: dict[str, str], topology: Topology, key: int) -> Apart:
    """Return since when a key is away."""
    [(bucket, number)] = [(bucket, number) for bucket, (_, number, of) in away(primaries).items() if of == key]
    return Apart(bucket, key, _stood(primaries[topology.shard_of(bucket)], number))


def back(primaries: dict[str, str], apart: Apart) -> Apart:
    """Return when a key was away that has come back since."""
    sql = f"SELECT bucket FROM pipeline_moves WHERE of_bucket = {apart.bucket} AND of_key = '{apart.key}'"
    places = [(uri, number) for uri in primaries.values() for (number,) in nodes.rows(uri, sql)]
    ends = [_stood(uri, number) for uri, number in places if nodes.rows(uri, _STOOD.format(number))]
    return apart._replace(back=max(ends))


def _stood(uri: str, number: int) -> Position:
    [where] = nodes.rows(uri, _STOOD.format(number))
    return Position(*where)


def may_be_dropped(deed: Deed) -> bool:
    """Return whether an op may be dropped though nobody has dropped it: a group that names a key away and another."""
    kind, *members = deed
    return kind == "group" and len({owner for name, owner, *_ in members if name == "insert"}) > 1


def away(uris: dict[str, str]) -> dict[int, tuple[str, int, int]]:
    """Return of each bucket one of whose keys is away the shard that has the key, the number it has there, and the key.

    Args:
        uris: of a node of each shard.
    """
    sql = (
        "SELECT m.bucket, m.of_key FROM pipeline_moves m JOIN pipeline_watermarks w ON w.bucket = m.bucket"
        " WHERE m.of_bucket IS NOT NULL AND w.state IN ('active', 'holding', 'halted')"
    )
    found = dict[int, tuple[str, int, int]]()
    for shard, uri in uris.items():
        for number, key in nodes.rows(uri, sql):
            bucket = log_number(number)
            assert bucket not in found, f"two shards have a key of bucket {bucket}: {found[bucket]}, {shard} {number}"
            found[bucket] = shard, number, int(key)
    return found


def story(primaries: dict[str, str], topology: Topology, ledger: Iterable[Acknowledged], op: Op, log: Any) -> list[str]:
    """Return what is known of an op that was judged wrongly: its deed and places, and those of what names its rows."""
    every = list(ledger)
    told = states(primaries, topology, every)
    [this] = [one for one in set_of(every) if one.op == op]
    kin = [one for one in every if one.bucket == this.bucket and _names(one.deed) & _names(this.deed)]
    said = [
        f"{'>' if one.op == op else ' '} {one.position} p{one.producer}-{one.seq} {told[one.op]}: {one.deed}"
        for one in sorted(kin, key=lambda one: one.position)
    ]
    for shard in primaries:
        with nodes.connection(primaries[shard]) as made:
            of_log = f"bucket % {FIRST_PIECE} = {this.bucket}"  # a key that is away has a number of its own
            which = f"WHERE {of_log} AND producer = {this.producer}"
            said += [
                f"{shard} {table}: {row}"
                for table, sql in (
                    ("rejects", f"SELECT * FROM pipeline_rejects {which} AND producer_seq = {this.seq}"),
                    ("producers", f"SELECT * FROM pipeline_producers {which}"),
                    ("watermark", f"SELECT * FROM pipeline_watermarks WHERE {of_log}"),
                    ("moves", f"SELECT * FROM pipeline_moves WHERE {of_log}"),
                )
                for row in nodes.fetch(made, sql)
            ]
    entries = log.read({this.bucket: START}, {this.bucket: 10_000})[this.bucket]
    return said + [
        f"log: {one.position} p{one.producer}-{one.producer_seq} {one.payload[:200]!r}"
        for one in entries
        if any(str(name).encode() in one.payload for name in _names(this.deed))
    ]


def _names(deed: Any) -> set[Any]:
    """Return the ids of a deed's rows, and the name that an insert wants."""
    kind, *rest = deed
    if kind == "group":
        return {name for member in rest for name in _names(member)}
    return rows_of(deed) | ({rest[1]} if kind in ("insert", "upsert") else set())


def owners_of(primaries: dict[str, str], topology: Topology) -> dict[int, str]:
    """Return who owns each bucket by what the shards say of it, whatever a map says; no bucket has two owners.

    A bucket that nobody owns just now, since it is being handed over, is left out.
    """
    sql, found = f"SELECT bucket FROM pipeline_watermarks WHERE state IN {OWNED}", dict[int, str]()
    first = {shard: {*nodes.rows(uri, sql)} for shard, uri in primaries.items()}
    for shard, uri in primaries.items():
        for (bucket,) in first[shard].intersection(nodes.rows(uri, sql)):  # it may have gone from one to the other
            if bucket < topology.buckets:  # else it is the reference bucket
                assert bucket not in found, f"two shards own bucket {bucket}: {found[bucket]} and {shard}"
                found[bucket] = shard
    return found


def moving(primaries: dict[str, str]) -> list[str]:
    """Return a sentence for each bucket of which a shard says that its move is not over, or keeps its rows."""
    sql = (
        "SELECT m.bucket, m.source, m.target, m.note, w.state FROM pipeline_moves m"
        " JOIN pipeline_watermarks w ON w.bucket = m.bucket"
    )
    said = []
    for shard, uri in primaries.items():
        for bucket, source, target, note, state in nodes.rows(uri, sql):
            if state == "gone":
                over = json.loads(note)["cleaned"]
            else:
                over = shard == target and state not in ("copying", "catching")
            if not over:
                said.append(f"bucket {bucket}, {source} to {target}, is {state} on {shard}")
    return said


class _Book:
    """The pipeline's own tables on one node."""

    def __init__(self, uri: str):
        with nodes.connection(uri) as made:
            fetch = lambda sql: nodes.fetch(made, sql)  # noqa: E731
            self.producers = {
                (b, p): seq for b, p, seq in fetch("SELECT bucket, producer, seq FROM pipeline_producers")
            }
            rejects = fetch("SELECT bucket, producer, producer_seq, state FROM pipeline_rejects")
            self.rejects = {(b, p, seq): state for b, p, seq, state in rejects}
            self.lost = fetch("SELECT bucket, epoch, producer, first_seq, last_seq FROM pipeline_lost")

    def state(self, one: Acknowledged) -> str:
        """Return what this node says of an op."""
        if one.op in self.rejects:
            return str(self.rejects[one.op])
        if self.producers.get((one.bucket, one.producer), 0) >= one.seq and not self._is_lost(one):
            return "applied"
        return "lost" if self._is_lost(one) else "queued"

    def _is_lost(self, one: Acknowledged) -> bool:
        for bucket, epoch, producer, first, last in self.lost:
            if bucket != one.bucket:
                continue
            if producer == one.producer and first <= one.seq <= last:
                return True
            if producer == 0 and epoch == one.position.epoch and first <= one.position.seq <= last:
                return True
        return False


def tally_of(made: Any, owners: Iterable[int]) -> dict[tuple[int, str], tuple[int, str, int]]:
    """Return the rows of these owners on one node: (owner, name) -> (n, trace, id)."""
    chosen = ", ".join(map(str, owners))
    found = nodes.fetch(made, f"SELECT owner, name, n, trace, id FROM tally WHERE owner IN ({chosen})")
    rows = {(owner, name): (n, trace, id) for owner, name, n, trace, id in found}
    assert len(rows) == len(found), "two rows with one unique key"
    return rows


def versions_of(made: Any, owners: Iterable[int]) -> dict[int, tuple[int, Row]]:
    """Return the versions of these owners' rows on one node: id -> (row id, the row as it was)."""
    chosen = ", ".join(map(str, owners))
    sql = f"SELECT id, current_record, owner, name, n, trace FROM tally_archive WHERE owner IN ({chosen})"
    return {id: (row_id, Row(*row)) for id, row_id, *row in nodes.fetch(made, sql)}


def differences(model: Model, rows: dict[tuple[int, str], tuple[int, str, int]]) -> list[str]:
    """Return a sentence for each row that is not as the model has it."""
    wanted = {(row.owner, row.name): (row.n, row.trace, id) for id, row in model.rows.items()}
    said = [f"{key} is missing: {wanted[key]}" for key in wanted.keys() - rows.keys()]
    said += [f"{key} must not be there: {rows[key]}" for key in rows.keys() - wanted.keys()]
    for key in wanted.keys() & rows.keys():
        want, have = wanted[key], rows[key]
        known = not isinstance(want[2], int) or want[2] == have[2]
        if want[:2] != have[:2] or not known:
            said.append(f"{key} is {have}, must be {want}; {_trace_difference(want[1], have[1])}")
    return said


def _trace_difference(wanted: str, found: str) -> str:
    want, have = wanted.split(","), found.split(",")
    doubled = [token for token, times in Counter(have).items() if times > 1]
    return f"missing {sorted(set(want) - set(have))}, added {sorted(set(have) - set(want))}, doubled {doubled}"
