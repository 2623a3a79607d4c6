"""The class of a database's error: what a server or a schema is to blame for never rejects an op, and the rest does."""

from __future__ import annotations

import sqlite3

import pymysql.err
import pytest

from pipeline.shard.driver_errors import Fault, fault_of, required_column


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (1205, Fault.LOCKED),
        (1206, Fault.LOCKED),
        (1213, Fault.LOCKED),
        (1040, Fault.TRANSIENT),
        (1041, Fault.OVERTIME),
        (1290, Fault.TRANSIENT),
        (1969, Fault.OVERTIME),
        (2013, Fault.TRANSIENT),
        (1037, Fault.OVERTIME),
        (1038, Fault.OVERTIME),
        (126, Fault.TABLE),
        (1021, Fault.TABLE),
        (1114, Fault.TABLE),
        (1194, Fault.TABLE),
        (1814, Fault.TABLE),
        (1054, Fault.SCHEMA),
        (1146, Fault.SCHEMA),
        (1142, Fault.SCHEMA),
        (1364, Fault.SCHEMA),
        (1062, Fault.PERMANENT),
        (4025, Fault.PERMANENT),
        (1118, Fault.UNKNOWN),
        (1305, Fault.UNKNOWN),
        (1369, Fault.UNKNOWN),
        (1449, Fault.UNKNOWN),
        (1526, Fault.UNKNOWN),
        (1906, Fault.UNKNOWN),
        (500, Fault.UNKNOWN),
        (30001, Fault.UNKNOWN),
    ],
)
def test_an_error_of_mariadb_has_the_class_of_its_number(code: int, fault: Fault):
    assert fault_of(pymysql.err.OperationalError(code, "whatever the server says")) is fault


@pytest.mark.parametrize("words", ["database is locked", "disk I/O error", "attempt to write a readonly database"])
def test_an_error_of_sqlites_file_is_retried(words: str):
    assert fault_of(sqlite3.OperationalError(words)) is Fault.TRANSIENT


def test_another_error_of_sqlite_concerns_its_op():
    assert fault_of(sqlite3.OperationalError("malformed JSON")) is Fault.UNKNOWN


def test_a_required_column_is_read_from_the_servers_words_and_from_no_other_error():
    left_out = pymysql.err.OperationalError(1364, "Field 'needed' doesn't have a default value")

    assert required_column(left_out) == "needed"
    assert required_column(pymysql.err.OperationalError(1054, "Unknown column 'x' in 'field list'")) is None
