"""The arithmetic of docs/scaling.md is done with the figures that the page says were measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
MOST_SHARDS = 1024 // 16


def row(beginning: str) -> list[float]:
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"| {beginning}")]
    return [float(re.sub(r"[, ]|\(.*\)", "", cell)) for cell in line.strip("| ").split("|")[1:]]


CALLER, REDIS, WORKERS, MARIADB, ALL = row("one op a call")


@pytest.mark.parametrize("kind", ["one op a call", "many ops a call"])
def test_the_parts_of_an_op_are_all_of_it(kind: str) -> None:
    *parts, whole = row(kind)

    assert sum(parts) == pytest.approx(whole, abs=0.11)


@pytest.mark.parametrize("writes", [10_000, 100_000, 1_000_000])
def test_cores_and_servers_follow_from_the_parts(writes: int) -> None:
    [busy, deployed] = [
        [float(re.sub(r"[, ]|\(.*\)", "", cell)) for cell in line.strip("| ").split("|")[1:]]
        for line in TEXT.splitlines()
        if line.startswith(f"| {writes:,} |")
    ]

    cores = [writes * part / 1e6 for part in (CALLER, REDIS, WORKERS, MARIADB)]
    assert busy == pytest.approx(cores, abs=0.06)
    twice = [math.ceil(round(2 * one, 3)) for one in cores]
    redis = min(MOST_SHARDS, twice[1])
    assert deployed == [twice[0], redis, twice[2], twice[3], redis]


def test_what_a_redis_takes_follows_from_its_part() -> None:
    one, half, many = 1e6 / REDIS, 0.5e6 / REDIS, 1e6 / row("many ops a call")[1]

    words = r"= ([\d,]+) writes a second are all of it, ([\d,]+) half of it.*?one Redis takes ([\d,]+)"
    said = re.search(words, TEXT, re.DOTALL)

    assert said is not None
    assert [float(number.replace(",", "")) for number in said.groups()] == pytest.approx([one, half, many], rel=0.01)
    assert f"{1e6 * REDIS / 1e6 / MOST_SHARDS:.0%}".replace("%", " %") in TEXT
