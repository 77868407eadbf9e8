"""Features of users beside those of `recommender_v1`: who they are, what they do and spend, their last steps in order.

As everywhere, a row is stamped with the moment at which what it says became known, and an interaction counts from
`known = max(event_timestamp, created_timestamp)` on. The functions take one partition of the users. Those that carry a
state return it: the next call takes it together with the events that became known since, by night or from the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from evensong.features.column_values import categories
from evensong.features.columns import CategoricalColumn, ColumnSet
from evensong.features.declarations import FeatureDeclaration, ViewDeclaration
from evensong.features.newest import said_at_each_moment
from evensong.features.point_in_time import point_in_time_join
from evensong.features.time_statistics import (
    DecayStatistic,
    StatisticsState,
    TimeStatistic,
    WindowStatistic,
    empty_state,
    moments_of_change,
    read_at,
    read_levels_at,
    update,
)
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

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
HOURS = 24
STAMPS: dict[str, pl.DataType] = {"event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP}

USER_PROFILE: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    **{column.name: pl.String() for column in STATIC_COLUMNS.root},
    **STAMPS,
}
USER_DYNAMICS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "decayed_events": pl.Float64(),
    **{f"decayed_{kind}s": pl.Float64() for kind in COUNTED},
    **{f"spend_{days}d": pl.Float64() for days in (1, 7, 30)},
    "taste_categories": pl.List(pl.String()),
    "taste_shares": pl.List(pl.Float32()),
    "hour_shares": pl.List(pl.Float32()),
    **STAMPS,
}
USER_SEQUENCE: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "sequence_item_ids": pl.List(pl.String()),
    "sequence_event_types": pl.List(pl.String()),
    "sequence_categories": pl.List(pl.String()),
    "sequence_gap_seconds": pl.List(pl.Float32()),
    **STAMPS,
}


def user_profile(
    users: Frame, *, columns: ColumnSet = STATIC_COLUMNS, since: datetime | None = None, until: datetime
) -> Frame:
    """What the users table said of each user: `user_id`, the categorical columns of the set as text, the stamps.

    One row a moment at which the user's newest known row (largest `event_timestamp`, then `created_timestamp`) said
    something else; other kinds of columns are left out.

    Raises:
        SourceError: the table lacks a column, or it is of the wrong type.
    """
    chosen = [column for column in columns.root if isinstance(column, CategoricalColumn)]
    return said_at_each_moment(
        users,
        lambda rows: pl.DataFrame([categories(rows, column, groups=True).alias(column.name) for column in chosen]),
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
    interactions: Frame,
    items: Frame,
    *,
    state: StatisticsState | None = None,
    half_life_days: float = 7.0,
    num_top_categories: int = 5,
    until: datetime,
) -> tuple[Frame, StatisticsState]:
    """What each user did lately, as decayed counts, spend, taste and hours of the day, and the state to go on from.

    Args:
        interactions: at least those that became known after the state, with the columns of the lake.
        items: the items table; an event takes the level-one category that its item had when the event became known.

    Returns:
        Rows `user_id, decayed_events, decayed_<type>s, spend_1d, spend_7d, spend_30d, taste_categories, taste_shares,
        hour_shares` and stamps, at the moments that `moments_of_change` names. Shares of tastes and hours sum to 1,
        hours in UTC; hours are an empty list without events.
    """
    state = state or empty_state()
    statistics = user_statistics(half_life_days)
    events = _with_levels(interactions, items)
    moments = moments_of_change(events, statistics, entity="user_id", state=state, until=until)
    values = read_at(state, events, statistics, entity="user_id", moments=moments)
    levels = read_levels_at(state, events, statistics, entity="user_id", moments=moments).filter(pl.col("value") > 0)
    values = values.with_row_index("row")
    taste = _top(levels.filter(pl.col("statistic") == "taste"), num_top_categories)
    values = values.join(taste, on="row", how="left", maintain_order="left").with_columns(
        pl.col("taste_categories").fill_null([]), pl.col("taste_shares").fill_null([])
    )
    values = values.with_columns(_hour_shares(levels.filter(pl.col("statistic") == "hours"), len(values)))
    names = [name for name in values.columns if name not in ("row", "user_id", "moment")]
    rows = values.select("user_id", *names, *_stamps("moment"))
    return rows, update(state, events, statistics, entity="user_id", until=until)


@dataclass(frozen=True)
class SequenceState:
    """The last events of each user, in the order in which they became known."""

    events: Frame
    until: datetime


def user_sequence(
    interactions: Frame, items: Frame, *, state: SequenceState | None = None, length: int = 50, until: datetime
) -> tuple[Frame, SequenceState]:
    """Each user's last `length` events in order, one row a moment at which it grew, and the state to go on from.

    Returns:
        `user_id, sequence_item_ids, sequence_event_types, sequence_categories, sequence_gap_seconds` and stamps; the
        lists are aligned, oldest first. A gap is the time since the user's event before, in seconds, 0 for the first
        one ever and for one that is older than the event before it; a missing category is an empty text.
    """
    since = state.until if state else datetime(1, 1, 1, tzinfo=UTC)
    new = _with_levels(interactions, items).filter((pl.col("known") > since) & (pl.col("known") <= until))
    kept = ["user_id", "known", "event_timestamp", "item_id", "event_type", "category"]
    new = new.select(*kept, pl.lit(None, pl.Float32).alias("gap"))
    order = ["user_id", "known", "event_timestamp", "item_id", "event_type"]
    # stable: events that are alike in all of this keep the order, and the gaps, that they had in the state
    events = (pl.concat([state.events, new]) if state else new).sort(order, maintain_order=True)
    gap = (pl.col("event_timestamp") - pl.col("event_timestamp").shift(1).over("user_id")).dt.total_microseconds() / 1e6
    events = events.with_columns(pl.coalesce("gap", gap.clip(0).cast(pl.Float32), pl.lit(0.0, pl.Float32)))
    numbered = events.with_row_index("place").with_columns(pl.int_range(pl.len()).over("user_id").alias("number"))
    last = pl.struct("user_id", "known").ne_missing(pl.struct("user_id", "known").shift(-1))
    rows = numbered.filter(last | (pl.col("place") == len(events) - 1)).filter(pl.col("known") > since)
    spans = rows.select(
        pl.int_ranges(
            pl.col("place").cast(pl.Int64) - pl.min_horizontal(pl.col("number"), pl.lit(length - 1)),
            pl.col("place").cast(pl.Int64) + 1,
        ).alias("places")
    )
    places = spans.with_row_index("row").explode("places")
    columns = {"item_id": "item_ids", "event_type": "event_types", "category": "categories", "gap": "gap_seconds"}
    picked = events.select(pl.col(old).alias(f"sequence_{new}") for old, new in columns.items())[places["places"]]
    picked = picked.with_columns(pl.col("sequence_categories").fill_null(""))
    listed = (
        pl.concat([places.select("row"), picked], how="horizontal").group_by("row", maintain_order=True).agg(pl.all())
    )
    found = pl.concat([rows.select("user_id", "known"), listed.drop("row")], how="horizontal")
    found = found.select("user_id", *picked.columns, *_stamps("known"))
    return found, SequenceState(events.group_by("user_id", maintain_order=True).tail(length), until)


def views(half_life_days: float = 7.0, length: int = 50, columns: ColumnSet = STATIC_COLUMNS) -> list[ViewDeclaration]:
    """What this module computes, for the dictionary."""
    half_life = f"half-life {half_life_days:g} days"
    text, number, words = "String", "Float64", "List(String)"
    static = [
        FeatureDeclaration(name=column.name, type=text, description=f"From the users table: {column.place}.")
        for column in columns.root
        if isinstance(column, CategoricalColumn)
    ]
    dynamic = [
        FeatureDeclaration(name="decayed_events", type=number, description="Events, decayed.", window=half_life),
        *(
            FeatureDeclaration(
                name=f"decayed_{kind}s", type=number, description=f"Its {kind} events.", window=half_life
            )
            for kind in COUNTED
        ),
        *(
            FeatureDeclaration(name=f"spend_{d}d", type=number, description="Value of purchases.", window=f"{d} days")
            for d in (1, 7, 30)
        ),
        FeatureDeclaration(
            name="taste_categories", type=words, description="Level-one categories, largest first.", window=half_life
        ),
        FeatureDeclaration(
            name="taste_shares",
            type="List(Float32)",
            description="Their shares of the decayed events.",
            window=half_life,
        ),
        FeatureDeclaration(
            name="hour_shares",
            type="List(Float32)",
            description="Shares of the decayed events by hour of day (UTC), 24 numbers.",
            window=f"half-life {4 * half_life_days:g} days",
        ),
    ]
    window = f"last {length} events"
    steps = [
        FeatureDeclaration(name="sequence_item_ids", type=words, description="Items, oldest first.", window=window),
        FeatureDeclaration(name="sequence_event_types", type=words, description="Types of the events.", window=window),
        FeatureDeclaration(name="sequence_categories", type=words, description="Level-one categories.", window=window),
        FeatureDeclaration(
            name="sequence_gap_seconds",
            type="List(Float32)",
            description="Seconds since the event before.",
            window=window,
        ),
    ]
    here = "evensong.features.user_features"
    declared = [column.model_dump_json() for column in columns.root if isinstance(column, CategoricalColumn)]
    return [
        ViewDeclaration(
            name="user_profile",
            entity="user_id",
            source="users",
            function=f"{here}:user_profile",
            features=tuple(static),
            parameters={"columns": "; ".join(declared)},
        ),
        ViewDeclaration(
            name="user_dynamics",
            entity="user_id",
            source="interactions, items",
            function=f"{here}:user_dynamics",
            features=tuple(dynamic),
            parameters={"half_life_days": f"{half_life_days:g}"},
        ),
        ViewDeclaration(
            name="user_sequence",
            entity="user_id",
            source="interactions, items",
            function=f"{here}:user_sequence",
            features=tuple(steps),
            parameters={"length": str(length)},
        ),
    ]


def _with_levels(interactions: Frame, items: Frame) -> Frame:
    """The events with `known`, their item's level-one `category` at that moment, and their `hour` of day."""
    events = interactions.with_columns(
        pl.max_horizontal("event_timestamp", "created_timestamp").alias("known"),
        pl.col("event_timestamp").dt.hour().cast(pl.String).alias("hour"),
    )
    joined = point_in_time_join(
        events, items, keys={"item_id": "item_id"}, columns={"category_path": "category"}, moment="known"
    )
    return joined.with_columns(pl.col("category").str.split(CATEGORY_SEPARATOR).list.first())


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
    rows = [row.tolist() if some else [] for row, some in zip(shares, total[:, 0] > 0, strict=True)]
    return pl.Series("hour_shares", rows, dtype=pl.List(pl.Float32))


def _stamps(moment: str) -> list[pl.Expr]:
    return [pl.col(moment).cast(TIMESTAMP).alias(name) for name in ("event_timestamp", "created_timestamp")]
