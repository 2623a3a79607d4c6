"""Pieces: a shard key that has a shard of its own, as the map and the topology say it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Topology
from pipeline.config.buckets import (
    END_OF_PIECES,
    FIRST_PIECE,
    NOWHERE,
    KeyName,
    Piece,
    Placement,
    key_text,
    log_number,
    new_piece,
    spread_alike,
)
from pipeline.config.settings import TableSettings, load
from pipeline.errors import WrongDeployment
from pipeline.model.schema import Column

BUCKETS = 8
NUMBER = Column("customer", "integer")
TEXT = Column("customer", "string")


@pytest.fixture
def topology() -> Topology:
    shards = {name: {"primary": f"sqlite://{name}.sqlite"} for name in ("s0", "s1")}
    tables: dict[str, Any] = {
        "purchase": {"shard_key": "customer"},
        "odd": {"shard_key": "customer", "rule": "modulo"},
        "country": {"reference": True},
    }
    return Topology(
        load({"pipeline": {"buckets": BUCKETS}, "redis": {"url": "redis://h"}, "shards": shards} | {"tables": tables})
    )


def piece_of(topology: Topology, key: int, shard: str) -> Piece:
    bucket = topology.bucket_of("purchase", key)
    return Piece(new_piece(bucket, 7), KeyName(bucket, "purchase", str(key)), shard)


def key_on(topology: Topology, shard: str) -> int:
    return next(key for key in range(100) if topology.shard_of(topology.bucket_of("purchase", key)) == shard)


def test_a_map_with_pieces_is_read_as_it_was_written() -> None:
    piece = Piece(9, KeyName(3, "purchase", "4711"), "s1")
    made = Placement(4, {2: "s1"}, {9: ("s0", "s1")}, {9: piece})

    assert Placement.noted(made.to_json()) == made
    assert str(piece.of) == "purchase=4711"


def test_a_map_without_pieces_is_written_as_releases_read_it_that_know_none() -> None:
    assert Placement(4, {2: "s1"}, {}).to_json() == '{"version":4,"owners":{"2":"s1"},"moves":{}}'


def test_two_shards_apply_the_log_of_a_bucket_one_of_whose_keys_is_away(topology: Topology) -> None:
    key = key_on(topology, "s0")
    piece = piece_of(topology, key, "s1")
    bucket = piece.of.bucket

    topology.follow(Placement(1, {}, {}, {piece.number: piece}))

    assert topology.shards_of(bucket) == ("s0", "s1")
    assert [topology.mark_of(shard, bucket) for shard in ("s0", "s1")] == [bucket, piece.number]
    assert topology.split == {bucket: piece}
    assert topology.pieces_on("s1") == (piece,)
    assert topology.pieces_on("s0") == ()
    assert topology.shard_of(bucket) == "s0"
    assert bucket in topology.buckets_of("s0")
    assert topology.shards_of(topology.reference_bucket) == ("s0", "s1")


def test_a_piece_that_is_still_in_its_bucket_is_applied_by_its_shard_alone(topology: Topology) -> None:
    key = key_on(topology, "s0")
    piece = piece_of(topology, key, "s0")

    topology.follow(Placement(1, {}, {piece.number: ("s0", "s1")}, {piece.number: piece}))

    assert topology.shards_of(piece.of.bucket) == ("s0",)
    assert topology.mark_of("s0", piece.of.bucket) == piece.of.bucket
    assert topology.pieces_on("s0") == ()
    assert topology.split == {piece.of.bucket: piece}


def test_a_key_is_a_piece_in_every_spelling_and_in_every_table_that_is_spread_alike(topology: Topology) -> None:
    key = key_on(topology, "s0")
    piece = piece_of(topology, key, "s1")
    assert topology.piece_of("purchase", NUMBER, key) is None

    topology.follow(Placement(1, {}, {}, {piece.number: piece}))

    assert topology.piece_of("purchase", NUMBER, key) == piece
    assert topology.piece_of("purchase", NUMBER, f"{key}") == piece
    assert topology.piece_of("purchase", TEXT, f"{key}  ") == piece
    assert topology.piece_of("any", Column("id", "id"), key) == piece
    same_bucket = next(k for k in range(key + 1, 10_000) if topology.bucket_of("purchase", k) == piece.of.bucket)
    assert topology.piece_of("purchase", NUMBER, same_bucket) is None
    assert topology.piece_of("odd", NUMBER, piece.of.bucket) is None
    assert not topology.takes(piece, "country")
    assert not topology.takes(piece, "odd")


def test_a_map_whose_pieces_are_on_a_shard_that_is_not_configured_is_refused(topology: Topology) -> None:
    with pytest.raises(WrongDeployment, match=r"\[shards\.s9\] is missing"):
        topology.follow(Placement(1, {}, {}, {9: Piece(9, KeyName(3, "purchase", "7"), "s9")}))
    with pytest.raises(WrongDeployment, match="the map names the bucket 8; there are 8"):
        topology.follow(Placement(1, {}, {}, {9: Piece(9, KeyName(8, "purchase", "7"), "s1")}))
    assert topology.placement is NOWHERE
    assert topology.split == {}


@pytest.mark.parametrize(
    ("column", "key", "text"),
    [(NUMBER, 7, "7"), (NUMBER, "7", "7"), (TEXT, "7 ", "7"), (TEXT, 7, "7"), (TEXT, "ü", "ü"), (NUMBER, -3, "-3")],
)
def test_the_text_of_a_key_is_that_by_which_its_bucket_is_found(column: Column, key: Any, text: str) -> None:
    assert key_text(TableSettings("t", shard_key="customer"), column, key) == text


def test_tables_are_spread_alike_by_one_rule_with_one_list() -> None:
    by_hash, other = TableSettings("a", shard_key="x"), TableSettings("b")
    listed = TableSettings("c", shard_key="x", rule="lookup", lookup={"7": 3})

    assert spread_alike(by_hash, other)
    assert spread_alike(listed, TableSettings("d", shard_key="y", rule="lookup", lookup={"7": 3}))
    assert not spread_alike(listed, TableSettings("d", shard_key="y", rule="lookup", lookup={"7": 4}))
    assert not spread_alike(by_hash, listed)
    assert not spread_alike(by_hash, TableSettings("e", reference=True))


@pytest.mark.parametrize("drawn", [0, 1, 2**20 - 2, 2**20 - 1, 2**62 + 11])
@pytest.mark.parametrize("bucket", [0, 7, 1023])
def test_a_piece_has_a_number_that_no_bucket_has_and_that_leads_to_its_log(bucket: int, drawn: int) -> None:
    number = new_piece(bucket, drawn)

    assert FIRST_PIECE <= number < END_OF_PIECES
    assert log_number(number) == bucket
    assert log_number(bucket) == bucket
