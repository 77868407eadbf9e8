"""What a declared column reads from a frame: text, numbers or lists, from a column or from inside a JSON one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import SourceError
from evensong.features import written_numbers as written
from evensong.features.columns import (
    CATEGORY_LEVELS,
    CATEGORY_PATH,
    CategoricalColumn,
    Column,
    ImageColumn,
    NumericColumn,
    RateColumn,
    SequenceColumn,
    TextColumn,
    VectorColumn,
    bucketed,
    nearest,
)
from evensong.features.item_features import category_levels
from evensong.types import Frame

log = logging.getLogger(__name__)

#: A text with a number in it that is no number itself: `25-34`, `55+`, `under 18`.
_GROUP = r"^[\p{L}\d <>=≤≥+,.–-]{1,20}$"
#: Where so many of a column's values or more are no numbers, it is the declaration that is wrong.
WRONG_SHARE = 0.5
#: What is expected of a number that is no date.
NUMBERS = "numbers"
#: How dates are looked for where numbers were expected.
_DATES = ("iso", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d")
#: Rows in which the keys of a JSON column are looked for, to say which ones there are.
_LOOKED_AT = 1000


def categories(frame: Frame, column: CategoricalColumn, *, fitting: bool = False, lenient: bool = False) -> pl.Series:
    """The values as text, null where there is none; an empty text is none.

    Args:
        lenient: of a column with `bins`, a text with a number in it (`25-34`) is a bucket of its own, and whatever else
            is no number counts as none; one line of the log says how many there were.

    Raises:
        SourceError: the frame lacks the column, or it holds fractions, lists or times.
    """
    if column.bins is not None and lenient:
        return _groups(frame, column)
    if column.bins is not None:
        return bucketed(_numbers(frame, column.name, column.place, fitting), column.bins)
    values, from_json = _find(frame, column.name, column.place, fitting)
    kind = values.dtype
    if kind.is_float():
        raise _wrong(
            column.name, column.place, "texts, whole numbers or true/false", kind, "give `bins`, or `kind: numeric`"
        )
    if not (kind in (pl.String, pl.Boolean, pl.Null, pl.Categorical) or isinstance(kind, pl.Enum) or kind.is_integer()):
        hint = "use `kind: sequence`" if kind.is_nested() else "turn it into text first"
        raise _wrong(column.name, column.place, "texts, whole numbers or true/false", kind, hint)
    texts = values.cast(pl.String)
    if from_json:  # 3 and 3.0 are one number in JSON
        texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1")
    return texts.replace("", None)


def numbers(frame: Frame, column: NumericColumn, *, fitting: bool = False) -> pl.Series:
    """The values as 64-bit floats, null where there is none or it is no finite number.

    Raises:
        SourceError: the frame lacks the column, or half of its values are no numbers (`WRONG_SHARE`).
    """
    return _numbers(frame, column.name, column.place, fitting, decimal=column.decimal, date_format=column.date_format)


def lists(frame: Frame, column: SequenceColumn, *, fitting: bool = False) -> pl.Series:
    """The values as lists of texts without nulls; no list is an empty one.

    Raises:
        SourceError: the frame lacks the column, or it holds neither lists nor text with a `separator`.
    """
    values, from_json = _find(frame, column.name, column.place, fitting)
    kind = values.dtype
    if kind == pl.String and column.separator is not None:
        values = values.str.split(column.separator).list.eval(pl.element().str.strip_chars().replace("", None))
    elif kind == pl.String and from_json:
        values = _decoded(column.name, column.place, values, pl.String(), "JSON arrays", "or give a `separator`")
    elif kind == pl.Null:
        values = values.cast(pl.List(pl.String))
    elif not isinstance(kind, pl.List | pl.Array) or kind.inner.is_float() or kind.inner.is_nested():
        raise _wrong(column.name, column.place, "lists of texts or whole numbers", kind, "for text, give a `separator`")
    return values.cast(pl.List(pl.String)).fill_null([]).list.eval(pl.element().drop_nulls())


def vectors(frame: Frame, column: VectorColumn, *, fitting: bool = False) -> NDArray[np.float32]:
    """The lists as `[N, length]`, cut or filled with zeros.

    Raises:
        SourceError: the frame lacks the column, or it does not hold lists of numbers.
    """
    values, from_json = _find(frame, column.name, column.place, fitting)
    kind = values.dtype
    found = np.zeros((len(values), column.length), np.float32)
    if kind == pl.Null:
        return found
    if kind == pl.String and from_json:
        hint = "for texts use `kind: sequence`"
        values = _decoded(column.name, column.place, values, pl.Float64(), "JSON arrays of numbers", hint)
    elif not isinstance(kind, pl.List | pl.Array) or not kind.inner.is_numeric():
        raise _wrong(column.name, column.place, "lists of numbers", kind, "for texts use `kind: sequence`")
    values = values.cast(pl.List(pl.Float32)).fill_null([])
    kept = values.list.head(column.length) if column.keep == "first" else values.list.tail(column.length)
    sizes = kept.list.len().to_numpy().astype(np.int64)
    numbers = kept.filter(pl.Series(sizes > 0)).explode().fill_null(0.0).to_numpy()
    # Boolean assignment fills row by row, which is the order in which the lists were flattened.
    places = np.arange(column.length)[None, :]
    filled = places < sizes[:, None] if column.keep == "first" else places >= column.length - sizes[:, None]
    found[filled] = np.nan_to_num(numbers)
    return found


def number_at(frame: Frame, name: str, place: str) -> pl.Series:
    """The numbers at a place, for what is called `name`; null where there is none or it is not finite.

    A text that is no number is missing, and one line of the log says how many there are.

    Raises:
        SourceError: the frame lacks the place, or no value there is a number.
    """
    return _numbers(frame, name, place, fitting=True, lenient=True)


def counts(frame: Frame, column: RateColumn, *, fitting: bool = False) -> tuple[pl.Series, pl.Series]:
    """Conversions and trials, nothing counting as none.

    Raises:
        SourceError: the frame lacks a column, or half of its values are no numbers.
    """
    conversions = _numbers(frame, column.name, column.conversions, fitting)
    return conversions.fill_null(0.0), _numbers(frame, column.name, column.trials, fitting).fill_null(0.0)


def texts(frame: Frame, column: TextColumn | ImageColumn, *, fitting: bool = False) -> list[str | None]:
    """The values as they stand.

    Raises:
        SourceError: the frame lacks the column, or it does not hold text.
    """
    values, _ = _find(frame, column.name, column.place, fitting)
    if values.dtype not in (pl.String, pl.Null, pl.Categorical):
        raise _wrong(column.name, column.place, "text", values.dtype, "choose another `kind`")
    return values.cast(pl.String).to_list()


def refuse_unreadable(frame: Frame, column: Column) -> None:
    """Refuse a column that could not be fitted to the frame.

    Raises:
        SourceError: a place of the column is not in the frame, or holds something of another kind.
    """
    readers: dict[type[Column], Callable[..., object]] = {
        CategoricalColumn: categories,
        NumericColumn: numbers,
        SequenceColumn: lists,
        VectorColumn: vectors,
        RateColumn: counts,
        TextColumn: texts,
        ImageColumn: texts,
    }
    if read := readers.get(type(column)):  # a cross reads other columns
        read(frame, column, fitting=True)


def _groups(frame: Frame, column: CategoricalColumn) -> pl.Series:
    """The bucket of each number; other texts as they stand where they name a group, else none."""
    assert column.bins is not None
    values, _ = _find(frame, column.name, column.place, fitting=False)
    texts = values.cast(pl.String).str.strip_chars().replace("", None)
    read = texts.cast(pl.Float64, strict=False)
    numbers = read.set(~read.is_finite().fill_null(True), None)
    other = texts.filter(numbers.is_null() & texts.is_not_null())
    if len(other):
        log.warning(
            "column %s: %d of %d values in %s are no numbers, such as %r; those with a number in them count as groups "
            "of their own, the others as missing",
            *(column.name, len(other), len(values), column.place, other[0]),
        )
    named = texts.str.contains(_GROUP) & texts.str.contains(r"\d") & read.is_null()
    found = bucketed(numbers, column.bins)
    return found.zip_with(~named.fill_null(False), texts)


def _numbers(
    frame: Frame,
    name: str,
    place: str,
    fitting: bool,
    *,
    decimal: str = ".",
    date_format: str | None = None,
    lenient: bool = False,
) -> pl.Series:
    """The numbers; what is none is missing. When fitted one line of the log counts such values, and a place that is
    declared wrongly is refused.

    Args:
        lenient: only a place without any number is refused, and one of several units is not.
    """
    values, _ = _find(frame, name, place, fitting)
    kind = values.dtype
    if kind == pl.String:
        values = values.str.strip_chars().replace("", None)
        read = written.days(values, date_format) if date_format else written.numbers(values, decimal)
    elif kind.is_temporal() and kind != pl.Time and kind != pl.Duration:
        read = values.cast(pl.Datetime("us")).dt.epoch("us") / 86_400e6
    elif kind.is_numeric() or kind in (pl.Boolean, pl.Null):
        read = values.cast(pl.Float64)
    else:
        raise _wrong(name, place, "numbers", kind, "choose another `kind`")
    read = read.cast(pl.Float64)
    if fitting:
        expected = f"dates such as {date_format}" if date_format else NUMBERS
        _count_bad(values, read, name, place, expected, decimal, lenient)
    if fitting and kind == pl.String and not date_format:
        _compare_units(values, name, place, decimal, lenient)
    return read.set(~read.is_finite().fill_null(True), None)


def _count_bad(
    values: pl.Series, read: pl.Series, name: str, place: str, expected: str, decimal: str, lenient: bool
) -> None:
    """Tell of the values that are no finite numbers, and refuse a place where too many are something else.

    Not a number says itself that there is none, so it is counted and never held against the declaration.
    """
    is_bad = values.is_not_null() & ~read.is_finite().fill_null(False)
    bad, wrong = values.filter(is_bad), values.filter(is_bad & ~read.is_nan().fill_null(False))
    if bad.is_empty():
        return
    num_values = len(values) - values.null_count()
    known = num_values - len(bad) + len(wrong)
    advice = _advice(bad.cast(pl.String), decimal, lenient, expected != NUMBERS)
    if len(wrong) and len(wrong) >= (1.0 if lenient else WRONG_SHARE) * known:
        raise SourceError(
            f"column {name}: expected {expected} in {place}, found {wrong[0]!r} and the like in {len(wrong)} of "
            f"{num_values} values; {advice}"
        )
    log.warning(
        "column %s: %d of %d values in %s are no %s, such as %r, and count as missing%s",
        *(name, len(bad), num_values, place, expected, bad[0], "" if lenient else f"; {advice}"),
    )


def _compare_units(texts: pl.Series, name: str, place: str, decimal: str, lenient: bool) -> None:
    """Refuse numbers of several units, or only tell of them."""
    around = written.units(texts, decimal)
    if len(around) < 2:
        return
    if not lenient:
        raise SourceError(
            f"column {name}: expected numbers of one kind in {place}, found such of {', '.join(around[:5])}; "
            "bring them to one unit, or declare it `kind: categorical`"
        )
    log.warning(
        "column %s: the numbers in %s are of %s, and count as if they were of one kind; bring them to one unit",
        *(name, place, ", ".join(around[:5])),
    )


def _advice(bad: pl.Series, decimal: str, lenient: bool, date_format: bool) -> str:
    """What to do about texts that are no numbers."""
    if lenient:
        return "correct them where they come from, with `.` before a fraction, or choose another `column`"
    found = next((form for form in _DATES if written.days(bad, form).null_count() < len(bad) / 2), None)
    if found is not None:
        return f"where they are dates, say `date_format: {found!r}`, and they count as days"
    if date_format:
        return "say how they are written, such as `date_format: '%d.%m.%Y'`, or declare it `kind: categorical`"
    other = "," if decimal == "." else "."
    if written.numbers(bad, other).is_finite().any():
        return (
            f"where the fraction stands behind `{other}`, say `decimal: '{other}'`; where some have `.` and some `,`, "
            "bring them to one"
        )
    return "correct them, or declare it `kind: categorical` without `bins`, or `kind: text`"


def _decoded(name: str, place: str, values: pl.Series, inner: pl.DataType, expected: str, hint: str) -> pl.Series:
    """The lists that JSON texts hold; an empty text holds none."""
    texts = values.str.strip_chars().replace("", None)
    try:
        return texts.str.json_decode(pl.List(inner))
    except pl.exceptions.PolarsError as error:
        wrong = texts.filter(~texts.str.starts_with("[")).drop_nulls()
        example = f"such as {wrong[0]!r}" if len(wrong) else "of something else"
        raise SourceError(f"column {name}: expected {expected} in {place}, found texts {example}; {hint}") from error


def _find(frame: Frame, name: str, place: str, fitting: bool) -> tuple[pl.Series, bool]:
    """The values at a place, and whether they come out of a JSON text."""
    if place in frame.columns:
        return frame[place], False
    if place in CATEGORY_LEVELS and CATEGORY_PATH in frame.columns:
        return category_levels(frame.select(CATEGORY_PATH))[place], False
    head, *path = place.split(".")
    if not path or head not in frame.columns:
        inside = [n for n in frame.columns if frame[n].dtype == pl.String and place in _keys(frame[n])]
        hint = f"; did you mean {inside[0]}.{place}?" if inside else nearest(head if path else place, frame.columns)
        raise SourceError(f"column {name}: expected {place} in the data, which has no such column{hint}")
    values = frame[head]
    if isinstance(values.dtype, pl.Struct):
        return _inside_struct(values, name, place, path), False
    if values.dtype not in (pl.String, pl.Null):
        raise _wrong(name, head, f"JSON texts that hold {'.'.join(path)}", values.dtype, "correct `source`")
    values = values.cast(pl.String)
    try:
        found = values.str.json_path_match(_json_path(path))
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"column {name}: {place} is no place inside JSON: {error}") from error
    if fitting and len(values) and found.null_count() == len(values):
        _check_inside(values, name, head, path)
    return found, True


def _check_inside(values: pl.Series, name: str, head: str, path: list[str]) -> None:
    """Refuses a place inside JSON of which some part is in no row: a place that is there may well be empty."""
    for depth, key in enumerate(path):
        seen = _keys(values)
        if depth and not seen:
            if (others := values.replace("", None).drop_nulls()).len():
                raise SourceError(
                    f"column {name}: expected {'.'.join(path[depth:])} inside {'.'.join([head, *path[:depth]])}, which "
                    f"is no object in any row, such as {others[0]!r}; correct the column"
                )
            return
        if key not in seen:
            raise SourceError(
                f"column {name}: no row of {'.'.join([head, *path[:depth]])} has {'.'.join(path[depth:])}"
                f"{nearest(key, seen, others=True)}; correct the column, or import what it reads "
                "(--user-attributes, --item-attributes)"
            )
        values = values.str.json_path_match(_json_path([key]))


def _json_path(path: list[str]) -> str:
    return "$" + "".join("['" + key.replace("\\", "\\\\").replace("'", "\\'") + "']" for key in path)


def _inside_struct(values: pl.Series, name: str, place: str, path: list[str]) -> pl.Series:
    for key in path:
        if not isinstance(values.dtype, pl.Struct) or key not in (known := [f.name for f in values.dtype.fields]):
            there = known if isinstance(values.dtype, pl.Struct) else []
            raise SourceError(f"column {name}: expected {place}, found no {key} in it{nearest(key, there)}")
        values = values.struct.field(key)
    return values


def _keys(values: pl.Series) -> set[str]:
    seen: set[str] = set()
    for text in values.drop_nulls().head(_LOOKED_AT):
        if not text.startswith("{"):
            continue
        try:
            content = json.loads(text)
        except ValueError:
            continue
        seen |= set(content) if isinstance(content, dict) else set()
    return seen


def _wrong(name: str, place: str, expected: str, found: pl.DataType, hint: str) -> SourceError:
    return SourceError(f"column {name}: expected {expected} in {place}, found {found}; {hint}")
