"""Counts and sums of events for people outside, with differential privacy; what they cost stands in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import ConfigurationError
from evensong.features.privacy import PrivacyLedger, release_counts, release_sums
from evensong.settings import Settings
from evensong.types import CATEGORY_SEPARATOR, Frame, Night

STATISTICS, COLUMNS = ("events", "spend"), ("event_type", "category")
PURCHASE = "purchase"
HEAD = "privacy_ledger.json"


def ledger(settings: Settings) -> PrivacyLedger:
    """The ledger of this home: one budget for all its releases. Its head lies beside the lake's tables, so that another
    machine on the same lake does not spend the budget again."""
    return PrivacyLedger(Path(settings.place("privacy", "ledger.jsonl")), storage.join(settings.lake, HEAD))


def run(settings: Settings, night: Night, statistic: str, by: str) -> dict[str, Any]:
    """Release how many events, or what value of purchases, was known at `as_of`, by event type or by category.

    The same night and question give the same release again, at no cost. The categories are those that the settings and
    the catalogue name, never read off the events.

    Args:
        settings: `privacy.max_value` bounds what one purchase adds to a sum.
        night: its `as_of`.
        statistic: `events` or `spend`.
        by: `event_type`, or `category` for the items' first level; spend is of purchases alone.

    Raises:
        RefusedError: `privacy.epsilon` is not set, or the budget is spent.
        ConfigurationError: no such statistic or column, or nothing is in the catalogue.
    """
    if statistic not in STATISTICS:
        raise ConfigurationError(f"expected one of {', '.join(STATISTICS)} to release, got {statistic}")
    if by not in COLUMNS or (statistic, by) == ("spend", "event_type"):
        raise ConfigurationError(f"expected {' or '.join(_columns(statistic))} to release {statistic} by, got {by}")
    rows, categories = _rows(settings, night, by)
    if not categories:
        raise ConfigurationError(f"expected items with a category at {night.as_of.isoformat()}, found none")
    kept = ledger(settings)
    name = f"{statistic} by {by} at {night.as_of.isoformat()}"
    if statistic == "events":
        counted = rows.select("user_id", by)
        made = release_counts(counted, by, categories, name=name, settings=settings.privacy, ledger=kept)
    else:
        bought = rows.filter(pl.col("event_type") == PURCHASE).select("user_id", by, "value")
        largest = settings.privacy.max_value
        made = release_sums(bought, "value", largest, by, categories, name=name, settings=settings.privacy, ledger=kept)
    return {
        "name": made.name,
        "values": made.values,
        "epsilon": made.epsilon,
        "scale": made.scale,
        "spent": kept.spent(),
        "budget": settings.privacy.budget,
        "ledger": str(kept.path),
    }


def _columns(statistic: str) -> tuple[str, ...]:
    return COLUMNS if statistic == "events" else ("category",)


def _rows(settings: Settings, night: Night, by: str) -> tuple[Frame, list[str]]:
    """The events known at the night's `as_of` with the column, and the categories that it may have."""
    lake = Lake(settings.lake)
    rows = lake.scan("interactions", night.as_of).select("user_id", "item_id", "event_type", "value").collect()
    if by == "event_type":
        return rows, list(settings.validation.event_types)
    level = pl.col("category_path").str.split(CATEGORY_SEPARATOR).list.first().alias(by)
    items = lake.current_items(night.as_of).select("item_id", level)
    named = items[by].drop_nulls().unique().sort().to_list()
    return rows.join(items, on="item_id", how="left", maintain_order="left"), named
