"""Write the small parts of a page as HTML: numbers, ages, cells, cards, and what is wrong with what mends it.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeVar

#: An op that waits longer, or a replica that lags more, is shown as late, ms.
LATE_MS = 5_000
UNKNOWN = '<span class="pl-unknown">unknown</span>'
_N = TypeVar("_N", int, float)


def span(ms: int) -> str:
    """Return a length of time for people.

    Args:
        ms: milliseconds.
    """
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms / 1_000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def fault_list(items: Iterable[tuple[str, str, str]], fine: str) -> str:
    """Return what is wrong, each with what mends it.

    Args:
        items: of each its sentence, more unless the sentence has it, and what mends it; behind `run: ` a command.
        fine: the sentence where nothing is.
    """
    found = "".join(f"<li>{_fault_item(*item)}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else f'<p class="pl-fine"><span aria-hidden="true">✓</span> {fine}</p>'


def _fault_item(head: str, detail: str, fix: str) -> str:
    more = f' <span class="pl-detail">{escape(detail)}</span>' if detail and detail not in head else ""
    command = fix.removeprefix("run: ")
    mend = f' <code class="pl-fix">{escape(command)}</code>' if fix.startswith("run: ") else ""
    said = f' <span class="pl-fix-words">{escape(fix)}</span>' if fix and not mend else ""
    return f"<strong>{escape(head)}</strong>{more}{mend}{said}"


def number_card(label: str, value: str, style: str, more: str = "") -> str:
    """Return a card with one number.

    Args:
        label: HTML of what it is.
        value: HTML of the number.
        style: of Flower's cards: `active`, `success`, `danger` or none.
        more: HTML below the number.
    """
    below = f'<p class="pl-more">{more}</p>' if more else ""
    kind = f" metric-card-{style}" if style else ""
    return (
        f'<article class="metric-card{kind}"><p class="metric-label">{label}</p>'
        f'<p class="metric-value">{value}</p>{below}</article>'
    )


def table_row(head: str, *cells: str) -> str:
    """Return a row of a table.

    Args:
        head: HTML of its first cell, which names the row.
        cells: HTML of the others.
    """
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def empty_row(columns: int, words: str) -> str:
    """Return the row of a table that has none.

    Args:
        columns: how many the table has.
        words: why it is empty.
    """
    return f'<tr><td colspan="{columns}" class="pl-none">{words}</td></tr>'


def number_text(number: int | None, sign: str = "", *, bad: bool = False) -> str:
    """Return a count.

    Args:
        number: None: unknown.
        sign: before it.
        bad: whether it is worth a look.
    """
    if number is None:
        return UNKNOWN
    return f'<span class="pl-alarm">{number:,}</span>' if bad else f"{sign}{number:,}"


def rate_text(rate: float | None) -> str:
    """Return a rate.

    Args:
        rate: a second; None: unknown.
    """
    if rate is None:
        return UNKNOWN
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:,.1f}"


def age_text(ms: int | None, *, none: str | None) -> str:
    """Return an age; one that is late stands out.

    Args:
        ms: None: there is nothing to be old.
        none: the text for that; None: then the age is unknown.
    """
    if ms is None:
        return UNKNOWN if none is None else none
    return f'<span class="pl-late">{span(ms)}</span>' if ms > LATE_MS else span(ms)


def size_text(number: int | None) -> str:
    """Return a size.

    Args:
        number: bytes; None: unknown.
    """
    return UNKNOWN if number is None else f"{number / 1e6:,.1f} MB"


def sum_known(numbers: Iterable[_N | None]) -> _N | None:
    """Return a sum; None where a part is unknown.

    Args:
        numbers: the parts.
    """
    found = list(numbers)
    return None if None in found else sum(one for one in found if one is not None)
