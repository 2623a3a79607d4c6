"""What `import pipeline` gives, and what it costs."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest

import pipeline
from pipeline.calls import Calls
from pipeline.client import Client

FUNCTIONS = [name for name in pipeline.__all__ if inspect.isfunction(getattr(pipeline, name))]


def test_help_shows_every_public_name():
    shown = pydoc.plain(pydoc.render_doc(pipeline))

    assert len(FUNCTIONS) > 20
    assert [name for name in FUNCTIONS if f"\n    {name}(" not in shown] == []
    assert [name for name in pipeline.__all__ if name not in shown] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_does_and_names_what_it_takes(name: str):
    function = getattr(pipeline, name)

    assert inspect.getdoc(function)
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert "args" not in inspect.signature(function).parameters


def test_a_public_function_is_a_method_of_the_client_unless_it_is_about_the_process_or_a_framework():
    of_the_client = {name for name in FUNCTIONS if hasattr(Client, name)}

    assert set(FUNCTIONS) - of_the_client == {"configure", "current", "attach", "enqueue_form", "on_reject"}


@pytest.mark.parametrize("name", sorted({name for name in FUNCTIONS if hasattr(Calls, name)}))
def test_a_public_function_and_the_call_behind_it_take_the_same_with_the_same_defaults(name: str):
    public = inspect.signature(getattr(pipeline, name)).parameters
    behind = inspect.signature(getattr(Calls, name)).parameters

    assert {one: public[one].default for one in public} == {
        one: behind[one].default for one in behind if one not in ("self", "fresh")
    }


def test_an_import_loads_no_driver_and_neither_client_nor_log():
    heavy = ("redis", "pydal", "pymysql", "celery", "pipeline.client", "pipeline.oplog")
    code = f"import sys, pipeline; print([name for name in {heavy} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert found.stdout.strip() == "[]"
