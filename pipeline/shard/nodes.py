"""Keep one session per node and role in this process, and know which node of each shard takes writes now.

A shard's primary is the configured one until the prober reports another, or until the primary fails. Then the nodes
themselves are probed, and their own `read_only` decides. The pipeline follows a failover and never decides one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline import clock
from pipeline.config.settings import Settings
from pipeline.config.uris import with_login_of
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.per_process import PerProcess
from pipeline.shard import NodeSession

if TYPE_CHECKING:
    from typing import Protocol

    class Health(Protocol):
        """The prober's reports."""

        def reports(self) -> object: ...  # noqa: D102  # the same object until another report is published
        def takes_writes(self, node: str) -> bool | None: ...  # noqa: D102
        def unfit(self, node: str) -> bool: ...  # noqa: D102


logger = logging.getLogger("pipeline.shard")

#: The nodes of a shard whose primary fails are probed at most so often, s.
PROBE_AGAIN_S = 1.0
#: The nodes' own answers count for so long; by then the prober has them too, s.
PROBE_COUNTS_S = 5.0
#: How long a node has to say whether it takes writes, s.
WRITABLE_S = 1


class Nodes:
    """Every node of the deployment by its name: `s0` is a configured primary, `s0-r0` its first replica.

    Args:
        settings: names the shards and their nodes.
        health: the prober's reports; without them only the nodes' own answers count.
    """

    def __init__(self, settings: Settings, health: Health | None = None):
        self._health = health
        self._uris: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._writing: dict[str, str] = {}
        for shard, known in settings.shards.items():
            uris = known.addresses
            self._uris |= uris
            self._names[shard] = tuple(uris)
            self._writing |= {node: with_login_of(uri, known.primary) for node, uri in uris.items()}
        self._primaries: dict[str, str] = {}
        self._replicas: dict[str, tuple[str, ...]] = {}
        for shard in settings.shards:
            self._follow(shard, shard)
        #: The reports by which each shard's primary was last found.
        self._judged_by: dict[str, object] = {}
        self._probed_at_s: dict[str, float] = {}
        # a parent's sockets are not for its fork to use, nor to close
        self._sessions = PerProcess[dict[tuple[str, bool], NodeSession]](dict)

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of all shards, in the order of the configuration."""
        return tuple(self._names)

    def primary(self, shard: str) -> NodeSession:
        """Return the session of the node of a shard that takes writes now.

        Raises:
            ShardUnavailable: two nodes take writes, and neither is the configured primary.
        """
        return self._session(self.primary_name(shard), writing=True)

    def primary_name(self, shard: str) -> str:
        """Return the name of the node of a shard that takes writes now; probes the nodes if it has failed of late.

        Args:
            shard: its name.

        Raises:
            ShardUnavailable: as for `primary`.
        """
        names, current = self._names[shard], self._primaries[shard]
        if len(names) == 1:
            return current
        failed = self._sessions().get((current, True))
        suspect = failed is not None and failed.suspect
        reports = None if self._health is None else self._health.reports()
        if not suspect and self._judged_by.get(shard) is reports:
            return current
        since_s = clock.mono_s() - self._probed_at_s.get(shard, -PROBE_COUNTS_S)
        if failed is not None and suspect and since_s >= PROBE_AGAIN_S:
            failed.suspect = False
            found = writable_of(
                shard, probe_writable({node: self._uris[node] for node in names if not self.unfit(node)})
            )
            self._probed_at_s[shard] = clock.mono_s()
            self._judged_by.pop(shard, None)
        elif self._health is not None and since_s >= PROBE_COUNTS_S:
            found = writable_of(shard, {node: self._health.takes_writes(node) for node in names})
            self._judged_by[shard] = reports
        else:
            return current
        if found is not None and found != current:
            logger.warning(Event("primary_changed", shard=shard, node=found, before=current))
            self._follow(shard, found)
            return found
        return current

    def suspect(self, shard: str) -> None:
        """Let the nodes of *shard* be probed for the primary, because the known one has failed a caller."""
        self._session(self._primaries[shard], writing=True).suspect = True

    def replicas(self, shard: str) -> Iterator[NodeSession]:
        """Return the sessions of the nodes of *shard* that are not its primary; these sessions refuse writes."""
        return (self._session(name, writing=False) for name in self.replica_names(shard))

    def replica_names(self, shard: str) -> tuple[str, ...]:
        """Return the names of the nodes of *shard* but its primary; the same object until the primary changes."""
        return self._replicas[shard]

    def unfit(self, node: str) -> bool:
        """Return whether *node* was away for too long, or is not like its primary: it is never followed, nor read."""
        return self._health is not None and self._health.unfit(node)

    def names(self, shard: str) -> tuple[str, ...]:
        """Return the names of all nodes of *shard*, the configured primary's first."""
        return self._names[shard]

    def uri(self, node: str, *, writing: bool = False) -> str:
        """Return the address of *node*; for *writing*, with the login of the configured primary."""
        return (self._writing if writing else self._uris)[node]

    def close(self) -> None:
        """Close this thread's connections."""
        for session in list(self._sessions().values()):  # another thread may open one
            session.discard()

    def _follow(self, shard: str, primary: str) -> None:
        self._primaries[shard] = primary
        self._replicas[shard] = tuple(name for name in self._names[shard] if name != primary)

    def _session(self, name: str, *, writing: bool) -> NodeSession:
        sessions = self._sessions()
        session = sessions.get((name, writing))
        if session is None:
            session = NodeSession(name, self.uri(name, writing=writing), read_only=not writing)
            sessions[name, writing] = session
        return session


def writable_of(shard: str, answers: Mapping[str, bool | None]) -> str | None:
    """Return the node that takes writes, or None where no node is known to.

    Args:
        shard: also the name of its configured primary, which wins where it takes writes. Two at once are a split that
            only an operator can mend, and all processes must stay on the same side.
        answers: whether each node takes writes; None where that is not known.

    Raises:
        ShardUnavailable: several replicas take writes, and the configured primary does not.
    """
    writable = [node for node, takes in answers.items() if takes]
    if shard in writable or not writable:
        return shard if writable else None
    if len(writable) > 1:
        raise ShardUnavailable(
            shard, f"{' and '.join(writable)} both take writes; set read_only on all nodes but the primary"
        )
    return writable[0]


def takes_writes(session: NodeSession) -> bool | None:
    """Probe whether a node takes writes; None where its engine cannot say.

    Args:
        session: of the node.

    Raises:
        ShardUnavailable: the node did not answer in time.
    """
    if session.dialect.read_only is None:
        return None
    return is_off(session.query(f"SELECT {session.dialect.read_only}")[0][0])


def is_off(value: object) -> bool:
    """Return whether the *value* of a server variable is off; newer MariaDB gives `read_only` as a word."""
    return str(value).upper() in ("0", "OFF")


def probe_writable(uris: Mapping[str, str]) -> dict[str, bool | None]:
    """Probe all nodes at once, each on its own connection with a short time-out; None for a node without an answer.

    Args:
        uris: the nodes' addresses by name.
    """
    with ThreadPoolExecutor(len(uris), thread_name_prefix="pipeline-probe-primary") as threads:
        return dict(zip(uris, threads.map(_probe_one, uris, uris.values()), strict=True))


def _probe_one(node: str, uri: str) -> bool | None:
    session = NodeSession(node, uri, read_only=True, connect_s=WRITABLE_S, statement_s=WRITABLE_S)
    try:
        return takes_writes(session)
    except PipelineError as error:
        logger.info(Event("primary_probe_failed", node=node, error=error))
        return None
    finally:
        session.discard()
