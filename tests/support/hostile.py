"""A kept corpus of hostile values, and what every verb makes of them: exact, refused at the door, or set aside."""

from __future__ import annotations

import json
import math
import sqlite3
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count, cycle
from pathlib import Path
from typing import Any

from pydal import Field

from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.model.receipt import Receipt
from pipeline.model.values import python_value

_MAKE: Mapping[str, Callable[[Any], Any]] = {
    "bytes": b64decode,
    "float": float,
    "decimal": Decimal,
    "digits": lambda digits: 10**digits,
    "deep list": lambda levels: _deep(levels, lambda inner: [inner]),
    "deep dict": lambda levels: _deep(levels, lambda inner: {"'": inner}),
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
}


def fields() -> list[Any]:
    """Fields of every type, for the tables of one DAL."""
    return [
        Field("who", "integer"),
        Field("big", "bigint"),
        Field("weight", "double"),
        Field("price", "decimal(10,2)"),
        Field("ok", "boolean"),
        Field("name", "string", length=40),
        Field("note", "text"),
        Field("raw", "blob"),
        Field("data", "json"),
        Field("day", "date"),
        Field("clock", "time"),
        Field("at", "datetime"),
        Field("tags", "list:string"),
        Field("numbers", "list:integer"),
    ]


def corpus() -> list[Any]:
    """The values, in the same order always."""
    found = json.loads((Path(__file__).parent / "recorded" / "hostile.json").read_text("utf-8"))
    return [*found["as they are"], *(_MAKE[kind](given) for one in found["made"] for kind, given in one.items())]


def attack(
    client: Client, db: Any, values: Iterable[Any], names: Iterable[str], first_id: int, *, in_turn: bool = False
) -> Iterator[Attempt]:
    """Give each value to each field by every verb; yield what the door took.

    Args:
        client: the deployment.
        db: has the tables `event` and `keyed`, with `fields`; in `keyed` the name is unique.
        values: what to give.
        names: of the fields.
        first_id: rows get ids from here on.
        in_turn: whether each value and field have one verb, the next one of all.
    """
    ids, names, turn = count(first_id), tuple(names), cycle(VERBS)
    for value in values:
        for name in names:
            for verb in [next(turn)] if in_turn else VERBS:
                row = next(ids)
                try:
                    receipt = VERBS[verb](client, db, row, name, value)
                except PipelineError:
                    continue
                yield Attempt(verb, name, value, row, receipt)


class Attempt:
    """An op with a hostile value that the door took."""

    def __init__(self, verb: str, name: str, value: Any, row: int, receipt: Receipt):
        self.verb, self.name, self.value, self.row, self.receipt = verb, name, value, row, receipt

    def __repr__(self) -> str:
        return f"{self.verb} {self.name}={str(self.value)[:60]!r}"

    def wrong(self, client: Client, db: Any, rows: Mapping[int, Mapping[str, Any]]) -> str:
        """Return what is wrong with what became of the op, or the empty text.

        Args:
            client: the deployment.
            db: has the table.
            rows: of `event`, by id.
        """
        status = self.receipt.status()
        # upserts of one name are of one row: where the first is refused, as SQLite refuses a NUL, others wait behind it
        if status not in ("applied", "rejected") and (self.verb, status) != ("upsert", "parked"):
            return f"{self!r} is {status}"
        if self.name == "raw":  # pyDAL's `as_list` leaves blobs out
            return ""
        if status == "rejected" or self.verb not in ("insert", "bulk", "group", "update"):
            return ""
        compiled = client.op_builder.plan(db.event).compiled
        column = compiled.schema.columns[compiled.column_of[self.name]]
        expected = python_value(column, compiled.check[self.name](self.value))
        found = rows[self.row][self.name] if self.row in rows else "no row"
        if isinstance(expected, Decimal):  # `as_list` makes floats of these
            found = Decimal(str(found))
        return "" if found == expected else f"{self!r}: {expected!r:.80} was sent, {found!r:.80} is stored"


def _insert(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    return client.enqueue_insert(db.event, {"id": row, name: value})


def _bulk(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    return client.enqueue_bulk_insert(db.event, [{"id": row, name: value}])[0]


def _group(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    with client.atomic():
        receipt = client.enqueue_insert(db.event, {"id": row})
        client.enqueue_update(db.event.id == row, {name: value})
    return receipt


def _update(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    client.op_builder.plan(db.event).compiled.check[name](value)  # else the row would come alone
    client.enqueue_insert(db.event, {"id": row})
    return client.enqueue_update(db.event.id == row, {name: value})


def _upsert(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    return client.enqueue_upsert(db.keyed, {"name": f"n{row}", name: value}, key=["name"])


def _expression(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    computed = of_pydal(lambda: db.event[name] + value)
    return client.enqueue_update(db.event.id == row, {name: computed})


def _where(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    query = of_pydal(lambda: (db.event.id == row + 2**50) & (db.event[name] == value))
    return client.enqueue_delete(query)


def _belongs(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    query = of_pydal(lambda: (db.event.id == row + 2**50) & db.event[name].belongs([value, value]))
    return client.enqueue_delete(query)


def _key(client: Client, db: Any, row: int, name: str, value: Any) -> Receipt:
    return client.enqueue_insert(db.event, {"id": row, "name": name}, idempotency_key=value)


def of_pydal(make: Callable[[], Any]) -> Any:
    """Return what pyDAL makes, which may refuse a value in its own way, before the pipeline sees the value.

    Args:
        make: makes it.
    """
    try:
        return make()
    except (TypeError, ValueError, ArithmeticError, SyntaxError, RuntimeError, AttributeError) as error:
        raise PipelineError(str(error)) from error


VERBS: Mapping[str, Callable[[Client, Any, int, str, Any], Receipt]] = {
    "insert": _insert,
    "bulk": _bulk,
    "group": _group,
    "update": _update,
    "upsert": _upsert,
    "expression": _expression,
    "where": _where,
    "belongs": _belongs,
    "key": _key,
}


#: How a read may be asked with a value: as a value of a field, or as anything else that a call takes.
READS: Mapping[str, Callable[[Client, Any, str, Any], Any]] = {
    "query": lambda client, db, name, value: client.select(of_pydal(lambda: db.event[name] == value)),
    "order of values": lambda client, db, name, value: client.select(of_pydal(lambda: db.event[name] > value)),
    "belongs": lambda client, db, name, value: client.select(of_pydal(lambda: db.event[name].belongs([value, value]))),
    "counted": lambda client, db, name, value: client.count(of_pydal(lambda: db.event[name] != value)),
    "in a read": lambda client, db, name, value: _within(client, db, lambda node: node.event[name] == value),
    "orderby": lambda client, db, name, value: client.select(db.event, orderby=value),
    "groupby": lambda client, db, name, value: client.select(db.event.id > 0, db.event.who, groupby=value),
    "having": lambda client, db, name, value: client.select(
        db.event.id > 0, db.event.who, groupby=db.event.who, having=value
    ),
    "fields": lambda client, db, name, value: client.select(db.event.id > 0, value),
    "subselect": lambda client, db, name, value: client.select(of_pydal(lambda: db.event.id.belongs(value))),
    "limits": lambda client, db, name, value: client.select(db.event.id > 0, limitby=value),
    "id": lambda client, db, name, value: client.get(db.event, value),
    "pending": lambda client, db, name, value: client.get(db.event, value, pending=True),
    "after": lambda client, db, name, value: client.get(db.event, 1, after=value),
    "after, many": lambda client, db, name, value: client.select(db.event.id > 0, after=value),
    "shard key": lambda client, db, name, value: client.get(db.keyed, 1, shard_key=value),
}
#: What refuses a read; SQLite takes no NUL in a statement, and no parameter of more than 64 bits (line 3 of pyDAL).
REFUSALS = (PipelineError, sqlite3.ProgrammingError, OverflowError)
#: Reads that take a field and a value; the others take the value only.
OF_A_FIELD = ("query", "order of values", "belongs", "counted", "in a read")


def ask(client: Client, db: Any, values: Iterable[Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Give each value to each read place; yield what was read, by what it was asked with, where it was not refused.

    Each value and field meet in one of the places that take a field, the next one of all.

    Args:
        client: the deployment.
        db: see `attack`.
        values: what to ask with.
        names: of the fields.
    """
    names, turn = tuple(names), cycle(OF_A_FIELD)
    others = [way for way in READS if way not in OF_A_FIELD]
    for value in values:
        for way, name in [*((next(turn), name) for name in names), *((way, "") for way in others)]:
            try:
                yield f"{way} {name}", READS[way](client, db, name, value)
            except REFUSALS:
                continue


def _within(client: Client, db: Any, query: Callable[[Any], Any]) -> Any:
    with client.read(db.event, 1) as node:
        return node(of_pydal(lambda: query(node))).select()


def _deep(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = math.pi
    for _ in range(levels):
        value = wrap(value)
    return value
