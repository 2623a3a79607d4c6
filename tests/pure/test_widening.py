"""Which changes of a column's type keep every value."""

from __future__ import annotations

import pytest

from pipeline.shard.columns import Widening, widening


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("varchar(100)", "varchar(101)"),
        ("char(10)", "varchar(10)"),
        ("char(1)", "char(2)"),
        ("varchar(512)", "longtext"),
        ("varchar(63)", "tinytext"),
        ("text", "longtext"),
        ("blob", "longblob"),
        ("varbinary(20)", "blob"),
        ("int(11)", "bigint"),
        ("int(10) unsigned", "bigint(20)"),
        ("int(10) unsigned zerofill", "bigint(20)"),
        ("int", "int(11)"),
        ("int", "decimal(10,0)"),
        ("int", "double"),
        ("float", "double"),
        ("decimal(10,2)", "decimal(12,4)"),
        ("decimal(10)", "decimal(10,0)"),
        ("date", "datetime"),
        ("datetime", "datetime(6)"),
    ],
)
def test_what_keeps_every_value_is_exact(there: str, wanted: str) -> None:
    assert widening(there, wanted) is Widening.EXACT


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("varchar(101)", "varchar(100)"),
        ("bigint", "int"),
        ("int", "int(10) unsigned"),
        ("bigint(20) unsigned", "bigint(20)"),
        ("decimal(12,2)", "decimal(10,2)"),
    ],
)
def test_what_the_server_refuses_where_a_value_does_not_fit_narrows(there: str, wanted: str) -> None:
    assert widening(there, wanted) is Widening.NARROWS


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("varchar(64)", "tinytext"),
        ("varchar(10)", "char(10)"),
        ("longtext", "text"),
        ("text", "varchar(100)"),
        ("longtext", "longblob"),
        ("blob", "longtext"),
        ("bigint", "double"),
        ("bigint", "decimal(10,0)"),
        ("int", "varchar(20)"),
        ("varchar(20)", "int"),
        ("double", "float"),
        ("double", "decimal(10,2)"),
        ("decimal(10,2)", "double"),
        ("decimal(10,4)", "decimal(10,2)"),
        ("decimal(10,2)", "decimal(10,3)"),
        ("datetime", "date"),
        ("datetime(6)", "datetime"),
        ("datetime", "time"),
        ("enum('a','b')", "varchar(10)"),
        ("geometry", "longtext"),
    ],
)
def test_what_bends_values_is_lossy(there: str, wanted: str) -> None:
    assert widening(there, wanted) is Widening.LOSSY
