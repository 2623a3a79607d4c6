"""Chance that can be repeated: `PIPELINE_SEED` fixes it, `PIPELINE_SOAK` makes every test larger."""

from __future__ import annotations

import os
import random

SEED = int(os.environ.get("PIPELINE_SEED") or random.SystemRandom().randrange(1 << 32))
SOAK = int(os.environ.get("PIPELINE_SOAK") or 1)


def chance(*names: object) -> random.Random:
    """Return a generator of its own for whoever is named, so that tests do not shift each other's luck."""
    return random.Random(f"{SEED} {names}")
