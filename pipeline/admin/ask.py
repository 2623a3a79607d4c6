"""Ask many servers at once; one that is dead costs the time-out once, and is told by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.clock import Deadline
from pipeline.errors import PipelineError, Unavailable

#: How long a server may take for all of its answer, s.
ANSWER_S = 3.0
T = TypeVar("T")


def ask_all(questions: Mapping[str, Callable[[], T]], timeout_s: float = ANSWER_S) -> dict[str, T | PipelineError]:
    """Return each question's answer, or the error in its place, in the order of the questions.

    What is not answered in time is left to itself: its thread ends with its own time-outs, or with the process.
    """
    answers: dict[str, T | PipelineError] = {}

    def answer(name: str, question: Callable[[], T]) -> None:
        try:
            answers[name] = question()
        except PipelineError as error:
            answers[name] = error
        except Exception as error:  # a driver's surprise concerns one server, and must not hide the others
            answers[name] = Unavailable(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=answer, args=item, name=f"pipeline-ask-{item[0]}", daemon=True)
        for item in questions.items()
    ]
    for thread in threads:
        thread.start()
    deadline = Deadline(timeout_s)
    for thread in threads:
        thread.join(deadline.left_s)
    silent = Unavailable(f"nothing came within {timeout_s:g} s")
    return {name: answers.get(name, silent) for name in questions}
