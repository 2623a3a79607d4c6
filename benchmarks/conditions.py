"""Report the conditions of a run: machine, versions, durability. Numbers without them mean nothing."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.target import Target

PACKAGES = ("celery", "kombu", "redis", "pydal", "pymysql", "dramatiq", "huey")
#: What a server must set to keep each commit; rates without that cannot be compared.
DURABLE = {"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1", "log_bin": "1", "binlog_format": "ROW"}

_PROBE_WRITES, _PROBE_BYTES = 50, 4096


def conditions(target: Target, directory: Path) -> dict[str, str]:
    """Return the conditions by name, in the order in which they are printed."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "disk": f"write + fsync of 4 KiB: median {_fsync_ms(directory):.2f} ms",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        **{f"primary {shard}": _database(target, shard) for shard in range(len(target.primaries))},
        "Redis": _redis(target),
    }


def not_durable(target: Target) -> list[str]:
    """Return what is missing for durable commits, a sentence each."""
    return [
        f"primary {shard}: {name} is {found}, not {wanted}"
        for shard in range(len(target.primaries))
        for name, wanted in DURABLE.items()
        if (found := str(_variable(target, shard, name))) != wanted
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _fsync_ms(directory: Path) -> float:
    """Time the disk itself: a commit cannot be cheaper, and a RAM disk shows at once."""
    path, times = directory / "fsync-probe", []
    with path.open("wb", buffering=0) as file:
        for _ in range(_PROBE_WRITES):
            started = time.perf_counter()
            file.write(b"x" * _PROBE_BYTES)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    path.unlink()
    return median(times) * 1000


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _database(target: Target, shard: int) -> str:
    settings = ", ".join(f"{name}={_variable(target, shard, name)}" for name in DURABLE)
    return f"{_variable(target, shard, 'version')}, {settings}"


def _variable(target: Target, shard: int, name: str) -> Any:
    connection = target.connect(shard)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT @@GLOBAL.{name}")
            row = cursor.fetchone()
            return row[0] if row else None
    finally:
        connection.close()


def _redis(target: Target) -> str:
    client = target.redis()
    info = client.info("server")
    found = client.config_get("append*")
    return f"{info['redis_version']}, appendonly={found['appendonly']}, appendfsync={found['appendfsync']}"
