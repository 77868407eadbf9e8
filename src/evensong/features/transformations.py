"""What the features are: plain functions from frames of interactions and items to the rows of the feature views.

Every row is stamped with the moment at which the state it describes became known (`event_timestamp` and
`created_timestamp` are that moment). An interaction counts from `known = max(event_timestamp, created_timestamp)` on,
so one that arrives late changes the features of later moments and never of earlier ones.

The functions take the interactions of one partition of entities and know nothing of the others; a partition of the
users (for the user views) or of the items (for the item views) in, the same partition's rows out. Those of events go on
from a state (`state.ViewState`): they take the events that became known since, by night or from the stream, and give
the rows since and the next state; however the events are cut into batches, the state is the same to the last bit.
`since`, a midnight, leaves out the rows stamped at or before it; `until` is the moment at which the view ends.

Days end at midnight UTC; the midnight itself belongs to the day that it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from evensong.features.declarations import Feature, schema_of
from evensong.features.lists import lists, slices
from evensong.features.newest import newest_known
from evensong.features.state import (
    Schema,
    ViewState,
    arriving,
    day_end,
    latest,
    midnight_before,
    opened,
    with_known,
)
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

TEXTS, NUMBERS = pl.List(pl.String()), pl.List(pl.Float32())

HISTORY = (
    Feature(
        "recent_item_ids", TEXTS, "Last positive events' items, oldest first.", window="last {history_length} events"
    ),
    Feature("recent_event_types", TEXTS, "The types of those events.", window="last {history_length} events"),
    Feature("num_interactions", pl.Int64(), "Positive events so far."),
    Feature("last_interaction_seconds", pl.Int64(), "Unix time of the latest positive event."),
    Feature("top_categories", TEXTS, "Level-one categories, largest share first."),
    Feature("top_category_shares", NUMBERS, "Their shares of the positive events."),
)
ACTIVITY = (
    Feature("num_events_1d", pl.Int64(), "Positive events in the last day.", window="1 day"),
    Feature("num_events_7d", pl.Int64(), "Positive events in the last 7 days.", window="7 days"),
    Feature("num_events_30d", pl.Int64(), "Positive events in the last 30 days.", window="30 days"),
)
POPULARITY = (
    Feature("item_events_1d", pl.Int64(), "Positive events in the last day.", window="1 day"),
    Feature("item_events_7d", pl.Int64(), "Positive events in the last 7 days.", window="7 days"),
    Feature("item_events_30d", pl.Int64(), "Positive events in the last 30 days.", window="30 days"),
    Feature("item_events_total", pl.Int64(), "Positive events so far."),
    Feature("item_users_30d", pl.Int64(), "Different users of the last 30 days' events.", window="30 days"),
)
CONTENT = (
    Feature("title", pl.String(), "The item's title."),
    Feature("category_path", pl.String(), "Up to three levels, broad to narrow."),
    Feature("price", pl.Float64(), "In the shop's currency."),
    Feature("arrival_seconds", pl.Int64(), "Unix time of the item's first known row."),
)
SEEN = (
    Feature(
        "seen_item_ids", TEXTS, "Items of every event, whatever its value, in order.", window="last {seen_length} items"
    ),
    Feature("purchased_item_ids", TEXTS, "Items bought, in order.", window="last {seen_length} items"),
)
USER_HISTORY = schema_of("user_id", *HISTORY)
USER_ACTIVITY = schema_of("user_id", *ACTIVITY)
ITEM_POPULARITY = schema_of("item_id", *POPULARITY)
ITEM_CONTENT = schema_of("item_id", *CONTENT)
USER_SEEN = schema_of("user_id", *SEEN)

#: The columns of the interactions that the functions below read.
INTERACTION_COLUMNS = ("user_id", "item_id", "event_type", "event_timestamp", "value", "created_timestamp")

WINDOWS = {"1d": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
PURCHASE = "purchase"
#: Cells of the category table that are counted at once; bounds the memory of `user_history`.
_MAX_CELLS = 8_000_000

_HISTORY_STATE: Mapping[str, Schema] = {
    "events": {
        "user_id": pl.String(),
        "known": TIMESTAMP,
        "event_timestamp": TIMESTAMP,
        "item_id": pl.String(),
        "event_type": pl.String(),
    },
    "totals": {"user_id": pl.String(), "num": pl.Int64(), "latest": TIMESTAMP},
    "tastes": {"user_id": pl.String(), "category": pl.String(), "num": pl.Int64()},
}
_ACTIVITY_STATE: Mapping[str, Schema] = {
    "events": {"user_id": pl.String(), "event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP},
}
_POPULARITY_STATE: Mapping[str, Schema] = {
    "events": {
        "item_id": pl.String(),
        "user_id": pl.String(),
        "event_timestamp": TIMESTAMP,
        "created_timestamp": TIMESTAMP,
    },
    "gone": {"item_id": pl.String(), "num": pl.Int64()},
}
_SEEN_STATE: Mapping[str, Schema] = {
    name: {"user_id": pl.String(), "item_id": pl.String(), "moment": TIMESTAMP} for name in ("seen", "purchased")
}


def positive_events(interactions: Frame, types: Sequence[str], min_value: Mapping[str, float]) -> Frame:
    """The interactions that count as wanting the item: a positive type, at or above the type's smallest value.

    Where a type has one, an event without a value does not reach it.
    """
    keep = pl.col("event_type").is_in(list(types))
    for event_type, smallest in sorted(min_value.items()):
        keep &= (pl.col("event_type") != event_type) | (pl.col("value") >= smallest).fill_null(False)
    return interactions.filter(keep)


def categorised_events(
    interactions: Frame, items: Frame, types: Sequence[str], min_value: Mapping[str, float]
) -> Frame:
    """The positive events, each with its item's category."""
    return with_category(positive_events(interactions, types, min_value), items)


def with_category(events: Frame, items: Frame) -> Frame:
    """The events with `category`: the level-one category that their item had when they became known."""
    paths = newest_known(items, ["category_path"]).select(
        "item_id", "known", pl.col("category_path").str.split(CATEGORY_SEPARATOR).list.first().alias("category")
    )
    asked = with_known(events).with_row_index("__row").sort("known", "__row")
    found = asked.join_asof(
        paths.sort("known", "item_id"), on="known", by="item_id", strategy="backward", check_sortedness=False
    )
    return found.sort("__row").drop("__row", "known")


def user_history(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    history_length: int,
    num_top_categories: int,
) -> tuple[Frame, ViewState]:
    """What each user wanted: one row a moment at which that changed (USER_HISTORY).

    `recent_item_ids` are the last `history_length` events in the order in which they became known, oldest first (equal
    moments by event time, then item, then type). `num_interactions` counts all of them, `last_interaction_seconds` is
    the latest event's own time. `top_categories` are the level-one categories of all of them (`with_category`), largest
    share first, ties by name; shares are of the events with a category.
    """
    parts, at = opened(state, _HISTORY_STATE)
    order = ["user_id", "known", "event_timestamp", "item_id", "event_type", "value"]
    new = arriving(events, at, until).sort(order)
    if new.is_empty():
        return pl.DataFrame(schema=USER_HISTORY), ViewState(parts, until)
    users = new.select(pl.col("user_id").unique())
    rest = {name: part.join(users, on="user_id", how="anti") for name, part in parts.items()}
    kept, totals, tastes = (
        parts[name].join(users, on="user_id", how="semi", maintain_order="left") for name in _HISTORY_STATE
    )
    columns = list(_HISTORY_STATE["events"])
    both = pl.concat([kept.with_columns(is_new=False), new.select(columns).with_columns(is_new=True)])
    both = both.sort("user_id", maintain_order=True)  # what was kept became known before what is new

    new = new.join(totals, on="user_id", how="left", maintain_order="left").with_columns(
        (pl.int_range(pl.len()).over("user_id") + 1 + pl.col("num").fill_null(0)).alias("num"),
        pl.max_horizontal(pl.col("event_timestamp").cum_max().over("user_id"), "latest").alias("latest"),
        pl.Series("__end", both["is_new"].arg_true().cast(pl.Int64) + 1),
    )
    last_of_moment = (pl.col("user_id") != pl.col("user_id").shift(-1)) | (pl.col("known") != pl.col("known").shift(-1))
    emit = last_of_moment.fill_null(True) & (pl.col("known") > latest(since))
    positions = new.select(emit.arg_true()).to_series().cast(pl.Int64).to_numpy()
    rows = new[positions]
    ends = rows["__end"].to_numpy()
    starts = ends - np.minimum(rows["num"].to_numpy(), history_length)
    found = rows.select(
        "user_id",
        slices(both["item_id"], starts, ends).alias("recent_item_ids"),
        slices(both["event_type"], starts, ends).alias("recent_event_types"),
        pl.col("num").alias("num_interactions"),
        _seconds(pl.col("latest")).alias("last_interaction_seconds"),
        *_tastes(new, positions, tastes, num_top_categories),
        *_stamped("known"),
    )
    counted = new.drop_nulls("category").group_by("user_id", "category").agg(pl.len().cast(pl.Int64).alias("num"))
    after = {
        "events": both.drop("is_new").group_by("user_id", maintain_order=True).tail(history_length),
        "totals": new.group_by("user_id", maintain_order=True).agg(pl.col("num").last(), pl.col("latest").last()),
        "tastes": pl.concat([tastes, counted]).group_by("user_id", "category").agg(pl.col("num").sum()),
    }
    keys = {"events": ["user_id"], "totals": ["user_id"], "tastes": ["user_id", "category"]}
    joined = {name: pl.concat([rest[name], after[name]]).sort(keys[name], maintain_order=True) for name in after}
    return found.cast(pl.Schema(USER_HISTORY)), ViewState(joined, until)


def user_activity(
    events: Frame, *, state: ViewState | None = None, since: datetime | None = None, until: datetime
) -> tuple[Frame, ViewState]:
    """How many positive events each user had in the last 1, 7 and 30 days (USER_ACTIVITY).

    A window at moment m holds the known events with `m - window < event_timestamp <= m`. Rows stand at the moments at
    which an event became known, and at each midnight at which a count is no longer what the last row said.
    """
    parts, at = opened(state, _ACTIVITY_STATE)
    begin, after = _span(state, since)
    columns = list(_ACTIVITY_STATE["events"])
    held = pl.concat([parts["events"], arriving(events, at, until).select(columns)])
    counts = _windowed_counts(_with_a_change(held, "user_id", begin, until), "user_id", begin, until)
    counts = _changed(counts, ["user_id"], [f"n_{name}" for name in WINDOWS], keep=pl.col("is_event"))
    rows = counts.filter(pl.col("moment") > after).select(
        "user_id", *(pl.col(f"n_{name}").alias(f"num_events_{name}") for name in WINDOWS), *_stamped("moment")
    )
    left = held.filter(~_gone(midnight_before(until))).sort(columns)
    return rows.cast(pl.Schema(USER_ACTIVITY)), ViewState({"events": left}, until)


def item_popularity(
    events: Frame, *, state: ViewState | None = None, since: datetime | None = None, until: datetime
) -> tuple[Frame, ViewState]:
    """How many positive events each item had, of how many users (ITEM_POPULARITY), at each midnight that changed it."""
    parts, at = opened(state, _POPULARITY_STATE)
    begin, after = _span(state, since)
    columns = list(_POPULARITY_STATE["events"])
    held = pl.concat([parts["events"], arriving(events, at, until).select(columns)])
    moving = _with_a_change(held, "item_id", begin, until)
    counts = _windowed_counts(moving, "item_id", begin, until, gone=parts["gone"]).filter("is_midnight")
    counts = counts.join(
        _distinct_users(moving, counts, begin), on=["item_id", "moment"], how="left", maintain_order="left"
    )
    counted = [*(f"n_{name}" for name in WINDOWS), "n_total", "n_users"]
    rows = (
        _changed(counts, ["item_id"], counted)
        .filter(pl.col("moment") > after)
        .select(
            "item_id",
            *(pl.col(f"n_{name}").alias(f"item_events_{name}") for name in WINDOWS),
            pl.col("n_total").alias("item_events_total"),
            pl.col("n_users").fill_null(0).alias("item_users_30d"),
            *_stamped("moment"),
        )
    )
    is_gone = _gone(midnight_before(until))
    left = held.filter(is_gone).group_by("item_id").agg(pl.len().cast(pl.Int64).alias("num"))
    gone = pl.concat([parts["gone"], left]).group_by("item_id").agg(pl.col("num").sum()).sort("item_id")
    new = ViewState({"events": held.filter(~is_gone).sort(columns), "gone": gone}, until)
    return rows.cast(pl.Schema(ITEM_POPULARITY)), new


def item_content(items: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """What the items table said of each item (ITEM_CONTENT), one row a moment at which its newest known row changed.

    The newest row is the one with the largest `event_timestamp`, then `created_timestamp`; `arrival_seconds` is the
    smallest `event_timestamp` known by then.
    """
    fields = ["title", "category_path", "price"]
    rows = newest_known(with_known(items).filter(pl.col("known") <= until), fields)
    rows = rows.select(
        "item_id", pl.col("known").alias("moment"), *fields, _seconds(pl.col("arrival")).alias("arrival_seconds")
    )
    return (
        _changed(rows, ["item_id"], [*fields, "arrival_seconds"])
        .filter(pl.col("moment") > latest(since))
        .select("item_id", *fields, "arrival_seconds", *_stamped("moment"))
        .cast(pl.Schema(ITEM_CONTENT))
    )


def user_seen(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    positive_types: Sequence[str],
    seen_length: int,
) -> tuple[Frame, ViewState]:
    """Which items each user has met, and bought (USER_SEEN): one row a user and day end at which either list grew.

    Seen are the items of every event of a positive type, whatever its value: who gave one star has seen the film. Each
    list holds `seen_length` items in the order in which they were met; a longer one forgets its oldest, which may then
    be met anew. The day that `until` cuts ends at `until`: that row stands for what is known so far.
    """
    parts, at = opened(state, _SEEN_STATE)
    met = arriving(events.filter(pl.col("event_type").is_in([*positive_types, PURCHASE])), at, until)
    lists = {
        "seen": _met(parts["seen"], met, seen_length),
        "purchased": _met(parts["purchased"], met.filter(pl.col("event_type") == PURCHASE), seen_length),
    }
    due = [pl.min_horizontal("moment", pl.lit(until, TIMESTAMP)).alias("moment")]
    moments = pl.concat([met_ones.select("user_id", *due) for met_ones in lists.values()]).unique()
    moments = moments.filter(pl.col("moment") > latest(at, since)).sort("user_id", "moment")
    rows = moments.select(
        "user_id",
        *(
            _known_items(moments, met_ones.with_columns(*due), seen_length).alias(f"{name}_item_ids")
            for name, met_ones in lists.items()
        ),
        *_stamped("moment"),
    )
    kept = {
        name: met_ones.group_by("user_id", maintain_order=True).tail(seen_length) for name, met_ones in lists.items()
    }
    return rows.cast(pl.Schema(USER_SEEN)), ViewState(kept, until)


def _span(state: ViewState | None, since: datetime | None) -> tuple[datetime | None, datetime]:
    """The midnight from which windows are counted, and the moment after which rows are wanted.

    The state keeps an event that left a window until the midnight at which a row is due for that.
    """
    if state is None:
        return since, latest(since)
    return max(midnight_before(state.until), latest(since)), latest(state.until, since)


def _with_a_change(events: Frame, entity: str, begin: datetime | None, until: datetime) -> Frame:
    """The events of the entities of which an event comes or leaves a window after `begin`: the others have no row."""
    if begin is None:
        return events
    leaves = [pl.col("event_timestamp") + length for length in WINDOWS.values()]
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    changes = pl.any_horizontal((known > begin), *((moment > begin) & (moment <= until) for moment in leaves))
    names = events.filter(changes).select(pl.col(entity).unique())
    return events.join(names, on=entity, how="semi", maintain_order="left")


def _windowed_counts(
    positives: Frame, entity: str, since: datetime | None, until: datetime, gone: Frame | None = None
) -> Frame:
    """The counts of each window at every moment that may be a row's: event moments and the day ends after each change.

    An event adds one when it becomes known and takes it away when it leaves the window; the running sum of these steps
    is the count. With `since`, the events known by then are just counted, in one step at that moment, together with
    those that `gone` counts already, and the counts are right from it on. Returns entity, moment, n_1d, n_7d, n_30d,
    n_total, is_event, is_midnight.
    """
    counted = [f"n_{name}" for name in [*WINDOWS, "total"]]
    events = with_known(positives.select(entity, "event_timestamp", "created_timestamp"))
    new = events.filter((pl.col("known") > latest(since)) & (pl.col("known") <= until))
    steps = [new.select(entity, pl.col("known").alias("moment"), *_steps(""), pl.lit(True).alias("is_event"))]
    never = pl.lit(False).alias("is_event")
    for name, length in WINDOWS.items():
        leaves = (pl.col("event_timestamp") + length).alias("moment")
        inside = pl.col("known") < leaves
        steps.append(new.filter(inside).select(entity, leaves, *_steps(name), never))
        steps.append(new.filter(~inside).select(entity, pl.col("known").alias("moment"), *_steps(name), never))
    if since is not None:
        stood = events.filter(pl.col("known") <= since)
        inside_now = {name: pl.col("event_timestamp") + length > since for name, length in WINDOWS.items()}
        stands = stood.group_by(entity, maintain_order=True).agg(
            *(inside.sum().cast(pl.Int64).alias(f"n_{name}") for name, inside in inside_now.items()),
            pl.len().cast(pl.Int64).alias("n_total"),
        )
        if gone is not None:
            held = gone.join(events.select(pl.col(entity).unique()), on=entity, how="semi")
            nothing = [pl.lit(0, pl.Int64).alias(f"n_{name}") for name in WINDOWS]
            stands = pl.concat([stands, held.select(entity, *nothing, pl.col("num").alias("n_total"))])
        steps.append(stands.select(entity, pl.lit(since, TIMESTAMP).alias("moment"), *counted, never))
        for name, length in WINDOWS.items():
            leaves = (pl.col("event_timestamp") + length).alias("moment")
            leaving = stood.filter(inside_now[name] & (leaves <= until))
            steps.append(leaving.select(entity, leaves, *_steps(name), never))
    changes = pl.concat(steps).filter(pl.col("moment") <= until)
    midnights = (
        changes.select(entity, day_end(pl.col("moment")).alias("moment")).unique().filter(pl.col("moment") <= until)
    )
    grid = midnights.with_columns(
        *(pl.lit(0, pl.Int64).alias(name) for name in counted),
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
        return [pl.lit(1, pl.Int64).alias(f"n_{name}") for name in names]
    return [pl.lit(-1 if name == leaving else 0, pl.Int64).alias(f"n_{name}") for name in names]


def _gone(since: datetime) -> pl.Expr:
    """Whether an event has left every window at the moment."""
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    return (known <= since) & (pl.col("event_timestamp") + max(WINDOWS.values()) <= since)


def _distinct_users(positives: Frame, moments: Frame, since: datetime | None) -> Frame:
    """How many different users had a known event with the item in the last 30 days, at each of the moments."""
    stays = (
        with_known(positives.select("item_id", "user_id", "event_timestamp", "created_timestamp"))
        .select("item_id", "user_id", "known", (pl.col("event_timestamp") + WINDOWS["30d"]).alias("leaves"))
        .filter(pl.col("known") < pl.col("leaves"))
    )
    if since is not None:
        pair = ["item_id", "user_id"]
        new = stays.filter(pl.col("known") > since)
        stood = stays.filter((pl.col("known") <= since) & (pl.col("leaves") > since))
        stood = stood.group_by(pair).agg(pl.lit(since, TIMESTAMP).alias("known"), pl.col("leaves").max())
        stays = pl.concat([new, stood])
    merged = _merge_stays(stays.sort("item_id", "user_id", "known", "leaves"))
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


def _met(held: Frame, met: Frame, longest: int) -> Frame:
    """What each user has met in order, `user_id, item_id, moment` (the end of that day), after what is held already.

    An item that is still among the last `longest` is not met anew.
    """
    new = met.sort("user_id", "known", "event_timestamp", "item_id")
    new = new.select("user_id", "item_id", day_end(pl.col("known")).cast(TIMESTAMP).alias("moment"))
    both = pl.concat([held, new]).sort("user_id", maintain_order=True)
    firsts = both.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    long = firsts.group_by("user_id").len().filter(pl.col("len") > longest).select("user_id")
    if long.is_empty():
        return firsts
    forgetful = both.join(long, on="user_id", how="semi", maintain_order="left")
    remembered = forgetful[list(_not_among_the_last(forgetful, longest))]
    return pl.concat([firsts.join(long, on="user_id", how="anti"), remembered]).sort("user_id", maintain_order=True)


def _not_among_the_last(met: Frame, longest: int) -> Iterator[int]:
    """The rows that add an item to its user's list; few users ever have one that is too long."""
    user, items, order = None, set[str](), deque[str]()
    for row, (name, item) in enumerate(met.select("user_id", "item_id").iter_rows()):
        if name != user:
            user, items, order = name, set(), deque()
        if item in items:
            continue
        if len(order) == longest:
            items.remove(order.popleft())
        items.add(item)
        order.append(item)
        yield row


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
    return slices(meetings["item_id"], np.maximum(first, end - longest), end)


def _tastes(events: Frame, positions: np.ndarray, held: Frame, length: int) -> tuple[pl.Series, pl.Series]:
    """Top level-one categories and their shares at the given positions of the events, which are sorted by user.

    Args:
        held: `user_id, category, num`, what is to be counted beside the events.
    """
    names = pl.concat([events["category"], held["category"]]).drop_nulls().unique().sort()
    width = min(length, len(names))
    codes = _codes(events["category"], names)
    users = events["user_id"].rle_id().to_numpy().astype(np.int64)
    places = held.join(
        events.select("user_id", pl.Series("user", users)).unique("user_id"), on="user_id", how="left"
    ).sort("user")
    held_user, held_code = places["user"].to_numpy(), _codes(places["category"], names)
    held_num = places["num"].to_numpy()
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
        low, high = np.searchsorted(held_user, [user[0], user[-1] + 1])
        known = np.zeros((user[-1] - user[0] + 1, len(names)), np.int32)
        known[held_user[low:high] - user[0], held_code[low:high]] = held_num[low:high]
        picked = positions[first:last] - begin
        counts = running[picked] - base[picked] + known[user[picked] - user[0]]
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
        lists(names[order[used]], offsets).alias("top_categories"),
        lists(pl.Series(shares[used]), offsets).alias("top_category_shares"),
    )


def _codes(categories: pl.Series, names: pl.Series) -> np.ndarray:
    """The place of each category among the sorted names, -1 for none."""
    return categories.cast(pl.Enum(names)).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


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


def _stamped(column: str) -> list[pl.Expr]:
    return [pl.col(column).alias("event_timestamp"), pl.col(column).alias("created_timestamp")]


def _seconds(moment: pl.Expr) -> pl.Expr:
    return moment.dt.epoch("s").cast(pl.Int64)
