"""Route one read of one shard: to a replica that has what it must see, else to one that soon has, else to the primary.

Invariant: a read with a token never answers from a node that is not known to have it, unless it is marked as stale.

One read's node, as a context manager: opened on the way in; noted in the session and given back on the way out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Protocol

from pipeline import clock
from pipeline.config.sections import Load
from pipeline.errors import ShardUnavailable, StaleRead
from pipeline.model.op import Position
from pipeline.reads.node_dal import NodeDAL, ReadInfo
from pipeline.reads.routing import policy
from pipeline.reads.routing.catch_up import CatchUp
from pipeline.reads.routing.policy import Bounds, Candidate, Choice, choose, fall_back, fresh_among, merely_behind
from pipeline.reads.routing.replicas import SHUN_S, SKIP_S, Needs, Nodes, Opened, Readings, Roster, Running, Source
from pipeline.reads.session import ReadSession


class Router:
    """Chooses nodes and opens them. Threads may share it.

    Args:
        primary_limit: reads of this process that may run on a primary at once because a replica is merely behind; 0:
            any number.
        count: called with node, kind and reason of each choice; see `counters.Chosen`.
        jitter: returns a random number in [0, 1).
        loads: see `roster.Roster`.
    """

    def __init__(
        self,
        nodes: Nodes,
        readers: Source,
        readings: Readings,
        primary_limit: int = 0,
        count: Callable[[str, str, str], None] = lambda node, kind, reason: None,
        jitter: Callable[[], float] = random.random,
        loads: Mapping[str, Load] = {},
    ):
        self._nodes, self._readers, self._limit = nodes, readers, primary_limit or None
        self._count, self._jitter = count, jitter
        self._running, self._waiting = Running(), CatchUp()
        self._limited = Running()  # by shard: those that the primary limits
        self._roster = Roster(nodes, readers, readings, self._running, loads)

    def open(
        self,
        shard: str,
        needs: Needs,
        bounds: Bounds,
        *,
        session: ReadSession | None = None,
        buckets: Iterable[int] | None = None,
        ready: Callable[[NodeDAL], object] | None = None,
    ) -> Opening:
        """Return a node of a shard for one read, to be entered; see `Opening`."""
        return Opening(self, shard, needs, bounds, session, buckets, ready)

    def close(self) -> None:
        """Close this thread's connections."""
        self._readers.close()

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
        return self._roster.passed(shard)

    def leave(self, shard: str, opened: Opened, failure: BaseException | None) -> None:
        """End a read that `enter` began, and how."""
        node = opened.info.node
        try:
            if isinstance(failure, ShardUnavailable) and failure.node == node:
                self._failed(shard, node, SKIP_S)
        finally:
            self._running.leave(node)
            if opened.limited:
                self._limited.leave(shard)

    def enter(self, shard: str, needs: Needs, bounds: Bounds) -> Opened:
        """Begin a read: choose a node, and another while that fails; see `Opening`."""
        deadline = clock.Deadline(bounds.wait_s)
        failure: ShardUnavailable | None = None
        failed: set[str] = set()
        for _ in range(2 + len(self._nodes.replica_names(shard))):
            choice = self._choice(shard, needs, bounds, deadline)
            try:
                opened = self._opened(shard, choice, needs, bounds, deadline)
            except BaseException as error:
                if choice.limited:
                    self._limited.leave(shard)
                if not isinstance(error, ShardUnavailable):
                    raise
                failure = error
                self._failed(shard, error.node)
                if error.node in failed:
                    break
                failed.add(error.node)
                continue
            if opened is not None:
                return opened
        raise failure or StaleRead(shard, "lagging", policy.ALL_BUSY, deadline.waited_s)

    # choosing -----------------------------------------------------------------------------------------------

    def _choice(self, shard: str, needs: Needs, bounds: Bounds, deadline: clock.Deadline) -> Choice:
        candidates = self._roster.candidates(shard, needs)
        choice = choose(
            candidates,
            max_lag_s=bounds.max_lag_s,
            token=bool(needs),
            on_stale=bounds.on_stale,
            primary_allowed=partial(self._limited.enter, shard, self._limit),
            jitter=self._jitter,
        )
        if choice.kind != "ask":
            return choice
        node = self._waited(candidates, needs, bounds, deadline)
        return Choice("replica", node, policy.TOKEN_ASKED) if node else self._after_waiting(shard, needs, bounds)

    def _after_waiting(self, shard: str, needs: Needs, bounds: Bounds) -> Choice:
        # where the caller prefers an old answer to the primary's, it is marked
        reached = bounds.on_stale == "stale"
        asked = [one._replace(reached=reached) for one in self._roster.candidates(shard, needs)]
        return fall_back(
            asked,
            policy.NOT_REACHED,
            token=True,
            on_stale=bounds.on_stale,
            behind=any(merely_behind(one, bounds.max_lag_s) for one in asked),
            primary_allowed=partial(self._limited.enter, shard, self._limit),
        )

    def _waited(
        self, candidates: Collection[Candidate], needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> str | None:
        """Look at the fresh replicas in turn until one has it all; return which, or None when the time is over."""
        fresh = fresh_among(candidates, bounds.max_lag_s)
        readers = [self._readers[one.node] for one in sorted(fresh, key=lambda c: (c.outstanding, c.lag_s))]
        found = self._waiting.until(readers, needs, deadline, self._roster.shun)
        return found.node if found is not None else None

    def _opened(
        self, shard: str, choice: Choice, needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> Opened | None:
        """Count the read as running on the chosen node and open that; None where threads have just filled it."""
        node = choice.node or self._nodes.primary_name(shard)
        if not self._running.enter(node, self._roster.limit(node) if choice.node else None):
            return None
        try:
            return self._chosen(shard, node, choice, needs, bounds, deadline)
        except BaseException:
            self._running.leave(node)
            raise

    def _chosen(
        self, shard: str, node: str, choice: Choice, needs: Needs, bounds: Bounds, deadline: clock.Deadline
    ) -> Opened:
        waited_s = deadline.waited_s if needs else 0.0
        if choice.kind == "error":
            self._count(shard, "error", choice.reason)
            stage = "replicating" if needs and choice.reason in (policy.NOT_REACHED, policy.OVER_LIMIT) else "lagging"
            raise StaleRead(shard, stage, choice.reason, waited_s)
        if choice.kind == "primary":
            return self._on_primary(shard, node, choice, needs, bounds, deadline)
        reader = self._readers[node]
        reader.ready()
        # `ready` may have replaced the connection that had shown it
        if needs and choice.kind == "replica" and not (self._roster.knows(node, needs) or reader.look(needs)):
            raise ShardUnavailable(node, "it no longer has what it had: was it restored?")
        self._count(node, choice.kind, choice.reason)
        lag_s = self._roster.lag_s(node)
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
        return Opened(reader, ReadInfo(name, "primary", 0.0, waited_s, not has_it, choice.reason), choice.limited)

    def _failed(self, shard: str, node: str, for_s: float = SHUN_S) -> None:
        self._roster.shun(node, for_s)
        if node == self._nodes.primary_name(shard):
            self._nodes.suspect(shard)


class Ways(Protocol):
    """See `router.Router`."""

    def enter(self, shard: str, needs: Needs, bounds: Bounds) -> Opened: ...  # noqa: D102
    def leave(self, shard: str, opened: Opened, failure: BaseException | None) -> None: ...  # noqa: D102
    def passed(self, shard: str) -> dict[int, Position]: ...  # noqa: D102


class Opening:
    """A node of a shard for one read, used once. A class, since two generators cost as much as all the rest of routing.

    Args:
        needs: what the read must see.
        session: takes up what the node had of the *buckets* (None: of all).
        ready: makes the DAL ready for its user.
    """

    __slots__ = ("_asked", "_buckets", "_opened", "_ready", "_relied_on", "_router", "_session", "_shard")

    def __init__(
        self,
        router: Ways,
        shard: str,
        needs: Needs,
        bounds: Bounds,
        session: ReadSession | None,
        buckets: Iterable[int] | None,
        ready: Callable[[NodeDAL], object] | None,
    ):
        self._router, self._shard, self._asked = router, shard, (needs, bounds)
        self._session, self._buckets, self._ready = session, buckets, ready

    def __enter__(self) -> NodeDAL:
        """Choose a node and open it.

        Raises:
            StaleRead: no node has what the read must see, in time, or may serve it.
            ShardUnavailable: no node answers.
        """
        needs, bounds = self._asked
        self._opened = self._router.enter(self._shard, needs, bounds)  # counted as running from here on
        db = NodeDAL(self._opened.reader, self._opened.info)
        # knowledge belongs to the connection: should it be replaced in the middle, the read must fail
        self._relied_on = self._opened.reader.rely(bool(needs))
        try:
            if self._ready is not None:
                self._ready(db)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return db

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the node back."""
        reader, info, _ = self._opened
        reader.relied(self._relied_on)
        try:
            if failure is None and self._session is not None:
                # looked at afterwards: rows may be newer than a mark that was looked at before
                marks = reader.marks(self._buckets)
                self._session.saw(marks, self._router.passed(self._shard), stale=info.stale)
        except ShardUnavailable as late:
            failure = late
            raise
        finally:
            self._router.leave(self._shard, self._opened, failure)
