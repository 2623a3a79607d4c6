"""Show the demo: scenes with two moving bars on a terminal, plain lines anywhere else; its result as a value."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline.cli.status_screen import reads_table
from pipeline.clock import mono_s
from pipeline.demo.data import Comparison
from pipeline.demo.scenes import Growth, Mixed, OwnWrite
from pipeline.demo.system import Meter

#: Columns where there is no terminal; rich would fold lines at 80.
LOG_WIDTH = 100
#: Columns of the words of a scene's line; fewer on a narrow terminal.
WORDS_WIDTH = 71
#: Seconds between two lines of progress where there is no terminal.
PLAIN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What was done, how fast, and whether it is right."""

    engine: str
    rows: int
    ops: int
    #: From the first enqueue to the last applied op.
    seconds: float
    batches: int | None
    single_p50_us: float | None
    single_p99_us: float | None
    flower_url: str | None
    own_write: OwnWrite
    mixed: Mixed
    comparisons: tuple[Comparison, ...]
    growth: Growth | None = None

    @property
    def ops_per_s(self) -> float:
        """Ops a second, from enqueue to committed."""
        return self.ops / self.seconds if self.seconds else 0.0

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each."""
        wrong = [str(comparison) for comparison in self.comparisons if not comparison.equal]
        if not self.own_write.true:
            wrong.append(f"a read did not see its own write: {self.own_write}")
        if self.mixed.wrong:
            wrong.append(f"{self.mixed.wrong} of the mixed reads did not see their own write")
        if self.growth is not None and not self.growth.moved:
            wrong.append("no bucket has moved to the third shard")
        return wrong

    def as_json(self) -> dict[str, Any]:
        """Return what a program would read."""
        return {
            "ok": not self.faults,
            "faults": self.faults,
            "engine": self.engine,
            "rows": self.rows,
            "ops": self.ops,
            "seconds": round(self.seconds, 3),
            "ops_per_s": round(self.ops_per_s),
            "batches": self.batches,
            "single_enqueue_us": {"p50": _rounded(self.single_p50_us), "p99": _rounded(self.single_p99_us)},
            "flower": self.flower_url,
            "read_your_writes": {
                "node": self.own_write.node,
                "role": self.own_write.role,
                "waited_s": round(self.own_write.waited_s, 4),
                "ok": self.own_write.true,
            },
            "reads": [
                {"node": node, "kind": kind, "reason": reason, "reads": reads}
                for node, kind, reason, reads in self.mixed.counts
            ],
            "checked": [
                {
                    "table": one.table,
                    "shard": one.shard,
                    "rows": one.found.rows,
                    "rows_expected": one.expected.rows,
                    "checksum": str(one.found),
                    "checksum_expected": str(one.expected),
                    "equal": one.equal,
                }
                for one in self.comparisons
            ],
            **({"growth": _grown(self.growth)} if self.growth else {}),
        }


def _grown(growth: Growth) -> dict[str, Any]:
    return {
        "buckets_moved": growth.moved,
        "ops_meanwhile": growth.ops,
        "samples": [asdict(one) for one in growth.samples],
    }


def _rounded(number: float | None) -> int | None:
    return None if number is None else round(number)


class Screen:
    """Shows what happens while it happens.

    Attributes:
        console: where to print; by default standard output.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        if isinstance(self.console.file, TextIOWrapper):
            self.console.file.reconfigure(errors="replace")  # an ASCII terminal must not fail the demo
        self._said_s = mono_s()
        #: Whether bars are on the screen: rich shows one live display at a time.
        self._busy = False

    @property
    def tick_mark(self) -> str:
        """The mark of a scene that went well."""
        return "✓" if self.console.encoding.startswith("utf") else "ok"

    def title(self, text: str) -> None:
        """Print the first line, which is *text*."""
        self.console.print(f"\n[bold]{text}[/]\n", highlight=False)

    def note(self, text: str) -> None:
        """Print *text* as a line of the scene."""
        self.console.print(Text(f"    {text}", style="dim"), soft_wrap=True)

    @contextmanager
    def scene(self, name: str) -> Iterator[Callable[..., None]]:
        """Time a scene; yield a function that takes the words for its line, and whether all is `well`.

        Args:
            name: the scene's name.
        """
        started_s, words, said_well = mono_s(), "", True

        def say(text: str, *, well: bool = True) -> None:
            nonlocal words, said_well
            words, said_well = text, well

        with self.console.status(f"{name} …") if self._moves and not self._busy else nullcontext():
            yield say
        self._line(name, words, mono_s() - started_s, said_well)

    @contextmanager
    def bars(self, meter: Meter, growth: Growth | None = None) -> Iterator[Callable[[int], None]]:
        """Show enqueued and applied ops side by side; yield a function that moves the bars, given the total.

        Args:
            meter: has the numbers.
            growth: what else goes on, if anything: a bar over the rows that move, and a line for all that is done.
        """
        with self._progress() as progress:
            enqueued, applied = (progress.add_task(name, total=None, rate=0.0) for name in ("enqueued", "applied"))
            moving = progress.add_task("", total=None, rate=0.0, visible=False)

            def move(total: int) -> None:
                seconds = max(mono_s() - meter.started_s, 1e-3)
                progress.update(enqueued, total=total, completed=meter.enqueued, rate=meter.enqueued / seconds)
                progress.update(applied, total=total, completed=meter.applied, rate=meter.applied / seconds)
                if growth is not None:
                    progress.update(moving, total=growth.total or None, completed=growth.rows)
                    progress.update(moving, description=growth.stage, visible=bool(growth.stage))
                self._say(meter, seconds, growth)

            yield move
        self._say_done(growth)

    @contextmanager
    def pages(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one bar over rows that are read; yield a function that takes the number of rows of each page.

        Args:
            name: the bar's name.
            total: how many rows there are.
        """
        with self._progress() as progress:
            task = progress.add_task(name, total=total, rate=0.0)
            started_s, done = mono_s(), 0

            def move(rows: int) -> None:
                nonlocal done
                done += rows
                progress.update(task, completed=done, rate=done / max(mono_s() - started_s, 1e-3))

            yield move

    def summary(self, summary: Summary, *, kept: bool = False) -> None:
        """Print the check, table by table and shard by shard, and the figures.

        Args:
            summary: the result.
            kept: whether the cluster stays up.
        """
        self.console.print()
        self.console.print(self._checked(summary))
        self.console.print()
        self.console.print(reads_table(summary.mixed.counts))
        self.console.print()
        self.console.print(_figures(summary, kept))
        self.console.print()
        for fault in summary.faults:
            self.console.print(Text(f"  wrong: {fault}", style="bold red"), soft_wrap=True)
        if not summary.faults:
            rows = sum(one.found.rows for one in summary.comparisons)
            verdict = f"  {self.tick_mark} {rows:,} rows on {len({one.shard for one in summary.comparisons})} shards"
            self.console.print(Text(f"{verdict} are exactly what the file says", style="bold green"))

    def kept(self, directory: Path) -> None:
        """Print how to look at the cluster that stays up, and how to take it down.

        Args:
            directory: the cluster's directory.
        """
        path = shlex.quote(str(directory))
        self.console.print("\n  The cluster is still up. To look at it, and to take it down:", highlight=False)
        for command in (
            f"export PIPELINE_CONFIG={shlex.quote(str(directory / 'pipeline.toml'))}",
            "pipeline status",
            "pipeline top",
            f"pipeline cluster status --dir {path}",
            f"pipeline cluster down --dir {path}",
        ):
            self.console.print(Text(f"    {command}", style="bold"), soft_wrap=True)

    @property
    def _moves(self) -> bool:
        return self.console.is_terminal

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        columns = (TextColumn("    {task.description:<9}"), BarColumn(bar_width=34), _Done(), _Rate())
        with Progress(*columns, console=self.console, transient=True, disable=not self._moves) as progress:
            self._busy = True
            try:
                yield progress
            finally:
                self._busy = False

    def _line(self, name: str, words: str, seconds: float, well: bool) -> None:
        mark = (f"  {self.tick_mark} ", "green") if well else ("  ! ", "bold red")
        width = min(WORDS_WIDTH, self.console.width - 25)
        line = Text.assemble(mark, (f"{name:<12}", "bold"), f"{words:<{width}}", f"{seconds:6.1f} s")
        self.console.print(line, soft_wrap=True)

    def _say_done(self, growth: Growth | None) -> None:
        while growth is not None and growth.done:
            done = growth.done.pop(0)
            self._line(done.name, done.words, done.seconds, True)

    def _say(self, meter: Meter, seconds: float, growth: Growth | None) -> None:
        self._say_done(growth)
        if self._moves or mono_s() - self._said_s < PLAIN_EVERY_S:
            return
        self._said_s = mono_s()
        self.note(
            f"enqueued {meter.enqueued:,} ({meter.enqueued / seconds:,.0f}/s), "
            f"applied {meter.applied:,} ({meter.applied / seconds:,.0f}/s)"
            + (f", {growth.stage}: {growth.rows:,} rows" if growth is not None and growth.stage else "")
        )

    def _checked(self, summary: Summary) -> Table:
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("  table")
        table.add_column("shard")
        table.add_column("rows", justify="right")
        table.add_column("in the file", justify="right")
        table.add_column("checksum")
        table.add_column("of the file")
        table.add_column("")
        for one in summary.comparisons:
            mark = Text(self.tick_mark, style="green") if one.equal else Text("differs", style="bold red")
            counts = f"{one.found.rows:,}", f"{one.expected.rows:,}"
            table.add_row(f"  {one.table}", one.shard, *counts, str(one.found), str(one.expected), mark)
        return table


class _Done(ProgressColumn):
    """How many are done, of how many."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:>9,.0f} of {task.total:>7,.0f}" if task.total else "")


class _Rate(ProgressColumn):
    """Ops a second since the start: the mean that the summary prints."""

    def render(self, task: Task) -> Text:
        if not task.fields["rate"]:
            return Text("")
        return Text(f"{task.fields['rate']:>9,.0f}/s", style="cyan")


def _figures(summary: Summary, kept: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for name, words in _lines(summary, kept):
        table.add_row(f"  {name}", words)
    return table


def _lines(summary: Summary, kept: bool) -> Iterator[tuple[str, str]]:
    rate = f"{summary.ops_per_s:,.0f}/s from enqueue to committed"
    yield "end to end", f"{summary.ops:,} ops in {summary.seconds:.1f} s, {rate}"
    if summary.batches:
        yield "Celery", f"{summary.batches:,} tasks, {summary.ops / summary.batches:,.0f} ops each on average"
    p50, p99 = summary.single_p50_us, summary.single_p99_us
    if p50 is not None and p99 is not None:
        yield (
            "one enqueue",
            f"p50 {p50 / 1e3:.2f} ms, p99 {p99 / 1e3:.2f} ms, while the workers use the same processors",
        )
    if summary.growth is not None:
        grown = summary.growth
        yield "growth", f"{grown.moved} buckets moved to a third shard while {grown.ops:,} ops were enqueued"
    yield "read", str(summary.own_write)
    if summary.flower_url:
        yield "Flower", summary.flower_url + ("" if kept else " until this command ends; --keep leaves it up")
