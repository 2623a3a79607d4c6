"""A real browser: Debian's Chromium, driven by Playwright, which downloads nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from support.fixtures import missing

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: How long a page may take to show what it must show, ms.
PATIENCE_MS = 20_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skip the test where there is none, but not under CI."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing("chromium")
    if find_spec("playwright") is None:
        missing("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # as root there is no sandbox; a small /dev/shm, as containers have it, would end a tab
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visitor(browser: Any, **options: Any) -> Iterator[Any]:
    """Open a page of somebody who shares nothing with the others; an error of a script is one of the test."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert faults == []
