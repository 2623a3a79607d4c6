"""Hold the times after which what the log keeps expires, in ms. Scripts get the times as arguments."""

from __future__ import annotations

_DAY_MS = 86_400_000

#: A Celery message that no worker fetched for so long no longer counts as on its way: the longest delay of a lost ring.
BELL_MS = 1000
#: A worker that is at a shard holds its bell for so long: while a batch takes longer, the next op rings for another.
HELD_MS = 200
#: Producers stop so soon after memory has run short, and go on so soon after there is room.
ROOM_MS = 1000
#: What rests, rings or refuses lies no further ahead, by the log's clock: what does was set before the clock went back.
MOST_AHEAD_MS = 5_000
#: An idempotency key is claimed for a day.
IDEMPOTENCY_TTL_MS = _DAY_MS
#: A producer's sequences outlive the day after which an idle producer starts anew under another number.
PRODUCER_TTL_MS = 2 * _DAY_MS
#: The size of a bucket's largest op is forgotten when no large one comes for so long: longer than ops wait.
BIG_TTL_MS = 7 * _DAY_MS
#: The time between two notes of a shard's watermarks.
NOTE_MS = 60_000
#: Counts of reads are forgotten when no process reads for so long.
READS_MS = _DAY_MS
#: A record of a shard is shown, with its age, for so long; its history outlives the day that it shows.
RECORD_MS, HISTORY_MS = 600_000, _DAY_MS + 3_600_000
#: What a host said of its spool is kept for so long after it fell silent, and of so many hosts at most.
HOST_MS, MOST_HOSTS = _DAY_MS, 500
#: Points of a history: 15 minutes at 5 s, and 24 hours at 5 minutes.
MOST_RECENT, MOST_OF_DAY = 180, 288
