"""Bring a cluster up, in order: servers, replication, the configuration, workers.

A service is ready when it answers what its users would send: a statement, PING, a health check, or its own line in the
log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.clock import polls
from pipeline.devcluster import processes, servers, state
from pipeline.devcluster.processes import (
    LOOPBACK,
    exit_code,
    free_ports,
    is_alive,
    is_free,
    log_tail,
    log_text,
    spawn,
    uninterrupted,
)
from pipeline.devcluster.servers import MariadbServers, SqliteFiles
from pipeline.devcluster.state import ClusterFailed, Process, Service, Shard

ENGINES: dict[str, type[SqliteFiles | MariadbServers]] = {"embedded": SqliteFiles, "mariadb": MariadbServers}

CONFIG_FILE = "pipeline.toml"

#: How long a service may take to start, s; Celery on two busy cores is the slowest.
READY_TIMEOUT_S = 30.0

#: What Celery and our own replica process print once they work.
READY_WORDS = "ready."

#: Takes a sentence about each step.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What a cluster consists of; see `Cluster.up` for the fields."""

    engine: str = "embedded"
    shards: int = 2
    replicas: int = 1
    workers: int = 2
    worker_concurrency: int = 1
    flower_port: int | None = None
    buckets: int = 64
    tables: str = ""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ClusterFailed(f"engine {self.engine!r} is not known; it is one of: {', '.join(ENGINES)}")
        least = {"shards": 1, "replicas": 0, "workers": 0, "worker_concurrency": 1, "buckets": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ClusterFailed(f"{name} is {getattr(self, name)}; it must be at least {number}")
        if self.flower_port and not is_free(self.flower_port):
            raise ClusterFailed(f"port {self.flower_port} for Flower is taken on {LOOPBACK}; 0 takes a free one")


def construct(directory: Path, options: ClusterOptions, report: Progress) -> None:
    """Bring up everything in a claimed directory; a failure leaves what was made, for `down` to remove.

    Args:
        directory: the cluster's directory.
        options: what to start.
        report: takes a sentence about each service that is ready.

    Raises:
        ClusterFailed: a service could not be started.
    """
    databases = ENGINES[options.engine](directory, options.shards, options.replicas)
    [redis_port] = free_ports(1)
    redis = servers.service(directory, databases.log_server, redis_port)
    _remember(directory, entries=(servers.LOG_SERVER, CONFIG_FILE))

    password = state.read_state(directory).password
    servers.keep_password(directory, password)
    _bring_up(directory, databases, launch(directory, [redis]), report)

    addresses = [servers.address(redis_port, password, database) for database in (0, 1)]
    text = config_text(databases.shards, redis=addresses, buckets=options.buckets, tables=options.tables)
    config = write_config(directory, text)
    wait_ready(directory, launch(directory, _workforce(config, options)), report)


def one_more(directory: Path, report: Progress) -> Shard:
    """Bring up the servers of one shard more, with as many replicas as the first has; `pipeline.toml` stays as it is.

    Args:
        directory: of a cluster that is up.
        report: takes a sentence about each service that is ready.

    Raises:
        ClusterFailed: a service could not be started.
    """
    known = state.read_state(directory)
    nodes = [entry for entry in known.entries if re.fullmatch(r"s\d+(-r\d+)?", entry)]
    replicas = sum(node.startswith("s0-r") for node in nodes)
    databases = ENGINES[known.engine](directory, 1, replicas, len(nodes) // (1 + replicas))
    _bring_up(directory, databases, [], report)
    return databases.shards[0]


def _bring_up(
    directory: Path,
    databases: SqliteFiles | MariadbServers,
    started: list[tuple[Service, Process]],
    report: Progress,
) -> None:
    """Start database servers, wait until they and what was started before work, and let replicas follow."""
    _remember(directory, entries=databases.folders)
    for step in databases.prepare():
        _run_step(directory, step)
    wait_ready(directory, [*started, *launch(directory, databases.services)], report)
    databases.link()


def launch(directory: Path, services: Sequence[Service]) -> list[tuple[Service, Process]]:
    """Start services that the state does not know yet, and store each in the state.

    Args:
        directory: the cluster's directory.
        services: in the order of their start.
    """
    _remember(directory, services)
    return [(service, relaunch(directory, service)) for service in services]


def relaunch(directory: Path, service: Service) -> Process:
    """Start a service that the state knows, and store its process there.

    Args:
        directory: the cluster's directory.
        service: what to start.
    """
    with uninterrupted():
        process = spawn(service, directory)
        state.write(directory, state.read_state(directory).with_process(process))
    return process


def _run_step(directory: Path, step: Service) -> None:
    [(_, process)] = launch(directory, [step])
    wait_done(directory, process)
    state.write(directory, state.read_state(directory).without(step.name))


def _remember(directory: Path, services: Sequence[Service] = (), entries: Sequence[str] = ()) -> None:
    state.write(directory, state.read_state(directory).with_services(services, entries))


def _workforce(config: Path, options: ClusterOptions) -> list[Service]:
    services = [processes.worker(config, number, options.worker_concurrency) for number in range(options.workers)]
    if options.flower_port is not None:
        services.append(processes.flower(config, options.flower_port or free_ports(1)[0]))
    return services


def config_text(shards: Iterable[Shard], *, redis: Sequence[str], buckets: int, tables: str = "") -> str:
    """Return the text of `pipeline.toml`.

    Args:
        shards: the cluster's shards, in order.
        redis: the addresses of the log and of the broker.
        buckets: the number of buckets.
        tables: TOML that is appended as given.
    """
    log, broker = map(_quote, redis)
    parts = [
        f"[pipeline]\nbuckets = {buckets}\n",
        f"[redis]\nurl = {log}\nbroker_url = {broker}\n",
        '[spool]\npath = "spool/pipeline.spool"\n',
    ]
    for shard in shards:
        replicas = ", ".join(map(_quote, shard.replicas))
        parts.append(f"[shards.{shard.name}]\nprimary = {_quote(shard.primary)}\nreplicas = [{replicas}]\n")
    return "\n".join([*parts, *([tables.strip() + "\n"] if tables.strip() else [])])


def write_config(directory: Path, text: str) -> Path:
    """Write `pipeline.toml`, readable by its owner only, and return its path.

    Args:
        directory: the cluster's directory.
        text: the whole file.
    """
    path = directory / CONFIG_FILE
    state.write_private(path, text.encode())
    return path


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)


def wait_ready(directory: Path, started: Iterable[tuple[Service, Process]], report: Progress) -> None:
    """Wait until all services work.

    Args:
        directory: the cluster's directory.
        started: the services with their processes.
        report: takes a sentence about each service that is ready.

    Raises:
        ClusterFailed: a service ended or took too long; the message ends with the tail of its log.
    """
    pending = list(started)
    for _ in polls(READY_TIMEOUT_S, first_s=0.01):
        for service, process in tuple(pending):
            if not is_alive(process):
                raise _failed(directory, process, f"ended with exit code {exit_code(process)} before it was ready")
            if is_ready(directory, service, process) and is_alive(process):
                pending.remove((service, process))
                report(f"{service.name} is ready" + (f" on port {service.port}" if service.port else ""))
        if not pending:
            return
    raise _failed(directory, pending[0][1], f"was not ready within {READY_TIMEOUT_S:.0f} s")


def wait_done(directory: Path, process: Process) -> None:
    """Wait until a step has ended well.

    Args:
        directory: the cluster's directory.
        process: the step's process.

    Raises:
        ClusterFailed: the step failed or took too long; the message ends with the tail of its log.
    """
    if not any(not is_alive(process) for _ in polls(READY_TIMEOUT_S)):
        raise _failed(directory, process, f"did not end within {READY_TIMEOUT_S:.0f} s")
    if code := exit_code(process):
        raise _failed(directory, process, f"ended with exit code {code}")


def is_ready(directory: Path, service: Service, process: Process) -> bool:
    """Return whether a service works now: one probe, no wait.

    Args:
        directory: the cluster's directory.
        service: what was started.
        process: its process, whose log is read where the service has no port.
    """
    if service.kind in ("worker", "sqlite-replica"):
        return READY_WORDS in log_text(directory, process)
    if service.kind == "flower":
        return processes.flower_answers(service.port or 0)
    probes = {"redis": servers.answers, "mariadb": servers.takes_statements}
    return service.port is not None and probes[service.kind](service.port, state.read_state(directory).password)


def _failed(directory: Path, process: Process, why: str) -> ClusterFailed:
    return ClusterFailed(f"{process.name} {why}", log_tail(directory, process))
