"""Measure reads by hand, with nothing but PyMySQL: what to compare with where a plain DAL has no equivalent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pymysql
from support.servers.reads import ReadRig

from benchmarks.turns import Call, report, timed


def own_write_floor(rig: ReadRig, rounds: int) -> None:
    """Measure by hand a commit on a primary, and a wait for its GTID on the replica before the read."""
    shard = rig.client.topology.shards[0]
    rig.ask(shard, "CREATE TABLE shop.floor (id INT PRIMARY KEY, n INT); INSERT INTO shop.floor VALUES (1, 0)")
    times: tuple[list[float], list[float]] = ([], [])
    with cursor(rig, shard) as primary, cursor(rig, f"{shard}-r0") as replica:
        for number in range(2 * rounds):
            primary.execute(f"UPDATE shop.floor SET n = {number}")
            primary.execute("SELECT @@last_gtid")
            gtid = primary.fetchone()[0]

            def read(wait: bool = number % 2 == 0, gtid: str = gtid) -> None:
                if wait:
                    replica.execute(f"SELECT MASTER_GTID_WAIT('{gtid}', 5)")
                    replica.fetchall()
                replica.execute("SELECT * FROM shop.floor WHERE id = 1")
                replica.fetchall()

            times[number % 2].append(timed(read))
    report("by hand: MASTER_GTID_WAIT and a read in PyMySQL / that read alone", *times, "")


@contextmanager
def together(rig: ReadRig, statements: dict[str, str]) -> Iterator[list[Call]]:
    """Yield calls that send a statement to each node: to all at once, in threads; and to each alone."""
    with ExitStack() as open_, ThreadPoolExecutor(len(statements)) as threads:
        cursors = {node: open_.enter_context(cursor(rig, node)) for node in statements}

        def ask(node: str) -> None:
            cursors[node].execute(statements[node])
            cursors[node].fetchall()

        yield [
            lambda: wait([threads.submit(ask, node) for node in statements]),
            *[partial(ask, node) for node in statements],
        ]


@contextmanager
def cursor(rig: ReadRig, node: str) -> Iterator[Any]:
    """Yield a cursor of a connection of its own."""
    account = {"port": rig.port(node), "user": "root", "password": rig.cluster.password}
    with pymysql.connect(host="127.0.0.1", database="shop", autocommit=True, **account) as connection:
        yield connection.cursor()
