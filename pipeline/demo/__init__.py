"""Play the demo, scene by scene: send real rows as four kinds of write, and compare the shards with the file."""

from __future__ import annotations

from contextlib import ExitStack, closing

from pipeline.clock import mono_s, sleep_s
from pipeline.demo import data
from pipeline.demo.data import (
    COLUMNS,
    Comparison,
    Correction,
    Dataset,
    compare,
    expected_digests,
    find_dataset,
    shard_key,
)
from pipeline.demo.scenes import Growth, Mixed, OwnWrite, read_mixed, read_own_write
from pipeline.demo.screen import Screen, Summary
from pipeline.demo.system import CHUNK_ROWS, LOOK_S, DemoOptions, Meter, System, Traffic, require_server, running_system
from pipeline.errors import PipelineError, WaitTimeout

#: The demo gives up after so long without an applied op, s: thirty times the longest stall of a killed worker.
STALL_S = 60.0
#: Rows of one bulk call beside a growth, whose load comes at a pace: a tenth of a second's and more.
FEW_ROWS = 250


def run(options: DemoOptions, screen: Screen) -> Summary:
    """Start a system, play the demo on it, and stop it, unless it is kept.

    Args:
        options: what the user chose.
        screen: shows each scene.

    Raises:
        DemoDataMissing: something of the `demo` extra is not installed; nothing was started.
        WaitTimeout: the workers stopped applying.
    """
    dataset = find_dataset(options.rows)
    require_server(options.engine)
    screen.title(f"pipeline demo, {options.engine} engine: {dataset.count('flight'):,} flights out of New York")
    with ExitStack() as stack:
        with screen.scene("Cluster") as say:
            system = stack.enter_context(running_system(options, screen.note))
            say(", ".join(system.processes))
        if system.flower_url:
            screen.note(f"each batch is a task in Flower: {system.flower_url}")
        try:
            summary = play(system, dataset, screen, options.engine, grow=options.grow)
        except PipelineError:
            if options.keep:
                screen.kept(system.directory)
            raise
        screen.summary(summary, kept=options.keep)
        if options.keep:
            screen.kept(system.directory)
        return summary


def play(system: System, dataset: Dataset, screen: Screen, engine: str, *, grow: bool = False) -> Summary:
    """Play all scenes and return what came of them.

    Args:
        system: a running system.
        dataset: the flights, planes and weather to send.
        screen: shows each scene.
        engine: the engine's name, for the summary.
        grow: whether a third shard is added in the middle of the load.

    Raises:
        WaitTimeout: the workers stopped applying.
        PipelineError: the third shard could not be added.
    """
    with closing(data.define()) as db:
        with screen.scene("Tables") as say:
            system.create_tables(db)
            say(f"flight and plane by tailnum, weather by origin, on {' and '.join(system.shards)}")
        meter = Meter()
        traffic = Traffic(system.pipeline, db, meter)
        growth = Growth(system.cluster, meter, dataset.count("flight") // 2) if grow and system.cluster else None
        flight, system = _send(system, traffic, dataset, screen, growth)
        ops, seconds = meter.enqueued, mono_s() - meter.started_s
        own_write = _read_own_write(traffic, flight, screen)
        mixed = _read_mixed(system, traffic, flight, screen)
        comparisons = _check(system, dataset, screen)
    return Summary(
        engine=engine,
        rows=sum(dataset.count(table) for table in COLUMNS),
        ops=ops,
        seconds=seconds,
        batches=system.count_batches(),
        single_p50_us=meter.quantile_us(0.50),
        single_p99_us=meter.quantile_us(0.99),
        flower_url=system.flower_url,
        own_write=own_write,
        mixed=mixed,
        comparisons=tuple(comparisons),
        growth=growth,
    )


def _send(
    system: System, traffic: Traffic, dataset: Dataset, screen: Screen, growth: Growth | None
) -> tuple[Correction, System]:
    """Send everything and wait until it is applied; return one correction that was not sent, and the system by then."""
    meter = traffic.meter
    with screen.bars(meter, growth) as move:

        def tick() -> None:
            nonlocal system
            if meter.look():
                move(_total(traffic, dataset))
            while growth is not None and growth.turn(_total(traffic, dataset)):
                system = system.taken_anew(traffic.db)
                meter.read_anew()
                growth.taken()
            while growth is not None and growth.ahead:
                sleep_s(LOOK_S / 4)
                if meter.look():
                    move(_total(traffic, dataset))

        traffic.tick = tick
        traffic.chunk_rows = CHUNK_ROWS if growth is None else FEW_ROWS
        held_back = _send_all(traffic, dataset, screen)
        if growth is not None:
            _end(growth, traffic)
        with screen.scene("Applied") as say:
            _drain(traffic)
            say(f"all {meter.enqueued:,} ops are in the shards' databases")
    traffic.tick = lambda: None
    return held_back, system


def _end(growth: Growth, traffic: Traffic) -> None:
    """Wait until a growth is over, and what has been sent by its pace is all there was."""
    traffic.tick()
    while growth.under_way:
        sleep_s(LOOK_S)
        traffic.tick()
    growth.end()


def _send_all(traffic: Traffic, dataset: Dataset, screen: Screen) -> Correction:
    with screen.scene("Schedule") as say:
        traffic.publish(dataset.rows("flight"))
        say(f"{dataset.count('flight'):,} flights inserted, in bulk, delays not known yet")
    held_back = traffic.corrections.pop()
    with screen.scene("Weather") as say:
        traffic.observe(dataset.rows("weather"))
        say(f"{dataset.count('weather'):,} hours inserted, in bulk")
    with screen.scene("Planes") as say:
        traffic.register(dataset.rows("plane"))
        traffic.refit(dataset.rows("plane"))
        say(f"{dataset.count('plane'):,} upserted, every second one twice with other seats")
    with screen.scene("Corrections") as say:
        traffic.correct(traffic.corrections)
        say(f"{len(traffic.corrections):,} delays updated, half of them in three steps: set, * 2, + n")
    with screen.scene("Cancelled") as say:
        traffic.cancel()
        say(f"{len(traffic.cancelled):,} flights deleted")
    return held_back


def _drain(traffic: Traffic) -> None:
    """Wait while the workers advance; the barrier then proves that every op is applied."""
    meter = traffic.meter
    seen, moved_s = meter.applied, mono_s()
    while not meter.caught_up:
        sleep_s(LOOK_S)
        traffic.tick()
        if meter.applied > seen:
            seen, moved_s = meter.applied, mono_s()
        elif mono_s() - moved_s > STALL_S:
            raise WaitTimeout(f"op {seen + 1:,} of {meter.enqueued:,}", STALL_S, "queued")
    for table in COLUMNS:
        traffic.pipeline.barrier(table, timeout_s=STALL_S)
    meter.settle()


def _read_own_write(traffic: Traffic, flight: Correction, screen: Screen) -> OwnWrite:
    with screen.scene("Read") as say:
        own_write = read_own_write(traffic, flight)
        say(f"one's own write at once, served by {own_write.node} ({own_write.role})", well=own_write.true)
    return own_write


def _read_mixed(system: System, traffic: Traffic, flight: Correction, screen: Screen) -> Mixed:
    with screen.scene("Reads") as say:
        mixed = read_mixed(system, traffic, flight)
        traffic.pipeline.barrier("flight", timeout_s=STALL_S)
        say(f"{mixed.reads} reads, some while a replica is held up: {mixed.wrong} wrong", well=not mixed.wrong)
    return mixed


def _check(system: System, dataset: Dataset, screen: Screen) -> list[Comparison]:
    with screen.scene("File") as say:
        expected = expected_digests(dataset, system.place, system.shards)
        rows = sum(digest.rows for digest in expected.values())
        say(f"computed from the file alone what must be there: {rows:,} rows")
    with screen.scene("Check") as say, screen.pages("check", rows) as tick:
        keys = (shard_key("plane", plane) for plane in dataset.rows("plane"))
        comparisons = compare(expected, system.primaries(keys), tick)
        equal = sum(comparison.equal for comparison in comparisons)
        words = f"{equal} of {len(comparisons)} counts and checksums equal, each table on each shard"
        say(words, well=equal == len(comparisons))
    return comparisons


def _total(traffic: Traffic, dataset: Dataset) -> int:
    """Return how many ops there will be; corrections and cancellations as far as the schedule has been read."""
    bulk = dataset.count("flight") + dataset.count("weather")
    planes = dataset.count("plane") * 3 // 2
    return bulk + planes + 2 * len(traffic.corrections) + len(traffic.cancelled)
