"""Files that do not fit one deployment, over MariaDB and Redis: refused to a caller, a worker, `migrate`, `check`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline import cli
from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import WrongDeployment
from pipeline.shard import NodeSession
from pipeline.shard.records import text_literal

pytestmark = pytest.mark.mariadb
KEEP = "UPDATE pipeline_deployment SET fingerprint = {}"


@pytest.fixture
def other(mariadb: Rig, tmp_path: Path) -> Path:
    """A file of the same servers with another number of buckets."""
    text, changed = re.subn(r"(?m)^buckets = \d+", "buckets = 48", mariadb.config.read_text())
    assert changed == 1
    path = tmp_path / "other.toml"
    path.write_text(text)
    return path


def test_a_caller_and_a_worker_with_another_file_are_refused_and_both_files_are_named(
    mariadb: Rig, other: Path
) -> None:
    client: Any = Client(other)
    with pytest.raises(WrongDeployment) as refused:
        client.enqueue_insert(mariadb.db.event, owner=1, body="x")
    client.close()

    assert re.search(rf"buckets is 48 in {re.escape(str(other))}, but \d+ in /\S+\.toml; write", str(refused.value))
    with mariadb.worker(other, ready=False) as worker:
        assert mariadb.wait_gone(worker, 30)
        assert "[pipeline] buckets is 48" in mariadb.log_text(worker)


def test_check_finds_the_difference_and_a_file_that_fits_has_none(mariadb: Rig, other: Path) -> None:
    found = [
        json.loads(CliRunner().invoke(cli.pipeline, ["check", "--json", "--config", str(path)]).output)["findings"]
        for path in (other, mariadb.config)
    ]

    assert [one for one in found[0] if one["place"] == "buckets"] == []  # no advice to migrate by the wrong map
    differs, fits = (
        [one["what"] for one in findings if one["severity"] == "error" and one["place"] == "[pipeline] buckets"]
        for findings in found
    )
    assert len(differs) == 1
    assert differs[0].startswith(f"is 48 in {other}, but ")
    assert fits == []


def test_empty_databases_are_not_prepared_for_a_queue_that_is_another_s(mariadb: Rig, tmp_path: Path) -> None:
    config, staging = mariadb.config.read_text(), []
    for shard, uri in mariadb.primaries.items():
        schema = f"staging_{shard}"
        root = NodeSession(shard, uri)
        root.query(f"CREATE OR REPLACE DATABASE {schema}")
        root.discard()
        staging.append((uri, f"{uri.rpartition('/')[0]}/{schema}"))
    for before, after in staging:
        config = config.replace(f'"{before}"', f'"{after}"')
    path = tmp_path / "staging.toml"
    path.write_text(re.sub(r"(?m)^replicas = .*$", "", config))
    client = Client(path)

    with pytest.raises(WrongDeployment, match=r"give .*staging\.toml a \[redis\] prefix or url of its own"):
        migrate(client)

    assert client.nodes.primary("s0").query("SHOW TABLES") == []
    client.close()


def test_a_worker_that_is_refused_while_it_runs_leaves_the_bells_to_others(mariadb: Rig) -> None:
    client, topology, uri = mariadb.client, mariadb.client.topology, mariadb.primaries["s0"]
    owner = next(one for one in mariadb.owners(40) if topology.shard_of(topology.bucket_of("event", one)) == "s0")
    [[fits]] = nodes.rows(uri, "SELECT fingerprint FROM pipeline_deployment")
    other, changed = re.subn(r'"deployment":"\w+"', '"deployment":"another"', fits)
    assert changed == 1

    with mariadb.frozen(), mariadb.worker(mariadb.config, concurrency=1) as late:
        with mariadb.frozen(late):
            receipt = client.enqueue_insert("event", owner=owner, body="x")
            nodes.rows(uri, KEEP.format(text_literal(other)))
        try:
            assert any("shard_not_served shard=s0" in mariadb.log_text(late) for _ in polls(30))
            # whoever else hears the shard's bells finds this one
            assert any(mariadb.broker.llen("pl:celery:shard.s0") for _ in polls(30))
        finally:
            nodes.rows(uri, KEEP.format(text_literal(fits)))
    receipt.wait(30)
