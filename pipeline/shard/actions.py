"""Change ops that are set aside, give up what is old or too much, and record who did what to which op.

The functions run inside the transaction of the action.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from pipeline.errors import BadOp
from pipeline.model.op import Position
from pipeline.shard.records import replays, set_aside
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.records.replays import DROPPED, REPLAYED, Place
from pipeline.shard.session import NodeSession

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
        f"UPDATE pipeline_rejects SET op = {op}, changed_ms = {session.dialect.now_ms} WHERE {replays.at([place])}"
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
                f"UPDATE pipeline_rejects SET op = {_BARE}, {change} WHERE ({replays.at(places)}) AND {which}"
            )
    return sum(changed), changed[1]


def _gives_up(session: NodeSession, setting: str) -> str:
    """Return the changes of a row whose op is given up."""
    why = text_literal(f"{set_aside.GIVEN_UP}{setting}: ")
    reason = f"CONCAT({why}, {_SHORTER})" if session.dialect.name == "mysql" else f"{why} || {_SHORTER}"
    return f"state = '{DROPPED}', changed_ms = {session.dialect.now_ms}, reason = {reason}"


def _but(buckets: Collection[int]) -> str:
    return f" AND bucket NOT IN ({', '.join(map(str, sorted(buckets)))})" if buckets else ""
