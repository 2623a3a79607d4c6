"""Define every error that this package raises: one root, each with its fields and whether a retry can help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pipeline.events import without_values

#: Characters of what a caller gave that a message repeats.
MOST_SHOWN = 80


class PipelineError(Exception):
    """The root of all errors of this package."""

    #: True where the same call may succeed later, with nothing changed by the caller.
    retryable = False


# configuration ------------------------------------------------------------------------------------------------


class ConfigError(PipelineError):
    """The configuration is not usable; `faults` lists every fault that was found, a sentence each."""

    def __init__(self, faults: Iterable[str]):
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class WrongDeployment(ConfigError):
    """The configuration does not fit the deployment that its databases or its Redis belong to; nothing was done.

    Both values, both files and the command are in `faults`.
    """


# operations ---------------------------------------------------------------------------------------------------


class MigrationUnfinished(PipelineError):
    """Some statements of a migration could not be done; all others ran. `faults` has a sentence each."""

    def __init__(self, faults: Iterable[str], done: int):
        self.faults, self.done = tuple(faults), done
        found = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{done} statements ran; {len(self.faults)} could not be done:{found}")


# refused: nothing was sent ----------------------------------------------------------------------


class BadOp(PipelineError):
    """The call cannot become an op; nothing was sent. The message says what to change."""


class UnknownTable(BadOp):
    """A table that was never defined in this process."""

    def __init__(self, table: str, known: Iterable[str] = ()):
        hint = did_you_mean(table, known)
        super().__init__(f"table {shown(table)} is not defined here{hint}; call pipeline.define_tables(db) first")
        self.table = table


class UnknownField(BadOp):
    """A field that the table does not have."""

    def __init__(self, table: str, field: str, known: Iterable[str]):
        super().__init__(f"table {table!r} has no field {shown(field)}{did_you_mean(field, known)}")
        self.table, self.field = table, field


class BadValue(BadOp):
    """A value that the column cannot hold exactly. The value itself is never repeated in the message."""

    def __init__(self, table: str, field: str, why: str):
        super().__init__(f"{table}.{field} {why}")
        self.table, self.field, self.why = table, field, why


class Refused(Exception):
    """The refusal of one value, raised before its column is known. The message never repeats the value."""

    def __init__(self, value: object, advice: str):
        super().__init__(f"cannot take this {type(value).__name__}: {advice}")


class BadQuery(BadOp):
    """A query or an expression that the log cannot carry."""


class ShardKeyError(BadOp):
    """The shard key is missing, or the call would change it."""


class CrossBucket(BadOp):
    """An atomic group, or one op, touches two buckets; it cannot be applied in one transaction."""


class BadToken(BadOp):
    """A text that is not a receipt of this pipeline."""


# the pipeline cannot take it now ------------------------------------------------------------------------------


class Unavailable(PipelineError):
    """A part of the system did not answer in time.

    Attributes:
        numbered: by bucket, the producer and first sequence of ops that may be in the log. Sending such ops again under
            these numbers is harmless.
    """

    retryable = True
    numbered: Mapping[int, tuple[int, int]] = {}

    def for_caller(self) -> Unavailable:
        """Return an error like this one for one of several callers: each fills `numbered` with its own ops."""
        like = type(self).__new__(type(self), *self.args)
        like.__dict__.update(self.__dict__)
        return like


class LogUnavailable(Unavailable):
    """Redis did not answer in time. Unless `sent` is False the op may or may not be in the log.

    Attributes:
        sent: whether a command without a reply may have been done.
        silent: whether Redis itself refused the connection or sent no reply; False where another step took too long.
    """

    def __init__(self, why: str, *, sent: bool = True, silent: bool = False):
        tail = "; the op may or may not be queued: try again with the same idempotency_key" if sent else ""
        super().__init__(f"Redis: {why}{tail}")
        self.why, self.sent, self.silent = why, sent, silent


class InDoubt(LogUnavailable):
    """Ops may be queued or not: Redis's reply was lost, and the spool could not take them.

    The same call once more may double them. Harmless is the call with `again=error.receipt`, as often as it takes, or
    with the same idempotency_key; or follow `receipt` until it is applied.

    Attributes:
        receipts: of each op of the call, in order; None: the op was certainly not taken, nor was any that follows.
        receipt: of a call with one op.
    """

    retryable = False

    def __init__(self, why: Unavailable, receipts: Sequence[object | None]):
        super().__init__(
            f"{getattr(why, 'why', why)}; the op is in doubt: it may be queued. Repeat the call with "
            "again=error.receipt, or with its idempotency_key; a repeat with neither may double it",
            sent=False,
        )
        self.sent, self.numbered, self.receipts = True, why.numbered, receipts
        self.receipt: Any = next((receipt for receipt in receipts if receipt is not None), None)


class ShardUnavailable(Unavailable):
    """A database server of a shard did not answer in time, or refused the connection."""

    def __init__(self, node: str, why: str):
        super().__init__(f"node {node!r}: {why}")
        self.node = node


class PipelineFull(Unavailable):
    """The queue is at its limit; nothing was sent."""

    def __init__(self, why: str):
        super().__init__(f"the pipeline is full: {why}; nothing was queued, try again later")
        self.why = why


class SpoolUnavailable(Unavailable):
    """The spool's file cannot be used."""

    def __init__(
        self,
        path: object,
        why: str,
        cure: str = "let this process write to the file and its folder, or give another [spool] path",
    ):
        super().__init__(f"the spool {path}: {why}; {cure}")
        self.path = path


class NotDurable(Unavailable):
    """The op is queued, but not as durable as requested in time. Do not send the op again: follow `receipt`."""

    retryable = False

    def __init__(self, durability: str, waited_s: float, receipt: object):
        super().__init__(f"the op is queued, but did not become {durability!r}-durable within {waited_s:.3g} s")
        self.durability, self.waited_s, self.receipt = durability, waited_s, receipt


class IdsUsedUp(Unavailable):
    """A row needs an id, Redis gives none now, and the host has none left in reserve; nothing was sent."""

    def __init__(self, why: str):
        super().__init__(f"no row ids while Redis is away: {why}; nothing was queued, try again once Redis answers")


class NotMigrated(PipelineError):
    """A shard lacks the pipeline's own tables, or its user may not use them."""

    def __init__(self, node: str, why: str):
        cure = "GRANT its user what pipeline check names" if " denied " in why else "run: pipeline migrate"
        super().__init__(f"node {node!r} is not prepared ({why}); {cure}")
        self.node = node


# the fate of an op ----------------------------------------------------------------------------------------------


class Rejected(PipelineError):
    """The database refused the op for good, or an operator dropped it.

    Attributes:
        reason: the database's own sentence, which may quote the values of the row; the message leaves these out.
        code: the database's number of the error.
    """

    def __init__(self, where: str, reason: str, code: int | None = None):
        super().__init__(f"{where} was rejected: {without_values(reason)}")
        self.reason, self.code = reason, code


class NotAnOp(PipelineError):
    """An entry of a log is no op that any release makes; a worker sets the entry aside."""


class NewerOp(PipelineError):
    """An op that a newer release made; the op waits in its bucket until the workers are upgraded."""

    def __init__(self, version: int, known: int, what: str):
        named = f", {what}" if what else ""
        super().__init__(
            f"an op of version {version}{named}; this worker understands versions up to {known}: upgrade this worker"
        )
        self.version, self.what = version, what


class Lost(PipelineError):
    """The log lost the op before it was applied."""


class WaitTimeout(PipelineError):
    """The op was not applied in time; it is still queued, or parked behind a rejected op of its row.

    Attributes:
        why: what it waits for, as a clause without its subject; empty where that is not known.
    """

    retryable = True

    def __init__(self, what: str, waited_s: float, stage: str, why: str = ""):
        super().__init__(f"{what} was still {stage} after {waited_s:.3g} s{why and f': it {why}'}")
        self.waited_s, self.stage, self.why = waited_s, stage, why


# reads ----------------------------------------------------------------------------------------------------------


class BadRead(PipelineError):
    """The call cannot become a read; no node was queried. The message says what to change."""


class ReadOnly(PipelineError):
    """A write was tried through a connection that is for reading."""

    def __init__(self, node: str, why: str):
        super().__init__(
            f"node {node!r} was opened for reading and refused a write ({why}): write with pipeline.enqueue_*"
        )
        self.node = node


class StaleRead(Unavailable):
    """No node could show in time what the read had to see; `stage` says how far that had come.

    `queued`: not applied yet. `replicating`: on the primary, not on a replica, and `primary_limit` is reached.
    `lagging`: no replica is within the lag allowed. `aside`: it was set aside, and waits for an operator or an op.
    """

    def __init__(self, shard: str, stage: str, why: str, waited_s: float = 0.0):
        super().__init__(f"shard {shard!r}: {_STAGES[stage]} after {waited_s:.3g} s ({why})")
        self.shard, self.stage, self.reason, self.waited_s = shard, stage, why, waited_s


class PartialResult(Unavailable):
    """Some shards did not answer a read; `missing` maps each to its error. `partial=True` returns the others' rows."""

    def __init__(self, missing: Mapping[str, BaseException]):
        shown = "; ".join(f"shard {shard!r}: {error}" for shard, error in missing.items())
        super().__init__(f"{len(missing)} of the shards did not answer: {shown}")
        self.missing = dict(missing)


_STAGES = {
    "queued": "what this read must see was still queued",
    "replicating": "what this read must see is on the primary, but no replica that may serve it had it",
    "lagging": "no replica may serve this read",
    "aside": "what this read must see is set aside (pipeline dead list)",
}


def shown(value: object) -> str:
    """Return a name or a value from outside as it may appear in a message: cut, or its type where it is no text.

    Args:
        value: what a caller gave.
    """
    if not isinstance(value, str):
        return str(value) if isinstance(value, int) and abs(value) < 2**64 else f"a {type(value).__name__}"
    if len(printed := repr(value[: MOST_SHOWN + 1])) <= MOST_SHOWN + 2:
        return printed
    return f"{printed[:MOST_SHOWN]}… ({len(value):,} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the empty string.

    Args:
        word: what was written.
        known: the words that would be right.
    """
    if not isinstance(word, str) or len(word) > MOST_SHOWN:
        return ""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
