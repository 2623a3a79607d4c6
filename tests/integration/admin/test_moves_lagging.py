"""A move waits for a MariaDB replica that is really behind, says so, and goes on once that has caught up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta

import pytest
from click.testing import CliRunner
from support.servers.admin import Servers, model, servers

from pipeline import cli
from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.clock import Deadline
from pipeline.shard.records.moves import MoveNote

pytestmark = pytest.mark.mariadb

CUSTOMER, ROWS, MOST_S, PATIENCE_S = 7, 20, 1.0, 60
DELAYED = "STOP SLAVE; CHANGE MASTER TO MASTER_DELAY={}; START SLAVE"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("lagging")) as up:
        up.publish()
        yield up


@pytest.fixture
def client(here: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(movers, "NOTED_S", 0.0)
    made = here.client()
    made.define_tables(model())
    for n in range(ROWS):
        made.enqueue_insert("purchase", customer=CUSTOMER, day=date(2026, 1, 1) + timedelta(days=n))
    for shard in made.topology.shards:
        while Applier(shard, made.nodes.primary(shard), made.log, made.settings.apply).apply().left:
            pass
    yield made
    made.close()


def test_a_move_waits_for_a_replica_that_is_behind_says_so_and_goes_on(here: Servers, client: Client) -> None:
    bucket = client.topology.bucket_of("purchase", CUSTOMER)
    source = client.topology.shard_of(bucket)
    [target] = {*client.topology.shards} - {source}
    replica, config = f"{target}-r0", str(here.cluster.config)
    here.sql(replica, "STOP SLAVE SQL_THREAD")
    steps = orders.order_move(client, [bucket], target, "me", keep_s=0, note=MoveNote(max_lag_s=MOST_S)).steps()

    def until_it_waits(wanted: str) -> str:
        deadline = Deadline(PATIENCE_S)
        for step in steps:
            assert step.stage in ("copying", "waiting"), step
            assert not deadline.passed, step
            if step.stage == "waiting" and re.fullmatch(wanted, step.text):
                return step.text
        raise AssertionError("it has not waited")

    # how far it is behind is not known: none of its heartbeats is one of this mover's
    until_it_waits(f"{replica} is not known to have caught up, --max-lag is 1")
    [known] = orders.known(client)
    shown = CliRunner().invoke(cli.pipeline, ["move", "list", "--config", config])

    assert known.state == "copying"
    assert known.waits == f"{replica} is not known to have caught up, --max-lag is 1"
    assert f"waits: {known.waits}" in " ".join(shown.output.split()), shown.output
    here.sql(replica, DELAYED.format(3))
    until_it_waits(rf"{replica} is [3-9]\.\d s behind, --max-lag is 1")
    here.sql(replica, DELAYED.format(0))
    assert [step.stage for step in steps][-1] == "over"
    assert client.topology.shard_of(bucket) == target
    assert client.nodes.primary(target).query("SELECT COUNT(*) FROM purchase") == [(ROWS,)]
