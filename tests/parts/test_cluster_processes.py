"""Background processes and their children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clock import polls
from pipeline.devcluster import processes
from pipeline.devcluster.startup import wait_done, wait_ready
from pipeline.devcluster.state import ClusterFailed, Process, Service

FAMILY = ("sh", "-c", "sleep 300 & sleep 300 & echo ready.; wait")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    for name in ("logs", "run"):
        (tmp_path / name).mkdir()
    return tmp_path


def start(directory: Path, *argv: str) -> Process:
    service = Service("family", "worker", argv)
    process = processes.spawn(service, directory)
    wait_ready(directory, [(service, process)], lambda _: None)
    return process


def test_ending_a_process_ends_its_children(directory: Path):
    family = start(directory, *FAMILY)
    assert len(processes.members(family.pid)) == 3

    processes.end([family])

    assert processes.members(family.pid) == []


def test_ending_a_process_that_has_died_ends_the_children_it_left(directory: Path):
    family = start(directory, *FAMILY)
    os.kill(family.pid, signal.SIGKILL)
    assert processes.wait_gone(family, 10)
    assert len(processes.members(family.pid)) == 2

    processes.end([family])

    assert processes.members(family.pid) == []


def test_a_child_that_another_process_has_ended_is_no_zombie_once_anything_is_ended(directory: Path):
    ended, other = start(directory, *FAMILY), start(directory, *FAMILY)
    os.killpg(ended.pid, signal.SIGKILL)
    for _ in polls(10):
        entry = processes.find(ended.pid)
        assert entry is not None
        if not entry.running:
            break

    processes.end([other])

    assert processes.find(ended.pid) is None


def test_a_stopped_process_and_its_children_stand_once_that_was_waited_for(directory: Path):
    family = start(directory, *FAMILY)
    assert not processes.wait_stopped(family, 0)

    processes.send_group(family, signal.SIGSTOP)

    assert processes.wait_stopped(family, 10)
    assert {one.state[0] for one in processes.members(family.pid)} == {"T"}
    processes.end([family])


def test_a_polite_end_lets_the_process_finish(directory: Path):
    process = start(directory, "sh", "-c", "trap 'echo finished; exit' TERM; echo ready.; while sleep 0.1; do :; done")

    processes.end([process], grace_s=10)

    assert processes.log_text(directory, process).split() == ["ready.", "finished"]


def test_a_polite_end_is_not_held_up_by_a_stopped_process(directory: Path):
    family = start(directory, *FAMILY)
    processes.send_group(family, signal.SIGSTOP)

    processes.end([family], grace_s=0.1)

    assert processes.members(family.pid) == []


def test_a_later_process_with_the_same_number_is_left_alone(directory: Path):
    family = start(directory, *FAMILY)
    earlier = replace(family, born="1")

    processes.send_group(earlier, signal.SIGKILL)
    processes.end([earlier])

    assert not processes.is_alive(earlier)
    assert processes.is_alive(family)
    processes.end([family])


def test_a_process_that_ends_too_early_is_reported_with_the_tail_of_its_log(directory: Path):
    with pytest.raises(ClusterFailed) as failed:
        start(directory, "sh", "-c", "echo the disk is full; exit 3")

    assert str(failed.value).startswith("family ended with exit code 3 before it was ready; its log ends with:")
    assert failed.value.log_tail == "the disk is full"


def test_the_words_of_an_earlier_run_do_not_make_a_process_ready(directory: Path):
    processes.end([start(directory, *FAMILY)])

    with pytest.raises(ClusterFailed, match="ended with exit code 0 before it was ready"):
        start(directory, "true")


def test_a_step_that_fails_is_reported_with_its_exit_code(directory: Path):
    process = processes.spawn(Service("step", "step", ("sh", "-c", "echo no; exit 4")), directory)

    with pytest.raises(ClusterFailed, match="step ended with exit code 4; its log ends with:\nno"):
        wait_done(directory, process)


def test_a_missing_program_is_an_error_that_names_it(directory: Path):
    with pytest.raises(ClusterFailed, match="step: /no/such/program cannot be started: No such file"):
        processes.spawn(Service("step", "step", ("/no/such/program",)), directory)


def test_the_process_table_agrees_between_its_two_sources():
    own = processes.find(os.getpid())
    assert own is not None

    listed = {entry.pid: entry for entry in processes._from_ps()}

    assert listed[os.getpid()].group == own.group == os.getpgid(0)


def test_a_zombie_counts_as_ended(directory: Path):
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        entries = (processes.find(pid) for _ in polls(10))
        assert any(entry is not None and not entry.running for entry in entries)
    finally:
        os.waitpid(pid, 0)
