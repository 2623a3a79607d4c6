"""A host says what waits in its spool; screens show it, grown older, until the host is silent for long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pipeline import clock
from pipeline.admin.observe.published import SILENT_MS, hosts_of
from pipeline.admin.observe.record import FULLEST, HostRecord, Record, RedisRecord
from pipeline.enqueue.shipment import HostNews
from pipeline.model import INSERT, Op, encode
from pipeline.oplog.memory.log import MemoryLog
from pipeline.spool import NullSpool, Spool

OP = encode(Op(INSERT, "event", "0" * 64, clock.wall_ms() - 90_000, id=1, values={"body": "tea"}))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", 10_000_000)
    yield spool
    spool.close()


def shown(log: MemoryLog, *, later_ms: int = 0) -> tuple[HostRecord, ...]:
    return hosts_of(log.hosts(), log.now_ms() + later_ms)


def test_a_host_says_how_much_waits_and_how_old_it_is(spool: Spool):
    log = MemoryLog()
    spool.add({3: [OP, OP]})

    HostNews(spool, "web").publish(log)

    [host] = shown(log)
    assert (host.kind, host.spooled, host.bytes, host.why) == ("web", 2, 2 * len(OP), "")
    assert host.oldest_ms is not None
    assert 90_000 <= host.oldest_ms < 600_000
    [fault] = Record(1, RedisRecord(), (), hosts=(host,)).faults(60)
    assert "2 ops were in the spool for" in str(fault)
    assert fault.fix == "run there: pipeline spool drain"
    assert Record(1, RedisRecord(), (), hosts=(host,)).faults(3600) == []


def test_what_waits_on_a_silent_host_grows_older_and_stays_in_view(spool: Spool):
    log = MemoryLog()
    spool.add({3: [OP]})
    HostNews(spool, "web").publish(log)

    [now], [later] = shown(log), shown(log, later_ms=SILENT_MS + 5_000)

    assert later.oldest_ms is not None
    assert now.oldest_ms is not None
    assert later.oldest_ms >= now.oldest_ms + SILENT_MS


def test_a_silent_host_with_an_empty_spool_leaves_and_its_zero_is_no_age(spool: Spool):
    log = MemoryLog()
    HostNews(spool, "worker").publish(log)

    [host] = shown(log)

    assert (host.kind, host.spooled, host.bytes, host.oldest_ms) == ("worker", 0, 0, None)
    assert shown(log, later_ms=SILENT_MS + 5_000) == ()


def test_an_unreadable_spool_is_unknown_and_not_empty(spool: Spool):
    log = MemoryLog()
    spool.path.mkdir()

    HostNews(spool, "web").publish(log)

    [host] = shown(log, later_ms=2 * SILENT_MS)
    assert (host.spooled, host.bytes, host.oldest_ms) == (None, None, None)
    assert host.why


def test_one_process_publishes_every_few_seconds_and_without_a_spool_never(spool: Spool):
    log, news = MemoryLog(), HostNews(spool, "web")
    news.publish(log)
    spool.add({3: [OP]})

    news.publish(log)
    HostNews(NullSpool(), "worker").publish(log)
    HostNews(None, "worker").publish(log)

    [host] = shown(log)
    assert host.spooled == 0


def test_a_spool_of_a_web_server_and_workers_counts_once(spool: Spool):
    log = MemoryLog()
    HostNews(spool, "web").publish(log)
    spool.add({3: [OP]})
    HostNews(spool, "worker").publish(log)

    [host] = shown(log)

    assert (host.kind, host.spooled, host.path) == ("web", 1, str(spool.path))


def test_the_fullest_hosts_are_named_and_junk_is_passed_over():
    host = HostRecord("h", "web", oldest_ms=1)
    texts = {f"web h{n}": (0, replace_json(host, n)) for n in range(FULLEST + 5)}

    found = hosts_of({**texts, "web junk": (0, "[1]"), "junk": (0, "")}, 0)

    assert len(found) == FULLEST
    assert [one.spooled for one in found[:2]] == [FULLEST + 4, FULLEST + 3]


def replace_json(host: HostRecord, n: int) -> str:
    return msgspec.json.encode(replace(host, host=f"h{n}", spooled=n)).decode()
