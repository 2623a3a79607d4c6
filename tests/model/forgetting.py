"""A model of one bucket whose log may be forgotten, in whole or in part: two levels of durability, one way to the rows.

At level `redis` a process remembers what was acknowledged to it, and what Redis has lost is judged and named. At level
`spooled` a host keeps each op until every node has it, sends it again after each epoch, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.forgetting_rules import Rules, another, put, readable, suspecting
from model.forgetting_values import (
    NOWHERE,
    START,
    Bounds,
    Position,
    Process,
    Redis,
    Remembered,
    Seen,
    Shard,
    State,
    Worker,
)
from model.search import Model, Move


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    world = _World(bounds, off)
    return Model(world.start(), world.moves, world.wrong, world.done, _describe)


def _describe(s: State) -> str:
    return f"rows {s.primary.rows}, told lost {tuple(sorted(s.primary.lost))}"


class _World(Rules):
    def start(self) -> State:
        senders = self.bounds.ops + 1 if self.bounds.level == "redis" else 1
        redis = Redis(seen=(Seen(),) * senders)
        shard = Shard(seqs=(0,) * senders)
        return State(
            redis, redis, shard, shard, Process(), (Worker(),) * self.bounds.workers, self.bounds.faults
        )  # fmt: skip

    # questions ----------------------------------------------------------------------------------------------

    def wrong(self, s: State) -> str:
        rows = [op for op in s.primary.rows if op not in s.process.doubtful]
        if len(set(s.primary.rows)) < len(s.primary.rows):
            return f"doubled: {s.primary.rows}"
        if rows != sorted(rows):
            return f"out of order: {s.primary.rows}"
        if both := s.told & set(s.primary.rows):
            return f"op {min(both)} was told lost, and is applied"
        if s.told and (self.bounds.level == "spooled" or not s.forgot):
            return f"op {min(s.told)} is lost, and need not be"
        return ""

    def done(self, s: State) -> bool:
        """Whether every acknowledged op is applied, or told lost where that is asked."""
        process = s.process
        if len(process.numbers) < self.bounds.ops or any(worker.doing for worker in s.workers):
            return False
        known = set(s.primary.rows) | s.primary.lost | process.doubtful
        return len(known) >= self.bounds.ops

    # moves --------------------------------------------------------------------------------------------------

    def moves(self, s: State) -> Iterator[Move]:
        yield from self._calls(s) if self.bounds.level == "redis" else self._spool(s)
        yield from self._arrival(s)
        for which in range(len(s.workers)):
            yield from self._work(s, which)
        yield from self._upkeep(s)
        yield from self._copies(s)
        yield from self._faults(s)

    def _calls(self, s: State) -> Iterator[Move]:
        op = len(s.process.numbers) + 1
        if op <= self.bounds.ops:
            yield from self._call(s, op)
        if self.on("look") and (s.master.ended or s.master.epoch != s.process.epoch):
            yield Move("the process looks for a new epoch", self.learnt(s))
        if any(one.suspect for one in s.process.memory) and (judged := self.judged(s)) is not s:
            yield Move("losses are judged", judged)

    def _call(self, s: State, op: int) -> Iterator[Move]:
        s = self.learnt(s)
        master, answer = self.append(s.master, s.process.sender, s.process.next, op)
        if answer == "epoch":
            s = self.learnt(s._replace(master=master))
            master, answer = self.append(s.master, s.process.sender, s.process.next, op)
        if answer == "hole":
            s = s._replace(process=another(suspecting(s.process)))
            master, answer = self.append(s.master, s.process.sender, s.process.next, op)
        numbered = s.process._replace(
            numbers=(*s.process.numbers, (s.process.sender, s.process.next)), next=s.process.next + 1
        )
        taken = s._replace(master=master)
        acknowledged = numbered._replace(
            memory=(*numbered.memory, Remembered(op)), places=(*numbered.places, master.seen[numbered.sender].at)
        )
        yield Move(f"op {op} is acknowledged", taken._replace(process=acknowledged))
        if not s.faults.doubts or s.process.late:
            return
        less = s.faults.less("doubts")
        under_way = (s.process.epoch, op)
        yield Move(
            f"op {op} is acknowledged at its second try; the first is under way",
            taken._replace(process=acknowledged._replace(late=under_way), faults=less),
            work=False,
        )
        failed = another(numbered._replace(doubtful=numbered.doubtful | {op}, places=(*numbered.places, NOWHERE)))
        if not self.on("memory outlives its sender"):
            sender = s.process.sender
            failed = failed._replace(
                memory=tuple(one for one in failed.memory if failed.numbers[one.op - 1][0] != sender)
            )
        yield Move(f"op {op} is sent, and gets no answer", taken._replace(process=failed, faults=less), work=False)
        yield Move(
            f"op {op} is under way, and gets no answer",
            s._replace(process=failed._replace(late=under_way), faults=less),
            work=False,
        )

    def _spool(self, s: State) -> Iterator[Move]:
        process, op = s.process, len(s.process.numbers) + 1
        if op <= self.bounds.ops:
            spooled = process._replace(
                numbers=(*process.numbers, (0, op)),
                places=(*process.places, NOWHERE),
                spool=(*process.spool, (op, 0)),
            )
            yield Move(f"op {op} is spooled and acknowledged", s._replace(process=spooled))
        if self.on("look") and (s.master.ended or s.master.epoch != process.epoch):
            yield Move("the drain looks for a new epoch", self.learnt(s))
        if any(epoch == 0 for _, epoch in process.spool):
            yield from self._drain(s)
        nodes = (s.primary, s.replica) if self.on("keep") else (s.primary,)
        safe = min(node.seqs[0] for node in nodes)
        kept = tuple(one for one in process.spool if one[0] > safe or not one[1])
        if kept != process.spool:
            yield Move("the spool forgets", s._replace(process=process._replace(spool=kept)))

    def _drain(self, s: State) -> Iterator[Move]:
        s = self.learnt(s)
        op = next((op for op, epoch in s.process.spool if epoch == 0), None)
        assert op is not None
        master, answer = self.append(s.master, 0, op, op)
        if answer == "epoch":
            yield Move("the drain meets the end of the epoch", s._replace(master=master))
        elif answer == "hole":
            yield from self._passed(s, op)
        else:
            s = s._replace(master=master)
            noted = tuple((one, s.process.epoch if one == op else epoch) for one, epoch in s.process.spool)
            yield Move(f"the drain sends op {op}", s._replace(process=s.process._replace(spool=noted)))
            if s.faults.doubts:
                less = s.faults.less("doubts")
                yield Move(f"the drain sends op {op} and dies", s._replace(faults=less), work=False)
                if not s.process.late:
                    late = s.process._replace(spool=noted, late=(s.process.epoch, op))
                    yield Move(
                        f"the drain sends op {op} at its second try; the first is under way",
                        s._replace(process=late, faults=less),
                        work=False,
                    )

    def _passed(self, s: State, op: int) -> Iterator[Move]:
        """Account for what is missing below an op, then let the log go on behind it."""
        if not self.may_judge(s):
            return
        below = {one for one in range(s.master.seen[0].seq + 1, op) if one > s.primary.seqs[0]}
        s = self.verdict(s, below) if below else s
        seen = Seen(op - 1, NOWHERE)
        yield Move("the drain passes a hole", s._replace(master=s.master._replace(seen=(seen,))))

    def _arrival(self, s: State) -> Iterator[Move]:
        if s.process.late is None:
            return
        (epoch, op), there = s.process.late, s._replace(process=s.process._replace(late=None))
        if epoch == s.master.epoch and not s.master.ended:
            master, _ = self.append(s.master, *s.process.numbers[op - 1], op)
            there = there._replace(master=master)
        yield Move(f"the late request of op {op} arrives", there, work=False)

    def _work(self, s: State, which: int) -> Iterator[Move]:
        worker = s.workers[which]
        if not worker.doing:
            free = s.lock == -1 or not self.on("row lock")
            if s.master.dirty and free:
                entries = readable(s)[:2]
                batch = Worker("batch", s.generation, entries, s.primary.seqs, s.primary.mark)
                yield Move(f"worker {which} locks and reads", with_worker(s, which, batch, lock=which))
        elif worker.doing == "batch":
            yield self._commit(s, which)
        else:
            clean = s.master.tail is None or worker.mark >= s.master.tail
            master = s.master._replace(dirty=s.master.dirty and not clean)
            yield Move(f"worker {which} finishes", with_worker(s, which, Worker(), master=master))
        if worker.doing and s.faults.crashes:
            lock = -1 if s.lock == which else s.lock
            yield Move(
                f"worker {which} dies",
                with_worker(s, which, Worker(), lock=lock, faults=s.faults.less("crashes")),
                work=False,
            )

    def _commit(self, s: State, which: int) -> Move:
        worker, shard = s.workers[which], s.primary
        rows, seqs, mark, lost = shard.rows, list(worker.seqs), worker.mark, set[int]()
        for position, op in worker.entries:
            lost |= between(s, mark, position)
            mark = position
            sender, seq = s.process.numbers[op - 1]
            if seq > seqs[sender] or not self.on("seen"):
                rows, seqs[sender] = (*rows, op), max(seq, seqs[sender])
        done = Worker("finish", mark=mark)
        if worker.generation != s.generation:
            return Move(f"worker {which} commits to the dead primary", with_worker(s, which, done))
        lost -= set(rows)
        primary = shard._replace(mark=mark, seqs=tuple(seqs), rows=rows, lost=shard.lost | lost)
        lock = -1 if s.lock == which else s.lock
        return Move(
            f"worker {which} commits", with_worker(s, which, done, primary=primary, lock=lock, told=s.told | lost)
        )  # fmt: skip

    def _upkeep(self, s: State) -> Iterator[Move]:
        master, nodes = s.master, (s.primary, s.replica)
        safe = min(node.mark for node in nodes) if self.on("trim") else s.primary.mark
        log = tuple(entry for entry in master.log if entry[0] > safe)
        if log != master.log:
            yield Move("the log is trimmed", s._replace(master=master._replace(log=log)))
        if self.on("reconcile") and not master.dirty and readable(s):
            yield Move("a reconcile marks the bucket dirty", s._replace(master=master._replace(dirty=True)))
        if self.on("watermark ahead") and not master.ended:
            ahead = s.primary.mark[0] == master.epoch and (master.tail or START) < s.primary.mark
            if ahead or self.shorter(master, master.mark or START):
                yield Move("a reconcile ends the epoch", s._replace(master=master._replace(ended=True)))

    def _copies(self, s: State) -> Iterator[Move]:
        if s.follower != s.master and s.faults.failovers:
            yield Move("redis replicates", s._replace(follower=s.master))
        if s.replica != s.primary:
            yield Move("the database replicates", s._replace(replica=s.primary))

    def _faults(self, s: State) -> Iterator[Move]:
        faults, master = s.faults, s.master
        if faults.failovers:
            other = s.follower._replace(ended=True)
            yield self._fault(s, "REDIS FAILS OVER", "failovers", master=other, follower=other)
        if faults.deleted and master.tail is not None:
            empty = master._replace(log=(), tail=None)
            yield self._fault(s, "THE STREAM IS DELETED", "deleted", master=empty)
        if faults.cut and master.log:
            log = master.log[:-1]
            short = master._replace(log=log, tail=log[-1][0] if log else (*(master.tail or START)[:1], -1))
            yield self._fault(s, "THE STREAM'S TAIL IS CUT", "cut", master=short)
        if faults.hashes and any(seen.seq for seen in master.seen):
            nobody = master._replace(seen=(Seen(),) * len(master.seen))
            yield self._fault(s, "THE SENDERS' HASHES ARE DELETED", "hashes", master=nobody)
        if faults.databases:
            less = faults.less("databases")
            promoted = s._replace(primary=s.replica, generation=s.generation + 1, lock=-1, faults=less)
            yield Move("THE DATABASE FAILS OVER", promoted, work=False)

    def _fault(self, s: State, name: str, kind: str, **change: Redis) -> Move:
        return Move(name, s._replace(faults=s.faults.less(kind), forgot=True, **change), work=False)


def with_worker(s: State, which: int, worker: Worker, **more: object) -> State:
    return s._replace(workers=put(s.workers, which, worker), **more)  # type: ignore[arg-type]


def between(s: State, mark: Position, position: Position) -> set[int]:
    """Return the ops whose positions the log skips between a watermark and an entry."""
    first = mark[1] + 1 if mark[0] == position[0] else 0
    skipped = {(position[0], seq) for seq in range(first, position[1])}
    return {op for op, place in enumerate(s.process.places, 1) if place in skipped}
