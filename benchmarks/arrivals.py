"""Send requests by a plan, whether or not earlier ones were answered, as the many users of a site do.

Clients that wait for an answer send less to a slow server than to a quick one, and nothing while the server is stuck.
The server's worst moments then count once instead of for every user whom they would have met ("coordinated omission").
So a time here begins at the planned moment, and two servers get the same plan.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from time import perf_counter, sleep

#: The most requests on their way at once; the wait of any more counts.
THREADS = 48
#: From the call until the first request, s: the threads have started by then.
LEAD_S = 0.05


def plan_of(rate: float, for_s: float, seed: int) -> list[float]:
    """Return when requests of independent users arrive, in s from now on: a Poisson process."""
    chance, moments, at_s = random.Random(seed), list[float](), 0.0
    while (at_s := at_s + chance.expovariate(rate)) < for_s:
        moments.append(at_s)
    return moments


def times_of(plan: Sequence[float], ask: Callable[[int], None]) -> list[float]:
    """Send requests by the plan, and return how long each answer took from its planned moment on, in s.

    Args:
        plan: moments in s from now on.
        ask: sends the request of that number and waits for its answer.

    Raises:
        Exception: what *ask* raised first.
    """
    times, faults = [0.0] * len(plan), list[BaseException]()
    numbers, turn, start_s = iter(range(len(plan))), threading.Lock(), perf_counter() + LEAD_S

    def work() -> None:
        try:
            while not faults:
                with turn:
                    number = next(numbers, None)
                if number is None:
                    return
                sleep(max(0.0, start_s + plan[number] - perf_counter()))
                ask(number)
                times[number] = perf_counter() - start_s - plan[number]
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(THREADS, len(plan)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return times
