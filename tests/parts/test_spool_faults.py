"""Faults of the spool's file are told apart, with what to do, and a host goes on by itself once the cause is gone."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.spooled import FORK, payloads, shared

from pipeline.errors import PipelineFull, SpoolUnavailable
from pipeline.spool import Spool, sqlite_file
from pipeline.spool.turns import HostLock

# others that hold the file ----------------------------------------------------------------------------------------


def test_a_process_that_stands_still_in_its_turn_is_named_and_its_death_lets_the_next_one_in(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    spool.add({3: [b"a"]})
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.2)
    ready = FORK.Event()
    holder = FORK.Process(target=_stand_still, args=(ready,))
    holder.start()
    assert ready.wait(20)

    with pytest.raises(SpoolUnavailable, match=r"kept its turn.*fuser .*app\.spool\.turn"):
        spool.add({3: [b"b"]})
    holder.kill()
    holder.join(20)
    monkeypatch.setattr(sqlite_file, "BUSY_S", 20)

    spool.add({3: [b"c"]})
    assert payloads(spool, 3) == [b"a", b"c"]


def _stand_still(ready: Any) -> None:
    [spool] = shared
    with spool.file.alone():
        ready.set()
        os.read(os.pipe()[0], 1)


def test_a_program_of_somebody_else_that_locks_the_file_is_told_from_processes_of_the_pipeline(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.2)
    spool.add({3: [b"a"]})
    other = sqlite3.connect(spool.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(SpoolUnavailable, match="not of the pipeline"):
        spool.add({3: [b"b"]})
    other.execute("ROLLBACK")

    spool.add({3: [b"c"]})
    assert payloads(spool, 3) == [b"a", b"c"]


# room and rights --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_from_a_full_spool(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    def fill() -> None:
        while True:
            spool.add({3: [b"x" * 50_000]})

    with pytest.raises(PipelineFull, match=r"is at \[spool\] max_mb = 1"):
        fill()
    monkeypatch.setattr(sqlite_file.SpoolFile, "_free_bytes", lambda self: 0)
    with pytest.raises(PipelineFull, match=r"the disk of the spool .*app\.spool is full"):
        fill()


@pytest.mark.parametrize(("code", "error", "text"), [
    (errno.ENOSPC, PipelineFull, "nothing was queued"),
    (errno.EROFS, SpoolUnavailable, "Read-only file system; let this process write"),
    (errno.EACCES, SpoolUnavailable, "Permission denied; let this process write"),
])  # fmt: skip
def test_a_file_that_cannot_be_opened_for_a_while_says_why_and_takes_ops_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], text: str
):
    real = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if Path(path) == spool.path:
            raise OSError(code, os.strerror(code))
        return real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(error, match=text) as raised:
            spool.add({3: [b"a"]})
    assert raised.value.numbered == {}

    spool.add({3: [b"b"]})
    assert payloads(spool, 3) == [b"b"]


def test_an_op_whose_sync_fails_is_in_doubt_under_its_number(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    [(producer, _)] = spool.add({3: [b"a"]}).values()

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(SpoolUnavailable, match="on purpose") as raised:
            spool.add({3: [b"b"]})

    assert raised.value.numbered == {3: (producer, 2)}
    spool.add({3: [b"b"]}, numbered=raised.value.numbered)
    assert payloads(spool, 3) == [b"a", b"b"]


# removed and damaged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", ["file", "file and journal", "all"])
def test_what_waited_in_a_file_that_was_removed_goes_on_in_the_next_one(spool: Spool, removed: str):
    before = spool.add({3: [b"a", b"b"]})[3]
    _remove(spool, removed)

    after = spool.add({3: [b"c"]})[3]

    assert spool.waiting()
    assert payloads(spool, 3) == [b"a", b"b", b"c"]
    assert [op[2:4] for op in spool.head()][:2] == [before, (before[0], 2)]
    assert after[0] != before[0]  # what the removed file had given is never given again


def test_what_was_taken_over_from_a_removed_file_is_not_taken_over_by_the_next_process(spool: Spool):
    with FORK.Pool(1) as pool:
        pool.apply(_open_and_add, (b"theirs",))
        spool.add({3: [b"mine"]})
        _remove(spool, "file")
        spool.add({3: [b"later"]})
        spool.sent(spool.head(), 101)
        assert spool.settle()

        assert pool.apply(_open_and_add, (b"new",)) == [b"new"]
        pool.apply(_close)  # SQLite removes a journal by its name: here that of the new file

    assert Path(f"{spool.path}-wal").exists()
    assert payloads(Spool(spool.path, 1_000_000), 3) == [b"new"]


def _open_and_add(payload: bytes) -> list[bytes]:
    [spool] = shared
    spool.add({3: [payload]})
    return payloads(spool, 3)


def _close() -> None:
    shared[0].close()


def _remove(spool: Spool, what: str) -> None:
    for path in spool.path.parent.iterdir():
        if what == "all" or path == spool.path or (what == "file and journal" and path.name.endswith("-wal")):
            path.unlink()


def test_a_damaged_file_is_moved_aside_and_named(spool: Spool, caplog: pytest.LogCaptureFixture):
    spool.add({3: [b"a"]})
    spool.close()
    spool.path.write_bytes(b"nothing that SQLite knows" * 300)

    spool.add({3: [b"b"]})

    [aside] = spool.path.parent.glob("app.spool.damaged-*")
    assert aside.read_bytes() == b"nothing that SQLite knows" * 300
    assert str(aside) in caplog.text
    assert payloads(spool, 3) == [b"b"]


def test_what_can_be_read_of_a_damaged_file_goes_on(spool: Spool, caplog: pytest.LogCaptureFixture):
    ops = [b"%d " % n + b"x" * 2000 for n in range(200)]
    spool.add({3: ops})
    spool.close()
    with spool.path.open("r+b") as file:
        file.seek(60 * 4096)
        file.write(b"\xff" * 4096 * 20)

    with pytest.raises(SpoolUnavailable, match=r"damaged .*try again"):
        spool.head()
    found = payloads(spool, 3)

    assert 0 < len(found) < 200
    assert found == ops[: len(found)]
    assert len(list(spool.path.parent.glob("app.spool.damaged-*[0-9]"))) == 1
    assert "not all of the spool" in caplog.text
    spool.add({3: [b"later"]})
    assert spool.waiting()


def test_the_marker_is_made_anew_where_a_power_failure_took_it(spool: Spool):
    spool.add({3: [b"a"]})
    Path(f"{spool.path}.waiting").unlink()

    again = Spool(spool.path, 1_000_000)
    again.head()

    assert again.waiting()


def test_a_lock_in_a_folder_that_is_not_there_is_not_free(tmp_path: Path):
    with HostLock(tmp_path / "none" / "app.spool.reserving").tried() as ours:
        assert not ours
