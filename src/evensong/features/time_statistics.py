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
    """What must be remembered of the events known by `until` to go on from there: MARKS, sorted."""

    marks: Frame
    until: datetime

    def __eq__(self, other: object) -> bool:
        """Equal when both would give the same values for ever."""
        return isinstance(other, StatisticsState) and self.until == other.until and self.marks.equals(other.marks)

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
    new = _as_marks(_arriving(batch, state.until, until), statistics, entity)
    marks = _summed(pl.concat([state.marks, new.select(MARKS.keys())]))
    return StatisticsState(marks.filter(_alive(statistics, pl.lit(_micros(until)), to_midnight=True)), until)


def merge(left: StatisticsState, right: StatisticsState) -> StatisticsState:
    """The state of both partitions together, or of two halves of one entity's events."""
    if left.until != right.until:
        raise ValueError(
            f"states are added at one moment, got {left.until} and {right.until}; update the earlier one first"
        )
    return StatisticsState(_summed(pl.concat([left.marks, right.marks])), left.until)


def read(
    state: StatisticsState, statistics: Sequence[TimeStatistic], *, entity: str, entities: pl.Series, at: datetime
) -> Frame:
    """The values at a moment not before the state's: `entity` in the order given, one float column a statistic.

    A statistic kept by a column is not among them; see `read_levels`. An entity without events has zeros.
    """
    _check(state, at)
    found = _values(state.marks, statistics, at)
    values = found.filter(pl.col("level") == "").group_by("entity", "statistic").agg(pl.col("value").sum())
    return _wide(pl.DataFrame({entity: entities.cast(pl.String)}), values, statistics, [entity], {"entity": entity})


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
    values = _long_at(state, batch, plain, entity, moments)
    rows = moments.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))
    return pl.concat([moments, _wide(rows, values, plain, ["row"], {}).drop("row")], how="horizontal")


def read_levels_at(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], *, entity: str, moments: Frame
) -> Frame:
    """As `read_at` for the statistics that are kept by a column: `row, statistic, level, value`, sorted, no zeros.

    `row` counts the rows of `moments` from 0.
    """
    values = _long_at(state, batch, [s for s in statistics if s.by], entity, moments)
    return values.filter(pl.col("value") != 0).sort("row", "statistic", "level")


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
    marks = pl.concat([held, _as_marks(known, statistics, entity).select(held.columns)]).unique()
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
            due.append(mine.filter(midnight > pl.col("known")).select("entity", midnight.alias("moment")).unique())
    inside = (pl.col("moment") > state.until) & (pl.col("moment") <= until)
    return pl.concat(due).unique().drop_nulls().filter(inside).sort("entity", "moment").rename({"entity": entity})


def _arriving(batch: Frame, since: datetime, until: datetime) -> Frame:
    """The rows that became known after `since`, by `until`, with `known`."""
    known = pl.max_horizontal("event_timestamp", "created_timestamp").alias("known")
    return batch.with_columns(known).filter((pl.col("known") > since) & (pl.col("known") <= until))


def _as_marks(events: Frame, statistics: Sequence[TimeStatistic], entity: str) -> Frame:
    """Each event as each statistic keeps it: MARKS and `known`."""
    parts = [_marks_of(events, statistic, entity) for statistic in statistics]
    return pl.concat(parts) if parts else pl.DataFrame(schema={**MARKS, "known": TIMESTAMP})


def _marks_of(events: Frame, statistic: TimeStatistic, entity: str) -> Frame:
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
    ).drop_nulls()
    largest = marks["amount"].abs().sum()
    if not largest < _LARGEST:  # also refuses infinities and not-a-numbers
        raise ValueError(
            f"statistic {statistic.name}: amounts of {largest / _PER_UNIT[statistic.kind]:g} in one batch do not fit "
            "its exact sums; leave out infinite values or divide the column"
        )
    return marks.cast({"amount": pl.Int64})


def _summed(marks: Frame) -> Frame:
    """One row a key. Amounts that cancel out stay, as zeros, since rows are due when they leave a window."""
    return marks.group_by(_KEY).agg(pl.col("amount").sum()).sort(_KEY)


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
        moments = np.full(len(mine), _micros(at), np.int64)
        worth = _worth(mine["amount"].to_numpy(), mine["mark"].to_numpy(), moments, statistic)
        parts.append(_added(mine.with_columns(pl.Series("amount", worth)), _KEY[:3], statistic))
    return pl.concat(parts)


def _long_at(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], entity: str, moments: Frame
) -> Frame:
    """`row, statistic, level, value` for each row of the moments and each statistic that has steps by then."""
    nothing = pl.DataFrame(schema={"row": pl.UInt32, "statistic": pl.String, "level": pl.String, "value": pl.Float64})
    if moments.is_empty() or not statistics:
        return nothing
    _check(state, moments["moment"].min())
    steps = _steps(state, batch, statistics, entity, moments["moment"].max())  # type: ignore[arg-type]
    asked = moments.select(pl.col(entity).cast(pl.String).alias("entity"), "moment").with_row_index("row")
    asked = asked.sort("entity", "moment", "row")
    parts = [nothing]
    for statistic in statistics:
        mine = steps.filter(pl.col("statistic") == statistic.name)
        parts.extend(_added(part, ["row", "statistic", "level"], statistic) for part in _met(mine, asked, statistic))
    return pl.concat(parts)


def _met(steps: Frame, asked: Frame, statistic: TimeStatistic) -> Iterator[Frame]:
    """What each cell is worth at each moment asked: `row, statistic, level, amount`, some entities at a time.

    A step holds from its moment to the next one of its cell, and so for a stretch of the entity's moments in order.
    """
    steps = steps.join(asked.select("entity").unique(), on="entity", how="semi").sort(
        "entity", "level", "cell", "moment"
    )
    if steps.is_empty():
        return
    entities = asked["entity"].unique().sort()
    times = pl.concat([asked["moment"], steps["moment"]]).rank("dense").cast(pl.Int64).to_numpy()
    most = len(times) + 2
    of_asked = entities.search_sorted(asked["entity"]).cast(pl.Int64).to_numpy() * most
    of_steps = entities.search_sorted(steps["entity"]).cast(pl.Int64).to_numpy() * most
    places = of_asked + times[: len(asked)]
    begins = of_steps + times[len(asked) :]
    same = (steps.select("entity", "level", "cell").to_struct().rle_id().diff() == 0).fill_null(False).to_numpy()
    ends = np.where(np.append(same[1:], False), np.append(begins[1:], 0), of_steps + most)
    first, last = np.searchsorted(places, begins, side="left"), np.searchsorted(places, ends, side="left")
    at = asked["moment"].dt.epoch("us").to_numpy()
    rows, amounts = asked["row"].to_numpy(), steps["amount"].to_numpy()
    cells, levels = steps["cell"].to_numpy(), steps["level"]
    for begin, end in _blocks(of_steps, np.cumsum(last - first)):
        count = (last - first)[begin:end]
        step = np.repeat(np.arange(begin, end), count)
        place = np.arange(len(step)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first[begin:end], count)
        yield pl.DataFrame(
            {
                "row": rows[place],
                "statistic": pl.repeat(statistic.name, len(step), eager=True),
                "level": levels[step],
                "amount": _worth(amounts[step], cells[step], at[place], statistic),
            }
        )


def _blocks(entities: NDArray[np.int64], total: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cuts the steps, sorted by entity, at borders of entities into blocks of bounded size."""
    borders = [*np.flatnonzero(np.diff(entities, prepend=-1)).tolist(), len(entities)]
    begin, before = 0, 0
    for border, following in zip(borders[1:], [*borders[2:], None], strict=True):
        if following is None or total[following - 1] - before > _MOST_ROWS:
            yield begin, border
            begin, before = border, int(total[border - 1])


def _worth(
    amounts: NDArray[np.int64], cells: NDArray[np.int64], at: NDArray[np.int64], statistic: TimeStatistic
) -> NDArray[np.int64]:
    """What the amounts of cells (or marks) count at their moments, still as whole numbers."""
    if not isinstance(statistic, DecayStatistic):
        return amounts
    # The age is a number of whole half-lives, by which halving is exact, and the moment's place in its own half-life.
    whole, rest = np.divmod(at, statistic.microseconds)
    weights = power_of_two(-rest.astype(np.float64) / statistic.microseconds)
    ages = np.minimum(whole - cells, 2000).astype(np.int32)
    counted = np.rint(np.ldexp(amounts.astype(np.float64) * weights, -ages)).astype(np.int64)
    return np.where(ages <= _HALF_LIVES, counted, 0)


def _added(rows: Frame, keys: list[str], statistic: TimeStatistic) -> Frame:
    """The value of each key: whole numbers are added, so that no order of theirs matters, and divided once."""
    added = rows.group_by(keys).agg(pl.col("amount").sum())
    # By numpy: polars multiplies by the reciprocal, or divides, by the shape at hand.
    values = added["amount"].cast(pl.Float64).to_numpy() / _PER_UNIT[statistic.kind]
    return added.select(keys).with_columns(pl.Series("value", values, dtype=pl.Float64))


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


def _steps(
    state: StatisticsState, batch: Frame, statistics: Sequence[TimeStatistic], entity: str, until: datetime
) -> Frame:
    """The running sum of every cell after each of its changes: `statistic, entity, level, cell, moment, amount`.

    A window is one cell that an event enters when it becomes known and leaves at its mark; each half-life of a decay is
    a cell of its own, which events only enter.
    """
    held = state.marks.filter(pl.col("statistic").is_in([s.name for s in statistics]))
    new = _as_marks(_arriving(batch, state.until, until), statistics, entity)
    entering = pl.concat(
        [
            held.with_columns(pl.lit(state.until, TIMESTAMP).alias("known")).select(new.columns),
            new,
        ]
    )
    windows = [s.name for s in statistics if isinstance(s, WindowStatistic)]
    decays = [s.name for s in statistics if isinstance(s, DecayStatistic)]
    is_window = pl.col("statistic").is_in(windows)
    cell = pl.when(pl.col("statistic").is_in(decays)).then("mark").otherwise(0).alias("cell")
    leaves = pl.from_epoch("mark", time_unit="us").dt.replace_time_zone("UTC").alias("moment")
    inside = entering.filter(~is_window | (pl.col("known").dt.epoch("us") < pl.col("mark")))
    changes = pl.concat(
        [
            inside.select("statistic", "entity", "level", cell, pl.col("known").alias("moment"), "amount"),
            inside.filter(is_window).select("statistic", "entity", "level", cell, leaves, -pl.col("amount")),
        ]
    )
    return (
        changes.group_by("statistic", "entity", "level", "cell", "moment")
        .agg(pl.col("amount").sum())
        .sort("statistic", "entity", "level", "cell", "moment")
        .with_columns(pl.col("amount").cum_sum().over("statistic", "entity", "level", "cell"))
    )


def _wide(
    rows: Frame, values: Frame, statistics: Sequence[TimeStatistic], on: list[str], renamed: dict[str, str]
) -> Frame:
    """One column a statistic, zeros where there is no value, rows in their order."""
    for statistic in statistics:
        if statistic.by:
            continue
        mine = values.filter(pl.col("statistic") == statistic.name).rename(renamed)
        rows = rows.join(
            mine.select(*on, pl.col("value").alias(statistic.name)), on=on, how="left", maintain_order="left"
        ).with_columns(pl.col(statistic.name).fill_null(0.0))
    return rows


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _check(state: StatisticsState, moment: Any) -> None:
    if moment < state.until:
        raise ValueError(f"the state holds events known by {state.until}, so it cannot say what was at {moment}")
