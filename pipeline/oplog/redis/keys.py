"""Name the keys in Redis; write and read entries that hold many ops of one producer, and are signed.

    <prefix>:log:<bucket>       stream  the ops; positions <epoch>-<dense seq>
    <prefix>:big:<bucket>       string  bytes of the largest op of late, where ops are large
    <prefix>:epoch:<scope>      string  "<epoch> <master_replid> <map>", or why the epoch has ended
    <prefix>:deployment         string  the deployment's fingerprint as JSON; see `model/fingerprint`
    <prefix>:map                string  where buckets are that have moved, as JSON; see `config/buckets`
    <prefix>:dirty:<shard>      zset    bucket -> ms from when on it may be applied
    <prefix>:bell:<shard>       string  there while a Celery message is on its way, or a worker at the shard
    <prefix>:wake:<shard>       list    wakes the worker that waits for a shard's next op; expires
    <prefix>:marks:<shard>      hash    bucket -> watermark, a copy for readers
    <prefix>:attempts:<shard>   hash    bucket -> what a worker is about to apply; see `apply/judge`
    <prefix>:notes:<shard>      list    "<ms> <watermarks as JSON>", the newest first, one a minute; see `admin/upkeep`
    <prefix>:waits:<shard>      hash    bucket -> why it waits and since when; expires. See `oplog/shared_state`
    <prefix>:producer:<id>      hash    bucket -> "<last seq> <epoch> <seq>"; who -> host and process; expires when idle
    <prefix>:same:<bucket>:<k>  string  claim of a scoped idempotency key: its op's receipt, or a row's id; expires
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
    <prefix>:counts:<shard>     hash    counter -> n, of all processes; see `oplog/shared_state`
    <prefix>:batches:<shard>    list    notes of the newest batches, the newest first; see `oplog/shared_state`
    <prefix>:hosts              hash    "<kind> <host>" -> "<ms> <its spool as JSON>"; expires. See `enqueue/shipment`
    <prefix>:reads              hash    "<node> <kind> <reason>" -> reads of all processes; expires when idle
    <prefix>:unfit              hash    shard -> its unfit nodes as JSON, a copy of pipeline_unfit
    <prefix>:seen               hash    node -> what upkeep last saw of it, as JSON; see `admin/absence`
    <prefix>:secret             string  signs session tokens, if the settings name no secret

Sign what this deployment writes to Redis, and refuse what others write there. A signature is a keyed BLAKE2b (RFC 7693)
behind what it signs, with a line's end between, which JSON of ours never holds. BLAKE2b is as strong as an HMAC, and
takes 1.4 µs an op where `hmac.digest` with SHA-256 takes 7.8 µs. An op's says where the op belongs too: bucket,
producer and the producer's sequence. So an entry can be neither changed nor repeated elsewhere; the same sequence again
is what the shard has seen.

Put ops that one producer appends together into one entry of a stream: the server touches an entry, not each op. An
entry of several ops has the position of the last one. So a read from a position finds the entry while a watermark is
inside it. A trim by position deletes it once all its ops are applied. The positions before the last one are its other
ops', in order, and so are the producer's sequences from the entry's own on.

The text of an entry is an op of the kind `pack`, whose `ops` are the ops' texts, byte by byte. A release that knows no
packs takes it for the op of a newer release, and lets it wait. Like inserts of one bulk call are a sheet, see
`model/sheet`: their entry's text has the values column by column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

import msgspec

from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.errors import NotAnOp
from pipeline.model import FORGED, PACKED, START, TOO_LARGE, Entry, Op, Position, sheet
from pipeline.model.sheet import Read, Sheet, SheetEntry

_BYTES = 32
#: How far before the end the line's end stands.
_MARK = -_BYTES - 1
#: What a definition's signature begins with; an op's begins with digits.
DEFINITION = b"definition"
#: The most bytes of a pack. A read of one op reads the whole pack, and beyond 50 ops the server gains little more.
MOST_BYTES = 8_192
#: The most ops of a pack, or of a sheet.
MOST_OPS = MOST_BYTES // 32
#: The bytes of entries in a block of a stream of 16 KB, as `deploy/redis/redis-log.conf` has it; what an entry has
#: beside its op's text: a signature, place, producer and sequence.
BLOCK_BYTES, _ENTRY_BYTES = 16_384 - 64, 72
#: The most bytes of a sheet of several rows: it fills a block.
MOST_SHEET_BYTES = BLOCK_BYTES - _ENTRY_BYTES
#: A sheet is cut to fill a block that would keep so many bytes unused. Less would save little, and make more entries.
WORTH_A_CUT_BYTES = 2_560
#: The first rows of a sheet may be so many bytes longer than others.
_SPREAD_BYTES = 160
_KIND = b'["pack",'
#: What an entry begins with that holds several ops.
_SEVERAL = (sheet.KIND, _KIND)
_PACK = _KIND + b"%b,null,[],[],null,[],[],[],null,[%b],null,%d]"
_fields: Any = [(name, list[msgspec.Raw] if name == "ops" else msgspec.Raw) for name in Op.__struct_fields__]
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct("Pack", _fields, array_like=True, frozen=True, forbid_unknown_fields=True)
)


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
        """Return the stream of a bucket, or of the bucket of a piece."""
        return f"{self.prefix}:log:{bucket % FIRST_PIECE}"

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


def keys_of(text: str, prefix: str) -> tuple[bytes, ...]:
    """Return the keys of one deployment: the first signs, each verifies.

    Args:
        text: one or two keys as configured, a blank between; the empty text: nothing is signed.
        prefix: of the deployment's keys in Redis, so that deployments with one key take nothing of each other.
    """
    return tuple(blake2b(b"pipeline %b %b" % (prefix.encode(), key.encode())).digest() for key in text.split())


def place(bucket: int, producer: int, seq: int) -> bytes:
    """Return what the signature of an op says beside the op.

    Args:
        bucket: whose log the op is for.
        producer: its number.
        seq: the producer's sequence number of the op.
    """
    return b"%d %d %d" % (bucket, producer, seq)


def signed(keys: Sequence[bytes], about: bytes, text: bytes) -> bytes:
    """Return a text with its signature; as it is without keys.

    Args:
        keys: see `keys_of`.
        about: what else the signature says.
        text: an op, or a definition.
    """
    return b"%b\n%b" % (text, _seal(keys[0], b"%b %b" % (about, text))) if keys else text


def has_signature(found: bytes) -> bool:
    """Return whether what was found ends as something signed does.

    Args:
        found: in Redis.
    """
    return found[_MARK:-_BYTES] == b"\n"


def verified(keys: Sequence[bytes], about: bytes, found: bytes, *, unsigned: bool) -> bytes | None:
    """Return the text in what was found, or None where another has written that.

    Without keys a signature is cut off: processes get their keys one after the other.

    Args:
        keys: see `keys_of`.
        about: what else the signature has to say.
        found: in Redis.
        unsigned: whether a text without a signature is taken.
    """
    if not has_signature(found):
        return found if unsigned or not keys else None
    text, seal = found[:_MARK], found[-_BYTES:]
    whole = b"%b %b" % (about, text)
    if not keys or any(compare_digest(_seal(key, whole), seal) for key in keys):
        return text
    return None


def _seal(key: bytes, whole: bytes) -> bytes:
    return blake2b(whole, key=key, digest_size=_BYTES).digest()


def packed(payloads: Sequence[bytes], room: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield the texts of the entries that hold ops, in order, each with the number of its ops.

    Args:
        payloads: encoded ops of one bucket, or a sheet. An op of `MOST_BYTES` or more has an entry of its own, as has
            what is no op.
        room: how many bytes the last block of the log may take, see `room_behind`.
    """
    if isinstance(payloads, Sheet):
        yield from _sheets(payloads, room)
        return
    run: list[bytes] = []
    size = 0
    for payload in payloads:
        alone = len(payload) >= MOST_BYTES or not payload.startswith(b'["')
        if run and (alone or size + len(payload) > MOST_BYTES or len(run) == MOST_OPS):
            yield len(run), _text(run)
            run, size = [], 0
        if alone:
            yield 1, payload
        else:
            run.append(payload)
            size += len(payload)
    if run:
        yield len(run), _text(run)


def room_behind(room: int, text: bytes) -> int:
    """Return how many bytes the last block of a log may take behind an entry.

    Args:
        room: the same before the entry.
        text: of the entry, without a signature.
    """
    taken = len(text) + _ENTRY_BYTES
    return (room if taken <= room else BLOCK_BYTES) - taken


def unpacked(text: bytes) -> Sequence[bytes]:
    """Return the ops in an entry's text, one for an op, as views, or as a sheet; none of a pack that no release makes.

    Args:
        text: without a signature.
    """
    if text.startswith(sheet.KIND):
        try:
            return Sheet.read(text)
        except NotAnOp:
            return [text]  # of a newer release, or no op
    if not text.startswith(_KIND):
        return [text]
    try:
        return _decoder.decode(text).ops  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()


def read_of(
    bucket: int,
    reply: Any,
    keys: Sequence[bytes] = (),
    *,
    unsigned: bool = False,
    after: Position = START,
    most: int = TOO_LARGE,
) -> list[Read]:
    """Return the entries that XRANGE found, one for each op, or for each sheet.

    Args:
        bucket: the log's bucket.
        reply: of XRANGE.
        keys: of the deployment, see `signature`; none: ops need no signature.
        unsigned: whether an op needs none all the same.
        after: ops up to this position are left out.
        most: how many ops to return at most.
    """
    found: list[Read] = []
    for id, fields in reply:
        entry, ops = _opened(bucket, id, fields, keys, unsigned=unsigned)
        if ops is None:
            if most and entry.position > after:
                found.append(entry)
                after, most = entry.position, most - 1
        elif some := _behind(entry, ops, after, most):
            found += some
            last = some[-1]
            after = last.last if isinstance(last, SheetEntry) else last.position
            most -= len(last.sheet) if isinstance(last, SheetEntry) else len(some)
        if not most:
            break
    return found


def cut_entry(bucket: int, id: bytes, fields: Sequence[bytes]) -> Entry:
    """Return the entry of one large op of which the server has sent the beginning: nobody has looked at its signature.

    Args:
        bucket: the log's bucket.
        id: of the entry.
        fields: as far as they were sent.
    """
    epoch, _, seq = id.partition(b"-")
    words = [*fields, *(b"",) * 6][:6]
    sender, number = (int(word) if word.isdigit() else 0 for word in (words[1], words[3]))
    return Entry(bucket, Position(int(epoch), int(seq)), sender, number, words[5])


def _sheets(rows: Sheet, room: int) -> Iterator[tuple[int, bytes]]:
    """Yield parts of which each is in one block; the first fills the block that there is, where much of it is left."""
    row, at = -(-rows.size_bytes // len(rows)), 0
    while at < len(rows):
        left = len(rows) - at
        filled = room if WORTH_A_CUT_BYTES <= room < left * row + _ENTRY_BYTES else BLOCK_BYTES
        each = max(1, min(left, MOST_OPS, (filled - _ENTRY_BYTES - _SPREAD_BYTES) // row))
        yield from _halved(rows[at : at + each] if each < len(rows) else rows)
        at, room = at + each, BLOCK_BYTES


def _halved(rows: Sheet) -> Iterator[tuple[int, bytes]]:
    """Yield what fits, else its halves."""
    if len(rows) == 1:
        yield 1, rows[0]
    elif len(rows.text) <= MOST_SHEET_BYTES:
        yield len(rows), rows.text
    else:
        middle = len(rows) // 2
        yield from _halved(rows[:middle])
        yield from _halved(rows[middle:])


def _text(payloads: Sequence[bytes]) -> bytes:
    if len(payloads) == 1:
        return payloads[0]
    # table, definition and time of the first op, as each op begins with them behind its kind
    head = b",".join(payloads[0].split(b",", 4)[1:4])
    return _PACK % (head, b",".join(payloads), PACKED)


def _opened(
    bucket: int, id: bytes, fields: Sequence[bytes], keys: Sequence[bytes], *, unsigned: bool
) -> tuple[Entry, Sequence[bytes] | None]:
    """Return one entry of the stream, and None where it is one op; else its ops, and no payload in the entry.

    The entry has the position of its last op and the sequence of its first.
    """
    epoch, _, nth = id.partition(b"-")
    position = Position(int(epoch), int(nth))
    try:
        _, producer, _, seq, _, text = fields  # p <producer> s <producer seq> o <text>, always in this order
        sender, number = int(producer), int(seq)
    except ValueError:
        sender = number = 0
    if not (0 < sender < TOO_LARGE and 0 < number < TOO_LARGE):
        return Entry(bucket, position, 0, 0, _strange(fields)), None
    signed = keys or has_signature(text)
    own = verified(keys, place(log_number(bucket), sender, number), text, unsigned=unsigned) if signed else text
    if own is None:
        return Entry(bucket, position, 0, FORGED, _strange(fields)), None
    if not own.startswith(_SEVERAL):
        return Entry(bucket, position, sender, number, own), None
    if not (ops := unpacked(own)) or len(ops) > position.seq + 1:
        return Entry(bucket, position, 0, 0, _strange(fields)), None
    return Entry(bucket, position, sender, number, b""), ops


def _behind(last: Entry, ops: Sequence[bytes], after: Position, most: int) -> Sequence[Read]:
    """Return the ops of one entry of the stream, each with its place; of a sheet, the sheet.

    Args:
        last: with the position of the last op, and the sequence of the first.
        ops: in order.
        after: ops up to this position are left out.
        most: how many ops to return at most.
    """
    bucket, (epoch, seq), sender, number, _ = last
    first = seq - len(ops) + 1
    begin = max(0, after.seq + 1 - first) if epoch == after.epoch else 0 if epoch > after.epoch else len(ops)
    end = min(len(ops), begin + most)
    if isinstance(ops, Sheet):
        part = ops if end - begin == len(ops) else ops[begin:end]
        return [SheetEntry(bucket, Position(epoch, first + begin), sender, number + begin, part)] if part else ()
    return [
        Entry(bucket, Position(epoch, first + n), sender, number + n if sender else number, bytes(ops[n]))
        for n in range(begin, end)
    ]


def _strange(fields: Sequence[bytes]) -> bytes:
    """Return the fields of an entry as JSON in ASCII: a character for each byte."""
    return json.dumps([field.decode("latin-1") for field in fields]).encode()
