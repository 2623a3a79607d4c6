"""Tell the attachment which record web2py's form shows: `SQLFORM` hands all its fields to `update`, touched or not."""

from __future__ import annotations

from typing import Any

from gluon.sqlhtml import SQLFORM

from pipeline.attachment.editing import editing

#: Marks the method, so that it is replaced once in a process.
_MARK = "_pipeline_watched"


def watch() -> None:
    """Let every SQLFORM of this process tell; forms of tables that are not attached work as ever."""
    accepts = SQLFORM.accepts
    if hasattr(accepts, _MARK):
        return

    def accepts_and_tells(self: Any, *args: Any, **options: Any) -> Any:
        with editing(self.table, self.record):
            return accepts(self, *args, **options)

    setattr(accepts_and_tells, _MARK, True)
    SQLFORM.accepts = accepts_and_tells
