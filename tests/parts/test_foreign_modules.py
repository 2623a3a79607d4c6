"""What is in the working directory, or where others may write, is not imported: Celery looks there first.

A web user's files in the folder of a worker ran as the worker.
"""

from __future__ import annotations

import grp
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import clock
from pipeline.admin.check import surroundings
from pipeline.admin.check.evidence import Evidence
from pipeline.cli import pipeline
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.owners import stranger, unsafe_import
from workers.threads import Child

ROOT = Path(__file__).parents[2]
CELERY = Path(sys.executable).with_name("celery")
PIPELINE = CELERY.with_name("pipeline")
TIMEOUT_S = 60
#: A port where nothing answers, so that a worker gets as far as its own log.
CONFIGURATION = """
[redis]
url = "redis://127.0.0.1:1/0"
[shards.s0]
primary = "sqlite:///{folder}/s0.sqlite"
[spool]
enabled = false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with two modules of somebody else's, and the pipeline's configuration."""
    (tmp_path / "celeryconfig.py").write_text("task_default_queue = 'theirs'\n")
    (tmp_path / "pipeline.py").write_text("print('their pipeline runs')\n")
    (tmp_path / "pipeline.toml").write_text(CONFIGURATION.format(folder=tmp_path))
    return tmp_path


#: Modules that a worker imports of Python, of its libraries and of ours, at its start or later.
WANTED = re.findall(
    r"\w+",
    "redis hiredis pymysql pydal msgspec json decimal kombu billiard vine celery click rich flower tornado "
    "uuid typing sitecustomize usercustomize flowerconfig pipeline celeryconfig threading socket logging sqlite3 tasks",
)


@pytest.fixture
def planted(folder: Path) -> Path:
    """The working directory, with a module of each name that leaves a trace of who ran it."""
    trace = f"import os\nopen({str(folder / 'trace-')!r} + __name__ + '-' + str(os.getuid()), 'w').close()\n"
    for name in WANTED:
        (folder / f"{name}.py").write_text(f"{trace}raise ImportError({name!r})\n")
    return folder


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("trace-*"))


def open_to(libraries: Path, whose: str) -> str:
    """Let others write a folder; return how they are called."""
    if whose == "every user":
        libraries.chmod(0o777)
    elif whose == "the folder above":
        libraries.parent.chmod(0o777)
        return "every user"
    elif os.geteuid() != 0:
        pytest.skip("only root can give a folder to another account")
    elif whose == "another user":
        os.chown(libraries, 65534, -1)
        return "user nobody"
    else:
        os.chown(libraries, -1, grp.getgrnam("www-data").gr_gid)
        libraries.chmod(0o2775)
        return "group www-data"
    return whose


def start(folder: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PIPELINE_CONFIG": str(folder / "pipeline.toml"), "PYTHONPATH": str(ROOT), **more}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output(folder: Path, *command: str, **more: str) -> str:
    with start(folder, *command, **more) as process:
        try:
            return process.communicate(timeout=TIMEOUT_S)[0]
        finally:
            process.kill()


def findings(folder: Path) -> list[tuple[str, str, str]]:
    settings, away = load(folder / "pipeline.toml"), PipelineError("not asked")
    evidence = Evidence(settings, Topology(settings), away, away, (), "", None, {}, {})
    return [(one.place, one.what, one.fix) for one in surroundings.foreign_findings(evidence)]


def test_celery_takes_our_settings_and_our_package(planted: Path) -> None:
    said = output(planted, str(CELERY), "-A", "workers", "report")

    assert traces(planted) == []
    assert "task_default_queue: 'shard.s0'" in said
    assert "theirs" not in said
    assert "their pipeline runs" not in said


@pytest.fixture
def lines_of_a_worker(planted: Path) -> Iterator[list[str]]:
    """What a worker says until it has started its threads."""
    with start(planted, str(CELERY), "-A", "workers", "worker", "-c", "1", "-P", "solo", "-l", "INFO") as process:
        assert process.stdout is not None
        deadline, lines = clock.Deadline(TIMEOUT_S), []
        for line in process.stdout:
            lines.append(line)
            if "Cannot connect to" in line or deadline.passed:  # all of it is imported by then
                break
        process.kill()
        yield lines


def test_a_command_imports_none_of_the_modules_in_its_working_directory(planted: Path) -> None:
    assert "spool" in output(planted, str(PIPELINE), "spool", "status")

    assert traces(planted) == []


def test_python_m_imports_no_more_from_its_working_directory_once_the_pipeline_itself_is_there(planted: Path) -> None:
    for name in set(WANTED) - {"rich", "click"}:
        (planted / f"{name}.py").unlink()

    assert "spool" in output(planted, sys.executable, "-m", "pipeline", "spool", "status")

    assert traces(planted) == []


def test_what_celery_imports_later_is_not_of_the_working_directory(planted: Path) -> None:
    late = "import workers; workers.app.loader.import_from_cwd('flowerconfig')"

    assert "No module named 'flowerconfig'" in output(planted, sys.executable, "-P", "-c", late)

    assert traces(planted) == []


def test_settings_of_celery_that_come_first_in_python_s_path_are_not_ours(folder: Path) -> None:
    said = output(folder, str(CELERY), "-A", "workers", "report", PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")

    assert "task_default_queue: 'shard.s0'" in said
    assert "theirs" not in said


def test_a_configuration_that_others_may_write_has_to_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PIPELINE_CONFIG", raising=False)
    folder.chmod(0o1777)
    (folder / "pipeline.toml").chmod(0o666)

    found = CliRunner().invoke(pipeline, ["spool", "status"])
    named = CliRunner().invoke(pipeline, ["spool", "status", "--config", "pipeline.toml"])

    assert "pipeline.toml may be written by every user; if you mean it, name it: --config" in str(found.exception)
    assert "[spool] is not enabled here" in str(named.exception)


@pytest.mark.parametrize("whose", ["every user", "another user", "a group", "the folder above"])
def test_a_folder_of_python_s_path_that_others_may_write_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    libraries = tmp_path / "above" / "libraries"
    libraries.mkdir(parents=True)
    assert unsafe_import() is None

    who = open_to(libraries, whose)
    monkeypatch.syspath_prepend(libraries)

    assert f"Python imports from {libraries}, where {who} may put modules" in (unsafe_import() or "")


@pytest.mark.parametrize("command", [(str(CELERY), "-A", "workers", "report"), (str(PIPELINE), "spool", "status")])
def test_nothing_starts_where_python_imports_from_a_folder_that_others_may_write(
    folder: Path, command: tuple[str, ...]
) -> None:
    (folder / "libraries").mkdir()
    (folder / "libraries").chmod(0o777)

    said = output(folder, *command, PYTHONPATH=f"{ROOT}{os.pathsep}{folder / 'libraries'}")

    assert f"Python imports from {folder / 'libraries'}, where every user may put modules" in said
    assert "PYTHONSAFEPATH=1 and WorkingDirectory=/" in said
    assert "shard.s0" not in said
    assert "[spool]" not in said


def test_a_folder_of_which_others_are_only_readers_is_no_stranger_s(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)

    assert stranger(tmp_path / "theirs") is None
    assert stranger(tmp_path / "theirs" / "not there yet" / "redis.py") is None
    assert stranger(Path("/tmp")) == "every user"  # the bit that lets each remove only its own lets each make more


def test_a_worker_says_what_it_found_and_which_settings_it_uses(folder: Path, lines_of_a_worker: list[str]) -> None:
    said = "".join(lines_of_a_worker)

    assert f"event=settings_of_celery path={ROOT / 'celeryconfig.py'}" in said
    assert f"event=module_not_used path={folder / 'celeryconfig.py'}" in said
    assert f"event=module_not_used path={folder / 'pipeline.py'}" in said
    assert traces(folder) == []


def test_what_a_worker_starts_is_ours(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    child = Child(str(folder / "pipeline.toml"))

    child.start("pipeline", "--version")
    assert child._process is not None
    child._process.wait(TIMEOUT_S)

    assert "pipeline, version" in capfd.readouterr().out


def test_the_command_of_the_documents_starts_our_workers_beside_a_package_of_that_name(folder: Path) -> None:
    (folder / "workers").mkdir()
    (folder / "workers" / "__init__.py").write_text("from celery import Celery\napp = Celery('their workers')\n")

    theirs = output(folder, str(CELERY), "-A", "workers", "report")
    ours = output(folder, str(CELERY), "--workdir=/", "-A", "workers", "report")

    assert "shard.s0" not in theirs
    assert "task_default_queue: 'shard.s0'" in ours


def test_check_names_a_package_that_would_be_started_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "workers").mkdir()
    (folder / "workers" / "__init__.py").touch()

    found = {place: (what, fix) for place, what, fix in findings(folder)}

    what, fix = found["workers"]
    assert what.startswith(f"is {folder / 'workers' / '__init__.py'} in this folder")
    assert fix == f"PIPELINE_CONFIG={folder / 'pipeline.toml'} celery --workdir=/ -A workers worker"
    assert found["pipeline"][0].startswith(f"is {folder / 'pipeline.py'} in this folder")


def test_check_finds_nothing_where_the_modules_are_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    assert findings(folder) == []


def test_a_plain_folder_named_workers_is_no_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "workers").mkdir()

    assert [place for place, _, _ in findings(folder)] == ["pipeline"]
