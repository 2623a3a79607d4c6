"""The spool's store among the processes of a host: one order, one drain, no inherited connection."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import Any

import pytest
from support.sandbox.spooled import FORK, payloads, shared

from pipeline.clock import polls
from pipeline.spool import Spool


def test_processes_share_one_order_and_one_numbering(spool: Spool):
    spool.add({3: [b"parent"]})

    with FORK.Pool(4) as pool:
        numbers = pool.map(_add_some, range(8))

    ops = spool.head([3])
    assert [op.seq for op in ops] == list(range(1, 8 * 20 + 2))
    assert len({seq for some in numbers for seq in some}) == 8 * 20
    for name in range(8):
        mine = [op.payload for op in ops if op.payload.startswith(b"%d " % name)]
        assert mine == [b"%d %d" % (name, n) for n in range(20)]


def _add_some(name: int) -> list[int]:
    [spool] = shared
    return [spool.add({3: [b"%d %d" % (name, n)]})[3][1] for n in range(20)]


def test_no_child_inherits_a_connection(spool: Spool):
    spool.add({3: [b"a"]})

    with FORK.Pool(1) as pool:
        assert pool.apply(_inherited, ())

    assert payloads(spool, 3) == [b"a"]


def _inherited() -> bool:
    [spool] = shared
    return spool.file._db is None and not spool.file._left_behind


def test_a_child_does_not_hurt_its_parents_connection(spool: Spool):
    spool.add({3: [b"a"]})

    with FORK.Pool(1) as pool:
        pool.apply(_add_some, (1,))

    assert len(spool.head([3])) == 21
    assert sqlite3.connect(spool.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_one_process_drains_at_a_time_and_its_death_lets_the_next_one_in(spool: Spool):
    spool.add({3: [b"a"]})
    ready, go = FORK.Event(), FORK.Event()
    holder = FORK.Process(target=_hold, args=(spool, ready, go))
    holder.start()
    assert ready.wait(20)

    with spool.lock().tried() as mine:
        assert not mine
    holder.kill()
    holder.join(20)

    with spool.lock().tried() as mine:
        assert mine
        with spool.lock().tried() as again:
            assert not again
    with spool.lock().tried() as mine:
        assert mine


def _hold(spool: Spool, ready: Any, go: Any) -> None:
    with spool.lock().tried():
        ready.set()
        go.wait(60)


def test_a_child_that_is_forked_while_its_parent_drains_does_not_hold_the_lock(spool: Spool):
    with spool.lock().tried():
        child = FORK.Process(target=os.read, args=(os.pipe()[0], 1))
        child.start()
    try:
        with spool.lock().tried() as mine:
            assert mine
    finally:
        child.kill()
        child.join(20)


def test_a_turn_is_not_taken_away_by_a_thread_that_has_waited_for_it_in_vain(spool: Spool):
    turn = spool.lock()
    for _ in range(5):
        ready, go = FORK.Event(), FORK.Event()
        holder = FORK.Process(target=_hold_turn, args=(spool, ready, go))
        holder.start()
        assert ready.wait(20)
        with pytest.raises(TimeoutError), turn.held(0.05):
            pass

        timer = threading.Timer(0.1, go.set)
        timer.start()
        with turn.held(20):
            time.sleep(0.1)
            with FORK.Pool(1) as pool:
                assert not pool.apply(_takes_turn)
        holder.join(20)
        with FORK.Pool(1) as pool:
            assert any(pool.apply(_takes_turn) for _ in polls(20)), "the waiter gives back what it gets late"


def _hold_turn(spool: Spool, ready: Any, go: Any) -> None:
    with spool.lock().held(20):
        ready.set()
        go.wait(60)


def _takes_turn() -> bool:
    [spool] = shared
    with spool.lock().tried() as mine:
        return mine
