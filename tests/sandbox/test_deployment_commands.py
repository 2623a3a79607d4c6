"""`pipeline shard add`, `restore` and `adopt-rows` by the command line: exit code, output, what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.sandbox.deployments import (
    Site,
    backup_of,
    drain,
    drop_own_tables,
    insert,
    model,
    restore,
    rows_of,
    run,
    site,
)

from pipeline.admin import moving as movers
from pipeline.admin import shards
from pipeline.admin.moving import orders
from pipeline.cli import options
from pipeline.cli import pipeline as command
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.errors import PipelineError, WrongDeployment
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog

__all__ = ["site"]
TEXT = """\
[pipeline]
buckets = 64
[redis]
url = "redis://redis.invalid/0"
[shards.s0]
primary = "sqlite://{0}/s0.sqlite"
buckets = "0-31"
[shards.s1]
primary = "sqlite://{0}/s1.sqlite"
buckets = "32-63"
[tables.purchase]
shard_key = "customer"
[tables.country]
reference = true
"""
#: What an operator gives after the command's name, and how the configuration says it then.
Command = Callable[..., Result]


@pytest.fixture
def path(site: Site) -> Path:
    found = site.folder / "pipeline.toml"
    found.write_text(TEXT.format(site.folder))
    return found


@pytest.fixture
def given(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Give a command in a process of its own, whose Redis is the site's."""
    monkeypatch.setattr(site.log, "close", lambda: None)
    made = _clients(site.log)
    monkeypatch.setattr(options, "Client", lambda config: made(load(config)))
    monkeypatch.setattr(shards, "Client", made)
    return lambda *words, answer="": CliRunner().invoke(command, [*words, "--config", str(path)], input=answer)


def _clients(log: MemoryLog) -> Callable[[Any], Client]:
    return lambda settings: Client(settings, log=log, bell=SilentBell())


def said(result: Result) -> str:
    """What the command line shows of a command: `pipeline` prints an error of ours as one line."""
    return f"{result.output}{result.exception or ''}"


def test_shard_add_writes_the_section_and_copies_the_reference_rows(site: Site, path: Path, given: Command) -> None:
    old = run(site, 7)
    for name in ("a", "b"):
        old.enqueue_insert(model().country, name=name)
    drain(old)

    done = given("shard", "add", "s2", "--primary", f"sqlite://{site.folder}/s2.sqlite")

    assert done.exit_code == 0, said(done)
    assert "s2 is a shard now: buckets none, 2 rows of reference tables copied; restart all processes" in done.output
    after = _clients(site.log)(load(path))
    assert after.nodes.primary("s2").query("SELECT name FROM country ORDER BY name") == [("a",), ("b",)]
    assert insert(after).status() == "queued"


def test_shard_add_of_a_file_that_names_the_shard_takes_it_and_is_given_again_in_vain(
    site: Site, path: Path, given: Command
) -> None:
    run(site, 7)
    path.write_text(f'{path.read_text()}[shards.s2]\nprimary = "sqlite://{site.folder}/s2.sqlite"\nbuckets = ""\n')
    text = path.read_text()

    done, again = given("shard", "add", "s2"), given("shard", "add", "s2")

    assert (done.exit_code, again.exit_code) == (0, 0), said(done) + said(again)
    assert "buckets none, 0 rows" in again.output
    assert path.read_text() == text


def test_shard_add_without_a_section_or_an_address_changes_nothing(site: Site, path: Path, given: Command) -> None:
    run(site, 7)
    before = site.log.deployment(), path.read_text()

    refused = given("shard", "add", "s2")

    assert refused.exit_code == 1
    assert "s2" in said(refused)
    assert (site.log.deployment(), path.read_text()) == before


def test_adopt_rows_lists_what_is_elsewhere_and_takes_a_key_by_which_every_row_is_where_it_belongs(
    site: Site, path: Path, given: Command
) -> None:
    client = run(site, *range(8))
    path.write_text(path.read_text().replace('shard_key = "customer"', 'shard_key = "customer"\nrule = "modulo"'))

    refused = given("adopt-rows", "purchase")

    assert refused.exit_code == 1
    *rows, last = refused.output.splitlines()
    assert last == f"{len(rows)} rows are not where they belong: move them, or write [tables.purchase] as it was"
    for row in rows:
        _, row_id, _, _, shard, *_ = row.split()
        with client.nodes.primary(shard).transaction() as session:
            session.execute(f"DELETE FROM purchase WHERE id = {row_id}")
    done = given("adopt-rows", "purchase")
    assert (done.exit_code, done.output) == (
        0, "every row of purchase is where it belongs; restart all processes\n"
    )  # fmt: skip
    insert(_clients(site.log)(load(path)))
    with pytest.raises(WrongDeployment, match="rule = 'hash'"):
        insert(client)


def test_restore_shows_its_plan_asks_and_lets_an_older_backup_go_on(site: Site, given: Command) -> None:
    client, shard, lost, kept = older_backup(site)

    refused = given("restore", shard, answer="n\n")
    assert refused.exit_code == 1
    assert [receipt.status() for receipt in kept] == ["queued"] * 2
    done = given("restore", shard, answer="y\n")

    assert done.exit_code == 0, said(done)
    bucket = lost[0].bucket
    for shown in (refused.output, done.output):
        assert f"bucket {bucket} goes on behind " in shown
        assert "2 ops are applied from the log, 3 ops are in no log any more, and recorded as lost" in shown
    assert f"{shard} goes on behind what was applied" in done.output
    drain(client)
    assert [receipt.status() for receipt in (*lost, *kept)] == [*["lost"] * 3, *["applied"] * 2]
    assert len(rows_of(client)) == 3


def test_restore_says_as_json_what_it_did_and_asks_nothing_with_yes(site: Site, given: Command) -> None:
    client, shard, lost, _ = older_backup(site)

    done = given("restore", shard, "--yes", "--json")

    assert done.exit_code == 0, said(done)
    [one] = [one for one in json.loads(done.output) if one["bucket"] == lost[0].bucket]
    assert {name: one[name] for name in ("replayed", "skipped", "lost")} == {"replayed": 2, "skipped": 0, "lost": 3}
    drain(client)
    assert len(rows_of(client)) == 3


def test_restore_of_a_backup_without_our_tables_doubles_nothing(site: Site, given: Command) -> None:
    client = run(site, *range(20))
    before = rows_of(client)
    drop_own_tables(client, "s0")

    done = given("restore", "s0", "--yes")

    assert done.exit_code == 0, said(done)
    assert "count as applied" in done.output
    drain(client)
    assert rows_of(client) == before


def test_restore_of_a_shard_that_a_key_is_on_or_moves_from_or_to_is_refused_by_name(
    site: Site, given: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    client = run(site, *range(20))
    home = client.topology.shard_of(bucket := client.topology.bucket_of("purchase", 7))
    [away] = {*client.topology.shards} - {home}

    mover = orders.order_key(client, "purchase=7", away, "me", keep_s=0)
    steps = mover.steps()
    next(steps)
    for shard in (home, away):
        refused = given("restore", shard, "--yes")
        assert refused.exit_code == 1
        assert said(refused) == (
            f"purchase=7 of bucket {bucket} is being moved from {home} to {away}: nobody knows which ops of the key a "
            f"backup of {shard} has. Promote a replica of {shard} in its place, or end the move first: see pipeline "
            "move show purchase=7"
        )
    mover.give_up("a test")
    list(mover.steps())
    assert given("restore", away, "--yes").exit_code == 0
    list(orders.order_key(client, "purchase=7", away, "me", keep_s=0).steps())
    for shard in (home, away):
        assert said(given("restore", shard, "--yes")) == (
            f"purchase=7 of bucket {bucket} on {home} has a shard of its own, {away}: nobody knows which ops of the "
            f"key a backup of {shard} has. Promote a replica of {shard} in its place"
        )


def test_restore_without_a_shard_or_of_one_that_there_is_not_changes_nothing(site: Site, given: Command) -> None:
    run(site, 7)
    before = site.log.deployment()

    assert given("restore").exit_code == 2
    assert given("restore", "s0", "--redis").exit_code == 2
    unknown = given("restore", "s9", "--yes")

    assert unknown.exit_code == 1
    assert isinstance(unknown.exception, PipelineError)
    assert "s9" in said(unknown)
    assert site.log.deployment() == before


def test_restore_redis_begins_the_queue_anew_once_it_is_agreed_to(
    site: Site, path: Path, given: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = run(site, 7), MemoryLog()
    path.write_text(path.read_text().replace("redis.invalid/0", 'other.invalid/0"\nprefix = "new'))
    monkeypatch.setattr(second, "close", lambda: None)
    monkeypatch.setattr(options, "Client", lambda config: _clients(second)(load(config)))

    refused = given("restore", "--redis", answer="n\n")
    assert refused.exit_code == 1
    with pytest.raises(WrongDeployment):
        insert(_clients(second)(load(path)))
    done = given("restore", "--redis", answer="y\n")

    assert done.exit_code == 0, said(done)
    assert f"the queue of these databases is 'new' of {path} from now on" in done.output
    assert insert(_clients(second)(load(path))).status() == "queued"
    site.log.restart()
    with pytest.raises(WrongDeployment, match="belongs to the deployment of"):
        insert(first)


def older_backup(site: Site) -> tuple[Client, str, list[Any], list[Any]]:
    """A shard whose backup lacks five ops: the log has deleted three of them."""
    client = run(site, 7)
    bucket = client.topology.bucket_of("purchase", 7)
    shard = client.topology.shard_of(bucket)
    older = backup_of(client, shard)
    lost = [insert(client, 7) for _ in range(3)]
    drain(client)
    site.log.trim({bucket: site.log.tails([bucket])[bucket]})
    kept = [insert(client, 7) for _ in range(2)]
    drain(client)
    restore(client, shard, older)
    return client, shard, lost, kept
