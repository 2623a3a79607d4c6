"""A trial: the ops that one test has had acknowledged, and the two questions that are asked of every trial."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import clock
from pipeline.client import Client
from support.chance import chance
from support.oracle import judge, nodes, producer
from support.oracle.ledger import Acknowledged, Apart, in_order, replay, set_of
from support.oracle.load import Load
from support.oracle.model import Row
from support.oracle.operator import Operator
from support.oracle.producer import Producer
from support.servers.rig import Rig

#: How long everything that was acknowledged may take to be accounted for; generous, since speed is not judged here.
SETTLE_S = 60
#: What may have become of an op. `waiting` and `parked` are set aside, in order; `replayed` is applied.
ACCOUNTED = ("applied", "replayed", "rejected", "waiting", "parked", "dropped", "lost")


class Trial:
    """One test's ledger on a rig."""

    def __init__(self, rig: Rig, name: str, folder: Path):
        self.rig, self.name, self._folder = rig, name, folder
        self.luck: random.Random = chance(name)
        self.operator = Operator(rig.config)
        self.apart = list[Apart]()
        self.ledger: list[Acknowledged] = []
        self.owners: list[int] = []
        self._producers: list[Producer] = []
        self._count = 0

    def choose_owners(self, count: int) -> list[int]:
        """Take shard keys that are this trial's own."""
        chosen = self.rig.owners(count)
        self.owners += chosen
        return chosen

    def load(self, client: Client | None = None, owners: Sequence[int] = (), **options: Any) -> Load:
        """Return a load in this process."""
        self._count += 1
        chosen = owners or self.owners or self.choose_owners(6)
        return Load(client or self.rig.client, self.rig.db, self.luck, f"L{self._count}", chosen, **options)

    def send(self, load: Load, count: int) -> list[Acknowledged]:
        """Send that many deeds and note them."""
        sent = [load.send() for _ in range(count)]
        self.ledger += sent
        return sent

    def producer(self, ops: int, *, config: Path | None = None, owners: Sequence[int] = (), **options: Any) -> Producer:
        """Start a producer of its own process."""
        self._count += 1
        chosen = list(owners or self.owners or self.choose_owners(6))
        name = f"P{self._count}"
        made = producer.start(
            config or self.rig.config, self._folder / f"{name}.jsonl", ops=ops, name=name, owners=chosen,
            seed=self.name, **options,
        )  # fmt: skip
        self._producers.append(made)
        return made

    def await_progress(self, producers: Sequence[Producer], least: int = 20) -> None:
        """Wait until so many more ops have been acknowledged, or up to six times as many, at random."""
        wanted = sum(one.count for one in producers) + self.luck.randrange(least, 6 * least)
        for _ in clock.polls(30):
            ended = all(one.child.poll() is not None for one in producers)
            if ended or sum(one.count for one in producers) >= wanted:
                return
        raise AssertionError("the producers make no progress")

    def join(self, producers: Iterable[Producer] = ()) -> None:
        """Wait for producers and note what was acknowledged to them."""
        for one in list(producers) or list(self._producers):
            one.finish()
            self.take(one)

    def take(self, one: Producer) -> None:
        """Note what was acknowledged to a producer, finished or killed."""
        self._producers.remove(one)
        self.ledger += one.noted

    def note_key(self, key: int) -> None:
        """Note that a key has left its bucket, or come back; to be called before it is moved again."""
        primaries, topology = self.rig.primaries, self.rig.client.topology
        away = next((one for one in self.apart if one.key == key and one.back is None), None)
        if away is None:
            self.apart.append(judge.left(primaries, topology, key))
        else:
            self.apart[self.apart.index(away)] = judge.back(primaries, away)

    def states(self) -> dict[judge.Op, str]:
        """Return what became of each op."""
        return judge.states(self.rig.primaries, self.rig.client.topology, self.ledger)

    def settle(self, timeout_s: float = SETTLE_S) -> Counter[str]:
        """Wait until every acknowledged op is applied, rejected or lost, and no bucket moves; return how many of each.

        A move that is not over leaves rows on a shard that does not own them.
        """
        accounts, moving = Counter[str](), list[str]()
        # a look reads all that the shards know of ops, and takes that time from the workers that apply them
        for _ in clock.polls(timeout_s, first_s=0.02, most_s=0.4):
            try:
                accounts = Counter(self.states().values())
                if accounts["queued"]:
                    continue
                moving = judge.moving(self.rig.primaries)
            except OSError:
                continue
            if not moving:
                return accounts
        raise AssertionError(f"not accounted for after {timeout_s} s: {accounts}; {moving[: judge.SHOWN]}")

    def holds(self) -> Counter[str]:
        """Assert that the rows of all shards are what a replay of the ledger gives; return the accounts."""
        accounts = self.settle()
        self.balances()
        states, topology = self.states(), self.rig.client.topology
        waits = judge.waits_in_bucket(self.rig.primaries, topology, self.ledger)
        given_up = {op for told in self.operator.settled for op in told.dropped}
        dropped = [one for one in self.ledger if states[one.op] == "dropped" and one.op not in given_up]
        strange = [one.deed for one in dropped if not judge.may_be_dropped(one.deed)]
        assert not strange, f"dropped, though nobody has dropped them: {strange[: judge.SHOWN]}"
        left_out = {one.op for one in dropped} | {op for op, state in states.items() if state == "lost"}
        told = (one for one in self.ledger if one.op not in left_out)
        verdict = replay(told, settled=self.operator.settled, apart=self.apart, aside=waits)
        aside = verdict.refused | verdict.parked
        for what, wanted in (
            ("rejected", verdict.refused),
            ("parked", verdict.parked),
            ("replayed", verdict.replayed - aside),
            ("dropped", verdict.dropped | {one.op for one in dropped}),
        ):
            found = {op for op, state in states.items() if state == what and op not in verdict.echoes}
            wanted -= verdict.echoes
            assert wanted == found, self._story(what, wanted, found)
        assert not verdict.strange, self._story("settled", set(), verdict.strange)
        said = judge.differences(verdict.model, self.rows(self.rig.primaries))
        kept, wanted = self.versions(self.rig.primaries), verdict.model.versions
        said += [f"version {id} is {kept.get(id)}, must be {wanted.get(id)}" for id in kept.keys() ^ wanted.keys()]
        said += [f"version {id} is {kept[id]}, must be {w}" for id, w in wanted.items() if kept.get(id, w) != w]
        assert not said, f"{len(said)} rows differ:\n" + "\n".join(said[: judge.SHOWN])
        assert in_order(self.ledger), "a log has a producer's ops in another order than it was told"
        return accounts

    def _story(self, what: str, wanted: set[judge.Op], found: set[judge.Op]) -> str:
        """Return what is known of the first ops that the judge and the databases disagree on."""
        topology, log = self.rig.client.topology, self.rig.client.log
        said = [f"{what} wrongly: {len(wanted - found)} should be, {len(found - wanted)} should not"]
        for op in sorted(wanted ^ found)[: judge.SHOWN]:
            said.append(f"{op} {'should be' if op in wanted else 'should not be'} {what}:")
            said += judge.story(self.rig.primaries, topology, self.ledger, op, log)
        return "\n".join(said)

    def balances(self) -> None:
        """Assert that acknowledged = applied + replayed + rejected + parked + dropped + lost."""
        states = self.states()
        accounts, found = Counter(states.values()), {op for op, state in states.items() if state not in ACCOUNTED}
        whole = sum(accounts[state] for state in ACCOUNTED)
        assert not found, f"accounts do not balance: {accounts}; {self._story('unaccounted', set(), found)}"
        assert whole == len(set_of(self.ledger)), f"accounts do not balance: {accounts}"

    def rows(self, uris: dict[str, str]) -> dict[tuple[int, str], tuple[int, str, int]]:
        """Return this trial's rows on all nodes given; each owner's must be on the one that owns its bucket."""
        found, owner_of = dict[tuple[int, str], tuple[int, str, int]](), self._owner_of(uris)
        for shard, uri in uris.items():
            with nodes.connection(uri) as made:
                here = judge.tally_of(made, self.owners or [0])
            stray = [key for key in here if owner_of(key[0]) != shard]
            assert not stray, f"rows of other shards on {shard}: {stray[: judge.SHOWN]}; {judge.moving(uris)}"
            found |= here
        return found

    def versions(self, uris: dict[str, str]) -> dict[int, tuple[int, Row]]:
        """Return what all nodes given have kept of this trial's rows, by id; each must be on its row's shard."""
        found, owner_of = dict[int, tuple[int, Row]](), self._owner_of(uris)
        for shard, uri in uris.items():
            with nodes.connection(uri) as made:
                here = judge.versions_of(made, self.owners or [0])
            stray = [id for id, (_, row) in here.items() if owner_of(row.owner) != shard]
            assert not stray, (
                f"versions of rows of other shards on {shard}: {stray[: judge.SHOWN]}; {judge.moving(uris)}"
            )
            found |= here
        return found

    def _owner_of(self, uris: dict[str, str]) -> Callable[[int], str | None]:
        """Return what names the shard that has a shard key's rows, by what these nodes say."""
        owners, topology = judge.owners_of(uris, self.rig.client.topology), self.rig.client.topology
        keys = {key: shard for shard, _, key in judge.away(uris).values()}
        return lambda key: keys.get(key) or owners.get(topology.bucket_of("tally", key))

    def close(self) -> None:
        """Kill what still runs."""
        for one in self._producers:
            one.kill()
