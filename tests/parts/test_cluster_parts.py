"""The parts of a local cluster that need no server."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import tomllib
from pathlib import Path

import pytest

from pipeline.devcluster import processes, state
from pipeline.devcluster.processes import uninterrupted
from pipeline.devcluster.startup import ClusterOptions, config_text, write_config
from pipeline.devcluster.state import ClusterFailed, Process, Service, Shard

SHARD = Shard("s0", 'sqlite:///a "b"\\c/shop.sqlite', ("sqlite:///r0", "sqlite:///r1"))


def test_the_configuration_holds_the_servers_and_the_added_tables_exactly():
    text = config_text(
        [SHARD],
        redis=("redis://:p@127.0.0.1:20001/0", "redis://:p@127.0.0.1:20001/1"),
        buckets=64,
        tables='[tables.x]\nshard_key = "é"',
    )

    assert tomllib.loads(text) == {
        "pipeline": {"buckets": 64},
        "redis": {"url": "redis://:p@127.0.0.1:20001/0", "broker_url": "redis://:p@127.0.0.1:20001/1"},
        "spool": {"path": "spool/pipeline.spool"},
        "shards": {"s0": {"primary": SHARD.primary, "replicas": list(SHARD.replicas)}},
        "tables": {"x": {"shard_key": "é"}},
    }


def test_the_configuration_and_the_state_are_for_their_owner_only(tmp_path: Path):
    state.claim(tmp_path / "D", "embedded")

    config = write_config(tmp_path / "D", "")

    for path in (config, tmp_path / "D" / state.STATE_FILE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_state_is_read_as_it_was_written(tmp_path: Path):
    service = Service("s0", "mariadb", ("mariadbd", "--port=1"), 1, {"A": "b"})
    written = state.ClusterState("mariadb", ("D",), ("s0",), (service,), (Process("s0", 12, 1, "99", 7),))

    state.write(tmp_path, written)

    assert state.read_state(tmp_path) == written


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path: Path):
    (tmp_path / state.STATE_FILE).write_text('{"engine": 3}')

    with pytest.raises(ClusterFailed, match=r"cluster\.json is not a cluster's state"):
        state.read_state(tmp_path)


def test_a_folder_with_anything_in_it_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(ClusterFailed, match="is not empty"):
        state.claim(tmp_path, "embedded")

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_with_a_cluster_is_refused_with_the_way_out(tmp_path: Path):
    state.claim(tmp_path / "D", "embedded")

    with pytest.raises(ClusterFailed, match="already holds a cluster; run: pipeline cluster down --dir"):
        state.claim(tmp_path / "D", "embedded")


def test_an_unknown_process_is_an_error_that_lists_the_known_ones():
    known = state.ClusterState(
        "embedded", services=(Service("redis", "redis", ()), Service("s0-r0", "sqlite-replica", ()))
    )

    with pytest.raises(ClusterFailed, match="no process 's0'; it has: redis, s0-r0"):
        known.service("s0")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"engine": "oracle"}, "engine 'oracle' is not known; it is one of: embedded, mariadb"),
        ({"shards": 0}, "shards is 0; it must be at least 1"),
        ({"replicas": -1}, "replicas is -1; it must be at least 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
    ],
)
def test_an_impossible_cluster_is_refused_with_the_reason(wrong: dict[str, object], sentence: str):
    with pytest.raises(ClusterFailed) as refused:
        ClusterOptions(**wrong)

    assert str(refused.value) == sentence


def test_a_taken_port_for_flower_is_refused_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ClusterFailed, match=f"port {port} for Flower is taken"):
            ClusterOptions(flower_port=port)


def test_free_ports_differ_and_can_be_listened_on():
    found = processes.free_ports(20)

    assert len(set(found)) == 20
    for port in found:
        with socket.create_server(("127.0.0.1", port)):
            assert not processes.is_free(port)


def test_a_free_port_is_given_to_nobody_else_before_its_server_listens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "FIRST_PORT", 31_000)
    monkeypatch.setattr(processes, "LAST_PORT", 31_400)

    assert not {*processes.free_ports(60)} & {*processes.free_ports(60)}


def test_free_ports_lie_where_no_outgoing_connection_takes_them():
    assert all(port < 32_768 for port in processes.free_ports(20))


def test_a_signal_is_held_back_until_the_work_is_whole():
    done: list[str] = []

    def interrupted() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["whole"]


def test_another_thread_may_work_uninterrupted_too():
    done = threading.Event()

    def work() -> None:
        with uninterrupted():
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert done.is_set()
