"""List, replay and drop ops that were set aside, on all shards: what an operator does after a rejection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from pipeline import clock
from pipeline.admin.stops import stir, who
from pipeline.apply.replay import Became, Replay, Replayed
from pipeline.client import Client
from pipeline.config.buckets import FIRST_PIECE
from pipeline.errors import BadOp, Unavailable, did_you_mean
from pipeline.model import Position
from pipeline.shard.records import replays, text_literal
from pipeline.shard.records.replays import DROPPED, REPLAYED, Aside, Place
from pipeline.shard.records.set_aside import ASIDE, REJECTED, WAITING

#: Ops that may be replayed: nothing is before them in any of their rows.
HEADS = (REJECTED, WAITING)
_STATES = (*ASIDE, REPLAYED, DROPPED)
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Where:
    """Which ops are meant; None and the empty tuple leave a part open.

    Attributes:
        ops: their places.
        table, shard, bucket: where they are.
        reason: words in the database's reason.
        code: the database's number of the error.
        state: rejected, waiting, parked, replayed or dropped.
        since_ms: set aside at or after this time, ms since 1970.
    """

    ops: tuple[Place, ...] = ()
    table: str | None = None
    shard: str | None = None
    bucket: int | None = None
    reason: str | None = None
    code: int | None = None
    state: str | None = None
    since_ms: int | None = None

    @classmethod
    def parse(cls, pairs: Iterable[str], ops: Iterable[str] = ()) -> Self:
        """Read `table=purchase`, `code=1062`, `since=2h` and the like.

        Args:
            pairs: key=value, each part narrows.
            ops: places of ops as `bucket:epoch-seq`.

        Raises:
            BadOp: a key or a value is not known; the message says which would be.
        """
        given: dict[str, object] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or key not in _KEYS:
                raise BadOp(f"{pair!r} is no condition{did_you_mean(key, _KEYS)}: give {', '.join(_KEYS)} as key=value")
            given["since_ms" if key == "since" else key] = _read(key, value)
        return cls(tuple(map(place_of, ops)), **given)  # type: ignore[arg-type]

    def sql(self, states: Iterable[str]) -> str:
        """Return the condition on `pipeline_rejects`.

        Args:
            states: which, where `state` leaves it open.
        """
        chosen = [self.state] if self.state else list(states)
        parts = [f"state IN ({', '.join(map(text_literal, chosen))})"]
        if self.ops:
            parts.append(f"({replays.at_places(self.ops)})")
        if self.table is not None:
            parts.append(f"table_name = {text_literal(self.table)}")
        if self.bucket is not None:  # with those of a key of it that has a shard of its own
            parts.append(
                f"(bucket = {self.bucket} OR (bucket >= {FIRST_PIECE} AND bucket % {FIRST_PIECE} = {self.bucket}))"
            )
        if self.code is not None:
            parts.append(f"code = {self.code}")
        if self.reason is not None:
            parts.append(f"INSTR(LOWER(reason), {text_literal(self.reason.lower())}) > 0")
        if self.since_ms is not None:
            parts.append(f"rejected_ms >= {self.since_ms}")
        return " AND ".join(parts)

    def shards(self, pipeline: Client) -> tuple[str, ...]:
        """Return the shards that may have such ops.

        Args:
            pipeline: the deployment.
        """
        every = pipeline.topology.shards
        if self.shard is None:
            return every
        if self.shard not in every:
            raise BadOp(f"there is no shard {self.shard!r}{did_you_mean(self.shard, every)}")
        return (self.shard,)


_KEYS = ("table", "shard", "bucket", "reason", "code", "state", "since")


class DeadOp(NamedTuple):
    """An op that was set aside, and its shard."""

    shard: str
    op: Aside


class Progress(NamedTuple):
    """What one turn did on a shard.

    Attributes:
        shard: its name.
        done: how many ops it settled, and what it left.
        ops: what became of each op, in order.
        left: why buckets were given up, where this was the last turn on the shard.
    """

    shard: str
    done: Replayed
    ops: tuple[Became, ...] = ()
    left: tuple[str, ...] = ()


def place_of(text: str) -> Place:
    """Read the place of an op.

    Args:
        text: `bucket:epoch-seq`, as `pipeline dead list` prints it.
    """
    bucket, _, position = text.partition(":")
    try:
        return int(bucket), Position.parse(position)
    except ValueError:
        raise BadOp(f"{text!r} names no op: give bucket:epoch-seq, as pipeline dead list prints it") from None


def dead_ops(pipeline: Client, where: Where, *, states: Iterable[str] = ASIDE, most: int = 1000) -> Iterator[DeadOp]:
    """Yield ops that were set aside, shard by shard, in the order of their logs.

    Args:
        pipeline: the deployment.
        where: which ops.
        states: their states, where *where* leaves that open.
        most: the most ops of one shard.
    """
    for shard in where.shards(pipeline):
        primary = pipeline.nodes.primary(shard)
        with primary.translated(), primary.transaction():
            found = replays.ops_where(primary, f"{where.sql(states)} ORDER BY bucket, epoch, seq LIMIT {most}")
        yield from (DeadOp(shard, op) for op in found)


class AsideCount(NamedTuple):
    """How many ops of a table are set aside in one state after one error, and since when, ms since 1970."""

    shard: str
    table: str
    state: str
    code: int | None
    ops: int
    since_ms: int


def tally(pipeline: Client, where: Where, *, states: Iterable[str] = ASIDE) -> Iterator[AsideCount]:
    """Yield how many ops are set aside, by table, state and error, the most first on each shard.

    Args:
        pipeline: the deployment.
        where: which ops.
        states: their states, where *where* leaves that open.
    """
    for shard in where.shards(pipeline):
        rows = pipeline.nodes.primary(shard).query(
            "SELECT table_name, state, code, COUNT(*), MIN(rejected_ms) FROM pipeline_rejects "
            f"WHERE {where.sql(states)} GROUP BY table_name, state, code ORDER BY 4 DESC, 1, 2 LIMIT 20"
        )
        yield from (AsideCount(shard, *row) for row in rows)


def chosen(pipeline: Client, where: Where, states: Iterable[str]) -> dict[str, dict[int, list[Position]]]:
    """Return the positions of ops by shard and bucket.

    Args:
        pipeline: the deployment.
        where: which ops.
        states: their states, where *where* leaves that open.
    """
    found: dict[str, dict[int, list[Position]]] = {}
    for shard in where.shards(pipeline):
        primary = pipeline.nodes.primary(shard)
        for bucket, epoch, seq in primary.query(
            f"SELECT bucket, epoch, seq FROM pipeline_rejects WHERE {where.sql(states)} ORDER BY bucket, epoch, seq"
        ):
            found.setdefault(shard, {}).setdefault(bucket, []).append(Position(epoch, seq))
    return found


def replay(
    pipeline: Client,
    ops: Mapping[str, Mapping[int, Iterable[Position]]],
    *,
    drop: bool = False,
    trial: bool = False,
    by: str = "",
) -> Iterator[Progress]:
    """Replay or drop ops, and replay what waits behind them; what a turn did is committed when it is yielded.

    Args:
        pipeline: the deployment.
        ops: the positions by shard and bucket, as `chosen` returns them.
        drop: give the ops up instead.
        trial: roll each transaction back; `Progress.ops` says what would become of each op.
        by: who orders it, for the record of actions; by default the user of this process.

    Raises:
        Unavailable: a shard does not answer; what was yielded is done, the rest is as it was.
    """
    settings = pipeline.settings
    for shard, buckets in ops.items():
        worker = Replay(shard, pipeline.nodes.primary(shard), pipeline.log, settings.apply, settings.tables)
        for done in worker.run(buckets, by or who(), drop=drop, trial=trial):
            yield Progress(shard, done, tuple(worker.became))
        if worker.left:
            yield Progress(shard, Replayed(), left=tuple(sorted(set(worker.left.values()))))
        try:  # a bucket that was halted goes on at once; without Redis the reconcile finds it
            pipeline.log.mark_dirty(shard, buckets)
        except Unavailable:
            continue
        stir(pipeline, shard)


def waiting_behind(pipeline: Client, shard: str, ops: Mapping[int, Iterable[Position]], most: int = 10_000) -> int:
    """Return how many ops of a shard wait behind some, counting no more than *most* per bucket.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        ops: the positions by bucket.
        most: where the count of a bucket ends.
    """
    primary, count = pipeline.nodes.primary(shard), 0
    with primary.translated(), primary.transaction():
        for bucket, positions in ops.items():
            heads = sorted(positions)
            count += len(
                replays.behind(primary, bucket, heads, most + len(heads)).keys() - {(bucket, p) for p in heads}
            )
    return count


def _read(key: str, value: str) -> object:
    if key in ("bucket", "code"):
        if not value.isdigit():
            raise BadOp(f"{key}={value} is no number")
        return int(value)
    if key == "state" and value not in _STATES:
        raise BadOp(f"state={value} is none of {', '.join(_STATES)}{did_you_mean(value, _STATES)}")
    if key == "since":
        number, unit = value[:-1], value[-1:]
        if not number.isdigit() or unit not in _UNITS_MS:
            raise BadOp(f"since={value} is no age: give a number and one of {', '.join(_UNITS_MS)}, such as 2h")
        return clock.wall_ms() - int(number) * _UNITS_MS[unit]
    return value
