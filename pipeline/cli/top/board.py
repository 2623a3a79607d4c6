"""Decide what a key does: what is selected, opened, confirmed and ordered; values only, no screen and no server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pipeline.admin.dead import AsideCount
from pipeline.admin.observe.record import Record, ShardRecord

Verb = Literal["pause", "resume", "count", "replay"]


class Order(NamedTuple):
    """What an operator wants done.

    Attributes:
        verb: `count` finds out how many ops a `replay` is about.
        shard: on which it was ordered; a table is paused and resumed on all.
        table: None: the whole shard.
        ops: of a replay, the positions by shard and bucket.
    """

    verb: Verb
    shard: str
    table: str | None = None
    ops: Mapping[str, Mapping[int, Any]] | None = None

    @property
    def what(self) -> str:
        """The shard or the table, in words."""
        return f"table {self.table}" if self.table else f"shard {self.shard}"


class Question(NamedTuple):
    """An order that waits for a yes."""

    text: str
    order: Order


class Sight(NamedTuple):
    """What the watcher has found.

    Attributes:
        record: the newest; None before the first.
        age_s: how long ago it was found.
        aside: what is set aside on the opened shard, or why that is not known.
    """

    record: Record | None = None
    age_s: float = 0.0
    aside: tuple[AsideCount, ...] | str = ()


#: Before the first look.
NOTHING = Sight()


@dataclass(frozen=True, slots=True)
class Board:
    """What the screen shows.

    Attributes:
        found: by the watcher.
        row: the selected shard, or on a shard's page 0 for the shard and from 1 on its tables.
        opened: the shard whose page is open.
        question: waits for a key.
        said: what became of the last order.
        busy: whether an order runs.
        ended: whether the operator has had enough.
    """

    found: Sight = NOTHING
    row: int = 0
    opened: str | None = None
    question: Question | None = None
    said: str = ""
    busy: bool = False
    ended: bool = False

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """All of them; none before the first look."""
        return self.found.record.shards if self.found.record else ()

    @property
    def shard(self) -> ShardRecord | None:
        """The shard that is open, or selected."""
        at = {one.shard: one for one in self.shards}
        if self.opened is not None:
            return at.get(self.opened)
        return self.shards[min(self.row, len(self.shards) - 1)] if self.shards else None

    @property
    def tables(self) -> list[str]:
        """The tables of the opened shard: stopped ones first, then the hottest."""
        return page_tables(self.shard) if self.opened and self.shard else []

    @property
    def table(self) -> str | None:
        """The selected table of the opened shard; None: the shard itself."""
        return self.tables[self.row - 1] if 0 < self.row <= len(self.tables) else None


def page_tables(shard: ShardRecord) -> list[str]:
    """Return the names of the tables on a shard's page.

    Args:
        shard: the shard.
    """
    stopped = [scope for scope in shard.stopped if scope != shard.shard]
    return list(dict.fromkeys((*stopped, *(one.table for one in shard.tables))))


def heard(board: Board, found: Sight, news: list[Question | str]) -> Board:
    """Return the board with what the threads have found and done.

    Args:
        board: as it was.
        found: by the watcher.
        news: of the orders: questions, and what became of them; a text that ends with … goes on.
    """
    board = replace(board, found=found)
    for one in news:
        if isinstance(one, Question):
            board = replace(board, question=one, said="", busy=False)
        else:
            board = replace(board, said=one, busy=one.endswith("…"))
    return board


def pressed(board: Board, key: str) -> tuple[Board, Order | None]:
    """Return the board after a key, and what to do.

    Args:
        board: as it is shown.
        key: its name; the empty string for none.
    """
    if not key:
        return board, None
    if board.question is not None:
        order = board.question.order if key in "yY" else None
        return replace(board, question=None, busy=order is not None, said="" if order else "nothing was done"), order
    if key in "qQ":
        if board.busy:
            text = "an order still runs: what is committed stays, the rest is left. Press Ctrl-C to leave now"
            return replace(board, said=text), None
        return replace(board, ended=True), None
    if key in ("up", "down"):
        last = len(board.tables) if board.opened else len(board.shards) - 1
        return replace(board, row=max(0, min(last, board.row + (1 if key == "down" else -1)))), None
    if key == "enter" and board.opened is None and board.shard is not None:
        return replace(board, opened=board.shard.shard, row=0, said=""), None
    if key == "escape" and board.opened is not None:
        return replace(board, opened=None, row=_row_of(board), said=""), None
    return _order(board, key)


def _order(board: Board, key: str) -> tuple[Board, Order | None]:
    """Ask whether to do what a letter means; of a replay, first find out how many ops it is about."""
    shard, verbs = board.shard, {"p": "pause", "r": "resume", "x": "count"}
    if key not in verbs or shard is None:
        return board, None
    if board.busy:
        return replace(board, said="an order still runs…"), None
    order = Order(verbs[key], shard.shard, board.table)  # type: ignore[arg-type]
    if order.verb == "count":
        return replace(board, busy=True, said=f"counting what is set aside of {order.what}…"), order
    everywhere = f" on all {len(board.shards)} shards" if order.table and len(board.shards) > 1 else ""
    then = "its ops wait in order, nothing is lost" if order.verb == "pause" else "its ops go on in order"
    return replace(board, question=Question(f"{order.verb} {order.what}{everywhere}? {then}", order)), None


def _row_of(board: Board) -> int:
    return next((n for n, one in enumerate(board.shards) if one.shard == board.opened), 0)
