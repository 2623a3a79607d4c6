"""The prober: looks at every node of the deployment once a second, and tells all readers what it saw.

There is one in a deployment, whichever worker holds the lease; so a node is asked once a second however many processes
read from it.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterable

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.oplog.contract import SharedState
from pipeline.reads.health.probe import Probe
from pipeline.reads.health.shard_health import Picture, decode, encode
from pipeline.shard.nodes import Nodes

#: Time between two looks, and how long the answers to one are waited for, s; of a node that gave none the last time,
#: so that it delays no news of the others.
LOOK_EVERY_S, LOOK_S, SILENT_LOOK_S = 1.0, 0.5, 0.25
#: How long after a look an idle primary's heart beats, s. A healthy replica has the beat by the next look; of one that
#: was stopped before the beat that look tells, of one that was stopped after it the next one, 1.5 s later at the most.
BEAT_S = 0.5
#: The lease of a prober that has died ends after so long; a live one lengthens it with every look, ms.
LEASE_MS = 2000
#: What was told is forgotten when nobody renews it for so long, ms.
TOLD_MS = 30_000
logger = logging.getLogger("pipeline.prober")


class Prober:
    """Looks, judges, tells.

    Args:
        out: the nodes that the last prober had taken out.
        switched: called with the name of a shard that has another primary, once everybody may know it.
    """

    def __init__(
        self,
        nodes: Nodes,
        shards: Iterable[str],
        log: SharedState,
        out: Collection[str] = (),
        switched: Callable[[str], object] = lambda shard: None,
    ):
        self._log, self._switched = log, switched
        self._pictures = [Picture(shard, nodes.names(shard), out) for shard in shards]
        names = [name for picture in self._pictures for name in nodes.names(picture.shard)]
        self._probes = {name: Probe(name, nodes.uri(name), nodes.uri(name, writing=True)) for name in names}
        self._nodes = nodes
        self._news: list[str] = []

    def look(self) -> None:
        """Look at every node, and tell what was seen.

        Raises:
            LogUnavailable: nobody could be told.
        """
        deadline, soon = clock.Deadline(LOOK_S), clock.Deadline(SILENT_LOOK_S)
        before = {picture.shard: picture.primary for picture in self._pictures}
        news, self._news = self._news, []
        self._learn_unfit()
        for probe in self._probes.values():
            probe.ask()
        told: dict[str, str] = {}
        for picture in self._pictures:
            answers = {
                name: self._probes[name].answer(soon if picture.silent(name) else deadline)
                for name in self._nodes.names(picture.shard)
            }
            picture.draw(answers, deadline.started)
            if picture.primary != before[picture.shard]:
                self._news.append(picture.shard)
        for picture in self._pictures:
            told |= {name: encode(report) for name, report in picture.reports(clock.mono_s()).items()}
        self._log.publish_health(told, TOLD_MS)
        # told a look ago, so all processes have fetched it by now
        for shard in news:
            self._switched(shard)

    def beat(self) -> None:
        """Let idle primaries' hearts beat: see `BEAT_S`."""
        for picture in self._pictures:
            if not picture.silent(picture.primary):
                self._probes[picture.primary].beat()

    def _learn_unfit(self) -> None:
        """Fetch who is unfit. A shard of which nothing is told keeps what was known: Redis may have forgotten it."""
        told = self._log.unfit()
        for picture in self._pictures:
            if picture.shard in told:
                picture.unfit = json.loads(told[picture.shard])

    def close(self) -> None:
        """Close all connections."""
        for probe in self._probes.values():
            probe.close()


class Duty:
    """Probes for as long as this process holds the lease.

    Args:
        engage: returns a prober, given the nodes that are out; called when the lease has been won.
    """

    def __init__(self, log: SharedState, engage: Callable[[Collection[str]], Prober]):
        self._log, self._engage = log, engage
        self._token = secrets.token_hex(8)
        self._prober: Prober | None = None
        #: When the next look is due, while a beat is to come before it.
        self._look_due_s = 0.0

    @property
    def held(self) -> bool:
        """Whether this process is the prober."""
        return self._prober is not None

    def turn(self) -> float:
        """Look, or beat between two looks, if the lease is ours or free; return in how many seconds to turn again.

        Never raises ours.
        """
        started, (due_s, self._look_due_s) = clock.mono_s(), (self._look_due_s, 0.0)
        if self._prober is not None and started < due_s:
            self._prober.beat()
            return max(0.0, due_s - clock.mono_s())
        try:
            if not self._log.hold_lease("probe", self._token, LEASE_MS):
                self._stand_down()
                return LOOK_EVERY_S / 2
            if self._prober is None:
                self._prober = self._engage(self._known_out())
                logger.info("probing the nodes from here")
            self._prober.look()
        except PipelineError as error:
            logger.warning("nothing was told of the nodes: %s", error)
        self._look_due_s = started + LOOK_EVERY_S
        return max(0.0, started + BEAT_S - clock.mono_s())

    def end(self) -> None:
        """Stop, and let another take over at once."""
        if not self.held:
            return
        self._stand_down()
        try:
            self._log.release_lease("probe", self._token)
        except PipelineError as error:
            logger.info("the lease ends by itself: %s", error)

    def _known_out(self) -> list[str]:
        return [node for node, (_, text) in self._log.health()[1].items() if decode(text).out]

    def _stand_down(self) -> None:
        if self._prober is not None:
            self._prober.close()
            self._prober = None
