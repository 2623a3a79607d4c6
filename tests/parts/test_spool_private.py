"""A spool's files are its users' own: no link is followed, no stranger's file used, nothing left of what was sent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.sandbox.spooled import payloads

from pipeline.errors import SpoolUnavailable
from pipeline.spool import Spool, turns

NOBODY = 65534
#: Every file of a spool that this process opens by its name.
FILES = ("", "-wal", "-shm", "-journal", ".turn")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")


def spool_in(folder: Path, mode: int = 0o700) -> Spool:
    folder.mkdir()
    folder.chmod(mode)
    return Spool(folder / "app.spool", 1_000_000)


def modes(spool: Spool) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in spool.path.parent.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(("folder_mode", "mode"), [(0o700, 0o600), (0o755, 0o600), (0o770, 0o660)])
def test_the_folder_says_who_may_read_and_write_the_files_whatever_the_umask(
    tmp_path: Path, umask: int, folder_mode: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        spool = spool_in(tmp_path / "own", folder_mode)
        spool.add({3: [b"a"]})
        with spool.lock().tried(), spool.reserve.lock().tried():
            assert modes(spool) == {mode}
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_in_which_every_user_may_write_is_refused_with_the_line_to_write(tmp_path: Path, mode: int) -> None:
    spool = spool_in(tmp_path / "open", mode)

    with pytest.raises(SpoolUnavailable, match=r"every user of this machine may write in .*/open; .*\[spool\] path = "):
        spool.add({3: [b"a"]})

    assert list(spool.path.parent.iterdir()) == []
    with spool.lock().tried() as ours:
        assert not ours


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "folder"])
def test_what_somebody_put_in_the_place_of_a_file_is_refused_by_name_and_not_written(
    tmp_path: Path, name: str, kind: str
) -> None:
    spool, victim = spool_in(tmp_path / "own"), tmp_path / "victim"
    victim.write_text("precious")
    planted = Path(f"{spool.path}{name}")
    if kind.startswith("link"):
        planted.symlink_to(victim if kind == "link" else tmp_path / "made by us")
    elif kind == "hard link":
        planted.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.mkdir()
    if name.startswith("-"):  # SQLite's own, beside a file that is there
        spool.path.touch(0o600)

    with pytest.raises(SpoolUnavailable, match=f"{planted} is a link, or no file; see who made it"):
        spool.add({3: [b"a"]})

    assert victim.read_text() == "precious"
    assert not (tmp_path / "made by us").exists()


def test_a_link_in_the_place_of_the_marker_is_removed_and_not_followed(tmp_path: Path) -> None:
    spool, victim = spool_in(tmp_path / "own"), tmp_path / "victim"
    victim.write_text("precious")
    Path(f"{spool.path}.waiting").symlink_to(victim)
    spool.add({3: [b"a"]})
    spool.sent(spool.head(), 101)

    assert spool.settle()

    assert not spool.waiting()
    assert victim.read_text() == "precious"


@needs_root
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_user_is_refused_by_name(tmp_path: Path, name: str) -> None:
    spool = spool_in(tmp_path / "own")
    spool.path.touch(0o600)
    planted = Path(f"{spool.path}{name}")
    planted.touch(0o600)
    os.chown(planted, NOBODY, NOBODY)

    with pytest.raises(SpoolUnavailable, match=f"{planted} is of user nobody"):
        spool.add({3: [b"a"]})


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_every_user_could_have_written_is_refused(tmp_path: Path, name: str) -> None:
    spool = spool_in(tmp_path / "own")
    spool.path.touch(0o600)
    planted = Path(f"{spool.path}{name}")
    planted.touch()
    planted.chmod(0o666)

    with pytest.raises(SpoolUnavailable, match=f"{planted} may be written by every user"):
        spool.add({3: [b"a"]})


@needs_root
def test_root_uses_no_folder_of_another_user_and_says_as_whom_to_run_it(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "theirs", 0o770)
    os.chown(spool.path.parent, NOBODY, NOBODY)

    with pytest.raises(
        SpoolUnavailable, match="is of user nobody, who could lead root astray; run this as user nobody"
    ):
        spool.add({3: [b"a"]})


@pytest.mark.parametrize(
    ("mode", "owner", "group", "fault"),
    [
        (0o700, 1001, 1001, None),  # its own
        (0o755, 0, 0, None),  # root's
        (0o2770, 1002, 33, None),  # another user's, shared with its group
        (0o2770, 1002, 34, "is of user 1002"),  # of a group that it is not in
        (0o2750, 1002, 33, "is of user 1002"),  # its group may only read
        (0o703, 1001, 1001, "every user"),
    ],
)
def test_a_folder_is_its_user_s_root_s_or_shared_with_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, fault: str | None
) -> None:
    found = os.stat_result((stat.S_IFDIR | mode, 1, 1, 2, owner, group, 0, 0, 0, 0))
    monkeypatch.setattr(turns.os, "stat", lambda path: found)
    monkeypatch.setattr(turns.os, "geteuid", lambda: 1001)
    monkeypatch.setattr(turns.os, "getegid", lambda: 1001)
    monkeypatch.setattr(turns.os, "getgroups", lambda: [33])

    said = turns.folder_fault(tmp_path / "app.spool")

    assert (said is None) if fault is None else (said is not None and fault in said[0])


def test_nothing_is_left_of_what_was_sent_or_forgotten(spool: Spool) -> None:
    spool.add({3: [b"a secret %d" % nth for nth in range(300)]})
    spool.add({4: [b"a secret that is kept"]}, kept=True)
    assert b"a secret" in everything(spool)

    spool.sent(spool.head(), 101)
    assert spool.settle()
    spool.forget({(op[0], op[1]): 1 for op in spool.pairs()})
    spool.file.shed()

    assert payloads(spool, 3, 4) == []
    assert b"a secret" not in everything(spool)


def test_a_reader_that_holds_the_journal_delays_nobody(spool: Spool) -> None:
    spool.add({3: [b"a"]})
    other = Spool(spool.path, 1_000_000)
    with other.file.reading() as db:
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM entries").fetchall()
        spool.sent(spool.head(), 101)

        spool.file.shed()

        db.execute("COMMIT")
    assert spool.settle()


def everything(spool: Spool) -> bytes:
    return b"".join(path.read_bytes() for path in spool.path.parent.iterdir())
