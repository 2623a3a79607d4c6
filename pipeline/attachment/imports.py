"""The import of a whole database: its references follow the ids of the rows they mean.

By default pyDAL adds one offset to all ids of a table, as a database numbers its rows. The pipeline's ids do not follow
each other, so references would point nowhere; pyDAL's map of ids gets them right.
"""

from __future__ import annotations

from typing import Any


def map_ids(db: Any) -> None:
    """Let `db.import_from_csv_file` map each id, unless the caller has a map of his own."""
    own = db.import_from_csv_file

    def import_from_csv_file(ifile: Any, id_map: Any = None, *rest: Any, **options: Any) -> Any:
        return own(ifile, {} if id_map is None else id_map, *rest, **options)

    object.__setattr__(db, "import_from_csv_file", import_from_csv_file)


def unmap(db: Any) -> None:
    """Take that away again."""
    vars(db).pop("import_from_csv_file", None)
