"""What a token asks of a node, and how it travels."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadRead, BadToken
from pipeline.model import Position
from pipeline.model.receipt import Receipt
from pipeline.reads import MOST_CHARACTERS, Need, ReadSession, Token, TokenSeal, token_of
from pipeline.reads.routing.replicas import least_marks

POSITIONS = st.builds(Position, st.integers(1, 4), st.integers(0, 50))
SEQUENCES = st.dictionaries(st.integers(1, 2**62), st.integers(1, 2**40), max_size=3)
TOKENS = st.builds(
    lambda needs, rest: Token(needs, rest=rest),
    st.dictionaries(st.integers(0, 1024), st.builds(Need, POSITIONS, SEQUENCES, SEQUENCES), max_size=8),
    st.booleans(),
)
SEAL = TokenSeal("a secret of this deployment")


def receipt(bucket: int, epoch: int, seq: int, producer: int = 7, producer_seq: int = 1) -> Receipt:
    return Receipt(bucket, Position(epoch, seq), None, producer, producer_seq)


def test_in_its_own_epoch_the_position_alone_tells() -> None:
    need = token_of([receipt(1, 5, 10)])[1]

    assert need.reached(Position(5, 10), {})
    assert not need.reached(Position(5, 9), {7: 99})


def test_in_a_later_epoch_only_the_producers_sequence_tells() -> None:
    need = token_of([receipt(1, 5, 10, producer_seq=3)])[1]

    assert not need.reached(Position(6, 0), {})
    assert not need.reached(Position(6, 999), {7: 2})
    assert need.reached(Position(6, 0), {7: 3})


def test_an_op_of_an_older_epoch_is_still_asked_for_beside_one_of_a_newer_epoch() -> None:
    need = token_of([receipt(1, 5, 10, 7, 3), receipt(1, 6, 0, 8, 1)])[1]

    assert not need.reached(Position(6, 0), {})
    assert need.reached(Position(6, 0), {7: 3})


@given(st.lists(st.tuples(st.integers(0, 3), POSITIONS, st.integers(1, 3), st.integers(1, 9)), min_size=1))
def test_the_order_in_which_receipts_come_does_not_matter(parts: list[tuple[int, Position, int, int]]) -> None:
    receipts = [Receipt(bucket, position, None, producer, seq) for bucket, position, producer, seq in parts]

    assert dict(token_of(receipts)) == dict(token_of(receipts[::-1]))


def test_what_was_read_is_asked_for_as_it_was_read_and_never_less_than_before() -> None:
    token = token_of([receipt(1, 5, 10), receipt(2, 5, 1)])

    seen = token.saw({1: Position(5, 20), 3: Position(5, 4)})

    assert seen[1] == Need(Position(5, 20))
    assert seen[2] == token[2]
    assert seen[3] == Need(Position(5, 4))
    assert token.saw({1: Position(5, 3)})[1] == token[1]


def test_what_every_node_has_is_forgotten_and_nothing_else() -> None:
    token = token_of([receipt(1, 5, 10), receipt(2, 5, 10), receipt(3, 4, 10)])
    nodes = [{1: Position(5, 11), 2: Position(5, 11), 3: Position(5, 1)}, {1: Position(5, 10), 2: Position(5, 9)}]

    assert set(token.forget(least_marks(nodes))) == {2, 3}
    assert set(token.forget(least_marks([*nodes, {}]))) == {1, 2, 3}


@given(TOKENS)
def test_a_printed_token_comes_back_as_it_was(token: Token) -> None:
    read = SEAL.read(SEAL.print(token))

    assert dict(read) == dict(token)
    assert read.rest == token.rest


@given(TOKENS, st.data())
def test_a_changed_text_is_refused(token: Token, data: st.DataObject) -> None:
    text = SEAL.print(token)
    raw = bytearray(urlsafe_b64decode(text[1:] + "==="))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(BadToken):
        SEAL.read("t" + urlsafe_b64encode(bytes(raw)).decode().rstrip("="))


@pytest.mark.parametrize("text", ["", "t", "r1", "t!!", "tAAAA", "é", SEAL.print(Token())[:-2]])
def test_a_text_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadToken):
        SEAL.read(text)


def test_a_token_of_another_deployment_is_refused_as_such() -> None:
    with pytest.raises(BadToken, match="another deployment"):
        SEAL.read(TokenSeal("another secret").print(token_of([receipt(1, 5, 10)])))


def test_a_token_under_the_secret_of_now_is_read_by_a_process_that_knows_an_older_one() -> None:
    secrets = iter(("an old secret", "the secret of now"))
    seal = TokenSeal(lambda: next(secrets))
    seal.learn()

    read = seal.read(TokenSeal("the secret of now").print(token_of([receipt(1, 5, 10)])))

    assert dict(read) == dict(token_of([receipt(1, 5, 10)]))


def test_a_token_that_has_no_room_in_a_cookie_asks_for_more_and_never_for_less() -> None:
    token = token_of(receipt(bucket, 1_800_000_000, 10**9 + bucket, 2**62 + bucket, 10**6) for bucket in range(1024))

    text = SEAL.print(token)

    read = SEAL.read(text)
    assert len(text) <= MOST_CHARACTERS
    assert read.rest
    assert 0 < len(read) < 1024
    assert all(read[bucket] == token[bucket] for bucket in read)
    assert 1023 in read, "the newest are kept"


def test_256_buckets_that_a_session_has_seen_fit_a_cookie_exactly() -> None:
    token = Token().saw({bucket: Position(1_800_000_000, 10**6 + bucket) for bucket in range(256)})

    assert not SEAL.read(SEAL.print(token)).rest


def test_an_op_that_was_not_sent_yet_cannot_be_asked_for() -> None:
    with pytest.raises(BadRead, match="not been sent yet"):
        token_of([Receipt(1, None, 5)])


def test_an_answer_marked_as_stale_takes_nothing_away_from_what_a_session_must_see() -> None:
    session = ReadSession(token_of([receipt(1, 5, 10)]), SEAL)

    session.saw({1: Position(5, 3)}, {}, stale=True)

    assert session.token[1].position == Position(5, 10)
    assert session.token[1].producers == {7: 1}
