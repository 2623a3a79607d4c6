"""Print the shape of the product as a table; exit 1 if a row does not hold."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.shape import static, walks

WALKS = {"enqueue": walks.enqueue, "get": walks.get}


class Row(NamedTuple):
    """Figures of one kind, and the most that each may be; `least` turns it round."""

    what: str
    now: tuple[int, ...]
    limit: tuple[int, ...]
    least: bool = False
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Return whether every figure keeps its limit."""
        pairs = zip(self.now, self.limit, strict=True)
        return all(now >= limit if self.least else now <= limit for now, limit in pairs)

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Return the row as text: what, now, limit, holds."""
        sign = "≥" if self.least else "≤"
        now = " · ".join(f"{n}{self.unit}" for n in self.now)
        limit = " · ".join(f"{sign} {n}{self.unit}" for n in self.limit)
        return self.what, now, limit, "✓" if self.holds else "✗"


def rows() -> list[Row]:
    """Measure everything."""
    trees = static.product(walks.ROOT)
    enqueue, get = walks.enqueue(), walks.get()
    return [
        Row("product files · folders over 20 files", (len(trees), len(static.full_folders(trees))), (195, 0)),
        Row("warm enqueue: calls · files · moves", (len(enqueue.calls), enqueue.files, enqueue.moves), (26, 12, 16)),
        Row("warm get(after=): calls · files", (len(get.calls), get.files), (55, 15)),
        Row("kinds of object wired per client", (len(walks.wired()),), (22,)),
        Row("Callable parameters · Protocols", (len(static.callables(trees)), len(static.protocols(trees))), (60, 12)),
        Row("public names defined in two modules", (len(static.repeated_names(trees)),), (10,)),
        Row(
            "parameters named in public docstrings",
            (static.percent_named(static.documented(trees)),),
            (80,),
            least=True,
            unit=" %",
        ),
    ]


def table(measured: list[Row]) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        measured: its rows.
    """
    cells = [("what", "now", "limit", "holds"), *(row.cells for row in measured)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def walk(name: str) -> Iterator[str]:
    """Yield the calls of a walk, a line each, indented by depth; a blank margin tells calls in the same file as before.

    Args:
        name: `enqueue` or `get`.
    """
    taken, before = WALKS[name](), ""
    for call in taken.calls:
        yield f"{'→' if call.file != before else ' '} {'  ' * call.depth}{call.file}:{call.function}"
        before = call.file
    yield f"{len(taken.calls)} calls, {taken.files} files, {taken.moves} moves"


def names() -> Iterator[str]:
    """Yield each public name that several modules define, with the modules."""
    for name, files in static.repeated_names(static.product(walks.ROOT)).items():
        yield f"{name}: {' '.join(files)}"


def objects() -> Iterator[str]:
    """Yield each wired kind of object."""
    yield from walks.wired()


def docs() -> Iterator[str]:
    """Yield each public function whose docstring names not all of its parameters, by file, and the worst files last."""
    found = static.documented(static.product(walks.ROOT))
    for one in found:
        if one.missing:
            yield f"{one.file}:{one.line} {one.function}: {' '.join(one.missing)}"
    missing = Counter(one.file for one in found for _ in one.missing)
    yield "not named, by file:"
    yield from (f"{count:4} {file}" for file, count in reversed(missing.most_common(20)))


def callables() -> Iterator[str]:
    """Yield each `Callable` parameter, by file."""
    for one in static.callables(static.product(walks.ROOT)):
        yield f"{one.file}:{one.line} {one.function}({one.name})"


#: The parts of a figure, each by an option of its function's name.
DETAILS = {
    names: "public names that several modules define",
    objects: "the kinds of object that a client wires",
    docs: "public functions that do not name all their parameters",
    callables: "parameters that are callables",
}


def main(arguments: list[str] | None = None) -> int:
    """Print what the arguments ask for; return the exit code.

    Args:
        arguments: of the command line, by default the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shape", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="the table as JSON")
    what.add_argument("--walk", choices=sorted(WALKS), help="the calls of a walk, in order")
    for detail, text in DETAILS.items():
        what.add_argument(f"--{detail.__name__}", action="store_const", dest="detail", const=detail, help=text)
    asked = parser.parse_args(arguments)
    if asked.walk or asked.detail:
        return _print(walk(asked.walk) if asked.walk else asked.detail())
    measured = rows()
    if asked.json:
        print(json.dumps([row._asdict() | {"holds": row.holds} for row in measured], indent=2, ensure_ascii=False))
    else:
        _print(table(measured))
    return 0 if all(row.holds for row in measured) else 1


def _print(lines: Iterator[str]) -> int:
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--docs | head` ends without a traceback
    sys.exit(main())
