"""docs/adopting.md is walked as printed: each command is run, and what it prints is what the page says.

After a change of a command's output, `ADOPTING=write pytest tests/applications/test_adopting.py` writes the page anew.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
from support.applications.ground import Ground, ground_of
from support.fixtures import needs_mariadb
from support.web.web2py_server import ROOT, needs_web2py

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

pytestmark = pytest.mark.mariadb

PAGE = ROOT / "docs" / "adopting.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
#: Lines that the page leaves out.
LEFT_OUT = "…"
#: Lines of an output above which the page has its beginning and its end.
LONG = 20
#: What is printed behind each command.
DONE = "the command is done"
#: How long one command may take, s.
PATIENCE_S = 60.0
#: What shows counts of reads.
COUNTS = "pipeline status"
#: What differs in each run, and the width of columns with it.
BY_CHANCE = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?"), "moment"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d+"), "port"),
    (re.compile(r"(?<=behind )\d+-\d+"), "position"),
    (re.compile(r"\b\d{10,16}\b"), "id"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s)\b"), "duration"),
    (re.compile(r"(?<=at=)[\d:]+|(?<=rate=)\d+|(?<=count=)\d+"), "now"),
    (re.compile(r"[ \t]+"), " "),
)


class Step(NamedTuple):
    """A command, and what the page says that it prints."""

    command: str
    printed: str

    @property
    def text(self) -> str:
        return self.saying(self.printed)

    def saying(self, printed: str) -> str:
        """Return the step as the page has it, with another output; of a long one its beginning and its end."""
        lines = printed.splitlines()
        if len(lines) > LONG:
            lines = [*lines[: LONG // 2], LEFT_OUT, *lines[-LONG // 2 :]]
        return "\n".join(["$ " + self.command.replace("\n", "\n> "), *lines, ""])


def steps(page: str) -> list[Step]:
    """Return the commands of the page in their order."""
    found = []
    for block in BLOCK.findall(page):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            command = re.match(r".*(?:\n>.*)*", part)
            assert command
            printed = part[command.end() :].removeprefix("\n").removesuffix("\n")
            found.append(Step(re.sub(r"(?m)^> ?", "", command[0]), printed))
    return found


class Shell:
    """One shell that runs all commands, as a reader's does."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Return what a command prints."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{command}\necho; echo {DONE}\n")
        self._bash.stdin.flush()
        ends = threading.Timer(PATIENCE_S, os.killpg, (self._bash.pid, signal.SIGKILL))
        ends.start()
        lines = list(takewhile(lambda line: line not in ("", f"{DONE}\n"), iter(self._bash.stdout.readline, None)))
        ends.cancel()
        text = "".join(line.rstrip() + "\n" for line in lines)
        assert self._bash.poll() is None, f"after {PATIENCE_S} s this was not done: {command}\n{text}"
        return re.sub(r"\n{2,}", "\n", text).strip("\n")

    def close(self) -> None:
        self.run("kill $(jobs -p); wait")
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait(20)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Ground]:
    """Four MariaDB servers that know nothing of each other, and a Redis."""
    needs_mariadb()
    with ground_of(tmp_path / "cluster", shards=4) as made:
        yield made


def repository(folder: Path) -> Path:
    """Return a repository of the files as they are here, whatever is committed of them."""
    left = shutil.ignore_patterns(".*", "__pycache__", "docs", "build", "dist")
    shutil.copytree(ROOT, folder, ignore=left)
    own = ("-c", "user.name=walker", "-c", "user.email=walker@example.com")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        subprocess.run(["git", *own, *command], cwd=folder, check=True, timeout=60)
    return folder


@contextmanager
def shell(folder: Path, ground: Ground) -> Iterator[Shell]:
    """Open the shell of somebody who has database servers, a Redis and the address of this repository."""
    [web] = free_ports(1)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "REPOSITORY": str(repository(folder.parent / f"{folder.name}.git")),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "DB0": str(ground.port("s0")),
        "DB1": str(ground.port("s1")),
        "REPLICA": str(ground.port("s2")),
        "NEW": str(ground.port("s3")),
        "PASSWORD": ground.cluster.password,
        "REDIS": str(ground.port("redis")),
        "WEB": str(web),
        "COLUMNS": "110",
    }
    made = Shell(folder, environment)
    try:
        yield made
    finally:
        made.close()


def without_chance(text: str) -> str:
    for pattern, word in BY_CHANCE:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def says(page: str, printed: str) -> bool:
    """Return whether a page says what was printed, but for lines that it leaves out."""
    parts = [re.escape(without_chance(part)) for part in re.split(rf"(?m)^{LEFT_OUT}$", page)]
    return re.fullmatch(r"\n(?:.*\n)*? ?".join(parts), without_chance(printed)) is not None


def printed_by(reader: Shell, step: Step) -> str:
    """Run a step; one that shows counts again, until readers have published theirs, and a worker's record is old."""
    printed = reader.run(step.command)
    for _ in polls(10) if step.command.startswith(COUNTS) else ():
        if says(step.printed, printed):
            break
        printed = reader.run(step.command)
    return printed


def test_each_command_of_the_page_prints_what_the_page_says(servers: Ground, tmp_path: Path) -> None:
    needs_web2py(here=True)
    (tmp_path / "walk").mkdir()
    page, differs, written = PAGE.read_text(encoding="utf-8"), [], ""

    with shell(tmp_path / "walk", servers) as reader:
        for step in steps(page):
            printed = printed_by(reader, step)
            before, page = page.split(step.text, 1)
            written += before + (step.text if says(step.printed, printed) else step.saying(printed))
            if not says(step.printed, printed):
                differs.append(f"$ {step.command}\n{printed}\n  the page says:\n{step.printed}")

    if os.environ.get("ADOPTING") == "write":
        PAGE.write_text(written + page, encoding="utf-8")
    assert not differs, "\n\n".join(differs)


def test_a_line_of_the_page_that_is_not_what_was_printed_is_seen() -> None:
    found = steps(PAGE.read_text(encoding="utf-8"))

    assert len(found) > 60
    for step in found:
        lines = step.printed.splitlines()
        assert says(step.printed, step.printed.replace(LEFT_OUT, "left out"))
        for at, line in enumerate(lines):
            other = "\n".join([*lines[:at], f"{line}, or not", *lines[at + 1 :]])
            assert line == LEFT_OUT or not says(step.printed, other), (step.command, line)
