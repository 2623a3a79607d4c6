"""How many examples property tests take: all of them in `make test`, a quarter where seconds count (`make check`)."""

from __future__ import annotations

import os

from hypothesis import settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
settings.register_profile("thorough", deadline=None)
settings.register_profile("quick", max_examples=25, deadline=None)
settings.load_profile("thorough" if THOROUGH else "quick")


def examples(most: int) -> int:
    """Return how many examples to take of a test that sets its own number; `HYPOTHESIS_TIMES` times as many."""
    return (most if THOROUGH else max(most // 4, 5)) * int(os.environ.get("HYPOTHESIS_TIMES", "1"))
