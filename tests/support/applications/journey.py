"""One visit to an application: who asked for what, and what each page said, without what differs by chance.

A number of seven digits or more is a row's id. Each is replaced by how many came before it, so that pages of two
copies of an application are alike if, and only if, the ids of one map to those of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import unified_diff
from itertools import zip_longest
from typing import Any, NamedTuple

from support.web.web2py_server import Browser

_BY_CHANCE = (
    (re.compile(r'name="_formkey"[^>]*value="[^"]*"|value="[^"]*"[^>]*name="_formkey"'), "formkey"),
    (re.compile(r" id=\"[0-9a-f-]{36}\""), ""),
    (re.compile(r"_(?:signature|formkey)=[\w-]+"), "signature"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?"), "moment"),
)
_ID = re.compile(r"(?<![\w.])\d{7,16}(?!\w)")


class Page(NamedTuple):
    """What one step gave."""

    step: str
    status: int
    text: str


class Journey:
    """What several users do with one copy of an application."""

    def __init__(self, site: Any, base: str):
        self._site, self._base = site, base
        self._last = ""
        #: Called when it is another user's turn: a page waits for its own user's writes, and for nobody else's.
        self.settle: Callable[[], None] = lambda: None
        self._users: dict[str, Browser] = {}
        self._ids: dict[str, int] = {}
        self.pages: list[Page] = []

    def open(self, who: str, path: str, **query: Any) -> str:
        """Ask for a page and return it as it is."""
        return self._seen(who, path, self._user(who).get(path, **query))[1]

    def send(self, who: str, path: str, fields: Mapping[str, Any], /, **more: Any) -> str:
        """Fill in the form of a page and send it; return what the address of the next page ends with."""
        try:
            answer = self._user(who).submit(path, {**fields, **more})
        except AssertionError:  # the page shows no form
            answer = self._user(who).get(path)
        return self._seen(who, path, answer)[0]

    def post(self, who: str, path: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> str:
        """Send fields with no form; return what the address of the next page ends with."""
        return self._seen(who, path, self._user(who).post(path, fields, **more))[0]

    def _user(self, who: str) -> Browser:
        if who != self._last:
            self.settle()
            self._last = who
        if who not in self._users:
            self._users[who] = self._site.browser(self._base, tickets=True)
        return self._users[who]

    def _seen(self, who: str, path: str, answer: Any) -> tuple[str, str]:
        """Follow redirects; return where they led, and the page."""
        place = path
        while answer.status in (302, 303):
            place = answer.location
            self.pages.append(Page(self._plain(f"{who}: {path}"), answer.status, self._plain(place)))
            answer = self._user(who).get(place)
        tickets = (line for ticket in self._site.forget_tickets() for line in ticket.splitlines()[-6:])
        text = "\n".join(tickets) if answer.status == 500 else answer.text
        self.pages.append(Page(self._plain(f"{who}: {place}"), answer.status, self._plain(text)))
        return place.partition("?")[0].rpartition("/")[2], answer.text

    def _plain(self, text: str) -> str:
        text = text.replace(self._base.split("/")[1], "application")
        for pattern, word in _BY_CHANCE:
            text = pattern.sub(word, text)
        return _ID.sub(lambda found: f"<{self._ids.setdefault(found[0], len(self._ids) + 1)}>", text)


def differing_pages(plain: Sequence[Page], moved: Sequence[Page]) -> list[str]:
    """Return, for each page that is not alike, what only one of two copies shows."""
    found = []
    for ours, theirs in zip_longest(plain, moved, fillvalue=Page("no step", 0, "")):
        if ours != theirs:
            sides = (
                [f"{page.step} {page.status}", *page.text.replace("><", ">\n<").split("\n")] for page in (ours, theirs)
            )
            found.append("\n".join(line for line in unified_diff(*sides, n=0, lineterm="") if line[:2] != "@@"))
            found[-1] = f"{ours.step}\n{found[-1]}"
    return found
