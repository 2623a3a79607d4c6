"""A validated insert: the table's validators first, as pyDAL's `validate_and_insert` runs them, then the door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import BadValue
from pipeline.model.receipt import Receipt


class Validated(dict[str, Any]):
    """What pyDAL's `validate_and_insert` returns: `id`, `errors` by field, `success`; and the receipt beside them."""

    def __init__(self, receipt: Receipt | None, errors: dict[str, Any]):
        super().__init__(id=receipt.id if receipt else None, errors=errors, success=not errors)
        self.receipt = receipt

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def validated(table: Any, fields: Mapping[str, Any], insert: Callable[[dict[str, Any]], Receipt]) -> Validated:
    """Validate, and insert what is valid. A value that its column cannot hold exactly is its field's error, too.

    Args:
        fields: by name; a field that is unknown, not writable or computed is an error, as in pyDAL.
        insert: queues the insert of the validated values.
    """
    errors, values = table._validate_fields(dict(fields))
    if errors:
        return Validated(None, dict(errors))
    try:
        return Validated(insert(values), {})
    except BadValue as error:
        return Validated(None, {error.field: error.why})
