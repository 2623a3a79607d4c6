"""Reports on nodes, counts of reads, upkeep's notes."""

from __future__ import annotations

from pipeline.clock import polls
from pipeline.oplog import Log


def test_what_was_told_of_a_node_comes_with_the_server_s_time_and_is_replaced_as_a_whole(log: Log):
    log.publish_health({"s0": "one", "s0-r0": "two words"}, 60_000)
    log.publish_health({"s0": "three words more"}, 60_000)

    now_ms, told, _ = log.health()

    assert set(told) == {"s0"}
    at_ms, text = told["s0"]
    assert text == "three words more"
    assert 0 <= now_ms - at_ms < 60_000


def test_what_nobody_tells_any_more_is_forgotten(log: Log):
    log.publish_health({"s0": "one"}, 50)

    assert any(log.health()[1] == {} for _ in polls(5))


def test_counts_of_reads_add_up_over_processes(log: Log):
    log.health({"s0 replica chosen": 2})
    log.health({"s0 replica chosen": 3, "s1 primary lag": 1})

    assert log.reads() == {"s0 replica chosen": 5, "s1 primary lag": 1}


def test_the_last_note_of_a_node_and_of_a_shard_s_unfit_nodes_stands(log: Log):
    for text in ("old", "new words"):
        log.note_seen("s0-r0", text)
        log.publish_unfit("s0", text)

    assert log.seen("s0-r0") == "new words"
    assert log.seen("s0") is None
    assert log.unfit() == {"s0": "new words"}
