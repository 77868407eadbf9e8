"""Ids, times and numbers out of columns from outside, whatever they were written as.

What cannot be read is an error that names the column, the row and the value.
"""

from __future__ import annotations

from typing import Literal, cast

import polars as pl

from evensong.errors import SourceError
from evensong.types import TIMESTAMP

#: What text files write where there is nothing.
NOTHING = ("", "null", "none", "nan", "nat", "\\n")
#: How numbers are written, by their decimal mark: thousands may be grouped, `1.234,56` and `1,234.56`.
NUMBERS = {
    ",": r"^[+-]?(\d{1,3}(\.\d{3})+|\d+)?(,\d*)?([eE][+-]?\d+)?$",
    ".": r"^[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d*)?([eE][+-]?\d+)?$",
}
#: Spaces and apostrophes that group thousands: `1 234,56`, `1'234.56`.
GROUPING = r"(\d)[ \u{00a0}\u{202f}'’](\d{3})"

TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
)
ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y/%m/%d %H:%M:%S%.f%#z")
#: Unix times by size: below the bound, the factor that makes microseconds of them.
UNIX_UNITS = ((1e11, 1_000_000.0), (1e14, 1_000.0), (1e17, 1.0), (float("inf"), 1e-3))
#: Days and moments that are written as one whole number: 20260110, 20260110123000.
NUMBERED_DAY = r"^(19|20|21)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])$"
NUMBERED_MOMENT = NUMBERED_DAY.rstrip("$") + r"([01]\d|2[0-3])[0-5]\d[0-5]\d$"


def ids(column: pl.Series) -> pl.Series:
    """Ids as strings, whatever they were: 17850.0 becomes "17850", an empty string nothing."""
    if column.dtype.is_float() or column.dtype.is_decimal():
        numbers = column.cast(pl.Float64).fill_nan(None)
        whole = ((numbers == numbers.round(0)) & (numbers.abs() < 2**53)).all()
        return (numbers.cast(pl.Int64) if whole else numbers).cast(pl.String).alias(column.name)
    if column.dtype == pl.Binary:
        return column.bin.encode("hex")
    text = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    # a text file that once went through floats: all numbers, some with a trailing ".0"
    if text.str.contains(r"^-?\d+\.0$").any() and text.str.contains(r"^-?\d+(\.0)?$").all():
        text = text.str.strip_suffix(".0")
    return text


def numbers(column: pl.Series, where: str, decimal: Literal[".", ","] | None = None) -> pl.Series:
    """Numbers as 64-bit floats; what a text file writes for nothing, and NaN, becomes null.

    Without `decimal`, a column is read with decimal commas where it can mean nothing else: `12,50`, `1.234,56`.

    Raises:
        SourceError: a value is no number, or a column such as `1,234` may mean two things.
    """
    if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.Float64).fill_nan(None)
    text = _written(column)
    found = text.cast(pl.Float64, strict=False)
    if decimal == "," or (found.is_null() & text.is_not_null()).any():
        plain = text.str.replace_all(GROUPING, "$1$2").str.replace_all(GROUPING, "$1$2")
        mark = decimal or _decimal_mark(plain, column.name, where)
        other = "." if mark == "," else ","
        fits = plain.str.contains(NUMBERS[mark]).fill_null(False)
        unmarked = plain.str.replace_all(other, "", literal=True).str.replace(mark, ".", literal=True)
        found = unmarked.set(~fits, None).cast(pl.Float64, strict=False)
    found = found.fill_nan(None)
    _refuse(text, found, column, where, "a number", "correct it, or map another column")
    return found


def whole_numbers(column: pl.Series, where: str) -> pl.Series:
    """Whole numbers of 32 bits.

    Raises:
        SourceError: a value is no number, not whole, or too large.
    """
    read = numbers(column, where)
    found = read.set(read != read.round(0), None).cast(pl.Int32, strict=False)
    shown = column.cast(pl.String)
    _refuse(shown.set(read.is_null(), None), found, column, where, "a whole number", "correct it, or leave it out")
    return found


def times(column: pl.Series, where: str, time_format: str | None = None, time_zone: str | None = None) -> pl.Series:
    """Times in UTC, microseconds, from ISO text, dates, datetimes, unix time in s, ms, µs or ns, or 20260110.

    A time without a zone is that of `time_zone`, or UTC. The unit of unix times follows from the largest value.

    Raises:
        SourceError: a value is no time.
    """
    if column.dtype == pl.Date:
        return _in_utc(column.cast(pl.Datetime("us")), time_zone)
    if isinstance(column.dtype, pl.Datetime):
        moments = column.cast(pl.Datetime("us", column.dtype.time_zone))
        return moments.dt.convert_time_zone("UTC") if column.dtype.time_zone else _in_utc(moments, time_zone)
    if column.dtype == pl.Null:
        return column.cast(TIMESTAMP)
    if column.dtype.is_numeric() and time_format is None:
        return _from_numbers(column, time_zone)
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise SourceError(
            f"{where}: column {column.name!r}: expected times, found {column.dtype}; map a column of times"
        )
    text = _written(ids(column) if column.dtype.is_numeric() else column)
    if time_format is None and text.len() > text.null_count() and text.str.contains(r"^-?\d{1,18}(\.\d+)?$").all():
        kind = pl.Float64 if text.str.contains(".", literal=True).any() else pl.Int64
        return _from_numbers(text.cast(kind), time_zone)
    found = _from_text(text, time_format, time_zone)
    _refuse(text, found, column, where, f"a time{f' like {time_format}' if time_format else ''}", _TIME_HINT)
    return found


def within_their_day(moments: pl.Series) -> pl.Series:
    """Times at midnight exactly, as those are of which only the day is known, a microsecond later.

    So a night as of that midnight does not see a day that has only begun, and one as of the next midnight finds it in
    the last 24 hours.
    """
    return moments.zip_with(moments != moments.dt.truncate("1d"), moments.dt.offset_by("1us"))


def plain(column: pl.Series) -> pl.Series:
    """An attribute as it can stand in JSON: decimals as numbers, times and the like as text, lengths of time in µs."""
    if column.dtype == pl.Binary:
        return column.bin.encode("hex")
    return column.cast(_plain(column.dtype), strict=False)


def _plain(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _plain(field.dtype) for field in dtype.fields})  # type: ignore[arg-type]
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(dtype.inner))  # type: ignore[arg-type]
    if dtype.is_decimal() or dtype == pl.Int128:
        return pl.Float64()
    if isinstance(dtype, pl.Duration):
        return pl.Int64()
    return dtype if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null) else pl.String()


def is_time_zone(name: str) -> bool:
    """Whether there is a time zone of this name, such as Europe/Berlin."""
    try:
        pl.Series([], dtype=pl.Datetime("us")).dt.replace_time_zone(name)
    except pl.exceptions.PolarsError:
        return False
    return True


_TIME_HINT = "correct it, or say how times are written with --time-format, such as %d.%m.%Y %H:%M"


def _decimal_mark(text: pl.Series, name: str, where: str) -> str:
    """The one decimal mark with which every value is a number; a point where there is none."""
    fitting = [mark for mark in NUMBERS if text.str.contains(NUMBERS[mark]).all()]
    if len(fitting) == len(NUMBERS):
        row = cast(int, text.str.contains(",", literal=True).fill_null(False).arg_max())
        raise SourceError(
            f"{where}: column {name!r}, row {row + 1}: {text[row]!r} may be a decimal comma or group thousands; "
            "say which mark is the decimal one with --decimal , or --decimal ."
        )
    return fitting[0] if fitting else "."


def _from_text(text: pl.Series, time_format: str | None, time_zone: str | None) -> pl.Series:
    if time_format is not None:
        try:
            found = text.str.to_datetime(time_format, strict=False, time_unit="us")
        except pl.exceptions.PolarsError as error:
            raise SourceError(f"time format {time_format!r}: {str(error).splitlines()[0]}") from error
        named = cast(pl.Datetime, found.dtype).time_zone
        return found.dt.convert_time_zone("UTC") if named else _in_utc(found, time_zone)
    plain = text.str.replace(r"^(\d{4}[-/]\d{2}[-/]\d{2})[Tt]", "$1 ").str.replace(r"( ?[+-]\d{2}:?\d{2}) UTC$", "$1")
    plain = plain.str.replace(r" ?(?:Z|z|UTC|GMT)$", "+00:00")
    plain = plain.str.replace(r" ([+-]\d{2}:?\d{0,2})$", "$1")
    found = pl.Series(text.name, [None] * text.len(), dtype=TIMESTAMP)
    for shape, zoned in [*((f, False) for f in TIME_FORMATS), *((f, True) for f in ZONED_FORMATS)]:
        if not (found.is_null() & plain.is_not_null()).any():
            break
        read = plain.str.to_datetime(shape, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
        found = found.zip_with(
            found.is_not_null(), read.dt.convert_time_zone("UTC") if zoned else _in_utc(read, time_zone)
        )
    return found


def _in_utc(local: pl.Series, time_zone: str | None) -> pl.Series:
    """Wall-clock times as moments: of an hour that the clock shows twice the first, of one that it leaves out the
    hour after it."""
    if time_zone is None:
        return local.dt.replace_time_zone("UTC")
    found = local.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    left_out = found.is_null() & local.is_not_null()
    if left_out.any():
        later = local.dt.offset_by("1h").dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
        found = found.zip_with(~left_out, later)
    return found.dt.convert_time_zone("UTC")


def _from_numbers(column: pl.Series, time_zone: str | None) -> pl.Series:
    """Unix times, or days and moments that are written as one number, such as 20260110."""
    known = column.set(~column.is_finite(), None) if column.dtype.is_float() else column
    whole = known.cast(pl.Int64, strict=False).cast(pl.String)
    for shape, written in (("%Y%m%d", NUMBERED_DAY), ("%Y%m%d%H%M%S", NUMBERED_MOMENT)):
        if known.len() > known.null_count() and whole.str.contains(written).all():
            found = whole.str.to_datetime(shape, strict=False, time_unit="us")
            if found.null_count() == known.null_count():
                return _in_utc(found, time_zone)
    largest = cast(float | None, known.abs().max()) or 0.0
    factor = next(factor for bound, factor in UNIX_UNITS if largest < bound)
    if known.dtype.is_integer() and factor >= 1:
        moments = known.cast(pl.Int64) * int(factor)
    else:
        moments = (known.cast(pl.Float64) * factor).round(0).cast(pl.Int64)
    return moments.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _written(column: pl.Series) -> pl.Series:
    """The text of a column; what stands for nothing becomes null."""
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(NOTHING)).fill_null(False), None)


def _refuse(text: pl.Series, found: pl.Series, column: pl.Series, where: str, expected: str, hint: str) -> None:
    bad = text.is_not_null() & found.is_null()
    if bad.any():
        row = cast(int, bad.arg_max())
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise SourceError(
            f"{where}: column {column.name!r}, row {row + 1}: expected {expected}, found {text[row]!r}{more}; {hint}"
        )
