"""Make the Celery app of `celery -A workers worker` and `celery -A workers flower`; no SQL here."""

from __future__ import annotations

import sys
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
    """Import the module beside this package: Celery puts the working directory first."""
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
    """Takes Celery's settings from the module beside this package, at their first use."""

    def config_from_object(self, obj: Any, silent: bool = False) -> bool:
        """Take the settings.

        Args:
            obj: the name of the module.
            silent: whether to return False where there are none.
        """
        return bool(super().config_from_object(_ours(obj), silent))


if "pipeline" not in sys.modules:
    _ours("pipeline")

app = Celery("workers", loader=Loader, config_source="celeryconfig")

# the app's settings module has to be importable first
from workers import signals as signals  # noqa: E402
from workers.broker import outlive_collected_channels  # noqa: E402
from workers.threads import Threads  # noqa: E402

outlive_collected_channels()
app.steps["worker"].add(Threads)
