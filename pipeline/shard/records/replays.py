"""Read ops that were set aside, and settle what a replay has made of them.

The functions run inside the transaction that has locked the ops' buckets, and so never beside an apply transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from typing import NamedTuple

from pipeline.model.op import Entry, Position
from pipeline.shard.records import set_aside
from pipeline.shard.records.ledger import ACTIVE, HALTED, HOLDING, Reject, text_literal
from pipeline.shard.records.set_aside import ASIDE, PARKED, WAITING
from pipeline.shard.session import NodeSession

REPLAYED, DROPPED = "replayed", "dropped"
#: Where an op is: its bucket and its position.
Place = tuple[int, Position]
#: Rows that are held of which one query reads.
_PAGE = 5000
_ASIDE = ", ".join(f"'{state}'" for state in ASIDE)


class Aside(NamedTuple):
    """An op that is set aside, and why."""

    entry: Entry
    state: str
    table: str
    row_key: str
    code: int | None
    reason: str
    rejected_ms: int

    @property
    def place(self) -> Place:
        """Where the op is."""
        return self.entry.bucket, self.entry.position


def behind(session: NodeSession, bucket: int, chosen: Sequence[Position], most: int) -> dict[Place, frozenset[str]]:
    """Return the first *most* of some ops and of everything that waits behind them, in order, with their row keys.

    An op waits behind an earlier one if they hold a row in common, and so behind what that one waits for.

    Args:
        session: inside the transaction.
        bucket: the bucket of the ops.
        chosen: the ops' positions, ascending; at least one.
        most: the most ops to return.
    """
    heads, found, rows = set(chosen), dict[Place, frozenset[str]](), set[str]()
    bare = ((position, frozenset[str]()) for position in chosen)  # an op may hold nothing
    for position, keys in merge(bare, _held(session, bucket, chosen[0]), key=lambda one: one[0]):
        if position not in heads and rows.isdisjoint(keys):
            continue
        if (bucket, position) not in found and len(found) == most:
            break
        found[bucket, position] = keys
        rows |= keys
    return found


def take(session: NodeSession, places: Sequence[Place], most_bytes: int) -> tuple[list[Aside], list[Place]]:
    """Return ops that are set aside, in the order of their places, and the places of those that are not any more.

    Args:
        session: inside a transaction.
        places: which ops.
        most_bytes: the size of the ops at which no more are read; one is read in any case.
    """
    sizes = {
        (bucket, Position(epoch, seq)): int(size)
        for part in set_aside.parts(places)
        for bucket, epoch, seq, size in session.rows(
            f"SELECT bucket, epoch, seq, LENGTH(op) FROM pipeline_rejects WHERE state IN ({_ASIDE}) AND ({at(part)})"
        )
    }
    chosen, room = list[Place](), most_bytes
    for place in (place for place in places if place in sizes):
        if chosen and room <= 0:
            break
        chosen.append(place)
        room -= sizes[place]
    found = {op.place: op for part in set_aside.parts(chosen) for op in ops_where(session, at(part))}
    return [found[place] for place in chosen], [place for place in places if place not in sizes]


def ops_where(session: NodeSession, which: str) -> list[Aside]:
    """Return ops that were set aside.

    Args:
        session: inside a transaction.
        which: an SQL condition on `pipeline_rejects`, and what may follow it.
    """
    return [
        Aside(
            Entry(bucket, Position(epoch, seq), producer, producer_seq, op.encode()),
            state, table, row_key, code, reason, rejected_ms,
        )
        for bucket, epoch, seq, producer, producer_seq, state, table, row_key, code, reason, op, rejected_ms in (
            session.rows(
                "SELECT bucket, epoch, seq, producer, producer_seq, state, table_name, row_key, code, reason, op,"
                f" rejected_ms FROM pipeline_rejects WHERE {which}"
            )
        )
    ]  # fmt: skip


class Waiting(NamedTuple):
    """An op that waits behind no other: its place, its table, and the table whose ops it may need, if it is that."""

    place: Place
    table: str
    needs: str


def waiting(session: NodeSession, most: int) -> list[Waiting]:
    """Return the ops that wait behind no other, in the order in which they were set aside.

    Args:
        session: inside a transaction.
        most: the most ops.
    """
    found = session.rows(
        f"SELECT bucket, epoch, seq, table_name, reason FROM pipeline_rejects WHERE state = '{WAITING}'"
        f" ORDER BY rejected_ms, bucket, epoch, seq LIMIT {most}"
    )
    return [
        Waiting((bucket, Position(epoch, seq)), table, set_aside.needs_of(reason))
        for bucket, epoch, seq, table, reason in found
    ]


def tables_waiting(session: NodeSession) -> set[str]:
    """Return the tables of the ops that wait behind no other.

    Args:
        session: inside a transaction.
    """
    found = session.rows(f"SELECT DISTINCT table_name FROM pipeline_rejects WHERE state = '{WAITING}'")
    return {table for (table,) in found}


def at(places: Iterable[Place]) -> str:
    """Return the condition that names ops by their places: a range of the index per bucket and epoch.

    Args:
        places: which ops; at least one.
    """
    seqs: dict[tuple[int, int], list[int]] = {}
    for bucket, position in places:
        seqs.setdefault((bucket, position.epoch), []).append(position.seq)
    return " OR ".join(
        f"(bucket = {bucket} AND epoch = {epoch} AND seq IN ({', '.join(map(str, own))}))"
        for (bucket, epoch), own in seqs.items()
    )


def settle(
    session: NodeSession,
    ops: Sequence[Aside],
    rows: Iterable[tuple[int, str]],
    done: Mapping[str, Iterable[Place]],
    left: Sequence[Reject],
) -> list[Place]:
    """Record what became of ops. Return other ops that nothing is before any more, though nobody has tried them.

    Args:
        session: inside the transaction.
        ops: all that a replay has taken.
        rows: bucket and key of the rows that they held.
        done: the places of those that are settled, by their new state.
        left: those that are not: refused again, or parked.
    """
    if not ops:
        return []
    mine = {op.place: op for op in ops}
    for part in set_aside.parts(list(mine)):
        session.execute(f"DELETE FROM pipeline_held WHERE {at(part)}")
    set_aside.hold(session, left)
    for state, places in done.items():
        _change(session, f"state = '{state}'", list(places))
    _note(session, mine, left)
    fronts = _fronts(session, rows)
    _change(session, f"state = '{WAITING}'", fronts)
    untried = [place for place in fronts if place not in mine]
    _change(session, "reason = 'waits to be replayed: nothing is before it any more'", untried)
    _settle_buckets(session, {op.entry.bucket for op in ops})
    return untried


def _note(session: NodeSession, before: Mapping[Place, Aside], left: Sequence[Reject]) -> None:
    """Record why ops are still set aside, where that has changed."""
    told: dict[str, list[Place]] = {}
    for one in left:
        place = (one.entry.bucket, one.entry.position)
        was = before[place]
        if (was.state, was.code, was.reason) != (one.state, one.code, one.reason):
            code = "NULL" if one.code is None else one.code
            told.setdefault(
                f"state = '{one.state}', code = {code}, reason = {set_aside.cut(one.reason, 4000)}", []
            ).append(place)
    for change, places in told.items():
        _change(session, change, places)


def _fronts(session: NodeSession, rows: Iterable[tuple[int, str]]) -> list[Place]:
    """Return the parked ops that hold one of *rows*, and wait behind no op in any of their rows."""
    first = set_aside.holders(session, rows)
    places = sorted({(bucket, position) for (bucket, _), position in first.items()})
    parked = [
        (bucket, Position(epoch, seq))
        for part in set_aside.parts(places)
        for bucket, epoch, seq in session.rows(
            f"SELECT bucket, epoch, seq FROM pipeline_rejects WHERE state = '{PARKED}' AND ({at(part)})"
        )
    ]
    keys = _keys_of(session, parked)
    first = set_aside.holders(session, {(bucket, key) for (bucket, _), own in keys.items() for key in own})
    return [
        (bucket, position)
        for (bucket, position), own in keys.items()
        if all(first[bucket, key] == position for key in own)
    ]


def _settle_buckets(session: NodeSession, buckets: Iterable[int]) -> None:
    """Let buckets go on whose head is gone; note which have held rows yet."""
    mine = f"SELECT 1 FROM pipeline_rejects AS r WHERE r.bucket = w.bucket AND r.state IN ({_ASIDE})"
    head = f"EXISTS ({mine} AND r.epoch = w.epoch AND r.seq = w.seq)"
    holds = "EXISTS (SELECT 1 FROM pipeline_held AS h WHERE h.bucket = w.bucket)"
    for bucket, state, stays, holding in session.rows(
        f"SELECT bucket, state, {head}, {holds} FROM pipeline_watermarks AS w"
        f" WHERE bucket IN ({', '.join(map(str, buckets))}) AND state IN ('{ACTIVE}', '{HOLDING}', '{HALTED}')"
    ):
        now = HALTED if state == HALTED and stays else HOLDING if holding else ACTIVE
        if now != state:
            session.execute(f"UPDATE pipeline_watermarks SET state = '{now}' WHERE bucket = {bucket}")


def _held(session: NodeSession, bucket: int, start: Position) -> Iterator[tuple[Position, frozenset[str]]]:
    """Yield the ops from a position on that hold rows, in order, with their row keys."""
    for (epoch, seq), rows in groupby(_held_rows(session, bucket, start), key=lambda row: row[:2]):
        yield Position(epoch, seq), frozenset(key for _, _, key in rows)


def _held_rows(session: NodeSession, bucket: int, start: Position) -> Iterator[tuple[int, int, str]]:
    epoch, seq, key = *start, ""
    while True:
        after = f"(seq > {seq} OR (seq = {seq} AND row_key > {text_literal(key)}))"
        page = session.rows(
            f"SELECT epoch, seq, row_key FROM pipeline_held WHERE bucket = {bucket}"
            f" AND (epoch > {epoch} OR (epoch = {epoch} AND {after})) ORDER BY epoch, seq, row_key LIMIT {_PAGE}"
        )
        yield from page
        if len(page) < _PAGE:
            return
        epoch, seq, key = page[-1]


def _keys_of(session: NodeSession, places: Sequence[Place]) -> dict[Place, set[str]]:
    """Return the keys of the rows that ops hold, by the ops' places."""
    found: dict[Place, set[str]] = {}
    for part in set_aside.parts(places):
        for bucket, epoch, seq, key in session.rows(
            f"SELECT bucket, epoch, seq, row_key FROM pipeline_held WHERE {at(part)}"
        ):
            found.setdefault((bucket, Position(epoch, seq)), set()).add(key)
    return found


def _change(session: NodeSession, change: str, places: Sequence[Place]) -> None:
    for part in set_aside.parts(places):
        session.execute(f"UPDATE pipeline_rejects SET {change}, changed_ms = {session.dialect.now_ms} WHERE {at(part)}")
