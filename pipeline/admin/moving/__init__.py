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
from collections.abc import Iterator
from contextlib import closing, suppress

from msgspec.structs import replace

from pipeline import clock
from pipeline.admin.moving import buckets_rows
from pipeline.admin.moving.buckets_rows import Different
from pipeline.admin.moving.carrier import WAIT_S, Awaited, Carrier, MoveStep, named, paused
from pipeline.admin.moving.sides import Sides
from pipeline.admin.reshape import renew_epochs
from pipeline.apply.follow import CopyBehind, Differs
from pipeline.client import Client
from pipeline.config.buckets import Placement
from pipeline.enqueue import buckets as bucket_map
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.model import START
from pipeline.per_process import chance
from pipeline.reads.routing.moving import OLD_MAP_S
from pipeline.shard import records
from pipeline.shard.driver_errors import is_driver_error, sentence_of
from pipeline.shard.records import ACTIVE, APPLYING, CATCHING, COPYING, GONE, MOVED, OWNED, ledger_queries, moves
from pipeline.shard.records.moves import Leg

#: For so long a move is in the map before rows are copied, s: readers with an older map look at states themselves.
HEARD_S = OLD_MAP_S + 2.0
#: The time between two notes of how far a move is, s: each is a commit that replicas repeat.
NOTED_S = 1.0
#: How long a mover waits before it copies again, s: two that began anew at once would void each other for ever.
GIVES_WAY_S = (1.0, 3.0)
#: How long a mover's lease lasts from each step, ms.
LEASE_MS = 15_000
logger = logging.getLogger("pipeline.moves")


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
        self._carrier = Carrier(client, leg, buckets, self.sides)
        self._lease, self._token = f"move:{leg.move}", f"{chance.getrandbits(63)}"
        self._noted_s, self._waits = 0.0, True

    def steps(self) -> Iterator[MoveStep]:
        """Go on until the move is over; yield what was done.

        Raises:
            MoveEnded: the shards differ, so that the move was given up; it says in what.
            Unavailable: a server does not answer; call again.
        """
        while (stage := self.stage()) != "over":
            try:
                with closing(getattr(self, f"_{stage}")()) as steps:
                    for step in steps:
                        self.hold()
                        self._tell(step)
                        yield step
                        # what is waited for may never be, once another mover has gone on
                        if step.stage == "waiting" and stage != "begin" and self.stage() != stage:
                            break
            except (CopyBehind, buckets_rows.CopyVoid) as error:
                logger.info(Event("copy_void", move=self.leg.move, error=error))
                self.sides.step(self.sides.target, [CATCHING], COPYING)
                yield MoveStep("waiting", f"to copy again: {error}")
                clock.sleep_s(chance.uniform(*GIVES_WAY_S))
            except (Different, Differs) as error:
                self.give_up(str(error))
                raise MoveEnded(
                    f"the move of bucket {named(self.buckets)} was given up, and {self.leg.source} goes on as before: "
                    f"{error}"
                ) from error
            except PipelineError as error:
                with suppress(PipelineError):
                    self._tell(MoveStep("waiting", str(error)))
                raise
            except Exception as error:
                if not is_driver_error(error):
                    raise
                both = f"{self.leg.source} or {self.leg.target}"
                raise ShardUnavailable(both, sentence_of(error)) from error
        yield MoveStep("over")

    def stage(self) -> str:
        """Return what is to be done next."""
        return moves.stage_of(self.sides.legs(self.sides.source), self.sides.legs(self.sides.target))

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
        elif not self.sides.step(target, [COPYING, CATCHING], GONE):
            raise PipelineError(f"{self.leg.target} has begun: let the move end, then run: pipeline move back")
        self.sides.step(target, [COPYING, CATCHING], GONE)
        self._resume_source()
        moves.note(target, self.buckets, self.leg.move, trouble=why, cleaned=False)
        logger.warning(Event("move_given_up", move=self.leg.move, buckets=len(self.buckets), why=why))

    # the stages ---------------------------------------------------------------------------------------------

    def _begin(self) -> Iterator[MoveStep]:
        """Let the target expect the buckets; from now on nothing but the log changes them on the source."""
        target = self.sides.target
        with target.translated(), target.transaction():
            marks = records.lock_buckets(target, self.buckets)
            if any(mark.owned for mark in marks.values()):
                raise PipelineError(f"{self.leg.target} owns bucket {named(self.buckets)} already")
            # a mover may have read its row on a server that has failed over since
            note = replace(self.leg.note, copied=None, compared=None, verified=False)
            for bucket in self.buckets:
                moves.write_leg(target, self.leg._replace(bucket=bucket, note=note))
                moves.place_mark(target, bucket, START, COPYING)
        yield from ()

    def _copy(self) -> Iterator[MoveStep]:
        self._follow_map()
        if not self.sides.note.copied_from_ms:  # else a mover has waited for it, and died since
            yield from paused(HEARD_S, "until all readers know of the move")
        yield from self._carrier.copy()

    def _catch(self) -> Iterator[MoveStep]:
        follow = self._carrier.follow()
        yield from self._carrier.catch_up(follow)
        if not self.sides.note.verified:
            yield from self._carrier.verify(follow)
            return
        wait = Awaited("for every node of the target to have the copy")
        while not self.sides.target_says((CATCHING,)):
            yield from wait.turn()
        while not self._map_is_known():
            yield from paused(HEARD_S, "until all readers know of the move")
        yield from self._carrier.catch_up(follow)
        self.hold()
        if self.sides.step(self.sides.source, APPLYING, MOVED):
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
        follow = self._carrier.follow()
        while self.sides.positions(self.sides.target) != ends:
            self._carrier.follow_once(follow, ends)
        self._give_span()
        with self.sides.target.translated(), self.sides.target.transaction():
            if self.sides.positions_in(self.sides.target) == ends:
                moves.change_state(self.sides.target, self.sides.fence((CATCHING,)), ACTIVE)
        yield from self._map()

    def _publish(self) -> Iterator[MoveStep]:
        if not self.sides.note.mapped:
            yield from self._map()
        wait = Awaited("for every node of the target to own the buckets")
        while not self.sides.target_says(OWNED):
            yield from wait.turn()
        yield from paused(self.leg.keep_s, f"before rows of {self.leg.source} are deleted")
        if self.sides.target_says(OWNED):
            self.sides.step(self.sides.source, [MOVED], GONE)

    def _clean(self) -> Iterator[MoveStep]:
        yield from self._carrier.delete(self.leg.source)
        self._follow_map()

    def _abandon(self) -> Iterator[MoveStep]:
        """Give up what the source knows nothing of any more: it failed over, or whoever gave up has died."""
        if self.sides.step(self.sides.target, [COPYING, CATCHING], GONE):
            trouble = self.sides.note.trouble or "its source knows nothing of it"
            moves.note(self.sides.target, self.buckets, self.leg.move, trouble=trouble, cleaned=False)
        yield MoveStep("cleaning", self.leg.target)

    def _undo(self) -> Iterator[MoveStep]:
        self._resume_source()  # once more: the source may have failed over since
        yield from self._carrier.delete(self.leg.target)
        self._follow_map()

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
            self.sides.step(self.sides.source, [MOVED], ACTIVE)
        self._forget_on_source()

    def _forget_on_source(self) -> None:
        source = self.sides.source
        with source.translated(), source.transaction():
            marks = records.lock_buckets(source, self.buckets)
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
        moves.note(self.sides.target, self.buckets, self.leg.move, mapped=True)
        yield MoveStep("stopping", f"{self.leg.target} goes on")

    def _tell(self, step: MoveStep) -> None:
        """Note how far the move is, for those who look from elsewhere; nothing is noted between stop and start."""
        waits = step.stage == "waiting"
        if step.stage == "stopping" or (clock.mono_s() - self._noted_s < NOTED_S and waits == self._waits):
            return
        self._noted_s, self._waits = clock.mono_s(), waits
        moves.note_progress(self.sides.target, self.buckets, self.leg.move, *step)

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
