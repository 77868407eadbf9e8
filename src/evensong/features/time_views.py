"""The rows of a view of time-aware statistics, and the state to go on from: at each change, or at midnights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from evensong.features.state import Schema, ViewState, arriving, day_end, latest, midnight_before, opened
from evensong.features.time_statistics import (
    MARKS,
    StatisticsState,
    TimeStatistic,
    moments_of_change,
    read_at,
    update,
)
from evensong.types import Frame


def marks_schema(entity: str) -> Schema:
    """The state of statistics as a part of a view's state: MARKS, the entity first and by the view's name for it."""
    return {entity: pl.String(), **{name: dtype for name, dtype in MARKS.items() if name != "entity"}}


def statistics_at(marks: Frame, entity: str, until: datetime) -> StatisticsState:
    """The state that a view's part holds."""
    return StatisticsState(marks.rename({entity: "entity"}).select(MARKS.keys()), until)


def marks_of(state: StatisticsState, entity: str) -> Frame:
    """The view's part that holds a state."""
    return state.marks.rename({"entity": entity}).select(list(marks_schema(entity)))


def at_each_change(
    events: Frame,
    statistics: Sequence[TimeStatistic],
    *,
    entity: str,
    state: ViewState | None,
    since: datetime | None,
    until: datetime,
) -> tuple[Frame, ViewState]:
    """`entity, moment` and one column a statistic, at the moments that `moments_of_change` names."""
    parts, at = opened(state, {"marks": marks_schema(entity)})
    held = statistics_at(parts["marks"], entity, at)
    events = arriving(events, at, until)
    moments = moments_of_change(events, statistics, entity=entity, state=held, until=until)
    moments = moments.filter(pl.col("moment") > latest(since))
    values = read_at(held, events, statistics, entity=entity, moments=moments)
    new = update(held, events, statistics, entity=entity, until=until)
    return values, ViewState({"marks": marks_of(new, entity)}, until)


def at_midnights(
    events: Frame,
    statistics: Sequence[TimeStatistic],
    columns: Mapping[str, pl.DataType],
    *,
    entity: str,
    state: ViewState | None,
    since: datetime | None,
    until: datetime,
) -> tuple[Frame, ViewState]:
    """`entity, moment` and one column a statistic, at each midnight (UTC) that ends a day in which a value changed.

    Args:
        columns: what the statistics read of events: these of the day that has not ended yet are kept in the state.
    """
    schema = {entity: pl.String(), **columns}
    parts, at = opened(state, {"marks": marks_schema(entity), "today": schema})
    held = statistics_at(parts["marks"], entity, midnight_before(at))
    events = pl.concat([parts["today"], arriving(events, at, until).select(list(schema))])
    midnight = max(held.until, midnight_before(until))
    moments = moments_of_change(events, statistics, entity=entity, state=held, until=midnight)
    moments = moments.select(entity, day_end(pl.col("moment"))).unique().sort(entity, "moment")
    moments = moments.filter(pl.col("moment") > latest(at, since))
    values = read_at(held, events, statistics, entity=entity, moments=moments)
    new = update(held, events, statistics, entity=entity, until=midnight)
    today = arriving(events, midnight, until).select(list(schema)).sort(list(schema))
    return values, ViewState({"marks": marks_of(new, entity), "today": today}, until)
