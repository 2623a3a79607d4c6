"""PyMySQL's connections of this process share what TLS needs of the machine.

PyMySQL (1.2) speaks TLS with a server that offers it, and verifies no certificate unless it was told to. It gets ready
for that at each connect, before it knows whether the server offers it, and reads all certificates that the machine
trusts: 28 ms of processor time, where all the rest of a connect takes 1.5 ms. It is the same each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymysql.connections import Connection

if TYPE_CHECKING:
    _Connection = Connection[Any]  # generic in its stubs only
else:
    _Connection = Connection

_shared: list[Any] = []


class SharedTLS(_Connection):
    """PyMySQL's connection; should PyMySQL rename what it overrides here, connecting is slow again, and not wrong."""

    def _create_ssl_ctx(self, given: Any) -> Any:
        made = super()._create_ssl_ctx  # type: ignore[misc]  # PyMySQL's own, which the stubs leave out
        if given:
            return made(given)
        if not _shared:  # two threads may both make one, which does no harm; a lock could be held across a fork
            _shared.append(made(given))
        return _shared[0]
