"""Group commit: what threads wish for together is done at once, in order, once, and each returns when his is done."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from pipeline.clock import polls
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
