"""Sign what a caller carries outside, such as in a cookie: a text that another has made or changed is refused."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

#: 2**96 tries, each a request: nobody finds one.
SIGNATURE_BYTES = 12


@dataclass(frozen=True)
class Seal:
    """Signs for one deployment; all its processes have the same key. Threads may share it.

    Args:
        secret: the deployment's, or what returns it: called once, when first needed.
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
        secret = self.secret if isinstance(self.secret, str) else self.secret()
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
