"""Whether a service really does its work yet, asked as its users would ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.clock import polls
from pipeline.devcluster import celery as workforce
from pipeline.devcluster import mariadb
from pipeline.devcluster import redis_server as logserver
from pipeline.devcluster.errors import ClusterFailed
from pipeline.devcluster.processes import exit_code, is_alive, log_tail, log_text
from pipeline.devcluster.state import Process, Service

#: How long a service may take; Celery's start on two busy cores is the slowest of them.
READY_TIMEOUT_S = 30.0

#: What Celery, and our own replica process, write once they work.
READY_WORDS = "ready."

Report = Callable[[str], None]


def wait_ready(directory: Path, started: Iterable[tuple[Service, Process]], report: Report) -> None:
    """Wait until all services work; the first that ends or takes too long raises with the tail of its log."""
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
    """Wait until a step has ended well."""
    if not any(not is_alive(process) for _ in polls(READY_TIMEOUT_S)):
        raise _failed(directory, process, f"did not end within {READY_TIMEOUT_S:.0f} s")
    if code := exit_code(process):
        raise _failed(directory, process, f"ended with exit code {code}")


def is_ready(directory: Path, service: Service, process: Process) -> bool:
    """Whether the service works, asked once."""
    if service.kind in ("worker", "sqlite-replica"):
        return READY_WORDS in log_text(directory, process)
    probes = {"redis": logserver.answers, "mariadb": mariadb.answers, "flower": workforce.flower_answers}
    return service.port is not None and probes[service.kind](service.port)


def _failed(directory: Path, process: Process, why: str) -> ClusterFailed:
    return ClusterFailed(f"{process.name} {why}", log_tail(directory, process))
