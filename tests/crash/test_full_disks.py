"""Disks that are really full, of the spool, of Redis and of the databases: nothing is lost, and all go on with room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

import pytest
from support.chance import SOAK
from support.fixtures import needs_mariadb
from support.oracle import nodes
from support.sandbox.spooled import payloads
from support.servers.rig import rig_of
from support.servers.spooled import Spooled

from pipeline.admin.why import why
from pipeline.clock import polls
from pipeline.errors import PipelineFull
from pipeline.spool import Spool

#: What is done while a disk is full, at most; each op takes some hundred bytes, and a disk gives 4 KB at once.
MOST = 2000
#: Which servers share a disk, and its size, MB. A MariaDB looks a minute later whether there is room: `make soak`.
ENGINES = [("embedded", 64), *([("mariadb", 700)] if SOAK > 1 else [])]


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of its own, as only root may."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=0700,size={megabytes}m", "tmpfs", at], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte, and return what takes the room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):  # the last write is a short one, and then none
        while file.write(b"x" * (1 << 16)):
            pass
    return ballast


def test_a_spool_whose_disk_is_full_says_so_and_loses_nothing_that_it_has_taken(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk, closing(Spool(disk / "app.spool", 100_000_000)) as spool:
        taken = [b"before"]
        spool.add({3: taken})
        ballast = fill(disk)

        def take() -> None:
            for nth in range(MOST):
                spool.add({3: [b"%d" % nth]})
                taken.append(b"%d" % nth)

        with pytest.raises(PipelineFull, match=r"the disk of the spool .*app\.spool is full; make room on it") as full:
            take()
        assert full.value.numbered == {}
        assert payloads(spool, 3) == taken
        ballast.unlink()

        taken += [b"after"]
        spool.add({3: taken[-1:]})
        assert payloads(spool, 3) == taken
        assert [op.seq for op in spool.head([3])] == [*range(1, len(taken) + 1)]


@pytest.mark.parametrize(("engine", "megabytes"), ENGINES)
def test_servers_whose_disk_is_full_go_on_by_themselves_once_there_is_room(
    tmp_path: Path, engine: str, megabytes: int
) -> None:
    with (
        small_disk(tmp_path / "disk", megabytes) as disk,
        rig_of(disk / "cluster", engine, shards=1, replicas=0, workers=1) as rig,
        closing(Spooled(rig, tmp_path)) as spooled,
    ):
        spooled.row.wait(30)
        receipts = [spooled.bump() for _ in range(20)]
        receipts[-1].wait(30)

        ballast = fill(disk)
        receipts += [spooled.bump() for _ in takewhile(lambda _: not spooled.client.spool.waiting(), range(MOST))]
        assert spooled.client.spool.waiting()
        ballast.unlink()

        for receipt in receipts:
            assert receipt.wait(120) in ("applied", "durable")
        assert spooled.found() == (len(spooled.tokens), "".join(spooled.tokens))
        assert rig.cluster.is_alive("worker-0")


def test_a_table_whose_own_disk_is_full_stops_its_own_ops_alone_and_they_are_applied_once_there_is_room(
    tmp_path: Path,
) -> None:
    needs_mariadb()
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        rig_of(tmp_path / "cluster", "mariadb", shards=1, replicas=0, workers=1) as rig,
        closing(Spooled(rig, tmp_path)) as spooled,
    ):
        spooled.row.wait(30)
        with nodes.connection(rig.primaries["s0"]) as made, made.cursor() as cursor:
            cursor.execute("SHOW CREATE TABLE event")
            [(_, definition)] = cursor.fetchall()
            cursor.execute("DROP TABLE event")
            cursor.execute(f"{definition} DATA DIRECTORY = '{disk}'")
        ballast = fill(disk)

        bucket_of = rig.client.topology.bucket_of
        owner = next(one for one in rig.owners(MOST) if bucket_of("event", one) == spooled.row.bucket)
        rows = [{"owner": owner, "body": "x" * 200}] * MOST
        receipts = spooled.client.enqueue_bulk_insert("event", rows)
        stuck = (one for _ in polls(30) for one in receipts[-1:] if told(spooled, str(one)) == {"unwritable"})
        assert next(stuck, None)
        bumps = [spooled.bump() for _ in range(20)]
        spooled.holds(bumps)
        assert {one.status() for one in receipts} <= {"parked", "applied"}

        ballast.unlink()
        for receipt in receipts:
            assert receipt.wait(60) in ("replayed", "applied")
        [(count,)] = nodes.rows(rig.primaries["s0"], "SELECT COUNT(*) FROM event")
        assert count == MOST


def told(spooled: Spooled, receipt: str) -> set[str]:
    """Return the kinds of reasons for which an op waits."""
    return {reason.kind for reason in why(spooled.client, receipt).reasons}
