"""The point-in-time join: which feature row was the newest one known at a moment, as a pure function on frames.

For each row of the entity frame, with its moment `t`, the matching feature row is the one that

1. has the same key (a null in a key matches nothing),
2. has happened: `event_timestamp <= t`,
3. was known, when known_only is set: `created_timestamp <= t` (a null there means never known),
4. is the newest of those: largest `event_timestamp`, then largest `created_timestamp` (a null is the smallest), then
   last in the feature frame,
5. and is no older than the time to live: `event_timestamp >= t - ttl`.

Rule 3 makes a plain as-of join wrong: the row with the largest `event_timestamp` may not be known yet while an older
one is. A row counts from `known = max(event_timestamp, created_timestamp)` on. So the rows of a key are taken in the
order of `known`, without those that a newer one came before, and a binary search finds the place of each moment.

Key and time are packed into one 64-bit number, so that one sort, one running maximum and one search serve all keys at
once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from evensong.types import TIMESTAMP, Frame

Longs = npt.NDArray[np.int64]
#: Rows by whether they are wanted, or by their places; none: all.
Chosen = npt.NDArray[np.bool_] | npt.NDArray[np.int64] | None

_ROW, _KEY = "__row", "__key"
_BITS = 63
#: Of so many rows one may look like its neighbour before another sort is quicker.
_FEW = 16
#: Rows that are worked on at a time.
_BLOCK = 1 << 16
#: So many parts of the keys at most are searched side by side, each of so many rows at least.
_MAX_PARTS, _PART_ROWS = 4, 600_000
_NANOS = pl.Datetime("ns", "UTC")
#: What nanoseconds in 64 bits reach.
_FIRST_NANO, _LAST_NANO = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)


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
    left_keys, right_keys = _number_keys(entities, features, keys)
    stamps = [entities[moment], features[event_timestamp]]
    if created_timestamp:
        stamps.append(features[created_timestamp])
    moments, events, *others = _in_one_unit([to_moments(stamp) for stamp in stamps])
    created = others[0] if others else None
    usable = _present(right_keys, events, created if known_only else None)
    asked = _present(left_keys, moments)
    # as numbers: Python's moments have no nanoseconds
    moments_, events_ = _numbers(moments), _numbers(events)
    if moments.null_count() < len(moments):
        late = events_ > moments_.max()
        if np.count_nonzero(late) > len(features) // 4:
            usable = ~late if usable is None else usable & ~late
    sides = _Sides(left_keys, moments_, right_keys, events_, None if created is None else _numbers(created))
    found = _search(sides.of(asked, usable), known_only=known_only, ttl=_in_unit(ttl, moments.dtype))
    if usable is not None:
        found = np.where(found >= 0, np.append(np.flatnonzero(usable), -1)[found], -1)
    if asked is not None:
        matches = np.full(len(entities), -1, np.int64)
        matches[asked] = found
        found = matches
    return pl.Series("match", found).set(pl.Series(found < 0), None).cast(pl.get_index_type())


def to_moments(column: pl.Series) -> pl.Series:
    """A timestamp column in UTC, micro- or nanoseconds: naive times are UTC, other zones converted, text parsed."""
    if column.dtype == pl.String:
        column = column.str.to_datetime(time_unit="us", time_zone="UTC", strict=True)
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise ValueError(f"{column.name}: expected timestamps, got {column.dtype}; convert the column before the join")
    naive = column.dtype.time_zone is None
    if column.dtype.time_unit == "ms":
        column = column.dt.cast_time_unit("us")
    if naive:
        return column.dt.replace_time_zone("UTC")
    return column.dt.convert_time_zone("UTC")


def _in_one_unit(stamps: list[pl.Series]) -> list[pl.Series]:
    """All in nanoseconds where one is and all can be, so that no two moments become one; in microseconds otherwise."""
    if any(stamp.dtype == _NANOS for stamp in stamps):
        ends = [
            end for stamp in stamps if stamp.dtype == TIMESTAMP for end in (stamp.min(), stamp.max()) if end is not None
        ]
        if all(_FIRST_NANO < end < _LAST_NANO for end in ends):  # type: ignore[operator]
            return [stamp.cast(_NANOS) for stamp in stamps]
    return [stamp.cast(TIMESTAMP) for stamp in stamps]


class _Sides(NamedTuple):
    """What is searched for and in what: of each row of the left its key and moment, of the right its key and times."""

    left_keys: Longs
    moments: Longs
    right_keys: Longs
    events: Longs
    created: Longs | None

    def of(self, left: Chosen, right: Chosen) -> _Sides:
        """Some rows of each side; all of a side for none."""
        return _Sides(
            _take(self.left_keys, left),
            _take(self.moments, left),
            _take(self.right_keys, right),
            _take(self.events, right),
            None if self.created is None else _take(self.created, right),
        )


def _search(sides: _Sides, *, known_only: bool, ttl: int | None) -> Longs:
    """The position of the right row that each left row matches, -1 for none; the keys in parts, side by side."""
    parts = _num_parts(len(sides.right_keys))
    if parts == 1:
        return _search_part(sides, known_only=known_only, ttl=ttl)
    found = np.full(len(sides.left_keys), -1, np.int64)
    left_parts, right_parts = _parts(sides.left_keys, parts), _parts(sides.right_keys, parts)

    def search(part: int) -> None:
        left, right = np.flatnonzero(left_parts == part), np.flatnonzero(right_parts == part)
        here = _search_part(sides.of(left, right), known_only=known_only, ttl=ttl)
        matched = here >= 0
        found[left[matched]] = right[here[matched]]

    with ThreadPoolExecutor(min(parts, os.cpu_count() or 1)) as threads:
        for _ in threads.map(search, range(parts)):
            pass
    return found


def _num_parts(num_rows: int) -> int:
    """A power of two."""
    return 1 << (min(_MAX_PARTS, max(1, num_rows // _PART_ROWS)).bit_length() - 1)


def _parts(keys: Longs, parts: int) -> npt.NDArray[np.uint8]:
    """Each key's part, by its last bits: neighbours in number go to different ones."""
    found = np.empty(len(keys), np.uint8)
    for block in _blocks(len(keys)):
        np.bitwise_and(keys[block], parts - 1, out=found[block], casting="unsafe")
    return found


def _search_part(sides: _Sides, *, known_only: bool, ttl: int | None) -> Longs:
    left_keys, moments, right_keys, events, created = sides
    if not len(left_keys) or not len(right_keys):
        return np.full(len(left_keys), -1, np.int64)
    known = np.maximum(events, created) if known_only and created is not None else events
    moments_, events_, known_, first, bits = _fit(max(left_keys.max(), right_keys.max()), moments, events, known)
    codes = _codes(right_keys, known_, first, bits)
    order = _order(codes, created)
    codes = codes[order]
    if known is not events:
        late = np.flatnonzero((known_ != events_)[order])
        rows = order[late]
        _pass_over(order, _outdated(codes, late, known_[rows] - events_[rows]))
    asked = _codes(left_keys, moments_, first, bits)
    sequence, _ = _nearly_sorted(asked)  # a search for sorted values walks through memory instead of jumping
    asked = asked[sequence]
    places = np.searchsorted(codes, asked, side="right") - 1
    rows = order[places]
    rows[(places < 0) | (codes[places] >> bits != asked >> bits)] = -1
    found = np.empty(len(asked), np.int64)
    found[sequence] = rows
    if ttl:
        found[moments - events[found] > ttl] = -1
    return found


def _codes(keys: Longs, times: Longs, first: int, bits: int) -> Longs:
    """One number of both: the key, then the time from `first` on."""
    codes = keys << bits
    codes += times
    codes -= first
    return codes


def _outdated(codes: Longs, late: Longs, delays: Longs) -> Longs:
    """The places of the rows that were not the newest of their key when they became known; they never match.

    Only a row that became known after its event can be one: whatever was known before any other is older than it.

    Args:
        codes: of key and time of becoming known, sorted.
        late: the places of the rows that became known after their event.
        delays: how long after.
    """
    outdated = np.empty(len(late), bool)
    nothing = np.iinfo(np.int64).min
    newest_yet, last = nothing, -1
    for block in _blocks(len(late)):
        places = late[block]
        newest = codes[places] - delays[block]  # of key and event; a later key is above every earlier one
        before = codes[places - 1]
        before[np.diff(places, prepend=last) == 1] = nothing  # late itself, or none at all
        np.maximum(before[1:], newest[:-1], out=before[1:])
        before[0] = max(before[0], newest_yet)
        np.maximum.accumulate(before, out=before)
        np.less(newest, before, out=outdated[block])
        newest_yet, last = max(before[-1], newest[-1]), places[-1]
    return late[outdated]


def _pass_over(order: Longs, places: Longs) -> None:
    """Put in the places the nearest row before that stays; there is one, as a key's first row stays."""
    stays = np.diff(places, prepend=-1) > 1
    order[places] = order[np.maximum.accumulate(np.where(stays, places - 1, 0))]


def _blocks(size: int) -> Iterator[slice]:
    """All places, as many at a time as fit a core's cache: fresh memory for all of them costs more than the work."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


def _fit(last_key: int, *times: Longs) -> tuple[Longs, Longs, Longs, int, int]:
    """Times, the smallest of them, and how many bits they take from it on; ranks where a key does not fit in front."""
    first = min(int(time.min()) for time in times)
    longest = max(int(time.max()) for time in times) - first
    if longest.bit_length() + int(last_key).bit_length() > _BITS:
        ranks = np.unique(np.concatenate(times), return_inverse=True)[1].reshape(-1)
        times = tuple(np.split(ranks, np.cumsum([len(time) for time in times])[:-1]))
        first, longest = 0, int(ranks.max())
    left, events, known = times
    return left, events, known, first, longest.bit_length()


def _order(codes: Longs, created: Longs | None) -> Longs:
    """The order by (code, created, position)."""
    order, alike = _nearly_sorted(codes)
    if alike.sum() > len(codes) // _FEW:
        order = np.argsort(codes)
        ordered = codes[order]
        alike = ordered[1:] == ordered[:-1]
    ties = np.flatnonzero(alike)
    if len(ties):
        # Neither sort says anything of rows that are alike: put those, and only those, in order.
        tied = np.union1d(ties, ties + 1)
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, rows if created is None else created[rows], codes[rows]))]
    return order


def _nearly_sorted(codes: Longs) -> tuple[Longs, npt.NDArray[np.bool_]]:
    """The order by the upper bits of the codes, and whether each row's are those of the row before.

    The rows' positions take the place of the lower bits, so that plain numbers can be sorted, which is several times
    quicker than a sort of positions by their codes.
    """
    size = (len(codes) - 1).bit_length()
    packed = codes >> max(0, int(codes.max(initial=0)).bit_length() + size - _BITS)
    packed <<= size
    for block in _blocks(len(codes)):
        packed[block] |= np.arange(block.start, block.stop)
    packed.sort()
    alike = np.empty(max(0, len(codes) - 1), bool)
    for block in _blocks(len(alike)):
        np.less(packed[block.start + 1 : block.stop + 1] ^ packed[block], 1 << size, out=alike[block])
    packed &= (1 << size) - 1
    return packed, alike


def _present(keys: Longs, *stamps: pl.Series | None) -> npt.NDArray[np.bool_] | None:
    """Which rows have a key and all the times; none: every one, so that nothing need be picked."""
    nulls = [stamp for stamp in stamps if stamp is not None and stamp.null_count()]
    present = keys >= 0
    for stamp in nulls:
        present &= stamp.is_not_null().to_numpy()
    return None if present.all() else present


def _take(values: Longs, wanted: Chosen) -> Longs:
    return values if wanted is None else values[wanted]


def _in_unit(ttl: timedelta | None, dtype: pl.DataType) -> int | None:
    return ttl // timedelta(microseconds=1) * (1000 if dtype == _NANOS else 1) if ttl else None


def _number_keys(entities: Frame, features: Frame, keys: Mapping[str, str]) -> tuple[Longs, Longs]:
    """One number a key, the same on both sides; -1 for a null, and for an entity key that no feature row has."""
    if not keys:
        return np.zeros(len(entities), np.int64), np.zeros(len(features), np.int64)
    names = [f"__k{i}" for i in range(len(keys))]
    right = pl.DataFrame([features[other].alias(name) for name, other in zip(names, keys.values(), strict=True)])
    left = pl.DataFrame(
        [
            _as_key(entities[name], features.schema[keys[name]], name).alias(key)
            for key, name in zip(names, keys, strict=True)
        ]
    )
    if len(names) == 1 and right.schema[names[0]].is_integer():
        small = _small_numbers(left[names[0]], right[names[0]])
        if small is not None:
            return small
    known = right.drop_nulls().unique(maintain_order=True).with_row_index(_KEY)

    def numbers(side: Frame) -> Longs:
        found = side.join(known, on=names, how="left", maintain_order="left")[_KEY]
        return found.cast(pl.Int64).fill_null(-1).to_numpy()

    return numbers(left), numbers(right)


def _small_numbers(left: pl.Series, right: pl.Series) -> tuple[Longs, Longs] | None:
    """Integer keys counted from the smallest, where they lie close enough; -1 for nulls and keys out of their range."""
    if right.dtype == pl.UInt64 or right.null_count() == len(right):
        return None
    low, high = int(right.min()), int(right.max())  # type: ignore[arg-type]
    if high - low > np.iinfo(np.int32).max:
        return None

    def numbers(side: pl.Series) -> Longs:
        values = side.cast(pl.Int64)
        if not side.null_count():
            return _longs(values, low)
        near = _longs(values.fill_null(low), low)
        near[side.is_null().to_numpy()] = -1
        return near

    asked = numbers(left)
    asked[asked.view(np.uint64) > high - low] = -1  # what lies below the smallest is very large without a sign
    return asked, numbers(right)


def _numbers(moments: pl.Series) -> Longs:
    """The moments as numbers; a null, which only a time of creation may be here, is before all others."""
    numbers = moments.to_physical()
    return _longs(numbers.fill_null(np.iinfo(np.int64).min) if numbers.null_count() else numbers)


def _longs(column: pl.Series, zero: int | None = None) -> Longs:
    """The numbers of a column without nulls, counted from `zero`; memory of their own unless nothing need be done."""
    pieces = column.get_chunks()
    if len(pieces) == 1 and zero is None:
        return column.to_numpy()
    numbers = np.empty(len(column), np.int64)
    begin = 0
    for piece in pieces:
        np.subtract(piece.to_numpy(), zero or 0, out=numbers[begin : begin + len(piece)])
        begin += len(piece)
    return numbers


def _as_key(column: pl.Series, dtype: pl.DataType, name: str) -> pl.Series:
    """The entity key in the feature key's type; a value that the type cannot hold matches nothing."""
    if column.dtype == dtype:
        return column
    texts = (pl.String, pl.Categorical, pl.Enum)
    if column.dtype in texts and dtype in texts:
        return column.cast(dtype, strict=False)
    if (column.dtype.is_integer() and dtype.is_integer()) or column.dtype == pl.Null:
        return column.cast(dtype, strict=False)
    if column.dtype.is_float() and dtype.is_integer():
        whole = column.fill_nan(None)  # pandas turns an integer key with a missing value into floats
        if (whole.drop_nulls() % 1 == 0).all():
            return whole.cast(dtype, strict=False)
    raise ValueError(
        f"{name}: the entity frame has {column.dtype}, the feature view {dtype}; convert the entity column to {dtype}"
    )


def _require(frame: Frame, columns: Sequence[str], side: str) -> None:
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"the {side} frame lacks {', '.join(missing)}; it has {', '.join(frame.columns)}")
