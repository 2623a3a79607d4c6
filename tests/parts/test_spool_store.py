"""The spool's store: what it takes is numbered for good, kept in order, and shared by the processes of a host."""

from __future__ import annotations

import collections
import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.spooled import payloads

from pipeline import clock
from pipeline.errors import PipelineFull, SpoolUnavailable, WrongDeployment
from pipeline.model.fingerprint import Fingerprint
from pipeline.spool import DRAINS_S, FRESH_MS, Spool
from pipeline.spool.turns import GroupCommit

# taking and sending ------------------------------------------------------------------------------------------------


def test_a_spool_that_nobody_needed_makes_no_file(spool: Spool):
    assert not spool.waiting()
    assert spool.counts().waiting == 0

    assert list(spool.path.parent.iterdir()) == []


def test_ops_come_out_in_the_order_in_which_they_went_in_with_dense_sequences(spool: Spool):
    first = spool.add({3: [b"a", b"b"], 4: [b"c"]})
    second = spool.add({3: [b"d"]})

    assert payloads(spool, 3, 4) == [b"a", b"b", b"c", b"d"]
    assert payloads(spool, 4) == [b"c"]
    producer = first[3][0]
    assert first == {3: (producer, 1), 4: (producer, 1)}
    assert second == {3: (producer, 3)}


def test_an_op_in_doubt_keeps_the_number_that_it_was_sent_with(spool: Spool):
    spool.add({3: [b"mine"]})

    given = spool.add({3: [b"in doubt"], 5: [b"new"]}, numbered={3: (77, 9)})

    assert given[3] == (77, 9)
    assert [op[1:4] for op in spool.head([3])][1] == (3, 77, 9)
    assert spool.add({3: [b"mine too"]})[3][1] == 2


def test_the_marker_is_there_as_long_as_anything_waits(spool: Spool):
    spool.add({3: [b"a"]})
    assert spool.waiting()
    assert not spool.settle()

    spool.sent(spool.head([3]), 101)

    assert spool.waiting()
    assert spool.settle()
    assert not spool.waiting()


def test_a_spool_drains_while_ops_are_sent_from_it_and_at_first_but_not_where_redis_stays_away(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    ahead_ms, wall_ms = 0.0, clock.wall_ms
    monkeypatch.setattr(clock, "wall_ms", lambda: wall_ms() + ahead_ms)
    assert not spool.drains()
    spool.add({3: [b"a"], 4: [b"b"]})
    assert spool.drains()

    os.utime(f"{spool.path}.waiting", (0, 0))
    assert not spool.drains()

    spool.sent(spool.head([3]), 101)
    assert spool.drains()
    ahead_ms = 1000 * (DRAINS_S + 1)
    assert not spool.drains(), "Redis has gone away again"

    spool.sent(spool.head([4]), 101)
    ahead_ms = 0.0
    assert spool.settle()
    assert not spool.drains()


@pytest.mark.parametrize("buckets", [None, range(64)])
def test_a_look_at_the_first_ops_puts_ids_in_order_and_reads_no_op_that_it_does_not_return(
    spool: Spool, buckets: Sequence[int] | None
):
    """With 25 ops of 10 MB in there each look would take two seconds, in which nobody else may write."""
    spool.add({bucket: [b"x"] for bucket in range(64)})
    looks = list[str]()
    with spool.file.reading() as db:
        db.set_trace_callback(looks.append)
    assert len(spool.head(buckets)) == 64

    with spool.file.reading() as db:
        db.set_trace_callback(None)
        [look] = looks
        steps = db.execute(f"EXPLAIN QUERY PLAN {look}").fetchall()
    sorts_ops = [step for _, parent, _, step in steps if "TEMP B-TREE" in step and parent == 0]
    assert sorts_ops == [], steps


def test_an_op_that_comes_for_the_marker_alone_is_not_taken_in_once_nothing_waits(spool: Spool):
    spool.add({3: [b"a"]})
    assert spool.add({3: [b"b"]}, behind=True)

    spool.sent(spool.head([3]), 101)
    assert spool.settle()

    assert spool.add({3: [b"c"]}, behind=True) == {}
    assert not spool.waiting()
    assert spool.head() == []


def test_an_op_that_is_spooled_again_under_its_number_is_in_the_spool_once(spool: Spool):
    numbered = {3: (77, 9)}
    spool.add({3: [b"in doubt"]}, numbered=numbered)

    assert spool.add({3: [b"in doubt"]}, numbered=numbered) == numbered

    assert payloads(spool, 3) == [b"in doubt"]


def test_what_was_sent_is_forgotten_and_what_is_kept_stays_until_it_is_reached(spool: Spool):
    spool.add({3: [b"plain"]})
    [(producer, first)] = spool.add({3: [b"kept 1", b"kept 2"]}, kept=True).values()

    spool.sent(spool.head([3]), 101)

    assert spool.settle()
    assert spool.counts()[:2] == (0, 2)
    assert spool.pairs() == [(3, producer)]
    assert spool.forget({(3, producer): first}) == 1
    assert spool.forget({(3, producer): first + 1}) == 1
    assert spool.counts()[:2] == (0, 0)


def test_nothing_that_waits_is_forgotten(spool: Spool):
    [(producer, _)] = spool.add({3: [b"kept"]}, kept=True).values()

    assert spool.forget({(3, producer): 99}) == 0
    assert payloads(spool, 3) == [b"kept"]


def test_what_is_kept_waits_again_in_its_old_place_once_the_epoch_is_another(spool: Spool):
    spool.add({3: [b"a", b"b"]}, kept=True)
    spool.sent(spool.head([3]), 101)
    spool.settle()
    spool.add({3: [b"c"]})

    assert spool.renew([3], 101) == 0
    assert spool.renew([3], 102) == 2

    assert payloads(spool, 3) == [b"a", b"b", b"c"]
    assert spool.waiting()


def test_an_op_is_held_only_while_it_waits(spool: Spool):
    [(producer, seq)] = spool.add({3: [b"kept"]}, kept=True).values()
    assert spool.holds(3, producer, seq)
    assert not spool.holds(3, producer, seq + 1)

    spool.sent(spool.head([3]), 101)

    assert not spool.holds(3, producer, seq)


# numbers ----------------------------------------------------------------------------------------------------------


def test_a_bucket_that_idled_for_a_day_goes_on_under_a_producer_it_has_never_had(spool: Spool, monkeypatch: Any):
    old = spool.add({3: [b"a"]})[3]
    spool.sent(spool.head([3]), 101)
    now = clock.wall_ms()
    monkeypatch.setattr(clock, "wall_ms", lambda: now + FRESH_MS + 1000)

    new = spool.add({3: [b"b"]})[3]

    assert new[0] != old[0]
    assert new[1] == 1


def test_a_bucket_that_still_holds_something_goes_on_under_the_same_producer(spool: Spool, monkeypatch: Any):
    old = spool.add({3: [b"a"]})[3]
    now = clock.wall_ms()
    monkeypatch.setattr(clock, "wall_ms", lambda: now + FRESH_MS + 1000)

    assert spool.add({3: [b"b"]})[3] == (old[0], 2)


@pytest.mark.parametrize("steps", [(2, 0, 1.5, 3), (5, 0, 1.2, 2.4, 5.1), (0, -3, 0, 1.5)])
def test_a_clock_that_jumps_never_brings_a_number_twice(spool: Spool, monkeypatch: Any, steps: tuple[float, ...]):
    now, given = clock.wall_ms(), []
    for days in steps:
        monkeypatch.setattr(clock, "wall_ms", lambda days=days: now + int(days * 86_400_000))
        for bucket in (3, 4, 3):
            given.append((bucket, *spool.add({bucket: [b"x"]})[bucket]))
            spool.sent(spool.head([bucket]), 101)

    assert len(set(given)) == len(given)


def test_threads_that_come_together_share_a_commit_and_each_gets_its_own_numbers(spool: Spool, monkeypatch: Any):
    taken: list[int] = []
    whole = Spool._take_in
    together = GroupCommit(lambda wishes: (taken.append(len(wishes)), whole(spool, wishes)))
    monkeypatch.setattr(spool, "_together", lambda: together)
    numbers: list[Any] = []

    def produce(name: int) -> None:
        for n in range(25):
            numbers.append(spool.add({3: [b"%d %d" % (name, n)]})[3])

    with spool.file._lock:  # the first one's commit does not get on
        threads = [threading.Thread(target=produce, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        assert any(taken == [1] and len(together._waiting) == 7 for _ in clock.polls(20))
    for thread in threads:
        thread.join(timeout=30)

    assert taken[1] >= 7  # the first may be back by then
    assert sum(taken) == 200
    assert len(set(numbers)) == 200
    found = [op.payload.split() for op in spool.head([3])]
    for name in range(8):
        assert [int(n) for who, n in found if int(who) == name] == list(range(25))


def together(spool: Spool, *calls: Mapping[int, Sequence[bytes]], first: bytes = b"first") -> list[Any]:
    """Let some calls come while the commit of another does not get on; return what each got, or was refused with."""
    group, got = spool._together(), list[Any](["nothing"] * len(calls))

    def add(nth: int, runs: Mapping[int, Sequence[bytes]]) -> None:
        try:
            got[nth] = spool.add(runs)
        except Exception as error:
            got[nth] = error

    threads = [threading.Thread(target=spool.add, args=({1: [first]},))]
    threads += [threading.Thread(target=add, args=(nth, runs)) for nth, runs in enumerate(calls)]
    with spool.file._lock:
        for nth, thread in enumerate(threads):
            thread.start()
            assert any(group._led and len(group._waiting) == nth for _ in clock.polls(20))
    for thread in threads:
        thread.join(timeout=30)
    return got


def test_an_op_that_another_configuration_places_refuses_its_own_call_alone(spool: Spool):
    mine, other = (Fingerprint(64, (), (("sale", by),), "pl", f"{by}.toml") for by in ("by customer", "by its own id"))
    ours, theirs = (Spool(spool.path, 1_000_000, one) for one in (mine, other))
    theirs.agree(other)

    got = together(ours, {3: [b'["visit"]']}, {3: [b'["visit"]', b'["sale"]'], 4: [b'["visit"]']}, {3: [b'["page"]']})

    [(producer, first)] = got[0].values()
    assert (first, got[2]) == (1, {3: (producer, 2)})
    assert isinstance(got[1], WrongDeployment)
    assert payloads(ours, 3, 4) == [b'["visit"]', b'["page"]']


def test_where_all_ops_of_a_commit_are_placed_elsewhere_no_marker_is_left(spool: Spool):
    mine, other = (Fingerprint(64, (), (("sale", by),), "pl", f"{by}.toml") for by in ("by customer", "by its own id"))
    ours, theirs = (Spool(spool.path, 1_000_000, one) for one in (mine, other))
    theirs.agree(other)

    with pytest.raises(WrongDeployment):
        ours.add({3: [b'["sale"]']})

    assert not ours.waiting()


def test_an_op_for_which_there_is_no_room_refuses_its_own_call_alone(spool: Spool):
    got = together(spool, {3: [b"a"]}, {3: [b"b", b"x" * 2_000_000]}, {3: [b"c"], 4: [b"d"]})

    [(producer, first)] = got[0].values()
    assert (first, got[2][3]) == (1, (producer, 2))
    assert isinstance(got[1], PipelineFull)
    assert payloads(spool, 3, 4) == [b"a", b"c", b"d"]


def test_of_a_sync_that_fails_each_caller_learns_its_own_numbers(spool: Spool, monkeypatch: Any):
    spool.add({3: [b"before"]})
    synced = os.fdatasync

    def fail(file: int) -> None:
        if spool.counts().waiting > 2:  # the first commit of the threads is not to fail
            raise OSError(errno.EIO, "on purpose")
        synced(file)

    monkeypatch.setattr(os, "fdatasync", fail)
    got = together(spool, *({3: [b"%d" % n]} for n in range(4)))
    monkeypatch.undo()

    assert [error.numbered[3][1] for error in got] == [2, 3, 4, 5]
    assert [op.payload for op in spool.head([3])] == [b"before", *(b"%d" % n for n in range(4))]


# limits and faults ------------------------------------------------------------------------------------------------


def test_a_full_spool_says_which_file_and_setting_and_takes_ops_again_once_drained(spool: Spool):
    with pytest.raises(PipelineFull, match=r"app\.spool is at \[spool\] max_mb = 1\b"):
        collections.deque(iter(lambda: spool.add({3: [b"x" * 5000]}, kept=True), None), maxlen=0)
    taken = spool.counts().waiting
    assert 100 < taken < 200

    while head := spool.head([3]):
        spool.sent(head, 101)
    [(bucket, producer)] = spool.pairs()
    assert spool.forget({(bucket, producer): 10_000}) == taken

    assert spool.add({3: [b"x" * 5000]})[3] == (producer, taken + 1)


def test_a_file_that_is_no_spool_is_named(tmp_path: Path):
    path = tmp_path / "app.spool"
    path.write_bytes(b"this is no database, but long enough to be one" * 30)

    with pytest.raises(SpoolUnavailable, match=r"app\.spool"):
        Spool(path, 1_000_000).add({3: [b"a"]})


def test_a_file_of_an_older_release_goes_on_with_a_table_that_nobody_needs_any_more(spool: Spool):
    spool.add({3: [b"a"]})
    with spool.file.writing() as db:
        db.execute("CREATE TABLE promises (nth INTEGER PRIMARY KEY, bucket INTEGER, key TEXT, row_id INTEGER)")
        db.execute("INSERT INTO promises VALUES (1, 3, 'k', 77)")
    spool.close()

    newer = Spool(spool.path, 1_000_000)
    newer.add({3: [b"b"]})

    assert payloads(newer, 3) == [b"a", b"b"]
    newer.close()


def test_a_file_of_before_configurations_were_noted_goes_on_under_its_number(spool: Spool):
    spool.add({3: [b"a"]})
    with spool.file.writing() as db:
        [number] = db.execute("PRAGMA user_version").fetchone()
        db.execute("DROP TABLE agreed")
    spool.close()

    mine = Fingerprint(64, (), (), "pl", "web.toml")
    newer = Spool(spool.path, 1_000_000, mine)
    newer.agree(mine)
    newer.add({3: [b"b"]})

    assert payloads(newer, 3) == [b"a", b"b"]
    with newer.file.reading() as db:
        assert db.execute("PRAGMA user_version").fetchone() == (number,)
    newer.close()


def test_an_op_is_refused_as_soon_as_another_process_has_noted_another_configuration(spool: Spool):
    mine, other = (Fingerprint(64, (), (("sale", by),), "pl", f"{by}.toml") for by in ("by customer", "by its own id"))
    ours, theirs = (Spool(spool.path, 1_000_000, one) for one in (mine, other))
    ours.agree(mine)
    ours.add({3: [b'["sale"]']})
    ours.sent(ours.head(), 101)

    theirs.agree(other)

    with pytest.raises(WrongDeployment, match=r"\[tables.sale\] is spread by customer in by customer.toml"):
        ours.add({3: [b'["sale"]']})
    assert payloads(ours, 3) == []
    ours.agree(mine)
    ours.add({3: [b'["sale"]']})
    assert payloads(ours, 3) == [b'["sale"]']


def test_an_op_is_on_the_disk_before_its_caller_goes_on_and_before_anybody_sends_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    synced, sync = list[tuple[int, int]](), os.fdatasync

    def noted(file: int) -> None:
        sync(file)
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))

    monkeypatch.setattr(os, "fdatasync", noted)
    spool.add({3: [b"a"]})
    journal = os.stat(f"{spool.path}-wal")
    assert synced[-1] == (journal.st_ino, journal.st_size)

    with spool.file.writing(synced=False) as db:
        db.execute("INSERT INTO entries (bucket, producer, seq, kept, payload) VALUES (3, 7, 1, 0, x'62')")
    assert synced[-1] != (journal.st_ino, os.stat(f"{spool.path}-wal").st_size)

    assert payloads(spool, 3) == [b"a", b"b"]
    assert synced[-1] == (journal.st_ino, os.stat(f"{spool.path}-wal").st_size)


def test_an_op_is_on_the_disk_also_where_the_journal_has_lost_its_name(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    spool.add({3: [b"a"]})
    journal = os.stat(f"{spool.path}-wal").st_ino
    synced, sync = list[int](), os.fdatasync

    def noted(file: int) -> None:
        sync(file)
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fdatasync", noted)
    os.unlink(f"{spool.path}-wal")  # as SQLite does when it closes a file that had this name before
    spool.add({3: [b"b"]})

    assert synced == [journal]


def test_a_connection_that_is_closed_while_a_thread_syncs_takes_no_file_from_under_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
):
    spool.add({3: [b"a"]})
    journal, sync = os.stat(f"{spool.path}-wal").st_ino, os.fdatasync
    synced: list[int] = []

    def close_first(file: int) -> None:
        spool.close()
        sync(file)
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fdatasync", close_first)
    spool.add({3: [b"b"]})

    assert synced == [journal]
    monkeypatch.undo()
    assert payloads(spool, 3) == [b"a", b"b"]


def test_others_cannot_read_the_file(spool: Spool):
    spool.add({3: [b"secret"]})

    assert not any(stat.S_IMODE(file.stat().st_mode) & 0o007 for file in spool.path.parent.iterdir())
