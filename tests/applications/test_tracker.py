"""A tracker in py4web whose front end reads ids from JSON, in a real browser; plain, on one shard and on two."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.applications.ground import Ground
from support.applications.moving import Application, Moving, nothing_differs, same_rows
from support.applications.rows import Model, differing_rows
from support.fixtures import missing
from support.web.chromium import chromium, visitor
from support.web.py4web_server import serving
from support.web.web2py_server import ROOT

pytestmark = pytest.mark.mariadb

MODEL = Model(
    keys={
        "person": ("name",),
        "project": ("name",),
        "ticket": ("project", "title"),
        "comment": ("ticket", "body", "person"),
        "vote": ("ticket", "person"),
    },
    references={("project", "lead"): "person", ("ticket", "opened_by"): "person"},
    by_chance=frozenset(),
)
RULE = 'rule = "placement:keep_old_rows"'
TWO_SHARDS = "\n".join(
    [
        *(f"[tables.{table}]\nreference = true" for table in ("person", "project")),
        *(
            f'[tables.{table}]\nshard_key = "{key}"\n{RULE}'
            for table, key in {"ticket": "id", "comment": "ticket", "vote": "ticket"}.items()
        ),
    ]
)
TRACKER = Application(
    "tracker",
    MODEL,
    {1: ["tracker_one_shard"], 2: ["tracker_one_shard", "tracker_two_shards"]},
    {1: "", 2: TWO_SHARDS},
    {1: [], 2: []},
)


class Person:
    """Somebody at the tracker's page; what each step has shown."""

    def __init__(self, page: Any, base: str, name: str, settle: Callable[[], None]):
        self._page, self._steps, self._settle = page, 1, settle
        self.seen: list[str] = []
        page.goto(f"{base}/index")
        self._shown()
        self.post("login", name=name)

    def post(self, path: str, **data: Any) -> None:
        """Send data that no form is for, as the page's script does."""
        self._page.evaluate("([path, data]) => { post(path, data); }", [path, data])
        self._shown(1)

    def click(self, text: str, within: str = "main") -> None:
        button = self._page.locator(f"{within} >> button:text-is('{text}')")
        if button.count() == 1:
            button.click()
            self._shown(1)
        else:
            self.seen.append(f"{button.count()} buttons {text} in {within}")

    def at(self, title: str, text: str) -> None:
        """Press a button of a ticket."""
        self.click(text, f"article:has-text('{title},')")

    def comment(self, title: str, body: str) -> None:
        """Comment on a ticket, by the id that the script has of it."""
        ticket = self._page.locator(f"article:has-text('{title},')")
        if ticket.count() == 1:
            self.post("comments", ticket=int(ticket.get_attribute("data-ticket")), body=body)
        else:
            self.seen.append(f"{ticket.count()} tickets {title}")

    def open(self, title: str, project: str) -> None:
        """Open a ticket of the project that is shown."""
        self._page.evaluate("title => { step(() => ask('tickets/' + project, { title })); }", title)
        self._shown(1)

    def _shown(self, more: int = 0) -> None:
        """Keep what the page shows after a step, and let the next one begin once all is applied."""
        self._steps += more
        self._page.wait_for_function(f"window.steps === {self._steps}")
        self.seen.append(self._page.inner_text("main"))
        self._settle()


def before(base: str, browser: Any, settle: Callable[[], None]) -> list[str]:
    """What is there when the application moves."""
    with visitor(browser) as page:
        ada = Person(page, base, "ada", settle)
        ada.post("projects", name="Old")
        ada.click("Old")
        ada.open("An old one", "Old")
        ada.at("An old one", "vote")
        ada.comment("An old one", "an old comment")
    return ada.seen


def track(base: str, browser: Any, settle: Callable[[], None]) -> list[str]:
    """What is done after it has moved."""
    with visitor(browser) as hers, visitor(browser) as his:
        ada, bob = Person(hers, base, "ada", settle), Person(his, base, "bob", settle)
        ada.post("projects", name="New")
        bob.click("Old")
        bob.at("An old one", "vote")
        bob.comment("An old one", "a new comment")
        for person in (bob, ada):
            person.click("New")
            for _ in range(2):
                person.open(f"{len(person.seen)} by one of two", "New")
            person.at("Set up New", "vote")
            person.comment("Set up New", "voted")
        ada.at("Set up New", "vote")
        ada.at("Set up New", "vote")
        bob.click("Old")
        bob.at("An old one", "close")
        ada.click("Old")
    return [*ada.seen, *bob.seen]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


def tracked(ground: Ground, browser: Any, folder: Path, kinds: dict[str, int], python: str) -> dict[str, Tracked]:
    """Serve a copy for each kind, plain at first; move those that have shards then, and visit all.

    Args:
        kinds: the number of shards of each; 0: it stays plain.
    """
    copies = {kind: Moving(ground, TRACKER, kind, folder / "apps") for kind in kinds}
    for copy in copies.values():
        (copy.folder / "settings.py").write_text(f"DB_URI = {copy.uri!r}\n")
    seen = {}
    with serving(folder, python) as site:
        for kind, copy in copies.items():
            ground.spread_ids("s0", copy.name)
            seen[kind] = before(f"{site.url}/{copy.name}", browser, copy.settle)
    for kind, shards in kinds.items():
        if shards:
            copies[kind].adopt(shards)
            copies[kind].change()
    with serving(folder, python) as site:
        for kind, copy in copies.items():
            if kinds[kind]:
                copy.begin()
            seen[kind] += track(f"{site.url}/{copy.name}", browser, copy.settle)
    return {kind: Tracked(copy, seen[kind]) for kind, copy in copies.items()}


class Tracked(NamedTuple):
    """A copy, and what its users have seen."""

    copy: Moving
    seen: list[str]


@pytest.fixture(scope="module")
def classic(ground: Ground, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tracked]:
    return tracked(ground, browser, tmp_path_factory.mktemp("py4web"), {"plain": 0, "one": 1, "two": 2}, sys.executable)


#: A Python with the other line of pyDAL; the Makefile makes it.
REWRITE = ROOT / ".venv-pydal3" / "bin" / "python"


@pytest.fixture(scope="module")
def rewritten(ground: Ground, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tracked]:
    """A copy that is served with pyDAL's rewrite."""
    if not REWRITE.exists():
        missing(".venv-pydal3")
    return tracked(ground, browser, tmp_path_factory.mktemp("py4web"), {"rewrite": 2}, str(REWRITE))


@pytest.mark.parametrize("kind", ["one", "two"])
def test_each_row_is_that_of_the_plain_copy(classic: dict[str, Tracked], kind: str) -> None:
    same_rows(classic["plain"].copy, classic[kind].copy)


@pytest.mark.parametrize("kind", ["one", "two"])
def test_each_page_is_that_of_the_plain_copy(classic: dict[str, Tracked], kind: str) -> None:
    nothing_differs(differing_screens(classic["plain"].seen, classic[kind].seen))


def test_rows_and_pages_are_the_same_with_the_rewrite_of_pydal(
    classic: dict[str, Tracked], rewritten: dict[str, Tracked]
) -> None:
    nothing_differs(differing_rows(classic["plain"].copy.copy(), rewritten["rewrite"].copy.copy()))
    nothing_differs(differing_screens(classic["plain"].seen, rewritten["rewrite"].seen))


def differing_screens(plain: list[str], moved: list[str]) -> list[str]:
    """Return what only one of two copies has shown, step by step."""
    sides = zip_longest(plain, moved, fillvalue="no step")
    return [f"{n}: {one!r}\n   {two!r}" for n, (one, two) in enumerate(sides) if one != two]
