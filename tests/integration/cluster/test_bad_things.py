"""I9 on real servers: beside each bad thing that others reported, ops of 200 keys are applied, once and in order.

The things are those of `python -m benchmarks --only containment`, which measures how long. Here workers meet one after
the other, with what they have learnt from those before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.fixtures import needs_mariadb

import pipeline
from benchmarks.peers import ours
from benchmarks.probes import bad_things
from benchmarks.probes.bad_things import CASES, GONE, Bad, everywhere
from benchmarks.probes.containment import KEYS, mend, names, observing
from benchmarks.probes.refused import FORGET
from benchmarks.processes import running
from benchmarks.rows import TABLE
from benchmarks.table import Table, open_table
from benchmarks.target import Target
from pipeline.admin.observe.record import Record
from pipeline.apply.pace import LEAST
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.errors import Rejected

pytestmark = pytest.mark.mariadb

LONG_S = 120
#: So many large ops are enough for each worker process to take one, and so large ones to be applied apart.
FEW, LARGE_BYTES = 8, 2_000_000
APPLIED = {"applied", "durable", "replayed"}
#: What holds its bucket, by design: the order of a bucket is what constraints count on.
HOLDS_ITS_BUCKET = {"locked", "newer"}
#: What the database says of a refused op.
SAYS = {
    "no partition for the value (1526)": "no partition for value",
    "a view's check option (1369)": "CHECK OPTION failed",
    "a generated column (1906)": "generated column",
    "a trigger whose function is gone (1305)": "odd_f does not exist",
    "a trigger whose definer is gone (1449)": "definer .*nobody.* does not exist",
    "a row too large (1118)": "Row size too large",
    "a statement that takes too long": "poison",
    "a statement that ends its worker": "poison",
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Two primaries, a Redis, and the worker of the README with two processes."""
    needs_mariadb()
    folder = tmp_path_factory.mktemp("bad") / "cluster"
    cluster = Cluster.up(folder, engine="mariadb", shards=2, replicas=0, workers=0, buckets=256, owned=True)
    try:
        config = cluster.config
        config.write_text(f"{config.read_text()}\n[apply]\nstatement_s = 3\n")
        yield Target.load(config)
    finally:
        pipeline.close()
        cluster.down(grace_s=0)


@pytest.fixture(scope="module")
def newest(target: Target) -> Iterator[Callable[[], Record]]:
    with observing(target) as made:
        yield made


@pytest.fixture(scope="module")
def prepared(target: Target) -> Iterator[tuple[Table, Any]]:
    with open_table(target) as table:
        purchase = ours.prepare(target)
        with running(target, ours.worker_command(node="bad")):
            yield table, purchase


@pytest.fixture
def purchase(target: Target, prepared: tuple[Table, Any]) -> Iterator[Any]:
    table, made = prepared
    yield made
    table.empty()
    everywhere(target, *FORGET, *GONE)


@pytest.mark.parametrize("name", CASES)
def test_beside_a_bad_thing_others_are_applied_in_order_and_it_is_named_and_mended(
    target: Target, purchase: Any, newest: Callable[[], Record], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(bad_things, "LARGE", FEW)
    monkeypatch.setattr(bad_things, "LARGE_BYTES", LARGE_BYTES)
    case, named = CASES[name]
    with case(target, purchase) as bad:
        rows = [pipeline.enqueue_insert(purchase, customer=n, note="1") for n in range(KEYS)]
        bad.receipts += bad.send()
        sent = list(rows)
        for word in "23":
            sent += [pipeline.enqueue_update(purchase.id == row.id, note=purchase.note + word) for row in rows]

        held = bad.buckets if named in HOLDS_ITS_BUCKET else set()
        pipeline.wait_all([one for one in sent if one.bucket not in held], timeout_s=LONG_S)
        if named is not None:
            assert any(names(newest(), named) for _ in polls(LONG_S)), newest().shards

        kept = sent_to_the_halted(bad) if named == "breaker" else []
        mend(target, bad)
        if named != "newer":  # no worker of this release ever knows what it means
            pipeline.wait_all(sent, timeout_s=LONG_S)
            assert notes(target) == dict.fromkeys(range(KEYS), "123")
        judge(name, named, bad)
        assert {receipt.wait(LONG_S) for receipt in kept} <= APPLIED


def sent_to_the_halted(bad: Bad) -> list[Any]:
    """Send again until all ops are kept: each worker process knows within a second that a shard has halted a table."""
    for _ in polls(LONG_S):
        receipts = bad.send()
        assert any(all(one.status() != "queued" for one in receipts) for _ in polls(LONG_S))
        if all(one.status() == "parked" for one in receipts):
            return receipts
    raise AssertionError("the table never halted everywhere")


def notes(target: Target) -> dict[int, str]:
    """Return what the rows of the load say, by their key."""
    found: dict[int, str] = {}
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT customer, note FROM {TABLE} WHERE customer < {KEYS}")
            found |= dict(cursor.fetchall())
    return found


def judge(name: str, named: str | None, bad: Bad) -> None:
    """See that the bad ops were refused with their reason; or applied, now that their cause is mended."""
    if named == "newer":
        return
    if named in ("rejected", "poison") and "junk" not in name:
        for receipt in bad.receipts:
            with pytest.raises(Rejected, match=SAYS.get(name)):
                receipt.wait(LONG_S)
        return
    if named == "breaker":
        fates = [fate(receipt) for receipt in bad.receipts]
        assert fates.count("rejected") >= LEAST
        assert set(fates) <= {"rejected", *APPLIED}
        return
    for receipt in bad.receipts:
        assert receipt.wait(LONG_S) in APPLIED


def fate(receipt: Any) -> str:
    try:
        return str(receipt.wait(LONG_S))
    except Rejected:
        return "rejected"
