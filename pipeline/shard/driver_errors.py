"""Classify a driver's error for an op: retry, wait for the schema, or reject.

An error that no rule names is retried, unless the driver says that the statement or its values are at fault.
"""

from __future__ import annotations

from enum import Enum
from typing import Any


class Fault(Enum):
    """What to do after an error."""

    TRANSIENT = "try again"
    SCHEMA = "wait until the database has the column or the table"
    PERMANENT = "refuse the op"


#: Unknown column, unknown table: the shard is behind the op's schema.
_MYSQL_SCHEMA = {1054, 1146}
#: Values: duplicate key, too long, out of range, NULL in NOT NULL, wrong value, foreign keys, no default, bad JSON.
#: Statements: out of range in an expression, CHECK (MySQL, MariaDB), packet too big, column count, division by zero,
#: SIGNAL, syntax.
_MYSQL_PERMANENT = {
    1062, 1406, 1264, 1048, 1366, 1265, 1292, 1216, 1217, 1451, 1452, 1364, 3140, 1690, 3819, 4025, 1153, 1136, 1365,
    1644, 1064, 1110, 1267, 1411, 1415, 1442, 1467, 1586, 1761, 1762,
}  # fmt: skip
#: Deadlock, lock wait, snapshot conflict: InnoDB rolled back (part of) the transaction; retry all of the transaction.
_MYSQL_ROLLED_BACK = {1205, 1213, 1020}
#: Read-only transaction, server, InnoDB; a command or a column that the account has no right to.
_MYSQL_MAY_NOT_WRITE = {1792, 1290, 1836, 1142, 1143, 1044, 1227}
#: Perhaps another node is the primary now. The server is read-only (1290, 1836) or is going down (1053, 1927), or the
#: connection is gone (2003, 2006, 2013; 0 in PyMySQL).
NOT_THE_PRIMARY = {1290, 1836, 1053, 1927, 2003, 2006, 2013, 0}


def fault_of(error: BaseException) -> Fault:
    """Classify *error* of a driver; works on any DB-API driver's exceptions by name and code."""
    code = code_of(error)
    names = {cls.__name__ for cls in type(error).__mro__}
    if code is not None:
        if code in _MYSQL_SCHEMA:
            return Fault.SCHEMA
        if code in _MYSQL_PERMANENT:
            return Fault.PERMANENT
        if code in _MYSQL_ROLLED_BACK:
            return Fault.TRANSIENT
        return Fault.PERMANENT if names & {"IntegrityError", "DataError"} else Fault.TRANSIENT
    text = str(error)
    if "no such table" in text or "has no column" in text or "no such column" in text:
        return Fault.SCHEMA
    if names & {"IntegrityError", "DataError", "ProgrammingError", "OverflowError", "ValueError"}:
        return Fault.PERMANENT
    return Fault.TRANSIENT


def is_driver_error(error: BaseException) -> bool:
    """Return whether *error* is the database's or its driver's, not ours, and not a time limit of Celery's."""
    names = {cls.__name__ for cls in type(error).__mro__}
    # sqlite3 raises ValueError for a NUL inside a statement
    return bool(names & {"DatabaseError", "InterfaceError", "MySQLError"}) or type(error) in (ValueError, OverflowError)


def code_of(error: BaseException) -> int | None:
    """Return the server's number of *error*, or None."""
    first: Any = error.args[0] if error.args else None
    return first if isinstance(first, int) and not isinstance(first, bool) else None


def sentence_of(error: BaseException) -> str:
    """Return the server's own words in *error*."""
    return str(error.args[1]) if code_of(error) is not None and len(error.args) > 1 else str(error)


def refused_write(error: BaseException) -> bool:
    """Return whether *error* says that the session or the account may only read."""
    if code_of(error) in _MYSQL_MAY_NOT_WRITE:
        return not sentence_of(error).startswith("SELECT")  # no right to read is another matter
    return "readonly database" in str(error)


def connection_lost(error: BaseException) -> bool:
    """Return whether *error* says that the server is away, and not that a statement or its values are at fault."""
    if isinstance(error, OSError):
        return True
    from_driver = type(error).__module__.startswith(("pymysql.", "sqlite3"))
    return from_driver and fault_of(error) is Fault.TRANSIENT and code_of(error) not in _MYSQL_ROLLED_BACK
