"""Statistics of events that people declare in their columns file: a view of the users, and one of the items.

A statistic sums, counts or averages a number over the events of a user or an item, in a sliding window or with
exponential decay (`time_statistics`). The number is the event's own, or one of its item or user as the tables said when
the event became known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from evensong.features.column_values import number_at
from evensong.features.columns import StatisticDeclaration, WindowDeclaration
from evensong.features.point_in_time import point_in_time_join
from evensong.features.state import ViewState, with_known
from evensong.features.time_statistics import DecayStatistic, TimeStatistic, WindowStatistic
from evensong.features.time_views import at_each_change, at_midnights
from evensong.features.transformations import positive_events
from evensong.types import TIMESTAMP, Frame

_TIMES = ("event_timestamp", "created_timestamp")


def events_with_amounts(
    interactions: Frame,
    items: Frame,
    users: Frame,
    types: Sequence[str],
    min_value: Mapping[str, float],
    statistics: Sequence[StatisticDeclaration],
) -> Frame:
    """The events that a statistic counts: ids, times, and one column an amount (`amounts_of`), null where none counts.

    Raises:
        SourceError: a number's place is not in the items' or users' attributes, or no value there is a number.
    """
    events = interactions.with_row_index("__row")
    wanted = positive_events(events, types, min_value)["__row"]
    for table, rows in (("item", items), ("user", users)):
        places = sorted({s.column for s in statistics if s.column and s.column.startswith(f"{table}.")})
        if not places:
            continue
        key = f"{table}_id"
        said = rows.select(
            key, *_TIMES, *(number_at(rows, place, place.partition(".")[2]).alias(place) for place in places)
        )
        events = point_in_time_join(
            with_known(events), said, keys={key: key}, columns={place: place for place in places}, moment="known"
        )
    amounts = []
    for statistic in statistics:
        counts = (
            pl.col("__row").is_in(wanted.implode())
            if statistic.event_types is None
            else pl.col("event_type").is_in(list(statistic.event_types))
        )
        number = pl.lit(1.0) if statistic.column is None else pl.col(statistic.column).cast(pl.Float64)
        number = pl.when(counts & number.is_finite()).then(number)
        for amount in amounts_of(statistic):
            amounts.append((number if amount.startswith("sum") else number * 0 + 1).alias(amount))
    found = events.select("user_id", "item_id", *_TIMES, *amounts)
    return found.filter(pl.any_horizontal(pl.col(amount.meta.output_name()).is_not_null() for amount in amounts))


def amounts_of(statistic: StatisticDeclaration) -> list[str]:
    """What is kept of the events for a statistic: their sum, their number, or both."""
    kept = {"sum": ["sum"], "count": ["count"], "mean": ["sum", "count"]}[statistic.computes]
    return [f"{name} {statistic.name}" for name in kept]


def user_statistics(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    statistics: Sequence[StatisticDeclaration],
) -> tuple[Frame, ViewState]:
    """The declared statistics of each user at the moments that `moments_of_change` names."""
    kept = [one for statistic in statistics for one in _kept(statistic)]
    values, new = at_each_change(events, kept, entity="user_id", state=state, since=since, until=until)
    return _rows(values, "user_id", statistics), new


def item_statistics(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    statistics: Sequence[StatisticDeclaration],
) -> tuple[Frame, ViewState]:
    """The declared statistics of each item at each midnight (UTC) that ends a day in which one changed."""
    kept = [one for statistic in statistics for one in _kept(statistic)]
    schema = {**dict.fromkeys(_TIMES, TIMESTAMP), **dict.fromkeys((one.name for one in kept), pl.Float64())}
    values, new = at_midnights(events, kept, schema, entity="item_id", state=state, since=since, until=until)
    return _rows(values, "item_id", statistics), new


def _kept(statistic: StatisticDeclaration) -> list[TimeStatistic]:
    if isinstance(statistic, WindowDeclaration):
        return [WindowStatistic(name=name, days=statistic.window_days, column=name) for name in amounts_of(statistic)]
    return [
        DecayStatistic(name=name, half_life_days=statistic.half_life_days, column=name)
        for name in amounts_of(statistic)
    ]


def _rows(values: Frame, entity: str, statistics: Sequence[StatisticDeclaration]) -> Frame:
    """One column a statistic; a mean of nothing is null."""
    columns = []
    for statistic in statistics:
        parts = [pl.col(name) for name in amounts_of(statistic)]
        value = pl.when(parts[1] > 0).then(parts[0] / parts[1]) if len(parts) == 2 else parts[0]
        columns.append(value.cast(pl.Float64).alias(statistic.name))
    stamps = [pl.col("moment").cast(TIMESTAMP).alias(name) for name in _TIMES]
    return values.select(entity, *columns, *stamps)
