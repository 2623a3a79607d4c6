"""`pipeline check` on real servers: each fault is planted, found by name with what to do about it, and removed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner
from support.servers.admin import Servers, model, servers
from support.servers.check_plants import PLANTS, Plant
from support.servers.proxy import Proxy

from pipeline import cli, clock
from pipeline.admin import check
from pipeline.admin.check import evidence as gathering
from pipeline.admin.check import servers as servers_check
from pipeline.admin.check import surroundings
from pipeline.admin.check.evidence import Finding
from pipeline.admin.observe import Observer
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.oplog.redis.connection import Health
from pipeline.shard.survey import Survey

pytestmark = pytest.mark.mariadb

#: What a healthy cluster without workers, whose Redis may use all memory, is told.
#: The model of these tests has a reference that two shards cannot keep together.
USUAL = {("warning", "maxmemory"), ("warning", "workers"), ("warning", "visit.purchase")}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("check")) as up:
        up.publish()
        for _ in polls(20):
            if kinds(check.check(up.config()).findings) == USUAL:
                break
        yield up


@pytest.fixture(autouse=True)
def no_long_wait_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LISTEN_S", 0.1)


def test_a_healthy_cluster_has_no_error(here: Servers) -> None:
    run = CliRunner().invoke(cli.pipeline, ["check", "--config", str(here.cluster.config)])

    assert run.exit_code == 0, run.output
    assert "3 warnings in 2 shards, 4 nodes, 32 buckets, 2 published tables" in run.output


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_a_planted_fault_is_found_by_name(here: Servers, plant: Plant) -> None:
    here.sql(plant.node, plant.sql)
    try:
        found = check.check(here.config()).findings
    finally:
        here.sql(plant.node, plant.undo)

    match = [f for f in found if f.severity == plant.severity and plant.where in f.where and plant.what in f.what]
    assert match, shown(found)
    assert plant.fix in match[0].fix


def test_a_second_deployment_on_the_same_database_is_found(here: Servers) -> None:
    client = here.client()
    client.publisher.epoch_of(client.publisher.scope_of(0))  # gives this Redis an epoch, if it has none
    client.close()
    before = [f for f in check.check(here.config()).findings if "another Redis" in f.what]
    here.sql("s0", "UPDATE pipeline_watermarks SET epoch = epoch + 9000000000 WHERE bucket = 0")

    try:
        found = [f for f in check.check(here.config()).findings if "another Redis" in f.what]
    finally:
        here.sql("s0", "UPDATE pipeline_watermarks SET epoch = epoch - 9000000000 WHERE bucket = 0")

    assert before == []
    assert [(f.severity, f.where, f.what.split()[0]) for f in found] == [("error", "s0: buckets", "0")]


def test_every_planted_fault_was_removed(here: Servers) -> None:
    for _ in polls(10):
        found = check.check(here.config()).findings
        if kinds(found) == USUAL:
            break

    assert kinds(found) == USUAL, shown(found)


@pytest.mark.parametrize(
    ("setting", "value", "healthy", "place"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "redis: maxmemory-policy"),
        ("appendonly", "no", "yes", "redis: appendonly"),
        ("appendfsync", "no", "everysec", "redis: appendfsync"),
        ("proto-max-bulk-len", "2mb", "512mb", "redis: proto-max-bulk-len"),
        ("maxmemory", "500mb", "0", "broker: [redis] broker_url"),
    ],
)
def test_a_setting_of_redis_is_found_by_name(here: Servers, setting: str, value: str, healthy: str, place: str) -> None:
    with here.redis() as client:
        client.config_set(setting, value)
        try:
            found = check.check(here.config()).findings
        finally:
            client.config_set(setting, healthy)

    assert place in {f.where for f in found}


def test_a_redis_user_that_may_not_write_is_found_and_its_password_is_not_shown(here: Servers) -> None:
    config = here.config()
    config["redis"]["url"] = f"redis://narrow:hush-hush@127.0.0.1:{here.ports['redis']}/0"
    with here.redis() as client:
        client.execute_command(
            "ACL", "SETUSER", "narrow", "on", ">hush-hush", "~*", "+@read", "+@connection", "+info", "+time"
        )
        try:
            found = check.check(config).findings
        finally:
            client.execute_command("ACL", "DELUSER", "narrow")

    assert "redis: writes" in {f.where for f in found}
    assert "ACL SETUSER" in {f.where: f.fix for f in found}["redis: writes"]
    assert "hush-hush" not in shown(found)


@pytest.mark.parametrize(
    ("denied", "place", "severity"), [("xadd", "redis: writes", "error"), ("xtrim", "redis: trim", "warning")]
)
def test_a_command_that_a_log_needs_is_missed_before_the_first_op_misses_it(
    here: Servers, denied: str, place: str, severity: str
) -> None:
    config = here.config()
    config["redis"]["url"] = f"redis://narrow:hush-hush@127.0.0.1:{here.ports['redis']}/0"
    with here.redis() as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">hush-hush", "~pl:*", "+@all", f"-{denied}")
        try:
            found = check.check(config).findings
            left = client.keys("pl:*check*")
        finally:
            client.execute_command("ACL", "DELUSER", "narrow")

    [told] = [one for one in found if one.where == place]
    assert told.severity == severity
    assert "deploy/redis/log.acl" in told.fix
    assert left == [], "what was tried is gone"


def test_servers_that_refuse_are_found_with_the_cure_of_their_own_refusal(here: Servers) -> None:
    config = here.config()
    config["shards"]["s0"]["primary"] = config["shards"]["s0"]["primary"].replace("//root:", "//nobody:hush-hush")
    with here.redis() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            found = check.check(config).findings
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")

    fixes = {f.where: f.fix for f in found}
    assert fixes["redis: writes"].startswith("this Redis is a replica: follow the primary")
    assert fixes["s0"].startswith("correct user and password in [shards.s0]")
    assert "hush-hush" not in shown(found)


def test_a_primary_user_that_may_only_read_is_found_with_the_grant_it_needs(here: Servers) -> None:
    config = here.config()
    config["shards"]["s0"]["primary"] = config["shards"]["s0"]["primary"].replace("//root:", "//reader:")

    found = check.check(config).findings

    [denied] = [f for f in found if "may not" in f.what]
    assert denied.nodes == ("s0",)
    assert "INSERT, UPDATE, DELETE" in denied.what
    assert denied.fix == "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `shop`.* TO 'reader'@'127.0.0.1'"


def test_a_primary_user_that_may_not_see_triggers_is_found_with_the_grant_it_needs(here: Servers) -> None:
    config = here.config()
    rights = "SELECT, INSERT, UPDATE, DELETE"
    here.sql("s0", f"CREATE USER narrow@'127.0.0.1' IDENTIFIED BY 'x'; GRANT {rights} ON shop.* TO narrow@'127.0.0.1'")
    try:
        config["shards"]["s0"]["primary"] = re.sub("//[^@]*@", "//narrow:x@", config["shards"]["s0"]["primary"])
        found = [f for f in check.check(config).findings if f.place == "triggers"]
        grant, _, then = found[0].fix.partition("; ")
        here.sql("s0", grant)
        mended = [f for f in check.check(config).findings if f.place == "triggers"]
    finally:
        here.sql("s0", "DROP USER narrow@'127.0.0.1'")

    assert [(f.severity, f.nodes) for f in found] == [("warning", ("s0",))]
    assert "narrow@127.0.0.1 may not see them" in found[0].what
    assert (grant, then) == ("GRANT TRIGGER ON `shop`.* TO 'narrow'@'127.0.0.1'", "then restart workers")
    assert mended == []


def test_a_definition_that_nobody_migrated_is_found(here: Servers) -> None:
    pipeline = here.client()
    db = model()
    db.define_table("voucher")
    pipeline.define_tables(db)
    try:
        found = check.check(here.config()).findings
    finally:
        with here.redis() as client:
            client.hdel(pipeline.log.keys.newest_schemas, "voucher")  # type: ignore[attr-defined]
        pipeline.close()

    assert [f.fix for f in found if f.where == "voucher"] == ["pipeline migrate"]


def test_a_database_that_was_never_migrated_is_one_finding_a_node(here: Servers) -> None:
    config = here.config()
    here.sql("s0", "CREATE DATABASE empty")
    config["shards"]["s0"] = {"primary": config["shards"]["s0"]["primary"].replace("/shop", "/empty")}
    try:
        found = check.check(config).findings
    finally:
        here.sql("s0", "DROP DATABASE empty")

    assert len([f for f in found if f.where == "s0: the pipeline's own tables"]) == 1


def test_clocks_that_differ_are_found(here: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    true_ms = clock.wall_ms
    monkeypatch.setattr(clock, "wall_ms", lambda: true_ms() + 10_000)

    found = check.check(here.config()).findings

    [skewed] = [f for f in found if f.place == "clock"]
    assert skewed.nodes == ("redis", "s0", "s0-r0", "s1", "s1-r0")
    assert "behind" in skewed.what


def test_a_server_that_drops_what_comes_with_another_statement_is_found_and_shown_by_status(here: Servers) -> None:
    config, own = here.config(), f":{here.ports['s0']}"
    with Proxy(here.ports["s0"]) as between:
        between.drops_others = True
        config["shards"]["s0"]["primary"] = config["shards"]["s0"]["primary"].replace(own, f":{between.port}")
        found = check.check(config).findings
        observer = Observer(load(config))
        record = observer.look()
        observer.close()

    assert kinds(found) - USUAL == {("warning", "statements")}, shown(found)
    assert [f.where for f in found if f.place == "statements"] == ["s0: statements"]
    assert [shard.singly for shard in record.shards] == [True, False]


def test_few_buckets_are_found(here: Servers) -> None:
    config = here.config()
    config["pipeline"]["buckets"] = 31

    found = check.check(config).findings

    assert ("warning", "[pipeline] buckets") in kinds(found)


def test_old_servers_and_settings_that_need_a_restart_are_found(here: Servers) -> None:
    evidence = gathering.gather(load(here.config()))
    primary = evidence.nodes["s0"]
    assert isinstance(primary, Survey)
    assert isinstance(evidence.log, Health)
    old_mysql = replace(primary, version="5.7.44-log", variables={**primary.variables, "log_bin": "off"})
    old_mariadb = replace(primary, node="s1", version="10.5.23-MariaDB")
    old = replace(
        evidence,
        nodes={**evidence.nodes, "s0": old_mysql, "s1": old_mariadb},
        log=replace(evidence.log, version="6.2.14"),
    )

    found = [*servers_check.server_findings(old), *surroundings.redis_findings(old)]

    assert {
        ("s0: version", "error"),
        ("s1: version", "error"),
        ("s0: log_bin", "warning"),
        ("redis: version", "error"),
    } <= {(f.where, f.severity) for f in found}


def test_dead_and_silent_servers_are_all_named_and_none_makes_the_command_hang(here: Servers) -> None:
    config = here.config()
    config["redis"]["broker_url"] = "redis://user:hush-hush@127.0.0.1:1/0"
    config["shards"]["s0"]["replicas"] = ["mysql:pymysql://reader:hush-hush@127.0.0.1:1/shop"]
    here.cluster.stop("s1", signal.SIGSTOP)
    try:
        found = check.check(config).findings
    finally:
        here.cluster.stop("s1", signal.SIGCONT)

    silent = {f.where: f.what for f in found if "cannot be asked" in f.what}
    assert set(silent) == {"broker", "s0-r0", "s1"}
    assert "hush-hush" not in shown(found)


def test_every_fault_of_the_configuration_is_printed_at_once_and_no_password(tmp_path: object) -> None:
    path = tmp_path / "pipeline.toml"  # type: ignore[operator]
    path.write_text(
        '[pipeline]\nbuckets = 5000\n[redis]\nurl = "redis://:hush-hush@localhost/0"\ntimeout = 3\n'
        '[shards.s0]\nprimary = "mysql://app:hush-hush@db0/shop"\n'
    )

    run = CliRunner().invoke(cli.pipeline, ["check", "--json", "--config", str(path)])

    assert run.exit_code == 1
    verdict = json.loads(run.output)
    assert verdict["ok"] is False
    assert {f["place"] for f in verdict["findings"]} == {"[pipeline] buckets", "[redis]", "[shards.s0] primary"}
    assert "hush-hush" not in run.output


def kinds(found: list[Finding]) -> set[tuple[str, str]]:
    return {(f.severity, f.place) for f in found}


def shown(found: list[Finding]) -> str:
    return "\n".join(f"{f.severity} {f.where} {f.what} => {f.fix}" for f in found)
