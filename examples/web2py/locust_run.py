"""Locust's own process: `python locust_run.py URL USERS SECONDS` prints what came of it as JSON."""

from __future__ import annotations

import json
import sys

import gevent
from locust.env import Environment  # before all that opens sockets: it makes Python's gevent's

from examples.web2py.locustfile import Customer


def main(url: str, users: int, seconds: int) -> None:
    """Let users at the address, and print the figures."""
    environment = Environment(user_classes=[Customer], host=url)
    environment.create_local_runner()
    runner = environment.runner
    assert runner is not None
    runner.start(users, spawn_rate=max(1, 3 * users / seconds))
    gevent.sleep(seconds)
    gone = users - runner.user_count
    runner.quit()
    stats = environment.stats
    figures = {
        "stats": [
            {"name": entry.name, "num_requests": entry.num_requests, "num_failures": entry.num_failures}
            for entry in stats.entries.values()
        ],
        "failures": {
            **{f"{error.name}: {error.error}": error.occurrences for error in stats.errors.values()},
            **{str(error["msg"]): error["count"] for error in runner.exceptions.values()},
            **({"users gave up": gone} if gone else {}),
        },
        "p50_ms": stats.total.get_response_time_percentile(0.5),
        "p99_ms": stats.total.get_response_time_percentile(0.99),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
