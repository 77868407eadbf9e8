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

from collections.abc import Sequence
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
    """What must be remembered of the events known by `until` to go on from there: MARKS, sorted, no zero amounts."""

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
    return StatisticsState(marks.filter(_alive(statistics, pl.lit(_micros(until)))), until)


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
    found = _values(state.marks, statistics, pl.lit(_micros(at)))
    values = found.filter(pl.col("level") == "").group_by("entity", "statistic").agg(pl.col("value").sum())
    return _wide(pl.DataFrame({entity: entities.cast(pl.String)}), values, statistics, [entity], {"entity": entity})


def read_levels(state: StatisticsState, statistics: Sequence[TimeStatistic], *, at: datetime) -> Frame:
    """The statistics kept by a column at a moment: `statistic, entity, level, value`, sorted, no zeros."""
    _check(state, at)
    found = _values(state.marks, [s for s in statistics if s.by], pl.lit(_micros(at)))
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
    """When rows of a feature view are due, `entity, moment`: as events become known, and at midnights after them.

    Between events the windows empty and the decayed sums sink, so an entity has a row at every midnight (UTC) up to the
    first one at which no window holds an event and no event has a hundredth of its weight left. The rows are those
    after `state.until`, up to `until`.
    """
    plain = [statistic for statistic in statistics if not statistic.by]
    known = _arriving(batch, state.until, until)
    events = known.select(pl.col(entity).cast(pl.String).alias("entity"), pl.col("known").alias("moment")).unique()
    new = _as_marks(known, plain, entity)
    first = pl.concat(
        [
            state.marks.select("statistic", "entity", "mark", pl.lit(state.until, TIMESTAMP).alias("known")),
            new.select("statistic", "entity", "mark", "known"),
        ]
    )
    ends = pl.coalesce(
        *(
            pl.when(pl.col("statistic") == s.name).then(_end(s, _HALF_LIVES_OF_ROWS))
            for s in plain
            if not isinstance(s, TotalStatistic)
        ),
        pl.lit(None, pl.Int64),
    )
    spans = (
        first.with_columns(pl.from_epoch(ends, time_unit="us").dt.replace_time_zone("UTC").alias("end"))
        .drop_nulls("end")
        .group_by("entity", pl.col("known").dt.truncate("1d").alias("day"))
        .agg(pl.col("end").max())
        .select(
            "entity",
            (pl.col("day") + pl.duration(days=1)).alias("from"),
            pl.min_horizontal(
                (pl.col("end") - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1),
                pl.lit(until, TIMESTAMP),
            ).alias("to"),
        )
        .filter(pl.col("from") <= pl.col("to"))
    )
    midnights = spans.select(
        "entity", pl.datetime_ranges("from", "to", interval="1d", closed="both").alias("moment")
    ).explode("moment")
    rows = pl.concat([events, midnights.cast({"moment": TIMESTAMP})]).unique()
    inside = (pl.col("moment") > state.until) & (pl.col("moment") <= until)
    return rows.drop_nulls().filter(inside).sort("entity", "moment").rename({"entity": entity})


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
    """One row a key; amounts that cancel out leave nothing behind."""
    return marks.group_by(_KEY).agg(pl.col("amount").sum()).filter(pl.col("amount") != 0).sort(_KEY)


def _end(statistic: TimeStatistic, half_lives: int = _HALF_LIVES) -> pl.Expr:
    """The first microsecond at which a mark counts nothing any more."""
    if isinstance(statistic, WindowStatistic):
        return pl.col("mark")
    if isinstance(statistic, DecayStatistic):
        return (pl.col("mark") + 1 + half_lives) * statistic.microseconds
    return pl.lit(_NEVER, pl.Int64)


def _alive(statistics: Sequence[TimeStatistic], at: pl.Expr) -> pl.Expr:
    """Whether a mark still counts at the moment; marks of other statistics do not."""
    return pl.any_horizontal(pl.lit(False), *((pl.col("statistic") == s.name) & (at < _end(s)) for s in statistics))


def _values(marks: Frame, statistics: Sequence[TimeStatistic], at: pl.Expr) -> Frame:
    """`statistic, entity, level, value` at one moment, from the marks that still count."""
    marks = marks.filter(_alive(statistics, at)).with_columns(at.alias("at"))
    parts = [pl.DataFrame(schema={**dict.fromkeys(_KEY[:3], pl.String), "value": pl.Float64})]
    for statistic in statistics:
        worth = _worth(marks.filter(pl.col("statistic") == statistic.name), statistic, "mark")
        parts.append(_added(worth, _KEY[:3], statistic))
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
    # Every cell (a window, or one half-life of a decay) is a running sum; the last step by the moment holds it.
    cells = steps.select("statistic", "entity", "level", "cell").unique()
    found = (
        asked.join(cells, on="entity")
        .sort("moment", "row", "statistic", "level", "cell")
        .join_asof(
            steps.sort("moment"), on="moment", by=["statistic", "entity", "level", "cell"], check_sortedness=False
        )
        .drop_nulls("amount")
    )
    found = found.with_columns(pl.col("moment").dt.epoch("us").alias("at"))
    parts = [nothing]
    for statistic in statistics:
        worth = _worth(found.filter(pl.col("statistic") == statistic.name), statistic, "cell")
        parts.append(_added(worth, ["row", "statistic", "level"], statistic))
    return pl.concat(parts)


def _worth(rows: Frame, statistic: TimeStatistic, cell: str) -> Frame:
    """The rows with their `amount` as it counts at the moment `at`, still a whole number."""
    if not isinstance(statistic, DecayStatistic):
        return rows
    ages = (rows["at"] - rows[cell] * statistic.microseconds).cast(pl.Float64).to_numpy() / statistic.microseconds
    amounts = np.rint(rows["amount"].cast(pl.Float64).to_numpy() * power_of_two(-ages))
    return rows.with_columns(pl.Series("amount", np.where(ages < 1 + _HALF_LIVES, amounts, 0.0)).cast(pl.Int64))


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
