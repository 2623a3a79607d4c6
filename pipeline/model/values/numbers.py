"""Convert numbers: from what a caller may give for integer, float and decimal columns to the exact form that travels.

Nothing is rounded and nothing is clamped: a number that the column cannot hold exactly is refused.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation

from pipeline.errors import Refused
from pipeline.model.schema import Column

#: Lowest and highest value of the integer types. An id begins at 1: AUTO_INCREMENT replaces a 0 by a number of its own.
RANGES = {
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
    "id": (1, 2**63 - 1),
    "reference": (0, 2**63 - 1),
}
#: MariaDB sends a FLOAT with FLT_DIG = 6 significant digits, so only such values come back as they were sent.
FLOAT_DIGITS = 6
#: The range of normal IEEE 754 singles, to six digits.
FLOAT_RANGE = (1.17550e-38, 3.40282e38)
#: DECIMAL has up to 65 digits.
_WIDEST = Context(prec=65)
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?")


def whole(column: Column) -> Callable[[object], int]:
    """Return the converter of an integer, bigint, id or reference column."""
    low, high = RANGES[column.kind]

    def convert(value: object) -> int:
        number = _whole(value)
        if not low <= number <= high:
            raise Refused(value, f"a {column.type} holds {low} to {high}; send a number in that range")
        return number

    return convert


def double(value: object) -> float:
    """Convert *value* to a finite float. Minus zero becomes zero, its equal: MariaDB keeps no sign there."""
    number = _float(value)
    if not math.isfinite(number):
        raise Refused(value, "NaN and infinity cannot be stored; send None")
    return number + 0.0


def single(value: object) -> float:
    """Convert *value* to a float that survives a FLOAT column, which keeps six significant digits."""
    number = double(value)
    low, high = FLOAT_RANGE
    if number and not (low <= abs(number) <= high and float(f"{number:.{FLOAT_DIGITS}g}") == number):
        advice = "declare the field 'double', or send float(f'{value:.6g}')"
        raise Refused(value, f"a float column keeps {FLOAT_DIGITS} significant digits; {advice}")
    return number


def decimal(column: Column) -> Callable[[object], str]:
    """Return the converter to text with exactly the digits of *column* after the point, such as '12.50'."""
    precision, scale = column.digits
    unit = Decimal(1).scaleb(-scale)
    exact = Context(prec=max(precision, 1), traps=[Inexact, InvalidOperation])

    def convert(value: object) -> str:
        number = _decimal(value)
        if not number.is_finite():
            raise Refused(value, "NaN and infinity cannot be stored; send None")
        try:
            fitted = number.quantize(unit, context=exact)
        except (Inexact, InvalidOperation):
            raise Refused(value, f"a {column.type} cannot hold all its digits; round it yourself") from None
        return format(fitted if fitted else abs(fitted), "f")

    return convert


def rounded(type_: str, value: object) -> object:
    """Return a value for a decimal column with the digits that MySQL keeps: a half is rounded away from zero.

    What is no finite number, or too large, comes back as it is.

    Args:
        type_: pyDAL's, such as `decimal(10,2)`.
        value: what pyDAL would write.
    """
    unit = Decimal(1).scaleb(-Column("", type_).digits[1])
    try:
        number = _decimal(value)
        return number.quantize(unit, ROUND_HALF_UP, _WIDEST) if number.is_finite() else value
    except (Refused, InvalidOperation):
        return value


def _whole(value: object) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        if _WHOLE.fullmatch(value) is None:
            raise Refused(value, "it is not a whole number; send an int")
        return int(str.__str__(value))
    if isinstance(value, float):
        if not value.is_integer():
            raise Refused(value, "it is not a whole number; send round(value) if that is meant")
        return int(value)
    if isinstance(value, Decimal):
        return _whole_decimal(value)
    if type(value).__name__ == "Row":
        return _row_id(value)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # numpy's integers are not ints but have an index
    except TypeError:
        raise Refused(value, "send an int") from None


def _whole_decimal(value: Decimal) -> int:
    # Bounded first: int(Decimal('1e999999')) builds a million digits.
    if not value.is_finite() or value.adjusted() > 40 or value != value.to_integral_value():
        raise Refused(value, "it is not a whole number; send an int")
    return int(value)


def _row_id(row: object) -> int:
    try:
        return _whole(row["id"])  # type: ignore[index]  # a pyDAL Row, known by its name only
    except KeyError:
        raise Refused(row, "it was selected without its id; send the id itself") from None


def _float(value: object) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        if not (-sys.float_info.max <= value <= sys.float_info.max and int(float(value)) == value):
            raise Refused(value, "a double cannot hold all its digits; declare the field 'bigint' or 'decimal(p,s)'")
        return float(value)
    number = _decimal(value)
    nearest = float(number) if not number.is_snan() else math.nan
    if math.isfinite(nearest) and Decimal(repr(nearest)) != number:
        raise Refused(value, "a double cannot hold all its digits; send float(value), or declare 'decimal(p,s)'")
    return nearest


def _decimal(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int):
        if value.bit_length() > 300:
            raise Refused(value, "it has more digits than any decimal column; send a smaller number")
        return Decimal(int(value))
    if isinstance(value, float):
        return Decimal(float.__repr__(value))
    if isinstance(value, str):
        if _NUMBER.fullmatch(value) is None:
            raise Refused(value, "it is not a number; send a number such as '12.50'")
        return Decimal(str.__str__(value))
    try:
        return Decimal(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise Refused(value, "send an int, a float or a decimal.Decimal") from None
