"""The point-in-time join: which feature row was the newest one known at a moment, as a pure function on frames.

For each row of the entity frame, with its moment `t`, the matching feature row is the one that

1. has the same key (a null in a key matches nothing),
2. has happened: `event_timestamp <= t`,
3. was known, when known_only is set: `created_timestamp <= t` (a null there means never known),
4. is the newest of those: largest `event_timestamp`, then largest `created_timestamp`, then last in the feature frame,
5. and is no older than the time to live: `event_timestamp >= t - ttl`.

Rule 3 makes a plain as-of join wrong: the row with the largest `event_timestamp` may not be known yet while an older
one is. A row counts from `known = max(event_timestamp, created_timestamp)` on, so among the rows in the order of
`known` the answer is the running maximum of their rank by (event, created, position), and the as-of join runs on
`known`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import polars as pl

from evensong.types import TIMESTAMP, Frame

_ROW, _RANK, _KEY, _EVENT, _KNOWN, _MOMENT = "__row", "__rank", "__key", "__event", "__known", "__moment"


def point_in_time_join(
    entities: Frame,
    features: Frame,
    *,
    keys: Mapping[str, str],
    columns: Mapping[str, str],
    moment: str = "event_timestamp",
    event_timestamp: str = "event_timestamp",
    created_timestamp: str | None = "created_timestamp",
    ttl: timedelta | None = None,
    known_only: bool = True,
) -> Frame:
    """The entity frame with the columns of the matching feature rows: same rows, same order, nulls where none matches.

    Args:
        entities: rows with the key columns and the moment `moment`; every other column is kept.
        features: rows with the key columns, the timestamps and the features.
        keys: entity column to feature column, one entry a part of the key; empty when the features have no entity.
        columns: feature column to the name it gets in the result.
        moment: the entity frame's timestamp.
        event_timestamp: when a feature row's value holds from.
        created_timestamp: when a feature row became known; breaks ties, and hides rows when `known_only`.
        ttl: the greatest age of a feature row at the moment, inclusive; none or zero: any age.
        known_only: hide rows that became known after the moment.

    Raises:
        ValueError: a column is missing, or a key has another type on each side.
    """
    rows = match_rows(
        entities,
        features,
        keys=keys,
        moment=moment,
        event_timestamp=event_timestamp,
        created_timestamp=created_timestamp,
        ttl=ttl,
        known_only=known_only,
    )
    found = features.select(pl.col(source).alias(name) for source, name in columns.items())[rows]
    return entities.with_columns(found.get_columns())


def match_rows(
    entities: Frame,
    features: Frame,
    *,
    keys: Mapping[str, str],
    moment: str = "event_timestamp",
    event_timestamp: str = "event_timestamp",
    created_timestamp: str | None = "created_timestamp",
    ttl: timedelta | None = None,
    known_only: bool = True,
) -> pl.Series:
    """The position of the matching row in `features` for each entity row, in order; null where none matches."""
    _require(entities, [*keys, moment], "entity")
    _require(features, [*keys.values(), event_timestamp], "feature")
    left = _entity_side(entities, features, keys, moment)
    ranked = _ranked(features, list(keys.values()), event_timestamp, created_timestamp)
    known = _running_best(ranked, known_only and created_timestamp is not None)
    codes = ranked.select([*_key_names(keys), _KEY]).unique(subset=_KEY, keep="first", maintain_order=True)
    if keys:
        left = left.join(codes, on=_key_names(keys), how="left", maintain_order="left")
    else:
        left = left.with_columns(pl.lit(0, pl.UInt32).alias(_KEY))
    found = (
        left.select(_ROW, _KEY, _MOMENT)
        .drop_nulls()
        .sort(_MOMENT, _ROW)
        .join_asof(known, left_on=_MOMENT, right_on=_KNOWN, by=_KEY, strategy="backward", check_sortedness=False)
        .drop_nulls(_RANK)
    )
    best = ranked.select(_ROW, _EVENT)[found[_RANK]]
    found = found.select(_ROW, _MOMENT).with_columns(best[_ROW].alias("__match"), best[_EVENT])
    if ttl:
        found = found.filter(pl.col(_EVENT) >= pl.col(_MOMENT) - ttl)
    matches = left.select(_ROW).join(found.select(_ROW, "__match"), on=_ROW, how="left", maintain_order="left")
    assert len(matches) == len(entities), "the join must keep every row of the entity frame"
    return matches["__match"]


def to_moments(column: pl.Series) -> pl.Series:
    """A timestamp column as UTC microseconds: naive times are UTC, other zones are converted, text is parsed."""
    if column.dtype == pl.String:
        column = column.str.to_datetime(time_unit="us", time_zone="UTC", strict=True)
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise ValueError(f"{column.name}: expected timestamps, got {column.dtype}; convert the column before the join")
    if column.dtype.time_zone is None:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return column.dt.convert_time_zone("UTC").cast(TIMESTAMP)


def _entity_side(entities: Frame, features: Frame, keys: Mapping[str, str], moment: str) -> Frame:
    columns = [
        _as_key(entities[name], features.schema[other], name).alias(key)
        for key, (name, other) in zip(_key_names(keys), keys.items(), strict=True)
    ]
    return pl.DataFrame([*columns, to_moments(entities[moment]).alias(_MOMENT)]).with_row_index(_ROW)


def _as_key(column: pl.Series, dtype: pl.DataType, name: str) -> pl.Series:
    """The entity key in the feature key's type; a value that the type cannot hold matches nothing."""
    if column.dtype == dtype:
        return column
    texts = (pl.String, pl.Categorical, pl.Enum)
    if column.dtype in texts and dtype in texts:
        return column.cast(dtype, strict=False)
    if (column.dtype.is_integer() and dtype.is_integer()) or column.dtype == pl.Null:
        return column.cast(dtype, strict=False)
    if column.dtype.is_float() and dtype.is_integer() and (column.drop_nulls() % 1 == 0).all():
        return column.cast(dtype, strict=False)  # pandas turns an integer key with a missing value into floats
    raise ValueError(
        f"{name}: the entity frame has {column.dtype}, the feature view {dtype}; convert the entity column to {dtype}"
    )


def _ranked(features: Frame, keys: Sequence[str], event: str, created: str | None) -> Frame:
    """The feature rows without their features, in the order (key, event, created, position), keys numbered."""
    names = [f"__k{i}" for i in range(len(keys))]
    columns = [features[key].alias(name) for key, name in zip(keys, names, strict=True)]
    stamps = [to_moments(features[event]).alias(_EVENT)]
    if created is not None:
        stamps.append(to_moments(features[created]).alias("__created"))
    frame = pl.DataFrame([*columns, *stamps]).with_row_index(_ROW).drop_nulls([*names, _EVENT])
    order = [*names, _EVENT, *(["__created"] if created is not None else []), _ROW]
    frame = frame.sort(order, nulls_last=False)
    if not names:
        return frame.with_columns(pl.lit(0, pl.UInt32).alias(_KEY))
    starts = pl.any_horizontal(pl.col(name) != pl.col(name).shift(1) for name in names).fill_null(False)
    return frame.with_columns(starts.cum_sum().cast(pl.UInt32).alias(_KEY))


def _running_best(ranked: Frame, known_only: bool) -> Frame:
    """For each moment at which a row became known: the rank of the best row known by then, a key at a time."""
    rows = ranked.with_row_index(_RANK)
    if not known_only:
        return rows.select(_KEY, pl.col(_EVENT).alias(_KNOWN), _RANK)
    rows = rows.filter(pl.col("__created").is_not_null()).select(
        _KEY, pl.max_horizontal(_EVENT, "__created").alias(_KNOWN), _RANK
    )
    # Ranks of a later key are above all ranks of an earlier one, so one running maximum serves every key.
    return rows.sort(_KEY, _KNOWN, _RANK).with_columns(pl.col(_RANK).cum_max())


def _key_names(keys: Mapping[str, str]) -> list[str]:
    return [f"__k{i}" for i in range(len(keys))]


def _require(frame: Frame, columns: Sequence[str], side: str) -> None:
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"the {side} frame lacks {', '.join(missing)}; it has {', '.join(frame.columns)}")
