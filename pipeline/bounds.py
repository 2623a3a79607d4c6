"""Bound what a process keeps, what it sends or reads at once, and how long a caller may be kept waiting.

A program that defines tables of its users' names has no end of them.

How long a caller may be kept waiting, over all the steps of one call or of one web request.
Invariant: a caller with a budget waits only for small replies on an open connection. Whatever may hang in other ways
runs in a thread: a name look-up, a new connection, a database's answer. The caller leaves when its budget is used up.
So the bound holds whatever the time-outs of the parts add up to.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from pipeline import clock
from pipeline.errors import ConfigError, Unavailable

K = TypeVar("K")
V = TypeVar("V")

#: Definitions, tables and the like that one cache keeps.
MOST_DEFINITIONS = 2000
_Result = TypeVar("_Result")
Given = ParamSpec("Given")
#: A reply that took less than this share of the whole is not counted as waiting: a loop of many calls is no hang.
HARDLY = 0.1
#: A process that Redis has never answered waits at least so long, s: it has to import, to connect and to learn first,
#: and on a busy machine eight such processes take a second.
COLD_S = 2.0
#: A busy Redis takes in so many bytes a second: a large op has that much more time, and so has its caller.
LEAST_BYTES_PER_S, LARGE_BYTES = 20_000_000, 1_000_000


def keep_newest(cache: dict[K, V], key: K, value: V, most: int = MOST_DEFINITIONS) -> V:
    """Put a value into a cache, and return it; from a full one the oldest goes, and is made anew when it is needed.

    Threads may share the cache. What is looked up stays no longer for that: a look-up costs what a dict's does.

    Args:
        cache: changed.
        key: of the value.
        value: to keep.
        most: how many values the cache keeps, 1 or more.
    """
    try:
        while len(cache) >= most and key not in cache:
            del cache[next(iter(cache))]
    except (KeyError, RuntimeError, StopIteration):
        pass  # another thread makes room at this moment
    cache[key] = value
    return value


def portions(sized: Iterable[tuple[V, int]], most_bytes: int, most: int | None = None) -> Iterator[list[V]]:
    """Yield what goes together, in order: what is larger than a portion goes alone.

    Args:
        sized: each thing, and its bytes.
        most_bytes: of a portion.
        most: the most things of a portion; None: any number.
    """
    portion, size = list[V](), 0
    for thing, more in sized:
        if portion and (len(portion) == most or size + more > most_bytes):
            yield portion
            portion, size = [], 0
        portion.append(thing)
        size += more
    if portion:
        yield portion


def more_s(size_bytes: int) -> float:
    """Return how much longer than another a large op may take, s; 0 for one that is not large.

    Args:
        size_bytes: of the op, or of the command that appends it.
    """
    return size_bytes / LEAST_BYTES_PER_S if size_bytes >= LARGE_BYTES else 0.0


class WaitBudgetSpent(TimeoutError):
    """The time that a caller may wait is over; the step goes on in its thread, or was not begun."""


class WaitBudget:
    """What is left of the time that a caller may wait, s."""

    __slots__ = ("left_s",)

    def __init__(self, left_s: float):
        self.left_s = left_s


class _Here(threading.local):
    budget: WaitBudget | None = None


class WaitBudgets:
    """Keeps the budgets of the calls and requests under way, one per thread. A thread without one waits without limit.

    Args:
        most_s: of one call, or of one request; `math.inf` where there is nowhere to go instead.
        cold: whether this process has still to connect to Redis.

    Attributes:
        cold: until Redis has taken an op of this process, or has failed one: its silence says little before.
        ended: called at the end of each thread that works aside: it closes what belongs to the thread.
    """

    def __init__(self, most_s: float, *, cold: bool = False):
        self.most_s, self.cold = most_s, cold
        self.hardly_s = most_s * HARDLY
        self.here = _Here()
        self.ended: Callable[[], object] = lambda: None

    def budget(self) -> WaitBudget | None:
        """Return a whole budget; all calls of a web request share one. None: there is no limit."""
        if self.most_s == math.inf:
            return None
        return WaitBudget(max(self.most_s, COLD_S) if self.cold else self.most_s)

    @contextmanager
    def within(self, budget: WaitBudget | None) -> Iterator[None]:
        """Let this thread's calls use a budget instead of one each; with None nothing in the block has a limit."""
        here = self.here
        before, here.budget = here.budget, budget
        try:
            yield
        finally:
            here.budget = before

    @contextmanager
    def spending(self, from_s: float = 0.0) -> Iterator[None]:
        """Take the time of the block off this thread's budget; if it goes well, only when it was at least so much."""
        began, budget = clock.mono_s(), self.here.budget
        try:
            yield
        except BaseException:
            from_s = 0.0
            raise
        finally:
            took_s = clock.mono_s() - began
            if budget is not None and took_s >= from_s:
                budget.left_s -= took_s

    @contextmanager
    def more(self, more_s: float) -> Iterator[None]:
        """Give this thread's budget so much more for the block."""
        budget = self.here.budget
        if budget is None:
            yield
            return
        budget.left_s += more_s
        try:
            yield
        finally:
            budget.left_s -= more_s

    def part(self, share: float) -> AbstractContextManager[None]:
        """Let the block use a share of what is left of this thread's budget; all of it in a cold process.

        Args:
            share: for something that can be done without.
        """
        budget = self.here.budget
        kept_s = 0.0 if budget is None or self.cold else max(0.0, budget.left_s) * (1 - share)
        return self.more(-kept_s)

    def lasts(self) -> None:
        """See that there is time for another step.

        Raises:
            WaitBudgetSpent: there is not.
        """
        budget = self.here.budget
        if budget is not None and budget.left_s <= 0:
            raise WaitBudgetSpent(f"the {self.most_s * 1000:.0f} ms that a request may wait are used up")

    def enter(self, lock: threading.Lock) -> None:
        """Acquire a lock that its holder keeps for a bounded time; the time counts."""
        if not lock.acquire(blocking=False):
            with self.spending():
                lock.acquire()

    def aside(
        self,
        work: Callable[[], _Result],
        *,
        late: Callable[[_Result], object] = lambda result: None,
        share: float = 1.0,
        from_s: float = 0.0,
    ) -> _Result:
        """Return what some work comes to; a thread does it if this one has a budget.

        Args:
            late: gets what comes when the caller has gone.
            share: of what is left, for something that can be done without.
            from_s: what takes less is not counted.

        Raises:
            WaitBudgetSpent: the budget, or the share, is used up; the work may go on, or was not begun.
            what the work raised.
        """
        budget = self.here.budget
        if budget is None:
            return work()
        self.lasts()
        with self.spending(from_s):
            future: Future[_Result] = Future()
            threading.Thread(
                target=perform, args=(work, future, self.ended), name="pipeline-aside", daemon=True
            ).start()
            return waited(future, budget.left_s * share, late)


def waited(future: Future[_Result], wait_s: float, late: Callable[[_Result], object] = lambda result: None) -> _Result:
    """Return a future's result.

    Args:
        late: gets it when it comes after all.

    Raises:
        WaitBudgetSpent: it did not come in time.
        what the work raised.
    """
    try:
        return future.result(wait_s)
    except BaseException as error:
        if future.done():  # the work's own error, or it ended this moment
            failed = future.exception()
            if isinstance(failed, Unavailable):  # others may wait for the same work
                raise failed.for_caller() from failed
            return future.result()
        future.add_done_callback(lambda ended: late(ended.result()) if ended.exception() is None else None)
        if isinstance(error, TimeoutError):
            raise WaitBudgetSpent(f"no answer within {wait_s * 1000:.0f} ms") from None
        raise


def perform(work: Callable[[], _Result], future: Future[_Result], ended: Callable[[], object]) -> None:
    """Do some work in this thread for those who wait for a future; then call *ended*."""
    try:
        found = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(found)
    finally:
        ended()


def require_threads() -> None:
    """Refuse a uWSGI that runs no threads: whatever may hang is done by one, so that a caller can leave.

    Raises:
        ConfigError: with the line to add.
    """
    # uWSGI's options do not tell: since 2.0.27 threads always run, before it `py-autoreload` and others start them too
    if not getattr(sys.modules.get("uwsgi"), "has_threads", True):
        raise ConfigError(["uWSGI runs no threads: add `enable-threads = true` to its ini file, or --enable-threads"])


class _Patient(Protocol):
    wait_budgets: WaitBudgets
    #: Of all calls together; None: each call has its own.
    budget: WaitBudget | None


Self = TypeVar("Self", bound=_Patient)


def in_all(method: Callable[Concatenate[Self, Given], _Result]) -> Callable[Concatenate[Self, Given], _Result]:
    """Let a method, with everything that it calls, wait no longer than its object's wait budget."""

    @wraps(method)
    def bounded(self: Self, /, *args: Given.args, **options: Given.kwargs) -> _Result:
        budgets = self.wait_budgets
        here = budgets.here
        # a request's, or that of the call which called this one; or nobody has one
        if here.budget is not None or budgets.most_s == math.inf:
            return method(self, *args, **options)
        # a process that has met Redis makes its own: a call more, on the path of every request
        here.budget = self.budget or (budgets.budget() if budgets.cold else WaitBudget(budgets.most_s))
        try:
            return method(self, *args, **options)
        finally:
            here.budget = None

    return bounded
