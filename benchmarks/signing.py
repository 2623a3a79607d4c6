"""Time an enqueue with `sign_key` beside one without: calls in turn, on one Redis, from one process.

python -m benchmarks.signing --rounds 4000
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from typing import Any

from pydal import DAL, Field

from benchmarks.one_redis import one_redis
from benchmarks.turns import HEAD, in_turn, report
from pipeline.client import Client

KEYS = {"signed": "k" * 40, "plain": ""}
GOAL = "≤ 1.1 ×"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4000)
    rounds = parser.parse_args().rounds
    with one_redis() as redis, ExitStack() as stack:
        db = stack.enter_context(closing(DAL("sqlite:memory", bigint_id=True, migrate=False)))
        db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"), Field("note", length=80))
        clients = [stack.enter_context(closing(redis.client(name, db, sign_key=key))) for name, key in KEYS.items()]
        print(HEAD)
        report("an insert, signed; beside: not signed", *in_turn(rounds, *(_insert(one, db) for one in clients)), GOAL)


def _insert(client: Client, db: Any) -> Any:
    return lambda: client.enqueue_insert(db.purchase, customer=7, qty=3, note="as long as what people write in notes")


if __name__ == "__main__":
    main()
