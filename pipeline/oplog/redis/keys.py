"""Make the names of all keys in Redis, under one prefix. The scripts in `lua/` document the values.

<prefix>:log:<bucket>       stream  the ops; positions <epoch>-<dense seq>
<prefix>:big:<bucket>       string  bytes of the largest op of late, where ops are large
<prefix>:epoch:<scope>      string  "<epoch> <master_replid> <map>", or why the epoch has ended
<prefix>:deployment         string  the deployment's fingerprint as JSON; see `model/fingerprint`
<prefix>:map                string  where buckets are that have moved, as JSON; see `config/bucket_ranges`
<prefix>:dirty:<shard>      zset    bucket -> ms from when on it may be applied
<prefix>:bell:<shard>       string  there while a Celery message is on its way, or a worker at the shard
<prefix>:wake:<shard>       list    wakes the worker that waits for a shard's next op; expires
<prefix>:marks:<shard>      hash    bucket -> watermark, a copy for readers
<prefix>:attempts:<shard>   hash    bucket -> what a worker is about to apply; see `apply/attempt`
<prefix>:notes:<shard>      list    "<ms> <watermarks as JSON>", the newest first, one a minute; see `admin/upkeep`
<prefix>:waits:<shard>      hash    bucket -> why it waits and since when; expires. See `oplog/waits`
<prefix>:producer:<id>      hash    bucket -> "<last seq> <epoch> <seq>"; who -> host and process; expires when idle
<prefix>:same:<bucket>:<k>  string  claim of a scoped idempotency key: the first op's receipt, or a row's id; expires
<prefix>:schemas            hash    hash -> schema as JSON
<prefix>:tables             hash    table -> hash of its newest schema
<prefix>:ids                hash    bucket -> next counter of its row ids; shard -> its span
<prefix>:full               string  why appends are refused; expires
<prefix>:room             string  there while enough memory is left, as measured of late; expires
<prefix>:chore:<name>       string  lease of a chore, "<token> <for how long, ms>"; expires
<prefix>:health             hash    node -> "<ms> <report as JSON>"; expires
<prefix>:record:<shard>     string  "<ms> <record as JSON>", `*` for the deployment; expires. See `admin/observe`
<prefix>:recent:<shard>     list    points of the last 15 minutes, the newest first; expires
<prefix>:day:<shard>        list    points of the last 24 hours, the newest first; expires
<prefix>:counts:<shard>     hash    counter -> n, of all processes; see `oplog/counts`
<prefix>:batches:<shard>    list    notes of the newest batches, the newest first; see `oplog/batches`
<prefix>:hosts              hash    "<kind> <host>" -> "<ms> <its spool as JSON>"; expires. See `spooling/host_news`
<prefix>:reads              hash    "<node> <kind> <reason>" -> reads of all processes; expires when idle
<prefix>:unfit              hash    shard -> its unfit nodes as JSON, a copy of pipeline_unfit
<prefix>:seen               hash    node -> what upkeep last saw of it, as JSON; see `admin/replica_absence`
<prefix>:secret             string  signs session tokens, if the settings name no secret
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Makes the names.

    Args:
        prefix: of every key.
    """

    prefix: str

    @property
    def schemas(self) -> str:
        """The hash of all schemas, by their hash."""
        return f"{self.prefix}:schemas"

    @property
    def newest_schemas(self) -> str:
        """The hash of each table's newest schema."""
        return f"{self.prefix}:tables"

    @property
    def ids(self) -> str:
        """The counters of row ids."""
        return f"{self.prefix}:ids"

    @property
    def full(self) -> str:
        """Why no op is taken."""
        return f"{self.prefix}:full"

    @property
    def room(self) -> str:
        """Whether memory was measured of late, and is enough."""
        return f"{self.prefix}:room"

    @property
    def bigs(self) -> str:
        """The beginning of the keys that hold the size of a bucket's largest op."""
        return f"{self.prefix}:big:"

    @property
    def reads(self) -> str:
        """The counts of reads."""
        return f"{self.prefix}:reads"

    @property
    def hosts(self) -> str:
        """What hosts say of their spools."""
        return f"{self.prefix}:hosts"

    @property
    def unfit(self) -> str:
        """The unfit nodes of each shard."""
        return f"{self.prefix}:unfit"

    @property
    def seen(self) -> str:
        """What upkeep noted of each node."""
        return f"{self.prefix}:seen"

    @property
    def health(self) -> str:
        """The prober's reports."""
        return f"{self.prefix}:health"

    @property
    def deployment(self) -> str:
        """The fingerprint of the deployment."""
        return f"{self.prefix}:deployment"

    @property
    def map(self) -> str:
        """Where buckets are that have moved."""
        return f"{self.prefix}:map"

    @property
    def secret(self) -> str:
        """The secret that signs session tokens."""
        return f"{self.prefix}:secret"

    def log(self, bucket: int) -> str:
        """Return the stream of a bucket."""
        return f"{self.prefix}:log:{bucket}"

    def epoch(self, scope: str) -> str:
        """Return the epoch key of a scope."""
        return f"{self.prefix}:epoch:{scope}"

    def dirty(self, shard: str) -> str:
        """Return the dirty set of a shard."""
        return f"{self.prefix}:dirty:{shard}"

    def bell(self, shard: str) -> str:
        """Return the bell of a shard."""
        return f"{self.prefix}:bell:{shard}"

    def wake(self, shard: str) -> str:
        """Return what wakes the worker that waits for a shard's ops."""
        return f"{self.prefix}:wake:{shard}"

    def marks(self, shard: str) -> str:
        """Return the published watermarks of a shard."""
        return f"{self.prefix}:marks:{shard}"

    def attempts(self, shard: str) -> str:
        """Return the notes of a shard's attempts."""
        return f"{self.prefix}:attempts:{shard}"

    def notes(self, shard: str) -> str:
        """Return the notes of a shard's past watermarks."""
        return f"{self.prefix}:notes:{shard}"

    def waits(self, shard: str) -> str:
        """Return the notes on why buckets of a shard wait."""
        return f"{self.prefix}:waits:{shard}"

    def counts(self, shard: str) -> str:
        """Return the counters of a shard."""
        return f"{self.prefix}:counts:{shard}"

    def batches(self, shard: str) -> str:
        """The notes of the newest batches of a shard."""
        return f"{self.prefix}:batches:{shard}"

    def record(self, shard: str) -> str:
        """Return the published record of a shard."""
        return f"{self.prefix}:record:{shard}"

    def recent(self, shard: str) -> str:
        """Return the points of a shard's last minutes."""
        return f"{self.prefix}:recent:{shard}"

    def day(self, shard: str) -> str:
        """Return the points of a shard's last hours."""
        return f"{self.prefix}:day:{shard}"

    def producer(self, producer: int | str) -> str:
        """Return the sequences of a producer; of all for `*`."""
        return f"{self.prefix}:producer:{producer}"

    def claim(self, bucket: int, idempotency_key: str) -> str:
        """Return the claim of an idempotency key."""
        return f"{self.prefix}:same:{bucket}:{idempotency_key}"

    def lease(self, name: str) -> str:
        """Return the lease on a chore."""
        return f"{self.prefix}:chore:{name}"
