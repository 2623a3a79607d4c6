"""How long the log keeps what it keeps for a while: the same over Redis, in its scripts and in this process, ms."""

from __future__ import annotations

#: As in `enqueue.lua`: a Celery message that nobody fetched for so long no longer counts as on its way.
BELL_MS = 1000
#: As in `enqueue.lua`.
IDEMPOTENCY_TTL_MS = 86_400_000
#: A producer number comes free this long after its process has gone.
LEASE_MS = 60_000
#: The number that a host has in reserve comes free this long after its last refill: behind all that it may have used.
HOST_LEASE_MS = 2 * 86_400_000
#: Time between two notes of a shard's watermarks.
NOTE_MS = 60_000
#: Counts of reads are forgotten when no process reads for so long.
READS_MS = 86_400_000
