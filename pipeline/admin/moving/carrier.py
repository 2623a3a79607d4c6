"""Carry the rows of buckets from one shard to another: copy them, follow the log behind them, compare, and delete.

No faster than replicas follow and servers have time for it: between two chunks the carrier waits while a limit of the
move is passed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import FencedSession, MovedTable, apart
from pipeline.admin.moving.sides import Sides, Throttle
from pipeline.apply.follow import Differs, Follow
from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.model import START, Position
from pipeline.per_process import chance
from pipeline.shard import NodeSession
from pipeline.shard.records import CATCHING, COPYING, GONE, ledger_queries, moves
from pipeline.shard.records.moves import Leg, RowPlace

#: How many ops of a bucket the target may have to apply when the source stops: some milliseconds' work.
NEAR = 200
#: How long the mover waits for replicas before it says that it waits, s; and how long the target is tried with an op
#: that it refuses, since its reference tables may be behind.
WAIT_S, REFUSED_S, SHORT_S = 30.0, 15.0, 0.05
#: The time between two notes of how far rows are copied or compared, s.
KEPT_S = 1.0


class MoveStep(NamedTuple):
    """What a mover has just done.

    Attributes:
        stage: copying, catching up, comparing, stopping, waiting, cleaning or over.
        text: more of it, for people.
        rows: of the stage so far.
    """

    stage: str
    text: str = ""
    rows: int = 0


class Carrier:
    """Carries what one move is about.

    Args:
        client: the deployment, of this thread.
        leg: the row of the move of one of its buckets.
        buckets: all that move together.
        sides: of the move.
    """

    def __init__(self, client: Client, leg: Leg, buckets: tuple[int, ...], sides: Sides):
        self._client, self._leg, self._buckets, self._sides = client, leg, buckets, sides
        self._kept_s = -math.inf

    def copy(self) -> Iterator[MoveStep]:
        """Copy the rows from a snapshot of the source, and then the records: with these the target follows.

        What an earlier mover has copied is kept: only rows of it that later ops have touched are copied again.

        Raises:
            CopyVoid: a database failed over, or another mover copies.
            Different: the target refuses a row.
        """
        client, sides, leg, attempt = self._client, self._sides, self._leg, chance.getrandbits(62)
        moves.note(sides.target, self._buckets, leg.move, attempt=attempt, compared=None, verified=False)
        tables = self._tables()
        with (
            apart(client, leg.source) as source,
            apart(client, leg.target, writing=True) as target,
            Throttle(client, (leg.target, leg.source), sides.note) as throttle,
        ):
            target.fence = sides.fence((COPYING,), attempt)
            connection = _connection(target)
            with source.snapshot():
                begun, wait = sides.positions_in(source), Awaited("for every node of the source to have what is copied")
                while not sides.source_has(begun):
                    source.rows("SELECT 1")  # no server closes the snapshot's connection meanwhile
                    yield from wait.turn()
                self._refuse_failover(source, target, connection)  # from now on no failover of the source loses these
                place = yield from self._resumed(source, target, tables, begun)
                self._kept_s = -math.inf
                self._keep(target, connection, place, begun)
                chunks = buckets_rows.copy_rows(source, target, tables, place)
                for table, place in chunks:
                    self._keep(target, connection, place, begun)
                    yield MoveStep("copying", table, place.rows)
                    for why in throttle.waits():
                        source.rows("SELECT 1")
                        yield MoveStep("waiting", why)
                self._refuse_failover(source, target, connection)
                if leg.of is not None and sides.leaves:
                    [mark] = begun.items()
                    buckets_rows.take_key_records(client, source, target, mark, leg.of, CATCHING)
                else:
                    buckets_rows.take_records(source, target, begun, CATCHING)
        moves.note(sides.target, self._buckets, leg.move, rows=place.rows)

    def _resumed(
        self, source: NodeSession, target: FencedSession, tables: list[MovedTable], begun: dict[int, Position]
    ) -> Generator[MoveStep, None, RowPlace]:
        """Bring what is copied already up to a snapshot of the source; return how far that goes."""
        plan, now_ms = buckets_rows.copy_order(tables), clock.wall_ms()
        with target.translated(), target.transaction():
            kept = {bucket: leg.note.copied for bucket, leg in moves.legs_within(target, self._buckets).items()}
        places = {bucket: place for bucket, place in kept.items() if place is not None and place.plan == plan}
        touched = None
        if len(places) == len(self._buckets):
            after = {bucket: place.mark for bucket, place in places.items()}
            touched = buckets_rows.touched_since(self._client, source, tables, after, begun)
        if touched is None:
            moves.note(self._sides.target, self._buckets, self._leg.move, rows=0, copied_from_ms=now_ms)
            return RowPlace(plan, -1, None)
        place = places[self._buckets[0]]
        told_s = clock.mono_s()
        for table in buckets_rows.renew_rows(source, target, tables, place, touched):
            if clock.mono_s() - told_s >= KEPT_S:  # what a mover does again takes few of its steps
                told_s = clock.mono_s()
                yield MoveStep("copying", table, place.rows)
        return place

    def _keep(self, target: FencedSession, connection: object, place: RowPlace, begun: dict[int, Position]) -> None:
        """Let whoever comes next go on from a place; noted once a second, and at once where nothing is yet."""
        if not self._due():
            return
        with target.translated(), target.transaction():
            if target.adapter.connection is not connection:
                raise buckets_rows.CopyVoid("a database failed over meanwhile")
            places = {b: replace(place, epoch=at.epoch, seq=at.seq) for b, at in begun.items()}
            moves.note_each(target, self._buckets, "copied", places)

    def _refuse_failover(self, source: NodeSession, target: FencedSession, connection: object) -> None:
        """Raise where the primaries, or the connections to them, are not those of the beginning."""
        source.rows("SELECT 1")
        primaries = self._client.nodes.primary_name(self._leg.source), self._client.nodes.primary_name(self._leg.target)
        if _connection(target) is not connection or primaries != (source.node, target.node):
            raise buckets_rows.CopyVoid("a database failed over meanwhile")

    def verify(self, follow: Follow) -> Iterator[MoveStep]:
        """Compare both shards, each row at one watermark of its bucket, and behind where an earlier mover has stopped.

        Args:
            follow: of the move.

        Raises:
            Different: naming the first rows that differ.
        """
        client, sides, leg, tables = self._client, self._sides, self._leg, self._tables()
        wait, self._kept_s = Awaited("for every node of the source to have what is compared"), -math.inf
        with (
            apart(client, leg.source) as source,
            apart(client, leg.target) as target,
            Throttle(client, (leg.target, leg.source), sides.note, reads_only=True) as throttle,
            source.snapshot(),
        ):
            at = sides.positions_in(source)
            while not sides.source_has(at):
                yield from wait.turn()
            while (here := sides.positions(sides.target)) != at:
                if any(here[bucket] > at[bucket] for bucket in self._buckets):
                    return  # another mover is at it
                yield MoveStep("catching up", "", self.follow_once(follow, at))
            with target.snapshot():
                if not self._follows_at(target, at):
                    return  # another mover copies anew: what is not there yet is no difference
                place, attempt = self._compared(target, tables)
                chunks = buckets_rows.compare_rows(source, target, tables, place)
                for table, place in chunks:
                    if self._due():
                        self._keep_compared(place, attempt)
                    yield MoveStep("comparing", table, place.rows)
                    for why in throttle.waits():
                        yield MoveStep("waiting", why)
                if leg.of is not None and sides.leaves:
                    buckets_rows.compare_key_records(client, source, target, self._buckets[0], leg.of)
                else:
                    buckets_rows.compare_records(source, target, self._buckets)
                self._keep_compared(place, attempt, verified=True)

    def _compared(self, target: NodeSession, tables: list[MovedTable]) -> tuple[RowPlace, int]:
        """Return how far a copy is compared, as a snapshot of the target has it, and the number of the copy."""
        plan, notes = (
            buckets_rows.copy_order(tables),
            [leg.note for leg in moves.legs_within(target, self._buckets).values()],
        )
        places = {note.compared for note in notes}
        place = places.pop() if len(places) == 1 else None
        return (place if place is not None and place.plan == plan else RowPlace(plan, -1, None)), notes[0].attempt

    def _keep_compared(self, place: RowPlace, attempt: int, *, verified: bool = False) -> None:
        """Note how far the copy of a number is compared; nothing where another mover has copied anew."""
        session, fence = self._sides.target, self._sides.fence((CATCHING,), attempt)
        with session.translated(), session.transaction():
            if fence.holds(session):
                moves.note_each(
                    session, self._buckets, "compared", dict.fromkeys(self._buckets, place), verified=verified
                )

    def _due(self) -> bool:
        """Return whether a place is to be noted: each note is a commit that replicas repeat."""
        if clock.mono_s() - self._kept_s < KEPT_S:
            return False
        self._kept_s = clock.mono_s()
        return True

    def catch_up(self, follow: Follow) -> Iterator[MoveStep]:
        """Follow the source until little is left, as far as every node of the source has it.

        Args:
            follow: of the move.
        """
        applied = 0
        while True:
            ends, here = self._sides.lowest(), self._sides.positions(self._sides.target)
            if all(is_near(here[bucket], ends[bucket]) for bucket in self._buckets):
                return
            applied += self.follow_once(follow, ends)
            yield MoveStep("catching up", "", applied)

    def follow_once(self, follow: Follow, ends: dict[int, Position]) -> int:
        """Apply one batch; where the target refuses an op, try for a while: its reference tables may be behind.

        Args:
            follow: of the move.
            ends: of each bucket, how far.

        Raises:
            Differs: the target refuses what the source has taken.
            CopyVoid: the target does not follow any more.
        """
        legs = self._sides.legs(self._sides.target)
        here = {bucket: leg.position for bucket, leg in legs.items() if leg.position and leg.state == CATCHING}
        if len(here) != len(self._buckets):
            why = "another mover was faster, the move was given up, or the shard has failed over"
            raise buckets_rows.CopyVoid(f"{self._leg.target} does not follow any more: {why}")
        self._await_reference()
        deadline = clock.Deadline(REFUSED_S)
        while True:
            try:
                aside = buckets_rows.set_aside_behind(self._sides.source, here, leaves=self._sides.leaves)
                return follow.upto(ends, aside)
            except Differs:
                if deadline.passed:
                    raise
                clock.sleep_s(0.25)

    def follow(self) -> Follow:
        """Return what follows the log on the target."""
        client, settings = self._client, self._client.settings
        target = self._leg.target
        session, leaves = self._sides.target, self._sides.leaves
        return Follow(target, session, client.log, settings.apply, settings.tables, self._leg.move, leaves=leaves)

    def delete(self, shard: str) -> Iterator[MoveStep]:
        """Delete what a shard that does not own the buckets has of them, until no node of it has any.

        Args:
            shard: its name.
        """
        sides, primary = self._sides, self._client.nodes.primary(shard)
        if not all(leg.note.emptied for leg in sides.legs(primary).values()):
            yield from self._delete_rows(shard)
        wait = Awaited(f"for every node of {shard} to have deleted its rows")
        while not sides.emptied(shard):
            yield from wait.turn()
        moves.note(primary, self._buckets, self._leg.move, emptied=True, cleaned=True)

    def _delete_rows(self, shard: str) -> Iterator[MoveStep]:
        sides, rows, tables = self._sides, 0, self._tables()
        note = sides.note_of(self._client.nodes.primary(shard))
        with (
            apart(self._client, shard, writing=True) as session,
            Throttle(self._client, (shard,), note) as throttle,
        ):
            connection, session.fence = _connection(session), sides.fence((GONE,))
            for more in buckets_rows.delete_bucket_rows(session, tables, self._buckets):
                rows += more
                if more:  # whoever goes on finds none, and gets on in few steps
                    yield MoveStep("cleaning", shard, rows)
                for why in throttle.waits():
                    yield MoveStep("waiting", why)
            with session.translated(), session.transaction():
                if session.adapter.connection is not connection:
                    raise buckets_rows.CopyVoid("a database failed over meanwhile")
                moves.note_each(session, self._buckets, "emptied", dict.fromkeys(self._buckets, True))
        yield MoveStep("cleaning", shard, rows)

    def _follows_at(self, target: NodeSession, at: dict[int, Position]) -> bool:
        """Return whether the target follows, and stands at some watermarks, as a snapshot of it has it."""
        found = {
            bucket: (leg.state, leg.position)
            for bucket, leg in moves.legs_within(target, at).items()
            if leg.move == self._leg.move
        }
        return found == {bucket: (CATCHING, position) for bucket, position in at.items()}

    def _await_reference(self) -> None:
        """Wait until the target has of reference tables what the source had when its watermarks were read."""
        reference = self._client.topology.reference_bucket
        there = ledger_queries.positions_of(self._sides.source).get(reference, START)
        for _ in clock.polls(WAIT_S, first_s=0.01):
            if ledger_queries.positions_of(self._sides.target).get(reference, START) >= there:
                return
        target, source = self._leg.target, self._leg.source
        raise PipelineError(f"{target} is behind {source} in reference tables: see pipeline why")

    def _tables(self) -> list[MovedTable]:
        leg = self._leg
        return buckets_rows.moved_tables(self._client, self._buckets, leg.source, leg.target, leg.of)


class Awaited:
    """Something that a mover looks for again and again; it says so at once and then each second.

    A mover may live for a few steps only, so that a wait takes few of them.

    Args:
        what: is waited for.
    """

    def __init__(self, what: str):
        self._what, self._told_s = what, -math.inf

    def turn(self) -> Iterator[MoveStep]:
        """Wait a little before the next look."""
        if clock.mono_s() - self._told_s >= 1.0:
            self._told_s = clock.mono_s()
            yield MoveStep("waiting", self._what)
        clock.sleep_s(SHORT_S)


def paused(for_s: float, what: str) -> Iterator[MoveStep]:
    """Wait, and yield for what, once a second.

    Args:
        for_s: how long, s.
        what: is waited for.
    """
    deadline = clock.Deadline(for_s)
    while not deadline.passed:
        left_s = max(0.0, deadline.left_s)
        yield MoveStep("waiting", f"{left_s:.0f} s {what}")
        clock.sleep_s(min(1.0, left_s))


def named(buckets: Collection[int]) -> str:
    """Return the numbers of buckets as a list for people.

    Args:
        buckets: which.
    """
    return ", ".join(map(str, buckets))


def is_near(here: Position, end: Position) -> bool:
    """Return whether little is left of a bucket's log up to an end.

    Args:
        here: the position of whoever follows.
        end: where it goes.
    """
    return here >= end or (here.epoch == end.epoch and end.seq - here.seq <= NEAR)


def _connection(session: NodeSession) -> object:
    """Return what a session is connected by now: another object once it was connected anew."""
    session.query("SELECT 1")
    return session.adapter.connection
