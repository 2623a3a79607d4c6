"""Learn how far each node is: query the node itself, or take the prober's report. What does not answer is unknown.

Servers are asked side by side; a dead one costs the time-out once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pipeline import clock
from pipeline.admin.observe.news import News
from pipeline.clock import Deadline
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError, Unavailable
from pipeline.model.op import START, Position
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.ledger import OWNED
from pipeline.shard.records.moves import Leg
from pipeline.shard.records.stops import stop_reasons
from pipeline.shard.session import brief

#: A prober's report that is older says nothing of how far its node is now, ms.
REPORTED_MS = 5_000
#: How long a server may take for its whole answer, s.
ASK_S = 3.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OnPrimary:
    """What only a shard's primary knows: how many ops are set aside or lost, what is stopped, and what has moved.

    `refused` names the op that was refused last.
    """

    counts: Mapping[str, int]
    stops: Sequence[WaitReason]
    legs: Mapping[int, Leg] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far one node is.

    Attributes:
        at_s: when it was so, by this process's steady clock.
        marks: its watermarks; a bucket that has moved, or is on its way, has one too.
        newest_ms: the time of its newest op; None: not known.
        lag_ms: by its report; None: not known.
    """

    at_s: float
    marks: Mapping[int, Position]
    newest_ms: int | None = None
    lag_ms: int | None = None


def ask_node(node: str, uri: str) -> Reached:
    """Return how far a node is by its own word.

    Args:
        node: its name.
        uri: its address.

    Raises:
        ShardUnavailable: it does not answer in time.
    """
    with brief(node, uri) as session:
        standing = ledger_queries.standing(session)
        at_s = clock.mono_s()
    return Reached(at_s, {bucket: mark.position for bucket, mark in standing.marks.items()}, standing.newest_ms)


def ask_primary(shard: str, uri: str) -> OnPrimary:
    """Return what only a primary knows.

    Args:
        shard: its name.
        uri: the address of the node that takes its writes.

    Raises:
        ShardUnavailable: it does not answer in time.
    """
    with brief(shard, uri) as session:
        counts = ledger_queries.counts(session)
        refused = ledger_queries.newest_refused(session) if counts["rejected"] else ""
        return OnPrimary(counts, stop_reasons(session, shard), moves.legs(session), refused)


def reported(node: str, news: News) -> Reached | PipelineError:
    """Return how far a node is by its report, or why nothing is known.

    Args:
        node: its name.
        news: what is published.
    """
    age_ms = news.age_ms(node)
    if age_ms is None or age_ms > REPORTED_MS:
        return Unavailable("no prober has reported it within the last seconds")
    report = news.nodes[node][1]
    if report.why:
        return Unavailable(report.why)
    return Reached(clock.mono_s() - age_ms / 1000, report.marks, lag_ms=report.lag_ms)


def writing(shard: str, nodes: Mapping[str, str], news: News) -> str:
    """Return the node that takes writes by the prober's reports; if they name not one, the configured one.

    Args:
        shard: its name, which is the configured primary's.
        nodes: the addresses of its nodes by name.
        news: what is published.
    """
    taking = [node for node in nodes if node in news.nodes and news.nodes[node][1].takes_writes]
    return taking[0] if len(taking) == 1 else shard


def owned_by(topology: Topology, told: Mapping[str, Mapping[int, Leg]]) -> dict[str, set[int]]:
    """Return the buckets of each shard, the reference bucket included: as shards say it, else as the map does.

    Args:
        topology: follows the map.
        told: by shard that has answered, the last move of each bucket that has moved.
    """
    owners = {bucket: shard for shard in topology.shards for bucket in topology.buckets_of(shard)}
    owners |= {b: shard for shard, legs in told.items() for b, leg in legs.items() if leg.state in OWNED}
    found = {shard: {topology.reference_bucket} for shard in topology.shards}
    for bucket, shard in owners.items():
        found[shard].add(bucket)
    return found


def of_owned(
    found: Reached | PipelineError, least: Mapping[int, Position], is_primary: bool
) -> Reached | PipelineError:
    """Return how far a node is in the buckets of its shard: one that has left is another's.

    Args:
        found: how far it is in all, or why that is not known.
        least: of each bucket of its shard, the least watermark that its primary can have.
        is_primary: whether it is that.
    """
    if isinstance(found, PipelineError):
        return found
    marks = {bucket: found.marks.get(bucket, START) for bucket in least}
    return replace(found, marks={b: max(at, least[b]) for b, at in marks.items()} if is_primary else marks)


def highest(marks: Iterable[Mapping[int, Position]]) -> dict[int, Position]:
    """Return the highest watermark of each bucket. Where it has moved, its owner's may be of a moment before.

    Args:
        marks: of each shard.
    """
    found = dict[int, Position]()
    for each in marks:
        found |= {bucket: position for bucket, position in each.items() if position > found.get(bucket, START)}
    return found


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
