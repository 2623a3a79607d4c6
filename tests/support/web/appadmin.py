"""web2py's own appadmin for an application of a test, with a view of few words."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

#: It reads bytes where Python 3's csv wants text, so neither web2py 2.26.1 nor 3.3.3 can import a file at all.
CSV_OF_PYTHON_2 = "table.import_from_csv_file(file)"
APPADMIN_VIEW = "{{=response.flash or ''}}{{=form}}{{if globals().get('formcsv'):}}{{=formcsv}}{{pass}}"


def appadmin(folder: Path) -> None:
    """Give an application the appadmin of the web2py that serves it, with a view of few words."""
    spec = find_spec("gluon")
    assert spec is not None
    assert spec.origin
    web2py = Path(os.environ.get("WEB2PY", "").partition(os.pathsep)[0] or Path(spec.origin).parents[1])
    welcome = web2py / "applications" / "welcome"
    text = (welcome / "controllers" / "appadmin.py").read_text()
    assert CSV_OF_PYTHON_2 in text
    text = text.replace(CSV_OF_PYTHON_2, "import io; table.import_from_csv_file(io.TextIOWrapper(file))")
    (folder / "controllers" / "appadmin.py").write_text(text)
    (folder / "views").mkdir()
    (folder / "views" / "appadmin.html").write_text(APPADMIN_VIEW)
