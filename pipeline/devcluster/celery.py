"""Run a cluster's Celery workers and Flower with the commands that the README gives."""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
from pathlib import Path

from pipeline.devcluster.processes import LOOPBACK
from pipeline.devcluster.state import ClusterFailed, Service

#: The folder that holds the packages `pipeline` and `workers`, and in a checkout also `deploy`.
ROOT = Path(__file__).resolve().parents[2]


def worker(config: Path, number: int, concurrency: int) -> Service:
    """Return the service of one worker for all shards.

    Args:
        config: the cluster's `pipeline.toml`.
        number: the worker's number, part of its name.
        concurrency: how many child processes the worker has.
    """
    name = f"worker-{number}"
    # a worker waits a second for what its neighbours have revoked, and nobody revokes a bell
    options = ("worker", "-n", f"{name}@%h", "-c", str(concurrency), "-l", "INFO", "--without-mingle")
    return Service(name, "worker", (*_celery(), *options), environment=_environment(config))


def flower(config: Path, port: int) -> Service:
    """Return the service of Flower.

    Args:
        config: the cluster's `pipeline.toml`.
        port: the port to listen on.
    """
    options = ["flower", f"--address={LOOPBACK}", f"--port={port}"]
    settings = ROOT / "deploy" / "flowerconfig.py"
    if settings.exists():
        options.append(f"--conf={settings}")
    return Service("flower", "flower", (*_celery(), *options), port, _environment(config))


def flower_answers(port: int) -> bool:
    """Return whether Flower reports that it is healthy.

    Args:
        port: Flower's port on the loopback interface.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def import_path() -> dict[str, str]:
    """Return the environment in which a child imports the same packages as this process."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])}


def _celery() -> tuple[str, ...]:
    if importlib.util.find_spec("workers") is None and not (ROOT / "workers").is_dir():
        raise ClusterFailed(f"the package 'workers' is not installed beside 'pipeline' in {ROOT}")
    return (sys.executable, "-P", "-m", "celery", "-A", "workers")


def _environment(config: Path) -> dict[str, str]:
    return {**import_path(), "PIPELINE_CONFIG": str(config)}
