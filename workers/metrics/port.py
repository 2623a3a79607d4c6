"""Show a worker's counters, and the whole deployment from the published record, to Prometheus at a worker's port."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from pipeline.admin.observe.moves import NOT_KNOWN, STATES
from pipeline.admin.observe.published import Newest
from pipeline.admin.observe.record import NodeRecord, Record, ShardRecord
from pipeline.config.settings import MetricsSettings
from pipeline.events import Event
from pipeline.oplog.shared_state import (
    APPLIED,
    BATCH_MS,
    BATCH_SUM_MS,
    BOUNDS_MS,
    COMMIT_MS,
    COMMIT_SUM_US,
    ENQUEUE_BOUNDS_MS,
    ENQUEUE_MS,
    ENQUEUE_SUM_US,
    ENQUEUED,
    HELD,
    PARKED,
    REFUSED,
    REJECTED,
    SEEN,
)
from pipeline.shard.records.moves import COMPARING
from workers.metrics import Tally

#: By shard and labels.
_Numbers = dict[str, dict[str, int]]
#: How many tables of a shard are told apart; the others are one, `OTHER`.
MOST_TABLES, OTHER = 20, "other"
_SHARD, _NODE, _HOST, _MOVE = ("shard",), ("shard", "node", "role"), ("host", "kind"), ("source", "target")
#: What a record shows, each with its labels and help; a name in `DEPLOYMENT_COUNTERS` is of a counter.
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
    "parked_ops": (
        _SHARD,
        "Ops that are set aside behind a rejected op, or as their table is stopped or their definition is to come.",
    ),
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
DEPLOYMENT_COUNTERS = frozenset(("ops_lost", "entries_forged", "reads"))
#: Reasons of which each shard always has a number, so that an alert sees 0 before 1.
ALWAYS = ("primary-away", "restored", "paused", "breaker", "no-worker", "schema", "right", "unwritable")
#: How many ports a worker tries, from the configured one on: so many workers of one configuration fit on a host.
PORTS = 16
#: How long one client may take to send its request, or to take the answer, s.
CLIENT_S = 5.0
logger = logging.getLogger("pipeline.metrics")


class Counted(NamedTuple):
    """A counter: what it is called, what it counts, and the labels that follow its first word."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Duration(NamedTuple):
    """A histogram: the first word of its sums' counters, how many of their units are a second, and its own labels."""

    name: str
    help: str
    sum: str
    per_s: int
    bounds_ms: tuple[float, ...] = BOUNDS_MS
    labels: tuple[str, ...] = ()


#: By the first word of a counter.
COUNTERS = {
    ENQUEUED: Counted("ops_enqueued", "Ops that processes enqueued, by the way they took.", ("way", "kind", "table")),
    REFUSED: Counted(
        "ops_refused", "Ops that no process could enqueue, by what was not there.", ("reason", "kind", "table")
    ),
    APPLIED: Counted("ops_applied", "Ops whose effects were committed.", ("kind", "table")),
    REJECTED: Counted("ops_rejected", "Ops that the database refused for good.", ("table",)),
    PARKED: Counted(
        "ops_parked",
        "Ops set aside behind a refused op, or as their table is stopped or their definition is to come.",
    ),
    SEEN: Counted("ops_seen", "Ops that the shard had already: they were sent again, and dropped."),
    HELD: Counted("buckets_held", "How often a batch left a bucket waiting, by the reason's kind.", ("kind",)),
}
HISTOGRAMS = {
    BATCH_MS: Duration("batch_seconds", "Time of a batch's transaction.", BATCH_SUM_MS, 1000),
    COMMIT_MS: Duration("commit_seconds", "Time of a batch's COMMIT.", COMMIT_SUM_US, 1_000_000),
    ENQUEUE_MS: Duration(
        "enqueue_seconds",
        "Time until the log or the spool had a call's ops.",
        ENQUEUE_SUM_US,
        1_000_000,
        ENQUEUE_BOUNDS_MS,
        ("way",),
    ),
}


class Tables:
    """Which tables have a label of their own. Each keeps it: a counter that moved to another label would jump."""

    def __init__(self) -> None:
        self._own: dict[str, set[str]] = {}

    def label(self, shard: str, table: str) -> str:
        """Return a table's label: its name, or `OTHER`.

        Args:
            shard: the shard's name.
            table: the table's name.
        """
        own = self._own.setdefault(shard, set())
        if len(own) < MOST_TABLES:
            own.add(table)
        return table if table in own else OTHER


def metrics_of(counts: Mapping[str, Mapping[str, int]], prefix: str, tables: Tables) -> Iterator[Metric]:
    """Yield all counters and histograms; one that nobody has counted is there, and empty.

    Args:
        counts: by shard, its counters.
        prefix: begins each metric's name.
        tables: of the same reader, each time.
    """
    words = _by_word(counts)
    for word, counted in COUNTERS.items():
        yield _counter(counted, words.get(word, {}), prefix, tables)
    for word, timed in HISTOGRAMS.items():
        yield _histogram(timed, words.get(word, {}), words.get(timed.sum, {}), prefix)


def _by_word(counts: Mapping[str, Mapping[str, int]]) -> dict[str, _Numbers]:
    """Return the counters by their first word, and by shard; what is left of a name are its labels."""
    found: dict[str, _Numbers] = {}
    for shard, numbers in counts.items():
        for name, number in numbers.items():
            word, _, labels = name.partition(" ")
            found.setdefault(word, {}).setdefault(shard, {})[labels] = number
    return found


def _counter(counted: Counted, numbers: _Numbers, prefix: str, tables: Tables) -> Metric:
    made = CounterMetricFamily(prefix + counted.name, counted.help, labels=("shard", *counted.labels))
    by_table = counted.labels[-1:] == ("table",)
    for shard, each in numbers.items():
        found: dict[tuple[str, ...], int] = {}
        for text in sorted(each, key=each.__getitem__, reverse=True):  # the busiest tables come first
            labels = text.split(" ", len(counted.labels) - 1) if counted.labels else []
            if by_table:
                labels[-1] = tables.label(shard, labels[-1])
            key = (shard, *labels)
            found[key] = found.get(key, 0) + each[text]
        for key, number in found.items():
            made.add_metric(key, number)
    return made


def _histogram(timed: Duration, numbers: _Numbers, sums: _Numbers, prefix: str) -> Metric:
    made = HistogramMetricFamily(prefix + timed.name, timed.help, labels=("shard", *timed.labels))
    bounds = {f"{ms:g}": str(ms / 1000) for ms in timed.bounds_ms} | {"inf": "+Inf"}
    for shard, each in numbers.items():
        found: dict[str, dict[str, int]] = {}
        for text, number in each.items():
            labels, _, bound = text.rpartition(" ")
            found.setdefault(labels, {})[bound] = number
        for labels, counted in found.items():
            up_to = accumulate(float(counted.get(bound, 0)) for bound in bounds)
            total = sums.get(shard, {}).get(labels, 0) / timed.per_s
            made.add_metric([shard, *labels.split()], list(zip(bounds.values(), up_to, strict=True)), total)
    return made


class Gauges:
    """The families of one scrape."""

    def __init__(self) -> None:
        self._made: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, (labels, text) in FAMILIES.items():
            kind = CounterMetricFamily if name in DEPLOYMENT_COUNTERS else GaugeMetricFamily
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


class Worker:
    """Collects what one worker shows.

    Args:
        tally: of its pool processes.
        name: of the worker, as Celery names it.
    """

    def __init__(self, tally: Tally, name: str):
        self._tally, self._name, self._tables = tally, name, Tables()

    def collect(self) -> Iterator[Metric]:
        """Yield the worker's metrics."""
        yield InfoMetricFamily("pipeline_worker", "The worker that is scraped.", {"worker": self._name})
        yield from metrics_of(self._tally.totals(), "pipeline_worker_", self._tables)


class Port:
    """The server.

    Args:
        settings: the address, and the first port to try.
        tally: of the worker's pool processes.
        name: of the worker.
    """

    def __init__(self, settings: MetricsSettings, tally: Tally, name: str):
        registry = CollectorRegistry()
        registry.register(Worker(tally, name))
        ProcessCollector(registry=registry)
        self._settings, self._registry = settings, registry
        self._server: _Server | None = None

    def start(self) -> None:
        """Serve from now on, where there is a free port; a worker works without one too."""
        self._server = _bound(self._settings, self._registry)
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, name="pipeline-metrics", daemon=True).start()
            host, port = self._server.server_address[:2]
            logger.info(Event("metrics_served", host=str(host), port=port))

    def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Request)
        self.registry = registry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's fault."""


class _Request(BaseHTTPRequestHandler):
    timeout = CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        """Answer a scrape."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:
            logger.exception(Event("metrics_failed", error=error))
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no scrape: they come every few seconds."""


def _bound(settings: MetricsSettings, registry: CollectorRegistry) -> _Server | None:
    """Return a server on the first free port, or None."""
    last = min(settings.port + PORTS, 65536)
    for port in range(settings.port, last):
        try:
            return _Server((settings.host, port), registry)
        except OSError as error:
            failure = error
    logger.error(
        Event(
            "metrics_not_served",
            host=settings.host,
            port=settings.port,
            last=last - 1,
            why=failure.strerror,
        )
    )
    return None
