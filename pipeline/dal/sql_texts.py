"""Refuse texts that pyDAL would write into a statement as SQL, unless the application vouches for them with `raw`.

pyDAL quotes most values. Written as they are: what is compared with a decimal, with a `case`, and with json in pyDAL's
older line. So are an alias, the `escape` of a `like`, and every text where a field or a condition is expected. See
`docs/notes/22-sql-in-reads.md`.

Values are checked where the adapter writes them, texts by the shape of a query, once for each statement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from decimal import Decimal
from typing import Any

from pipeline.dal import kind_of, op_name, real_name, tables_in
from pipeline.errors import BadRead


class Raw(str):
    """A text that is meant as SQL."""

    __slots__ = ()


def raw(sql: str) -> Raw:
    """Vouch for a text of SQL, where a read takes fields or conditions: `orderby=pipeline.raw("LENGTH(name)")`.

    Args:
        sql: goes into the statement as it is, so nothing of it may come from a user.
    """
    return Raw(sql)


#: What all databases take for a blank; Python's own blanks are more: U+001F is one.
_BLANKS = " \t\n\r"
_BLANK = f"[{_BLANKS}]"
#: What pyDAL may write for a number, or for a quoted text.
_LITERAL = re.compile(rf"{_BLANK}*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?){_BLANK}*|'(?:[^']|'')*'", re.ASCII)
_ALIAS = re.compile(r"""[^\W\d]\w*|"[\w ]+"|`[\w ]+`""")
_QUOTED = r"""("\w+"|`\w+`|\w+)"""
_NAME = rf"(?:{_QUOTED}\.)?{_QUOTED}"
#: A column, perhaps within an aggregate: `name`, `item.name`, `"item"."name"`, `MAX(item.qty)`, `count(*)`.
_COLUMN = re.compile(rf"(?:count|sum|min|max|avg)\((?:{_NAME}|\*)\)|{_NAME}", re.IGNORECASE)
_DIRECTION = re.compile(rf"{_BLANK}+(asc|desc){_BLANK}*$", re.IGNORECASE)
_NAMED = re.compile(rf"{_BLANK}+as{_BLANK}+(\w+){_BLANK}*$", re.IGNORECASE)
_COMPARISONS = frozenset(("eq", "ne", "lt", "lte", "le", "gt", "gte", "ge"))
#: pyDAL writes a value beside these as one of the type of the left side.
_TYPED = _COMPARISONS | {"belongs", "add", "sub", "mul", "div", "mod", "coalesce"}
#: Beside these it takes a text for a condition or a term.
_JOINS = frozenset(("_and", "_or", "_not", "invert", "on", "comma"))
#: Digits before the point that a number may have: pyDAL writes all of them, which takes minutes for 1E+999999.
_MOST_DIGITS = 400
_OPTIONS = ("orderby", "groupby", "having", "left", "join", "distinct")
#: Options that are conditions, or tables with one.
_CONDITIONS = ("having", "left", "join")
_VOUCH = "or vouch for it with pipeline.raw(text) if nothing of it comes from a user"


def check_query(part: Any) -> None:
    """Refuse a query, an expression or a list of them with a text that pyDAL would take for SQL.

    Raises:
        BadRead: naming the text.
    """
    waiting, met = [part], set()
    while waiting:  # no recursion: a query may be deeper than Python's stack
        part = waiting.pop()
        kind = kind_of(part)
        if kind in ("Query", "Expression"):
            if isinstance(part.second, str) or op_name(part) not in _COMPARISONS or part.first.type is None:
                _check_expression(part, op_name(part))
            waiting += (part.second, part.first)
        elif kind == "Select" and id(part) not in met:
            met.add(id(part))
            check_read(part._query, part._attributes)
            waiting += part._qfields
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        elif isinstance(part, Decimal) and part.is_finite() and part.adjusted() > _MOST_DIGITS:
            raise BadRead(f"{_brief(part)} is larger than any number of a database")
        if kind in ("Table", "Select"):
            _check_name(part._tablename)


def check_read(query: Any, options: Mapping[str, Any]) -> None:
    """Refuse a read with a text that pyDAL would take for SQL; columns may be given by their names, and `<random>`.

    Args:
        query: None for all rows.
        options: pyDAL's.

    Raises:
        BadRead: naming the text.
    """
    if isinstance(query, str):
        _check_condition(query)
    check_query([query, *map(options.get, _OPTIONS)])
    tables = list(tables_in([query, *map(options.get, _OPTIONS)]))
    for option in _OPTIONS:
        if option != "distinct" or not isinstance(options.get(option), bool):
            _check_terms(options.get(option) or (), f"{option}=")
        for text in _texts_of(options.get(option)):
            if option in _CONDITIONS:
                _check_condition(text)
            elif (option, text) != ("orderby", "<random>"):
                check_columns(text, f"{option}=", tables)
    check_limits(options.get("limitby"))


def check_limits(limits: Any) -> None:
    """Refuse a `limitby` that is not two whole numbers.

    Raises:
        BadRead: naming it.
    """
    pair = isinstance(limits, list | tuple) and len(limits) == 2
    if limits and not (pair and all(isinstance(one, int) and abs(one) < 2**63 for one in limits)):
        raise BadRead(f"limitby is (first, behind the last), two whole numbers, not {_brief(limits)}")


def check_columns(text: str, where: str, tables: Iterable[Any]) -> None:
    """Refuse a text that is more than names of columns, and their order.

    Args:
        text: such as `item.name, item.qty DESC`, or `count(*) AS how_many`.
        where: it is given.
        tables: of the read.

    Raises:
        BadRead: naming the text.
    """
    known = {name for table in tables for field in getattr(table, "fields", ()) for name in (field, f"{table}.{field}")}
    for term in map(_bare, text.split(",")):
        found = _COLUMN.fullmatch(term)
        column = found and ".".join(part.strip('"`') for part in found.groups() if part)
        if found is None or (column and column not in known):
            raise _refused(text, where, "give fields and expressions of pyDAL")


def guard(adapter: Any, among: Container[str] | None = None) -> None:
    """Let an adapter check each read before it is written, and each number as it is written.

    Args:
        adapter: of a DAL; a second call changes nothing.
        among: the names of the tables whose reads are checked; None: of all, and what pyDAL itself cannot write is
            refused as we refuse.
    """
    if "_select_wcols" in vars(adapter):
        return
    own = {name: getattr(adapter, name) for name in _GUARDED}

    def guarded(tables: Iterable[Any]) -> bool:
        return among is None or any(real_name(table) in among for table in tables)

    def written(name: str, *args: Any, **options: Any) -> Any:
        try:
            return own[name](*args, **options)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            if among is not None:
                raise
            raise BadRead(f"pyDAL cannot write this read as SQL: {error}") from error

    def _select_wcols(query: Any, fields: Any, *rest: Any, **options: Any) -> Any:
        if guarded(tables_in([query, *fields, *options.values()], inner=True)):
            check_read(query, options)
            check_query(list(fields))
            for field in fields:
                _check_terms(field, "a field", levels=0)
        return written("_select_wcols", query, fields, *rest, **options)

    def _count(query: Any, distinct: Any = None) -> Any:
        if guarded(tables_in([query, distinct], inner=True)):
            check_read(query, {"distinct": distinct})
        return written("_count", query, distinct)

    def expand_all(fields: Any, tables: Mapping[str, Any]) -> Any:
        texts = _texts_of(list(fields))
        for text in texts if texts and guarded(tables.values()) else ():
            check_columns(text, "a field", tables.values())
        return own["expand_all"](fields, tables)

    for replacing in (_select_wcols, _count, expand_all):
        setattr(adapter, replacing.__name__, replacing)
    vouch_for_selects(adapter)
    kinds = adapter.representer.registered_t
    for kind in _NUMBERS:
        kinds[kind] = _checked(kinds[kind])


def vouch_for_selects(adapter: Any) -> None:
    """Let the SQL that pyDAL itself writes pass as `raw`: of `db(query)._select(field)` and `belongs(query)`.

    Args:
        adapter: of a DAL; a second call changes nothing.
    """
    if "_select" in vars(adapter):
        return
    own = getattr(adapter, "_select", None)
    if own is None:  # of no database
        return

    def _select(*args: Any, **options: Any) -> Any:
        sql = own(*args, **options)
        return Raw(sql) if type(sql) is str else sql

    adapter._select = _select


_GUARDED = ("_select_wcols", "_count", "expand_all")
#: The types whose values pyDAL leaves without quotes, as whatever `str` makes of them.
_NUMBERS = ("decimal", "double", "reference")


def unguard(adapter: Any) -> None:
    """Let an adapter read as pyDAL does."""
    for name in _GUARDED:
        delattr(adapter, name)
    kinds = adapter.representer.registered_t
    kinds.update((kind, kinds[kind].own) for kind in _NUMBERS)


def _checked(own: Any) -> Any:
    """Return pyDAL's writer of the values of a type, checked: what it writes is a number, or quoted."""

    def write(value: Any, type_: str) -> Any:
        written = own(value, type_)
        found = _LITERAL.fullmatch(str(written))
        if not isinstance(value, bool) and (found is None or (found[1] and math.isinf(float(found[1])))):
            raise BadRead(f"a column of type {type_} is compared with {_brief(value)}, which is no number")
        return written

    write.own = own  # type: ignore[attr-defined]
    return write


# parts ----------------------------------------------------------------------------------------------------------


def _check_expression(part: Any, name: str) -> None:
    first, second = part.first, part.second
    if name in _JOINS:
        for side in (first, second):
            if not _is_plain(side) and not (name == "comma" and _COLUMN.fullmatch(_bare(str(side)))):
                _check_condition(side)
    elif name == "_as":
        _check_name(second)
    elif name == "belongs" and isinstance(second, str):
        if type(second) is not Raw:
            raise _refused(second, "belongs()", "use belongs(db(query).nested_select(field)), or a list of values")
    elif name in ("like", "ilike"):
        escape = (part.optional_args or {}).get("escape")
        if escape is not None and (not isinstance(escape, str) or len(escape) != 1 or escape == "'"):
            raise BadRead(f"escape= of a like is one character, not {_brief(escape)}")
    elif name in _TYPED:
        _check_value(second, name, getattr(first, "type", None))


def _check_value(second: Any, name: str, type_: Any) -> None:
    """Refuse a value that pyDAL writes as it is: one of no type, and in its older line a text for json."""
    if type_ is None:
        for value in second if isinstance(second, list | tuple | set | frozenset) else (second,):
            if not _is_plain(value):
                raise _refused(value, f"{name!r} of an expression without a type", "compare its parts instead")
    elif type_ in ("json", "jsonb") and name in _COMPARISONS and isinstance(second, str) and "'" in second:
        raise BadRead(f"a json column is compared with {_brief(second)}: a text with a quote cannot be compared")


def _is_plain(value: Any) -> bool:
    """Return whether a value is safe though it is written as it is."""
    return value is None or isinstance(value, Raw | int | float | Decimal) or kind_of(value) != ""


def _check_terms(terms: Any, where: str, levels: int = 1) -> None:
    """Refuse what is no term, no text and no list of such: pyDAL would write it as it is, or fail on it."""
    waiting = [(terms, levels)]
    while waiting:
        one, levels = waiting.pop()
        if isinstance(one, list | tuple) and levels:
            waiting += ((item, levels - 1) for item in one)
        elif not (isinstance(one, str) or kind_of(one)):
            raise BadRead(f"{where} got {_brief(one)}: give fields and expressions of pyDAL")


def _texts_of(terms: Any) -> list[str]:
    """Return the texts among terms, in lists or joined with `|`, that are not vouched for."""
    found, waiting = [], [terms]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and type(one) is not Raw:
            found.append(one)
        elif isinstance(one, list | tuple):
            waiting += one
        elif kind_of(one) == "Expression" and op_name(one) == "comma":
            waiting += (one.first, one.second)
    return found


def _bare(term: str) -> str:
    """Return a term without its direction and its name."""
    return _NAMED.sub("", _DIRECTION.sub("", term)).strip(_BLANKS)


def _check_condition(text: Any) -> None:
    if type(text) is not Raw:
        raise _refused(text, "a condition", "write it with fields of pyDAL, such as db.thing.qty > 5")


def _check_name(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and _ALIAS.fullmatch(name)):
        raise BadRead(f"{_brief(name)} is no name of a table or an expression: use letters, digits and _")


def _refused(text: Any, where: str, instead: str) -> BadRead:
    return BadRead(f"{where} got {_brief(text)}, which would go into the statement as SQL: {instead}, {_VOUCH}")


def _brief(value: Any) -> str:
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # too many levels; too many digits
        shown = f"a {type(value).__name__} too large to be shown"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
