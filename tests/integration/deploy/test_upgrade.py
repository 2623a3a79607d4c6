"""Web side or workers are upgraded first: processes of an older wheel and of this tree share one deployment.

The older wheel is built from the sources of `RELEASED`, which has the tag's role until a release is tagged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.why import why
from pipeline.clock import polls

pytestmark = pytest.mark.mariadb

ROOT = Path(__file__).parents[3]
#: The last state before ops of a bulk call shared an entry: what it enqueues and reads is of version 1 or 2.
RELEASED = "c184105e"
BUILD_TIMEOUT_S, RUN_TIMEOUT_S = 120, 60
#: Enqueues as a web process does; prints ids. Its words are those of both releases.
WEB = """
import json, sys
import pipeline
from support.tables import define
pipeline.configure(sys.argv[1])
owner, db = int(sys.argv[2]), define()
pipeline.define_tables(db)
first = pipeline.enqueue_insert(db.tally, owner=owner, name="first", n=1)
ids = [first.id]
for n in range(5):
    pipeline.enqueue_update(db.tally.id == first.id, n=db.tally.n + 1, trace=f"u{n}")
gone = pipeline.enqueue_insert(db.tally, owner=owner, name="gone")
pipeline.enqueue_delete(db.tally.id == gone.id)
pipeline.enqueue_upsert(db.tally, key=["owner", "name"], owner=owner, name="upserted", n=7)
with pipeline.atomic():
    pipeline.enqueue_insert(db.tally, owner=owner, name="grouped", n=3)
    pipeline.enqueue_insert(db.event, owner=owner, body="grouped")
if "bulk" in sys.argv:
    rows = [{"owner": owner, "body": f"bulk {n}"} for n in range(20)]
    ids += [one.id for one in pipeline.enqueue_bulk_insert(db.event, rows)]
print(json.dumps([pipeline.__file__, first.bucket, ids]))
"""
TALLIES = [("first", 6, "u4"), ("grouped", 3, ""), ("upserted", 7, "")]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the older wheel installs."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("older")
    sources, wheels, installed = (folder / name for name in ("sources", "wheels", "installed"))
    sources.mkdir()
    packed = subprocess.run(["git", "archive", RELEASED], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"these sources have no history with {RELEASED}")
    subprocess.run(["tar", "-x"], cwd=sources, input=packed.stdout, check=True)
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)], sources, BUILD_TIMEOUT_S)
    [wheel] = wheels.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    _run([*install, str(wheel)], folder, BUILD_TIMEOUT_S)
    return installed


def _run(command: list[str], cwd: Path, timeout_s: float, **environment: str) -> str:
    made = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **environment},
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def enqueue(rig: Rig, owner: int, release: Path, *options: str) -> tuple[int, list[int]]:
    """Enqueue in a web process of a release; return the bucket, and the ids of rows."""
    command = [sys.executable, "-c", WEB, str(rig.config), str(owner), *options]
    path = f"{release}{os.pathsep}{ROOT / 'tests'}"
    file, bucket, ids = json.loads(_run(command, release, RUN_TIMEOUT_S, PYTHONPATH=path))
    assert Path(file).is_relative_to(release)
    return bucket, ids


@contextmanager
def older_worker(rig: Rig, older: Path) -> Iterator[None]:
    """Run a worker of the older wheel in place of all of this release."""
    with rig.frozen(), rig.worker(PYTHONPATH=str(older)):
        yield


def tallies(rig: Rig, owner: int) -> list[tuple[Any, ...]]:
    """Return the tallies of an owner on all primaries."""
    sql = f"SELECT name, n, trace FROM tally WHERE owner = {owner} ORDER BY name"
    return [row for uri in rig.primaries.values() for row in nodes.rows(uri, sql)]


def bodies(rig: Rig, owner: int) -> list[str]:
    """Return the bodies of the events of an owner, in order of their ids."""
    sql = f"SELECT body FROM event WHERE owner = {owner} ORDER BY id"
    return [body for uri in rig.primaries.values() for (body,) in nodes.rows(uri, sql)]


def refused(rig: Rig) -> list[int]:
    """Return how many ops each shard has set aside."""
    return [
        count for uri in rig.primaries.values() for (count,) in nodes.rows(uri, "SELECT COUNT(*) FROM pipeline_rejects")
    ]


def becomes(found: Any, wanted: object) -> bool:
    """Wait until *found* returns what is wanted."""
    return any(found() == wanted for _ in polls(30))


def test_workers_that_are_upgraded_first_apply_what_the_older_web_side_enqueues(mariadb: Rig, older: Path) -> None:
    [owner] = mariadb.owners(1)

    enqueue(mariadb, owner, older, "bulk")

    assert becomes(lambda: tallies(mariadb, owner), TALLIES)
    assert becomes(lambda: bodies(mariadb, owner), ["grouped", *(f"bulk {n}" for n in range(20))])


def test_older_workers_apply_what_an_upgraded_web_side_enqueues_singly(mariadb: Rig, older: Path) -> None:
    [owner] = mariadb.owners(1)

    with older_worker(mariadb, older):
        enqueue(mariadb, owner, ROOT)

        assert becomes(lambda: tallies(mariadb, owner), TALLIES)
        assert becomes(lambda: bodies(mariadb, owner), ["grouped"])


def test_what_older_workers_do_not_understand_waits_with_a_reason_until_they_are_upgraded(
    mariadb: Rig, older: Path
) -> None:
    [owner], before = mariadb.owners(1), refused(mariadb)

    with older_worker(mariadb, older):
        bucket, _ = enqueue(mariadb, owner, ROOT, "bulk")

        assert becomes(lambda: tallies(mariadb, owner), TALLIES)
        told = lambda: [one.kind for one in why(mariadb.client, str(bucket)).reasons]  # noqa: E731
        assert becomes(told, ["newer"])
        assert bodies(mariadb, owner) == ["grouped"]

    assert becomes(lambda: bodies(mariadb, owner), ["grouped", *(f"bulk {n}" for n in range(20))])
    assert refused(mariadb) == before
