"""Read and write what a shard keeps of moves of buckets: the row of the move, and the state of the bucket's watermark.

A bucket that moves has a row on both shards. How far it is says the state of its watermark on each, so that anybody may
go on with a move whose mover died. The row stays when the move is over, and says where the bucket has gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from pipeline import clock
from pipeline.config.buckets import format_ranges
from pipeline.errors import NotMigrated
from pipeline.model import Position
from pipeline.model.wait_reason import WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.records import ACTIVE, CATCHING, COPYING, GONE, HOLDING, MOVED, OWNED, lock_buckets, text_literal

#: The states on the target of a bucket that is on its way.
ON_THE_WAY = (COPYING, CATCHING)
#: Where nobody says: a replica is behind by no more than readers put up with, s (`[reads] max_lag_s`); a primary runs
#: no more threads than pt-online-schema-change lets it (`--max-load Threads_running=25`). A handful of workers run few;
#: a primary that runs more has statements that wait for each other.
MAX_LAG_S, MAX_LOAD = 5.0, 25
#: Steps of a mover that are told apart here; see `MoveStep`. The step of copying has the name of the state.
WAITING, COMPARING = "waiting", "comparing"


class RowPlace(msgspec.Struct, frozen=True):
    """How far the rows of a move are copied, or compared.

    Attributes:
        plan: what is copied, and in which order: a place in another plan is worth nothing.
        table: the number of the table in the plan.
        id: of the last row that is done; None: the table is done.
        rows: that are done so far, in all tables.
        epoch, seq: the bucket's watermark that the rows are of. What of them is another since then, a later op of the
            bucket's log has changed.
    """

    plan: int
    table: int
    id: int | None
    rows: int = 0
    epoch: int = 0
    seq: int = -1

    @property
    def mark(self) -> Position:
        """The watermark."""
        return Position(self.epoch, self.seq)


class MoveNote(msgspec.Struct, frozen=True):
    """What the target's row says of a move's progress.

    Attributes:
        rows: that were copied.
        attempt: the number of the last attempt to copy: chunks of an earlier one are not written any more.
        copied: how far rows are copied, as every node of the source has them; None: nothing is.
        compared: how far rows are compared since the copy counts; None: nothing is.
        verified: whether both shards were found equal, each row at one watermark.
        mapped: whether the map and the epochs say that the target owns the bucket.
        emptied: whether this node has no rows of the bucket any more.
        cleaned: whether no node of this shard has any.
        trouble: why the move has ended, or does not go on, with what to do; empty: nothing is wrong.
        max_lag_s: how far a replica of either shard may be behind while rows are copied or deleted, s.
        max_load: how many threads a primary of either shard may run meanwhile.
        total: about how many rows there are to copy; 0: not known.
        copied_from_ms: when the copy began, ms since 1970.
        told_ms: when the mover last noted what it is at, ms since 1970.
        waits: what the mover waits for; empty: it goes on.
        waits_from_ms: since when it waits for just that.
        step: what the mover is at, or was at before it waited; see `MoveStep`.
        step_rows: that it has counted in this step.
        step_from_ms: when this step began.
    """

    rows: int = 0
    attempt: int = 0
    copied: RowPlace | None = None
    compared: RowPlace | None = None
    verified: bool = False
    mapped: bool = False
    emptied: bool = False
    cleaned: bool = False
    trouble: str = ""
    max_lag_s: float = MAX_LAG_S
    max_load: int = MAX_LOAD
    total: int = 0
    copied_from_ms: int = 0
    told_ms: int = 0
    waits: str = ""
    waits_from_ms: int = 0
    step: str = ""
    step_rows: int = 0
    step_from_ms: int = 0


#: The note of a move for which nobody says more.
DEFAULTS = MoveNote()


class Leg(NamedTuple):
    """A bucket's row of a move on one shard.

    Attributes:
        move: the number of the move.
        state, position: of the bucket's watermark there; None: it has none.
    """

    bucket: int
    move: int
    source: str
    target: str
    began_ms: int
    keep_s: int
    who: str
    note: MoveNote
    state: str | None
    position: Position | None

    def under_way(self, shard: str) -> bool:
        """Return whether the move goes on, or has left rows behind, as the row on a shard shows it.

        Args:
            shard: which.
        """
        if self.state == GONE:
            return not self.note.cleaned
        return shard == self.source or self.state in ON_THE_WAY


def legs(session: NodeSession, buckets: Iterable[int] | None = None) -> dict[int, Leg]:
    """Return the row of the last move of each bucket that has ever moved; none where the table is not there yet.

    Args:
        session: of a node, outside a transaction.
        buckets: which; None: all.
    """
    try:
        return _legs(session.query(_legs_sql(buckets)))
    except NotMigrated:
        return {}


def legs_within(session: NodeSession, buckets: Iterable[int]) -> dict[int, Leg]:
    """Return the same within an open transaction.

    Args:
        session: inside a transaction.
        buckets: which.
    """
    return _legs(session.rows(_legs_sql(buckets)))


def moving(session: NodeSession, shard: str, buckets: Collection[int]) -> set[int]:
    """Return those of some buckets that are being moved: nothing may change them beside their logs.

    Args:
        session: inside a transaction that holds their watermarks.
        shard: its shard.
        buckets: which.
    """
    return {b for b, leg in legs_within(session, buckets).items() if leg.under_way(shard)} if buckets else set()


def stage_of(here: Mapping[int, Leg], there: Mapping[int, Leg]) -> str:
    """Return what is to be done next in a move.

    Args:
        here, there: the rows that the primaries of its source and of its target have of it, by bucket.
    """
    left, came = {leg.state for leg in here.values()}, {leg.state for leg in there.values()}
    if there and came == {GONE}:
        return "over" if not here and all(leg.note.cleaned for leg in there.values()) else "undo"
    if not here:
        return "abandon" if there and came <= {COPYING, CATCHING} else "over"
    if left == {GONE}:  # whatever has become of the buckets since
        return "over" if all(leg.note.cleaned for leg in here.values()) else "clean"
    if not there:
        return "begin"
    if came <= {COPYING}:
        return "copy"
    if came <= {CATCHING}:
        return "finish" if left == {MOVED} else "catch"
    return "publish"


def stopped(told: Mapping[str, Mapping[int, Leg]], shard: str) -> dict[int, Leg]:
    """Return the buckets that a shard has stopped for a move, and no other has begun with.

    Args:
        told: by shard, the last move of each bucket that has moved.
        shard: which.
    """
    begun = {bucket for legs in told.values() for bucket, leg in legs.items() if leg.state in OWNED}
    return {b: leg for b, leg in told.get(shard, {}).items() if leg.state == MOVED and b not in begun}


def moving_reasons(legs: Mapping[int, Leg]) -> list[WaitReason]:
    """Return why ops of buckets wait that are stopped for a move.

    Args:
        legs: of each bucket, the row of the move on the shard that has stopped.
    """
    each: dict[tuple[str, str], list[int]] = {}
    for bucket, leg in legs.items():
        each.setdefault((leg.source, leg.target), []).append(bucket)
    return [
        WaitReason("moving", source, format_ranges(buckets), target, buckets=len(buckets))
        for (source, target), buckets in each.items()
    ]


def write_leg(session: NodeSession, leg: Leg) -> None:
    """Write the row of a move; one of an earlier move goes.

    Args:
        session: inside a transaction that holds the bucket's watermark.
        leg: the row.
    """
    values = f"{leg.bucket}, {leg.move}, {text_literal(leg.source)}, {text_literal(leg.target)}, {leg.began_ms}"
    session.execute(f"DELETE FROM pipeline_moves WHERE bucket = {leg.bucket}")
    session.execute(
        "INSERT INTO pipeline_moves (bucket, move, source, target, began_ms, keep_s, who, note)"
        f" VALUES ({values}, {leg.keep_s}, {text_literal(leg.who)}, {_literal(leg.note)})"
    )


def note(session: NodeSession, buckets: Collection[int], move: int, **changes: Any) -> None:
    """Store something of how far a move is, or of what a shard has of it; committed when this returns.

    Args:
        session: of a primary, outside a transaction.
        buckets: of the move.
        move: its number.
        changes: attributes of the note; the others stay as the server has them by now.
    """
    with session.translated(), session.transaction():
        lock_buckets(session, buckets)
        for leg in legs_within(session, buckets).values():
            if leg.move == move:
                _store_note(session, leg, replace(leg.note, **changes))


def note_each(
    session: NodeSession, buckets: Collection[int], name: str, values: Mapping[int, object], **changes: Any
) -> None:
    """Store something of how far a move is.

    Args:
        session: of a primary, inside a transaction whose fence holds.
        buckets: of the move.
        name: an attribute of the note.
        values: of the attribute, for each bucket.
        changes: other attributes, for all.
    """
    for bucket, leg in legs_within(session, buckets).items():
        _store_note(session, leg, replace(leg.note, **{name: values[bucket], **changes}))


def note_progress(session: NodeSession, buckets: Collection[int], move: int, step: str, text: str, rows: int) -> None:
    """Note what a mover is at. What anybody else notes meanwhile stays, and this is not noted.

    Args:
        session: of the target's primary, outside a transaction.
        buckets: of the move.
        move: its number.
        step: what it is at; see `MoveStep`.
        text: of a wait, what it waits for.
        rows: of the step so far.
    """
    for bucket, leg in legs(session, buckets).items():
        if leg.move == move:
            before, after = leg.note, _told(leg.note, step, text, rows)
            with session.translated(), session.transaction():
                session.execute(
                    f"UPDATE pipeline_moves SET note = {_literal(after)}"
                    f" WHERE move = {move} AND bucket = {bucket} AND note = {_literal(before)}"
                )


class Fence(NamedTuple):
    """What must hold in a transaction that goes on with a move.

    Attributes:
        buckets: of the move.
        move: its number.
        states: those of which each bucket has one.
        attempt: the number of the attempt to copy; None: any.
    """

    buckets: Collection[int] = ()
    move: int = 0
    states: Collection[str] = (COPYING,)
    attempt: int | None = None

    def holds(self, session: NodeSession) -> bool:
        """Return whether it holds, and let it hold until the transaction ends.

        Args:
            session: inside a transaction.
        """
        marks, legs = lock_buckets(session, self.buckets), legs_within(session, self.buckets)
        return all(
            bucket in marks
            and marks[bucket].state in self.states
            and bucket in legs
            and legs[bucket].move == self.move
            and self.attempt in (None, legs[bucket].note.attempt)
            for bucket in self.buckets
        )


def change_state(session: NodeSession, fence: Fence, after: str) -> bool:
    """Change the state of a move's buckets; return whether it was done.

    Args:
        session: inside a transaction.
        fence: is to hold before.
        after: the new state; `active` becomes `holding` where ops that are set aside hold rows.
    """
    if not fence.holds(session):
        return False
    _set_state(session, fence.buckets, after)
    if after == ACTIVE:
        held = session.rows(f"SELECT DISTINCT bucket FROM pipeline_held WHERE bucket IN ({_list(fence.buckets)})")
        if held:
            _set_state(session, (bucket for (bucket,) in held), HOLDING)
    return True


def forget_legs(session: NodeSession, buckets: Collection[int], move: int) -> None:
    """Delete the rows of a move that was given up.

    Args:
        session: inside a transaction.
        buckets: of the move.
        move: its number.
    """
    session.execute(f"DELETE FROM pipeline_moves WHERE move = {move} AND bucket IN ({_list(buckets)})")


def place_mark(session: NodeSession, bucket: int, position: Position, state: str) -> None:
    """Write a bucket's watermark, whatever it was.

    Args:
        session: inside a transaction.
        bucket: which.
        position: the watermark.
        state: of the bucket.
    """
    values = f"{bucket}, {position.epoch}, {position.seq}, '{state}', {session.dialect.now_ms}"
    tail = session.dialect.on_conflict(["bucket"], ["epoch", "seq", "state", "committed_ms"])
    session.execute(
        f"INSERT INTO pipeline_watermarks (bucket, epoch, seq, state, committed_ms) VALUES ({values}){tail}"
    )


def _set_state(session: NodeSession, buckets: Iterable[int], state: str) -> None:
    session.execute(f"UPDATE pipeline_watermarks SET state = '{state}' WHERE bucket IN ({_list(buckets)})")


def _legs_sql(buckets: Iterable[int] | None) -> str:
    which = "" if buckets is None else f" WHERE m.bucket IN ({_list(buckets)})"
    return (
        "SELECT m.bucket, m.move, m.source, m.target, m.began_ms, m.keep_s, m.who, m.note, w.state, w.epoch, w.seq"
        f" FROM pipeline_moves m LEFT JOIN pipeline_watermarks w ON w.bucket = m.bucket{which}"
    )


def _legs(rows: Iterable[tuple[Any, ...]]) -> dict[int, Leg]:
    found = {}
    for bucket, move, source, target, began_ms, keep_s, who, text, state, epoch, seq in rows:
        position = Position(epoch, seq) if state else None
        found[bucket] = Leg(bucket, move, source, target, began_ms, keep_s, who, _note(text), state, position)
    return found


def _told(before: MoveNote, step: str, text: str, rows: int) -> MoveNote:
    """Return the note of a move whose mover is at a step; while it waits, the step before counts on."""
    now_ms = clock.wall_ms()
    if step == WAITING:
        since_ms = before.waits_from_ms if before.waits == text else now_ms
        return replace(before, told_ms=now_ms, waits=text, waits_from_ms=since_ms)
    anew = step != before.step or rows < before.step_rows
    return replace(
        before,
        told_ms=now_ms,
        waits="",
        rows=rows if step == COPYING else before.rows,
        step=step,
        step_rows=rows,
        step_from_ms=now_ms if anew else before.step_from_ms,
    )


def _store_note(session: NodeSession, leg: Leg, after: MoveNote) -> None:
    which = f"move = {leg.move} AND bucket = {leg.bucket}"
    session.execute(f"UPDATE pipeline_moves SET note = {_literal(after)} WHERE {which}")


def _literal(note: MoveNote) -> str:
    return text_literal(msgspec.json.encode(note).decode())


def _note(text: str) -> MoveNote:
    try:
        return msgspec.json.decode(text, type=MoveNote)
    except msgspec.MsgspecError:
        return MoveNote()


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
