"""Time-aware statistics of events, per entity: sums in sliding windows, exponential decay and totals, kept up to date.

A statistic sums an amount over the events of an entity: a numeric column, or one an event (a count). At a moment `m`
it sees the events known by then (`known = max(event_timestamp, created_timestamp) <= m`), each at its own time `t`:

- a window of length L holds the events with `m - L < t <= m`;
- decay with half-life H weighs each event by `2 ** (-(m - t) / H)`; past `_HALF_LIVES` half-lives it counts nothing;
- a total holds all of them.

Amounts are kept as whole numbers (millionths; billionths under decay), so sums are exact and do not depend on the order
in which events arrive: a state updated by many small batches equals, bit for bit, one computed from all events at once,
and the states of two partitions may be added. Decay keeps one such sum a half-life on a fixed grid of time ("forward
decay", Cormode et al., ICDE 2009), so no event is ever rounded again as it ages.

`update` takes a state and a batch and returns the new state; `read` gives the values at one moment; `read_at` gives
them at any moments between the state's and the batch's end. All take one partition of entities and know nothing of the
others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from evensong.types import TIMESTAMP, Frame, Value

#: The state: how much (`amount`) each statistic holds for an entity and level, and until or since when (`mark`).
MARKS: dict[str, pl.DataType] = {
    "statistic": pl.String(),
    "entity": pl.String(),
    "level": pl.String(),
    "mark": pl.Int64(),
    "amount": pl.Int64(),
}

_KEY = ["statistic", "entity", "level", "mark"]
_PER_UNIT = {"window": 1_000_000, "total": 1_000_000, "decay": 1_000_000_000}
_HALF_LIVES = 64
#: After this many half-lives less than a hundredth is left, and no row is due for it any more.
_HALF_LIVES_OF_ROWS = 7
_NEVER = 2**62
_DAY = 86_400_000_000
#: Rows of cells and moments that are held at once; bounds the memory of `read_at`.
_MOST_ROWS = 4_000_000
_LARGEST = float(2**62)


class _Statistic(Value):
    name: str = Field(min_length=1)
    column: str | None = None
    """The numeric column that is summed; none counts events. A null adds nothing."""
    event_types: tuple[str, ...] | None = None
    """The events that count; none: all."""
    by: str | None = None
    """A text column: the statistic is kept for each of its values (a `level`) by itself; null ones are left out."""


class WindowStatistic(_Statistic):
    """A sum over the last `days`."""

    kind: Literal["window"] = "window"
    days: float = Field(gt=0)

    @property
    def microseconds(self) -> int:
        """The window's length."""
        return timedelta(days=self.days) // timedelta(microseconds=1)


class DecayStatistic(_Statistic):
    """A sum in which an event loses half its weight every `half_life_days`."""

    kind: Literal["decay"] = "decay"
    half_life_days: float = Field(gt=0)

    @property
    def microseconds(self) -> int:
        """The half-life's length."""
        return timedelta(days=self.half_life_days) // timedelta(microseconds=1)


class TotalStatistic(_Statistic):
    """A sum over everything known."""

    kind: Literal["total"] = "total"


TimeStatistic = Annotated[WindowStatistic | DecayStatistic | TotalStatistic, Field(discriminator="kind")]


@dataclass(frozen=True)
class StatisticsState:
    """What must be remembered of the events known by `until` to go on from there: MARKS, in any order."""

    marks: Frame
    until: datetime

    def __eq__(self, other: object) -> bool:
        """Equal when both would give the same values for ever."""
        if not isinstance(other, StatisticsState) or self.until != other.until:
            return False
        return self.marks.sort(_KEY).equals(other.marks.sort(_KEY))

    __hash__ = None  # type: ignore[assignment]


def empty_state(until: datetime | None = None) -> StatisticsState:
    """The state before the first event."""
    return StatisticsState(pl.DataFrame(schema=MARKS), until or datetime(1, 1, 1, tzinfo=UTC))


def update(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], *, entity: str, until: datetime
) -> StatisticsState:
    """The state at `until`, from an earlier one and the events that became known in between.

    Args:
        batch: `entity, event_timestamp, created_timestamp` and the columns that the statistics name; rows known at or
            before `state.until` (already in the state) or after `until` (not known yet) are left out.

    Raises:
        ValueError: `until` lies before the state, the batch lacks a column, or a sum outgrows 63 bits.
    """
    _check(state, until)
    new = _as_marks(_arriving(batch, state.until, until), statistics, entity).select(MARKS.keys())
    alive = _alive(statistics, pl.lit(_micros(until)), to_midnight=True)
    return StatisticsState(_added(state.marks.filter(alive), new.filter(alive)), until)


def merge(left: StatisticsState, right: StatisticsState) -> StatisticsState:
    """The state of both partitions together, or of two halves of one entity's events."""
    if left.until != right.until:
        raise ValueError(
            f"states are added at one moment, got {left.until} and {right.until}; update the earlier one first"
        )
    return StatisticsState(_added(left.marks, right.marks), left.until)


def read(
    state: StatisticsState, statistics: Sequence[TimeStatistic], *, entity: str, entities: pl.Series, at: datetime
) -> Frame:
    """The values at a moment not before the state's: `entity` in the order given, one float column a statistic.

    A statistic kept by a column is not among them; see `read_levels`. An entity without events has zeros.
    """
    _check(state, at)
    found = _values(state.marks, statistics, at)
    rows = pl.DataFrame({entity: entities.cast(pl.String)})
    for statistic in statistics:
        if not statistic.by:
            mine = found.filter(pl.col("statistic") == statistic.name)
            mine = mine.select(pl.col("entity").alias(entity), pl.col("value").alias(statistic.name))
            rows = rows.join(mine, on=entity, how="left", maintain_order="left")
    return rows.with_columns(pl.col(pl.Float64).fill_null(0.0))


def read_levels(state: StatisticsState, statistics: Sequence[TimeStatistic], *, at: datetime) -> Frame:
    """The statistics kept by a column at a moment: `statistic, entity, level, value`, sorted, no zeros."""
    _check(state, at)
    found = _values(state.marks, [s for s in statistics if s.by], at)
    return found.filter(pl.col("value") != 0).sort("statistic", "entity", "level")


def read_at(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], *, entity: str, moments: Frame
) -> Frame:
    """The values at many moments: the state's events, and those of the batch that were known by each moment.

    Args:
        moments: `entity, moment`, in any order, none before `state.until`.

    Returns:
        `moments` with one float column a statistic that is not kept by a column, in the same order.
    """
    plain = [statistic for statistic in statistics if not statistic.by]
    values = {statistic.name: np.zeros(len(moments)) for statistic in plain}
    for statistic, rows, _, sums in _sums_at(state, batch, plain, entity, moments):
        values[statistic.name][rows] = _in_units(sums, statistic)
    return moments.with_columns(pl.Series(name, column, dtype=pl.Float64) for name, column in values.items())


def read_levels_at(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], *, entity: str, moments: Frame
) -> Frame:
    """As `read_at` for the statistics that are kept by a column: `row, statistic, level, value`, sorted, no zeros.

    `row` counts the rows of `moments` from 0.
    """
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "statistic": pl.String, "level": pl.String, "value": pl.Float64})]
    kept = [statistic for statistic in statistics if statistic.by]
    for statistic, rows, levels, sums in _sums_at(state, batch, kept, entity, moments):
        values = pl.DataFrame({"row": rows.astype(np.uint32), "level": levels, "value": _in_units(sums, statistic)})
        parts.append(values.select("row", pl.lit(statistic.name).alias("statistic"), "level", "value"))
    return pl.concat(parts).sort("row", "statistic", "level")


def moments_of_change(
    batch: Frame, statistics: Sequence[TimeStatistic], *, entity: str, state: StatisticsState, until: datetime
) -> Frame:
    """When rows of a feature view are due, `entity, moment`, after `state.until` and up to `until`.

    They are due as events become known; at the midnight (UTC) that ends a day in which an event leaves a window; and as
    decayed sums sink all the time, at the midnight after each whole half-life since 1970 until a hundredth is left. So
    no row stands for a decay much longer than one half-life.
    """
    known = _arriving(batch, state.until, until)
    events = known.select(pl.col(entity).cast(pl.String).alias("entity"), pl.col("known").alias("moment")).unique()
    held = state.marks.select("statistic", "entity", "mark", pl.lit(state.until, TIMESTAMP).alias("known"))
    marks = pl.concat([held, _as_marks(known, statistics, entity).select(held.columns).unique()])
    inside = (pl.col("moment") > state.until) & (pl.col("moment") <= until)
    due = [events]
    for statistic in statistics:
        mine = marks.filter(pl.col("statistic") == statistic.name)
        if isinstance(statistic, WindowStatistic):
            ends = [pl.col("mark")]
        elif isinstance(statistic, DecayStatistic) and not statistic.by:  # shares of a decay do not move by themselves
            ends = [(pl.col("mark") + age) * statistic.microseconds for age in range(1, _HALF_LIVES_OF_ROWS + 1)]
        else:
            continue
        for end in ends:
            moment = pl.from_epoch(end, time_unit="us").dt.replace_time_zone("UTC").cast(TIMESTAMP)
            midnight = (moment - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1)
            ended = mine.select("entity", midnight.alias("moment"), "known")
            due.append(ended.filter(inside & (pl.col("moment") > pl.col("known"))).drop("known").unique())
    return pl.concat(due).unique().drop_nulls().sort("entity", "moment").rename({"entity": entity})


def _arriving(batch: Frame, since: datetime, until: datetime) -> Frame:
    """The rows that became known after `since`, by `until`, with `known`."""
    known = pl.max_horizontal("event_timestamp", "created_timestamp").alias("known")
    return batch.with_columns(known).filter((pl.col("known") > since) & (pl.col("known") <= until))


def _as_marks(events: Frame, statistics: Sequence[TimeStatistic], entity: str) -> Frame:
    """Each event as each statistic keeps it: MARKS and `known`."""
    parts = [_marks_of(events, statistic, entity) for statistic in statistics]
    return pl.concat(parts) if parts else pl.DataFrame(schema={**MARKS, "known": TIMESTAMP})


def _marks_of(events: Frame, statistic: TimeStatistic, entity: str, *others: str) -> Frame:
    """Each event as one statistic keeps it: MARKS, `known`, and the other columns."""
    needed = {
        entity,
        "event_timestamp",
        statistic.column,
        statistic.by,
        "event_type" if statistic.event_types else None,
    }
    if missing := sorted(name for name in needed if name and name not in events.columns):
        raise ValueError(
            f"statistic {statistic.name}: the events lack {', '.join(missing)}; they have {', '.join(events.columns)}"
        )
    amount = pl.lit(1.0) if statistic.column is None else pl.col(statistic.column).cast(pl.Float64)
    moment = pl.col("event_timestamp").dt.epoch("us")
    if isinstance(statistic, WindowStatistic):
        mark = moment + statistic.microseconds
    elif isinstance(statistic, DecayStatistic):
        mark = moment // statistic.microseconds
        amount = amount * pl.col("__weight")
    else:
        mark = pl.lit(_NEVER, pl.Int64)
    if statistic.event_types is not None:
        events = events.filter(pl.col("event_type").is_in(list(statistic.event_types)))
    if isinstance(statistic, DecayStatistic):
        grown = (events["event_timestamp"].dt.epoch("us") % statistic.microseconds).to_numpy() / statistic.microseconds
        events = events.with_columns(pl.Series("__weight", power_of_two(grown.astype(np.float64)), dtype=pl.Float64))
    marks = events.select(
        pl.lit(statistic.name).alias("statistic"),
        pl.col(entity).cast(pl.String).alias("entity"),
        (pl.col(statistic.by).cast(pl.String) if statistic.by else pl.lit("")).alias("level"),
        mark.cast(pl.Int64).alias("mark"),
        (amount * _PER_UNIT[statistic.kind]).round().alias("amount"),
        "known",
        *others,
    ).drop_nulls()
    largest = marks["amount"].abs().sum()
    if not largest < _LARGEST:  # also refuses infinities and not-a-numbers
        raise ValueError(
            f"statistic {statistic.name}: amounts of {largest / _PER_UNIT[statistic.kind]:g} in one batch do not fit "
            "its exact sums; leave out infinite values or divide the column"
        )
    return marks.cast({"amount": pl.Int64})


def _added(held: Frame, new: Frame) -> Frame:
    """One row a key; the held ones have one already, so that only those of which there is a new one are touched.

    Amounts that cancel out stay, as zeros, since rows are due when they leave a window.
    """
    mine = held.join(new, on=_KEY, how="semi")
    summed = pl.concat([mine, new]).group_by(_KEY, maintain_order=True).agg(pl.col("amount").sum())
    return pl.concat([held.join(new, on=_KEY, how="anti"), summed])


def _end(statistic: TimeStatistic) -> pl.Expr:
    """The first microsecond at which a mark counts nothing any more."""
    if isinstance(statistic, WindowStatistic):
        return pl.col("mark")
    if isinstance(statistic, DecayStatistic):
        return (pl.col("mark") + 1 + _HALF_LIVES) * statistic.microseconds
    return pl.lit(_NEVER, pl.Int64)


def _alive(statistics: Sequence[TimeStatistic], at: pl.Expr, *, to_midnight: bool = False) -> pl.Expr:
    """Whether a mark still counts at the moment, or did so on its day; marks of other statistics do not.

    The state keeps an event that left a window until the midnight at which a row is due for that.
    """
    alive = []
    for statistic in statistics:
        end = _end(statistic)
        if to_midnight and isinstance(statistic, WindowStatistic):
            end = (end + _DAY - 1) // _DAY * _DAY
        alive.append((pl.col("statistic") == statistic.name) & (at < end))
    return pl.any_horizontal(pl.lit(False), *alive)


def _values(marks: Frame, statistics: Sequence[TimeStatistic], at: datetime) -> Frame:
    """`statistic, entity, level, value` at one moment, from the marks that still count."""
    marks = marks.filter(_alive(statistics, pl.lit(_micros(at))))
    parts = [pl.DataFrame(schema={**dict.fromkeys(_KEY[:3], pl.String), "value": pl.Float64})]
    for statistic in statistics:
        mine = marks.filter(pl.col("statistic") == statistic.name)
        worth = mine["amount"].to_numpy()
        if isinstance(statistic, DecayStatistic):
            weights, ages = _weights(np.array([_micros(at)]), statistic)
            worth = _decayed(worth, weights, ages - mine["mark"].to_numpy())
        added = mine.with_columns(pl.Series("amount", worth)).group_by(_KEY[:3]).agg(pl.col("amount").sum())
        values = pl.Series("value", _in_units(added["amount"].to_numpy(), statistic), dtype=pl.Float64)
        parts.append(added.select(_KEY[:3]).with_columns(values))
    return pl.concat(parts)


def _sums_at(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], entity: str, moments: Frame
) -> Iterator[tuple[TimeStatistic, NDArray[np.int64], pl.Series, NDArray[np.int64]]]:
    """Of each statistic, some entities at a time: rows of the moments, the level of each, and its sum, no zeros."""
    if moments.is_empty() or not statistics:
        return
    until = moments["moment"].max()
    _check(state, moments["moment"].min())
    names = moments.select(pl.col(entity).cast(pl.String).alias("entity"))
    codes = names.unique().sort("entity").with_row_index("code")
    asked = names.join(codes, on="entity", how="left", maintain_order="left").select(
        pl.col("code").cast(pl.Int64), moments["moment"].dt.epoch("us").alias("moment")
    )
    rows = asked.select(pl.arg_sort_by("code", "moment")).to_series().to_numpy()
    asked = asked[rows]
    known = _arriving(batch, state.until, until).join(  # type: ignore[arg-type]
        codes.rename({"entity": entity}), on=entity, how="inner"
    )
    held = state.marks.join(codes, on="entity", how="inner").with_columns(pl.lit(state.until, TIMESTAMP).alias("known"))
    grid = _Grid(asked["code"].to_numpy(), asked["moment"].to_numpy())
    for statistic in statistics:
        new = _marks_of(known, statistic, entity, "code")
        mine = pl.concat([held.filter(pl.col("statistic") == statistic.name).select(new.columns), new])
        levels = mine["level"].unique().sort()
        mine = mine.select(
            pl.col("code").cast(pl.Int64),
            mine["level"].cast(pl.Enum(levels)).to_physical().cast(pl.Int64).alias("level"),
            *("mark", "amount", pl.col("known").dt.epoch("us")),
        )
        for places, codes_of, sums in grid.sums(_steps(mine, statistic), statistic):
            some = np.flatnonzero(sums)
            yield statistic, rows[places[some]], levels[codes_of[some]], sums[some]


@dataclass(frozen=True)
class _Grid:
    """The moments asked for, by entity and time; a step of a cell holds for a stretch of its entity's moments."""

    code: NDArray[np.int64]
    moment: NDArray[np.int64]

    def sums(
        self, steps: Frame, statistic: TimeStatistic
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """The sum over the cells of a level at each place: places, levels, sums, some entities at a time."""
        times = np.unique(self.moment)
        most = len(times) + 1
        places = self.code * most + np.searchsorted(times, self.moment)
        code, level, amount = (steps[name].to_numpy() for name in ("code", "level", "amount"))
        cell = steps["cell"].to_numpy()
        begins = np.searchsorted(places, code * most + np.searchsorted(times, steps["moment"].to_numpy()))
        whole = np.searchsorted(places, (code + 1) * most)
        same = (np.diff(code) == 0) & (np.diff(level) == 0) & (np.diff(cell) == 0)
        ends = np.where(np.append(same, False), np.append(begins[1:], 0), whole)
        held = np.flatnonzero(begins < ends)
        code, level, cell, amount, begins, ends = (part[held] for part in (code, level, cell, amount, begins, ends))
        if not len(held):
            return
        weights, ages = _weights(self.moment, statistic)
        # a stretch of the sums for each level of each entity, in the order of the steps
        is_first = np.append(True, (np.diff(code) != 0) | (np.diff(level) != 0))[: len(code)]
        lows = np.searchsorted(places, code * most)
        sizes = np.where(is_first, np.searchsorted(places, (code + 1) * most) - lows, 0)
        for begin, end in _blocks(code, np.cumsum(ends - begins + sizes)):
            count = (ends - begins)[begin:end]
            step = np.repeat(np.arange(begin, end), count)
            place = np.arange(len(step)) - np.repeat(np.cumsum(count) - count, count) + begins[step]
            worth = amount[step]
            if isinstance(statistic, DecayStatistic):
                worth = _decayed(worth, weights[place], ages[place] - cell[step])
            firsts = begin + np.flatnonzero(is_first[begin:end])
            size = sizes[firsts]
            offset = np.cumsum(size) - size
            number = np.cumsum(is_first[begin:end]) - 1
            sums = np.zeros(int(size.sum()), np.int64)
            np.add.at(sums, (offset - lows[firsts])[number[step - begin]] + place, worth)
            stretch = np.repeat(np.arange(len(firsts)), size)
            found = np.arange(len(sums)) - offset[stretch] + lows[firsts][stretch]
            yield found, level[firsts][stretch], sums


def _steps(marks: Frame, statistic: TimeStatistic) -> Frame:
    """The running sum of every cell after each of its changes: `code, level, cell, moment, amount`, sorted.

    A window is one cell that an event enters when it becomes known and leaves at its mark; each half-life of a decay is
    a cell of its own, which events only enter.
    """
    cell = pl.col("mark") if isinstance(statistic, DecayStatistic) else pl.lit(0, pl.Int64)
    if isinstance(statistic, WindowStatistic):
        marks = marks.filter(pl.col("known") < pl.col("mark"))
        leaving = marks.select("code", "level", pl.lit(0, pl.Int64).alias("cell"), "mark", -pl.col("amount"))
        marks = pl.concat(
            [marks.select("code", "level", cell.alias("cell"), "known", "amount"), leaving.rename({"mark": "known"})]
        )
    else:
        marks = marks.select("code", "level", cell.alias("cell"), "known", "amount")
    marks = marks.rename({"known": "moment"}).sort("code", "level", "cell", "moment")
    cells = ["code", "level", "cell"]
    return marks.with_columns(pl.col("amount").cum_sum().over(cells))


def _blocks(entities: NDArray[np.int64], total: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cuts the steps, sorted by entity, at borders of entities into blocks of bounded size."""
    borders = [*np.flatnonzero(np.diff(entities, prepend=-1)).tolist(), len(entities)]
    begin, before = 0, 0
    for border, following in zip(borders[1:], [*borders[2:], None], strict=True):
        if following is None or total[following - 1] - before > _MOST_ROWS:
            yield begin, border
            begin, before = border, int(total[border - 1])


def _weights(at: NDArray[np.int64], statistic: TimeStatistic) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each moment: how much its own half-life has decayed by then, and the number of that half-life."""
    if not isinstance(statistic, DecayStatistic):
        return np.ones(0), np.zeros(0, np.int64)
    # The age is a number of whole half-lives, by which halving is exact, and the moment's place in its own half-life.
    whole, rest = np.divmod(at, statistic.microseconds)
    return power_of_two(-rest.astype(np.float64) / statistic.microseconds), whole


def _decayed(amounts: NDArray[np.int64], weights: NDArray[np.float64], ages: NDArray[np.int64]) -> NDArray[np.int64]:
    """What amounts of so many half-lives ago count, still as whole numbers."""
    counted = np.ldexp(amounts.astype(np.float64) * weights, -np.minimum(ages, 2000).astype(np.int32))
    return np.where(ages <= _HALF_LIVES, np.rint(counted).astype(np.int64), 0)


def _in_units(sums: NDArray[np.int64], statistic: TimeStatistic) -> NDArray[np.float64]:
    """Sums as values: whole numbers are added, so that no order of theirs matters, and divided once.

    By numpy: polars multiplies by the reciprocal, or divides, by the shape at hand.
    """
    values: NDArray[np.float64] = sums.astype(np.float64) / _PER_UNIT[statistic.kind]
    return values


def power_of_two(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    """`2 ** x`, to the last bit or the one before.

    Libraries answer with another last bit where a number happens to lie in another lane of a vector register. These are
    single multiplications and additions (the Taylor series of the fraction's power), which every lane rounds alike.
    """
    whole = np.floor(exponents)
    fractions = (exponents - whole) * np.log(2.0)
    powers = np.ones_like(fractions)
    for degree in range(20, 0, -1):
        powers = 1.0 + powers * fractions / degree
    return np.ldexp(powers, np.clip(whole, -2000, 2000).astype(np.int32))


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _check(state: StatisticsState, moment: Any) -> None:
    if moment < state.until:
        raise ValueError(f"the state holds events known by {state.until}, so it cannot say what was at {moment}")
