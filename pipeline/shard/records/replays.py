"""Read ops that were set aside, change them, settle what a replay has made of them; record who did what.

The functions run inside the transaction that has locked the ops' buckets, and so never beside an apply transaction.

Change ops that are set aside, give up what is old or too much, and record who did what to which op.
The functions run inside the transaction of the action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from typing import NamedTuple

from pipeline.errors import BadOp
from pipeline.model import Entry, Position
from pipeline.shard import NodeSession
from pipeline.shard.records import ACTIVE, HALTED, HOLDING, Reject, set_aside, text_literal
from pipeline.shard.records.set_aside import ASIDE, PARKED, WAITING

REPLAYED, DROPPED = "replayed", "dropped"
#: Where an op is: its bucket and its position.
Place = tuple[int, Position]
#: Rows that are held of which one query reads.
_PAGE = 5000
_ASIDE = ", ".join(f"'{state}'" for state in ASIDE)
#: What is left of an op whose values are given up: no op.
_BARE = "'{}'"
#: What is kept of a reason when its op is given up.
_SHORTER = "SUBSTR(reason, 1, 300)"
_HELD = (
    "EXISTS (SELECT 1 FROM pipeline_held AS h WHERE h.bucket = pipeline_rejects.bucket"
    " AND h.epoch = pipeline_rejects.epoch AND h.seq = pipeline_rejects.seq)"
)
_SETTLED = f"state IN ('{REPLAYED}', '{DROPPED}')"
#: What nothing waits behind: if what holds a row went, later ops of the row would be applied without a word.
_FREE = f"state = '{set_aside.REJECTED}' AND NOT {_HELD}"
#: Rows that one of these transactions changes at most.
_MOST_ROWS = 1000


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
            "SELECT bucket, epoch, seq, LENGTH(op) FROM pipeline_rejects "
            f"WHERE state IN ({_ASIDE}) AND ({at_places(part)})"
        )
    }
    chosen, room = list[Place](), most_bytes
    for place in (place for place in places if place in sizes):
        if chosen and room <= 0:
            break
        chosen.append(place)
        room -= sizes[place]
    found = {op.place: op for part in set_aside.parts(chosen) for op in ops_where(session, at_places(part))}
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
    """An op that waits behind no other: its place, its table, the table whose ops it may need, if any, and why."""

    place: Place
    table: str
    needs: str
    reason: str


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
        Waiting((bucket, Position(epoch, seq)), table, set_aside.needs_of(reason), reason)
        for bucket, epoch, seq, table, reason in found
    ]


def tables_waiting(session: NodeSession) -> dict[str, bool]:
    """Return the tables of the ops that wait behind no other, and whether some wait for their definition.

    Args:
        session: inside a transaction.
    """
    found = session.rows(
        f"SELECT table_name, MAX({set_aside.IS_BEHIND}) FROM pipeline_rejects"
        f" WHERE state = '{WAITING}' GROUP BY table_name"
    )
    return {table: bool(is_behind) for table, is_behind in found}


def aside_beside(session: NodeSession, taken: Iterable[Aside]) -> set[str]:
    """Return the tables of the ops that are set aside and not refused, but for some ops.

    Args:
        session: inside a transaction.
        taken: these ops.
    """
    own = Counter(one.table for one in taken if one.state in (WAITING, PARKED))
    found = session.rows(
        "SELECT table_name, COUNT(*) FROM pipeline_rejects"
        f" WHERE state IN ('{WAITING}', '{PARKED}') GROUP BY table_name"
    )
    return {table for table, ops in found if ops > own[table]}


def at_places(places: Iterable[Place]) -> str:
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
        session.execute(f"DELETE FROM pipeline_held WHERE {at_places(part)}")
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
            f"SELECT bucket, epoch, seq FROM pipeline_rejects WHERE state = '{PARKED}' AND ({at_places(part)})"
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
            f"SELECT bucket, epoch, seq, row_key FROM pipeline_held WHERE {at_places(part)}"
        ):
            found.setdefault((bucket, Position(epoch, seq)), set()).add(key)
    return found


def _change(session: NodeSession, change: str, places: Sequence[Place]) -> None:
    for part in set_aside.parts(places):
        session.execute(
            f"UPDATE pipeline_rejects SET {change}, changed_ms = {session.dialect.now_ms} WHERE {at_places(part)}"
        )


def change_op(session: NodeSession, place: Place, payload: bytes) -> None:
    """Store an op that was edited.

    Args:
        session: inside the transaction that has locked its bucket.
        place: of the op.
        payload: the op as it is from now on.

    Raises:
        BadOp: the server takes no statement that holds it.
    """
    if (op := set_aside.whole_op(payload, session.statement_bytes() - 1000)) is None:
        raise BadOp(f"the op would have {len(payload):,} bytes; the server takes {session.statement_bytes():,}")
    session.execute(
        f"UPDATE pipeline_rejects SET op = {op}, changed_ms = {session.dialect.now_ms} WHERE {at_places([place])}"
    )


class Action(NamedTuple):
    """What somebody did to an op, and the state in which that left it."""

    at_ms: int
    who: str
    action: str
    place: Place
    result: str


def last_actions(session: NodeSession, most: int) -> list[Action]:
    """Return the last actions on a shard, the newest first.

    Args:
        session: of the shard's primary.
        most: how many at most.
    """
    found = session.query(
        f"SELECT at_ms, who, action, bucket, epoch, seq, result FROM pipeline_actions ORDER BY id DESC LIMIT {most}"
    )
    return [Action(at, by, what, (b, Position(epoch, seq)), state) for at, by, what, b, epoch, seq, state in found]


def note_actions(
    session: NodeSession, who: str, action: str, results: Mapping[Place, str], before: Mapping[Place, str] | None = None
) -> None:
    """Record who did what to which ops.

    Args:
        session: inside the transaction of the action.
        who: the operator, as the system knows them.
        action: replay, drop or edit.
        results: the state in which the action left each op, by its place.
        before: of an edit, the op as it was.
    """
    now, before = session.dialect.now_ms, before or {}
    rows = [
        f"({now}, {text_literal(who[:128])}, '{action}', {bucket}, {position.epoch}, {position.seq}, '{result}',"
        f" {text_literal(before[bucket, position]) if (bucket, position) in before else 'NULL'})"
        for (bucket, position), result in results.items()
    ]
    for part in set_aside.parts(rows):
        session.execute(
            "INSERT INTO pipeline_actions (at_ms, who, action, bucket, epoch, seq, result, op_before)"
            f" VALUES {', '.join(part)}"
        )


def drop_old_rejects(session: NodeSession, older_than_days: int, moving: Collection[int] = ()) -> int:
    """Give up ops that were refused long ago and hold no row, a few at a time; return how many.

    Args:
        session: inside a transaction.
        older_than_days: how long ago; 0: never.
        moving: buckets that two shards compare, which are left as they are.
    """
    if not older_than_days:
        return 0
    now = session.dialect.now_ms
    return session.execute(
        f"UPDATE pipeline_rejects SET {_gives_up(session, 'rejects_days')}"
        f" WHERE {_FREE} AND changed_ms < {now} - {older_than_days * 86_400_000}{_but(moving)}"
        + (f" LIMIT {_MOST_ROWS}" if session.dialect.name == "mysql" else "")
    )


def forget_settled(session: NodeSession, older_than_s: int, moving: Collection[int] = ()) -> None:
    """Delete ops that were replayed or dropped long ago, a few at a time; the record of actions stays.

    Args:
        session: inside a transaction.
        older_than_s: how long ago, seconds.
        moving: see `drop_old_rejects`.
    """
    session.execute(
        f"DELETE FROM pipeline_rejects WHERE {_SETTLED}"
        f" AND changed_ms < {session.dialect.now_ms} - {older_than_s * 1000}{_but(moving)}"
        + (f" LIMIT {_MOST_ROWS}" if session.dialect.name == "mysql" else "")
    )


def too_much(session: NodeSession, most_bytes: int) -> bool:
    """Return whether what is set aside may be larger than it may be; MariaDB counts its pages, SQLite is not asked.

    Args:
        session: of the primary, outside a transaction.
        most_bytes: how large it may be; 0: as large as it likes.
    """
    if not most_bytes or session.dialect.name != "mysql":
        return bool(most_bytes)
    found = session.query(
        "SELECT data_length FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND table_name = 'pipeline_rejects'"
    )
    return any(int(size or 0) > most_bytes for (size,) in found)


def bound_rejects(session: NodeSession, most_bytes: int, moving: Collection[int] = ()) -> tuple[int, int]:
    """Make room where more is set aside than may be, a few ops at a time.

    The oldest that were replayed or dropped lose their values, and what their receipts need stays. Then the oldest that
    were refused and hold no row are given up. What holds a row stays, however large it is.

    Args:
        session: inside a transaction.
        most_bytes: how large ops and reasons may be in all.
        moving: see `drop_old_rejects`.

    Returns:
        How many ops lost their values or were given up, and how many of these were given up; 0 if nothing is to do.
    """
    excess = int(session.rows("SELECT COALESCE(SUM(LENGTH(op) + LENGTH(reason)), 0) FROM pipeline_rejects")[0][0])
    excess -= most_bytes
    changed = [0, 0]
    for nth, (which, change) in enumerate(
        ((f"{_SETTLED} AND op <> {_BARE}", f"reason = {_SHORTER}"), (_FREE, _gives_up(session, "rejects_mb")))
    ):
        places = list[Place]()
        for bucket, epoch, seq, size in session.rows(
            f"SELECT bucket, epoch, seq, LENGTH(op) + LENGTH(reason) FROM pipeline_rejects"
            f" WHERE {which}{_but(moving)} ORDER BY changed_ms, bucket, epoch, seq LIMIT {_MOST_ROWS}"
        ):
            if excess <= 0:
                break
            places.append((bucket, Position(epoch, seq)))
            excess -= int(size)
        if places:
            changed[nth] = session.execute(
                f"UPDATE pipeline_rejects SET op = {_BARE}, {change} WHERE ({at_places(places)}) AND {which}"
            )
    return sum(changed), changed[1]


def _gives_up(session: NodeSession, setting: str) -> str:
    """Return the changes of a row whose op is given up."""
    why = text_literal(f"{set_aside.GIVEN_UP}{setting}: ")
    reason = f"CONCAT({why}, {_SHORTER})" if session.dialect.name == "mysql" else f"{why} || {_SHORTER}"
    return f"state = '{DROPPED}', changed_ms = {session.dialect.now_ms}, reason = {reason}"


def _but(buckets: Collection[int]) -> str:
    return f" AND bucket NOT IN ({', '.join(map(str, sorted(buckets)))})" if buckets else ""
