"""Whatever ends a cluster, it leaves no process and no file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.clock import polls
from pipeline.devcluster import Cluster, servers, state
from pipeline.devcluster.processes import import_path
from pipeline.devcluster.state import ClusterFailed

#: The command as a user runs it, whatever else the main command needs.
COMMAND = (sys.executable, "-c", "from pipeline.cli.cluster import cluster; cluster()")

#: An owner that is killed or leaves after it has said that its cluster is up.
OWNER = """
import sys
from pipeline.devcluster import Cluster
cluster = Cluster.up(sys.argv[1], workers=0, owned=True)
print("up", flush=True)
sys.stdin.read()
"""

engines = pytest.mark.parametrize("engine", ["embedded", pytest.param("mariadb", marks=pytest.mark.mariadb)])


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home" / "D"
    for pid in traces(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    missing = not all(map(shutil.which, ("mariadbd", "redis-server")))
    if request.node.get_closest_marker("mariadb") and missing and not os.environ.get("CI"):
        pytest.skip("mariadbd and redis-server are not installed")


def traces(directory: Path) -> list[int]:
    """Return the running processes that name the directory in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(str(directory)) in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def all_gone(directory: Path) -> bool:
    return any(not directory.parent.exists() and not traces(directory) for _ in polls(20))


def spawn(*argv: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **import_path()}
    return subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@engines
def test_down_leaves_nothing_and_says_what_it_stopped(engine: str, directory: Path):
    cluster = Cluster.up(directory, engine, workers=0)
    names = [process.name for process in cluster.processes]
    assert traces(directory)

    stopped = Cluster.at(directory).down()

    assert stopped == names
    assert all_gone(directory)
    assert cluster.down() == []


def test_down_leaves_a_file_that_somebody_else_put_there(directory: Path):
    cluster = Cluster.up(directory, workers=0)
    (directory / "thesis.txt").write_text("mine")

    cluster.down()

    assert [path.name for path in directory.iterdir()] == ["thesis.txt"]


def test_down_leaves_a_folder_that_was_there_before(directory: Path):
    directory.mkdir(parents=True)

    Cluster.up(directory, workers=0).down()

    assert list(directory.iterdir()) == []


def test_down_after_crashes_leaves_nothing(directory: Path):
    cluster = Cluster.up(directory, workers=0)
    cluster.kill("redis")
    cluster.stop("s0-r0", signal.SIGSTOP)

    cluster.down()

    assert all_gone(directory)


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        ("embedded", "redis"),
        ("embedded", "s1-r0"),
        pytest.param("mariadb", "redis", marks=pytest.mark.mariadb),
        pytest.param("mariadb", "mariadb-install-db", marks=pytest.mark.mariadb),
        pytest.param("mariadb", "s0", marks=pytest.mark.mariadb),
        pytest.param("mariadb", "s1-r0", marks=pytest.mark.mariadb),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(engine: str, moment: str, number: int, directory: Path):
    with spawn(*COMMAND, "up", "--dir", str(directory), "--engine", engine, "--workers", "0") as starting:
        assert any(was_started(directory, moment) for _ in polls(60, most_s=0.002))

        starting.send_signal(number)

        output, _ = starting.communicate(timeout=60)
    # A start that had just finished when the signal came has said so, and its cluster is meant to stay.
    if starting.returncode == 0:
        assert b"cluster down" in output
        Cluster.at(directory).down()
    assert all_gone(directory)


def was_started(directory: Path, name: str) -> bool:
    with suppress(ClusterFailed):
        return state.read_state(directory).process(name) is not None
    return False


def test_a_failed_start_names_the_process_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "bundled", lambda: ("sh", "-c", "echo no memory; exit 7"))

    with pytest.raises(ClusterFailed, match=r"redis ended with exit code 7 before it was ready.*\nno memory"):
        Cluster.up(directory, workers=0)

    assert all_gone(directory)


def test_a_failed_start_in_the_foreground_leaves_no_guard(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "bundled", lambda: ("false",))

    with pytest.raises(ClusterFailed):
        Cluster.up(directory, workers=0, owned=True)

    assert all_gone(directory)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_owned_cluster_dies_with_its_owner(number: int, directory: Path):
    with spawn(sys.executable, "-c", OWNER, str(directory)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert traces(directory)

        owner.send_signal(number)

        owner.communicate(timeout=60)
    assert all_gone(directory)


def test_an_owned_cluster_goes_when_its_owner_leaves(directory: Path):
    with spawn(sys.executable, "-c", OWNER, str(directory)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"

        owner.communicate(timeout=60)

    assert owner.returncode == 0
    assert all_gone(directory)
