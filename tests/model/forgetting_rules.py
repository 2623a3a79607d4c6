"""What the script, a process and a judge do in the model of a log that forgets, as far as their rules are on."""

from __future__ import annotations

from typing import Any

from model.forgetting_values import (
    RULES,
    START,
    Bounds,
    Position,
    Process,
    Redis,
    Remembered,
    Seen,
    State,
)


class Rules:
    """The system's own steps, with some rules switched off."""

    def __init__(self, bounds: Bounds, off: frozenset[str]):
        assert off <= RULES.keys(), off
        self.bounds, self.off = bounds, off

    def on(self, rule: str) -> bool:
        return rule not in self.off

    def append(self, redis: Redis, sender: int, seq: int, op: int) -> tuple[Redis, str]:
        """Do what the script does: the server as it is then, and its answer."""
        if redis.ended:
            return redis, "epoch"
        if self.on("mark") and self.shorter(redis, redis.mark or START):
            return redis._replace(ended=True), "epoch"
        last, at = redis.seen[sender]
        if self.on("sent anew") and last >= seq and at[0] < redis.epoch:
            last = seq - 1
        if seq <= last:
            return redis, "seen"
        if seq > last + 1 and self.on("hole"):
            return redis, "hole"
        behind = redis.tail or START
        position = (redis.epoch, behind[1] + 1 if behind[0] == redis.epoch else 0)
        seen = put(redis.seen, sender, Seen(seq, position))
        return redis._replace(
            log=(*redis.log, (position, op)), tail=position, mark=position, seen=seen, dirty=True
        ), "taken"  # fmt: skip

    def shorter(self, redis: Redis, mark: Position) -> bool:
        """Whether a stream has less than the mark beside it says."""
        if self.on("mark has the position"):
            return (redis.tail or START) < mark
        return redis.tail is None and mark != START

    def learnt(self, s: State) -> State:
        """Raise the epoch if it has ended, and let the process know the one that counts."""
        master, process = s.master, s.process
        if master.ended:
            known = max(master.epoch, (master.tail or START)[0])
            if self.on("new epoch"):
                known = max(known, s.primary.mark[0], s.replica.mark[0]) + 1
            if self.on("epoch once"):
                known = max(known, s.issued + 1) if self.on("new epoch") else known
            master = master._replace(epoch=known, ended=False, mark=None)
            s = s._replace(master=master, issued=max(s.issued, master.epoch))
        if master.epoch == process.epoch:
            return s
        process = suspecting(process._replace(epoch=master.epoch))
        if self.on("new sender") and self.bounds.level == "redis":
            process = another(process)
        if self.on("resend all"):
            process = process._replace(spool=tuple((op, 0) for op, _ in process.spool))
        return s._replace(process=process)

    def may_judge(self, s: State) -> bool:
        if self.on("judge under the lock") and s.lock != -1:
            return False
        return not (self.on("judge after the entries") and readable(s))

    def judged(self, s: State) -> State:
        """Say of each op under suspicion whether it is lost; *s* itself where nothing can be said."""
        if not self.may_judge(s):
            return s
        process, numbers = s.process, s.process.numbers
        suspects = {one.op for one in process.memory if one.suspect}
        if self.on("judge by the database"):
            gone = {op for op in suspects if s.primary.seqs[numbers[op - 1][0]] < numbers[op - 1][1]}
        else:
            gone = {op for op in suspects if s.master.seen[numbers[op - 1][0]].seq < numbers[op - 1][1]}
            gone -= set(s.primary.rows)
        gone -= s.primary.lost
        nodes = (s.primary, s.replica) if self.on("remember until replicated") else (s.primary,)
        judged = self.verdict(s, gone) if gone else s
        if len(nodes) == 1:
            safe = suspects
        else:
            safe = {
                op
                for op in suspects - gone
                if all(op in node.lost or node.seqs[numbers[op - 1][0]] >= numbers[op - 1][1] for node in nodes)
            }
        memory = tuple(one for one in process.memory if one.op not in safe)
        return s if memory == process.memory and not gone else judged._replace(process=process._replace(memory=memory))

    def verdict(self, s: State, gone: set[int]) -> State:
        """Record ops as lost in one transaction."""
        seqs = list(s.primary.seqs)
        if self.on("verdict moves the sequence"):
            for op in gone:
                sender, seq = s.process.numbers[op - 1]
                seqs[sender] = max(seqs[sender], seq)
        primary = s.primary._replace(lost=s.primary.lost | gone, seqs=tuple(seqs))
        return s._replace(primary=primary, told=s.told | gone)


def put(values: tuple[Any, ...], at: int, value: object) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def another(process: Process) -> Process:
    """Go on as another sender, if this one has sent anything."""
    return process if process.next == 1 else process._replace(sender=process.sender + 1, next=1)


def suspecting(process: Process) -> Process:
    return process._replace(memory=tuple(Remembered(one.op, True) for one in process.memory))


def readable(s: State) -> tuple[tuple[Position, int], ...]:
    """Return the entries behind the watermark."""
    return tuple(entry for entry in s.master.log if entry[0] > s.primary.mark)
