"""Write → own read, over and over, while replication is slowed, stalled, stopped and killed: no answer may be stale.

`python -m support.servers.read_faults --pairs 100000`, with `tests` on the path, is the long run; the suite has a
short one.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.clock import Deadline, mono_s, polls, sleep_s
from pipeline.errors import StaleRead, Unavailable
from pipeline.reads.routing import PRIMARY_AWAY
from support.chance import SEED
from support.servers.proxy import Proxy
from support.servers.reads import ReadRig, read_rig

WRITERS = 4
#: How long a read may wait; one of them for each pair.
WAITS_S = (0.01, 0.02, 0.05, 0.25)
#: An own read that nobody has answered after so long is a failure of its own kind.
PATIENCE_S = 120.0
#: Also the oldest: every node shall be asked, and every answer judged.
OPTIONS = {"more": "\n[reads]\nmax_lag_s = 60\n"}


class Faults:
    """Breaks the replication of a rig, one or two replicas at a time, and mends it again."""

    def __init__(self, rig: ReadRig, chance: random.Random, longest_s: float):
        self._rig, self._chance, self._longest_s = rig, chance, longest_s
        self._promoted: set[str] = set()
        self.done: Counter[str] = Counter()
        self._links: dict[str, Proxy] = {}

    @contextmanager
    def linked(self) -> Iterator[None]:
        """Let replication run through proxies, which can stall it."""
        with ExitStack() as stack:
            for node in self._rig.all_replicas:
                link = self._links[node] = stack.enter_context(Proxy(self._rig.port(node.partition("-")[0])))
                self._rig.ask(node, f"STOP SLAVE; CHANGE MASTER TO MASTER_PORT={link.port}; START SLAVE")
            self._rig.settle()
            yield

    def one(self) -> None:
        """Cause one fault and mend it."""
        rig, chance = self._rig, self._chance
        shard = chance.choice([s for s in rig.client.topology.shards if s not in self._promoted] or [None])
        if shard is None:
            sleep_s(0.2)
            return
        nodes = rig.replicas(shard)
        some = nodes if chance.random() < 0.5 else [chance.choice(nodes)]
        name = chance.choice(["delay", "stop", "stall", "kill", "nothing"])
        self.done[name] += 1
        hold_s = chance.uniform(0.1, self._longest_s)
        if name == "delay":
            with rig.delayed(chance.randint(1, 30), *some):
                sleep_s(hold_s)
        elif name == "stop":
            with rig.stopped(*some):
                sleep_s(hold_s)
        elif name == "stall":
            for node in some:
                self._links[node].pause()
            sleep_s(hold_s)
            for node in some:
                self._links[node].resume()
        elif name == "kill":
            rig.cluster.kill(some[0])
            sleep_s(hold_s / 4)
            rig.cluster.start(some[0])
        else:
            sleep_s(min(hold_s, 1.0))

    def promote(self, shard: str) -> None:
        """Kill a primary that is ahead of its replicas, and promote one: what was not replicated is lost there."""
        rig, (new, other) = self._rig, self._rig.replicas(shard)
        self.done["promote"] += 1
        self._promoted.add(shard)
        for node in (new, other):
            self._links[node].pause()
        sleep_s(0.5)
        rig.cluster.kill(shard)
        for node in (new, other):
            self._links[node].resume()
        sleep_s(0.5)
        rig.ask(new, "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only=0")
        rig.ask(other, f"STOP SLAVE; CHANGE MASTER TO MASTER_PORT={rig.port(new)}; START SLAVE")


class Readers:
    """Threads that write and read their own write."""

    def __init__(self, rig: ReadRig, pairs: int):
        self._rig, self._pairs = rig, pairs
        #: No further pairs are begun before the last promotion, or a quick run would end without it.
        self.gate = int(pairs * 0.95)
        self._lock = threading.Lock()
        self.started = self.finished = 0
        self.stale: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0

    def run(self) -> list[threading.Thread]:
        """Start the threads."""
        threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(WRITERS)]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, number: int) -> None:
        chance = random.Random(f"{SEED} reader {number}")
        writer, reader = self._rig.new_client(), self._rig.new_client()
        rows: dict[int, tuple[Any, int]] = {}
        while self._next():
            try:
                self._pair(chance, writer, reader, number, rows)
            except Exception as error:
                with self._lock:
                    self.counts[f"error {type(error).__name__}: {error}"[:300]] += 1
            with self._lock:
                self.finished += 1
        writer.close()
        reader.close()

    def _next(self) -> bool:
        for _ in polls(24 * 3600, first_s=0.001, most_s=0.05):
            with self._lock:
                if self.started < self.gate or self.gate == self._pairs:
                    self.started += 1
                    return self.started <= self._pairs
        return False

    def _pair(self, chance: random.Random, writer: Any, reader: Any, number: int, rows: dict[int, Any]) -> None:
        """Write one op and read it: the row must be there, as new as the write, or gone."""
        sale = self._rig.db.sale
        kind = chance.choice(["insert", "update", "update", "update", "delete"]) if rows else "insert"
        customer = 100 * number + chance.randrange(100)
        if kind == "insert":
            receipt = writer.enqueue_insert(sale, customer=customer, qty=0)
            row_id, least = receipt.id, 0
            rows[row_id] = (customer, 0)
        else:
            row_id = chance.choice(list(rows))
            customer, least = rows[row_id]
            if kind == "update":
                least += 1
                receipt = writer.enqueue_update(sale.id == row_id, shard_key=customer, qty=sale.qty + 1)
                rows[row_id] = (customer, least)
            else:
                receipt = writer.enqueue_delete(sale.id == row_id, shard_key=customer)
                del rows[row_id]
        row, info = self._answer(reader, row_id, customer, receipt, chance.choice(WAITS_S))
        right = row is None if kind == "delete" else row is not None and row.qty >= least
        with self._lock:
            self.counts[f"{info.role}, {info.reason}"] += 1
            if not right:
                self.stale.append(f"{kind} of row {row_id}, wanted {least}: {row} from {info}; {receipt!r}")

    def _answer(self, reader: Any, row_id: int, customer: int, receipt: Any, wait_s: float) -> tuple[Any, Any]:
        """Read until somebody answers; a refusal is right, but no answer."""
        deadline = Deadline(PATIENCE_S)
        while True:
            try:
                with reader.read("sale", customer, after=receipt, wait_s=wait_s) as db:
                    row = db(db.sale.id == row_id).select().first()
                    # while a primary is away an answer is marked, although the replica has proved that it has the op
                    assert not db.read_info.stale or db.read_info.reason == PRIMARY_AWAY
                    break
            except (StaleRead, Unavailable) as error:
                with self._lock:
                    self.counts[f"refused, {getattr(error, 'stage', type(error).__name__)}"] += 1
                if deadline.passed:
                    raise
                sleep_s(0.02)
        with self._lock:
            self.slowest_s = max(self.slowest_s, deadline.waited_s)
        return row, db.read_info


def run(
    folder: Path, pairs: int, *, longest_s: float, tell: Callable[[str], object] = lambda line: None
) -> dict[str, Any]:
    """Return what became of so many pairs."""
    started_s = mono_s()
    with read_rig(folder, more=OPTIONS["more"]) as rig:
        faults = Faults(rig, random.Random(f"{SEED} faults"), longest_s)
        with faults.linked():
            readers = Readers(rig, pairs)
            threads = readers.run()
            promotions = {int(pairs * 0.7): "s0", int(pairs * 0.9): "s1"}
            for _ in polls(24 * 3600, first_s=0.01, most_s=0.02):
                due = [at for at in promotions if readers.finished >= at]
                if due:
                    faults.promote(promotions.pop(due[0]))
                    if not promotions:
                        readers.gate = pairs
                elif readers.finished < pairs:
                    faults.one()
                tell(f"{readers.finished} of {pairs} pairs, {len(readers.stale)} stale, {dict(faults.done)}")
                if readers.finished >= pairs or not any(thread.is_alive() for thread in threads):
                    break
            for thread in threads:
                thread.join(PATIENCE_S)
    return {
        "pairs": readers.finished,
        "stale": len(readers.stale),
        "examples": readers.stale[:10],
        "answers": dict(readers.counts),
        "faults": dict(faults.done),
        "slowest_s": round(readers.slowest_s, 3),
        "seconds": round(mono_s() - started_s, 1),
        "seed": SEED,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--longest-fault-s", type=float, default=30.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="pipeline-reads-") as folder:
        result = run(
            Path(folder) / "cluster",
            options.pairs,
            longest_s=options.longest_fault_s,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(json.dumps(result, indent=2))
    return 0 if result["stale"] == 0 and not any(key.startswith("error") for key in result["answers"]) else 1


if __name__ == "__main__":
    sys.exit(main())
