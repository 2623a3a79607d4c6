"""The application of docs/py4web.md: its two blocks as printed, and beside them what py4web's scaffold has."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

DOC = Path(__file__).parents[3] / "docs" / "py4web.md"
SETTINGS = """\
import os

APP_FOLDER = os.path.dirname(__file__)
CELERY_BROKER = {broker!r}
"""
COMMON = """\
import os
from py4web import DAL, Field, Session
from . import settings

os.makedirs(os.path.join(settings.APP_FOLDER, "databases"), exist_ok=True)
db = DAL({own!r}, folder=os.path.join(settings.APP_FOLDER, "databases"), pool_size=2, bigint_id=True)
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"), migrate=False)
"""
CONTROLLERS = """\
from py4web import URL, action, redirect
from py4web.utils.form import Form
from .common import db, pipeline, session


@action("index")
@action.uses(session, pipeline, db)
def index():
    pipeline.session_token()
    return "ready"


"""
TEMPLATES = {"buy": "[[=form]]", "show": "[[=purchase and purchase.qty]] of [[=purchase and purchase.customer]]"}


def printed_application(folder: Path, config: Path, own: str, broker: str) -> None:
    """Write the application into a folder."""
    common, controllers = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "templates").mkdir(parents=True)
    for name, text in TEMPLATES.items():
        (folder / "templates" / f"{name}.html").write_text(text)
    shutil.copy(config, folder / "pipeline.toml")
    (folder / "settings.py").write_text(SETTINGS.format(broker=broker))
    (folder / "common.py").write_text(COMMON.format(own=own) + common)
    (folder / "controllers.py").write_text(CONTROLLERS + controllers)
    (folder / "__init__.py").write_text("from . import controllers\n")
