"""Redis: the log's server, and the broker's."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import ERROR, WARNING, Finding
from pipeline.errors import PipelineError
from pipeline.oplog.redis.server_info import Health

#: The first release that gives out `<epoch>-*` positions.
LEAST = (7, 0)


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with the log's server and with the broker's."""
    log, broker = evidence.log, evidence.broker
    if isinstance(log, PipelineError):
        yield _unreachable("redis", "[redis] url", log)
    else:
        yield from _log(log)
    if evidence.refusal:
        yield Finding(
            ERROR,
            "permissions",
            evidence.refusal,
            "ACL SETUSER … ~<prefix>:* +@read +@write +@scripting +@connection +@transaction +info +time",
            ("redis",),
        )
    if isinstance(broker, PipelineError):
        if not (isinstance(log, PipelineError) and evidence.settings.redis.url == evidence.settings.redis.broker_url):
            yield _unreachable("broker", "[redis] broker_url", broker)
    elif not isinstance(log, PipelineError):
        yield from _broker(log, broker)


def _unreachable(node: str, key: str, error: PipelineError) -> Finding:
    why = str(error).removeprefix("Redis: ")
    return Finding(ERROR, "", f"cannot be asked: {why}", f"start the server, or correct {key}", (node,))


def _log(log: Health) -> Iterator[Finding]:
    def found(severity: str, place: str, what: str, fix: str) -> Finding:
        return Finding(severity, place, what, fix, ("redis",))

    if log.release < LEAST:
        yield found(ERROR, "version", f"is {log.version}, which cannot number the logs", "install Redis 7 or Valkey")
    if log.cluster:
        yield found(
            ERROR, "cluster-enabled", "is yes; Celery cannot use a Redis Cluster", "use Sentinel, or one server"
        )
    if log.role != "master":
        yield found(ERROR, "role", f"is {log.role}: it takes no writes", "name the master, or use sentinel://")
    if log.policy != "noeviction":
        yield found(
            ERROR,
            "maxmemory-policy",
            f"is {log.policy}: under pressure Redis would delete queued ops",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        )
    if not log.append_only:
        yield found(
            WARNING,
            "appendonly",
            "is no: a restart of Redis loses what is queued",
            "CONFIG SET appendonly yes, and in redis.conf",
        )
    elif log.fsync == "no":
        yield found(
            WARNING,
            "appendfsync",
            "is no: a crash of the machine loses up to half a minute",
            "CONFIG SET appendfsync everysec",
        )
    if not log.max_bytes:
        yield found(
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
