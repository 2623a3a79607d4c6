"""Draw what `pipeline top` shows: all shards, or one. The last lines are the question or the keys at any height."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.admin.dead import AsideCount
from pipeline.admin.observe.record import Record, ShardRecord, stop_word
from pipeline.cli.status_screen import head, moves_table, nodes_table, notices, replicas_table, shards_table, utf8_of
from pipeline.cli.top.board import Board, page_tables

#: A record that is older is said to be old, s.
OLD_S = 3.0
#: How many tables and errors the page of a shard lists, so that its sentences fit below.
MOST_TABLES = MOST_ASIDE = 6
_KEYS = "  ↑↓ select  enter open  p pause  r resume  x replay dead ops  q end"
_KEYS_OPEN = "  ↑↓ select  esc back  p pause  r resume  x replay dead ops  q end"
_ASCII = str.maketrans({"↑": "up/", "↓": "down", "▸": ">", "…": "..."})


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
