"""What a view remembers of the events known at a moment, so that it can go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from evensong.types import Frame

BEGINNING = datetime(1, 1, 1, tzinfo=UTC)

Schema = Mapping[str, pl.DataType]


@dataclass(frozen=True)
class ViewState:
    """Frames, each with the view's entity as its first column, that say all that later rows depend on."""

    parts: Mapping[str, Frame]
    until: datetime
    """The moment: every event that was known by then is in the state, and none other."""


def opened(state: ViewState | None, schemas: Mapping[str, Schema]) -> tuple[dict[str, Frame], datetime]:
    """The parts, empty ones before the first event, and the moment that they stand for."""
    if state is None:
        return {name: pl.DataFrame(schema=schema) for name, schema in schemas.items()}, BEGINNING
    return {name: state.parts[name] for name in schemas}, state.until


def with_known(rows: Frame) -> Frame:
    """Adds `known`: the moment from which on a run may see the row."""
    return rows.with_columns(pl.max_horizontal("event_timestamp", "created_timestamp").alias("known"))


def arriving(events: Frame, since: datetime, until: datetime) -> Frame:
    """The events that became known after `since`, by `until`, with `known`."""
    return with_known(events).filter((pl.col("known") > since) & (pl.col("known") <= until))


def latest(*moments: datetime | None) -> datetime:
    """The latest of the moments that are given."""
    return max((moment for moment in moments if moment is not None), default=BEGINNING)


def midnight_before(moment: datetime) -> datetime:
    """The last midnight (UTC) at or before a moment."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def day_end(moment: pl.Expr) -> pl.Expr:
    """The midnight (UTC) at which the moment's day ends: the first one at or after it."""
    return (moment - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1)
