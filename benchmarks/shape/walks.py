"""Count at run time: the calls of a warm enqueue and of a warm read, and the kinds of object that a client wires.

The walks run in the sandbox of `pipeline.testing`: log in memory, shards in SQLite, no server.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
from pydal import DAL, Field

import pipeline
from pipeline.testing import sandbox

#: The folder of the tree that is measured: the one from which `pipeline` is imported.
ROOT = Path(pipeline.__file__).resolve().parents[1]
PACKAGES = ("pipeline", "workers")
TABLES = {"thing": {"shard_key": "owner"}}
#: The first call of a kind opens connections and fills caches; a background refresh may add calls to a later one.
WARM_UP, REPEATS = 3, 5
#: Comprehensions are frames of their own before Python 3.12, and are no calls to a reader.
NO_CALL = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
VALUES = (str, bytes, int, float, complex, type(None), type, types.ModuleType)


class Call(NamedTuple):
    """A call of a product function, and how many product calls are around it."""

    file: str
    function: str
    depth: int


class Walk(NamedTuple):
    """The calls of one public call, in order.

    A call is a function, method, property or lambda whose code is in a product file. Comprehensions and generated code
    (such as `__init__` of a dataclass) are not counted. A generator counts at each resumption.
    """

    calls: list[Call]

    @property
    def files(self) -> int:
        """Return how many different files the calls are in."""
        return len({call.file for call in self.calls})

    @property
    def moves(self) -> int:
        """Return how many calls are in another file than the call before."""
        return sum(before.file != after.file for before, after in pairwise(self.calls))


def enqueue() -> Walk:
    """Walk through `pipeline.enqueue_insert` of one row with two fields, one of them the shard key."""
    with _table() as (_, table):
        return _warm(lambda: pipeline.enqueue_insert(table, owner=7, name="kettle"))


def get() -> Walk:
    """Walk through `pipeline.get(table, receipt.id, after=receipt)` of an applied row, on a shard without replicas."""
    with _table() as (box, table):
        receipt = pipeline.enqueue_insert(table, owner=7, name="kettle")
        box.drain()
        return _warm(lambda: pipeline.get(table, receipt.id, after=receipt))


def wired() -> list[str]:
    """Return the kinds of object that a newly made client wires, as `module.Class`, sorted.

    The client has a spool and two shards, and is not yet used. A kind is a product class with an instance that can be
    reached from the client through attributes, slots, containers, bound methods, partials and closures. Values are no
    kinds: frozen dataclasses and structs, tuples and enums.
    """
    with TemporaryDirectory(prefix="pipeline-shape-") as folder:
        configuration = {
            "redis": {"url": "redis://shape.invalid/0"},  # never connected to
            "shards": {f"s{n}": {"primary": f"sqlite://{folder}/s{n}.sqlite"} for n in range(2)},
            "spool": {"enabled": True, "path": f"{folder}/spool"},
            "tables": TABLES,
        }
        try:
            kinds = {type(found) for found in _reachable(pipeline.configure(configuration))}
        finally:
            pipeline.close()
    return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if _is_kind(kind))


@contextmanager
def _table() -> Iterator[tuple[Any, Any]]:
    with sandbox(TABLES) as box:
        db = DAL("sqlite:memory")
        try:
            db.define_table("thing", Field("owner", "integer"), Field("name"))
            pipeline.define_tables(db)
            yield box, db.thing
        finally:
            db.close()


def _warm(call: Callable[[], Any]) -> Walk:
    """Return the shortest of some walks through a call that was made before."""
    for _ in range(WARM_UP):
        call()
    return min((_walk(call) for _ in range(REPEATS)), key=lambda walk: len(walk.calls))


def _walk(call: Callable[[], Any]) -> Walk:
    calls: list[Call] = []
    around: list[bool] = []  # a frame each: whether it counts

    def note(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call":
            file = _file_of(frame.f_code)
            if file is not None:
                calls.append(Call(file, frame.f_code.co_qualname, sum(around)))
            around.append(file is not None)
        elif event == "return" and around:
            around.pop()

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Walk(calls)


@functools.cache
def _file_of(code: types.CodeType) -> str | None:
    """Return the product file of a call, below the root; None if it does not count."""
    path = Path(code.co_filename)
    if code.co_name in NO_CALL or not path.is_relative_to(ROOT):
        return None
    file = path.relative_to(ROOT)
    return file.as_posix() if file.parts[0] in PACKAGES else None


def _is_kind(kind: type) -> bool:
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    frozen |= issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen
    return kind.__module__.split(".")[0] in PACKAGES and not frozen and not issubclass(kind, tuple | enum.Enum)


def _reachable(root: object) -> Iterable[object]:
    """Return every object that can be reached from one; of foreign objects, containers and functions alone go on."""
    seen: dict[int, object] = {}
    to_see = deque([root])
    while to_see:
        one = to_see.popleft()
        if id(one) not in seen and not isinstance(one, VALUES):
            seen[id(one)] = one  # kept, so that no later object gets the same id
            to_see.extend(_next_to(one))
    return seen.values()


def _next_to(one: Any) -> Iterator[Any]:
    if isinstance(one, types.FunctionType):
        yield from _captured(one)
    elif isinstance(one, types.MethodType):
        yield from (one.__self__, one.__func__)
    elif isinstance(one, functools.partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, dict):
        yield from (*one.keys(), *one.values())
    elif isinstance(one, list | tuple | set | frozenset | deque):
        yield from one
    if type(one).__module__.split(".")[0] in PACKAGES:
        yield from _attributes(one)


def _captured(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _attributes(one: Any) -> Iterator[Any]:
    yield from vars(one).values() if hasattr(one, "__dict__") else ()
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            if name != "__dict__" and hasattr(one, mangled):
                yield getattr(one, mangled)
