"""What the features are: plain functions from frames of interactions and items to the rows of the feature views.

Every row is stamped with the moment at which the state it describes became known (`event_timestamp` and
`created_timestamp` are that moment). An interaction counts from `known = max(event_timestamp, created_timestamp)` on,
so one that arrives late changes the features of later moments and never of earlier ones.

The functions take the interactions of one partition of entities and know nothing of the others; a partition of the
users (for the user views) or of the items (for the item views) in, the same partition's rows out. `since`, a midnight,
leaves out the rows stamped at or before it; `until` is the moment at which the view ends.

Days end at midnight UTC; the midnight itself belongs to the day that it ends.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa

from evensong.settings import FeatureSettings, SplitSettings
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

STAMPS: dict[str, pl.DataType] = {"event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP}

USER_HISTORY: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "recent_item_ids": pl.List(pl.String()),
    "recent_event_types": pl.List(pl.String()),
    "num_interactions": pl.Int64(),
    "last_interaction_seconds": pl.Int64(),
    "top_categories": pl.List(pl.String()),
    "top_category_shares": pl.List(pl.Float32()),
    **STAMPS,
}
USER_ACTIVITY: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "num_events_1d": pl.Int64(),
    "num_events_7d": pl.Int64(),
    "num_events_30d": pl.Int64(),
    **STAMPS,
}
ITEM_POPULARITY: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "item_events_1d": pl.Int64(),
    "item_events_7d": pl.Int64(),
    "item_events_30d": pl.Int64(),
    "item_events_total": pl.Int64(),
    "item_users_30d": pl.Int64(),
    **STAMPS,
}
ITEM_CONTENT: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "category_path": pl.String(),
    "price": pl.Float64(),
    "arrival_seconds": pl.Int64(),
    **STAMPS,
}
USER_SEEN: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "seen_item_ids": pl.List(pl.String()),
    "purchased_item_ids": pl.List(pl.String()),
    **STAMPS,
}

#: The columns of the interactions that the functions below read.
INTERACTION_COLUMNS = ("user_id", "item_id", "event_type", "event_timestamp", "value", "created_timestamp")

WINDOWS = {"1d": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
PURCHASE = "purchase"
#: Cells of the category table that are counted at once; bounds the memory of `user_history`.
_MAX_CELLS = 8_000_000


def positive_events(interactions: Frame, split: SplitSettings) -> Frame:
    """The interactions that count as wanting the item: a positive type, at or above the type's smallest value.

    Where a type has one, an event without a value does not reach it.
    """
    keep = pl.col("event_type").is_in(list(split.positive_event_types))
    for event_type, smallest in sorted(split.min_value.items()):
        keep &= (pl.col("event_type") != event_type) | (pl.col("value") >= smallest).fill_null(False)
    return interactions.filter(keep)


def with_known(rows: Frame) -> Frame:
    """Adds `known`: the moment from which on a run may see the row."""
    return rows.with_columns(pl.max_horizontal("event_timestamp", "created_timestamp").alias("known"))


def day_end(moment: pl.Expr) -> pl.Expr:
    """The midnight at which the moment's day ends: the first one at or after it."""
    return (moment - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1)


def user_history(
    positives: Frame, items: Frame, settings: FeatureSettings, *, since: datetime | None = None, until: datetime
) -> Frame:
    """What each user wanted: one row a moment at which that changed (USER_HISTORY).

    `recent_item_ids` are the last `history_length` positive events in the order in which they became known, oldest
    first (equal moments by event time, then item, then type). `num_interactions` counts all of them,
    `last_interaction_seconds` is the latest event's own time. `top_categories` are the level-one categories of all of
    them, as the items table named them when the event became known, largest share first, ties by name; shares are of
    the events with a category.
    """
    events = _in_known_order(positives, items, until)
    if events.is_empty():
        return pl.DataFrame(schema=USER_HISTORY)
    last_of_moment = (pl.col("user_id") != pl.col("user_id").shift(-1)) | (pl.col("known") != pl.col("known").shift(-1))
    events = events.with_row_index("__position").with_columns(
        (pl.int_range(pl.len()).over("user_id") + 1).alias("num_interactions"),
        pl.col("event_timestamp").cum_max().over("user_id").alias("last"),
        last_of_moment.fill_null(True).alias("__emit"),
    )
    emit = pl.col("__emit") if since is None else pl.col("__emit") & (pl.col("known") > since)
    rows = events.filter(emit)
    ends = rows["__position"].to_numpy().astype(np.int64) + 1
    starts = ends - np.minimum(rows["num_interactions"].to_numpy(), settings.history_length)
    return rows.select(
        "user_id",
        _slices(events["item_id"], starts, ends).alias("recent_item_ids"),
        _slices(events["event_type"], starts, ends).alias("recent_event_types"),
        pl.col("num_interactions").cast(pl.Int64),
        _seconds(pl.col("last")).alias("last_interaction_seconds"),
        *_tastes(events, ends - 1, settings.num_top_categories),
        *_stamped("known"),
    ).cast(pl.Schema(USER_HISTORY))


def user_activity(positives: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """How many positive events each user had in the last 1, 7 and 30 days (USER_ACTIVITY).

    A window at moment m holds the known events with `m - window < event_timestamp <= m`. Rows stand at the moments at
    which an event became known, and at each midnight at which a count is no longer what the last row said.
    """
    counts = _windowed_counts(positives, "user_id", since, until)
    counts = _changed(counts, ["user_id"], [f"n_{name}" for name in WINDOWS], keep=pl.col("is_event"))
    return (
        counts.filter(_after(since))
        .select("user_id", *(pl.col(f"n_{name}").alias(f"num_events_{name}") for name in WINDOWS), *_stamped("moment"))
        .cast(pl.Schema(USER_ACTIVITY))
    )


def item_popularity(positives: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """How many positive events each item had, of how many users (ITEM_POPULARITY), at each midnight that changed it."""
    counts = _windowed_counts(positives, "item_id", since, until).filter("is_midnight")
    counts = counts.join(
        _distinct_users(positives, counts, since), on=["item_id", "moment"], how="left", maintain_order="left"
    )
    columns = [*(f"n_{name}" for name in WINDOWS), "n_total", "n_users"]
    return (
        _changed(counts, ["item_id"], columns)
        .filter(_after(since))
        .select(
            "item_id",
            *(pl.col(f"n_{name}").alias(f"item_events_{name}") for name in WINDOWS),
            pl.col("n_total").alias("item_events_total"),
            pl.col("n_users").fill_null(0).alias("item_users_30d"),
            *_stamped("moment"),
        )
        .cast(pl.Schema(ITEM_POPULARITY))
    )


def item_content(items: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """What the items table said of each item (ITEM_CONTENT), one row a moment at which its newest known row changed.

    The newest row is the one with the largest `event_timestamp`, then `created_timestamp`; `arrival_seconds` is the
    smallest `event_timestamp` known by then.
    """
    fields = ["title", "category_path", "price"]
    rows = _newest_known(items, until).select(
        "item_id", "known", *fields, _seconds(pl.col("arrival")).alias("arrival_seconds")
    )
    rows = _changed(rows.rename({"known": "moment"}), ["item_id"], [*fields, "arrival_seconds"])
    return (
        rows.filter(_after(since))
        .select("item_id", *fields, "arrival_seconds", *_stamped("moment"))
        .cast(pl.Schema(ITEM_CONTENT))
    )


def user_seen(
    interactions: Frame,
    split: SplitSettings,
    settings: FeatureSettings,
    *,
    since: datetime | None = None,
    until: datetime,
) -> Frame:
    """Which items each user has met, and bought (USER_SEEN): one row a user and day end at which either list grew.

    Seen are the items of every event of a positive type, whatever its value: who gave one star has seen the film. Each
    list holds the last `seen_length` items in the order of their first event. The day that `until` cuts ends at
    `until`.
    """
    met = with_known(interactions.filter(pl.col("event_type").is_in([*split.positive_event_types, PURCHASE]))).filter(
        pl.col("known") <= until
    )
    seen = _first_meetings(met, until)
    bought = _first_meetings(met.filter(pl.col("event_type") == PURCHASE), until)
    moments = (
        pl.concat([seen, bought]).select("user_id", "moment").unique().sort("user_id", "moment").filter(_after(since))
    )
    return moments.select(
        "user_id",
        _known_items(moments, seen, settings.seen_length).alias("seen_item_ids"),
        _known_items(moments, bought, settings.seen_length).alias("purchased_item_ids"),
        *_stamped("moment"),
    ).cast(pl.Schema(USER_SEEN))


def _in_known_order(positives: Frame, items: Frame, until: datetime) -> Frame:
    """The events by user in the order in which they became known, each with its item's category of that moment."""
    events = with_known(positives).filter(pl.col("known") <= until)
    categories = (
        _newest_known(items, until)
        .select(
            "item_id",
            "known",
            pl.col("category_path").str.split(CATEGORY_SEPARATOR).list.first().alias("category"),
        )
        .sort("known", "item_id")
    )
    return (
        events.sort("known", "item_id")
        .join_asof(categories, on="known", by="item_id", strategy="backward", check_sortedness=False)
        .sort("user_id", "known", "event_timestamp", "item_id", "event_type", "value")
    )


def _newest_known(items: Frame, until: datetime) -> Frame:
    """For each item and moment at which a row of it became known: the newest row known, and the arrival."""
    rows = (
        with_known(items)
        .filter(pl.col("known") <= until)
        .sort("item_id", "event_timestamp", "created_timestamp", "title", "category_path", "price", nulls_last=False)
        .with_row_index("__rank")
    )
    known = rows.sort("item_id", "known", "__rank").select(
        "item_id",
        "known",
        pl.col("__rank").cum_max(),
        pl.col("event_timestamp").cum_min().over("item_id").alias("arrival"),
    )
    known = known.unique(subset=["item_id", "known"], keep="last", maintain_order=True)
    newest = rows.select("title", "category_path", "price")[known["__rank"]]
    return known.with_columns(newest.get_columns())


def _windowed_counts(positives: Frame, entity: str, since: datetime | None, until: datetime) -> Frame:
    """The counts of each window at every moment that may be a row's: event moments and the day ends after each change.

    An event adds one when it becomes known and takes it away when it leaves the window; the running sum of these steps
    is the count. With `since`, the events that had left every window by then are just counted, in one step at that
    moment, and the counts are right from it on. Returns entity, moment, n_1d, n_7d, n_30d, n_total, is_event,
    is_midnight.
    """
    events = with_known(positives.select(entity, "event_timestamp", "created_timestamp")).filter(
        pl.col("known") <= until
    )
    gone = pl.lit(False) if since is None else _gone(since)
    stood = events.filter(pl.lit(False) if since is None else pl.col("known") <= since)
    standing = stood.group_by(entity, maintain_order=True).agg(gone.sum().cast(pl.Int32).alias("n_total"))
    events = events.filter(~gone)
    steps = [events.select(entity, pl.col("known").alias("moment"), *_steps(""), pl.lit(True).alias("is_event"))]
    for name, length in WINDOWS.items():
        inside = pl.col("known") < pl.col("event_timestamp") + length
        leaving = events.filter(inside).select(
            entity, (pl.col("event_timestamp") + length).alias("moment"), *_steps(name), pl.lit(False).alias("is_event")
        )
        late = events.filter(~inside).select(
            entity, pl.col("known").alias("moment"), *_steps(name), pl.lit(False).alias("is_event")
        )
        steps += [leaving, late]
    counted = [f"n_{name}" for name in [*WINDOWS, "total"]]
    stands = standing.with_columns(
        pl.lit(since, TIMESTAMP).alias("moment"),
        *(pl.lit(0, pl.Int32).alias(f"n_{name}") for name in WINDOWS),
        pl.lit(False).alias("is_event"),
    )
    changes = pl.concat([*steps, stands.select(steps[0].columns)]).filter(pl.col("moment") <= until)
    midnights = (
        changes.select(entity, day_end(pl.col("moment")).alias("moment")).unique().filter(pl.col("moment") <= until)
    )
    grid = midnights.with_columns(
        *(pl.lit(0, pl.Int32).alias(name) for name in counted),
        pl.lit(False).alias("is_event"),
        pl.lit(True).alias("is_midnight"),
    )
    moments = (
        pl.concat(
            [changes.with_columns(pl.lit(False).alias("is_midnight")), grid.select(*changes.columns, "is_midnight")]
        )
        .group_by(entity, "moment")
        .agg(*(pl.col(name).sum() for name in counted), pl.col("is_event").any(), pl.col("is_midnight").any())
        .sort(entity, "moment")
        .with_columns(pl.col(name).cum_sum().over(entity) for name in counted)
    )
    return moments.filter(pl.col("is_event") | pl.col("is_midnight"))


def _steps(leaving: str) -> list[pl.Expr]:
    """The change of each count: all up by one when an event becomes known, one down when it leaves a window."""
    names = [*WINDOWS, "total"]
    if not leaving:
        return [pl.lit(1, pl.Int32).alias(f"n_{name}") for name in names]
    return [pl.lit(-1 if name == leaving else 0, pl.Int32).alias(f"n_{name}") for name in names]


def _gone(since: datetime) -> pl.Expr:
    """Whether an event has left every window at the moment."""
    return (pl.col("known") <= since) & (pl.col("event_timestamp") + max(WINDOWS.values()) <= since)


def _distinct_users(positives: Frame, moments: Frame, since: datetime | None) -> Frame:
    """How many different users had a known event with the item in the last 30 days, at each of the moments."""
    stays = (
        with_known(positives.select("item_id", "user_id", "event_timestamp", "created_timestamp"))
        .with_columns((pl.col("event_timestamp") + WINDOWS["30d"]).alias("leaves"))
        .filter(pl.col("known") < pl.col("leaves"), pl.lit(True) if since is None else ~_gone(since))
        .sort("item_id", "user_id", "known", "leaves")
    )
    merged = _merge_stays(stays)
    steps = (
        pl.concat(
            [
                merged.select("item_id", pl.col("known").alias("moment"), pl.lit(1).alias("n_users")),
                merged.select("item_id", pl.col("leaves").alias("moment"), pl.lit(-1).alias("n_users")),
            ]
        )
        .group_by("item_id", "moment")
        .agg(pl.col("n_users").sum())
        .sort("item_id", "moment")
        .with_columns(pl.col("n_users").cum_sum().over("item_id"))
    )
    return (
        moments.select("item_id", "moment")
        .sort("moment", "item_id")
        .join_asof(steps.sort("moment", "item_id"), on="moment", by="item_id", check_sortedness=False)
    )


def _merge_stays(stays: Frame) -> Frame:
    """Joins a user's overlapping stays with an item into one; the stays come sorted by item, user, known.

    A stay that begins after all earlier ones of its pair have ended is a new one. Pairs are many and small, so the
    running maximum of the ends is taken over all of them at once: pair and end make one number that grows from pair to
    pair.
    """
    pair = stays.select("item_id", "user_id").to_struct().rle_id().cast(pl.Int64)
    moments = pl.concat([stays["known"], stays["leaves"]]).rank("dense").cast(pl.Int64)
    known, leaves = moments[: len(stays)], moments[len(stays) :]
    most = len(moments) + 1
    ended = (pair * most + leaves).cum_max().shift(1, fill_value=-1)
    begins = (ended < pair * most) | (known > ended % most)
    return (
        stays.with_columns(begins.cum_sum().alias("__stay"))
        .group_by("__stay", maintain_order=True)
        .agg(pl.col("item_id").first(), pl.col("known").first(), pl.col("leaves").max())
    )


def _changed(rows: Frame, entity: list[str], columns: list[str], keep: pl.Expr | None = None) -> Frame:
    """Rows whose values differ from the entity's row before, its first one among them, and those that `keep` names."""
    rows = rows.sort(*entity, "moment")
    first = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in entity)
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in columns)
    changed = first | differs
    return rows.filter(changed if keep is None else changed | keep)


def _first_meetings(met: Frame, until: datetime) -> Frame:
    """The end of the day at which each user first met each item, in the order of meeting, numbered a user."""
    return (
        met.sort("user_id", "known", "event_timestamp", "item_id")
        .unique(subset=["user_id", "item_id"], keep="first", maintain_order=True)
        .select(
            "user_id", "item_id", pl.min_horizontal(day_end(pl.col("known")), pl.lit(until, TIMESTAMP)).alias("moment")
        )
    )


def _known_items(moments: Frame, meetings: Frame, longest: int) -> pl.Series:
    """For each user and moment the items met by then, the last `longest` of them."""
    ends = (
        meetings.with_row_index("__end", offset=1)
        .group_by("user_id", "moment", maintain_order=True)
        .agg(pl.col("__end").max())
    )
    firsts = meetings.with_row_index("__first").group_by("user_id", maintain_order=True).agg(pl.col("__first").min())
    spans = (
        moments.select("user_id", "moment")
        .with_row_index("__row")
        .sort("moment", "__row")
        .join_asof(ends.sort("moment"), on="moment", by="user_id", check_sortedness=False)
        .join(firsts, on="user_id", how="left")
        .sort("__row")
    )
    first = spans["__first"].cast(pl.Int64).fill_null(0).to_numpy()
    end = spans["__end"].cast(pl.Int64).fill_null(0).to_numpy()
    end = np.maximum(end, first)  # nothing met by then: an empty span
    return _slices(meetings["item_id"], np.maximum(first, end - longest), end)


def _tastes(events: Frame, positions: np.ndarray, length: int) -> tuple[pl.Series, pl.Series]:
    """Top level-one categories and their shares at the given positions of the events, which are sorted by user."""
    names = events["category"].drop_nulls().unique().sort()
    width = min(length, len(names))
    codes = events["category"].cast(pl.Enum(names)).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    users = events["user_id"].rle_id().to_numpy().astype(np.int64)
    counts_of, codes_of = [], []
    for begin, end, first, last in _blocks(users, positions, max(1, len(names))):
        if width == 0:
            continue
        table = np.zeros((end - begin, len(names)), np.int32)
        named = np.flatnonzero(codes[begin:end] >= 0)
        table[named, codes[begin:end][named]] = 1
        running = table.cumsum(axis=0, dtype=np.int32)
        # The running sum goes on over users; each row takes off what stood there when its user began.
        user = users[begin:end]
        before = np.searchsorted(user, user, side="left")
        base = np.where(before[:, None] > 0, running[before - 1], 0)
        picked = positions[first:last] - begin
        counts = running[picked] - base[picked]
        # Stable, so equal counts stand in the order of the names, which are sorted.
        order = np.argsort(-counts, axis=1, kind="stable")[:, :width]
        top = np.take_along_axis(counts, order, axis=1)
        total = counts.sum(axis=1, keepdims=True)
        shares = np.divide(top, total, out=np.zeros(top.shape), where=total > 0)
        counts_of.append(shares.astype(np.float32))
        codes_of.append(order.astype(np.int32))
    if not counts_of:
        empty = pl.Series([[]] * len(positions), dtype=pl.List(pl.String))
        return empty.alias("top_categories"), empty.cast(pl.List(pl.Float32)).alias("top_category_shares")
    shares, order = np.concatenate(counts_of), np.concatenate(codes_of)
    used = shares > 0
    offsets = np.concatenate([[0], used.sum(axis=1).cumsum()])
    return (
        _lists(names[order[used]], offsets).alias("top_categories"),
        _lists(pl.Series(shares[used]), offsets).alias("top_category_shares"),
    )


def _blocks(users: np.ndarray, positions: np.ndarray, width: int) -> list[tuple[int, int, int, int]]:
    """Cuts the events at borders of users into bounded blocks: (begin, end) of events, (first, last) of positions."""
    borders = np.append(np.flatnonzero(np.diff(users, prepend=-1)), len(users))
    blocks, begin = [], 0
    most = max(1, _MAX_CELLS // width)
    for border, following in zip(borders[1:], np.append(borders[2:], -1), strict=True):
        if following == -1 or following - begin > most:
            first, last = np.searchsorted(positions, [begin, border])
            if last > first:
                blocks.append((int(begin), int(border), int(first), int(last)))
            begin = border
    return blocks


def _slices(values: pl.Series, starts: np.ndarray, ends: np.ndarray) -> pl.Series:
    """A list column: row i holds `values[starts[i]:ends[i]]`."""
    lengths = ends - starts
    offsets = np.concatenate([[0], lengths.cumsum()])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return _lists(values.gather(rows), offsets)


def _lists(values: pl.Series, offsets: np.ndarray) -> pl.Series:
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.to_arrow())
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


def _stamped(column: str) -> list[pl.Expr]:
    return [pl.col(column).alias("event_timestamp"), pl.col(column).alias("created_timestamp")]


def _after(since: datetime | None) -> pl.Expr:
    return pl.lit(True) if since is None else pl.col("moment") > since


def _seconds(moment: pl.Expr) -> pl.Expr:
    return moment.dt.epoch("s").cast(pl.Int64)
