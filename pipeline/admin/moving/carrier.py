"""Carry the rows of buckets from one shard to another: copy them, follow the log behind them, compare, and delete.

No faster than replicas follow and servers have time for it: between two chunks the carrier waits while a limit of the
move is passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import MovedTable, apart
from pipeline.admin.moving.sides import Sides, Throttle
from pipeline.apply.follow import Differs, Follow
from pipeline.chance import chance
from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.model.op import START, Position
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.ledger import CATCHING, COPYING, GONE
from pipeline.shard.records.moves import Leg
from pipeline.shard.session import NodeSession

#: How many ops of a bucket the target may have to apply when the source stops: some milliseconds' work.
NEAR = 200
#: How long the mover waits for replicas before it says that it waits, s; and how long the target is tried with an op
#: that it refuses, since its reference tables may be behind.
WAIT_S, REFUSED_S, SHORT_S = 30.0, 15.0, 0.05


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

    def copy(self) -> Iterator[MoveStep]:
        """Copy the rows from a snapshot of the source, and then the records: with these the target follows.

        Raises:
            CopyVoid: a database failed over, or another mover copies.
            Different: the target refuses a row.
        """
        client, sides, leg, attempt = self._client, self._sides, self._leg, chance.getrandbits(62)
        note = replace(sides.note, attempt=attempt, verified=False, rows=0, copied_from_ms=clock.wall_ms())
        moves.note(sides.target, self._buckets, leg.move, note)
        tables = self._tables()
        with (
            apart(client, leg.source) as source,
            apart(client, leg.target, writing=True) as target,
            Throttle(client, (leg.target, leg.source), note) as throttle,
        ):
            target.fence = sides.fence((COPYING,), attempt)
            connection = _connection(target)
            with source.snapshot():
                begun = sides.positions_in(source)
                rows = 0
                for table, chunk in buckets_rows.copy_rows(source, target, tables):
                    rows += chunk.rows
                    yield MoveStep("copying", table, rows)
                    for why in throttle.waits():
                        source.rows("SELECT 1")  # no server closes the snapshot's connection meanwhile
                        yield MoveStep("waiting", why)
                while not sides.source_has(begun):
                    yield from paused(SHORT_S, "for every node of the source to have what was copied")
                # the same connections to the same primaries as at the beginning: neither shard has failed over since
                source.rows("SELECT 1")
                primaries = client.nodes.primary_name(leg.source), client.nodes.primary_name(leg.target)
                if _connection(target) is not connection or primaries != (source.node, target.node):
                    raise buckets_rows.CopyVoid("a database failed over meanwhile")
                buckets_rows.take_records(source, target, begun, CATCHING)
        moves.note(sides.target, self._buckets, leg.move, replace(note, rows=rows))

    def verify(self, follow: Follow) -> Iterator[MoveStep]:
        """Compare both shards at one watermark of each bucket.

        Args:
            follow: of the move.

        Raises:
            Different: naming the first rows that differ.
        """
        client, sides, leg, tables = self._client, self._sides, self._leg, self._tables()
        with (
            apart(client, leg.source) as source,
            apart(client, leg.target) as target,
            Throttle(client, (leg.target, leg.source), sides.note, reads_only=True) as throttle,
            source.snapshot(),
        ):
            at = sides.positions_in(source)
            while not sides.source_has(at):
                yield from paused(SHORT_S, "for every node of the source to have what is compared")
            while (here := sides.positions(sides.target)) != at:
                if any(here[bucket] > at[bucket] for bucket in self._buckets):
                    return  # another mover is at it
                yield MoveStep("catching up", "", self.follow_once(follow, at))
            with target.snapshot():
                if not self._follows_at(target, at):
                    return  # another mover copies anew: what is not there yet is no difference
                rows = 0
                for table, chunk in buckets_rows.compare_rows(source, target, tables):
                    rows += chunk.rows
                    yield MoveStep("comparing", table, rows)
                    for why in throttle.waits():
                        yield MoveStep("waiting", why)
                buckets_rows.compare_records(source, target, self._buckets)
        moves.note(sides.target, self._buckets, leg.move, replace(sides.note, verified=True))

    def catch_up(self, follow: Follow) -> Iterator[MoveStep]:
        """Follow the source until little is left, as far as every node of the source has it.

        Args:
            follow: of the move.
        """
        applied = 0
        while True:
            ends, here = self._sides.lowest(), self._sides.positions(self._sides.target)
            if all(_is_near(here[bucket], ends[bucket]) for bucket in self._buckets):
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
                return follow.upto(ends, buckets_rows.set_aside_behind(self._sides.source, here))
            except Differs:
                if deadline.passed:
                    raise
                clock.sleep_s(0.25)

    def follow(self) -> Follow:
        """Return what follows the log on the target."""
        client, settings = self._client, self._client.settings
        target = self._leg.target
        return Follow(target, self._sides.target, client.log, settings.apply, settings.tables, self._leg.move)

    def delete(self, shard: str) -> Iterator[MoveStep]:
        """Delete what a shard that does not own the buckets has of them, until no node of it has any.

        Args:
            shard: its name.
        """
        sides, rows, tables = self._sides, 0, self._tables()
        primary = self._client.nodes.primary(shard)
        note = sides.note_of(primary)
        with (
            apart(self._client, shard, writing=True) as session,
            Throttle(self._client, (shard,), note) as throttle,
        ):
            session.fence = sides.fence((GONE,))
            for more in buckets_rows.delete_bucket_rows(session, tables, self._buckets):
                rows += more
                yield MoveStep("cleaning", shard, rows)
                for why in throttle.waits():
                    yield MoveStep("waiting", why)
        moves.note(primary, self._buckets, self._leg.move, replace(note, emptied=True))
        while not sides.emptied(shard):
            yield from paused(SHORT_S, f"for every node of {shard} to have deleted its rows")
        moves.note(primary, self._buckets, self._leg.move, replace(note, emptied=True, cleaned=True))

    def _follows_at(self, target: NodeSession, at: dict[int, Position]) -> bool:
        """Return whether the target follows, and stands at some watermarks, as a snapshot of it has it."""
        found = {
            bucket: leg[-2:] for bucket, leg in moves.legs_within(target, at).items() if leg.move == self._leg.move
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
        return buckets_rows.moved_tables(self._client, self._buckets, self._leg.source, self._leg.target)


def paused(for_s: float, what: str) -> Iterator[MoveStep]:
    """Wait, and yield for what, once a second.

    Args:
        for_s: how long, s.
        what: is waited for.
    """
    deadline = clock.Deadline(for_s)
    while not deadline.passed:
        left_s = max(0.0, deadline.left_s)
        yield MoveStep("waiting", f"{left_s:.0f} s {what}" if for_s > SHORT_S else what)
        clock.sleep_s(min(1.0, left_s))


def named(buckets: Collection[int]) -> str:
    """Return the numbers of buckets as a list for people.

    Args:
        buckets: which.
    """
    return ", ".join(map(str, buckets))


def _is_near(here: Position, end: Position) -> bool:
    """Return whether little is left of a bucket's log up to an end."""
    return here >= end or (here.epoch == end.epoch and end.seq - here.seq <= NEAR)


def _connection(session: NodeSession) -> object:
    """Return what a session is connected by now: another object once it was connected anew."""
    session.query("SELECT 1")
    return session.adapter.connection
