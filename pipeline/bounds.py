"""Bound what a process keeps of each table, definition or shape, and what it sends or reads at once.

A program that defines tables of its users' names has no end of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: Definitions, tables and the like that one cache keeps.
MOST_DEFINITIONS = 2000


def keep_newest(cache: dict[K, V], key: K, value: V, most: int = MOST_DEFINITIONS) -> V:
    """Put a value into a cache, and return it; from a full one the oldest goes, and is made anew when it is needed.

    Threads may share the cache. What is looked up stays no longer for that: a look-up costs what a dict's does.

    Args:
        cache: changed.
        key: of the value.
        value: to keep.
        most: how many values the cache keeps, 1 or more.
    """
    try:
        while len(cache) >= most and key not in cache:
            del cache[next(iter(cache))]
    except (KeyError, RuntimeError, StopIteration):
        pass  # another thread makes room at this moment
    cache[key] = value
    return value


def portions(sized: Iterable[tuple[V, int]], most_bytes: int, most: int | None = None) -> Iterator[list[V]]:
    """Yield what goes together, in order: what is larger than a portion goes alone.

    Args:
        sized: each thing, and its bytes.
        most_bytes: of a portion.
        most: the most things of a portion; None: any number.
    """
    portion, size = list[V](), 0
    for thing, more in sized:
        if portion and (len(portion) == most or size + more > most_bytes):
            yield portion
            portion, size = [], 0
        portion.append(thing)
        size += more
    if portion:
        yield portion
