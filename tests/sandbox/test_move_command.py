"""`pipeline move`: what a dry run says and leaves alone, what `list` and `show` show, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext

import click
import pytest
from click.testing import CliRunner, Result
from support.sandbox.deployments import Site, file_of, run, site

from pipeline.admin import moving as movers
from pipeline.admin.moving import Mover, MoveStep, buckets_rows, orders, sides
from pipeline.cli import move as face
from pipeline.cli.move import move_group
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.shard import row_sync
from pipeline.shard.records.moves import MoveNote

__all__ = ["site"]

CUSTOMERS = [customer for customer in range(12) for _ in range(30)]


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(movers, "NOTED_S", 0.0)
    made = run(site, *CUSTOMERS)
    monkeypatch.setattr(face, "opened", lambda config: nullcontext(made))
    return made


def pipeline(*words: str) -> Result:
    return CliRunner().invoke(move_group, words)


def owned(client: Client) -> tuple[int, int]:
    """Return a bucket of s0 with rows, and how many rows it has."""
    buckets = [client.topology.bucket_of("purchase", customer) for customer in CUSTOMERS]
    bucket = next(one for one in buckets if client.topology.shard_of(one) == "s0")
    return bucket, buckets.count(bucket)


def test_a_dry_run_says_rows_bytes_and_time_and_changes_nothing(client: Client) -> None:
    bucket, rows = owned(client)
    before = [file_of(client, shard).read_bytes() for shard in client.topology.shards], client.log.placement()

    said = pipeline(str(bucket), "--to", "s1", "--dry-run", "--max-lag", "2")

    assert said.exit_code == 0, said.output
    assert f"{rows} rows, 0.0 MB of purchase\n" in said.output
    assert f"{rows} rows, 0.0 MB in all\n" in said.output
    assert "nothing refuses to move; s1 goes on after about 0:00:12, by" in said.output
    assert ([file_of(client, shard).read_bytes() for shard in client.topology.shards], client.log.placement()) == before


def test_a_dry_run_of_a_large_table_estimates_its_rows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, rows = owned(client)
    monkeypatch.setattr(buckets_rows, "SAMPLE_S", 0.0)
    monkeypatch.setattr(row_sync, "FIRST", 100)

    [size] = orders.sizes(client, [bucket], "s1")

    assert size.about
    assert rows / 3 < size.rows < 3 * rows  # by the 100 rows that were looked at
    assert size.bytes > 0
    assert "about " in pipeline(str(bucket), "--to", "s1", "--dry-run").output


def test_a_dry_run_says_what_would_refuse(client: Client) -> None:
    bucket, _ = owned(client)
    orders.order_move(client, [bucket], "s1", "me")

    moving = pipeline(str(bucket), "--to", "s1", "--dry-run")
    with client.nodes.primary("s0").transaction():
        client.nodes.primary("s0").execute(f"UPDATE pipeline_watermarks SET state = 'halted' WHERE bucket = {bucket}")
    halted = pipeline(str(bucket), "--to", "s1", "--dry-run")

    assert "is being moved already" in str(moving.exception)
    assert f"bucket {bucket} on s0 is halted" in str(halted.exception)


def test_show_names_what_a_move_waits_for_its_limits_and_each_node(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, rows = owned(client)
    monkeypatch.setattr(sides, "running_threads", lambda session: 9)
    mover = orders.order_move(client, [bucket], "s1", "me", note=MoveNote(max_load=8, total=1000))
    for step in mover.steps():
        if step.stage == "waiting":
            break

    shown, listed = pipeline("show", str(bucket)), pipeline("list")
    [told] = json.loads(pipeline("show", str(bucket), "--json").output)

    assert f"{bucket} from s0 to s1: copying, {rows} of 1,000" in shown.output
    assert "--keep 60 --max-lag 5 --max-load 8" in shown.output
    waits = "waits: s1 runs 9 threads, --max-load is 8; s0 runs 9 threads, --max-load is 8"
    assert waits in shown.output
    assert "waits: s1 runs 9" in listed.output
    assert f"to end it: pipeline move give-up {bucket}" in shown.output
    assert [(node["node"], node["state"]) for node in told["nodes"]] == [("s0", "active"), ("s1", "copying")]
    assert told["waits"] == waits.removeprefix("waits: ")


def test_buckets_move_and_come_back_by_command(client: Client) -> None:
    bucket, _ = owned(client)

    there = pipeline(str(bucket), "--to", "s1", "--keep", "0")
    shown = pipeline("show", str(bucket))
    back = pipeline("back", str(bucket), "--keep", "0", "--max-lag", "9", "--max-load", "3")

    assert (there.exit_code, back.exit_code) == (0, 0), there.output + back.output
    assert there.stdout.splitlines()[-1] == f"s1 has {bucket}"
    assert f"to send them back: pipeline move back {bucket}" in shown.output
    assert client.topology.shard_of(bucket) == "s0"
    assert "--keep 0 --max-lag 9 --max-load 3" in pipeline("show", str(bucket)).output


def test_a_bucket_that_never_moved_has_nothing_to_show(client: Client) -> None:
    assert "none of the buckets 3 has moved" in str(pipeline("show", "3").exception)


def test_every_command_of_a_move_is_a_command_and_no_list_of_buckets() -> None:
    named = {name for name, command in move_group.commands.items() if isinstance(command, click.Command)}

    assert named == {"begin", "back", "give-up", "list", "show"}


def test_a_command_waits_for_a_server_that_does_not_answer_and_goes_on(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, _ = owned(client)
    mover, steps, away = orders.order_move(client, [bucket], "s1", "me", keep_s=0), Mover.steps, [True]

    def unsteady(self: Mover) -> Iterator[MoveStep]:
        if away and away.pop():
            raise ShardUnavailable("s1", "away")
        yield from steps(self)

    monkeypatch.setattr(Mover, "steps", unsteady)
    monkeypatch.setattr(face, "LOOK_S", 0.0)

    said = [words for words, _ in face.steps_of(mover)]

    assert said[0] == "waiting node 's1': away"
    assert said[-1] == "over"


def test_a_command_that_waits_for_the_target_ends_once_that_goes_on(client: Client) -> None:
    bucket, _ = owned(client)
    mover = orders.order_move(client, [bucket], "s1", "me", keep_s=3600)

    [*_] = face.steps_of(mover, begun=True)

    assert mover.begun
    assert mover.stage() == "publish"
