"""How many batches the workers took: asked with Celery's own command, as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

#: Seconds that workers have to answer. The command waits for all of it: it does not know how many workers there are.
ANSWER_S = 1.0
#: Seconds for the whole command; the import of the application takes most of it.
COMMAND_S = 20.0


def count_batches(environment: Mapping[str, str]) -> int | None:
    """Return the number of `pipeline.apply` tasks that all workers took since their start; None if none answers."""
    command = [sys.executable, "-m", "celery", "-A", "workers", "inspect", "stats", "--json"]
    try:
        answer = subprocess.run(
            [*command, "--timeout", str(ANSWER_S)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return total(answer.stdout)


def total(answer: str) -> int | None:
    """Return the sum over all workers of what the command printed."""
    try:
        workers = json.loads(answer)
        return sum(int(worker["total"].get("pipeline.apply", 0)) for worker in workers.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
