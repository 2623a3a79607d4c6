"""Let Flower listen on this machine only, unless it asks for a login: its pages show what is written and where.

By itself Flower listens on every address of the machine, to everybody.
"""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from typing import Any

from celery.signals import import_modules

#: Flower's own variable for its `--address`, which goes before it.
VARIABLE = "FLOWER_ADDRESS"
os.environ.setdefault(VARIABLE, "127.0.0.1")


@import_modules.connect
def refuse_strangers(**_: Any) -> None:
    """End Flower before it listens beyond this machine without a login; its app imports its modules before."""
    if "flower.command" not in sys.modules or "flower" not in sys.argv:
        return
    options = sys.modules["tornado.options"].options
    if options.unix_socket or is_loopback(options.address) or options.auth or any(options.basic_auth or ()):
        return
    sys.exit(
        f"Flower does not start: it would listen on {options.address or 'every address'} without a login; "
        "give it --address=127.0.0.1, or set FLOWER_BASIC_AUTH=user:password"
    )


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address; with the empty one, everybody reaches it.

    Args:
        address: a name or a number.
    """
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
