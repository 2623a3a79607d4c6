"""A worker's own metrics: counted by its pool processes, read by its main process, shown at a port."""

from __future__ import annotations

import multiprocessing
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pipeline.apply.transaction import Outcome
from pipeline.config.settings import MetricsSettings
from pipeline.per_process import PerProcess
from workers import metrics
from workers.metrics import Page, Tally
from workers.metrics.port import MOST_TABLES, PORTS, Port


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

    in_a_fork(lambda: page_of(pages, 0).add("s0", {"applied insert t": 3}))
    in_a_fork(lambda: page_of(pages, 1).add("s0", {"applied insert t": 4}))
    in_a_fork(lambda: page_of(pages, 1).add("s1", {"rejected größe": 5}))

    assert pages.totals() == {"s0": {"applied insert t": 7}, "s1": {"rejected größe": 5}}


def test_a_process_that_takes_the_place_of_another_goes_on_with_its_numbers():
    pages = Tally(1)

    for _ in range(3):
        in_a_fork(lambda: page_of(pages, 0).add("s0", {"batches": 2}))

    assert pages.totals() == {"s0": {"batches": 6}}


def test_a_number_is_read_whole_while_it_is_written():
    """2 to the power of 16 lies between: a number that is written byte by byte would be read as another one."""
    pages, low = Tally(1), (1 << 16) - 1
    page_of(pages, 0).add("s0", {"batches": low})
    page = page_of(pages, 0)
    writes = multiprocessing.get_context("fork").Process(target=lambda: count_around(page, low))
    writes.start()
    try:
        assert {pages.totals()["s0"]["batches"] for _ in range(100_000)} <= {low, low + 1}
    finally:
        writes.kill()
        writes.join()


def count_around(page: Page, low: int) -> None:
    at = page._known["s0"]["batches"][0]
    while True:
        page._known["s0"]["batches"] = at, low
        page.add("s0", {"batches": 0})
        page.add("s0", {"batches": 1})


def test_a_full_page_shows_no_new_number_and_keeps_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(metrics, "PAGE", 64)
    pages = Tally(2)
    first, second = page_of(pages, 0), page_of(pages, 1)

    for name in ("one", "two", "three", "three", "one"):
        first.add("s0", {name: 1})
    second.add("s0", {"one": 5})

    assert pages.totals() == {"s0": {"one": 7, "two": 1}}
    assert caplog.text.count('metric_not_counted metric="s0 three"') == 1


def test_a_full_page_remembers_no_name_that_it_does_not_show_and_says_once_that_it_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(metrics, "PAGE", 64)
    page = page_of(Tally(1), 0)

    for n in range(1000):
        page.add("s0", {f"applied insert notes_{n}": 1})

    assert sum(map(len, page._known.values())) <= 2
    assert caplog.text.count("metric_not_counted") == 1


def test_a_process_beyond_all_pages_is_not_counted():
    assert Tally(2).page(2) is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """Counting is on in this process."""
    pages = Tally(1)
    monkeypatch.setattr(metrics, "tally", pages)
    monkeypatch.setattr(metrics, "page", PerProcess(metrics._own_page))
    return pages


def test_a_batch_is_counted_by_what_it_did(counted: Tally):
    metrics.count_batch("s0", Outcome(counts=Counter({"applied insert t": 7, "batches": 1})))
    metrics.count_batch("s0", Outcome(counts=Counter({"applied insert t": 1})))
    metrics.count_batch("s1", Outcome())

    assert counted.totals() == {"s0": {"applied insert t": 8, "batches": 1}}


def test_without_a_port_nothing_is_counted():
    metrics.count_batch("s0", Outcome(counts=Counter({"batches": 1})))

    assert metrics.page() is None


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
    counts = {
        "applied insert t": 7, "rejected a b": 2, "held early": 3, "seen": 1,
        "batch_ms 1": 1, "batch_ms 100": 1, "batch_ms inf": 1, "batch_sum_ms": 9100,
        "commit_ms 1": 1, "commit_sum_us": 5,
    }  # fmt: skip
    page.add("s0", counts)

    samples = scraped(port)

    assert value_of(samples, "pipeline_worker_info", worker="w@host") == 1
    assert value_of(samples, "pipeline_worker_ops_applied_total", shard="s0", kind="insert", table="t") == 7
    assert value_of(samples, "pipeline_worker_ops_rejected_total", shard="s0", table="a b") == 2
    assert value_of(samples, "pipeline_worker_buckets_held_total", shard="s0", kind="early") == 3
    assert value_of(samples, "pipeline_worker_ops_seen_total", shard="s0") == 1
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.001") == 1
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.05") == 1
    assert value_of(samples, "pipeline_worker_batch_seconds_bucket", shard="s0", le="0.1") == 2
    assert value_of(samples, "pipeline_worker_batch_seconds_count", shard="s0") == 3
    assert value_of(samples, "pipeline_worker_batch_seconds_sum", shard="s0") == 9.1
    assert value_of(samples, "pipeline_worker_commit_seconds_sum", shard="s0") == 0.000005
    assert any(one.name == "process_resident_memory_bytes" for one in samples)


def test_so_many_tables_are_told_apart_and_a_table_keeps_its_label(counted: Tally, port: int):
    page = page_of(counted, 0)
    for n in range(MOST_TABLES + 5):
        page.add("s0", {f"applied insert t{n}": 100 - n})

    def by_table() -> dict[str, float]:
        name = "pipeline_worker_ops_applied_total"
        return {one.labels["table"]: one.value for one in scraped(port) if one.name == name}

    first = by_table()
    page.add("s0", {f"applied insert t{MOST_TABLES}": 1000})

    assert first == {f"t{n}": 100 - n for n in range(MOST_TABLES)} | {"other": sum(range(76, 81))}
    assert by_table() == first | {"other": first["other"] + 1000}


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


def test_a_scrape_that_fails_is_answered_and_logged(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(pages: Tally) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(Tally, "totals", broken)

    with pytest.raises(urllib.error.HTTPError, match="500"):
        scraped(port)

    assert 'metrics_failed error="RuntimeError: no page"' in caplog.text
