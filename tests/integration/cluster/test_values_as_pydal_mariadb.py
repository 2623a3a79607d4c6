"""What pyDAL stores on MariaDB without loss is stored alike on an attached table; all else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pytest
from pydal import DAL, Field
from support.examples import THOROUGH

from pipeline.errors import BadValue
from pipeline.model.schema import schema_of
from pipeline.model.values import lenient
from pipeline.model.values.texts import rounded
from pipeline.shard import NodeSession
from pipeline.shard.literals import encoder

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.filterwarnings("ignore:'(db|passwd)' is deprecated:DeprecationWarning"),  # pyDAL's words to PyMySQL
]

TYPES = {
    "name": "string", "words": "text", "config": "json", "tags": "list:string", "numbers": "list:integer",
    "money": "decimal(10,2)", "fine": "decimal(20,6)", "day": "date", "hour": "time", "moment": "datetime",
    "whole": "integer", "weight": "double", "paid": "boolean", "raw": "blob",
}  # fmt: skip
#: Values of each type: 11,200 in all in the thorough profile.
EACH = 800 if THOROUGH else 120
#: What must be taken, not refused, by the kind of the value.
TAKEN = {
    ("words", bytes), ("words", float), ("words", Decimal), ("words", bool), ("words", date), ("words", UUID),
    ("name", bytes), ("name", float), ("name", datetime), ("tags", int), ("config", Decimal), ("config", datetime),
    ("money", Decimal), ("fine", Decimal), ("money", float), ("config", tuple),
}  # fmt: skip


def scalar(random: Random) -> Any:
    moment = datetime(2000, 1, 1) + timedelta(seconds=random.randrange(10**9), microseconds=random.choice((0, 7)))
    return random.choice(
        [
            random.randint(-9, 9), random.randint(-(2**31), 2**31 - 1), random.choice(("", "a", "é|b", "7", "2.345")),
            random.uniform(-999, 999), random.choice((0.5, 1e22, 1e-7, 2.675, -0.005)), random.random() < 0.5,
            Decimal(random.randint(-(10**7), 10**7)).scaleb(-random.randint(0, 8)), Decimal(10) / 3, moment,
            moment.date(), moment.time(), moment.replace(tzinfo=UTC), UUID(int=random.getrandbits(128)),
            "caf\u00e9".encode(), b"\xff", None,
        ]
    )  # fmt: skip


def value(random: Random) -> Any:
    made = scalar(random)
    how = random.random()
    if how < 0.7:
        return made
    parts = [scalar(random) for _ in range(random.randint(0, 2))]
    return parts if how < 0.85 else tuple(parts) if how < 0.92 else {"a": made, "b": parts}


@pytest.fixture(scope="module")
def db(mariadb_uri: str) -> Iterator[Any]:
    """pyDAL as an application has it, on a table as it makes one."""
    db = DAL(mariadb_uri, migrate=False)
    db.executesql("CREATE DATABASE plain CHARACTER SET utf8mb4")
    db.executesql("USE plain")
    db.define_table("t", *(Field(name, type_) for name, type_ in TYPES.items()))
    kinds = {"decimal(10,2)": "DECIMAL(10,2)", "decimal(20,6)": "DECIMAL(20,6)", "json": "LONGTEXT",
             "string": "VARCHAR(512)", "text": "LONGTEXT", "boolean": "CHAR(1)", "blob": "LONGBLOB",
             "integer": "INT"}  # fmt: skip
    types = ", ".join(
        f"{n} {kinds.get(t, 'LONGTEXT' if t.startswith('list:') else t.upper())}" for n, t in TYPES.items()
    )
    for table in ("t", "queued"):
        db.executesql(f"CREATE TABLE {table} (id BIGINT AUTO_INCREMENT PRIMARY KEY, {types}) ENGINE=InnoDB")
    db.commit()
    yield db
    db.close()


@pytest.mark.parametrize("name", TYPES)
def test_what_pydal_stores_without_loss_is_stored_alike(db: Any, mariadb_uri: str, name: str) -> None:
    schema, random = schema_of(db.t), Random(name)
    column = schema.columns[schema.index[name]]
    final, taken, sent = lenient("t", column), set(), []
    session = NodeSession("s0", mariadb_uri.replace("/shop", "/plain"))
    encode = encoder(session.adapter, column)
    first = db.executesql("SELECT COALESCE(MAX(id), 0) FROM t")[0][0]
    for _ in range(EACH):
        given = value(random)
        try:
            queued = final(rounded(column.type, given) if isinstance(given, Decimal | float | str)
                           and column.kind == "decimal" else given)  # fmt: skip
        except BadValue:
            continue
        row = db.t.insert(**{name: given})
        sent.append((row, given, f"({int(row)}, {encode(queued)})"))
        taken.add(type(given))
    db.commit()
    with session.transaction():
        session.execute(f"REPLACE INTO queued (id, {name}) VALUES {', '.join(row for *_, row in sent)}")
    session.discard()

    plain, ours = (
        dict(db.executesql(f"SELECT id, {name} FROM {table} WHERE id > {first}")) for table in ("t", "queued")
    )
    differ = [(given, plain[int(row)], ours[int(row)]) for row, given, _ in sent if plain[int(row)] != ours[int(row)]]
    assert differ == []
    assert {kind for column_, kind in TAKEN if column_ == name} <= taken
