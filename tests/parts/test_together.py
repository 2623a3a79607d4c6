"""Group commit: what threads wish for together is done at once, in order, once, and each returns when his is done."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest

from pipeline.clock import polls
from pipeline.spool import turns
from pipeline.spool.turns import GroupCommit

THREADS, TIMES = 8, 50


def test_threads_that_come_during_a_commit_share_the_next_in_their_order():
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def do(wishes: Sequence[int]) -> None:
        batches.append(list(wishes))
        begun.set()
        assert go_on.wait(20)

    together = GroupCommit(do)
    threads = [threading.Thread(target=together.done, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        assert begun.wait(20)
        assert any(len(together._waiting) == number for _ in polls(20))
    go_on.set()
    for thread in threads:
        thread.join(20)

    assert batches == [[0], [1, 2, 3, 4]]


def test_threads_that_shared_a_commit_share_the_next_though_one_comes_before_the_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "EARLY_S", 20)
    batches: list[list[str]] = []
    together = GroupCommit(lambda wishes: batches.append(list(wishes)))
    together._shared, together._took_s = 2, 40

    first = threading.Thread(target=together.done, args=("first",))
    first.start()
    assert any(together._waiting for _ in polls(20))
    together.done("second")
    first.join(20)

    assert batches == [["first", "second"]]


def test_who_leads_goes_on_alone_where_those_that_shared_the_last_commit_do_not_come():
    batches: list[list[str]] = []
    together = GroupCommit(lambda wishes: batches.append(list(wishes)))
    together._shared, together._took_s = 2, 0.001

    together.done("first")
    together.done("second")

    assert batches == [["first"], ["second"]]


def test_every_wish_is_done_once_and_before_its_thread_goes_on():
    done: list[tuple[int, int]] = []
    together = GroupCommit(done.extend)
    early: list[tuple[int, int]] = []

    def work(name: int) -> None:
        for nth in range(TIMES):
            together.done((name, nth))
            if (name, nth) not in done:
                early.append((name, nth))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert early == []
    assert sorted(done) == [(name, nth) for name in range(THREADS) for nth in range(TIMES)]


def test_who_leads_is_followed_also_where_his_own_fails():
    class Stop(BaseException):
        pass

    def do(wishes: Sequence[str]) -> None:
        if "bad" in wishes:
            raise Stop

    together = GroupCommit(do)
    with suppress(Stop):
        together.done("bad")

    follower = threading.Thread(target=together.done, args=("good",))
    follower.start()
    follower.join(20)

    assert not follower.is_alive()
