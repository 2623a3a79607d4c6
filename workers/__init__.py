"""Make the Celery app of `celery -A workers worker` and `celery -A workers flower`; no SQL here."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from celery import Celery

#: The folder that holds this package, its settings and the package `pipeline`.
HOME = Path(__file__).resolve().parents[1]


def _take_ours(name: str) -> None:
    """Let a name mean the module beside this package: Celery looks into the working directory first.

    The module runs at its first use, so a command that needs no configuration needs none.
    """
    spec = PathFinder.find_spec(name, [str(HOME)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{HOME} holds {__name__} but not {name}: install pydal-write-pipeline anew", name=name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


for _name in ("pipeline", "celeryconfig"):
    if _name not in sys.modules:
        _take_ours(_name)

app = Celery("workers", config_source="celeryconfig")

# the app's settings module has to be importable first
from workers import signals as signals  # noqa: E402
from workers.broker import outlive_collected_channels  # noqa: E402
from workers.threads import Threads  # noqa: E402

outlive_collected_channels()
app.steps["worker"].add(Threads)
