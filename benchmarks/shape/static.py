"""Count in the source alone: files, folders, callbacks, protocols, names and documented parameters.

Every function takes the same mapping, from a file below the root to its syntax tree, and imports no product code.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

#: What an installed deployment runs; tests, benchmarks, examples and documents are no product.
PRODUCT = ("pipeline/**/*.py", "workers/**/*.py", "celeryconfig.py")
#: A reader takes in a folder of this many files at a glance.
FOLDER_FILES = 20

Trees = Mapping[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Parameter(NamedTuple):
    """A parameter of a function; `line` is the line of its function."""

    file: str
    line: int
    function: str
    name: str


class Documented(NamedTuple):
    """A public function with a docstring, and which of its parameters the docstring names."""

    file: str
    line: int
    function: str
    named: list[str]
    missing: list[str]


def product(root: Path) -> dict[str, ast.Module]:
    """Parse each product file: every `*.py` in `pipeline/` and `workers/`, `__init__.py` too, and `celeryconfig.py`.

    Args:
        root: the folder that holds `pipeline/`.
    """
    paths = sorted(path for pattern in PRODUCT for path in root.glob(pattern))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8"), str(path)) for path in paths}


def full_folders(trees: Trees) -> dict[str, int]:
    """Return the folders with more than 20 files directly in them, `__init__.py` not counted; the package root counts.

    Args:
        trees: the product.
    """
    modules = (PurePosixPath(file) for file in trees)
    count = Counter(str(path.parent) for path in modules if path.name != "__init__.py")
    return {folder: files for folder, files in sorted(count.items()) if files > FOLDER_FILES}


def callables(trees: Trees) -> list[Parameter]:
    """Return each parameter whose annotation contains the word `Callable`, of all functions, private and nested too.

    Args:
        trees: the product.
    """
    return [
        Parameter(file, node.lineno, node.name, parameter.arg)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
        for parameter in _parameters(node)
        if parameter.annotation is not None and re.search(r"\bCallable\b", ast.unparse(parameter.annotation))
    ]


def protocols(trees: Trees) -> list[str]:
    """Return each class that has `Protocol` among its bases, as `file:name`.

    Args:
        trees: the product.
    """
    return [
        f"{file}:{node.name}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(_is_protocol(base) for base in node.bases)
    ]


def repeated_names(trees: Trees) -> dict[str, list[str]]:
    """Return the public names that two or more files define by a `class` or `def` at their top level, with these files.

    Args:
        trees: the product.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for file, tree in trees.items():
        defined = {node.name for node in tree.body if isinstance(node, Function | ast.ClassDef)}
        for name in sorted(defined):
            if not name.startswith("_"):
                files[name].append(file)
    return {name: files[name] for name in sorted(files) if len(files[name]) > 1}


def documented(trees: Trees) -> list[Documented]:
    """Return the public functions with a docstring, sorted by file.

    Public are functions of a module and methods of its public classes whose names start without an underscore. A
    parameter is named if its name occurs in the docstring as a whole word; `self` and `cls` are left out.

    Args:
        trees: the product.
    """
    found = []
    for file, tree in trees.items():
        for name, node in _public(tree.body):
            if (text := ast.get_docstring(node)) is not None:
                parameters = [parameter.arg for parameter in _parameters(node)]
                named = [p for p in parameters if re.search(rf"\b{re.escape(p)}\b", text)]
                missing = [p for p in parameters if p not in named]
                found.append(Documented(file, node.lineno, name, named, missing))
    return found


def percent_named(functions: list[Documented]) -> int:
    """Return how many of all parameters of these functions are named in their docstrings, in percent, rounded down.

    Args:
        functions: what `documented` returns.
    """
    named = sum(len(function.named) for function in functions)
    every = named + sum(len(function.missing) for function in functions)
    return 100 * named // every if every else 100


def _parameters(node: Function) -> list[ast.arg]:
    spec = node.args
    starred = [one for one in (spec.vararg, spec.kwarg) if one is not None]
    return [p for p in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *starred) if p.arg not in ("self", "cls")]


def _is_protocol(base: ast.expr) -> bool:
    return re.search(r"\bProtocol\b", ast.unparse(base)) is not None


def _public(body: list[ast.stmt], within: str = "") -> Iterator[tuple[str, Function]]:
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{within}{node.name}.")
        else:
            yield f"{within}{node.name}", node
