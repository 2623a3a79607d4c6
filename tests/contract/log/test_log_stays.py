"""Who stays at a shard holds its bell: nobody rings meanwhile, a listener is woken, and no op is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from support.sandbox.logs import EPOCH, PRODUCER, S0, append, raise_to
from support.servers.log_users import as_shipped

from pipeline.clock import polls
from pipeline.errors import LogUnavailable
from pipeline.model import Position
from pipeline.oplog import Log
from pipeline.oplog.appends import Line
from pipeline.oplog.groups import GroupedLog
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.shared_state import BATCHES


def finish(log: Log, seq: int, holder: str = "me", bucket: int = 3) -> tuple[bool, int]:
    return log.finish("s0", {bucket: Position(EPOCH, seq)}, holder=holder)


def listened(log: Log, holder: str = "me", for_s: float = 0.05) -> dict[int, int] | bool | None:
    """Return what a wait ends with."""
    return list(log.listen("s0", holder, for_s, 10))[-1]


def test_nobody_rings_while_the_bell_is_held_and_who_leaves_sees_what_came_meanwhile(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    assert log.due("s0", 10, "me") == {3: 0}

    assert append(line, (3, 2, [b"b"])).ring == []
    assert line.append_one(S0, EPOCH, PRODUCER, 3, 3, b"c") == (Position(EPOCH, 2), False)
    assert finish(log, 0) == (True, 1)
    assert log.leave("s0", "me") == (True, 1)

    assert append(line, (3, 4, [b"d"])).ring == [], "the one who left rings"


def test_a_bell_is_held_by_who_is_at_the_shard_and_not_by_a_message(log: Log, line: Line):
    assert not log.is_held("s0")
    append(line, (3, 1, [b"a"]))
    assert not log.is_held("s0"), "a message is on its way"

    log.due("s0", 10, "me")
    assert log.is_held("s0")
    finish(log, 0)
    log.due("s0", 10, "me")
    assert log.is_held("s0"), "who listens is there, too"

    log.leave("s0", "me")
    assert not log.is_held("s0")


def test_who_leaves_nothing_behind_rings_nobody_and_the_next_op_rings(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10, "me")
    finish(log, 0)

    assert log.leave("s0", "me") == (False, 0)

    assert append(line, (3, 2, [b"b"])).ring == ["s0"]


@pytest.mark.parametrize("one", [True, False], ids=["an op alone", "ops in bulk"])
def test_an_op_wakes_who_listens_and_rings_nobody(log: Log, line: Line, one: bool):
    append(line, (3, 1, [b"a"]))  # the line's first append takes the long way
    log.due("s0", 10, "me")
    finish(log, 0)
    assert log.due("s0", 10, "me") == {}
    assert listened(log) == {}

    ring = line.append_one(S0, EPOCH, PRODUCER, 3, 2, b"b") if one else append(line, (3, 2, [b"b"])).ring

    assert ring in ((Position(EPOCH, 1), False), [])
    assert listened(log) == {3: 0}
    assert append(line, (4, 1, [b"c"])).ring == [], "the wait ended with a look, which holds the bell"
    assert log.due("s0", 10, "me") == {3: 0, 4: 0}


def test_an_op_that_comes_while_somebody_waits_ends_the_wait(log: Log, line: Line):
    assert log.due("s0", 10, "me") == {}
    found: list[Any] = []
    waits = threading.Thread(target=lambda: found.append(listened(log, for_s=20)))
    waits.start()

    append(line, (3, 1, [b"a"]))

    waits.join(15)
    assert found == [{3: 0}]


def test_a_wait_that_is_broken_off_takes_no_wake_up_away(log: Log, line: Line):
    log.due("s0", 10, "me")
    with closing(log.listen("s0", "me", 20, 10)) as waiting:
        assert next(waiting) is False

    append(line, (3, 1, [b"a"]))

    assert listened(log) == {3: 0}


def test_the_bell_of_another_is_neither_taken_nor_given_up(log: Log, line: Line):
    log.due("s0", 10, "other")

    assert log.due("s0", 10, "me") == {}
    assert listened(log) is None
    assert log.leave("s0", "me") == (False, 0)

    assert append(line, (3, 1, [b"a"])).ring == []


def test_who_leaves_wakes_the_other_who_holds_the_bell_for_what_is_due(log: Log, line: Line):
    log.due("s0", 10, "other")
    append(line, (3, 1, [b"a"]))
    assert listened(log, "me") == {3: 0}, "the wake-up is another's"

    assert log.leave("s0", "me") == (False, 1)

    assert listened(log, "other") == {3: 0}


def test_nobody_is_rung_for_what_was_due_before_a_look_that_found_it_in_good_hands(log: Log, line: Line):
    log.mark_dirty("s0", [8])
    log.due("s0", 10, "me")
    assert log.leave("s0", "me", within_ms=60_000) == (False, 1)

    log.due("s0", 10, "me")
    append(line, (3, 1, [b"a"]))

    assert log.leave("s0", "me", within_ms=60_000) == (True, 2)


def test_a_shard_stirs_while_it_has_work_or_somebody_at_it_and_says_something_else_after_each_batch(
    log: Log, line: Line
):
    quiet = log.stirs(["s0", "s1"])
    assert quiet["s0"]
    assert quiet["s1"]

    append(line, (3, 1, [b"a"]))
    assert log.stirs(["s0", "s1"]) == quiet | {"s0": ""}

    log.due("s0", 10, "me")
    log.finish("s0", {3: Position(EPOCH, 0)}, counts={BATCHES: 1}, holder="me")
    assert log.stirs(["s0"]) == {"s0": ""}, "somebody is at it"
    log.leave("s0", "me")
    assert log.stirs(["s0"])["s0"] not in ("", quiet["s0"])
    assert log.stirs(["s0", "s1"]) == log.stirs(["s1", "s0"])


def test_a_message_on_its_way_is_rung_for_once(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    assert log.leave("s0", "me") == (False, 1)


def test_a_held_bell_whose_holder_is_gone_is_rung_again_soon(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10, "gone")

    seq = 1
    for _ in polls(5):
        seq += 1
        if append(line, (3, seq, [b"b"])).ring:
            return
    pytest.fail("the bell stayed held")


def test_who_can_wake_nobody_rings(log: Log, line: Line):
    if not isinstance(log, RedisLog):
        pytest.skip("others write to Redis only")
    own = log.at("s0") if isinstance(log, GroupedLog) else log
    log.due("s0", 10, "me")
    own._client.set(own.keys.wake("s0"), "no list")

    assert append(line, (3, 1, [b"a"])).ring == ["s0"]


def test_with_the_rights_of_an_older_release_an_op_rings_and_nobody_listens(log_server: Callable[[str], Any]):
    server = log_server("redis")
    url = as_shipped(server, "worker")
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "worker", "-lpush", "-blpop")
    with closing(RedisLog(url, prefix=f"pl:t{uuid4().hex[:12]}", timeout_s=5)) as log, closing(log.line()) as line:
        raise_to(log, S0, EPOCH)
        append(line, (3, 1, [b"a"]))
        log.due("s0", 10, "me")
        finish(log, 0)
        assert log.due("s0", 10, "me") == {}

        with pytest.raises(LogUnavailable, match="blpop"):
            listened(log)
        assert line.append_one(S0, EPOCH, PRODUCER, 3, 2, b"b") == (Position(EPOCH, 1), True)
        log.due("s0", 10, "me")
        finish(log, 1)
        log.due("s0", 10, "me")
        assert append(line, (3, 3, [b"c"])).ring == ["s0"]
