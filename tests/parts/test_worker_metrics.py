"""A worker's own metrics: counted by its pool processes, read by its main process, shown at a port."""

from __future__ import annotations

import multiprocessing
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pipeline.apply.transaction import Outcome
from pipeline.config.settings import MetricsSettings
from pipeline.per_process import PerProcess
from workers.metrics import batches, tally
from workers.metrics.families import FAMILIES, observe
from workers.metrics.port import PORTS, Port
from workers.metrics.tally import Page, Tally


def page_of(pages: Tally, number: int) -> Page:
    page = pages.page(number)
    assert page is not None
    return page


def in_a_fork(work: Callable[[], None]) -> None:
    """Run *work* in a forked process, as a pool process is."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def test_the_main_process_reads_the_sum_of_what_forked_processes_counted():
    pages = Tally(2)

    in_a_fork(lambda: page_of(pages, 0).add(("ops_applied", "s0"), 3))
    in_a_fork(lambda: page_of(pages, 1).add(("ops_applied", "s0"), 4))
    in_a_fork(lambda: page_of(pages, 1).add(("ops_applied", "straße"), 0.5))

    assert pages.totals() == {("ops_applied", "s0"): 7.0, ("ops_applied", "straße"): 0.5}


def test_a_process_that_takes_the_place_of_another_goes_on_with_its_numbers():
    pages = Tally(1)

    for _ in range(3):
        in_a_fork(lambda: page_of(pages, 0).add(("ops_applied", "s0"), 2))

    assert pages.totals() == {("ops_applied", "s0"): 6.0}


def test_a_full_page_loses_new_numbers_and_keeps_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tally, "PAGE", 64)
    pages = Tally(2)
    first, second = page_of(pages, 0), page_of(pages, 1)

    for name in ("first", "second", "third", "third"):
        first.add((name,))
    first.add(("first",))
    second.add(("first",), 5)

    assert pages.totals() == {("first",): 7.0, ("second",): 1.0}


def test_a_process_beyond_all_pages_is_not_counted():
    assert Tally(2).page(2) is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """Counting is on in this process."""
    pages = Tally(1)
    monkeypatch.setattr(batches, "tally", pages)
    monkeypatch.setattr(batches, "page", PerProcess(batches._own_page))
    return pages


def test_a_batch_is_counted_by_what_it_did(counted: Tally):
    batches.count_batch("s0", Outcome(applied=7, rejected=1, parked=2, seen=3, lost=4, buckets=2, ms=20))
    batches.count_batch("s0", Outcome(left=3, crossed=True))
    batches.count_batch("s1", Outcome())

    found = counted.totals()

    assert [found[f"ops_{name}", "s0"] for name in ("applied", "rejected", "parked", "seen", "lost")] == [7, 1, 2, 3, 4]
    assert [found["batches", "s0", "applied"], found["batches", "s0", "waiting"], found["batches", "s1", "empty"]] == [
        1,
        1,
        1,
    ]
    assert found["early_waits", "s0"] == 1
    assert found["batch_seconds.sum", "s0"] == 0.02


def test_the_time_of_a_commit_is_counted(counted: Tally):
    watch = batches.stopwatch("s0")
    assert watch is not None

    for name in ("lock", "commit", "committed"):
        watch(name)

    assert counted.totals()["commit_seconds.sum", "s0"] > 0


def test_without_a_port_nothing_is_counted_and_no_step_is_wrapped():
    assert batches.stopwatch("s0") is None
    batches.count_batch("s0", Outcome(applied=1))
    assert batches.page() is None


@pytest.fixture
def port(counted: Tally) -> Iterator[int]:
    """The port of a worker that has counted something."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        server = Port(MetricsSettings(port=first), counted, "w@host")
        server.start()
        assert server._server is not None
        yield server._server.server_address[1]
        server.close()


def scraped(port: int) -> list[Sample]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value_of(samples: list[Sample], name: str, **labels: str) -> float:
    [found] = [one.value for one in samples if one.name == name and one.labels == labels]
    return found


def test_a_scrape_has_every_number_by_its_name_in_prometheus(counted: Tally, port: int):
    page = page_of(counted, 0)
    page.add(("ops_applied", "s0"), 7)
    for seconds in (0.0005, 0.1, 999.0):
        observe(page, "batch_seconds", ("s0",), seconds)

    samples = scraped(port)

    assert value_of(samples, "pipeline_worker_info", worker="w@host") == 1
    assert value_of(samples, "pipeline_worker_ops_applied_total", shard="s0") == 7
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.001") == 1
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.05") == 1
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.1") == 2
    assert value_of(samples, "pipeline_worker_batch_seconds_count", shard="s0") == 3
    assert value_of(samples, "pipeline_worker_batch_seconds_sum", shard="s0") == pytest.approx(999.1005)
    assert any(one.name == "process_resident_memory_bytes" for one in samples)


def test_a_worker_whose_port_is_taken_has_one_of_the_next(port: int):
    assert scraped(port)  # the fixture's first port is taken


def test_a_worker_without_any_free_port_goes_on_and_says_so(
    counted: Tally, port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.metrics.port.PORTS", 1)
    server = Port(MetricsSettings(port=port), counted, "w@host")

    server.start()
    server.close()

    assert f'metrics_not_served host=127.0.0.1 port={port} last={port} why="Address already in use"' in caplog.text
    assert PORTS > 1


def test_nothing_else_is_served(port: int):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)


def test_each_name_says_its_unit_and_no_counter_is_called_total_here():
    assert all(not name.endswith("_total") for name in FAMILIES)
    assert all(name.endswith(("_seconds", "_ops")) for name, family in FAMILIES.items() if family.bounds)
