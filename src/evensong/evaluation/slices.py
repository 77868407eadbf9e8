"""Owns the slices: which users a night must not sacrifice for its mean."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from evensong.types import Frame

#: Fewer events than this before the cutoff make a new user.
NEW_USER_EVENTS = 5
#: An item that came in the last days before the cutoff, or later, is new.
NEW_ITEM_DAYS = 7.0
#: The head: the most popular items that together got this share of the last 30 days' events; the rest is the long tail.
HEAD_SHARE = 0.5

#: Values of a configured attribute that are looked at, the commonest first.
MAX_VALUES = 5

SLICES = ("new_users", "new_items", "long_tail")


def assign(users: Frame, targets: Frame, items: Frame, cutoff: datetime) -> Frame:
    """Which slices each user is in.

    Args:
        users: `user_id, num_interactions` at the cutoff.
        targets: `user_id, item_id`, what they wanted after it.
        items: `item_id, item_events_30d, arrival_seconds` at the cutoff; an item that is missing came later.
        cutoff: where the held-out events begin.

    Returns:
        `user_id` and one boolean column a slice, in the order of `users`: `slice_new_users` (fewer than 5 events),
        `slice_new_items` (a target that came in the last 7 days or later), `slice_long_tail` (at least half of the
        targets outside the items that drew half of all events).
    """
    kinds = _head(items).select("item_id", "head", new=_is_new(cutoff))
    of_targets = (
        targets.select("user_id", "item_id")
        .unique()
        .join(kinds, on="item_id", how="left")
        .group_by("user_id")
        .agg(
            pl.col("new").fill_null(True).any().alias("slice_new_items"),
            (pl.col("head").fill_null(False).mean() <= 0.5).alias("slice_long_tail"),
        )
    )
    new_user = pl.col("num_interactions").fill_null(0) < NEW_USER_EVENTS
    return (
        users.select("user_id", new_user.alias("slice_new_users"))
        .join(of_targets, on="user_id", how="left", maintain_order="left")
        .with_columns(pl.col("slice_new_items", "slice_long_tail").fill_null(False))
        .select("user_id", *(f"slice_{name}" for name in SLICES))
    )


def by_attribute(users: Frame, name: str, values: Frame) -> Frame:
    """One boolean column `slice_<name>=<value>` for each of the commonest values of an attribute.

    Args:
        users: `user_id`, the judged users.
        name: the attribute.
        values: `user_id, value`, text, null where it is unknown; a user may have several (those of the items that they
            wanted) or none, and is in the slice of each.

    Returns:
        `user_id` and the columns, in the order of `users`.
    """
    pairs = values.drop_nulls("value").unique(["user_id", "value"]).join(users, on="user_id", how="semi")
    counts = pairs.group_by("value").len().sort(["len", "value"], descending=[True, False])
    return users.select(
        "user_id",
        *(
            pl.col("user_id").is_in(pairs.filter(value=value)["user_id"].to_list()).alias(f"slice_{name}={value}")
            for value in counts["value"].head(MAX_VALUES)
        ),
    )


def _is_new(cutoff: datetime) -> pl.Expr:
    return pl.col("arrival_seconds").fill_null(0) > cutoff.timestamp() - NEW_ITEM_DAYS * 86_400


def _head(items: Frame) -> Frame:
    """Mark the items that, taken by popularity, are needed to reach the head's share of events."""
    events = pl.col("item_events_30d").fill_null(0)
    before = events.cum_sum() - events
    return (
        items.with_columns(item_events_30d=events)
        .sort(["item_events_30d", "item_id"], descending=[True, False])
        .with_columns(head=(before < HEAD_SHARE * events.sum()) & (events > 0))
    )
