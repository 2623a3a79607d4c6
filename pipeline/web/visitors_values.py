"""Refuse what a visitor may have put into a write: options among the fields of `**request.vars`, and protected fields.

A keyword does not tell who has named it, the code or the request. So in a web request options go with fields in a
mapping: there every key is a field. A field with `writable=False`, and the id, have no value that the request brought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline.dal.objects import kind_of, query_of, tables_in
from pipeline.enqueue.final_values import Final
from pipeline.errors import BadOp

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_OPTIONS = ("shard_key", "idempotency_key", "durability", "again")
#: Types of what a request brings. Others, such as pyDAL's expressions, have an `==` of their own.
_PLAIN = (str, bytes, int, float, list, dict)


def from_code(call: Callable[Concatenate[Any, _Given], _Result]) -> Callable[Concatenate[Any, _Given], _Result]:
    """Let a write of a request take options beside a mapping only, and protected fields from the code only.

    Args:
        call: a method that takes fields as a mapping or as keywords.
    """

    @wraps(call)
    def write(self: Any, /, *args: _Given.args, **named: _Given.kwargs) -> _Result:
        values = next((one for one in args[1:] if isinstance(one, Mapping)), None)
        fields = {name: value for name, value in named.items() if name not in _OPTIONS and name != "key"}
        options = [name for name in _OPTIONS if name in named]
        if options and (values is None or fields):
            raise BadOp(_keyword_form(call.__name__, options[0]))
        # of validated fields pyDAL's own rule holds: an error by field; and a Final is made by the application's code
        if call.__name__ != "enqueue_validated_insert" and not isinstance(values, Final):
            _refuse_protected(self, args[0] if args else None, {**(values or {}), **fields})
        return call(self, *args, **named)

    return write


def rows_from_code(request: Any, table: Any, rows: Any) -> Any:
    """Yield the rows of a bulk call, each with its protected fields from the code only; what is no rows as it is.

    Args:
        request: whose call it is.
        table: pyDAL's, or its name.
        rows: a mapping of fields each.
    """

    def checked() -> Iterator[Any]:
        for row in rows:
            if isinstance(row, Mapping):
                _refuse_protected(request, table, row)
            yield row

    return checked() if isinstance(rows, Iterable) else rows


def _keyword_form(call: str, option: str) -> str:
    return (
        f"in a web request {call} takes {option} beside a mapping only, since a visitor can name options in "
        f"**request.vars: {call}(…, {{'field': value}}, {option}=…)"
    )


def _refuse_protected(request: Any, target: Any, values: Mapping[str, Any]) -> None:
    """Raise if a request brought the value of a field that only code may give."""
    table = request.client.op_builder.table(target) if isinstance(target, str) else target
    if kind_of(table) != "Table":
        table = next(tables_in(query_of(target)), None)
    protected = [name for name in values if _is_protected(table, name)]
    brought = request.brought() if protected else {}
    for name in protected:
        if isinstance(values[name], _PLAIN) and name in brought and brought[name] == values[name]:
            raise BadOp(
                f"the request brought the value of {name!r}, which only code may give (the id, or writable=False): "
                "pass the fields that a visitor may fill by name, or use enqueue_validated_insert"
            )


def _is_protected(table: Any, name: str) -> bool:
    field = getattr(table, name, None) if isinstance(name, str) else None
    return field is not None and (getattr(field, "type", "") == "id" or getattr(field, "writable", True) is False)
