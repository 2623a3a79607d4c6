"""Print a token as text for a cookie, and read it back: signed, so that no forged token makes reads wait.

`t` + base64url of: who signed (4 bytes), signature (12 bytes), MessagePack of [rest, epochs, needs]. The needs are one
flat list. Per bucket it has the distance from the bucket before, twice the epoch's index (odd: sequences follow), and
the seq. Then come the producers' and the older sequences, each with how many there are. The text is bounded in size.

`shared_secret` is what signs the tokens, where the settings have nothing.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from pipeline.errors import BadToken, Unavailable
from pipeline.events import Event
from pipeline.model.op import Position
from pipeline.model.seal import SIGNATURE_BYTES, Seal
from pipeline.oplog.shared_state import SharedState
from pipeline.reads.session import VERSION, Need, Sequences, Token
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets

#: A browser keeps 4 KB per cookie, with its name and attributes.
MOST_CHARACTERS = 3000
_WHO_BYTES = 4


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
        if who != self._who():
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


logger = logging.getLogger("pipeline.web")


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
