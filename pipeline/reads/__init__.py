"""Keep what one reader must see: a token that grows with what it writes and sees; as signed text for a cookie, too.

Keep what one reader must see: a token, which grows with what the reader writes and sees. So reads never go back.
The token is a value, bucket by bucket. A node has what a token needs when the node's watermark of the same epoch has
passed the position. In a later epoch positions say nothing of an op that was sent again: there only its producer's
sequence does. What a read *saw* needs no producer. Nodes of a shard replay one history, so a node in a later epoch has
had all that another node had in an earlier one.

Print a token as text for a cookie, and read it back: signed, so that no forged token makes reads wait.
`t` + base64url of: who signed (4 bytes), signature (12 bytes), MessagePack of [rest, epochs, needs]. The needs are one
flat list. Per bucket it has the distance from the bucket before, twice the epoch's index (odd: sequences follow), and
the seq. Then come the producers' and the older sequences, each with how many there are. The text is bounded in size.

`shared_secret` is what signs the tokens, where the settings have nothing.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from pipeline.bounds import WaitBudgets
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.errors import BadRead, BadToken, Unavailable
from pipeline.events import Event
from pipeline.model import Position
from pipeline.model.receipt import SIGNATURE_BYTES, Receipt, Seal
from pipeline.oplog.shared_state import SharedState
from pipeline.spool import Spool

#: First letter of every printed token; a new layout gets a new letter.
VERSION = "t"
#: producer -> its last sequence that must be seen.
Sequences = Mapping[int, int]
#: A browser keeps 4 KB per cookie, with its name and attributes.
MOST_CHARACTERS = 3000
_WHO_BYTES = 4
logger = logging.getLogger("pipeline.web")


class ReadSession:
    """What one reader has written and seen. Pass it as `after=`; threads may share it.

    Args:
        token: what the reader has written and seen so far.
        seal: prints the token: a `token_cookie.TokenSeal`.
    """

    def __init__(self, token: Token, seal: Any):
        self._lock = threading.Lock()
        self._token, self._seal = token, seal

    @property
    def token(self) -> Token:
        """What the next read must see."""
        return self._token

    def wrote(self, receipts: Any) -> None:
        """Let the next reads see these ops.

        Args:
            receipts: one, or any number of them.
        """
        token = token_of([receipts] if looks_like_receipt(receipts) else receipts)
        with self._lock:
            self._token = self._token.merged(token)

    def saw(
        self,
        marks: Mapping[int, Position],
        passed: Mapping[int, Position],
        *,
        stale: bool,
        split: Collection[int] = (),
    ) -> None:
        """Note an answer.

        Args:
            marks: the watermarks that the node had after it had answered, by bucket or piece.
            passed: what every node is known to have; need not be remembered.
            stale: the answer was marked as stale, so the node may lack what the token asks for.
            split: the buckets whose logs two shards apply: what one of them has, the other may lack.
        """
        with self._lock:
            if split or any(number >= FIRST_PIECE for number in marks):
                logs = {log_number(number): mark for number, mark in marks.items()}
                shared = {log_number(number) for number in marks if number >= FIRST_PIECE} | {*split}
                both = {bucket: Need(mark) for bucket, mark in logs.items() if bucket in shared and mark.epoch > 0}
                self._token = self._token.merged(Token(both))
                marks = {bucket: mark for bucket, mark in logs.items() if bucket not in shared}
            if stale:
                seen = Token({bucket: Need(mark) for bucket, mark in marks.items() if mark.epoch > 0})
                self._token = self._token.merged(seen).forget(passed)
            else:
                self._token = self._token.saw(marks).forget(passed)

    def __str__(self) -> str:
        return str(self._seal.print(self._token))

    def __repr__(self) -> str:
        return f"<Session {self._token!r}>"


class After(NamedTuple):
    """What a read must see, and the session that takes up what it saw."""

    token: Token
    session: ReadSession | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What must be seen of one bucket.

    Attributes:
        position: up to where, in the newest epoch known.
        producers: whose ops of that epoch are meant; they count once the epoch is another one.
        older: whose ops of earlier epochs are meant; they count always.
    """

    position: Position
    producers: Sequences = field(default_factory=dict, hash=False)
    older: Sequences = field(default_factory=dict, hash=False)

    @property
    def certain(self) -> Position | None:
        """The position behind which, in its epoch, nothing is meant; None where only producers say what is."""
        return None if self.older else self.position

    def reached(self, mark: Position, seen: Mapping[int, int]) -> bool:
        """Return whether a node with that watermark has it.

        Args:
            mark: the node's watermark of the bucket.
            seen: producer -> last sequence that the node has of it; needed only for `asks_for`.
        """
        if mark < self.position:
            return False
        if mark.epoch == self.position.epoch and not self.older:
            return True
        return all(seen.get(producer, 0) >= seq for producer, seq in self.asks_for(mark).items())

    def asks_for(self, mark: Position) -> Sequences:
        """Return the sequences that a node must be asked about.

        Args:
            mark: its watermark of the bucket.
        """
        if mark.epoch > self.position.epoch and self.producers:
            return _highest(self.older, self.producers)
        return self.older

    def merged(self, other: Need) -> Need:
        """Return what both ask for.

        Args:
            other: of the same bucket.
        """
        old, new = (self, other) if self.position <= other.position else (other, self)
        if old.position.epoch == new.position.epoch:
            return Need(new.position, _highest(old.producers, new.producers), _highest(old.older, new.older))
        return Need(new.position, new.producers, _highest(_highest(old.older, old.producers), new.older))


class Token(Mapping[int, Need]):
    """Needs by bucket; `rest` asks for everything that stands in the logs of all other buckets now."""

    __slots__ = ("_needs", "rest")

    def __init__(self, needs: Mapping[int, Need] | None = None, *, rest: bool = False):
        self._needs = dict(needs or {})
        self.rest = rest

    def __getitem__(self, bucket: int) -> Need:
        return self._needs[bucket]

    def __iter__(self) -> Iterator[int]:
        return iter(self._needs)

    def __len__(self) -> int:
        return len(self._needs)

    def __bool__(self) -> bool:
        return bool(self._needs) or self.rest

    def __repr__(self) -> str:
        return f"<Token of {len(self._needs)} buckets{' and the rest' if self.rest else ''}>"

    def merged(self, other: Token) -> Token:
        """Return what both ask for.

        Args:
            other: its buckets count as the newer ones.
        """
        if not other:
            return self
        needs = dict(self._needs)
        for bucket, need in other.items():
            before = needs.pop(bucket, None)
            needs[bucket] = need if before is None else before.merged(need)
        return Token(needs, rest=self.rest or other.rest)

    def saw(self, marks: Mapping[int, Position]) -> Token:
        """Return the token of a reader that has got an answer from a node, which had what the token asks for.

        Args:
            marks: at least what the node had when it answered.
        """
        needs = dict(self._needs)
        for bucket, mark in marks.items():
            before = needs.pop(bucket, None)
            if mark.epoch > 0 or before is not None:
                needs[bucket] = Need(mark) if before is None or before.position <= mark else before
        return Token(needs, rest=self.rest)

    def forget(self, passed: Mapping[int, Position]) -> Token:
        """Return the token without what every node has.

        Args:
            passed: the watermarks that every node has passed.
        """
        left = {b: need for b, need in self._needs.items() if not (b in passed and _passed(need, passed[b]))}
        return self if len(left) == len(self._needs) else Token(left, rest=self.rest)

    def within(self, buckets: Iterable[int]) -> dict[int, Need]:
        """Return what the token asks for of some buckets.

        Args:
            buckets: those that matter.
        """
        needs = self._needs
        return {bucket: needs[bucket] for bucket in buckets if bucket in needs}

    @property
    def highest(self) -> int:
        """The highest bucket of the token; 0 where it names none."""
        return max(self._needs, default=0)

    def newest(self, count: int) -> Token:
        """Return the token cut to the buckets that were merged last; `rest` asks for the others: more, never less.

        Args:
            count: how many of them.
        """
        if count >= len(self._needs):
            return self
        kept = list(self._needs.items())[len(self._needs) - count :]
        return Token(dict(kept), rest=True)


#: Of a read that asks for nothing.
NOTHING = After(Token())


def token_of(receipts: Iterable[Receipt]) -> Token:
    """Return the token that asks for the ops of all receipts.

    Args:
        receipts: any number of them.

    Raises:
        BadRead: one of them has not been sent yet.
    """
    needs: dict[int, Need] = {}
    for receipt in receipts:
        need, before = _need_of(receipt), needs.get(receipt.bucket)
        needs[receipt.bucket] = need if before is None else before.merged(need)
    return Token(needs)


def after_of(value: Any, seal: Any) -> After:
    """Return what an `after=` asks for.

    Args:
        value: None, a receipt, several, a session, a token, or the text of a receipt or a session.
        seal: reads the text of a session: a `token_cookie.TokenSeal`.

    Raises:
        BadRead: it is nothing of the kind. BadToken: a text that was changed, or is another deployment's.
    """
    if value is None:
        return NOTHING
    if isinstance(value, After):
        return value
    if isinstance(value, ReadSession):
        return After(value.token, value)
    if isinstance(value, Token):
        return After(value)
    if isinstance(value, str):
        return After(seal.read(value) if value[:1] == VERSION else token_of([Receipt.parse(value, seal)]))
    try:
        return After(token_of([value] if isinstance(value, Receipt) or looks_like_receipt(value) else value))
    except (TypeError, AttributeError):
        raise BadRead(
            f"after= takes a receipt, several of them, a session or its text, not {type(value).__name__}"
        ) from None


def looks_like_receipt(value: Any) -> bool:
    """Return whether a value is a receipt.

    Args:
        value: anything.
    """
    return hasattr(value, "bucket") and hasattr(value, "producer_seq")


def _need_of(receipt: Receipt) -> Need:
    if receipt.position is None and receipt.producer_seq:
        # it came through the spool: its position is not known, its producer's sequence is
        return Need(Position(0, 0), {}, {receipt.producer: receipt.producer_seq})
    if receipt.position is None:
        raise BadRead(
            "after= has a receipt whose op has not been sent yet: read after the atomic block or the request, or with "
            "pending=True after it has been sent"
        )
    return Need(receipt.position, {receipt.producer: receipt.producer_seq} if receipt.producer_seq else {})


def _passed(need: Need, mark: Position) -> bool:
    return need.position.epoch == mark.epoch and need.position <= mark and not need.older


def _highest(one: Sequences, other: Sequences) -> Sequences:
    if not one or not other:
        return one or other
    return {producer: max(one.get(producer, 0), other.get(producer, 0)) for producer in {**one, **other}}


@dataclass(frozen=True)
class TokenSeal(Seal):
    """Prints tokens and reads them back, and signs a deployment's receipts; see `Seal`."""

    def print(self, token: Token) -> str:
        """Return a token as text of at most `MOST_CHARACTERS`; what has no room is asked for more coarsely.

        Args:
            token: of any size.
        """
        count = len(token)
        while True:
            text = self._text(token.newest(count))
            if len(text) <= MOST_CHARACTERS:
                return text
            count = min(count - 1, count * MOST_CHARACTERS // len(text))

    def read(self, text: str) -> Token:
        """Read what `print` wrote.

        Args:
            text: the whole of it.

        Raises:
            BadToken: it was cut or changed on its way, or another deployment signed it.
        """
        raw = _raw(text)
        who, signature = raw[:_WHO_BYTES], raw[_WHO_BYTES : _WHO_BYTES + SIGNATURE_BYTES]
        body = raw[_WHO_BYTES + SIGNATURE_BYTES :]
        if not body:
            raise BadToken("this text is not a session token, or was cut on its way; pass the whole text")
        if who != self._who() and not (self.renew() and who == self._who()):
            raise BadToken("this session token was signed by another deployment, or its secret has changed since")
        if not hmac.compare_digest(signature, self.sign(b"token", body)):
            raise BadToken("this session token was changed on its way: its signature is broken")
        rest, epochs, flat = msgspec.msgpack.decode(body, type=tuple[bool, list[int], list[int]])
        return Token(dict(_needs(epochs, iter(flat))), rest=rest)

    def _text(self, token: Token) -> str:
        epochs = sorted({need.position.epoch for need in token.values()})
        flat: list[int] = []
        before = 0
        for bucket in sorted(token):
            need = token[bucket]
            by_sequence = bool(need.producers or need.older)
            flat += (bucket - before, 2 * epochs.index(need.position.epoch) + by_sequence, need.position.seq)
            for sequences in (need.producers, need.older) if by_sequence else ():
                flat.append(len(sequences))
                for pair in sequences.items():
                    flat += pair
            before = bucket
        body = msgspec.msgpack.encode((token.rest, epochs, flat))
        raw = self._who() + self.sign(b"token", body) + body
        return VERSION + urlsafe_b64encode(raw).decode().rstrip("=")

    def _who(self) -> bytes:
        return self.sign(b"who", b"")[:_WHO_BYTES]


def _raw(text: str) -> bytes:
    """Return the bytes of a printed token; none of what is no such text."""
    if not isinstance(text, str) or not 0 < len(text) <= MOST_CHARACTERS or text[0] != VERSION:
        return b""
    try:
        return urlsafe_b64decode(text[1:] + "=" * (-len(text[1:]) % 4))
    except ValueError:
        return b""


def _needs(epochs: list[int], flat: Iterator[int]) -> Iterator[tuple[int, Need]]:
    bucket = 0
    for step in flat:
        bucket += step
        epoch, by_sequence = divmod(next(flat), 2)
        position = Position(epochs[epoch], next(flat))
        yield bucket, Need(position, _sequences(flat), _sequences(flat)) if by_sequence else Need(position)


def _sequences(flat: Iterator[int]) -> Sequences:
    return {next(flat): next(flat) for _ in range(next(flat))}


def shared_secret(log: SharedState, spool: Spool | None, wait_budgets: WaitBudgets, away: Callable[[], bool]) -> str:
    """Return the secret of this deployment: the first that anybody proposed to Redis.

    This host keeps it in the spool's file, which only its user may read, for a process that starts while Redis is away.

    Args:
        log: has the secret.
        spool: keeps it for this host; None: nothing is kept.
        wait_budgets: how long one call may wait for Redis.
        away: returns whether Redis is known not to answer.

    Raises:
        LogUnavailable: Redis does not answer, and this host has never kept the secret.
    """
    if spool is None:
        return log.secret(secrets.token_hex(16))
    kept = _kept(spool)
    if kept is not None and away():
        return kept
    try:
        with wait_budgets.within(wait_budgets.here.budget or wait_budgets.budget()):
            found = log.secret(kept or secrets.token_hex(16))
    except Unavailable:
        if kept is None:
            raise
        return kept
    if found != kept:
        _keep(spool, found)
    return found


def _kept(spool: Spool) -> str | None:
    try:
        return spool.secret()
    except Unavailable as error:
        logger.warning(Event("secret_not_read", error=error))
        return None


def _keep(spool: Spool, found: str) -> None:
    try:
        spool.keep_secret(found)
    except Unavailable as error:
        logger.warning(
            Event("secret_not_kept", error=error, text="session tokens cannot be read here while Redis is away")
        )
