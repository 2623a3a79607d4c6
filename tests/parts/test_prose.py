"""No sentence of the documents is long, has a pronoun before any noun of its own, or says what only people do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "deploy/README.md")
FOUND = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")])
NAMES = [*TOP, *(str(path.relative_to(ROOT)) for path in FOUND)]
MOST_WORDS = 25

#: What is no prose: comments, blocks of code, headings, rows of tables, pictures.
APART = re.compile(r"<!--.*?-->|^ *```.*?^ *```|^#.*?$|^ *\|.*?$|!\[[^]]*\]\([^)]*\)", re.DOTALL | re.MULTILINE)
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.)\s)")
MARKER = re.compile(r"^\s*(?:[-*>]|\d+\.)\s+")
CODE = re.compile(r"(`+).+?\1")
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
URL = re.compile(r"<?https?://\S+")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
SHORT = re.compile(r"\b(e\.g|i\.e|cf)\.(?=\s)", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z'`]+|\d[\d.,]*")
PRONOUNS = {"it", "its", "itself", "they", "them", "their", "theirs", "themselves"}
#: Pronouns too, unless a noun follows to which they point.
POINTERS = {"this", "that", "these", "those"}
#: Behind these "that" begins a clause.
BEFORE_CLAUSES = {"all", "now", "so"}
#: A verb behind "this" or "that", which no noun in the plural follows.
VERB = re.compile(r"\w+(?<![isu'])s|came|cost|gave|held|kept|made|took|went")
#: What shows, behind it, that "one" is a pronoun too, and no number.
OF_ONE = {"that", "which", "who", "whose", "with", "without"}
#: Words that name nothing: behind these alone, a pronoun has no noun in its sentence yet.
LINKS = frozenset(
    re.findall(
        r"\w+",
        """
    a above after again all also although always and any are as at be because been before behind below beside between
    both but by can cannot could did do does done during each either even every few first for from had has have how if
    in into is just last later least less like long many may meanwhile might more most much must near neither never no
    none nor not now of often on once only or otherwise out over per rather shall should since so some sometimes soon
    still than then there therefore thereafter through to too twice under unless until up upon very was were what
    whatever when where whether which while who whoever whose why will with within without would yet
    """,
    )
)
#: What a program does not do, and the field's word for it. "For" may follow two of them: a sign stands for something.
HUMAN = re.compile(
    r"\b(tell|tells|told|die|dies|died|(stand|stands|stood|ask|asks|asked)(?! for\b)(?! still\b))\b", re.IGNORECASE
)
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


def modules() -> Iterator[tuple[str, str]]:
    """Yield the path of each module of the product, and a sentence of its docstring."""
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]):
        if found := DOCSTRING.match(path.read_text(encoding="utf-8")):
            yield from ((str(path.relative_to(ROOT)), sentence) for sentence in sentences(found[1]))


def before_its_noun(sentence: str) -> bool:
    """Return whether a sentence has a pronoun behind nothing but words that name nothing."""
    words = [word.lower() for word in WORD.findall(sentence)]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word in PRONOUNS or (word == "one" and after in OF_ONE):
            return True
        if word in POINTERS and before not in BEFORE_CLAUSES:
            verb = word in ("this", "that") and VERB.fullmatch(after)
            return bool(verb) or after in LINKS | PRONOUNS | {"", "the"}
        if word not in LINKS | POINTERS:
            return False
    return False


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_has_a_pronoun_before_any_noun_of_its_own(name: str) -> None:
    assert [sentence for sentence in sentences(page(name)) if before_its_noun(sentence)] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_verbs_are_the_fields(name: str) -> None:
    named = "Not: tell, stand, look, ask, die."
    assert [one for one in sentences(page(name)) if HUMAN.search(one) and one != named] == []


def test_modules_are_described_as_the_documents_are() -> None:
    assert [one for one in modules() if before_its_noun(one[1]) or HUMAN.search(one[1])] == []


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("It is full.", True),
        ("So after that it waits.", True),
        ("After that, the op waits.", True),
        ("So that the op waits, it does.", False),
        ("This costs 3 ms.", True),
        ("This process costs 3 ms.", False),
        ("Where they are on a node, it serves.", True),
        ("Since a file is full, it waits.", False),
        ("One that waits is old.", True),
        ("One op waits.", False),
        ("That is so.", True),
        ("That op waits.", False),
        ("All that waits is listed.", False),
        ("`code` sends it.", False),
    ],
)  # fmt: skip
def test_a_pronoun_is_found_before_its_noun(sentence: str, found: bool) -> None:
    assert before_its_noun(sentence) is found


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
