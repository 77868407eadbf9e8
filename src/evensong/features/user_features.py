"""Features of users beside the histories: who they are, what they do and spend, their last steps in order.

As everywhere, a row is stamped with the moment at which what it says became known, and an interaction counts from
`known = max(event_timestamp, created_timestamp)` on. The functions take one partition of the users. Those of events go
on from a state, as those of `transformations` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import polars as pl

from evensong.features.column_values import categories
from evensong.features.columns import CategoricalColumn, ColumnSet
from evensong.features.declarations import Feature, schema_of
from evensong.features.lists import lists
from evensong.features.newest import said_at_each_moment
from evensong.features.state import Schema, ViewState, arriving, latest, opened
from evensong.features.time_statistics import (
    DecayStatistic,
    TimeStatistic,
    WindowStatistic,
    moments_of_change,
    read_at,
    read_levels_at,
    update,
)
from evensong.features.time_views import marks_of, marks_schema, statistics_at
from evensong.types import TIMESTAMP, Frame

#: What every shop may know of a user; a key that is not there gives nulls.
STATIC_COLUMNS = ColumnSet(
    (
        CategoricalColumn(name="age_bucket", source="attributes.age", bins=(18, 25, 35, 50)),
        CategoricalColumn(name="gender", source="attributes.gender"),
        CategoricalColumn(name="membership_level", source="attributes.membership_level"),
        # all of it, as it stands: what people's own columns read
        CategoricalColumn(name="user_attributes", source="attributes"),
    )
)
COUNTED = ("view", "click", "cart", "purchase")
PURCHASE = "purchase"
DAYS = (1, 7, 30)
HOURS = 24
TEXTS, NUMBERS = pl.List(pl.String()), pl.List(pl.Float32())
_HALF_LIFE = "half-life {half_life_days:g} days"
_STEPS = "last {sequence_length} events"

PROFILE = (
    Feature("age_bucket", pl.String(), "From the users table: attributes.age, cut at 18, 25, 35 and 50."),
    Feature("gender", pl.String(), "From the users table: attributes.gender."),
    Feature("membership_level", pl.String(), "From the users table: attributes.membership_level."),
    Feature("user_attributes", pl.String(), "The row's JSON as it stands, for people's own columns."),
)
DYNAMICS = (
    Feature("decayed_events", pl.Float64(), "Positive events, decayed.", window=_HALF_LIFE),
    *(Feature(f"decayed_{kind}s", pl.Float64(), f"Its {kind} events.", window=_HALF_LIFE) for kind in COUNTED),
    *(Feature(f"spend_{d}d", pl.Float64(), "Value of purchases.", window=f"{d} day{'s' * (d > 1)}") for d in DAYS),
    Feature(
        "taste_categories",
        TEXTS,
        "Level-one categories of the decayed events, largest first.",
        window=_HALF_LIFE,
    ),
    Feature("taste_shares", NUMBERS, "Their shares of the decayed events.", window=_HALF_LIFE),
    Feature(
        "hour_shares",
        NUMBERS,
        "Shares of the decayed events by hour of day (UTC), 24 numbers.",
        window="half-life four times {half_life_days:g} days",
    ),
)
SEQUENCE = (
    Feature("sequence_item_ids", TEXTS, "Items, oldest first.", window=_STEPS),
    Feature("sequence_event_types", TEXTS, "Types of the events.", window=_STEPS),
    Feature("sequence_categories", TEXTS, "Level-one categories of the items at that moment.", window=_STEPS),
    Feature("sequence_gap_seconds", NUMBERS, "Seconds since the event before.", window=_STEPS),
)
USER_PROFILE = schema_of("user_id", *PROFILE)
USER_DYNAMICS = schema_of("user_id", *DYNAMICS)
USER_SEQUENCE = schema_of("user_id", *SEQUENCE)

_SEQUENCE_STATE: Mapping[str, Schema] = {
    "events": {
        "user_id": pl.String(),
        "known": TIMESTAMP,
        "event_timestamp": TIMESTAMP,
        "item_id": pl.String(),
        "event_type": pl.String(),
        "category": pl.String(),
        "gap": pl.Float32(),
    }
}


def user_profile(
    users: Frame, *, columns: ColumnSet = STATIC_COLUMNS, since: datetime | None = None, until: datetime
) -> Frame:
    """What the users table said of each user: `user_id`, the categorical columns of the set as text, the stamps.

    One row a moment at which the user's newest known row (largest `event_timestamp`, then `created_timestamp`) said
    something else; other kinds of columns are left out. What is written otherwise than expected stops no night: an age
    group such as `25-34` is a bucket of its own, an age that cannot be read is none.

    Raises:
        SourceError: the table lacks a column, or it is of the wrong type.
    """
    chosen = [column for column in columns.root if isinstance(column, CategoricalColumn)]
    return said_at_each_moment(
        users,
        lambda rows: pl.DataFrame([categories(rows, column, lenient=True).alias(column.name) for column in chosen]),
        entity="user_id",
        since=since,
        until=until,
    )


def user_statistics(half_life_days: float) -> list[TimeStatistic]:
    """What `user_dynamics` keeps of a user's events."""
    statistics: list[TimeStatistic] = [DecayStatistic(name="decayed_events", half_life_days=half_life_days)]
    for kind in COUNTED:
        statistics.append(DecayStatistic(name=f"decayed_{kind}s", half_life_days=half_life_days, event_types=(kind,)))
    for days in (1, 7, 30):
        statistics.append(WindowStatistic(name=f"spend_{days}d", days=days, column="value", event_types=(PURCHASE,)))
    return [
        *statistics,
        DecayStatistic(name="taste", half_life_days=half_life_days, by="category"),
        # Habits of the day change slowly: four half-lives of the tastes.
        DecayStatistic(name="hours", half_life_days=4 * half_life_days, by="hour"),
    ]


def user_dynamics(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    half_life_days: float,
    num_top_categories: int,
) -> tuple[Frame, ViewState]:
    """What each user did lately, as decayed counts, spend, taste and hours of the day, and the state to go on from.

    Args:
        events: at least those that became known after the state, each with its `category` (`with_category`).

    Returns:
        USER_DYNAMICS at the moments that `moments_of_change` names. Shares of tastes and hours sum to 1, hours in UTC;
        hours are an empty list without events.
    """
    parts, at = opened(state, {"marks": marks_schema("user_id")})
    held = statistics_at(parts["marks"], "user_id", at)
    statistics = user_statistics(half_life_days)
    events = arriving(events, at, until).with_columns(pl.col("event_timestamp").dt.hour().cast(pl.String).alias("hour"))
    moments = moments_of_change(events, statistics, entity="user_id", state=held, until=until)
    moments = moments.filter(pl.col("moment") > latest(since))
    values = read_at(held, events, statistics, entity="user_id", moments=moments)
    levels = read_levels_at(held, events, statistics, entity="user_id", moments=moments).filter(pl.col("value") > 0)
    values = values.with_row_index("row")
    taste = _top(levels.filter(pl.col("statistic") == "taste"), num_top_categories)
    values = values.join(taste, on="row", how="left", maintain_order="left").with_columns(
        pl.col("taste_categories").fill_null([]), pl.col("taste_shares").fill_null([])
    )
    values = values.with_columns(_hour_shares(levels.filter(pl.col("statistic") == "hours"), len(values)))
    rows = values.with_columns(_stamps("moment")).select(list(USER_DYNAMICS)).cast(pl.Schema(USER_DYNAMICS))
    new = update(held, events, statistics, entity="user_id", until=until)
    return rows, ViewState({"marks": marks_of(new, "user_id")}, until)


def user_sequence(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    sequence_length: int,
) -> tuple[Frame, ViewState]:
    """Each user's last `sequence_length` events in order, one row a moment at which it grew (USER_SEQUENCE).

    The lists are aligned, oldest first. A gap is the time since the user's event before, in seconds, 0 for the first
    one ever and for one that is older than the event before it; a missing category is an empty text.

    Args:
        events: at least those that became known after the state, each with its `category` (`with_category`).
    """
    parts, at = opened(state, _SEQUENCE_STATE)
    new = arriving(events, at, until).with_columns(pl.lit(None, pl.Float32).alias("gap"))
    users = new.select(pl.col("user_id").unique())
    rest = parts["events"].join(users, on="user_id", how="anti", maintain_order="left")
    mine = parts["events"].join(users, on="user_id", how="semi", maintain_order="left")
    steps = pl.concat([mine, new.select(list(_SEQUENCE_STATE["events"]))])
    steps = steps.sort("user_id", "known", "event_timestamp", "item_id", "event_type", maintain_order=True)
    gap = (pl.col("event_timestamp") - pl.col("event_timestamp").shift(1).over("user_id")).dt.total_microseconds() / 1e6
    steps = steps.with_columns(pl.coalesce("gap", gap.clip(0).cast(pl.Float32), pl.lit(0.0, pl.Float32)))
    numbered = steps.with_row_index("place").with_columns(pl.int_range(pl.len()).over("user_id").alias("number"))
    last = pl.struct("user_id", "known").ne_missing(pl.struct("user_id", "known").shift(-1))
    rows = numbered.filter(last | (pl.col("place") == len(steps) - 1)).filter(pl.col("known") > latest(at, since))
    spans = rows.select(
        pl.int_ranges(
            pl.col("place").cast(pl.Int64) - pl.min_horizontal(pl.col("number"), pl.lit(sequence_length - 1)),
            pl.col("place").cast(pl.Int64) + 1,
        ).alias("places")
    )
    places = spans.with_row_index("row").explode("places")
    columns = {"item_id": "item_ids", "event_type": "event_types", "category": "categories", "gap": "gap_seconds"}
    picked = steps.select(pl.col(old).alias(f"sequence_{new}") for old, new in columns.items())[places["places"]]
    picked = picked.with_columns(pl.col("sequence_categories").fill_null(""))
    listed = (
        pl.concat([places.select("row"), picked], how="horizontal").group_by("row", maintain_order=True).agg(pl.all())
    )
    found = pl.concat([rows.select("user_id", "known"), listed.drop("row")], how="horizontal")
    found = found.with_columns(_stamps("known")).select(list(USER_SEQUENCE)).cast(pl.Schema(USER_SEQUENCE))
    kept = steps.group_by("user_id", maintain_order=True).tail(sequence_length)
    return found, ViewState({"events": pl.concat([rest, kept]).sort("user_id", maintain_order=True)}, until)


def _top(levels: Frame, length: int) -> Frame:
    """The largest levels of each row with their shares, ties by name."""
    shares = levels.with_columns((pl.col("value") / pl.col("value").sum().over("row")).cast(pl.Float32).alias("share"))
    # Weights that are equal by definition may differ in their last billionth, where decay rounds an event.
    ordered = shares.sort("row", pl.col("value").round(6), "level", descending=[False, True, False])
    return (
        ordered.group_by("row", maintain_order=True)
        .agg(pl.col("level").head(length).alias("taste_categories"), pl.col("share").head(length).alias("taste_shares"))
        .cast({"row": pl.UInt32})
    )


def _hour_shares(levels: Frame, num_rows: int) -> pl.Series:
    """Shares by hour, 24 numbers a row, or an empty list where nothing is left."""
    table = np.zeros((num_rows, HOURS))
    table[levels["row"].to_numpy(), levels["level"].cast(pl.Int64).to_numpy()] = levels["value"].to_numpy()
    total = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, total, out=table, where=total > 0).astype(np.float32)
    some = total[:, 0] > 0
    offsets = np.concatenate([[0], (some * HOURS).cumsum()])
    return lists(pl.Series(shares[some].ravel(), dtype=pl.Float32), offsets).alias("hour_shares")


def _stamps(moment: str) -> list[pl.Expr]:
    return [pl.col(moment).cast(TIMESTAMP).alias(name) for name in ("event_timestamp", "created_timestamp")]
