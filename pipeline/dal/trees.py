"""Turn pyDAL's queries into trees that the log can carry, within the common filters of the present request.

Narrow each query on a shared DAL by the common filters of the present request.
A table of a shared DAL is made from its first caller's, for all threads and requests. The limits to one user's or
tenant's rows must come from the present caller's own table, at each query.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.dal import PLAIN, field_table, has_filters, kind_of, op_name, tables_in
from pipeline.dal.sql_texts import check_query
from pipeline.errors import BadQuery, UnknownField, shown
from pipeline.model.schema import TableSchema

Tree = list[Any]
_COMPARISONS = {"eq": "=", "ne": "<>", "lt": "<", "lte": "<=", "le": "<=", "gt": ">", "gte": ">=", "ge": ">="}
_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%"}
_INSTEAD = "use ==, !=, <, <=, >, >=, belongs, & and |, or select the ids first and name the rows by id.belongs(ids)"
_NUMERIC = ("integer", "bigint", "float", "double", "decimal", "reference", "id")
_TEXT = ("string", "text")
#: The deepest condition or expression that is queued. A worker renders both with two of Python's 1,000 frames a level.
MOST_LEVELS = 200
#: The deepest that a worker takes: narrowing a query to a row adds levels to what a caller gave.
_MOST_LEVELS_TAKEN = 300
#: The most values of a `belongs` that is queued: all its rows are locked in one transaction.
MOST_NAMED = 10_000
_TREE, _COLUMN = "tree", "column"
_VALUES, _OPERANDS = frozenset((type(None), bool, int, float, str, list)), frozenset((int, float, str))
#: What follows the first word of a tree, or None for one tree and more; a value's type is for its column's encoder.
_CONDITIONS: Mapping[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(("and", "or")),
    "not": (_TREE,),
    "null": (_COLUMN,),
    "in": (_COLUMN, (list,)),
    **dict.fromkeys(("same", *_COMPARISONS.values()), (_COLUMN, _VALUES)),
}
_EXPRESSIONS: Mapping[str, tuple[Any, ...] | None] = {
    "c": (_COLUMN,),
    "v": (_OPERANDS,),
    **dict.fromkeys(("||", *_ARITHMETIC.values()), (_TREE, _TREE)),
}


def narrowed(query: Any, callers: Iterable[tuple[Any, Callable[[Any], Any]]]) -> Any:
    """Return *query* with the limits of the callers' tables that it names.

    Args:
        query: None for all rows.
        callers: each table, as it is now, and what makes a query on it one of our DAL.
    """
    for table, own in callers:
        for part in limits_of(table, query):
            check_query(part)
            query = own(part) if query is None else query & own(part)
    return query


def narrowed_here(query: Any, tables: Iterable[Any] | None = None) -> Any:
    """Return *query* with the limits of its tables, asked for in this thread: another has no request, and no user.

    Args:
        query: pyDAL does not narrow the result again.
        tables: those that count; None: all of the query.
    """
    if getattr(query, "ignore_common_filters", False):
        return query
    named = tables_in(query) if tables is None else tables
    own = {table._tablename: table for table in named if has_filters(table)}
    if not own:
        return query
    if kind_of(query) == "Table":
        query = query._db(query).query
    found = copy.copy(narrowed(query, ((table, lambda part: part) for table in own.values())))
    found.ignore_common_filters = True
    return found


def limits_of(table: Any, query: Any) -> Iterator[Any]:
    """Yield the limits to a table's rows, as they are now.

    Args:
        table: of the caller's DAL.
        query: what is asked of the table; None: all rows.
    """
    if table._common_filter is not None:
        yield table._common_filter(query)
    tenant = table._db._request_tenant
    if tenant in table.fields and table[tenant].default is not None:
        yield table[tenant] == table[tenant].default


def is_query(value: Any) -> bool:
    """Return whether *value* is a pyDAL Query."""
    return kind_of(value) == "Query"


def is_expression(value: Any) -> bool:
    """Return whether *value* is a pyDAL Field or Expression, to be computed by the database."""
    return kind_of(value) in ("Expression", "Field")


def table_of(query: Any) -> Any:
    """Return the one table that *query* is about.

    Raises:
        BadQuery: the query is about no table, or about several.
    """
    tables = {id(t): t for t in tables_in(query)}
    if len(tables) != 1:
        names = ", ".join(sorted(t._tablename for t in tables.values())) or "none"
        raise BadQuery(f"a queued write is about one table; this query is about {names}: write one op per table")
    return next(iter(tables.values()))


def condition(query: Any, schema: TableSchema, check: Mapping[str, Any], levels: int = 1) -> Tree:
    """Return a query as a tree; values are checked and made canonical as the column's own.

    Args:
        query: a pyDAL query.
        schema: of the one table that the query is about.
        check: the checker of each field, by its name.
        levels: how deep in the whole query this one is.

    Raises:
        BadQuery: an operator that the log cannot carry, or a query that is deeper than a worker takes.
    """
    name, inner = op_name(query), _deeper(levels, "query")
    if name == "eq" and type(query.second) in PLAIN and kind_of(query.first) == "Field":  # nearly always
        column, field = _column(query.first, schema)
        return ["=", column, check[field](query.second)]
    if name in ("_and", "_or"):
        return [name[1:], condition(query.first, schema, check, inner), condition(query.second, schema, check, inner)]
    if name == "_not":
        return ["not", condition(query.first, schema, check, inner)]
    if name not in _COMPARISONS and name != "belongs":
        raise BadQuery(f"a queued write cannot carry the operator {shown(name)}: {_INSTEAD}")
    if kind_of(query.first) == "Expression":
        raise BadQuery(f"a queued write cannot carry the operator {shown(op_name(query.first))} in a query: {_INSTEAD}")
    column, field = _column(query.first, schema)
    if is_expression(query.second) or is_query(query.second) or hasattr(type(query.second), "_select"):
        raise BadQuery("a queued write compares a field with a value, not with another field or a subselect")
    if name == "belongs":
        if not isinstance(query.second, list | tuple | set | frozenset):
            raise BadQuery("a queued write cannot carry a subselect: select the values first, and give them as a list")
        if len(query.second) > MOST_NAMED:
            raise BadQuery(
                f"belongs of a queued write takes at most {MOST_NAMED:,} values, not {len(query.second):,}: divide them"
            )
        return ["in", column, [check[field](value) for value in query.second]]
    if query.second is None:
        return ["null", column] if name == "eq" else ["not", ["null", column]]
    if name != "eq" and schema.columns[column].kind in ("id", "reference") and _whole(query.second):
        return [_COMPARISONS[name], column, query.second]  # `id > 0` means all rows, though no id is 0
    return [_COMPARISONS[name], column, check[field](query.second)]


def pinned(tree: Tree, column: int) -> Any:
    """Return the value to which a condition fixes a column, or None.

    Args:
        tree: what `condition` returns.
        column: the column's number in the schema.
    """
    head = tree[0]
    if head == "=":
        return tree[2] if tree[1] == column else None
    if head == "and":
        for part in tree[1:]:
            found = pinned(part, column)
            if found is not None:
                return found
    return None


def expression(value: Any, target: str, schema: TableSchema, check: Mapping[str, Any]) -> Tree:
    """Return an expression as a tree.

    Args:
        value: a pyDAL field or expression.
        target: the name of the field that will hold the result.
        schema: of the field's table.
        check: the checker of each field, by its name.

    Raises:
        BadQuery: the expression is not arithmetic or concatenation on own columns.
    """
    kind = schema.columns[schema.index[target]].type
    if kind.startswith(_TEXT):
        operators = {"add": "||", "concat": "||"}
    elif kind.startswith(_NUMERIC):
        operators = _ARITHMETIC
    else:
        raise BadQuery(
            f"{schema.name}.{target} is of type {kind}: only numbers and texts can be computed by the database"
        )

    return _expression(value, _Computed(target, kind, operators, schema, check[target]), 1)


class _Computed(NamedTuple):
    """The field that an expression is for."""

    name: str
    kind: str
    operators: Mapping[str, str]
    schema: TableSchema
    check: Any


# no function inside another that calls itself: each such call leaves a cycle for Python's collector, 4 us an update
def _expression(part: Any, target: _Computed, levels: int) -> Tree:
    inner, schema = _deeper(levels, "expression"), target.schema
    if kind_of(part) == "Field":
        column, field = _column(part, schema)
        if field != target.name and not _same_kind(schema.columns[column].type, target.kind):
            raise BadQuery(f"{schema.name}.{field} is of another kind than {target.name}, so it cannot be part of it")
        return ["c", column]
    if kind_of(part) == "Expression":
        sign = target.operators.get(op_name(part))
        if sign is None:
            raise BadQuery(
                f"the expression for {schema.name}.{target.name} uses {shown(op_name(part))}; the log carries "
                "+, -, *, /, % on own number columns and + on own text columns: compute it before you enqueue"
            )
        return [sign, _expression(part.first, target, inner), _expression(part.second, target, inner)]
    return ["v", _operand(part, target.kind, target.check)]


def is_condition_tree(tree: Any, width: int) -> bool:
    """Return whether a value from the log is a condition of a form that `condition` makes.

    Args:
        tree: the value.
        width: how many columns the table has.
    """
    return _is_tree(tree, _CONDITIONS, width)


def is_expression_tree(tree: Any, width: int) -> bool:
    """Return whether a value from the log is an expression of a form that `expression` makes.

    Args:
        tree: the value.
        width: how many columns the table has.
    """
    return _is_tree(tree, _EXPRESSIONS, width)


def _is_tree(tree: Any, grammar: Mapping[str, tuple[Any, ...] | None], width: int) -> bool:
    level = [tree]
    for _ in range(_MOST_LEVELS_TAKEN):
        below: list[Any] = []
        for part in level:
            if type(part) is not list or not part or type(part[0]) is not str:
                return False
            form = grammar.get(part[0], ())
            if form is None and len(part) > 1:
                below += part[1:]
            elif not form or len(form) != len(part) - 1 or not _is_form(part, form, width, below):
                return False
        if not below:
            return True
        level = below
    return False


def _is_form(part: list[Any], form: tuple[Any, ...], width: int, below: list[Any]) -> bool:
    """Return whether what follows the first word is as its form says; trees in there are added to *below*."""
    for n, wanted in enumerate(form, 1):
        one = part[n]
        if wanted is _TREE:
            below.append(one)
        elif wanted is _COLUMN:
            if type(one) is not int or not 0 <= one < width:
                return False
        elif type(one) not in wanted:
            return False
    return True


def columns_in(tree: Tree) -> set[int]:
    """Return the numbers of the columns that an expression reads.

    Args:
        tree: what `expression` returns.
    """
    head, *rest = tree
    if head == "c":
        return {rest[0]}
    if head == "v":
        return set()
    return set().union(*map(columns_in, rest))


def _deeper(levels: int, what: str) -> int:
    """Return the level below, in a query or an expression that may have it."""
    if levels > MOST_LEVELS:
        raise BadQuery(
            f"a queued write cannot carry this {what}: it has more than {MOST_LEVELS} levels; use belongs for many "
            "values of one field, or select the ids first and name the rows by id.belongs(ids)"
        )
    return levels + 1


def _operand(value: Any, kind: str, check: Any) -> Any:
    """Return a number as it is, where it is exact; anything else as the column's own canonical value."""
    if kind.startswith(_NUMERIC) and _whole(value):
        return value
    if kind.startswith(("integer", "bigint", "double", "float")) and type(value) is float and value - value == 0:
        return value
    canonical = check(value)
    if canonical is None:
        raise BadQuery("None has no place in an expression")
    return canonical


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _column(field: Any, schema: TableSchema) -> tuple[int, str]:
    if kind_of(field) != "Field" or field_table(field)._tablename != schema.name:
        raise BadQuery(f"a queued write to {schema.name!r} can name its own fields only")
    if field.name not in schema.index:
        raise UnknownField(schema.name, field.name, schema.index)
    return schema.index[field.name], field.name


def _same_kind(one: str, other: str) -> bool:
    return one.startswith(_NUMERIC) == other.startswith(_NUMERIC)
