"""Route one read of one shard: to a replica that has what it must see, else to one that soon has, else to the primary.

Invariant: a read with a token never answers from a node that is not known to have it, unless it is marked as stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from types import TracebackType
from typing import Any

from pipeline import clock, tracing
from pipeline.config import Topology
from pipeline.config.sections import Load
from pipeline.errors import ShardUnavailable, StaleRead
from pipeline.model import Position
from pipeline.per_process import PerProcess, chance
from pipeline.reads import Need, ReadSession, routing
from pipeline.reads.connections import NodeReader, NodeReaders
from pipeline.reads.node_dal import ReadInfo
from pipeline.reads.read_place import ReadPlace, counted_at
from pipeline.reads.routing import Bounds, Candidate, Choice, InFlight, choose, fall_back, fresh_among, over_limit
from pipeline.reads.routing.moving import OLD_MAP_S, MovingRead, Served, check_served
from pipeline.reads.routing.replicas import AWAY_S, BROKEN_S, HealthCache, Replicas, first_with
from pipeline.shard.nodes import Nodes


class Router:
    """Chooses nodes. Threads may share it.

    Args:
        nodes: who is the primary of each shard, and who a replica.
        readers: connections to them.
        health: what the prober has published of them; each choice is counted there.
        primary_limit: reads of this process that may run on a primary at once because a replica is merely behind; 0:
            any number.
        topology: who has which bucket, by the map that `health` has heard of.
        loads: what each replica is to carry, by node.
    """

    def __init__(
        self,
        nodes: Nodes,
        readers: NodeReaders,
        health: HealthCache,
        topology: Topology,
        primary_limit: int = 0,
        loads: Mapping[str, Load] = {},
    ):
        self.nodes, self.readers, self.health, self.topology = nodes, readers, health, topology
        self.served = Served(topology)
        self.replicas = Replicas(nodes, readers, health, loads)
        self.in_flight = PerProcess(InFlight)
        self._limit = primary_limit or None
        self._jitter = chance.random

    def open(
        self,
        place: ReadPlace,
        needs: Mapping[int, Need],
        bounds: Bounds,
        *,
        session: ReadSession | None = None,
        part: bool = False,
        kind: type[Read] | None = None,
    ) -> Read | MovingRead:
        """Return a read of a shard, to be entered.

        Args:
            place: the shard, and the buckets that the read is about.
            needs: what the read must see, by bucket.
            bounds: how fresh it must be, and how long it may wait.
            session: takes up what the node had of these buckets.
            part: whether other shards have the rest of what is read.
            kind: of the read; None: `Read`.
        """
        read, topology = (kind or Read)(self, place, needs, bounds, session), self.topology
        if clock.mono_s() - topology.heard_at_s > OLD_MAP_S:
            self.health.reports()  # the map comes with them
        elif not topology.placement.moves:
            return read
        return MovingRead(read, self.served, part=part)

    def primary_has(self, shard: str, needs: Mapping[int, Need], deadline: clock.Deadline) -> bool:
        """Wait until the primary of a shard has it all, as far as there is time; return whether it has.

        Args:
            shard: its name.
            needs: what it must have, by bucket.
            deadline: when to give up.

        Raises:
            ShardUnavailable: it does not answer.
        """
        reader = self.readers[self.nodes.primary_name(shard)]
        reader.ready()
        return reader.has(needs) or first_with([reader], needs, deadline, self.in_flight().waiting) is not None

    def passed(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that every node of a shard is known to have passed.

        Args:
            shard: its name.
        """
        found, split = self.replicas.passed(shard), self.topology.split
        # another shard may not have passed what is its own of such a bucket
        return {bucket: mark for bucket, mark in found.items() if bucket not in split} if split else found

    def choice(self, read: Read, in_flight: InFlight) -> Choice:
        """Choose a node for a read; wait until one has what the read must see. A limited read has taken its place.

        Args:
            read: not yet on a node.
            in_flight: the reads of this process that run now.
        """
        shard, needs, bounds = read.shard, read.needs, read.bounds
        self.nodes.primary_name(shard)  # notices a failover
        if not self.nodes.replica_names(shard):
            return routing.ONLY_PRIMARY
        candidates = self.replicas.candidates(shard, needs, in_flight)
        choice = choose(candidates, bounds, token=bool(needs), jitter=self._jitter)
        if choice.kind == "ask":
            node = self._caught_up(candidates, read, in_flight)
            if node is not None:
                return Choice("replica", node, routing.TOKEN_ASKED)
            # where the caller prefers an old answer to the primary's, it is marked
            reached = bounds.on_stale == "stale"
            candidates = [one._replace(reached=reached) for one in self.replicas.candidates(shard, needs, in_flight)]
            choice = fall_back(candidates, bounds, routing.NOT_REACHED, token=True)
        if choice.limited and not in_flight.enter(in_flight.limited, shard, self._limit):
            return over_limit(candidates, token=bool(needs))
        return choice

    def without_primary(self, read: Read, in_flight: InFlight) -> Choice | None:
        """Choose a replica for a read whose primary does not answer; None where none may serve, however far behind.

        While a primary is away nothing proves that a replica is near it, so its lag grows beyond every bound. A token
        is proved by the replica itself.

        Args:
            read: not on a node.
            in_flight: the reads of this process that run now.
        """
        able = routing.last_resorts(self.replicas.candidates(read.shard, read.needs, in_flight))
        readers = [self.readers[one.node] for one in able]
        if read.needs and able:
            found = first_with(readers, read.needs, read.deadline(), in_flight.waiting, self.replicas)
            readers = [found] if found is not None else []
        return Choice("stale", readers[0].node, routing.PRIMARY_AWAY) if readers else None

    def failed(self, shard: str, node: str, for_s: float = AWAY_S) -> None:
        """Skip a node that has failed; if it is the primary, have the nodes asked who takes writes.

        Args:
            shard: its name.
            node: the node's name.
            for_s: how long to skip it, s.
        """
        self.replicas.skip(node, for_s)
        if node == self.nodes.primary_name(shard):
            self.nodes.suspect(shard)

    def _caught_up(self, candidates: list[Candidate], read: Read, in_flight: InFlight) -> str | None:
        """Probe the fresh replicas in turn until one has it all; return which, or None when the time is over."""
        fresh = fresh_among(candidates, read.bounds.max_lag_s)
        readers = [self.readers[one.node] for one in sorted(fresh, key=lambda one: (one.in_flight, one.lag_s))]
        found = first_with(readers, read.needs, read.deadline(), in_flight.waiting, self.replicas)
        return found.node if found is not None else None


class Read:
    """One read of one shard, as a context manager that is used once: it enters a node, and leaves it.

    Attributes:
        place: the shard, and the buckets that the read is about.
        reader: the node that serves, once the read is entered.
        read_info: which node that is, and why.
        excluded: the buckets of which the node may have rows that another shard serves, where that shard is read, too.
        checked: whether the states of all buckets are compared, since the map may be old.
    """

    __slots__ = (
        "_in_flight", "_limited", "_relied_on", "_session", "_started_s",
        "bounds", "checked", "excluded", "needs", "place", "read_info", "reader", "router", "shard",
    )  # fmt: skip
    reader: NodeReader
    read_info: ReadInfo

    def __init__(
        self,
        router: Router,
        place: ReadPlace,
        needs: Mapping[int, Need],
        bounds: Bounds,
        session: ReadSession | None,
    ):
        self.router, self._session, self.place = router, session, place
        self.shard, self.needs, self.bounds = place.shard, needs, bounds
        self.excluded: tuple[int, ...] = ()
        self.checked = False

    def __enter__(self) -> Read:
        """Choose a node and open it; choose another while that fails.

        Raises:
            StaleRead: no node has what the read must see, in time, or may serve it.
            ShardUnavailable: no node answers that has what the read must see.
        """
        router, shard = self.router, self.shard
        self._started_s = clock.mono_s()
        self._in_flight = router.in_flight()
        failure: ShardUnavailable | None = None
        failed: set[str] = set()
        choose_node: Callable[[Read, InFlight], Choice | None] = router.choice
        tries = 0
        while tries < 3 or tries < 3 + len(router.nodes.replica_names(shard)):
            tries += 1
            choice = choose_node(self, self._in_flight)
            if choice is None:
                break
            try:
                if self._entered(choice):
                    # knowledge belongs to the connection: should it be replaced in the middle, the read must fail
                    self._relied_on = self.reader.rely(bool(self.needs))
                    return self
            except ShardUnavailable as error:
                failure = error
                router.failed(shard, error.node)
                if error.node in failed:
                    choose_node = router.without_primary
                failed.add(error.node)
        raise failure or StaleRead(shard, "lagging", routing.ALL_BUSY, clock.mono_s() - self._started_s)

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the node back, and note in the session what it had."""
        self.reader.relied(self._relied_on)
        try:
            if failure is None and self.place.seen is not self.router.topology.placement:
                check_served(self)
            if failure is None and self._session is not None:
                # asked afterwards: rows may be newer than a mark that was asked for before
                topology, numbers = self.router.topology, self.place.buckets
                if numbers is not None and topology.split:
                    numbers = counted_at(topology, self.shard, numbers)
                marks, passed = self.reader.marks(numbers), self.router.passed(self.shard)
                self._session.saw(marks, passed, stale=self.read_info.stale, split=topology.split)
        except ShardUnavailable as late:
            failure = late
            raise
        finally:
            self._leave(failure)

    @property
    def began_ms(self) -> int:
        """When the read began, ms since 1970."""
        return clock.wall_ms() - round(1000 * (clock.mono_s() - self._started_s))

    def deadline(self) -> clock.Deadline:
        """Return until when the read may wait for what it must see."""
        return clock.Deadline(self.bounds.wait_s - (clock.mono_s() - self._started_s))

    def _entered(self, choice: Choice) -> bool:
        """Count the read as running on the chosen node and open that; return False where others have just filled it."""
        if choice.kind == "error":
            raise self._refusal(choice.reason)
        in_flight, entered, self._limited = self._in_flight, False, choice.limited
        try:
            node = choice.node or self.router.nodes.primary_name(self.shard)
            limit = self.router.replicas.limit(node) if choice.node else None
            entered = in_flight.enter(in_flight.by_node, node, limit)
            if entered:
                self._open(choice, node)
        except BaseException:
            if entered:
                in_flight.leave(in_flight.by_node, node)
            if choice.limited:
                in_flight.leave(in_flight.limited, self.shard)
            raise
        return entered

    def _open(self, choice: Choice, node: str) -> None:
        router, needs, kind, reason = self.router, self.needs, choice.kind, choice.reason
        lag_s: float | None = 0.0
        self.reader = reader = router.readers[node]
        holding: Set[int] | None = frozenset()
        reader.ready()
        if kind == "primary":
            # it too may lack what is still queued, or what a failover lost
            if needs and not (reader.has(needs) or self._primary_catches_up(reader)):
                if self.bounds.on_stale != "stale":
                    router.health.counters().count(self.shard, "error", routing.NOT_REACHED)
                    raise StaleRead(self.shard, "queued", choice.reason, clock.mono_s() - self._started_s)
                kind = "stale"
        else:
            report = router.health.report(node)
            lag_s, holding = report.lag_s, report.holding
            # `ready` may have replaced the connection that had shown it
            promised = needs and (kind == "replica" or choice.reason == routing.PRIMARY_AWAY)
            if promised and not (router.replicas.has(node, needs, report) or reader.probe(needs)):
                raise ShardUnavailable(node, "it no longer has what it had: was it restored?")
        if needs and kind != "stale":
            # by either source of what the node has
            nothing_aside = holding is not None and needs.keys().isdisjoint(reader.here.holding | holding)
            if not nothing_aside and self._waits(reader):
                kind, reason = "stale", routing.SET_ASIDE
        router.health.counters().count(node, kind, reason)
        role = "primary" if choice.kind == "primary" else "replica"
        waited_s = clock.mono_s() - self._started_s if needs else 0.0
        self.read_info = ReadInfo(node, role, lag_s, waited_s, kind == "stale", reason)

    def _waits(self, reader: NodeReader) -> bool:
        """Return whether the node has set ops aside that the read must see: no node has their effects.

        Raises:
            StaleRead: it has, and the caller takes no answer without them.
        """
        if not reader.waits_aside(self.needs):
            return False
        if self.bounds.on_stale == "error":
            self.router.health.counters().count(self.shard, "error", routing.SET_ASIDE)
            raise StaleRead(self.shard, "aside", routing.SET_ASIDE, clock.mono_s() - self._started_s)
        return True

    def _primary_catches_up(self, primary: NodeReader) -> bool:
        return first_with([primary], self.needs, self.deadline(), self._in_flight.waiting) is not None

    def _refusal(self, reason: str) -> StaleRead:
        """Count the read as refused."""
        self.router.health.counters().count(self.shard, "error", reason)
        stage = "replicating" if self.needs and reason in (routing.NOT_REACHED, routing.OVER_LIMIT) else "lagging"
        return StaleRead(self.shard, stage, reason, clock.mono_s() - self._started_s if self.needs else 0.0)

    def _leave(self, failure: BaseException | None) -> None:
        in_flight, node = self._in_flight, self.read_info.node
        try:
            if isinstance(failure, ShardUnavailable) and failure.node == node:
                self.router.failed(self.shard, node, BROKEN_S)
        finally:
            in_flight.leave(in_flight.by_node, node)
            if self._limited:
                in_flight.leave(in_flight.limited, self.shard)


class TracedRead(Read):
    """A read with a span, while a trace is open."""

    def __enter__(self) -> TracedRead:
        """Choose a node and open it; see `Read`."""
        about = {"pipeline.shard": self.shard, "pipeline.token": bool(self.needs)}
        self._span = tracing.started("pipeline.read", "CLIENT", about, start_ns=clock.wall_ns())
        try:
            super().__enter__()
        except BaseException as error:
            tracing.failed(self._span, error)
            self._span.end()
            raise
        info = self.read_info
        told = {"node": info.node, "role": info.role, "reason": info.reason, "stale": info.stale}
        self._span.set_attributes({f"pipeline.{name}": value for name, value in told.items()})
        self._span.set_attribute("pipeline.waited_s", info.waited_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the node back; see `Read`."""
        try:
            super().__exit__(kind, failure, traceback)
        finally:
            if failure is not None:
                tracing.failed(self._span, failure)
            self._span.end()


class TracedRouter(Router):
    """A router whose reads join the open trace."""

    def open(self, *args: Any, **options: Any) -> Read | MovingRead:
        """Return a read of a shard, to be entered; see `Router.open`."""
        return super().open(*args, **options, kind=TracedRead if tracing.recording() else Read)


def router_type() -> type[Router]:
    """Return which router this process uses."""
    return TracedRouter if tracing.on() else Router
