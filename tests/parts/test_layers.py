"""DESIGN's layers: a file imports only from layers below its own, and each driver stays behind its fence."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The layer of each module or package, by its longest known name. What is not named here has no place yet.
LAYERS = {
    # words
    "pipeline.errors": 0,
    "pipeline.events": 0,
    "pipeline.bounds": 0,
    "pipeline.clock": 0,
    "pipeline.owners": 0,
    "pipeline.per_process": 0,
    # values
    "pipeline.model": 1,
    # the deployment's settings; pyDAL's objects
    "pipeline.config": 2,
    "pipeline.dal": 2,
    "pipeline.tracing": 2,
    # stores
    "pipeline.oplog": 3,
    "pipeline.spool": 3,
    "pipeline.shard": 3,
    # paths
    "pipeline.enqueue": 4,
    "pipeline.apply": 4,
    "pipeline.reads": 4,
    # whole
    "pipeline.calls": 5,
    "pipeline.client": 5,
    "pipeline.devcluster": 5,
    # operators
    "pipeline.admin": 6,
    # faces
    "pipeline": 7,
    "pipeline.api": 7,
    "pipeline.__main__": 7,
    "pipeline.cli": 7,
    "pipeline.demo": 7,
    "pipeline.testing": 7,
    "pipeline.web": 7,
    "pipeline.web2py": 7,
    "pipeline.py4web": 7,
    "pipeline.attachment": 7,
    "workers": 7,
    "celeryconfig": 7,
}
#: Packages of one layer that must not know each other.
APART = [
    ("pipeline.config", "pipeline.dal"),
    ("pipeline.oplog", "pipeline.spool"),
    ("pipeline.oplog", "pipeline.shard"),
    ("pipeline.spool", "pipeline.shard"),
    ("pipeline.enqueue", "pipeline.apply"),
    ("pipeline.enqueue", "pipeline.reads"),
    ("pipeline.apply", "pipeline.reads"),
]
FACES = ("pipeline.web", "pipeline.web2py", "pipeline.py4web", "pipeline.attachment")
FENCES = {
    "redis": ("pipeline.oplog.redis",),
    "pydal": ("pipeline.shard", "pipeline.demo", "pipeline.testing", *FACES),
    "pymysql": ("pipeline.shard", *FACES),
    "celery": ("pipeline.oplog.doorbell", "workers"),
    "kombu": ("pipeline.oplog.doorbell", "workers"),
    "opentelemetry": ("pipeline.tracing",),
    "prometheus_client": ("workers.metrics", "workers.pipeline_tab"),
    "gluon": ("pipeline.web2py",),
    "py4web": ("pipeline.py4web",),
    "click": ("pipeline.cli",),
    "rich": ("pipeline.cli", "pipeline.demo"),
}
FILES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("workers/**/*.py"), ROOT / "celeryconfig.py"])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Return the modules that a file imports; those for type checkers alone do not count."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module
            yield from (_named(node.module, alias.name) for alias in node.names)
        elif not isinstance(node, ast.expr) and not _for_type_checkers(node):
            yield from _imports(node)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _named(module: str, name: str) -> str:
    """Return `pipeline.spool.turns` for `from pipeline.spool import turns`; the package, where it defines the name."""
    path = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else module


def place_of(module: str) -> str:
    """Return the longest entry of LAYERS that names a module."""
    while module and module not in LAYERS:
        module = module.rpartition(".")[0]
    assert module, "a module without a place"
    return module


def test_every_module_has_a_place():
    unplaced = [name for name in map(module_of, FILES) if place_of(name) == "pipeline" and name != "pipeline"]

    assert unplaced == []
    assert len(FILES) > 80


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_from_its_own_layer_and_those_below(path: Path):
    module = module_of(path)
    own = LAYERS[place_of(module)]

    above = [name for name in imports_of(path) if name.split(".")[0] in ("pipeline", "workers", "celeryconfig")
             and LAYERS[place_of(name)] > own]  # fmt: skip

    assert above == []


def test_the_words_need_nothing_but_the_standard_library():
    words = [path for path in FILES if LAYERS[place_of(module_of(path))] == 0]

    roots = {name.split(".")[0] for path in words for name in imports_of(path)}

    assert len(words) == 6
    assert roots - {"pipeline"} <= sys.stdlib_module_names


@pytest.mark.parametrize(("one", "other"), [*APART, *(pair[::-1] for pair in APART)])
def test_neighbours_do_not_know_each_other(one: str, other: str):
    found = [
        (module_of(path), name)
        for path in FILES
        if f"{module_of(path)}.".startswith(f"{one}.")
        for name in imports_of(path)
        if f"{name}.".startswith(f"{other}.")
    ]

    assert found == []


@pytest.mark.parametrize("driver", FENCES)
def test_a_driver_stays_behind_its_fence(driver: str):
    found = [
        module_of(path)
        for path in FILES
        if any(name.split(".")[0] == driver for name in imports_of(path))
        and not any(f"{module_of(path)}.".startswith(f"{allowed}.") for allowed in FENCES[driver])
    ]

    assert found == []


def test_pydal_is_imported_by_its_top_level_names_only_since_two_lines_of_it_exist():
    found = [(module_of(p), n) for p in FILES for n in imports_of(p) if n.startswith("pydal.")]

    assert found == []


def test_the_package_never_imports_the_workers():
    found = [module_of(p) for p in FILES if module_of(p).startswith("pipeline") for n in imports_of(p)
             if n.split(".")[0] in ("workers", "celeryconfig")]  # fmt: skip

    assert found == []


def test_nobody_draws_from_the_generator_of_the_application():
    found = [
        module_of(p) for p in FILES for n in imports_of(p) if n == "random" and module_of(p) != "pipeline.per_process"
    ]

    assert found == []


def test_only_the_clock_reads_clocks():
    found = [module_of(p) for p in FILES for n in imports_of(p) if n == "time" and module_of(p) != "pipeline.clock"]

    assert found == []


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_map_of_the_house_names_are_there(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_/]+(?:\.py|\.lua|/))`", text))
    rooms = [ROOT / room for room in ("pipeline", "workers", "tests")]
    there = [f"/{path.relative_to(ROOT)}" for room in rooms for path in (room, *room.rglob("*"))]

    missing = [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in there)]

    assert len(named) > 20
    assert missing == []
