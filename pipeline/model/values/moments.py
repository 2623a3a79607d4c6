"""Convert dates and times: from what a caller may give to the ISO text that travels.

pyDAL drops time zones and microseconds in silence; here both are refused. `cut=True` lets microseconds go, and the time
of day where the column is a date: for defaults such as `request.now`. `cut=True` also takes a moment in UTC, the
column's own time zone: py4web's `auth.signature` gives such.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta

from pipeline.errors import Refused

#: MySQL's DATE and DATETIME begin with the year 1000.
FIRST_YEAR = 1000
_DATETIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?", re.ASCII)
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?", re.ASCII)
_UTC_ADVICE = "it has a time zone; send value.astimezone(timezone.utc).replace(tzinfo=None)"
_CUT_ADVICE = "the column holds whole seconds; send value.replace(microsecond=0)"


def day(cut: bool) -> Callable[[object], str]:
    """Return the converter to 'YYYY-MM-DD'.

    Args:
        cut: whether a datetime is cut to its day, as pyDAL does; else only midnight is taken.
    """

    def convert(value: object) -> str:
        if isinstance(value, date) and not isinstance(value, datetime):
            return _from_first_year(value, value).isoformat()
        moment = _datetime(value, cut=cut)
        if not cut and moment.time() != time():
            raise Refused(value, "it has a time of day, which a date column drops; send value.date()")
        return moment.date().isoformat()

    return convert


def moment(cut: bool) -> Callable[[object], str]:
    """Return the converter to 'YYYY-MM-DD HH:MM:SS'; a date becomes its midnight.

    Args:
        cut: whether microseconds are dropped and UTC is taken; else both are refused.
    """

    def convert(value: object) -> str:
        return _datetime(value, cut=cut).isoformat(" ")

    return convert


def clock_time(cut: bool) -> Callable[[object], str]:
    """Return the converter to 'HH:MM:SS'.

    Args:
        cut: whether microseconds are dropped and UTC is taken; else both are refused.
    """

    def convert(value: object) -> str:
        if isinstance(value, str):
            hour, minute, second = _parts(value, _TIME, "HH:MM:SS", cut)
        elif isinstance(value, time):
            _check_plain(value, value, cut)
            hour, minute, second = value.hour, value.minute, value.second
        else:
            raise Refused(value, "send a datetime.time or 'HH:MM:SS'")
        try:
            return time(hour, minute, second).isoformat()
        except ValueError:
            raise Refused(value, "there is no such time; send one from '00:00:00' to '23:59:59'") from None

    return convert


def _datetime(value: object, *, cut: bool) -> datetime:
    """Return *value* as a plain datetime of whole seconds."""
    if isinstance(value, str):
        parts = _parts(value, _DATETIME, "YYYY-MM-DD HH:MM:SS", cut)
    elif isinstance(value, datetime):
        _check_plain(value, value, cut)
        parts = [value.year, value.month, value.day, value.hour, value.minute, value.second]
    elif isinstance(value, date):
        parts = [value.year, value.month, value.day]
    else:
        raise Refused(value, "send a datetime.datetime, a datetime.date or 'YYYY-MM-DD HH:MM:SS'")
    try:
        found = datetime(*parts)  # type: ignore[arg-type]  # three or six ints
    except ValueError:
        raise Refused(value, "there is no such day or time; send None where there is none") from None
    _from_first_year(value, found)
    return found


def _check_plain(value: object, moment: datetime | time, cut: bool) -> None:
    if moment.tzinfo is not None and not (cut and moment.utcoffset() == timedelta()):
        raise Refused(value, _UTC_ADVICE)
    if not cut and (moment.microsecond or getattr(moment, "nanosecond", 0)):  # pandas keeps nanoseconds
        raise Refused(value, _CUT_ADVICE)


def _parts(value: str, pattern: re.Pattern[str], form: str, cut: bool) -> list[int]:
    match = pattern.fullmatch(value)
    if match is None:
        raise Refused(value, f"it is not of the form {form!r} without a time zone; send it so, in UTC")
    *parts, fraction = match.groups()
    if not cut and int(fraction or 0):
        raise Refused(value, f"the column holds whole seconds; send {form!r} without a fraction")
    return [int(part or 0) for part in parts]


def _from_first_year(value: object, found: date) -> date:
    if found.year < FIRST_YEAR:
        raise Refused(value, f"MySQL's dates begin with the year {FIRST_YEAR}; send None where there is no date")
    return found
