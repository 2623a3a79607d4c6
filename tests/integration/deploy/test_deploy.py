"""The units, compose file and configuration of deploy/ are accepted by what reads them, and mean what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.servers.deploying import DEPLOY, needs, run

from pipeline.config import sections, settings

UNITS = ("pipeline-worker@s0.service", "pipeline-worker.service", "pipeline-flower.service")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of the units whose program exists here."""
    for file in (DEPLOY / "systemd").glob("pipeline*.[st]*"):
        (tmp_path / file.name).write_text(file.read_text().replace("/opt/pipeline/bin/celery", "/bin/true"))
    return tmp_path


@needs("systemd-analyze")
def test_systemd_accepts_the_units(units: Path) -> None:
    files = [str(units / name) for name in (*UNITS, "pipeline.target")]

    done = run("systemd-analyze", "verify", "--man=no", *files)

    assert done.stdout + done.stderr == ""


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_locked_in(unit: str, units: Path) -> None:
    # 100 is a service that may do everything; systemd calls anything below 20 OK.
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(units / unit))


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_never_gives_a_service_up(unit: str) -> None:
    file = unit.replace("@s0", "@")
    lines = (DEPLOY / "systemd" / file).read_text().splitlines()

    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(lines)


def test_compose_starts_every_service_again_but_migrate() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    services = text[text.index("\nservices:") : text.index("\nvolumes:")]

    assert "x-service: &service\n  restart: unless-stopped\n" in text
    assert re.findall(r"restart: .*", services) == ['restart: "no"']
    found = re.findall(r"^  ([a-z0-9-]+):\n((?:    .*\n|\n)+)", services, re.MULTILINE)
    assert {"redis-log", "redis-broker", "worker-s0", "worker-s1", "flower", "migrate"} <= {name for name, _ in found}
    for name, body in found:
        assert re.search(r"<<: \*(redis|mariadb|worker|pipeline)$", body, re.MULTILINE), name


def compose() -> list[str] | None:
    """Return the compose command of this machine: the plug-in, else the stand-alone program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False).returncode
        ):
            return command
    return None


def test_compose_accepts_the_compose_file(secrets: SimpleNamespace) -> None:
    command = compose()
    if command is None:
        pytest.skip("neither the docker compose plug-in nor docker-compose is installed")
    config = [*command, "-f", str(DEPLOY / "compose.yaml"), "--env-file"]

    good = subprocess.run([*config, secrets.target / ".env", "config", "-q"], timeout=60, check=False)
    bad = subprocess.run([*config, "/dev/null", "config", "-q"], timeout=60, check=False, capture_output=True)

    assert good.returncode == 0
    assert bad.returncode != 0, "a missing password must stop compose"


def test_prepare_never_overwrites_a_password(secrets: SimpleNamespace) -> None:
    before = (secrets.target / ".env").read_bytes()

    again = subprocess.run([DEPLOY / "prepare.sh", secrets.target], capture_output=True, timeout=30, check=False)

    assert again.returncode == 1
    assert (secrets.target / ".env").read_bytes() == before
    assert (secrets.target / ".env").stat().st_mode & 0o077 == 0
    assert (secrets.target / "secrets").stat().st_mode & 0o077 == 0
    assert "${" not in "".join(file.read_text() for file in (secrets.target / "secrets").iterdir())


def test_the_example_configuration_is_toml_with_the_sections_of_the_manual() -> None:
    example = tomllib.loads((DEPLOY / "pipeline.example.toml").read_text())

    assert set(example) == {"pipeline", "redis", "shards", "tables", "reads", "apply", "spool", "log", "metrics"}


def test_the_example_configuration_is_accepted_and_shows_every_key(secrets: SimpleNamespace) -> None:
    path = DEPLOY / "pipeline.example.toml"

    loaded = settings.load(path, environ=secrets.words)

    shown = set(re.findall(r"^(?:# )?([a-z_]+) = ", path.read_text(), re.MULTILINE))
    records = (sections.RedisSettings, sections.ShardSettings, sections.TableSettings, sections.ReadSettings)
    more = (sections.ApplySettings, sections.SpoolSettings, sections.LogSettings, sections.MetricsSettings)
    # a replica's load is written beside its address
    keys = {field.name for record in (*records, *more) for field in fields(record)} - {"name", "loads"}
    assert shown == keys
    assert list(loaded.shards) == ["s0", "s1"]
