"""`pipeline migrate` on real servers: valid SQL, twice is once, and it may be killed or fail anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydal import Field
from support.servers.admin import Servers, model, servers

from pipeline import cli
from pipeline.admin.migration import migrate, plan_of
from pipeline.client import Client
from pipeline.errors import PipelineError

pytestmark = pytest.mark.mariadb

KILL = """
import os, signal, sys
from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.oplog.doorbell import SilentBell
steps = iter(range(1_000_000))
migrate(Client(sys.argv[1], bell=SilentBell()),
        lambda step: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == int(sys.argv[2]) else None)
"""
_numbers = count(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("migrate"), replicas=0) as up:
        yield up


@pytest.fixture
def fresh(here: Servers) -> dict[str, Any]:
    """A configuration of two empty databases and a log of its own."""
    return empty(here)


def test_the_plan_is_sql_that_a_fresh_server_takes_and_that_leaves_nothing_to_do(
    here: Servers, fresh: dict[str, Any], tmp_path: Path
) -> None:
    del fresh["shards"]["s1"]
    pipeline = published(here, fresh)

    run = CliRunner().invoke(cli.pipeline, ["migrate", "--plan", "--config", str(written(fresh, tmp_path))])

    assert run.exit_code == 0, run.output
    assert "CREATE UNIQUE INDEX `uk_purchase_customer_day`" in run.output
    here.sql("s0", f"USE {fresh['redis']['prefix']}; {run.output}")
    assert plan_of(pipeline).steps == []
    pipeline.close()


def test_the_commands_say_what_cannot_be_done_and_withdraw_a_definition(
    here: Servers, fresh: dict[str, Any], tmp_path: Path
) -> None:
    db = model()
    db.define_table("place", Field("at", "geometry()"))
    pipeline = here.client(fresh)
    pipeline.define_tables(db)
    config = ["--config", str(written(fresh, tmp_path))]

    plan, refused = command("migrate", "--plan", *config), command("migrate", *config)
    listed, forgotten = command("tables", "list", *config), command("tables", "forget", "place", *config)
    last = command("migrate", "--json", *config)

    assert plan.exit_code == 1
    assert "-- cannot be done: s1: place: place.at: a column of type 'geometry()' cannot be created here" in plan.output
    assert refused.exit_code == 1
    assert len(refused.exception.faults) == 2  # type: ignore[union-attr]
    assert [line.split()[0] for line in listed.output.splitlines()] == ["place", "purchase", "visit"]
    assert forgotten.exit_code == 0
    assert last.output == '{"statements": 0, "faults": []}\n'
    pipeline.close()


def test_the_plan_shows_where_the_nodes_differ_column_by_column(
    here: Servers, fresh: dict[str, Any], tmp_path: Path
) -> None:
    pipeline, config = published(here, fresh), ["--config", str(written(fresh, tmp_path))]
    migrate(pipeline)
    by_hand = "ALTER TABLE purchase MODIFY note VARCHAR(200), ADD COLUMN extra INT"
    here.sql("s1", f"USE {fresh['redis']['prefix']}; {by_hand}")

    plan, as_json = command("migrate", "--plan", *config), command("migrate", "--plan", "--json", *config)

    assert plan.output == (
        "-- the nodes differ:\n"
        "--   purchase.note   varchar(100) on s0, varchar(200) on s1\n"
        "--   purchase.extra  missing on s0, int on s1\n\n"
    )
    assert json.loads(as_json.output)["drift"] == [
        "purchase.note   varchar(100) on s0, varchar(200) on s1",
        "purchase.extra  missing on s0, int on s1",
    ]
    pipeline.close()


def test_planning_changes_nothing(here: Servers, fresh: dict[str, Any]) -> None:
    pipeline = published(here, fresh)

    steps = plan_of(pipeline).steps

    assert steps
    assert tables(here, "s0", fresh) == []
    pipeline.close()


def test_migrating_twice_changes_nothing(here: Servers, fresh: dict[str, Any]) -> None:
    pipeline = published(here, fresh)
    first = migrate(pipeline)
    before = {shard: definitions(here, shard, fresh) for shard in ("s0", "s1")}

    second = migrate(pipeline)

    assert (first > 0, second) == (True, 0)
    assert {shard: definitions(here, shard, fresh) for shard in ("s0", "s1")} == before
    pipeline.close()


@pytest.mark.parametrize("step", [0, 4, 9, 11, 12, 16, 24, 25])
def test_a_killed_migrate_can_be_run_again(here: Servers, fresh: dict[str, Any], tmp_path: Path, step: int) -> None:
    whole = empty(here)
    other = published(here, whole)
    migrate(other)
    other.close()
    pipeline = published(here, fresh)

    path = written(fresh, tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILL, str(path), str(step)], timeout=60, check=False)
    unfinished = plan_of(pipeline).steps
    migrate(pipeline)

    assert killed.returncode == -signal.SIGKILL
    assert unfinished
    for shard in ("s0", "s1"):
        assert definitions(here, shard, fresh) == definitions(here, shard, whole)
    pipeline.close()


def test_a_failure_names_its_statement_and_the_shards_that_are_finished(here: Servers, fresh: dict[str, Any]) -> None:
    doubled = "CREATE TABLE purchase (id BIGINT PRIMARY KEY AUTO_INCREMENT, customer INT, day DATE)"
    database = fresh["redis"]["prefix"]
    here.sql("s1", f"USE {database}; {doubled}; INSERT INTO purchase VALUES (1, 7, NOW()), (2, 7, NOW())")
    pipeline = published(here, fresh)

    with pytest.raises(PipelineError) as raised:
        migrate(pipeline)

    message = str(raised.value)
    assert "s1: purchase: unique index on customer, day: Duplicate entry" in message
    assert "1 could not be done" in message
    assert "visit" in tables(here, "s1", fresh)
    here.sql("s1", f"USE {database}; DELETE FROM purchase WHERE id = 2")
    migrate(pipeline)
    assert plan_of(pipeline).steps == []
    pipeline.close()


def test_a_unique_key_that_is_configured_later_gets_its_index(here: Servers, fresh: dict[str, Any]) -> None:
    pipeline = published(here, fresh)
    migrate(pipeline)
    pipeline.close()
    fresh["tables"]["visit"] = {"unique": [["note"]]}
    pipeline = published(here, fresh)

    steps = plan_of(pipeline).steps

    assert [(step.shard, step.what) for step in steps] == [
        ("s0", "visit: unique index on note"),
        ("s1", "visit: unique index on note"),
    ]
    assert migrate(pipeline) == 2
    assert plan_of(pipeline).steps == []
    pipeline.close()


def test_a_dead_primary_stops_it_before_anything_is_changed(here: Servers, fresh: dict[str, Any]) -> None:
    fresh["shards"]["s1"]["primary"] = "mysql:pymysql://root@127.0.0.1:1/away"
    pipeline = published(here, fresh)

    with pytest.raises(PipelineError, match="s1"):
        migrate(pipeline)

    assert tables(here, "s0", fresh) == []
    pipeline.close()


def test_a_bucket_that_another_shard_holds_is_refused(here: Servers, fresh: dict[str, Any]) -> None:
    pipeline = published(here, fresh)
    migrate(pipeline)
    pipeline.close()
    fresh["shards"]["s0"]["buckets"], fresh["shards"]["s1"]["buckets"] = "16-31", "0-15"
    pipeline = published(here, fresh)

    with pytest.raises(PipelineError, match=r"\[shards\.s0\] has the buckets 16-31 .* but 0-15"):
        migrate(pipeline)

    pipeline.close()


def test_each_step_is_told_before_it_is_taken(here: Servers, fresh: dict[str, Any]) -> None:
    pipeline = published(here, fresh)
    planned, told = plan_of(pipeline).steps, list[object]()

    migrate(pipeline, told.append)

    assert told == planned
    pipeline.close()


def command(*words: str) -> Any:
    return CliRunner().invoke(cli.pipeline, words)


def empty(here: Servers) -> dict[str, Any]:
    name = f"fresh{next(_numbers)}"
    config = here.config()
    config["redis"]["prefix"] = name
    for shard in ("s0", "s1"):
        here.sql(shard, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        config["shards"][shard]["primary"] = config["shards"][shard]["primary"].replace("/shop", f"/{name}")
    return config


def published(here: Servers, config: dict[str, Any]) -> Client:
    pipeline = here.client(config)
    pipeline.define_tables(model())
    return pipeline


def written(config: dict[str, Any], folder: Path) -> Path:
    """Write a configuration as TOML: JSON's texts and lists are TOML's too."""
    import json

    def section(name: str, values: dict[str, Any]) -> str:
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        inner = {key: value for key, value in values.items() if isinstance(value, dict)}
        head = f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
        return head + "".join(section(f"{name}.{key}", value) for key, value in inner.items())

    path = folder / "pipeline.toml"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("".join(section(name, values) for name, values in config.items()))
    return path


def tables(here: Servers, shard: str, config: dict[str, Any]) -> list[str]:
    return here.sql(shard, f"USE {config['redis']['prefix']}; SHOW TABLES").split()[1:]


def definitions(here: Servers, shard: str, config: dict[str, Any]) -> list[str]:
    """Return how each table is made, and the buckets."""
    database = config["redis"]["prefix"]
    found = [here.sql(shard, f"USE {database}; SHOW CREATE TABLE {name}") for name in tables(here, shard, config)]
    return [*found, here.sql(shard, f"SELECT * FROM {database}.pipeline_watermarks")]
