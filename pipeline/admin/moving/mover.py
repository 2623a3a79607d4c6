"""Go on with a move of buckets, from whatever the two shards say of it, until it is over.

Each step is a commit that is made only where the states are those that the step begins at. So a move outlives its
mover, and two movers do no harm. The states, by source and target:

* owned / copying: rows are copied from a snapshot of the source; it counts once every node of the source has it.
* owned / catching: the target follows the log behind the source, is compared with it, and then the source stops.
* moved / catching: the target goes on to exactly where the source has stopped, and begins.
* moved / owned: map and epochs follow; a minute later the source's rows are given up.
* gone / owned: the source's rows are deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import Different, MovedTable, apart
from pipeline.admin.moving.sides import Sides
from pipeline.admin.reshape import renew_epochs
from pipeline.apply.follow import CopyBehind, Differs, Follow
from pipeline.chance import chance
from pipeline.client import Client
from pipeline.config.placement import Placement
from pipeline.enqueue import bucket_map
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.model.op import START, Position
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard.driver_errors import is_driver_error, sentence_of
from pipeline.shard.records import ledger, ledger_queries, moves
from pipeline.shard.records.ledger import ACTIVE, APPLYING, CATCHING, COPYING, GONE, MOVED, OWNED
from pipeline.shard.records.moves import Fence, Leg
from pipeline.shard.session import NodeSession

#: For so long a move is in the map before rows are copied, s: readers with an older map look at states themselves.
HEARD_S = OLD_MAP_S + 2.0
#: How many ops of a bucket the target may have to apply when the source stops: some milliseconds' work.
NEAR = 200
#: How long the mover waits for replicas before it says that it waits, s; and how long the target is tried with an op
#: that it refuses, since its reference tables may be behind.
WAIT_S, REFUSED_S, SHORT_S = 30.0, 15.0, 0.05
#: How long a mover's lease lasts from each step, ms.
LEASE_MS = 15_000
logger = logging.getLogger("pipeline.moves")


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


class MoveEnded(PipelineError):
    """A move was given up by the mover: both shards are as before."""


class Mover:
    """Moves some buckets.

    Args:
        client: the deployment, of this thread.
        leg: the row of the move of one of them.
        buckets: all that move together.
    """

    def __init__(self, client: Client, leg: Leg, buckets: tuple[int, ...]):
        self._client, self.leg, self.buckets, self.sides = client, leg, buckets, Sides(client, leg, buckets)
        self._lease, self._token = f"move:{leg.move}", f"{chance.getrandbits(63)}"

    def steps(self) -> Iterator[MoveStep]:
        """Go on until the move is over; yield what was done.

        Raises:
            MoveEnded: the shards differ, so that the move was given up; it says in what.
            Unavailable: a server does not answer; call again.
        """
        while (stage := self.stage()) != "over":
            try:
                yield from getattr(self, f"_{stage}")()
            except (CopyBehind, buckets_rows.CopyVoid) as error:
                logger.info(Event("copy_void", move=self.leg.move, error=error))
                self._step(self.sides.target, [CATCHING], COPYING)
                yield MoveStep("waiting", f"to copy again: {error}")
            except (Different, Differs) as error:
                self.give_up(str(error))
                raise MoveEnded(
                    f"the move of bucket {self._named} was given up, and {self.leg.source} goes on as before: {error}"
                ) from error
            except Exception as error:
                if not is_driver_error(error):
                    raise
                both = f"{self.leg.source} or {self.leg.target}"
                raise ShardUnavailable(both, sentence_of(error)) from error
        yield MoveStep("over")

    def stage(self) -> str:
        """Return what is to be done next."""
        here, there = self.sides.legs(self.sides.source), self.sides.legs(self.sides.target)
        left, came = {leg.state for leg in here.values()}, {leg.state for leg in there.values()}
        if there and came == {GONE}:
            return "over" if not here and all(leg.note.cleaned for leg in there.values()) else "undo"
        if not here:
            return "abandon" if there and came <= {COPYING, CATCHING} else "over"
        if not there:
            return "begin"
        if came <= {COPYING}:
            return "copy"
        if came <= {CATCHING}:
            return "finish" if left == {MOVED} else "catch"
        if left == {MOVED}:
            return "publish"
        return "over" if all(leg.note.cleaned for leg in here.values()) else "clean"

    @property
    def begun(self) -> bool:
        """Whether the target owns the buckets, and every process learns so with its next epoch."""
        return any(leg.note.mapped for leg in self.sides.legs(self.sides.target).values())

    def give_up(self, why: str) -> None:
        """End a move whose target has not begun; the source goes on as it was.

        Args:
            why: for people.

        Raises:
            PipelineError: the target has begun: let the move end, then move the bucket back.
        """
        target = self.sides.target
        if not self._stopped():
            self._forget_on_source()  # first, so that no mover stops the source while its target is emptied
        elif not self._step(target, [COPYING, CATCHING], GONE):
            raise PipelineError(f"{self.leg.target} has begun: let the move end, then run: pipeline move back")
        self._step(target, [COPYING, CATCHING], GONE)
        self._resume_source()
        note = next((leg.note for leg in self.sides.legs(target).values()), moves.MoveNote())
        moves.note(target, self.buckets, self.leg.move, replace(note, trouble=why, cleaned=False))
        logger.warning(Event("move_given_up", move=self.leg.move, buckets=len(self.buckets), why=why))

    # the stages ---------------------------------------------------------------------------------------------

    def _begin(self) -> Iterator[MoveStep]:
        """Let the target expect the buckets; from now on nothing but the log changes them on the source."""
        target = self.sides.target
        with target.translated(), target.transaction():
            marks = ledger.lock_buckets(target, self.buckets)
            if any(mark.owned for mark in marks.values()):
                raise PipelineError(f"{self.leg.target} owns bucket {self._named} already")
            for bucket in self.buckets:
                moves.write_leg(target, self.leg._replace(bucket=bucket, note=moves.MoveNote()))
                moves.place_mark(target, bucket, START, COPYING)
        self._follow_map()
        yield from self._pause(HEARD_S, "until all readers know of the move")

    def _copy(self) -> Iterator[MoveStep]:
        client, attempt = self._client, chance.getrandbits(62)
        self._follow_map()
        note = moves.MoveNote(attempt=attempt)
        moves.note(self.sides.target, self.buckets, self.leg.move, note)
        tables = self._tables()
        with apart(client, self.leg.source) as source, apart(client, self.leg.target, writing=True) as target:
            target.fence = self._fence((COPYING,), attempt)
            connection = _connection(target)
            with source.snapshot():
                begun = _positions_in(source, self.buckets)
                rows = 0
                for table, chunk in buckets_rows.copy_rows(source, target, tables):
                    self.hold()
                    rows += chunk.rows
                    yield MoveStep("copying", table, rows)
                while not self.sides.source_has(begun):
                    yield from self._pause(SHORT_S, "for every node of the source to have what was copied")
                # the same connections to the same primaries as at the beginning: neither shard has failed over since
                source.rows("SELECT 1")
                primaries = client.nodes.primary_name(self.leg.source), client.nodes.primary_name(self.leg.target)
                if _connection(target) is not connection or primaries != (source.node, target.node):
                    raise buckets_rows.CopyVoid("a database failed over meanwhile")
                buckets_rows.take_records(source, target, begun, CATCHING)
        moves.note(self.sides.target, self.buckets, self.leg.move, replace(note, rows=rows))

    def _catch(self) -> Iterator[MoveStep]:
        follow = self._follow()
        yield from self._caught_up(follow)
        if not self.sides.note.verified:
            yield from self._verify(follow)
            return
        while not self.sides.target_says((CATCHING,)):
            yield from self._pause(SHORT_S, "for every node of the target to have the copy")
        while not self._map_is_known():
            yield from self._pause(HEARD_S, "until all readers know of the move")
        yield from self._caught_up(follow)
        self.hold()
        if self._step(self.sides.source, APPLYING, MOVED):
            yield MoveStep("stopping", f"{self.leg.source} has stopped")

    def _finish(self) -> Iterator[MoveStep]:
        """Go on to exactly where the source has stopped, then begin."""
        ends = self.sides.positions(self.sides.source)
        for _ in clock.polls(WAIT_S, first_s=0.005):
            if self.sides.source_stands(MOVED, ends):
                break
        else:
            yield MoveStep("waiting", "for every node of the source to have stopped")
            return
        follow = self._follow()
        while self.sides.positions(self.sides.target) != ends:
            self._follow_once(follow, ends)
        self._give_span()
        with self.sides.target.translated(), self.sides.target.transaction():
            if _positions_in(self.sides.target, self.buckets) == ends:
                moves.change_state(self.sides.target, self._fence((CATCHING,)), ACTIVE)
        yield from self._map()

    def _publish(self) -> Iterator[MoveStep]:
        if not self.sides.note.mapped:
            yield from self._map()
        while not self.sides.target_says(OWNED):
            yield from self._pause(SHORT_S, "for every node of the target to own the buckets")
        yield from self._pause(self.leg.keep_s, f"before rows of {self.leg.source} are deleted")
        if self.sides.target_says(OWNED):
            self._step(self.sides.source, [MOVED], GONE)

    def _clean(self) -> Iterator[MoveStep]:
        yield from self._deleted(self.leg.source, moves.MoveNote())

    def _abandon(self) -> Iterator[MoveStep]:
        """Give up what the source knows nothing of any more: it failed over, or whoever gave up has died."""
        if self._step(self.sides.target, [COPYING, CATCHING], GONE):
            note = self.sides.note
            note = replace(note, trouble=note.trouble or "its source knows nothing of it", cleaned=False)
            moves.note(self.sides.target, self.buckets, self.leg.move, note)
        yield MoveStep("cleaning", self.leg.target)

    def _undo(self) -> Iterator[MoveStep]:
        note = self.sides.note
        self._resume_source()  # once more: the source may have failed over since
        yield from self._deleted(self.leg.target, note)

    def _stopped(self) -> bool:
        return any(leg.state == MOVED for leg in self.sides.legs(self.sides.source).values())

    def _resume_source(self) -> None:
        """Let the source go on once no node of the target can begin, and forget the move."""
        if self._stopped():
            for _ in clock.polls(WAIT_S, first_s=0.005):
                if self.sides.target_says((GONE,)):
                    break
            else:
                raise PipelineError(f"a replica of {self.leg.target} does not follow: {self.leg.source} waits for it")
            self._step(self.sides.source, [MOVED], ACTIVE)
        self._forget_on_source()

    def _forget_on_source(self) -> None:
        source = self.sides.source
        with source.translated(), source.transaction():
            marks = ledger.lock_buckets(source, self.buckets)
            if all(mark.owned for mark in marks.values()):
                moves.forget_legs(source, self.buckets, self.leg.move)

    # parts --------------------------------------------------------------------------------------------------

    def _map(self) -> Iterator[MoveStep]:
        """Let all processes know who owns the buckets, and let no process act on the map of before."""
        client = self._client
        self._follow_map()
        renew_epochs(client, (self.leg.source, self.leg.target))
        client.log.mark_dirty(self.leg.target, self.buckets)
        client.log.postpone(self.leg.target, self.buckets, 0)
        client.bell.ring_now(self.leg.target, len(self.buckets))
        moves.note(self.sides.target, self.buckets, self.leg.move, replace(self.sides.note, mapped=True))
        yield MoveStep("stopping", f"{self.leg.target} goes on")

    def _verify(self, follow: Follow) -> Iterator[MoveStep]:
        """Compare both shards at one watermark of each bucket."""
        client, tables = self._client, self._tables()
        with apart(client, self.leg.source) as source, apart(client, self.leg.target) as target, source.snapshot():
            at = _positions_in(source, self.buckets)
            while not self.sides.source_has(at):
                yield from self._pause(SHORT_S, "for every node of the source to have what is compared")
            while self.sides.positions(self.sides.target) != at:
                self.hold()
                if any(self.sides.positions(self.sides.target)[bucket] > at[bucket] for bucket in self.buckets):
                    return  # another mover is at it
                self._follow_once(follow, at)
            with target.snapshot():
                rows = 0
                for table, chunk in buckets_rows.compare_rows(source, target, tables):
                    self.hold()
                    rows += chunk.rows
                    yield MoveStep("comparing", table, rows)
                buckets_rows.compare_records(source, target, self.buckets)
        moves.note(self.sides.target, self.buckets, self.leg.move, replace(self.sides.note, verified=True))

    def _caught_up(self, follow: Follow) -> Iterator[MoveStep]:
        """Follow the source until little is left, as far as every node of the source has it."""
        applied = 0
        while True:
            self.hold()
            ends, here = self.sides.lowest(), self.sides.positions(self.sides.target)
            if all(_is_near(here[bucket], ends[bucket]) for bucket in self.buckets):
                return
            applied += self._follow_once(follow, ends)
            yield MoveStep("catching up", "", applied)

    def _follow_once(self, follow: Follow, ends: dict[int, Position]) -> int:
        """Apply one batch; where the target refuses an op, try for a while: its reference tables may be behind."""
        here = self.sides.positions(self.sides.target)
        self._await_reference()
        deadline = clock.Deadline(REFUSED_S)
        while True:
            try:
                return follow.upto(ends, buckets_rows.set_aside_behind(self.sides.source, here))
            except Differs:
                if deadline.passed:
                    raise
                clock.sleep_s(0.25)

    def _await_reference(self) -> None:
        """Wait until the target has of reference tables what the source had when its watermarks were read."""
        reference = self._client.topology.reference_bucket
        there = ledger_queries.positions_of(self.sides.source).get(reference, START)
        for _ in clock.polls(WAIT_S, first_s=0.01):
            if ledger_queries.positions_of(self.sides.target).get(reference, START) >= there:
                return
        raise PipelineError(f"{self.leg.target} is behind {self.leg.source} in reference tables: see pipeline why")

    def _pause(self, for_s: float, what: str) -> Iterator[MoveStep]:
        """Wait, and say for what."""
        deadline = clock.Deadline(for_s)
        while not deadline.passed:
            left_s = max(0.0, deadline.left_s)
            yield MoveStep("waiting", f"{left_s:.0f} s {what}" if for_s > SHORT_S else what)
            clock.sleep_s(min(1.0, left_s))
            self.hold()

    def _deleted(self, shard: str, note: moves.MoveNote) -> Iterator[MoveStep]:
        """Delete the rows; the map names the move until no replica has them, for readers leave them out till then."""
        rows, tables, primary = 0, self._tables(), self._client.nodes.primary(shard)
        with apart(self._client, shard, writing=True) as session:
            session.fence = self._fence((GONE,))
            for more in buckets_rows.delete_bucket_rows(session, tables, self.buckets):
                self.hold()
                rows += more
                yield MoveStep("cleaning", shard, rows)
        moves.note(primary, self.buckets, self.leg.move, replace(note, emptied=True))
        while not self.sides.emptied(shard):
            yield from self._pause(SHORT_S, f"for every node of {shard} to have deleted its rows")
        moves.note(primary, self.buckets, self.leg.move, replace(note, emptied=True, cleaned=True))
        self._follow_map()

    def hold(self) -> bool:
        """Say that this mover is at work, so that no other one begins; return whether no other one is at it."""
        return self._client.log.hold_lease(self._lease, self._token, LEASE_MS)

    def release(self) -> None:
        """Let another mover go on."""
        self._client.log.release_lease(self._lease, self._token)

    def _follow_map(self) -> None:
        client = self._client
        bucket_map.follow(client.log, client.nodes, client.topology, anew=True)

    def _map_is_known(self) -> bool:
        known = Placement.noted(self._client.log.placement())
        if known is None or any(bucket not in known.moves for bucket in self.buckets):
            self._follow_map()
            return False
        return True

    def _give_span(self) -> None:
        """Let the target give no span of row ids that the source may have given."""
        ledger_queries.give_span(self.sides.target, ledger_queries.last_span(self.sides.source), 0)

    def _fence(self, states: Collection[str], attempt: int | None = None) -> Fence:
        return Fence(self.buckets, self.leg.move, states, attempt)

    def _step(self, session: NodeSession, before: Collection[str], after: str) -> bool:
        with session.translated(), session.transaction():
            return moves.change_state(session, self._fence(before), after)

    def _follow(self) -> Follow:
        client = self._client
        settings = client.settings
        return Follow(self.leg.target, self.sides.target, client.log, settings.apply, settings.tables, self.leg.move)

    def _tables(self) -> list[MovedTable]:
        return buckets_rows.moved_tables(self._client, self.buckets, self.leg.source, self.leg.target)

    @property
    def _named(self) -> str:
        return ", ".join(map(str, self.buckets))


def _positions_in(session: NodeSession, buckets: tuple[int, ...]) -> dict[int, Position]:
    """Return the watermarks of buckets within a session's open transaction."""
    found = ledger.marks(session)
    return {bucket: found[bucket].position for bucket in buckets}


def _is_near(here: Position, end: Position) -> bool:
    """Return whether little is left of a bucket's log up to an end."""
    return here >= end or (here.epoch == end.epoch and end.seq - here.seq <= NEAR)


def _connection(session: NodeSession) -> object:
    """Return what a session is connected by now: another object once it was connected anew."""
    session.query("SELECT 1")
    return session.adapter.connection
