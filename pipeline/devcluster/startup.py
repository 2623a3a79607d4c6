"""The steps that bring a cluster up, in order: servers, then replication, then the configuration, then workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.devcluster import celery as workforce
from pipeline.devcluster import mariadb, state
from pipeline.devcluster import redis_server as logserver
from pipeline.devcluster import sqlite as embedded
from pipeline.devcluster.configuration import CONFIG_FILE, config_text, write_config
from pipeline.devcluster.errors import ClusterFailed
from pipeline.devcluster.interrupts import uninterrupted
from pipeline.devcluster.layout import Engine
from pipeline.devcluster.ports import LOOPBACK, free_ports, is_free
from pipeline.devcluster.processes import spawn
from pipeline.devcluster.readiness import Report, wait_done, wait_ready
from pipeline.devcluster.state import Process, Service

EngineName = Literal["embedded", "mariadb"]

ENGINES: dict[str, Engine] = {"embedded": embedded, "mariadb": mariadb}


@dataclass(frozen=True, slots=True)
class Options:
    """What a cluster shall consist of."""

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


def construct(directory: Path, options: Options, report: Report) -> None:
    """Bring up everything in a claimed directory; leaves what it made when it fails, for `down` to remove."""
    engine = ENGINES[options.engine]
    [redis_port] = free_ports(1)
    redis = logserver.service(directory, engine.log_server_argv(), redis_port)
    layout = engine.lay_out(directory, options.shards, options.replicas)
    _remember(directory, entries=(logserver.NAME, CONFIG_FILE, *layout.folders))

    (directory / logserver.NAME).mkdir()
    started = launch(directory, [redis])
    engine.prepare(directory, layout, lambda step: _run_step(directory, step))
    started += launch(directory, layout.services)
    wait_ready(directory, started, report)
    engine.link(layout)

    text = config_text(layout.shards, redis_port=redis_port, buckets=options.buckets, tables=options.tables)
    config = write_config(directory, text)
    wait_ready(directory, launch(directory, _workforce(config, options)), report)


def launch(directory: Path, services: Sequence[Service]) -> list[tuple[Service, Process]]:
    """Start services that the state does not know yet, and remember each."""
    _remember(directory, services)
    return [(service, relaunch(directory, service)) for service in services]


def relaunch(directory: Path, service: Service) -> Process:
    """Start a known service and remember its process."""
    with uninterrupted():
        process = spawn(service, directory)
        state.write(directory, state.read(directory).with_process(process))
    return process


def _run_step(directory: Path, step: Service) -> None:
    [(_, process)] = launch(directory, [step])
    wait_done(directory, process)
    state.write(directory, state.read(directory).without(step.name))


def _remember(directory: Path, services: Sequence[Service] = (), entries: Sequence[str] = ()) -> None:
    state.write(directory, state.read(directory).with_services(services, entries))


def _workforce(config: Path, options: Options) -> list[Service]:
    services = [workforce.worker(config, number, options.worker_concurrency) for number in range(options.workers)]
    if options.flower_port is not None:
        services.append(workforce.flower(config, options.flower_port or free_ports(1)[0]))
    return services
