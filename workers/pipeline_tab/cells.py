"""Write the small parts of a page as HTML: numbers, ages, cells, cards, and what is wrong with what mends it.

Every text from outside goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple, TypeVar

from pipeline.admin.observe.record import LATE_MS

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


class Trouble(NamedTuple):
    """One thing that is wrong.

    Attributes:
        head: its sentence.
        detail: more, unless the sentence has it.
        fix: what mends it; behind `run: ` a command.
        page: the address of the page with the buttons, from the page that shows this; empty: none.
        open: what the link to that page says.
        resume: what a button resumes, as `table:x`; empty: there is none.
    """

    head: str
    detail: str = ""
    fix: str = ""
    page: str = ""
    open: str = ""
    resume: str = ""


def fault_list(items: Iterable[Trouble], fine: str) -> str:
    """Return what is wrong, each with what mends it.

    Args:
        items: the worst first.
        fine: the sentence where nothing is.
    """
    found = "".join(f"<li>{_fault_item(item)}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else f'<p class="pl-fine"><span aria-hidden="true">✓</span> {fine}</p>'


def _fault_item(item: Trouble) -> str:
    head, detail, fix = item.head, item.detail, item.fix
    more = f' <span class="pl-detail">{escape(detail)}</span>' if detail and detail not in head else ""
    words, run, command = fix.rpartition("run: ")
    if not run:
        words, command = fix, ""
    said = f' <span class="pl-fix-words">{escape(words + run)}</span>' if words else ""
    mend = f' <code class="pl-fix">{escape(command)}</code>' if command else ""
    link = f' <a class="pl-go" href="{escape(item.page)}">{escape(item.open)}</a>' if item.page else ""
    return f"<strong>{escape(head)}</strong>{more}{said}{mend}{link}{_resume_button(item.resume)}"


def _resume_button(what: str) -> str:
    if not what:
        return ""
    kind, _, name = what.partition(":")
    words = f"Resume {name} on all shards" if kind == "table" else f"Resume {name}"
    return (
        f' <button class="btn btn-primary btn-sm pl-go" form="pl-stop" name="resume" value="{escape(what)}">'
        f"{escape(words)}</button>"
    )


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
