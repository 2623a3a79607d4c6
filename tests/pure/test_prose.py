"""No sentence of the documents has more than 25 words, or begins with a pronoun whose noun is elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md")
NAMES = [*TOP, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 25

#: What is no prose: comments, blocks of code, headings, rows of tables, pictures.
APART = re.compile(r"<!--.*?-->|^ *```.*?^ *```|^#.*?$|^ *\|.*?$|!\[[^]]*\]\([^)]*\)", re.DOTALL | re.MULTILINE)
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.)\s)")
MARKER = re.compile(r"^\s*(?:[-*>]|\d+\.)\s+")
CODE = re.compile(r"(`+).+?\1")
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
URL = re.compile(r"<?https?://\S+")
SHORT = re.compile(r"\b(e\.g|i\.e|cf)\.(?=\s)", re.IGNORECASE)
PRONOUN = re.compile(r"""["*_(]*((then|so|there|but|and) )?(it|its|they|their|them)\b""", re.IGNORECASE)
#: An end may be followed by brackets, quotes and emphasis, and a sentence may begin with them.
END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?][)\]"*_])|(?<=[.!?][)*_]{2}))\s+(?=["*_]*(?:[A-Z`0-9([]|web2py|py4web|pyDAL|uWSGI))"""
    r"""|(?:(?<=[:;])|(?<=[:;][*_]{2}))\s+(?=["*_]*[A-Z`([])"""
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a page, without what is no prose; each piece of code is the word `code`."""
    found = []
    for paragraph in PARAGRAPH.split(APART.sub("\n\n", text)):
        plain = CODE.sub("`code`", " ".join(MARKER.sub("", paragraph).split()))
        found += END.split(SHORT.sub(r"\1", URL.sub("", LINK.sub(r"[\1]", plain))))
    return [sentence for sentence in found if sentence]


def words(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", sentence))


def page(name: str) -> str:
    """Return what is to be read of a page: of the benchmarks what stands before their records."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text.partition("\n# Runs\n")[0] if name == "docs/benchmarks.md" else text


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_is_long(name: str) -> None:
    assert [sentence for sentence in sentences(page(name)) if words(sentence) > MOST_WORDS] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_begins_with_a_pronoun_whose_noun_is_elsewhere(name: str) -> None:
    assert [sentence for sentence in sentences(page(name)) if PRONOUN.match(sentence)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One is\nhere. Two, e.g. This, is 3.4 s; it: it.", ["One is here.", "Two, e.g This, is 3.4 s; it: it."]),
        ("# Head\n\n(One.) **Two.** pyDAL is `x. Y`: Three", ["(One.)", "**Two.**", "pyDAL is `code`:", "Three"]),
        ("- one\n  more\n- two\n\n```\nno. No\n```\n| a. B | c |\n", ["one more", "two"]),
    ],
)  # fmt: skip
def test_sentences_are_found_where_prose_is(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_a_piece_of_code_is_one_word_and_a_sign_none() -> None:
    assert [words(sentence) for sentence in sentences("`a b c` and 3,000 × [two](https://x.org/y) = four.")] == [5]
