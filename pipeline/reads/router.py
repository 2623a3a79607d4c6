"""Route one read of one shard: to a replica that has what it must see, else to one that soon has, else to the primary.

Invariant: a read with a token never answers from a node that is not known to have it, unless it is marked as stale.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from pipeline import clock
from pipeline.errors import ShardUnavailable, StaleRead
from pipeline.op import Position
from pipeline.reads import policy
from pipeline.reads.bounds import Bounds
from pipeline.reads.node_dal import NodeDAL, ReadInfo
from pipeline.reads.policy import Candidate, Choice, choose, fall_back, fresh_among
from pipeline.reads.readers import Reader
from pipeline.reads.readings import View
from pipeline.reads.session import Session, least_marks
from pipeline.reads.token import Need
from pipeline.reads.waiting import Waiting
from pipeline.replica import Load

#: A node that no connection can be made to is left alone for so long: by then the prober knows. One whose connection
#: broke in the middle of a read is left alone just until that read has been tried elsewhere, s.
SHUN_S, SKIP_S = 2.0, 0.02
Needs = Mapping[int, Need]
_ONE_SHARE = Load()


class Readings(Protocol):
    """Tells of nodes: see `readings.Readings`."""

    def view(self, node: str) -> View: ...  # noqa: D102


class Budget(Protocol):
    """See `budget.Budget`."""

    def take(self, shard: str) -> bool: ...  # noqa: D102
    def note(self, shard: str) -> None: ...  # noqa: D102


class Nodes(Protocol):
    """Knows who is who: see `shard.nodes.Nodes`."""

    def primary_name(self, shard: str) -> str: ...  # noqa: D102
    def replica_names(self, shard: str) -> tuple[str, ...]: ...  # noqa: D102
    def suspect(self, shard: str) -> None: ...  # noqa: D102


class Source(Protocol):
    """Gives the reader of a node: see `readers.Readers`."""

    def __getitem__(self, node: str) -> Reader: ...


class Opened(NamedTuple):
    """A reader that may serve, and why."""

    reader: Reader
    info: ReadInfo


class Router:
    """Chooses nodes and opens them. Threads may share it.

    Args:
        count: called with node, kind and reason of each choice; see `counters.Chosen`.
        jitter: returns a random number in [0, 1).
        loads: what each replica is to carry; a node that is not named, such as a former primary, carries one share.
    """

    def __init__(
        self,
        nodes: Nodes,
        readers: Source,
        readings: Readings,
        budget: Budget,
        count: Callable[[str, str, str], None] = lambda node, kind, reason: None,
        jitter: Callable[[], float] = random.random,
        loads: Mapping[str, Load] = {},
    ):
        self._nodes, self._readers, self._readings, self._budget = nodes, readers, readings, budget
        self._count, self._jitter, self._loads = count, jitter, loads
        self._shunned_until_s: dict[str, float] = {}
        self._reset()
        after_fork(self)

    @contextmanager
    def open(
        self,
        shard: str,
        needs: Needs,
        bounds: Bounds,
        *,
        session: Session | None = None,
        buckets: Iterable[int] | None = None,
    ) -> Iterator[NodeDAL]:
        """Open a node of a shard for one read.

        Args:
            needs: what the read must see.
            session: takes up what the node had of the *buckets* (None: of all).

        Raises:
            StaleRead: no node has what the read must see, in time, or may serve it.
            ShardUnavailable: no node answers.
        """
        reader, info = self._opened(shard, needs, bounds)  # counted as running from here on
        try:
            # knowledge belongs to the connection: should it be replaced in the middle, the read must fail
            with reader.relied_on(bool(needs)):
                yield NodeDAL(reader, info)
            if session is not None:
                # looked at afterwards: rows may be newer than a mark that was looked at before
                session.saw(reader.marks(buckets), self.passed(shard), stale=info.stale)
        except ShardUnavailable as error:
            if error.node == info.node:
                self._failed(shard, info.node, SKIP_S)
            raise
        finally:
            self._leave(info.node)

    def primary_has(self, shard: str, needs: Needs, deadline: clock.Deadline) -> bool:
        """Wait until the primary of a shard has it all, as far as there is time; whether it has.

        Raises:
            ShardUnavailable: it does not answer.
        """
        reader = self._readers[self._nodes.primary_name(shard)]
        reader.ready()
        return reader.has(needs) or self._waiting.until([reader], needs, deadline) is not None

    def passed(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that every node of a shard is known to have passed."""
        names = (self._nodes.primary_name(shard), *self._nodes.replica_names(shard))
        return least_marks(self._readings.view(name).marks for name in names)

    # choosing -----------------------------------------------------------------------------------------------

    def _opened(self, shard: str, needs: Needs, bounds: Bounds) -> Opened:
        deadline = clock.Deadline(bounds.wait_s)
        failure: ShardUnavailable | None = None
        failed: set[str] = set()
        for _ in range(2 + len(self._nodes.replica_names(shard))):
            candidates = self._candidates(shard, needs)
            choice = choose(
                candidates,
                max_lag_s=bounds.max_lag_s,
                token=bool(needs),
                on_stale=bounds.on_stale,
                primary_allowed=partial(self._budget.take, shard),
                jitter=self._jitter,
            )
            if choice.kind == "ask":
                node = self._waited(candidates, needs, bounds, deadline)
                choice = (
                    Choice("replica", node, policy.TOKEN_ASKED)
                    if node is not None
                    else self._after_waiting(shard, needs, bounds)
                )
            node = choice.node or self._nodes.primary_name(shard)
            if not self._entered(node, replica=choice.node is not None):
                continue  # other threads have just filled it to its limit
            try:
                return self._chosen(shard, node, choice, needs, bounds, deadline)
            except BaseException as error:
                self._leave(node)
                if not isinstance(error, ShardUnavailable):
                    raise
                failure = error
                self._failed(shard, error.node)
                if error.node in failed:
                    break
                failed.add(error.node)
        raise failure or StaleRead(shard, "lagging", policy.ALL_BUSY, deadline.waited_s)

    def _candidates(self, shard: str, needs: Needs) -> list[Candidate]:
        now_s = clock.mono_s()
        self._nodes.primary_name(shard)  # notices a failover
        found = [self._candidate(node, needs, now_s) for node in self._nodes.replica_names(shard)]
        # one of weight 0 is there to be promoted: a shard that has no others reads from its primary
        return [one for one in found if one.weight > 0]

    def _candidate(self, node: str, needs: Needs, now_s: float) -> Candidate:
        view = self._readings.view(node)
        shunned = self._shunned_until_s.get(node, 0.0) > now_s
        recovering = view.out and not (shunned or view.unfit or view.doubtful)
        reached = True if not needs else True if self._knows(node, view, needs) else None
        load = self._loads.get(node, _ONE_SHARE)
        running = self._outstanding.get(node, 0)
        out = view.out or shunned
        return Candidate(node, view.lag_s, out, running, load.weight, reached, load.limit, view.doubtful, recovering)

    def _knows(self, node: str, view: View, needs: Needs) -> bool:
        """Whether a node is known to have it all, by this thread's own look or by the prober's.

        The prober's counts if this thread's connection is older than it (the lag includes the reading's age): so the
        server has not been restarted since, and a server that runs does not go back.
        """
        reader = self._readers[node]
        if reader.has(needs):
            return True
        if view.lag_s is None or reader.connected_for_s() <= view.lag_s:
            return False
        nothing = Position(-1, -1)
        return all(need.reached(view.marks.get(bucket, nothing), {}) for bucket, need in needs.items())

    def _still_has(self, node: str, needs: Needs) -> bool:
        """Whether a node still has it, once `ready` may have replaced the connection that had shown it."""
        reader = self._readers[node]
        return not needs or self._knows(node, self._readings.view(node), needs) or reader.look(needs)

    def _after_waiting(self, shard: str, needs: Needs, bounds: Bounds) -> Choice:
        # where the caller prefers an old answer to the primary's, it is marked
        reached = bounds.on_stale == "stale"
        asked = [replace(one, reached=reached) for one in self._candidates(shard, needs)]
        allowed = partial(self._budget.take, shard)
        return fall_back(asked, policy.NOT_REACHED, token=True, on_stale=bounds.on_stale, primary_allowed=allowed)

    def _waited(
        self, candidates: Collection[Candidate], needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> str | None:
        """Look at the fresh replicas in turn until one has it all; return which, or None when the time is over."""
        fresh = fresh_among(candidates, bounds.max_lag_s)
        readers = [self._readers[one.node] for one in sorted(fresh, key=lambda c: (c.outstanding, c.lag_s))]
        found = self._waiting.until(readers, needs, deadline, self._shun)
        return found.node if found is not None else None

    def _chosen(
        self, shard: str, node: str, choice: Choice, needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> Opened:
        waited_s = deadline.waited_s if needs else 0.0
        if choice.kind == "error":
            self._count(shard, "error", choice.reason)
            stage = "replicating" if needs and choice.reason in (policy.NOT_REACHED, policy.OVER_BUDGET) else "lagging"
            raise StaleRead(shard, stage, choice.reason, waited_s)
        if choice.kind == "primary":
            return self._on_primary(shard, node, choice, needs, bounds, deadline)
        reader = self._readers[node]
        reader.ready()
        if choice.kind == "replica" and not self._still_has(node, needs):
            raise ShardUnavailable(node, "it no longer has what it had: was it restored?")
        self._count(node, choice.kind, choice.reason)
        if choice.reason != policy.OVER_BUDGET:  # then it was counted when the budget was asked
            self._budget.note(shard)
        lag_s = self._readings.view(node).lag_s
        return Opened(reader, ReadInfo(node, "replica", lag_s, waited_s, choice.kind == "stale", choice.reason))

    def _on_primary(
        self, shard: str, name: str, choice: Choice, needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> Opened:
        """Open the primary. It too may lack what is still queued, or what a failover lost."""
        reader = self._readers[name]
        reader.ready()
        has_it = not needs or self.primary_has(shard, needs, deadline)
        if not has_it and bounds.on_stale != "stale":
            self._count(shard, "error", policy.NOT_REACHED)
            raise StaleRead(shard, "queued", choice.reason, deadline.waited_s)
        self._count(name, "primary" if has_it else "stale", choice.reason)
        waited_s = deadline.waited_s if needs else 0.0
        return Opened(reader, ReadInfo(name, "primary", 0.0, waited_s, not has_it, choice.reason))

    def _reset(self) -> None:
        self._waiting, self._lock = Waiting(), threading.Lock()
        self._outstanding: dict[str, int] = {}

    # failures -----------------------------------------------------------------------------------------------

    def _failed(self, shard: str, node: str, for_s: float = SHUN_S) -> None:
        self._shun(node, for_s)
        if node == self._nodes.primary_name(shard):
            self._nodes.suspect(shard)

    def _shun(self, node: str, for_s: float = SHUN_S) -> None:
        until_s = clock.mono_s() + for_s
        self._shunned_until_s[node] = max(until_s, self._shunned_until_s.get(node, 0.0))

    def _entered(self, node: str, *, replica: bool) -> bool:
        """Count a read as running on a node, unless that is a replica at its limit: many threads choose at once."""
        limit = self._loads.get(node, _ONE_SHARE).limit if replica else None
        with self._lock:
            running = self._outstanding.get(node, 0)
            if limit is not None and running >= limit:
                return False
            self._outstanding[node] = running + 1
            return True

    def _leave(self, node: str) -> None:
        with self._lock:
            self._outstanding[node] -= 1


def after_fork(router: Router) -> None:
    """Let a fork begin with no reads running, and with locks that nobody holds."""
    there = weakref.ref(router)

    def reset() -> None:
        alive = there()
        if alive is not None:
            alive._reset()

    os.register_at_fork(after_in_child=reset)
