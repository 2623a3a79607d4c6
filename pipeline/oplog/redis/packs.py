"""Put ops that one producer appends together into one entry of a stream: the server touches an entry, not each op.

An entry of several ops stands at the position of the last one. So a read from a position finds the entry while a
watermark stands inside it, and a trim by position deletes it once all its ops are applied. The positions before the
last one are its other ops', in order, and so are the producer's sequences from the entry's own on.

The entry's text is an op of the kind `pack`. Its `ops` are the texts of the ops, byte by byte. A release that knows no
packs takes it for the op of a newer release, and lets it wait. Like inserts of one bulk call are a sheet, see
`model/sheet`: their entry's text has the values column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pipeline.errors import NotAnOp
from pipeline.model import sheet
from pipeline.model.op import PACKED, Op
from pipeline.model.sheet import Sheet

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
