"""Classify a driver's error: retry, wait for a schema or a table, reject the op, or unknown.

The lists name what concerns a server, a lock, a table or a schema. Everything else concerns the op that met the error.
An error that no list names rejects its op after a few tries: a wrong guess then costs one op and never stops a shard.

Sources: MariaDB's error codes (https://mariadb.com/kb/en/mariadb-error-codes/), MySQL 8.0's server error reference
(https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html), SQLite's result codes
(https://sqlite.org/rescode.html).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any


class Fault(Enum):
    """What to do after an error."""

    TRANSIENT = "retry: the connection or the server is at fault"
    LOCKED = "retry the op: another transaction holds what it needs"
    OVERTIME = "retry the op a few times: its statement took too long, or was interrupted"
    SCHEMA = "wait: the shard has not the table, the column or the right that the op's schema needs"
    TABLE = "wait: the server cannot write to the table, and it can to others"
    PERMANENT = "reject the op"
    UNKNOWN = "reject the op, after a few tries"


#: The shard is behind the op's schema, or an operator has to grant something. Unknown column, unknown table, a required
#: column that the schema lacks, no right to write to the table or to a column.
_MYSQL_NO_DEFAULT = 1364
_MYSQL_NO_RIGHT = {1142, 1143}
_MYSQL_NO_TABLE = 1146
_MYSQL_SCHEMA = {1054, _MYSQL_NO_TABLE, _MYSQL_NO_DEFAULT, *_MYSQL_NO_RIGHT}
#: Values: duplicate key, too long, out of range, NULL in NOT NULL, wrong value, foreign keys, bad JSON.
#: Statements: out of range in an expression, CHECK (MySQL, MariaDB), packet too big, column count, division by zero,
#: SIGNAL, syntax.
_MYSQL_PERMANENT = {
    1062, 1406, 1264, 1048, 1366, 1265, 1292, 1216, 1217, 1451, 1452, 3140, 1690, 3819, 4025, 1153, 1136, 1365,
    1644, 1064, 1110, 1267, 1411, 1415, 1442, 1467, 1586, 1761, 1762,
}  # fmt: skip
#: What depends on other rows, and so on the order of ops: duplicate keys (1062, 1586), foreign keys. All others of the
#: list are about the values of the row itself.
_MYSQL_OTHER_ROWS = {1062, 1216, 1217, 1451, 1452, 1586, 1761, 1762}
#: Of these, what a foreign key says.
_MYSQL_VALUE_TAKEN = {1022, 1062, 1169, 1586}
_MYSQL_NO_PARENT = {1216, 1452}
_MYSQL_RELATED_ROWS = {1216, 1217, 1451, 1452, 1761, 1762}
#: SIGNAL: a trigger may have looked at other rows, too.
_MYSQL_SIGNAL = 1644
_SQLITE_SIGNAL = "SQLITE_CONSTRAINT_TRIGGER"
#: Errors for which `INSERT IGNORE` leaves a row out: duplicate keys, foreign keys, CHECK, no partition for a value, and
#: CHECK OPTION. For all others the server changes the row, or may do so.
LEFT_OUT = {1062, 1586, 1216, 1452, 4025, 1526, 1369}
#: What SQLite says of a row's own values, and of nothing else.
_SQLITE_OWN_VALUES = ("NOT NULL constraint", "CHECK constraint", "datatype mismatch")
#: Deadlock, lock wait, snapshot conflict, a lock that was not waited for, no room for locks (1206): InnoDB rolled back
#: (part of) the transaction. A table changed under the statement (1412, 1615). Retry all of the transaction.
_MYSQL_LOCKED = {1205, 1206, 1213, 1020, 3572, 1412, 1615}
#: The other transaction goes on at once, so that a retry in place succeeds: deadlock, snapshot conflict, changed table.
_MYSQL_BRIEFLY = {1213, 1020, 1412, 1615}
#: There is no memory for the statement, or for any (1037, 1041).
_MYSQL_MEMORY = {1037, 1041}
#: The statement was interrupted (1317), took longer than the server lets it (MariaDB 1969, MySQL 3024), or more memory
#: than a session's sort buffer (1038) or the server has.
_MYSQL_OVERTIME = {1038, 1317, 1969, 3024, *_MYSQL_MEMORY}
#: One table's file, or its disk: full (1021, 1114), not to be opened or written (1016, 1017, 1033, 1035, 1036),
#: damaged (1034, 1194, 1195, 1712, 1877), gone (1812, 1814, 1932), or its storage engine fails (1030). MyISAM
#: and Aria tell of a damaged file with numbers of their own (126, 127, 144, 145, 175).
_MYSQL_TABLE = {
    126, 127, 144, 145, 175,
    1016, 1017, 1021, 1030, 1033, 1034, 1035, 1036, 1114, 1194, 1195, 1712, 1812, 1814, 1877, 1932,
}  # fmt: skip
#: The server or its machine is at fault: connections are used up, refused or cut (1040, 1042 to 1045, 1129, 1130,
#: 1203, 1226, 1158 to 1161), the database is away (1049), the server is going down or not
#: ready (1053, 1927, 1047), it only reads (1290, 1836, 1792), COMMIT failed (1180), too many transactions run (1637).
_MYSQL_SERVER = {
    0, 1040, 1042, 1043, 1044, 1045, 1047, 1049, 1053, 1129, 1130, 1158, 1159, 1160, 1161, 1180, 1203, 1226,
    1290, 1637, 1792, 1836, 1927,
}  # fmt: skip
#: Numbers of the client library: it lost, or did not reach, the server.
_MYSQL_CLIENT = range(2000, 2100)
#: SQLite's words where a file, not a statement, is at fault.
_SQLITE_SERVER = ("locked", "disk", "unable to open", "readonly", "not a database", "interrupted")
#: Read-only transaction, server, InnoDB; a command or a column that the account has no right to.
_MYSQL_MAY_NOT_WRITE = {1792, 1290, 1836, 1142, 1143, 1044, 1227}
#: Perhaps another node is the primary now. The server is read-only (1290, 1836) or is going down (1053, 1927), or the
#: connection is gone (2003, 2006, 2013; 0 in PyMySQL).
NOT_THE_PRIMARY = {1290, 1836, 1053, 1927, 2003, 2006, 2013, 0}


def fault_of(error: BaseException) -> Fault:
    """Classify an error of any DB-API driver, by its number, its class and SQLite's words.

    Args:
        error: as the driver raised it.
    """
    code = code_of(error)
    return _of_text(error) if code is None else _of_code(code, error)


def _of_code(code: int, error: BaseException) -> Fault:
    if code in _MYSQL_SCHEMA:
        return Fault.SCHEMA
    if code in _MYSQL_TABLE:
        return Fault.TABLE
    if code in _MYSQL_PERMANENT:
        return Fault.PERMANENT
    if code in _MYSQL_LOCKED:
        return Fault.LOCKED
    if code in _MYSQL_OVERTIME:
        return Fault.OVERTIME
    if code in _MYSQL_SERVER or code in _MYSQL_CLIENT:
        return Fault.TRANSIENT
    return Fault.PERMANENT if _names(error) & {"IntegrityError", "DataError"} else Fault.UNKNOWN


def _of_text(error: BaseException) -> Fault:
    text, names = str(error), _names(error)
    if "no such table" in text or "has no column" in text or "no such column" in text:
        return Fault.SCHEMA
    if names & {"IntegrityError", "DataError", "ProgrammingError", "OverflowError", "ValueError"}:
        return Fault.PERMANENT
    if type(error).__module__ != "sqlite3" or any(word in text for word in _SQLITE_SERVER):
        return Fault.TRANSIENT  # another driver gives no number where the connection is at fault
    return Fault.UNKNOWN


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def no_such_table(error: BaseException) -> bool:
    """Return whether *error*, as the driver raised it, says that a statement names a table that is not there."""
    return code_of(error) == _MYSQL_NO_TABLE or (code_of(error) is None and "no such table" in str(error))


def is_driver_error(error: BaseException) -> bool:
    """Return whether *error* is the database's or its driver's, not ours, and not a time limit of Celery's."""
    # sqlite3 raises ValueError for a NUL inside a statement
    from_sqlite = type(error) in (ValueError, OverflowError)
    return from_sqlite or bool(_names(error) & {"DatabaseError", "InterfaceError", "MySQLError"})


def is_about_other_rows(error: BaseException) -> bool:
    """Return whether *error* may come from a unique index or a foreign key, whose verdict depends on the order of ops.

    Args:
        error: as the driver raised it.
    """
    code = code_of(error)
    return code is None or code in _MYSQL_OTHER_ROWS


def is_about_related_rows(error: BaseException) -> bool:
    """Return whether *error* is the word of a foreign key.

    Args:
        error: as the driver raised it.
    """
    code = code_of(error)
    return str(error).startswith("FOREIGN KEY") if code is None else code in _MYSQL_RELATED_ROWS


def may_be_early(error: BaseException) -> bool:
    """Return whether a constraint may take an op that met *error* once others are applied that were enqueued before it.

    Args:
        error: as the driver raised it.
    """
    if code_of(error) is None:
        own = is_signal(error) or str(error).startswith(_SQLITE_OWN_VALUES)
        return "IntegrityError" in _names(error) and not own
    return is_about_other_rows(error)


def is_signal(error: BaseException) -> bool:
    """Return whether *error* is a trigger's own, which gives no number.

    Args:
        error: as the driver raised it.
    """
    return code_of(error) == _MYSQL_SIGNAL or getattr(error, "sqlite_errorname", "") == _SQLITE_SIGNAL


def is_about_parents(error: BaseException) -> bool:
    """Return whether *error* is the word of a foreign key that finds no row which the op refers to.

    SQLite says the same of a row that others refer to.

    Args:
        error: as the driver raised it.
    """
    return is_about_related_rows(error) if code_of(error) is None else code_of(error) in _MYSQL_NO_PARENT


def is_about_values(error: BaseException) -> bool:
    """Return whether *error* is the word of a unique index: a value is taken.

    Args:
        error: as the driver raised it.
    """
    return str(error).startswith("UNIQUE") if code_of(error) is None else code_of(error) in _MYSQL_VALUE_TAKEN


def code_of(error: BaseException) -> int | None:
    """Return the server's number of *error*, or None."""
    first: Any = error.args[0] if error.args else None
    return first if isinstance(first, int) and not isinstance(first, bool) else None


def row_in(error: BaseException) -> int | None:
    """Return the row of the statement that the server's sentence names, from 1: `… at row 7`; or None.

    Args:
        error: as the driver raised it.
    """
    found = re.search(r" at row (\d+)$", sentence_of(error)) if code_of(error) is not None else None
    return int(found[1]) if found else None


def required_column(error: BaseException) -> str | None:
    """Return the column that an INSERT left out and that has no default (1364), or None after another error.

    Args:
        error: as the driver raised it.
    """
    found = re.search(r"'([^']+)'", sentence_of(error)) if code_of(error) == _MYSQL_NO_DEFAULT else None
    return found[1] if found else None


def sentence_of(error: BaseException) -> str:
    """Return the server's own words in *error*."""
    return str(error.args[1]) if code_of(error) is not None and len(error.args) > 1 else str(error)


def lacks_right(error: BaseException) -> bool:
    """Return whether *error* says that the account has no right to a table or a column."""
    return code_of(error) in _MYSQL_NO_RIGHT


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
    return from_driver and fault_of(error) in (Fault.TRANSIENT, Fault.OVERTIME)


def ended_abruptly(error: BaseException) -> bool:
    """Return whether the connection broke in a statement; the statement itself may have ended the server.

    Args:
        error: as the driver raised it.
    """
    code = code_of(error)
    return code is not None and (code == 0 or code in _MYSQL_CLIENT)


def lacks_memory(error: BaseException) -> bool:
    """Return whether *error* says that the server has no memory: it may be the statement's fault, or nobody's."""
    return code_of(error) in _MYSQL_MEMORY


def passes_by_itself(error: BaseException) -> bool:
    """Return whether a transaction that met *error* succeeds when it is retried at once.

    Args:
        error: as the driver raised it.
    """
    return code_of(error) in _MYSQL_BRIEFLY or fault_of(error) in (Fault.TRANSIENT, Fault.TABLE)
