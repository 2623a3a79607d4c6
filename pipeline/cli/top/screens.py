"""Decide what a key of `pipeline top` does, and draw what it shows; no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.admin.dead import AsideCount
from pipeline.admin.observe.record import Record, ShardRecord, stop_word
from pipeline.cli.status_screen import head, moves_table, nodes_table, notices, replicas_table, shards_table, utf8_of

Verb = Literal["pause", "resume", "count", "replay"]
#: A record that is older is said to be old, s.
OLD_S = 3.0
#: How many tables and errors the page of a shard lists, so that its sentences fit below.
MOST_TABLES = MOST_ASIDE = 6
_KEYS = "  ↑↓ select  enter open  p pause  r resume  x replay dead ops  q end"
_KEYS_OPEN = "  ↑↓ select  esc back  p pause  r resume  x replay dead ops  q end"
_ASCII = str.maketrans({"↑": "up/", "↓": "down", "▸": ">", "…": "..."})


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


@dataclass(frozen=True, slots=True)
class TopScreen:
    """The whole terminal.

    Attributes:
        board: what to show.
        max_age_s: the age from which on an op is too old, seconds.
    """

    board: Board
    max_age_s: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the body, cut to the height, and the foot."""
        utf8, options = utf8_of(console), options.update(height=None)
        foot = console.render_lines(self._foot(utf8=utf8), options, pad=False)
        room = max(1, console.height - len(foot))
        body = console.render_lines(self._body(console, room), options, pad=False)
        if len(body) > room:
            more = Text(f"  … {len(body) - room + 1} more lines: make the window higher", style="dim")
            body[room - 1 :] = console.render_lines(_plain(more, utf8=utf8), options, pad=False)
        empty = [[Segment("")]] * (room - len(body))
        for n, line in enumerate([*body, *empty, *foot]):
            if n:
                yield Segment.line()
            yield from line

    def _body(self, console: Console, room: int) -> RenderableType:
        record = self.board.found.record
        if record is None:
            return Text("\n  asking the servers…")
        old = self.board.found.age_s > OLD_S
        state = f"   {self.board.found.age_s:.0f} s old: a server is slow" if old else f"   {record.source}"
        title = Text.assemble(head(record), (state, "bold yellow" if old else "dim"))
        if self.board.opened is not None:
            return Group(title, Text(), *self._page(record, console))
        wrong = notices(record, self.max_age_s, utf8=utf8_of(console))
        moving: list[RenderableType] = [Text(), moves_table(record.moves)] if record.moves else []
        above = len(console.render_lines(Group(wrong, *moving), pad=False))
        first, last = _window(len(record.shards), self.board.row, max(room // 2, room - above - 4))
        shown = record.shards[first:last]
        tables: list[RenderableType] = [shards_table(shown, console, selected=self.board.row - first)]
        if first or last < len(record.shards):
            tables.append(Text(f"  shards {first + 1} to {last} of {len(record.shards)}", style="dim"))
        page = Group(title, Text(), *tables, *moving, Text(), wrong)
        whole = Group(page, Text(), replicas_table(record.shards))
        fits = len(console.render_lines(whole, pad=False)) <= room
        return whole if fits and any(shard.replicas for shard in record.shards) else page

    def _page(self, record: Record, console: Console) -> Iterable[RenderableType]:
        shard = self.board.shard
        if shard is None:
            yield Text(f"  {self.board.opened} is in the record no more", style="yellow")
            return
        yield shards_table((shard,), console, selected=0 if self.board.row == 0 else -1)
        yield Text()
        if page_tables(shard):
            yield self._tables(shard, console)
            yield Text()
        if moves := [move for move in record.moves if shard.shard in (move.source, move.target)]:
            yield moves_table(moves)
            yield Text()
        yield self._aside()
        yield Text()
        yield notices(replace(record, shards=(shard,), moves=tuple(moves)), self.max_age_s, utf8=utf8_of(console))
        yield Text()
        yield nodes_table(shard)

    def _tables(self, shard: ShardRecord, console: Console) -> Table:
        """Return the tables of a shard: whether each goes on, and how fast."""
        known = {one.table: one for one in shard.tables}
        stopped = {scope: stop_word(reason) for scope, reason in shard.stopped.items()}
        table = _grid("table", "state", "applied/s", "rejected")
        mark, names = "▸ " if utf8_of(console) else "> ", page_tables(shard)
        first, last = _window(len(names), self.board.row - 1, MOST_TABLES)
        for n, name in enumerate(names[first:last], first + 1):
            chosen, one = n == self.board.row, known.get(name)
            state = stopped.get(name, "fine")
            rate = "-" if one is None or one.rate is None else f"{one.rate:,.0f}"
            rejected = "-" if one is None or one.rejected is None else f"{one.rejected:,}"
            style = "bold yellow" if name in stopped else ""
            table.add_row(
                Text(f"{mark if chosen else '  '}{name}", style="bold" if chosen else ""),
                Text(state, style=style), Text(rate), Text(rejected),
            )  # fmt: skip
        return table

    def _aside(self) -> RenderableType:
        """Return how many ops are set aside, by table and error; their values are in `pipeline dead list`."""
        aside = self.board.found.aside
        if isinstance(aside, str):
            return Text(f"  what is set aside is unknown: {aside}", style="bold red")
        if not aside:
            return Text("  no op is set aside", style="dim")
        table = _grid("set aside", "state", "error", "ops", "since")
        for one in aside[:MOST_ASIDE]:
            table.add_row(*_cells(one))
        if len(aside) > MOST_ASIDE:
            return Group(table, Text(f"  and {len(aside) - MOST_ASIDE} more kinds: pipeline dead list", style="dim"))
        return table

    def _foot(self, *, utf8: bool) -> RenderableType:
        board = self.board
        if board.question is not None:
            return Group(Text(), Text(f"  {board.question.text}", "bold"), Text("  y: yes   any other key: no"))
        keys = Text(_KEYS if board.opened is None else _KEYS_OPEN, style="dim")
        return Group(Text(), _plain(Text(f"  {board.said}", style="bold"), utf8=utf8), _plain(keys, utf8=utf8))


def _cells(one: AsideCount) -> list[Text]:
    code = "" if one.code is None else str(one.code)
    since = f"{datetime.fromtimestamp(one.since_ms / 1000):%d %b %H:%M}"
    style = "bold red" if one.state == "rejected" else "yellow"
    return [Text(one.table), Text(one.state, style=style), Text(code), Text(f"{one.ops:,}"), Text(since)]


def _grid(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in others:
        right = name in ("applied/s", "rejected", "ops", "error")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    return table


def _window(many: int, row: int, room: int) -> tuple[int, int]:
    """Return which rows fit, so that the selected one is among them."""
    first = max(0, min(row - room // 2, many - room))
    return first, min(many, first + room)


def _plain(text: Text, *, utf8: bool) -> Text:
    return text if utf8 else Text(text.plain.translate(_ASCII), style=text.style)
