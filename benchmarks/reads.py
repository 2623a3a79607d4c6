"""Measure what routing costs: ratios of times taken alternately in one run, on MariaDB with two replicas per shard.

    python -m benchmarks.reads [--rounds 2000] [--cpu]

Each pair of figures is taken in turn, call by call, so that other load on the machine meets both alike. At the end
every shard is also read alone: a select over all shards is compared with the slowest of them, by hand too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pydal import DAL
from pydal.objects import Query
from support.servers.reads import ReadRig, read_rig

from benchmarks.by_hand import own_write_floor, together
from benchmarks.turns import HEAD, Call, cpu_in_turn, in_turn, median, report, timed

SHARDS = 4
#: Rows that a gathered select sorts on each shard.
ROWS = 4000
#: The delay of each server's answer, s: with it this machine's cores are not what is measured.
WAIT_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--cpu", action="store_true", help="measure the CPU of a call only")
    parsed = parser.parse_args()
    rounds = parsed.rounds
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder,
        read_rig(Path(folder) / "cluster", shards=SHARDS, replicas=1) as rig,
    ):
        receipts = fill(rig)
        print(HEAD)
        cpu(rig, receipts, rounds)
        if parsed.cpu:
            return
        single_row(rig, receipts, rounds)
        routing(rig, rounds)
        own_write(rig, min(rounds, 1000))
        own_write_floor(rig, min(rounds, 1000))
        gathered(rig, max(20, rounds // 20))


def fill(rig: ReadRig) -> list[Any]:
    rows = [{"customer": n, "qty": n * 7919 % 10007, "name": f"name {n}"} for n in range(SHARDS * ROWS)]
    receipts = list(rig.client.enqueue_bulk_insert(rig.db.sale, rows))
    rig.client.wait_all(receipts, 120)
    rig.settle()
    return receipts


def cpu(rig: ReadRig, receipts: list[Any], rounds: int) -> None:
    """Measure the CPU that a read takes of its process, against the same pyDAL selects on plain DALs."""
    receipt, client, sale = receipts[5], rig.client, rig.db.sale
    plains = [plain_dal(rig, shard) for shard in client.topology.shards]
    own = plains[client.topology.shards.index(rig.shard_of(5))]
    names = {"a get of one row": lambda: client.get(sale, receipt.id)}
    names["the same after its receipt"] = lambda: client.get(sale, receipt.id, after=receipt)
    for name, call in names.items():
        report(
            f"CPU: {name}",
            *cpu_in_turn(rounds, call, lambda: own(own.sale.id == receipt.id).select().first()),
            "≤ 1.3 ×",
        )
    one = lambda: client.select(sale.customer == 5)  # noqa: E731
    report("CPU: a select of one shard", *cpu_in_turn(rounds, one, lambda: own(own.sale.customer == 5).select()), "")
    page = {"orderby": ~sale.qty, "limitby": (0, 20)}

    def each() -> None:
        for db in plains:
            db(db.sale.qty < 9000).select(orderby=~db.sale.qty, limitby=(0, 20))

    four = cpu_in_turn(rounds // 4, lambda: client.select(sale.qty < 9000, **page), each)
    report(f"CPU: a page of 20 rows over {SHARDS} shards / {SHARDS} such selects of plain DALs", *four, "")
    for db in plains:
        db.close()


def plain_dal(rig: ReadRig, shard: str) -> DAL:
    """Return a plain DAL of a shard's replica, with the table defined."""
    uri = rig.client.nodes.uri(f"{shard}-r0")
    plain = DAL(uri, migrate=False, check_reserved=None, driver_args={"autocommit": True})
    plain.define_table("sale", *[field.clone() for field in rig.db.sale], migrate=False)
    return plain


def single_row(rig: ReadRig, receipts: list[Any], rounds: int) -> None:
    """Measure a routed read of one row against the same pyDAL select on a plain DAL, on the same node."""
    receipt = receipts[5]
    plain = plain_dal(rig, rig.shard_of(5))
    routed, alone = in_turn(
        rounds,
        lambda: rig.client.get(rig.db.sale, receipt.id),
        lambda: plain(plain.sale.id == receipt.id).select().first(),
    )
    report("one row by id, routed / a plain DAL", routed, alone, "≤ 1.15 ×")
    known, alone = in_turn(
        rounds,
        lambda: rig.client.get(rig.db.sale, receipt.id, after=receipt),
        lambda: plain(plain.sale.id == receipt.id).select().first(),
    )
    report("the same after a receipt that is known to be reached", known, alone, "0 round trips")
    plain.close()


def routing(rig: ReadRig, rounds: int) -> None:
    """Measure the decision alone, without a token: so often that one interruption of 1 ms does not make the p99."""

    def decide() -> None:
        with rig.client.read("sale", 5):
            pass

    (spent,) = in_turn(30 * rounds, decide)
    report("the decision alone, no token", spent, None, "p99 ≤ 0.05 ms")


def own_write(rig: ReadRig, rounds: int) -> None:
    """Measure a read of one's own applied write against the same read without a token.

    The difference is all that the token adds: a check whether the replica has the write, a wait for it, and a
    connection's first query. Each of the two follows a write of its own at once. A second read right behind the first
    would find server and caches warm. Until 2026-11-24 12:30 that was so, at a cost of 0.1 to 0.2 ms for ours.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds):
        receipt = rig.client.enqueue_insert(rig.db.sale, customer=number // 2, qty=1)
        receipt.wait(30)
        options = {} if number % 2 else {"after": receipt, "wait_s": 5}
        times[number % 2].append(timed(partial(rig.client.get, rig.db.sale, receipt.id, **options)))
    report("own write, just applied / the same read without a token", *times, "+ ≤ 0.5 / + ≤ 5 ms")


def gathered(rig: ReadRig, rounds: int) -> None:
    """Measure a sorted page over all shards against each shard alone."""
    sale = rig.db.sale
    options = {"orderby": ~sale.qty | sale.customer, "limitby": (0, 20)}

    def alone(shard: str, query: Any) -> Call:
        customer = rig.customer_on(shard)

        def call() -> None:
            with rig.client.read("sale", customer) as db:
                terms = db.reader.own(options["orderby"])
                db(query).select(orderby=terms, limitby=(0, 20))

        return call

    late = Query(rig.db, f"(SELECT SLEEP({WAIT_S}))=0") & sale.id.belongs(one_row_each(rig))
    notes = {
        "the servers share this machine's cores": sale.qty < 9000,
        f"each answers {WAIT_S * 1000:.0f} ms later": late,
    }
    for note, query in notes.items():
        select = partial(rig.client.select, query, **options)
        ours = [select, *[alone(shard, query) for shard in rig.client.topology.shards]]
        with together(rig, statements(rig, query, options)) as by_hand:
            times = in_turn(rounds, *ours, *by_hand)
        of_ours, of_hand = times[: len(ours)], times[len(ours) :]
        what = f"select over {SHARDS} shards"
        report(f"{what} / the slowest of them alone; {note}", of_ours[0], slowest(of_ours), "≤ 1.5 ×")
        report("by hand: those statements in threads / the slowest of them alone", of_hand[0], slowest(of_hand), "")
        report(f"{what} / by hand in threads", of_ours[0], of_hand[0], "")


def slowest(times: list[list[float]]) -> list[float]:
    """Return the times of the slowest shard alone; the first times are those of all shards together."""
    return max(times[1:], key=median)


def statements(rig: ReadRig, query: Any, options: dict[str, Any]) -> dict[str, str]:
    """Return by node the statement that each shard's replica runs for its part."""
    found = {}
    for shard in rig.client.topology.shards:
        with rig.client.read("sale", rig.customer_on(shard)) as db:
            terms = db.reader.own(options["orderby"])
            found[f"{shard}-r0"] = db(query)._select(orderby=terms, limitby=options["limitby"])
    return found


def one_row_each(rig: ReadRig) -> list[int]:
    """Return the id of one row of each shard: the server sleeps once for it."""
    ids = []
    for shard in rig.client.topology.shards:
        with rig.client.read("sale", rig.customer_on(shard)) as db:
            ids.append(db(db.sale.id > 0).select(limitby=(0, 1)).first().id)
    return ids


if __name__ == "__main__":
    main()
