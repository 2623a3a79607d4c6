"""Show the whole deployment to Prometheus, from the record that its workers publish; what is unknown is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.admin.observe.moves import NOT_KNOWN, STATES
from pipeline.admin.observe.published import Newest
from pipeline.admin.observe.record import NodeRecord, Record, ShardRecord
from pipeline.shard.records.moves import COMPARING

_SHARD, _NODE, _HOST, _MOVE = ("shard",), ("shard", "node", "role"), ("host", "kind"), ("source", "target")
#: What a record shows, each with its labels and help; a name in `COUNTERS` is of a counter.
FAMILIES: dict[str, tuple[tuple[str, ...], str]] = {
    "record_age_seconds": ((), "Age of what the other gauges show."),
    "known": ((), "Whether every server answered; 0: some gauges are missing."),
    "deployment_info": (("fingerprint", "buckets", "shards"), "What all processes agree on."),
    "redis_memory_bytes": ((), "Memory that the log's Redis uses."),
    "redis_memory_ratio": ((), "The used share of its maxmemory; 0 without a limit."),
    "redis_full": ((), "Whether Redis refuses new ops."),
    "queue_ops": (_SHARD, "Ops in the log that are not applied."),
    "queue_oldest_seconds": (_SHARD, "Age of the oldest op in the log; 0 where there is none."),
    "owned_buckets": (_SHARD, "Buckets that the shard owns by now, without that of reference tables."),
    "dirty_buckets": (_SHARD, "Buckets that are marked as having work."),
    "rejected_ops": (_SHARD, "Ops that are set aside because the database refused them."),
    "given_up_ops": (_SHARD, "Rejected ops that were given up within a week, since too much was set aside."),
    "parked_ops": (_SHARD, "Ops that are set aside behind a rejected op, or because their table is stopped."),
    "poison_buckets": (_SHARD, "Buckets whose ops are tried alone, since one ended its worker or server."),
    "ops_lost": (_SHARD, "Ops that Redis had acknowledged and then lost."),
    "entries_forged": (_SHARD, "Entries of the log without a right signature."),
    "waits": (("shard", "kind"), "Reasons for which ops wait, as pipeline why says them."),
    "node_lag_seconds": (_NODE, "How far a replica is behind its primary."),
    "node_lag_ops": (_NODE, "Ops that the primary has and the replica has not."),
    "node_reading_seconds": (_NODE, "The bound of a replica's lag that readers go by."),
    "node_report_age_seconds": (_NODE, "Age of the prober's report of a node."),
    "node_state": ((*_NODE, "state"), "1 for the state that readers treat a node by."),
    "reads": (("node", "kind", "reason"), "Reads by the node that was chosen and why; of refused ones, it is a shard."),
    "moves": (("state",), "Moves of buckets under way, by how far they are."),
    "moves_stuck": ((), "Moves that stand still, as pipeline status says it."),
    "moves_oldest_seconds": ((), "Age of the oldest move under way; 0 where there is none."),
    "move_rows": (_MOVE, "Rows that moves under way have copied, or compared or deleted since."),
    "move_rows_known": (_MOVE, "Rows that are to move, as far as somebody has counted them."),
    "spool_ops": (_HOST, "Ops that wait in a host's spool."),
    "spool_bytes": (_HOST, "Size of a host's spool."),
    "spool_oldest_seconds": (_HOST, "Age of the oldest op in a host's spool; 0 where there is none."),
}
COUNTERS = frozenset(("ops_lost", "entries_forged", "reads"))
#: Reasons of which each shard always has a number, so that an alert sees 0 before 1.
ALWAYS = ("primary-away", "restored", "paused", "breaker", "no-worker", "schema", "right")


class Gauges:
    """The families of one scrape."""

    def __init__(self) -> None:
        self._made: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, (labels, text) in FAMILIES.items():
            kind = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            self._made[name] = kind(f"pipeline_{name}", text, labels=labels)

    def put(self, name: str, value: float | None, *labels: str, per: int = 1) -> None:
        """Take a number, unless it is unknown.

        Args:
            name: of the family.
            value: the number; None: unknown.
            labels: the values of the family's labels.
            per: how many of its units are one of the family's.
        """
        if value is not None:
            self._made[name].add_metric(labels, value / per)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._made.values())


def of_record(newest: Newest) -> Gauges:
    """Return the metrics of a record.

    Args:
        newest: the record, and its age.
    """
    made, record = Gauges(), newest.record
    redis, shards = record.redis, str(len(record.shards))
    made.put("record_age_seconds", newest.age_ms, per=1000)
    made.put("known", not record.unknown)
    made.put("deployment_info", 1, record.fingerprint, str(record.buckets), shards)
    made.put("redis_memory_bytes", redis.memory_bytes)
    made.put("redis_memory_ratio", redis.memory_share)
    made.put("redis_full", None if redis.why else redis.full is not None)
    for read in record.reads or ():
        made.put("reads", read.reads, read.node, read.kind, read.reason)
    for shard in record.shards:
        _shard(made, shard)
    _moves(made, record)
    for host in record.hosts:
        of = (host.host, host.kind)
        made.put("spool_ops", host.spooled, *of)
        made.put("spool_bytes", host.bytes, *of)
        made.put("spool_oldest_seconds", 0 if host.spooled == 0 else host.oldest_ms, *of, per=1000)
    return made


def _shard(made: Gauges, shard: ShardRecord) -> None:
    of = shard.shard
    made.put("queue_ops", shard.depth, of)
    made.put("queue_oldest_seconds", 0 if shard.depth == 0 else shard.oldest_ms, of, per=1000)
    made.put("owned_buckets", shard.owned, of)
    made.put("dirty_buckets", shard.dirty, of)
    made.put("rejected_ops", shard.rejected, of)
    made.put("given_up_ops", shard.given_up, of)
    made.put("parked_ops", shard.parked, of)
    made.put("poison_buckets", None if shard.why else len(shard.poison), of)
    made.put("ops_lost", shard.lost, of)
    made.put("entries_forged", shard.forged, of)
    waits = Counter(wait.kind for wait in shard.waits)
    for kind in waits if shard.why else {*ALWAYS, *waits}:
        made.put("waits", waits[kind], of, kind)
    for node in shard.nodes:
        _node(made, of, node)


def _moves(made: Gauges, record: Record) -> None:
    moves, states = record.moves, Counter(move.state for move in record.moves)
    if any(shard.why for shard in record.shards) and not moves:
        return  # whoever does not answer may know of some
    for state in dict.fromkeys((*STATES.values(), COMPARING, NOT_KNOWN)):
        if state != STATES["over"]:
            made.put("moves", states[state], state)
    made.put("moves_stuck", sum(bool(move.still) for move in moves))
    oldest_ms = min((move.began_ms for move in moves), default=record.at_ms)
    made.put("moves_oldest_seconds", max(0, record.at_ms - oldest_ms), per=1000)
    for pair in {(move.source, move.target): None for move in moves}:
        mine = [move for move in moves if (move.source, move.target) == pair]
        made.put("move_rows", sum(move.rows for move in mine), *pair)
        if None not in (totals := [move.total for move in mine]):
            made.put("move_rows_known", sum(total or 0 for total in totals), *pair)


def _node(made: Gauges, shard: str, node: NodeRecord) -> None:
    of = (shard, node.node, node.role)
    made.put("node_lag_seconds", node.lag_ms, *of, per=1000)
    made.put("node_lag_ops", node.lag_ops, *of)
    made.put("node_reading_seconds", node.reading_ms, *of, per=1000)
    made.put("node_report_age_seconds", node.age_ms, *of, per=1000)
    made.put("node_state", 1, *of, str(node.state))
