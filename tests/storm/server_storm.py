"""Schedules on real servers: MariaDB with replicas, Redis, workers, callers in threads; servers stay up in between.

The seed fixes what is called, what fails, and when; what comes first within a millisecond is up to the machine.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storm import evidence, families
from storm.deeds import DONE, Caller, Deed, all_deeds, told_together
from storm.judge import rows_of, verdict
from storm.nemesis import FORGETTING, Nemesis, sleep_s, wait_healthy
from storm.outcome import Outcome
from support.servers.proxy import Proxy
from support.servers.rig import Rig, rig_of
from support.tables import TABLES_TOML

from pipeline import clock
from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.errors import PipelineError

OWNERS = 4
#: How long a schedule calls and breaks, s.
LOAD_S = (1.5, 4.0)
#: After so long without a fault everything must be accounted for, s.
RECOVERY_S = 60.0
#: What was not back in time is followed for so much longer, s: late is not never.
LATE_S = 90.0
#: A caller pauses so long between two calls at most, s.
PAUSE_S = 0.02
TABLES = TABLES_TOML + families.TOML
SPOOL = '[spool]\npath = "{}"\n'
#: What a receipt says at last.
FINAL = (*DONE, "lost", "dropped", *families.SET_ASIDE)


class Storm:
    """Runs schedules on one rig.

    Args:
        only: the faults to choose from; none: all.
    """

    def __init__(self, rig: Rig, proxy: Proxy, only: Sequence[str] = ()):
        self.rig, self.proxy, self._only = rig, proxy, only
        folder = rig.cluster.directory / "run"
        self.spools = [folder / f"{host}.spool" for host in ("a", "b")]
        ports = {rig.port("redis"): proxy.port}
        redis = "[redis]\ntimeout_s = 0.25\n"
        self.clients = [Client(rig.config_through(ports, SPOOL.format(path), redis)) for path in self.spools]
        families.define(rig.db)
        for client in self.clients:
            client.define_tables(rig.db)
        migrate(self.clients[0])
        self._restarted: dict[str, int] = {}

    def run(self, seed: int) -> Outcome:
        """Run one schedule, and judge it."""
        outcome, luck = Outcome("servers", seed), random.Random(f"storm {seed}")
        owners = self.rig.owners(OWNERS)
        shared = self._settled_rows(owners)
        callers = [
            Caller(
                f"s{seed}c{n}", self.clients[n % 2], self.rig.db, random.Random(luck.random()), shared,
                luck.choice(("redis", "redis", "spooled")),
            )
            for n in range(4)
        ]  # fmt: skip
        nemesis = Nemesis(self.rig, luck, self.proxy, self.spools, owners)
        mains = {name: self.rig.pid(name) for name in self.rig.workers}
        with _calling(callers):
            self._break(nemesis, luck, outcome)
        wait_healthy(self.rig)
        for caller in callers:
            caller.last()
        self._follow(callers, seed)
        rows = rows_of(self.rig.primaries, owners)
        may_lose = bool(FORGETTING & outcome.faults.keys())
        outcome.broken += verdict(callers, rows, may_lose=may_lose, in_order=True)
        if "worker killed" not in outcome.faults:
            outcome.broken += [f"worker ended: {n}" for n, pid in mains.items() if not _lives(pid)]
        outcome.count(callers)
        return outcome

    def close(self) -> None:
        """Close the callers' clients."""
        for client in self.clients:
            client.close()

    # parts --------------------------------------------------------------------------------------------------

    def _break(self, nemesis: Nemesis, luck: random.Random, outcome: Outcome) -> None:
        deadline = clock.Deadline(luck.uniform(*LOAD_S))
        sleep_s(luck.uniform(0.1, 0.5))
        while not deadline.passed:
            name = luck.choice(list(self._only or nemesis.faults))
            outcome.faults[name] += 1
            with nemesis.fault(name):
                sleep_s(nemesis.duration_s())
            sleep_s(luck.uniform(0.0, 0.4))

    def _settled_rows(self, owners: list[int]) -> dict[int, int]:
        made = {n: self.rig.client.enqueue_insert(self.rig.db.tally, owner=n, name="shared") for n in owners}
        for receipt in made.values():
            receipt.wait(RECOVERY_S)
        return {owner: receipt.id for owner, receipt in made.items()}

    def _follow(self, callers: list[Caller], seed: int) -> None:
        """Note the last word on each deed, or what is said when the time is over; then keep what tells why."""
        clients = {id(deed): caller.client for caller in callers for deed in caller.deeds}

        def followed(deeds: list[Deed], for_s: float) -> list[Deed]:
            for _ in clock.polls(for_s, first_s=0.05, most_s=0.5):
                for deed in deeds:
                    deed.told = _told(clients[id(deed)], deed)
                deeds = [deed for deed in deeds if not set(deed.told.split(" and ")) <= set(FINAL)]
                if not deeds:
                    break
            return deeds

        if late := followed([deed for deed in all_deeds(callers) if deed.receipts], RECOVERY_S):
            kept, told = evidence.keep(self.rig, seed, callers, late), [deed.told for deed in late]
            began_s = clock.mono_s()
            left = len(followed(late, LATE_S))
            evidence.add(kept, f"{left} of {len(late)} left {clock.mono_s() - began_s:.0f} s after that")
            for deed, said in zip(late, told, strict=True):
                deed.told = said


def _told(client: Any, deed: Deed) -> str:
    try:
        told = {str(client.follower.status(receipt)) for receipt in deed.receipts}
    except PipelineError:
        return "unknown"
    return told_together(told)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _calling(callers: list[Caller]) -> Iterator[None]:
    """Let all callers call, each in its thread, until the block ends."""
    ended = threading.Event()

    def call(caller: Caller) -> None:
        while not ended.is_set():
            try:
                caller.act()
            except Exception as error:  # whatever a caller sees and must not is for the judge
                caller.surprises.append(f"{caller.name}: {type(error).__name__}: {error}")
            ended.wait(caller.pause_s(PAUSE_S))

    threads = [threading.Thread(target=call, args=(caller,), name=caller.name) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(RECOVERY_S)


@contextmanager
def storm(directory: Path, only: Sequence[str] = ()) -> Iterator[Storm]:
    """Bring up what a storm needs; *only*: see `Storm`."""
    with (
        rig_of(
            directory / "cluster",
            "mariadb",
            shards=2,
            replicas=1,
            workers=2,
            buckets=16,
            tables=TABLES_TOML + families.TOML,
        ) as rig,
        Proxy(rig.port("redis")) as proxy,
    ):
        made = Storm(rig, proxy, only)
        try:
            yield made
        finally:
            made.close()
