"""Patience: whoever has a budget leaves in time, whatever hangs; and what comes late is not lost sight of."""

from __future__ import annotations

import math
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hiredis import pack_command
from support.servers.redis_stub import HANG_UP, Stub

from pipeline import bounds, clock
from pipeline.bounds import COLD_S, WaitBudget, WaitBudgets, in_all, require_threads, waited
from pipeline.errors import ConfigError, LogUnavailable, ShardUnavailable
from pipeline.model import Position
from pipeline.oplog.appends import Append, Scope
from pipeline.oplog.redis.connection import HEALTH_CHECK_S
from pipeline.oplog.redis.keys import Keys
from pipeline.oplog.redis.line import FITS_BYTES, RedisLine

PING = pack_command(("PING",))
LONG = pack_command(("PING", b"x" * FITS_BYTES))
ASIDE = "pipeline-aside"
SCOPE = Scope("s0", ("s0",))
#: Long enough for what does not hang, also on a busy machine.
AMPLE_S = 30.0


@pytest.fixture
def wait_budgets() -> WaitBudgets:
    return WaitBudgets(AMPLE_S)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that comes only when the test is over: what waits for it hangs."""
    event = threading.Event()
    yield event
    event.set()


def left_soon(wait_budgets: WaitBudgets, event: threading.Event, **how: object) -> None:
    """Ask for something that hangs, with next to no budget."""
    with wait_budgets.within(WaitBudget(0.01)), pytest.raises(TimeoutError, match="no answer within"):
        wait_budgets.aside(event.wait, **how)  # type: ignore[arg-type]


# asides -----------------------------------------------------------------------------------------------------------


def test_who_has_no_budget_does_the_work_himself(wait_budgets: WaitBudgets):
    assert wait_budgets.aside(threading.current_thread) is threading.current_thread()


def test_who_has_one_lets_a_thread_do_it(wait_budgets: WaitBudgets):
    with wait_budgets.within(wait_budgets.budget()):
        assert wait_budgets.aside(threading.current_thread).name == ASIDE


def test_a_caller_leaves_what_hangs_and_what_comes_then_is_seen_to(wait_budgets: WaitBudgets):
    event, late = threading.Event(), []
    told = threading.Event()

    left_soon(wait_budgets, event, late=lambda result: (late.append(result), told.set()))
    assert late == []
    event.set()

    assert told.wait(AMPLE_S)
    assert late == [True]


def test_an_error_that_comes_late_disturbs_nobody(wait_budgets: WaitBudgets):
    event, ended = threading.Event(), threading.Event()
    wait_budgets.ended = ended.set

    def fail() -> None:
        event.wait(AMPLE_S)
        raise ValueError("too late")

    with wait_budgets.within(WaitBudget(0.01)), pytest.raises(TimeoutError):
        wait_budgets.aside(fail, late=lambda result: pytest.fail("there is no result"))
    event.set()

    assert ended.wait(AMPLE_S)


def test_the_works_own_errors_are_its_callers_a_time_out_too(wait_budgets: WaitBudgets):
    def fail() -> None:
        raise TimeoutError("the work's own")

    with wait_budgets.within(wait_budgets.budget()), pytest.raises(TimeoutError, match="the work's own"):
        wait_budgets.aside(fail)


def test_of_several_that_wait_for_what_fails_each_has_an_error_of_its_own():
    future: Future[None] = Future()
    future.set_exception(ShardUnavailable("s0", "on purpose"))
    errors = list[ShardUnavailable]()

    for seq in (1, 2):
        with pytest.raises(ShardUnavailable, match=r"s0.* on purpose") as raised:
            waited(future, AMPLE_S)
        raised.value.numbered = {3: (7, seq), **raised.value.numbered}
        errors.append(raised.value)

    assert [error.numbered for error in errors] == [{3: (7, 1)}, {3: (7, 2)}]


def test_a_budget_that_is_used_up_begins_nothing(wait_budgets: WaitBudgets):
    begun: list[bool] = []

    with wait_budgets.within(WaitBudget(0.0)), pytest.raises(TimeoutError, match="used up"):
        wait_budgets.aside(lambda: begun.append(True))

    assert begun == []


def test_each_step_takes_its_time_off_what_the_next_one_has(wait_budgets: WaitBudgets, monkeypatch: pytest.MonkeyPatch):
    now = iter([10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(clock, "mono_s", lambda: next(now))
    budget = wait_budgets.budget()
    assert budget is not None

    with wait_budgets.within(budget):
        with wait_budgets.spending():
            pass
        assert budget.left_s == AMPLE_S - 3
        with wait_budgets.spending(from_s=1.0):  # too short to count
            pass

    assert budget.left_s == AMPLE_S - 3


def test_what_fails_counts_however_short_it_was(wait_budgets: WaitBudgets, monkeypatch: pytest.MonkeyPatch):
    now = iter([10.0, 10.5])
    monkeypatch.setattr(clock, "mono_s", lambda: next(now))
    budget = WaitBudget(1.0)

    with wait_budgets.within(budget), pytest.raises(ValueError, match="at once"), wait_budgets.spending(from_s=1.0):
        raise ValueError("at once")

    assert budget.left_s == 0.5


def test_something_that_can_be_done_without_gets_its_share_only(wait_budgets: WaitBudgets, never: threading.Event):
    budget = WaitBudget(0.02)

    with wait_budgets.within(budget), pytest.raises(TimeoutError, match="within 10 ms"):
        wait_budgets.aside(never.wait, share=0.5)


def test_time_spent_waiting_for_a_lock_counts(wait_budgets: WaitBudgets):
    lock, budget = threading.Lock(), WaitBudget(AMPLE_S)
    lock.acquire()
    threading.Timer(0.02, lock.release).start()

    with wait_budgets.within(budget):
        wait_budgets.enter(lock)

    assert budget.left_s < AMPLE_S


@pytest.mark.parametrize("options", [{}, {"enable-threads": b"false"}])
def test_a_uwsgi_that_runs_no_threads_is_refused_with_the_line_to_add(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options, has_threads=0))

    with pytest.raises(ConfigError, match=r"add `enable-threads = true` to its ini file, or --enable-threads"):
        require_threads()


# as 2.0.30 gives them without an option, and 2.0.26 with the others
@pytest.mark.parametrize("options", [{}, {"enable-threads": True}, {"threads": b"2"}, {"py-autoreload": b"3"}])
def test_a_uwsgi_that_runs_threads_is_as_any_other_server(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options, has_threads=1))

    require_threads()


# calls ------------------------------------------------------------------------------------------------------------


class Caller:
    budget: WaitBudget | None = None

    def __init__(self, wait_budgets: WaitBudgets):
        self.wait_budgets = wait_budgets
        self.seen: list[WaitBudget | None] = []

    @in_all
    def outer(self) -> None:
        self.seen.append(self.wait_budgets.here.budget)
        self.inner()

    @in_all
    def inner(self) -> None:
        self.seen.append(self.wait_budgets.here.budget)


def test_a_call_has_one_budget_for_all_that_it_calls_and_the_next_has_another(wait_budgets: WaitBudgets):
    caller = Caller(wait_budgets)

    caller.outer()
    caller.inner()

    first, again, other = caller.seen
    assert first is again
    assert first is not other
    assert first is not None
    assert wait_budgets.here.budget is None


def test_the_calls_of_a_request_share_its_budget(wait_budgets: WaitBudgets):
    caller, budget = Caller(wait_budgets), wait_budgets.budget()

    with wait_budgets.within(budget):
        caller.outer()
        caller.inner()

    assert caller.seen == [budget] * 3


def test_budgets_are_each_threads_own(wait_budgets: WaitBudgets):
    caller = Caller(wait_budgets)
    with wait_budgets.within(wait_budgets.budget()):
        thread = threading.Thread(target=caller.inner)
        thread.start()
        thread.join()

        assert caller.seen[0] is not wait_budgets.here.budget


def test_who_has_nowhere_to_go_instead_never_leaves():
    caller = Caller(WaitBudgets(math.inf))

    caller.outer()

    assert caller.seen == [None, None]


def test_a_process_that_redis_has_never_answered_waits_longer_until_redis_has():
    cold = WaitBudgets(0.1, cold=True)

    first = cold.budget()
    cold.cold = False
    later, patient = cold.budget(), WaitBudgets(AMPLE_S, cold=True).budget()

    assert [budget and budget.left_s for budget in (first, later, patient)] == [COLD_S, 0.1, AMPLE_S]
    assert WaitBudgets(math.inf, cold=True).budget() is None


# lines ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


@pytest.fixture
def line(stub: Stub, wait_budgets: WaitBudgets) -> Iterator[RedisLine]:
    """A line whose connections would wait for long by themselves."""
    assert any(waiting() == 0 for _ in clock.polls(AMPLE_S))  # those of other tests have ended
    pool = redis.ConnectionPool(host="127.0.0.1", port=stub.port, socket_timeout=AMPLE_S, protocol=2)
    yield RedisLine(Keys("test"), pool, 0.02, wait_budgets)
    pool.disconnect()


def waiting() -> int:
    return sum(thread.name == ASIDE for thread in threading.enumerate())


def test_a_connection_that_is_made_in_time_is_kept(stub: Stub, line: RedisLine, wait_budgets: WaitBudgets):
    with wait_budgets.within(wait_budgets.budget()):
        line.ask(PING)
        line.ask(PING)

    assert stub.taken == 1


def test_a_caller_leaves_a_server_that_hangs_long_before_its_connection_does(
    stub: Stub, line: RedisLine, wait_budgets: WaitBudgets
):
    line.ask(PING)
    stub.replies = [()]

    with wait_budgets.within(WaitBudget(0.01)), pytest.raises(TimeoutError):
        line.ask(PING)

    assert waiting() == 1  # the caller has left, the connection still waits
    line.drop()
    stub.replies = [(b"$5\r\nfresh\r\n",)]
    assert line.ask(PING) == b"fresh"
    assert stub.taken == 2


def test_a_reply_that_comes_late_closes_its_connection(stub: Stub, line: RedisLine, wait_budgets: WaitBudgets):
    go_on = threading.Event()
    stub.before = lambda: go_on.wait(AMPLE_S)

    with wait_budgets.within(WaitBudget(0.01)), pytest.raises(TimeoutError):
        line.ask(PING)
    go_on.set()

    assert any(waiting() == 0 for _ in clock.polls(AMPLE_S))
    assert any(stub.open == 0 for _ in clock.polls(AMPLE_S))


def test_a_refusal_in_a_thread_leaves_the_connection_in_use(stub: Stub, line: RedisLine, wait_budgets: WaitBudgets):
    line.ask(PING)
    stub.replies = [(b"-ERR no\r\n",), (b"$3\r\nyes\r\n",)]

    with wait_budgets.within(WaitBudget(AMPLE_S)), pytest.raises(redis.exceptions.ResponseError):
        line.ask(LONG)

    assert line.ask(PING) == b"yes"
    assert stub.taken == 1


def test_a_command_too_long_for_an_empty_socket_is_sent_by_a_thread(
    stub: Stub, line: RedisLine, wait_budgets: WaitBudgets
):
    line.ask(PING)
    stub.replies = [()]

    with wait_budgets.within(WaitBudget(0.05)), pytest.raises(TimeoutError, match="no answer within"):
        line.ask(LONG)

    line.drop()


def test_a_large_command_has_more_time_from_its_connection_and_from_its_caller(
    stub: Stub, wait_budgets: WaitBudgets, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bounds, "LEAST_BYTES_PER_S", len(PING) / AMPLE_S)
    pool = redis.ConnectionPool(host="127.0.0.1", port=stub.port, socket_timeout=0.1, protocol=2)
    line, budget, slow = RedisLine(Keys("test"), pool, AMPLE_S, wait_budgets), WaitBudget(0.1), threading.Event()
    line.ask(PING)
    monkeypatch.setattr(bounds, "LARGE_BYTES", len(PING))
    stub.before = lambda: slow.wait(AMPLE_S)
    threading.Timer(0.3, slow.set).start()

    with wait_budgets.within(budget):
        assert line.ask(PING) == b"OK"
        line.close()

    assert budget.left_s < 1
    assert pool.get_connection()._sock.gettimeout() == 0.1
    pool.disconnect()


OP = [Append(0, 1, (b"op",))]
TAKEN = b"$10\r\nok 1 0 7 0\r\n"


@pytest.fixture
def hasty(stub: Stub, wait_budgets: WaitBudgets) -> Iterator[RedisLine]:
    """A line that is connected, whose first try soon ends."""
    pool = redis.ConnectionPool(host="127.0.0.1", port=stub.port, socket_timeout=0.05, protocol=2)
    line = RedisLine(Keys("test"), pool, 0.02, wait_budgets)
    with wait_budgets.within(wait_budgets.budget()):
        assert any(_answers(line) for _ in clock.polls(AMPLE_S))  # a busy machine may need several tries
        yield line
    line.drop()
    pool.disconnect()


def _answers(line: RedisLine) -> bool:
    try:
        line.connect()
    except LogUnavailable:
        return False
    return True


def test_a_server_that_is_busy_for_longer_than_a_first_try_answers_on_the_same_connection(stub: Stub, hasty: RedisLine):
    """Another connection would take the busy server several turns more: with ten ops of 10 MB there, too many."""
    free, before = threading.Event(), stub.taken
    stub.before, stub.replies = lambda: free.wait(AMPLE_S), [(TAKEN,)]
    threading.Timer(0.2, free.set).start()

    [placed] = hasty.append(SCOPE, 7, 1, OP, "", 0).placed

    assert placed.position == Position(7, 0)
    assert stub.taken == before


def test_on_a_connection_that_has_idled_for_long_a_silent_server_is_asked_over_another(stub: Stub, hasty: RedisLine):
    """A firewall may have dropped the first one without a word."""
    before = stub.taken
    hasty._used_s -= HEALTH_CHECK_S
    stub.replies = [(), (TAKEN,)]

    [placed] = hasty.append(SCOPE, 7, 1, OP, "", 0).placed

    assert placed.position == Position(7, 0)
    assert stub.taken == before + 1


def test_a_server_that_is_silent_for_all_of_a_budget_is_taken_for_silent(
    stub: Stub, hasty: RedisLine, wait_budgets: WaitBudgets
):
    """So the breaker opens, and no later request waits."""
    stub.replies, wait_budgets.hardly_s = [()], 0.0

    with wait_budgets.within(WaitBudget(0.1)), pytest.raises(LogUnavailable) as raised:
        hasty.append(SCOPE, 7, 1, OP, "", 0)

    assert raised.value.silent
    assert raised.value.sent


def test_what_can_be_done_without_has_a_share_of_a_budget_and_leaves_the_rest(wait_budgets: WaitBudgets):
    budget = WaitBudget(1.0)

    with wait_budgets.within(budget), wait_budgets.part(0.25):
        assert budget.left_s == 0.25
        budget.left_s -= 0.5  # it took longer

    assert budget.left_s == 0.5


def test_a_cold_process_has_all_of_its_budget_for_each_step():
    budgets = WaitBudgets(1.0, cold=True)
    budget = WaitBudget(1.0)

    with budgets.within(budget), budgets.part(0.25):
        assert budget.left_s == 1.0


def test_a_server_that_hangs_up_is_no_reply_also_in_a_thread(stub: Stub, line: RedisLine, wait_budgets: WaitBudgets):
    line.ask(PING)
    stub.replies = [(HANG_UP,)]

    with wait_budgets.within(wait_budgets.budget()):
        with pytest.raises(redis.exceptions.ConnectionError):
            line.ask(LONG)
        line.drop()
        line.ask(PING)

    assert stub.taken == 2


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("most_s", [AMPLE_S, math.inf])
def test_a_server_that_is_slow_at_first_is_asked_again_by_a_cold_process_only(stub: Stub, cold: bool, most_s: float):
    pool = redis.ConnectionPool(host="127.0.0.1", port=stub.port, socket_timeout=0.05, protocol=2)
    wait_budgets = WaitBudgets(most_s, cold=cold)
    line = RedisLine(Keys("test"), pool, 0.02, wait_budgets)
    stub.replies = [(), (), (), (b"$10\r\nok 1 0 7 0\r\n",)]

    with wait_budgets.within(wait_budgets.budget()):
        if cold:
            [placed] = line.append(SCOPE, 7, 1, [Append(0, 1, (b"op",))], "", 0).placed
            assert placed.position == Position(7, 0)
        else:
            with pytest.raises(LogUnavailable):
                line.append(SCOPE, 7, 1, [Append(0, 1, (b"op",))], "", 0)
    line.drop()
    pool.disconnect()


def test_a_server_that_is_not_there_keeps_a_cold_process_no_longer_than_another():
    with socket.socket() as bound:  # the port is nobody else's, and nobody listens
        bound.bind(("127.0.0.1", 0))
        pool = redis.ConnectionPool(host="127.0.0.1", port=bound.getsockname()[1], socket_timeout=AMPLE_S, protocol=2)
        line = RedisLine(Keys("test"), pool, 0.02, WaitBudgets(math.inf, cold=True))

        with pytest.raises(LogUnavailable, match="refused"):
            line.append(SCOPE, 7, 1, [Append(0, 1, (b"op",))], "", 0)
