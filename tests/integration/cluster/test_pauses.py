"""Pauses before real workers: a shard and a table stand still, say why, and go on in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from support.servers.rig import Rig

from pipeline import cli
from pipeline.clock import polls
from pipeline.errors import WaitTimeout

pytestmark = pytest.mark.mariadb


@pytest.fixture(params=["s0", "event"])
def paused(mariadb: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a shard or a table that is paused, and is resumed whatever happens."""
    name = str(request.param)
    ask(mariadb, "pause", name, "--reason", "a test")
    yield name
    ask(mariadb, "resume", name)


def ask(rig: Rig, *command: str) -> str:
    return CliRunner().invoke(cli.pipeline, [*command, "--config", str(rig.config)], catch_exceptions=False).output


def test_what_is_paused_stands_still_with_its_reason_and_goes_on_in_order(mariadb: Rig, paused: str) -> None:
    client, event = mariadb.client, mariadb.db.event
    topology = client.topology
    owner = next(one for one in mariadb.owners(40) if topology.shard_of(topology.bucket_of("event", one)) == "s0")
    for _ in polls(20):  # a worker obeys within a second
        receipt = client.enqueue_insert(event, owner=owner, body="1")
        try:
            receipt.wait(0.5)
        except WaitTimeout as error:
            why = error.why
            if "is paused" in why:  # and not merely slow
                break
    client.enqueue_update(event.id == receipt.id, body=event.body + "2")
    last = client.enqueue_update(event.id == receipt.id, body=event.body + "3")

    assert f"because {paused} is paused (by " in why
    assert why.endswith(f"a test); run: pipeline resume {paused}")
    assert f"because {paused} is paused" in ask(mariadb, "why", paused)
    ask(mariadb, "resume", paused)
    assert last.wait(30) in ("applied", "durable", "replayed")
    with client.read("event", shard_key=owner, after=last) as db:
        [row] = db(db.event.id == receipt.id).select()
    assert row.body == "123"
