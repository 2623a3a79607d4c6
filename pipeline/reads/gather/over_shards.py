"""Prepare a read over several shards: answer its subselects first, and refuse what each shard would answer for itself.

Each shard answers for its own rows. So a condition or a field must be about one row, or about rows that are on each
shard, or be merged here. What is not known to be so is refused by its name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.config import Topology
from pipeline.dal import kind_of, op_name, real_name, tables_in
from pipeline.dal.sql_texts import check_limits
from pipeline.dal.trees import narrowed_here
from pipeline.errors import BadRead
from pipeline.model.schema import Column
from pipeline.reads.read_place import ReadPlace, kept_together, pinned_number

#: Options of `select` that make sense over several shards.
SELECT_OPTIONS = frozenset(
    ("orderby", "limitby", "groupby", "distinct", "left", "join", "cacheable", "orderby_on_limitby")
)
#: pyDAL's operators whose result depends on one row alone.
ROW_BY_ROW = frozenset(
    (
        *("_and", "_or", "_not", "eq", "ne", "lt", "lte", "le", "gt", "gte", "ge", "belongs", "on", "invert", "comma"),
        *("like", "ilike", "regexp", "startswith", "endswith", "contains", "case", "cast", "_as", "coalesce"),
        *("add", "sub", "mul", "div", "mod", "lower", "upper", "length", "replace", "substring", "concat"),
        *("extract", "epoch", "coalesce_zero", "json_key", "json_key_value", "json_path", "json_path_value"),
        *("json_contains", "st_asgeojson", "st_astext", "st_aswkb", "st_x", "st_y", "st_distance", "st_simplify"),
        *("st_simplifypreservetopology", "st_transform", "st_contains", "st_equals", "st_intersects", "st_overlaps"),
        *("st_touches", "st_within", "st_dwithin"),
    )
)
#: What may stand beside a text of SQL, which pyDAL takes as it is.
_TAKE_TEXTS = ("_and", "_or", "_not", "comma")
#: Values of one family are equal, or not, in Python as in the database.
_FAMILIES = {"integer": "whole", "bigint": "whole", "id": "whole", "reference": "whole", "string": "text"}
_FAMILIES |= {kind: kind for kind in ("text", "decimal", "date", "datetime", "boolean", "double")}
_FIELD_NAME = re.compile(r"\w+\.\w+")
_SELECT = re.compile(r"\bselect\b", re.IGNORECASE)

#: Yields each subselect that must be answered first, is sent its values, and returns the part without it.
Answered = Generator[Any, list[Any], Any]


class Around(NamedTuple):
    """Where a part of a read is.

    Attributes:
        topology: who has which bucket.
        tables: the names of the tables of the selects around.
        bucket: the one bucket, or piece, that has the rows; None: there are several, or it is not known.
        over: whether several shards are asked.
        aggregates: whether an aggregate may stand here.
    """

    topology: Topology
    tables: frozenset[str]
    bucket: int | None
    over: bool
    aggregates: bool = False


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be done over several shards.

    Args:
        options: of a `select`.

    Raises:
        BadRead: naming it.
    """
    unknown = sorted(name for name, value in options.items() if name not in SELECT_OPTIONS and value)
    if unknown:
        raise BadRead(f"{unknown[0]}= cannot be used over several shards: fix the shard key with ==, or leave it out")
    limitby = options.get("limitby")
    check_limits(limitby)
    if limitby and not options.get("orderby"):
        raise BadRead("limitby without orderby over several shards would give any rows: add orderby=")
    if limitby and not 0 <= limitby[0] <= limitby[1]:
        raise BadRead(f"limitby is (first, behind the last), not {limitby!r}")
    if not isinstance(options.get("distinct"), bool | None):  # a field is equal to anything
        raise BadRead("distinct= over several shards is True or False")
    if options.get("distinct") and options.get("groupby"):
        raise BadRead("distinct and groupby cannot be used together over several shards")
    for option in ("orderby", "groupby"):
        if any(isinstance(term, str) for term in terms_of(options.get(option))):
            raise BadRead(f"{option}= over several shards takes fields and expressions, not a text such as '<random>'")


def terms_of(value: Any) -> Iterable[Any]:
    """Yield the terms of an orderby or a groupby.

    Args:
        value: a term, a list of terms, terms that are joined with `|`, or nothing.
    """
    if isinstance(value, list | tuple):
        for item in value:
            yield from terms_of(item)
    elif kind_of(value) == "Expression" and op_name(value) == "comma":
        yield from terms_of(value.first)
        yield from terms_of(value.second)
    elif value is not None and value is not False:
        yield value


def answered(
    topology: Topology, places: Sequence[ReadPlace], query: Any, fields: Sequence[Any], options: Mapping[str, Any]
) -> Answered:
    """Return query, fields and options of a read, each subselect replaced by its values where a shard has not all rows.

    Args:
        topology: who has which bucket.
        places: where the read goes.
        query: narrowed by the filters of its tables.
        fields: of the result.
        options: of the `select`.

    Raises:
        BadRead: naming what each shard would answer for itself.
    """
    listed = [query, *fields, *(options.get(name) for name in ("left", "join"))]
    over, (first, *_) = len(places) > 1, places
    bucket = None if over or first.buckets is None or first.row is not None else first.buckets[0]
    around = Around(topology, frozenset(table._tablename for table in tables_in(listed)), bucket, over)
    query = yield from _part(query, around)
    within = around._replace(aggregates=True)
    for text in _texts(fields):
        if not _FIELD_NAME.fullmatch(text):
            _check_text(text, around)
    fields = yield from _part(tuple(fields), within)
    options = dict(options)
    for name in ("left", "join", "groupby", "orderby", "having"):
        for text in _texts(options.get(name)):
            _check_text(text, around)
        options[name] = yield from _part(options.get(name), within if name in ("orderby", "having") else around)
    return query, fields, options


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str)]


# parts ----------------------------------------------------------------------------------------------------------


def _part(part: Any, around: Around) -> Answered:
    kind = kind_of(part)
    if kind in ("Query", "Expression"):
        return (yield from _expression(part, around))
    if kind == "Select":
        return (yield from _subselect(part, around))
    if isinstance(part, list | tuple):
        items = []
        for item in part:
            items.append((yield from _part(item, around)))
        return type(part)(items) if any(made is not item for made, item in zip(items, part, strict=True)) else part
    known = kind in ("Field", "Table", "SQLALL") or type(part).__name__ in ("Reference", "Row")
    if not known and type(part).__module__.startswith("pydal."):
        raise _refused(f"a {type(part).__name__} of pyDAL", "use db(query).nested_select(field)")
    return part


def _expression(part: Any, around: Around) -> Answered:
    name, first, second = op_name(part), part.first, part.second
    if isinstance(part.op, str):
        _check_text(part.op, around)
        return part
    if around.over:
        _check_operator(part, name, around)
    for side in (first, second) if name in _TAKE_TEXTS else ():
        if isinstance(side, str):
            _check_text(side, around)
    if name == "belongs" and isinstance(second, str):
        raise _refused(
            "belongs() of a text, as _select() and belongs(query) make it,",
            "use belongs(db(query).nested_select(field)), or select the values first",
        )
    if name == "on" and kind_of(second) == "Query":
        second = narrowed_here(second, [first])
    if name == "belongs" and kind_of(second) == "Select":
        second = yield from _subselect(second, around, first)
    else:
        second = yield from _part(second, around)
    first = yield from _part(first, around)
    if first is part.first and second is part.second:
        return part
    made = copy.copy(part)
    made.first, made.second = first, second
    return made


def _check_operator(part: Any, name: str, around: Around) -> None:
    if name == "count" or (name == "aggregate" and part.second != "ABS"):
        if not around.aggregates:
            raise _refused("an aggregate in a condition or a groupby", "select the aggregate first, and give its value")
    elif name not in ROW_BY_ROW and name != "aggregate":
        raise _refused(f"the operator {name!r}", "it is not known to look at one row alone; compute it after")


def _check_text(text: str, around: Around) -> None:
    """Refuse a text of SQL: what it says of other rows cannot be known."""
    if around.over or _SELECT.search(text):
        brief = text if len(text) <= 40 else f"{text[:40]}…"
        raise _refused(f"the text {brief!r}", "write fields and expressions of pyDAL, such as db.thing.id.count()")


# subselects -----------------------------------------------------------------------------------------------------


def _subselect(select: Any, around: Around, listed: Any = None) -> Answered:
    """Return a subselect that a shard can answer, or else its values.

    Args:
        select: the subselect.
        around: where it stands.
        listed: the expression whose values it lists, where it stands in a `belongs`.
    """
    if getattr(select, "_cte_recursive", None) or getattr(select, "is_cte", False):
        raise _refused("a subselect with WITH or UNION", "select the values first, each in a read of its own")
    query = narrowed_here(select._query)
    joins = [select._attributes.get(name) for name in ("left", "join")]
    tables = {table._tablename: table for table in tables_in([query, *select._qfields, *joins])}
    outer = around.tables & tables.keys() if select._correlated else frozenset()
    names = ", ".join(sorted(real_name(table) for table in tables.values()))
    if outer == tables.keys():  # pyDAL would write no FROM
        raise BadRead(f"a subselect of {names} within a select of {names} needs nested_select(field, correlated=False)")
    if _is_whole(query, tables, outer, around):
        inner = around._replace(tables=around.tables | tables.keys(), aggregates=True)
        made = copy.copy(select)
        made._query = yield from _part(query, inner)
        made._qfields = yield from _part(list(select._qfields), inner)
        made._attributes = {}
        for name, value in select._attributes.items():
            made._attributes[name] = yield from _part(value, inner)
        made._sql_cache = None
        return made
    if outer:
        raise _refused(
            f"a subselect of {names} that names tables of the select around it",
            "give nested_select correlated=False if that is not meant, join by the shard key, or read both apart",
        )
    if listed is None:
        raise _refused(f"a subselect of {names} outside of belongs()", "select its value first")
    return _as_values((yield select), select, listed)


def _is_whole(query: Any, tables: Mapping[str, Any], outer: frozenset[str], around: Around) -> bool:
    """Whether the shards that are read have, each, all rows that a subselect is about."""
    topology = around.topology
    sharded = [table for table in tables.values() if not topology.table(real_name(table)).reference]
    free = [table for table in sharded if table._tablename not in outer]
    if not free:
        return True
    if around.bucket is not None and all(pinned_number(topology, query, table) == around.bucket for table in free):
        return True
    return len(free) < len(sharded) and kept_together(topology, [query], sharded)


def _as_values(found: Iterable[Any], select: Any, listed: Any) -> list[Any]:
    """Return the values of a subselect as the values of another column."""
    own, other = _family(listed), _family(select._qfields[0])
    if own != other or not own:
        raise _refused(
            f"belongs() of a subselect whose field is {select._qfields[0].type!r}, for one that is {listed.type!r},",
            "select the values first",
        )
    if own != "whole":
        return list(found)
    # an average, or what SQLite stores as it likes: a whole number is equal to no fraction
    exact = (int(one) if isinstance(one, float | Decimal) and one == int(one) else one for one in found)
    return [one for one in exact if one is None or isinstance(one, int)]


def _family(expression: Any) -> str | None:
    return _FAMILIES.get(Column("", str(expression.type)).kind)


def _refused(what: str, instead: str) -> BadRead:
    return BadRead(f"{what} cannot be read over several shards, since each shard would answer for itself: {instead}")
