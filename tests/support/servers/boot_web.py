"""What a web application calls, run as its own user with `web.env`: publish its tables, or every call once.

`python boot_web.py publish|write|spool|refused FOLDER` prints what a test is to know as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from pydal import DAL, Field

import pipeline
from pipeline import api
from pipeline.web.outbox import Outbox
from pipeline.web.request import Request

DAY = date(2026, 1, 2)
#: How long a call may wait for workers and replicas, s.
WAIT_S = 20.0


def application(folder: Path) -> Any:
    """Return the application's own database, whose tables are on the shards."""
    db = DAL(f"sqlite://{folder}/own.sqlite", folder=str(folder))
    db.define_table("country", Field("name", "string", length=40, unique=True), migrate=False)
    db.define_table(
        "purchase",
        Field("customer", "integer"),
        Field("day", "date"),
        Field("qty", "integer"),
        Field("note", "string", length=20),
        migrate=False,
    )
    return db


def write(db: Any) -> dict[str, Any]:
    """Enqueue every kind of op and read it by every way; each is awaited."""
    table = db.purchase
    done = [pipeline.enqueue_insert(table, customer=c, day=DAY, qty=1) for c in range(1, 9)]
    done += pipeline.enqueue_bulk_insert(table, [{"customer": c, "qty": 2} for c in range(11, 31)])
    done.append(pipeline.enqueue_insert(db.country, name="Peru"))
    keyed = [pipeline.enqueue_insert(table, customer=31, qty=3, idempotency_key="once") for _ in range(2)]
    first = done[0]
    key = table.id == first.id
    one = {"shard_key": 1}
    done += [*keyed, pipeline.enqueue_update(key, qty=table.qty + 4, **one)]
    done.append(pipeline.enqueue_upsert(table, key=["customer", "day"], customer=2, day=DAY, qty=9))
    done.append(pipeline.enqueue_delete(table.id == done[2].id, shard_key=3))
    with pipeline.atomic():
        done.append(pipeline.enqueue_insert(table, customer=32, qty=1))
        done.append(pipeline.enqueue_insert(table, customer=32, qty=2))
    done.append(pipeline.save_data("purchase", 33, {"qty": 3}))
    for durability in ("redis", "replica", "spooled", "applied"):
        done.append(pipeline.enqueue_insert(table, customer=34, qty=1, durability=durability))
    pipeline.wait_all(done, timeout_s=WAIT_S)
    pipeline.barrier("purchase", timeout_s=WAIT_S)
    attached(db)
    outbox(db)
    queued = pipeline.enqueue_update(key, note="queued", **one)
    seen = pipeline.get(table, first.id, pending=True).note
    parsed = pipeline.Receipt.parse(str(queued))
    with pipeline.read("purchase", shard_key=1, after=queued) as reader:
        node = reader.read_info.node
    return {
        "pending": seen,
        "status": parsed.wait(WAIT_S),
        "got": pipeline.get(table, first.id, after=queued).qty,
        "upserted": [row.qty for row in pipeline.select(table.customer == 2, after=done)],
        "same": keyed[0].id == keyed[1].id,
        "count": pipeline.count(table.id > 0, after=done),
        "primary": pipeline.get_db("purchase", 1)(key).count(),
        "node": node,
        "receipt": str(queued),
        "fsync": fsync(table),
    }


def fsync(table: Any) -> str:
    """Return what becomes of an op that is to be on the disk of Redis, which Redis 7.0 cannot say."""
    try:
        return pipeline.enqueue_insert(table, customer=35, qty=1, durability="fsync").wait(WAIT_S)
    except pipeline.errors.PipelineError as error:
        return str(error)


def attached(db: Any) -> None:
    """Write by pyDAL's own words."""
    pipeline.attach(db.purchase)
    row_id = db.purchase.insert(customer=41, qty=1)
    db(db.purchase.id == row_id).update(qty=2)
    db(db.purchase.id == row_id).delete()
    db.commit()


def outbox(db: Any) -> None:
    """Write by a table of the application's own database, sent after its commit."""
    client = api.current()
    request = Request(client, Outbox(db, client))
    receipt = request.enqueue_insert("purchase", customer=42, qty=1)
    db.commit()
    request.send()
    receipt.wait(WAIT_S)


def spool(db: Any) -> dict[str, Any]:
    """Write while Redis takes nothing."""
    return {"status": pipeline.enqueue_insert(db.purchase, customer=51, qty=1).status()}


def refused(db: Any) -> dict[str, Any]:
    """Write what the database refuses, twice."""
    for _ in range(2):
        pipeline.enqueue_insert(db.country, name="Peru")
    return {}


def publish(db: Any) -> dict[str, Any]:
    """Publish the tables."""
    pipeline.define_tables(db)
    return {}


if __name__ == "__main__":
    db = application(Path(sys.argv[2]))
    if sys.argv[1] != "publish":
        pipeline.define_tables(db)
    print(json.dumps(globals()[sys.argv[1]](db)))
    pipeline.close()
