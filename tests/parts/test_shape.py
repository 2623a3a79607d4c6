"""`make shape` counts what it says, on a small tree."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks.shape import static
from benchmarks.shape.__main__ import Row, table

FILES = {
    "celeryconfig.py": "broker = 1",
    "workers/__init__.py": "",
    "pipeline/__init__.py": "from pipeline.shop import buy",
    "pipeline/shop.py": '''
        from typing import Protocol

        class Till(Protocol): ...

        def buy(table, qty: int, *rest, key: str, **fields):
            """Buy a table.

            Args:
                qty: how many; not keys.
                fields: of the row.
            """
            def inner(then: Callable[[], None] | None): ...

        def _hidden(step: "Callable[[int], int]", Callable: int): ...
        ''',
    "pipeline/store/deep/till.py": '''
        class Till:
            def open(self, hour):
                """Open at an hour."""
                def buy(): ...

            def shut(self, hour): ...

            def _count(self, coins):
                """Count."""

        class _Drawer:
            def open(self, key):
                """Open."""

        def _hidden(): ...
        ''',
    "tests/test_shop.py": "def buy(): ...",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(dedent(text), "utf-8")
    return tmp_path


def test_product_files_are_those_of_the_packages_and_celerys_configuration(root: Path):
    assert set(static.product(root)) == set(FILES) - {"tests/test_shop.py"}


def test_a_folder_is_full_from_its_21st_file_on_without_its_init(root: Path):
    for n in range(19):  # one file is there already
        (root / f"pipeline/m{n}.py").write_text("")
    assert static.full_folders(static.product(root)) == {}

    (root / "pipeline/m19.py").write_text("")

    assert static.full_folders(static.product(root)) == {"pipeline": 21}


def test_callables_are_counted_by_their_annotation_in_hidden_and_nested_functions_too(root: Path):
    found = static.callables(static.product(root))

    assert {(one.file, one.function, one.name) for one in found} == {
        ("pipeline/shop.py", "inner", "then"),
        ("pipeline/shop.py", "_hidden", "step"),
    }


def test_protocols_are_the_classes_with_that_base(root: Path):
    assert static.protocols(static.product(root)) == ["pipeline/shop.py:Till"]


def test_a_repeated_name_is_public_and_defined_at_the_top_of_two_files(root: Path):
    assert static.repeated_names(static.product(root)) == {"Till": ["pipeline/shop.py", "pipeline/store/deep/till.py"]}


def test_a_parameter_is_named_by_its_whole_word_in_the_docstring_of_a_public_function(root: Path):
    found = static.documented(static.product(root))

    assert [(one.function, one.named, one.missing) for one in found] == [
        ("buy", ["table", "qty", "fields"], ["key", "rest"]),
        ("Till.open", ["hour"], []),
    ]
    assert static.percent_named(found) == 66


def test_a_row_holds_while_each_of_its_figures_keeps_its_limit():
    kept, passed = Row("files · folders", (195, 0), (195, 0)), Row("files · folders", (195, 1), (195, 0))
    least, below = Row("named", (80,), (80,), least=True, unit=" %"), Row("named", (79,), (80,), least=True)

    assert [row.holds for row in (kept, passed, least, below)] == [True, False, True, False]
    assert list(table([passed, least])) == [
        "what             now      limit        holds",
        "files · folders  195 · 1  ≤ 195 · ≤ 0  ✗",
        "named            80 %     ≥ 80 %       ✓",
    ]
