"""What the tests of deploy/ share: the folder, its programs, and children that run them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

DEPLOY = Path(__file__).parents[3] / "deploy"
#: mariadbd stands in sbin, which is not on everybody's PATH.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
STARTUP_S = 60.0
CALL_S = 5.0


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool, path=PATH) is None, reason=f"{tool} is not installed")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What prepare.sh makes, with the replica's primary on a port of this machine."""
    target, port = tmp_path_factory.mktemp("prepared"), free_ports(1)[0]
    environ = {"PATH": PATH, "SHARDS": "127.0.0.1", "PRIMARY_PORT": str(port)}
    subprocess.run([DEPLOY / "prepare.sh", target], env=environ, check=True, timeout=30, capture_output=True)
    lines = (target / ".env").read_text().splitlines()
    return SimpleNamespace(target=target, port=port, words=dict(line.split("=", 1) for line in lines))


def run(*command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, "PATH": PATH}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def within(timeout_s: float, holds: Callable[[], bool]) -> bool:
    return any(holds() for _ in polls(timeout_s, most_s=0.2))


@contextmanager
def child(
    command: list[str], log: Path, ready: Callable[[], bool], env: dict[str, str] | None = None, **more: Any
) -> Iterator[None]:
    """Run *command* until the end of the block; enter when it is ready. *more* is for `Popen`."""
    environ = {**(env or os.environ), "PATH": PATH}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ, **more)
    try:
        up = within(STARTUP_S, lambda: process.poll() is not None or ready())
        assert up, f"{command[0]} was not ready in {STARTUP_S} s"
        assert process.poll() is None, f"{command[0]} did not start:\n{log.read_text()[-4000:]}"
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
