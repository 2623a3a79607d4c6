"""Ask many servers side by side; a dead one costs the time-out once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.clock import Deadline
from pipeline.errors import PipelineError, Unavailable

#: How long a server may take for its whole answer, s.
ASK_S = 3.0
_T = TypeVar("_T")


def ask_all(questions: Mapping[str, Callable[[], _T]], timeout_s: float = ASK_S) -> dict[str, _T | PipelineError]:
    """Return each question's answer, or the error in its place, in the order of the questions.

    A question that is not answered in time is abandoned: its thread ends with its own time-outs, or with the process.

    Args:
        questions: by name, what to run; each in a thread of its own.
        timeout_s: how long all questions together may take.
    """
    answers: dict[str, _T | PipelineError] = {}

    def answer(name: str) -> None:
        try:
            answers[name] = questions[name]()
        except PipelineError as error:
            answers[name] = error
        except Exception as error:  # a driver's unexpected error concerns one server, and must not hide the others
            answers[name] = Unavailable(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=answer, args=(name,), name=f"pipeline-ask-{name}", daemon=True) for name in questions
    ]
    for thread in threads:
        thread.start()
    deadline = Deadline(timeout_s)
    for thread in threads:
        thread.join(deadline.left_s)
    silent = Unavailable(f"nothing came within {timeout_s:g} s")
    return {name: answers.get(name, silent) for name in questions}
