"""Flower's Pipeline tab in a real browser: live numbers, what is wrong and what mends it, and every button."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydal import DAL, Field
from support.web.chromium import chromium, visitor

from pipeline import cli
from pipeline.admin import moving as movers
from pipeline.admin.migration import migrate
from pipeline.admin.moving import Mover, orders
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.devcluster.processes import free_ports
from pipeline.shard.records.moves import MoveNote

TABLES = '[tables.event]\nshard_key = "owner"\n'
#: A text that would run a script, were it not escaped.
HOSTILE = " <img src=x onerror=\"document.title='taken'\">&lt;' "
#: The tables that are cards on a phone, and are cut there.
WIDER_CARDS = """[...document.querySelectorAll('.pl-cardlike')].map((one) => [one.scrollWidth,
    one.parentElement.clientWidth]).filter(([wide, room]) => wide > room)"""
#: A text that no field of one line can hold.
LINES = "two\r\nlines\t "


class Deployment:
    """A local cluster with Flower, and an application that writes to it."""

    def __init__(self, folder: Path):
        self.cluster = Cluster.up(folder, shards=2, replicas=1, workers=1, flower_port=0, tables=TABLES, owned=True)
        port = next(one.port for one in self.cluster.processes if one.name == "flower")
        self.base = f"http://127.0.0.1:{port}"
        self.client = Client(self.cluster.config)
        self.db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        self.db.define_table(
            "event", Field("owner", "integer"), Field("body"), Field("code", unique=True), Field("note", "text")
        )
        self.client.define_tables(self.db)
        migrate(self.client)

    def insert(self, code: str, body: str = "x", owner: int = 7) -> Any:
        return self.client.enqueue_insert(self.db.event, owner=owner, body=body, code=code, note=LINES)

    def refuse(self, code: str, body: str = "x") -> str:
        """Have an op refused; return its place."""
        self.insert(code)
        refused = self.insert(code, body)
        for _ in polls(30):
            if refused.status() == "rejected":
                break
        assert refused.status() == "rejected"
        return f"{refused.bucket}:{refused.position}"

    @contextmanager
    def moving(self, bucket: int) -> Iterator[Mover]:
        """Move a bucket as far as its first rows; give the move up at the end, if it is not over.

        Meanwhile the worker has no move to go on with, however long somebody looks at a page.
        """
        source = self.client.topology.shard_of(bucket)
        target = next(shard for shard in self.client.topology.shards if shard != source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(movers, "LEASE_MS", 600_000)
            mover = orders.order_move(self.client, [bucket], target, "ann", note=MoveNote(total=400))
            steps = mover.steps()
            while next(steps).stage != "copying":
                pass
            yield mover
        if mover.stage() == "copy":
            mover.give_up("enough")
        assert [*mover.steps()][-1].stage == "over"
        mover.release()

    def close(self) -> None:
        self.client.close()
        self.db.close()
        self.cluster.down(grace_s=0)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("tab"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def test_the_tab_is_in_flowers_navigation_and_shows_new_ops_without_a_reload(here: Deployment, browser: Any):
    with visitor(browser) as page:
        page.goto(here.base)
        page.get_by_role("link", name="Pipeline").click()
        page.locator("body[data-pl-told]").wait_for()
        page.evaluate("window.notReloaded = true")
        page.get_by_role("link", name="s0").focus()
        rate, numbers = page.locator("#pl-0-rate"), count()

        def goes_on() -> bool:
            here.client.wait_all([here.insert(f"live {next(numbers)}", owner=n) for n in range(40)], timeout_s=30)
            return (rate.text_content() or "0")[0] in "123456789"

        until(goes_on)

        assert page.evaluate("window.notReloaded")
        assert page.evaluate("document.activeElement.id") == "pl-link-0"
        page.keyboard.press("Enter")
        page.wait_for_url("**/pipeline/shard/s0")
        assert page.locator("svg.pl-chart").count() + page.locator("p.pl-none").count() >= 4
        assert page.locator("#pl-nodes tr").count() == 2


def test_a_page_that_nobody_sees_holds_no_connection(here: Deployment, browser: Any):
    with visitor(browser) as page:
        page.add_init_script(
            "window.Real = EventSource; window.sources = [];"
            "window.EventSource = function (path) { sources.push(this.it = new Real(path)); return this.it; };"
            "window.look = function (how) { Object.defineProperty(document, 'visibilityState',"
            " {value: how, configurable: true}); document.dispatchEvent(new Event('visibilitychange')); };"
        )
        page.goto(f"{here.base}/pipeline")
        page.locator("body[data-pl-told]").wait_for()
        page.evaluate("look('hidden'); document.body.removeAttribute('data-pl-told')")
        closed = page.evaluate("sources.map((one) => one.readyState === Real.CLOSED)")
        page.evaluate("look('visible')")
        page.locator("body[data-pl-told]").wait_for()

        assert closed == [True]
        assert page.evaluate("sources.length") == 2


def test_what_is_wrong_comes_with_what_mends_it_and_a_shard_is_paused_and_resumed(here: Deployment, browser: Any):
    with visitor(browser) as page:
        page.goto(f"{here.base}/pipeline/shard/s0")
        page.get_by_label("Reason").fill("a disk swap")
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("shard s0 is paused; its ops wait in order until it is resumed").wait_for()
        page.goto(f"{here.base}/pipeline")
        page.locator("#pl-faults").get_by_text("a disk swap").wait_for()

        assert page.locator("#pl-faults code").all_text_contents() == ["pipeline resume s0"]
        assert page.locator("#pl-0-state").text_content() == "paused"
        page.get_by_role("link", name="Resume it on the page of s0").click()
        page.get_by_role("button", name="Resume s0").click()
        page.get_by_text("shard s0 goes on").wait_for()
        page.goto(f"{here.base}/pipeline")
        until(lambda: "disk swap" not in (page.locator("#pl-faults").text_content() or ""))


def test_a_move_is_seen_with_its_rows_and_what_waits_for_its_cut_over_and_then_it_is_over(
    here: Deployment, browser: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    row = here.insert("moves", owner=11)
    here.client.wait_all([row], timeout_s=30)
    source = here.client.topology.shard_of(row.bucket)
    with visitor(browser) as page, here.moving(row.bucket):
        for path in ("", f"/shard/{source}"):
            page.goto(f"{here.base}/pipeline{path}")
            moves = page.get_by_role("region", name="Table of moves")
            moves.get_by_text("copying").wait_for()
            assert f"{row.bucket}" in str(moves.text_content())
            assert "of 400" in str(moves.text_content())
            assert moves.get_by_role("progressbar").count() == 1

        told = CliRunner().invoke(cli.pipeline, ["status", "--json", "--config", str(here.cluster.config)]).output
        [move] = json.loads(told)["moves"]

    assert json.loads(told)["source"] == "workers"
    assert (move["buckets"], move["source"], move["state"]) == (str(row.bucket), source, "copying")
    with visitor(browser) as page:
        page.goto(f"{here.base}/pipeline")
        page.locator("#pl-moves").get_by_text("no bucket moves").wait_for()


def test_a_move_is_given_up_and_who_did_it_is_kept(here: Deployment, browser: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    row = here.insert("given up", owner=12)
    here.client.wait_all([row], timeout_s=30)
    source = here.client.topology.shard_of(row.bucket)
    with visitor(browser) as page, here.moving(row.bucket):
        page.goto(f"{here.base}/pipeline/shard/{source}")
        buckets = page.get_by_label("Move of buckets")
        for text, told in (
            ("x", "Nothing was done: 'x' is no list of buckets"),
            ("63", "Nothing was done: none of the buckets 63 is being moved"),
            (str(row.bucket), f"{source} keeps {row.bucket}; workers clean up"),
        ):
            buckets.fill(text)
            page.get_by_role("button", name="Give up").click()
            page.get_by_role("status").get_by_text(told).wait_for()

    [last] = [one for one in orders.known(here.client) if one.buckets == str(row.bucket)]
    assert (last.state, last.trouble) == ("given up", "given up by somebody in Flower at 127.0.0.1")
    assert here.client.topology.shard_of(row.bucket) == source


def test_buckets_are_sent_back_and_who_did_it_is_kept(here: Deployment, browser: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    row = here.insert("sent back", owner=14)
    here.client.wait_all([row], timeout_s=30)
    source = here.client.topology.shard_of(row.bucket)
    target = next(shard for shard in here.client.topology.shards if shard != source)
    mover = orders.order_move(here.client, [row.bucket], target, "ann", keep_s=0)
    assert [*mover.steps()][-1].stage == "over"
    mover.release()

    with visitor(browser) as page:
        page.goto(f"{here.base}/pipeline/shard/{target}")
        for text, told in (
            ("x", "Nothing was done: 'x' is no list of buckets"),
            ("63", "Nothing was done: the buckets 63 have no move of all of them to send back"),
            (str(row.bucket), f"{row.bucket} go back to {source}; workers carry them"),
        ):
            page.get_by_label("Move of buckets").fill(text)
            page.get_by_role("button", name="Send back").click()
            page.get_by_role("status").get_by_text(told).wait_for()

    last, *_ = [one for one in orders.known(here.client) if one.buckets == str(row.bucket)]
    assert (last.source, last.target, last.who) == (target, source, "somebody in Flower at 127.0.0.1")
    # a worker takes it up by itself, and waits 7 s for readers
    [back] = [one for one in orders.under_way(here.client) if row.bucket in one.buckets]
    assert "goes on" in next(step.text for step in back.steps() if step.stage == "stopping" and back.begun)
    back.release()


def test_a_refused_op_is_seen_tried_edited_and_replayed_and_who_did_it_is_listed(here: Deployment, browser: Any):
    place = here.refuse("edit me", HOSTILE)
    with visitor(browser) as page:
        page.goto(f"{here.base}/pipeline/dead")
        page.get_by_role("textbox", name="Table").fill("event")
        page.get_by_label("Reason").fill("UNIQUE")
        page.get_by_role("button", name="Filter").click()
        page.get_by_label(f"Choose op {place}").check()
        page.get_by_role("button", name="Replay …").click()
        page.get_by_text("Nothing is changed yet").wait_for()
        assert "rejected" in str(page.get_by_role("row", name=place).text_content())
        page.get_by_role("link", name="Leave them").click()

        page.get_by_role("link", name=place).click()
        page.get_by_role("heading", name="insert event").wait_for()
        assert page.get_by_label("New value of body").input_value() == HOSTILE
        page.get_by_label("New value of code").fill("now unique")
        page.get_by_role("button", name="Change the op").click()
        page.get_by_text("changed: code; the op is applied once it is replayed").wait_for()
        page.get_by_role("button", name="Replay …").click()
        page.get_by_role("button", name="Replay them").click()
        page.get_by_text("1 replayed, 0 dropped, 0 refused again").wait_for()

        actions = page.get_by_role("region", name="Table of actions").text_content()
        assert "somebody in Flower at 127.0.0.1" in str(actions)
        assert "edit" in str(actions)
        assert page.title() != "taken"
    shards = here.client.topology.shards
    rows = [row for s in shards for row in here.client.nodes.primary(s).query("SELECT body, code, note FROM event")]
    assert (HOSTILE, "now unique", LINES) in rows


def test_all_that_match_are_dropped_after_a_trial(here: Deployment, browser: Any):
    for n in range(3):
        here.refuse(f"drop {n}")
    with visitor(browser) as page:
        page.goto(f"{here.base}/pipeline/dead?state=rejected")
        count = page.get_by_label("Choose op").count()
        page.get_by_label("all that match").check()
        page.get_by_role("button", name="Drop …").click()
        page.get_by_text(f"It would be: 0 replayed, {count} dropped").wait_for()
        page.get_by_role("button", name="Drop them").click()
        page.get_by_text(f"0 replayed, {count} dropped").wait_for()
        page.get_by_text("No op is set aside that matches.").wait_for()
    assert count >= 3


@pytest.mark.parametrize("path", ["/pipeline/dead", "/pipeline/stop", "/pipeline/move", "/pipeline/dead/op/1:2-3"])
def test_another_site_can_order_nothing(here: Deployment, path: str):
    request = urllib.request.Request(here.base + path, data=b"every=yes&act=drop&sure=yes&name=shard:s0", method="POST")

    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=20)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault_of_accessibility_or_is_wider_than_a_phone(
    here: Deployment, browser: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    place, bucket = here.refuse(f"seen {scheme}"), here.insert(f"axe {scheme}", owner=5).bucket
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    size = {"width": 360, "height": 780}
    look = visitor(browser, viewport=size, color_scheme=scheme, bypass_csp=True)
    with look as page, here.moving(bucket) as mover:
        for path in ("", "/shard/s1", "/dead", f"/dead/op/{place}", "/hosts"):
            page.goto(f"{here.base}/pipeline{path}")
            if path in ("", "/shard/s1"):
                page.get_by_role("progressbar").wait_for()
            mover.hold()
            page.evaluate(axe)
            found = page.evaluate("axe.run(document.querySelector('#main-content'))")

            serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
            assert page.evaluate(WIDER_CARDS) == [], path


def test_a_read_only_flower_shows_everything_and_has_no_button_and_no_other_machine_reaches_it(
    here: Deployment, tmp_path: Path
):
    place, [port] = here.refuse("only look"), free_ports(1)
    command = [sys.executable, "-P", "-m", "celery", "-A", "workers", "flower", f"--port={port}", "--read_only"]
    environment = {**os.environ, "PIPELINE_CONFIG": str(here.cluster.config), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as flower:
        try:
            pages = {path: fetched(f"http://127.0.0.1:{port}{path}") for path in (
                "/pipeline", "/pipeline/shard/s0", "/pipeline/dead", f"/pipeline/dead/op/{place}",
            )}  # fmt: skip
            with pytest.raises(ConnectionRefusedError):  # another address of loopback: every address would be that too
                socket.create_connection(("127.0.0.2", port), timeout=20)
        finally:
            flower.kill()

    assert place in pages["/pipeline/dead"]
    assert "only look" in pages[f"/pipeline/dead/op/{place}"]
    for path, page in pages.items():
        assert 'name="act"' not in page, path
        assert 'type="checkbox"' not in page, path


def until(shown: Callable[[], bool]) -> None:
    """Wait until a page shows something."""
    for _ in polls(30):
        if shown():
            return
    raise AssertionError("the page never shows it")


def fetched(url: str) -> str:
    """Return a page, once the server is up."""
    for _ in polls(40):
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode()[-2000:]}") from error
        except OSError:
            continue
    raise AssertionError(f"{url} does not answer")
