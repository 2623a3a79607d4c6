"""Make the Celery app of `celery -A workers worker` and `celery -A workers flower`; no SQL here.

Celery puts the working directory first in Python's path while it imports an app, and at each later import. Whoever can
write there would be the worker: so nothing is imported from there, and this file takes it out before all else.
"""
# ruff: noqa: E402

from __future__ import annotations

import os
import sys

_meant = [os.path.dirname(os.path.dirname(__file__)), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
if os.getcwd() not in map(os.path.abspath, _meant):
    sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]

from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader

#: The folder that holds this package, its settings and the package `pipeline`.
HOME = Path(__file__).resolve().parents[1]


def _ours(name: str) -> ModuleType:
    """Import the module beside this package, whatever else has its name."""
    spec = PathFinder.find_spec(name, [str(HOME)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{HOME} holds {__name__} but not {name}: install pydal-write-pipeline anew", name=name)
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class Loader(AppLoader):
    """Takes Celery's settings from the module beside this package, at their first use; imports as Python does."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        """Import a module as any other: never from the working directory.

        Args:
            module: its name.
            imp: what imports it.
            package: what a relative name begins at.
        """
        return (imp or self.import_module)(module, package=package)

    def config_from_object(self, obj: Any, silent: bool = False) -> bool:
        """Take the settings.

        Args:
            obj: the name of the module.
            silent: whether to return False where there are none.
        """
        return bool(super().config_from_object(_ours(obj), silent))


if "pipeline" not in sys.modules:
    _ours("pipeline")

from pipeline.owners import unsafe_import

if unsafe := unsafe_import():
    sys.exit(f"this process does not start: {unsafe}")

app = Celery("workers", loader=Loader, config_source="celeryconfig")

# the app's settings module has to be importable first
from workers import signals as signals
from workers.signals import end_soon, outlive_collected_channels
from workers.threads import Threads

outlive_collected_channels()
end_soon()
app.steps["worker"].add(Threads)
