"""Define the receipt that a caller holds of an op, and the seal of what a caller carries outside, such as a cookie."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import inf
from typing import Any, Protocol, overload

import msgspec

from pipeline import clock
from pipeline.errors import BadToken, PipelineError, Unavailable
from pipeline.model import Position

#: 2**96 tries, each a request: nobody finds one.
SIGNATURE_BYTES = 12
#: First letter of every printed receipt; a new layout gets a new letter. A spooled op has no position yet.
VERSION, SPOOLED = "r", "s"
#: No receipt is longer, characters: what is longer is not looked at.
MOST_CHARACTERS = 200
#: How often at most a seal asks whether the secret is another by now, s: anybody may send what nobody has signed.
RENEW_S = 5.0
#: What a seal calls a receipt.
_KIND = b"receipt"


@dataclass(frozen=True)
class Seal:
    """Signs for one deployment; all its processes have the same key. Threads may share it.

    Args:
        secret: the deployment's, or what returns it: called when first needed, and by `renew`.
        deployment: what sets the deployment apart from others with the same secret.
    """

    secret: str | Callable[[], str] = field(repr=False)
    deployment: str = ""

    @cached_property
    def key(self) -> bytes:
        """What signs; the secret alone would do for other deployments as well.

        Raises:
            LogUnavailable: the secret is in Redis, which does not answer, and this host has never kept it.
        """
        return self._key_of(self.secret if isinstance(self.secret, str) else self.secret())

    def renew(self) -> bool:
        """Read the secret again, as this seal has not signed what it was shown: Redis may have lost the secret.

        Whoever asked Redis first then has made another. Nothing happens within `RENEW_S`, or while Redis is away.

        Returns:
            Whether the secret was read.
        """
        now_s, asked_s = clock.mono_s(), self.__dict__.get("asked_s", -inf)
        if isinstance(self.secret, str) or now_s < asked_s + RENEW_S:
            return False
        self.__dict__["asked_s"] = now_s
        try:
            self.__dict__["key"] = self._key_of(self.secret())
        except Unavailable:
            return False
        return True

    def _key_of(self, secret: str) -> bytes:
        return hmac.digest(secret.encode(), self.deployment.encode(), sha256)

    def learn(self) -> None:
        """Read the secret now, as long as Redis answers; else as `key`."""
        _ = self.key

    def sign(self, kind: bytes, body: bytes) -> bytes:
        """Return a signature of `SIGNATURE_BYTES` bytes.

        Args:
            kind: of what is signed, so that one kind never passes for another.
            body: what is signed.

        Raises:
            LogUnavailable: as `key`.
        """
        return hmac.digest(self.key, kind + body, sha256)[:SIGNATURE_BYTES]

    def sign_text(self, kind: bytes, text: str) -> str:
        """Return a signature as text for URLs and cookies.

        Args:
            kind: as for `sign`.
            text: what is signed, in ASCII.
        """
        return urlsafe_b64encode(self.sign(kind, text.encode())).decode()

    def has_signed(self, kind: bytes, text: str, signature: str) -> bool:
        """Return whether a signature is what `sign_text` returns, if need be with the secret of now.

        Args:
            kind: as for `sign_text`.
            text: as for `sign_text`.
            signature: in ASCII.
        """
        if hmac.compare_digest(signature, self.sign_text(kind, text)):
            return True
        return self.renew() and hmac.compare_digest(signature, self.sign_text(kind, text))


class Source(Protocol):
    """What answers for a receipt: the client.

    Attributes:
        seal: signs what is printed.
    """

    seal: Seal

    def status(self, receipt: Receipt) -> str: ...  # noqa: D102
    def wait(self, receipt: Receipt, timeout_s: float) -> str: ...  # noqa: D102
    def row_id(self, receipt: Receipt) -> int | None: ...  # noqa: D102


class Receipt(msgspec.Struct, eq=False):
    """The caller's hold on one op.

    `position` is None until the op has been sent: inside `atomic()`, or with the web2py object before the commit. An op
    that went through the spool never has one; `producer` and `producer_seq` identify such an op.

    A receipt carries the producer's sequence because a Redis failover may move an op to another position. Only the
    sequence then says whether the op was applied.
    """

    bucket: int
    position: Position | None
    _id: int | None
    producer: int = 0
    producer_seq: int = 0
    source: Source | None = None

    @property
    def id(self) -> int | None:
        """The row's id; with `ids = "database"` None until the op is applied. Give JavaScript ids as text."""
        if self._id is None and self.source is not None and self.sent:
            self._id = self.source.row_id(self)
        return self._id

    @property
    def row(self) -> int | None:
        """The row's id as far as it is known here; reads no database."""
        return self._id

    @property
    def sent(self) -> bool:
        """Whether the op is on its way: in the log, or in the spool."""
        return self.position is not None or self.producer > 0

    def elsewhere(self, number: int) -> Receipt:
        """Return what a shard is asked by that keeps the op under another number than its bucket's.

        Args:
            number: of a piece, see `config/topology`.
        """
        return Receipt(number, self.position, self._id, self.producer, self.producer_seq)

    def name_row(self, id: int) -> None:
        """Note the row's id, which an earlier call with the same idempotency key has claimed.

        Args:
            id: the row's id.
        """
        self._id = id

    def status(self) -> str:
        """Return queued, spooled, applied, durable or lost; of an op that was set aside rejected, parked, replayed or
        dropped.
        """
        return self._asked().status(self)

    def wait(self, timeout_s: float = 2.0) -> str:
        """Wait until the op is applied, and return its status.

        Args:
            timeout_s: the longest wait, seconds.

        Raises:
            Rejected: the database refused the op, or an operator dropped it; `reason` is the database's sentence.
            Lost: Redis lost the op before it was applied.
            WaitTimeout: the op was not applied in time; it stays queued, or parked behind a rejected op of its row.
        """
        return self._asked().wait(self, timeout_s)

    def _asked(self) -> Source:
        if self.source is None:
            raise PipelineError("this receipt belongs to no pipeline; use pipeline.Receipt.parse(text)")
        if not self.sent:
            raise PipelineError("the op has not been sent yet: the atomic block or the request is still open")
        return self.source

    def __str__(self) -> str:
        if not self.sent:
            raise PipelineError("the op has not been sent yet, so its receipt cannot be printed")
        row = self._id + 1 if self._id is not None and self._id > 0 else 0
        numbers = (self.bucket, *(self.position or ()), self.producer, self.producer_seq, row)
        body = f"{SPOOLED if self.position is None else VERSION}{'.'.join(map(_base36, numbers))}"
        return f"{body}.{self._asked().seal.sign_text(_KIND, body)}"

    @classmethod
    def parse(cls, text: str, seal: Seal | None, source: Source | None = None) -> Receipt:
        """Read a receipt from the text that `str` makes of one.

        Args:
            text: the whole text.
            seal: of the deployment that has printed it; None: whoever gives the text is trusted with every receipt.
            source: what answers for the receipt; without one it has no status.

        Raises:
            BadToken: the text is not a receipt of this deployment, or was cut or changed on its way.
        """
        body, numbers = _opened(text, seal)
        bucket, *place, producer, producer_seq, id = numbers
        position = Position(*place) if body[0] == VERSION else None
        return cls(bucket, position, id - 1 if id else None, producer, producer_seq, source)

    def __repr__(self) -> str:
        return f"<Receipt bucket={self.bucket} position={self.position} id={self._id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipt) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.bucket, self.position, self.producer, self.producer_seq


class Receipts(Sequence[Receipt]):
    """The receipts of a bulk call, in the rows' order; each is made at its first use."""

    def __init__(self, make: Callable[[int], Receipt], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | list[Receipt]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length)

    def __iter__(self) -> Iterator[Receipt]:
        return map(self._make, range(self._length))

    def __repr__(self) -> str:
        return f"<Receipts of {self._length} ops>"


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
        if not number:
            return digits


def _opened(text: str, seal: Seal | None) -> tuple[str, list[int]]:
    """Return what was signed of a printed receipt, and its numbers.

    Raises:
        BadToken: it is no receipt, or the seal has not signed it.
    """
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or not text.isascii():
        raise BadToken("this is not a receipt; pass the text that str(receipt) made")
    body, _, signature = text.rpartition(".")
    parts = body[1:].split(".")
    if {VERSION: 6, SPOOLED: 4}.get(body[:1]) != len(parts) or not all(map(str.isalnum, parts)):
        raise BadToken("this text is not a receipt, or was cut on its way; pass the whole of str(receipt)")
    if seal is not None and not seal.has_signed(_KIND, body, signature):
        raise BadToken(
            "this receipt was changed on its way, or another deployment signed it, or [reads] secret has changed since"
        )
    try:
        return body, [int(part, 36) for part in parts]
    except ValueError as error:
        raise BadToken("this text is not a receipt") from error
