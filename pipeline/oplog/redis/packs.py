"""Put ops that one producer appends together into one entry of a stream: the server touches an entry, not each op.

An entry of several ops stands at the position of the last one. So a read from a position finds the entry while a
watermark is inside it. A trim by position deletes it once all its ops are applied. The positions before the last one
are its other ops', in order, and so are the producer's sequences from the entry's own on.

The entry's text is an op of the kind `pack`. Its `ops` are the texts of the ops, byte by byte. A release that knows no
packs takes it for the op of a newer release, and lets it wait. Like inserts of one bulk call are a sheet, see
`model/sheet`: their entry's text has the values column by column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pipeline.errors import NotAnOp
from pipeline.model import sheet
from pipeline.model.op import FORGED, PACKED, START, TOO_LARGE, Entry, Op, Position
from pipeline.model.sheet import Read, Sheet, SheetEntry
from pipeline.oplog.redis.signature import has_signature, place, verified

#: The most bytes of a pack. A read of one op reads the whole pack, and beyond 50 ops the server gains little more.
MOST_BYTES = 8_192
#: The most ops of a pack, or of a sheet.
MOST_OPS = MOST_BYTES // 32
#: The most bytes of a sheet of several rows.
MOST_SHEET_BYTES = 2 * MOST_BYTES
#: So many rows are measured of a sheet that may be too large.
SAMPLE = 8
_KIND = b'["pack",'
_PACK = _KIND + b"%b,null,[],[],null,[],[],[],null,[%b],null,%d]"
_fields: Any = [(name, list[msgspec.Raw] if name == "ops" else msgspec.Raw) for name in Op.__struct_fields__]
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct("Pack", _fields, array_like=True, frozen=True, forbid_unknown_fields=True)
)


def packed(payloads: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the texts of the entries that hold ops, in order, each with the number of its ops.

    Args:
        payloads: encoded ops of one bucket, or a sheet; an op of `MOST_BYTES` or more has an entry of its own, as has
            what is no op.
    """
    if isinstance(payloads, Sheet):
        yield from _sheets(payloads)
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
        some = _behind(entry, ops, after, most)
        if some:
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


def _sheets(rows: Sheet) -> Iterator[tuple[int, bytes]]:
    count, each = len(rows), MOST_OPS
    row = sum(len(column[0]) if isinstance(column[0], str) else 8 for column in rows.values)
    if count > SAMPLE and count * row > MOST_SHEET_BYTES // 2:
        few = rows[:SAMPLE]  # to encode all, only to divide them, costs twice
        each = max(1, min(MOST_OPS, MOST_SHEET_BYTES * SAMPLE // len(few.text)))
    each = -(-count // -(-count // each))
    for at in range(0, count, each):
        yield from _halved(rows[at : at + each] if each < count else rows)


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
) -> tuple[Entry, Sequence[bytes]]:
    """Return one entry of the stream, with the position of its last op and the sequence of its first, and its ops."""
    epoch, _, nth = id.partition(b"-")
    position = Position(int(epoch), int(nth))
    try:
        _, producer, _, seq, _, text = fields  # p <producer> s <producer seq> o <text>, always in this order
        sender, number = int(producer), int(seq)
    except ValueError:
        sender = number = 0
    if not (0 < sender < TOO_LARGE and 0 < number < TOO_LARGE):
        return Entry(bucket, position, 0, 0, b""), [_strange(fields)]
    signed = keys or has_signature(text)
    own = verified(keys, place(bucket, sender, number), text, unsigned=unsigned) if signed else text
    if own is None:
        return Entry(bucket, position, 0, FORGED, b""), [_strange(fields)]
    if not (ops := unpacked(own)) or len(ops) > position.seq + 1:
        return Entry(bucket, position, 0, 0, b""), [_strange(fields)]
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
