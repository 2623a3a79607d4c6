"""Let the consumer reconnect where kombu meets a reply on a channel whose connection is gone.

`broker_channel_error_retry` in `celeryconfig.py` does the same for what Redis refuses.
"""

from __future__ import annotations

from kombu.transport.redis import Transport


def outlive_collected_channels() -> None:
    """Count AttributeError as a lost connection, for every Redis transport of this process, Sentinel's too.

    After a restart within a second kombu may use a channel whose connection has been collected meanwhile. It raises
    `'NoneType' object has no attribute 'hostname'` (celery/kombu#582), and Celery ends the worker's main process.
    """
    Transport.connection_errors = (*Transport.connection_errors, AttributeError)
