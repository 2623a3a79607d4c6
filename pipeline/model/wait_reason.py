"""Say in one sentence why ops wait: what waits, since when, because of what, and the command that mends it.

Everything that says it says it in these words: `why`, `status`, `top`, time-outs of receipts, Flower and the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from pipeline.events import without_values
from pipeline.model import Position


class Kind(NamedTuple):
    """The words of one kind of reason, with {scope}, {shard} and {detail} to fill in.

    Attributes:
        because: what the ops wait for.
        mend: the command that mends it, or what happens by itself.
        what: what waits, if not ops of the scope.
    """

    because: str
    mend: str
    what: str = ""


#: Every reason that can be given; `docs/troubleshooting.md` has a row for each. The first that holds is given first.
KINDS = {
    "redis-away": Kind("Redis does not answer ({detail})", "start Redis; then run: pipeline check"),
    "redis-full": Kind(
        "Redis refuses them ({detail})", "start workers (pipeline status says where), or raise maxmemory", "new ops"
    ),
    "primary-away": Kind("the primary of {shard} does not answer ({detail})", "start it; then run: pipeline check"),
    "restored": Kind(
        "the database of {shard} lacks what it had applied, as one restored from a backup does ({detail})",
        "run: pipeline restore {shard}",
    ),
    "paused": Kind("{scope} is paused ({detail})", "run: pipeline resume {scope}"),
    "breaker": Kind(
        "{scope} is halted after too many refusals ({detail})", "mend it; then run: pipeline resume {scope}"
    ),
    "no-worker": Kind("no worker of {shard} runs", "run: celery -A workers worker -Q shard.{shard}"),
    "schema": Kind("{shard} is behind the schema of {scope} ({detail})", "run: pipeline migrate"),
    "right": Kind("the account of {shard} may not write to {scope} ({detail})", "run: pipeline check, then its GRANT"),
    "unwritable": Kind(
        "the database of {shard} cannot write to {scope} ({detail})",
        "make room for it, or repair it: see CHECK TABLE; workers retry",
    ),
    "unpublished": Kind(
        "no process has published the schema of {scope} ({detail})",
        "run pipeline.define_tables(db) in the application; then run: pipeline check",
    ),
    "database": Kind("the database of {shard} refused their batch ({detail})", "workers retry; run: pipeline check"),
    "early": Kind(
        "a constraint refuses the op at {detail}, and ops that were enqueued before it are still queued",
        "workers apply these first, and then decide",
    ),
    "locked": Kind("another transaction holds what they need ({detail})", "it ends or is killed; workers retry"),
    "overtime": Kind(
        "their statement takes too long ({detail})", "workers reject it after some tries, or raise [apply] statement_s"
    ),
    "testing": Kind(
        "an op ended its worker, its server or its time, and is tried alone ({detail})",
        "workers reject it after the last try: see pipeline status",
    ),
    "halted": Kind("{scope} is halted: the op at {detail} was refused", "replay or drop it, see: pipeline dead list"),
    "moving": Kind(
        "the move of {scope} from {shard} to {detail} is at its cut-over",
        "a mover ends it: see pipeline move list; or run: pipeline move give-up {scope}",
    ),
    "newer": Kind("this worker is older than the op at {detail}", "upgrade the workers"),
    "misplaced": Kind("no shard can count up to the entry {detail}", "delete it with XDEL"),
    "parked": Kind("the op at {detail}, was set aside", "run: pipeline dead list"),
    "waiting": Kind("it is to be replayed ({detail})", "workers do it within a minute; or run: pipeline dead list"),
    "spooled": Kind(
        "Redis did not take them, and the spool of their host keeps them", "run there: pipeline spool drain"
    ),
    "queued": Kind("workers apply what came before ({detail})", "wait, or start more workers"),
}
#: The most shards that one sentence names.
_MOST_NAMED = 4
_ORDER = {kind: n for n, kind in enumerate(KINDS)}
#: Reasons for which the ops of one table, or of one definition of it, are set aside, so that nothing else waits.
OF_TABLE = ("schema", "right", "unwritable")


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Why some ops of a shard wait.

    Attributes:
        kind: a key of `KINDS`.
        shard: the shard whose ops wait.
        scope: the shard, table or node that the reason is about.
        detail: who or what caused it, in its own words, but for the values that a database quotes.
        since_ms: since when, ms since 1970; 0: unknown.
        after: the watermark at which a bucket waits, as text; empty: unknown. Once it has moved, the reason is gone.
        buckets: how many buckets wait for this; 0: all of the scope.
    """

    kind: str
    shard: str
    scope: str
    detail: str = ""
    since_ms: int = 0
    after: str = ""
    buckets: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", without_values(self.detail))

    def sentence(self, what: str = "") -> str:
        """Return the whole sentence.

        Args:
            what: the one thing that waits, by default all ops that the reason is about.
        """
        return f"{what or self._what()} {self.clause(one=bool(what))}"

    def clause(self, *, one: bool = True) -> str:
        """Return the sentence without its subject.

        Args:
            one: whether one thing waits, or many.
        """
        return f"{self._because(one)}; {self.command}"

    @property
    def head(self) -> str:
        """The whole sentence without what mends it."""
        return f"{self._what()} {self._because(one=False)}"

    @property
    def command(self) -> str:
        """What mends it: a command, or what happens by itself."""
        return KINDS[self.kind].mend.format(scope=self.scope, shard=self.shard)

    def to_json(self) -> str:
        """Return the reason as a note for other processes."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> WaitReason | None:
        """Read a note; None if another version wrote it in words that this one does not know.

        Args:
            text: from `to_json`.
        """
        try:
            found = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            return None
        return found if found.kind in KINDS else None

    def _because(self, one: bool) -> str:
        words = {"scope": self.scope, "shard": self.shard, "detail": self.detail}
        because = KINDS[self.kind].because.format(**words).replace(" ()", "")
        since = f" waited since {utc_text(self.since_ms)}"
        if one:
            return f"{'has' + since if self.since_ms else 'waits'} because {because}"
        return f"{'have' + since if self.since_ms else 'wait'} because {because}"

    def _what(self) -> str:
        if self.buckets:
            return f"ops in {self.buckets} bucket{'s' * (self.buckets > 1)} of {self.shard}"
        on = f" on {self.shard}" if self.scope != self.shard else ""
        return KINDS[self.kind].what or f"ops of {self.scope}{on}"


def reasons_of(
    shard: str,
    marks: Mapping[int, Position],
    stops: Iterable[WaitReason],
    notes: Mapping[int, tuple[int, str]],
    alive: bool,
) -> tuple[WaitReason, ...]:
    """Return why ops of a shard wait, what stops the most first. What is stopped is named also where nothing waits.

    Args:
        shard: its name.
        marks: the watermark of each bucket that has ops behind it.
        stops: what is paused or halted there.
        notes: by bucket: since when it waits for the same, ms since 1970, and the worker's note.
        alive: whether a worker of the shard ran within the last seconds.
    """
    found = list(stops)
    stopped = {(stop.kind, stop.scope) for stop in found}
    found += (one for one in _grouped(marks, notes) if (one.kind, one.scope) not in stopped)
    if marks and not alive:
        found.append(WaitReason("no-worker", shard, shard))
    return tuple(sorted(found, key=lambda reason: (_ORDER[reason.kind], reason.since_ms)))


def sentences_of(reasons: Iterable[WaitReason]) -> list[str]:
    """Return a sentence for each reason; one for what stops a table on several shards.

    Args:
        reasons: in order.
    """
    alike: dict[object, list[WaitReason]] = {}
    for reason in reasons:
        kind = KINDS[reason.kind]
        anywhere = reason.scope != reason.shard and not reason.buckets and "{shard}" not in kind.because + kind.mend
        alike.setdefault((reason.kind, reason.scope, reason.detail) if anywhere else reason, []).append(reason)
    return [
        replace(same[0], shard=_named(same), since_ms=min(one.since_ms for one in same)).sentence()
        for same in alike.values()
    ]


def _named(same: list[WaitReason]) -> str:
    shards = list(dict.fromkeys(one.shard for one in same))
    return ", ".join(shards) if len(shards) <= _MOST_NAMED else f"{len(shards)} shards"


def utc_text(at_ms: int) -> str:
    """Return a time for people, the same on every machine.

    Args:
        at_ms: ms since 1970.
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _grouped(marks: Mapping[int, Position], notes: Mapping[int, tuple[int, str]]) -> Iterable[WaitReason]:
    """Return the notes that are true, those with the same cause as one.

    A note is true while ops wait and the watermark has not moved since. What another version wrote is left out.
    """
    groups: dict[tuple[str, str, str], WaitReason] = {}
    for bucket, (noted_ms, text) in notes.items():
        note = WaitReason.from_json(text) if bucket in marks else None
        if note is None or note.after not in ("", str(marks[bucket])):
            continue
        first, since_ms = groups.get((note.kind, note.scope, note.detail)), note.since_ms or noted_ms
        buckets = 1
        if first is not None:
            since_ms, buckets = min(since_ms, first.since_ms), first.buckets + 1
        groups[note.kind, note.scope, note.detail] = replace(note, since_ms=since_ms, after="", buckets=buckets)
    return groups.values()
