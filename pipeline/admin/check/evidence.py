"""Read everything before anything is judged: configuration, Redis, workers, nodes. Define what a judgement finds.

All servers are queried side by side. A dead one costs the time-out once, and the error names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.observe import Observer
from pipeline.admin.observe.readings import ASK_S, ask_all
from pipeline.admin.observe.record import MAX_AGE_S, OpFault
from pipeline.client import Client
from pipeline.config import Topology
from pipeline.config.settings import Settings
from pipeline.enqueue.buckets import follow_noted
from pipeline.enqueue.deployment import misfits_of
from pipeline.errors import PipelineError, WaitTimeout
from pipeline.model import DELETE, START, Addressed, Op
from pipeline.model.receipt import Receipt
from pipeline.model.schema import TableSchema
from pipeline.oplog.doorbell import Bell
from pipeline.oplog.groups import log_of
from pipeline.oplog.redis.connection import ANSWER_S, Health, health_of
from pipeline.oplog.redis.log import RedisLog, rehearse
from pipeline.reads.health import unfit_of
from pipeline.shard.columns import own_tables
from pipeline.shard.nodes import Nodes
from pipeline.shard.records.stops import WHOLE, tables_that_wait
from pipeline.shard.survey import Survey, survey

ERROR, WARNING = "error", "warning"
#: Words of Redis, and the cure; the first that fits counts. `{key}` is the setting with the address.
_REDIS = (
    (
        ("READONLY", "read only replica", "ReadOnlyError"),
        "this Redis is a replica: follow the primary, with its address or sentinel:// in {key}",
    ),
    (("WRONGPASS", "NOAUTH", "Authentication", "invalid username-password"), "correct user and password in {key}"),
    (
        ("NOPERM", "no permissions", "NoPermission", "this user has no", "can't run this command"),
        "ACL SETUSER as its user in deploy/redis/log.acl, or broker.acl, with ~<prefix>:* of [redis] prefix",
    ),
    (("MISCONF",), "make room on the disk of this Redis: it cannot save, so it refuses to write"),
    (("NOREPLICAS", "good replicas"), "start the replicas of this Redis, or lower min-replicas-to-write"),
    (("maxmemory", "OOM"), "give this Redis more memory (maxmemory), and start workers"),
    (("LOADING", "loading the dataset"), "wait until this Redis has loaded its data"),
)
#: Words of the databases.
_DATABASE = (
    (("to database", "command denied"), "GRANT the user of [shards.{key}] its rights on this database"),
    (
        ("Access denied for user", "(1045", "caching_sha2", "auth_gssapi"),
        "correct user and password in [shards.{key}], or create the user, and GRANT it the database",
    ),
    (("Unknown database",), "create the database, or correct its name in [shards.{key}]"),
    (("Too many connections", "max_user_connections"), "raise max_connections, or start fewer processes"),
    (("is blocked because",), "run mariadb-admin flush-hosts on this node"),
)

#: Installed by a system, or by pip, which starts it as a script or a module of Python.
_PROGRAMS = frozenset(("uwsgi", "uwsgi-core", "uwsgi_python3", "pyuwsgi"))
#: uWSGI's own words for threads, in an ini file and on its command line.
_THREADS = re.compile(r"^\s*(?:--)?(?:enable-threads(?:\s*=\s*(?:true|1|yes|on))?|threads\s*=?\s*[1-9]\d*)\s*$", re.M)
#: How long the workers that listen for a shard may take to apply the op, s.
APPLIED_S = 2.0
#: How long workers may take to answer which queues they listen to, s.
LISTEN_S = 1.0
#: How long the op may take in all that tries the way to each shard, s.
PROBE_S = APPLIED_S + 5.0
#: How much more than `ASK_S` a table adds, s: four statements ask for the user's rights, each a round trip.
TABLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. An error keeps ops from being applied, or from being exact; a warning is a risk.

    Attributes:
        severity: `error` or `warning`.
        place: a table, a column, a setting or a key of the configuration.
        what: what is there; the sentence continues after the place.
        fix: the SQL, the setting or the command.
        nodes: the servers concerned; empty where the whole deployment is.
    """

    severity: str
    place: str
    what: str
    fix: str
    nodes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Nodes and place in one text."""
        return ": ".join(part for part in (", ".join(self.nodes), self.place) if part)

    def as_json(self) -> dict[str, object]:
        """Return the finding for programs."""
        return {
            "severity": self.severity,
            "nodes": list(self.nodes),
            "place": self.place,
            "what": self.what,
            "fix": self.fix,
        }


def merged_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors before warnings, and one finding for what several nodes share.

    Args:
        findings: of any order.
    """
    together: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        together.setdefault(replace(finding, nodes=()), {}).update(dict.fromkeys(finding.nodes))
    found = [replace(finding, nodes=tuple(nodes)) for finding, nodes in together.items()]
    return sorted(found, key=lambda finding: finding.severity != ERROR)


def without_copies(findings: Iterable[Finding], primary_of: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings without those that a replica has from its primary: a repair of the primary repairs both.

    Args:
        findings: of all nodes.
        primary_of: the primary of each replica.
    """
    for finding in merged_findings(findings):
        own = tuple(node for node in finding.nodes if primary_of.get(node) not in finding.nodes)
        yield replace(finding, nodes=own)


def redis_cure(why: str, key: str) -> str:
    """Return the cure of what Redis said.

    Args:
        why: its words, or the driver's.
        key: the setting with the address.
    """
    return _cure(_REDIS, why, key) or f"start the server, or correct {key}"


def database_cure(why: str, shard: str) -> str:
    """Return the cure of what a database said.

    Args:
        why: its words, or the driver's.
        shard: the node's shard.
    """
    return _cure(_DATABASE, why, shard) or f"start the server, or correct [shards.{shard}]"


def _cure(table: Sequence[tuple[tuple[str, ...], str]], why: str, key: str) -> str:
    found = (cure for words, cure in table if any(word in why for word in words))
    return next(found, "").format(key=key)


def uwsgi_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield a warning for each uWSGI server that names no threads; its version is not seen from outside.

    Args:
        evidence: `uwsgi` holds the command lines.
    """
    for command in evidence.uwsgi:
        yield Finding(
            WARNING,
            f"uWSGI ({command})",
            "names no threads; one older than 2.0.27 runs none then, and refuses this application's first call",
            "add `enable-threads = true` to its ini file, or --enable-threads",
        )


def servers_without_threads(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return the command lines of this host's uWSGI servers that name no threads, each once.

    Args:
        proc: where the system lists its processes; nothing is found on a system without it.
    """
    found = (_words(one) for one in proc.glob("[0-9]*/cmdline"))
    servers = {tuple(words) for words in found if any(Path(word).name in _PROGRAMS for word in words[:3])}
    return tuple(sorted(" ".join(words) for words in servers if not _run_threads(words)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:  # the process has ended, or belongs to another user
        return []


def _run_threads(words: tuple[str, ...]) -> bool:
    texts = ["\n".join(words), " ".join(words).replace(" --", "\n--")]
    texts += [_ini(word) for word in words if word.endswith(".ini")]
    return any(_THREADS.search(text) for text in texts)


def _ini(name: str) -> str:
    try:
        return Path(name).read_text(errors="replace")
    except OSError:
        return ""


def failed_probes(settings: Settings, schemas: Iterable[TableSchema], shards: Iterable[str]) -> dict[str, str]:
    """Append an op to each shard with this process's own rights, and see it applied; return by shard what failed.

    The op deletes the rows of a table whose id is 1 and 2. There are none: everything happens to it that happens to
    any op, and nothing changes. A table whose ops wait is left alone: the op would wait too.

    Args:
        settings: the configuration.
        schemas: the published definitions; without one there is nothing to write to.
        shards: those for which some worker listens.
    """
    # what is not taken is to be seen, not to be kept
    with closing(Client(replace(settings, spool=replace(settings.spool, enabled=False)))) as client:
        failed, sent = dict[str, str](), dict[str, Receipt]()
        own = [one for one in schemas if not client.topology.table(one.name).reference]
        for shard in shards:
            try:
                waiting = tables_that_wait(client.nodes.primary(shard))
                free = next((one for one in own if WHOLE not in waiting and one.name not in waiting), None)
                if free is not None:
                    bucket = client.topology.buckets_of(shard)[0]
                    sent[shard] = client.dispatch.take(Addressed(bucket, _changing_nothing(free)), "redis")
            except PipelineError as error:
                failed[shard] = f"an op is not taken: {error}"
        deadline = clock.Deadline(APPLIED_S)
        for shard, receipt in sent.items():
            try:
                receipt.wait(max(deadline.left_s, 0.1))
            except WaitTimeout as error:
                failed[shard] = f"an op is taken, but not applied after {APPLIED_S:g} s: {error}"
            except PipelineError as error:
                failed[shard] = f"an op is taken, but not applied: {error}"
        return failed


def _changing_nothing(schema: TableSchema) -> Op:
    never = ["and", ["=", schema.id_index, 1], ["=", schema.id_index, 2]]
    return Op(DELETE, schema.name, schema.hash, clock.wall_ms(), where=never)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found; an error takes the place of an answer that did not come.

    Attributes:
        log, broker: the two Redis servers.
        groups: by name, the Redis of each [redis.NAME].
        schemas: the newest published definitions.
        refusal: what Redis forbids this user; empty if everything is allowed.
        untrimmed: what Redis says where this user may not trim a log: right for a web host's, wrong for a worker's.
        listened: the shards that some worker listens for; None if the broker did not answer.
        nodes: by name, in the order of the file, each primary before its replicas.
        primary_of: the primary of every replica.
        unfit: the nodes that upkeep published as unfit, and why.
        epochs: by shard, the epoch of its logs, if Redis is still the server that gave the epoch out.
        uwsgi: command lines of this host's uWSGI servers that name no threads.
        faults: what has gone wrong with ops, by `Status.faults`.
        misfits: where the configuration does not fit the deployment, a sentence each.
        untaken: by shard, how the op failed that was sent to try its way.
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
    untrimmed: str = ""
    unfit: Mapping[str, str] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    uwsgi: tuple[str, ...] = ()
    faults: tuple[OpFault, ...] = ()
    misfits: tuple[str, ...] = ()
    untaken: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Health | PipelineError] = field(default_factory=dict)

    @property
    def surveys(self) -> list[Survey]:
        """The nodes that answered."""
        return [found for found in self.nodes.values() if isinstance(found, Survey)]

    @property
    def primaries(self) -> list[Survey]:
        """The primaries that answered."""
        return [found for found in self.surveys if found.node not in self.primary_of]

    @property
    def old_ids(self) -> set[str]:
        """The tables some of whose ids the pipeline has not made."""
        return {name for node in self.primaries for name in node.old_ids}


def gather(settings: Settings, max_age_s: float = MAX_AGE_S) -> Evidence:
    """Query all servers side by side; a server that does not answer is an error in its place.

    Args:
        settings: the configuration.
        max_age_s: the age from which on a waiting op is a fault, seconds.
    """
    topology = Topology(settings)
    seen = ask_all({"log": lambda: _log(settings, topology)})["log"]
    told = _Told(seen) if isinstance(seen, PipelineError) else seen
    schemas = tuple(schema for schema in told.schemas if not topology.ignores(schema.name))
    names = _tables(topology, schemas)
    answer_s = ASK_S + TABLE_S * len(names)
    answers = ask_all(_questions(settings, topology, schemas, names, answer_s), answer_s)
    broker, listened, misfits = (answers.pop(name) for name in ("broker ", "workers ", "deployment "))
    groups = {name: _health(answers.pop(f"redis {name}")) for name in topology.groups}
    heard = listened if isinstance(listened, set) else None
    served = [shard for shard in settings.shards if heard and shard in heard and isinstance(answers[shard], Survey)]
    return Evidence(
        settings=settings,
        topology=topology,
        log=told.health,
        broker=_health(broker),
        schemas=schemas,
        refusal=told.refusal,
        untrimmed=told.untrimmed,
        listened=heard,
        nodes={name: found for name, found in answers.items() if isinstance(found, Survey | PipelineError)},
        primary_of={node: name for name, one in settings.shards.items() for node in one.addresses if node != name},
        unfit=told.unfit,
        epochs=told.epochs,
        uwsgi=servers_without_threads(),
        faults=_op_faults(settings, max_age_s),
        groups=groups,
        misfits=misfits if isinstance(misfits, tuple) else (),
        untaken={} if misfits or not schemas else _untaken(settings, schemas, served),
    )


def _questions(
    settings: Settings, topology: Topology, schemas: tuple[TableSchema, ...], tables: list[str], statement_s: float
) -> dict[str, Callable[[], object]]:
    """Return the probe of each server by its name: nodes by theirs, and others by names that no node can have."""
    questions: dict[str, Callable[[], object]] = {
        "broker ": lambda: health_of(settings.redis.broker_url),
        "workers ": lambda: _listened(settings, topology),
        "deployment ": lambda: _misfits(settings, topology),
    }
    questions |= {f"redis {name}": partial(_group, settings, name) for name in topology.groups}
    every = partial(survey, tables=tables, statement_s=statement_s)
    of_primary = partial(every, primary=True, schemas=schemas, topology=topology)
    of_replica = partial(every, primary=False)
    for shard in settings.shards.values():
        for node, uri in shard.addresses.items():
            questions[node] = partial(of_primary if node == shard.name else of_replica, node, uri)
    return questions


def _tables(topology: Topology, schemas: tuple[TableSchema, ...]) -> list[str]:
    """Return the names, in the databases, of all tables to check: our own, published, and configured ones."""
    published = {schema.name: schema.name_there for schema in schemas}
    configured = (name for name in topology.configured if name not in published)
    return [*(name for name, _ in own_tables("mysql")), *published.values(), *configured]


def _untaken(settings: Settings, schemas: tuple[TableSchema, ...], shards: list[str]) -> dict[str, str]:
    """Send an op to each of some shards; return by shard how that failed."""
    if not shards:
        return {}
    failed = ask_all({"": partial(failed_probes, settings, schemas, shards)}, PROBE_S)[""]
    return dict.fromkeys(shards, str(failed)) if isinstance(failed, PipelineError) else failed


def _misfits(settings: Settings, topology: Topology) -> tuple[str, ...]:
    log, nodes = log_of(settings, read_s=ANSWER_S), Nodes(settings)
    try:
        return tuple(misfits_of(log, nodes, topology))
    finally:
        nodes.close()
        log.close()


def _op_faults(settings: Settings, max_age_s: float) -> tuple[OpFault, ...]:
    observer = Observer(settings)
    try:
        return tuple(observer.look().faults(max_age_s))
    finally:
        observer.close()


class _Told(NamedTuple):
    """What the log answered, as in `Evidence`."""

    health: Health | PipelineError
    schemas: tuple[TableSchema, ...] = ()
    refusal: str = ""
    untrimmed: str = ""
    unfit: Mapping[str, str] = {}
    epochs: Mapping[str, int] = {}


def _log(settings: Settings, topology: Topology) -> _Told:
    health = health_of(settings.redis.url)
    log = log_of(settings, read_s=ANSWER_S)
    try:
        refusal = _refusal(settings, log)
        if refusal:
            return _Told(health, refusal=refusal)
        follow_noted(log, topology)
        schemas = tuple(TableSchema.from_json(text) for _, text in sorted(log.newest_schemas().items()))
        unfit = {node: why for text in log.unfit().values() for node, why in unfit_of(text).items()}
        told = {shard: log.epoch(shard) for shard in settings.shards}
        epochs = {shard: epoch for shard, (epoch, current, _) in told.items() if current}
        return _Told(health, schemas, "", _trim_refusal(log), unfit, epochs)
    finally:
        log.close()


def _health(answer: object) -> Health | PipelineError:
    return answer if isinstance(answer, Health | PipelineError) else PipelineError("no answer")


def _group(settings: Settings, name: str) -> Health:
    """Query the Redis of a group, with this user's own rights there.

    Raises:
        PipelineError: it does not answer, or refuses what the pipeline does.
    """
    url = settings.groups[name].url
    health = health_of(url)
    rehearse(url, settings.redis.prefix, ANSWER_S)
    return health


def _refusal(settings: Settings, log: RedisLog) -> str:
    """Try what the pipeline does to Redis, on keys without meaning; return the server's message if it refuses."""
    try:
        rehearse(settings.redis.url, settings.redis.prefix, ANSWER_S)
        log.take_lease("check", for_ms=1)
        log.sweep("check", due_ms=0)
        log.queued({0: START})
        log.marks("check")
    except PipelineError as error:
        return str(error)
    return ""


def _trim_refusal(log: RedisLog) -> str:
    try:
        log.trim({-1: START})
    except PipelineError as error:
        return str(error)
    return ""


def _listened(settings: Settings, topology: Topology) -> set[str] | None:
    bell = Bell(settings.redis.broker_url, settings.redis.prefix, topology.shards)
    try:
        return bell.listened(LISTEN_S)
    finally:
        bell.close()
