"""Random requests in pyDAL's words, run on two copies of an application's rows: plain, and on the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from pydal import Field

from pipeline import clock
from pipeline.testing import Sandbox
from pipeline.web import own_reads
from pipeline.web.request import Request

#: A program has so many requests, each of up to three verbs.
REQUESTS = 40
#: A table that stays with the application's own DAL: written at once, in the request's transaction.
NEIGHBOUR = "desk"
TABLES = ("tag", "parent", "child", "loose", "strict", "node", "paper")
VALUES: dict[str, tuple[Any, ...]] = {
    "integer": (None, -3, 0, 2, 5, 9),
    "string": (None, "a", "b", "Ä|x", "", "it's", "x%_"),
    "text": (None, "a\\b", "ü\n", "", 5, 2.5, True),
    "double": (None, 1.5, 2, -0.25, 1e10),
    "boolean": (None, True, 0, "on", ""),
    "date": (None, date(2026, 2, 3), "2026-02-04", datetime(2026, 2, 5, 6, 7)),
    "datetime": (None, datetime(2026, 2, 3, 4, 5, 6, 999), "2026-02-04 05:06:07", date(2026, 2, 3)),
    "time": (None, time(4, 5, 6), "07:08:09"),
    "decimal(10,2)": (None, Decimal("1.25"), 3, "4.5"),
    "json": (None, {"a": [1, None, "ü"]}, [1, 2], "text", {"d": "x|y"}),
    "list:string": (None, ["a", "b"], [], ["x|y", "z"], "single", ["1", 2]),
    "list:integer": (None, [1, 2], [], ["3", 4]),
}
Verb = Callable[["Copy"], Any]


def define(db: Any, migrate: bool, neighbour: bool = False) -> None:
    number, up = Field("n", "integer"), lambda table, **rule: Field("up", f"reference {table}", **rule)
    kinds = [Field(kind.split("(")[0].replace(":", "_") + "_", kind) for kind in VALUES if kind != "integer"]
    db.define_table("tag", Field("name", unique=True), migrate=migrate)
    db.define_table("parent", Field("name", unique=True), number.clone(), migrate=migrate)
    db.define_table(
        "child",
        up("parent"),
        number.clone(default=1),
        Field("tags", "list:reference tag"),
        Field("twice", "integer", compute=lambda row: (row.n or 0) * 2),
        Field("renewed", "integer", update=7),
        *kinds,
        migrate=migrate,
    )
    db.define_table("loose", up("parent", ondelete="SET NULL"), number.clone(), migrate=migrate)
    db.define_table("strict", up("parent", ondelete="NO ACTION"), number.clone(), migrate=migrate)
    db.define_table("node", up("node"), number.clone(), migrate=migrate)
    active = Field("is_active", "boolean", default=True, writable=False, readable=False)
    db.define_table("paper", Field("title"), number.clone(), active, migrate=migrate)
    db._migrate = migrate  # else pyDAL creates the archive
    db.paper._enable_record_versioning(archive_db=db)
    if neighbour:
        db.define_table(NEIGHBOUR, number.clone(), Field("text_", "text"), Field("child", "bigint"), migrate=True)


class Copy:
    """One of two copies of an application's rows; a row is known by the number of its insert."""

    def __init__(self, db: Any):
        self.db = db
        self.ids: dict[str, list[int]] = {name: [] for name in (*TABLES, NEIGHBOUR)}

    def id_of(self, table: str, number: int | None) -> int | None:
        found = self.ids[table]
        return found[number] if number is not None and number < len(found) else None

    def rows(self, table: str, query: Any = None) -> list[str]:
        """Return rows in no order, with numbers in place of ids."""
        query = self.db[table].id > 0 if query is None else query
        found = self.db(query, ignore_common_filters=table == "paper").select(self.db[table].ALL)
        return sorted(repr([self._plain(row[field.name], field) for field in self.db[table]]) for row in found)

    def _plain(self, value: Any, field: Any) -> Any:
        kind, _, target = field.type.partition(" ")
        target = "child" if kind == "bigint" else target
        number = {int(row_id): n for n, row_id in enumerate(self.ids.get(target, ()))}
        if kind == "id" or value is None:
            return None
        if kind in ("reference", "bigint"):
            return number.get(int(value), f"? {value}")
        return [number.get(int(one)) for one in value] if kind == "list:reference" else value


class Program:
    """Chooses what requests do, the same for both copies."""

    def __init__(self, seed: int, model: Any):
        self._random, self._model = Random(seed), model
        self._tables = [name for name in (*TABLES, NEIGHBOUR) if name in model.tables]

    def verb(self) -> Verb:
        """Return something to do, of a table, a row of it and values, all by chance."""
        table, row, n = (
            self._random.choice(self._tables),
            self._random.randrange(7),
            self._random.choice(VALUES["integer"]),
        )
        given = {
            field.name: self._value(field.type)
            for field in self._model[table]
            if field.name not in ("id", "twice", "renewed", "is_active") and self._random.random() < 0.6
        }
        made = self._random.choice(VERBS)

        def verb(copy: Copy) -> Any:
            values = {name: value(copy) for name, value in given.items()}
            return made(copy, copy.db[table], copy.id_of(table, row), n, values)

        verb.__doc__ = f"{made.__name__} {table} {row} {n} {[*given]}"
        return verb

    def verbs(self) -> list[Verb]:
        return [self.verb() for _ in range(self._random.randint(1, 3))]

    def _value(self, kind: str) -> Callable[[Copy], Any]:
        """Return what makes a value for a column: ids are each copy's own."""
        _, _, target = kind.partition(" ")
        numbers = self._random.sample(range(5), 2)
        if kind.startswith("list:reference"):
            return lambda copy: [found for n in numbers if (found := copy.id_of(target, n))]
        if kind == "bigint":
            return lambda copy: copy.id_of("child", numbers[0])
        if kind.startswith("reference"):
            return lambda copy: copy.id_of(target, numbers[0]) if numbers[0] else None
        value = self._random.choice(VALUES[kind])
        return lambda copy: value


def insert(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    copy.ids[table._tablename].append(table.insert(**values))


def bulk_insert(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    copy.ids[table._tablename] += table.bulk_insert([values] if "name" in table.fields else [values, values])


def validate_and_insert(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> list[str]:
    made = table.validate_and_insert(**values)
    copy.ids[table._tablename] += [made["id"]] if made["id"] else []
    return sorted(made["errors"])


def validate_and_update(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    return row and values and sorted(copy.db(table.id == row).validate_and_update(**values)["errors"])


def update_or_insert(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> bool:
    key = table["name" if "name" in table.fields else "n"]
    if (value := values.get(key.name)) is None:
        return False
    made = table.update_or_insert(key == value, **values)
    copy.ids[table._tablename] += [made] if made else []
    return bool(made)


def update(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    if row and values:
        copy.db(table.id == row).update(**values)


def update_some(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    values.pop("name", None)
    if "n" in table.fields and values and n is not None:
        copy.db(table.n > n).update(**values)


def count_up(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    if "n" in table.fields and "twice" not in table.fields:
        copy.db(table.n == n).update(n=table.n + 2)


def delete(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    if row:
        copy.db(table.id == row).delete()


def delete_some(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    if "n" in table.fields:
        copy.db((table.n == n) | (table.n == None)).delete()  # noqa: E711 - pyDAL's way to say IS NULL


def update_record(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    found = row and table(row)
    if found:
        found.update_record(**values)
    return bool(found)


def delete_record(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    found = row and table(row)
    if found:
        found.delete_record()
    return bool(found)


def set_item(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> None:
    if row and values and table(row):
        table[row] = values


def read(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    ids = [one for one in copy.ids[table._tablename][:3] if one]
    return copy.rows(table._tablename), copy.rows(table._tablename, table.id.belongs(ids)), copy.db(table).count()


def lead_on(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    db = copy.db
    up = sorted(repr((one.n, one.up.name if one.up else None)) for one in db(db.child).select())
    down = sorted(
        repr((one.name, sorted(repr(leaf.n) for leaf in one.loose.select()))) for one in db(db.parent).select()
    )
    left = db(db.parent).select(left=db.loose.on(db.loose.up == db.parent.id))
    return up, down, sorted(repr((one.parent.name, one.loose.n)) for one in left)


def search(copy: Copy, table: Any, row: int | None, n: Any, values: dict[str, Any]) -> Any:
    child = copy.db.child
    tag = copy.id_of("tag", 1)
    asked = [child.list_string_.contains("a"), child.list_string_.contains("x|y"), child.text_.like("%\\%")]
    return [copy.db(query).count() for query in asked], tag and copy.db(child.tags.contains(tag)).count()


#: Insert more often than the others, so that there are rows.
VERBS: tuple[Callable[..., Any], ...] = (
    *(insert, insert, insert, bulk_insert, validate_and_insert),
    *(validate_and_update, update_or_insert, update_or_insert, update, update, update_some, count_up),
    *(delete, delete_some, update_record, update_record, delete_record, set_item),
    *(read, read, lead_on, search),
)


def drained_by_waiting(patch: pytest.MonkeyPatch, box: Sandbox) -> None:
    """Let ops be applied as soon as somebody waits for one."""
    patch.setattr(own_reads, "QUEUED_S", 60)
    patch.setattr(own_reads, "OWN_S", 60)
    patch.setattr(clock, "sleep_s", lambda seconds: box.drain())


def as_plain(box: Sandbox, plain: Any, ours: Any, seed: int, *, neighbour: bool = False) -> None:
    """Run one program on both copies; each request must read and leave the same in both.

    Args:
        box: has the tables of *ours*.
        plain: a DAL to an empty database.
        ours: a DAL to the database of the sandbox's one shard.
        seed: of the program.
        neighbour: whether one table is not attached: then workers and requests write to one database at once.
    """
    define(plain, migrate=True, neighbour=neighbour)
    define(ours, migrate=False, neighbour=neighbour)
    box.client.define_tables(ours)
    program, copies, token = Program(seed, plain), (Copy(plain), Copy(ours)), None
    for number in range(REQUESTS):
        verbs, request = program.verbs(), Request(box.client, box.client.held(), token, f"shop/default/{number}")
        for name in TABLES:
            request.attach(ours[name], "own")
        seen, done = run(copies[0], verbs), [verb.__doc__ for verb in verbs]
        if seen is None:  # the database refuses it: here that is known later, and what was sent before stands
            request.drop()
            break
        assert run(copies[1], verbs) == seen, done
        token = request.finish()
        box.drain()
        names = (*TABLES, "paper_archive", *([NEIGHBOUR] if neighbour else []))
        assert [copies[1].rows(name) for name in names] == [copies[0].rows(name) for name in names], done
        ours.commit()


def run(copy: Copy, verbs: list[Verb]) -> list[Any] | None:
    """Run a request's verbs and return what they gave; None where the database has refused one."""
    try:
        found = [verb(copy) for verb in verbs]
        copy.db.commit()
        return found
    except copy.db._adapter.driver.DatabaseError:
        return None
