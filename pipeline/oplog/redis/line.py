"""Append over one producer's own connection to Redis, the hot path of enqueue; read epochs, claim idempotency keys.

Let producers append to Redis: their lines, the epochs of scopes, the claims of idempotency keys.
`enqueue.lua` gives out every position in a log, on one lineage of the server (its `master_replid`), under an epoch
above every watermark. A server that restarted or was promoted accepts nothing before a new epoch is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import redis
from hiredis import pack_command

from pipeline import clock
from pipeline.bounds import COLD_S, WaitBudgets, WaitBudgetSpent, keep_newest, more_s, portions
from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.model import Position
from pipeline.oplog.appends import (
    BIG_BYTES,
    EVERYWHERE,
    FULL_SHARE,
    HOLE,
    Append,
    Appended,
    EpochStale,
    KeyClaimed,
    Placed,
    Scope,
    claimed_id,
    is_receipt,
)
from pipeline.oplog.redis.connection import (
    CUT_AT_ONCE_BYTES,
    HEALTH_CHECK_S,
    MOST_REASON,
    RedisServer,
    by_bucket,
    numbers_of,
    script,
    text_of,
    translated,
)
from pipeline.oplog.redis.keys import BLOCK_BYTES, Keys, packed, place, room_behind, signed
from pipeline.oplog.redis.wire import Wire
from pipeline.oplog.shared_state import BELL_MS, BIG_TTL_MS, IDEMPOTENCY_TTL_MS, PRODUCER_TTL_MS, ROOM_MS, this_process

#: How often a producer's expiry is put off, s.
RENEW_S = 3600
#: A command of more bytes may have to wait for the server to read it: an empty socket takes this much at once.
FITS_BYTES = 16_384
#: One WAIT asks for this long, well below the socket's time-out; it is asked again until the caller's deadline.
WAIT_MS = 20
#: No answer in time, as the driver says it, and as the kernel does.
_UNANSWERED = (redis.exceptions.TimeoutError, TimeoutError, BlockingIOError)
_TRANSIENT = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.ReadOnlyError, OSError)
#: What an epoch key begins with, as in `raise_epoch.lua`.
_EPOCH = re.compile(r"\d{1,15} [\w:]{1,60}", re.ASCII)
#: Names of keys in one answer of Redis, which does nothing else meanwhile.
SCAN = 500


class RedisLine:
    """A `appends.Line` over at most one wire, made when it is first needed; one thread at a time.

    Args:
        keys: the names of the keys.
        pool: makes the connections.
        reply_s: how long the pool's connections wait for a reply.
        wait_budgets: None: no caller leaves earlier than the connection's own time-outs.
        sign_keys: sign each op; none: ops are not signed.
    """

    def __init__(
        self,
        keys: Keys,
        pool: Any,
        reply_s: float = 0,
        wait_budgets: WaitBudgets | None = None,
        sign_keys: Sequence[bytes] = (),
    ):
        self._keys, self._pool, self._reply_s, self._wait_budgets = keys, pool, reply_s, wait_budgets
        self._sign_keys = sign_keys
        self._wire: Wire | None = None
        self._renew_at = self._used_s = 0.0
        self._heads: dict[tuple[str, int], list[str]] = {}
        #: Of each bucket the bytes that are left in the last block of its log, had this line alone appended there.
        self._rooms: dict[int, int] = {}
        #: Of each bucket epoch, producer, and the packed beginning of the usual command.
        self._ones: dict[int, tuple[int, int, bytes]] = {}
        self._text, self._sha = script("enqueue")
        self._one_text, self._one_sha = script("enqueue_one")

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """See `appends.Line.append`."""
        text = self._asked(self._command(scope, epoch, producer, appends, idempotency_key, row_id))
        if not text.startswith(b"ok"):
            self._renew_at = 0.0  # nothing was written, so nothing was put off
        return _read_reply(text, scope)

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """See `appends.Line.append_one`. A web request waits for each of its calls."""
        now_s = clock.mono_s()
        if len(payload) >= BIG_BYTES or now_s >= self._renew_at:
            return self._one_by_append(scope, epoch, producer, bucket, seq, payload)
        at, whose, head = self._ones.get(bucket) or (0, 0, b"")
        if at != epoch or whose != producer:
            head = self._head_of_one(scope, epoch, producer, bucket)
        number = b"%d" % seq
        value = signed(self._sign_keys, place(bucket, producer, seq), payload) if self._sign_keys else payload
        packed = b"%b%d\r\n%b\r\n$%d\r\n%b\r\n" % (head, len(number), number, len(value), value)
        try:  # as `_asked`, but for what does not happen
            words = self.ask(packed, now_s).split()
        except (redis.exceptions.RedisError, OSError) as error:
            words = self._asked_again((*self._one(scope, epoch, producer, bucket), seq, value), error).split()
        ring = words[0]
        if ring == b"0" or ring == b"1":
            return Position(epoch, int(words[2])), ring == b"1"  # the script has compared the epoch
        if ring == b"full":
            raise PipelineFull(b" ".join(words[1:]).decode(errors="replace")[:MOST_REASON])
        return self._one_by_append(scope, epoch, producer, bucket, seq, payload) if ring == b"room" else None

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """See `appends.Line.replicated`. Uses WAITAOF (Redis 7.2, Valkey) or WAIT."""
        command: tuple[Any, ...] = ("WAITAOF", "1", "0", WAIT_MS) if fsync else ("WAIT", "1", WAIT_MS)
        try:
            for deadline in clock.polls(timeout_s):
                reached = self._ask_at_leisure(pack_command(command))
                if int(reached[0] if fsync else reached) >= 1 or deadline.passed:
                    break
        except redis.exceptions.ResponseError as error:
            need = "Redis 7.2 or Valkey with appendonly yes" if fsync else "Redis replication"
            raise PipelineError(f"this durability needs {need}; the op is queued ({error})") from error
        except _TRANSIENT:
            self.drop()
            return False
        return int(reached[0] if fsync else reached) >= 1

    def connect(self) -> None:
        """See `appends.Line.connect`."""
        self._sent_twice(("PING",))

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `appends.Line.pass_hole`."""
        text, _ = script("pass_hole")
        command = ("EVAL", text, 1, self._keys.producer(producer), bucket, seen, last, PRODUCER_TTL_MS)
        return bool(self._sent_twice(command))

    def ask(self, packed: bytes, now_s: float | None = None) -> Any:
        """Send a packed command and return its reply; see `Wire.ask`. The caller's time runs from *now_s* on.

        Raises:
            ResponseError: the server refused it.
            OSError, ConnectionError: no answer in time; it is unknown whether the command was done. Then `drop`.
        """
        wait_budgets, wire = self._wait_budgets, self._wire
        budget = wait_budgets.here.budget if wait_budgets is not None else None
        if wait_budgets is None or budget is None:
            return self._ask_at_leisure(packed)
        began = clock.mono_s() if now_s is None else now_s
        lately, self._used_s = began - self._used_s < HEALTH_CHECK_S, began
        if wire is None or budget.left_s < self._reply_s or len(packed) > FITS_BYTES:
            return self._asked_aside(wait_budgets, packed)
        try:  # as `WaitBudgets.spending`, at a tenth of its cost
            # no firewall has cut a wire that was used of late: the server is busy, and another wire takes it longer
            return wire.ask(packed, budget.left_s - self._reply_s if lately else 0.0)
        finally:
            took_s = clock.mono_s() - began
            if took_s > wait_budgets.hardly_s:
                budget.left_s -= took_s

    def close(self) -> None:
        """Give the connection back to the pool."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def drop(self) -> None:
        """Close the connection: what is on it is unknown."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.drop()

    # commands -----------------------------------------------------------------------------------------------

    def _command(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> list[Any]:
        keys, shards = self._keys, scope.shards
        names = self._names(scope, producer).copy()
        if idempotency_key:
            names[3] = keys.claim(appends[0].bucket, idempotency_key)
        rest: list[Any] = []
        biggest = 0
        for bucket, first, payloads in appends:
            names.append(keys.log(bucket))
            rest += (bucket, first, len(payloads), 0)
            entries, at, room = len(rest) - 1, first, self._rooms.get(bucket, BLOCK_BYTES)
            for ops, text in packed(payloads, room):
                rest += (ops, signed(self._sign_keys, place(bucket, producer, at), text))
                at, biggest, room = at + ops, max(biggest, len(text) // ops), room_behind(room, text)
            self._rooms[bucket] = room
            rest[entries] = (len(rest) - entries) // 2
        big = BIG_BYTES if biggest >= BIG_BYTES else 0
        renewal = self._renewal()
        spans = (renewal, BELL_MS, IDEMPOTENCY_TTL_MS, BIG_TTL_MS, ROOM_MS)
        fixed = (
            epoch,
            len(shards),
            producer,
            row_id,
            big,
            keys.bigs,
            *spans,
            FULL_SHARE,
            this_process() if renewal else "",
        )
        return ["EVALSHA", self._sha, len(names), *names, *fixed, *rest]

    def _one(self, scope: Scope, epoch: int, producer: int, bucket: int) -> tuple[Any, ...]:
        """Return the command of `append_one` without its last two words, the sequence and the op."""
        given_out, full, own, _, room, dirty, bell, wake = self._names(scope, producer)
        names = (given_out, full, own, dirty, bell, self._keys.log(bucket), room, wake)
        return ("EVALSHA", self._one_sha, len(names), *names, epoch, producer, bucket, BELL_MS)

    def _head_of_one(self, scope: Scope, epoch: int, producer: int, bucket: int) -> bytes:
        """Return these words packed, up to the length of the sequence: they are the same for every op of a bucket."""
        packed = pack_command((*self._one(scope, epoch, producer, bucket), "", ""))
        head: bytes = packed.removesuffix(b"0\r\n\r\n$0\r\n\r\n")
        self._ones[bucket] = epoch, producer, head
        return head

    def _one_by_append(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        try:
            answer = self.append(scope, epoch, producer, [Append(bucket, seq, (payload,))], "", 0)
        except EpochStale:
            return None
        [(code, position)] = answer.placed
        return None if code == HOLE else (position, bool(answer.ring))

    def _renewal(self) -> int:
        """Return the time to which the producer's expiry is to be put off: at first, then once an hour; else 0."""
        if clock.mono_s() < self._renew_at:
            return 0
        self._renew_at = clock.mono_s() + RENEW_S
        return PRODUCER_TTL_MS

    def _names(self, scope: Scope, producer: int) -> list[str]:
        """Return the keys that are the same at every call: the same producer sends on one line."""
        names = self._heads.get((scope.name, producer))
        if names is None:
            keys = self._keys
            names = [keys.epoch(scope.name), keys.full, keys.producer(producer), keys.room, keys.room]
            for shard in scope.shards:
                names += (keys.dirty(shard), keys.bell(shard), keys.wake(shard))
            keep_newest(self._heads, (scope.name, producer), names)
        return names

    # replies ------------------------------------------------------------------------------------------------

    def _asked(self, command: Sequence[Any]) -> bytes:
        """Call the script; a second try is safe, since it knows the producer's sequences."""
        try:
            return self._send(command)  # type: ignore[no-any-return]
        except (redis.exceptions.RedisError, OSError) as error:
            return self._asked_again(command, error)

    def _asked_again(self, command: Sequence[Any], error: Exception) -> bytes:
        budget = self._wait_budgets.here.budget if self._wait_budgets is not None else None
        # the server has kept silent for all of it, and no step of ours took its time
        silent = isinstance(error, _UNANSWERED) and budget is not None and budget.left_s <= 0
        if isinstance(error, _TRANSIENT):
            self.drop()
            self._renew_at = 0.0
        cold = self._wait_budgets is not None and self._wait_budgets.cold
        for waiting in clock.polls(COLD_S if cold else 0.0):
            try:
                return self._call(command)
            except _TRANSIENT as again:
                self.drop()
                spent = isinstance(again, WaitBudgetSpent)
                if waiting.passed or spent or not isinstance(again, _UNANSWERED):
                    raise LogUnavailable(f"{type(again).__name__}: {again}", silent=silent or not spent) from again
        raise AssertionError

    def _call(self, command: Sequence[Any]) -> bytes:
        try:
            try:
                return self._send(command)  # type: ignore[no-any-return]
            except redis.exceptions.NoScriptError:
                text = self._text if command[1] == self._sha else self._one_text
                return self._send(["EVAL", text, *command[2:]])  # type: ignore[no-any-return]
        except _TRANSIENT:
            raise
        except redis.exceptions.OutOfMemoryError as error:
            raise PipelineFull("Redis is at maxmemory") from error
        except redis.exceptions.ResponseError as error:
            raise LogUnavailable(str(error), sent=False) from error

    def _send(self, command: Sequence[Any]) -> Any:
        return self.ask(pack_command(tuple(command)))

    def _sent_twice(self, command: Sequence[Any]) -> Any:
        """Send a command that may be done twice: a line that idled for long may find its connection gone."""
        with translated():
            try:
                return self._send(command)
            except _TRANSIENT:
                self.drop()
                return self._send(command)

    def _ask_at_leisure(self, packed: bytes) -> Any:
        """Ask for what takes its time; the caller has said how long to wait, and only the reply's time-out counts."""
        if self._wire is None:
            self._wire = Wire(self._pool)
        return _said(self._wire, packed)

    def _asked_aside(self, wait_budgets: WaitBudgets, packed: bytes) -> Any:
        """Let a thread ask; the wire is ours again if it has answered in time."""
        # much at once takes its time
        with wait_budgets.more(more_s(len(packed))):
            wait_budgets.lasts()
            wire, self._wire = self._wire, None
            from_s = wait_budgets.hardly_s * (1 + len(packed) // FITS_BYTES) if wire is not None else 0.0
            answer = wait_budgets.aside(
                lambda: self._answer(wire, packed), late=lambda late: late.wire.drop(), from_s=from_s
            )
        self._wire = answer.wire
        if answer.refusal is not None:
            raise answer.refusal
        return answer.reply

    def _answer(self, wire: Wire | None, packed: bytes) -> _Answer:
        wire = wire or Wire(self._pool)
        try:
            return _Answer(wire, _said(wire, packed), None)
        except redis.exceptions.ResponseError as refusal:
            return _Answer(wire, None, refusal)
        except BaseException:
            wire.drop()
            raise


class _Answer(NamedTuple):
    """What a wire answered, and the wire, which goes on."""

    wire: Wire
    reply: Any
    refusal: redis.exceptions.ResponseError | None


def _said(wire: Wire, packed: bytes) -> Any:
    return wire.ask_long(packed, longer_s) if (longer_s := more_s(len(packed))) else wire.ask(packed)


def _read_reply(text: bytes | str, scope: Scope) -> Appended:
    words = (text.decode(errors="replace") if isinstance(text, bytes) else text).split(" ")
    if words[0] == "epoch":
        raise EpochStale
    if words[0] == "full":
        raise PipelineFull(" ".join(words[1:])[:MOST_REASON])
    if words[0] == "claimed":
        claim = " ".join(words[1:])
        if is_receipt(claim):
            return Appended([], [], claim)
        raise KeyClaimed(claimed_id(claim))
    ring = [shard for shard, bit in zip(scope.shards, words[1], strict=True) if bit == "1"]
    numbers = list(map(int, words[2:]))
    placed = [Placed(numbers[i], Position(numbers[i + 1], numbers[i + 2])) for i in range(0, len(numbers), 3)]
    return Appended(placed, ring)


class RedisAppends(RedisServer):
    """See `appends.Appends`."""

    def line(self, *, patient: bool = False) -> RedisLine:
        if patient:
            return RedisLine(self.keys, self._leisurely, sign_keys=self._sign_keys)
        return RedisLine(self.keys, self._lines, self._reply_s, self._wait_budgets, self._sign_keys)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with translated():
            given, info = self._soon(lambda redis: (redis.mget([self.keys.epoch(scope)])[0], redis.info("replication")))
        epoch, given_on, *_ = [*text_of(given).split(" "), "", ""]
        replid: str = info["master_replid"]
        if not _EPOCH.fullmatch(f"{epoch} {given_on}"):  # nobody of ours has written it: `raise_epoch` replaces it
            return 0, False, replid
        return int(epoch), given_on == replid, f"{replid} {epoch} {given_on}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        replid, _, value = seen.partition(" ")
        return bool(self._run("raise_epoch", [self.keys.epoch(scope)], [value, epoch, replid]))

    def deployment(self, scope: str = EVERYWHERE) -> str:
        with translated():
            found: Any = self._soon(lambda redis: redis.mget([self.keys.deployment])[0])
        return str(found, errors="surrogateescape") if found is not None else ""

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        known = seen.encode(errors="surrogateescape")  # byte by byte, whatever it is
        return bool(self._run("note_deployment", [self.keys.deployment], [known, text]))

    def placement(self) -> str:
        with translated():
            found: Any = self._soon(lambda redis: redis.mget([self.keys.map])[0])
        return str(found, errors="surrogateescape") if found is not None else ""

    def note_placement(self, seen: str, text: str) -> bool:
        known = seen.encode(errors="surrogateescape")
        return bool(self._run("note_deployment", [self.keys.map], [known, text]))

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        # the server reads the first and the last op of each log
        sizes = {**dict.fromkeys(marks, 0), **self._large(marks)}
        for some in portions(sorted(sizes.items(), key=itemgetter(1)), CUT_AT_ONCE_BYTES):
            words = [word for bucket in some for word in (bucket, *marks[bucket])]
            if found := text_of(self._run("audit", [self.keys.epoch(scope), *map(self.keys.log, some)], words)):
                return found
        return ""

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        with translated():
            every = self._client.scan_iter(self.keys.producer("*"), count=SCAN)
            while names := list(islice(every, SCAN)):
                pipe: Any = self._client.pipeline(transaction=False)
                for name in names:
                    pipe.hgetall(name)
                for name, sent in zip(names, pipe.execute(), strict=True):
                    words = {b: numbers_of(value, " ", 3) for b, value in by_bucket(sent).items()}
                    producer = numbers_of(text_of(name).rpartition(":")[2], " ", 1)
                    if producer:
                        yield producer[0], {b: (of[0], of[1]) for b, of in words.items() if of}

    def sender(self, producer: int) -> str | None:
        with translated():
            found: Any = self._client.hget(self.keys.producer(producer), "who")
        return text_of(found)[:MOST_REASON] if found is not None else None

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        name = self.keys.claim(bucket, idempotency_key)
        try:
            with translated():
                found = self._soon(lambda redis: redis.set(name, row_id, nx=True, get=True, px=IDEMPOTENCY_TTL_MS))
        except PipelineFull:
            with translated():
                found = self._soon(lambda redis: redis.get(name))
            if found is None:
                raise
        except LogUnavailable as error:
            if "WRONGTYPE" in str(error):  # no claim of ours; `enqueue.lua` writes over it
                return row_id
            raise
        claimed = numbers_of(text_of(found).rpartition(" ")[2], " ", 1) if found is not None else None
        return claimed[0] or row_id if claimed and claimed[0] < 2**63 else row_id
