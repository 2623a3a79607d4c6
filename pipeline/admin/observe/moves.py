"""Say how far moves of buckets are, by what the shards say of them: each state, and what the mover notes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config.buckets import format_ranges
from pipeline.enqueue.buckets import Told
from pipeline.shard.records import COPYING
from pipeline.shard.records.moves import COMPARING, Leg, MoveNote, stage_of

#: What the shards say of one move: each shard, and its row of a bucket.
OneMove = list[tuple[str, Leg]]
#: What people are told of each stage; see `stage_of`.
STATES = {
    "begin": "beginning",
    "copy": COPYING,
    "catch": "catching up",
    "finish": "stopping",
    "publish": "waiting",
    "clean": "cleaning",
    "undo": "giving up",
    "abandon": "giving up",
    "over": "done",
}
#: A state that only the mover knows, and that of a move of which a shard does not answer.
NOT_KNOWN = "not known"
#: States in which rows are counted.
COUNTED = (COPYING, COMPARING, "cleaning")
#: States in which the target has begun, or the move is given up.
_BEGUN = ("waiting", "cleaning", "giving up", "done", NOT_KNOWN)
#: A move stands still if no mover has noted anything for so long, or if it has waited for the same for so long, ms. A
#: statement of a copy takes up to 30 s, and the target is tried with an op that it refuses for 15 s.
STILL_MS = 60_000
#: How many moves a record names at most; and how long ranges may be in a sentence, characters.
MOST_MOVES, _WIDEST = 50, 12


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """A move that is under way.

    Attributes:
        buckets: as ranges.
        source, target: the shards.
        state: how far it is: beginning, copying, catching up, comparing, stopping, waiting (the target has begun, and
            the source keeps its rows), cleaning, giving up; `not known` where one of the shards does not answer.
        began_ms: when it was ordered, ms since 1970.
        who: who ordered it.
        rows: that are copied; while it compares or cleans: compared, or deleted.
        total: about how many there are; None: not known.
        rate: rows a second, waits included; None: not known, or no rows are counted now.
        left_s: about how long counting the rest takes; None: not known.
        text: what it waits for; why it is given up.
        still: why it stands still; empty: it goes on.
        mend: what lets it go on, or ends it; empty: it goes on.
    """

    buckets: str
    source: str
    target: str
    state: str
    began_ms: int
    who: str = ""
    rows: int = 0
    total: int | None = None
    rate: float | None = None
    left_s: int | None = None
    text: str = ""
    still: str = ""
    mend: str = ""

    @property
    def ends(self) -> bool:
        """Whether it can be given up."""
        return self.state not in _BEGUN

    def __str__(self) -> str:
        return f"the move of {in_brief(self.buckets)} to {self.target}"


class Speed(NamedTuple):
    """How fast rows are counted, a second, and about how long the rest takes, s; None: not known."""

    rate: float | None = None
    left_s: int | None = None


def in_brief(buckets: str) -> str:
    """Return the first of some ranges, and how many more there are.

    Args:
        buckets: as ranges; a key stays as it is.
    """
    if "=" in buckets:
        return buckets
    parts = buckets.split(",")
    kept = [part for n, part in enumerate(parts) if len(",".join(parts[: n + 1])) <= _WIDEST]
    more = len(parts) - len(kept)
    return f"{','.join(kept)} +{more}" if more else buckets


def pace_of(note: MoveNote) -> Speed:
    """Return the pace of the step that a mover is at, since its beginning; waits count.

    Args:
        note: of the move.
    """
    began_ms = note.copied_from_ms if note.step == COPYING else note.step_from_ms
    took_ms, rows = note.told_ms - began_ms, note.step_rows
    if took_ms <= 0 or not rows:
        return Speed()
    rate = round(1000 * rows / took_ms, 1)
    return Speed(rate, round((note.total - rows) * took_ms / rows / 1000) if note.total > rows else None)


def each_move(told: Told) -> list[OneMove]:
    """Return what the shards say, by move.

    Args:
        told: the last move of each bucket that has moved, by shard that has answered.
    """
    found: dict[int, OneMove] = {}
    for shard, legs in told.items():
        for leg in legs.values():
            found.setdefault(leg.move, []).append((shard, leg))
    return list(found.values())


def what_moves(each: OneMove) -> str:
    """Return what moves, as commands take it: ranges of buckets, or a key.

    Args:
        each: what the shards say of the move.
    """
    of = each[0][1].of
    return format_ranges({leg.bucket for _, leg in each}) if of is None else str(of)


def leg_of_target(each: OneMove) -> Leg:
    """Return a row of a move on its target: what the target notes counts; the source's where the target has none.

    Args:
        each: what the shards say of the move.
    """
    return next((leg for shard, leg in each if shard == leg.target), each[0][1])


def how_far(told: Told, each: OneMove) -> str:
    """Return the state of a move, for people.

    Args:
        told: by shard that has answered, all that it says.
        each: what the shards say of the move.
    """
    leg = leg_of_target(each)
    if leg.source not in told or leg.target not in told:
        return NOT_KNOWN
    here, there = ({one.bucket: one for name, one in each if name == shard} for shard in (leg.source, leg.target))
    stage = stage_of(here, there)
    return COMPARING if stage == "catch" and leg.note.step == COMPARING else STATES[stage]


def moves_of(told: Told, now_ms: int) -> tuple[MoveRecord, ...]:
    """Return the moves that are under way, those that stand still first.

    Args:
        told: by shard that has answered, the last move of each bucket that has moved.
        now_ms: ms since 1970, by the clock of the hosts.
    """
    going = [each for each in each_move(told) if any(leg.under_way(shard) for shard, leg in each)]
    found = [_record(told, each, now_ms) for each in going]
    return tuple(sorted(found, key=lambda one: (not one.still, one.began_ms, one.buckets)))[:MOST_MOVES]


def _record(told: Told, each: OneMove, now_ms: int) -> MoveRecord:
    leg = leg_of_target(each)
    state, note = how_far(told, each), leg.note
    counts = state in COUNTED and note.step == state
    buckets = what_moves(each)
    silent_ms = now_ms - max(note.told_ms, leg.began_ms)
    still = _still(note, silent_ms, now_ms) if state != NOT_KNOWN else ""
    rate, left_s = pace_of(note) if counts else Speed()
    return MoveRecord(
        buckets,
        leg.source,
        leg.target,
        state,
        leg.began_ms,
        leg.who,
        rows=note.step_rows if counts else note.rows,
        total=note.total or None,
        rate=rate,
        left_s=left_s,
        text=note.trouble or note.waits,
        still=still,
        mend=_mend(state, silent_ms, buckets) if still else "",
    )


def _still(note: MoveNote, silent_ms: int, now_ms: int) -> str:
    """Return why a move stands still, or the empty string."""
    if silent_ms > STILL_MS:
        last = f"; the last one waited: {note.waits}" if note.waits else ""
        return f"no mover has been at it for {silent_ms / 1000:,.0f} s{last}"
    waited_ms = now_ms - note.waits_from_ms
    return f"it has waited {waited_ms / 1000:,.0f} s: {note.waits}" if note.waits and waited_ms > STILL_MS else ""


def _mend(state: str, silent_ms: int, buckets: str) -> str:
    """Return what lets a move go on, or ends it. Some of its buckets name it."""
    first = "start workers: they go on with it" if silent_ms > STILL_MS else "mend that, and it goes on"
    some = in_brief(buckets).split(" +")[0]
    return first if state in _BEGUN else f"{first}; or run: pipeline move give-up {some}"
