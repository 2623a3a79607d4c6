"""A shard that is added by its address: the file is written once the shard is taken, and only then."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.sandbox.deployments import Site, drain, model, run, site

from pipeline.admin import moving as movers
from pipeline.admin import shards
from pipeline.admin.moving import orders
from pipeline.cli import options
from pipeline.cli import pipeline as command
from pipeline.client import Client
from pipeline.config.files import replace_file
from pipeline.config.settings import load
from pipeline.errors import ConfigError, PipelineError, WrongDeployment

__all__ = ["site"]
TEXT = """\
[pipeline]
buckets = 64
[redis]
url = "redis://redis.invalid/0"
[shards.s0]  # the old ones
primary = "sqlite://{0}/s0.sqlite"
[shards.s1]
primary = "sqlite://{0}/s1.sqlite"
[tables.purchase]
shard_key = "customer"
[tables.country]
reference = true
"""


@pytest.fixture
def path(site: Site) -> Path:
    found = site.folder / "pipeline.toml"
    found.write_text(TEXT.format(site.folder))
    return found


@pytest.fixture
def deployment(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    old = run(site, 7)
    old.enqueue_insert(model().country, name="a")
    drain(old)
    monkeypatch.setattr(shards, "Client", lambda settings: Client(settings, log=site.log, bell=old.bell))
    monkeypatch.setattr(site.log, "close", lambda: None)
    return old


def test_the_file_that_is_made_is_taken_over_by_those_who_start_with_it(
    site: Site, path: Path, deployment: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME_OF_IT", str(site.folder))
    path.chmod(0o640)
    made = shards.grown(load(path), "s2", "sqlite://${HOME_OF_IT}/s2.sqlite", ())

    assert shards.take_shard(made) == (1, "")
    assert path.read_text() == TEXT.format(site.folder)
    replace_file(path, made.text)

    assert "${HOME_OF_IT}" in path.read_text()
    assert "# the old ones" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.glob(".pipeline*")) == []
    after = shards.Client(load(path))
    receipts = [one.enqueue_insert(model().purchase, customer=7, qty=1) for one in (deployment, after)]
    drain(after)
    assert [receipt.status() for receipt in receipts] == ["applied"] * 2
    assert after.nodes.primary("s2").query("SELECT name FROM country") == [("a",)]


def test_a_shard_whose_server_does_not_answer_changes_nothing(path: Path, deployment: Client) -> None:
    before = deployment.log.deployment()
    made = shards.grown(load(path), "s2", "mysql:pymysql://app:x@127.0.0.1:9/shop", ())

    with pytest.raises(PipelineError, match=r"\[shards\.s2\] primary cannot be asked: "):
        shards.take_shard(made)

    assert deployment.log.deployment() == before


def test_a_shard_that_the_file_names_is_not_written_again(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[shards\.s1\] is in .* already; leave --primary out"):
        shards.grown(load(path), "s1", "sqlite://x.sqlite", ())


def test_options_of_a_new_section_need_the_address_of_its_primary(path: Path) -> None:
    result = CliRunner().invoke(command, ["shard", "add", "s2", "--config", str(path), "--print"])

    assert result.exit_code == 2
    assert "go with --primary" in result.output


def test_a_shard_that_owns_nothing_by_the_map_is_taken_out_of_the_file_which_then_says_who_owns_what(
    site: Site, path: Path, deployment: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(options, "Client", lambda config: shards.Client(load(path)))
    runner, remove = CliRunner(), ["shard", "remove", "s1", "--config", str(path)]
    text = path.read_text()

    refused = runner.invoke(command, remove)
    assert (refused.exit_code, path.read_text()) == (1, text)
    assert "'s1' owns the buckets 32-63" in str(refused.exception or refused.output)
    for _ in orders.order_move(deployment, range(32, 64), "s0", "me", keep_s=0).steps():
        pass
    done = runner.invoke(command, remove)

    assert done.exit_code == 0, done.output
    assert tomllib.loads(path.read_text())["shards"] == {
        "s0": {"primary": f"sqlite://{site.folder}/s0.sqlite", "buckets": "0-63"}
    }
    assert "# the old ones" in path.read_text()
    after = shards.Client(load(path))
    assert after.enqueue_insert(model().purchase, customer=7, qty=1).status() == "queued"
    with pytest.raises(WrongDeployment):
        deployment.enqueue_insert(model().purchase, customer=7, qty=1)
    again = runner.invoke(command, remove)
    assert "no shard 's1' is in this deployment" in str(again.exception or again.output)


def test_a_removal_that_is_refused_leaves_the_file_as_it_was(
    path: Path, deployment: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    monkeypatch.setattr(options, "Client", lambda config: shards.Client(load(path)))
    for _ in orders.order_move(deployment, range(32, 64), "s0", "me", keep_s=0).steps():
        pass
    path.write_text(path.read_text().replace('"customer"', '"qty"'))
    text = path.read_text()

    done = CliRunner().invoke(command, ["shard", "remove", "s1", "--config", str(path)])

    assert done.exit_code == 1
    assert "shard_key" in str(done.exception or done.output)
    assert path.read_text() == text
