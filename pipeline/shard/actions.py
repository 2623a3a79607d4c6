"""Change an op that is set aside, and record who did what to which op.

The functions run inside the transaction of the action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.errors import BadOp
from pipeline.model.op import Position
from pipeline.shard.records import replays, set_aside
from pipeline.shard.records.ledger import text_literal
from pipeline.shard.records.replays import Place
from pipeline.shard.session import NodeSession


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
