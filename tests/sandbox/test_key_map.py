"""The map of keys that have a shard of their own is drawn from what the shards say."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.deployments import Site, run, site

from pipeline.client import Client
from pipeline.config.buckets import KeyName, Piece, new_piece
from pipeline.enqueue import buckets
from pipeline.model import Position
from pipeline.shard import NodeSession, records
from pipeline.shard.records import moves
from pipeline.shard.records.moves import DEFAULTS, Leg

__all__ = ["site"]

PIECE, AT = new_piece(0, 5), Position(3, 4)


@pytest.fixture
def client(site: Site) -> Client:
    return run(site, 1)


def bucket_on(client: Client, shard: str) -> int:
    return client.topology.buckets_of(shard)[0]


def says(session: NodeSession, leg: Leg, state: str | None = None) -> None:
    """Let a shard have the row of a piece's move, and a state of the piece."""
    with session.transaction():
        moves.write_leg(session, leg)
        session.execute(f"DELETE FROM pipeline_watermarks WHERE bucket = {leg.bucket}")
        if state:
            moves.place_mark(session, leg.bucket, AT, state)


def of_bucket(session: NodeSession, bucket: int, state: str) -> None:
    with session.transaction():
        moves.place_mark(session, bucket, AT, state)


@pytest.mark.parametrize(
    ("bucket_is", "here", "there", "back", "serves"),
    [
        ("active", None, "copying", False, "s0"),
        ("stopped", None, "catching", False, "s0"),
        ("stopped", None, "active", False, "s1"),
        ("lent", "moved", "active", False, "s1"),
        ("lent", "gone", "holding", False, "s1"),
        ("lent", "copying", "active", True, "s1"),
        ("stopped", "catching", "moved", True, "s1"),
        ("active", None, "moved", True, "s0"),
        ("active", None, "gone", True, "s0"),
    ],
)
def test_a_key_is_where_the_states_of_both_shards_say(
    client: Client, bucket_is: str, here: str | None, there: str, back: bool, serves: str
) -> None:
    bucket = bucket_on(client, "s0")
    of, pair = KeyName(bucket, "purchase", "4711"), ("s1", "s0") if back else ("s0", "s1")
    leg = Leg(PIECE, 5, *pair, 0, 0, "me", DEFAULTS, None, None, of)
    one, other = (client.nodes.primary(shard) for shard in ("s0", "s1"))
    of_bucket(one, bucket, bucket_is)
    says(one, leg, here)
    says(other, leg, there)

    buckets.follow(client.log, client.nodes, client.topology, anew=True)

    found = client.topology.placement
    assert found.pieces == {PIECE: Piece(PIECE, of, serves)}
    assert found.moves == {PIECE: pair}
    assert found.owners == {}
    assert found.version == 1
    read = moves.legs(one)[PIECE]
    assert (read.of, read.apart, read.position) == (of, here is not None, AT)
    assert read.state == (here or {"stopped": "moved"}.get(bucket_is, bucket_is))


def test_a_key_that_is_back_or_was_never_away_is_no_piece(client: Client) -> None:
    bucket = bucket_on(client, "s0")
    note = moves.MoveNote(cleaned=True)
    leg = Leg(PIECE, 5, "s1", "s0", 0, 0, "me", note, None, None, KeyName(bucket, "purchase", "4711"))
    says(client.nodes.primary("s0"), leg)
    says(client.nodes.primary("s1"), leg, "gone")

    buckets.follow(client.log, client.nodes, client.topology, anew=True)

    assert client.topology.placement.pieces == {}
    assert client.topology.placement.moves == {}


def test_what_a_silent_shard_has_of_pieces_is_as_the_map_said_before(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_on(client, "s0")
    leg = Leg(PIECE, 5, "s0", "s1", 0, 0, "me", DEFAULTS, None, None, KeyName(bucket, "purchase", "4711"))
    of_bucket(client.nodes.primary("s0"), bucket, "lent")
    says(client.nodes.primary("s0"), leg, "gone")
    says(client.nodes.primary("s1"), leg, "active")
    buckets.follow(client.log, client.nodes, client.topology, anew=True)
    before = client.topology.placement

    silent(client, "s1", monkeypatch)
    buckets.follow(client.log, client.nodes, client.topology, anew=True)
    assert client.topology.placement.pieces == before.pieces
    monkeypatch.undo()

    silent(client, "s0", monkeypatch)
    buckets.follow(client.log, client.nodes, client.topology, anew=True)
    assert client.topology.placement.pieces == before.pieces


def silent(client: Client, shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import ShardUnavailable

    asked = client.nodes.primary

    def primary(name: str) -> Any:
        if name == shard:
            raise ShardUnavailable(name, "it is silent on purpose")
        return asked(name)

    monkeypatch.setattr(client.nodes, "primary", primary)


def test_moves_are_known_where_the_table_is_of_a_release_that_knew_no_pieces(client: Client) -> None:
    session, bucket = client.nodes.primary("s0"), bucket_on(client, "s0")
    leg = Leg(bucket, 5, "s0", "s1", 0, 0, "me", DEFAULTS, None, None)
    with session.transaction():
        moves.write_leg(session, leg)
    with session.transaction():
        for column in ("of_bucket", "of_table", "of_key"):
            session.execute(f"ALTER TABLE pipeline_moves DROP COLUMN {column}")

    assert moves.legs(session)[bucket]._replace(state=None, position=None) == leg


def test_a_stopped_bucket_is_its_shards_own(client: Client) -> None:
    bucket = bucket_on(client, "s0")
    for state in ("lent", "stopped"):
        of_bucket(client.nodes.primary("s0"), bucket, state)
        mark = records.marks_in([(bucket, *AT, state)])[bucket]
        assert mark.owned
