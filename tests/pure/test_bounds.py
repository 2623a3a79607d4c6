"""A cache keeps the newest of what is put in, and threads may share it; what goes together keeps its bounds."""

from __future__ import annotations

import threading

from pipeline.bounds import keep_newest, portions


def test_from_a_full_cache_the_oldest_goes_and_what_is_there_takes_no_place_twice():
    cache: dict[int, str] = {}
    for key in (1, 2, 3, 2, 4):
        assert keep_newest(cache, key, f"v{key}", 3) == f"v{key}"

    assert cache == {2: "v2", 3: "v3", 4: "v4"}


def test_threads_that_fill_a_cache_together_keep_its_bound():
    cache: dict[int, int] = {}

    def fill(start: int) -> None:
        for key in range(start, start + 5_000):
            keep_newest(cache, key, key, 10)

    threads = [threading.Thread(target=fill, args=(n * 10_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 0 < len(cache) <= 10 + len(threads)


def test_portions_keep_the_order_and_their_bounds_and_what_is_larger_goes_alone():
    sizes = {7: 4, 3: 4, 9: 30, 1: 1, 2: 1, 4: 1, 5: 1}

    assert list(portions(sizes.items(), 10, 3)) == [[7, 3], [9], [1, 2, 4], [5]]
    assert list(portions(sizes.items(), 10)) == [[7, 3], [9], [1, 2, 4, 5]]
    assert list(portions([], 10)) == []
