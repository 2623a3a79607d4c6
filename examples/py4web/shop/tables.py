"""The tables, for the application and for whoever creates them on the shards."""

from __future__ import annotations

from typing import Any

from pydal import Field
from pydal.validators import IS_INT_IN_RANGE, IS_LENGTH, IS_NOT_EMPTY

#: The part of pipeline.toml that is the application's: orders live where their customer lives.
TABLES_TOML = """
[tables.purchase]
shard_key = "customer"
"""
PRODUCTS = {"Espresso machine": 249, "Grinder": 129, "Kettle": 59, "Cups, set of six": 24, "Beans, 1 kg": 18}


def define_tables(db: Any) -> None:
    """Define the tables; they need not exist in *db* itself."""
    db.define_table(
        "customer",
        Field("name", length=80, requires=[IS_NOT_EMPTY(), IS_LENGTH(80)]),
        Field("city", length=60, requires=IS_LENGTH(60)),
        migrate=False,
    )
    db.define_table(
        "purchase",
        Field("customer", "reference customer"),
        Field("product", length=60),
        Field("qty", "integer", label="Quantity", default=1, requires=IS_INT_IN_RANGE(1, 100)),
        Field("price", "decimal(10,2)"),
        Field("placed_at", "datetime"),
        migrate=False,
    )
