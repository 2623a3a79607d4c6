"""Read everything before anything is judged: the configuration, Redis, the workers, each node.

All servers are asked side by side. A dead one costs the time-out once, and the error names it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pipeline.admin.check.uwsgi import servers_without_threads
from pipeline.clock import Deadline
from pipeline.config.settings import Settings
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError, Unavailable
from pipeline.model.op import START
from pipeline.model.schema import TableSchema
from pipeline.oplog.doorbell import Bell
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.redis.server_info import ANSWER_S, Health, health_of
from pipeline.shard.own_tables import own_tables
from pipeline.shard.survey import Survey, survey
from pipeline.shard.table_facts import bare_name

#: How long workers may take to answer which queues they listen to, s.
LISTEN_S = 1.0
#: How long a server may take for its whole answer, s.
ASK_S = 3.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found; an error takes the place of an answer that did not come.

    Attributes:
        log, broker: the two Redis servers.
        schemas: the newest published definitions.
        refusal: what Redis forbids this user; empty if everything is allowed.
        listened: the shards that some worker listens for; None if the broker did not answer.
        nodes: by name, in the order of the file, each primary before its replicas.
        primary_of: the primary of every replica.
        unfit: the nodes that upkeep published as absent for too long.
        epochs: by shard, the epoch of its logs, if Redis is still the server that gave the epoch out.
        uwsgi: command lines of this host's uWSGI servers that name no threads.
    """

    settings: Settings
    topology: Topology
    log: Health | PipelineError
    broker: Health | PipelineError
    schemas: tuple[TableSchema, ...]
    refusal: str
    listened: set[str] | None
    nodes: dict[str, Survey | PipelineError]
    primary_of: dict[str, str]
    unfit: tuple[str, ...] = ()
    epochs: Mapping[str, int] = field(default_factory=dict)
    uwsgi: tuple[str, ...] = ()

    @property
    def surveys(self) -> list[Survey]:
        """The nodes that answered."""
        return [found for found in self.nodes.values() if isinstance(found, Survey)]

    @property
    def primaries(self) -> list[Survey]:
        """The primaries that answered."""
        return [found for found in self.surveys if found.node not in self.primary_of]


def gather(settings: Settings) -> Evidence:
    """Ask all servers side by side; a server that does not answer is an error in its place.

    Args:
        settings: the configuration.
    """
    topology, redis = Topology(settings), settings.redis
    seen = ask_all({"log": lambda: _log(settings)})["log"]
    schemas, refusal, unfit, epochs = ((), "", (), {}) if isinstance(seen, PipelineError) else seen[1:]
    names = [name for name, _ in own_tables("mysql")]
    names += [bare_name(schema.rname or schema.name) for schema in schemas]
    published = {schema.name for schema in schemas}
    names += [name for name in topology.configured if name not in published]
    questions: dict[str, Callable[[], object]] = {
        "broker ": lambda: health_of(redis.broker_url),
        "workers ": lambda: _listened(settings, topology),
    }
    primary_of = {}
    for shard in settings.shards.values():
        questions[shard.name] = partial(survey, shard.name, shard.primary, names, primary=True)
        for i, uri in enumerate(shard.replicas):
            primary_of[f"{shard.name}-r{i}"] = shard.name
            questions[f"{shard.name}-r{i}"] = partial(survey, f"{shard.name}-r{i}", uri, names, primary=False)
    answers = ask_all(questions)
    broker, listened = answers.pop("broker "), answers.pop("workers ")
    return Evidence(
        settings=settings,
        topology=topology,
        log=seen if isinstance(seen, PipelineError) else seen[0],
        broker=broker if isinstance(broker, Health | PipelineError) else PipelineError("no answer"),
        schemas=schemas,
        refusal=refusal,
        listened=listened if isinstance(listened, set) else None,
        nodes={name: found for name, found in answers.items() if isinstance(found, Survey | PipelineError)},
        primary_of=primary_of,
        unfit=unfit,
        epochs=epochs,
        uwsgi=servers_without_threads(),
    )


def _log(settings: Settings) -> tuple[Health, tuple[TableSchema, ...], str, tuple[str, ...], dict[str, int]]:
    health = health_of(settings.redis.url)
    log = RedisLog(settings.redis.url, prefix=settings.redis.prefix, read_s=ANSWER_S)
    try:
        refusal = _refusal(log)
        if refusal:
            return health, (), refusal, (), {}
        schemas = tuple(TableSchema.from_json(text) for _, text in sorted(log.newest_schemas().items()))
        unfit = tuple(sorted(node for text in log.unfit().values() for node in json.loads(text)))
        told = {shard: log.epoch(shard) for shard in settings.shards}
        return health, schemas, "", unfit, {shard: epoch for shard, (epoch, current, _) in told.items() if current}
    finally:
        log.close()


def _refusal(log: RedisLog) -> str:
    """Try what the pipeline does to Redis, on keys without meaning; return the server's message if it refuses."""
    try:
        log.take_lease("check", for_ms=1)
        log.sweep("check", due_ms=0)
        log.queued({0: START})
        log.marks("check")
    except PipelineError as error:
        return str(error)
    return ""


def _listened(settings: Settings, topology: Topology) -> set[str] | None:
    bell = Bell(settings.redis.broker_url, settings.redis.prefix, topology.shards)
    try:
        return bell.listened(LISTEN_S)
    finally:
        bell.close()


def ask_all(questions: Mapping[str, Callable[[], _T]], timeout_s: float = ASK_S) -> dict[str, _T | PipelineError]:
    """Return each question's answer, or the error in its place, in the order of the questions.

    A question that is not answered in time is abandoned: its thread ends with its own time-outs, or with the process.

    Args:
        questions: by name, what to run; each in a thread of its own.
        timeout_s: how long all questions together may take.
    """
    answers: dict[str, _T | PipelineError] = {}

    def answer(name: str) -> None:
        try:
            answers[name] = questions[name]()
        except PipelineError as error:
            answers[name] = error
        except Exception as error:  # a driver's unexpected error concerns one server, and must not hide the others
            answers[name] = Unavailable(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=answer, args=(name,), name=f"pipeline-ask-{name}", daemon=True) for name in questions
    ]
    for thread in threads:
        thread.start()
    deadline = Deadline(timeout_s)
    for thread in threads:
        thread.join(deadline.left_s)
    silent = Unavailable(f"nothing came within {timeout_s:g} s")
    return {name: answers.get(name, silent) for name in questions}
