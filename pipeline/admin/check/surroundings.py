"""Check what surrounds the databases: the configuration, both Redis servers, the workers, the spool, the clocks.

The spool is checked on the host where this runs: run it where the web application runs, as the application's user.
Nothing is ordered by clocks, but ages, lags and time stamps that people read depend on them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.admin.check.evidence import ERROR, WARNING, Evidence, Finding, redis_cure
from pipeline.errors import ConfigError, PipelineError
from pipeline.oplog.doorbell import queue_of
from pipeline.oplog.redis.connection import Health
from pipeline.owners import HOME
from pipeline.shard.statements import MOST_STATEMENT_BYTES
from pipeline.spool.turns import folder_fault

#: The least number of buckets per shard that lets a new shard get an even part.
BUCKETS_PER_SHARD = 16
#: The first release of Redis that numbers entries by `<epoch>-*`.
LEAST_VERSIONS = (7, 0)
#: The largest difference of two clocks that drift explains, ms.
MOST_SKEW_MS = 2_000
_PLACE = "[spool] path"
#: The place at the start of a fault's sentence: a section of the file, and perhaps a key.
_KEY = re.compile(r"(\[[^\]]+\](?: (?!has |is )[a-z_]+)?)(?: (.*))?")


def faults(error: ConfigError) -> Iterator[Finding]:
    """Yield what keeps the configuration from being used.

    Args:
        error: what `settings.load` raised.
    """
    for fault in error.faults:
        match = _KEY.fullmatch(fault)
        place, what = (match[1], match[2] or "") if match and match[2] else ("configuration", fault)
        yield Finding(ERROR, place, what, "correct the configuration; the sentence says what is accepted")


def op_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what has gone wrong with ops: refused, lost, or waiting for too long.

    Args:
        evidence: what the servers answered.
    """
    for fault in evidence.faults:
        yield Finding(ERROR, fault.subject, fault.what, fault.fix, (fault.shard,))


def deployment_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield where the configuration does not fit the deployment that the databases and Redis belong to.

    Args:
        evidence: what they keep of it.
    """
    for fault in evidence.misfits:
        what, _, fix = fault.partition("; ")
        match = _KEY.fullmatch(what)
        place, what = (match[1], match[2]) if match and match[2] else ("deployment", what)
        yield Finding(ERROR, place, what, fix)


def configuration_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is usable but unwise.

    Args:
        evidence: the settings.
    """
    buckets, shards = evidence.topology.buckets, len(evidence.topology.shards)
    if buckets < BUCKETS_PER_SHARD * shards:
        yield Finding(
            WARNING,
            "[pipeline] buckets",
            f"is {buckets} for {shards} shards; less than {BUCKETS_PER_SHARD} for each makes uneven shards",
            f"buckets = {BUCKETS_PER_SHARD * shards} or more, before the first op: it is fixed for life",
        )


def redis_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with the log's server and with the broker's.

    Args:
        evidence: what the two servers answered.
    """
    log, broker = evidence.log, evidence.broker
    if isinstance(log, PipelineError):
        yield _unreachable("redis", "[redis] url", log)
    else:
        yield from _log(log)
    for name, found in evidence.groups.items():
        if isinstance(found, PipelineError):
            yield _unreachable(f"redis.{name}", f"[redis.{name}] url", found)
        else:
            yield from _log(found, f"redis.{name}")
    if evidence.refusal:
        yield Finding(ERROR, "writes", evidence.refusal, redis_cure(evidence.refusal, "[redis] url"), ("redis",))
    if evidence.untrimmed:
        cure = f"nothing, if this is a web host's user; else {redis_cure(evidence.untrimmed, '[redis] url')}"
        yield Finding(WARNING, "trim", f"this user may not trim the logs: {evidence.untrimmed}", cure, ("redis",))
    for shard, why in evidence.untaken.items():
        yield Finding(ERROR, "an op", why, redis_cure(why, "[redis] url"), (shard,))
    if isinstance(broker, PipelineError):
        if not (isinstance(log, PipelineError) and evidence.settings.redis.url == evidence.settings.redis.broker_url):
            yield _unreachable("broker", "[redis] broker_url", broker)
    elif not isinstance(log, PipelineError):
        yield from _broker(log, broker)


def worker_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield shards whose ops no worker would apply.

    A broker that does not answer yields nothing here: `redis_findings` reports it.

    Args:
        evidence: what the workers answered.
    """
    if evidence.listened is None:
        return
    silent = [shard for shard in evidence.topology.shards if shard not in evidence.listened]
    for shard in silent:
        command = "celery -A workers worker" + ("" if len(silent) > 1 else f" -Q {queue_of(shard)}")
        yield Finding(
            WARNING, "workers", "no worker that listens for this shard answered: ops stay queued", command, (shard,)
        )


def foreign_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield modules of somebody else that commands in this folder would take for the pipeline's.

    Args:
        evidence: names the configuration.
    """
    found = foreign_modules(Path.cwd())
    if "workers" in found:
        yield Finding(
            WARNING,
            "workers",
            f"is {found['workers']} in this folder: here `celery -A workers` starts that, and none of our workers",
            f"PIPELINE_CONFIG={evidence.settings.source} celery --workdir=/ -A workers worker",
        )
    if "pipeline" in found:
        yield Finding(
            WARNING,
            "pipeline",
            f"is {found['pipeline']} in this folder: here `python -m pipeline` and `import pipeline` take that",
            "rename it, or start web applications in another folder; the command `pipeline` is safe",
        )


def foreign_modules(folder: Path) -> dict[str, str]:
    """Return what in a folder has the name of a module of ours and is none: its file, by that name.

    Args:
        folder: such as the working directory, where Python and Celery look first.
    """
    specs = {name: PathFinder.find_spec(name, [str(folder)]) for name in ("celeryconfig", "pipeline", "workers")}
    # a folder without an `__init__.py` has no origin, and hides no package
    files = {name: spec.origin for name, spec in specs.items() if spec is not None and spec.origin is not None}
    ours = [where for name in specs for where in (HOME / f"{name}.py", HOME / name / "__init__.py")]
    return {name: file for name, file in files.items() if Path(file).resolve() not in ours}


def spool_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what would keep ops out of the spool.

    Args:
        evidence: the settings.
    """
    settings = evidence.settings.spool
    if not settings.enabled:
        return
    path = Path(settings.path)
    if not path.parent.is_dir():
        yield Finding(
            ERROR, _PLACE, f"its folder {path.parent} is not there", "create it, for the web user and workers"
        )
    elif fault := folder_fault(path):
        yield Finding(ERROR, _PLACE, *fault)
    elif not all(os.access(one, os.W_OK) for one in (path.parent, path) if one.exists()):
        yield Finding(
            ERROR,
            _PLACE,
            f"{path} cannot be written by this user: while Redis is away, its ops are refused",
            "give the web user and the workers of the host a group in common that may write there",
        )
    elif (free := shutil.disk_usage(path.parent).free) < settings.max_mb * 1_000_000:
        yield Finding(
            WARNING,
            "[spool] max_mb",
            f"is {settings.max_mb}, its disk has {free // 1_000_000} MB left",
            "make room, or lower it",
        )
    for aside in sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]")):
        yield Finding(
            ERROR,
            _PLACE,
            f"was damaged: {aside} may hold ops that were never sent",
            f"what could be read of it goes on; look at the rest with `sqlite3 {aside} .recover`, then delete the file",
        )


def clock_findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield servers whose clock differs from this machine's.

    Args:
        evidence: what the servers answered.
    """
    skews = {found.node: found.skew_ms for found in evidence.surveys}
    if isinstance(evidence.log, Health):
        skews = {"redis": evidence.log.skew_ms, **skews}
    for node, skew_ms in skews.items():
        if abs(skew_ms) > MOST_SKEW_MS:
            which = "ahead of" if skew_ms > 0 else "behind"
            yield Finding(
                WARNING,
                "clock",
                f"is {abs(skew_ms) / 1000:.1f} s {which} this machine's",
                "run an NTP client such as chrony on both machines",
                (node,),
            )


def _unreachable(node: str, key: str, error: PipelineError) -> Finding:
    why = str(error).removeprefix("Redis: ")
    return Finding(ERROR, "", f"cannot be asked: {why}", redis_cure(why, key), (node,))


def _log(log: Health, node: str = "redis") -> Iterator[Finding]:
    for found in (*_kind(log), *_kept(log), *_room(log)):
        yield replace(found, nodes=(node,))


def _kind(log: Health) -> Iterator[Finding]:
    """Yield what a Redis is that holds no logs, or loses them."""
    if log.release < LEAST_VERSIONS:
        yield Finding(ERROR, "version", f"is {log.version}, which cannot number the logs", "install Redis 7 or Valkey")
    if log.cluster:
        cure = "use Sentinel, or one server"
        yield Finding(ERROR, "cluster-enabled", "is yes; Celery cannot use a Redis Cluster", cure)
    if log.role != "master":
        yield Finding(ERROR, "role", f"is {log.role}: it takes no writes", "name the master, or use sentinel://")
    if log.policy != "noeviction":
        yield Finding(
            ERROR,
            "maxmemory-policy",
            f"is {log.policy}: under pressure Redis would delete queued ops",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        )


def _kept(log: Health) -> Iterator[Finding]:
    """Yield what a restart or a crash would lose."""
    if not log.append_only:
        yield Finding(
            WARNING,
            "appendonly",
            "is no: a restart of Redis loses what is queued",
            "CONFIG SET appendonly yes, and in redis.conf",
        )
    elif log.fsync == "no":
        yield Finding(
            WARNING,
            "appendfsync",
            "is no: a crash of the machine loses up to half a minute",
            "CONFIG SET appendfsync everysec",
        )


def _room(log: Health) -> Iterator[Finding]:
    """Yield where there is too little room, or no limit."""
    if log.bulk_bytes is not None and log.bulk_bytes < MOST_STATEMENT_BYTES:
        yield Finding(
            WARNING,
            "proto-max-bulk-len",
            f"is {log.bulk_bytes:,}: calls with larger ops are refused",
            "CONFIG SET proto-max-bulk-len 512mb, and in redis.conf",
        )
    if not log.max_bytes:
        yield Finding(
            WARNING,
            "maxmemory",
            "is not set: a long queue ends with the system killing Redis, not with PipelineFull",
            "CONFIG SET maxmemory to half of the machine's memory, and in redis.conf",
        )


def _broker(log: Health, broker: Health) -> Iterator[Finding]:
    if broker.run_id == log.run_id:
        if log.max_bytes:
            yield Finding(
                WARNING,
                "[redis] broker_url",
                "is the log's own server, which has a maxmemory: a full log stops Celery too",
                "give Celery a server of its own",
                ("broker",),
            )
    elif broker.policy != "noeviction":
        yield Finding(
            ERROR,
            "maxmemory-policy",
            f"is {broker.policy}: Redis may delete Celery's queues",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
            ("broker",),
        )
