"""Read and write what a shard keeps of moves of buckets: the row of the move, and the state of the bucket's watermark.

A bucket that moves has a row on both shards. The state of its watermark on each says how far the move is, so that any
mover may go on with it. The row stays when the move is over, and says where the bucket has gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from pipeline import clock
from pipeline.config.buckets import FIRST_PIECE, KeyName, format_ranges, log_number
from pipeline.errors import NotMigrated
from pipeline.model import Position
from pipeline.model.wait_reason import WaitReason
from pipeline.per_process import chance
from pipeline.shard import NodeSession
from pipeline.shard.records import (
    ACTIVE,
    CATCHING,
    COPYING,
    GONE,
    HOLDING,
    LENT,
    MOVED,
    OWNED,
    STOPPED,
    Mark,
    lock_buckets,
    text_literal,
)

#: The states on the target of a bucket that is on its way.
ON_THE_WAY = (COPYING, CATCHING)
#: Where nobody says: a replica is behind by no more than readers put up with, s (`[reads] max_lag_s`); a primary runs
#: no more threads than pt-online-schema-change lets it (`--max-load Threads_running=25`). A handful of workers run few;
#: a primary that runs more has statements that wait for each other.
MAX_LAG_S, MAX_LOAD = 5.0, 25
#: Steps of a mover that are distinguished here; see `MoveStep`. The step of copying has the name of the state.
WAITING, COMPARING = "waiting", "comparing"


class RowPlace(msgspec.Struct, frozen=True):
    """How far the rows of a move are copied, or compared.

    Attributes:
        plan: what is copied, and in which order: a place in another plan is worth nothing.
        table: the number of the table in the plan.
        id: of the last row that is done; None: the table is done.
        rows: that are done so far, in all tables.
        epoch, seq: the bucket's watermark that the rows are of. Later ops of the bucket's log name the rows that have
            changed since.
    """

    plan: int
    table: int
    id: int | None
    rows: int = 0
    epoch: int = 0
    seq: int = -1

    @property
    def mark(self) -> Position:
        """The bucket's watermark that the rows are of."""
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
        cleaned: whether no node of this shard has any rows of it.
        trouble: why the move has ended, or does not go on, with what to do; empty: nothing is wrong.
        max_lag_s: how far a replica of either shard may be behind while rows are copied or deleted, s.
        max_load: how many threads a primary of either shard may run meanwhile.
        total: about how many rows there are to copy; 0: not known.
        copied_from_ms: when the copy began, ms since 1970.
        told_ms: when the mover last noted its step, ms since 1970.
        waits: what the mover waits for; empty: it goes on.
        waits_from_ms: since when it waits for just that, ms since 1970.
        step: the mover's, or the one before it waited; see `MoveStep`.
        step_rows: that the mover has counted in this step.
        step_from_ms: when this step began, ms since 1970.
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
    """A bucket's row of a move on one shard, or a piece's.

    Attributes:
        bucket: its number; of a piece, the piece's.
        move: the number of the move.
        source, target: the shards.
        began_ms: when the move was ordered, ms since 1970.
        keep_s: how long the source keeps its rows once the target goes on, s.
        who: ordered the move.
        note: how far the move is.
        state, position: of the bucket's watermark there; None: it has none. A piece that is in its bucket has the
            bucket's, and is `moved` where the bucket has stopped.
        of: of a piece, its key; None: the row is a bucket's.
        apart: whether bucket or piece has a watermark of its own there: always, but for a piece in its bucket.
        home: of a piece, the state of its bucket's watermark there; None: there is none.
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
    of: KeyName | None = None
    apart: bool = True
    home: str | None = None

    def other(self, shard: str) -> str:
        """Return the other one of the move's two shards.

        Args:
            shard: one of them.
        """
        return self.target if self.source == shard else self.source

    def under_way(self, shard: str) -> bool:
        """Return whether the move goes on, or has left rows behind.

        Args:
            shard: whose row this is.
        """
        if not self.apart:
            return shard == self.source
        if self.state == GONE:
            return not self.note.cleaned
        return shard == self.source or self.state in ON_THE_WAY


def legs(session: NodeSession, buckets: Iterable[int] | None = None) -> dict[int, Leg]:
    """Return the row of the last move of each bucket and piece that has moved; none where the table is not there yet.

    Args:
        session: of a node, outside a transaction.
        buckets: which; None: all.
    """
    for pieces in (True, False):  # a database that is not migrated yet has no columns for pieces, or no table
        try:
            return _legs(session.query(_legs_sql(buckets, pieces=pieces)))
        except NotMigrated:
            continue
    return {}


class Seat(NamedTuple):
    """What a node says of a bucket, or of a key that has a shard of its own: whether it serves the rows.

    Attributes:
        state: of the bucket there, or of the key: the bucket's while the key is in its bucket.
        move: the number of the last move; 0: there was none.
    """

    state: str
    move: int = 0

    @property
    def owned(self) -> bool:
        """Whether this shard owns the bucket or the key."""
        return self.state in OWNED

    @property
    def serves(self) -> bool:
        """Whether the rows are whole here: the shard owns them, or has stopped and no other one has begun."""
        return self.owned or self.state == MOVED


def seats(session: NodeSession, numbers: Iterable[int] | None = None) -> dict[int, Seat]:
    """Return what a node says of buckets and pieces; nothing of those that the node has never had.

    Args:
        session: of a node, outside a transaction.
        numbers: which; None: all of which the node has a watermark.
    """
    wanted = None if numbers is None else {*numbers}
    named = None if wanted is None else wanted | {*map(log_number, wanted)}
    which = "" if named is None else f" WHERE w.bucket IN ({_list(named)})"
    columns, marks = "SELECT w.bucket, w.state", f"FROM pipeline_watermarks w{which}"
    moved = f"SELECT w.bucket, NULL, w.move FROM pipeline_moves w{which}"
    try:
        with session.translated():
            told = session.rows(f"{columns}, 0 {marks} UNION ALL {moved}")
    except NotMigrated:
        told = session.query(f"{columns}, 0 {marks}")
    states = {number: state for number, state, _ in told if state is not None}
    last = {number: move for number, state, move in told if state is None}
    found = {number: _state_here(states, number) for number in (states if wanted is None else wanted)}
    return {number: Seat(state, last.get(number, 0)) for number, state in found.items() if state is not None}


def last_moves(session: NodeSession, numbers: Iterable[int]) -> dict[int, Leg]:
    """Return the last moves of buckets and pieces, and of keys of these buckets that had shards of their own.

    Args:
        session: of a node, outside a transaction.
        numbers: of both.
    """
    wanted = {*numbers}
    return _legs_if_migrated(session, _with_pieces_sql(wanted)) if wanted else {}


def keys_apart(session: NodeSession) -> dict[int, Leg]:
    """Return the last moves of keys that have shards of their own, or had them, by piece.

    Args:
        session: of a node, outside a transaction.
    """
    return _legs_if_migrated(session, f"{_legs_sql()} WHERE pipeline_moves.of_bucket IS NOT NULL")


def _legs_if_migrated(session: NodeSession, sql: str) -> dict[int, Leg]:
    try:
        with session.translated():
            return _legs(session.rows(sql))
    except NotMigrated:
        return {}


def _state_here(states: Mapping[int, str], number: int) -> str | None:
    """Return the state of a bucket or a piece on the node that has these watermarks."""
    own, home = states.get(number), states.get(log_number(number))
    if number < FIRST_PIECE or home not in OWNED:
        return own
    if own is not None:  # the bucket goes on without the key, whose rows here are old
        return GONE if own == MOVED else own
    return None if home == LENT else MOVED if home == STOPPED else home


def pieces_within(session: NodeSession, numbers: Iterable[int]) -> dict[int, Leg]:
    """Return the row of the last move of each of some pieces, and of each piece of some buckets, by piece.

    Args:
        session: inside a transaction.
        numbers: of buckets, of pieces, or of both.
    """
    found = _legs(session.rows(_with_pieces_sql(numbers)))
    return {number: leg for number, leg in found.items() if leg.of is not None}


def legs_within(session: NodeSession, buckets: Iterable[int]) -> dict[int, Leg]:
    """Return the row of the last move of each of some buckets or pieces.

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
    if not buckets:
        return set()
    legs = [leg for leg in _legs(session.rows(_with_pieces_sql(buckets))).values() if leg.under_way(shard)]
    # a key's ops that are set aside come along with the key: its bucket counts, too
    return {number for leg in legs for number in (leg.bucket, leg.of.bucket if leg.of else leg.bucket)} & {*buckets}


def lent_by(shard: str, told: Mapping[int, Leg]) -> dict[int, tuple[str, int]]:
    """Return the keys of a shard's buckets that another shard has, or may have soon: by bucket, that shard and piece.

    Args:
        shard: its name.
        told: what its primary has of moves, see `legs`.
    """
    found = dict[int, tuple[str, int]]()
    for number, leg in told.items():
        if leg.of is not None and (leg.home in (LENT, STOPPED) or (not leg.apart and leg.under_way(shard))):
            found[leg.of.bucket] = leg.other(shard), number
    return found


def stage_of(here: Mapping[int, Leg], there: Mapping[int, Leg]) -> str:
    """Return what is to be done next in a move.

    Args:
        here, there: the move's rows on the primaries of its source and of its target, by bucket.
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
    """Return the buckets that a shard has stopped for a move, and that no other shard has begun with.

    A bucket one of whose keys leaves, or comes back, is stopped until the bucket itself goes on.

    Args:
        told: by shard, the last move of each bucket that has moved.
        shard: which.
    """
    begun = {bucket for legs in told.values() for bucket, leg in legs.items() if leg.state in OWNED}
    legs = told.get(shard, {})
    found = {leg.of.bucket: leg for leg in legs.values() if leg.of is not None and leg.home == STOPPED}
    away = {b: leg for b, leg in legs.items() if leg.state == MOVED and b not in begun and leg.home not in OWNED}
    return found | away


def moving_reasons(legs: Mapping[int, Leg]) -> list[WaitReason]:
    """Return why ops of buckets wait that are stopped for a move.

    Args:
        legs: of each bucket, the row of the move on the shard that has stopped.
    """
    each: dict[tuple[str, str, str], list[int]] = {}
    for bucket, leg in legs.items():
        each.setdefault((leg.source, leg.target, str(leg.of or "")), []).append(bucket)
    return [
        WaitReason("moving", source, key or format_ranges(buckets), target, buckets=len(buckets))
        for (source, target, key), buckets in each.items()
    ]


def write_leg(session: NodeSession, leg: Leg) -> None:
    """Write the row of a move in place of an earlier move's.

    Args:
        session: inside a transaction that holds the bucket's watermark.
        leg: the row.
    """
    columns = "bucket, move, source, target, began_ms, keep_s, who, note"
    values = f"{leg.bucket}, {leg.move}, {text_literal(leg.source)}, {text_literal(leg.target)}, {leg.began_ms}"
    values += f", {leg.keep_s}, {text_literal(leg.who)}, {_literal(leg.note)}"
    if leg.of is not None:
        columns += ", of_bucket, of_table, of_key"
        values += f", {leg.of.bucket}, {text_literal(leg.of.table)}, {text_literal(leg.of.key)}"
    session.execute(f"DELETE FROM pipeline_moves WHERE bucket = {leg.bucket}")
    session.execute(f"INSERT INTO pipeline_moves ({columns}) VALUES ({values})")


def note(session: NodeSession, buckets: Collection[int], move: int, **changes: Any) -> None:
    """Change the note of a move; committed when this returns.

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
    """Change the notes of a move, each by a value of its own.

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
    """Note a mover's step, unless somebody else changes the note meanwhile.

    Args:
        session: of the target's primary, outside a transaction.
        buckets: of the move.
        move: its number.
        step: the mover's; see `MoveStep`.
        text: of a wait, what the mover waits for.
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
        states: of which each bucket has one.
        attempt: the number of the attempt to copy; None: any.
    """

    buckets: Collection[int] = ()
    move: int = 0
    states: Collection[str] = (COPYING,)
    attempt: int | None = None

    def holds(self, session: NodeSession) -> bool:
        """Return whether the fence holds, and let it hold until the transaction ends.

        Args:
            session: inside a transaction.
        """
        lock_both(session, self.buckets)
        legs = legs_within(session, self.buckets)
        return all(
            bucket in legs
            and legs[bucket].state in self.states
            and legs[bucket].move == self.move
            and self.attempt in (None, legs[bucket].note.attempt)
            for bucket in self.buckets
        )


def change_state(session: NodeSession, fence: Fence, after: str) -> bool:
    """Change the state of a move's buckets where its fence holds; return whether it does.

    Args:
        session: inside a transaction.
        fence: of the move.
        after: the new state; `active` becomes `holding` where ops that are set aside hold rows.
    """
    if not fence.holds(session):
        return False
    legs = legs_within(session, fence.buckets).values()
    # a piece that is in its bucket stops, and goes on, with the bucket
    within = [leg.of.bucket for leg in legs if leg.of is not None and not leg.apart]
    if within:
        set_state(session, within, STOPPED if after == MOVED else after)
    if apart := [leg.bucket for leg in legs if leg.apart]:
        set_state(session, apart, after)
    # a bucket that has stopped for a key that does not come back after all
    waits = [leg.of.bucket for leg in legs if leg.of is not None and leg.apart and leg.home == STOPPED]
    if waits and after == GONE:
        set_state(session, waits, LENT)
    return True


def set_state(session: NodeSession, buckets: Collection[int], state: str) -> None:
    """Write the state of buckets or pieces, whatever it was.

    Args:
        session: inside a transaction.
        buckets: which; at least one.
        state: the new one; `active` becomes `holding` where ops that are set aside hold rows.
    """
    _set_state(session, buckets, state)
    if state == ACTIVE:
        held = session.rows(f"SELECT DISTINCT bucket FROM pipeline_held WHERE bucket IN ({_list(buckets)})")
        if held:
            _set_state(session, (bucket for (bucket,) in held), HOLDING)


def lock_both(session: NodeSession, numbers: Iterable[int]) -> dict[int, Mark]:
    """Lock the watermarks of buckets or pieces, and of the pieces' buckets; see `ledger.lock_buckets`.

    Args:
        session: inside a transaction.
        numbers: of both.
    """
    return lock_buckets(session, {one for number in numbers for one in (number, log_number(number))})


def forget_legs(session: NodeSession, buckets: Collection[int], move: int) -> None:
    """Delete the rows of a move that was given up.

    Args:
        session: inside a transaction.
        buckets: of the move.
        move: its number.
    """
    session.execute(f"DELETE FROM pipeline_moves WHERE move = {move} AND bucket IN ({_list(buckets)})")


def forget_pieces(session: NodeSession, buckets: Collection[int], but: int | None = None) -> None:
    """Delete what is left of moves of keys of some buckets, which are over: a bucket has one piece at most.

    Args:
        session: inside the transaction that orders or begins another move of the buckets.
        buckets: which.
        but: the piece of that other move, if it is one of a key.
    """
    found = pieces_within(session, buckets).keys() - {but}
    if found:
        session.execute(f"DELETE FROM pipeline_moves WHERE bucket IN ({_list(found)})")
        session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket IN ({_list(found)})")


def forget_mover(session: NodeSession, bucket: int, shard: str) -> bool:
    """Let no mover go on with the last move of a bucket, which has left a shard; return whether that move is over.

    A mover that was thought dead would delete the bucket's rows there, and those of a key that has come since.

    Args:
        session: inside a transaction that holds the bucket's watermark.
        bucket: which.
        shard: its name.
    """
    leg = legs_within(session, [bucket]).get(bucket)
    if leg is None or leg.state in OWNED:
        return True
    if leg.under_way(shard):
        return False
    session.execute(f"UPDATE pipeline_moves SET move = {chance.getrandbits(62)} WHERE bucket = {bucket}")
    return True


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


def _legs_sql(buckets: Iterable[int] | None = None, *, pieces: bool = True) -> str:
    table = "pipeline_moves"  # by its whole name: an error about a column that is missing says whose it is
    names = ("bucket", "move", "source", "target", "began_ms", "keep_s", "who", "note")
    which = "" if buckets is None else f" WHERE {table}.bucket IN ({_list(buckets)})"
    columns, join = [f"{table}.{name}" for name in names], ""
    columns += ["w.state", "w.epoch", "w.seq"]
    if pieces:
        columns += ["b.state", "b.epoch", "b.seq", *(f"{table}.{name}" for name in ("of_bucket", "of_table", "of_key"))]
        join = f" LEFT JOIN pipeline_watermarks b ON b.bucket = {table}.of_bucket"
    return (
        f"SELECT {', '.join(columns)} FROM {table} LEFT JOIN pipeline_watermarks w ON w.bucket = {table}.bucket"
        f"{join}{which}"
    )


def _with_pieces_sql(numbers: Iterable[int]) -> str:
    """Return the query for the rows of buckets and pieces, and of the pieces of these buckets."""
    which = _list(numbers)
    return f"{_legs_sql()} WHERE pipeline_moves.bucket IN ({which}) OR pipeline_moves.of_bucket IN ({which})"


def _legs(rows: Iterable[tuple[Any, ...]]) -> dict[int, Leg]:
    found = {}
    for bucket, move, source, target, began_ms, keep_s, who, text, state, epoch, seq, *more in rows:
        of, apart, home = None, True, None
        if more and more[3] is not None:
            of, apart, home = KeyName(*more[3:]), state is not None, more[0]
            if not apart:
                state, epoch, seq = MOVED if home == STOPPED else home, *more[1:3]
        position = Position(epoch, seq) if state else None
        known = bucket, move, source, target, began_ms, keep_s, who, _note(text)
        found[bucket] = Leg(*known, state, position, of, apart, home)
    return found


def _told(before: MoveNote, step: str, text: str, rows: int) -> MoveNote:
    """Return the note of a move whose mover is at a step; while the mover waits, the step before goes on."""
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
