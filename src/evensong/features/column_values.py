"""What a declared column reads from a frame: text, numbers or lists, from a column or from inside a JSON one."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import SourceError
from evensong.features.columns import (
    CategoricalColumn,
    ImageColumn,
    NumericColumn,
    RateColumn,
    SequenceColumn,
    TextColumn,
    VectorColumn,
    bucketed,
    nearest,
)
from evensong.types import Frame

#: Rows in which the keys of a JSON column are looked for, to say which ones there are.
_LOOKED_AT = 1000


def categories(frame: Frame, column: CategoricalColumn, *, fitting: bool = False, groups: bool = False) -> pl.Series:
    """The values as text, null where there is none; an empty text is none.

    With `groups`, a text that is no number is a bucket of its own, such as the age group 25-34.

    Raises:
        SourceError: the frame lacks the column, or it holds fractions, lists or times.
    """
    if column.bins is not None and groups:
        written = _find(frame, column.name, column.place, fitting)[0].cast(pl.String).str.strip_chars()
        numbers = written.cast(pl.Float64, strict=False)
        cut = bucketed(numbers.set(~numbers.is_finite().fill_null(True), None), column.bins)
        return cut.zip_with(numbers.is_not_null(), written.replace("", None))
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
    """The values as 64-bit floats, null where there is none or it is not finite.

    Raises:
        SourceError: the frame lacks the column, or a value is no number.
    """
    return _numbers(frame, column.name, column.place, fitting)


def lists(frame: Frame, column: SequenceColumn, *, fitting: bool = False) -> pl.Series:
    """The values as lists of texts without nulls; no list is an empty one.

    Raises:
        SourceError: the frame lacks the column, or it holds neither lists nor text with a `separator`.
    """
    values, from_json = _find(frame, column.name, column.place, fitting)
    kind = values.dtype
    if kind == pl.String and column.separator is not None:
        values = values.replace("", None).str.split(column.separator)
    elif kind == pl.String and from_json:
        try:
            values = values.str.json_decode(pl.List(pl.String))
        except pl.exceptions.PolarsError as error:
            raise _wrong(column.name, column.place, "JSON arrays", kind, "or give a `separator`") from error
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
        try:
            values = values.str.json_decode(pl.List(pl.Float64))
        except pl.exceptions.PolarsError as error:
            raise _wrong(column.name, column.place, "JSON arrays of numbers", kind, "correct the data") from error
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


def counts(frame: Frame, column: RateColumn, *, fitting: bool = False) -> tuple[pl.Series, pl.Series]:
    """Conversions and trials, nothing counting as none.

    Raises:
        SourceError: the frame lacks a column, or a value is no number.
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


def _numbers(frame: Frame, name: str, place: str, fitting: bool) -> pl.Series:
    values, _ = _find(frame, name, place, fitting)
    kind = values.dtype
    if kind == pl.String:
        parsed = values.str.strip_chars().replace("", None).cast(pl.Float64, strict=False)
        bad = values.filter(parsed.is_null() & values.is_not_null() & (values.str.strip_chars() != ""))
        if len(bad):
            raise SourceError(
                f"column {name}: expected numbers in {place}, found {bad[0]!r} in {len(bad)} of {len(values)} rows; "
                "correct them, or declare it `kind: categorical` or `kind: text`"
            )
        values = parsed
    elif not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        hint = "take a part of it, such as its age in days" if kind.is_temporal() else "choose another `kind`"
        raise _wrong(name, place, "numbers", kind, hint)
    values = values.cast(pl.Float64)
    return values.set(~values.is_finite().fill_null(True), None)


def _find(frame: Frame, name: str, place: str, fitting: bool) -> tuple[pl.Series, bool]:
    """The values at a place, and whether they come out of a JSON text."""
    if place in frame.columns:
        return frame[place], False
    head, *path = place.split(".")
    if not path or head not in frame.columns:
        hint = nearest(head if path else place, frame.columns)
        raise SourceError(f"column {name}: expected {place} in the data, which has no such column{hint}")
    values = frame[head]
    if isinstance(values.dtype, pl.Struct):
        return _inside_struct(values, name, place, path), False
    if values.dtype not in (pl.String, pl.Null):
        raise _wrong(name, head, f"JSON texts that hold {'.'.join(path)}", values.dtype, "correct `source`")
    keys = "".join("['" + key.replace("\\", "\\\\").replace("'", "\\'") + "']" for key in path)
    try:
        found = values.cast(pl.String).str.json_path_match(f"${keys}")
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"column {name}: {place} is no place inside JSON: {error}") from error
    if fitting and len(values) and found.null_count() == len(values) and path[0] not in (seen := _keys(values)):
        raise SourceError(f"column {name}: no row of {head} has {'.'.join(path)}{nearest(path[0], seen)}")
    return found, True


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
        try:
            content = json.loads(text)
        except ValueError:
            continue
        seen |= set(content) if isinstance(content, dict) else set()
    return seen


def _wrong(name: str, place: str, expected: str, found: pl.DataType, hint: str) -> SourceError:
    return SourceError(f"column {name}: expected {expected} in {place}, found {found}; {hint}")
