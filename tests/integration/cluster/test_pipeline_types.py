"""I14: a row of every type goes from the caller to the shard and reads back equal, through pyDAL itself."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from typing import Any

import pytest
from pydal import DAL, Field
from support.chance import chance
from support.servers.rig import Rig

from pipeline.admin.migration import migrate
from pipeline.client import Client

pytestmark = pytest.mark.mariadb

#: Texts that break what escapes, cuts or converts badly.
TEXTS = [
    "",
    " ",
    "plain",
    "O'Brien",
    "back\\slash",
    "\\'",
    "''",
    "%s %(x)s",
    "\u00e9\u4e2d\U0001f600",
    "\x00\x1a\n\r\t",
    '"; --',
]


def test_a_row_of_every_type_reads_back_as_it_was_sent(mariadb: Rig) -> None:
    client, luck = Client(mariadb.config), chance("types")
    db = define()
    client.define_tables(db)
    migrate(client)
    rows = [random_row(luck) for _ in range(60)] + [extreme_row(end) for end in (0, 1)] + [{}]

    receipts = [client.enqueue_insert(db.every, row) for row in rows]
    client.wait_all(receipts, timeout_s=60)

    for row, receipt in zip(rows, receipts, strict=True):
        read = client.get_db("every", receipt.id).every(receipt.id)
        assert read is not None
        for name in db.every.fields:
            sent = row.get(name) if name != "id" else receipt.id
            assert comparable(read[name]) == comparable(sent), name
    client.close()


def test_updates_of_every_type_read_back_as_they_were_sent(mariadb: Rig) -> None:
    client, luck = Client(mariadb.config), chance("updates")
    db = define()
    client.define_tables(db)
    migrate(client)
    rows = [random_row(luck) for _ in range(30)]
    receipts = [client.enqueue_insert(db.every, random_row(luck)) for _ in rows]

    last = [client.enqueue_update(db.every, r.id, row) for r, row in zip(receipts, rows, strict=True)]
    client.wait_all([*receipts, *last], timeout_s=60)

    for row, receipt in zip(rows, receipts, strict=True):
        read = client.get_db("every", receipt.id).every(receipt.id)
        assert {name: comparable(read[name]) for name in row} == {name: comparable(row[name]) for name in row}
    client.close()


def define() -> Any:
    """Return a DAL with a table that has a column of every type."""
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table(
        "every",
        Field("a_string", length=200),
        Field("a_text", "text"),
        Field("a_blob", "blob"),
        Field("a_boolean", "boolean"),
        Field("an_integer", "integer"),
        Field("a_bigint", "bigint"),
        Field("a_double", "double"),
        Field("a_float", "float"),
        Field("a_decimal", "decimal(20,6)"),
        Field("a_date", "date"),
        Field("a_time", "time"),
        Field("a_datetime", "datetime"),
        Field("a_password", "password"),
        Field("an_upload", "upload"),
        Field("a_json", "json"),
        Field("strings", "list:string"),
        Field("integers", "list:integer"),
        Field("references", "list:reference every", rname="`refs`"),
        Field("a_reference", "reference every"),
    )
    return db


def random_row(luck: random.Random) -> dict[str, Any]:
    """Return a value of each type; some None."""
    text = luck.choice(TEXTS)
    row = {
        "a_string": text[:100],
        "a_text": text * luck.randrange(1, 200),
        "a_blob": luck.randbytes(luck.randrange(0, 300)),
        "a_boolean": luck.random() < 0.5,
        "an_integer": luck.randrange(-(2**31), 2**31),
        "a_bigint": luck.randrange(-(2**63), 2**63),
        "a_double": luck.uniform(-1, 1) * 10.0 ** luck.randrange(-300, 300),
        "a_float": float(f"{luck.uniform(-1e6, 1e6):.6g}"),
        "a_decimal": Decimal(luck.randrange(-(10**20) + 1, 10**20)).scaleb(-6),
        "a_date": dt.date(luck.randrange(1000, 9999), luck.randrange(1, 13), luck.randrange(1, 29)),
        "a_time": dt.time(luck.randrange(24), luck.randrange(60), luck.randrange(60)),
        "a_datetime": dt.datetime(luck.randrange(1000, 9999), luck.randrange(1, 13), 28, 23, 59, luck.randrange(60)),
        "a_password": "secret\\' " + text[:20].strip() + "x",
        "an_upload": "every.file.0123456789abcdef.txt",
        "a_json": {"key": [1, 2.5, None, True, text], "deep": {"er": text}},
        "strings": ["a|b", "c", text + "."],
        "integers": [luck.randrange(-1000, 2**40) for _ in range(3)],
        "references": [luck.randrange(1, 2**60) for _ in range(2)],
        "a_reference": luck.randrange(1, 2**60),
    }
    return {name: None if luck.random() < 0.1 else value for name, value in row.items()}


def extreme_row(end: int) -> dict[str, Any]:
    """Return the least or the greatest value of each type that has one."""
    return {
        "a_string": "\U0001f600" * 200 if end else "",
        "an_integer": 2**31 - 1 if end else -(2**31),
        "a_bigint": 2**63 - 1 if end else -(2**63),
        "a_double": 1.7976931348623157e308 if end else 2.2250738585072014e-308,
        "a_decimal": Decimal("99999999999999.999999") * (1 if end else -1),
        "a_date": dt.date(9999, 12, 31) if end else dt.date(1000, 1, 1),
        "a_time": dt.time(23, 59, 59) if end else dt.time(0, 0, 0),
        "a_datetime": dt.datetime(9999, 12, 31, 23, 59, 59) if end else dt.datetime(1000, 1, 1),
        "a_blob": bytes(range(256)) if end else b"",
        "a_json": [] if end else {},
    }


def comparable(value: Any) -> Any:
    """Return a value so that what pyDAL reads compares with what was given: it reads a blob that is UTF-8 as text."""
    if isinstance(value, list):
        return [comparable(one) for one in value] or None
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
