"""A third shard for two that are under load: the commands that docs/operations.md prints, on real MariaDB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures import needs_mariadb
from support.oracle import nodes
from support.oracle.load import Load
from support.oracle.producer import environment
from support.oracle.trial import Trial
from support.servers.rig import Rig, rig_of
from support.servers.systemctl import stand_in

from pipeline.admin.shards import KINDS, weigh
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.enqueue import buckets

pytestmark = pytest.mark.mariadb
DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"
#: Rows that are there before, and customers who have them.
ROWS, OWNERS = 12_000, 600
#: How long all the commands may take.
COMMANDS_S = 300


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    needs_mariadb()
    with rig_of(tmp_path / "cluster", "mariadb", buckets=64) as made:
        for name, value in {
            "DB_USER": "app",
            "DB_PASSWORD": made.cluster.password,
            "READER_PASSWORD": made.cluster.password,
            "PIPELINE_CONFIG": str(made.cluster.config),
        }.items():
            monkeypatch.setenv(name, value)
        made.config = made.cluster.config
        yield made


def test_the_documented_commands_add_a_shard_to_two_under_load_and_even_out(rig: Rig, tmp_path: Path) -> None:
    trial, commands = Trial(rig, "growth", tmp_path), printed_commands(rig.cluster)
    before = events_of(fill(rig), rig.primaries)
    # so many owners that each bucket is about as busy: what is busy counts too
    load = trial.load(owners=trial.choose_owners(OWNERS), weights={"insert": 2, "bump": 8, "upsert": 1, "delete": 1})

    assert len(commands) <= 4
    said = ""
    for command in commands:
        weighed = weigh(rig.client, 0)
        said = run_under(trial, load, command, tmp_path)
        if "restart" in command:  # what the last word of it does to a site
            rig.client.close()
            rig.client = Client(rig.config_through({}))
            load = trial.load(owners=trial.owners)
    trial.send(load, 50)

    accounts = trial.holds()
    assert accounts["lost"] == 0
    assert list(rig.primaries) == ["s0", "s1", "s2"]
    assert events_of(rig.client, rig.primaries) == before
    weights = weigh(rig.client, 0)
    assert {bucket for bucket, size in weights.bytes.items() if size > 10} == {*weights.rows}
    assert buckets.follow(rig.client.log, rig.client.nodes, rig.client.topology, anew=True).moves == {}
    # even is what the plan knew: the servers' sizes of tables change with each move, and a slow machine applies few ops
    weighed.load.clear()
    weighed.load.update(one.bucket for one in trial.ledger)
    each = weighed.together([kind for kind in KINDS if kind != "load" or "load does not count" not in said])
    topology = rig.client.topology
    held = {shard: sum(each.get(bucket, 0.0) for bucket in topology.buckets_of(shard)) for shard in topology.shards}
    assert sum(held.values()) == pytest.approx(1.0)
    assert all(abs(part - 1 / 3) < 0.25 / 3 for part in held.values()), (held, said)


def printed_commands(cluster: Cluster) -> list[str]:
    """Return the lines of the section's first block, on the servers that a cluster has started for the third shard."""
    text = DOCUMENT.read_text().split("\n## Add a shard\n")[1]
    [block] = re.findall(r"\n```sh\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
    added = cluster.add_shard()
    for name, uri in zip(("s2", "s2-r0"), (added.primary, *added.replicas), strict=True):
        [port] = re.findall(r"@127\.0\.0\.1:(\d+)/", uri)
        assert f"@{name}:3306/" in block
        block = block.replace(f"@{name}:3306/", f"@127.0.0.1:{port}/")
    return block.strip().splitlines()


def run_under(trial: Trial, load: Load, command: str, folder: Path) -> str:
    """Run a command while ops arrive; return what it says."""
    found = folder / "bin"
    if not found.exists():
        found.mkdir()
        stand_in(found, trial.rig.cluster)
    own = {**environment(), "PATH": os.pathsep.join([str(found), str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder / "said").open("w+") as said:
        running = subprocess.Popen(["bash", "-c", command], env=own, stdout=said, stderr=subprocess.STDOUT)
        try:
            for _ in polls(COMMANDS_S, first_s=0.02, most_s=0.02):
                trial.send(load, 2)
                if running.poll() is not None:
                    break
        finally:
            running.kill()
            running.wait()
        said.seek(0)
        text = said.read()
        assert running.returncode == 0, f"{command}:\n{text[-4000:]}"
        return text


def fill(rig: Rig) -> Client:
    client: Client = rig.client
    rows = [{"owner": 10_000 + n % OWNERS, "body": f"event {n}"} for n in range(ROWS)]
    client.enqueue_bulk_insert(rig.db.event, rows)
    client.barrier("event", timeout_s=60)
    return client


def events_of(client: Client, primaries: dict[str, str]) -> list[tuple[object, ...]]:
    """Return the rows of primaries; one that is on two shards is there twice."""
    return sorted(row for uri in primaries.values() for row in nodes.rows(uri, "SELECT id, owner, body FROM event"))
